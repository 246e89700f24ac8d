"""Reads the transform.pkl of spiral mesh decoders (CMR; specs/cmr_boukhayma_metro.md 2.6) without running it and without scipy.

A dict: vertices (levels of (v,3) f64), face ((f,3) u32), adj (unused), down_transform and up_transform (sparse). The down
matrices select rows, the up matrices have at most three entries in each row; spirals are not in it and are made of its meshes.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import require_file
from utils.mesh import Pyramid, spirals
from utils.safe_pickle import BREAKS, NUMPY, Array, FromBuffer, Record, array_of, read_records
from utils.sparse_pickle import SPARSE, Coo, Csc, Csr, triplets

_REMEDY = "name the transform.pkl of this hand's mesh in `pyramid`, or leave that out and a pyramid is made"
_EXPECTED = "a transform.pkl (vertices, face, down_transform, up_transform)"


def read_transform(path: str | Path, faces: np.ndarray, factors: Sequence[float], length: int, dilation: int) -> Pyramid:
    """The pyramid of the mesh with these `faces` (f,3); every level has ceil(1/factor) of the vertices of the one before.

    Raises InputError: no such file, damaged, names anything but arrays, another mesh, other factors, levels that do not fit.
    """
    path = require_file(path, _REMEDY)
    content = read_records(path, {**NUMPY, **SPARSE}, _EXPECTED, _REMEDY)
    count = len(factors)
    try:
        meshes = [_array(mesh, "f").astype(np.float64) for mesh in content["vertices"][:count + 1]]
        levels = [_array(face, "iu").astype(np.int64) for face in content["face"][:count + 1]]
        down = [_matrix(matrix) for matrix in content["down_transform"][:count]]
        up = [_matrix(matrix) for matrix in content["up_transform"][:count]]
        sizes = [int(np.max(faces)) + 1]
        for factor in factors:
            sizes.append(int(np.ceil(sizes[-1] / factor)))
        _require([len(mesh) for mesh in meshes] == sizes and len(levels) == count + 1 and len(down) == len(up) == count,
                 f"levels of {', '.join(str(len(mesh)) for mesh in meshes)} vertices, where factors "
                 f"{', '.join(f'{factor:g}' for factor in factors)} make {', '.join(map(str, sizes))}")
        _require(np.array_equal(levels[0], faces), "faces of another mesh than this hand's")
        for mesh, face in zip(meshes, levels):
            _require(mesh.shape[1:] == (3,) and bool(np.isfinite(mesh).all()), "vertices that are no finite points")
            _require(face.shape[1:] == (3,) and bool(((face >= 0) & (face < len(mesh))).all()), "faces of no vertices")
        kept = [_selection(matrix, (sizes[i + 1], sizes[i])) for i, matrix in enumerate(down)]
        mixes = [_mix(matrix, (sizes[i], sizes[i + 1])) for i, matrix in enumerate(up)]
    except BREAKS as error:
        raise InputError(f"{path}: expected {_EXPECTED} of this hand, found another one ({error}); {_REMEDY}") from error
    tables = [spirals(mesh, face, length, dilation) for mesh, face in zip(meshes[:-1], levels)]
    return Pyramid(tuple(levels), tuple(kept), tuple(column for column, _ in mixes), tuple(weight for _, weight in mixes),
                   tuple(tables))


def _require(fulfilled: bool, found: str) -> None:
    if not fulfilled:
        raise ValueError(found)


def _array(record: Any, kinds: str) -> np.ndarray:
    if not isinstance(record, (Array, FromBuffer)):
        raise TypeError(f"a {type(record).__name__.lower()} where an array was expected")
    return array_of(record, kinds)


def _matrix(record: Record) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """Shape, rows, columns and values, sorted by row, then column."""
    if not isinstance(record, (Csc, Csr, Coo)):
        raise TypeError(f"a {type(record).__name__.lower()} where a sparse matrix was expected")
    state = {key: array_of(value) if isinstance(value, (Array, FromBuffer)) else value for key, value in record.state.items()}
    if "coords" in state:
        state["coords"] = [_array(axis, "iu") for axis in state["coords"]]
    shape, rows, cols, values = triplets(record, state)
    order = np.lexsort((cols, rows))
    rows, cols, values = rows[order].astype(np.int64), cols[order].astype(np.int64), values[order].astype(np.float32)
    inside = (rows >= 0) & (rows < shape[0]) & (cols >= 0) & (cols < shape[1])
    _require(bool(inside.all() and np.isfinite(values).all()), "a sparse matrix with entries beside it, or that are no numbers")
    return shape, rows, cols, values


def _selection(matrix: tuple, shape: tuple[int, int]) -> np.ndarray:
    """The column of the single 1 in each row."""
    found, rows, cols, values = matrix
    used = values != 0
    rows, cols, values = rows[used], cols[used], values[used]
    _require(found == shape and np.array_equal(rows, np.arange(shape[0])) and (values == 1).all(),
             f"a down_transform that does not select {shape[0]} of {shape[1]} vertices")
    return cols


def _mix(matrix: tuple, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and weights (n,3) of a matrix with at most three entries a row; missing ones weigh 0."""
    found, rows, cols, values = matrix
    counts = np.bincount(rows, minlength=shape[0])
    _require(found == shape and counts.max() <= 3, f"an up_transform that does not mix three of {shape[1]} vertices for each of "
                                                   f"{shape[0]}")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns, weights = np.zeros((shape[0], 3), np.int64), np.zeros((shape[0], 3), np.float32)
    columns[rows, place], weights[rows, place] = cols, values
    return columns, weights
