"""RHD's files (Zimmermann and Brox, ICCV 2017; specs/datasets.md 1.5): annotation pickles, masks, depth, a picture's labels.

A picture shows a rendered person with two hands; the hand with more pixels in the mask is taken, the right one of equal ones, as
the published evaluation does. Order in the files: left hand 0-20, right 21-41, fingers from tip to base. Camera frame, metres.
A depth picture's high byte is red and its low one green, the opposite of HO3D's. No torch in here: worker processes load it.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.cutting import SIDES, Loaded
from datasets.pictures import Broken, Excluded, box_of, decode, require_seen
from utils.errors import InputError
from utils.files import require_folder
from utils.joints import T21_FROM_RHD
from utils.safe_pickle import load_pickle

SPLITS = ("training", "evaluation")
SHAPES = {"xyz": (42, 3), "uv_vis": (42, 3), "K": (3, 3)}
SIZE = 320  # pixels, width and height
DEPTH_M = 5.0  # of the largest number that a depth picture holds
MASK_IDS = {"left": (2, 17), "right": (18, 33)}  # first and last number of a mask's pixels
FIRST = {"left": 0, "right": 21}  # first of a hand's rows in xyz and uv_vis
UV_TOLERANCE = 2.0  # pixels between uv_vis and K * xyz
AGAIN = "unpack RHD_published_v2.zip again"


class Sample(NamedTuple):
    """One picture before it is looked at. root: of the tree · name: path of the picture in it · split: number in SPLITS · xyz
    (42,3) m · uv_vis (42,3) · K (3,3), as the file has them · side: the option hands · visible: least number of visible joints ·
    factor: side of the stored crop over that of the box."""

    root: Path
    name: str
    split: int
    xyz: np.ndarray
    uv_vis: np.ndarray
    K: np.ndarray
    hands: str
    visible: int
    factor: float


def annotation_file(root: str | Path, split: str) -> Path | None:
    """Where a split's pickle lies: in the split's folder, or beside it; None where there is none."""
    paths = (Path(root) / split / f"anno_{split}.pickle", Path(root) / f"anno_{split}.pickle")
    return next((path for path in paths if path.is_file()), None)


def annotation_files(root: str | Path) -> dict[str, Path]:
    """split -> pickle of the splits that are there, one at least. Raises InputError."""
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    found = {split: path for split in SPLITS if (path := annotation_file(root, split)) is not None}
    if not found:
        raise InputError(f"{root}: expected {SPLITS[0]}/anno_{SPLITS[0]}.pickle or {SPLITS[1]}/anno_{SPLITS[1]}.pickle, found "
                         "neither; is dataset.root the folder RHD_published_v2?")
    return found


def read_annotations(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """number of a picture -> {xyz (42,3), uv_vis (42,3), K (3,3)} float64, in order. Raises InputError, see load_pickle."""
    content = load_pickle(path, AGAIN, expected="RHD's annotations")
    if not isinstance(content, dict) or not content or not all(isinstance(key, int) for key in content):
        raise InputError(f"{path}: expected a dict from picture numbers to xyz, uv_vis and K, found {_said(content)}; {AGAIN}")
    return {key: _checked(path, key, content[key]) for key in sorted(content)}


def _checked(path: Path, number: int, entry: Any) -> dict[str, np.ndarray]:
    if not isinstance(entry, dict):
        raise InputError(f"{path}: expected xyz, uv_vis and K of picture {number}, found {_said(entry)}; {AGAIN}")
    found = {}
    for name, shape in SHAPES.items():
        value = entry.get(name)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in "fiub":
            raise InputError(f"{path}: expected {name} {shape} of picture {number}, found {_said(value)}; {AGAIN}")
        found[name] = value.astype(np.float64)
    return found


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else f"a {type(value).__name__}"


def chosen_side(mask: np.ndarray) -> str | None:
    """The hand with more pixels in an RHD mask (h,w); the right one of equal ones; None where no pixel is a hand's."""
    pixels = {side: np.count_nonzero((mask >= low) & (mask <= high)) for side, (low, high) in MASK_IDS.items()}
    if not any(pixels.values()):
        return None
    return "left" if pixels["left"] > pixels["right"] else "right"


def read_mask(path: Path) -> np.ndarray:
    """(320,320) uint8: 0 background, 1 person, 2-17 left hand, 18-33 right hand. Raises Broken."""
    mask = decode(path, SIZE, SIZE, "mask", cv2.IMREAD_UNCHANGED, AGAIN)
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max() > MASK_IDS["right"][1]:
        raise Broken("mask broken", f"{path}: expected a mask of one byte per pixel from 0 to 33, found "
                                    f"{mask.dtype} {mask.shape} up to {mask.max()}; {AGAIN}")
    return mask


def read_depth(path: Path) -> np.ndarray:
    """(320,320) float32 metres of a depth picture. Raises Broken."""
    colours = decode(path, SIZE, SIZE, "depth picture", resize=AGAIN).astype(np.int64)  # blue, green, red
    return ((256 * colours[..., 2] + colours[..., 1]) / 65535 * DEPTH_M).astype(np.float32)


def samples_of(root: Path, split: str, annotations: dict[int, dict[str, np.ndarray]], hands: str, visible: int,
               factor: float) -> Sequence[Sample]:
    """The pictures of a split, in the order of their numbers."""
    return [Sample(root, f"{split}/color/{number:05d}.png", SPLITS.index(split), found["xyz"], found["uv_vis"], found["K"], hands,
                   visible, factor) for number, found in annotations.items()]


def load(sample: Sample) -> Loaded:
    """The chosen hand's labels and mask. Raises Broken, and Excluded: no hand, a left one, too little of it to be seen."""
    path = sample.root / sample.name
    mask = read_mask(sample.root / sample.name.replace("/color/", "/mask/"))
    side = chosen_side(mask)
    if side is None:
        raise Excluded("no hand in the mask")
    if side == "left" and sample.hands == "right":
        raise Excluded("left hand")
    rows = slice(FIRST[side], FIRST[side] + 21)
    joints, uv_vis = (of[rows][list(T21_FROM_RHD)] for of in (sample.xyz, sample.uv_vis))
    _require_whole(path, joints, uv_vis, sample.K)
    if np.count_nonzero(uv_vis[:, 2]) < sample.visible:
        raise Excluded("fewer visible joints than dataset.visible")
    uv = uv_vis[:, :2]
    box = box_of(uv)
    require_seen(box, uv.min(0), uv.max(0), SIZE, SIZE, sample.factor, path)
    low, high = MASK_IDS[side]
    row = {"name": sample.name, "split": sample.split, "side": SIDES.index(side), "box": box,
           "K": [sample.K[0, 0], sample.K[1, 1], sample.K[0, 2], sample.K[1, 2]], "joints": joints, "has_joints": True,
           "joints_uv": uv, "has_uv": True, "joint_valid": np.ones(21, bool)}
    return Loaded(row, path, np.where((mask >= low) & (mask <= high), 255, 0).astype(np.uint8), (SIZE, SIZE))


def _require_whole(path: Path, joints: np.ndarray, uv_vis: np.ndarray, K: np.ndarray) -> None:
    """Broken where the numbers of a picture cannot be right."""
    if not all(np.isfinite(of).all() for of in (joints, uv_vis, K)):
        raise Broken("labels not finite", f"{path}: expected finite numbers of this picture in the annotations, found NaN or "
                                          f"infinity; {AGAIN}")
    if K[0, 0] <= 0 or K[1, 1] <= 0 or np.any(K[[0, 1, 2, 2], [1, 0, 0, 1]]) or K[2, 2] != 1:
        raise Broken("K broken", f"{path}: expected K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in the annotations, found "
                                 f"{K.round(2).tolist()}; {AGAIN}")
    if (joints[:, 2] <= 0).any():
        raise Broken("joints behind the camera", f"{path}: expected xyz in front of the camera (metres, z forward), found z down "
                                                 f"to {joints[:, 2].min():.2f}; {AGAIN}")
    seen = joints @ K.T
    off = np.abs(seen[:, :2] / seen[:, 2:] - uv_vis[:, :2]).max()
    if not off <= UV_TOLERANCE:
        raise Broken("uv_vis off", f"{path}: uv_vis off by {off:.1f} px from K*xyz; are the annotations those of these "
                                   f"pictures? {AGAIN}")
