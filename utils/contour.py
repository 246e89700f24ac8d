"""The outline of what a mask shows. No torch in here: processes that only read files import it."""
import cv2
import numpy as np


def largest_contour(mask: np.ndarray) -> np.ndarray | None:
    """(n,2) int32 pixels (x, y) of the largest outer contour of a mask (h,w) of bytes, not 0 = inside; None where nothing
    encloses an area. Straight runs are given by their ends. Seed: specks without area are no hand, where CMR takes them."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    return None if largest is None or cv2.contourArea(largest) == 0 else largest[:, 0]
