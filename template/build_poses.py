"""Anatomical axes, limits and random poses of the free hand, and their PCA (build time only).

Each joint has three axes in the flat rest pose: bend (+ towards the palm), spread (+ towards the thumb side; for the thumb away
from the palm plane), twist (along the bone). Limits are in radians about these axes.
"""
import numpy as np
from build_math import FINGERS, log_rotation, rodrigues, unit

# (bend, spread, twist) limits in rad, by joint along the finger. A fist is about 1.3 / 1.45 / 0.65;
# with 1.2 / 1.5 / 1.0 or more at once the tips enter the palm.
FINGER_LIMITS = np.array([[[-0.35, 1.40], [-0.25, 0.25], [-0.08, 0.08]], [[-0.05, 1.60], [-0.02, 0.02], [-0.02, 0.02]],
                          [[-0.10, 1.00], [-0.02, 0.02], [-0.02, 0.02]]])
THUMB_LIMITS = np.array([[[-0.40, 0.75], [-0.35, 0.80], [-0.30, 0.60]], [[-0.15, 0.80], [-0.12, 0.12], [-0.10, 0.10]],
                         [[-0.35, 1.10], [-0.03, 0.03], [-0.03, 0.03]]])


# Tilt of the fingers' hinges out of the palm plane (y part of the axis): flexed fingers turn towards the ball of the thumb.
HINGE_TILT = {"index": -0.03, "middle": 0.04, "ring": 0.10, "little": 0.15}


def joint_axes(verts: np.ndarray, faces: np.ndarray, weights: np.ndarray, joints: np.ndarray, tips: np.ndarray) -> np.ndarray:
    """Axes (15,3,3), rows bend, spread, twist of joints 1..15, orthonormal, in the flat pose. tips (5,3) as FINGERS."""
    axes = np.zeros((15, 3, 3))
    normals = np.zeros_like(verts)
    n = np.cross(verts[faces[:, 1]] - verts[faces[:, 0]], verts[faces[:, 2]] - verts[faces[:, 0]])
    for k in range(3):
        np.add.at(normals, faces[:, k], n)
    for tip, (name, (a, b, c)) in zip(tips, FINGERS.items(), strict=True):
        line = np.stack([joints[a], joints[b], joints[c], tip])
        along = unit(np.diff(line, axis=0))
        if name == "thumb":  # the nail: faces of the end bone that look away from the palm
            own = weights[:, c] > 0.9
            nail = unit(np.array([0.0, 0.5, 1.0]))
            for _ in range(10):
                near = own & (unit(normals) @ nail > 0.8)
                nail = unit(normals[near].sum(0))
        for i, joint in enumerate((a, b, c)):
            if name == "thumb":
                hinge = np.cross(along[i], -nail)
            else:
                hinge = unit(np.cross(along[i], [0.0, -1.0, 0.0])) + [0.0, HINGE_TILT[name], 0.0]
            bend = unit(hinge - along[i] * (hinge @ along[i]))
            axes[joint - 1] = np.stack([bend, np.cross(along[i], bend), along[i]])
    return axes


def pose_from_angles(angles: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Angles (n,15,3) about (bend, spread, twist) to axis-angle poses (n,15,3): first bend, then spread, then twist frame."""
    bend, spread, twist = (rodrigues(angles[..., k, None] * axes[:, k]) for k in range(3))
    return log_rotation(spread @ bend @ twist)


# Closing a finger also brings it next to its neighbours (spread at full bend), opening a fan moves it away.
CURL = np.array([1.30, 1.45, 0.65])
CLOSE = {"index": -0.16, "middle": 0.05, "ring": 0.20, "little": 0.30}
FAN = {"index": 0.20, "middle": 0.03, "ring": -0.10, "little": -0.20}
ROW = {name: np.array(joints) - 1 for name, joints in FINGERS.items()}
LONG = ("index", "middle", "ring", "little")
# Thumb: (bend, spread, twist) of its three joints for what it can do; tuned by eye on the pictures.
THUMB = {"rest": [[0.10, 0.10, 0.05], [0.10, 0, 0], [0.15, 0, 0]], "side": [[0.30, -0.05, 0.0], [0.15, 0, 0], [0.1, 0, 0]],
         "out": [[-0.30, 0.0, -0.1], [-0.1, 0, 0], [-0.2, 0, 0]], "over": [[0.25, 0.65, 0.30], [0.20, 0, 0], [0.25, 0, 0]],
         "oppose": [[0.30, 0.55, 0.45], [0.25, 0, 0], [0.25, 0, 0]], "palm": [[0.50, 0.25, 0.35], [0.60, 0, 0], [0.60, 0, 0]]}
# name: share of the samples, curl of index, middle, ring, little (0 flat, 1 fist), fan, thumb
PROTOTYPES = {
    "flat": (6, (0, 0, 0, 0), 0.2, "rest"), "relaxed": (22, (0.28, 0.34, 0.38, 0.40), 0.0, "rest"),
    "half open": (14, (0.45, 0.5, 0.52, 0.52), 0.1, "oppose"), "fist": (8, (0.97, 1, 1, 0.97), 0.0, "over"),
    "spread": (6, (-0.05, -0.05, -0.05, -0.05), 1.0, "out"), "closed": (4, (0.05, 0.03, 0.05, 0.08), -1.0, "side"),
    "cylinder": (8, (0.60, 0.62, 0.64, 0.64), 0.0, "oppose"), "ball": (8, (0.42, 0.45, 0.45, 0.45), 0.8, "oppose"),
    "point": (5, (0, 0.93, 0.97, 0.97), 0.0, "over"), "two": (3, (0, 0, 0.95, 0.95), 0.6, "over"),
    "three": (3, (0, 0, 0, 0.92), 0.4, "palm"), "four": (3, (0, 0, 0, 0), 0.4, "palm"),
    "thumb up": (3, (0.97, 1, 1, 0.97), 0.0, "out"), "call": (2, (0.95, 0.95, 0.95, 0), 0.0, "out"),
    "gun": (2, (0, 0.93, 0.97, 0.97), 0.0, "out"), "key": (4, (0.65, 0.72, 0.76, 0.8), 0.0, "side"),
    "pinch index": (5, (0.58, 0.35, 0.3, 0.3), 0.0, "oppose"), "pinch middle": (3, (0.4, 0.6, 0.4, 0.35), 0.0, "oppose"),
    "pinch ring": (2, (0.3, 0.4, 0.65, 0.5), 0.0, "oppose"), "pinch little": (2, (0.2, 0.3, 0.5, 0.7), 0.0, "oppose"),
    "tripod": (5, (0.55, 0.6, 0.6, 0.6), -0.2, "oppose"), "hook": (4, (0.85, 0.85, 0.85, 0.85), 0.0, "rest"),
    "any": (12, (0.45, 0.45, 0.45, 0.45), 0.1, "rest"),
}
CLOSED = {"index": -0.17, "middle": 0.08, "ring": 0.27, "little": 0.46}  # spread that lays straight fingers side by side


def prototype(name: str) -> np.ndarray:
    """Angles (15,3) of a named pose, before its contacts are solved (build_contacts)."""
    _, curls, fan, thumb = PROTOTYPES[name]
    angles = np.zeros((15, 3))
    for finger, curl in zip(LONG, curls, strict=True):
        angles[ROW[finger], 0] = CURL * curl
        angles[ROW[finger][0], 1] = CLOSE[finger] * max(curl, 0) + (FAN[finger] * fan if fan > 0 else -CLOSED[finger] * fan)
    if name == "hook":
        angles[[ROW[f][0] for f in LONG], 0] = 0.1
    angles[ROW["thumb"]] = THUMB[thumb]
    return angles


def limits() -> np.ndarray:
    """Limits (15,3,2) in rad about (bend, spread, twist)."""
    both = np.zeros((15, 3, 2))
    for finger, rows in ROW.items():
        both[rows] = THUMB_LIMITS if finger == "thumb" else FINGER_LIMITS
    both[ROW["ring"][0], 1], both[ROW["little"][0], 1] = (-0.25, 0.35), (-0.35, 0.50)
    return both


def sample_angles(base: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random angles (count,15,3): a named pose of `base`, partly another, plus noise shared by a finger and by each joint."""
    names = list(base)
    share = np.array([PROTOTYPES[n][0] for n in names], float)
    table = np.stack([base[n] for n in names])
    pick, other = rng.choice(len(names), (2, count), p=share / share.sum())
    mix = rng.beta(0.6, 2.5, count)[:, None, None]
    angles = table[pick] * (1 - mix) + table[other] * mix
    free = np.array([n == "any" for n in names])[pick]
    for finger, rows in ROW.items():
        push = rng.normal(0, np.where(free, 0.35, 0.10), count)
        angles[:, rows, 0] += push[:, None] * (CURL if finger != "thumb" else np.array([0.4, 0.5, 0.7]))
    width = limits()[..., 1] - limits()[..., 0]
    angles += rng.normal(0, 1, angles.shape) * width * np.where(free, 0.12, 0.06)[:, None, None]
    return np.clip(angles, limits()[..., 0], limits()[..., 1])
