"""One chunk of `refine`: from frames to refined hands. Frames that cannot be solved keep their start; each says why.

The start is the method's pose with the held shape; its position is found from the keypoints (src/root.py), or lies at 0.85 m on
the ray of the wrist's keypoint (of the mean keypoint where the wrist is not seen), or is the method's own.
Seed: faithful mode counts those 0.85 m to MANO's translation point and not to the wrist, as the original did. Its 6D
start is made of rotations, so rows have length one; the original's were the network's own, which Adam's steps notice.
"""
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from src.refine_faithful import fit_faithful, start_on_ray
from src.refine_input import BAD_POSE, NO_SHAPE, Frames
from src.root import FAULTS, NEAREST_M, solve_root
from src.solver import solve
from src.solver_data import HandState, Observations, SolverOptions
from utils.hand import HandModel
from utils.rotation import matrix_from_rows6d, rows6d_from_matrix

NOT_FINITE, BEHIND, STUCK = "a start that is not finite", "a start behind the camera", "did not converge"
Start = Literal["root", "constant", "predicted"]


@dataclass(frozen=True)
class Refined:
    """b rows: verts (b,778,3) and joints (b,21,3) relative to the wrist · rotations (b,16,3,3) · root (b,3) wrist in the camera ·
    shape (b,10) · energy, start_energy (b) mean squared pixel error of the keypoints · reason (b) why a row kept its start, or
    "". What a row cannot have (no shape, no position) is NaN. Metres, camera frame."""

    verts: np.ndarray
    joints: np.ndarray
    rotations: np.ndarray
    root: np.ndarray
    shape: np.ndarray
    energy: np.ndarray
    start_energy: np.ndarray
    reason: np.ndarray


@torch.no_grad()
def solve_frames(hand: HandModel, frames: Frames, *, faithful: bool, solver: SolverOptions, sigma_px: float, start: Start,
                 farthest_m: float, total: int, root_prior: float = 0.0) -> Refined:
    """Refine the frames on the device of the hand. farthest_m: a wrist beyond it has flown off (a pose too wrong to fit) and did
    not converge. total: frames of the whole file, which faithful mode's mean is over. root_prior: standard deviation, as a share,
    of the depth of frames.root, which fast mode then takes for a measurement; 0 = it does not."""
    like = hand.weights
    reason = frames.reason.copy()
    posable = torch.from_numpy(~np.isin(reason, (BAD_POSE, NO_SHAPE))).to(like.device)
    uv, weight, K, rotations, shape, predicted = (
        torch.from_numpy(np.ascontiguousarray(value)).to(like) for value in
        (frames.uv, frames.weight, frames.K, frames.rotations, frames.shape, frames.root))
    eye = torch.eye(3, dtype=like.dtype, device=like.device)
    state = HandState(torch.where(posable[:, None, None, None], rotations, eye), predicted,
                      torch.where(posable[:, None], shape, 0.0))
    fine = torch.from_numpy(reason == "").to(like.device)
    state, wrong = _started(hand, state, uv, weight * fine[:, None], K, start, faithful)
    reason = np.where((reason == "") & (wrong != ""), wrong, reason)
    energy, start_energy = (torch.full_like(weight[:, 0], torch.nan) for _ in range(2))
    rows = torch.from_numpy(np.flatnonzero(reason == "")).to(like.device)
    if len(rows):
        seen = Observations(uv=uv[rows, None], uv_weight=weight[rows, None], K=K[rows, None], sigma_px=sigma_px)
        if root_prior:
            seen = _with_depth(seen, predicted[rows, 2], root_prior)
        work = partial(_faithful, total=total) if faithful else partial(_fast, options=solver)
        solved, good, after, before = work(hand, state.rows(rows), seen)
        good &= (solved.root[:, 2] > NEAREST_M) & (solved.root[:, 2] <= farthest_m)
        state = HandState(*(old.index_copy(0, rows, torch.where(good.view(-1, *(1,) * (new.dim() - 1)), new, old[rows]))
                            for old, new in zip((state.rotations, state.root, state.shape),
                                                (solved.rotations, solved.root, solved.shape))))
        energy[rows], start_energy[rows] = torch.where(good, after, before).to(energy), before.to(energy)
        reason[rows.cpu().numpy()[~good.cpu().numpy()]] = STUCK
    return _answer(hand, state, posable, predicted, energy, start_energy, reason)


def _started(hand: HandModel, state: HandState, uv: Tensor, weight: Tensor, K: Tensor, start: Start, faithful: bool,
             ) -> tuple[HandState, np.ndarray]:
    """The state at its start position (NaN where there is none), and what is wrong with it, "" where nothing is."""
    shaped = hand.shaped(state.shape)
    joints = hand.joints(shaped.posed(state.rotations))
    joints = joints - joints[:, :1]
    wrong = np.full(len(uv), "", dtype="<U64")
    if start == "root":
        found = solve_root(joints, uv, K, weight)
        root = found.root
        wrong[:] = np.array(FAULTS)[found.fault.cpu().numpy()]
    elif start == "constant":
        share = (weight > 0).to(weight)
        share[:, 1:] *= share[:, :1] == 0  # the wrist alone, or without it the mean of the others
        root = start_on_ray((uv * share[..., None]).sum(1) / share.sum(1, keepdim=True), K)
        root = root + shaped.rest_joints[:, 0] if faithful else root
    else:
        root = state.root
    finite = torch.isfinite(root).all(1)
    ahead = (joints[..., 2] + root[:, None, 2]).amin(1) > NEAREST_M
    for text, good in ((NOT_FINITE, finite), (BEHIND, ahead)):
        wrong[~good.cpu().numpy() & (wrong == "")] = text
    return HandState(state.rotations, root, state.shape), wrong


def _with_depth(seen: Observations, depth: Tensor, share: float) -> Observations:
    """With the wrist's depth (b) known to within a share of it; not where it is no number in front of the camera."""
    known = torch.isfinite(depth) & (depth > NEAREST_M)
    depth = torch.where(known, depth, 1.0)
    weight = torch.zeros_like(seen.uv_weight)
    weight[:, 0, 0] = known / depth.square()
    return replace(seen, depth=depth[:, None, None].expand_as(weight), depth_weight=weight, sigma_depth_m=share)


def _fast(hand: HandModel, start: HandState, seen: Observations, options: SolverOptions,
          ) -> tuple[HandState, Tensor, Tensor, Tensor]:
    """State, converged (b), energy and start energy (b) by the solver."""
    solved = solve(hand, seen, start, options)
    return solved.state, solved.converged, solved.energy, solved.start_energy


def _faithful(hand: HandModel, start: HandState, seen: Observations, total: int) -> tuple[HandState, Tensor, Tensor, Tensor]:
    """The same by the original's Adam steps, which know neither weights nor priors."""
    wrist = hand.shaped(start.shape).rest_joints[:, 0]
    with torch.enable_grad():
        uv, weight, K = seen.uv[:, 0], seen.uv_weight[:, 0], seen.K[:, 0]
        fit = fit_faithful(hand, uv, (weight > 0).to(weight), K, rows6d_from_matrix(start.rotations), start.shape,
                           start.root - wrist, total=total)
    state = HandState(matrix_from_rows6d(fit.rows6d), fit.trans + wrist, start.shape)
    return state, torch.isfinite(fit.energy), fit.energy, fit.start_energy


def _answer(hand: HandModel, state: HandState, posable: Tensor, predicted: Tensor, energy: Tensor, start_energy: Tensor,
            reason: np.ndarray) -> Refined:
    posed = hand(state.rotations, state.shape)
    joints = hand.joints(posed)
    root = torch.where(torch.isfinite(state.root).all(1, keepdim=True), state.root, predicted)
    values = (posed.verts - joints[:, :1], joints - joints[:, :1], state.rotations, root, state.shape)
    values = [torch.where(posable.view(-1, *(1,) * (value.dim() - 1)), value, torch.nan) for value in values]
    return Refined(*(value.cpu().numpy() for value in (*values, energy, start_energy)), reason)
