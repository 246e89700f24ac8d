"""Contacts and collisions of sampled hand poses: pinches by small inverse kinematics, rejection of fingers inside fingers.

All on one flat hand (verts (v,3), weights (v,16), joints (16,3), metres); angles are (15,3) about joint_axes (build_poses).
"""
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from build_math import FINGERS, chain, linear_blend, rodrigues, unit
from build_poses import PROTOTYPES, ROW, limits, pose_from_angles, prototype

SOLID = 0.72  # share of a finger's radius that may not be entered: flesh gives way


@dataclass
class Hand:
    """One flat hand with its joint axes (15,3,3), faces (f,3), tips (5,3) in the order of FINGERS and unit normals (v,3)."""

    verts: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    joints: np.ndarray
    axes: np.ndarray
    tips: np.ndarray

    def __post_init__(self) -> None:
        corner = self.verts[self.faces]
        flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        total = np.zeros_like(self.verts)
        for k in range(3):
            np.add.at(total, self.faces[:, k], flat)
        self.normals = unit(total)
        self.place_balls()

    def place_balls(self) -> None:
        """Rows of five balls (15,5,3) inside the bones, and how near which may come to which: `reach` (75,75+palm), metres."""
        ends, share = self.bones(), np.linspace(0.1, 0.9, 5)[:, None]
        along = unit(ends[:, 1] - ends[:, 0])
        radius = np.zeros(15)
        for j in range(15):
            rel = self.verts[self.weights[:, j + 1] > 0.6] - ends[j, 0]
            radius[j] = np.linalg.norm(rel - (rel @ along[j])[:, None] * along[j], axis=1).mean()
        radius[12] = radius[13]  # the ball of the thumb is part of the palm
        self.balls = ends[:, None, 0] * (1 - share) + ends[:, None, 1] * share
        self.balls[2::3, -1] = ends[2::3, 1] - along[2::3] * radius[2::3, None]
        self.palm = np.where(self.weights[:, 0] > 0.95)[0]
        bone = np.repeat(np.arange(15), 5)
        reach = radius[bone][:, None] + radius[bone]
        i, j = bone[:, None], bone
        same = i // 3 == j // 3
        reach = np.where(same, 0.8 * reach, reach)
        reach[(j <= i) | (same & (j != i + 2))] = -1
        skin = np.repeat((radius * np.where(np.arange(15) == 13, 0.8, 1.0))[bone][:, None], len(self.palm), 1)
        skin[(bone % 3 == 0)] = -1
        self.reach = np.concatenate([reach, skin], 1)

    def depth(self, poses: np.ndarray, firm: float) -> np.ndarray:
        """How deep (n,75) metres each ball of poses (n,15,3) is inside another bone's balls or the palm, shrunk by `firm`."""
        turns = np.concatenate([np.tile(np.eye(3), (len(poses), 1, 1, 1)), rodrigues(poses)], 1)
        world, _, offset = chain(turns, self.joints)
        at = np.einsum("njxy,jby->njbx", world[:, 1:], self.balls) + offset[:, 1:, None]
        at = at.reshape(len(poses), 75, 3)
        other = np.concatenate([at, np.broadcast_to(self.verts[self.palm], (len(poses), len(self.palm), 3))], 1)
        square = (at ** 2).sum(-1)[:, :, None] + (other ** 2).sum(-1)[:, None] - 2 * at @ other.transpose(0, 2, 1)
        gap = np.sqrt(np.maximum(square, 0))
        return np.where(self.reach > 0, firm * self.reach - gap, -1.0).max(2)

    def bones(self) -> np.ndarray:
        """Ends (15,2,3) of the bones of joints 1..15."""
        ends = np.zeros((15, 2, 3))
        for tip, (a, b, c) in zip(self.tips, FINGERS.values(), strict=True):
            for joint, end in ((a, self.joints[b]), (b, self.joints[c]), (c, tip)):
                ends[joint - 1] = self.joints[joint], end
        return ends

    def spot(self, joint: int, along: float, facing: np.ndarray) -> int:
        """Vertex of a bone's skin that lies `along` the bone (0 base, 1 end) and faces that way."""
        base, end = self.bones()[joint - 1]
        own = np.where(self.weights[:, joint] > 0.4)[0]
        where = (self.verts[own] - base) @ unit(end - base) / np.linalg.norm(end - base)
        return int(own[np.argmin(np.abs(where - along) * 1.5 - self.normals[own] @ facing)])

    def pulp(self, finger: str) -> int:
        """Vertex in the middle of a fingertip's pad."""
        joint = FINGERS[finger][2]
        return self.spot(joint, 0.62, -self.axes[joint - 1, 1])

    def back(self, finger: str, bone: int = 1) -> int:
        """Vertex on the back of a finger's middle bone, near its far end."""
        joint = FINGERS[finger][bone]
        return self.spot(joint, 0.9, self.axes[joint - 1, 1])

    def move(self, angles: np.ndarray, spots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Positions and normals (n,3) of some vertices in a pose, by linear blend skinning."""
        turns = np.concatenate([np.eye(3)[None], rodrigues(pose_from_angles(angles[None], self.axes)[0])])[None]
        world, _, offset = chain(turns, self.joints)
        normals = linear_blend(self.normals[spots], self.weights[spots], world, np.zeros_like(offset))[0]
        return linear_blend(self.verts[spots], self.weights[spots], world, offset)[0], unit(normals)


def touch(hand: Hand, angles: np.ndarray, one: int, two: int, free: dict[str, float], gap: float = 0.0,
          facing: float = 0.6) -> np.ndarray:
    """Angles (15,3) near `angles` for which vertex `one` meets vertex `two` (at `gap` metres along two's normal), skin to skin.

    free: finger -> stiffness; only these fingers move, within their limits and not into one another. facing: how firmly the two
    skins are made to look at each other.
    """
    index = [(r, k) for f in free for i, r in enumerate(ROW[f]) for k in ((0, 1, 2) if i == 0 else (0,))]
    rows, cols = np.array(index).T
    hold = np.array([free[f] for f in free for i in range(3) for _ in ((0, 1, 2) if i == 0 else (0,))])
    low, high = limits()[rows, cols].T

    def residual(x: np.ndarray) -> np.ndarray:
        moved = angles.copy()
        moved[rows, cols] = x
        (p, q), (n, m) = hand.move(moved, [one, two])
        inside = np.maximum(hand.depth(pose_from_angles(moved[None], hand.axes), firm=0.9)[0], 0)
        return np.concatenate([(p - q - gap * m) * 400, facing * (n + m), hold * (x - angles[rows, cols]), inside * 3000])

    rng = np.random.default_rng(0)  # from several starts: the thumb may come from the wrong side of a finger
    starts = [np.clip(angles[rows, cols] + k * 0.3 * (high - low) * rng.normal(size=len(rows)), low + 1e-3, high - 1e-3)
              for k in [0] + [1] * 11]
    found = min((scipy.optimize.least_squares(residual, x, bounds=(low, high)) for x in starts), key=lambda f: f.cost)
    result = angles.copy()
    result[rows, cols] = found.x
    return result


def named_poses(hand: Hand) -> dict[str, np.ndarray]:
    """Angles (15,3) of every named pose with its contacts made: pads that pinch, a thumb that closes a fist."""
    table = {name: prototype(name) for name in PROTOTYPES}
    thumb, only = hand.pulp("thumb"), {"thumb": 0.3}
    for finger in ("index", "middle", "ring", "little"):
        name = f"pinch {finger}"
        table[name] = touch(hand, table[name], thumb, hand.pulp(finger), {"thumb": 0.3, finger: 0.3})
    table["tripod"] = touch(hand, table["tripod"], thumb, hand.pulp("index"), {"thumb": 0.3, "index": 0.3})
    table["tripod"] = touch(hand, table["tripod"], hand.pulp("middle"), thumb, {"middle": 0.2}, gap=0.004)
    side = hand.spot(2, 0.6, hand.axes[1, 0])
    table["key"] = touch(hand, table["key"], thumb, side, only)
    for name, finger in (("fist", "middle"), ("point", "middle"), ("two", "ring"), ("three", "little")):
        table[name] = touch(hand, table[name], thumb, hand.back(finger), only, facing=0.3)
    palm = np.where(hand.weights[:, 0] > 0.9)[0]
    goal = palm[np.argmin(np.linalg.norm(hand.verts[palm] - hand.joints[10] - [0.012, -0.02, 0.0], axis=1))]
    table["four"] = touch(hand, table["four"], thumb, int(goal), only)
    return table


def clear(hand: Hand, poses: np.ndarray) -> np.ndarray:
    """(n,) true for poses (n,15,3) in which no finger enters another finger, itself or the palm."""
    parts = [hand.depth(poses[lo: lo + 200], SOLID).max(1) <= 0 for lo in range(0, len(poses), 200)]
    return np.concatenate(parts)
