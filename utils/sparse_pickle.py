"""scipy's sparse matrices inside pickles (MANO's regressor, CMR's transform.pkl): read without scipy, and nothing is run.

To be allowed beside utils.safe_pickle.NUMPY; module names of old and new scipy.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from utils.safe_pickle import Record


class Csc(Record):
    """scipy.sparse.csc_matrix: data, indices, indptr, _shape."""


class Csr(Record):
    """scipy.sparse.csr_matrix, likewise by rows."""


class Coo(Record):
    """scipy.sparse.coo_matrix: data and row, col (newer: coords)."""


def _names(form: str) -> list[tuple[str, str]]:
    return [(module, f"{form}_{kind}") for kind in ("matrix", "array")
            for module in (f"scipy.sparse.{form}", f"scipy.sparse._{form}", "scipy.sparse")]


SPARSE: dict[tuple[str, str], type[Record]] = {
    name: record for form, record in (("csc", Csc), ("csr", Csr), ("coo", Coo)) for name in _names(form)}


def triplets(record: Record, state: Mapping[str, Any]) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """Shape, rows, columns and values of a Csc, Csr or Coo, whose `state` holds arrays already; stored zeros, too.

    Raises one of utils.safe_pickle.BREAKS where they do not belong together.
    """
    shape = tuple(int(n) for n in state["_shape"])
    if len(shape) != 2 or not 0 <= min(shape) <= max(shape) <= 10_000:
        raise ValueError(f"a sparse matrix of shape {shape}")
    if isinstance(record, Coo):
        rows, cols = state["coords"] if "coords" in state else (state["row"], state["col"])
    else:
        minor, lengths = state["indices"], np.diff(state["indptr"].astype(np.int64))
        if (lengths < 0).any() or lengths.sum() != len(minor):
            raise ValueError(f"a sparse matrix whose {len(minor)} entries are not those that its rows or columns announce")
        major = np.repeat(np.arange(len(lengths)), lengths)
        rows, cols = (minor, major) if isinstance(record, Csc) else (major, minor)
    if not len(rows) == len(cols) == len(state["data"]):
        raise ValueError("a sparse matrix with more places than values, or fewer")
    return shape, rows, cols, state["data"]
