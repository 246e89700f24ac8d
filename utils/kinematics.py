"""Joints of many posed hands without posing their meshes, and their analytic Jacobian (the hand's function: specs, datasets 3.1).

The 21 joints are the chain's 16 and five skinned fingertips (manopth's set: exactly HandModel.joints of the posed mesh, pose
correctives and blending included); any further vertices can be added. Derivatives are taken along
    global rotation   a left perturbation on the manifold, R -> exp(w) R, about the wrist
    fingers           the 45 axis-angle numbers; d exp(a) = exp(J_l(a) da) exp(a) with the left Jacobian J_l of SO(3)
    root              the wrist joint's position, metres
    shape             the ten coefficients, the wrist held in its place
A rotation about joint j moves a point by (axis x lever arm), so the Jacobian is a list of 3x3 blocks, one per pair of a point and
a joint that moves it. Inside, tensors are frames-last, (..., n): loops of the CPU run over frames, those of Python never do.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from utils.hand import HandModel
from utils.joints import PARENTS, T21_FROM_H21
from utils.precision import full_precision
from utils.rotation import axis_angle_from_matrix

_ANCESTORS = [{0}]  # of every joint, itself included
for _joint in range(1, 16):
    _ANCESTORS.append(_ANCESTORS[PARENTS[_joint]] | {_joint})
_MOVES = np.array([[j in _ANCESTORS[k] for k in range(16)] for j in range(16)])  # [j, k]: a turn of j turns k


class Placed(NamedTuple):
    """points (p,3,n) less the wrist: 16 chain joints (M16), five fingertips (together H21), further vertices · the Jacobian of
    point pairs[0][i] by joint pairs[1][i] is blocks[i] (3,3,n), columns = angles · shapes (p,3,10,n) by shape; None unless asked.
    """

    points: Tensor
    blocks: Tensor | None = None
    shapes: Tensor | None = None


class Kinematics:
    """The joints of one hand model; `verts`: ids of vertices to follow beside the five fingertips ("all": every one).

    Lies on the device, and has the precision, of the hand at the time it is made.
    """

    def __init__(self, hand: HandModel, verts: Sequence[int] | str = ()):
        a, like = hand.arrays, hand.weights
        ids = [*hand.tips["manopth"], *(range(778) if verts == "all" else verts)]
        self.count, self.dtype, self.device = len(ids), like.dtype, like.device
        weights, posedirs = a.weights[ids], a.posedirs[ids].reshape(len(ids), 3, 15, 9)
        joints = np.einsum("jv,vcs->jcs", a.J_regressor, np.concatenate((a.v_template[..., None], a.shapedirs), 2))
        bones = joints[1:] - joints[list(PARENTS[1:])]
        reach = np.einsum("jk,tk->tj", _MOVES.astype(float), (weights != 0).astype(float)) > 0  # a turn of j moves vertex t ...
        bent = (posedirs != 0).any((1, 3))
        reach[:, 1:] |= bent  # ... or bends it
        point, joint = (np.concatenate(pair) for pair in zip(np.nonzero(_MOVES.T & ~np.eye(16, dtype=bool)), np.nonzero(reach)))
        chain = int((_MOVES & ~np.eye(16, dtype=bool)).sum())
        vertex, by = point[chain:], joint[chain:]
        # Blends: of each vertex with all its weights, then those that a joint's turn moves, each kind once.
        kinds = np.concatenate((np.c_[np.arange(len(ids)), weights], np.c_[vertex, weights[vertex] * _MOVES[by]]))
        _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        kind = np.argsort(order)[kind.ravel()]
        kinds = kinds[first[order]]
        point = np.concatenate((point[:chain], vertex + 16))

        self.pairs = self._index(point), self._index(joint)
        self._chain, self._vertex, self._by = chain, self._index(vertex), self._index(by)
        self._blend, self._blend_of = self._value(kinds[:, 1:]), self._index(kinds[:, 0])
        self._kind = self._index(kind[len(ids):])
        self._partial = self._value(kinds[:, 1:].sum(1)[kind[len(ids):], None, None])
        self._weights = self._value(weights)
        self._excess = self._value(np.einsum("t,cs->tcs", weights.sum(1) - 1, joints[0]))  # of weights that do not add up to 1
        self._bones, self._joints = self._value(bones), self._value(joints)
        self._rest = self._value(np.concatenate((a.v_template[ids][..., None], a.shapedirs[ids]), 2))
        self._correctives = self._value(posedirs.reshape(len(ids) * 3, 135)) if bent.any() else None
        self._by_joint = self._value(posedirs.transpose(2, 0, 1, 3).reshape(15, len(ids) * 3, 9)) if bent.any() else None
        self._bending = self._index(np.nonzero(bent[vertex, np.maximum(by - 1, 0)] & (by > 0))[0])
        self._h21 = self._index(T21_FROM_H21)

    @full_precision
    def joints(self, rotations: Float[Tensor, "n 16 3 3"], shape: Float[Tensor, "n 10"], root: Float[Tensor, "n 3"] | None = None,
               ) -> Float[Tensor, "n 21 3"]:
        """T21 joints (n,21,3), metres: the wrist at `root`, or, without one, where HandModel.joints has it."""
        fingers = axis_angle_from_matrix(rotations[:, 1:]).permute(1, 2, 0)
        placed = self.place(rotations[:, 0].permute(1, 2, 0), fingers, shape.T)
        wrist = (self._joints[0] @ _with_one(shape.T)).T if root is None else root
        return placed.points[self._h21].permute(2, 0, 1) + wrist.unsqueeze(1)

    @full_precision
    def jacobian(self, rotations: Float[Tensor, "n 16 3 3"], shape: Float[Tensor, "n 10"], root: Float[Tensor, "n 3"],
                 ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Joints (n,21,3) with the wrist at `root`, and their derivatives: by pose (n,21,3,48): the global rotation's left
        perturbation and then the fingers' 45 axis-angle numbers; by root (n,21,3,3); by shape (n,21,3,10)."""
        n = len(root)
        fingers = axis_angle_from_matrix(rotations[:, 1:]).permute(1, 2, 0)
        placed = self.place(rotations[:, 0].permute(1, 2, 0), fingers, shape.T, by_pose=True, by_shape=True)
        dense = shape.new_zeros(16 + self.count, 16, 3, 3, n)
        dense[self.pairs] = placed.blocks
        by_pose = dense[self._h21].permute(4, 0, 2, 1, 3).flatten(3)
        by_root = torch.eye(3, dtype=shape.dtype, device=shape.device).expand(n, 21, 3, 3)
        points = placed.points[self._h21].permute(2, 0, 1) + root.unsqueeze(1)
        return points, by_pose, by_root, placed.shapes[self._h21].permute(3, 0, 1, 2)

    def place(self, turn: Tensor, fingers: Tensor, shape: Tensor, by_pose: bool = False, by_shape: bool = False) -> Placed:
        """Frames last: turn (3,3,n) the global rotation · fingers (15,3,n) axis-angle · shape (10,n)."""
        n = turn.shape[-1]
        rotations, left = exp_and_left_jacobian(fingers)
        shape1 = _with_one(shape)
        bones = (self._bones.flatten(0, 1) @ shape1).view(5, 3, 3, 1, n)
        local = torch.cat((rotations.view(5, 3, 3, 3, n), bones), 3)
        first = _product(turn, local[:, 0])
        second = _product(first[:, :, :3], local[:, 1])
        third = _product(second[:, :, :3], local[:, 2])
        world = torch.stack((first, second, third), 1)  # (5 fingers, 3 levels, 3, 4, n): rotation | bone from the parent
        parents = torch.cat((turn.expand(5, 1, 3, 3, n), world[:, :2, :, :3]), 1).flatten(0, 1)
        zero = turn.new_zeros(1, 3, n)
        places = torch.cat((zero, world[..., 3, :].cumsum(1).flatten(0, 1)))
        turns = torch.cat((turn.unsqueeze(0), world[..., :3, :].flatten(0, 1)))
        blended, moved = self._skin(turns, places, rotations, shape1)
        excess = (self._excess.flatten(0, 1) @ shape1).view(self.count, 3, n)
        points = torch.cat((places, moved[:self.count] + excess))
        blocks = self._blocks(points, places, moved, _product(parents, left)) if by_pose else None
        if by_pose and self._correctives is not None:
            self._bend(blocks, blended, rotations, left)
        return Placed(points, blocks, self._by_shape(parents, turns, blended) if by_shape else None)

    def _skin(self, turns: Tensor, places: Tensor, rotations: Tensor, shape1: Tensor) -> tuple[Tensor, Tensor]:
        """Every kind of blend: its transform (k,3,4,n) and the vertex it moves (k,3,n)."""
        n = turns.shape[-1]
        rest = (self._rest.flatten(0, 1) @ shape1).view(self.count, 3, n)
        if self._correctives is not None:
            eye = torch.eye(3, dtype=self.dtype, device=self.device).unsqueeze(-1)
            rest = rest + (self._correctives @ (rotations - eye).reshape(135, n)).view(self.count, 3, n)
        joints = (self._joints.flatten(0, 1) @ shape1).view(16, 3, n)
        transforms = torch.cat((turns, (places - _apply(turns, joints)).unsqueeze(2)), 2)
        blended = (self._blend @ transforms.view(16, -1)).view(len(self._blend), 3, 4, n)
        return blended, _apply(blended[:, :, :3], rest[self._blend_of]) + blended[:, :, 3]

    def _blocks(self, points: Tensor, places: Tensor, moved: Tensor, axes: Tensor) -> Tensor:
        """(pairs,3,3,n): axes of the joint, in the world, crossed with the lever arm of the part of the point that it turns."""
        eye = torch.eye(3, dtype=self.dtype, device=self.device).view(1, 3, 3, 1).expand(1, 3, 3, axes.shape[-1])
        axes = torch.cat((eye, axes))[self.pairs[1]]
        centre = places[self.pairs[1]]
        chain = points[self.pairs[0][:self._chain]] - centre[:self._chain]
        arms = torch.cat((chain, moved[self._kind] - self._partial * centre[self._chain:]))
        return _cross(axes, arms)

    def _bend(self, blocks: Tensor, blended: Tensor, rotations: Tensor, left: Tensor) -> None:
        """Adds to the blocks what the pose correctives do to the vertices."""
        n = rotations.shape[-1]
        change = torch.stack([_cross(left, rotations[:, :, b]) for b in range(3)], 2)  # (15, 3, 3 columns, 3 angles, n)
        shifts = (self._by_joint @ change.reshape(15, 9, 3 * n)).view(15, self.count, 3, 3, n)
        which = self._bending
        vertex = self._vertex[which]
        turned = _product(blended[vertex, :, :3], shifts[self._by[which] - 1, vertex])
        blocks.index_add_(0, which + self._chain, turned)

    def _by_shape(self, parents: Tensor, turns: Tensor, blended: Tensor) -> Tensor:
        """(p,3,10,n): derivative of every point by the shape, the wrist held."""
        n = turns.shape[-1]
        steps = _product(parents, self._bones[:, :, 1:].unsqueeze(-1))
        places = torch.cat((turns.new_zeros(1, 3, 10, n), steps.view(5, 3, 3, 10, n).cumsum(1).flatten(0, 1)))
        shifts = places - _product(turns, self._joints[:, :, 1:].unsqueeze(-1))
        verts = (self._weights @ shifts.view(16, -1)).view(self.count, 3, 10, n) + self._excess[:, :, 1:].unsqueeze(-1)
        return torch.cat((places, verts + _product(blended[:self.count, :, :3], self._rest[:, :, 1:].unsqueeze(-1))))

    def _value(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype=self.dtype, device=self.device)

    def _index(self, array: Sequence[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.int64)).to(self.device)


def exp_and_left_jacobian(vectors: Float[Tensor, "*k 3 n"]) -> tuple[Float[Tensor, "*k 3 3 n"], Float[Tensor, "*k 3 3 n"]]:
    """Frames last: rotation of the vectors (...,3,n), and J_l with exp(a + d) = exp(J_l d) exp(a) to first order."""
    square = (vectors * vectors).sum(-2)
    small = square < 1e-2
    angle = torch.sqrt(torch.where(small, 1.0, square))
    half = torch.sin(0.5 * angle) / angle
    sine = torch.where(small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), torch.sin(angle) / angle)
    versine = torch.where(small, 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)), 2 * half * half)
    third = torch.where(small, (1 - square / 20 * (1 - square / 42 * (1 - square / 72))) / 6, (1 - sine) / angle.square())
    outer = vectors.unsqueeze(-2) * vectors.unsqueeze(-3)
    parts = torch.cat((vectors, -vectors, torch.zeros_like(vectors[..., :1, :])), -2)
    cross = parts[..., (6, 5, 1, 2, 6, 3, 4, 0, 6), :].unflatten(-2, (3, 3))
    return (_combined(1 - versine * square, sine, versine, cross, outer),
            _combined(1 - third * square, versine, third, cross, outer))


def _combined(eye: Tensor, sine: Tensor, versine: Tensor, cross: Tensor, outer: Tensor) -> Tensor:
    """eye I + sine [v]x + versine v v^T."""
    out = torch.addcmul(sine[..., None, None, :] * cross, versine[..., None, None, :], outer)
    out.diagonal(dim1=-3, dim2=-2).add_(eye.unsqueeze(-1))
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products (...,3,3,n) (...,3,m,n)."""
    out = a[..., :, 0, None, :] * b[..., None, 0, :, :]
    out = torch.addcmul(out, a[..., :, 1, None, :], b[..., None, 1, :, :])
    return torch.addcmul(out, a[..., :, 2, None, :], b[..., None, 2, :, :])


def _apply(a: Tensor, x: Tensor) -> Tensor:
    """(...,3,3,n) (...,3,n)."""
    return _product(a, x.unsqueeze(-2)).squeeze(-2)


def _cross(axes: Tensor, arms: Tensor) -> Tensor:
    """Columns of axes (...,3,m,n), each crossed with the arm (...,3,n)."""
    x, y, z = axes.unbind(-3)
    u, v, w = arms.unsqueeze(-2).unbind(-3)
    return torch.stack((y * w - z * v, z * u - x * w, x * v - y * u), -3)


def _with_one(shape: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(shape[:1]), shape))
