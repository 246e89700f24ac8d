"""Pieces of a preparation that datasets with single pictures share: columns of the index, and one task's pictures -> its shard.

A dataset writes `load(sample) -> Loaded` (a module's own function, light to import): labels of one picture and where its file is.
Conventions of the stored labels: the dataset's own hand side, camera frame with OpenCV axes, metres, T21, pixels of the whole
picture; a label that a picture lacks is zeros with its `has_*` False.
"""
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.pictures import Broken, Excluded, cut, decode, jpeg, mask_png, stored_square
from datasets.prepare import EXAMPLES, Columns, write_shard
from utils.errors import InputError

SIDES = ("right", "left")
ROWS: dict[str, tuple[type | str, tuple[int, ...]]] = {
    "name": ("S96", ()),           # of the picture, a path in the tree: unique
    "split": (np.int8, ()),        # number in meta["splits"]
    "official": (np.int32, ()),    # number in the official order of an evaluation split, else -1
    "subject": (np.int32, ()),     # person; 0 where the dataset does not say
    "group": (np.int32, ()),       # number in meta["groups"]: recording; 0 where there are none
    "side": (np.int8, ()),         # of SIDES
    "label": (np.int32, ()),       # row of labels/, where labels are stored apart; else its own row
    "has_mask": (np.bool_, ()),    # whether masks.lmdb has one at this row
    "K": (np.float32, (4,)),       # fx fy cx cy of the whole picture
    "size": (np.int32, (2,)),      # width and height of the whole picture
    "box": (np.float32, (3,)),     # centre x, y and longer side of the hand's box, pixels
    "stored": (np.int32, (3,)),    # left, top and side of the stored crop, whole pixels of the picture
}
LABELS: dict[str, tuple[type, tuple[int, ...]]] = {
    "joints": (np.float32, (21, 3)), "has_joints": (np.bool_, ()),
    "joints_uv": (np.float32, (21, 2)), "has_uv": (np.bool_, ()), "joint_valid": (np.bool_, (21,)),
    "pose": (np.float32, (48,)), "shape": (np.float32, (10,)), "trans": (np.float32, (3,)), "has_hand": (np.bool_, ()),
    "verts": (np.float32, (778, 3)), "has_verts": (np.bool_, ()),
    "root": (np.float32, (3,)), "has_root": (np.bool_, ()),
}


class Loaded(NamedTuple):
    """One picture. row: the labels of the index, and ROWS without stored, has_mask and size (label, official, subject, group and
    side have defaults) · picture: its file · mask: (h,w) uint8, above 127 = hand, or None · size: width and height that the file
    must have, or None · whole: the picture, a square one, is stored whole and, at its own size, byte by byte."""

    row: dict[str, Any]
    picture: Path
    mask: np.ndarray | None = None
    size: tuple[int, int] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Cut:
    """One task of a preparation. samples: what `load` takes, one after the other · masks: whether masks are stored."""

    name: str
    shard: Path
    fingerprint: str
    samples: tuple
    load: Callable[[Any], Loaded]
    columns: Columns
    factor: float
    pixels: int | None
    quality: int
    unreadable: str
    masks: bool = False


def cut_task(task: Cut) -> dict:
    """Write a task's shard; returns {"counts": reason -> pictures, "examples": reason -> first names}.

    Raises InputError for a broken file, unless the plan says to skip such pictures.
    """
    counts, examples = Counter(), defaultdict(list)
    rows, streams = [], {"crops": []} | ({"masks": []} if task.masks else {})
    for sample in task.samples:
        try:
            row, crop, mask = _one(sample, task)
        except Excluded as why:
            counts[str(why)] += 1
            continue
        except Broken as broken:
            if task.unreadable == "stop":
                raise InputError(str(broken)) from broken
            counts[broken.reason] += 1
            examples[broken.reason].append(str(broken))
            del examples[broken.reason][EXAMPLES:]
            continue
        rows.append(row)
        streams["crops"].append(crop)
        if task.masks:
            streams["masks"].append(mask)  # empty where there is none: one entry per row
    counts["kept"] = len(rows)
    return write_shard(task.shard, task.columns, rows, streams, task.fingerprint, counts, examples)


def _one(sample: Any, task: Cut) -> tuple[dict[str, Any], bytes, bytes]:
    """Row, crop and mask ("" = none) of one picture. Raises Excluded or Broken."""
    loaded = task.load(sample)
    row = {"label": -1, "has_mask": False, "official": -1, "subject": 0, "group": 0, "side": 0, **loaded.row}
    image = decode(loaded.picture, *(loaded.size or (None, None)), resize="unpack the archive again")
    width, height = image.shape[1::-1]
    stored = np.array([0, 0, width]) if loaded.whole else stored_square(np.asarray(row["box"], np.float64), task.factor)
    row |= {"stored": stored, "size": (width, height)}
    if len(str(row["name"]).encode()) > 96:
        raise Broken("name too long", f"{loaded.picture}: expected a name of at most 96 letters in the tree; rename its folder")
    mask = b""
    if task.masks and loaded.mask is not None:
        mask, row["has_mask"] = mask_png(cut(loaded.mask, stored, task.pixels)), True
    if loaded.whole and task.pixels in (None, width):
        return row, loaded.picture.read_bytes(), mask
    return row, jpeg(cut(image, stored, task.pixels), task.quality), mask


def columns_of(*labels: str) -> Columns:
    """The columns of an index that holds these labels, each with its flag."""
    flags = {"pose": "has_hand", "joints_uv": "has_uv"}
    named = {name: LABELS[name] for label in labels for name in (label, flags.get(label, f"has_{label}"))}
    if "pose" in named:
        named |= {name: LABELS[name] for name in ("shape", "trans")}
    if "joints_uv" in named:
        named["joint_valid"] = LABELS["joint_valid"]
    return {**ROWS, **named}


def missing(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Zeros for every label in `columns`, flags False: what a picture without labels has."""
    return {name: np.zeros(LABELS[name][1], LABELS[name][0]) for name in columns if name in LABELS}
