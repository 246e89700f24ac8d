"""The outline of a predicted mask, and its extents along twelve axes (Chen et al., CMR, CVPR 2021; spec cmr 4).

A map of c x c probabilities becomes a mask of the crop's pixels (threshold, bilinear enlarging, threshold at one half); its
largest outer contour is the hand's silhouette, and the least and greatest coordinate of the contour along each axis, 24 numbers
in pixels of the crop (pixel centres whole), are what the registration compares with the mesh.
Seed: with OpenCV from 4.5.4 on the original loses every contour, because it sorts a tuple in place inside a bare except.
"""
import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.contour import largest_contour

# Degrees, in pairs at right angles: the original's 6 rows of [least, greatest, least, greatest], flattened, are our 24 numbers.
ANGLES = (0, 90, -15, 75, -30, 60, -45, 45, -60, 30, -75, 15)
AXES = np.array([(math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in ANGLES])
THRESHOLD = 0.3  # of a mask's probability


def extents(points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b 24"]:
    """Least and greatest coordinate along each of the twelve axes; differentiable. Unit of the points."""
    along = points @ torch.as_tensor(AXES, dtype=points.dtype, device=points.device).T
    return torch.stack((along.amin(-2), along.amax(-2)), -1).flatten(-2)


def enlarged(mask: Float[Tensor, "b c c"], size: int, threshold: float = THRESHOLD) -> Bool[Tensor, "b s s"]:
    """Masks of the crop's size x size pixels, as the original: thresholded, enlarged as bytes, so rounded at one half."""
    return torch.from_numpy(_bytes(mask, size, threshold)).to(mask.device) > 0


def contours_of_masks(mask: Float[Tensor, "b c c"], size: int, threshold: float = THRESHOLD) -> list[np.ndarray | None]:
    """`largest_contour` of each of a batch of probability maps, in pixels of a crop of `size`."""
    return [largest_contour(one) for one in _bytes(mask, size, threshold)]


def extents_of_masks(mask: Float[Tensor, "b c c"], size: int, threshold: float = THRESHOLD,
                     ) -> tuple[Float[Tensor, "b 24"], Bool[Tensor, "b"]]:
    """(extents in pixels of the crop, float64, zero where there is no contour; whether there is one), on the mask's device."""
    found = contours_of_masks(mask, size, threshold)
    has = np.array([contour is not None for contour in found], dtype=bool)
    values = np.zeros((len(found), 2 * len(ANGLES)))
    if has.any():
        outlines = [contour for contour in found if contour is not None]
        along = np.concatenate(outlines) @ AXES.T
        starts = np.cumsum([0] + [len(outline) for outline in outlines[:-1]])
        values[has, 0::2] = np.minimum.reduceat(along, starts)
        values[has, 1::2] = np.maximum.reduceat(along, starts)
    return torch.from_numpy(values).to(mask.device), torch.from_numpy(has).to(mask.device)


def _bytes(mask: Tensor, size: int, threshold: float) -> np.ndarray:
    """(b,size,size) uint8 of 0 and 1; what is not a number is outside."""
    drawn = (mask.detach() > threshold).to(torch.uint8).cpu().numpy()
    if drawn.shape[1:] == (size, size):
        return drawn
    # The original enlarges 0 and 1, which at twice the size is the same; at other sizes OpenCV would know quarters only.
    drawn, larger = drawn * np.uint8(255), np.empty((len(drawn), size, size), np.uint8)
    for one, its in zip(drawn, larger):
        cv2.resize(one, (size, size), its, interpolation=cv2.INTER_LINEAR)
    return (larger >= 128).view(np.uint8)
