"""Where the hand is: the wrist's place in the camera from metric wrist-relative joints and 2D joints, in closed form.

A joint X (wrist-relative) seen at u lies on the ray K^-1 u = (x, y, 1): root_xy = (x, y) root_z + ((x, y) X_z - X_xy), linear.
Depth is thus the factor between two sets of points in the plane: what the hand spans in metres, and what the rays span. Least
squares shrinks that factor by whatever is wrong in the pose and, minimised in pixels, stretches it; `size` takes the ratio of the
two sets' spreads, which lies between them, is always positive, and is unmoved by a pose turned in the picture's plane (measured
at 34 mm of joint error: 59 mm of depth error against 97 and 134). Either is repeated a few times with Cauchy weights on the pixel
residuals, whose scale is the row's own median. Exact without noise; any invertible K; batched; float64 inside; differentiable.
A shape 5 % too large stands 5 % too far.
"""
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.camera import project
from utils.precision import full_precision

STEPS = 4
CAUCHY = 2.385  # times the standard deviation: 95 % efficient on Gaussian noise
MEDIAN_OF_SQUARES = 1.386  # of a 2D Gaussian's squared length, in units of one coordinate's variance
FLOOR_PX = 0.1  # under it nothing is an outlier
NEAREST_M = 0.01  # a keypoint nearer to the camera than this is behind it, as far as a fit goes
SPREAD = 1e-12  # squared, of rays at distance 1: keypoints nearer together than that are one
SINGULAR = 1e-10  # |det| over the product of the rows' lengths

FAULTS = ("", "fewer than two keypoints", "a camera matrix that is not invertible", "keypoints in one point",
          "a hand behind the camera")


class RootFit(NamedTuple):
    """root (b,3) wrist in the camera, metres, NaN where not valid · valid (b) · residual_px (b) root mean square distance of the
    projected joints to the keypoints, weighted by confidence (no gradient) · fault (b) index into FAULTS."""

    root: Float[Tensor, "b 3"]
    valid: Bool[Tensor, "b"]
    residual_px: Float[Tensor, "b"]
    fault: Int[Tensor, "b"]


@full_precision
def solve_root(
    joints: Float[Tensor, "b 21 3"], uv: Float[Tensor, "b 21 2"], K: Float[Tensor, "b 3 3"],
    confidence: Float[Tensor, "b 21"], steps: int = STEPS, depth: Literal["size", "pixels"] = "size",
) -> RootFit:
    """Place of wrist-relative `joints` (metres) whose pixels are `uv`, with weights `confidence`.

    A keypoint counts where its confidence is positive and its numbers are finite. Rows that cannot be solved are not valid, and
    never stop the others: see FAULTS and `fault_line`. steps: reweighted steps after the first answer. depth: `size` matches
    spreads; `pixels` minimises the weighted pixel distances, from a linear start (better only where the pose is right).
    """
    kind = joints.dtype
    joints, uv, K, confidence = (value.double() for value in (joints, uv, K, confidence))
    used = torch.isfinite(uv).all(-1) & torch.isfinite(joints).all(-1) & torch.isfinite(confidence) & (confidence > 0)
    enough = used.sum(-1) >= 2
    regular = _regular(K)
    # What does not count is replaced before it is computed with: a masked NaN would still poison the gradients.
    K = torch.where(regular[:, None, None], K, torch.eye(3, dtype=K.dtype, device=K.device))
    uv, joints = (torch.where(used[..., None], value, 0.0) for value in (uv, joints))
    weight = torch.where(used, confidence, 0.0)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)
    xy, offset = _plane(joints, uv, K, used)
    root, apart = _place(xy, offset, weight, matched=depth == "size")
    for _ in range(steps):
        off, turn = _seen(root, joints, uv, K, used)
        robust = weight * _cauchy(off, used)
        root = _place(xy, offset, robust, matched=True)[0] if depth == "size" else root + _step(off, turn, robust)
    ahead = torch.where(used, joints[..., 2] + root[:, None, 2], torch.inf)
    before = (ahead > NEAREST_M).all(-1) & torch.isfinite(root).all(-1)
    with torch.no_grad():
        square = (project(joints + root[:, None], K) - uv).square().sum(-1)
        residual = torch.where(used, weight * square, 0.0).sum(-1).sqrt()
    fault = torch.zeros_like(enough, dtype=torch.long)
    for code, fine in ((4, before), (3, apart), (2, regular), (1, enough)):
        fault = torch.where(fine, fault, code)
    valid = fault == 0
    return RootFit(torch.where(valid[:, None], root, torch.nan).to(kind), valid,
                   torch.where(valid, residual, torch.nan).to(kind), fault)


def fault_line(fault: Int[Tensor, "b"]) -> str:
    """How many rows have no place, and why; empty where all have one."""
    counts = torch.bincount(fault.flatten(), minlength=len(FAULTS)).tolist()
    told = [f"{count} with {text}" for count, text in zip(counts[1:], FAULTS[1:]) if count]
    return f"{sum(counts[1:])} of {sum(counts)} frames have no wrist position: {', '.join(told)}" if told else ""


def _regular(K: Tensor) -> Tensor:
    """(b) whether K is finite and far from singular, whatever its scale."""
    finite = torch.isfinite(K).all(-1).all(-1)
    known = torch.where(finite[:, None, None], K, 0.0).detach()
    return torch.linalg.det(known).abs() > SINGULAR * known.norm(dim=-1).prod(-1)


def _plane(joints: Tensor, uv: Tensor, K: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The rays' (x, y) and xy X_z - X_xy, both (b,21,2): root_xy = xy root_z + offset. Zero where not used."""
    rays = torch.cat((uv, torch.ones_like(uv[..., :1])), -1) @ torch.linalg.inv(K).transpose(-1, -2)
    ahead = used[..., None] & (rays[..., 2:].abs() > 1e-12)
    xy = torch.where(ahead, rays[..., :2], 0.0) / torch.where(ahead, rays[..., 2:], 1.0)
    return xy, torch.where(used[..., None], xy * joints[..., 2:] - joints[..., :2], 0.0)


def _place(xy: Tensor, offset: Tensor, weight: Tensor, matched: bool) -> tuple[Tensor, Tensor]:
    """Root (b,3), and (b) whether the rays differ at all. matched: depth by the ratio of spreads, else by regression."""
    share = (weight / weight.sum(-1, keepdim=True).clamp_min(1e-300))[..., None]
    middle, across = (share * xy).sum(-2, keepdim=True), (share * offset).sum(-2, keepdim=True)
    rays, spans = xy - middle, offset - across
    spread = (share * rays.square()).sum((-1, -2))
    apart = spread > SPREAD
    spread = torch.where(apart, spread, 1.0)
    if matched:
        size = (share * spans.square()).sum((-1, -2))
        depth = torch.where(size > SPREAD**2, size / spread, NEAREST_M**2).sqrt()
    else:
        depth = -(share * rays * spans).sum((-1, -2)) / spread
    return torch.cat((across[:, 0] + middle[:, 0] * depth[:, None], depth[:, None]), -1), apart


def _seen(root: Tensor, joints: Tensor, uv: Tensor, K: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """uv less the projections (b,21,2), zero where not used, and the projections' derivative (b,21,2,3), pixels per metre."""
    seen = torch.where(used[..., None], (joints + root[:, None]) @ K.transpose(-1, -2), 1.0)
    nearest = NEAREST_M * K[:, None, 2].norm(dim=-1)
    depth = torch.where(seen[..., 2] > nearest, seen[..., 2], nearest)[..., None]
    at = seen[..., :2] / depth
    turn = (K[:, None, :2] - at[..., None] * K[:, None, 2:]) / depth[..., None]
    return torch.where(used[..., None], uv - at, 0.0), turn


def _cauchy(off: Tensor, used: Tensor) -> Tensor:
    """(b,21) factors of the weights: one half at 2.4 standard deviations, as the row's median tells them."""
    square = off.square().sum(-1)
    middle = torch.where(used, square, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
    return 1 / (1 + square / (CAUCHY**2 * middle / MEDIAN_OF_SQUARES + FLOOR_PX**2))


def _step(off: Tensor, turn: Tensor, weight: Tensor) -> Tensor:
    """(b,3) one Gauss-Newton step on the weighted squared pixel distances."""
    weighted = turn * weight[..., None, None]
    normal = torch.einsum("bkij,bkil->bjl", weighted, turn)
    # A trace of damping: rows that cannot be solved stay finite; it moves no step's end, where the right side is zero.
    damping = 1e-12 * normal.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-30
    normal = normal + damping[:, None, None] * torch.eye(3, dtype=off.dtype, device=off.device)
    return torch.linalg.solve_ex(normal, torch.einsum("bkij,bki->bj", weighted, off)).result
