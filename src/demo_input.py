"""What the demo is given: pictures, boxes of hands and camera matrices, each checked before any work is done.

Pixels: the centre of the top-left pixel is (0, 0), of the picture as it is shown (a camera's orientation mark is obeyed).
Boxes are [left, top, width, height], of the hand's 21 joints, as the training crops were cut about those.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from src.identity import number_array
from utils.errors import InputError
from utils.files import read_json, require_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class HandBox(NamedTuple):
    """Box of one hand in a picture, pixels; side "right" | "left" | None where the file does not say."""

    left: float
    top: float
    width: float
    height: float
    side: str | None = None


class Camera(NamedTuple):
    """K (3,3) float64 of the full picture, and where it came from in words."""

    K: np.ndarray
    source: str


def list_pictures(source: str | Path) -> list[Path]:
    """The picture itself, or those of a folder by name; InputError where there is none."""
    path = Path(source)
    if not str(source) or not path.exists():
        raise InputError(f"demo.input: expected a picture or a folder of pictures, found nothing at {str(source)!r}; set "
                         "demo.input=<file or folder>")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"demo.input: no picture in the folder {path}; expected files ending in {', '.join(SUFFIXES)}")
    return found


def read_picture(path: Path) -> np.ndarray:
    """(h,w,3) uint8 RGB as shown. InputError where the file is no picture, or is cut short (decoders fill the rest with grey)."""
    data = require_file(path, "name a picture").read_bytes()
    jpeg, png = data.startswith(b"\xff\xd8"), data.startswith(b"\x89PNG")
    # The end mark must follow the last start of a scan: a thumbnail inside has an end mark of its own.
    if (jpeg and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")) or (png and b"IEND" not in data[-64:]):
        raise InputError(f"{path}: the picture is cut short ({len(data)} bytes, no end mark); copy it again")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        found = "another kind of file" if data else "an empty file"
        raise InputError(f"{path}: expected a picture (JPEG, PNG, ...), found {found}; name a picture that a viewer opens")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_boxes(path: str | Path) -> dict[str, list[HandBox]] | list[HandBox]:
    """Boxes by picture name, or one list for all pictures.

    The file holds {"a.jpg": boxes, ...}, or boxes alone, where boxes is [left, top, width, height],
    {"box": [...], "side": "left"}, or a list of these; or a COCO file (images, and annotations with bbox).
    """
    value = read_json(path, "write boxes as [left, top, width, height]")
    if isinstance(value, dict) and "annotations" in value and "images" in value:
        return _coco(path, value)
    if isinstance(value, dict) and "box" not in value:
        return {str(name): _boxes(path, str(name), boxes) for name, boxes in value.items()}
    return _boxes(path, "the file", value)


def _coco(path: str | Path, value: dict[str, Any]) -> dict[str, list[HandBox]]:
    try:
        names = {image["id"]: Path(image["file_name"]).name for image in value["images"]}
        boxes: dict[str, list[HandBox]] = {}
        for number, note in enumerate(value["annotations"]):
            boxes.setdefault(names[note["image_id"]], []).append(_box(path, f"annotation {number}", note["bbox"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: a COCO file whose images or annotations lack {error}; expected id, file_name, image_id and "
                         "bbox") from error
    return boxes


def _boxes(path: str | Path, where: str, value: object) -> list[HandBox]:
    many = isinstance(value, list) and len(value) and isinstance(value[0], (list, dict))
    return [_box(path, where, item) for item in (value if many else [value])]


def _box(path: str | Path, where: str, value: object) -> HandBox:
    numbers, side = (value.get("box"), value.get("side")) if isinstance(value, dict) else (value, None)
    array = number_array(numbers)
    if array is None or array.shape != (4,) or min(array[2:]) <= 0 or side not in (None, "right", "left"):
        raise InputError(f"{path}: {where}: expected [left, top, width, height] in pixels with a size above 0, or "
                         f"{{\"box\": [...], \"side\": \"right\" or \"left\"}}, found {str(value)[:80]}; mend it")
    return HandBox(*array.tolist(), side)


def boxes_of(boxes: Mapping[str, list[HandBox]] | list[HandBox] | None, path: Path) -> list[HandBox] | None:
    """The boxes of one picture, None for the whole picture; InputError where a box file leaves it out."""
    if boxes is None or isinstance(boxes, list):
        return boxes
    if path.name not in boxes:
        raise InputError(f"{path}: the box file has no entry {path.name!r}; it has {', '.join(sorted(boxes)[:3]) or 'none'}...; "
                         "add it, or set demo.boxes=null for whole pictures")
    return boxes[path.name]


class CameraSource:
    """Where camera matrices come from: one file for all, one matrix per picture, a stated field of view, or nominal."""

    def __init__(self, K: str | None, fov: float | None):
        if K is not None and fov is not None:
            raise InputError("demo.K and demo.fov are both given; a camera matrix says the field of view already: leave one out")
        self.path, self.fov = None if K is None else Path(K), fov
        self.table: object = None
        if self.path is not None and not self.path.is_dir():
            self.table = _read_K_file(self.path)

    def camera(self, picture: Path, height: int, width: int) -> Camera:
        """The camera of one picture of this size."""
        if self.path is None:
            longer = max(height, width)
            focal, words = float(longer), "nominal: focal length = longer side of the picture"
            if self.fov is not None:
                focal = longer / 2 / np.tan(np.radians(self.fov) / 2)
                words = f"stated field of view: {self.fov:g} degrees across the longer side"
            return Camera(np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]]), words)
        if self.path.is_dir():
            file = self._beside(picture)
            value = _read_K_file(file)
        else:
            file, value = self.path, self.table
        if isinstance(value, dict):
            if picture.name not in value:
                raise InputError(f"{file}: no camera matrix of {picture.name!r}; it has {', '.join(sorted(value)[:3])}; add it")
            value = value[picture.name]
        return Camera(_checked_K(file, value), f"file {file}")

    def _beside(self, picture: Path) -> Path:
        stems = [picture.stem, f"{picture.stem}_K", f"{picture.stem.removesuffix('_img')}_K"]
        names = [stem + suffix for stem in stems for suffix in (".npy", ".json")]
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise InputError(f"{self.path}: no camera matrix for {picture.name}; expected one of {', '.join(names)}")


def _read_K_file(path: Path) -> object:
    """A .npy array, or the json value (a matrix, {"K": matrix}, or {"a.jpg": matrix})."""
    require_file(path, "demo.K: name a .json or .npy file with a 3 x 3 camera matrix, or a folder of them")
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path}: expected an array of numpy, found a file that breaks ({error}); save K again") from error
    value = read_json(path, "write K as a 3 x 3 list")
    return value["K"] if isinstance(value, dict) and "K" in value else value


def _checked_K(path: Path, value: object) -> np.ndarray:
    K = number_array(value)
    if K is None or K.shape != (3, 3) or K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or not np.array_equal(K[2], (0, 0, 1)):
        found = str(value.tolist() if isinstance(value, np.ndarray) else value)[:90]
        raise InputError(f"{path}: expected a camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels with fx, fy > 0, "
                         f"found {found}; save K again")
    return K
