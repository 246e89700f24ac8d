"""Mesh measures in plain numpy for the build and its tests: open loop, capped volume, crossings, surface distance.

Faces are counter-clockwise seen from outside, metres.
"""
import numpy as np
from scipy.spatial import cKDTree


def boundary_loop(faces: np.ndarray) -> list[int]:
    """Vertices of the single open loop of a mesh, in order (the direction of the faces' own edges)."""
    edges = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)}
    follow = {a: b for a, b in edges if (b, a) not in edges}
    start = min(follow)
    loop = [start]
    while follow[loop[-1]] != start:
        loop.append(follow[loop[-1]])
    return loop


def volume(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Signed volume (...) of the mesh capped at its open loop; verts (...,v,3), positive when the faces look outwards."""
    loop = np.array(boundary_loop(faces))
    corner = verts - verts[..., loop, :].mean(-2, keepdims=True)  # the lid, a fan about this point, then adds nothing
    a, b, c = (corner[..., faces[:, k], :] for k in range(3))
    return np.einsum("...fi,...fi->...", a, np.cross(b, c)) / 6


def _edges_hit(points: np.ndarray, tri: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(p,) true where one of the three edges of triangle tri[p] passes through triangle other[p]; points (v,3)."""
    a, b, c = (points[other[:, k]] for k in range(3))
    e1, e2 = b - a, c - a
    hit = np.zeros(len(tri), bool)
    for k in range(3):
        start, end = points[tri[:, k]], points[tri[:, (k + 1) % 3]]
        ray = end - start
        h = np.cross(ray, e2)
        det = (e1 * h).sum(-1)
        safe = np.where(np.abs(det) < 1e-18, np.inf, det)
        s = start - a
        u = (s * h).sum(-1) / safe
        q = np.cross(s, e1)
        v, t = (ray * q).sum(-1) / safe, (e2 * q).sum(-1) / safe
        hit |= (np.abs(det) > 1e-18) & (u > 0) & (v > 0) & (u + v < 1) & (t > 0) & (t < 1)
    return hit


def crossings(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Pairs (n,2) of faces that cross each other and share no vertex; verts (v,3)."""
    corner = verts[faces]
    low, high = corner.min(1), corner.max(1)
    centre, reach = (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2
    pairs = cKDTree(centre).query_pairs(2 * reach.max(), output_type="ndarray")
    i, j = pairs.T
    near = ((low[i] <= high[j]) & (low[j] <= high[i])).all(1)
    near &= ~(faces[i][:, :, None] == faces[j][:, None, :]).any((1, 2))
    i, j = i[near], j[near]
    hit = _edges_hit(verts, faces[i], faces[j]) | _edges_hit(verts, faces[j], faces[i])
    return np.stack([i[hit], j[hit]], 1)


def surface_distance(points: np.ndarray, verts: np.ndarray, faces: np.ndarray, tried: int = 40) -> np.ndarray:
    """Distance (p,) from points (p,3) to the nearest of the `tried` faces whose centres are closest."""
    _, near = cKDTree(verts[faces].mean(1)).query(points, tried)
    tri = verts[faces[near]]
    a, b, c = tri[:, :, 0], tri[:, :, 1], tri[:, :, 2]
    p = points[:, None]
    best = np.full(near.shape, np.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        edge = end - start
        t = np.clip(((p - start) * edge).sum(-1) / np.maximum((edge ** 2).sum(-1), 1e-18), 0, 1)
        best = np.minimum(best, np.linalg.norm(p - start - t[..., None] * edge, axis=-1))
    normal = np.cross(b - a, c - a)
    length = np.maximum(np.linalg.norm(normal, axis=-1), 1e-18)
    height = ((p - a) * normal).sum(-1) / length
    foot = p - height[..., None] * normal / length[..., None]
    inside = np.ones(near.shape, bool)
    for start, end in ((a, b), (b, c), (c, a)):
        inside &= (np.cross(end - start, foot - start) * normal).sum(-1) >= 0
    return np.where(inside, np.minimum(best, np.abs(height)), best).min(1)


def sample_surface(verts: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random points (count,3), even over the area."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    pick = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    return a[pick] + u * (b - a)[pick] + v * (c - a)[pick]
