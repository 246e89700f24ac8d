"""Reading stored crops: at the size that is wanted, placed in the whole picture; and pictures to draw on, for reports.

What the readers of prepared folders share, whatever their labels.
"""
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.augment import CropOptions
from datasets.cache import Crops
from datasets.pictures import Broken, decode
from datasets.reader import Picture, Raw
from utils.camera import K_of_mirror, crop_matrix, mirror_matrix
from utils.errors import InputError


def read_stored(store: Crops, row: int, pixels: int, antialias: bool, name: Callable[[], str],
                flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """A stored picture or mask at the size that is read. InputError with the sample's name where it cannot be decoded."""
    image = cv2.imdecode(store[row], flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"{name()}: its crop in {store.path} cannot be decoded; remove the folder and prepare again")
    if image.shape[0] != pixels:
        shrinks = antialias and image.shape[0] > pixels
        image = cv2.resize(image, (pixels, pixels), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def placed(stored: np.ndarray, K: np.ndarray, pixels: int) -> Raw:
    """stored_from_image (3,3) of a crop of `pixels` whose left, top and side (3) are whole pixels of the picture; K (3,3)."""
    left, top, side = (int(x) for x in stored)
    fx, fy, cx, cy = K
    scale = pixels / side
    x, y = (0.5 - left) * scale - 0.5, (0.5 - top) * scale - 0.5  # where the picture's pixel (0, 0) falls
    return {"K": np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32),
            "stored_from_image": np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])}


def whole_picture(raw: Raw, path: Path, width: int, height: int, crop: CropOptions) -> Picture:
    """The whole picture where the dataset is at hand, else the stored crop; mirrored as the sample is."""
    K, box = torch.from_numpy(raw["K"]).double(), torch.from_numpy(raw["box"]).double()
    place = crop_matrix(box[:2], box[2] * crop.factor, crop.pixels)
    try:
        image = decode(path, width, height)[..., ::-1]
    except Broken:
        image, stored = raw["image"], torch.from_numpy(raw["stored_from_image"])
        K, place = stored @ K, place @ torch.linalg.inv(stored)
    if raw["mirrored"]:
        width = image.shape[1]
        image, K = image[:, ::-1], K_of_mirror(K, width)
        place = mirror_matrix(crop.pixels, K) @ place @ mirror_matrix(width, K)
    return Picture(np.ascontiguousarray(image), K.float().numpy(), place.float().numpy())
