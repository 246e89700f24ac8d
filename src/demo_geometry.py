"""The demo's geometry: the crop of a hand's box, and where in the camera's space a hand without a predicted root is drawn.

Conventions of utils/camera.py. A left hand's picture is mirrored first, so everything here is about right hands; `Cut` keeps
what is needed to come back.
"""
import logging
from typing import NamedTuple

import cv2
import numpy as np
import torch

from src.demo_input import HandBox
from utils.camera import K_of_crop, K_of_mirror, crop_matrix

log = logging.getLogger(__name__)
NEAREST_M = 0.02  # no joint is placed nearer to the camera than this
SEEN_PX = 0.5  # what is less off is not worth a word
STEPS, STEP = 200, 0.6  # whole steps overshoot where parts of the hand are twice as near as others


class Cut(NamedTuple):
    """A crop and its geometry, in pixels of the picture, mirrored first where `mirrored`.

    image (pixels,pixels,3) uint8 · K_full, K, crop_from_image (3,3) float64 · centre (2) and hand_side: where the box of the
    joints lies, and the longer of its sides · mirrored: the hand is a left one.
    """

    image: np.ndarray
    K_full: np.ndarray
    K: np.ndarray
    crop_from_image: np.ndarray
    centre: np.ndarray
    hand_side: float
    mirrored: bool


def cut_hand(picture: np.ndarray, K: np.ndarray, box: HandBox | None, side: str, *, factor: float, pixels: int,
             antialias: bool) -> Cut:
    """The crop a network sees: a square of `factor` times the box's longer side about its middle, black outside the picture.

    Without a box the picture is the crop, and its hand is taken to fill 1/factor of the longer side, as in training.
    """
    height, width = picture.shape[:2]
    if box is None:
        box = HandBox(-0.5, -0.5, width, height)
        hand_side = max(width, height) / factor
    else:
        hand_side = max(box.width, box.height)
    centre = np.array([box.left + box.width / 2, box.top + box.height / 2])
    mirrored = side == "left"
    if mirrored:
        picture = picture[:, ::-1]
        centre[0] = width - 1 - centre[0]
        K = K_of_mirror(torch.from_numpy(K), width).numpy()
    crop_from_image = crop_matrix(torch.from_numpy(centre), torch.tensor(hand_side * factor, dtype=torch.float64), pixels)
    return Cut(sample(picture, crop_from_image.numpy(), pixels, antialias), K,
               K_of_crop(torch.from_numpy(K), crop_from_image).numpy(), crop_from_image.numpy(), centre, hand_side, mirrored)


def sample(picture: np.ndarray, crop_from_image: np.ndarray, pixels: int, antialias: bool) -> np.ndarray:
    """(pixels,pixels,3) uint8 of the picture under a scaling map; where that shrinks, `antialias` averages k x k samples each."""
    shrink = 1 / crop_from_image[0, 0]
    k = max(1, int(np.ceil(shrink))) if antialias else 1
    # About the corner, as scaling acts on pixel centres: p -> (p + 0.5) k - 0.5.
    finer = np.array([[k, 0, 0.5 * k - 0.5], [0, k, 0.5 * k - 0.5], [0, 0, 1.0]]) @ crop_from_image
    fine = cv2.warpAffine(np.ascontiguousarray(picture), finer[:2], (k * pixels, k * pixels), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return fine if k == 1 else cv2.resize(fine, (pixels, pixels), interpolation=cv2.INTER_AREA)


def place_by_box(joints: np.ndarray, K: np.ndarray, centre: np.ndarray, hand_side: float,
                 where: object) -> np.ndarray:
    """Root (3) in metres at which the projected joints' box has its middle at `centre` and `hand_side` as its longer side.

    joints (21,3) wrist-relative, metres, camera axes. A stated placement for drawing, not an estimate of where the hand is: its
    depth is as good as the box, K and the hand's size together. Found by weak-perspective steps, to 1e-9 px. where: names the
    picture in a warning, given where a hand near the camera is SEEN_PX or more off its box's middle or size.
    """
    extent = np.ptp(joints[:, :2], axis=0)
    near = NEAREST_M - joints[:, 2].min()
    depth = max(near, float((np.diag(K)[:2] * extent).max()) / hand_side)
    root = np.array([0.0, 0.0, depth])
    for _ in range(STEPS):
        rays = (joints + root) @ K.T
        uv = rays[:, :2] / rays[:, 2:]
        low, high = uv.min(0), uv.max(0)
        ratio = (high - low).max() / hand_side
        off = centre - (low + high) / 2
        depth = max(near, root[2] * ratio**STEP)
        # The middle's ray at the new depth, as the picture shrinks about the principal point.
        root = np.array([*((root[:2] / root[2] + STEP * off / np.diag(K)[:2]) * depth), depth])
        if abs(ratio - 1) * hand_side < 1e-9 and np.abs(off).max() < 1e-9:
            return root
    aside, larger = float(np.abs(off).max()), float(abs(ratio - 1) * hand_side)
    told = [f"drawn {aside:.1f} px off"] * (aside >= SEEN_PX) + [f"{ratio:.2f} times its size"] * (larger >= SEEN_PX)
    if told:
        log.warning("%s: a hand so near that it does not fit its box: %s; are the box and K right?", where, ", ".join(told))
    return root
