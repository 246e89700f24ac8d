"""The solver's objective and its normal equations: what is measured, and the priors, of some frames.

objective = sum of w rho(|pixel error|^2 / sigma^2) + w (depth error / sigma)^2 + w |3D error / sigma|^2 + priors: minus twice the
logarithm of a density. Frames-last inside (utils/kinematics.py); the joints' order is H21 there, which is how the kinematics have them.
Parameters of a frame, in this order: 3 global rotation (left perturbation), 3 root, 45 finger axis-angles, 10 shape where it is free.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from src.solver_data import HandState, Observations, SolverOptions
from utils.hand import HandModel
from utils.joints import H21_FROM_T21
from utils.kinematics import Kinematics, exp_and_left_jacobian
from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle

HELD, FREE = 51, 61  # parameters of a frame
_FINGERS = slice(6, 51)
_STD_FLOOR = 0.02  # rad: directions in which the pose never moved are stiff, not welded, so that float32 solves the system
_STD_UNKNOWN = 0.4  # rad per coefficient where the hand file knows no spread of its poses (MANO's pickle)


class Pose(NamedTuple):
    """Frames last: turn (3,3,n) · root (3,n) · fingers (45,n) · shape (10,n)."""

    turn: Tensor
    root: Tensor
    fingers: Tensor
    shape: Tensor

    def rows(self, which: Tensor) -> "Pose":
        """The chosen frames."""
        return Pose(*(x[..., which] for x in self))

    def moved(self, step: Tensor) -> "Pose":
        """A step (n,51) or (n,61) further."""
        step = step.T
        turn = (exp_and_left_jacobian(step[:3])[0].unsqueeze(2) * self.turn).sum(1)
        shape = self.shape + step[HELD:] if len(step) > HELD else self.shape
        return Pose(turn, self.root + step[3:6], self.fingers + step[_FINGERS], shape)

    def where(self, condition: Tensor, other: "Pose") -> "Pose":
        """These frames where the condition (n) holds, else the other's."""
        return Pose(*(torch.where(condition, x, y) for x, y in zip(self, other)))


def pose_of(state: HandState) -> Pose:
    """A hand's state, frames last."""
    fingers = axis_angle_from_matrix(state.rotations[:, 1:]).flatten(1).T.contiguous()
    return Pose(state.rotations[:, 0].permute(1, 2, 0).contiguous(), state.root.T.contiguous(), fingers, state.shape.T.contiguous())


def state_of(pose: Pose) -> HandState:
    """And back; the global rotation is orthonormal again to the last bit that float32 has."""
    turn = pose.turn.permute(2, 0, 1)
    turn = 1.5 * turn - 0.5 * turn @ turn.transpose(1, 2) @ turn  # one step of Newton towards the nearest rotation
    fingers = matrix_from_axis_angle(pose.fingers.T.unflatten(1, (15, 3)))
    return HandState(torch.cat((turn.unsqueeze(1), fingers), 1), pose.root.T.contiguous(), pose.shape.T.contiguous())


class Model:
    """What all frames share: the hand's kinematics, the options, and the prior of the pose."""

    def __init__(self, hand: HandModel, options: SolverOptions, with_verts: bool, free: bool):
        self.kinematics = Kinematics(hand, "all" if with_verts else ())
        self.options, self.size = options, FREE if free else HELD
        self.dtype, self.device = self.kinematics.dtype, self.kinematics.device
        self.mean = hand.hands_mean.unsqueeze(1)
        self.information = pose_information(hand).to(self.device, self.dtype)
        point, joint = self.kinematics.pairs
        column = torch.where(joint == 0, 0, 3 + 3 * joint)
        self.joint_pairs, self.joint_cells = self._cells(point < 21, point, column)
        self.vert_pairs, self.vert_cells = self._cells(point >= 21, point - 21, column)

    def _cells(self, which: Tensor, point: Tensor, column: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(pairs, their points), and where their three columns lie in a point's rows of the Jacobian (pairs, 3)."""
        pairs = torch.nonzero(which).squeeze(1)
        angles = torch.arange(3, device=self.device)
        return (pairs, point[pairs]), point[pairs].unsqueeze(1) * self.size + column[pairs].unsqueeze(1) + angles


def pose_information(hand: HandModel) -> Tensor:
    """Inverse covariance (45,45), float64, of the finger axis-angles about hands_mean: diagonal in the hand's pose coefficients.

    Its standard deviations are the hand file's pose_std, at least 0.02 rad. MANO's pickle has none of use here: 0.4 rad for every
    coefficient, which over MANO's orthonormal components is 0.4 rad per axis-angle number, the same in all directions.
    """
    std = torch.full((45,), _STD_UNKNOWN, dtype=torch.float64)
    if "pose_std" in hand.arrays.extras:
        std = torch.from_numpy(hand.arrays.extras["pose_std"]).double().clamp_min(_STD_FLOOR)
    inverse = torch.linalg.pinv(torch.from_numpy(hand.arrays.hands_components)) / std
    return inverse @ inverse.T


@dataclass(frozen=True)
class Terms:
    """Measurements and priors of n frames, frames last. cameras (v,3,4,n) pixels from the world · uv (v,2,21,n), uv_weight
    (v,21,n) over sigma^2 · axis (v,4,n) z of a world point, depth, depth_weight (v,21,n) · points (21,3,n) and verts (778,3,n) with
    weights (.,n) over sigma^2 · start: for `stay` · shape_mean (10,n) and shape_information (n,10,10) of the shape's prior, or None."""

    model: Model
    start: Pose
    cameras: Tensor | None = None
    uv: Tensor | None = None
    uv_weight: Tensor | None = None
    axis: Tensor | None = None
    depth: Tensor | None = None
    depth_weight: Tensor | None = None
    points: Tensor | None = None
    point_weight: Tensor | None = None
    verts: Tensor | None = None
    vert_weight: Tensor | None = None
    shape_mean: Tensor | None = None
    shape_information: Tensor | None = None

    def rows(self, which: Tensor) -> Self:
        """The chosen frames."""
        chosen = {k: v[..., which] for k, v in vars(self).items() if isinstance(v, Tensor) and k != "shape_information"}
        if self.shape_information is not None:
            chosen["shape_information"] = self.shape_information[which]
        return replace(self, start=self.start.rows(which), **chosen)

    @property
    def measured(self) -> Tensor:
        """(n) bool: frames of which anything was measured."""
        weights = [w for w in (self.uv_weight, self.depth_weight, self.point_weight, self.vert_weight) if w is not None]
        return torch.stack([(w > 0).flatten(0, -2).any(0) for w in weights]).any(0)

    def objective(self, pose: Pose) -> Tensor:
        """(n); infinite where a measured keypoint lies behind its camera, NaN where the numbers end."""
        points = self._points(pose)
        total = self._prior(pose)
        if self.uv is not None:
            error, depth = self._pixels(points)[:2]
            rho, _ = self._robust(error.square().sum(1))
            total = total + (self.uv_weight * rho).sum((0, 1))
            total = torch.where(((depth <= 0) & (self.uv_weight > 0)).any(0).any(0), torch.inf, total)
        if self.depth is not None:
            total = total + (self.depth_weight * self._depths(points).square()).sum((0, 1))
        for target, weight, first in self._targets():
            error = points[first:first + len(target)] - target
            total = total + (weight * error.square().sum(1)).sum(0)
        return total

    def energy(self, pose: Pose) -> Tensor:
        """(n): Solved.energy of these frames."""
        points = self._points(pose)
        if self.uv is not None:
            seen = self.uv_weight > 0
            error, depth = self._pixels(points)[:2]
            mean = torch.where(seen, error.square().sum(1), 0).sum((0, 1)) / (2 * seen.sum((0, 1)))
            return torch.where(((depth <= 0) & seen).any(0).any(0), torch.nan, mean)
        squares = torch.zeros_like(points[0, 0])
        count = torch.zeros_like(squares)
        for target, weight, first in self._targets():
            seen = weight > 0
            squares = squares + torch.where(seen, (points[first:first + len(target)] - target).square().sum(1), 0).sum(0)
            count = count + 3 * seen.sum(0)
        return 1e6 * squares / torch.where(count > 0, count, torch.nan)

    def normal(self, pose: Pose) -> tuple[Tensor, Tensor]:
        """Normal matrix (n,p,p) and half the objective's gradient (n,p)."""
        model, size, n = self.model, self.model.size, pose.root.shape[-1]
        placed = model.kinematics.place(pose.turn, pose.fingers.view(15, 3, n), pose.shape, True, size == FREE)
        points = placed.points + pose.root
        groups = []
        if self.uv is not None:
            error, depth, projected = self._pixels(points)
            root_weight = torch.sqrt(self.uv_weight * self._robust(error.square().sum(1))[1]).unsqueeze(1)
            rays = (self.cameras[:, :2, :3].unsqueeze(3) - projected.unsqueeze(2) * self.cameras[:, 2:, :3].unsqueeze(3))
            rays = rays * (root_weight / depth.unsqueeze(1)).unsqueeze(2)  # (v,2,3,21,n): change of a pixel by the point
            groups.append((rays.flatten(0, 1), (error * root_weight).flatten(0, 1), 0))
        if self.depth is not None:
            root_weight = torch.sqrt(self.depth_weight)
            rays = self.axis[:, :3].unsqueeze(2) * root_weight.unsqueeze(1)
            groups.append((rays, self._depths(points) * root_weight, 0))
        for target, weight, first in self._targets():
            root_weight = torch.sqrt(weight)
            error = (points[first:first + len(target)] - target) * root_weight.unsqueeze(1)
            groups.append((root_weight, error.transpose(0, 1), first))
        matrix = points.new_zeros(n, size, size)
        gradient = points.new_zeros(n, size)
        for rays, error, first in groups:
            jacobian = self._rows_of(rays, first, placed.blocks, placed.shapes).permute(2, 0, 1).contiguous()
            matrix.baddbmm_(jacobian.transpose(1, 2), jacobian)
            residual = error.flatten(0, -2).T.unsqueeze(2).contiguous()
            gradient += (jacobian.transpose(1, 2) @ residual).squeeze(2)
        self._add_priors(pose, matrix, gradient)
        return matrix, gradient

    def _rows_of(self, rays: Tensor, first: int, blocks: Tensor, shapes: Tensor | None) -> Tensor:
        """Jacobian (rows, parameters, n) of one kind of measurement: rays (m,3,points,n), or (points,n) for the three coordinates."""
        (pairs, points), cells = ((self.model.vert_pairs, self.model.vert_cells) if first else
                                  (self.model.joint_pairs, self.model.joint_cells))
        size, n = self.model.size, blocks.shape[-1]
        blocks = blocks[pairs]
        if rays.dim() == 2:  # the coordinates themselves
            count = len(rays)
            values = (blocks * rays[points][:, None, None]).transpose(0, 1)
            by_root = torch.eye(3, dtype=rays.dtype, device=rays.device)[:, :, None, None] * rays
            by_shape = None if shapes is None else (shapes[first:first + count] * rays[:, None, None]).transpose(0, 1)
        else:
            count = rays.shape[2]
            near = rays[:, :, points].unsqueeze(3)
            values = near[:, 0] * blocks[:, 0]
            values.addcmul_(near[:, 1], blocks[:, 1]).addcmul_(near[:, 2], blocks[:, 2])
            by_root = rays
            by_shape = None if shapes is None else (rays.unsqueeze(3) * shapes[:count].transpose(0, 1)[None, ..., :, :]).sum(1)
        kinds = len(values)
        out = blocks.new_zeros(kinds, count * size, n)
        out.index_copy_(1, cells.flatten(), values.reshape(kinds, -1, n))
        out = out.view(kinds, count, size, n)
        out[:, :, 3:6] = by_root.transpose(1, 2)
        if by_shape is not None:
            out[:, :, HELD:] = by_shape
        return out.flatten(0, 1)

    def _points(self, pose: Pose) -> Tensor:
        """Joints (H21) and vertices in the world (p,3,n)."""
        n = pose.root.shape[-1]
        return self.model.kinematics.place(pose.turn, pose.fingers.view(15, 3, n), pose.shape).points + pose.root

    def _pixels(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error (v,2,21,n), depth (v,21,n) and projection (v,2,21,n) of the joints, pixels; the error is 0 where none was measured."""
        x, y, z = points[:21].unbind(1)
        cameras = self.cameras.unsqueeze(3)  # (v,3,4,1,n)
        seen = torch.addcmul(cameras[:, :, 3], cameras[:, :, 0], x).addcmul_(cameras[:, :, 1], y).addcmul_(cameras[:, :, 2], z)
        projected = seen[:, :2] / seen[:, 2:]
        return projected - self.uv, seen[:, 2], projected

    def _depths(self, points: Tensor) -> Tensor:
        """Depth errors (v,21,n), metres."""
        return (self.axis[:, :3].unsqueeze(2) * points[:21].transpose(0, 1)).sum(1) + self.axis[:, 3].unsqueeze(1) - self.depth

    def _targets(self) -> list[tuple[Tensor, Tensor, int]]:
        """3D targets, their weights, and the first of the points that they are targets of."""
        found = [(self.points, self.point_weight, 0), (self.verts, self.vert_weight, 21)]
        return [x for x in found if x[0] is not None]

    def _robust(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """rho of squared pixel distances in units of sigma^2, and its derivative; the weights hold the 1 / sigma^2."""
        kind = self.model.options.robust
        if kind == "none":
            return square, torch.ones_like(square)
        limit = (self.model.options.robust_scale * self.sigma_px) ** 2
        if kind == "huber":
            inside = square <= limit
            root = torch.sqrt(torch.where(inside, limit, square))
            return torch.where(inside, square, 2 * limit**0.5 * root - limit), torch.where(inside, 1.0, limit**0.5 / root)
        return limit * torch.log1p(square / limit), 1 / (1 + square / limit)

    def _prior(self, pose: Pose) -> Tensor:
        options = self.model.options
        total = torch.zeros_like(pose.root[0])
        if options.pose_prior:
            away = pose.fingers - self.model.mean
            total = total + options.pose_prior * (away * (self.model.information @ away)).sum(0)
        if options.stay:
            total = total + options.stay * ((pose.fingers - self.start.fingers) / options.stay_fingers).square().sum(0)
            total = total + options.stay * (self._turned(pose) / options.stay_global).square().sum(0)
        if self.shape_information is not None:
            away = (pose.shape - self.shape_mean).T.unsqueeze(2)
            total = total + (away.transpose(1, 2) @ self.shape_information @ away)[:, 0, 0]
        return total

    def _add_priors(self, pose: Pose, matrix: Tensor, gradient: Tensor) -> None:
        options = self.model.options
        if options.pose_prior:
            matrix[:, _FINGERS, _FINGERS] += options.pose_prior * self.model.information
            gradient[:, _FINGERS] += options.pose_prior * (self.model.information @ (pose.fingers - self.model.mean)).T
        if options.stay:
            diagonal = matrix.diagonal(dim1=1, dim2=2)
            diagonal[:, _FINGERS] += options.stay / options.stay_fingers**2
            diagonal[:, :3] += options.stay / options.stay_global**2
            gradient[:, _FINGERS] += options.stay / options.stay_fingers**2 * (pose.fingers - self.start.fingers).T
            gradient[:, :3] += options.stay / options.stay_global**2 * self._turned(pose).T  # J_l^-T e = e along e's own axis
        if self.shape_information is not None:
            matrix[:, HELD:, HELD:] += self.shape_information
            gradient[:, HELD:] += (self.shape_information @ (pose.shape - self.shape_mean).T.unsqueeze(2)).squeeze(2)

    def _turned(self, pose: Pose) -> Tensor:
        """Rotation vectors (3,n) from the start's global rotation to this one."""
        relative = pose.turn.permute(2, 0, 1) @ self.start.turn.permute(2, 1, 0)
        return axis_angle_from_matrix(relative).T

    sigma_px: float = 1.0


def terms_of(model: Model, seen: Observations, start: HandState, shape_mean: Tensor | None = None,
             shape_information: Tensor | None = None) -> Terms:
    """The objective of these frames."""
    to = {"device": model.device, "dtype": model.dtype}
    order = torch.tensor(H21_FROM_T21, device=model.device)
    known: dict[str, Tensor] = {}

    def block(name: str, value: Tensor | None, weight: Tensor | None, sigma: float, joints: bool = True) -> None:
        if value is None:
            return
        axis = -2 if name != "depth" else -1
        shape = value.shape if name == "depth" else value.shape[:-1]
        weight = torch.ones(shape, **to) if weight is None else weight.to(**to).expand(shape)
        weight = torch.nan_to_num(weight).clamp_min(0) / sigma**2
        value = value.to(**to)
        if joints:
            value, weight = value.index_select(axis, order), weight.index_select(-1, order)
        value = torch.where(weight.unsqueeze(-1) > 0 if name != "depth" else weight > 0, value, 0)
        known[name], known[f"{name}_weight"] = value, weight

    block("uv", seen.uv, seen.uv_weight, seen.sigma_px)
    block("depth", seen.depth, seen.depth_weight, seen.sigma_depth_m)
    block("points", seen.points, seen.point_weight, seen.sigma_point_m)
    block("verts", seen.verts, seen.vert_weight, seen.sigma_vert_m, joints=False)
    last = {"uv": (1, 3, 2, 0), "uv_weight": (1, 2, 0), "depth": (1, 2, 0), "depth_weight": (1, 2, 0), "points": (1, 2, 0),
            "points_weight": (1, 0), "verts": (1, 2, 0), "verts_weight": (1, 0)}
    known = {name.replace("points_w", "point_w").replace("verts_w", "vert_w"): value.permute(last[name]).contiguous()
             for name, value in known.items()}
    if "uv" in known or "depth" in known:
        views = (seen.uv if seen.uv is not None else seen.depth).shape[:2]
        eye = torch.eye(3, 4, **to).expand(*views, 3, 4)
        world = eye if seen.camera_from_world is None else seen.camera_from_world.to(**to)
        if "uv" in known:
            known["cameras"] = (seen.K.to(**to) @ world).permute(1, 2, 3, 0).contiguous()
        if "depth" in known:
            known["axis"] = world[:, :, 2].permute(1, 2, 0).contiguous()
    if shape_information is not None:
        known |= {"shape_mean": shape_mean.to(**to).T.contiguous(), "shape_information": shape_information.to(**to)}
    return Terms(model, pose_of(start), sigma_px=seen.sigma_px, **known)
