"""Arrays in an uncompressed .npz (a zip of .npy members) that are written piece by piece and mapped from disk, not loaded.

`numpy.load(path, allow_pickle=False)` opens such a file anywhere. Equal arrays give equal bytes: members carry a fixed date.
"""
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from utils.errors import InputError

ALIGN = 64  # bytes; data of every array starts at a multiple of it, so that a mapped array is an aligned one


def write_array(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    """A whole array as one member."""
    write_member(archive, key, array.dtype, array.shape, iter([array.tobytes()]))


def write_member(archive: zipfile.ZipFile, key: str, dtype: np.dtype, shape: tuple[int, ...], pieces: Iterator[bytes]) -> None:
    """One .npy member, its data in pieces; the header is padded so that they begin at a multiple of ALIGN in the archive."""
    info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # a fixed date: same predictions, same bytes
    with archive.open(info, "w", force_zip64=True) as member:
        header = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}).encode("latin1")
        start = archive.fp.tell() + len(np.lib.format.MAGIC_PREFIX) + 4  # magic, version (2), header length (2)
        header += b" " * (-(start + len(header) + 1) % ALIGN) + b"\n"
        member.write(np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header)
        for piece in pieces:
            member.write(piece)


def map_member(path: Path, archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo, remedy: str) -> np.ndarray:
    """Map a stored member; read a compressed one (a file that was saved again by other means). InputError: no plain array."""
    try:
        with archive.open(info) as member:
            np.lib.format.read_magic(member)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            header = member.tell()
    except ValueError as error:
        raise InputError(f"{path}: column {info.filename} is no array ({error}); {remedy}") from error
    if dtype.hasobject or fortran:
        raise InputError(f"{path}: column {info.filename} holds {'objects' if dtype.hasobject else 'Fortran order'}; {remedy}")
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    file.seek(info.header_offset + 26)  # of the local header: lengths of the name and of the extra field
    lengths = file.read(4)
    start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little") + header
    if info.file_size - header != dtype.itemsize * math.prod(shape):
        raise InputError(f"{path}: column {info.filename} has {info.file_size - header} bytes, its header says {shape}; {remedy}")
    if 0 in shape or not dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)
