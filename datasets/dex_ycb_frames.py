"""One DexYCB sequence -> its kept frames' labels and crops, in two files (a shard). This is what prepare's processes run.

A frame is left out for a reason that is counted: no hand, a joint outside the picture, a broken file. Its crop is that of
datasets/pictures.py around the box of the 21 joint_2d.
No torch in here: a worker process starts in a fraction of a second and stays small.
"""
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.dex_ycb_tree import Sequence
from datasets.pictures import Broken, Excluded, box_of, cut, decode, jpeg, mask_png, require_seen, stored_square
from datasets.prepare import EXAMPLES, write_shard
from utils.errors import InputError

COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "subject": (np.int16, ()), "sequence": (np.int16, ()), "camera": (np.int16, ()), "frame": (np.int32, ()),
    "side": (np.int8, ()),             # of datasets.dex_ycb_tree.SIDES
    "inside": (np.bool_, ()),          # all 21 joints in the picture
    "mano": (np.float32, (61,)),       # global axis-angle 3, PCA 45, translation 3, betas 10; camera frame, own side, metres
    "world": (np.float32, (51,)),      # the first 51 in the world frame (pose.npz); NaN where the tree has no pose.npz
    "joint_3d": (np.float32, (21, 3)), "joint_2d": (np.float32, (21, 2)),
    "K": (np.float32, (4,)),           # fx fy cx cy of the whole picture
    "box": (np.float32, (3,)),         # centre x, y and longer side of the box of joint_2d, pixels
    "stored": (np.int32, (3,)),        # left, top and side of the stored crop, whole pixels of the picture
}
LABELS = {"pose_m": (1, 51), "joint_3d": (1, 21, 3), "joint_2d": (1, 21, 2)}  # of a labels file, float32
BREAKS = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of a broken npz
HAND = 255  # in seg
UV_TOLERANCE = 2.0  # pixels between joint_2d and K * joint_3d


@dataclass(frozen=True)
class Plan:
    """What of a tree is prepared, and how (a prepared folder belongs to one plan)."""

    hands: str
    in_image: bool
    width: int
    height: int
    serials: tuple[str, ...]
    factor: float
    pixels: int | None
    quality: int
    stride: int
    limit: int | None
    unreadable: str
    masks: bool = False

    def stored(self) -> dict[str, Any]:
        """What a prepared folder remembers of it: masks where they are there, as folders of before know none."""
        return {name: value for name, value in asdict(self).items() if name != "masks" or value}

    def frames(self, num_frames: int) -> range:
        """The frames of a sequence that are looked at."""
        return range(0, num_frames, self.stride)[:self.limit]


@dataclass(frozen=True)
class Task:
    """One sequence to cut: root of the tree, K (cameras,4), where the shard goes (`<shard>.crops`, then `<shard>.npz`)."""

    root: Path
    sequence: Sequence
    K: np.ndarray
    plan: Plan
    shard: Path

    @property
    def name(self) -> str:
        return self.sequence.folder

    @property
    def fingerprint(self) -> str:
        return self.sequence.fingerprint


def cut_sequence(task: Task) -> dict:
    """Write the shard of one sequence; returns {"counts": reason -> frames, "examples": reason -> first names}.

    Raises InputError for a broken file, unless the plan says to skip such frames.
    """
    s, plan = task.sequence, task.plan
    world = _world(task.root / s.folder / "pose.npz", s.num_frames)
    counts, examples = Counter(), defaultdict(list)
    rows: list[dict[str, np.ndarray]] = []
    streams: dict[str, list[bytes]] = {"crops": []} | ({"masks": []} if plan.masks else {})
    for camera in s.cameras:
        for frame in plan.frames(s.num_frames):
            name = f"{s.folder}/{plan.serials[camera]}/color_{frame:06d}.jpg"
            try:
                row = read_frame(task.root / name, task.K[camera], plan)
                picture = decode(task.root / name, plan.width, plan.height)
                mask = read_mask(task.root / name, plan) if plan.masks else None
            except Excluded as why:
                counts[str(why)] += 1
                continue
            except Broken as broken:
                if plan.unreadable == "stop":
                    raise InputError(str(broken)) from broken
                counts[broken.reason] += 1
                examples[broken.reason].append(str(broken))
                del examples[broken.reason][EXAMPLES:]
                continue
            streams["crops"].append(jpeg(cut(picture, row["stored"], plan.pixels), plan.quality))
            if mask is not None:  # an empty one says nothing: one entry per row
                streams["masks"].append(mask_png(cut(mask, row["stored"], plan.pixels)) if mask.any() else b"")
            mano = np.concatenate([row.pop("pose_m"), np.float32(s.betas)])
            rows.append({**row, "subject": s.subject, "sequence": s.index, "camera": camera, "frame": frame, "side": s.side,
                         "mano": mano, "world": world[frame], "K": task.K[camera]})
    counts["kept"] = len(rows)
    return write_shard(task.shard, COLUMNS, rows, streams, s.fingerprint, counts, examples)


def read_frame(picture: Path, K: np.ndarray, plan: Plan) -> dict[str, np.ndarray]:
    """Labels of one frame: pose_m (51), joint_3d, joint_2d, inside, box, stored. Raises Excluded or Broken."""
    path = _labels_of(picture)
    labels = read_labels(path)
    joints, uv = labels["joint_3d"], labels["joint_2d"]
    if (joints == -1).all() or not labels["pose_m"].any():
        raise Excluded("no hand")
    for key, value in labels.items():
        if not np.isfinite(value).all():
            raise Broken("labels not finite", f"{path}: expected finite numbers in {key}, found NaN or infinity; "
                                              "unpack the file again")
    if (joints[:, 2] <= 0).any():
        raise Broken("joints behind the camera", f"{path}: expected joint_3d in front of the camera, found z = "
                                                 f"{joints[:, 2].min():.3f} m; unpack the file again")
    projected = joints[:, :2] / joints[:, 2:] * K[:2] + K[2:]
    if (off := float(np.abs(projected - uv).max())) > UV_TOLERANCE:
        raise Broken("joint_2d off", f"DexYCB {picture}: joint_2d off by {off:.1f} px from K*joint_3d; is "
                                     f"calibration/intrinsics the {plan.width}x{plan.height} set?")
    inside = bool((uv >= 0).all() and (uv <= (plan.width, plan.height)).all())
    if plan.in_image and not inside:
        raise Excluded("a joint outside the picture")
    box = box_of(uv)
    require_seen(box, uv.min(0), uv.max(0), plan.width, plan.height, plan.factor, path)
    return {**labels, "inside": np.bool_(inside), "box": box, "stored": stored_square(box, plan.factor)}


def read_mask(picture: Path, plan: Plan) -> np.ndarray:
    """(height,width) uint8, 255 where one sees the hand: by `seg` of the labels file (else 0 or an object). Raises Broken."""
    path, size = _labels_of(picture), (plan.height, plan.width)
    seg = _members(path, ("seg",))["seg"]
    if seg.shape != size or seg.dtype != np.uint8:
        raise Broken("labels broken", f"{path}: expected seg {size} uint8, found {seg.shape} {seg.dtype}; unpack it again, or "
                                      "set dataset.masks=false")
    return np.where(seg == HAND, np.uint8(255), np.uint8(0))


def read_labels(path: Path, keys: tuple[str, ...] = tuple(LABELS)) -> dict[str, np.ndarray]:
    """pose_m (51), joint_3d (21,3), joint_2d (21,2) of one file, or those of `keys` alone, float32. Raises Broken."""
    shapes = {key: LABELS[key] for key in keys}
    labels = _members(path, keys)
    for key, shape in shapes.items():
        if labels[key].shape != shape or labels[key].dtype.kind != "f":
            raise Broken("labels broken", f"{path}: expected {key} {shape} of floats, "
                                          f"found {labels[key].shape} {labels[key].dtype}; unpack it again")
        labels[key] = labels[key][0].astype(np.float32)
    return labels


def _labels_of(picture: Path) -> Path:
    return picture.with_name(picture.name.replace("color_", "labels_").replace(".jpg", ".npz"))


def _members(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of a labels file; the others are not read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except FileNotFoundError as error:
        raise Broken("labels missing", f"{path}: expected labels, found nothing; unpack the archive again") from error
    except BREAKS as error:
        raise Broken("labels broken", f"{path}: expected an npz with {', '.join(keys)}, found a file that breaks "
                                      f"({_first_line(error)}); unpack it again") from error


def _world(path: Path, num_frames: int) -> np.ndarray:
    """(frames,51) world poses; NaN where the tree has no pose.npz (no label of ours needs it)."""
    if not path.is_file():
        return np.full((num_frames, 51), np.nan, np.float32)
    try:
        with np.load(path, allow_pickle=False) as file:
            world = file["pose_m"]
    except BREAKS as error:
        raise InputError(f"{path}: expected an npz with pose_m, found a file that breaks ({_first_line(error)}); "
                         "unpack it again") from error
    if world.shape != (num_frames, 1, 51) or world.dtype.kind != "f":
        raise InputError(f"{path}: expected pose_m ({num_frames}, 1, 51) of floats, found {world.shape} {world.dtype}; "
                         "unpack it again")
    return world[:, 0].astype(np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
