"""Pictures and masks of a dataset on their way into a prepared folder: decoded, checked, cut square, encoded.

The crop is a square around the hand's box, side `factor` times the box's longer side, moved and widened to whole pixels, black
outside the picture. Seed: the original rounded each edge of the box by itself, so its crops were non-square by a pixel and up to
half a pixel off their labels; here the crop's place is kept in whole pixels and every later map starts from it exactly.
No torch in here: a worker process starts in a fraction of a second and stays small.
"""
from pathlib import Path

import cv2
import numpy as np

LARGEST = 4  # times the picture's longer side: a larger crop is a hand at the lens, and mostly black
PNG = b"\x89PNG\r\n\x1a\n"


class Excluded(Exception):
    """This picture is left out, for the reason given."""


class Broken(Exception):
    """A file of this picture cannot be used: a short reason to count, and the line to print."""

    def __init__(self, reason: str, line: str):
        super().__init__(line)
        self.reason = reason


def decode(path: Path, width: int | None = None, height: int | None = None, what: str = "picture",
           flags: int = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
           resize: str = "set dataset.width and dataset.height to what the tree has") -> np.ndarray:
    """A JPEG or PNG file, (height, width, 3) BGR uint8 unless `flags` say otherwise (None: any size).

    Raises Broken: missing, cut off, no such file, another size. what: how messages call it ("picture", "mask") · resize: what
    to do about another size.
    """
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise Broken(f"{what} missing", f"{path}: expected a {what}, found nothing; unpack the archive again") from error
    except OSError as error:
        raise Broken(f"{what} broken", f"{path}: cannot be read ({error.strerror}); unpack it again") from error
    head, tail = data[:8].tobytes(), data[-64:].tobytes()
    if not head.startswith(PNG if kind == "PNG" else b"\xff\xd8"):
        raise Broken(f"{what} broken", f"{path}: expected a {kind}, "
                                       f"found {'an empty file' if not len(data) else 'another kind of file'}; unpack it again")
    # The decoder fills a cut-off picture with grey and says nothing; a whole one ends with an end-of-image mark.
    if (b"IEND" if kind == "PNG" else b"\xff\xd9") not in tail:
        raise Broken(f"{what} broken", f"{path}: expected a whole {kind}, found one cut off after {len(data)} bytes; "
                                       "unpack it again")
    image = cv2.imdecode(data, flags)
    if image is None:
        raise Broken(f"{what} broken", f"{path}: expected a {kind}, found one that cannot be decoded; unpack it again")
    if width and image.shape[:2] != (height, width):
        raise Broken(f"{what} of another size", f"{path}: expected {width}x{height} pixels, "
                                                f"found {image.shape[1]}x{image.shape[0]}; {resize}")
    return image


def box_of(uv: np.ndarray) -> np.ndarray:
    """(3) centre x, y and longer side of the box around points (n,2), pixels."""
    low, high = uv.min(0).astype(np.float64), uv.max(0).astype(np.float64)
    return np.array([*(low + high) / 2, (high - low).max()])


def require_seen(box: np.ndarray, low: np.ndarray, high: np.ndarray, width: int, height: int, factor: float, path: Path) -> None:
    """Excluded: the points between `low` and `high` lie outside the picture, or their crop is huge. Broken: they span nothing."""
    unseen = (high < -0.5).any() or (low > (width - 0.5, height - 0.5)).any()
    if unseen or box[2] * factor > LARGEST * max(width, height):
        raise Excluded("the hand outside the picture")
    if box[2] < 1:
        raise Broken("box empty", f"{path}: expected 2D joints spread over a hand, found all of them within a pixel; "
                                  "unpack the file again")


def stored_square(box: np.ndarray, factor: float) -> np.ndarray:
    """(3) left, top and side in whole pixels of a square that covers the box's crop. Pixel i spans i - 0.5 to i + 0.5."""
    side = factor * box[2]
    left, top = np.floor(box[:2] - side / 2 + 0.5)
    return np.array([left, top, np.ceil(side) + 1], np.int64)


def cut(image: np.ndarray, stored: np.ndarray, pixels: int | None) -> np.ndarray:
    """The stored square of a picture (h,w[,3]), black outside it, at its native size or resized to `pixels`."""
    height, width = image.shape[:2]
    left, top, side = (int(x) for x in stored)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    crop = image[y0:y1, x0:x1]
    if crop.shape[:2] != (side, side):
        crop = cv2.copyMakeBorder(crop, y0 - top, top + side - y1, x0 - left, left + side - x1, cv2.BORDER_CONSTANT, value=0)
    if pixels:
        crop = cv2.resize(crop, (pixels, pixels), interpolation=cv2.INTER_AREA if side > pixels else cv2.INTER_LINEAR)
    return crop


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """A picture (h,w,3) BGR as JPEG bytes."""
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def mask_png(mask: np.ndarray) -> bytes:
    """A mask (h,w), above 127 = hand, as the bytes of a PNG with one bit per pixel."""
    binary = np.where(mask > 127, 255, 0).astype(np.uint8)
    return cv2.imencode(".png", binary, (cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 3))[1].tobytes()
