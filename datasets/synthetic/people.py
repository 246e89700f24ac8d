"""The people of a synthetic dataset: hands of stated length, skin, and a bare or sleeved forearm.

A person's size is the flat hand's distance from the wrist joint to the tip of the middle finger, in millimetres: the one number
that matters for whose hand it is. The shape coefficients are drawn at random, then the first one is solved for the size.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from datasets.synthetic.anatomy import Anatomy, anatomy, unit
from utils.errors import InputError
from utils.hand import HandModel
from utils.render import vertex_normals

# Two children, adults of both sexes, two large hands. In the order of DexYCB's people; the last test people of s1 lie inside.
REAL_SIZES_MM = (186.0, 171.0, 202.0, 146.0, 193.0, 178.0, 168.0, 182.0, 196.0, 213.0)
_REACH = 7.0  # standard deviations of the first coefficient that are searched


def require_people(people: int, **given: tuple[float, ...] | None) -> None:
    """ValueError where an option that goes by person names too few of them (null = all drawn)."""
    for key, values in given.items():
        if values is not None and len(values) < people:
            raise ValueError(f"{key}: expected one for each of {people} people, or null, found {len(values)}")


def require_ranges(options: object, limits: dict[str, tuple[float, float]]) -> None:
    """ValueError where an option that is a range does not rise within its limits."""
    for key, (low, high) in limits.items():
        first, last = getattr(options, key)
        if not low <= first <= last <= high:
            raise ValueError(f"{key}: expected two rising numbers in {low}..{high}, found {first}, {last}")


@dataclass(frozen=True, eq=False)
class Person:
    """One person. shape (10) of the hand model, size_mm, tone: skin from light (0) to dark (1)."""

    index: int
    shape: np.ndarray
    size_mm: float
    tone: float


@dataclass(frozen=True, eq=False)
class Side:
    """One hand model made ready: model (float64), right or left."""

    model: HandModel

    @property
    def right(self) -> bool:
        return self.model.side == "right"

    @cached_property
    def faces(self) -> np.ndarray:
        return self.model.faces.numpy()

    @cached_property
    def tips(self) -> list[int]:
        return list(self.model.tips["manopth"])

    @cached_property
    def boundary(self) -> np.ndarray:
        """Vertex ids around the open wrist, each followed by the next along the faces' own direction."""
        return boundary_loop(self.faces)

    def rest(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat hand (778,3) and joints (16,3), metres."""
        hand = self.model.shaped(torch.from_numpy(shape))
        return hand.rest_verts.numpy(), hand.rest_joints.numpy()

    def anatomy(self, shape: np.ndarray) -> Anatomy:
        """Axes and places of this shape's flat hand."""
        verts, joints = self.rest(shape)
        normals = vertex_normals(torch.from_numpy(verts), self.model.faces).numpy()
        return anatomy(verts, joints, verts[self.tips], normals, self.model.weights.numpy(), self.right)

    def size_mm(self, shape: np.ndarray) -> float:
        """Wrist joint to middle fingertip of the flat hand, mm."""
        verts, joints = self.rest(shape)
        return float(np.linalg.norm(verts[self.tips[2]] - joints[0]) * 1000)


def boundary_loop(faces: np.ndarray) -> np.ndarray:
    """The one open edge loop of a mesh, ids in the order in which its faces walk it. Raises InputError for none or several."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in edges}
    following = {a: b for a, b in known if (b, a) not in known}
    loop = [min(following, default=-1)]
    while following.get(loop[-1], loop[0]) != loop[0]:
        loop.append(following[loop[-1]])
    if len(loop) != len(following):
        raise InputError(f"hand model: expected one open edge loop at the wrist, found {len(following)} open "
                         "edges in no such loop; use another hand")
    return np.array(loop)


def make_people(count: int, sizes_mm: tuple[float, ...] | None, side: Side, seed: int,
                given_tones: tuple[float, ...] | None = None) -> list[Person]:
    """`count` people of the given sizes, and skin tones (0 light to 1 dark; None: drawn evenly).

    sizes_mm None: all ten coefficients are standard normal, as the hand model's prior has them (cut at 3): a population on
    which intervals that rest on this prior can be checked.

    Raises InputError where the hand model cannot be that small or large.
    """
    rng = np.random.default_rng([seed, 11])
    tones = (rng.permutation(count) + rng.uniform(0.2, 0.8, count)) / count
    tones = tones if given_tones is None else np.array(given_tones[:count])
    if sizes_mm is None:
        shapes = np.round(np.clip(rng.normal(0, 1, (count, 10)), -3, 3), 6)
        return [Person(i, shape, side.size_mm(shape), tones[i]) for i, shape in enumerate(shapes)]
    shapes = np.concatenate([np.zeros((count, 1)), np.clip(rng.normal(0, 0.8, (count, 9)), -2, 2)], 1)
    return [Person(i, _of_size(shapes[i], sizes_mm[i], side), sizes_mm[i], tones[i]) for i in range(count)]


def _of_size(shape: np.ndarray, size_mm: float, side: Side) -> np.ndarray:
    """The shape with its first coefficient solved for the size, to 1e-4 mm, rounded to what mano.yml holds."""
    def error(first: float) -> float:
        return side.size_mm(np.array([first, *shape[1:]])) - size_mm

    low, high = -_REACH, _REACH
    at_low, at_high = error(low), error(high)
    if at_low * at_high > 0:
        ends = sorted((at_low + size_mm, at_high + size_mm))
        raise InputError(f"synth.sizes_mm: a hand of {size_mm:g} mm is beyond what {side.model.name} can be ({ends[0]:.0f} to "
                         f"{ends[1]:.0f}); choose another size")
    for _ in range(40):
        middle = (low + high) / 2
        at_middle = error(middle)
        if at_middle * at_low > 0:
            low, at_low = middle, at_middle
        else:
            high = middle
    return np.round(np.array([middle, *shape[1:]]), 6)


@dataclass(frozen=True)
class Arm:
    """A forearm grown from the wrist's edge loop. loop: its ids · faces: ids below 778 are the hand's · along (n) metres from the
    wrist, turn (n) angle about it, of its own n vertices · rings: metres from the wrist · widths, wrist = 1 · sleeve: start.
    """

    loop: np.ndarray
    faces: np.ndarray
    along: np.ndarray
    turn: np.ndarray
    rings: np.ndarray
    widths: np.ndarray
    sleeve: float


def make_arm(side: Side, scale: float, rng: np.random.Generator) -> Arm:
    """Bare at first, then (mostly) a sleeve; `scale` 1 = a hand of 187 mm."""
    at = np.array([0.010, 0.024, 0.040, 0.060, 0.095, 0.14, 0.22, 0.35, 0.62]) * scale
    width = np.array([0.98, 0.97, 0.98, 1.0, 1.08, 1.2, 1.34, 1.44, 1.6])
    sleeve = rng.choice([rng.uniform(0.012, 0.05), rng.uniform(0.05, 0.2), 9.0], p=[0.35, 0.35, 0.3]) * scale
    if sleeve < at[-1]:
        skin, loose = np.interp([sleeve - 0.001, sleeve], at, width) * [1.0, rng.uniform(1.12, 1.3)]
        covered = at > sleeve
        width = np.concatenate([width[~covered & (at < sleeve - 0.001)], [skin, loose], width[covered] * loose / skin])
        at = np.concatenate([at[~covered & (at < sleeve - 0.001)], [sleeve - 0.001, sleeve], at[covered]])
    loop, n, rows = side.boundary, len(side.boundary), len(at)
    ids = np.concatenate([loop[None], 778 + np.arange(rows * n).reshape(rows, n)])
    a, b = ids[:-1], ids[1:]
    after = np.roll(np.arange(n), -1)
    # The hand's faces walk the loop a -> next; its neighbours must walk it back.
    walls = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a[:, after], a, b), (a[:, after], b, b[:, after]))])
    cap = np.stack([ids[-1][after], ids[-1], np.full(n, 778 + rows * n)], 1)
    angle = np.arange(n) * 2 * np.pi / n
    along = np.append(np.repeat(at, n), at[-1])
    return Arm(loop, np.concatenate([walls, cap]), along, np.append(np.tile(angle, rows), 0.0), at, width, sleeve)


def pose_arm(arm: Arm, hand: Anatomy, posed: np.ndarray, turn: np.ndarray, elbow: np.ndarray) -> np.ndarray:
    """Vertices (t,n,3) of the forearm: posed (t,778,3) hand, turn (t,3,3), elbow (t,3) unit, all in the table frame."""
    edge = posed[:, arm.loop]
    centre = edge.mean(1)
    straight = -(turn @ hand.forward)
    offset = edge - centre[:, None]
    flat = offset - straight[:, None] * (offset * straight[:, None]).sum(-1, keepdims=True)
    cosine = np.clip((straight * elbow).sum(1), -1, 1)
    axis, angle = unit(np.cross(straight, elbow)), np.arccos(cosine)
    verts, before = [], 0.0
    for at, width in zip(arm.rings, arm.widths):
        share = min(1.0, at / (0.6 * arm.rings[4]))
        direction = _turned(straight, axis, angle * share)
        centre = centre + direction * (at - before)
        mix = min(1.0, at / arm.rings[1])
        ring = _turned(offset * (1 - mix) + flat * mix, axis[:, None], (angle * share)[:, None])
        verts.append(centre[:, None] + ring * width)
        before = at
    return np.concatenate([*verts, centre[:, None]], 1)


def _turned(vectors: np.ndarray, axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Vectors (...,3) turned about unit axes (...,3) by angles (...)."""
    c, s = np.cos(angle)[..., None], np.sin(angle)[..., None]
    return vectors * c + np.cross(axis, vectors) * s + axis * (axis * vectors).sum(-1, keepdims=True) * (1 - c)
