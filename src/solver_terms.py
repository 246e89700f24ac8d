"""The solver's objective and its normal equations: what was measured of some frames, and the priors.

objective = sum of w rho(|pixel error|^2 / sigma^2) + w (depth error / sigma)^2 + w |3D error / sigma|^2 + priors, which is minus
twice the logarithm of a density. Tensors are frames last (utils/kinematics.py), joints in H21 order, as the kinematics have them.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Self

import torch
from torch import Tensor

from src.solver_data import HandState, Observations
from src.solver_pose import FINGERS, SHAPE, TURN, Model, Pose, pose_of
from utils.joints import H21_FROM_T21
from utils.rotation import axis_angle_from_matrix

_LANES = 32  # the CPU's matrix products and sums round full blocks of so many frames alike, whatever their number


def _in_full_blocks(method: Callable) -> Callable:
    """Repeats the last frame up to full blocks: else a frame's last bit, and with it where its steps lead, would depend on the
    size of the batch, that is on the chunk and on which of its neighbours are done."""

    @wraps(method)
    def run(self: "Terms", pose: Pose):
        n = pose.root.shape[-1]
        if not n % _LANES:
            return method(self, pose)
        which = torch.arange(-(-n // _LANES) * _LANES, device=pose.root.device).clamp_max(n - 1)
        return method(self.rows(which), pose.rows(which))[:n]

    return run


@dataclass(frozen=True)
class Terms:
    """Measurements and priors of n frames; weights are over sigma^2, and 0 where nothing was measured.

    cameras (v,3,4,n) pixels from the world · uv (v,2,21,n) · uv_weight (v,21,n) · axis (v,4,n): depth of a world point ·
    depth, depth_weight (v,21,n) · points (21,3,n) · points_weight (21,n) · verts (778,3,n) · verts_weight (778,n) · start: what
    `stay` stays at · shape_mean (10,n) and shape_information (n,10,10) of a free shape's prior; None where it is the caller's.
    """

    model: Model
    start: Pose
    sigma_px: float = 1.0
    cameras: Tensor | None = None
    uv: Tensor | None = None
    uv_weight: Tensor | None = None
    axis: Tensor | None = None
    depth: Tensor | None = None
    depth_weight: Tensor | None = None
    points: Tensor | None = None
    points_weight: Tensor | None = None
    verts: Tensor | None = None
    verts_weight: Tensor | None = None
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
        weights = [w for w in (self.uv_weight, self.depth_weight, self.points_weight, self.verts_weight) if w is not None]
        return torch.stack([(w > 0).flatten(0, -2).any(0) for w in weights]).any(0)

    @_in_full_blocks
    def objective(self, pose: Pose) -> Tensor:
        """(n); infinite where a measured keypoint lies behind its camera, NaN where numbers are no longer finite."""
        points = self._place(pose)
        total = self._prior(pose)
        if self.uv is not None:
            error, depth, _ = self._pixels(points)
            rho, _ = self._robust(error.square().sum(1))
            total = total + (self.uv_weight * rho).sum((0, 1))
            total = torch.where(self._behind(depth), torch.inf, total)
        if self.depth is not None:
            total = total + (self.depth_weight * self._depths(points).square()).sum((0, 1))
        for target, weight, first in self._targets():
            total = total + (weight * (points[first:first + len(target)] - target).square().sum(1)).sum(0)
        return total

    @_in_full_blocks
    def energy(self, pose: Pose) -> Tensor:
        """(n): Solved.energy of these frames."""
        points = self._place(pose)
        if self.uv is not None:
            seen = self.uv_weight > 0
            error, depth, _ = self._pixels(points)
            mean = torch.where(seen, error.square().sum(1), 0).sum((0, 1)) / (2 * seen.sum((0, 1)))
            return torch.where(self._behind(depth), torch.nan, mean)
        squares = torch.full_like(points[0, 0], 0)
        count = torch.zeros_like(squares)
        for target, weight, first in self._targets():
            error = (points[first:first + len(target)] - target).square().sum(1)
            squares = squares + torch.where(weight > 0, error, 0).sum(0)
            count = count + 3 * (weight > 0).sum(0)
        return 1e6 * squares / torch.where(count > 0, count, torch.nan)

    @_in_full_blocks
    def normal(self, pose: Pose) -> Tensor:
        """Gauss-Newton's normal equations (n,w,w) with the robust loss' weights: of the p parameters, with half the objective's
        gradient as row and column p; the rest is 0. See Model.width."""
        n = pose.root.shape[-1]
        placed = self.model.kinematics.place(pose.turn, pose.fingers.view(15, 3, n), pose.shape, True, self.model.free)
        points = placed.points + pose.root
        total = None
        for rays, error, first in self._linear(points):
            rows = self._rows(rays, error, first, placed.blocks, placed.shapes).permute(2, 0, 1).contiguous()
            square = rows.transpose(1, 2) @ rows
            total = square if total is None else total.add_(square)
        self._add_priors(pose, total, total[..., self.model.size])
        return total

    def _linear(self, points: Tensor) -> list[tuple[Tensor, Tensor, int]]:
        """Weighted measurements: (rays, error (m,points,n), first point). rays (m,3,points,n): change of the measurement by the
        point; or (points,n), the weight of its three coordinates."""
        found = []
        if self.uv is not None:
            error, depth, projected = self._pixels(points)
            weight = torch.sqrt(self.uv_weight * self._robust(error.square().sum(1))[1]).unsqueeze(1)
            rays = self.cameras[:, :2, :3].unsqueeze(3) - projected.unsqueeze(2) * self.cameras[:, 2:, :3].unsqueeze(3)
            found.append(((rays * (weight / depth.unsqueeze(1)).unsqueeze(2)).flatten(0, 1), (error * weight).flatten(0, 1), 0))
        if self.depth is not None:
            weight = torch.sqrt(self.depth_weight)
            found.append((self.axis[:, :3].unsqueeze(2) * weight.unsqueeze(1), self._depths(points) * weight, 0))
        for target, weight, first in self._targets():
            weight = torch.sqrt(weight)
            error = (points[first:first + len(target)] - target) * weight.unsqueeze(1)
            found.append((weight, error.transpose(0, 1), first))
        return found

    def _rows(self, rays: Tensor, error: Tensor, first: int, blocks: Tensor, shapes: Tensor | None) -> Tensor:
        """Jacobian of one kind of measurement, and its error as column p: (rows, w, n)."""
        pairs, of_point, cells = self.model.verts if first else self.model.joints
        kinds, count, n = error.shape
        size, width, blocks = self.model.size, self.model.width, blocks[pairs]
        if rays.dim() == 2:
            values = (blocks * rays[of_point][:, None, None]).transpose(0, 1)
            by_root = torch.eye(3, **self.model.to)[:, None, :, None] * rays[None, :, None]
        else:
            near = rays[:, :, of_point].unsqueeze(3)
            values = near[:, 0] * blocks[:, 0]
            values.addcmul_(near[:, 1], blocks[:, 1]).addcmul_(near[:, 2], blocks[:, 2])
            by_root = rays.transpose(1, 2)
        out = blocks.new_zeros(kinds, count * width, n)
        out.index_copy_(1, cells, values.reshape(kinds, -1, n))
        out = out.view(kinds, count, width, n)
        out[:, :, 3:6], out[:, :, size] = by_root, error
        if shapes is not None:
            shapes = shapes[first:first + count].transpose(0, 1)  # (3,points,10,n)
            out[:, :, SHAPE] = shapes * rays[:, None] if rays.dim() == 2 else (rays.unsqueeze(3) * shapes).sum(1)
        return out.flatten(0, 1)

    def _place(self, pose: Pose) -> Tensor:
        """Joints (H21) and vertices in the world (p,3,n)."""
        n = pose.root.shape[-1]
        return self.model.kinematics.place(pose.turn, pose.fingers.view(15, 3, n), pose.shape).points + pose.root

    def _pixels(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Errors (v,2,21,n), depths (v,21,n) and projections (v,2,21,n) of the joints, pixels and metres."""
        x, y, z = points[:21].unbind(1)
        cameras = self.cameras.unsqueeze(3)  # (v,3,4,1,n)
        seen = torch.addcmul(cameras[:, :, 3], cameras[:, :, 0], x).addcmul_(cameras[:, :, 1], y).addcmul_(cameras[:, :, 2], z)
        depth = torch.where(self.uv_weight > 0, seen[:, 2], 1.0)  # what nobody measured may lie anywhere
        projected = seen[:, :2] / depth.unsqueeze(1)
        return torch.where(self.uv_weight.unsqueeze(1) > 0, projected - self.uv, 0.0), depth, projected

    def _behind(self, depth: Tensor) -> Tensor:
        """(n) bool: a measured keypoint lies at or behind its camera."""
        return (depth <= 0).flatten(0, 1).any(0)

    def _depths(self, points: Tensor) -> Tensor:
        """Depth errors (v,21,n), metres."""
        return (self.axis[:, :3].unsqueeze(2) * points[:21].transpose(0, 1)).sum(1) + self.axis[:, 3].unsqueeze(1) - self.depth

    def _targets(self) -> list[tuple[Tensor, Tensor, int]]:
        """3D targets, their weights, and the first of the points that they are targets of."""
        found = [(self.points, self.points_weight, 0), (self.verts, self.verts_weight, 21)]
        return [x for x in found if x[0] is not None]

    def _robust(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """rho of squared pixel distances, and its derivative."""
        kind = self.model.options.robust
        if kind == "none":
            return square, torch.ones_like(square)
        limit = (self.model.options.robust_scale * self.sigma_px) ** 2
        if kind == "huber":
            far = limit**0.5 * torch.sqrt(square.clamp_min(limit))
            return torch.where(square <= limit, square, 2 * far - limit), limit / far
        return limit * torch.log1p(square / limit), limit / (limit + square)

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
            total = total + (away.transpose(1, 2) @ self.shape_information @ away).flatten()
        return total

    def _add_priors(self, pose: Pose, matrix: Tensor, gradient: Tensor) -> None:
        options = self.model.options
        if options.pose_prior:
            matrix[:, FINGERS, FINGERS] += options.pose_prior * self.model.information
            gradient[:, FINGERS] += options.pose_prior * (self.model.information @ (pose.fingers - self.model.mean)).T
        if options.stay:
            diagonal = matrix.diagonal(dim1=1, dim2=2)
            fingers, turn = options.stay / options.stay_fingers**2, options.stay / options.stay_global**2
            diagonal[:, FINGERS] += fingers
            diagonal[:, TURN] += turn
            gradient[:, FINGERS] += fingers * (pose.fingers - self.start.fingers).T
            gradient[:, TURN] += turn * self._turned(pose).T  # J_l^-T e = e: along e's own axis
        if self.shape_information is not None:
            matrix[:, SHAPE, SHAPE] += self.shape_information
            gradient[:, SHAPE] += (self.shape_information @ (pose.shape - self.shape_mean).T.unsqueeze(2)).squeeze(2)

    def _turned(self, pose: Pose) -> Tensor:
        """Rotation vectors (3,n) from the start's global rotation to this one."""
        return axis_angle_from_matrix(pose.turn.permute(2, 0, 1) @ self.start.turn.permute(2, 1, 0)).T


def terms_of(model: Model, seen: Observations, start: HandState, shape_mean: Tensor | None = None,
             shape_information: Tensor | None = None) -> Terms:
    """The objective of these frames. shape_mean (n,10) and shape_information (n,10,10): of a free shape's prior."""
    order = torch.tensor(H21_FROM_T21, device=model.to["device"])
    known: dict[str, Tensor] = {}
    for name, value, weight, sigma in (
            ("uv", seen.uv, seen.uv_weight, seen.sigma_px), ("depth", seen.depth, seen.depth_weight, seen.sigma_depth_m),
            ("points", seen.points, seen.point_weight, seen.sigma_point_m),
            ("verts", seen.verts, seen.vert_weight, seen.sigma_vert_m)):
        if value is None:
            continue
        value = value.to(**model.to)
        value = value.unsqueeze(-1) if name == "depth" else value
        weight = torch.ones_like(value[..., 0]) if weight is None else torch.nan_to_num(weight.to(**model.to)).clamp_min(0)
        value = torch.where(weight.unsqueeze(-1) > 0, value, 0.0)
        if name != "verts":
            value, weight = value[..., order, :], weight[..., order]
        value = value.transpose(-1, -2) if name == "uv" else value.squeeze(-1) if name == "depth" else value
        known[name], known[f"{name}_weight"] = (x.movedim(0, -1).contiguous() for x in (value, weight / sigma**2))
    if {"uv", "depth"} & known.keys():
        views = (seen.uv if seen.uv is not None else seen.depth).shape[:2]
        world = seen.camera_from_world
        world = torch.eye(3, 4, **model.to).expand(*views, 3, 4) if world is None else world.to(**model.to)
        known["axis"] = world[:, :, 2].movedim(0, -1).contiguous()
        if seen.uv is not None:
            known["cameras"] = (seen.K.to(**model.to) @ world).movedim(0, -1).contiguous()
    if shape_information is not None:
        known |= {"shape_mean": shape_mean.to(**model.to).T.contiguous(), "shape_information": shape_information.to(**model.to)}
    return Terms(model, pose_of(start), seen.sigma_px, **known)
