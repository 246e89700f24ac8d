"""Focal length in pixels from what a camera wrote into its picture (EXIF 2.32; CIPA DC-008).

FocalLengthIn35mmFilm is the focal length that sees the same *diagonal* angle on 36 x 24 mm film (diagonal 43.27 mm). Else
FocalLength over the pixel pitch (FocalPlaneXResolution pixels per unit). Both speak of the picture as recorded; one resized since
is scaled along, one cropped since (of another shape than the recorded one) says nothing. The principal point is not in EXIF.
"""
import math
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

IFD = 0x8769  # where cameras put the tags below
FOCAL_MM, FOCAL_35MM, WIDTH, HEIGHT = 0x920A, 0xA405, 0xA002, 0xA003
PLANE_X, PLANE_UNIT = 0xA20E, 0xA210
MM_OF_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
FILM_DIAGONAL_MM = math.hypot(36, 24)
ASPECT_SLACK = 0.02
FOCAL_RANGE = (0.2, 50.0)  # of the picture's longer side: beyond a fisheye's and a telescope's, the numbers are wrong


class ExifFocal(NamedTuple):
    """Focal length in pixels of the picture as it is now, or None, and in words how it is known or why it is not."""

    pixels: float | None
    words: str


def exif_focal(path: Path, height: int, width: int) -> ExifFocal:
    """The focal length of the picture in this file, height x width pixels as shown."""
    try:
        with warnings.catch_warnings(action="error"):  # Pillow warns of a damaged block and goes on without it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixels are not decoded
            with Image.open(path) as picture:
                tags = picture.getexif()
                inner = tags.get_ifd(IFD)
    # A damaged header breaks Pillow's reader in any of these ways.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError,
            ArithmeticError, AttributeError, EOFError, MemoryError, Warning, Image.DecompressionBombError) as error:
        return ExifFocal(None, f"its EXIF is unreadable ({type(error).__name__}: {error})")
    if not inner:
        return ExifFocal(None, "no EXIF in the file" if not tags else "its EXIF says nothing of the lens")
    recorded = _recorded(inner)
    longer = max(height, width)
    if recorded and abs(max(recorded) / min(recorded) / (longer / min(height, width)) - 1) > ASPECT_SLACK:
        return ExifFocal(None, f"its EXIF is of a {recorded[0]:g}x{recorded[1]:g} picture, this one was cropped since")
    focal, words = _focal(inner, height, width, recorded)
    if focal is not None and not FOCAL_RANGE[0] * longer < focal < FOCAL_RANGE[1] * longer:
        return ExifFocal(None, f"its EXIF is not believable ({words})")
    return ExifFocal(focal, words)


def _recorded(tags: dict) -> tuple[float, float] | None:
    """Width and height that the camera recorded."""
    sides = _number(tags.get(WIDTH)), _number(tags.get(HEIGHT))
    return sides if sides[0] and sides[1] else None


def _focal(tags: dict, height: int, width: int, recorded: tuple[float, float] | None) -> tuple[float | None, str]:
    if film := _number(tags.get(FOCAL_35MM)):  # 0 says that it is unknown
        return film * math.hypot(height, width) / FILM_DIAGONAL_MM, f"FocalLengthIn35mmFilm {film:g} mm"
    lens, per_unit = _number(tags.get(FOCAL_MM)), _number(tags.get(PLANE_X))
    unit = MM_OF_UNIT.get(tags.get(PLANE_UNIT, 2))
    if not lens or not per_unit or unit is None:
        return None, "its EXIF gives no focal length that pixels follow from"
    resized = max(height, width) / max(recorded) if recorded else 1.0
    return lens * per_unit / unit * resized, f"FocalLength {lens:g} mm at {per_unit / unit:.4g} pixels per mm"


def _number(value: object) -> float | None:
    """A tag as a positive, finite number, None for anything else (rationals with denominator 0 are NaN)."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
