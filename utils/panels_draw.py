"""Strokes of the five-panel picture: a shaded mesh with its edges, bones and joints, captions. numpy, cv2 and the rasteriser.

Everything is drawn in RGB. A canvas is uint8, `DENSE` times finer than it is shown (each pixel of the panel is the mean of
DENSE x DENSE), and places are given in pixels of the panel: the centre of its top-left pixel is (0, 0).
"""
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch

from utils.joints import T21_PARENTS
from utils.render import interpolate_fragments, rasterise, shade, studio_lights, vertex_normals

DENSE = 2
MOST_OVERDRAW = 12.0  # a hand over the whole panel has about 5
BITS = 4  # cv2 draws at sixteenths of a pixel
HAND_RGB = (0.66, 0.76, 0.93)
INSIDE_RGB = (0.80, 0.70, 0.66)  # what shows through the open wrist
EDGE_RGB = (38, 58, 96)
WRIST_RGB = (235, 235, 235)
FINGER_RGB = ((228, 70, 62), (240, 160, 32), (74, 170, 84), (52, 132, 222), (154, 92, 206))  # thumb .. little
RGB_OF_JOINT = (WRIST_RGB, *(rgb for rgb in FINGER_RGB for _ in range(4)))
INK = (62, 66, 74)


class Layer(NamedTuple):
    """What a mesh paints on a panel of n x n: rgb (n,n,3) float32 0..255, already weighted by cover (n,n) float32 0..1."""

    rgb: np.ndarray
    cover: np.ndarray

    def over(self, panel: np.ndarray, alpha: float = 1.0) -> np.ndarray:
        """The panel (n,n,3) uint8 with the mesh on it."""
        mixed = panel * (1 - alpha * self.cover[..., None]) + alpha * self.rgb
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def mesh_layer(at: np.ndarray, depth: np.ndarray, verts: np.ndarray, faces: np.ndarray, size: int, edges: float = 0.35) -> Layer:
    """The shaded mesh with the edges of its visible faces.

    at (v,2) panel pixels of the vertices · depth (v) > 0, what is nearer hides · verts (v,3) in the frame of the lights (x
    right, y down, z away from the eye) · faces (f,3), counter-clockwise from outside · edges: how strongly they are drawn, 0..1.
    """
    n, fine = size * DENSE, dense(at)
    if _overdraw(fine[faces], n) > MOST_OVERDRAW:
        return _painted(fine, depth, verts, faces, n, edges)
    table, z = torch.from_numpy(faces.astype(np.int64)), depth[:, None]
    seen = torch.from_numpy(np.concatenate([fine * z, z], 1).astype(np.float32))[None]
    found = rasterise(seen, table, torch.eye(3), n, n, cull="none")
    normals = vertex_normals(torch.from_numpy(verts.astype(np.float32)), table)
    normal = interpolate_fragments(found, table, normals[None], n * n)
    pixel, face = found.pixel.numpy(), found.face.numpy()
    rgb, cover = np.zeros((n * n, 3), np.float32), np.zeros(n * n, np.float32)
    cover[pixel] = 1
    lit = 255 * _lit(normal, _turned(fine, faces)[face]).numpy()
    wire = np.zeros((n, n), np.uint8)
    visible = np.bincount(face, minlength=len(faces)) > 0
    cv2.polylines(wire, list(fixed(fine[faces[visible]])), True, 255, 1, cv2.LINE_AA, shift=BITS)
    share = (wire.reshape(-1)[pixel] * np.float32(edges / 255))[:, None]
    rgb[pixel] = lit + share * (np.float32(EDGE_RGB) - lit)
    return Layer(thinned(rgb.reshape(n, n, 3)), thinned(cover.reshape(n, n)))


def _overdraw(corners: np.ndarray, n: int) -> float:
    """How often, at most, faces (f,3,2) of the canvas's pixels would draw over each of its n x n pixels."""
    inside = np.clip(corners, 0, n)
    return float(np.ptp(inside, axis=1).prod(-1).sum()) / n**2


def _painted(fine: np.ndarray, depth: np.ndarray, verts: np.ndarray, faces: np.ndarray, n: int, edges: float) -> Layer:
    """A mesh gone wild, whose every face fills the panel, far to near: its fragments would not fit the memory."""
    canvas, cover = np.zeros((n, n, 3), np.uint8), np.zeros((n, n), np.uint8)
    a, b, c = (verts[faces[:, i]] for i in range(3))
    lit = 255 * _lit(torch.from_numpy(np.cross(b - a, c - a).astype(np.float32)), _turned(fine, faces)).numpy()
    for face in np.argsort(-depth[faces].mean(1)):
        corners, rgb = fixed(fine[faces[face]]), lit[face]
        cv2.fillConvexPoly(canvas, corners, rgb.tolist(), cv2.LINE_8, BITS)
        cv2.polylines(canvas, [corners], True, (rgb + edges * (np.float32(EDGE_RGB) - rgb)).tolist(), 1, cv2.LINE_8, BITS)
        cv2.fillConvexPoly(cover, corners, 1, cv2.LINE_8, BITS)
    return Layer(thinned(canvas.astype(np.float32) * cover[..., None]), thinned(cover.astype(np.float32)))


def _turned(at: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(f) whether a face is seen from inside: clockwise on a screen with y down means outside."""
    a, b, c = (at[faces[:, i]] for i in range(3))
    return np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2] > 0


def _lit(normal: torch.Tensor, inside: np.ndarray) -> torch.Tensor:
    """(n,3) colours 0..1 of surface points with these normals, seen from inside or outside."""
    inner = torch.from_numpy(inside)[:, None]
    colour = torch.where(inner, torch.tensor(INSIDE_RGB) * 0.55, torch.tensor(HAND_RGB))
    eye = torch.tensor([0.0, 0.0, -1.0]).expand_as(normal)
    return shade(colour, torch.where(inner, -normal, normal), eye, studio_lights(normal), gloss=0.12).clamp(0, 1)


def bones(canvas: np.ndarray, at: np.ndarray, depth: np.ndarray | None = None, *, width: float, radius: float) -> None:
    """The skeleton on a dense canvas: at (21,2) panel pixels, non-finite ones left out; depth (21): farther parts first."""
    known = np.isfinite(at).all(1) & (np.abs(at) < 1e5).all(1)
    depth = np.zeros(21) if depth is None else depth
    points = fixed(dense(np.where(known[:, None], at, 0)))
    parts = [((depth[j] + depth[p]) / 2, 0, j, p) for j, p in enumerate(T21_PARENTS) if p >= 0 and known[j] and known[p]]
    parts += [(depth[j] - 1e-6, 1, j, j) for j in range(21) if known[j]]
    flat = not np.any(depth)
    order = sorted(parts, key=lambda part: (part[1], part[2]) if flat else (-part[0], part[1]))
    line, dot, rim = (max(1, round(DENSE * v)) for v in (width, radius, max(0.5, radius / 6)))
    for _, kind, j, parent in order:
        rgb = RGB_OF_JOINT[j]
        if kind == 0:
            cv2.line(canvas, points[parent].tolist(), points[j].tolist(), rgb, line, cv2.LINE_AA, shift=BITS)
            continue
        centre = points[j].tolist()
        cv2.circle(canvas, centre, dot << BITS, tuple(int(0.45 * v) for v in rgb), -1, cv2.LINE_AA, shift=BITS)
        cv2.circle(canvas, centre, (dot - rim) << BITS, rgb, -1, cv2.LINE_AA, shift=BITS)


def text(canvas: np.ndarray, words: str, at: tuple[float, float], rgb: tuple[int, int, int] = INK, size: float = 7.0,
         anchor: tuple[float, float] = (0.0, 0.0)) -> None:
    """Words on a dense canvas; `at` panel pixels of the anchor: (0,0) left top, (1,1) right bottom; size: height of capitals."""
    scale, thickness = size * DENSE / 22, max(1, round(size * DENSE / 14))
    (w, h), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    x, y = dense(np.asarray(at, float)) - [w * anchor[0], h * anchor[1] - h]
    cv2.putText(canvas, words, (round(float(x)), round(float(y))), cv2.FONT_HERSHEY_SIMPLEX, scale, rgb, thickness, cv2.LINE_AA)


def caption(canvas: np.ndarray, words: str, unit: float, dark: bool) -> None:
    """Words on a dense canvas: dark: light ones on a darkened strip below, for photographs; else at its head."""
    if not words:
        return
    size, high = canvas.shape[0] // DENSE, 13 * unit
    if dark:
        strip = canvas[-round(high * DENSE):]
        strip[:] = strip * 0.35
    at = (4 * unit, size - high / 2 - 0.5 if dark else high / 2 + 1)
    text(canvas, words, at, (240, 240, 240) if dark else INK, 6.5 * unit, anchor=(0, 0.5))


def dense(at: np.ndarray) -> np.ndarray:
    """Panel pixels as pixels of the dense canvas (half-pixel rule)."""
    return (at + 0.5) * DENSE - 0.5


def fixed(at: np.ndarray) -> np.ndarray:
    """Pixels in the fixed point of cv2's `shift`, kept within what it can clip."""
    return np.rint(np.clip(at, -1e6, 1e6) * (1 << BITS)).astype(np.int32)


def thick(panel: np.ndarray) -> np.ndarray:
    """A panel (n,n,3) as a dense canvas."""
    return cv2.resize(panel, None, fx=DENSE, fy=DENSE, interpolation=cv2.INTER_NEAREST)


def thinned(canvas: np.ndarray) -> np.ndarray:
    """A dense canvas as a panel."""
    return cv2.resize(canvas, (canvas.shape[1] // DENSE, canvas.shape[0] // DENSE), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=8)
def dots(count: int) -> np.ndarray:
    """(count,2) begin and end of dashes along a line from 0 to 1."""
    begin = np.arange(count) / count
    return np.stack([begin, begin + 0.5 / count], 1)
