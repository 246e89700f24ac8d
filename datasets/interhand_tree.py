"""InterHand2.6M's annotation files (Moon et al., ECCV 2020; specs/datasets.md 1.4) as one list of hands of a split.

    <root>/annotations/<split>/InterHand2.6M_<split>_{data,camera,joint_3d,MANO_NeuralAnnot}.json     the last is optional
    <root>/images/<split>/Capture<c>/<sequence>/cam<camera>/image<frame>.jpg

Joints are of a capture's frame, in the world, millimetres; a picture refers to them, and to its camera, by reference, so that the
list stays small beside data.json itself (about 1 GB of text for train), which is read in pieces.
The oldest release has bare lists of 42 joints in joint_3d.json: there data.json alone says which are known. No torch in here.
"""
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from datasets.cutting import SIDES
from datasets.json_lists import objects
from utils.errors import InputError
from utils.files import require_file, require_folder

SPLITS = ("train", "val", "test")
TYPES = ("right", "left", "interacting")
FIRST = {"right": 0, "left": 21}  # of a hand's rows in world_coord
AGAIN = "unpack the annotations again"


class Camera(NamedTuple):
    """x_cam = R (x_world - place): R (3,3), place (3) mm · focal (2) and centre (2), pixels of the whole picture."""

    R: np.ndarray
    place: np.ndarray
    focal: np.ndarray
    centre: np.ndarray


class Fit(NamedTuple):
    """A hand of MANO in the world: pose (48) axis-angle relative to the pose mean, shape (10), trans (3) metres."""

    pose: np.ndarray
    shape: np.ndarray
    trans: np.ndarray


class Frame(NamedTuple):
    """What the annotations know of one moment of a capture. world (42,3) mm · known (42) bool · fits: side -> fit."""

    world: np.ndarray
    known: np.ndarray
    fits: dict[str, Fit]


class Image(NamedTuple):
    """What data.json says of a picture, whether annotated or not. inner: its path under images/<split>."""

    inner: str
    size: tuple[int, int]
    subject: int
    recording: str
    capture: int
    frame: int
    camera: str


class Seen(NamedTuple):
    """One picture. name: its path in the tree · size: width and height · known (42) bool · kind: of TYPES · recording: capture
    and sequence."""

    name: str
    size: tuple[int, int]
    subject: int
    recording: str
    camera: Camera
    frame: Frame
    known: np.ndarray
    kind: str

    def sides(self) -> tuple[str, ...]:
        """The hands that the picture is labelled with."""
        return SIDES if self.kind == "interacting" else (self.kind,)


def annotation_folders(root: str | Path) -> dict[str, Path]:
    """split -> folder of its annotations, of the splits that are there, one at least. Raises InputError."""
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    folders = {split: root / "annotations" / split for split in SPLITS}
    folders = {split: folder for split, folder in folders.items() if _file(folder, split, "data").is_file()}
    if not folders:
        raise InputError(f"{root}: expected annotations/<split>/InterHand2.6M_<split>_data.json of train, val or test, found "
                         "none; is dataset.root the folder that holds images and annotations?")
    return folders


def annotation_files(folder: Path, split: str) -> list[Path]:
    """The files of a split that are there."""
    paths = (_file(folder, split, what) for what in ("data", "camera", "joint_3d", "MANO_NeuralAnnot"))
    return [path for path in paths if path.is_file()]


def _file(folder: Path, split: str, what: str) -> Path:
    return folder / f"InterHand2.6M_{split}_{what}.json"


def read_split(folder: Path, split: str) -> tuple[list[Seen], Counter]:
    """The pictures of a split in the order of data.json's annotations, and how many it has none for. Raises InputError."""
    path = _file(folder, split, "data")
    cameras = Cameras(_file(folder, split, "camera"))
    frames = Frames(_file(folder, split, "joint_3d"), _file(folder, split, "MANO_NeuralAnnot"))
    shared: dict = {}  # equal flags, sizes and names are kept once
    images = {_of(path, "images", image, "id", int): _image(path, image, shared) for image in objects(path, "images", AGAIN)}
    seen = []
    for number, one in enumerate(objects(path, "annotations", AGAIN)):
        where = f"annotations[{number}]"
        key = _of(path, where, one, "image_id", int)
        if key not in images:
            raise InputError(f"{path}: {where}: image_id {key} is not among its images, or comes twice; {AGAIN}")
        kind = one.get("hand_type")
        if kind not in TYPES:
            raise InputError(f"{path}: {where}: expected hand_type right, left or interacting, found {kind!r}; {AGAIN}")
        image, what = images.pop(key), f"image {key}"
        frame = frames.of(image.capture, image.frame, what)
        known = _flags(path, where, one.get("joint_valid")) & frame.known
        seen.append(Seen(f"images/{split}/{image.inner}", image.size, image.subject, image.recording,
                         cameras.of(image.capture, image.camera, what), frame, shared.setdefault(known.tobytes(), known),
                         TYPES[TYPES.index(kind)]))
    return seen, Counter({"picture without an annotation": len(images)})


def _image(path: Path, image: dict, shared: dict) -> Image:
    what = f"image {image['id']}"
    capture, frame, width, height, subject = (_of(path, what, image, key, int) for key in
                                              ("capture", "frame_idx", "width", "height", "subject"))
    sequence, camera = _of(path, what, image, "seq_name", str), str(_of(path, what, image, "camera", (str, int)))
    inner = image.get("file_name")
    if not (isinstance(inner, str) and "/" in inner):  # the names alone
        inner = f"Capture{capture}/{sequence}/cam{camera}/image{frame}.jpg"
    size, recording = (width, height), f"Capture{capture}/{sequence}"
    return Image(inner, shared.setdefault(size, size), subject, shared.setdefault(recording, recording), capture, frame,
                 shared.setdefault(camera, camera))


class Cameras:
    """The cameras of a split, each read and checked once."""

    def __init__(self, path: Path):
        self.path, self.data, self.done = path, _mapping(path), {}

    def of(self, capture: int, camera: str, what: str) -> Camera:
        """The camera of a capture, or InputError; what: who asks for it."""
        if (capture, camera) not in self.done:
            held = self.data.get(str(capture))
            if not isinstance(held, dict):
                raise InputError(f"{self.path}: expected capture {capture}, which {what} of data.json names, found none; {AGAIN}")
            shapes = {"camrot": (3, 3), "campos": (3,), "focal": (2,), "princpt": (2,)}
            found = Camera(*(_numbers(self.path, f"{capture}.{key}.{camera}", _get(held.get(key), camera), shape)
                             for key, shape in shapes.items()))
            if (found.focal <= 0).any() or np.abs(found.R @ found.R.T - np.eye(3)).max() > 1e-3:
                raise InputError(f"{self.path}: {capture}.*.{camera}: expected a rotation and focal lengths above 0, found "
                                 f"others; {AGAIN}")
            self.done[capture, camera] = found
        return self.done[capture, camera]


class Frames:
    """The moments of a split, each read and checked once: joints, and MANO fits where there are."""

    def __init__(self, path: Path, fits: Path):
        self.path, self.data, self.done = path, _mapping(path), {}
        self.fits_path, self.fits = fits, _mapping(fits) if fits.is_file() else {}

    def of(self, capture: int, number: int, what: str) -> Frame:
        """The frame `number` of a capture, or InputError; what: who asks for it."""
        if (capture, number) not in self.done:
            where, value = f"{capture}.{number}", _get(self.data.get(str(capture)), str(number))
            if value is None:
                raise InputError(f"{self.path}: expected {where}, which {what} of data.json names, found none; {AGAIN}")
            known = np.ones(42, bool)
            if isinstance(value, dict):
                known = _flags(self.path, where, value.get("joint_valid"))
                value = value.get("world_coord")
            fits = _get(self.fits.get(str(capture)), str(number))
            self.done[capture, number] = Frame(_numbers(self.path, f"{where}.world_coord", value, (42, 3)), known,
                                               dict(self._fits(where, fits)))
        return self.done[capture, number]

    def _fits(self, where: str, value: Any) -> Iterator[tuple[str, Fit]]:
        for side in SIDES:
            one = _get(value, side)
            if one is not None:
                shapes = {"pose": (48,), "shape": (10,), "trans": (3,)}
                yield side, Fit(*(_numbers(self.fits_path, f"{where}.{side}.{key}", _get(one, key), shape)
                                  for key, shape in shapes.items()))


def _mapping(path: Path) -> dict:
    path = require_file(path, AGAIN)
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: expected json, found a file that breaks ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected {{key: value}}, found a {type(found).__name__}; {AGAIN}")
    return found


def _of(path: Path, where: str, one: dict, key: str, kind: type | tuple) -> Any:
    found = one.get(key)
    if not isinstance(found, kind) or isinstance(found, bool):
        wanted = "a whole number" if kind is int else "text"
        raise InputError(f"{path}: {where}: expected {key}, {wanted}, found {_said(found)}; {AGAIN}")
    return found


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _flags(path: Path, where: str, value: Any) -> np.ndarray:
    """(42) bool of [[0], [1], ...] or [0, 1, ...]."""
    flags = _numbers(path, f"{where}.joint_valid", value, None)
    if flags.size != 42 or not np.isin(flags, (0, 1)).all():
        raise InputError(f"{path}: {where}: expected joint_valid: 42 times 0 or 1, found {flags.size} numbers; {AGAIN}")
    return flags.reshape(42).astype(bool)


def _numbers(path: Path, where: str, value: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """float64 array of finite numbers, of this shape if one is given, or InputError."""
    try:
        found = np.array(value, np.float64) if isinstance(value, list) else None
    except (ValueError, TypeError):
        found = None
    if found is None or (shape is not None and found.shape != shape) or not np.isfinite(found).all():
        wanted = "numbers" if shape is None else f"{' x '.join(map(str, shape))} finite numbers"
        raise InputError(f"{path}: {where}: expected {wanted}, found {_said(value)}; {AGAIN}")
    return found


def _said(value: Any) -> str:
    if value is None:
        return "none"
    return f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.40}"
