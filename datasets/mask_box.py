"""The hand's box in a mask, as CMR takes it for training pictures of FreiHAND (specs/cmr_boukhayma_metro.md 3.3).

The box is that of the largest piece of the mask. Stored is the piece's convex hull: the box of the turned mask follows from it
for any angle, on the device (datasets/augment.py), without turning the mask. The evaluation has no masks: CMR cuts 130 of 224
pixels about the picture's middle there, which at its factor of 1.3 is a box of 100 pixels. Pixels as in utils/camera.py: pixel i
covers i - 0.5 to i + 0.5. Seed: the original's box is half a pixel to the right and below (x + w / 2).
No torch in here: processes of `prepare` import it.
"""
import cv2
import numpy as np

from utils.contour import largest_contour

HULL = 64  # points of a stored hull; one that has fewer repeats its last
ABOVE = 240  # of 255: hand, as the original takes its lossy masks
SMALLEST = 8  # pixels of the box's longer side: what is less is dust of the JPEG
EVALUATION_SIDE = 100.0  # pixels of the 224: the original's 130 are 1.3 times that
_TURNS = np.linspace(0, 2 * np.pi, HULL, endpoint=False)
_DIRECTIONS = np.stack([np.cos(_TURNS), np.sin(_TURNS)])


def hull_of(mask: np.ndarray) -> np.ndarray | None:
    """(HULL,2) int16, pixels x, y on the convex hull of the largest piece of a mask (h,w) uint8, not 0 = hand; None: no hand.

    A hull of more corners, which no hand has, is reduced to those that are outermost in HULL directions.
    """
    if (outline := largest_contour(mask)) is None:
        return None
    hull = cv2.convexHull(outline)[:, 0]
    if len(hull) > HULL:
        hull = hull[np.unique((hull @ _DIRECTIONS).argmax(0))]
    return np.pad(hull, ((0, HULL - len(hull)), (0, 0)), "edge").astype(np.int16)


def square_hull(centre: float, side: float) -> np.ndarray:
    """(HULL,2) int16: the corner pixels of an upright square, for a picture whose box is known without a mask."""
    low, high = centre - side / 2 + 0.5, centre + side / 2 - 0.5
    corners = np.array([[low, low], [high, low], [high, high], [low, high]])
    return np.pad(corners, ((0, HULL - 4), (0, 0)), "edge").round().astype(np.int16)


def box_of_hull(hull: np.ndarray) -> np.ndarray:
    """(3) centre x, y and longer side of the upright box of a hull (n,2), to the outer edges of its pixels."""
    low, high = hull.min(0).astype(np.float64), hull.max(0).astype(np.float64)
    return np.array([*(low + high) / 2, (high - low).max() + 1])
