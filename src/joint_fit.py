"""Estimators that fit the hand itself: one shape per person, each frame's pose and place, to 2D keypoints, and to depth.

`joint`  single pictures. They know proportions but no size, which stays the prior's: the posterior of the network's predicted
         shapes (calibrate.validation or calibrate.likelihood), or without one the hand model's mean.
`views`  all cameras of a moment see one pose in one place (world_from_camera): metres from the cameras' distances.
`depth`  the surface in aligned depth pictures, one or more (src/joint_fit_depth.py): metres from the depth camera.
The covariance is Laplace's, but a network's keypoints err alike in all pictures of a person (a joint is always drawn too far
out): n pictures count as n / (1 + (n - 1) alike), so that no number of pictures averages the common error away. `alike` and the
sizes of the errors are options (calibrate.fit).
"""
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from src.calibrate_options import CalibrateOptions
from src.calibration_estimate import CAMERA_CUE, Estimate
from src.calibration_people import Selection
from src.joint_fit_data import Frames, frames_of, moments_of, observe, picture_start, world_start
from src.joint_fit_depth import fit_depth
from src.solver import HandState, Observations, Solved, solve
from utils.errors import InputError
from utils.hand import HandModel

log = logging.getLogger(__name__)
WILD = 6.0  # times the keypoints' standard deviation: a frame whose root mean square error is larger is left out
NO_CUE = "none: the hand model's mean (single pictures know proportions, not size; set calibrate.validation or likelihood)"
WHY_NOT = {"views": "no moment that two cameras with known places saw", "joint": "no frame with four keypoints",
           "depth": "no depth picture that shows a hand where the keypoints are"}
Gaussians = tuple[np.ndarray, np.ndarray]  # means (p,10), covariances (p,10,10)


def estimates(selection: Selection, orders: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
              ) -> dict[int, Estimate]:
    """Shapes by calibrate.method joint, views or depth: from each person's first `options.n` pictures (views: moments) of use.

    People without any are left out with a warning. Raises InputError where that is everybody, and where the file lacks keypoints,
    poses to start from or the cameras' places, or a depth picture cannot be read.
    """
    rows = {subject: selection.people[subject].rows[order] for subject, order in orders.items()}
    found = (_by_depth if options.method == "depth" else _by_keypoints)(selection, rows, options, hand)
    if missing := [subject for subject in orders if subject not in found]:
        why = WHY_NOT[options.method]
        if not found:
            raise InputError(f"{selection.path}: calibrate.method={options.method}: nobody can be calibrated: {why}; "
                             "choose other frames, or another method")
        log.warning("calibrate.method=%s: left out, %s: subjects %s", options.method, why, missing)
    return found


def _by_depth(selection: Selection, rows: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
              ) -> dict[int, Estimate]:
    if not options.depth_root:
        raise InputError("calibrate.method=depth: set calibrate.depth_root to the folder that the frames' names start from (the "
                         "dataset's root, with its aligned_depth_to_color_*.png)")
    estimates_of = {}
    for subject, (fitted, person) in fit_depth(selection.predictions, rows, options, hand).items():
        n = len(person.names)
        short = f"{n} of {person.tried} depth pictures show a hand where the keypoints are; {options.n} were asked for"
        estimates_of[subject] = _estimate(
            (fitted.shape.numpy(), fitted.covariance.numpy()), (np.zeros(10), np.eye(10)), person.names, options,
            f"depth camera ({n} picture{'s' * (n > 1)})", {"tried": person.tried, "explained": fitted.explained},
            (short,) if n < options.n else ())
    return estimates_of


def _by_keypoints(selection: Selection, rows: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
                  ) -> dict[int, Estimate]:
    views = options.method == "views"
    if views:
        for column in ("world_from_camera", "instant"):
            if column not in selection.predictions:
                raise InputError(f"{selection.path}: calibrate.method=views needs the cameras' places, but the file has no "
                                 f"column {column}; predict on a dataset with extrinsics (calibration/extrinsics_*)")
    taken = [row if views else row[:options.n] for row in rows.values()]
    frames = frames_of(selection.predictions, np.concatenate(taken), options.keypoints)
    ends = np.cumsum([0, *map(len, taken)]).tolist()
    groups = {subject: _groups(frames, range(a, b), options) for subject, a, b in zip(rows, ends, ends[1:])}
    able = [subject for subject, found in groups.items() if found]
    if not able:
        return {}
    prior, cue = _prior(selection, able, rows, options, hand)
    fit = fit_people(hand, frames, [groups[s] for s in able], options, prior)
    found = {}
    for i, subject in enumerate(able):
        if not (kept := [group for group, good in zip(groups[subject], fit.kept[i]) if good]):
            continue
        names = [str(frames.names[row]) for group in kept for row in group]
        said = f"calibrated cameras ({len(names)} pictures of {len(kept)} moment{'s' * (len(kept) > 1)})" if views else cue
        out = len(groups[subject]) - len(kept)
        found[subject] = _estimate(
            (fit.shape[i], fit.covariance[i]), (prior[0][i], prior[1][i]), names, options, said,
            {"moments": len(kept), "left_out": out, "keypoints": options.keypoints or "of the predictions file"},
            (f"{out} of {len(groups[subject])} frames left out: no place found, or keypoints far from any hand",) if out else ())
    return found


def _groups(frames: Frames, order: Sequence[int], options: CalibrateOptions) -> list[list[int]]:
    """Rows of each frame of the solver, of one person."""
    if options.method == "views":
        return moments_of(frames, order, options.fit.cameras)[:options.n]
    return [[row] for row in order if (frames.weight[row] > 0).sum() >= 4]


def _prior(selection: Selection, able: list[int], rows: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
           ) -> tuple[Gaussians, str]:
    """What is known of the shapes beforehand, and what their size stands on: the unit Gaussian; for `joint`, where the network's
    likelihood is known, the posterior of its own answers on the same pictures."""
    mean, covariance = np.zeros((len(able), 10)), np.tile(np.eye(10), (len(able), 1, 1))
    if options.method != "joint" or not (options.validation or options.likelihood):
        return (mean, covariance), NO_CUE
    from src.calibration_posterior import likelihood_of, posterior_estimator

    orders = {s: np.searchsorted(selection.people[s].rows, rows[s]) for s in able}
    found = posterior_estimator(likelihood_of(options, hand, selection), hand)(selection, orders, options, hand)
    for i, subject in enumerate(able):
        mean[i], covariance[i] = found[subject].shape, found[subject].covariance
    return (mean, covariance), CAMERA_CUE


@dataclass(frozen=True)
class Fit:
    """Of p people: shape (p,10) and Laplace's covariance (p,10,10); per person, which of the frames counted (bool)."""

    shape: np.ndarray
    covariance: np.ndarray
    kept: list[np.ndarray]


def fit_people(hand: HandModel, frames: Frames, groups: list[list[list[int]]], options: CalibrateOptions, prior: Gaussians,
               ) -> Fit:
    """One shape per person; a pose and a place per group of rows: a single picture, or (views) the cameras of a moment.

    groups: of every person · prior: means (p,10) and covariances (p,10,10). Frames with no place to start from, or whose
    keypoints stay far from any hand, are left out.
    """
    hand = HandModel(hand.arrays, torch.float64)
    person = np.repeat(np.arange(len(groups)), [len(found) for found in groups])
    flat = [group for found in groups for group in found]
    shapes = np.stack([frames.shapes[np.concatenate(found)].mean(0) for found in groups])
    start = torch.from_numpy(shapes)[person]
    if options.method == "views":
        state = world_start(hand, frames, flat, start)
        kept = torch.isfinite(state.root).all(1).numpy() & torch.isfinite(state.rotations).flatten(1).all(1).numpy()
    else:
        state, kept = picture_start(hand, frames.rows(np.concatenate(flat)), start)
    seen = observe(frames, flat, options.fit.keypoint_px)
    for _ in range(2):
        solved = _solve(hand, seen, state, kept, person, options, prior)
        wild = kept & (solved.energy.numpy() > (WILD * options.fit.keypoint_px)**2)
        if not wild.any():
            break
        kept = kept & ~wild
    ends = np.cumsum([len(found) for found in groups])[:-1]
    return Fit(solved.shape.numpy(), solved.shape_cov.numpy(), np.split(kept, ends))


def _solve(hand: HandModel, seen: Observations, state: HandState, kept: np.ndarray, person: np.ndarray, options: CalibrateOptions,
           prior: Gaussians) -> Solved:
    """The solver on the kept frames. energy (n) is infinite of the others; shape and shape_cov are of everybody."""
    mean, covariance = (torch.from_numpy(x).clone() for x in prior)
    energy = torch.full((len(kept),), torch.inf, dtype=torch.float64)
    rows = torch.from_numpy(np.flatnonzero(kept))
    people, number = np.unique(person[kept], return_inverse=True)
    found = solve(hand, seen.rows(rows), state.rows(rows), options.fit.solver, free_shape="person",
                  person=torch.from_numpy(number), shape_mean=mean[people], shape_cov=covariance[people])
    energy[rows] = torch.nan_to_num(found.energy, nan=torch.inf)
    mean[people], covariance[people] = found.shape, found.shape_cov
    return replace(found, energy=energy, shape=mean, shape_cov=covariance)


def weakened(mean: np.ndarray, covariance: np.ndarray, prior: tuple[np.ndarray, np.ndarray], n: int, alike: float,
             factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A posterior (mean (10), covariance (10,10)) whose n pictures were taken for independent, when a share `alike` of their
    errors' variance is common to all of them: together they tell 1 / (1 + (n - 1) alike) of what they seemed to.

    factor: as if there were so many times as many pictures (inf allowed, where they have anything in common).
    """
    precision, before = np.linalg.inv(covariance), np.linalg.inv(prior[1])
    told = precision - before
    left = alike + (1 - alike) / (n * factor)  # variance of the mean error of so many pictures, in units of one picture's
    share = 1 / (n * max(left, 1e-12))
    after = np.linalg.inv(before + share * told)
    right = before @ prior[0] + share * (precision @ mean - before @ prior[0])
    return after @ right, (after + after.T) / 2


def _estimate(fit: tuple[np.ndarray, np.ndarray], prior: tuple[np.ndarray, np.ndarray], names: Sequence[str],
              options: CalibrateOptions, cue: str, settings: dict, warnings: tuple[str, ...]) -> Estimate:
    n, alike = len(names), options.fit.alike
    shape, covariance = weakened(*fit, prior, n, alike)
    return Estimate(shape, n, cue, covariance, tuple(names), effective_n=n / (1 + (n - 1) * alike),
                    covariance_at=lambda factor: weakened(*fit, prior, n, alike, factor)[1],
                    settings={"fit": options.fit.model_dump(mode="json"), **settings}, warnings=warnings)
