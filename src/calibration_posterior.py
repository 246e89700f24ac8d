"""Method `posterior`: a person's shape as a Gaussian, from the same images that the plain mean of `random` takes.

The images' answers give the network's mean answer for this person with its uncertainty (src/calibration_effects.py), outliers
left out; the likelihood fitted to held-out people (src/calibration_likelihood.py) turns that into a shape. Closed form. Where the
network tells shapes apart poorly the posterior is wide and near the mean hand, and says so.
"""
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.calibrate_options import CalibrateOptions
from src.calibration_basis import mesh_gram, rest_mesh_basis
from src.calibration_effects import Images, person_mean, total_covariance
from src.calibration_estimate import CAMERA_CUE, Estimate, Estimator
from src.calibration_likelihood import Likelihood, fit_likelihood, read_likelihood
from src.calibration_mixed import held_out_limits, limit_of, mixture
from src.calibration_people import Person, Selection, select_people
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import read_predictions

log = logging.getLogger(__name__)
_FITS: dict[tuple, Likelihood] = {}  # the last one
ROUNDS = 6  # of rejecting outliers and looking again


def posterior_estimator(likelihood: Likelihood, hand: HandModel, *, check: bool = False) -> Estimator:
    """The estimator of this likelihood. check: look for two people mixed in one folder as well (some time per person)."""
    gram = mesh_gram(rest_mesh_basis(hand))

    def estimates(selection: Selection, orders: Mapping[int, np.ndarray], options: CalibrateOptions, _: HandModel,
                  ) -> dict[int, Estimate]:
        """Posterior of every person in `orders`, from the first options.n images."""
        found = {}
        for subject, order in orders.items():
            found[subject] = estimate(selection.people[subject], order[:options.n], likelihood, gram)
            if check and (said := _mixed(selection.people[subject], likelihood)):
                found[subject] = replace(found[subject], warnings=(*found[subject].warnings, said))
        return found

    return estimates


def estimate(person: Person, rows: np.ndarray, likelihood: Likelihood, gram: np.ndarray) -> Estimate:
    """One person's posterior from these of the person's images. gram: src/calibration_basis.py: mesh_gram."""
    every = likelihood.images(_rows_of(person, rows))
    kept = accepted(every, likelihood)
    images = every.take(np.flatnonzero(kept))
    mean, covariance = person_mean(images, likelihood.effects)
    shape, posterior = likelihood.posterior(mean, covariance)
    single = total_covariance(images, likelihood.effects).mean(0)
    out = int((~kept).sum())
    return Estimate(
        shape, len(images), CAMERA_CUE, posterior, tuple(person.names[rows[kept]].tolist()),
        effective_n=float(np.sum(gram * single) / np.sum(gram * covariance)),
        covariance_at=lambda factor: likelihood.posterior(mean, covariance * (1 / factor))[1],
        settings={"likelihood_people": len(likelihood.people), "outliers": out,
                  "network_mean": mean.tolist(), "network_mean_covariance": covariance.tolist()},
        warnings=(f"{out} of {len(rows)} images are outliers and were left out",) if out * 10 > len(rows) else ())


def accepted(images: Images, likelihood: Likelihood) -> np.ndarray:
    """(n) bool: images within the gate about the person's mean answer; at least half of them, all where there are but two.

    Starts from the median, so that a minority of wild images cannot hide by drawing the centre to themselves.
    """
    kept = np.ones(len(images), bool)
    if len(images) < 3:
        return kept
    total = total_covariance(images, likelihood.effects)
    centre, about = np.median(images.means, axis=0), np.pi / 2 * total.mean(0) / (1 + images.sequence.max())
    for _ in range(ROUNDS):
        residual = images.means - centre
        distance = np.einsum("ni,ni->n", residual, np.linalg.solve(total + about, residual[..., None])[..., 0])
        now = distance <= max(likelihood.gate, float(np.median(distance)))
        if (now == kept).all() and _ > 0:
            break
        kept = now
        centre, about = person_mean(images.take(np.flatnonzero(kept)), likelihood.effects)
    return kept


def likelihood_of(options: CalibrateOptions, hand: HandModel, selection: Selection) -> Likelihood:
    """Read calibrate.likelihood, or fit to calibrate.validation; refused where it does not belong to these predictions.

    Raises InputError: neither or both named, too few people, a person of the calibrated ones among them, another network.
    """
    if bool(options.likelihood) == bool(options.validation):
        raise InputError("calibrate.method=posterior must know how the network errs: set calibrate.validation (predictions of "
                         "people with known shapes) or calibrate.likelihood (a likelihood.json written earlier), not both")
    if options.likelihood:
        likelihood = read_likelihood(options.likelihood, hand)
        _require_apart(options.likelihood, likelihood.people, likelihood.source, selection)
    else:
        held_out = select_people(read_predictions(options.validation), hand, sequences=[], subjects=[], sides=options.sides,
                                 confidence=False)
        source = {"predictions": str(held_out.path), **{k: held_out.meta.get(k) for k in ("method", "checkpoint", "dataset")}}
        _require_apart(options.validation, tuple(held_out.people), source, selection)
        likelihood = _fitted(held_out, options.sides, hand, source)
    if likelihood.typical is None:
        log.info("the network states no covariance (no pred_shape_cov): all images count alike")
    elif any(person.covariances is None for person in selection.people.values()):
        log.warning("%s has no pred_shape_cov: every image counts as a typical one", selection.path)
    return likelihood


def _fitted(held_out: Selection, sides: str, hand: HandModel, source: Mapping[str, Any]) -> Likelihood:
    """Fitted once per file and process: the curve of a method that starts from the posterior asks again at every point."""
    found = held_out.path.stat()
    key = (str(held_out.path.resolve()), found.st_mtime_ns, found.st_size, sides, hand.sha256)
    if key not in _FITS:
        likelihood = fit_likelihood(list(held_out.people.values()), hand, dict(source))
        images = [likelihood.images(held_out.people[subject]) for subject in likelihood.people]
        _FITS.clear()
        _FITS[key] = replace(likelihood, mixed=held_out_limits(images, likelihood))
    return _FITS[key]


def _mixed(person: Person, likelihood: Likelihood) -> str | None:
    """A warning where all of a person's images together look like two people's."""
    found = mixture(likelihood.images(person), likelihood)
    limit = limit_of(likelihood, len(person))
    if found is None or not found.suspect(limit):
        return None
    names = person.names[found.smaller]
    return (f"the images scatter like those of two people: {found.deviations:.1f} standard deviations more than one person's "
            f"(p < {max(found.p, 0.005):.3g}; held-out people: at most {limit:.1f}); is this one person's hand? the "
            f"smaller part has {len(names)} of {len(person)} images, such as {names[0]}")


def _rows_of(person: Person, rows: np.ndarray) -> Person:
    """The same person with some of the images."""
    def some(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[rows]

    return replace(person, names=person.names[rows], rows=person.rows[rows], shapes=some(person.shapes),
                   covariances=some(person.covariances), confidence=some(person.confidence))


def _require_apart(path: str, people: tuple[int, ...], source: Mapping[str, Any], selection: Selection) -> None:
    """The likelihood must be of the same network, and of other people (of the same dataset)."""
    theirs, ours = source.get("checkpoint"), selection.meta.get("checkpoint")
    if theirs and ours and Path(theirs).parts[-2:] != Path(ours).parts[-2:]:
        raise InputError(f"{path}: made with the checkpoint {theirs}, but {selection.path} with {ours}; a likelihood holds for "
                         "one network: predict both with the same checkpoint")
    same = (source.get("dataset") or {}).get("dataset") == (selection.meta.get("dataset") or {}).get("dataset")
    if same and (shared := sorted(set(people) & set(selection.wanted))):
        raise InputError(f"{path}: the people {shared} are to be calibrated but are among the held-out ones, whose true shapes "
                         "the likelihood has seen; calibrate others (calibrate.subjects), or fit it to others")
