"""The camera's space as a small picture: a box with axes in metres, the camera with its pyramid, and a mesh or skeleton in it.

Seen by a distant eye (no perspective: rotation, scale, shift) from behind the camera, to its right and above, so that the hand
shows the side that the camera sees and lies as in the picture. Camera axes (utils/camera.py): x right, y down, z forward, metres.
Seed: the original looked back at the camera from beyond the hand (elev 140, azim 80), at the side that the picture does not
show, left and right exchanged, in fixed ranges (x, y +-0.1 m, z 0..0.8 m); here the axes have one scale and follow the hand.
"""
from typing import NamedTuple

import cv2
import numpy as np

from utils.panels_draw import BITS, DENSE, INK, bones, dense, dots, fixed, mesh_layer, text, thick, thinned

ACROSS_M = 0.27  # the eye looks to the left, and the camera's axis to the hand spans about this much of the screen's width,
LEAST, MOST = 10.0, 34.0  # so that the hand stays large when far, and apart from the camera when near: within these degrees
DOWN = 0.72  # and looks down by this share of the angle
BEFORE_M = 50.0  # the eye's distance to the nearest point of what it draws; any: it sees without perspective
SQUARE_M, CAMERA_SHARE = 0.05, 0.3  # the drawn camera: side of its square, and most of the way to the hand that it takes
REACH_M = 0.1  # every axis spans at least this to either side
WALL_RGB, GRID_RGB, SHADE_RGB = (246, 247, 250), (212, 216, 224), (222, 225, 231)
CAMERA_RGB, RAY_RGB = (214, 48, 48), (226, 140, 140)


class View(NamedTuple):
    """rotation (3,3): rows are the screen's right, down and away in camera axes · scale px/m · shift (2) px · ranges (3,2) m,
    the box · camera: whether its origin is the camera (else the wrist)."""

    rotation: np.ndarray
    scale: float
    shift: np.ndarray
    ranges: np.ndarray
    camera: bool

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(...,2) panel pixels of points (...,3) in metres."""
        return self.scale * (points @ self.rotation[:2].T) + self.shift

    def depth(self, points: np.ndarray) -> np.ndarray:
        """(n) metres from the eye, which stands BEFORE_M in front of the nearest of the points (n,3)."""
        along = points @ self.rotation[2]
        return along - along.min() + BEFORE_M


def view_of(points: np.ndarray, size: int, camera: bool) -> View:
    """A view of points (n,3) in a panel of size x size, with round ranges that hold them, and the camera where there is one."""
    ranges = _ranges(points, camera)
    angle = np.clip(np.arcsin(min(1.0, ACROSS_M / np.ptp(ranges[2]))), *np.radians((LEAST, MOST)))
    rotation = _turn(-angle, DOWN * angle)
    corners = np.array([[x, y, z] for x in ranges[0] for y in ranges[1] for z in ranges[2]]) @ rotation[:2].T
    left, top, right, bottom = np.array([26, 20, 24, 28]) * size / 224
    room = np.array([size - left - right, size - top - bottom])
    extent = np.ptp(corners, axis=0)
    scale = float((room / extent).min())
    shift = np.array([left, top]) + (room - scale * extent) / 2 - scale * corners.min(0)
    return View(rotation, scale, shift, ranges, camera)


def _ranges(points: np.ndarray, camera: bool) -> np.ndarray:
    """(3,2) round metres that hold the points, REACH_M to either side in x and y, and the camera where there is one."""
    reach = np.array([REACH_M, REACH_M, 0]) if camera else np.full(3, 0.05)
    step = np.array([0.05, 0.05, 0.1 if camera else 0.05])
    low, high = np.minimum(points.min(0), -reach), np.maximum(points.max(0), reach)
    return np.stack([np.floor(low / step + 1e-6) * step, np.ceil(high / step - 1e-6) * step], 1)


def _turn(azimuth: float, elevation: float) -> np.ndarray:
    away = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.cross([0.0, 1.0, 0.0], away)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(away, right), away])


def space(view: View, size: int) -> np.ndarray:
    """The empty box with grid and labelled ticks, as a dense canvas."""
    canvas = np.full((size * DENSE, size * DENSE, 3), 255, np.uint8)
    (x0, x1), (y0, y1), (z0, z1) = view.ranges
    ticks = [_ticks(low, high) for low, high in view.ranges]
    walls = [[(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)],  # floor, left wall, far wall
             [(x0, y0, z0), (x0, y1, z0), (x0, y1, z1), (x0, y0, z1)], [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)]]
    for wall in walls:
        cv2.fillConvexPoly(canvas, fixed(dense(view.pixels(np.array(wall)))), WALL_RGB, cv2.LINE_AA, BITS)
    lines = [[(x, y1, z0), (x, y1, z1)] for x in ticks[0]] + [[(x, y0, z1), (x, y1, z1)] for x in ticks[0]]
    lines += [[(x0, y, z0), (x0, y, z1)] for y in ticks[1]] + [[(x0, y, z1), (x1, y, z1)] for y in ticks[1]]
    lines += [[(x0, y1, z), (x1, y1, z)] for z in ticks[2]] + [[(x0, y0, z), (x0, y1, z)] for z in ticks[2]]
    cv2.polylines(canvas, list(fixed(dense(view.pixels(np.array(lines))))), False, GRID_RGB, 1, cv2.LINE_AA, BITS)
    rims = np.array([[(x0, y1, z0), (x1, y1, z0)], [(x1, y1, z0), (x1, y1, z1)], [(x0, y0, z0), (x0, y1, z0)]])
    cv2.polylines(canvas, list(fixed(dense(view.pixels(rims)))), False, (130, 134, 142), DENSE // 2, cv2.LINE_AA, BITS)
    _labels(canvas, view, ticks, size / 224)
    return canvas


def _labels(canvas: np.ndarray, view: View, ticks: list[np.ndarray], unit: float) -> None:
    """Numbers along the three near edges, and what they count."""
    (x0, x1), (y0, y1), (z0, z1) = view.ranges
    edges = [([(x, y1, z0) for x in ticks[0]], ticks[0], (0, 5), (0.5, 0)),
             ([(x0, y, z0) for y in ticks[1]], ticks[1], (-4, 0), (1, 0.5)),
             ([(x1, y1, z) for z in ticks[2]], ticks[2], (5, 3), (0, 0.3))]
    for places, values, offset, anchor in edges:
        for value, (x, y) in zip(values, view.pixels(np.array(places)) + np.array(offset) * unit):
            if values is not ticks[2] or value > z0 + 0.01:  # the last number of x stands at the first of z
                text(canvas, f"{round(value, 6) + 0.0:g}", (x, y), INK, 5.5 * unit, anchor)
    names = [("x [m]", ((x0 + x1) / 2, y1, z0), (-4, 19), (0.5, 0)), ("y [m]", (x0, y0, z0), (-4, -8), (0.6, 1)),
             ("z [m]", (x1, y1, (z0 + z1) / 2), (21, 13), (0, 0.3))]
    for name, place, offset, anchor in names:
        x, y = view.pixels(np.array(place)) + np.array(offset) * unit
        text(canvas, name, (x, y), INK, 6 * unit, anchor)


def _ticks(low: float, high: float) -> np.ndarray:
    """Round numbers of a range, two to six."""
    fits = (s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / s < 5.5)
    found = _multiples(low, high, next(fits))
    return found if len(found) > 1 else _multiples(low, high, 0.05)


def _multiples(low: float, high: float, step: float) -> np.ndarray:
    return np.arange(np.ceil(low / step - 1e-6), np.floor(high / step + 1e-6) + 1) * step


def mesh_in_space(view: View, base: np.ndarray, verts: np.ndarray, faces: np.ndarray, K: np.ndarray, pixels: int) -> np.ndarray:
    """The panel with a mesh and its shadow on the floor.

    base: of `space`; verts (v,3) metres; K (3,3) of the picture, pixels x pixels, that the camera took.
    """
    canvas = base.copy()
    for corners in fixed(dense(view.pixels(_dropped(view, verts))))[faces]:
        cv2.fillConvexPoly(canvas, corners, SHADE_RGB, cv2.LINE_8, BITS)
    _window(canvas, view, K, pixels, verts)
    layer = mesh_layer(view.pixels(verts), view.depth(verts), verts @ view.rotation.T, faces, len(base) // DENSE, edges=0.12)
    canvas = thick(layer.over(thinned(canvas)))
    _camera(canvas, view, K, pixels, verts)
    return thinned(canvas)


def _dropped(view: View, points: np.ndarray) -> np.ndarray:
    """Points straight down on the box's floor."""
    flat = points.copy()
    flat[..., 1] = view.ranges[1, 1]
    return flat


def _pyramid(K: np.ndarray, pixels: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4,3) corners of the drawn camera's square, and (4,3) of what the picture shows at the depth of points (n,3)."""
    edge = pixels - 0.5
    rays = np.array([[-0.5, -0.5, 1], [edge, -0.5, 1], [edge, edge, 1], [-0.5, edge, 1]]) @ np.linalg.inv(K).T
    rays, depth = rays / rays[:, 2:], float(np.median(points[:, 2]))
    return rays * min(SQUARE_M / float(np.ptp(rays[:, :2], axis=0).max()), CAMERA_SHARE * depth), rays * depth


def _window(canvas: np.ndarray, view: View, K: np.ndarray, pixels: int, points: np.ndarray) -> None:
    """What the camera sees where the hand is, and dotted lines to there."""
    if view.camera:
        near, far = _pyramid(K, pixels, points)
        dashes = near[:, None, None] + (far - near)[:, None, None] * dots(14)[None, :, :, None]
        cv2.polylines(canvas, list(fixed(dense(view.pixels(dashes.reshape(-1, 2, 3))))), False, RAY_RGB, 1, cv2.LINE_AA, BITS)
        cv2.polylines(canvas, [fixed(dense(view.pixels(far)))], True, RAY_RGB, 1, cv2.LINE_AA, BITS)


def _camera(canvas: np.ndarray, view: View, K: np.ndarray, pixels: int, points: np.ndarray) -> None:
    """The camera, a square with its pyramid; it stands before everything else."""
    if view.camera:
        square, _ = _pyramid(K, pixels, points)
        sides = np.stack([np.zeros((4, 3)), square], 1)
        cv2.polylines(canvas, list(fixed(dense(view.pixels(sides)))), False, CAMERA_RGB, DENSE, cv2.LINE_AA, BITS)
        cv2.polylines(canvas, [fixed(dense(view.pixels(square)))], True, CAMERA_RGB, DENSE, cv2.LINE_AA, BITS)


def bones_in_space(view: View, base: np.ndarray, joints: np.ndarray, K: np.ndarray, pixels: int) -> np.ndarray:
    """The panel with a skeleton, joints (21,3)."""
    unit = base.shape[0] / DENSE / 224
    canvas = base.copy()
    _window(canvas, view, K, pixels, joints)
    bones(canvas, view.pixels(joints), view.depth(joints), width=2 * unit, radius=3 * unit)
    _camera(canvas, view, K, pixels, joints)
    return thinned(canvas)
