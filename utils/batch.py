"""The contracts between datasets and methods: what a method is fed, and what it must give back.

Camera frame, OpenCV axes (x right, y down, z forward), metres, right hand (a left hand is mirrored on the way in, and back
on the way out), pixels with the centre of the top-left pixel at (0, 0). Joints in T21 order (utils/joints.py).
`shape` is the target; `identity` is the shape a method may be *told* (the truth, or a calibrated one) and never a target.
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """b samples on one device. A field that the dataset does not provide is None; has_* says which rows are labelled.

    image (b,3,h,w) float [0,1] · K (b,3,3) of the crop · crop_from_image (b,3,3) pixels of the full picture, mirrored first
    where `mirrored`, to pixels of the crop · mirrored (b) bool · index (b) row in the reader · subject (b) number ·
    joints (b,21,3) · verts (b,778,3) · rotations (b,16,3,3), identity = flat hand · shape (b,10) · root (b,3) wrist ·
    joints_uv (b,21,2) crop pixels · uv_confidence (b,21) · mask (b,h,w) 0 or 1 · identity (b,10) · chain_wrist (b,3) the hand
    model's own wrist J0(shape) + translation, where `root` is another one (joints regressed from the posed mesh); has_rotations
    flags both: a mesh may be labelled without the pose numbers that made it
    """

    image: Tensor
    K: Tensor
    crop_from_image: Tensor
    mirrored: Tensor
    index: Tensor
    subject: Tensor
    joints: Tensor | None = None
    verts: Tensor | None = None
    rotations: Tensor | None = None
    shape: Tensor | None = None
    root: Tensor | None = None
    joints_uv: Tensor | None = None
    uv_confidence: Tensor | None = None
    mask: Tensor | None = None
    identity: Tensor | None = None
    has_joints: Tensor | None = None
    has_verts: Tensor | None = None
    has_shape: Tensor | None = None
    has_uv: Tensor | None = None
    has_mask: Tensor | None = None
    has_root: Tensor | None = None
    has_rotations: Tensor | None = None
    chain_wrist: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Every tensor moved as by Tensor.to."""
        return replace(self, **{f.name: v.to(*args, **kwargs) for f in fields(self) if (v := getattr(self, f.name)) is not None})

    def rows(self, which: Tensor | slice) -> Self:
        """The chosen rows."""
        return replace(self, **{f.name: v[which] for f in fields(self) if (v := getattr(self, f.name)) is not None})


class JointSet(NamedTuple):
    """What 21 joints are: fingertip vertices (a name of utils.joints.TIPS), and whether the others are the hand model's chain
    joints or regressed from the posed mesh. A dataset's labels have one; answers are given in the set of the dataset at hand."""

    tips: str = "manopth"
    kind: Literal["chain", "regressed"] = "chain"


class Prediction(NamedTuple):
    """What every method's `decode` returns, whatever its network predicts; what it does not predict is None.

    verts (b,778,3) and joints (b,21,3) in metres, camera axes, relative to this prediction's own wrist joint (both or neither) ·
    root (b,3) wrist in the camera, metres · rotations (b,16,3,3) · shape (b,10) · shape_cov (b,10,10) · joints_uv (b,21,2) crop
    pixels, with uv_confidence (b,21) in [0,1] · confidence (b), higher is better · mask (b,c,c) chance in [0,1] that a cell of a
    grid over the crop is hand · root_by (b) number of ROOT_BY: what a registered root stands on, 0 = it is a stand-in.
    """

    verts: Tensor | None = None
    joints: Tensor | None = None
    root: Tensor | None = None
    rotations: Tensor | None = None
    shape: Tensor | None = None
    shape_cov: Tensor | None = None
    joints_uv: Tensor | None = None
    uv_confidence: Tensor | None = None
    confidence: Tensor | None = None
    mask: Tensor | None = None
    root_by: Tensor | None = None


UNSTORED = frozenset({"mask", "root_by"})  # fields of Prediction that are no part of predictions files
ROOT_BY = ("nothing: no confident 2D joint, no silhouette", "2D joints, with which the silhouette agrees",
           "the silhouette, which disagrees with the 2D joints", "2D joints and silhouette, a mean of both",
           "2D joints alone, as no silhouette fits", "the silhouette alone, with no confident 2D joint")


class Source(Protocol):
    """What the engine and the evaluation see of a dataset (datasets/reader.py is the implementation).

    `source[(epoch, index)]` decodes one sample to a dict of equally shaped arrays (its random numbers follow from
    (seed, epoch, index) alone); the default collate stacks them; `batch` turns the stack into a Batch on the device of
    the stack: crop, augmentation (only where the source was opened with train=True), hand model, all batched.
    """

    provides: frozenset[str]
    joint_set: JointSet

    def __len__(self) -> int: ...
    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]: ...
    def batch(self, raw: dict[str, Tensor]) -> Batch: ...
    def sample_name(self, index: int) -> str: ...
    def protocol(self) -> dict[str, Any]: ...
    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]: ...


def require_fields(needs: frozenset[str], provides: frozenset[str]) -> frozenset[str]:
    """Batch fields that a method's losses read and a dataset does not provide (empty = they fit)."""
    known = {f.name for f in fields(Batch)}
    if unknown := (needs | provides) - known:
        raise TypeError(f"not Batch fields: {sorted(unknown)}")
    return needs - provides


def stack_to(raw: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A collated stack moved to `device`, overlapping with compute where the memory is pinned."""
    return {key: value.to(device, non_blocking=True) for key, value in raw.items()}
