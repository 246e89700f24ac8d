"""Coarser and coarser meshes of a hand, and how to come back: the pyramid that mesh decoders climb (CMR, METRO).

Quadric-error decimation (Garland and Heckbert, SIGGRAPH 1997) with vertices that never move, up-sampling weights and spiral
tables, by the exact rules of the published code (specs/cmr_boukhayma_metro.md 2.5, 2.6), so that published weights fit. Kept
vertices, faces and spirals do not depend on where the mesh stands; the published up-sampling weights do (see `upsampling`).
Integers are int64, geometry is float64, in any unit.
"""
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from utils.decimation import EDGES, decimate
from utils.errors import InputError

UpWeights = Literal["published", "barycentric"]
_SAME = 1e-12  # squared distances that differ by less, relative to the coarse mesh's extent, are one


class Pyramid(NamedTuple):
    """Levels 0 (finest) .. n of one mesh; everything about level i in place i.

    faces: n+1 arrays (f_i,3) int64 · kept: n of (v_{i+1},) int64, the vertices of level i that level i+1 keeps · columns,
    weights: n pairs (v_i,3) int64 and float32, vertex r of level i is the weighted sum of vertices columns[i][r] of level i+1 ·
    spirals: n of (v_i,L) int64.
    """

    faces: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    spirals: tuple[np.ndarray, ...]


def build_pyramid(verts: np.ndarray, faces: np.ndarray, factors: Sequence[float] = (2, 2, 2, 2), length: int = 27,
                  dilation: int = 1, weights: UpWeights = "published", keep_boundary: bool = False) -> Pyramid:
    """Decimate verts (v,3), faces (f,3) by each of `factors` in turn (ceil(v/factor) vertices), with all tables in between.

    See decimate, upsampling and spirals for the other arguments. Raises InputError if a level that needs spirals has fewer than
    length*dilation vertices, or nothing is left of a level.
    """
    levels, kept, columns, up, tables = [np.asarray(faces, np.int64)], [], [], [], []
    verts = np.asarray(verts, np.float64)
    for factor in factors:
        keep, coarse = decimate(verts, levels[-1], int(np.ceil(len(verts) / factor)), keep_boundary)
        if not len(coarse):
            raise InputError(f"factors {', '.join(f'{factor:g}' for factor in factors)}: no face is left of a mesh of "
                             f"{len(verts)} vertices that {factor:g} times fewer were asked of; lower the factors, or name fewer")
        tables.append(spirals(verts, levels[-1], length, dilation))
        column, weight = upsampling(verts, verts[keep], coarse, weights)
        columns.append(column)
        up.append(weight.astype(np.float32))
        kept.append(keep)
        levels.append(coarse)
        verts = verts[keep]
    return Pyramid(tuple(levels), tuple(kept), tuple(columns), tuple(up), tuple(tables))


def upsampling(fine_verts: np.ndarray, coarse_verts: np.ndarray, coarse_faces: np.ndarray,
               kind: UpWeights = "published") -> tuple[np.ndarray, np.ndarray]:
    """How each vertex of fine_verts (n,3) is mixed from the coarse mesh: columns (n,3) vertex ids and weights (n,3) float64.

    barycentric: the coordinates of the nearest point on the coarse mesh; not negative, sum 1. published (spec 2.6): the
    nearest point's face, but least squares of [corners] w = nearest point inside the face, of [end points] w = the fine vertex
    itself next to an edge: their sum is not 1 and they change with the origin, yet published weights of networks need them.
    """
    fine, coarse = np.asarray(fine_verts, np.float64), np.asarray(coarse_verts, np.float64)
    coarse_faces = np.asarray(coarse_faces, np.int64)
    face, bary = _nearest(fine, coarse[coarse_faces])
    columns = coarse_faces[face]
    if kind == "barycentric":
        return columns, bary
    weights = np.zeros((len(fine), 3))
    for row, (point, corners) in enumerate(zip(fine, coarse[columns])):
        part = _part(point, corners)
        target = point if len(part) == 2 else bary[row] @ corners
        weights[row, part] = 1 if len(part) == 1 else np.linalg.lstsq(corners[part].T, target, rcond=None)[0]
    return columns, weights


def _nearest(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For points (n,3), the index (n,) of the nearest of triangles (f,3,3), the first on ties, and barycentrics (n,3)."""
    chosen, barys = np.empty(len(points), np.int64), np.empty((len(points), 3))
    slack = _SAME * (np.ptp(triangles.reshape(-1, 3), axis=0) ** 2).sum()
    for start in range(0, len(points), 128):
        part = slice(start, start + 128)
        bary = _barycentrics(points[part, None], triangles)
        apart = np.einsum("nfk,fkx->nfx", bary, triangles) - points[part, None]
        squared = (apart ** 2).sum(-1)
        chosen[part] = (squared <= squared.min(1, keepdims=True) + slack).argmax(1)
        barys[part] = bary[np.arange(len(bary)), chosen[part]]
    return chosen, barys


def _barycentrics(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Barycentrics (n,f,3) of the point of each triangle (f,3,3) nearest to points (n,1,3)."""
    a, e1, e2 = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    d11, d12, d22 = (e1 * e1).sum(-1), (e1 * e2).sum(-1), (e2 * e2).sum(-1)
    p1, p2 = ((points - a) * e1).sum(-1), ((points - a) * e2).sum(-1)
    area = d11 * d22 - d12 ** 2
    flat = area <= 1e-14 * d11 * d22
    area = np.where(flat, 1, area)
    v, w = (d22 * p1 - d12 * p2) / area, (d11 * p2 - d12 * p1) / area
    best = np.stack([1 - v - w, v, w], -1)
    inside = (best >= 0).all(-1) & ~flat
    nearest = np.full(inside.shape, np.inf)
    for i, j in EDGES:  # where the foot point lies outside, the nearest point is on an edge
        start, edge = triangles[:, i], triangles[:, j] - triangles[:, i]
        share = ((points - start) * edge).sum(-1) / np.maximum((edge ** 2).sum(-1), np.finfo(float).tiny)
        share = share.clip(0, 1)
        squared = ((start + share[..., None] * edge - points) ** 2).sum(-1)
        better = ~inside & (squared < nearest)
        nearest = np.where(better, squared, nearest)
        on_edge = np.zeros_like(best)
        on_edge[..., i], on_edge[..., j] = 1 - share, share
        best = np.where(better[..., None], on_edge, best)
    return best


def _part(point: np.ndarray, corners: np.ndarray) -> list[int]:
    """Over which part of the triangle corners (3,3) the point lies, as its corners: all three, an edge's two, or one."""
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    size = np.linalg.norm(normal)
    normal = normal / size if size > 0 else normal
    foot = point - (point - corners[0]) @ normal * normal
    beyond = False
    for i, j in EDGES.tolist():
        edge, away = corners[j] - corners[i], foot - corners[i]
        if np.cross(edge, away) @ normal < 0:
            if edge @ away >= 0 and edge @ (corners[j] - foot) >= 0:
                return [i, j]
            beyond = True
    return [int(((corners - point) ** 2).sum(1).argmin())] if beyond else [0, 1, 2]


def one_rings(faces: np.ndarray, count: int) -> list[list[int]]:
    """The neighbours of each of `count` vertices, clockwise (spec 2.5).

    They start, at a boundary, with the neighbour that no other one is followed by; elsewhere with the vertex that follows in
    the *last* face that names it: the order of faces matters. Of a vertex where two fans meet, the first fan alone.
    """
    after: list[dict[int, int]] = [{} for _ in range(count)]
    first: list[int] = [-1] * count
    for face in np.asarray(faces).tolist():
        for u, v, w in (face, face[1:] + face[:1], face[2:] + face[:2]):
            after[u][w] = v
            first[u] = v
    return [_walk(around, first[vertex]) for vertex, around in enumerate(after)]


def _walk(after: dict[int, int], start: int) -> list[int]:
    if not after:
        return []
    ring, seen = [], set()
    reached = set(after.values())
    vertex = next((key for key in after if key not in reached), start)
    while vertex is not None and vertex not in seen:
        ring.append(vertex)
        seen.add(vertex)
        vertex = after.get(vertex)
    return ring


def spirals(verts: np.ndarray, faces: np.ndarray, length: int, dilation: int = 1) -> np.ndarray:
    """Spiral table (v,length) int64 of verts (v,3), faces (f,3): each vertex, its rings outwards, every `dilation`-th (spec 2.5).

    A vertex whose rings end too early takes its nearest vertices instead. Raises InputError if the mesh is too small.
    """
    total = length * dilation
    if total > len(verts) or total < 1:
        raise InputError(f"seq_length {length} with dilation {dilation}: expected 1 to {len(verts)} steps on a mesh of "
                         f"{len(verts)} vertices, found {total}; lower seq_length or dilation, or decimate less (factors)")
    rings = one_rings(faces, len(verts))
    table = np.empty((len(verts), length), np.int64)
    for vertex in range(len(verts)):
        spiral = _spiral(rings, vertex, total)
        if spiral is None:
            spiral = _nearest_vertices(np.asarray(verts, np.float64), vertex, total)
        table[vertex] = spiral[:total:dilation]
    return table


def _spiral(rings: list[list[int]], vertex: int, total: int) -> list[int] | None:
    """At least `total` vertices around `vertex`; None if the rings end before."""
    spiral, ring = [vertex], rings[vertex]
    following = _next_ring(rings, ring, spiral)
    spiral = spiral + ring
    while len(spiral) + len(following) < total and following:
        ring = following
        following = _next_ring(rings, ring, spiral)  # the membership test leaves `ring` itself out of what is used
        spiral = spiral + ring
    return spiral + following if following else None


def _next_ring(rings: list[list[int]], ring: list[int], used: list[int]) -> list[int]:
    inner, taken = set(ring), {*ring, *used}
    following = []
    for vertex in ring:
        around = rings[vertex]
        begin = next((index for index, other in enumerate(around) if other in inner), 0)
        for other in around[begin:] + around[:begin]:
            if other not in taken:
                taken.add(other)
                following.append(other)
    return following


def _nearest_vertices(verts: np.ndarray, vertex: int, total: int) -> list[int]:
    squared = ((verts - verts[vertex]) ** 2).sum(1)
    squared[vertex] = -1  # first, also where another vertex is at the same place
    return np.argsort(squared, kind="stable")[:total].tolist()
