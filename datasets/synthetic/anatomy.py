"""Axes, limits and named poses of a hand, read off its own geometry: they fit MANO, the free hand, right and left alike.

Every finger joint turns about three axes of the flat rest pose: bend (+ towards the palm), spread (+ towards the thumb's side;
for the thumb out of the palm's plane) and twist (about the bone). Angles are radians, arrays (..., 15, 3) in the order of the
hand model's joints 1..15 (index, middle, little, ring, thumb; base to tip). Beyond about 1.2 / 1.5 / 1.0 rad of flexion the
fingertips pass through the palm (design.md section 6): the limits stay inside.
"""
from dataclasses import dataclass

import numpy as np
import torch

from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle

ROWS = {"index": (0, 1, 2), "middle": (3, 4, 5), "little": (6, 7, 8), "ring": (9, 10, 11), "thumb": (12, 13, 14)}
LONG = ("index", "middle", "ring", "little")

_FINGER = [[[-0.30, 1.15], [-0.22, 0.22], [-0.05, 0.05]], [[-0.05, 1.45], [0, 0], [0, 0]], [[-0.10, 0.90], [0, 0], [0, 0]]]
_THUMB = [[[-0.35, 0.55], [-0.30, 0.65], [-0.25, 0.50]], [[-0.15, 0.75], [-0.1, 0.1], [0, 0]], [[-0.30, 1.00], [0, 0], [0, 0]]]
LIMITS = np.array(_FINGER * 4 + _THUMB)  # (15,3,2)
LIMITS[ROWS["ring"][0], 1] = (-0.28, 0.22)
LIMITS[ROWS["little"][0], 1] = (-0.38, 0.25)

_CURL = np.array([1.08, 1.38, 0.80])  # bend of a finger's three joints at curl 1
_FAN = {"index": 0.18, "middle": 0.02, "ring": -0.14, "little": -0.30}
_CLOSE = {"index": -0.06, "middle": 0.0, "ring": 0.06, "little": 0.12}  # flexed fingers draw together
_THUMBS = {  # (bend, spread, twist) of the base, bend of the middle and of the end joint
    "rest": (0.10, 0.05, 0.10, 0.15, 0.15), "side": (-0.05, -0.25, 0.0, 0.05, 0.1), "out": (-0.30, 0.0, -0.1, -0.1, -0.2),
    "oppose": (0.30, 0.55, 0.40, 0.25, 0.30), "over": (0.40, 0.45, 0.35, 0.50, 0.70), "palm": (0.50, 0.25, 0.35, 0.60, 0.60),
}
# A closing thumb: held wide, swung opposite the fingers, closed (columns as in _THUMBS).
_THUMB_COURSE = np.array([[-0.35, -0.28, -0.1, -0.15, -0.2], [-0.15, 0.50, 0.15, 0.05, 0.1], [0.40, 0.45, 0.45, 0.55, 0.75]])
# name: share, curl of index, middle, ring, little (0 flat, 1 fist), fan of the fingers, thumb
POSES = {
    "flat": (6, (0, 0, 0, 0), 0.2, "rest"), "relaxed": (20, (0.25, 0.32, 0.36, 0.38), 0.1, "rest"),
    "half open": (12, (0.42, 0.48, 0.5, 0.52), 0.1, "oppose"), "fist": (7, (0.97, 1, 1, 0.97), 0.0, "over"),
    "spread": (7, (-0.05, -0.06, -0.06, -0.04), 1.0, "out"), "closed": (4, (0.05, 0.04, 0.05, 0.08), -0.6, "side"),
    "cylinder": (7, (0.58, 0.62, 0.65, 0.66), 0.0, "oppose"), "ball": (7, (0.38, 0.42, 0.42, 0.42), 0.8, "oppose"),
    "point": (6, (0.0, 0.88, 0.93, 0.93), 0.0, "over"), "two": (4, (0, 0, 0.93, 0.93), 0.7, "over"),
    "three": (3, (0, 0, 0, 0.9), 0.5, "palm"), "four": (3, (0, 0, 0, 0), 0.5, "palm"),
    "thumb up": (4, (0.97, 1, 1, 0.97), 0.0, "out"), "call": (3, (0.92, 0.95, 0.95, 0.0), 0.2, "out"),
    "gun": (2, (0, 0.9, 0.93, 0.93), 0.0, "out"), "pinch": (8, (0.55, 0.34, 0.28, 0.25), 0.0, "oppose"),
    "tripod": (5, (0.52, 0.54, 0.6, 0.62), -0.2, "oppose"), "claw": (4, (0.6, 0.6, 0.6, 0.6), 0.7, "oppose"),
}


@dataclass(frozen=True)
class Anatomy:
    """Rest geometry of one hand, model frame, metres. forward: wrist to middle knuckle, side: towards the thumb, palm: out of it
    (unit, orthogonal) · axes (15,3,3) rows bend, spread, twist · nail: out of the thumb's nail · palm_point: middle of the palm's
    skin · joints (16,3) · tips (5,3) thumb..little · sign: +1 right, -1 left.
    """

    forward: np.ndarray
    side: np.ndarray
    palm: np.ndarray
    axes: np.ndarray
    nail: np.ndarray
    palm_point: np.ndarray
    joints: np.ndarray
    tips: np.ndarray
    sign: int


def unit(a: np.ndarray) -> np.ndarray:
    """Vectors of the last axis at length one."""
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12)


def anatomy(verts: np.ndarray, joints: np.ndarray, tips: np.ndarray, normals: np.ndarray, weights: np.ndarray,
            right: bool) -> Anatomy:
    """Read the axes off a flat hand: verts (778,3), joints (16,3), tips (5,3) thumb first, normals (778,3), weights (778,16)."""
    sign = 1 if right else -1
    forward = unit(joints[4] - joints[0])
    side = joints[1] - joints[7]
    side = unit(side - forward * (side @ forward))
    palm = sign * np.cross(side, forward)
    end_bone = normals[weights[:, 15] > 0.9]
    nail = unit(side - 0.5 * palm)
    for _ in range(10):
        nail = unit(end_bone[end_bone @ nail > 0.8].sum(0))
    axes = np.zeros((15, 3, 3))
    for finger, (name, rows) in enumerate((k, ROWS[k]) for k in ("thumb", *LONG)):
        line = np.stack([*(joints[r + 1] for r in rows), tips[finger]])
        along = unit(np.diff(line, axis=0))
        bend = unit(np.cross(along, -nail if name == "thumb" else palm))
        axes[list(rows)] = np.stack([bend, sign * np.cross(along, bend), sign * along], 1)
    knuckles = joints[[1, 4, 10, 7]].mean(0)
    middle = joints[0] + 0.62 * (knuckles - joints[0])
    near = np.linalg.norm(np.cross(verts - middle, palm), axis=1) < 0.012
    depth = ((verts - middle) @ palm)[near].max(initial=0.01)
    return Anatomy(forward, side, palm, axes, nail, middle + palm * depth, joints, tips, sign)


def axis_angle_from_angles(angles: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Angles (..., 15, 3) about (bend, spread, twist) to axis-angle (..., 15, 3): twist first, then bend, then spread."""
    bend, spread, twist = (matrix_from_axis_angle(torch.from_numpy(angles[..., k, None] * axes[:, k])) for k in range(3))
    return axis_angle_from_matrix(spread @ bend @ twist).numpy()


def pose(name: str) -> np.ndarray:
    """Angles (15,3) of a named pose."""
    _, curls, fan, thumb = POSES[name]
    angles = np.zeros((15, 3))
    for finger, curl in zip(LONG, curls, strict=True):
        rows = list(ROWS[finger])
        angles[rows, 0] = _CURL * curl
        angles[rows[0], 1] = _CLOSE[finger] * max(curl, 0) + _FAN[finger] * fan
    angles[12], angles[13, 0], angles[14, 0] = _THUMBS[thumb][:3], _THUMBS[thumb][3], _THUMBS[thumb][4]
    return angles


def sample_pose(rng: np.random.Generator) -> np.ndarray:
    """Random angles (15,3) within the limits: a named pose, partly another one, plus noise per finger and per joint."""
    names = list(POSES)
    share = np.array([POSES[n][0] for n in names], float)
    first, second = rng.choice(names, 2, p=share / share.sum())
    mix = rng.beta(0.6, 2.5)
    angles = pose(first) * (1 - mix) + pose(second) * mix
    for finger in LONG:
        angles[list(ROWS[finger]), 0] += rng.normal(0, 0.12) * _CURL
    angles[12:15, 0] += rng.normal(0, 0.12) * np.array([0.4, 0.5, 0.7])
    return clipped(angles + rng.normal(0, 0.06, (15, 3)) * (LIMITS[..., 1] - LIMITS[..., 0]))


def clipped(angles: np.ndarray) -> np.ndarray:
    """Angles within the limits; a bent finger can spread less."""
    angles = np.clip(angles, LIMITS[..., 0], LIMITS[..., 1])
    bases = [ROWS[f][0] for f in LONG]
    room = np.clip(1.15 - 0.85 * angles[..., bases, 0], 0.2, 1.0)
    angles[..., bases, 1] *= room
    return angles


def grasp_pose(closing: np.ndarray, spread: float = 0.0) -> np.ndarray:
    """Angles (..., 15, 3) of a hand that closes about a thing: closing (...,5) in [0,1], thumb first."""
    angles = np.zeros((*closing.shape[:-1], 15, 3))
    for i, finger in enumerate(LONG):
        rows = list(ROWS[finger])
        angles[..., rows, 0] = 0.05 + closing[..., i + 1, None] * np.array([1.0, 1.25, 0.75])
        angles[..., rows[0], 1] = _FAN[finger] * spread
    for column, (row, axis) in enumerate(((12, 0), (12, 1), (12, 2), (13, 0), (14, 0))):
        angles[..., row, axis] = np.interp(closing[..., 0], (0.0, 0.45, 1.0), _THUMB_COURSE[:, column])
    return clipped(angles)
