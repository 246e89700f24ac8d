"""CMR's preparation of a FreiHAND training sample as the original does it (specs/cmr_boukhayma_metro.md 3.3), for comparison.

Written from the spec; tests/test_freihand_cmr.py checks it against the original's own outputs, then ours against it. Pictures are
uint8, angles degrees; OpenCV's angles turn against the clock.
"""
from typing import NamedTuple

import cv2
import numpy as np

SIZE = 224
MIDDLE = 112.0


class Crop(NamedTuple):
    """image (224,224,3) and mask (224,224) uint8 · K (3,3) · uv (21,2) · xyz (21,3) · verts (v,3) · corners x0, y0, x1, y1."""

    image: np.ndarray
    mask: np.ndarray
    K: np.ndarray
    uv: np.ndarray
    xyz: np.ndarray
    verts: np.ndarray
    corners: tuple[int, int, int, int]


def original_crop(image: np.ndarray, mask: np.ndarray, K: np.ndarray, uv: np.ndarray, xyz: np.ndarray, verts: np.ndarray,
                  angle: float, amplify: float, shift: tuple[float, float]) -> Crop:
    """The original's training sample for given draws: whole-pixel corners, no half pixel in uv, K turned about (112, 112)."""
    if angle:
        turn = cv2.getRotationMatrix2D((MIDDLE, MIDDLE), angle, 1)
        image, mask = (cv2.warpAffine(x, turn, (SIZE, SIZE)) for x in (image, mask))
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        plane = np.array([[c, s], [-s, c]])
        uv = (uv - MIDDLE) @ plane.T + MIDDLE
        xyz, verts = (np.concatenate([x[:, :2] @ plane.T, x[:, 2:]], 1) for x in (xyz, verts))
    pieces, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = cv2.boundingRect(max(pieces, key=cv2.contourArea))
    half = max(w, h) / 2 * (1.3 + 0.2 * amplify)
    cx, cy = x + w / 2 + shift[0] * (half - w / 2), y + h / 2 + shift[1] * (half - h / 2)
    x0, y0, x1, y1 = (int(v) for v in (cx - half, cy - half, cx + half, cy + half))
    across, down = (SIZE - 1) / (x1 - x0), (SIZE - 1) / (y1 - y0)
    affine = np.array([[across, 0, -across * x0], [0, down, -down * y0]])
    image, mask = (cv2.warpAffine(v, affine, (SIZE, SIZE)) for v in (image, mask))
    scale, K = SIZE / 2 / half, K.copy()
    K[:2, :2] *= scale
    K[:2, 2] = scale * (K[:2, 2] - (x0, y0) + 0.5) - 0.5
    return Crop(image, mask, K, (uv - (x0, y0)) * scale, xyz, verts, (x0, y0, x1, y1))


def original_colour(seed: int) -> tuple[float, float, float, float]:
    """Brightness added (of 255), factors of contrast and saturation, degrees of hue: its draws after numpy's seed(seed)."""
    draw = np.random.RandomState(seed)
    brightness = draw.uniform(-32, 32) if draw.randint(2) else 0.0
    early = draw.randint(2)
    contrast = draw.uniform(0.5, 1.5) if early == 1 and draw.randint(2) else 1.0
    saturation = draw.uniform(0.5, 1.5) if draw.randint(2) else 1.0
    hue = draw.uniform(-18, 18) if draw.randint(2) else 0.0
    if early == 0 and draw.randint(2):
        contrast = draw.uniform(0.5, 1.5)
    return brightness, contrast, saturation, hue
