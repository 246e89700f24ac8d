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
from utils.sparse_pickle import SPARSE, Coo, Csc, Csr, triplets


class _Ch(Record):
    """chumpy.ch.Ch: the array is x."""


class _Select(Record):
    """chumpy.reordering.Select: a.ravel()[idxs] in the shape preferred_shape."""


_ALLOWED: dict[tuple[str, str], type[Record]] = {
    **NUMPY, **SPARSE,
    ("chumpy.ch", "Ch"): _Ch, ("chumpy.reordering", "Select"): _Select,
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
    if isinstance(value, (Csc, Csr, Coo)):
        return _dense(value)
    return value


def _dense(record: Record) -> np.ndarray:
    """A sparse matrix written out; entries named twice add up, as in scipy."""
    state = {key: _evaluate(value) for key, value in record.state.items()}
    if "coords" in state:
        state["coords"] = [_evaluate(axis) for axis in state["coords"]]
    shape, rows, cols, values = triplets(record, state)
    dense = np.zeros(shape)
    np.add.at(dense, (rows, cols), values)
    return dense
