"""Calibration: a person's images, or a ruler -> that person's identity file (shape), how sure it is, and the curve against n.

Kong et al., ECCV 2022 (specs/idhandmesh.md section 5). Reads predictions files only, never images or a network. `random`: mean
of n images drawn as the original drew them, seed and order included; `top`, `weighted`, `all`: other means. They are means of a
regressor's answers, so they keep its pull towards the mean hand: a small hand stays somewhat too large and a large one too
small, however many images are averaged. `posterior` undoes that and states how sure it is (src/calibration_posterior.py);
`joint`, `views` and `depth` fit the images; `measured` conditions any of them, or nothing but the prior, on a ruler. Seed: the
original drew from the very frames it then scored; here the two are kept apart unless allowed.
"""
import importlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.calibrate_options import CalibrateOptions
from src.calibration_basis import hand_size_mm, mesh_gram, rest_mesh_basis, rest_mesh_mm
from src.calibration_coverage import coverage, coverage_note
from src.calibration_curve import calibration_curve, curve_cells
from src.calibration_draws import mean_estimates, orders_of_draw
from src.calibration_estimate import MEANS, Estimate, Estimator, fit_estimator
from src.calibration_gain import posed_gain, shapes_of
from src.calibration_likelihood import Likelihood, write_likelihood
from src.calibration_people import Person, Selection, select_people
from src.calibration_posterior import likelihood_of, posterior_estimator
from src.calibration_stop import decide, vertex_sd_mm
from src.calibration_text import result_text
from src.identity import COMPANIONS, HandInfo, Identity, require_apart, write_identity
from utils.errors import InputError
from utils.files import write_json
from utils.hand import HandModel
from utils.predictions import read_predictions

__all__ = ["CalibrateOptions", "calibrate"]
log = logging.getLogger(__name__)
LEAST_IMAGES = 2
PRIOR = Estimate(np.zeros(10), 0, "prior only", covariance=np.eye(10))


def calibrate(options: CalibrateOptions, folder: str | Path, *, hand: HandModel) -> str:
    """Write `<subject>.json` for every person, calibration.json and, from predictions, curve.json (posterior: likelihood.json and
    coverage.json as well) to `folder`; returns what to print.

    hand: the HandModel the predictions were made with. Raises InputError: neither predictions nor a measurement, no shape or no
    confidence in the file, another hand model, frames that are scored too (options.allow_scored_frames lifts this), a person or a
    sequence that is not there, fewer than two images, values that are not finite, a likelihood of other networks or the same
    people. Source: specs/idhandmesh.md section 5.
    """
    folder = Path(folder)
    if options.measured and not options.predictions:
        return _by_ruler(options, folder, hand)
    selection = _selection(options, hand)
    likelihood = likelihood_of(options, hand, selection) if _needs_likelihood(options) else None
    identities = _identities(selection, options, hand, _estimator(options.method, likelihood, hand, check=True))
    draws = [identities]
    if options.write_draws and options.method in ("random", "posterior"):
        estimator = _estimator(options.method, likelihood, hand)
        draws += [_identities(selection, options, hand, estimator, draw) for draw in range(1, options.draws)]
    scored = read_predictions(options.scored) if options.scored else None
    if scored is not None and not options.allow_scored_frames:
        used = [name for draw in draws for identity in draw.values() for name in identity.frames or ()]
        require_apart(used, np.asarray(scored["name"]).tolist(), f"{selection.path} and {scored.path}")
    cells = curve_cells(selection, options, hand, _curve_estimators(selection, options, likelihood, hand))
    curve = calibration_curve(selection, options, hand, cells)
    summary = _summary(selection, identities, options, curve, hand)
    if scored is not None:
        summary["posed"] = posed_gain(scored, _shapes_to_pose(selection, options, hand, identities), hand, options.scored_frames)
    covered = None
    if curve["truth_known"] and any(cell.covariances is not None for cell in cells):
        truth = np.stack([selection.people[subject].true_shape for subject in selection.wanted])
        covered = coverage(cells, truth, hand, options.enough_mm)
        curve["note"] += coverage_note(covered, options.n)
    _write(folder, identities)
    _write_draws(folder, draws if options.write_draws else [])
    for name, kind, content in (("curve", 1, curve), ("coverage", 3, covered), ("calibration", 0, summary)):
        if content is not None:
            write_json(folder / f"{name}.json", {"kind": COMPANIONS[kind], **content})
        else:  # one of an earlier calibration would be taken for this one's
            (folder / f"{name}.json").unlink(missing_ok=True)
    if likelihood is not None and options.validation:
        write_likelihood(folder / "likelihood.json", likelihood)
    return result_text(folder, summary, curve, covered)


def _by_ruler(options: CalibrateOptions, folder: Path, hand: HandModel) -> str:
    """An identity from measurements and the prior alone: no images, no dataset."""
    if len(options.subjects) > 1:
        raise InputError(f"calibrate.measured: one ruler measures one person, but calibrate.subjects names {options.subjects}")
    subject = options.subjects[0] if options.subjects else options.subject
    identity = _identity(subject, _conditioned(PRIOR, options, hand), options, hand, "ruler", None, 0)
    _write(folder, {subject: identity})
    summary = {"method": "ruler", "measured": options.measured, "hand": hand.info,
               "people": [_entry(identity, None, 0, hand)]}
    write_json(folder / "calibration.json", {"kind": COMPANIONS[0], **summary})
    return result_text(folder, summary, None, None)


def _conditioned(estimate: Estimate, options: CalibrateOptions, hand: HandModel) -> Estimate:
    if options.measured is None:
        return estimate
    if estimate.covariance is None:
        raise InputError(f"calibrate.measured: method {options.method} gives no uncertainty to weigh the ruler against; set "
                         "calibrate.method=posterior, joint, views or depth, or measure without predictions")
    return importlib.import_module("src.ruler").condition(estimate, options.measured, hand, options.measured_sd_mm)


def _needs_likelihood(options: CalibrateOptions) -> bool:
    return "posterior" in (options.method, *options.curve_methods) or bool(options.validation or options.likelihood)


def _estimator(method: str, likelihood: Likelihood | None, hand: HandModel, check: bool = False) -> Estimator:
    if method in MEANS:
        return mean_estimates
    return posterior_estimator(likelihood, hand, check=check) if method == "posterior" else fit_estimator(method)


def _curve_estimators(selection: Selection, options: CalibrateOptions, likelihood: Likelihood | None, hand: HandModel,
                      ) -> dict[str, Estimator]:
    """Those of options.curve_methods, or all that these predictions allow without a fit of images."""
    chosen = [selection.people[subject] for subject in selection.wanted]
    if any(person.shapes is None for person in chosen):
        allowed = [options.method]
    else:
        confident = all(person.confidence is not None for person in chosen)
        allowed = ["random", *(("top", "weighted") if confident else ()), *(("posterior",) if likelihood else ()), "all"]
    return {method: _estimator(method, likelihood, hand) for method in options.curve_methods or allowed}


def _shapes_to_pose(selection: Selection, options: CalibrateOptions, hand: HandModel, identities: Mapping[int, Identity],
                    ) -> dict[str, dict[int, np.ndarray]]:
    """Shapes to compare on posed hands: the plain mean of the same number of images, and the calibrated ones."""
    shapes = {options.method: shapes_of(identities)}
    if options.method != "random" and all(selection.people[s].shapes is not None for s in identities):
        orders, random = orders_of_draw(selection.people, options.seed), options.model_copy(update={"method": "random"})
        mean = mean_estimates(selection, {s: orders[s] for s in identities}, random, hand)
        shapes = {"random": {subject: estimate.shape for subject, estimate in mean.items()}, **shapes}
    return shapes


def _selection(options: CalibrateOptions, hand: HandInfo) -> Selection:
    """The people to calibrate; those with fewer than two images are left out, aloud."""
    if options.predictions in ("", "."):
        raise InputError("calibrate.predictions: no predictions file named; write one with `run.py test` of a model that gives "
                         "the shape, and set calibrate.predictions=<file>")
    methods = {options.method, *options.curve_methods}
    selection = select_people(read_predictions(options.predictions), hand, sequences=options.sequences, subjects=options.subjects,
                              sides=options.sides, confidence=bool(methods & {"top", "weighted"}),
                              shapes=bool(methods & {*MEANS, "posterior"}))
    least = 1 if options.method == "depth" else LEAST_IMAGES  # one RGB-D frame knows its size
    few = [subject for subject in selection.wanted if len(selection.people[subject]) < least]
    enough = [subject for subject in selection.wanted if subject not in few]
    if not enough:
        raise InputError(f"{selection.path}: fewer than {LEAST_IMAGES} images of {_listed(few)}; a single image cannot be told "
                         "from an outlier: add images")
    if few:
        log.warning("fewer than %d images of %s: left out", LEAST_IMAGES, _listed(few))
    if options.measured and len(enough) > 1:
        raise InputError(f"calibrate.measured: one ruler measures one person, but {selection.path} holds {_listed(enough)}; "
                         "name one with calibrate.subjects")
    return replace(selection, wanted=enough)


def _listed(subjects: list[int]) -> str:
    return f"subject{'s' * (len(subjects) > 1)} {', '.join(map(str, subjects))}"


def _identities(selection: Selection, options: CalibrateOptions, hand: HandModel, estimator: Estimator, draw: int = 0,
                ) -> dict[int, Identity]:
    """Every wanted person's identity, from one draw. Raises InputError where the estimator could tell nobody's."""
    orders = orders_of_draw(selection.people, options.seed + draw)
    found = estimator(selection, {subject: orders[subject] for subject in selection.wanted}, options, hand)
    if not found:
        raise InputError(f"{selection.path}: calibrate.method={options.method} could calibrate nobody; see the lines above")
    return {subject: _identity(subject, _conditioned(estimate, options, hand), options, hand, options.method,
                               _source(selection, selection.people[subject], options), draw)
            for subject, estimate in found.items()}


def _identity(subject: int, estimate: Estimate, options: CalibrateOptions, hand: HandModel, method: str,
              source: dict[str, Any] | None, draw: int) -> Identity:
    """The identity file's content of one estimate, with its stop decision."""
    basis = rest_mesh_basis(hand)
    for line in estimate.warnings:
        log.warning("subject %d: %s", subject, line)
    sure = estimate.covariance is not None
    stop = decide(estimate, mesh_gram(basis), options.enough_mm)
    return Identity(
        subject=subject, shape=estimate.shape, hand={"name": hand.name, "sha256": hand.sha256}, n=estimate.n, method=method,
        covariance=estimate.covariance, confidence_used=method in ("top", "weighted"), standard_error=estimate.standard_error,
        spread=estimate.spread, source=source, frames=estimate.frames, cue=estimate.cue, side=hand.side,
        settings={"n": options.n, "seed": options.seed, "draw": draw, "measured": options.measured,
                  "warnings": list(estimate.warnings), **estimate.settings},
        effective_n=estimate.effective_n, mesh_sd_mm=stop["mesh_sd_mm"] if stop else None, stop=stop,
        vertex_sd_mm=vertex_sd_mm(basis, estimate.covariance).round(3) if sure else None)


def _source(selection: Selection, person: Person, options: CalibrateOptions) -> dict[str, Any]:
    """What an identity was made from, for its file."""
    folders = {name.rpartition("/")[0] for name in person.names.tolist()}
    return {"predictions": str(selection.path), **{key: selection.meta.get(key) for key in ("method", "checkpoint", "dataset")},
            "sequences": options.sequences or None, "sides": options.sides, "folders": len(folders),
            "images_available": len(person), "scored_frames_allowed": options.allow_scored_frames}


def _summary(selection: Selection, identities: dict[int, Identity], options: CalibrateOptions, curve: dict[str, Any],
             hand: HandModel) -> dict[str, Any]:
    """Content of calibration.json: what was asked, and per person what came out; fewer images than asked are said aloud."""
    people = []
    for subject, identity in identities.items():
        person = selection.people[subject]
        short = options.method in ("random", "top", "posterior") and len(person) < options.n
        if short:
            log.warning("subject %d: %d images where %d were asked for; all of them used", subject, len(person), options.n)
        people.append({**_entry(identity, person.true_shape, len(person), hand), "fewer_than_asked": short})
    return {"method": options.method, "n": options.n, "seed": options.seed, "predictions": str(selection.path),
            "measured": options.measured, "hand": {"name": hand.name, "sha256": hand.sha256}, "curve": "curve.json",
            "truth_known": curve["truth_known"], "people": people}


def _entry(identity: Identity, truth: np.ndarray | None, available: int, hand: HandModel) -> dict[str, Any]:
    """What calibration.json says of one person; errors where the truth is known."""
    entry = {"subject": identity.subject, "file": f"{identity.subject}.json", "images_available": available,
             "images_used": identity.n, "effective_n": identity.effective_n, "cue": identity.cue,
             "rest_mesh_spread_mm": (identity.spread or {}).get("rest_mesh_mm"), "mesh_sd_mm": identity.mesh_sd_mm,
             "hand_size_mm": float(hand_size_mm(hand, identity.shape)), "stop": identity.stop,
             "warnings": identity.settings["warnings"], "shape_error": None, "mesh_error_mm": None}
    if truth is not None:
        difference = identity.shape - truth
        entry |= {"shape_error": float(np.abs(difference).mean()),
                  "mesh_error_mm": float(rest_mesh_mm(rest_mesh_basis(hand), difference)),
                  "size_error_mm": float(abs(hand_size_mm(hand, identity.shape) - hand_size_mm(hand, truth)))}
    return entry


def _write(folder: Path, identities: dict[int, Identity]) -> None:
    for subject, identity in identities.items():
        write_identity(folder / f"{subject}.json", identity)


def _write_draws(folder: Path, draws: list[dict[int, Identity]]) -> None:
    """Every draw's files; those of an earlier calibration with more draws or other people must not mix with the new ones."""
    for stale in list(folder.glob("draws/*/*.json")):
        stale.unlink()
        if not any(stale.parent.iterdir()):
            stale.parent.rmdir()
    for draw, content in enumerate(draws):
        _write(folder / "draws" / str(draw), content)
