"""The solver's parameters, frames last, and what all its frames share: kinematics, prior of the pose, layout of the Jacobian.

A frame's parameters, in order: 3 global rotation (left perturbation), 3 root, 45 finger axis-angles, 10 shape if it is free.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from src.solver_data import HandState, SolverOptions
from utils.hand import HandModel
from utils.kinematics import Kinematics, exp_and_left_jacobian
from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle

HELD, FREE = 51, 61  # parameters of a frame
TURN, ROOT, FINGERS, SHAPE = slice(0, 3), slice(3, 6), slice(6, HELD), slice(HELD, FREE)
_STD_FLOOR = 0.02  # rad: directions in which the pose never moved are stiff, not welded, so that float32 solves the system
_STD_UNKNOWN = 0.4  # rad per coefficient where the hand file knows no spread of its poses (MANO's pickle)


class Pose(NamedTuple):
    """turn (3,3,n) · root (3,n) · fingers (45,n) · shape (10,n)."""

    turn: Tensor
    root: Tensor
    fingers: Tensor
    shape: Tensor

    def rows(self, which: Tensor | slice) -> "Pose":
        """The chosen frames."""
        return Pose(*(x[..., which] for x in self))

    def moved(self, step: Tensor) -> "Pose":
        """A step (n,51) or (n,61) further."""
        step = step.T
        turn = (exp_and_left_jacobian(step[TURN])[0].unsqueeze(2) * self.turn).sum(1)
        shape = self.shape + step[SHAPE] if len(step) == FREE else self.shape
        return Pose(turn, self.root + step[ROOT], self.fingers + step[FINGERS], shape)

    def where(self, condition: Tensor, other: "Pose") -> "Pose":
        """These frames where the condition (n) holds, else the other's."""
        return Pose(*(torch.where(condition, x, y) for x, y in zip(self, other)))


def pose_of(state: HandState) -> Pose:
    """A hand's state, frames last. In float64, so that the start of a frame does not depend on how many there are."""
    fingers = axis_angle_from_matrix(state.rotations[:, 1:].double()).to(state.rotations.dtype).flatten(1).T.contiguous()
    turn = state.rotations[:, 0].permute(1, 2, 0).contiguous()
    return Pose(turn, state.root.T.contiguous(), fingers, state.shape.T.contiguous())


def state_of(pose: Pose) -> HandState:
    """And back, the global rotation made orthonormal again: the steps' rounding errors add up."""
    turn = pose.turn.permute(2, 0, 1)
    turn = 1.5 * turn - 0.5 * turn @ turn.transpose(1, 2) @ turn  # one step of Newton towards the nearest rotation
    fingers = matrix_from_axis_angle(pose.fingers.T.unflatten(1, (15, 3)))
    return HandState(torch.cat((turn.unsqueeze(1), fingers), 1), pose.root.T.contiguous(), pose.shape.T.contiguous())


class Model:
    """One hand, the options, and where the blocks of its Jacobian lie. verts: those with targets; free: the shape is, too."""

    def __init__(self, hand: HandModel, options: SolverOptions, verts: Sequence[int] | str, free: bool):
        self.kinematics, self.vert_ids = Kinematics(hand, verts), verts
        self.hand, self.options, self.free, self.size = hand, options, free, FREE if free else HELD
        self.width = -(-(self.size + 1) // 4) * 4  # of its matrices: so many numbers begin every one at a full cache line
        self.to = {"device": self.kinematics.device, "dtype": self.kinematics.dtype}
        self.mean = hand.hands_mean.unsqueeze(1)
        self.information = pose_information(hand).to(**self.to)
        point, joint = self.kinematics.pairs
        column = torch.where(joint == 0, 0, 3 + 3 * joint)
        self.joints = self._cells(point < 21, point, column)
        self.verts = self._cells(point >= 21, point - 21, column)

    def _cells(self, which: Tensor, point: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of the kinematics, their points, and the places of their three columns in the rows of all points (pairs * 3)."""
        pairs = torch.nonzero(which).squeeze(1)
        first = point[pairs] * self.width + column[pairs]
        return pairs, point[pairs], (first.unsqueeze(1) + torch.arange(3, device=first.device)).flatten()


def pose_information(hand: HandModel) -> Tensor:
    """Inverse covariance (45,45), float64, of the finger axis-angles about hands_mean: diagonal in the hand's pose coefficients.

    Its standard deviations are the hand file's pose_std, at least 0.02 rad. MANO's pickle gives none: 0.4 rad for every
    coefficient, which over MANO's orthonormal components is 0.4 rad per axis-angle number, the same in all directions.
    """
    std = torch.full((45,), _STD_UNKNOWN, dtype=torch.float64)
    if "pose_std" in hand.arrays.extras:
        std = torch.from_numpy(hand.arrays.extras["pose_std"]).double().clamp_min(_STD_FLOOR)
    inverse = torch.linalg.pinv(torch.from_numpy(hand.arrays.hands_components)) / std
    return inverse @ inverse.T
