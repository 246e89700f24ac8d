"""Depth pictures of a hand: reading them, and where a fitted mesh should move to lie on the surface that they show.

Metres along z, 0 = none; pictures registered to colour (DexYCB: aligned_depth_to_color_*.png, uint16 millimetres). The mesh is
drawn as it is fitted so far; what the picture says is then a plane per vertex, which is where point-to-plane fits start from.
"""
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from utils.camera import project
from utils.errors import InputError
from utils.hand import HandModel
from utils.render import render, vertex_normals

LEAST_PX = 3  # pixels that make a median
NEAR_M, ROUGH_M = 0.010, 0.025  # surfaces further from the mesh are something else: once it fits, and before
DROP_M = 0.015  # behind an outline the picture is deeper than the hand by so much
HERE_M = 0.006  # a vertex this near to the drawn surface is a seen one
FACING = 0.25  # cosine to the ray under which a surface is too oblique
STEP_PX, SEARCH_PX, ROUGH_PX = 0.5, 3.0, 5.0  # of the search for an edge, across the outline
CLEAR_M = 0.004  # a plane further away counts less (Huber)


def read_depth(path: str | Path, mirrored: bool = False) -> Float[Tensor, "h w"]:
    """A 16-bit depth picture in millimetres as float32 metres, mirrored left to right if asked.

    Raises InputError: missing, broken, not one channel of 16 bits.
    """
    path = Path(path)
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: expected a depth picture, found nothing to read ({error.strerror}); set "
                         "calibrate.depth_root to the dataset's folder, or unpack its depth pictures") from error
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None:
        raise InputError(f"{path}: expected a PNG of depths, found a file that cannot be decoded; unpack it again")
    if image.ndim != 2 or image.dtype != np.uint16:
        raise InputError(f"{path}: expected one channel of 16-bit millimetres, found {image.shape} {image.dtype}; this is no "
                         "depth picture")
    metres = torch.from_numpy(image.astype(np.float32) / 1000)
    return metres.flip(1).contiguous() if mirrored else metres


class DepthSurface:
    """Compares depth pictures with fitted meshes of one hand model.

    sigma_m: standard deviation of a vertex's distance to the seen surface · share: of a measurement that a vertex counts, as
    neighbours err alike.
    """

    def __init__(self, hand: HandModel, sigma_m: float, share: float):
        self.faces, self.weight = hand.faces, share / sigma_m**2
        corners = torch.cat((self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]])).sort(1).values
        edges, which, count = torch.unique(corners, dim=0, return_inverse=True, return_counts=True)
        owner = torch.arange(len(self.faces)).repeat(3)[which.argsort(stable=True)]
        first = count.cumsum(0) - count
        inner = count == 2
        self.edges = edges[inner]
        self.sides = torch.stack((owner[first[inner]], owner[first[inner] + 1]), 1)  # the two faces of every inner edge

    def draw(self, verts: Float[Tensor, "778 3"], K: Float[Tensor, "3 3"], depth: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """Depth of the mesh on the picture's pixels, 0 = none."""
        return render(verts[None].float(), self.faces, K[None].float(), *depth.shape).depth[0].to(depth.dtype)

    def gap(self, depth: Float[Tensor, "h w"], verts: Float[Tensor, "778 3"], K: Float[Tensor, "3 3"]) -> float:
        """By how much the surface where the mesh is drawn lies behind it, metres: the middle of the densest two fifths of the
        pixels' gaps, so that neither background nor something in front decides; 0 where nothing is seen."""
        drawn = self.draw(verts, K, depth)
        gaps = (depth - drawn)[(drawn > 0) & (depth > 0)].sort().values
        part = int(0.4 * len(gaps))
        if part < LEAST_PX:
            return 0.0
        start = int((gaps[part:] - gaps[:-part]).argmin())
        return float(gaps[start:start + part].median())

    def explained(self, depth: Float[Tensor, "h w"], verts: Float[Tensor, "778 3"], K: Float[Tensor, "3 3"],
                  within_m: float = 0.003) -> float:
        """Share of the mesh's pixels on which the picture's surface lies within `within_m` of it: near 1 for a hand that is seen
        and fitted, about half where something hides it."""
        drawn = self.draw(verts, K, depth)
        covered = drawn > 0
        hit = covered & (depth > 0) & ((drawn - depth).abs() < within_m)
        return float(hit.sum() / covered.sum().clamp_min(1))

    def planes(self, depth: Float[Tensor, "h w"], verts: Float[Tensor, "778 3"], K: Float[Tensor, "3 3"], rough: bool,
               ) -> tuple[Float[Tensor, "778 4"], Float[Tensor, "778"]]:
        """The plane in which each vertex should lie (unit normal and offset, normal . x = offset, in the camera, metres), and its
        weight over sigma^2, 0 = none.

        A seen vertex: the plane of its own normal, through the picture's surface at its pixel. A vertex of an outline, behind
        which the picture drops off: the plane of the camera and the picture's edge there. rough: the mesh does not fit yet.
        """
        planes, far = verts.new_zeros(len(verts), 4), verts.new_zeros(len(verts))
        known = torch.zeros(len(verts), dtype=torch.bool)
        drawn = self.draw(verts, K, depth)
        gap = torch.where((drawn > 0) & (depth > 0), depth - drawn, torch.nan)
        if not (verts[:, 2] > 0.01).all() or torch.isfinite(gap).sum() < LEAST_PX:
            return planes, far
        middle = gap.nanmedian() if rough else gap.new_zeros(())
        gap = torch.where((gap - middle).abs() < (ROUGH_M if rough else NEAR_M), gap, torch.nan)
        normals = vertex_normals(verts, self.faces)
        uv = project(verts, K)
        seen, distance = _surface(gap, drawn, verts, normals, uv)
        offset = (normals * verts).sum(1) + distance
        known[seen], far[seen], planes[seen] = True, distance[seen], torch.cat((normals, offset[:, None]), 1)[seen]
        ids = self._outline(verts)
        has, plane, distance = _edge(depth, drawn, float(middle), verts[ids], normals[ids], uv[ids], K,
                                     ROUGH_PX if rough else SEARCH_PX)
        ids = ids[has]
        known[ids], far[ids], planes[ids] = True, distance[has], plane[has]
        return planes, torch.where(known, self.weight * (CLEAR_M / far.abs().clamp_min(1e-9)).clamp_max(1), 0.0)

    def _outline(self, verts: Tensor) -> Tensor:
        """Vertices of edges between a face that looks at the camera and one that looks away."""
        a, b, c = verts[self.faces].unbind(1)
        looks = (torch.linalg.cross(b - a, c - a) * a).sum(1) < 0
        return torch.unique(self.edges[looks[self.sides[:, 0]] != looks[self.sides[:, 1]]])


def _surface(gap: Tensor, drawn: Tensor, verts: Tensor, normals: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Which vertices are seen (v), and how far along their normal the seen surface lies (v): by the median gap of the 3x3 pixels
    about theirs, since gap and mesh are sampled at the same places."""
    height, width = gap.shape
    x, y = uv.round().long().unbind(1)
    inside = (x >= 1) & (y >= 1) & (x < width - 1) & (y < height - 1)
    x, y = x.clamp(1, width - 2), y.clamp(1, height - 2)
    facing = (normals * verts).sum(1) < -FACING * verts.norm(dim=1)
    near = torch.stack([gap[y + j, x + i] for j in (-1, 0, 1) for i in (-1, 0, 1)])
    seen = inside & facing & ((drawn[y, x] - verts[:, 2]).abs() < HERE_M) & (torch.isfinite(near).sum(0) >= LEAST_PX)
    along = (normals * verts).sum(1) / verts[:, 2]  # of the normal, per metre of depth
    return seen, near.nanmedian(0).values * along


def _edge(depth: Tensor, drawn: Tensor, middle: float, verts: Tensor, normals: Tensor, uv: Tensor, K: Tensor, search_px: float,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """Outline vertices (k): which have an edge in the picture, its plane (k,4), and how far it is, metres.

    The picture is read along the outline's normal, from inside the hand outwards: the edge is where it first leaves the hand's
    depth, and counts only where it drops off there. Where the mesh itself goes on behind, the outline is not the hand's edge.
    """
    height, width = depth.shape
    rays = (K[:2] - uv[..., None] * K[2:]) / verts[:, 2, None, None]  # (k,2,3) pixels per metre
    out = torch.nn.functional.normalize((rays @ normals[..., None])[..., 0], dim=1, eps=1e-9)
    t = torch.arange(-search_px, search_px + STEP_PX / 2, STEP_PX, dtype=verts.dtype)
    x, y = (uv[:, None] + t[:, None] * out[:, None]).round().long().unbind(-1)
    inside = ((x >= 0) & (y >= 0) & (x < width) & (y < height)).all(1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    seen, mesh, z = depth[y, x], drawn[y, x], verts[:, 2]
    one, centre = round(1 / STEP_PX), len(t) // 2
    own = ((mesh[:, centre + one] == 0) | (mesh[:, centre + one] > z + DROP_M)) & ((mesh[:, centre - one] - z).abs() < 2 * HERE_M)
    expected = (z + middle)[:, None]
    leaves = torch.where((seen - expected).abs() < DROP_M, len(t), torch.arange(len(t))).amin(1)
    index = leaves.clamp_max(len(t) - 1)
    beyond = seen.gather(1, index[:, None])
    drops = ((beyond == 0) | (beyond > expected + DROP_M))[:, 0]
    metres = z / K[0, 0]  # of a pixel
    error = (t[index] - STEP_PX / 2) * metres
    normal = (out[:, None] @ rays)[:, 0] * metres[:, None]
    plane = torch.cat((normal, ((normal * verts).sum(1) + error)[:, None]), 1)
    return inside & own & (leaves > 0) & (leaves < len(t)) & drops, plane, error
