"""True hands of the free hand model at random places before the camera, and networks that predict them well or badly."""
from pathlib import Path

import numpy as np
import torch

from utils.hand import HandModel
from utils.joints import H21_FROM_T21
from utils.official_protocols import PROTOCOLS
from utils.rotation import matrix_from_axis_angle

FREIHAND, HO3D = PROTOCOLS["freihand"], PROTOCOLS["ho3d_v2"]
AXES = np.array([1.0, -1.0, -1.0])
HAND = HandModel.load(Path(__file__).parent.parent / "template/free_hand_right.npz", dtype=torch.float64)


def hands(count: int, seed: int, turn: float = 1.2, bend: float = 1.0, near: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Joints (count,21,3) T21 and vertices (count,778,3), metres, OpenCV camera; wrists at a depth of near to 1 m."""
    draw = torch.Generator().manual_seed(seed)
    normal = [torch.randn(count, k, generator=draw, dtype=torch.float64) for k in (3, 45, 10)]
    fingers = HAND.axis_angle_from_pca(bend * normal[1])
    posed = HAND(matrix_from_axis_angle(torch.cat((turn * normal[0], fingers), 1).unflatten(1, (16, 3))), 0.7 * normal[2])
    joints = HAND.joints(posed)
    u = torch.rand(count, 1, 3, generator=draw, dtype=torch.float64)
    place = torch.cat((0.3 * (u[..., :2] - 0.5), near + (1 - near) * u[..., 2:]), 2)
    return (joints - joints[:, :1] + place).numpy(), (posed.verts - joints[:, :1] + place).numpy()


def network(true: np.ndarray, seed: int, turn: float = 0.2, noise: float = 0.005, depth: float = 0.02) -> np.ndarray:
    """An honest answer: hands turned about their wrist by `turn` rad, moved along the ray, and noise (m) on every point."""
    draw = np.random.default_rng(seed)
    rotations = matrix_from_axis_angle(torch.from_numpy(turn * draw.normal(size=(len(true), 3)) / np.sqrt(3))).numpy()
    root = true[:, :1]
    out = (true - root) @ rotations.transpose(0, 2, 1) + root * (1 + depth * draw.normal(size=(len(true), 1, 1)))
    return out + noise * draw.normal(size=true.shape)


def ho3d(points: np.ndarray) -> np.ndarray:
    """T21 joints of the OpenCV camera as HO3D has them: H21, OpenGL axes; vertices only turned."""
    return (points[:, list(H21_FROM_T21)] if points.shape[1] == 21 else points) * AXES
