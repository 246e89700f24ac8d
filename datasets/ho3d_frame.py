"""HO3D's conventions and ours, and one of its frames: meta pickle -> labels, box, mask (Hampali et al., CVPR 2020; specs 1.3).

HO3D: OpenGL camera (x right, y up, z backwards), joints in H21, complete axis-angle poses, translations about MANO's own origin.
Ours: OpenCV camera, T21. Points change by signs and order alone, exactly; a pose by its first rotation: R' = A R with
A = diag(1,-1,-1); since MANO turns about the rest wrist J0(shape), trans' = A (J0 + trans) - J0. Each map is its own inverse.
Light to import: worker processes load frames by `load`.
"""
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.cutting import Loaded
from datasets.pictures import Broken, Excluded, box_of, decode, require_seen
from utils.errors import InputError
from utils.joints import T21_FROM_H21
from utils.safe_pickle import load_pickle

SPLITS = TRAIN, EVALUATION = ("train", "evaluation")
PICTURES = ("png", "jpg")  # v2, v3; looked for in this order, as the official reader does
AXES = np.array([1.0, -1.0, -1.0])
UNPACK = "unpack the archive again"
ORDER_M = 0.03  # between one point's labels in two files: further apart, a list is of another order or version
# RGB of (hand, thing) in the rendered segmentations, by the version in their folder's name. Not established: the spec names the
# folder and its quarter resolution only. `require_colours` compares them with the labels.
COLOURS = {"v2": ((255, 0, 0), (0, 0, 255)), "v3": ((0, 0, 255), (0, 255, 0))}
_TRAIN_KEYS = {"handJoints3D": (21, 3), "handPose": (48,), "handTrans": (3,), "handBeta": (10,), "camMat": (3, 3)}
_EVALUATION_KEYS = {"handJoints3D": (3,), "handBoundingBox": (4,), "camMat": (3, 3)}


class Source(NamedTuple):
    """What the samples of one preparation share. rest (3), rest_dirs (3,10): J0 = rest + rest_dirs @ shape, metres ·
    segmentation: folder of the rendered segmentations in the root, or "" · colours: a key of COLOURS."""

    root: str
    width: int
    height: int
    factor: float
    rest: np.ndarray
    rest_dirs: np.ndarray
    segmentation: str
    colours: str


class Sample(NamedTuple):
    """One line of a list. repeat: how often the same line came before · official: its number in evaluation.txt, else -1 · xyz
    (21,3): its public label, OpenGL and H21, or None."""

    source: Source
    split: int
    sequence: str
    frame: str
    repeat: int
    official: int
    group: int
    subject: int
    xyz: np.ndarray | None

    @property
    def folder(self) -> Path:
        return Path(self.source.root) / SPLITS[self.split] / self.sequence


def our_points(points: np.ndarray) -> np.ndarray:
    """Points (...,3) from OpenGL to OpenCV axes, and back."""
    return points * AXES.astype(points.dtype)


def our_joints(joints: np.ndarray) -> np.ndarray:
    """HO3D's joints (...,21,3), H21 and OpenGL, as ours."""
    return our_points(joints[..., list(T21_FROM_H21), :])


def our_pose(pose: np.ndarray, trans: np.ndarray, wrist: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """handPose (48) and handTrans (3) for the other camera axes, float64; wrist (3): J0(shape). Its own inverse."""
    pose, trans = np.array(pose, np.float64), np.asarray(trans, np.float64)
    pose[:3] = _turned(pose[:3])
    return pose, AXES * (wrist + trans) - wrist


def _turned(vector: np.ndarray) -> np.ndarray:
    """Axis-angle (3) of A R: as quaternions (0,1,0,0) times R's, which is exact at every angle."""
    angle = np.linalg.norm(vector)
    w, (x, y, z) = np.cos(angle / 2), np.sinc(angle / 2 / np.pi) / 2 * vector
    w, axis = -x, np.array([w, -z, y])
    if w < 0:
        w, axis = -w, -axis
    length = np.linalg.norm(axis)
    return axis * (2 * np.arctan2(length, w) / length) if length > 0 else axis


def read_meta(path: Path, split: str) -> dict[str, np.ndarray]:
    """The hand's part of a meta pickle, float32 as HO3D has it: handJoints3D (21,3) H21 OpenGL m, handPose (48), handTrans (3),
    handBeta (10), camMat (3,3) of a training frame; handJoints3D (3) = the wrist, handBoundingBox (4) px, camMat of an
    evaluation frame. Raises Excluded: a frame without annotation; Broken: another file."""
    if not path.exists():
        raise Broken("annotation missing", f"{path}: expected a pickle, found nothing; {UNPACK}")
    keys = _TRAIN_KEYS if split == TRAIN else _EVALUATION_KEYS
    try:
        meta = load_pickle(path, UNPACK, expected="a pickle of HO3D's annotation")
    except InputError as error:
        raise Broken("annotation broken", str(error)) from error
    if not isinstance(meta, dict) or not set(keys) <= set(meta):
        found = f"keys {', '.join(map(str, list(meta)[:6]))}" if isinstance(meta, dict) else f"a {type(meta).__name__}"
        raise Broken("annotation broken", f"{path}: expected {', '.join(keys)}, found {found}; {UNPACK}")
    if any(meta[key] is None for key in keys):
        raise Excluded("no annotation")
    return {key: _numbers(path, key, meta[key], shape) for key, shape in keys.items()}


def _numbers(path: Path, key: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        hint = "an evaluation frame?" if array.shape == (3,) else "a training frame?" if array.shape == (21, 3) else UNPACK
        raise Broken("annotation broken", f"{path}: expected {key} {shape} of numbers, found {array.shape} {array.dtype}; {hint}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise Broken("annotation not finite", f"{path}: expected finite numbers in {key}, found NaN or infinity; {UNPACK}")
    return array


def load(sample: Sample) -> Loaded:
    """A line's row, picture and mask. Raises Excluded: no annotation, the hand outside the picture; Broken: a wrong file."""
    source, split = sample.source, SPLITS[sample.split]
    path = sample.folder / "meta" / f"{sample.frame}.pkl"
    meta = read_meta(path, split)
    K = _camera(path, meta["camMat"])
    labels = _labels(path, meta, K, source) if split == TRAIN else _public(path, meta, K, sample.xyz)
    if split == TRAIN:
        box, low, high = box_of(labels["joints_uv"]), labels["joints_uv"].min(0), labels["joints_uv"].max(0)
    else:
        low, high = meta["handBoundingBox"][:2].astype(np.float64), meta["handBoundingBox"][2:].astype(np.float64)
        box = np.array([*(low + high) / 2, (high - low).max()])
        if not (high > low).all():
            raise Broken("box empty", f"{path}: expected handBoundingBox x0 y0 x1 y1 with x1 > x0 and y1 > y0, found "
                                      f"{meta['handBoundingBox'].tolist()}; {UNPACK}")
    require_seen(box, low, high, source.width, source.height, source.factor, path)
    picture = _picture(sample)
    name = f"{split}/{sample.sequence}/rgb/{picture.name}" + (f"#{sample.repeat + 1}" if sample.repeat else "")
    row = {"name": name, "split": sample.split, "official": sample.official, "subject": sample.subject, "group": sample.group,
           "frame": int(sample.frame), "K": K, "box": box, **labels}
    mask = _mask(sample) if source.segmentation and split == TRAIN else None
    return Loaded(row, picture, mask, (source.width, source.height))


def _camera(path: Path, matrix: np.ndarray) -> np.ndarray:
    """(4) fx fy cx cy."""
    if (matrix[2] != (0, 0, 1)).any() or matrix[0, 1] or matrix[1, 0] or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise Broken("camera broken", f"{path}: expected camMat fx 0 cx, 0 fy cy, 0 0 1, found {matrix.tolist()}; {UNPACK}")
    return matrix[[0, 1, 0, 1], [0, 1, 2, 2]]


def _labels(path: Path, meta: dict[str, np.ndarray], K: np.ndarray, source: Source) -> dict[str, Any]:
    """A training frame's labels."""
    wrist = source.rest + source.rest_dirs @ meta["handBeta"].astype(np.float64)
    pose, trans = our_pose(meta["handPose"], meta["handTrans"], wrist)
    return {"pose": pose, "trans": trans, "shape": meta["handBeta"], "has_hand": True,
            **_joints(path, our_joints(meta["handJoints3D"]), K)}


def _public(path: Path, meta: dict[str, np.ndarray], K: np.ndarray, xyz: np.ndarray | None) -> dict[str, Any]:
    """An evaluation frame's labels: the wrist, and the joints where they are published."""
    nothing = {"pose": np.zeros(48), "trans": np.zeros(3), "shape": np.zeros(10), "has_hand": False}
    if xyz is not None:
        if (off := np.linalg.norm(xyz[0] - meta["handJoints3D"])) > ORDER_M:
            raise Broken("labels of another frame", f"{path}: expected the wrist of its entry in evaluation_xyz.json, found one "
                                                    f"{1e3 * off:.0f} mm off: is that list of this version, and in this order?")
        return {**nothing, **_joints(path, our_joints(xyz), K)}
    return {**nothing, "joints": np.zeros((21, 3)), "has_joints": False, "joints_uv": np.zeros((21, 2)), "has_uv": False,
            "joint_valid": np.zeros(21, bool), **_root(path, our_points(meta["handJoints3D"]))}


def _joints(path: Path, joints: np.ndarray, K: np.ndarray) -> dict[str, Any]:
    root = _root(path, joints[0])
    if (joints[:, 2] <= 0).any():
        raise Broken("joints behind the camera", f"{path}: expected every joint in front of the camera (z < 0 in OpenGL axes), "
                                                 f"found some behind it; {UNPACK}")
    points = joints.astype(np.float64)
    uv = points[:, :2] / points[:, 2:] * K[:2] + K[2:]
    return {"joints": joints, "has_joints": True, "joints_uv": uv, "has_uv": True, "joint_valid": np.ones(21, bool), **root}


def _root(path: Path, root: np.ndarray) -> dict[str, Any]:
    if root[2] <= 0:
        raise Broken("joints behind the camera", f"{path}: expected the wrist in front of the camera (z < 0 in OpenGL axes), "
                                                 f"found z = {-root[2]:.3f} m; {UNPACK}")
    return {"root": root, "has_root": True}


def _picture(sample: Sample) -> Path:
    """The picture's file: png, else jpg."""
    paths = [sample.folder / "rgb" / f"{sample.frame}.{form}" for form in PICTURES]
    for path in paths:
        if path.exists():
            return path
    raise Broken("picture missing", f"{paths[0].with_suffix('')}: expected .png (v2) or .jpg (v3), found neither; {UNPACK}")


def segmentation_of(sample: Sample) -> Path | None:
    """The frame's rendered segmentation, or None where its sequence has none. Raises Broken: the sequence has others."""
    folder = Path(sample.source.root) / sample.source.segmentation / SPLITS[sample.split] / sample.sequence / "seg"
    for form in PICTURES:
        if (path := folder / f"{sample.frame}.{form}").exists():
            return path
    if not folder.is_dir():
        return None
    raise Broken("mask missing", f"{folder / sample.frame}: expected a segmentation .png or .jpg, as other frames of "
                                 f"{sample.sequence} have, found neither; {UNPACK}, or set dataset.masks=false")


def read_segmentation(path: Path, colours: str) -> tuple[np.ndarray, np.ndarray]:
    """Masks (h,w) bool of hand and thing, as they lie in the file: each pixel is what its colour is nearest to, hand, thing or
    black. colours: a key of COLOURS. Raises Broken."""
    image = decode(path, what="mask")[..., ::-1].astype(np.int32)
    known = np.array([*COLOURS[colours], (0, 0, 0)])
    nearest = ((image[:, :, None] - known) ** 2).sum(-1).argmin(-1)
    return nearest == 0, nearest == 1


def _mask(sample: Sample) -> np.ndarray | None:
    """The hand's mask (height,width) uint8 of the whole picture: every pixel of the smaller file repeated."""
    path = segmentation_of(sample)
    if path is None:
        return None
    hand, _ = read_segmentation(path, sample.source.colours)
    size = sample.source.width, sample.source.height
    if abs(hand.shape[1] * size[1] - hand.shape[0] * size[0]) > max(size):
        raise Broken("mask of another size", f"{path}: expected a part of {size[0]}x{size[1]} pixels, found "
                                             f"{hand.shape[1]}x{hand.shape[0]}; {UNPACK}, or set dataset.masks=false")
    return cv2.resize(hand.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST)
