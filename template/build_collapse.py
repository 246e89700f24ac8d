"""Half-edge quadric collapse of the 1609-vertex hand to MANO's counts (778 vertices, 1538 faces, wrist loop of 16), vertex order.

After Garland and Heckbert 1997, with the quadrics summed over several poses and people, so the choice suits the moving hand.
A collapse moves a vertex onto a neighbour, so what is left is a subset of the source's vertices: weights and blend shapes
stay plain rows. Boundary edges only collapse along the boundary; folds, slivers and pinches are refused.
"""
import heapq

import numpy as np
from build_math import unit
from build_mesh import boundary_loop

# Fingertip ids in use by some program or dataset; the first of each is manopth's and gets the most distal vertex.
TIP_IDS = {"thumb": (745, 744, 728), "index": (317, 320, 333, 353), "middle": (444, 445, 443, 442),
           "ring": (556, 554, 555, 576), "little": (673, 671, 672, 694)}
PALM_IDS = (95, 22)  # manopth's root_palm is the mean of these two


class Collapser:
    """State of one collapse: shapes (c,v,3) are the configurations that count, faces (f,3) are shared by all."""

    def __init__(self, shapes: np.ndarray, faces: np.ndarray, importance: np.ndarray, sliver: float) -> None:
        self.shapes, self.faces, self.alive = shapes, faces.copy(), np.ones(len(faces), bool)
        self.around = [set() for _ in range(shapes.shape[1])]
        for i, f in enumerate(faces):
            for v in f:
                self.around[v].add(i)
        self.loop = set(boundary_loop(faces))
        self.importance, self.sliver = importance, sliver
        self.quadrics = self.start_quadrics()
        self.stamp = np.zeros(shapes.shape[1], int)

    def start_quadrics(self) -> np.ndarray:
        """Area-weighted plane quadrics (c,v,4,4), plus planes upright on the wrist loop so that it keeps its shape."""
        p, f = self.shapes, self.faces
        normal = np.cross(p[:, f[:, 1]] - p[:, f[:, 0]], p[:, f[:, 2]] - p[:, f[:, 0]])
        area = np.linalg.norm(normal, axis=-1) / 2
        plane = np.concatenate([unit(normal), -(unit(normal) * p[:, f[:, 0]]).sum(-1, keepdims=True)], -1)
        each = np.einsum("cf,cfi,cfj->cfij", area, plane, plane)
        q = np.zeros((*p.shape[:2], 4, 4))
        for k in range(3):
            np.add.at(q, (slice(None), f[:, k]), each)
        loop = boundary_loop(f)
        for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
            face = next(iter(self.around[a] & self.around[b]))
            edge = p[:, b] - p[:, a]
            side = unit(np.cross(edge, normal[:, face]))
            plane = np.concatenate([side, -(side * p[:, a]).sum(-1, keepdims=True)], -1)
            q[:, [a, b]] += np.einsum("c,ci,cj->cij", (edge ** 2).sum(-1), plane, plane)[:, None]
        return q

    def neighbours(self, v: int) -> set[int]:
        """Vertices that share a face with v."""
        return {int(x) for i in self.around[v] for x in self.faces[i]} - {v}

    def cost(self, gone: int, kept: int) -> float | None:
        """Cost of moving `gone` onto `kept`, None where the mesh would fold, pinch or lose its loop."""
        shared = self.around[gone] & self.around[kept]
        if gone in self.loop and (kept not in self.loop or len(shared) != 1):
            return None
        if gone not in self.loop and len(shared) != 2:
            return None
        if len(self.neighbours(gone) & self.neighbours(kept)) != len(shared):
            return None
        faces = np.array([self.faces[i] for i in self.around[gone] - shared])
        moved = np.where(faces == gone, kept, faces)
        before, after = self.shapes[:, faces], self.shapes[:, moved]
        n0, n1 = (np.cross(t[:, :, 1] - t[:, :, 0], t[:, :, 2] - t[:, :, 0]) for t in (before, after))
        if ((unit(n0) * unit(n1)).sum(-1) < 0.3).any():
            return None
        longest = np.linalg.norm(after - np.roll(after, 1, axis=2), axis=-1).max(-1)
        thin = longest ** 2 / np.maximum(np.linalg.norm(n1, axis=-1), 1e-12)  # 2 / sqrt(3) for an equilateral triangle
        if thin.max() > 14:
            return None
        point = np.append(self.shapes[:, kept], np.ones((len(self.shapes), 1)), 1)
        quadric = self.quadrics[:, gone] + self.quadrics[:, kept]
        error = np.einsum("ci,cij,cj->c", point, quadric, point).mean()
        shape = (thin[0] * longest[0] ** 4).mean()
        return float(self.importance[gone] * (error + self.sliver * shape))

    def push(self, heap: list, v: int) -> None:
        """Put v's cheapest allowed collapse on the heap, marked with v's present stamp."""
        best = None
        for kept in self.neighbours(v):
            cost = self.cost(v, kept)
            if cost is not None and (best is None or cost < best[0]):
                best = (cost, v, kept)
        if best:
            heapq.heappush(heap, (*best, self.stamp[v]))

    def run(self, target: int, loop_target: int, keep: set[int]) -> np.ndarray:
        """Collapse to `target` vertices with a boundary of `loop_target` edges; returns the kept faces (f,3), old ids."""
        left = sum(bool(a) for a in self.around)
        heap: list = []
        for v in range(len(self.around)):
            if v not in keep:
                self.push(heap, v)
        while left > target:
            _, gone, kept, stamp = heapq.heappop(heap)
            if stamp != self.stamp[gone] or not self.around[gone]:
                continue
            if gone in self.loop:
                if len(self.loop) <= loop_target:
                    continue
                self.loop.discard(gone)
            elif left - target <= len(self.loop) - loop_target:
                continue  # what is left to do belongs to the loop
            self.apply(gone, kept)
            left -= 1
            for v in {kept} | self.neighbours(kept):
                self.stamp[v] += 1
                if v not in keep:
                    self.push(heap, v)
        return self.faces[self.alive]

    def apply(self, gone: int, kept: int) -> None:
        """Move `gone` onto `kept`: their shared faces vanish, the quadrics add up."""
        for i in list(self.around[gone]):
            if kept in self.faces[i]:
                self.alive[i] = False
                for x in self.faces[i]:
                    self.around[x].discard(i)
            else:
                self.faces[i][self.faces[i] == gone] = kept
                self.around[kept].add(i)
        self.around[gone] = set()
        self.quadrics[:, kept] += self.quadrics[:, gone]


def vertex_order(verts: np.ndarray, weights: np.ndarray, joints: np.ndarray, fingers: dict) -> np.ndarray:
    """Old ids (v,) in the new order: fingertip ids and palm ids on the right spots, the rest finger by finger from the wrist.

    verts (v,3), weights (v,16), joints (16,3) of the collapsed flat hand.
    """
    slots: dict[int, int] = {}
    for name, ids in TIP_IDS.items():
        last = fingers[name][-1]
        along = unit(joints[last] - joints[last - 1])
        own = np.where(weights[:, last] > 0.5)[0]
        offset = verts[own] - joints[last]
        reach = offset @ along
        aside = np.linalg.norm(offset - reach[:, None] * along, axis=1)
        ranked = own[np.argsort(-(reach - 0.25 * aside))]
        slots.update(zip(ids, ranked.tolist(), strict=False))
    palm = joints[0] * 0.72 + joints[4] * 0.28
    down = np.where((weights[:, 0] > 0.5) & (verts[:, 1] < joints[0, 1]))[0]
    for slot, z in zip(PALM_IDS, (0.012, -0.012), strict=True):
        free = [v for v in down if v not in slots.values()]
        slots[slot] = int(min(free, key=lambda v: np.hypot(verts[v, 0] - palm[0], verts[v, 2] - palm[2] - z)))
    part = np.array([0, 3, 3, 3, 4, 4, 4, 6, 6, 6, 5, 5, 5, 7, 7, 7])[weights.argmax(1)]
    rest = sorted(set(range(len(verts))) - set(slots.values()), key=lambda v: (part[v], -verts[v, 0]))
    order, rest = np.empty(len(verts), int), iter(rest)
    for slot in range(len(verts)):
        order[slot] = slots[slot] if slot in slots else next(rest)
    return order
