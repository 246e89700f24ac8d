"""The hand: MANO's function (Romero et al., SIGGRAPH Asia 2017; specs: datasets 3.1), staged: shape once, pose many.

verts = skin(rest(shape) + posedirs . (R_1..R_15 - I), chain(R, joints(shape))). Metres; the origin is MANO's translation point:
the wrist sits at rest_joints[0] whatever the rotations, and a dataset's `trans` is added to verts and joints alike.
Rotations are MANO's 16 (global first, M16 order); identity = the flat hand, the pose mean is part of the rotations (add_mean).
Any leading axes, those of shape and rotations broadcast. Differentiable. Always float32 or float64, also inside autocast.
Seed: exp and the chain are exact where the originals add 1e-8; results agree to 1e-7 m in float32, 1e-9 m in float64.
"""
import copy
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.joints import LEFT_TIPS, PARENTS, T21_FROM_H21, TIPS
from utils.mano_file import HandArrays, Shapedirs, read_hand_file
from utils.precision import full_precision
from utils.rotation import matrix_from_axis_angle
from utils.skinning import deform


class Posed(NamedTuple):
    """verts (...,778,3) and the chain's joints (...,16,3) in M16 order, metres, origin = MANO's translation point."""

    verts: Tensor
    chain: Tensor

    def moved(self, trans: Float[Tensor, "*#batch 3"]) -> "Posed":
        """Both moved by `trans` (...,3), metres."""
        return Posed(self.verts + trans.unsqueeze(-2), self.chain + trans.unsqueeze(-2))


class ShapedHand:
    """One person's hand (or a batch of persons'), ready to be posed."""

    def __init__(self, hand: "HandModel", shape: Tensor, skeleton: Tensor):
        self._hand, self._shape, self._skeleton = hand, shape, skeleton

    @property
    def rest_verts(self) -> Float[Tensor, "*batch 778 3"]:
        """Flat hand of this shape, metres."""
        return self._hand.rest_verts(self._shape)

    @property
    def rest_joints(self) -> Float[Tensor, "*batch 16 3"]:
        """Its joints, M16, metres."""
        return self._skeleton[..., :16, :]

    @full_precision
    def posed(self, rotations: Float[Tensor, "*#batch 16 3 3"]) -> Posed:
        """Pose this shape: rotations (...,16,3,3), whose leading axes broadcast with the shape's."""
        hand = self._hand
        hand.require(rotations, "rotations", (16, 3, 3))
        batch = torch.broadcast_shapes(rotations.shape[:-3], self._shape.shape[:-1])
        rotations = rotations.expand(*batch, 16, 3, 3).reshape(-1, 16, 3, 3)
        shape = self._shape.expand(*batch, 10).reshape(-1, 10)
        skeleton = self._skeleton.expand(*batch, 31, 3).reshape(-1, 31, 3)
        # Coefficients of one basis: pose correctives, shape, and 1 for the template.
        coefficients = torch.cat(((rotations[:, 1:] - hand._eye).flatten(1), shape, shape.new_ones(len(shape), 1)), 1)
        turns, places = chain(rotations, skeleton[:, :1], skeleton[:, 16:])
        shifts = places - (turns @ skeleton[:, :16].unsqueeze(-1)).squeeze(-1)
        transforms = torch.cat((turns, shifts.unsqueeze(-1)), -1).permute(0, 2, 3, 1)
        verts = deform(coefficients, hand._basis, transforms, hand._weights_t)
        return Posed(verts.view(*batch, 778, 3), places.view(*batch, 16, 3))


def chain(rotations: Tensor, wrist: Tensor, bones: Tensor) -> tuple[Tensor, Tensor]:
    """World rotations (n,16,3,3) and joint places (n,16,3) of the kinematic tree, five fingers at once, level by level.

    rotations (n,16,3,3) relative to the parent · wrist (n,1,3) at rest · bones (n,15,3): each rest joint less its parent.
    """
    local = torch.cat((rotations[:, 1:], bones.unsqueeze(-1)), -1).unflatten(1, (5, 3))  # (n,5,3 levels,3,4)
    root = rotations[:, :1]
    first = root @ local[:, :, 0]
    second = first[..., :3] @ local[:, :, 1]
    third = second[..., :3] @ local[:, :, 2]
    world = torch.stack((first, second, third), 2)
    turns = torch.cat((root, world[..., :3].flatten(1, 2)), 1)
    places = world[..., 3].cumsum(2).flatten(1, 2) + wrist
    return turns, torch.cat((wrist, places), 1)


class HandModel(nn.Module):
    """A hand model of one side. Its arrays are non-persistent buffers: no checkpoint ever contains a hand.

    name, side, sha256 (of the arrays) · faces (1538,3) long · J_regressor (16,778) · weights (778,16) · hands_mean (45) ·
    hands_components (45,45) · tips: vertex ids of each named fingertip set · arrays: what it was made from (float64).
    """

    def __init__(self, arrays: HandArrays, dtype: torch.dtype = torch.float32):
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"a HandModel is float32 or float64, not {dtype}")
        self.arrays, self.name, self.side, self.sha256 = arrays, arrays.name, arrays.side, arrays.sha256
        self.tips = LEFT_TIPS if arrays.side == "left" and arrays.shapedirs_state != "mirrored" else TIPS
        self.register_buffer("faces", torch.from_numpy(arrays.f.copy()), persistent=False)
        self._fill(dtype, torch.device("cpu"))

    @property
    def info(self) -> dict[str, str]:
        """What a file says of the hand it was made with."""
        return {"name": self.name, "sha256": self.sha256}

    @classmethod
    def load(cls, path: str | Path, shapedirs: Shapedirs = "as_is", dtype: torch.dtype = torch.float32) -> "HandModel":
        """From MANO's pickle or this project's .npz; see utils.mano_file.read_hand_file (raises InputError)."""
        return cls(read_hand_file(path, shapedirs), dtype)

    @full_precision
    def shaped(self, shape: Float[Tensor, "*batch 10"]) -> ShapedHand:
        """The hand of these shape coefficients (...,10)."""
        self.require(shape, "shape", (10,))
        skeleton = torch.addmm(self._skeleton, shape.reshape(-1, 10), self._skeleton_dirs)
        return ShapedHand(self, shape, skeleton.view(*shape.shape[:-1], 31, 3))

    @full_precision
    def rest_verts(self, shape: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 778 3"]:
        """Flat hand of these shape coefficients, metres."""
        return (shape @ self._basis[135:145] + self._basis[145]).unflatten(-1, (3, 778)).transpose(-1, -2).contiguous()

    @full_precision
    def forward(self, rotations: Float[Tensor, "*#batch 16 3 3"], shape: Float[Tensor, "*#batch 10"]) -> Posed:
        """Shape and pose in one call."""
        return self.shaped(shape).posed(rotations)

    def joints(self, posed: Posed, tips: str = "manopth", kind: Literal["chain", "regressed"] = "chain",
               order: Literal["T21", "H21", "M16"] = "T21") -> Tensor:
        """Joints (...,21,3) by convention, or 16 of them in M16 order (specs: datasets 3.3).

        tips: a fingertip set of utils.joints.TIPS. kind: `chain` (MANO, DexYCB, HO3D) or `regressed` from the posed mesh
        (FreiHAND, the ECCV 2022 identity-aware models): a few millimetres apart. Raises KeyError for an unknown name.
        """
        base = {"chain": lambda: posed.chain, "regressed": lambda: self.regress(posed.verts)}[kind]()
        if order == "M16":
            return base
        both = torch.cat((base, posed.verts[..., self.tips[tips], :]), -2)
        return {"T21": lambda: both[..., T21_FROM_H21, :], "H21": lambda: both}[order]()

    @full_precision
    def regress(self, verts: Float[Tensor, "*batch 778 3"]) -> Float[Tensor, "*batch 16 3"]:
        """Joints in M16 order as MANO's regressor has them from any 778 vertices."""
        return self.J_regressor @ verts

    @full_precision
    def axis_angle_from_pca(self, coeffs: Float[Tensor, "*batch k"], add_mean: bool = True) -> Float[Tensor, "*batch 45"]:
        """Finger axis-angles from the first k <= 45 pose coefficients; with the mean they are absolute."""
        pose = coeffs @ self.hands_components[:coeffs.shape[-1]]
        return pose + self.hands_mean if add_mean else pose

    @full_precision
    def pca_from_axis_angle(self, axis_angle: Float[Tensor, "*batch 45"], subtract_mean: bool = True,
                            ) -> Float[Tensor, "*batch 45"]:
        """All 45 pose coefficients of finger axis-angles: the inverse of `axis_angle_from_pca`."""
        return (axis_angle - self.hands_mean if subtract_mean else axis_angle) @ self._pca_inverse

    @full_precision
    def rotations_from_pose(self, pose: Float[Tensor, "*batch p"], pca: bool, flat_mean: bool) -> Float[Tensor, "*batch 16 3 3"]:
        """MANO's pose vector, 3 global axis-angle numbers and then the fingers', as rotations.

        pca: the fingers are k <= 45 coefficients, else 45 axis-angle numbers. flat_mean: they are absolute (HO3D); else the
        pose mean is added (DexYCB: pca, flat_mean=False; FreiHAND, InterHand2.6M: no pca, flat_mean=False).
        """
        if pca:
            fingers = self.axis_angle_from_pca(pose[..., 3:], add_mean=not flat_mean)
        else:
            fingers = pose[..., 3:] if flat_mean else pose[..., 3:] + self.hands_mean
        return matrix_from_axis_angle(torch.cat((pose[..., :3], fingers), -1).unflatten(-1, (16, 3)))

    def mirrored(self) -> "HandModel":
        """The other side's hand: equal shape and PCA coefficients, and mirrored rotations, give the mirror image (x -> -x)."""
        other = HandModel(self.arrays.mirrored(), self.weights.dtype).to(self.weights.device)
        other.tips = self.tips
        return other

    def with_tips(self, name: str) -> "HandModel":
        """The same hand, whose default fingertips are those of the set `name` (utils.joints.TIPS)."""
        other = copy.copy(self)
        other.tips = {**self.tips, "manopth": self.tips[name]}
        return other

    def in_float64(self) -> "HandModel":
        """A copy in float64, from the arrays it was made of."""
        other = HandModel(self.arrays, torch.float64).to(self.weights.device)
        other.tips = self.tips
        return other

    def require(self, value: Tensor, name: str, shape: tuple[int, ...]) -> None:
        """TypeError or ValueError where `value` does not end in `shape` or is of another precision than the model."""
        if value.dtype != self.weights.dtype:
            raise TypeError(f"{name} are {value.dtype}, the hand model is {self.weights.dtype}: convert one of them")
        if value.shape[-len(shape):] != shape:
            raise ValueError(f"{name}: expected (..., {', '.join(map(str, shape))}), found {tuple(value.shape)}")

    def _fill(self, dtype: torch.dtype, device: torch.device) -> None:
        """Buffers from the float64 arrays, in the layout of the forward pass: coordinates before vertices."""
        a = self.arrays
        skeleton = np.concatenate((np.eye(16), np.eye(16)[1:] - np.eye(16)[list(PARENTS[1:])])) @ a.J_regressor  # joints, bones
        values = {
            "J_regressor": a.J_regressor, "weights": a.weights, "_weights_t": a.weights.T, "hands_mean": a.hands_mean,
            "hands_components": a.hands_components, "_pca_inverse": np.linalg.pinv(a.hands_components), "_eye": np.eye(3),
            "_basis": np.concatenate((a.posedirs, a.shapedirs, a.v_template[..., None]), 2).transpose(2, 1, 0).reshape(146, 2334),
            "_skeleton": (skeleton @ a.v_template).ravel(),
            "_skeleton_dirs": np.einsum("jv,vcs->sjc", skeleton, a.shapedirs).reshape(10, 93),
        }
        for name, value in values.items():
            tensor = torch.from_numpy(np.ascontiguousarray(value)).to(dtype=dtype, device=device, copy=True)
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts, from the float64 arrays: .double() is exact, .half() and .bfloat16() of a parent leave float32."""
        before = self.weights.dtype
        super()._apply(fn, recurse)
        after = self.weights.dtype
        if after != before:
            self._fill(torch.float64 if after == torch.float64 else torch.float32, self.weights.device)
        return self


def mirror_points(points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Points or translations of the other hand: x -> -x."""
    return points * points.new_tensor((-1.0, 1.0, 1.0))


def left_sibling(right: str | Path) -> Path:
    """The left hand's file beside the right one's: MANO_LEFT.pkl beside MANO_RIGHT.pkl."""
    path = Path(right)
    return path.with_name(path.name.replace("right", "left").replace("RIGHT", "LEFT"))


def mirror_axis_angle(axis_angle: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Rotation vectors of the other hand: (x, -y, -z); also (..., 45) or (..., 48), triple by triple."""
    sign = axis_angle.new_tensor((1.0, -1.0, -1.0))
    return (axis_angle.unflatten(-1, (-1, 3)) * sign).flatten(-2)


def mirror_rotations(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotations of the other hand: S R S with S = diag(-1, 1, 1)."""
    sign = rotations.new_tensor((-1.0, 1.0, 1.0))
    return rotations * sign.unsqueeze(-1) * sign
