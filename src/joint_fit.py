"""Estimators that fit the hand itself: one shape per person, each frame's pose and place, to 2D keypoints, and to depth.

`joint`  single pictures. They know proportions but no size, which stays the prior's: the posterior of the network's predicted
         shapes (calibrate.validation or calibrate.likelihood), or without one the hand model's mean.
`views`  all cameras of a moment see one pose in one place (world_from_camera): metres from the cameras' distances.
`depth`  the surface in aligned depth pictures, one or more (src/joint_fit_depth.py): metres from the depth camera.
The solver's posterior (Laplace) is corrected for what networks' keypoints have in common (src/joint_fit_noise.py): by people with
known shapes where calibrate.validation names some whose keypoints are known, else by the options (calibrate.fit).
"""
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from src.calibrate_options import CalibrateOptions
from src.calibration_draws import orders_of_draw
from src.calibration_estimate import CAMERA_CUE, Estimate
from src.calibration_likelihood import LEAST_PEOPLE, Likelihood
from src.calibration_people import Selection, select_people
from src.calibration_posterior import likelihood_of, posterior_estimator
from src.joint_fit_data import Frames, frames_of, misfit, moments_of, observe, picture_start, world_start
from src.joint_fit_depth import fit_depth
from src.joint_fit_noise import Measured, RawFit, Stated, measure_noise
from src.solver import HandState, Observations, Solved, solve
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import read_predictions

log = logging.getLogger(__name__)
WILD = 4.0  # a frame is left out whose keypoints lie further from the fitted hand in the median, in standard deviations
NO_CUE = "none: the hand model's mean (single pictures know proportions, not size; set calibrate.validation or likelihood)"
WHY_NOT = {"views": "no moment that two cameras with known places saw", "joint": "no frame with four keypoints",
           "depth": "no depth picture that shows a hand where the keypoints are"}
Gaussians = tuple[np.ndarray, np.ndarray]  # means (p,10), covariances (p,10,10)


class Found(NamedTuple):
    """One person's fit as it stands, and what is to be said of it."""

    fit: RawFit
    names: Sequence[str]
    cue: str
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()


def estimates(selection: Selection, orders: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
              ) -> dict[int, Estimate]:
    """Shapes by calibrate.method joint, views or depth: from each person's first `options.n` pictures (views: moments) of use.

    People without any are left out with a warning. Raises InputError where that is everybody, and where the file lacks keypoints,
    poses to start from or the cameras' places, or a depth picture cannot be read.
    """
    known = options.method == "joint" and (options.validation or options.likelihood)
    likelihood = likelihood_of(options, hand, selection) if known else None
    hand = selection.predictions.fitted_hand(hand)
    found = _fits(selection, orders, options, hand, likelihood)
    if missing := [subject for subject in orders if subject not in found]:
        why = WHY_NOT[options.method]
        if not found:
            raise InputError(f"{selection.path}: calibrate.method={options.method}: nobody can be calibrated: {why}; "
                             "choose other frames, or another method")
        log.warning("calibrate.method=%s: left out, %s: subjects %s", options.method, why, missing)
    noise = _noise(options, hand, likelihood)
    return {subject: _estimate(one, noise, options) for subject, one in found.items()}


def _estimate(found: Found, noise: Stated | Measured, options: CalibrateOptions) -> Estimate:
    fit = found.fit
    shape, covariance = noise.posterior(fit)
    return Estimate(shape, fit.n, found.cue, covariance, tuple(found.names), effective_n=noise.effective_n(fit),
                    covariance_at=lambda factor: noise.posterior(fit, factor)[1], warnings=found.warnings,
                    settings={"fit": options.fit.model_dump(mode="json"), "noise": noise.settings(), **found.settings})


_MEASURED: dict[str, Measured] = {}  # by files and options: the curve asks for several draws of every n


def _noise(options: CalibrateOptions, hand: HandModel, likelihood: Likelihood | None) -> Stated | Measured:
    """Measured on the people of calibrate.validation, where their keypoints are known; else as the options state it."""
    predictions = read_predictions(options.validation) if options.validation else None
    if predictions is None or not (options.validation_keypoints or "pred_joints_uv" in predictions):
        return Stated(options.fit.alike)
    asked = options.model_dump_json(include={"method", "n", "validation_keypoints", "sides", "depth_root", "fit", "likelihood"})
    key = f"{predictions.path.resolve()} {predictions.path.stat().st_mtime_ns} {hand.sha256} {asked}"
    if key not in _MEASURED:
        people = select_people(predictions, hand, sequences=[], subjects=[], sides=options.sides, confidence=False,
                               shapes=options.method == "joint")
        if unknown := [subject for subject, person in people.people.items() if person.true_shape is None]:
            raise InputError(f"{predictions.path}: calibrate.validation needs people of known shape, but subject {unknown[0]} "
                             "has no true_shape; name predictions of a split with labels")
        log.info("calibrate.method=%s, n=%d: fitting %d held-out people, to measure how it errs", options.method, options.n,
                 len(people.people))
        chosen = options.model_copy(update={"keypoints": options.validation_keypoints})
        found = _fits(people, orders_of_draw(people.people, 0), chosen, hand, likelihood)
        if len(found) < LEAST_PEOPLE:
            raise InputError(f"{predictions.path}: calibrate.validation: expected at least {LEAST_PEOPLE} people whom method "
                             f"{options.method} can fit, found {len(found)}; name more, or leave validation out")
        _MEASURED[key] = measure_noise([one.fit for one in found.values()],
                                       np.stack([people.people[subject].true_shape for subject in found]))
    return _MEASURED[key]


def _fits(selection: Selection, orders: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
          likelihood: Likelihood | None) -> dict[int, Found]:
    rows = {subject: selection.people[subject].rows[order] for subject, order in orders.items()}
    if options.method == "depth":
        return _by_depth(selection, rows, options, hand)
    return _by_keypoints(selection, rows, orders, options, hand, likelihood)


def _by_depth(selection: Selection, rows: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
              ) -> dict[int, Found]:
    if not options.depth_root:
        raise InputError("calibrate.method=depth: set calibrate.depth_root to the folder that the frames' names start from (the "
                         "dataset's root, with its aligned_depth_to_color_*.png)")
    found = {}
    for subject, (fitted, person) in fit_depth(selection.predictions, rows, options, hand).items():
        n = len(person.names)
        short = f"{n} of {person.tried} depth pictures show a hand where the keypoints are; {options.n} were asked for"
        found[subject] = Found(
            RawFit(fitted.shape.numpy(), fitted.covariance.numpy(), np.zeros(10), np.eye(10), n), person.names,
            f"depth camera ({n} picture{'s' * (n > 1)})", {"tried": person.tried, "explained": fitted.explained},
            (short,) if n < options.n else ())
    return found


def _by_keypoints(selection: Selection, rows: Mapping[int, np.ndarray], orders: Mapping[int, np.ndarray],
                  options: CalibrateOptions, hand: HandModel, likelihood: Likelihood | None) -> dict[int, Found]:
    views = options.method == "views"
    for column in ("world_from_camera", "instant") if views else ():
        if column not in selection.predictions:
            raise InputError(f"{selection.path}: calibrate.method=views needs the cameras' places, but the file has no column "
                             f"{column}; predict on a dataset with extrinsics (calibration/extrinsics_*)")
    taken = [row if views else row[:options.n] for row in rows.values()]
    frames = frames_of(selection.predictions, np.concatenate(taken), options.keypoints, options.fit)
    ends = np.cumsum([0, *map(len, taken)]).tolist()
    groups = {subject: _groups(frames, range(a, b), options) for subject, a, b in zip(rows, ends, ends[1:])}
    able = [subject for subject, found in groups.items() if found]
    if not able:
        return {}
    prior = np.zeros((len(able), 10)), np.tile(np.eye(10), (len(able), 1, 1))
    if likelihood is not None:
        own = posterior_estimator(likelihood, hand)(selection, {s: orders[s] for s in able}, options, hand)
        prior = np.stack([own[s].shape for s in able]), np.stack([own[s].covariance for s in able])
    fit = fit_people(hand, frames, [groups[s] for s in able], options, prior)
    found = {}
    for i, subject in enumerate(able):
        if not (kept := [group for group, good in zip(groups[subject], fit.kept[i]) if good]):
            continue
        names = [str(frames.names[row]) for group in kept for row in group]
        cue = NO_CUE if likelihood is None else CAMERA_CUE
        if views:
            cue = f"calibrated cameras ({len(names)} pictures of {len(kept)} moment{'s' * (len(kept) > 1)})"
        out = len(groups[subject]) - len(kept)
        found[subject] = Found(
            RawFit(fit.shape[i], fit.covariance[i], prior[0][i], prior[1][i], len(names)), names, cue,
            {"moments": len(kept), "left_out": out, "keypoints": options.keypoints or "of the predictions file"},
            (f"{out} of {len(groups[subject])} frames left out: no place found, or keypoints far from any hand",) if out else ())
    return found


def _groups(frames: Frames, order: Sequence[int], options: CalibrateOptions) -> list[list[int]]:
    """Rows of each frame of the solver, of one person."""
    if options.method == "views":
        return moments_of(frames, order, options.fit.cameras)[:options.n]
    return [[row] for row in order if (frames.weight[row] > 0).sum() >= 4]


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
    hand = hand.in_float64()
    person = np.repeat(np.arange(len(groups)), [len(found) for found in groups])
    flat = [group for found in groups for group in found]
    shapes = np.stack([frames.shapes[np.concatenate(found)].mean(0) for found in groups])
    start = torch.from_numpy(shapes)[person]
    if options.method == "views":
        state = world_start(hand, frames, flat, start)
        kept = torch.isfinite(state.root).all(1).numpy() & torch.isfinite(state.rotations).flatten(1).all(1).numpy()
    else:
        state, kept = picture_start(hand, frames.rows(np.concatenate(flat)), start)
    seen = observe(frames, flat)
    for _ in range(2):
        solved = _solve(hand, seen, state, kept, person, options, prior)
        wild = kept & ~(misfit(hand, seen, solved.state) <= WILD)
        if not wild.any():
            break
        kept = kept & ~wild
    ends = np.cumsum([len(found) for found in groups])[:-1]
    return Fit(solved.shape.numpy(), solved.shape_cov.numpy(), np.split(kept, ends))


def _solve(hand: HandModel, seen: Observations, state: HandState, kept: np.ndarray, person: np.ndarray, options: CalibrateOptions,
           prior: Gaussians) -> Solved:
    """The solver on the kept frames; the others keep their state. shape and shape_cov are of everybody."""
    mean, covariance = (torch.from_numpy(x).clone() for x in prior)
    rows = torch.from_numpy(np.flatnonzero(kept))
    people, number = np.unique(person[kept], return_inverse=True)
    found = solve(hand, seen.rows(rows), state.rows(rows), options.fit.solver, free_shape="person",
                  person=torch.from_numpy(number), shape_mean=mean[people], shape_cov=covariance[people])
    whole = HandState(*(getattr(state, name).clone() for name in ("rotations", "root", "shape")))
    for name in ("rotations", "root", "shape"):
        getattr(whole, name)[rows] = getattr(found.state, name)
    mean[people], covariance[people] = found.shape, found.shape_cov
    return replace(found, state=whole, shape=mean, shape_cov=covariance)
