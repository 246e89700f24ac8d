"""Draw the mesh pyramid of the free hand, level by level: `PYTHONPATH=. python template/build_pyramid_picture.py`.

Solid, hidden lines removed, every edge drawn; faces seen from inside are red, so a hole or a flipped face shows. Logs, of each
level, its topology (a hand is one sheet with one opening), crossing triangles, sharp folds, and how far its up-sampling comes
back to the level before. Rows: as published, from palm and back, then with keep_boundary. Writes template/pictures/pyramid.png.
"""
import logging
from collections import Counter

import numpy as np
import torch
from build_pictures import HERE, SKIN, VIEWS, sheet
from PIL import Image, ImageDraw

from utils.hand import HandModel
from utils.mesh import build_pyramid, one_rings
from utils.pyramid import template_verts
from utils.render import render

INSIDE, EDGE = (0.85, 0.1, 0.1), np.array([60, 45, 40], np.float32)
SIZE, WIDTH_M, DISTANCE_M, SUPER = 250, 0.2, 0.9, 3
_LOG = logging.getLogger(__name__)


def solid(verts: np.ndarray, faces: np.ndarray, view: np.ndarray, title: str) -> np.ndarray:
    """One view (SIZE,SIZE,3) uint8 of verts (v,3), metres about the middle, as a camera with the axes `view` sees it."""
    side = SIZE * SUPER
    focal = side * DISTANCE_M / WIDTH_M
    K = torch.tensor([[focal, 0, (side - 1) / 2], [0, focal, (side - 1) / 2], [0, 0, 1]])
    camera = torch.as_tensor(verts @ view.T + (0, 0, DISTANCE_M), dtype=torch.float32)
    triangles = torch.as_tensor(faces)
    buffers = render(camera[None], triangles, K, side, side, cull="none")
    corners = camera[triangles]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=1)
    outside = (normals * corners.mean(1)).sum(-1) < 0
    colours = torch.where(outside[:, None], torch.tensor(SKIN), torch.tensor(INSIDE)) * (0.35 + 0.65 * normals[:, 2:].abs()) * 255
    uv = (corners @ K.T)[..., :2] / corners[..., 2:]
    lengths = (uv.roll(1, 1) - uv.roll(-1, 1)).norm(dim=-1)  # of the edge opposite to each corner
    area = (uv[:, 1] - uv[:, 0])[:, 0] * (uv[:, 2] - uv[:, 0])[:, 1] - (uv[:, 1] - uv[:, 0])[:, 1] * (uv[:, 2] - uv[:, 0])[:, 0]
    heights = area.abs()[:, None] / lengths.clamp(min=1e-6)
    seen, face = buffers.face[0] >= 0, buffers.face[0].clamp(min=0)
    image = torch.where(seen[..., None], colours[face], torch.tensor(255.0)).numpy()
    image[(seen & ((buffers.bary[0] * heights[face]).amin(-1) < 1.2)).numpy()] = EDGE
    picture = Image.fromarray(image.reshape(SIZE, SUPER, SIZE, SUPER, 3).mean((1, 3)).round().astype(np.uint8))
    ImageDraw.Draw(picture).text((6, 4), title, fill=(60, 60, 60), font_size=14)
    return np.asarray(picture)


def topology(verts: np.ndarray, faces: np.ndarray) -> dict[str, int]:
    """What a mesh (v,3), (f,3) is made of; a hand: one part, one boundary loop, so Euler characteristic 1, and no faults."""
    directed = Counter((f[i], f[(i + 1) % 3]) for f in faces.tolist() for i in range(3))
    edges = Counter(tuple(sorted(edge)) for edge in directed.elements())
    rings = one_rings(faces, len(verts))
    neighbours = Counter(vertex for edge in edges for vertex in edge)
    return {
        "vertices": len(verts), "faces": len(faces), "Euler characteristic": len(verts) - len(edges) + len(faces),
        "boundary edges": sum(count == 1 for count in edges.values()),
        "edges of more than two faces": sum(count > 2 for count in edges.values()),
        "edges walked twice the same way": sum(count > 1 for count in directed.values()),
        "vertices of no face or several fans": sum(len(ring) != neighbours[v] or not ring for v, ring in enumerate(rings)),
        "faces without area": int((_normals(verts, faces)[1] <= 0).sum()), "crossing pairs": crossings(verts, faces),
        "sharp folds (over 150 degrees)": folds(verts, faces),
    }


def _normals(verts: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    normals = np.cross(verts[faces[:, 1]] - verts[faces[:, 0]], verts[faces[:, 2]] - verts[faces[:, 0]])
    size = np.linalg.norm(normals, axis=1)
    return normals / np.maximum(size, 1e-30)[:, None], size


def folds(verts: np.ndarray, faces: np.ndarray) -> int:
    """Edges whose two faces nearly lie on each other: the sign of a face turned over."""
    normals = _normals(verts, faces)[0]
    of_edge: dict[tuple[int, int], list[int]] = {}
    for index, face in enumerate(faces.tolist()):
        for i in range(3):
            of_edge.setdefault(tuple(sorted((face[i], face[(i + 1) % 3]))), []).append(index)
    return sum(normals[pair[0]] @ normals[pair[1]] < np.cos(np.deg2rad(150)) for pair in of_edge.values() if len(pair) == 2)


def crossings(verts: np.ndarray, faces: np.ndarray) -> int:
    """Pairs (edge, face) without a common vertex that cross."""
    edges = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
    a, e1, e2 = verts[faces[:, 0]], *(verts[faces[:, k]] - verts[faces[:, 0]] for k in (1, 2))
    total = 0
    for start, stop in edges:
        way = verts[stop] - verts[start]
        across = np.cross(way, e2)
        det = (e1 * across).sum(1)
        away = verts[start] - a
        turned = np.cross(away, e1)
        apart = ~np.isin(faces, (start, stop)).any(1) & (np.abs(det) > 0)
        det = np.where(apart, det, 1)
        u, v, t = (away * across).sum(1) / det, turned @ way / det, (turned * e2).sum(1) / det
        total += int((apart & (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (t <= 1)).sum())
    return total


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hand = HandModel.load(HERE / "free_hand_right.npz")
    verts = template_verts(hand, "mean_pose")
    cells = []
    for rule, keep_boundary in (("published", False), ("boundary kept", True)):
        pyramid = build_pyramid(verts, hand.arrays.f, keep_boundary=keep_boundary)
        levels = [verts]
        for kept, columns, weights in zip(pyramid.kept, pyramid.columns, pyramid.weights):
            levels.append(levels[-1][kept])
            error_mm = 1e3 * np.linalg.norm((levels[-1][columns] * weights[..., None]).sum(1) - levels[-2], axis=1)
            sums = weights.sum(1)
            _LOG.info("%s, %d from %d: error mean %.1f, largest %.1f mm; weights %.2f to %.2f, sums %.2f to %.2f", rule,
                      len(columns), len(kept), error_mm.mean(), error_mm.max(), weights.min(), weights.max(), sums.min(),
                      sums.max())
        for level, faces in zip(levels, pyramid.faces):
            _LOG.info("%s: %s", rule, ", ".join(f"{name} {value}" for name, value in topology(level, faces).items()))
        for view in ("palm", "back"):
            cells += [solid(level - verts.mean(0), faces, np.array(VIEWS[view], float), f"{len(level)} vertices, {rule}")
                      for level, faces in zip(levels, pyramid.faces)]
    sheet(cells, len(levels), HERE / "pictures" / "pyramid.png")


if __name__ == "__main__":
    main()
