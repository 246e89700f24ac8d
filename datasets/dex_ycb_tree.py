"""DexYCB's tree on disk: people, sequences, cameras and calibration, each small file parsed once (specs/datasets.md 1.1).

Indices are 0-based. A person's index is the number in its folder's name less one (`20200928-subject-07` is 6), so an incomplete
download still falls into the right splits; folders named otherwise count by rank. A sequence's index is its rank in sorted names.
Seed: the original parsed meta.yml, extrinsics and pose.npz again for every frame and camera, with the pure-Python yaml.
"""
import hashlib
import re
from collections.abc import Sequence as Row
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from utils.errors import InputError
from utils.files import read_yaml, require_file, require_folder

SIDES = ("right", "left")


class TupleLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe yaml that also reads the tag `!!python/tuple`, which DexYCB's calibration files carry, as a list."""


TupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node))


@dataclass(frozen=True)
class Sequence:
    """One recording: folder, indices, length, side, the cameras that saw it, the person's shape, a fingerprint of its files."""

    folder: str  # relative to the root
    subject: int
    index: int
    num_frames: int
    side: int  # of SIDES
    cameras: tuple[int, ...]
    betas: tuple[float, ...]
    extrinsics: str | None
    fingerprint: str


@dataclass(frozen=True)
class Tree:
    """The dataset: `sequences` in official order, K (cameras,4) as fx fy cx cy, folder names of `people` (empty = absent)."""

    root: Path
    people: tuple[str, ...]
    sequences: tuple[Sequence, ...]
    serials: tuple[str, ...]
    K: np.ndarray

    def num_frames(self) -> np.ndarray:
        """(people, sequences) frames per camera; 0 where there is none."""
        most = max((s.index for s in self.sequences), default=-1) + 1
        table = np.zeros((len(self.people), most), np.int64)
        for s in self.sequences:
            table[s.subject, s.index] = s.num_frames
        return table


def scan(root: str | Path, serials: Row[str], width: int, height: int, calibration: bool = True) -> Tree:
    """Read the tree's small files. InputError: one is missing or malformed; people of unequal numbers of sequences.

    calibration: False leaves out the folder of that name: K is then NaN, and betas are empty.
    """
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in ("calibration", "models", "bop"))
    folders = {name: sorted(p.name for p in (root / name).iterdir() if p.is_dir()) for name in names}
    folders = {name: found for name, found in folders.items() if any((root / name / f / "meta.yml").is_file() for f in found)}
    if not folders:
        raise InputError(f"{root}: expected folders such as 20200709-subject-01/<sequence>/meta.yml, found none; is "
                         "dataset.root right?")
    counts = {name: len(found) for name, found in folders.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{root}: expected as many sequences of each person, found {counts}; an unfinished download? "
                         "the splits go by their order")
    indices = subject_indices(list(folders))
    betas: dict[str, tuple[float, ...]] | None = {} if calibration else None
    sequences = [_sequence(root, f"{name}/{found}", indices[name], index, serials, betas)
                 for name, of_person in folders.items() for index, found in enumerate(of_person)]
    seen = {camera for s in sequences for camera in s.cameras}
    K = np.full((len(serials), 4), np.nan)
    for camera in sorted(seen) if calibration else ():
        K[camera] = _intrinsics(root, serials[camera], width, height)
    people = [""] * (max(indices.values()) + 1)
    for name, index in indices.items():
        people[index] = name
    return Tree(root, tuple(people), tuple(sequences), tuple(serials[:max(seen, default=-1) + 1]), K[:max(seen, default=-1) + 1])


def subject_indices(names: Row[str]) -> dict[str, int]:
    """Folder name -> index: the number after `-subject-` less one where every name has its own, else the rank."""
    numbers = [int(m.group(1)) if (m := re.search(r"-subject-(\d+)$", name)) else 0 for name in names]
    if min(numbers) < 1 or len(set(numbers)) < len(names):
        return {name: rank for rank, name in enumerate(names)}
    return {name: number - 1 for name, number in zip(names, numbers)}


def _sequence(root: Path, folder: str, subject: int, index: int, serials: Row[str],
              betas: dict[str, tuple[float, ...]] | None) -> Sequence:
    path = root / folder / "meta.yml"
    meta = _mapping(path)
    frames, sides, calib = meta.get("num_frames"), meta.get("mano_sides"), meta.get("mano_calib")
    if type(frames) is not int or frames < 0:
        raise InputError(f"{path}: expected num_frames: a whole number, found {frames!r}; mend or replace the file")
    if not isinstance(sides, list) or len(sides) != 1 or sides[0] not in SIDES:
        raise InputError(f"{path}: expected mano_sides: [right] or [left], found {sides!r}; mend or replace the file")
    if not isinstance(calib, list) or len(calib) != 1 or not isinstance(calib[0], str):
        raise InputError(f"{path}: expected mano_calib: [one name, quoted], found {calib!r}; mend or replace the file")
    if betas is not None and calib[0] not in betas:
        betas[calib[0]] = _betas(root / "calibration" / f"mano_{calib[0]}" / "mano.yml")
    cameras = _cameras(path, meta.get("serials"), serials)
    extrinsics = meta.get("extrinsics")
    if extrinsics is not None and not isinstance(extrinsics, str):
        raise InputError(f"{path}: expected extrinsics: a name, quoted, found {extrinsics!r}; mend or replace the file")
    first = root / folder / serials[cameras[0]] / "labels_000000.npz"
    shape = betas[calib[0]] if betas is not None else ()
    digest = hashlib.sha256(path.read_bytes() + (first.read_bytes() if first.is_file() else b"") + repr(shape).encode())
    return Sequence(folder, subject, index, frames, SIDES.index(sides[0]), cameras, shape, extrinsics, digest.hexdigest())


def _cameras(path: Path, listed: object, serials: Row[str]) -> tuple[int, ...]:
    """Indices of the cameras that saw a sequence; a meta.yml without the list means all."""
    if listed is None:
        return tuple(range(len(serials)))
    if not isinstance(listed, list):
        raise InputError(f"{path}: expected serials: a list, found {listed!r}; mend or replace the file")
    cameras = tuple(i for i, serial in enumerate(serials) if serial in map(str, listed))
    if not cameras:
        raise InputError(f"{path}: none of its serials {listed} is among dataset.serials; set that option")
    return cameras


def _mapping(path: Path) -> dict:
    value = read_yaml(path, TupleLoader)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected `key: value` lines, found {type(value).__name__}; mend or replace the file")
    return value


def _numbers(path: Path, key: str, value: object, count: int) -> tuple[float, ...]:
    """`count` finite numbers, or the line that says what is there instead."""
    good = isinstance(value, (list, tuple)) and len(value) == count and all(type(x) in (int, float) for x in value)
    if not good or not np.isfinite(value).all():
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        raise InputError(f"{path}: expected {key}: {count} finite numbers, found {shown}; mend or replace the file")
    return tuple(float(x) for x in value)


def _betas(path: Path) -> tuple[float, ...]:
    require_file(path, "meta.yml names it; unpack the calibration archive")
    return _numbers(path, "betas", _mapping(path).get("betas"), 10)


def _intrinsics(root: Path, serial: str, width: int, height: int) -> tuple[float, ...]:
    path = root / "calibration" / "intrinsics" / f"{serial}_{width}x{height}.yml"
    require_file(path, "unpack the calibration archive, or set dataset.width, dataset.height and dataset.serials to what the "
                       "tree has")
    colour = _mapping(path).get("color")
    values = [colour.get(key) for key in ("fx", "fy", "ppx", "ppy")] if isinstance(colour, dict) else None
    fx, fy, cx, cy = _numbers(path, "color: {fx, fy, ppx, ppy}", values, 4)
    if fx <= 0 or fy <= 0:
        raise InputError(f"{path}: expected focal lengths above 0, found {fx} and {fy}; mend or replace the file")
    return fx, fy, cx, cy


def read_extrinsics(tree: Tree) -> np.ndarray:
    """(people, sequences, cameras, 3, 4) camera to world [R|t], metres; NaN where absent. World = the master camera."""
    found: dict[str, np.ndarray] = {}
    table = np.full((*tree.num_frames().shape, len(tree.serials), 3, 4), np.nan)
    for s in tree.sequences:
        if s.extrinsics is None:
            continue
        if s.extrinsics not in found:
            found[s.extrinsics] = _extrinsics(tree, s.extrinsics)
        table[s.subject, s.index] = found[s.extrinsics]
    return table


def _extrinsics(tree: Tree, name: str) -> np.ndarray:
    path = tree.root / "calibration" / f"extrinsics_{name}" / "extrinsics.yml"
    cameras = np.full((len(tree.serials), 3, 4), np.nan)
    if not path.is_file():  # nothing needs it: labels are in the camera's frame
        return cameras
    given = _mapping(path).get("extrinsics")
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected extrinsics: serial -> 12 numbers, found {type(given).__name__}; mend or "
                         "replace the file")
    for index, serial in enumerate(tree.serials):
        if serial in given:
            cameras[index] = np.reshape(_numbers(path, f"extrinsics: {serial}", given[serial], 12), (3, 4))
    return cameras
