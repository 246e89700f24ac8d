"""Registration as the original solved it: SciPy's SLSQP, numeric gradients, one hand after the other (spec cmr 4).

2D: up to five rounds on the mean of the squared residual; keypoints of at least mean + standard deviation leave between rounds.
1D: the mean squared difference between the extents of the silhouette and of the projected mesh, in crops; it starts at the
common start, not at the 2D answer. SLSQP stops where the energy changes by less than 1e-6, which for the 1D energy (about 1e-6
itself) is early: the answers lie millimetres from the minimum. residual `pixel` is no part of the original.
Seed: the 2D outlier rule adds the two signed components, so that opposite errors cancel.
"""
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from src.register_fast import ENOUGH, FEWEST, ROUNDS
from src.silhouette import AXES

Watch = Callable[[str, np.ndarray, float], None]  # of every solve: stage, answer, energy


def by_keypoints(
    joints: Float[Tensor, "b 21 3"], uv: Float[Tensor, "b 21 2"], used: Bool[Tensor, "b 21"], K: Float[Tensor, "b 3 3"],
    start: Float[Tensor, "b 3"], bounds: tuple[float, float], residual: Literal["algebraic", "pixel"] = "algebraic",
    watch: Watch | None = None,
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, "b"]]:
    """(translation, whether the last solve succeeded) of each row, which needs one keypoint at least."""
    rows = [_rounds(*(x.cpu().numpy() for x in row), bounds, _algebraic if residual == "algebraic" else _pixel, watch)
            for row in zip(joints.double(), uv.double(), used, K.double(), start.double())]
    return _gathered(rows, start)


def by_extents(
    verts: Float[Tensor, "b 778 3"], target: Float[Tensor, "b 24"], K: Float[Tensor, "b 3 3"], start: Float[Tensor, "b 3"],
    bounds: tuple[float, float], size: int, watch: Watch | None = None,
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, "b"]]:
    """(translation, whether the solve succeeded) of each row; target: extents of the silhouette, pixels."""
    rows = []
    for row in zip(verts.double(), target.double(), K.double(), start.double()):
        points, wanted, matrix, first = (x.cpu().numpy() for x in row)
        found = _solve(lambda t: extents_energy(t, points, wanted, matrix, size), first, bounds)  # noqa: B023
        if watch:
            watch("1D", found.x, found.fun)
        rows.append((found.x, found.success))
    return _gathered(rows, start)


def extents_energy(t: np.ndarray, points: np.ndarray, target: np.ndarray, K: np.ndarray, size: int) -> float:
    """Mean squared difference of the extents (24,) of projected points (n,3) moved by t, and the target's, in crops."""
    seen = (points + t) @ K.T
    along = (seen[:, :2] / seen[:, 2:]) @ AXES.T
    off = np.stack((along.min(0), along.max(0)), 1).ravel() - target
    return float(np.square(off / size).mean())


def _rounds(points: np.ndarray, uv: np.ndarray, used: np.ndarray, K: np.ndarray, t: np.ndarray, bounds: tuple[float, float],
            off: Callable, watch: Watch | None) -> tuple[np.ndarray, bool]:
    points, uv = points[used], uv[used]
    for _ in range(ROUNDS):
        found = _solve(lambda t: float(np.square(off(t, points, uv, K)[0]).mean()), t, bounds)  # noqa: B023
        t = found.x
        if watch:
            watch("2D", t, found.fun)
        error = off(t, points, uv, K)[1]
        kept = error < error.mean() + error.std()
        if error.mean() <= ENOUGH or kept.sum() < FEWEST:
            break
        points, uv = points[kept], uv[kept]
    return t, found.success


def _algebraic(t: np.ndarray, points: np.ndarray, uv: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(residuals (n,3), size (n) for the outlier rule): pixel-metres."""
    placed = points + t
    off = placed @ K.T - np.concatenate((uv, np.ones((len(uv), 1))), 1) * placed[:, 2:]
    return off, np.abs(off.sum(1))


def _pixel(t: np.ndarray, points: np.ndarray, uv: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(residuals (n,2), their lengths (n)): pixels."""
    seen = (points + t) @ K.T
    off = seen[:, :2] / seen[:, 2:] - uv
    return off, np.linalg.norm(off, axis=1)


def _solve(energy: Callable[[np.ndarray], float], start: np.ndarray, bounds: tuple[float, float]) -> OptimizeResult:
    return minimize(energy, start, method="SLSQP", bounds=((None, None), (None, None), bounds))


def _gathered(rows: list[tuple[np.ndarray, bool]], like: Tensor) -> tuple[Tensor, Tensor]:
    translation = torch.as_tensor(np.array([t for t, _ in rows]), dtype=torch.float64, device=like.device)
    return translation, torch.tensor([bool(success) for _, success in rows], device=like.device)
