"""The predictions file: what `test` writes and what score, calibrate, refine, export and the report read.

One self-contained, uncompressed .npz: a zip of one .npy per column, all with the same number of rows, and `meta`, json text
that also holds `rows` and the `index_hash` of the frames. `numpy.load(path, allow_pickle=False)` opens it anywhere; there are no
object arrays. Units are metres and pixels, axes those of utils/batch.py: pred_verts and pred_joints are relative to the
prediction's own wrist, true_* are absolute in the camera, and every row is a right hand (`mirrored` rows were left hands).
K and crop_from_image are the crop's; *_joints_uv are pixels of the whole picture (mirrored first where the row is), whatever the
crop. Rows of equal `instant` (from 0) saw one moment from several cameras, which stood at world_from_camera (the world mirrored
where the row is). A label that a row lacks is NaN; a column that no row has is left out. The writer's memory is bounded whatever
n is: rows go to one unnamed temporary file per column beside the target, which the system reclaims even after SIGKILL; `close`
joins them and renames. The reader maps the columns, it does not load them.
Seed: the original pickled whole lists, and dropped the last, partial batch; here every row is kept.
"""
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from utils.batch import JointSet
from utils.errors import InputError
from utils.files import atomic_path, require_file
from utils.hand import HandModel
from utils.npz import map_member, write_array, write_member

FORMAT = "hand-predictions"
VERSION = 1
REMEDY = "write it with `run.py test <option file>`"
COPY_BYTES = 1 << 24

_F, _I, _B = np.dtype("<f4"), np.dtype("<i8"), np.dtype("bool")
REQUIRED: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
    "subject": (_I, ()), "index": (_I, ()), "mirrored": (_B, ()),
}
OPTIONAL: dict[str, tuple[np.dtype, tuple[int, ...]]] = {  # and pred_verts with pred_joints, or pred_joints_uv, or both
    "pred_verts": (_F, (778, 3)), "pred_joints": (_F, (21, 3)),
    "pred_root": (_F, (3,)), "pred_rotations": (_F, (16, 3, 3)), "pred_shape": (_F, (10,)), "pred_shape_cov": (_F, (10, 10)),
    "pred_joints_uv": (_F, (21, 2)), "pred_uv_confidence": (_F, (21,)), "confidence": (_F, ()),
    "true_verts": (_F, (778, 3)), "true_joints": (_F, (21, 3)),
    "true_root": (_F, (3,)), "true_shape": (_F, (10,)), "true_rotations": (_F, (16, 3, 3)), "identity": (_F, (10,)),
    "K": (_F, (3, 3)), "crop_from_image": (_F, (3, 3)), "official_index": (_I, ()), "true_joints_uv": (_F, (21, 2)),
    "world_from_camera": (_F, (4, 4)), "instant": (_I, ()),
}
COLUMNS = REQUIRED | OPTIONAL  # and `name`, text, required


def index_hash(names: Iterable[str]) -> str:
    """Twelve hex digits of a set of frames, whatever their order: two results with the same hash scored the same frames."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]


class PredictionsWriter:
    """Writes a predictions file piece by piece: `append(**columns)` any number of rows, then `close()`.

    As a context manager it closes when the block ends well and leaves nothing behind when it does not.
    """

    def __init__(self, path: str | os.PathLike, meta: dict[str, Any]):
        self.path = Path(path)
        self.meta = {**meta, "format": FORMAT, "version": VERSION}
        json.dumps(self.meta, allow_nan=False)  # a meta that cannot be written is found before the work, not after it
        self._parts: dict[str, IO[bytes]] = {}
        self._names: list[str] = []
        self._columns: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def append(self, *, name: Iterable[str], **columns: np.ndarray) -> None:
        """Add b rows: `name` (b texts) and arrays (b, ...) as in COLUMNS. Every call must bring the same columns."""
        names = [str(n) for n in name]
        if self._columns is None:
            self._open(frozenset(columns))
        if set(columns) != self._columns:
            raise TypeError(f"columns differ from the first rows': {sorted(set(columns) ^ self._columns)}")
        arrays = {}
        for key, value in columns.items():
            dtype, shape = COLUMNS[key]
            array = np.ascontiguousarray(value, dtype=dtype)
            if array.shape != (len(names), *shape):
                raise TypeError(f"{key}: expected {(len(names), *shape)}, found {array.shape}")
            arrays[key] = array
        with self._full_disk():
            for key, array in arrays.items():
                self._parts[key].write(array.data if array.size else b"")
        self._names += names

    def close(self) -> None:
        """Join the columns to the file and give it its name."""
        if self._columns is None:
            self.abort()
            raise InputError(f"{self.path}: no predictions to write; does the split hold any frame?")
        self.meta |= {"rows": len(self), "index_hash": index_hash(self._names)}
        try:
            with self._full_disk(), atomic_path(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                write_array(archive, "meta", np.array(json.dumps(self.meta)))
                write_array(archive, "name", np.array(self._names))
                for key in sorted(self._columns):
                    part = self._parts[key]
                    part.flush()
                    part.seek(0)
                    dtype, shape = COLUMNS[key]
                    write_member(archive, key, dtype, (len(self), *shape), iter(lambda p=part: p.read(COPY_BYTES), b""))
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget everything written so far."""
        for part in self._parts.values():
            try:
                part.close()
            except OSError:  # a full disk refuses the last buffer too; the file is unnamed and gone either way
                continue
        self._parts = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close() if kind is None else self.abort()

    def _open(self, columns: frozenset[str]) -> None:
        if unknown := columns - set(COLUMNS):
            raise TypeError(f"not columns of a predictions file: {sorted(unknown)}")
        if missing := _missing(columns):
            raise TypeError(f"columns missing: {missing}")
        with self._full_disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._parts = {key: tempfile.TemporaryFile(dir=self.path.parent, buffering=1 << 20) for key in columns}  # noqa: SIM115
        self._columns = columns

    def _full_disk(self) -> "_Explain":
        return _Explain(self.path)


class _Explain:
    """Turns the system's refusals while writing `path` into one line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); free space or name another place "
                             "and run again; nothing was left there") from error


class Predictions:
    """A predictions file opened for reading: `predictions["pred_verts"]` is a read-only array mapped from disk."""

    def __init__(self, path: Path, meta: dict[str, Any], columns: dict[str, np.ndarray]):
        self.path, self.meta, self._columns = path, meta, columns

    def __len__(self) -> int:
        return len(self._columns["name"])

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> np.ndarray:
        """The column, (n, ...); InputError where the file has none."""
        self.require(column)
        return self._columns[column]

    def get(self, column: str) -> np.ndarray | None:
        """The column or None."""
        return self._columns.get(column)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns present, sorted."""
        return tuple(sorted(self._columns))

    def require(self, *columns: str) -> None:
        """InputError that names the columns the file lacks."""
        if missing := [c for c in columns if c not in self._columns]:
            raise InputError(f"{self.path}: no column {', '.join(missing)}; it has {', '.join(self.columns)}; "
                             f"{_why(missing, self.meta)}")

    @property
    def joint_set(self) -> JointSet:
        """What its joints are: those of the dataset's labels."""
        return JointSet(*(self.meta.get("dataset") or {}).get("joint_set", ()))

    def fitted_hand(self, hand: HandModel) -> HandModel:
        """`hand` with these joints' fingertips, for the solver. InputError where they are no chain joints: it knows no others."""
        if self.joint_set.kind != "chain":
            raise InputError(f"{self.path}: its joints are regressed from the posed mesh ({self.joint_set.tips}'s), and what "
                             "fits hands to keypoints fits chain joints, some millimetres apart; predict on DexYCB or HO3D")
        return hand.with_tips(self.joint_set.tips)

    def require_hand(self, name: str, sha256: str) -> None:
        """InputError where the predictions were made with another hand model."""
        found = self.meta.get("hand") or {}
        if found.get("sha256") != sha256:
            made = f"{found.get('name', 'unknown')} ({str(found.get('sha256'))[:12]})"
            raise InputError(f"{self.path}: made with hand model {made}, but this run uses {name} ({sha256[:12]}); "
                             "give hand= the same file or predict again")


def _why(missing: list[str], meta: Mapping[str, Any]) -> str:
    if any(c.startswith("true_") for c in missing):
        published = (meta.get("dataset") or {}).get("no_labels")
        return f"the split it was predicted on has no such labels: {published or 'predict a split that has'}"
    if any(c in ("pred_shape", "pred_shape_cov", "confidence", "pred_root", "pred_rotations", "pred_joints_uv") for c in missing):
        return "the method that made it does not predict this: use one that does"
    return REMEDY


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Open a predictions file; columns are mapped from disk, not loaded.

    Raises InputError where the file is absent, is something else, is cut short, has another version or lacks a column.
    """
    path = require_file(path, REMEDY)
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise InputError(f"{path}: expected a predictions file (.npz), found another kind of file; {REMEDY}")
        try:
            with zipfile.ZipFile(file) as archive:
                members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
                meta = _read_meta(path, archive, members)
                known = [key for key in members if key in COLUMNS or key == "name"]
                columns = {key: map_member(path, archive, file, members[key], REMEDY) for key in known}
        except (zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{path}: the predictions file is cut short or damaged ({error}); {REMEDY}") from error
    _check(path, columns)
    return Predictions(path, meta, columns)


def _read_meta(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    try:
        with archive.open(members["meta"]) as member:
            meta = json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))
        if meta["format"] != FORMAT:
            raise KeyError("format")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: a zip or npz file, but not a predictions file (no valid `meta`); {REMEDY}") from error
    if meta.get("version") != VERSION:
        raise InputError(f"{path}: predictions file of version {meta.get('version')}, this program reads version {VERSION}; "
                         "predict again")
    return meta


def _missing(columns: Iterable[str]) -> list[str]:
    """Columns without which rows say nothing: a mesh with its joints, or joints in the picture."""
    columns = set(columns)
    mesh = {"pred_verts", "pred_joints"}
    lacking = set(REQUIRED) - columns
    if columns & mesh or "pred_joints_uv" not in columns:
        lacking |= mesh - columns
    return sorted(lacking)


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    """InputError unless the columns are those of COLUMNS, with equal numbers of rows."""
    if missing := _missing(columns) + ["name"] * ("name" not in columns):
        raise InputError(f"{path}: a predictions file without the column {', '.join(missing)}; {REMEDY}")
    rows = len(columns["name"])
    for key, array in columns.items():
        dtype, shape = COLUMNS.get(key, (columns["name"].dtype, ()))
        if array.dtype != dtype or array.shape != (rows, *shape):
            raise InputError(f"{path}: column {key}: expected {dtype} {(rows, *shape)}, found {array.dtype} {array.shape}; "
                             f"{REMEDY}")
    if columns["name"].dtype.kind != "U":
        raise InputError(f"{path}: column name: expected text, found {columns['name'].dtype}; {REMEDY}")
    if not rows:
        raise InputError(f"{path}: a predictions file without a single row; {REMEDY}")
