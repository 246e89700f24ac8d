"""Fewer vertices by quadric errors (Garland and Heckbert, SIGGRAPH 1997), by the exact rules of CMR's and METRO's published code.

Vertices never move, they only go (specs/cmr_boukhayma_metro.md 2.6); the answer does not depend on where the mesh stands.
"""
import heapq

import numpy as np

EDGES = np.array([[0, 1], [1, 2], [2, 0]])


def decimate(verts: np.ndarray, faces: np.ndarray, target: int, keep_boundary: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Collapse the cheapest edges of verts (v,3), faces (f,3) until at most `target` vertices are left.

    -> kept (k,) ids, ascending, and the faces of those, renumbered, in the old order. Spec 2.6: an edge (r, c), r < c, collapses
    into the end with the smaller summed quadric error (c on ties); keys that grew since are pushed back; ties by (r, c). No test
    of the link condition: rough meshes can lose manifoldness. A face without area adds no plane.
    keep_boundary: edges of one face add, at both ends, the plane through them at right angles to that face. The published
    pyramids are made without: the opening at the wrist then grows, level by level, up to half of the back of the hand.
    """
    faces = np.asarray(faces, np.int64)
    points = np.concatenate([np.asarray(verts, np.float64), np.ones((len(verts), 1))], 1)
    quadrics = _quadrics(points, faces)
    if keep_boundary:
        _add_boundary(quadrics, points, faces)
    ends = np.unique(np.sort(faces[:, EDGES].reshape(-1, 2), 1), axis=0)
    heap = [(min(_costs(points, quadrics, r, c)), r, c) for r, c in ends.tolist()]
    heapq.heapify(heap)
    survivor, mesh = list(range(len(verts))), _Corners(faces)

    def alive(vertex: int) -> int:
        while survivor[vertex] != vertex:
            survivor[vertex] = survivor[survivor[vertex]]
            vertex = survivor[vertex]
        return vertex

    while mesh.vertices > target and heap:
        key, r, c = heapq.heappop(heap)
        r, c = alive(r), alive(c)
        if r == c:
            continue
        at_r, at_c = _costs(points, quadrics, r, c)
        if min(at_r, at_c) > key:
            heapq.heappush(heap, (min(at_r, at_c), r, c))
            continue
        keep, gone = (r, c) if at_r < at_c else (c, r)
        quadrics[keep] = quadrics[gone] = quadrics[r] + quadrics[c]
        survivor[gone] = keep
        mesh.relabel(gone, keep)
    left = mesh.left()
    kept, renumbered = np.unique(left, return_inverse=True)
    return kept, renumbered.reshape(left.shape).astype(np.int64)


def _quadrics(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(v,4,4): for each vertex the sum of p p^T over its faces, p = (unit normal, -normal . a)."""
    corners = points[faces, :3]
    quadrics = np.zeros((len(points), 4, 4))
    _add_planes(quadrics, faces, np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), corners[:, 0])
    return quadrics


def _add_boundary(quadrics: np.ndarray, points: np.ndarray, faces: np.ndarray) -> None:
    """Add the planes through boundary edges, at right angles to their faces, to the quadrics of their ends."""
    edges, owner = faces[:, EDGES].reshape(-1, 2), np.repeat(np.arange(len(faces)), 3)
    _, edge, count = np.unique(np.sort(edges, 1), axis=0, return_inverse=True, return_counts=True)
    alone = count[edge.ravel()] == 1
    edges, corners = edges[alone], points[faces[owner[alone]], :3]
    start, stop = points[edges[:, 0], :3], points[edges[:, 1], :3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    _add_planes(quadrics, edges, np.cross(stop - start, normals), start)


def _add_planes(quadrics: np.ndarray, ids: np.ndarray, normals: np.ndarray, through: np.ndarray) -> None:
    """Add to each vertex of ids (n,k) the quadric of the plane with normals (n,3), of any length, through the points (n,3)."""
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.divide(normals, size, out=np.zeros_like(normals), where=size > 0)
    planes = np.concatenate([normals, -(normals * through).sum(1, keepdims=True)], 1)
    np.add.at(quadrics, ids.ravel(), np.repeat(planes[:, :, None] * planes[:, None], ids.shape[1], 0))


def _costs(points: np.ndarray, quadrics: np.ndarray, r: int, c: int) -> tuple[float, float]:
    """Quadric error of the edge's sum at r and at c."""
    both = quadrics[r] + quadrics[c]
    return float(points[r] @ both @ points[r]), float(points[c] @ both @ points[c])


class _Corners:
    """Faces while they are relabelled: which are left, and how many vertices they name."""

    def __init__(self, faces: np.ndarray):
        self.faces: list[list[int] | None] = faces.tolist()
        self.of_vertex: dict[int, set[int]] = {}
        for index, face in enumerate(self.faces):
            for vertex in face:
                self.of_vertex.setdefault(vertex, set()).add(index)

    @property
    def vertices(self) -> int:
        return len(self.of_vertex)

    def relabel(self, gone: int, keep: int) -> None:
        """Name `keep` where `gone` was named; a face that names a vertex twice goes."""
        for index in self.of_vertex.pop(gone, ()):
            face = self.faces[index]
            face[face.index(gone)] = keep
            if face.count(keep) == 1:
                self.of_vertex.setdefault(keep, set()).add(index)
                continue
            self.faces[index] = None
            for vertex in set(face):
                self.of_vertex[vertex].discard(index)
                if not self.of_vertex[vertex]:
                    del self.of_vertex[vertex]

    def left(self) -> np.ndarray:
        return np.array([face for face in self.faces if face], np.int64).reshape(-1, 3)
