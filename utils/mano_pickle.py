"""Reads MANO's Python 2 pickle without running it (specs: datasets 3.4): no chumpy, no import, no call of anything it names.

Every global that a MANO file names, the seven of the original and those of the re-saves in circulation, stands here for an
inert record that keeps what it was given; any other is refused by name before it is looked up. Arrays are then built from
the kept bytes. So the worst a hostile file can do is to be refused or to hold wrong numbers.
"""
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError


class _Record:
    """Keeps constructor arguments and state; has no behaviour."""

    def __new__(cls, *args: Any) -> "_Record":
        record = object.__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """numpy.ndarray: state (version, shape, dtype, fortran order, bytes)."""


class _FromBuffer(_Record):
    """The same as pickle protocol 5 has it: arguments (bytes, dtype, shape, order)."""


class _Dtype(_Record):
    """numpy.dtype: arguments ('f8', ...), state (version, '<', ...)."""


class _Bytes(_Record):
    """Bytes that Python 3 wrote into a protocol 2 file: arguments (text, 'latin1')."""


class _Set(_Record):
    """Bookkeeping of chumpy, never read."""


class _Ch(_Record):
    """chumpy.ch.Ch: the array is x."""


class _Select(_Record):
    """chumpy.reordering.Select: a.ravel()[idxs] in the shape preferred_shape."""


class _Csc(_Record):
    """scipy.sparse.csc_matrix: data, indices, indptr, _shape."""


class _Csr(_Record):
    """scipy.sparse.csr_matrix, likewise by rows."""


class _Coo(_Record):
    """scipy.sparse.coo_matrix: data and row, col (newer: coords)."""


def _scipy(name: str) -> list[tuple[str, str]]:
    form = name.split("_")[0]
    return [(module, name) for module in (f"scipy.sparse.{form}", f"scipy.sparse._{form}", "scipy.sparse")]


_ALLOWED: dict[tuple[str, str], type[_Record]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer, ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _Bytes,
    ("__builtin__", "set"): _Set, ("builtins", "set"): _Set,
    ("chumpy.ch", "Ch"): _Ch, ("chumpy.reordering", "Select"): _Select,
    **{key: _Csc for name in ("csc_matrix", "csc_array") for key in _scipy(name)},
    **{key: _Csr for name in ("csr_matrix", "csr_array") for key in _scipy(name)},
    **{key: _Coo for name in ("coo_matrix", "coo_array") for key in _scipy(name)},
}

_BREAKS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
           MemoryError, OverflowError, RecursionError, SyntaxError)  # the last: numpy evaluates a data type's name


class _Refused(Exception):
    """The file named a global that is not in the list."""


class _Reader(pickle.Unpickler):  # find_class hands out inert records alone
    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in _ALLOWED:
            raise _Refused(repr(f"{module}.{name}")[1:-1][:100])  # repr: no control characters on the terminal
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the persistent object {str(pid)[:100]!r}")


def read_mano_pickle(path: Path, wanted: Collection[str], remedy: str) -> dict[str, Any]:
    """Those of the `wanted` entries that a MANO pickle, original or re-saved, has; `remedy` ends each message.

    Raises InputError: the file asks for a global outside the list, is no pickle, breaks off, or holds no dictionary of arrays.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        file.seek(0)
        if not head.startswith(b"\x80"):
            raise InputError(f"{path}: expected a MANO pickle, found {_kind(head)}; {remedy}")
        try:
            # latin1: Python 2 wrote the arrays' bytes as text. fix_imports off: names are refused as the file spells them.
            content = _Reader(file, encoding="latin1", fix_imports=False).load()
        except _Refused as refused:
            raise InputError(f"{path}: asks for {refused}, which no MANO file needs; nothing in it was run; {remedy}") from None
        except _BREAKS as error:
            raise InputError(f"{path}: expected a MANO pickle, found one cut off or damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        found = type(content).__name__.lstrip("_")
        raise InputError(f"{path}: expected MANO's dictionary of arrays, found a {found}; {remedy}")
    arrays = {}
    for key, value in content.items():
        key = key.decode("latin1") if isinstance(key, bytes) else key
        if key not in wanted:
            continue
        try:
            arrays[key] = _evaluate(value)
        except _BREAKS as error:
            raise InputError(f"{path}: {key} cannot be read ({error}); {remedy}") from error
    return arrays


def _kind(head: bytes) -> str:
    """In words, what a file starting with `head` seems to be."""
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a zip archive"
    if head.lstrip()[:1] == b"<":
        return "a web page (was it saved without logging in?)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    return "a text file" if all(9 <= byte < 127 for byte in head) else "a file of another kind"


def _evaluate(value: Any) -> Any:
    """The numpy array behind a record; other values as they are."""
    if isinstance(value, _Array):
        _, shape, dtype, fortran, raw = value.state
        return _array(raw, dtype, shape, "F" if fortran else "C")
    if isinstance(value, _FromBuffer):
        return _array(*value.args)
    if isinstance(value, _Ch):
        return _evaluate(value.state["x"])
    if isinstance(value, _Select):
        state = {key: _evaluate(value.state[key]) for key in ("a", "idxs", "preferred_shape")}
        return state["a"].ravel()[state["idxs"]].reshape(state["preferred_shape"])
    if isinstance(value, (_Csc, _Csr, _Coo)):
        return _dense(value)
    return value


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise TypeError("an array without a data type")
    code = str(dtype.args[0])
    byte_order = dtype.state[1] if dtype.state else "="
    dtype = np.dtype((byte_order if byte_order in ("<", ">") else "=") + code)
    if dtype.kind not in "biuf":
        raise TypeError(f"an array of {dtype}, expected numbers")
    if isinstance(raw, _Bytes):
        raw = raw.args[0]
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _dense(record: _Record) -> np.ndarray:
    """A sparse matrix written out; entries named twice add up, as in scipy."""
    state = {key: _evaluate(value) for key, value in record.state.items()}
    shape = tuple(int(n) for n in state["_shape"])
    if isinstance(record, _Coo):
        rows, cols = [_evaluate(x) for x in state["coords"]] if "coords" in state else (state["row"], state["col"])
    else:
        minor = state["indices"]
        major = np.repeat(np.arange(len(state["indptr"]) - 1), np.diff(state["indptr"]))
        rows, cols = (minor, major) if isinstance(record, _Csc) else (major, minor)
    if len(shape) != 2 or max(shape) > 10_000:
        raise ValueError(f"a sparse matrix of shape {shape}")
    dense = np.zeros(shape)
    np.add.at(dense, (rows, cols), state["data"])
    return dense
