"""Simple things on the table that stand in for DexYCB's 20 objects: boxes, (elliptic) cylinders and ellipsoids of like size.

Object frame: origin in the middle, z up when it stands, metres. Numbers are YCB ids, 1..21 without 19.
"""
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

IDS = tuple(i for i in range(1, 22) if i != 19)
MARKER = 18  # it cannot stand
LYING = np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]])  # turn that lays a standing thing on its side
Kind = Literal["box", "cylinder", "ellipsoid"]
# id: kind and size along x, y, z (m), of the real thing, rounded.
SIZES: dict[int, tuple[Kind, tuple[float, float, float]]] = {
    1: ("cylinder", (0.102, 0.102, 0.140)), 2: ("box", (0.060, 0.158, 0.210)), 3: ("box", (0.038, 0.089, 0.175)),
    4: ("cylinder", (0.066, 0.066, 0.101)), 5: ("cylinder", (0.058, 0.095, 0.190)), 6: ("cylinder", (0.085, 0.085, 0.033)),
    7: ("box", (0.035, 0.110, 0.089)), 8: ("box", (0.028, 0.085, 0.073)), 9: ("box", (0.050, 0.097, 0.082)),
    10: ("ellipsoid", (0.036, 0.178, 0.036)), 11: ("cylinder", (0.108, 0.108, 0.235)), 12: ("cylinder", (0.065, 0.098, 0.250)),
    13: ("ellipsoid", (0.159, 0.159, 0.053)), 14: ("cylinder", (0.080, 0.080, 0.082)), 15: ("box", (0.050, 0.120, 0.180)),
    16: ("box", (0.085, 0.085, 0.200)), 17: ("box", (0.087, 0.200, 0.014)), 18: ("cylinder", (0.019, 0.019, 0.120)),
    20: ("box", (0.036, 0.190, 0.030)), 21: ("box", (0.050, 0.075, 0.050)),
}


@dataclass(frozen=True)
class Mesh:
    """verts (v,3), normals (v,3) with corners split at edges, faces (f,3) counter-clockwise outside, uv (f,3,2) metres."""

    verts: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


@cache
def mesh(number: int) -> Mesh:
    """The thing of a YCB id."""
    kind, size = SIZES[number]
    half = np.array(size) / 2
    if kind == "box":
        return _join([_side(axis, sign, half) for axis in range(3) for sign in (-1, 1)])
    return _round(kind, half)


def _grid(columns: int, rows: int) -> np.ndarray:
    """Triangles of a (rows+1) x (columns+1) grid of vertices, row by row; x right and y up make them counter-clockwise."""
    index = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(), index[1:, :-1].ravel()
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def _side(axis: int, sign: int, half: np.ndarray):
    """One side of a box in squares of about 3 cm."""
    u, v = (axis + 1) % 3, (axis + 2) % 3
    if sign < 0:
        u, v = v, u
    columns, rows = (max(1, round(2 * half[k] / 0.03)) for k in (u, v))
    x, y = np.meshgrid(np.linspace(-half[u], half[u], columns + 1), np.linspace(-half[v], half[v], rows + 1))
    verts, normals = np.zeros((x.size, 3)), np.zeros((x.size, 3))
    verts[:, u], verts[:, v], verts[:, axis] = x.ravel(), y.ravel(), sign * half[axis]
    normals[:, axis] = sign
    return verts, normals, _grid(columns, rows), np.stack([x.ravel(), y.ravel()], 1) + 0.31 * axis + 0.17 * sign


def _round(kind: str, half: np.ndarray) -> Mesh:
    """Lathe about z, stretched to an ellipse."""
    turns = 20
    angle = np.linspace(0, 2 * np.pi, turns + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    if kind == "ellipsoid":
        polar = np.linspace(-np.pi / 2, np.pi / 2, 11)
        radius, height, slope = np.cos(polar), np.sin(polar), np.stack([np.cos(polar), np.sin(polar)], 1)
        return _join([_lathe(ring, radius, height, slope, half, angle)])
    rows = max(2, round(2 * half[2] / 0.03)) + 1
    height = np.linspace(-1, 1, rows)
    wall = _lathe(ring, np.ones(rows), height, np.tile([1.0, 0.0], (rows, 1)), half, angle)
    reach = np.linspace(0, 1, 3)
    bottom = _lathe(ring, reach, np.full(3, -1.0), np.tile([0.0, -1.0], (3, 1)), half, angle)
    top = _lathe(ring, reach[::-1], np.full(3, 1.0), np.tile([0.0, 1.0], (3, 1)), half, angle)
    return _join([wall, bottom, top])


def _lathe(ring: np.ndarray, radius: np.ndarray, height: np.ndarray, slope: np.ndarray, half: np.ndarray, angle: np.ndarray):
    flat = ring[None] * radius[:, None, None]
    verts = np.concatenate([flat, np.broadcast_to(height[:, None, None], (*flat.shape[:2], 1))], 2) * half
    upward = np.broadcast_to(slope[:, None, 1:], (*flat.shape[:2], 1))
    normals = np.concatenate([ring[None] * slope[:, None, :1], upward], 2) / half
    uv = np.stack(np.broadcast_arrays(angle[None] * half[:2].mean(), (height * half[2] + 0.3 * radius)[:, None]), 2)
    normals = normals.reshape(-1, 3)
    return (verts.reshape(-1, 3), normals / np.linalg.norm(normals, axis=1, keepdims=True), _grid(len(ring) - 1, len(radius) - 1),
            uv.reshape(-1, 2))


def _join(parts: list) -> Mesh:
    start = np.cumsum([0] + [len(p[0]) for p in parts])
    faces = np.concatenate([p[2] + s for p, s in zip(parts, start)])
    verts, uv = np.concatenate([p[0] for p in parts]), np.concatenate([p[3] for p in parts])
    a, b, c = (verts[faces[:, i]] for i in range(3))
    solid = np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-10  # a lathe's poles
    return Mesh(verts, np.concatenate([p[1] for p in parts]), faces[solid], uv[faces[solid]])


def distance(number: int, points: np.ndarray) -> np.ndarray:
    """Signed distance (n,) of points (n,3) in the object frame to the thing, metres, negative inside (ellipses: first order)."""
    kind, size = SIZES[number]
    half = np.array(size) / 2
    if kind == "box":
        q = np.abs(points) - half
        return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
    if kind == "ellipsoid":
        return _ellipse(points, half)
    q = np.stack([_ellipse(points[:, :2], half[:2]), np.abs(points[:, 2]) - half[2]], 1)
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def _ellipse(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    level = np.linalg.norm(points / half, axis=1)
    slope = np.linalg.norm(points / half**2, axis=1)
    return np.where(level > 1e-6, level * (level - 1) / np.maximum(slope, 1e-9), -half.min())
