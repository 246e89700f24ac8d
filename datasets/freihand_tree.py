"""FreiHAND v2's tree on disk: its json lists, and what one of its pictures is (specs/datasets.md 1.2, 2.3).

Every json is a list with one entry per sample; the training pictures show each of N samples in up to four versions, picture
number = sample + N * version. Frame and joints are ours: camera, OpenCV axes, metres, T21; K acts on the 224x224 picture. Masks
are of training samples only, lossy JPEG, one for all versions. Light to import: worker processes load pictures by `load`.
"""
import json
import os
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import orjson

from datasets.cutting import Loaded
from datasets.mask_box import ABOVE, EVALUATION_SIDE, SMALLEST, box_of_hull, hull_of, square_hull
from datasets.pictures import Broken, Excluded, box_of, decode, require_seen
from datasets.prepare import fingerprint
from utils.errors import InputError
from utils.files import require_file, require_folder
from utils.official_faults import BEGINNINGS
from utils.official_files import LABELS, open_lists

SIZE = 224
SPLITS = TRAINING, EVALUATION = ("training", "evaluation")
VERSIONS = ("gs", "hom", "sample", "auto")
UNPACK = "unpack the archive again"
PUBLISHED = ("its labels are in FreiHAND_pub_v2_eval.zip, on the dataset's page since January 2022: unpack that into "
             "dataset.root and prepare again, into another dataset.prepared")
WHOLE = np.array([(SIZE - 1) / 2, (SIZE - 1) / 2, SIZE])  # the picture as a box: centre and side
_MANO = b"[[" + b"," * 60 + b"]]"  # an entry of *_mano.json without its numbers
SIGNS = ("training_K.json", "evaluation_K.json")  # one of these is in every copy of the dataset


@dataclass(frozen=True)
class Lists:
    """A split's lists, n samples. K (n,3,3) px · xyz (n,21,3) m, None where it has no labels · mano (n,61) or None · verts: the
    file of vertices, read later, or None · numbers: of the pictures that are there."""

    root: Path
    split: str
    K: np.ndarray
    xyz: np.ndarray | None
    mano: np.ndarray | None
    verts: Path | None
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.K)

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that are there, of training pictures."""
        return tuple(VERSIONS[k] for k in np.unique(self.numbers // len(self)))

    @property
    def uv(self) -> np.ndarray:
        """(n,21,2) pixels of the joints; NaN where one is not in front of the camera. Only where there is xyz."""
        points = self.xyz @ self.K.swapaxes(1, 2)
        seen = (points[..., 2] > 0).all(1)[:, None, None]
        return np.where(seen, points[..., :2] / np.where(seen, points[..., 2:], 1), np.nan)

    @property
    def fingerprint(self) -> str:
        """Of the lists; of the vertices, whose file may have 1.5 GB, its size and ends."""
        parts = [self.split, self.K, self.numbers, *(x for x in (self.xyz, self.mano) if x is not None)]
        if self.verts is not None:
            with open(self.verts, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                for at in (0, max(0, size - (1 << 16))):
                    file.seek(at)
                    parts.append(file.read(1 << 16).hex())
            parts.append(size)
        return fingerprint(*parts)


class Source(NamedTuple):
    """What samples of one preparation share. splits: those that are there · box: `joints`, `picture` or `mask`."""

    root: Path
    splits: tuple[str, ...]
    box: str
    factor: float
    masks: bool


class Sample(NamedTuple):
    """One picture: of which sample of which split, K (4) fx fy cx cy, uv (21,2) or None; label: its row of labels/."""

    source: Source
    split: str
    number: int
    sample: int
    version: int
    label: int
    K: np.ndarray
    uv: np.ndarray | None


def read_tree(root: str | Path) -> list[Lists]:
    """The splits that are there. InputError, one line: no such tree, a list that is missing, broken, or of another length."""
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    found = [read_lists(root, split) for split in SPLITS if (root / split / "rgb").is_dir() or any(root.glob(f"{split}_*.json"))]
    if not found:
        raise InputError(f"{root}: expected training_K.json, training/rgb and so on, or evaluation_K.json, found neither; is "
                         "dataset.root FreiHAND's folder?")
    return found


def read_lists(root: Path, split: str) -> Lists:
    """One split's lists. The training one must have xyz and mano; the evaluation one may be pictures and K alone."""
    paths = {name: root / f"{split}_{name}.json" for name in ("K", "xyz", "mano", "verts")}
    wanted = split == TRAINING or paths["mano"].exists() or paths["verts"].exists()
    K = _points(require_file(paths["K"], UNPACK), "camera matrices", 3)
    bad = (K[:, 2] != (0, 0, 1)).any(1) | (K[:, 0, 1] != 0) | (K[:, 1, 0] != 0) | (K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0)
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(f"{paths['K']}: sample {i} (counted from 0): expected a matrix fx 0 cx, 0 fy cy, 0 0 1, found "
                         f"{K[i].tolist()}; {UNPACK}")
    if not len(K):
        raise InputError(f"{paths['K']}: expected a list with an entry per sample, found an empty one; {UNPACK}")
    xyz = _points(require_file(paths["xyz"], UNPACK), "joints", 21) if wanted or paths["xyz"].exists() else None
    mano = read_mano(paths["mano"]) if split == TRAINING or paths["mano"].exists() else None
    for name, values in (("xyz", xyz), ("mano", mano)):
        if values is not None:
            require_length(paths[name], len(values), len(K), paths["K"])
    numbers = _numbers(root, split, len(K))
    return Lists(root, split, K, xyz, mano, paths["verts"] if paths["verts"].exists() else None, numbers)


def require_length(path: Path, found: int, wanted: int, by: Path) -> None:
    """InputError where a list has another length than the split's K."""
    if found != wanted:
        raise InputError(f"{path}: expected {wanted} entries, as {by.name} has, found {found}: are they of one release? {UNPACK}")


def _points(path: Path, what: str, points: int) -> np.ndarray:
    with open_lists(path, LABELS) as reader:
        values = reader.whole(what, points)
        reader.finish()
    return values


def _numbers(root: Path, split: str, samples: int) -> np.ndarray:
    """Numbers of a split's pictures: all of each version of which there is one, so that a missing picture is missed."""
    folder = require_folder(root / split / "rgb", UNPACK)
    found = np.array(sorted(int(name[:8]) for name in os.listdir(folder) if re.fullmatch(r"\d{8}\.jpg", name)), np.int64)
    most = samples * (len(VERSIONS) if split == TRAINING else 1)
    if len(found) and found[-1] >= most:
        raise InputError(f"{folder}: expected pictures 0 to {most - 1}, as {split}_K.json has {samples} samples, found "
                         f"{found[-1]:08d}.jpg: are pictures and lists of one release? {UNPACK}")
    if not len(found):
        raise InputError(f"{folder}: expected pictures such as 00000000.jpg, found none; {UNPACK}")
    return np.concatenate([np.arange(samples) + samples * k for k in np.unique(found // samples)])


def read_mano(path: Path) -> np.ndarray:
    """(n,61) of a list of [[61 numbers]]: pose 48, shape 10, u and v of joint 9, scale. InputError: anything else."""
    text = require_file(path, UNPACK).read_bytes().translate(None, b" \t\r\n")
    structure = text.translate(None, b"0123456789+-.eE")
    count = max(0, len(structure) - 1) // (len(_MANO) + 1)
    if structure != b"[" + b",".join([_MANO] * count) + b"]":
        raise InputError(f"{path}: {_mano_fault(text)}; {UNPACK}")
    try:
        numbers = np.frombuffer(array("d", orjson.loads(b"[" + text.translate(bytes.maketrans(b"[]", b"  ")) + b"]")))
    except (orjson.JSONDecodeError, OverflowError) as error:
        raise InputError(f"{path}: {_mano_fault(text)}; {UNPACK}") from error
    values = numbers.reshape(count, 61)
    bad = ~np.isfinite(values).all(1) | (values[:, 60] <= 0)
    if bad.any():
        raise InputError(f"{path}: sample {int(np.argmax(bad))} (counted from 0): expected finite numbers and a scale above 0, "
                         f"found {values[np.argmax(bad), 58:].tolist()} as u, v and scale; {UNPACK}")
    return values


def _mano_fault(text: bytes) -> str:
    """What a text that is no list of [[61 numbers]] is instead."""
    for pattern, found in BEGINNINGS:
        if re.match(pattern, text):
            return f"expected json, a list of [[61 numbers]], found {found}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        fault = "the file is truncated" if 0 < len(text) - 10 <= at else f"expected json, found text that is none at byte {at}"
        return f"{fault}, where a list of [[61 numbers]] should be"
    if not isinstance(value, list):
        keys = ", ".join(list(value)[:3]) if isinstance(value, dict) else ""
        keys = f" with the keys {keys}" if keys else ""
        return f"expected a list of [[61 numbers]], found a table{keys}: json of another dataset?"
    for i, entry in enumerate(value):
        row = entry[0] if isinstance(entry, list) and len(entry) == 1 else None
        if not isinstance(row, list) or len(row) != 61 or not all(type(x) in (int, float) for x in row):
            found = "another value"
            if isinstance(row, list):
                found = f"[[{len(row)} values]]" if len(row) != 61 else "values that are not numbers"
            elif isinstance(entry, list):
                found = f"a list of {len(entry)}"
            return f"sample {i} (counted from 0): expected [[61 numbers]], found {found}"
    return "expected a list of [[61 numbers]], found numbers that json does not have"


def load(sample: Sample) -> Loaded:
    """A picture's row, file and mask. Raises Excluded: the hand is not in it; Broken: joints behind the camera, no mask."""
    source, split = sample.source, sample.split
    name = f"{split}/rgb/{sample.number:08d}.jpg"
    path, box, mask, row = source.root / name, WHOLE, None, {}
    if sample.uv is not None:
        if not np.isfinite(sample.uv).all():
            raise Broken("joints behind the camera", f"{source.root}/{split}_xyz.json: sample {sample.sample} (counted from 0): "
                                                     f"expected joints in front of the camera (z > 0), found others; {UNPACK}")
        tight = box_of(sample.uv)
        require_seen(tight, sample.uv.min(0), sample.uv.max(0), SIZE, SIZE, source.factor, path)
        box = tight if source.box == "joints" else WHOLE
    of_mask = source.box == "mask"
    if split == TRAINING and (source.masks or of_mask):
        mask = _mask(source.root / split / "mask" / f"{sample.sample:08d}.jpg", of_mask)
    if of_mask:
        row["hull"] = square_hull(WHOLE[0], EVALUATION_SIDE) if mask is None else hull_of(mask)
        if row["hull"] is None or (box := box_of_hull(row["hull"]))[2] < SMALLEST:
            raise Excluded("no hand in the mask")
    row |= {"name": name, "split": source.splits.index(split), "official": sample.number if split == EVALUATION else -1,
            "group": sample.version, "label": sample.label, "K": sample.K, "box": box}
    return Loaded(row, path, mask, (SIZE, SIZE), whole=of_mask)


def _mask(path: Path, needed: bool) -> np.ndarray:
    """(224,224) uint8, 0 or 255 where it is needed for the box. The message of a missing one also names the way without masks."""
    try:
        mask = decode(path, SIZE, SIZE, "mask", cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION, UNPACK)
    except Broken as broken:
        way = "dataset.box=joints and dataset.masks=false" if needed else "dataset.masks=false"
        raise Broken(broken.reason, f"{broken}, or set {way}") from broken
    return np.where(mask > ABOVE, 255, 0).astype(np.uint8) if needed else mask
