"""Levenberg-Marquardt's steps of independent frames: how far, whether to take them, when to stop."""
import torch
from torch import Tensor

from src.solver_pose import FINGERS, Pose
from src.solver_terms import Terms

_STIFF = 3.0  # finger angles are damped by their mean curvature, too: keypoints say nothing of some of them


def minimise(terms: Terms) -> tuple[Pose, Tensor, Tensor]:
    """Pose of every frame at the end (its start where it did not converge), converged (n), steps tried (n)."""
    options, pose = terms.model.options, terms.start
    first = value = terms.objective(pose)
    best = Pose(*(x.clone() for x in pose))
    final, steps = value.clone(), torch.zeros_like(value, dtype=torch.long)
    settled = torch.zeros_like(steps, dtype=torch.bool)
    active = torch.nonzero(torch.isfinite(value) & terms.measured).squeeze(1)
    terms, pose, value = terms.rows(active), pose.rows(active), value[active]
    damping = torch.full_like(value, options.damping)
    for _ in range(options.iterations):
        if not len(active):
            break
        step, promised = damped_step(terms.normal(pose), terms.model.size, damping)
        trial = pose.moved(step)
        gain = value - terms.objective(trial)
        good = gain >= 0  # false for NaN and for steps behind the camera
        small = torch.where(good, gain, promised) <= options.tolerance * value
        damping = next_damping(damping, gain / promised, good)
        pose, value = trial.where(good, pose), torch.where(good, value - gain, value)
        steps[active] += 1
        if (leaving := small | (damping > 1e8)).any():
            out, stay = (torch.nonzero(x).squeeze(1) for x in (leaving, ~leaving))
            _store(best, active[out], pose.rows(out))
            final[active[out]], settled[active[out]] = value[out], small[out]
            active, terms, pose, value, damping = active[stay], terms.rows(stay), pose.rows(stay), value[stay], damping[stay]
    _store(best, active, pose)
    final[active] = value
    return best, settled | (final < first), steps


def _store(best: Pose, rows: Tensor, pose: Pose) -> None:
    for target, source in zip(best, pose):
        target[..., rows] = source


def damped_step(system: Tensor, size: int, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Step (n,p), NaN where there is none, and the gain that the quadratic model promises (n). Overwrites Terms.normal's system.

    Padded to whole cache lines: LAPACK's last bits depend on where in them a matrix begins, that is on its neighbours.
    """
    gradient = torch.zeros_like(system[..., :4])
    gradient[:, :size, 0] = system[:, :size, size]
    added = damping.unsqueeze(1) * scale(system[:, :size, :size])
    system[:, size:], system[..., size:] = 0, 0
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal[:, :size] += added
    diagonal[:, size:] = 1
    factor, info = torch.linalg.cholesky_ex(system)
    step = -torch.cholesky_solve(gradient, factor)[:, :size, 0]
    step = torch.where((info == 0).unsqueeze(1), step, torch.nan)
    return step, (step * (added * step - gradient[:, :size, 0])).sum(1)


def scale(matrix: Tensor) -> Tensor:
    """Curvature (n,p) that a damping of 1 adds to each parameter."""
    diagonal = matrix.diagonal(dim1=1, dim2=2).clone()
    diagonal[:, FINGERS] += _STIFF * diagonal[:, FINGERS].mean(1, keepdim=True)
    return diagonal


def next_damping(damping: Tensor, ratio: Tensor, good: Tensor) -> Tensor:
    """Less after a step that kept its promise, more after one that did not (Nielsen 1999; smooth in the ratio)."""
    factor = torch.where(good, (1 - (2 * ratio - 1) ** 3).clamp(0.1, 2.0), 4.0)
    return (damping * factor).clamp_min(1e-6)
