"""Rotations in every notation the project meets: 6D rows, matrix, axis-angle, unit quaternion (wxyz).

Conventions: matrices act on column vectors (x' = R x); the 6D notation is the first two ROWS of the matrix (spec: idhandmesh 11),
identity = 1,0,0,0,1,0; angles in radians. All functions take any leading axes, float32 or float64 (half precision is raised, and
autocast is off inside), and differentiate with finite gradients everywhere, including the identity and half turns; where a map
has no derivative (the sign of the axis at exactly pi, 6D rows that are parallel) the one-sided or the zero gradient is returned.
Seed: the originals add 1e-8 to the vector inside the norm of exp; here exp is exact (they differ by 1e-8 rad), and log returns
the minimal angle where theirs may exceed pi (`axis_angle_from_matrix_seed` repeats theirs).
"""
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from utils.precision import full_precision

_SMALL = 1e-6  # squared angle below which power series replace quotients (their error is then below 1e-20)


@full_precision
def matrix_from_rows6d(d6: Float[Tensor, "*batch 6"], eps: float = 1e-12) -> Float[Tensor, "*batch 3 3"]:
    """Gram-Schmidt on the two rows a = d6[:3], b = d6[3:]; the third row is their cross product (Zhou et al., CVPR 2019).

    Rows shorter than `eps`, or parallel ones, give rows of zeros: the answer is then not a rotation, its gradient is zero.
    Seed: the baseline's start pose [1,0,0,1,0,0] is such a case, and the originals return the same zeros.
    """
    a, b = d6[..., :3], d6[..., 3:]
    row0 = _normalised(a, eps)
    row1 = _normalised(b - (row0 * b).sum(-1, keepdim=True) * row0, eps)
    return torch.stack((row0, row1, torch.linalg.cross(row0, row1)), -2)


@full_precision
def rows6d_from_matrix(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two rows, one after the other."""
    return matrix[..., :2, :].flatten(-2)


@full_precision
def matrix_from_axis_angle(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """exp of the rotation vector (Rodrigues). Any length is accepted; 2 pi turns are the identity."""
    return _matrix_from_unit_quaternion(*_half_angle(axis_angle))


@full_precision
def axis_angle_from_matrix(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """log: the rotation vector of least angle, in [0, pi]; at exactly pi either of the two axes."""
    return axis_angle_from_quaternion(quaternion_from_matrix(matrix))


@full_precision
def axis_angle_from_matrix_seed(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """log as the originals compute it: the quaternion's sign is what the best conditioned formula gives, so angles reach 2 pi.

    Seed: needed only to compare with their stored axis-angle vectors; the rotation is that of `axis_angle_from_matrix`.
    """
    w, xyz = _quaternion_any_sign(matrix).split((1, 3), -1)
    half = torch.atan2(_safe_norm(xyz), w)
    small = half < 1e-6
    return xyz * 2 * torch.where(small, 1 + half * half / 6, half / torch.sin(torch.where(small, 1.0, half)))


@full_precision
def quaternion_from_matrix(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z) with w >= 0."""
    q = _quaternion_any_sign(matrix)
    q = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


@full_precision
def matrix_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation of the quaternion (w, x, y, z), normalised first; a zero quaternion gives NaN."""
    unit = (quaternion / torch.linalg.vector_norm(quaternion, dim=-1, keepdim=True)).movedim(-1, 0).contiguous()
    return _matrix_from_unit_quaternion(unit[0], unit[1:])


@full_precision
def quaternion_from_axis_angle(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z) of the rotation vector; w may be negative where the angle exceeds pi."""
    w, xyz = _half_angle(axis_angle)
    return torch.cat((w.unsqueeze(0), xyz)).movedim(0, -1)


@full_precision
def axis_angle_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """Rotation vector of least angle of a unit quaternion (w, x, y, z) of either sign."""
    w, xyz = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion).split((1, 3), -1)
    square = (xyz * xyz).sum(-1, keepdim=True)
    small = square < _SMALL
    sine = torch.sqrt(torch.where(small, 1.0, square))
    cosine = torch.where(small, w, 1.0)  # both branches of `where` must be finite for the gradient to be
    series = 2 / cosine * (1 - square / (3 * cosine * cosine))
    return xyz * torch.where(small, series, 2 * torch.atan2(sine, w) / sine)


@full_precision
def rotation_about_z(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """R_z: turns x towards y. With y down (camera axes, pixels) a positive angle looks clockwise."""
    c, s = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).unflatten(-1, (3, 3))


@full_precision
def geodesic(first: Float[Tensor, "*#batch 3 3"], second: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*#batch"]:
    """Angle in [0, pi] between two rotations, radians; accurate at both ends (arc tangent of sine and cosine)."""
    relative = first.transpose(-1, -2) @ second
    skew = relative - relative.transpose(-1, -2)
    sine = _safe_norm(torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1))[..., 0] / 2
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2(sine, cosine)


def _normalised(x: Tensor, eps: float) -> Tensor:
    square = (x * x).sum(-1, keepdim=True)
    long = square > eps * eps
    return torch.where(long, x * torch.rsqrt(torch.where(long, square, 1.0)), 0.0)


def _safe_norm(x: Tensor) -> Tensor:
    """Norm over the last axis, kept, whose gradient at zero is zero."""
    square = (x * x).sum(-1, keepdim=True)
    positive = square > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), 0.0)


def _half_angle(axis_angle: Tensor) -> tuple[Tensor, Tensor]:
    """cos(a/2) (...) and sin(a/2) axis (3, ...): components first, so that inner loops run over rotations, not over threes."""
    vector = axis_angle.movedim(-1, 0).contiguous()
    square = (vector * vector).sum(0)
    small = square < _SMALL
    half = 0.5 * torch.sqrt(torch.where(small, 1.0, square))
    quotient = torch.where(small, 0.5 - square / 48, 0.5 * torch.sin(half) / half)
    return torch.where(small, 1 - square / 8 + square * square / 384, torch.cos(half)), quotient * vector


def _matrix_from_unit_quaternion(w: Tensor, xyz: Tensor) -> Tensor:
    """(1 - 2 |v|^2) I + 2 v v^T + 2 w [v]x of w (...) and v (3, ...), as (..., 3, 3)."""
    eye, cross, _ = _constants(xyz.dtype, xyz.device)
    twice = xyz + xyz
    turn = (cross.t() @ (w * twice).reshape(3, w.numel())).view(3, 3, *w.shape)
    diagonal = (1 - (twice * xyz).sum(0)) * eye.view(3, 3, *(1,) * w.dim())
    return (twice.unsqueeze(1) * xyz + turn + diagonal).movedim((0, 1), (-2, -1)).contiguous()


def _quaternion_any_sign(matrix: Tensor) -> Tensor:
    """The quaternion from the largest of the four squares 4 w^2, 4 x^2, 4 y^2, 4 z^2 (never below 1: they add up to 4)."""
    _, _, linear = _constants(matrix.dtype, matrix.device)
    products = (matrix.flatten(-2) @ linear[:9] + linear[9]).unflatten(-1, (4, 4))  # 4 q q^T
    squares, best = products.diagonal(dim1=-2, dim2=-1).max(-1, keepdim=True)
    row = products.gather(-2, best.unsqueeze(-1).expand(*best.shape, 4)).squeeze(-2)
    return row / (2 * torch.sqrt(squares))


@lru_cache(maxsize=16)
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Identity (3,3), v -> [v]x flattened (3,9), and the map matrix -> 4 q q^T flattened (9 and a constant row, 16)."""
    cross = torch.zeros(3, 9)
    linear = torch.zeros(10, 4, 4)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[i, 3 * k + j], cross[i, 3 * j + k] = 1, -1
        linear[[3 * k + j, 3 * j + k], 0, i + 1] = linear[[3 * k + j, 3 * j + k], i + 1, 0] = torch.tensor([1.0, -1.0])
        linear[[3 * i + j, 3 * j + i], i + 1, j + 1] = linear[[3 * i + j, 3 * j + i], j + 1, i + 1] = 1
        linear[[4 * i, 4 * j, 4 * k], i + 1, i + 1] = torch.tensor([1.0, -1.0, -1.0])
        linear[4 * i, 0, 0] = 1
    linear[9] = torch.eye(4)
    with torch.inference_mode(False):  # a constant made inside inference mode could not be used in training later
        return tuple(x.to(dtype=dtype, device=device, copy=True) for x in (torch.eye(3), cross, linear.flatten(1)))
