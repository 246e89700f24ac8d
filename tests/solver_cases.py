"""What tests of the solver share: hands drawn from the free hand's own poses, seen by a camera, and starts beside the truth."""
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from src.solver import HandState, Observations
from utils.camera import project
from utils.hand import HandModel
from utils.rotation import matrix_from_axis_angle


@cache
def free_hand(dtype: torch.dtype = torch.float32) -> HandModel:
    return HandModel.load("template/free_hand_right.npz", dtype=dtype)


class Scene(NamedTuple):
    """seen: keypoints of one camera · start, true · joints (n,21,3), verts (n,778,3) in the camera, metres."""

    seen: Observations
    start: HandState
    true: HandState
    joints: Tensor
    verts: Tensor


def scene(n: int, seed: int = 0, noise_px: float = 1.5, spread: float = 1.0, dtype: torch.dtype = torch.float32,
          shape: Tensor | None = None) -> Scene:
    """n hands about 0.7 m from a 640 x 480 camera. spread: how far the start's pose is off, in units of 11 degrees per number."""
    hand, generator = free_hand(dtype), torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    std = torch.from_numpy(hand.arrays.extras["pose_std"]).to(dtype)
    fingers = hand.axis_angle_from_pca(normal(n, 45) * std).unflatten(1, (15, 3))
    rotations = matrix_from_axis_angle(torch.cat((1.2 * normal(n, 1, 3), fingers), 1))
    shape = normal(n, 10) if shape is None else shape
    root = torch.tensor([0.0, 0.0, 0.7], dtype=dtype) + normal(n, 3) * torch.tensor([0.1, 0.08, 0.1], dtype=dtype)
    posed = hand(rotations, shape)
    move = root - posed.chain[:, 0]
    joints, verts = hand.joints(posed) + move[:, None], posed.verts + move[:, None]
    K = torch.tensor([[615.0, 0, 320], [0, 615, 240], [0, 0, 1]], dtype=dtype).expand(n, 3, 3)
    uv = project(joints, K) + noise_px * normal(n, 21, 2)
    off = matrix_from_axis_angle(0.2 * spread * normal(n, 16, 3)) @ rotations
    start = HandState(off, root + 0.03 * spread * normal(n, 3), shape)
    seen = Observations(uv=uv[:, None], K=K[:, None], sigma_px=max(noise_px, 0.5))
    return Scene(seen, start, HandState(rotations, root, shape), joints, verts)


def joints_of(state: HandState) -> Tensor:
    """(n,21,3) in the world, metres."""
    hand = free_hand(state.root.dtype)
    joints = hand.joints(hand(state.rotations, state.shape))
    return joints - joints[:, :1] + state.root[:, None]


def error_mm(state: HandState, scene: Scene) -> Tensor:
    """(n) mean distance of the joints from the truth, mm."""
    return 1000 * (joints_of(state) - scene.joints).norm(dim=-1).mean(1)
