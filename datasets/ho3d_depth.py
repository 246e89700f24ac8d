"""HO3D's depth pictures: 16 bits in two channels of an 8-bit PNG, low byte red, high byte green (specs/datasets.md 1.3).

Seed: the official line multiplies bytes by 256, which numpy 2 refuses to do; bytes become whole numbers first here. (RHD's depth
has the bytes the other way round.)
"""
from pathlib import Path

import cv2
import numpy as np

from datasets.pictures import Broken, decode
from utils.errors import InputError

UNIT_M = 0.00012498664727900177


def read_depth(path: str | Path) -> np.ndarray:
    """A depth picture as metres along z (h,w) float32, 0 = none. Raises InputError: missing, broken, not 8-bit RGB."""
    try:
        image = decode(Path(path), what="depth picture", flags=cv2.IMREAD_UNCHANGED)
    except Broken as error:
        raise InputError(str(error)) from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"{path}: expected 3 channels of 8 bits (red: low byte, green: high byte), found {image.shape} "
                         f"{image.dtype}; this is no depth picture of HO3D's")
    blue_green_red = image.astype(np.int64)
    return ((blue_green_red[..., 2] + 256 * blue_green_red[..., 1]) * UNIT_M).astype(np.float32)
