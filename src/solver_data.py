"""What the solver is given and what it gives back (src/solver.py solves).

Rows are frames: n of them, each seen by v cameras (v = 1 without camera_from_world: the camera itself). Metres, pixels with the
centre of the top-left pixel at (0, 0), T21 joints (chain joints, manopth's fingertips), right hands. A missing measurement has
weight 0 (its value may then be NaN); a block that nobody measured is None. All tensors of one call lie on one device.
"""
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from utils.strict import Strict


class _Rows:
    """Dataclasses of tensors whose first axis is the frame."""

    def rows(self, which: Tensor | slice) -> Self:
        """The chosen frames."""
        return replace(self, **{f.name: v[which] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})

    def to(self, *args, **kwargs) -> Self:
        """Every tensor moved as by Tensor.to."""
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: value.to(*args, **kwargs) for name, value in tensors.items()})


@dataclass(frozen=True)
class Observations(_Rows):
    """uv (n,v,21,2) px, uv_weight (n,v,21) its confidence, K (n,v,3,3), camera_from_world (n,v,3,4) or None ·
    depth (n,v,21) z of the joint in that camera, m, depth_weight (n,v,21) · points (n,21,3) target joints in the world, m,
    point_weight (n,21) · verts (n,778,3) target vertices in the world, m, vert_weight (n,778).

    A weight left None is 1 everywhere. sigma_*: standard deviation of a measurement of weight 1 (weight w: sigma / sqrt(w)).
    """

    uv: Tensor | None = None
    uv_weight: Tensor | None = None
    K: Tensor | None = None
    camera_from_world: Tensor | None = None
    sigma_px: float = 2.0
    depth: Tensor | None = None
    depth_weight: Tensor | None = None
    sigma_depth_m: float = 0.005
    points: Tensor | None = None
    point_weight: Tensor | None = None
    sigma_point_m: float = 0.002
    verts: Tensor | None = None
    vert_weight: Tensor | None = None
    sigma_vert_m: float = 0.002

    def __len__(self) -> int:
        return len(next(v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)))


@dataclass(frozen=True)
class HandState(_Rows):
    """rotations (n,16,3,3), identity = flat hand · root (n,3) wrist joint in the world, m · shape (n,10)."""

    rotations: Tensor
    root: Tensor
    shape: Tensor

    def __len__(self) -> int:
        return len(self.root)


@dataclass(frozen=True)
class Solved:
    """What came out, row by row; a row that did not converge is the start, untouched.

    energy, start_energy (n): mean squared pixels over the measured keypoints, u and v counted apart, without weights and robust
    loss (specs: idhandmesh 6.4), or mean squared mm over coordinates where there are no pixels; NaN where there is none ·
    converged (n) bool: the objective was lowered, or the start was its minimum · iterations (n) long · where the shape is free,
    shape (p,10) and shape_cov (p,10,10): mean and covariance of the posterior (Laplace: inverse of the reduced normal matrix) of
    the p persons, or of each row.
    """

    state: HandState
    energy: Tensor
    start_energy: Tensor
    converged: Tensor
    iterations: Tensor
    shape: Tensor | None = None
    shape_cov: Tensor | None = None


class SolverOptions(Strict):
    """Levenberg-Marquardt and its priors (`solver:` of refine, fit, calibrate)."""

    iterations: int = Field(40, ge=1, description="at most this many steps per frame")
    tolerance: float = Field(1e-3, ge=0, description="done when an accepted step lowers the objective by less than this share")
    damping: float = Field(1e-2, gt=0, description="first damping, a share of the normal matrix' diagonal")
    robust: Literal["none", "huber", "cauchy"] = Field("none", description="loss of a keypoint's pixel distance")
    robust_scale: float = Field(3.0, gt=0, description="distance where the robust loss sets in, in standard deviations")
    pose_prior: float = Field(0.0, ge=0, description="weight of the Gaussian in the hand's pose space; 1 = its own")
    stay: float = Field(0.0, ge=0, description="weight of the Gaussian about the start's pose")
    stay_fingers: float = Field(0.2, gt=0, description="its standard deviation per finger axis-angle number, rad")
    stay_global: float = Field(0.2, gt=0, description="its standard deviation per axis of the global rotation, rad")
    chunk: int = Field(512, ge=1, description="frames at once: bounds the memory, changes nothing else")
