"""One DexYCB sequence -> its kept frames' labels and crops, in two files (a shard). This is what prepare's processes run.

A frame is left out for a reason that is counted: no hand, a joint outside the picture, a broken file. The crop is a square around
the box of the 21 joint_2d, side `factor` times the box's longer side, moved and widened to whole pixels, black outside the
picture. Seed: the original rounded each edge of the box by itself, so its crops were non-square by a pixel and up to half a
pixel off their labels; here the crop's place is kept in whole pixels and every later map starts from it exactly.
No torch in here: a worker process starts in a fraction of a second and stays small.
"""
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.dex_ycb_tree import Sequence
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
LARGEST = 4  # times the picture's longer side: a larger crop is a hand at the lens, and mostly black
BREAKS = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of a broken npz
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


class Excluded(Exception):
    """This frame is left out, for the reason given."""


class Broken(Exception):
    """A file of this frame cannot be used: a short reason to count, and the line to print."""

    def __init__(self, reason: str, line: str):
        super().__init__(line)
        self.reason = reason


def cut_sequence(task: Task) -> dict:
    """Write the shard of one sequence; returns {"counts": reason -> frames, "examples": reason -> first names}.

    Raises InputError for a broken file, unless the plan says to skip such frames.
    """
    s, plan = task.sequence, task.plan
    world = _world(task.root / s.folder / "pose.npz", s.num_frames)
    counts, examples = Counter(), defaultdict(list)
    rows: list[dict[str, np.ndarray]] = []
    crops: list[bytes] = []
    for camera in s.cameras:
        for frame in plan.frames(s.num_frames):
            name = f"{s.folder}/{plan.serials[camera]}/color_{frame:06d}.jpg"
            try:
                row = read_frame(task.root / name, task.K[camera], plan)
                crops.append(cut(task.root / name, row["stored"], plan))
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
            mano = np.concatenate([row.pop("pose_m"), np.float32(s.betas)])
            rows.append({**row, "subject": s.subject, "sequence": s.index, "camera": camera, "frame": frame, "side": s.side,
                         "mano": mano, "world": world[frame], "K": task.K[camera]})
    counts["kept"] = len(rows)
    return write_shard(task.shard, COLUMNS, rows, {"crops": crops}, s.fingerprint, counts, examples)


def read_frame(picture: Path, K: np.ndarray, plan: Plan) -> dict[str, np.ndarray]:
    """Labels of one frame: pose_m (51), joint_3d, joint_2d, inside, box, stored. Raises Excluded or Broken."""
    path = picture.with_name(picture.name.replace("color_", "labels_").replace(".jpg", ".npz"))
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
    low, high = uv.min(0).astype(np.float64), uv.max(0).astype(np.float64)
    box = np.array([*(low + high) / 2, (high - low).max()])
    unseen = (high < -0.5).any() or (low > (plan.width - 0.5, plan.height - 0.5)).any()
    if unseen or box[2] * plan.factor > LARGEST * max(plan.width, plan.height):
        raise Excluded("the hand outside the picture")
    if box[2] < 1:
        raise Broken("box empty", f"{path}: expected joint_2d spread over a hand, found all 21 within a pixel; "
                                  "unpack the file again")
    return {**labels, "inside": np.bool_(inside), "box": box, "stored": stored_square(box, plan.factor)}


def read_labels(path: Path) -> dict[str, np.ndarray]:
    """pose_m (51), joint_3d (21,3), joint_2d (21,2) of one file, float32. Raises Broken."""
    shapes = {"pose_m": (1, 51), "joint_3d": (1, 21, 3), "joint_2d": (1, 21, 2)}
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = {key: file[key] for key in shapes}
    except FileNotFoundError as error:
        raise Broken("labels missing", f"{path}: expected labels, found nothing; unpack the archive again") from error
    except BREAKS as error:
        raise Broken("labels broken", f"{path}: expected an npz with {', '.join(shapes)}, "
                                      f"found a file that breaks "
                                      f"({_first_line(error)}); unpack it again") from error
    for key, shape in shapes.items():
        if labels[key].shape != shape or labels[key].dtype.kind != "f":
            raise Broken("labels broken", f"{path}: expected {key} {shape} of floats, "
                                          f"found {labels[key].shape} {labels[key].dtype}; unpack it again")
        labels[key] = labels[key][0].astype(np.float32)
    return labels


def stored_square(box: np.ndarray, factor: float) -> np.ndarray:
    """(3) left, top and side in whole pixels of a square that covers the box's crop. Pixel i spans i - 0.5 to i + 0.5."""
    side = factor * box[2]
    left, top = np.floor(box[:2] - side / 2 + 0.5)
    return np.array([left, top, np.ceil(side) + 1], np.int64)


def cut(path: Path, stored: np.ndarray, plan: Plan) -> bytes:
    """The stored square of a picture as JPEG bytes, black outside the picture. Raises Broken."""
    image = decode(path, plan.width, plan.height)
    left, top, side = (int(x) for x in stored)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, plan.width), min(top + side, plan.height)
    crop = image[y0:y1, x0:x1]
    if crop.shape[:2] != (side, side):
        crop = cv2.copyMakeBorder(crop, y0 - top, top + side - y1, x0 - left, left + side - x1, cv2.BORDER_CONSTANT, value=0)
    if plan.pixels:
        shrinks = side > plan.pixels
        crop = cv2.resize(crop, (plan.pixels, plan.pixels), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", crop, (cv2.IMWRITE_JPEG_QUALITY, plan.quality))[1].tobytes()


def decode(path: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) BGR uint8 of a JPEG file. Raises Broken: missing, cut off, not a JPEG, another size."""
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise Broken("picture missing", f"{path}: expected a picture, found nothing; unpack the archive again") from error
    except OSError as error:
        raise Broken("picture broken", f"{path}: cannot be read ({error.strerror}); unpack it again") from error
    if data[:2].tobytes() != b"\xff\xd8":
        raise Broken("picture broken", f"{path}: expected a JPEG, "
                                       f"found {'an empty file' if not len(data) else 'another kind of file'}; unpack it again")
    # The decoder fills a cut-off picture with grey and says nothing; a whole one ends with an end-of-image mark.
    if b"\xff\xd9" not in data[-64:].tobytes():
        raise Broken("picture broken", f"{path}: expected a whole JPEG, found one cut off after {len(data)} bytes; "
                                       "unpack it again")
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise Broken("picture broken", f"{path}: expected a JPEG, found one that cannot be decoded; unpack it again")
    if image.shape[:2] != (height, width):
        raise Broken("picture of another size", f"{path}: expected {width}x{height} pixels, "
                                                f"found {image.shape[1]}x{image.shape[0]}; "
                                                "set dataset.width and dataset.height to what the tree has")
    return image


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
