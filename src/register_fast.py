"""The registration's two energies minimised for a whole batch (spec cmr 4; the energies are register_faithful's).

2D, algebraic: a convex quadratic in the translation whose depth alone is bounded, so each round is solved in closed form.
2D, pixel, and 1D: Levenberg-Marquardt, every row with its own damping, no step taken that raises the energy. The 1D energy hangs
on the 24 outermost vertices: steps are made on those met so far (a cutting-plane method), and are taken if the energy over all
vertices falls; done when stepping meets no new one. float64; rows that are done are left out, or left alone.
"""
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from src.silhouette import AXES

START_DEPTH_M = 0.6
ROUNDS, ENOUGH, FEWEST = 5, 2.0, 13  # of the 2D stage: most rounds, mean residual to stop at, keypoints that must remain
NEAREST_M = 0.01  # what is nearer to the camera is projected as if it were there
KEYPOINT_ROWS, VERTEX_ROWS, VERTEX_ROWS_GPU, BLOCK_ROWS = 1024, 256, 4096, 32  # at a time
STEP_M = 1e-7  # a step shorter than that is the last
SAME = 1e-16  # energies nearer than that are of the same vertices
DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-12, 1e5
PIXEL_STEPS, INNER_STEPS, OUTER_STEPS = 30, 3, 30

Measure = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # t (b,3) -> energy (b), half its Hessian (b,3,3), gradient (b,3)


def by_keypoints(
    joints: Float[Tensor, "b 21 3"], uv: Float[Tensor, "b 21 2"], used: Bool[Tensor, "b 21"], K: Float[Tensor, "b 3 3"],
    start: Float[Tensor, "b 3"], bounds: tuple[float, float], residual: Literal["algebraic", "pixel"] = "algebraic",
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, "b"]]:
    """(translation, whether it is finite) of each row, which needs one keypoint at least; uv must be finite everywhere."""
    solve = _algebraic if residual == "algebraic" else _pixel
    parts = zip(*(x.split(KEYPOINT_ROWS) for x in (joints, uv, used, K, start)))
    t = torch.cat([_rounds(solve, *part, bounds) for part in parts])
    return t, torch.isfinite(t).all(1)


def _rounds(solve: Callable, joints: Tensor, uv: Tensor, used: Tensor, K: Tensor, t: Tensor, bounds: tuple[float, float],
            ) -> Tensor:
    """Solve; keypoints of at least mean + standard deviation leave; again, while that is far and enough remain (row by row)."""
    alive = torch.ones_like(used[:, 0])
    for _ in range(ROUNDS):
        found, error = solve(joints, uv, used, K, t, bounds)
        t = torch.where(alive[:, None], found, t)
        count = used.sum(1)
        error = torch.where(used, error, 0.0)
        mean = error.sum(1) / count
        spread = (torch.where(used, error - mean[:, None], 0.0).square().sum(1) / count).sqrt()
        kept = used & (error < (mean + spread)[:, None])
        alive = alive & (mean > ENOUGH) & (kept.sum(1) >= FEWEST)
        used = torch.where(alive[:, None], kept, used)
        if not alive.any():
            break
    return t


def bounded_minimum(hessian: Float[Tensor, "b 3 3"], gradient: Float[Tensor, "b 3"], low: Float[Tensor, "b"],
                    high: Float[Tensor, "b"]) -> Float[Tensor, "b 3"]:
    """The d that minimises d H d / 2 + g d with low <= d_z <= high, H positive semidefinite. Exact: a convex quadratic with one
    bounded coordinate has its minimum over the other two below the clamped minimum in that one. What H leaves open is 0."""
    a, b, c = hessian[:, 0, 0], hessian[:, 0, 1], hessian[:, 1, 1]
    (p, q, s), (gx, gy, gz) = hessian[:, :, 2].unbind(1), gradient.unbind(1)
    det = a * c - b * b
    inverse = torch.where(det > 1e-14 * a * c, 1 / det, 0.0)
    px, py = (c * p - b * q) * inverse, (a * q - b * p) * inverse  # the 2 x 2 block's solutions for the column of z,
    ux, uy = (c * gx - b * gy) * inverse, (a * gy - b * gx) * inverse  # and for the gradient
    curve, slope = s - p * px - q * py, gz - p * ux - q * uy
    z = torch.where(curve > 1e-14 * s, -slope / curve, 0.0)
    z = torch.minimum(torch.maximum(z, low), high)
    return torch.stack((-ux - px * z, -uy - py * z, z), 1)


def _algebraic(joints: Tensor, uv: Tensor, used: Tensor, K: Tensor, t: Tensor, bounds: tuple[float, float],
               ) -> tuple[Tensor, Tensor]:
    """(the minimum, (b,21) size for the outlier rule). The residual K(x+t) - (u,v,1)(x+t)_z is A(x+t), A = K less a column."""
    A = K[:, None].expand(-1, 21, -1, -1).clone()
    A[..., 2] -= torch.cat((uv, torch.ones_like(uv[..., :1])), -1)
    weighted = A * used[..., None, None]
    off = (A @ (joints + t[:, None])[..., None])[..., 0]
    d = bounded_minimum(torch.einsum("bkij,bkil->bjl", weighted, A), torch.einsum("bkij,bki->bj", weighted, off),
                        bounds[0] - t[:, 2], bounds[1] - t[:, 2])
    off = off + (A @ d[:, None, :, None])[..., 0]
    return t + d, off.sum(-1).abs()  # Seed: the signed components are added, so that opposite errors cancel


def _pixel(joints: Tensor, uv: Tensor, used: Tensor, K: Tensor, t: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(the minimum from t on, (b,21) lengths of the residuals in pixels)."""
    placed = joints @ K.transpose(1, 2)
    count = used.sum(1)

    def seen(t: Tensor) -> tuple[Tensor, Tensor]:
        hom = placed + (t[:, None] @ K.transpose(1, 2))
        depth = hom[..., 2:].clamp_min(NEAREST_M)
        return hom[..., :2] / depth, depth

    def measure(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, depth = seen(t)
        off = torch.where(used[..., None], at - uv, 0.0)
        turn = (K[:, None, :2] - at[..., None] * K[:, None, 2:]) / depth[..., None] * used[..., None, None]
        return off.square().sum((1, 2)) / (2 * count), *_normal(turn.flatten(1, 2), off.flatten(1))

    t = _descend(measure, t, bounds, torch.full_like(t[:, 0], DAMPING), PIXEL_STEPS)[0]
    return t, (seen(t)[0] - uv).norm(dim=-1)


def by_extents(
    verts: Float[Tensor, "b 778 3"], target: Float[Tensor, "b 24"], K: Float[Tensor, "b 3 3"], start: Float[Tensor, "b 3"],
    bounds: tuple[float, float], size: int,
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, "b"]]:
    """(translation, whether it is finite) of each row; target: extents of the silhouette, pixels."""
    step = VERTEX_ROWS if verts.device.type == "cpu" else VERTEX_ROWS_GPU
    parts = zip(*(x.split(step) for x in (verts, target, K, start)))
    t = torch.cat([_cutting(*part, bounds, size) for part in parts])
    return t, torch.isfinite(t).all(1)


def _cutting(verts: Tensor, target: Tensor, K: Tensor, start: Tensor, bounds: tuple[float, float], size: int) -> Tensor:
    """Minimum of the extents' energy from `start` on: descend on the outermost vertices met so far, look at all, and again."""
    K, target = torch.cat((K[:, :2] / size, K[:, 2:]), 1), target / size  # pixels to crops
    placed = K @ verts.transpose(1, 2)  # (b,3,778)
    answer, row, t = start.clone(), torch.arange(len(verts), device=verts.device), start
    values, met = _outermost_of_all(placed, K, t)
    energy = (values - target).square().mean(1)
    damping = torch.full_like(energy, DAMPING)
    for _ in range(OUTER_STEPS):
        measure = _of_extents(placed.gather(2, met[:, None].expand(-1, 3, -1)), K, target)
        trial, met_energy, damping, busy = _descend(measure, t, bounds, damping, INNER_STEPS)
        values, outermost = _outermost_of_all(placed, K, trial)
        found = (values - target).square().mean(1)
        better = found < energy
        t, energy = torch.where(better[:, None], trial, t), torch.where(better, found, energy)
        answer[row] = t
        new = (found - met_energy).abs() > SAME
        damping = torch.where(new, DAMPING, damping)
        go = (new | busy).nonzero()[:, 0]
        if not len(go):
            break
        met = torch.cat((met, outermost), 1)
        row, placed, K, target, t, energy, damping, met = (x[go] for x in (row, placed, K, target, t, energy, damping, met))
    return answer


def _outermost(placed: Tensor, K: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(extents (b,24) in crops, the vertices (b,24) they are of, the depths (b,24) of those) of K X (b,3,n) moved by t."""
    axes = torch.as_tensor(AXES, dtype=t.dtype, device=t.device)
    hom = placed + K @ t[:, :, None]
    depth = hom[:, 2].clamp_min(NEAREST_M)
    seen = hom[:, :2] / depth[:, None]
    along = axes @ seen  # (b,12,n)
    # The last bits of a coordinate (1e-13 of it) give way to its vertex's number, so that an extreme tells whose it is: half the
    # time of min and max with indices.
    count = placed.shape[2]
    bits = (1 << (count - 1).bit_length()) - 1
    along.view(torch.int64).bitwise_and_(~bits).bitwise_or_(torch.arange(count, device=t.device))
    at = torch.stack((along.amin(2), along.amax(2)), 2).flatten(1).view(torch.int64) & bits
    seen = seen.gather(2, at[:, None].expand(-1, 2, -1))
    return (seen * axes.repeat_interleave(2, 0).T).sum(1), at, depth.gather(1, at)


def _outermost_of_all(placed: Tensor, K: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Extents and vertices as `_outermost`, by blocks that a CPU's cache holds."""
    rows = BLOCK_ROWS if t.device.type == "cpu" else len(t)
    values, at, _ = zip(*(_outermost(*block) for block in zip(placed.split(rows), K.split(rows), t.split(rows))))
    return torch.cat(values), torch.cat(at)


def _of_extents(placed: Tensor, K: Tensor, target: Tensor) -> Measure:
    """What `_descend` asks for, of the extents of the vertices given."""
    rays = (torch.as_tensor(AXES, dtype=K.dtype, device=K.device) @ K[:, :2]).repeat_interleave(2, 1)  # (b,24,3)

    def measure(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, _, depth = _outermost(placed, K, t)
        turn = (rays - values[..., None] * K[:, 2:]) / depth[..., None]
        off = values - target
        return off.square().mean(1), *_normal(turn, off)

    return measure


def _normal(turn: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """J^T J (b,3,3) and J^T r (b,3)."""
    return turn.transpose(1, 2) @ turn, (turn.transpose(1, 2) @ off[..., None])[..., 0]


def _descend(measure: Measure, t: Tensor, bounds: tuple[float, float], damping: Tensor, steps: int,
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(t, energy, damping, whether more steps may help) after Levenberg-Marquardt from t: depth within bounds, no row's energy
    ever higher than before."""
    energy, hessian, gradient = measure(t)
    busy = torch.ones_like(energy, dtype=torch.bool)
    for _ in range(steps):
        damped = hessian + torch.diag_embed(hessian.diagonal(dim1=1, dim2=2) * damping[:, None])
        d = bounded_minimum(damped, gradient, bounds[0] - t[:, 2], bounds[1] - t[:, 2])
        found, its_hessian, its_gradient = measure(t + d)
        better = busy & (found < energy)
        t = torch.where(better[:, None], t + d, t)
        energy, gradient = torch.where(better, found, energy), torch.where(better[:, None], its_gradient, gradient)
        hessian = torch.where(better[:, None, None], its_hessian, hessian)
        damping = torch.where(better, damping / 10, damping * 10).clamp_min(LEAST_DAMPING)
        busy = busy & (d.abs().amax(1) > STEP_M) & (damping < MOST_DAMPING)
        if not busy.any():
            break
    return t, energy, damping, busy
