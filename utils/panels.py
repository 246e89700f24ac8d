"""One hand in five panels, as CMR shows it, for any method: silhouette, 2D pose, projected mesh, and mesh and pose in metres.

Spec cmr_boukhayma_metro 5.1. Pixels and camera axes as in utils/camera.py, RGB. What a method does not predict is taken from its
mesh or joints, and a caption says so. Seed: the original drew with five matplotlib figures, by far the slowest part of its
evaluation, and handed BGR to RGB, so that its red was blue; here numpy, cv2 and the rasteriser draw, in the right colours.
"""
from typing import NamedTuple

import cv2
import numpy as np

from utils.contour import largest_contour
from utils.panels_3d import bones_in_space, mesh_in_space, space, view_of
from utils.panels_draw import BITS, Layer, bones, caption, dense, fixed, mesh_layer, thick, thinned

SIZE = 224
HAND_FROM = 0.3  # chance from which a cell of a mask is hand, as where the silhouette places the mesh
MASK_RGB = (255, 0, 0)
NEAR_M = 1e-3


class Notes(NamedTuple):
    """What the captions say besides: of the place of the projected mesh, and of the camera."""

    place: str = ""
    camera: str = ""


def five_panels(picture: np.ndarray, mask: np.ndarray | None, uv: np.ndarray | None, verts: np.ndarray, joints: np.ndarray,
                faces: np.ndarray, K: np.ndarray, size: int = SIZE, *, contour: np.ndarray | None = None, absolute: bool = True,
                notes: Notes = Notes()) -> np.ndarray:
    """(size, 5 size, 3) uint8 RGB: silhouette, 2D joints, projected mesh, mesh and joints in the camera's space.

    picture (s,s,3) uint8, the network's crop · mask (h,w) over the crop, chances or 0/1, None: the mesh's own silhouette ·
    uv (21,2) pixels of `picture`, T21 order, None: the projected joints · verts (v,3), joints (21,3) metres in the camera ·
    faces (f,3) counter-clockwise from outside · K (3,3) of `picture` · contour (n,2) or (n,1,2) pixels of `picture`, drawn in
    place of the mask's own · absolute: whether the hand's place is known; else the space is about the wrist, and says so.
    """
    verts, joints, K = (np.asarray(value, np.float64) for value in (verts, joints, K))
    scale = size / picture.shape[0]
    to_panel = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]])
    K = to_panel @ K
    photo = np.ascontiguousarray(picture) if scale == 1 else cv2.resize(
        picture, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    layer = _projected(verts, faces, K, size)
    flat = [
        _silhouette(photo, mask, None if contour is None else _moved(to_panel, np.reshape(contour, (-1, 2))), layer),
        _pose(photo, None if uv is None else _moved(to_panel, np.asarray(uv, np.float64)), joints, K),
        _captioned(layer.over(photo, 0.92), notes.place)]
    panels = [*flat, *_spaces(verts, joints, faces, K, size, absolute, notes.camera)]
    row = np.concatenate(panels, 1)
    row[:, [k * size + side for k in range(1, 5) for side in (-1, 0)]] = 255  # a seam between pictures
    return row


def _silhouette(photo: np.ndarray, mask: np.ndarray | None, contour: np.ndarray | None, mesh: Layer) -> np.ndarray:
    """The mask in red at half weight, and the outline of its largest part, which is what places a hand."""
    size, words = len(photo), ""
    if mask is None:
        hand, words = (mesh.cover > 0.5).astype(np.float32), "from the mesh"
    else:
        hand = (np.asarray(mask, np.float32) > HAND_FROM).astype(np.float32)
        hand = cv2.resize(hand, (size, size), interpolation=cv2.INTER_LINEAR)
        words = "" if hand.any() else "empty mask"
    inside = hand > 0.5
    panel = photo.copy()
    panel[inside] = (panel[inside].astype(np.uint16) + np.uint16(MASK_RGB)) // 2
    if contour is None:
        contour = largest_contour(inside.astype(np.uint8))
    canvas = thick(panel)
    if contour is not None and len(contour):
        line = max(1, round(2 * size / SIZE * len(canvas) / size))
        cv2.polylines(canvas, [fixed(dense(contour))], True, MASK_RGB, line, cv2.LINE_AA, BITS)
    caption(canvas, words, size / SIZE, dark=True)
    return thinned(canvas)


def _pose(photo: np.ndarray, uv: np.ndarray | None, joints: np.ndarray, K: np.ndarray) -> np.ndarray:
    """The skeleton in the picture, one colour per finger."""
    unit, words = len(photo) / SIZE, ""
    if uv is None:
        uv, words = _pixels(joints, K), "projected from 3D"
    canvas = thick(photo)
    bones(canvas, uv, width=3 * unit, radius=6 * unit)
    caption(canvas, words, unit, dark=True)
    return thinned(canvas)


def _projected(verts: np.ndarray, faces: np.ndarray, K: np.ndarray, size: int) -> Layer:
    """The mesh as the camera sees it; nothing where it does not lie in front of it."""
    if not (np.isfinite(verts).all() and (verts[:, 2] > NEAR_M).all()):
        return Layer(np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32))
    return mesh_layer(_pixels(verts, K), verts[:, 2], verts, faces, size)


def _spaces(verts: np.ndarray, joints: np.ndarray, faces: np.ndarray, K: np.ndarray, size: int, absolute: bool,
            note: str) -> list[np.ndarray]:
    """The two panels in metres: one view, drawn once, for both."""
    if not absolute:
        verts, joints, note = verts - joints[0], joints - joints[0], "relative to the wrist"
    view = view_of(np.concatenate([verts, joints]), size, camera=absolute)
    base = space(view, size)
    caption(base, note, size / SIZE, dark=False)
    return [mesh_in_space(view, base, verts, faces, K, size), bones_in_space(view, base, joints, K, size)]


def _captioned(panel: np.ndarray, words: str) -> np.ndarray:
    canvas = thick(panel)
    caption(canvas, words, len(panel) / SIZE, dark=True)
    return thinned(canvas)


def _pixels(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(n,2) pixels of points (n,3) in the camera; NaN where they do not lie in front of it."""
    seen = points @ K.T
    ahead = seen[:, 2:] > NEAR_M
    return np.where(ahead, seen[:, :2] / np.where(ahead, seen[:, 2:], 1), np.nan)


def _moved(B_from_A: np.ndarray, at: np.ndarray) -> np.ndarray:
    return at @ B_from_A[:2, :2].T + B_from_A[:2, 2]

