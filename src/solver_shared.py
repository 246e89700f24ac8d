"""One shape for all frames of a person: each frame's pose and root are eliminated (Schur complement), and ten unknowns per person
remain. First every frame is solved with the shape it starts from; frames that fail then have no say. From the others' mean shape
the frames of one person step together: damped, accepted or refused, and finished, person by person.

Frames are summed in float64, so that the answer does not depend on how they were cut into chunks.
"""
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.solver_data import HandState, Observations, Solved
from src.solver_pose import FREE, HELD, SHAPE, Model, Pose, state_of
from src.solver_steps import minimise, next_damping, scale
from src.solver_terms import Terms, terms_of

_SLACK = 1e-5  # damping left in a posterior's normal matrix, for angles of which neither measurement nor prior says anything
_ENOUGH = 1e-2  # a step that lowers a person's objective by less moves the shape by less than a tenth of its posterior's spread
_F64 = torch.float64


@dataclass
class _Piece:
    """Some frames: what they measured, where they are in the group, whose they are, and the pose they have come to."""

    terms: Terms
    rows: Tensor
    person: Tensor
    pose: Pose

    def chosen(self, which: Tensor) -> "_Piece":
        return _Piece(self.terms.rows(which), self.rows[which], self.person[which], self.pose.rows(which))


@dataclass
class _Reduced:
    """Normal equations of some frames' shape, and what a frame's own step follows from: -(own + by_shape @ shape step)."""

    matrix: Tensor  # (n,10,10)
    gradient: Tensor  # (n,10) reduced
    full_gradient: Tensor  # (n,61)
    own: Tensor  # (n,51)
    by_shape: Tensor  # (n,51,10)
    added: Tensor  # (n,61)


def solve_shared(model: Model, seen: Observations, start: HandState, person: Tensor, mean: Tensor, information: Tensor,
                 chunk: int) -> Solved:
    """src.solver.solve for free_shape="person": persons in groups of about `chunk` frames, never parted."""
    n, p = len(start), len(mean)
    out = Solved(HandState(*(x.clone() for x in (start.rotations, start.root, start.shape))),
                 *(start.root.new_full((n,), torch.nan) for _ in range(2)),
                 torch.zeros(n, dtype=torch.bool, device=person.device), torch.zeros_like(person),
                 mean.clone(), torch.linalg.inv(information.to(_F64)).to(mean.dtype))
    order = torch.argsort(person, stable=True)
    ends = torch.bincount(person, minlength=p).cumsum(0).tolist()
    first = begin = 0
    for last in range(p):
        if ends[last] - begin >= chunk or last == p - 1:
            rows, who = order[begin:ends[last]], slice(first, last + 1)
            if len(rows):
                found = _solve_group(model, seen.rows(rows), start.rows(rows), person[rows] - first, mean[who], information[who],
                                     chunk)
                _put(out, found, rows, who)
            begin, first = ends[last], last + 1
    return out


def _put(out: Solved, found: Solved, rows: Tensor, who: slice) -> None:
    for name in ("rotations", "root", "shape"):
        getattr(out.state, name)[rows] = getattr(found.state, name)
    for name in ("energy", "start_energy", "converged", "iterations"):
        getattr(out, name)[rows] = getattr(found, name)
    out.shape[who], out.shape_cov[who] = found.shape, found.shape_cov


def _solve_group(model: Model, seen: Observations, start: HandState, person: Tensor, mean: Tensor, information: Tensor,
                 chunk: int) -> Solved:
    """All frames of a few persons."""
    held = Model(model.hand, model.options, model.vert_ids, False)
    pieces, solved = [], []
    for rows in torch.arange(len(start), device=person.device).split(chunk):
        terms = terms_of(held, seen.rows(rows), start.rows(rows))
        pose, converged, steps = minimise(terms)
        solved.append((terms.energy(pose), terms.energy(terms.start), converged, steps))
        piece = _Piece(replace(terms, model=model), rows, person[rows], pose)
        pieces.append(piece.chosen(torch.nonzero(converged).squeeze(1)))
    energy, start_energy, converged, steps = (torch.cat(x) for x in zip(*solved))
    count = torch.zeros_like(mean[:, :1]).index_add_(0, person, converged[:, None].to(mean.dtype))
    total = torch.zeros_like(mean).index_add_(0, person, torch.where(converged[:, None], start.shape, 0.0))
    shape = torch.where(count > 0, total / count.clamp_min(1), mean)
    for piece in pieces:
        piece.pose = piece.pose._replace(shape=shape[piece.person].T.contiguous())
    state = HandState(*(x.clone() for x in (start.rotations, start.root, start.shape)))
    shape, taken = _descend(pieces, shape.to(_F64), mean.to(_F64), information.to(_F64))
    for piece in pieces:
        found = state_of(piece.pose)
        for name in ("rotations", "root", "shape"):
            getattr(state, name)[piece.rows] = getattr(found, name)
        energy[piece.rows] = piece.terms.energy(piece.pose)
    return Solved(state, energy, start_energy, converged, steps + taken[person] * converged, shape.to(mean.dtype),
                  _covariance(pieces, information.to(_F64)).to(mean.dtype))


def _descend(pieces: list[_Piece], shape: Tensor, mean: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """Shape (p,10) of every person at the end, and the steps tried (p). The pieces' poses are moved in place."""
    options = pieces[0].terms.model.options
    value = _objective(pieces, [x.pose for x in pieces], shape, mean, information)
    damping, steps = torch.full_like(value, options.damping), torch.zeros_like(value, dtype=torch.long)
    live = torch.zeros_like(steps).index_add_(0, torch.cat([x.person for x in pieces]),
                                              torch.cat([torch.ones_like(x.person) for x in pieces])) > 0
    for _ in range(options.iterations):
        if not live.any():
            break
        going = [(piece, rows) for piece in pieces if len(rows := torch.nonzero(live[piece.person]).squeeze(1))]
        moving = [piece.chosen(rows) for piece, rows in going]
        trials, trial_shape, promised = _trial(moving, shape, mean, information, damping)
        gain = value - _objective(moving, trials, trial_shape, mean, information)
        good = live & (gain >= 0)
        small = torch.where(good, gain, promised) <= (options.tolerance * value).clamp_max(_ENOUGH)
        for (piece, rows), trial in zip(going, trials):
            chosen = trial.where(good[piece.person[rows]], piece.pose.rows(rows))
            for target, source in zip(piece.pose, chosen):
                target[..., rows] = source
        shape, value = torch.where(good[:, None], trial_shape, shape), torch.where(good, value - gain, value)
        damping = torch.where(live, next_damping(damping, gain / promised, good), damping)
        steps += live
        live = live & ~(small | (damping > 1e8))
    return shape, steps


def _trial(pieces: list[_Piece], shape: Tensor, mean: Tensor, information: Tensor, damping: Tensor,
           ) -> tuple[list[Pose], Tensor, Tensor]:
    """One damped step: the frames' new poses, the persons' new shapes, and the gain promised to each person."""
    systems = [_reduce(piece, damping) for piece in pieces]
    matrix, gradient, slope = information.clone(), (information @ (shape - mean).unsqueeze(2)).squeeze(2), torch.zeros_like(shape)
    slope += gradient
    added = information.diagonal(dim1=1, dim2=2) * damping[:, None]
    for piece, system in zip(pieces, systems):
        matrix.index_add_(0, piece.person, system.matrix)
        gradient.index_add_(0, piece.person, system.gradient)
        slope.index_add_(0, piece.person, system.full_gradient[:, SHAPE])
        added = added.index_add(0, piece.person, system.added[:, SHAPE])
    step = -torch.linalg.solve_ex(matrix + torch.diag_embed(added), gradient)[0]
    promised = (step * (added * step - slope)).sum(1)
    poses = []
    for piece, system in zip(pieces, systems):
        of_shape = step[piece.person]
        own = -(system.own + (system.by_shape @ of_shape.unsqueeze(2)).squeeze(2))
        share = (own * (system.added[:, :HELD] * own - system.full_gradient[:, :HELD])).sum(1)
        promised = promised.index_add(0, piece.person, share)
        moved = piece.pose.moved(own.to(piece.pose.root.dtype))
        poses.append(moved._replace(shape=(shape + step)[piece.person].T.to(moved.root.dtype)))
    return poses, shape + step, promised


def _reduce(piece: _Piece, damping: Tensor) -> _Reduced:
    """Frames' normal equations with pose and root eliminated, float64. damping: (p) of the persons."""
    system = piece.terms.normal(piece.pose).to(_F64)
    matrix, gradient = system[:, :FREE, :FREE], system[:, :FREE, FREE]
    added = damping[piece.person, None] * scale(matrix)
    across = matrix[:, :HELD, SHAPE]
    own = matrix[:, :HELD, :HELD] + torch.diag_embed(added[:, :HELD])
    factor, info = torch.linalg.cholesky_ex(own)
    factor = torch.where((info == 0)[:, None, None], factor, torch.nan)  # NaN: the person's step is refused, and damped more
    solved = torch.cholesky_solve(torch.cat((across, gradient[:, :HELD, None]), 2), factor)
    by_shape, alone = solved[..., :10], solved[..., 10]
    reduced = gradient[:, SHAPE] - (across.transpose(1, 2) @ alone.unsqueeze(2)).squeeze(2)
    return _Reduced(matrix[:, SHAPE, SHAPE] - across.transpose(1, 2) @ by_shape, reduced, gradient, alone, by_shape, added)


def _objective(pieces: list[_Piece], poses: list[Pose], shape: Tensor, mean: Tensor, information: Tensor) -> Tensor:
    """(p) float64: each person's frames, and the prior of the shape."""
    away = (shape - mean).unsqueeze(2)
    total = (away.transpose(1, 2) @ information @ away).flatten()
    for piece, pose in zip(pieces, poses):
        total = total.index_add(0, piece.person, piece.terms.objective(pose).to(_F64))
    return total


def _covariance(pieces: list[_Piece], information: Tensor) -> Tensor:
    """(p,10,10): Laplace's approximation of the persons' posteriors."""
    total = information.clone()
    slack = torch.full_like(information[:, 0, 0], _SLACK)
    for piece in pieces:
        total.index_add_(0, piece.person, _reduce(piece, slack).matrix)
    return torch.linalg.inv(total)


def shape_covariance(terms: Terms, pose: Pose, converged: Tensor) -> Tensor:
    """(n,10,10): the same for frames with a shape each; the prior's covariance where a frame did not converge."""
    everyone = torch.arange(len(converged), device=converged.device)
    slack = torch.full(converged.shape, _SLACK, dtype=_F64, device=converged.device)
    reduced = _reduce(_Piece(terms, everyone, everyone, pose), slack)
    prior = terms.shape_information.to(_F64)  # `normal` has added it already
    return torch.linalg.inv(torch.where(converged[:, None, None], reduced.matrix, prior)).to(pose.root.dtype)
