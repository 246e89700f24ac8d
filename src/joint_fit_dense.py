"""Dense fit of one person's depth pictures: every visible vertex onto the seen surface, every outline onto the seen edge.

Point-to-plane, as in iterative closest points: in each round the mesh is drawn, utils/depth.py gives each vertex the plane it
should lie in, and one damped Gauss-Newton step moves shape (shared), poses and places; the 2D keypoints and the Gaussian of the
hand's poses hold what the surface leaves open.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from src.joint_fit_options import FitOptions
from src.solver_data import HandState, Observations
from src.solver_pose import Pose, pose_information, pose_of, state_of
from utils.depth import DepthSurface
from utils.hand import HandModel
from utils.joints import H21_FROM_T21
from utils.kinematics import Kinematics, Placed

FRAME, SHAPE, VERTS = 51, 10, 778
ROUGH_ROUNDS = 3  # first rounds, in which surfaces further away count as well
STILL_M = 2e-5  # mean step of the joints under which the fit is done
DAMPING = 1e-3
NEAR = 2.0  # standard deviations of the surface, within which a pixel of the mesh is explained
LARGEST_STEP = 0.5  # of a shape coefficient, in one round


class DepthPicture(NamedTuple):
    """A depth picture cut to the hand: depth (h,w) float64 metres, 0 = none · K (3,3) of the cut."""

    depth: Tensor
    K: Tensor


class SurfaceFitted(NamedTuple):
    """state: the f frames at the end · shape (10) · covariance (10,10) of Laplace · explained (f): DepthSurface.explained."""

    state: HandState
    shape: Tensor
    covariance: Tensor
    explained: list[float]


class SurfaceFit:
    """Fits of one hand model (float64)."""

    def __init__(self, hand: HandModel, options: FitOptions):
        self.hand, self.options = hand, options
        self.kinematics = Kinematics(hand, "all")
        self.surface = DepthSurface(hand, options.surface_mm / 1000, options.surface_share)
        self.pose_mean, self.pose_information = hand.hands_mean, options.solver.pose_prior * pose_information(hand)

    def fit(self, pictures: list[DepthPicture], seen: Observations, state: HandState, mean: Tensor, covariance: Tensor,
            ) -> SurfaceFitted:
        """One person's f frames, one shape. seen: keypoints of the whole pictures; mean (10), covariance (10,10): prior."""
        system = _Normal(self, seen, mean, torch.linalg.inv(covariance))
        pose = pose_of(state)
        before = self.place(pose)
        for count in range(self.options.surface_rounds):
            matrix, gradient = system.of(pose, *self._planes(pictures, before, count < ROUGH_ROUNDS))
            step = -torch.linalg.solve(matrix + DAMPING * torch.diag(matrix.diagonal()), gradient)
            step = step * min(1.0, LARGEST_STEP / float(step[-SHAPE:].abs().max().clamp_min(1e-9)))
            own = step[:-SHAPE].view(-1, FRAME)
            pose = pose.moved(torch.cat((own, step[-SHAPE:].expand(len(own), SHAPE)), 1))
            after = self.place(pose)
            still = float((after - before)[:, :21].norm(dim=-1).mean()) < STILL_M
            before = after
            if still and count >= ROUGH_ROUNDS:
                break
        matrix, _ = system.of(pose, *self._planes(pictures, before, False))
        near = NEAR * self.options.surface_mm / 1000
        explained = [self.surface.explained(p.depth, verts, p.K, near) for p, verts in zip(pictures, before[:, -VERTS:])]
        return SurfaceFitted(state_of(pose), pose.shape[:, 0], torch.linalg.inv(matrix)[-SHAPE:, -SHAPE:], explained)

    def place(self, pose: Pose) -> Tensor:
        """(f, points, 3) in the camera: 16 chain joints, fingertips, all vertices."""
        return self.points_of(pose, self.placed(pose))

    def placed(self, pose: Pose, slopes: bool = False) -> Placed:
        """The kinematics at this pose."""
        return self.kinematics.place(pose.turn, pose.fingers.unflatten(0, (15, 3)), pose.shape, slopes, slopes)

    @staticmethod
    def points_of(pose: Pose, placed: Placed) -> Tensor:
        """Its points in the camera."""
        return (placed.points + pose.root).permute(2, 0, 1)

    def _planes(self, pictures: list[DepthPicture], points: Tensor, rough: bool) -> tuple[Tensor, Tensor]:
        found = [self.surface.planes(p.depth, verts, p.K, rough) for p, verts in zip(pictures, points[:, -VERTS:])]
        return tuple(torch.stack(part) for part in zip(*found))


class _Normal:
    """Normal equations of f frames' poses and places and the one shape: 51 f + 10 unknowns."""

    def __init__(self, fit: SurfaceFit, seen: Observations, mean: Tensor, information: Tensor):
        self.fit, self.mean, self.information = fit, mean, information
        order = list(H21_FROM_T21)
        self.uv, self.uv_weight, self.K = seen.uv[:, 0, order], seen.uv_weight[:, 0, order] / seen.sigma_px**2, seen.K[:, 0]
        self.limit_px = fit.options.solver.robust_scale * seen.sigma_px

    def of(self, pose: Pose, planes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (51 f + 10) squared, and half the objective's gradient."""
        placed = self.fit.placed(pose, slopes=True)
        points, slopes = self.fit.points_of(pose, placed), self._slopes(placed)
        error, rays = self._pixels(points[:, :21])
        by_uv = torch.einsum("fkij,fkjp->fkip", rays, slopes[:, :21]).flatten(1, 2)
        weight = weight.sqrt()
        by_plane = torch.einsum("fvj,fvjp->fvp", planes[..., :3] * weight[..., None], slopes[:, -VERTS:])
        off = ((planes[..., :3] * points[:, -VERTS:]).sum(-1) - planes[..., 3]) * weight
        rows, errors = torch.cat((by_uv, by_plane), 1), torch.cat((error.flatten(1), off), 1)
        square, side = rows.transpose(1, 2) @ rows, (rows.transpose(1, 2) @ errors[..., None])[..., 0]
        square[:, 6:FRAME, 6:FRAME] += self.fit.pose_information
        side[:, 6:FRAME] += (pose.fingers.T - self.fit.pose_mean) @ self.fit.pose_information
        return self._joined(square, side, pose.shape[:, 0])

    def _slopes(self, placed: Placed) -> Tensor:
        """(f,points,3,61): change of every point by a frame's parameters (src/solver_pose.py) and the shape."""
        count, _, f = placed.points.shape
        dense = placed.points.new_zeros(count, 16, 3, 3, f)
        dense[self.fit.kinematics.pairs] = placed.blocks
        dense = dense.permute(4, 0, 2, 1, 3).flatten(3)
        root = torch.eye(3, dtype=dense.dtype).expand(f, count, 3, 3)
        return torch.cat((dense[..., :3], root, dense[..., 3:], placed.shapes.permute(3, 0, 1, 2)), -1)

    def _pixels(self, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Errors (f,21,2) of the keypoints and their change (f,21,2,3) by the joints, weighted (Huber)."""
        seen = joints @ self.K.transpose(1, 2)
        at = seen[..., :2] / seen[..., 2:]
        error = torch.where(self.uv_weight[..., None] > 0, at - self.uv, 0.0)
        weight = (self.uv_weight * (self.limit_px / error.norm(dim=-1).clamp_min(1e-9)).clamp_max(1)).sqrt()[..., None]
        rays = (self.K[:, None, :2] - at[..., None] * self.K[:, None, 2:]) / seen[..., 2:, None]
        return error * weight, rays * weight[..., None]

    def _joined(self, square: Tensor, side: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """The frames' blocks beside one another, their shapes as one."""
        f = len(square)
        matrix = square.new_zeros(FRAME * f + SHAPE, FRAME * f + SHAPE)
        for i, block in enumerate(square):
            own = slice(FRAME * i, FRAME * (i + 1))
            matrix[own, own] = block[:FRAME, :FRAME]
            matrix[own, -SHAPE:], matrix[-SHAPE:, own] = block[:FRAME, FRAME:], block[FRAME:, :FRAME]
        matrix[-SHAPE:, -SHAPE:] = square[:, FRAME:, FRAME:].sum(0) + self.information
        own_shape = side[:, FRAME:].sum(0) + self.information @ (shape - self.mean)
        return matrix, torch.cat((side[:, :FRAME].flatten(), own_shape))
