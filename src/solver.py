"""Batched Levenberg-Marquardt: pose, position and (if asked) shape of many hands at once, each frame for itself.

Every frame has its own damping; its steps are accepted or refused on their own, and it leaves the batch when it has converged: no
frame waits for another, or is disturbed by it. Memory is bounded by the chunk. A frame that cannot be solved (nothing measured, a
start that is not finite or lies behind the camera, no step that lowers the objective) keeps its start and says so.
"""
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from src.solver_data import HandState, Observations, Solved, SolverOptions
from src.solver_pose import Model, state_of
from src.solver_shared import shape_covariance, solve_shared
from src.solver_steps import minimise
from src.solver_terms import terms_of
from utils.hand import HandModel

__all__ = ["HandState", "Observations", "Solved", "SolverOptions", "solve"]


FreeShape = Literal["no", "each", "person"]
_WORKSPACE = 1 << 27  # bytes for the Jacobians of one chunk


@torch.no_grad()
def solve(hand: HandModel, observations: Observations, start: HandState, options: SolverOptions, *, free_shape: FreeShape = "no",
          person: Tensor | None = None, shape_mean: Tensor | None = None, shape_cov: Tensor | None = None) -> Solved:
    """Pose, root and shape that explain the observations, from `start`.

    free_shape: `no` holds start.shape; `each` frees it per frame; `person` shares one among the rows of equal `person` (n) long,
    numbers 0..p-1. shape_mean (p,10) and shape_cov (p,10,10): Gaussian prior of a free shape, of each frame or person; without
    them MANO's own, mean 0 and covariance 1. What comes back has the device and the precision of `hand`.
    """
    free = free_shape != "no"
    observations, verts = _targeted(observations.to(hand.weights.device))
    model = Model(hand, options, verts, free)
    to = model.to
    start = HandState(*(x.to(**to) for x in (start.rotations, start.root, start.shape)))
    count = len(start) if person is None else int(person.max()) + 1
    mean = torch.zeros(count, 10, **to) if shape_mean is None else shape_mean.to(**to)
    cov = torch.eye(10, dtype=torch.float64).expand(count, 10, 10) if shape_cov is None else shape_cov
    information = torch.linalg.inv(cov.double()).to(**to)
    chunk = _chunk(model, observations)
    if free_shape == "person":
        return solve_shared(model, observations, start, person.to(to["device"]), mean, information, chunk)
    pieces = [_solve_each(model, observations.rows(rows), start.rows(rows), *((mean[rows], information[rows]) if free else ()))
              for rows in (slice(i, i + chunk) for i in range(0, len(start), chunk))]
    return _joined(pieces)


def _targeted(seen: Observations) -> tuple[Observations, list[int]]:
    """Observations of those vertices only that have a weight in any frame, and their ids."""
    if seen.verts is None:
        return seen, []
    if seen.vert_weight is None:
        return seen, list(range(seen.verts.shape[1]))
    used = (seen.vert_weight > 0).any(0)
    return replace(seen, verts=seen.verts[:, used], vert_weight=seen.vert_weight[:, used]), torch.nonzero(used).flatten().tolist()


def _chunk(model: Model, seen: Observations) -> int:
    """Frames at once: options.chunk, fewer where the Jacobians are large."""
    rows = 63 * (seen.points is not None) + 3 * len(model.vert_ids)
    rows += 42 * (0 if seen.uv is None else seen.uv.shape[1]) + 21 * (0 if seen.depth is None else seen.depth.shape[1])
    return max(1, min(model.options.chunk, _WORKSPACE // (16 * rows * model.size)))


def _solve_each(model: Model, seen: Observations, start: HandState, mean: Tensor | None = None,
                information: Tensor | None = None) -> Solved:
    """One chunk of frames that share nothing."""
    terms = terms_of(model, seen, start, mean, information)
    pose, converged, steps = minimise(terms)
    found = state_of(pose)
    keep = converged[:, None]
    state = HandState(torch.where(keep[..., None, None], found.rotations, start.rotations),
                      torch.where(keep, found.root, start.root), torch.where(keep, found.shape, start.shape))
    shape, cov = (state.shape, shape_covariance(terms, pose, converged)) if model.free else (None, None)
    return Solved(state, terms.energy(pose), terms.energy(terms.start), converged, steps, shape, cov)


def _joined(pieces: list[Solved]) -> Solved:
    """Chunks, one after the other."""
    def join(name: str) -> Tensor | None:
        parts = [getattr(piece, name) for piece in pieces]
        return None if parts[0] is None else torch.cat(parts)

    state = HandState(*(torch.cat([getattr(p.state, name) for p in pieces]) for name in ("rotations", "root", "shape")))
    return Solved(state, *(join(name) for name in ("energy", "start_energy", "converged", "iterations", "shape", "shape_cov")))
