"""What the demo is given: pictures and boxes of hands, checked. Cameras: src/demo_camera.py; videos: src/demo_video.py.

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
NAMED = 3  # failed pictures that a last line names


class Unfit(InputError):
    """A fault of the method or of the options, whichever the picture: it ends the run, while a picture's own fault does not."""


class HandBox(NamedTuple):
    """Box of one hand in a picture, pixels; side "right" | "left" | None where the file does not say."""

    left: float
    top: float
    width: float
    height: float
    side: str | None = None


def counted(count: int, word: str) -> str:
    """"1 picture", "2 pictures"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def first_of(faults: list[str]) -> str:
    """The first NAMED faults, and how many more there are."""
    more = f" | and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return " | ".join(faults[:NAMED]) + more


def list_pictures(source: str | Path, section: str = "demo") -> list[Path]:
    """The picture itself, or those of a folder by name; InputError (about `section`'s input) where there is none."""
    path = Path(source)
    if not str(source) or not path.exists():
        raise InputError(f"{section}.input: expected a picture, a folder of pictures or a video, found nothing at {str(source)!r}"
                         f"; set {section}.input=<file or folder>")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"{section}.input: no picture in the folder {path}; expected files ending in {', '.join(SUFFIXES)}")
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
    {"box": [...], "side": "left"}, or a list of these; or a COCO file (images, and annotations with bbox). A video's frame
    goes by its number from 0 ("12"). null or [] beside a name says that the picture has no hand.
    """
    value = read_json(path, "write boxes as [left, top, width, height]")
    if isinstance(value, dict) and "annotations" in value and "images" in value:
        return _coco(path, value)
    if isinstance(value, dict) and "box" not in value:
        return {str(name): _boxes(path, str(name), boxes) if boxes else [] for name, boxes in value.items()}
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


def boxes_of(boxes: Mapping[str, list[HandBox]] | list[HandBox] | None, path: Path,
             section: str = "demo") -> list[HandBox] | None:
    """The boxes of one picture, None for the whole picture; InputError where a box file leaves it out."""
    if boxes is None or isinstance(boxes, list):
        return boxes
    for name in names_of(path):
        if name in boxes:
            return boxes[name]
    raise InputError(f"{path}: the box file has no entry {path.name!r}; it has {', '.join(sorted(boxes)[:3]) or 'none'}...; "
                     f"add it (null where there is no hand), or set {section}.boxes=null for whole pictures")


def names_of(path: Path) -> tuple[str, ...]:
    """The names by which files of boxes and cameras may speak of a picture: a frame `000012` of a video also as `12`."""
    return (path.name, str(int(path.name))) if path.name.isdecimal() else (path.name,)
