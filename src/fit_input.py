"""What `run.py fit` reads: joints or vertices of hands in 3D, from arrays, a mesh, lists of numbers, or a predictions file.

.npz with `joints` (n,21,3) and/or `verts` (n,778,3) · .npy of one of the two · .json with the same names, or a list of joints ·
.ply, one mesh of 778 vertices · a predictions file: its pred_verts and pred_joints, at pred_root where it has one. One hand may
leave out n.
"""
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from utils.errors import InputError
from utils.files import read_json, require_file
from utils.joints import reorder
from utils.mesh_files import read_ply
from utils.predictions import read_predictions

KINDS = {"joints": 21, "verts": 778}
METRES = {"m": 1.0, "mm": 1e-3}
_SIZE_M = (0.02, 1.0)  # between which the extent of a hand lies, of any child or glove
_REMEDY = "name an .npz or .npy file, a .json, a .ply mesh, or a predictions file"


@dataclass(frozen=True)
class Hands:
    """joints (n,21,3) T21 or verts (n,778,3) or both, metres, right hands; subject (n) numbers; finite (n) bool: rows to fit."""

    joints: np.ndarray | None
    verts: np.ndarray | None
    subject: np.ndarray
    finite: np.ndarray


def read_hands(path: str | Path, units: Literal["m", "mm"], order: Literal["T21", "H21"], mirror: bool,
               use: Literal["auto", "joints", "verts"]) -> Hands:
    """The hands of a file; mirror: they are left ones, and are turned into right ones by x -> -x.

    Raises InputError: absent, another kind of file, other names, other sizes, no number, a size that no hand has in these units.
    """
    path = require_file(path, _REMEDY)
    arrays, subject = _read(path)
    if subject is not None and (mirror or order != "T21" or units != "m"):
        raise InputError(f"{path}: a predictions file has right hands, T21 joints, metres; leave fit.side, order, units alone")
    if use != "auto":
        if use not in arrays:
            raise InputError(f"{path}: fit.use={use}, but the file has only {', '.join(arrays)}; set fit.use=auto")
        arrays = {use: arrays[use]}
    n = len(next(iter(arrays.values())))
    if len({len(x) for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {value.shape}" for name, value in arrays.items())
        raise InputError(f"{path}: expected as many joints as verts, found {found}; leave one of them out, or set fit.use")
    if not n:
        raise InputError(f"{path}: expected hands, found none (0 rows); {_REMEDY}")
    finite = np.all([np.isfinite(x).all((1, 2)) for x in arrays.values()], 0)
    if not finite.any():
        raise InputError(f"{path}: none of the {n} rows is finite throughout; mend the file")
    scale = METRES[units] * np.array([-1.0 if mirror else 1.0, 1.0, 1.0])
    arrays = {name: value * scale for name, value in arrays.items()}
    _require_size(path, arrays, finite, units)
    if "joints" in arrays:
        arrays["joints"] = reorder(arrays["joints"], "T21", order)
    return Hands(arrays.get("joints"), arrays.get("verts"), np.zeros(n, np.int64) if subject is None else subject, finite)


def _read(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Arrays by name, float64, and the rows' subjects where the file has them."""
    suffix = path.suffix.lower()
    if suffix == ".ply":
        return {"verts": _checked(path, "verts", read_ply(path)[0])}, None
    if suffix == ".json":
        content = read_json(path, _REMEDY)
        named = content if isinstance(content, dict) else {"joints": content}
        return _chosen(path, {name: _numbers(named[name]) for name in KINDS if name in named}, list(named)), None
    if suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: expected .npz, .npy, .json or .ply, found {suffix or 'no ending'}; {_REMEDY}")
    try:
        content = np.load(path, allow_pickle=False)
        if suffix == ".npy":
            name = "verts" if content.shape[-2:] == (778, 3) else "joints"
            return _chosen(path, {name: content}, [name]), None
        with content:
            if "meta" in content.files and {"pred_verts", "pred_joints"} & set(content.files):
                return _predicted(path)
            return _chosen(path, {name: content[name] for name in KINDS if name in content.files}, content.files), None
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, AttributeError, MemoryError) as error:
        raise InputError(f"{path}: expected arrays of numbers, found a file that breaks ({error}); {_REMEDY}") from error


def _predicted(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A predictions file's meshes and joints, in the camera where it has a root. Its rows are right hands."""
    found = read_predictions(path)
    root = np.asarray(found["pred_root"], np.float64)[:, None] if "pred_root" in found else 0.0
    arrays = {name: np.asarray(found[f"pred_{name}"], np.float64) + root for name in KINDS}
    return arrays, np.asarray(found["subject"])


def _numbers(value: object) -> np.ndarray | None:
    """Nested lists as an array; null, like json's NaN, stands for a number that is missing. None for anything else."""
    def filled(item: object) -> object:
        return [filled(x) for x in item] if isinstance(item, list) else float("nan") if item is None else item

    try:
        array = np.array(filled(value))
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "iuf" else None


def _chosen(path: Path, arrays: dict[str, np.ndarray | None], names: list[str]) -> dict[str, np.ndarray]:
    if not arrays:
        raise InputError(f"{path}: expected joints (n,21,3) or verts (n,778,3), found {', '.join(map(str, names)) or 'nothing'}; "
                         "rename the arrays")
    return {name: _checked(path, name, value) for name, value in arrays.items()}


def _checked(path: Path, name: str, value: np.ndarray | None) -> np.ndarray:
    if value is None or value.dtype.kind not in "iuf":
        found = "texts, or lists of different lengths" if value is None else value.dtype
        raise InputError(f"{path}: {name}: expected numbers, found {found}; mend the file")
    value = value.astype(np.float64)
    value = value[None] if value.ndim == 2 else value
    if value.ndim != 3 or value.shape[1:] != (KINDS[name], 3):
        raise InputError(f"{path}: {name}: expected (n,{KINDS[name]},3), found {value.shape}; only meshes with MANO's 778 "
                         "vertices, and 21 joints, can be fitted")
    return value


def _require_size(path: Path, arrays: dict[str, np.ndarray], finite: np.ndarray, units: str) -> None:
    """A hand of 190 m is one of 190 mm."""
    points = next(iter(arrays.values()))[finite]
    size = float(np.median(np.ptp(points, axis=1).max(1)))
    if not _SIZE_M[0] <= size <= _SIZE_M[1]:
        other = "mm" if units == "m" else "m"
        likely = _SIZE_M[0] <= size / METRES[units] * METRES[other] <= _SIZE_M[1]
        advice = f"likely the file is in {other}: set fit.units={other}" if likely else "bring it to metres or millimetres"
        raise InputError(f"{path}: in fit.units={units} a hand would measure {size:.3g} m; {advice}")
