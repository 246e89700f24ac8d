"""Reads MANO's Python 2 pickle without running it (specs: datasets 3.4): no chumpy, no import, no call of anything it names.

Every global that a MANO file names, the seven of the original and those of the re-saves in circulation, stands here for an
inert record that keeps what it was given; any other is refused by name before it is looked up. Arrays are then built from
the kept bytes. So the worst a hostile file can do is to be refused or to hold wrong numbers.
"""
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.safe_pickle import BREAKS, NUMPY, Array, FromBuffer, Record, array_of, read_records


class _Ch(Record):
    """chumpy.ch.Ch: the array is x."""


class _Select(Record):
    """chumpy.reordering.Select: a.ravel()[idxs] in the shape preferred_shape."""


class _Csc(Record):
    """scipy.sparse.csc_matrix: data, indices, indptr, _shape."""


class _Csr(Record):
    """scipy.sparse.csr_matrix, likewise by rows."""


class _Coo(Record):
    """scipy.sparse.coo_matrix: data and row, col (newer: coords)."""


def _scipy(name: str) -> list[tuple[str, str]]:
    form = name.split("_")[0]
    return [(module, name) for module in (f"scipy.sparse.{form}", f"scipy.sparse._{form}", "scipy.sparse")]


_ALLOWED: dict[tuple[str, str], type[Record]] = {
    **NUMPY,
    ("chumpy.ch", "Ch"): _Ch, ("chumpy.reordering", "Select"): _Select,
    **{key: _Csc for name in ("csc_matrix", "csc_array") for key in _scipy(name)},
    **{key: _Csr for name in ("csr_matrix", "csr_array") for key in _scipy(name)},
    **{key: _Coo for name in ("coo_matrix", "coo_array") for key in _scipy(name)},
}


def read_mano_pickle(path: Path, wanted: Collection[str], remedy: str) -> dict[str, Any]:
    """Those of the `wanted` entries that a MANO pickle, original or re-saved, has; `remedy` ends each message.

    Raises InputError: the file asks for a global outside the list, is no pickle, breaks off, or holds no dictionary of arrays.
    """
    content = read_records(path, _ALLOWED, "a MANO pickle", remedy)
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
        except BREAKS as error:
            raise InputError(f"{path}: {key} cannot be read ({error}); {remedy}") from error
    return arrays


def _evaluate(value: Any) -> Any:
    """The numpy array behind a record; other values as they are."""
    if isinstance(value, (Array, FromBuffer)):
        return array_of(value)
    if isinstance(value, _Ch):
        return _evaluate(value.state["x"])
    if isinstance(value, _Select):
        state = {key: _evaluate(value.state[key]) for key in ("a", "idxs", "preferred_shape")}
        return state["a"].ravel()[state["idxs"]].reshape(state["preferred_shape"])
    if isinstance(value, (_Csc, _Csr, _Coo)):
        return _dense(value)
    return value


def _dense(record: Record) -> np.ndarray:
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
