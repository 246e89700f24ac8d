"""Batched Levenberg-Marquardt: pose, position and (if asked) shape of many hands at once, each frame for itself.

Every frame has its own damping; its steps are accepted or refused on their own, and it leaves the batch when it has converged, so that
no frame waits for, or is disturbed by, another. Memory is bounded by the chunk. A frame that cannot be solved (nothing measured, a
start that is not finite or lies behind the camera, no step that lowers the objective) keeps its start and says so.
"""
import torch
from torch import Tensor

from src.solver_data import HandState, Observations, Solved, SolverOptions
from src.solver_terms import HELD, Model, Pose, Terms, state_of, terms_of
from utils.hand import HandModel

__all__ = ["HandState", "Observations", "Solved", "SolverOptions", "solve"]
_WORKSPACE = 1 << 26  # bytes that the Jacobians of one chunk may take


@torch.no_grad()
def solve(hand: HandModel, observations: Observations, start: HandState, options: SolverOptions, *, free_shape: str = "no",
          person: Tensor | None = None, shape_mean: Tensor | None = None, shape_cov: Tensor | None = None) -> Solved:
    """Pose, root and shape that explain the observations, from `start`, frame by frame.

    free_shape: `no` holds start.shape; `each` frees it per frame; `person` shares one among the rows of equal `person` (n) long.
    shape_mean (p,10) and shape_cov (p,10,10): Gaussian prior of a free shape, per frame or person (numbers 0..p-1); without them
    MANO's own: mean 0, covariance 1. Tensors come back on the device and in the precision of `hand`.
    """
    model = Model(hand, options, observations.verts is not None, free_shape != "no")
    pieces = [_each(model, observations.rows(rows), start.rows(rows), None, None)
              for rows in torch.arange(len(start)).split(options.chunk)]
    states, *columns = zip(*pieces)
    state = HandState(*(torch.cat([getattr(s, name) for s in states]) for name in ("rotations", "root", "shape")))
    return Solved(state, *(torch.cat(c) for c in columns))


def _each(model: Model, observations: Observations, start: HandState, shape_mean, shape_information) -> tuple:
    """One chunk."""
    terms = terms_of(model, observations, start, shape_mean, shape_information)
    pose, converged, steps = minimise(terms)
    found = state_of(pose)
    keep = converged[:, None]
    to = {"device": model.device, "dtype": model.dtype}
    state = HandState(torch.where(keep[..., None, None], found.rotations, start.rotations.to(**to)),
                      torch.where(keep, found.root, start.root.to(**to)), torch.where(keep, found.shape, start.shape.to(**to)))
    return state, terms.energy(pose), terms.energy(terms.start), converged, steps


def minimise(terms: Terms) -> tuple[Pose, Tensor, Tensor]:
    """Pose of every frame at the end (its start where it did not converge), converged (n), steps tried (n)."""
    options, pose = terms.model.options, terms.start
    value = terms.objective(pose)
    n = len(value)
    best, first = Pose(*(x.clone() for x in pose)), value
    steps = torch.zeros(n, dtype=torch.long, device=value.device)
    still = torch.zeros(n, dtype=torch.bool, device=value.device)
    final = value.clone()
    active = torch.nonzero(torch.isfinite(value) & terms.measured).squeeze(1)
    terms, pose, value = terms.rows(active), pose.rows(active), value[active]
    damping = torch.full_like(value, options.damping)
    for _ in range(options.iterations):
        if not len(active):
            break
        matrix, gradient = terms.normal(pose)
        step, promised = damped_step(matrix, gradient, damping)
        trial = pose.moved(step)
        after = terms.objective(trial)
        gain = value - after
        good = (gain >= 0) & torch.isfinite(after)
        damping = next_damping(damping, gain / promised, good)
        done = good & (gain <= options.tolerance * value)
        stuck = ~good & ((damping > 1e6) | (promised <= 1e-6 * value))
        pose, value = trial.where(good, pose), torch.where(good, after, value)
        steps[active] += 1
        if (leaving := done | stuck).any():
            out = torch.nonzero(leaving).squeeze(1)
            _store(best, final, still, active[out], pose.rows(out), value[out])
            stay = torch.nonzero(~leaving).squeeze(1)
            active, terms, pose, value, damping = active[stay], terms.rows(stay), pose.rows(stay), value[stay], damping[stay]
    if len(active):
        _store(best, final, still, active, pose, value)
        still[active] = False
    converged = torch.isfinite(final) & ((final < first) | still)
    return best, converged, steps


def _store(best: Pose, final: Tensor, still: Tensor, rows: Tensor, pose: Pose, value: Tensor) -> None:
    for target, source in zip(best, pose):
        target[..., rows] = source
    final[rows], still[rows] = value, True


def damped_step(matrix: Tensor, gradient: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Step (n,p) and the gain that the quadratic model promises (n). matrix is overwritten."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    floor = 1e-3 * diagonal[:, 6:HELD].mean(1, keepdim=True)
    added = damping.unsqueeze(1) * torch.maximum(diagonal, floor)
    diagonal += added
    factor, info = torch.linalg.cholesky_ex(matrix)
    step = -torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
    step = torch.where((info == 0).unsqueeze(1), step, torch.nan)
    promised = (step * (added * step - gradient)).sum(1)
    return step, promised


def next_damping(damping: Tensor, ratio: Tensor, good: Tensor) -> Tensor:
    """Less after a step that kept its promise, more after one that did not."""
    factor = torch.where(good, torch.where(ratio > 0.75, 0.2, torch.where(ratio < 0.25, 2.0, 1.0)), 5.0)
    return (damping * factor).clamp_min(1e-7)
