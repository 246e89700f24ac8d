"""Writes a toy MANO pickle with the real file's object graph, byte for byte in Python 2's dialect, without chumpy or scipy.

The opcodes are emitted by hand: protocol 2, byte strings, exactly the seven globals of specs: datasets 3.4. `resave` writes the
forms that re-saves by Python 3 take.
"""
import pickle
import struct
from pathlib import Path

import numpy as np


class Global:
    """A name that the pickle asks for."""

    def __init__(self, module: str, name: str):
        self.opcodes = f"c{module}\n{name}\n".encode()


class Made:
    """An object: the callable's result for `args` (REDUCE, or NEWOBJ as Python 2 writes new-style classes) and a state."""

    def __init__(self, what: Global, args: tuple, state=None, new: bool = False):
        self.what, self.args, self.state, self.new = what, args, state, new


def dumps(value) -> bytes:
    """Protocol 2 with byte strings for text."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value) -> bytes:
    if isinstance(value, Global):
        return value.opcodes
    if isinstance(value, Made):
        head = _emit(value.what) + _emit(value.args) + (b"\x81" if value.new else b"R")
        return head + (_emit(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, np.ndarray):
        return _emit(_array(value))
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, (int, np.integer)):
        return b"\x8a\x08" + struct.pack("<q", int(value)) if abs(value) >= 2**31 else b"J" + struct.pack("<i", int(value))
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, (str, bytes)):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_emit, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_emit, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_emit(k) + _emit(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def _array(array: np.ndarray) -> Made:
    """An array as numpy pickled it in Python 2; Fortran order is kept."""
    fortran = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
    dtype = Made(Global("numpy", "dtype"), (array.dtype.str[1:], 0, 1), (3, "<", None, None, None, -1, -1, 0))
    raw = array.tobytes(order="F" if fortran else "C")
    return Made(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), "b"),
                (1, array.shape, dtype, fortran, raw))


def _ch(module: str, name: str, state: dict) -> Made:
    empty = Made(Global("__builtin__", "set"), ([],))
    return Made(Global(module, name), (), {**state, "_dirty_vars": empty, "_itr": None, "_depends_on_deps": {}, "_status": "new"},
                new=True)


def original(toy: dict) -> dict:
    """The object graph of MANO_RIGHT.pkl around toy arrays: shapedirs a chumpy selection of 10 out of 20, a csc regressor."""
    wide = np.concatenate((toy["shapedirs"], np.full((778, 3, 10), 7.0)), 2)
    picked = np.arange(wide.size).reshape(wide.shape)[:, :, :10].ravel()
    shapedirs = _ch("chumpy.reordering", "Select", {"a": _ch("chumpy.ch", "Ch", {"x": wide}), "idxs": picked,
                                                    "preferred_shape": (778, 3, 10)})
    return {
        "hands_components": toy["hands_components"], "f": toy["f"], "J_regressor": csc(toy["J_regressor"]),
        "kintree_table": toy["kintree_table"], "J": toy["J_regressor"] @ toy["v_template"], "weights": toy["weights"],
        "posedirs": np.asfortranarray(toy["posedirs"]), "hands_mean": toy["hands_mean"], "shapedirs": shapedirs,
        "v_template": toy["v_template"], "bs_style": "lbs", "hands_coeffs": np.zeros((1554, 45)), "bs_type": "lrotmin",
    }


def csc(dense: np.ndarray) -> Made:
    """A compressed-column matrix, entries far below the largest left out like zeros."""
    rows = [np.flatnonzero(column) for column in dense.T]
    state = {"_shape": dense.shape, "maxprint": 50, "indices": np.concatenate(rows).astype(np.int32),
             "indptr": np.cumsum([0, *map(len, rows)]).astype(np.int32),
             "data": np.concatenate([column[r] for column, r in zip(dense.T, rows)])}
    return Made(Global("scipy.sparse.csc", "csc_matrix"), (), state, new=True)


def coo(dense: np.ndarray, module: str = "scipy.sparse.coo") -> Made:
    """A coordinate matrix of older scipy, whose first entry is written as two that add up."""
    rows, cols = dense.nonzero()
    data = dense[rows, cols]
    rows, cols, data = np.append(rows, rows[0]), np.append(cols, cols[0]), np.append(data, data[0] / 2)
    data[0] /= 2
    return Made(Global(module, "coo_matrix"), (), {"_shape": dense.shape, "row": rows.astype(np.int32),
                                                   "col": cols.astype(np.int32), "data": data}, new=True)


def plain(toy: dict, regressor) -> dict:
    """What re-saves hold: plain arrays and some form of regressor."""
    return {**{key: toy[key] for key in toy}, "J_regressor": regressor, "bs_style": "lbs"}


def resave(path: Path, content: dict, protocol: int) -> Path:
    """Written by Python 3's own pickle, with whatever names numpy and scipy have today."""
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
