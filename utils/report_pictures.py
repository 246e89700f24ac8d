"""Overlays of report.html: the best, median and worst frames of a run, with truth and predictions drawn where the hand is.

Every hand is drawn with its wrist at the *true* place, so that a picture shows what the headline numbers measure (wrists aligned)
and methods without a wrist position can be drawn at all. Pictures of left hands are mirrored, like everything about them.
"""
import base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from utils.camera import crop_matrix
from utils.joints import T21_PARENTS
from utils.predictions import Predictions
from utils.render import overlay

TILE = 224  # pixels
MARGIN = 1.5  # side of the window over the longer side of the projected hand
TRUTH_RGB, PRED_RGB = (0.62, 0.80, 0.62), (0.55, 0.68, 0.92)
JPEG_QUALITY = 88

PictureOf = Callable[[int], Any]  # reader row -> (image (h,w,3) uint8 RGB, K (3,3) of it, ...)


class Choice(NamedTuple):
    """A frame to show: `kind` best, median or worst · row in the predictions file · its error."""

    kind: str
    row: int
    error: float


class Tiles(NamedTuple):
    """One frame's pictures as data URIs: the picture, with the truth, with each run's prediction."""

    picture: str
    truth: str
    preds: list[str]


def choose(error: np.ndarray, names: Sequence[str], count: int) -> list[Choice]:
    """A third each of best, median and worst rows; not two frames of one folder (video) of a kind where there are others."""
    known = np.flatnonzero(np.isfinite(error))
    order = known[np.argsort(error[known], kind="stable")]
    middle = len(order) // 2
    from_middle = order[np.argsort(np.abs(np.arange(len(order)) - middle), kind="stable")]
    chosen: list[Choice] = []
    each = max(1, count // 3) if count else 0
    for kind, ranked in (("best", order), ("median", from_middle), ("worst", order[::-1])):
        taken = {c.row for c in chosen}
        picked: list[int] = []
        folders: set[str] = set()
        for distinct in (True, False):
            for row in ranked.tolist():
                folder = names[row].rpartition("/")[0]
                if len(picked) == each:
                    break
                if row in taken or row in picked or (distinct and folder in folders):
                    continue
                picked.append(row)
                folders.add(folder)
        chosen += [Choice(kind, row, float(error[row])) for row in sorted(picked, key=lambda r: error[r])]
    return chosen


def tiles(picture_of: PictureOf, index: int, true_verts: np.ndarray, root: np.ndarray, preds: Sequence[np.ndarray],
          faces: np.ndarray) -> Tiles:
    """Pictures of one frame: true_verts (778,3) camera, metres; root (3) true wrist; preds wrist-relative (778,3)."""
    image, K = picture_of(index)[:2]
    window = _window(true_verts, np.asarray(K, np.float64))
    crop = cv2.warpAffine(image, window[:2], (TILE, TILE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    K_crop = torch.from_numpy(window @ K)

    def drawn(verts: np.ndarray, rgb: tuple[float, float, float]) -> str:
        return data_uri(overlay(crop, torch.from_numpy(np.ascontiguousarray(verts)), faces, K_crop, rgb, alpha=0.85))

    return Tiles(data_uri(crop), drawn(true_verts, TRUTH_RGB), [drawn(verts + root, PRED_RGB) for verts in preds])


def joint_tiles(picture_of: PictureOf, index: int, K_image: np.ndarray, true: np.ndarray, preds: Sequence[np.ndarray]) -> Tiles:
    """Pictures of one frame with joints drawn: true and preds (21,2) pixels of the whole picture, whose K is K_image (3,3)."""
    image, K = picture_of(index)[:2]
    shown_from_image = np.asarray(K, np.float64) @ np.linalg.inv(K_image)  # what is shown may be a stored crop of the picture
    window = _window_of(_mapped(shown_from_image, true))
    crop = cv2.warpAffine(image, window[:2], (TILE, TILE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def drawn(uv: np.ndarray, rgb: tuple[float, float, float]) -> str:
        canvas, at = crop.copy(), np.round(16 * _mapped(window @ shown_from_image, uv)).astype(int)
        colour = tuple(255 * value for value in rgb)
        for joint, parent in enumerate(T21_PARENTS):
            if parent >= 0:
                cv2.line(canvas, at[parent].tolist(), at[joint].tolist(), colour, 2, cv2.LINE_AA, shift=4)
        for point in at.tolist():
            cv2.circle(canvas, point, 3 * 16, colour, -1, cv2.LINE_AA, shift=4)
        return data_uri(canvas)

    return Tiles(data_uri(crop), drawn(true, TRUTH_RGB), [drawn(uv, PRED_RGB) for uv in preds])


def true_hand(predictions: Predictions, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(778,3) true vertices in the camera and (3) true wrist joint of a row, metres, float64."""
    return (np.asarray(predictions["true_verts"][row], np.float64), np.asarray(predictions["true_joints"][row, 0], np.float64))


def data_uri(image: np.ndarray) -> str:
    """RGB picture as a data URI (JPEG)."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"a picture of shape {image.shape} could not be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _window(verts: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(3,3) tile_from_image: a square about the projected hand."""
    projected = verts @ K.T
    return _window_of(projected[:, :2] / projected[:, 2:])


def _window_of(uv: np.ndarray) -> np.ndarray:
    """(3,3) tile_from_image: a square about points of the picture."""
    low, high = uv.min(0), uv.max(0)
    side = MARGIN * max(float((high - low).max()), 1.0)
    return crop_matrix(torch.from_numpy((low + high) / 2), torch.tensor(side, dtype=torch.float64), TILE).numpy()


def _mapped(B_from_A: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """(n,2) pixels of A as pixels of B."""
    mapped = uv @ B_from_A[:, :2].T + B_from_A[:, 2]
    return mapped[:, :2] / mapped[:, 2:]
