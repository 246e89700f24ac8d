"""Pose and position fitted to 2D keypoints as the original did it: 300 Adam steps (Kong et al., ECCV 2022; spec: 6.4).

Energy: squared pixel error of the 21 joints, mean over all frames, joints and coordinates; nothing else. Stage 1: position only,
lr 1e-2, 200 steps. Stage 2: a new Adam, lr 1e-3, position and the 96 pose numbers (6D rows, never made orthonormal again), 100
steps. The position is MANO's translation point; the hand's shape is held. Camera frame, metres; pixels of the whole picture.
Seed: the original put all N frames into one batch and each gradient carries 1/N, which Adam is not indifferent to (its eps is
absolute). Here frames go by chunks whose loss keeps the 1/N of all of them, so that the size of a chunk changes nothing; stage 1
moves the joints of the start pose instead of posing the hand 200 times again, stage 2 poses joints and no mesh; the result is
that after the last step, where the original reports the one before it.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from utils.hand import HandModel
from utils.kinematics import Kinematics
from utils.rotation import matrix_from_rows6d

STAGES = ((200, 1e-2), (100, 1e-3))  # steps and learning rate: position; position and pose
START_DEPTH_M = 0.85
TINY_DEPTH = 1e-8  # Seed: added to z before the division
CELLS = 112

Watch = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class FaithfulFit:
    """trans (n,3) MANO's translation point, metres · rows6d (n,16,6), not orthonormal · energy, start_energy (n) mean squared
    pixel error of the measured keypoints."""

    trans: Tensor
    rows6d: Tensor
    energy: Tensor
    start_energy: Tensor


def targets_of_cells(cells: Float[Tensor, "n 21 2"], crop_box: Float[Tensor, "n 4"], biased: bool = True,
                     ) -> Float[Tensor, "n 21 2"]:
    """Whole-picture pixels of heat-map cells (0..111), crop_box left, top, right, bottom.

    Seed: the cell's first pixel and not its middle, and the width for both axes: a perfect map is read about (-1.1, -1.1) px off
    on a crop of 250 px. biased=False reads the cell's middle with each axis's own side, under the half-pixel rule.
    """
    corner, side = crop_box[:, None, :2], crop_box[:, None, 2:] - crop_box[:, None, :2]
    if biased:
        return cells / CELLS * side[..., :1] + corner
    return (cells + 0.5) / CELLS * side - 0.5 + corner


def start_on_ray(uv: Float[Tensor, "n 2"], K: Float[Tensor, "n 3 3"], depth: float = START_DEPTH_M) -> Float[Tensor, "n 3"]:
    """The point of pixel `uv` at that depth, metres, by focal lengths and principal point alone, as in the original."""
    x = depth * (uv[:, 0] - K[:, 0, 2]) / K[:, 0, 0]
    y = depth * (uv[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    return torch.stack((x, y, torch.full_like(x, depth)), 1)


def reprojection_energy(joints: Float[Tensor, "n 21 3"], K: Float[Tensor, "n 3 3"], uv: Float[Tensor, "n 21 2"],
                        used: Float[Tensor, "n 21"]) -> Float[Tensor, "n"]:
    """Mean squared pixel error over the coordinates of the joints that are `used` (1, else 0), px^2."""
    rays = joints @ K.transpose(1, 2)
    error = rays[..., :2] / (rays[..., 2:] + TINY_DEPTH) - uv
    return (error.square().mean(2) * used).sum(1) / used.sum(1)


def fit_faithful(hand: HandModel, uv: Float[Tensor, "n 21 2"], used: Float[Tensor, "n 21"], K: Float[Tensor, "n 3 3"],
                 rows6d: Float[Tensor, "n 16 6"], shape: Float[Tensor, "n 10"], trans: Float[Tensor, "n 3"], *,
                 total: int | None = None, watch: Watch | None = None, whole_mesh: bool = False) -> FaithfulFit:
    """Fit n frames: rows6d and trans are the start, shape is held, used is 0 where a keypoint is missing (uv finite even there)
    and 1 at least once per frame.

    total: number of frames that share the mean, of which these n may be a chunk; None = n. watch(step, joints, trans, rows6d,
    energy (n)) is called with every forward pass, before its step. whole_mesh: pose all vertices at each of the 300 steps, as the
    original did: the same numbers, for timing against it.
    """
    share = used.mean(1) / (total or len(uv))
    shaped, kinematics = (hand.shaped(shape), None) if whole_mesh else (None, Kinematics(hand))
    trans, rows6d = (x.detach().clone().requires_grad_() for x in (trans, rows6d))

    def joints_of(pose: Tensor) -> Tensor:
        rotations = matrix_from_rows6d(pose)
        return hand.joints(shaped.posed(rotations)) if whole_mesh else kinematics.joints(rotations, shape)

    with torch.no_grad():
        still = joints_of(rows6d)
        start_energy = reprojection_energy(still + trans[:, None], K, uv, used)
    step = 0
    for stage, (steps, rate) in enumerate(STAGES):
        moving = [trans] if stage == 0 else [trans, rows6d]
        adam = torch.optim.Adam(moving, lr=rate)
        for _ in range(steps):
            joints = (still if stage == 0 and not whole_mesh else joints_of(rows6d)) + trans[:, None]
            energy = reprojection_energy(joints, K, uv, used)
            if watch is not None:
                watch(step, joints.detach(), trans.detach(), rows6d.detach(), energy.detach())
            adam.zero_grad()
            (energy * share).sum().backward()
            adam.step()
            step += 1
    with torch.no_grad():
        energy = reprojection_energy(joints_of(rows6d) + trans[:, None], K, uv, used)
    return FaithfulFit(trans.detach(), rows6d.detach(), energy, start_energy)
