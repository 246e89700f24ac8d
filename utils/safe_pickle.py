"""Reads pickles of numpy arrays and plain containers without running them: HO3D's meta files, RHD's annotations, MANO's files.

Every global that a file may name stands here for an inert record that keeps what it was given; any other is refused by name
before it is looked up. Arrays are then built from the kept bytes (specs: datasets 1.3, 1.5, 3.4). All protocols, Python 2's byte
strings as latin1, the names of numpy 1 and 2. Python's own unpickler is used, not the one in C: that one reserves memory for any
memo number that a file names. So the worst a hostile file can do is to be refused or to hold wrong numbers.
"""
import io
import math
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import require_file

BREAKS = (  # of a damaged file, here and in what is built of its records
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, MemoryError,
    OverflowError, RecursionError, NameError, struct.error)


class Record:
    """Keeps constructor arguments and state; has no behaviour."""

    def __new__(cls, *args: Any) -> "Record":
        record = object.__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(Record):
    """numpy.ndarray: state (version, shape, dtype, fortran order, bytes or a list of objects)."""


class FromBuffer(Record):
    """The same as pickle protocol 5 has it: arguments (bytes, dtype, shape, order)."""


class Scalar(Record):
    """A number of numpy's: arguments (dtype, bytes)."""


class Dtype(Record):
    """numpy.dtype: arguments ('f8', ...), state (version, '<', ...)."""


class Encoded(Record):
    """Bytes that Python 3 wrote into a protocol 2 file: arguments (text, 'latin1'), or none."""


class Group(Record):
    """A set: arguments (its items,)."""


NUMPY: dict[tuple[str, str], type[Record]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): FromBuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): Array, ("numpy", "dtype"): Dtype, ("_codecs", "encode"): Encoded,
    **{(module, "bytes"): Encoded for module in ("__builtin__", "builtins")},
    **{(module, name): Group for module in ("__builtin__", "builtins") for name in ("set", "frozenset")},
}


class _Refused(Exception):
    """The file named a global that is not in the list."""


class _Bytes(io.BytesIO):
    """A file's bytes that end with an exception: Python's unpickler takes a short read, or half a line, for a whole one."""

    def read(self, count: int) -> bytes:
        data = super().read(count)
        if len(data) < count:
            raise EOFError("it ends too early")
        return data

    def readline(self) -> bytes:
        line = super().readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line


class _Reader(pickle._Unpickler):  # find_class hands out inert records alone
    dispatch = dict(pickle._Unpickler.dispatch)  # the opcodes that need a guard get one below

    def __init__(self, data: bytes, allowed: Mapping[tuple[str, str], type[Record]]):
        # latin1: Python 2 wrote the arrays' bytes as text. fix_imports off: names are refused as the file spells them.
        super().__init__(_Bytes(data), encoding="latin1", fix_imports=False)
        self.allowed, self.size = allowed, len(data)

    def find_class(self, module: str, name: str) -> type[Record]:
        if (module, name) not in self.allowed:
            raise _Refused(_said(f"{module}.{name}"))
        return self.allowed[module, name]

    def get_extension(self, code: int) -> None:
        raise _Refused(f"the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the persistent object {_said(str(pid))}")

    def load_bytearray8(self) -> None:
        """As pickle's, which would first reserve as many bytes as the file says that follow."""
        count = int.from_bytes(self.read(8), "little")
        if count > self.size:
            raise pickle.UnpicklingError(f"{count} bytes announced in a file of {self.size}")
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _said(text: str) -> str:
    """For a message: no control characters on the terminal, and not too long."""
    return repr(text)[1:-1][:100]


def _guard_keys(opcode: bytes) -> None:
    """Keys and members must be plain: hashing tuples nested a million deep would overflow the interpreter's stack."""
    original = _Reader.dispatch[opcode[0]]
    every = 1 if opcode in (pickle.ADDITEMS, pickle.FROZENSET) else 2

    def load(reader: _Reader) -> None:
        keys = reader.stack[-2:-1] if opcode == pickle.SETITEM else reader.stack[::every]
        if not all(isinstance(key, (str, bytes, int, float, type(None))) for key in keys):
            raise pickle.UnpicklingError("a key that is neither text nor a number")
        original(reader)

    _Reader.dispatch[opcode[0]] = load


for _opcode in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET):
    _guard_keys(_opcode)


def load_pickle(path: str | Path, remedy: str, *, expected: str = "a pickle of arrays") -> Any:
    """Contents of a pickle: dicts, lists, tuples, sets, text, numbers, None and numpy arrays (writable, native byte order).

    Raises InputError (file, expected, found, then `remedy`): absent, no pickle, cut off or damaged, asks for anything that is no
    array or plain container, holds itself, or announces more than its bytes can hold.
    """
    path = require_file(path, remedy)
    content = read_records(path, NUMPY, expected, remedy)
    try:
        return _Builder(path.stat().st_size).plain(content)
    except BREAKS as error:
        raise InputError(f"{path}: expected {expected}, found one that cannot be read ({_said(str(error))}); {remedy}") from error


def read_records(path: Path, allowed: Mapping[tuple[str, str], type[Record]], expected: str, remedy: str) -> Any:
    """What a pickle holds, with a Record wherever it calls one of the globals `allowed`. Raises InputError like load_pickle."""
    data = path.read_bytes()
    if not data.startswith((b"\x80", b"(dp", b"(lp", b"}q", b"]q", b"}.")):  # from protocol 2; 0 and 1
        raise InputError(f"{path}: expected {expected}, found {_kind(data[:64])}; {remedy}")
    try:
        return _Reader(data, allowed).load()
    except _Refused as refused:
        raise InputError(f"{path}: expected {expected}, found one that asks for {refused}; nothing in it was run; "
                         f"{remedy}") from None
    except BREAKS as error:
        raise InputError(f"{path}: expected {expected}, found one cut off or damaged ({type(error).__name__}: "
                         f"{_said(str(error))}); {remedy}") from error


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


def array_of(record: Record, kinds: str = "biuf") -> np.ndarray:
    """The read-only array behind an Array, FromBuffer or Scalar; `kinds`: numpy's letters of the allowed data types.

    Raises one of BREAKS.
    """
    if isinstance(record, Array):
        _, shape, dtype, fortran, raw = record.state
        return _array(raw, dtype, shape, "F" if fortran else "C", kinds)
    if isinstance(record, FromBuffer):
        return _array(*record.args, kinds)
    if isinstance(record, Scalar):
        dtype, raw = record.args
        return _array(raw, dtype, (), "C", kinds)
    raise TypeError(f"a {type(record).__name__.lower()} where an array was expected")


def _array(raw: Any, dtype: Any, shape: Any, order: str, kinds: str) -> np.ndarray:
    if not isinstance(dtype, Dtype):
        raise TypeError("an array without a data type")
    code = str(dtype.args[0])
    if not re.fullmatch(r"[?a-zA-Z]\d{0,9}", code, re.ASCII):  # plain ones only: a record's name would be evaluated
        raise TypeError(f"an array of {_said(code)}, expected numbers")
    byte_order = dtype.state[1] if dtype.state else "="
    dtype = np.dtype((byte_order if byte_order in ("<", ">") else "=") + code)
    if dtype.kind not in kinds:
        raise TypeError(f"an array of {dtype}, expected numbers")
    if isinstance(raw, Encoded):
        raw = _bytes(*raw.args)
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _bytes(text: str = "", coding: str = "latin1") -> bytes:
    if coding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another coding than latin1")
    return text.encode("latin1")


class _Builder:
    """Turns records into what they stand for, each once; arrays together hold no more than the file can."""

    def __init__(self, size: int):
        self.left = 2 * size + 65536  # of bytes: else a file could name the same ones a million times
        self.built: dict[int, Any] = {}
        self.open: set[int] = set()

    def plain(self, value: Any) -> Any:
        """value, and all it holds, without records."""
        if isinstance(value, type):
            raise TypeError(f"the name of {value.__name__.lower()} where a value was expected")
        if not isinstance(value, (dict, list, tuple, set, frozenset, Record)):
            return value
        key = id(value)
        if key in self.open:
            raise ValueError("a container that holds itself")
        if key not in self.built:
            self.open.add(key)
            self.built[key] = self._made(value)
            self.open.remove(key)
        return self.built[key]

    def _made(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k.decode("latin1") if isinstance(k, bytes) else k: self.plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.plain, value))
        if isinstance(value, Encoded):
            return _bytes(*value.args)
        if isinstance(value, Group):
            return self._set(*value.args)
        if isinstance(value, Record):
            return self._objects(value.state) if _holds_objects(value) else self._counted(value)
        return value  # a set: its members are plain

    def _set(self, items: Iterable = ()) -> set:
        if not all(isinstance(item, (str, bytes, int, float)) for item in items):
            raise TypeError("a set whose members are neither text nor numbers")
        return set(items)

    def _counted(self, record: Record) -> Any:
        array = array_of(record, "biufSU")
        self.left -= array.nbytes
        if self.left < 0:
            raise ValueError("arrays of more bytes than the file has")
        return array[()] if isinstance(record, Scalar) else array.astype(array.dtype.newbyteorder("="))

    def _objects(self, state: tuple) -> np.ndarray:
        """An array of Python objects, which must be plain as well."""
        _, shape, _, fortran, items = state
        if math.prod(shape) != len(items):
            raise ValueError(f"{len(items)} objects for an array of shape {shape}")
        array = np.empty(len(items), object)
        for i, item in enumerate(items):
            array[i] = self.plain(item)
        return array.reshape(shape, order="F" if fortran else "C")


def _holds_objects(record: Record) -> bool:
    if not isinstance(record, Array) or not isinstance(record.state, tuple) or len(record.state) != 5:
        return False
    dtype, items = record.state[2], record.state[4]
    return isinstance(items, list) and isinstance(dtype, Dtype) and str(dtype.args[0]).startswith("O")
