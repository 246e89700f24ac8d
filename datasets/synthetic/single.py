"""Single hands before a camera, as FreiHAND has them: pose, grasp, view and labels of a few samples of one person.

Labels first: the 61 numbers of `mano` and K are rounded to float32, then posed in float64, so what a reader rebuilds is what is
drawn. Joints are FreiHAND's own: the regressor on the posed vertices, and tips 744, 320, 443, 555, 672. Camera frame OpenCV,
metres. World frame: origin at the middle knuckle (joint 9), z up.
"""
from dataclasses import dataclass

import numpy as np
import torch

from datasets.synthetic import things
from datasets.synthetic.anatomy import Anatomy, axis_angle_from_angles, clipped, grasp_pose, sample_pose, unit
from datasets.synthetic.freihand_files import SIZE, Labels
from datasets.synthetic.motion import Clip, sample_grasp
from datasets.synthetic.people import Person, Side
from datasets.synthetic.sequence import closing_on
from utils.rotation import axis_angle_from_matrix, matrix_from_quaternion

ROOT = 9  # FreiHAND's root joint
TIPS, JOINTS = "freihand", "regressed"  # of HandModel.joints
MOST = 0.86       # of the picture: the longer side of the joints' box is never more
WRIST_BEND = 0.75  # rad, most
HIDDEN = 0.4      # of the joints are behind a held thing, at most
NEARER = -0.5     # the arm never points more than this (cosine) towards the camera, which would look into it


@dataclass(frozen=True)
class Framing:
    """Ranges of focal length (px), distance (m) and the joints' box (share of the picture); its middle off the picture's (px)."""

    focal: tuple[float, float]
    distance_m: tuple[float, float]
    fill: tuple[float, float]
    off_centre: float


@dataclass(frozen=True)
class Views:
    """n samples of one person: labels, camera_from_world (n,4,4) and verts (n,778,3) in the world, and what is drawn of them."""

    labels: Labels
    camera_from_world: np.ndarray
    verts: np.ndarray
    clip: Clip


def sample_views(side: Side, person: Person, framing: Framing, count: int, grasps: float, rng: np.random.Generator) -> Views:
    """`count` samples; with probability `grasps` all of them hold one thing, else they are gestures."""
    hand = side.anatomy(person.shape)
    number = int(rng.choice(things.IDS)) if rng.uniform() < grasps else 0
    poses = [_grasping(side, person, hand, number, rng) if number else (sample_pose(rng), None) for _ in range(count)]
    angles = np.stack([angles for angles, _ in poses])
    mano = np.zeros((count, 61))
    mano[:, 3:48] = axis_angle_from_angles(angles, hand.axes).reshape(count, 45) - side.model.hands_mean.numpy()
    mano[:, 48:58] = person.shape
    _, wrist, _, joints = pose(side, mano)
    aims = [_aim(hand, joint, number, place, rng) for joint, (_, place) in zip(joints - wrist[:, None], poses)]
    mano[:, :3] = axis_angle_from_matrix(torch.from_numpy(np.stack([turn for turn, _ in aims]))).numpy()
    mano = _rounded(mano)
    turn, wrist, verts, joints = pose(side, mano)
    K, mano[:, 58:] = _frame(joints - joints[:, ROOT:ROOT + 1], framing, rng)
    root = root_of(K, mano)
    shift = root - joints[:, ROOT]
    labels = _labels(K, mano, joints + shift[:, None], verts + shift[:, None])
    world_from_camera = np.stack([_level(rng) for _ in range(count)])
    poses_of_camera = np.tile(np.eye(4), (count, 1, 1))
    poses_of_camera[:, :3, :3], poses_of_camera[:, :3, 3] = world_from_camera.swapaxes(1, 2), root
    turn = world_from_camera @ turn
    middle = joints[:, ROOT:ROOT + 1]
    verts = _turned(world_from_camera, verts - middle)
    wrist = _turned(world_from_camera, wrist[:, None] - middle)[:, 0]
    elbow = np.stack([t @ e for t, (_, e) in zip(turn, aims)])
    return Views(labels, poses_of_camera, verts, _clip(angles, turn, wrist, elbow, number, [place for _, place in poses]))


def pose(side: Side, mano: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Global rotation (n,3,3), wrist (n,3), verts (n,778,3) and joints (n,21,3) of mano entries (n,61), not yet placed."""
    rotations = side.model.rotations_from_pose(torch.from_numpy(mano[:, :48]), pca=False, flat_mean=False)
    posed = side.model(rotations, torch.from_numpy(mano[:, 48:58]))
    return (rotations[:, 0].numpy(), posed.chain[:, 0].numpy(), posed.verts.numpy(),
            side.model.joints(posed, TIPS, JOINTS).numpy())


def root_of(K: np.ndarray, mano: np.ndarray) -> np.ndarray:
    """Joint 9 (n,3), metres, as uv and scale of mano entries (n,61) place it."""
    u, v, s = mano[:, 58:].T
    return np.stack([(u - K[:, 0, 2]) / s, (v - K[:, 1, 2]) / s, (K[:, 0, 0] + K[:, 1, 1]) / 2 / s], 1)


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


def _turned(rotations: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ rotations.swapaxes(1, 2)


def _labels(K: np.ndarray, mano: np.ndarray, joints: np.ndarray, verts: np.ndarray) -> Labels:
    xyz = joints.astype(np.float32)
    scale = np.linalg.norm(xyz[:, 9].astype(np.float64) - xyz[:, 10], axis=1)
    return Labels(K.astype(np.float32), mano.astype(np.float32)[:, None], scale.astype(np.float32), xyz, verts.astype(np.float32))


def _grasping(side: Side, person: Person, hand: Anatomy, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Finger angles (15,3) about the thing, and its pose (4,4) in the frame of the model at the wrist."""
    lying = np.eye(4)
    lying[2, 3] = things.SIZES[number][1][0 if number == things.MARKER else 2] / 2
    seat = rng.uniform(0, 2 * np.pi)
    grasp = sample_grasp(hand, lambda place, i: closing_on(side, person, hand, place, i), number, seat, lying, rng)
    closing = grasp.closing.copy()
    loose = rng.uniform(size=5) < [0.05, 0.12, 0.08, 0.15, 0.25]
    closing[loose] *= rng.uniform(0, 0.6, loose.sum())
    table_from_hand = np.eye(4)
    table_from_hand[:3, :3], table_from_hand[:3, 3] = grasp.turn, grasp.wrist
    return clipped(grasp_pose(closing, rng.uniform(0, 0.5))), np.linalg.inv(table_from_hand) @ grasp.place


def _aim(hand: Anatomy, joints: np.ndarray, number: int, place: np.ndarray | None,
         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Any rotation (3,3), model to camera, and elbow (3): unit from the wrist in the model's frame, not towards the camera.

    The thing `number` at `place` hides no more than a share of the joints (21,3); all in the model's frame at the wrist.
    """
    while True:
        turn = matrix_from_quaternion(torch.from_numpy(unit(rng.normal(size=4)))).numpy()
        elbow = unit(-hand.forward + np.tan(WRIST_BEND) * rng.uniform(0, 1) * unit(np.cross(hand.forward, rng.normal(size=3))))
        if turn[2] @ elbow > NEARER and (place is None or _hidden(joints, number, place, -turn[2]) <= HIDDEN):
            return turn, elbow


def _hidden(joints: np.ndarray, number: int, place: np.ndarray, towards_camera: np.ndarray) -> float:
    """Share of the joints from which the thing stands before a camera far away in this direction."""
    way = joints[:, None] + np.arange(0.01, 0.2, 0.015)[:, None] * towards_camera
    local = (way.reshape(-1, 3) - place[:3, 3]) @ place[:3, :3]
    return float((things.distance(number, local).reshape(len(joints), -1) < 0).any(1).mean())


def _level(rng: np.random.Generator) -> np.ndarray:
    """Rotation (3,3), camera to world: the camera looks level to steeply down, held nearly upright."""
    azimuth, elevation, roll = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-5, 65)), rng.normal(0, 0.15)
    z = -np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = unit(np.cross(z, [0, 0, 1.0]))
    down = np.cross(z, right)
    x = np.cos(roll) * right + np.sin(roll) * down
    return np.stack([x, np.cross(z, x), z], 1)


def _frame(joints: np.ndarray, framing: Framing, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """K (n,3,3), principal point in the middle, and mano's last three numbers (n,3), for joints (n,21,3) about the root.

    The joints' box gets the wished size and place, as far as the distance's range allows and all of it stays in the picture.
    """
    n = len(joints)
    K = np.tile(np.eye(3), (n, 1, 1))
    K[:, 0, 0] = rng.uniform(*framing.focal, n)
    K[:, 1, 1] = K[:, 0, 0] * (1 + rng.normal(0, 0.0005, n))
    K[:, :2, 2] = SIZE / 2
    K = _rounded(K)
    focal, wished = (K[:, 0, 0] + K[:, 1, 1]) / 2, rng.uniform(*framing.fill, n) * SIZE
    room = np.minimum(framing.off_centre, (0.96 - MOST) / 2 * SIZE)
    middle = SIZE / 2 + rng.uniform(-1, 1, (n, 2)) * room
    root = np.zeros((n, 3))
    root[:, 2] = np.mean(framing.distance_m)
    for _ in range(20):
        points = joints + root[:, None]
        uv = points[..., :2] / points[..., 2:] * focal[:, None, None] + SIZE / 2
        low, high = uv.min(1), uv.max(1)
        side = (high - low).max(1)
        far = np.maximum(framing.distance_m[1], root[:, 2] * side / (MOST * SIZE))
        root[:, 2] = np.clip(root[:, 2] * side / wished, framing.distance_m[0], far)
        root[:, :2] += (middle - (low + high) / 2) * (root[:, 2] / focal)[:, None]
    s = _rounded(focal / root[:, 2])
    return K, np.stack([_rounded(SIZE / 2 + root[:, 0] * s), _rounded(SIZE / 2 + root[:, 1] * s), s], 1)


def _clip(angles: np.ndarray, turn: np.ndarray, wrist: np.ndarray, elbow: np.ndarray, number: int, places: list) -> Clip:
    """What assemble.py draws: the samples are its frames."""
    n = len(angles)
    held = np.full(n, number > 0)
    if not number:
        return Clip(~held, angles, turn, wrist, elbow, [], np.zeros((n, 0, 4, 4)), 0, held)
    world_from_hand = np.tile(np.eye(4), (n, 1, 1))
    world_from_hand[:, :3, :3], world_from_hand[:, :3, 3] = turn, wrist
    return Clip(np.ones(n, bool), angles, turn, wrist, elbow, [number], (world_from_hand @ np.stack(places))[:, None], 0, held)
