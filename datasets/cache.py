"""A prepared dataset on disk: crops in one lmdb file, labels in one columnar index.

    crops.lmdb     key = row number, 8 bytes big-endian; value = one JPEG. One file, memory-mapped, crash-safe
    index/*.npy    one array per label, first axis = row; memory-mapped by readers, so a worker process costs no memory
    meta.json      what the rows are; written last: a folder without it is unfinished

Seed: the original kept a JPEG file per crop and pickled lists of dicts (18.7 kB of mesh per frame), loaded whole by every worker.
"""
import contextlib
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb
import numpy as np

from utils.errors import InputError
from utils.files import atomic_path

PAGE = 4096  # bytes; lmdb stores a long value in whole pages
SPARE = 64 << 20  # bytes of map beyond what the crops need: tree pages, freed pages


class Crops:
    """Read-only crops by row. Safe to hand to forked and spawned workers: each process opens the file on its first read."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._pid, self._env = -1, None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_pid": -1, "_env": None}

    def __getitem__(self, row: int) -> np.ndarray:
        """The stored bytes (uint8) of a row; InputError where there is none."""
        return np.frombuffer(self._get(row), np.uint8)

    def has(self, row: int) -> bool:
        """Whether a row has any bytes: pictures without a mask have an empty one."""
        return bool(self._get(row))

    def _get(self, row: int) -> bytes:
        if self._pid != os.getpid():
            self._env, self._pid = self._open(), os.getpid()
        with self._env.begin() as read:
            value = read.get(struct.pack(">Q", row))
        if value is None:
            raise InputError(f"{self.path}: no crop of row {row}; the file is not the one that prepare wrote: prepare again")
        return value

    def __len__(self) -> int:
        with self._open() as env:
            return env.stat()["entries"]

    def _open(self) -> lmdb.Environment:
        try:
            # No read-ahead: rows are read in random order, and the neighbours of a crop are never wanted.
            env = lmdb.open(str(self.path), subdir=False, readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise InputError(f"{self.path}: expected the crops that prepare wrote, found none that can be read ({error}); "
                             "prepare again") from error
        needed, found = (env.info()["last_pgno"] + 1) * env.stat()["psize"], self.path.stat().st_size
        if found < needed:  # reading past the end of a mapped file kills the process
            env.close()
            raise InputError(f"{self.path}: expected {needed} bytes, found {found}: it is truncated; remove its folder and "
                             "prepare again")
        return env


class CropWriter:
    """Appends crops in row order; what was appended survives a kill. `rows` says how many there are."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            self._env = lmdb.open(str(self.path), subdir=False, map_size=size + SPARE, lock=False)
        except lmdb.Error as error:
            raise InputError(f"{self.path}: cannot be written ({error}); is it another file, or is the disk full?") from error
        self.rows = self._env.stat()["entries"]

    def append(self, values: Iterable[bytes]) -> None:
        """Add crops in one transaction: all of them or none."""
        values = list(values)
        need = sum(-(-(len(value) + 64) // PAGE) * PAGE for value in values) + SPARE // 2
        info = self._env.info()
        if (info["last_pgno"] + 1) * PAGE + need > info["map_size"]:
            self._env.set_mapsize(max(2 * info["map_size"], info["map_size"] + 2 * need))
        try:
            self._put(values)
        except lmdb.MapFullError:  # the estimate was too small: pages of the tree itself
            self._env.set_mapsize(4 * self._env.info()["map_size"])
            self._put(values)
        self.rows += len(values)

    def _put(self, values: list[bytes]) -> None:
        try:
            with self._env.begin(write=True) as write:
                for row, value in enumerate(values, self.rows):
                    write.put(struct.pack(">Q", row), value, append=True)
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            raise OSError(_errno(error), f"cannot write ({error})", str(self.path)) from error

    def close(self) -> None:
        self._env.sync(True)
        self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _errno(error: lmdb.Error) -> int:
    """lmdb words the system's error; the number is what run.py tells a full disk by."""
    text = str(error)
    for code in range(1, 134):
        if os.strerror(code) in text:
            return code
    return 5


class ColumnWriter:
    """Writes `<folder>/<name>.npy` for each column, piece by piece in row order; the files get their names on a clean exit.

    rows: how many there will be. columns: name -> (dtype, shape of one row). Memory is that of one piece.
    """

    def __init__(self, folder: str | os.PathLike, rows: int, columns: Mapping[str, tuple[np.dtype | type, tuple[int, ...]]]):
        self.rows, self._left = rows, rows
        self._columns = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in columns.items()}
        self._stack, self._files, self._folder = contextlib.ExitStack(), {}, Path(folder)

    def __enter__(self) -> Self:
        for name, (dtype, shape) in self._columns.items():
            temporary = self._stack.enter_context(atomic_path(self._folder / f"{name}.npy"))
            file = self._files[name] = self._stack.enter_context(open(temporary, "wb"))
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (self.rows, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
        return self

    def append(self, piece: Mapping[str, np.ndarray]) -> None:
        """Add the same number of rows to every column."""
        count = len(next(iter(piece.values())))
        for name, (dtype, shape) in self._columns.items():
            array = np.ascontiguousarray(piece[name], dtype)
            if array.shape != (count, *shape):
                raise TypeError(f"column {name}: expected {(count, *shape)}, found {array.shape}")
            self._files[name].write(array.tobytes())
        self._left -= count

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        if kind is None and self._left:
            kind, error = TypeError, TypeError(f"{self._left} of {self.rows} rows were never written")
            self._stack.__exit__(kind, error, None)
            raise error
        return self._stack.__exit__(kind, error, trace)


def read_columns(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The columns named by `shapes` (shape of one row each), memory-mapped. InputError: one is missing or of another shape."""
    columns = {}
    for name, shape in shapes.items():
        path = Path(folder) / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected a column that prepare wrote, found none ({error}); prepare again") from error
        rows = len(next(iter(columns.values())))
        if columns[name].shape != (rows, *shape):
            raise InputError(f"{path}: expected an array {(rows, *shape)}, found {columns[name].shape}; prepare again")
    return columns
