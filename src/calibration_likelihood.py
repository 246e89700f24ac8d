"""What a network's answers say of the true shape: a Gaussian likelihood, fitted to held-out people whose shapes are known.

    m_i = offset + slope @ beta + u + v_sequence + w_camera + x_recording + e_i          (src/calibration_effects.py for the rest)

A regressor answers nearer to the mean hand than the truth is (slope below one) and errs about a person in every image of that
person (u, covariance `person`): no number of images averages that away. The shared errors of sequences, cameras and recordings
and the images' own are found by restricted maximum likelihood (EM); e_i scales with the covariance that the network states,
to a power that the likelihood chooses among POWERS, 0 = the statement is no use. Slope and `person` rest on few people, so the
slope's mixed terms are ridged, `person` is drawn towards its diagonal and widened, as leaving one person out finds best
for the *posterior* of that person's true shape (a proper score); residuals are those of people left out.
"""
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from src.calibration_effects import SIZE, Effects, Images, groups_of, moments, person_mean, total_covariance
from src.calibration_people import Person
from src.identity import COMPANIONS, HandInfo, number_array
from utils.errors import InputError
from utils.files import read_json, write_json

VERSION = 1
KIND = COMPANIONS[2]
LEAST_PEOPLE = 8
POWERS = (0.0, 0.5, 1.0)
RIDGES = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e6)  # people's worth of belief that a coefficient answers to itself alone
TO_DIAGONAL = (0.05, 0.15, 0.3, 0.6, 1.0)
WIDEN = (0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
GATE_SHARE = 0.995  # of the held-out people's images lie within the gate; those beyond it in use are rejected
ITERATIONS = 40
SEQUENCES = 16  # of each person, for the shared errors
_REMEDY = "fit it again: run.py calibrate with calibrate.validation"


@dataclass(frozen=True)
class Likelihood:
    """offset (10) · slope (10,10) · person (10,10): covariance of u · effects · power of the stated covariance · typical (10,10)
    stated covariance, None where the network states none · gate: squared Mahalanobis distance beyond which an image is rejected ·
    mixed: (n, how much n images of one held-out person looked like two people's at most), see src/calibration_mixed.py, · people:
    subjects it was fitted to · hand {name, sha256} · source: their predictions · choice: how it was chosen."""

    offset: np.ndarray
    slope: np.ndarray
    person: np.ndarray
    effects: Effects
    power: float
    typical: np.ndarray | None
    gate: float
    people: tuple[int, ...]
    hand: dict[str, str]
    source: dict[str, Any]
    choice: dict[str, Any]
    mixed: tuple[tuple[int, float], ...] = ()

    def images(self, person: Person) -> Images:
        """A person's images, ready for the mixed model; images without a stated covariance count as typical ones."""
        return images_of(person, self.power, self.typical)

    def posterior(self, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shape (10) and covariance (10,10) given the network's mean answer and its covariance; prior: unit variance."""
        return posterior_of(self.offset, self.slope, self.person, mean, covariance)


def posterior_of(offset: np.ndarray, slope: np.ndarray, person: np.ndarray, mean: np.ndarray, covariance: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian update of the prior N(0, I) with mean ~ N(offset + slope beta, person + covariance)."""
    gain = np.linalg.solve(person + covariance, slope).T
    inverse = np.linalg.inv(np.eye(SIZE) + gain @ slope)
    inverse = (inverse + inverse.T) / 2
    return inverse @ gain @ (mean - offset), inverse


def images_of(person: Person, power: float, typical: np.ndarray | None) -> Images:
    """Answers, roots of the stated covariances to `power`, and groups by folder."""
    if power == 0:
        roots = inverse = np.broadcast_to(np.eye(SIZE), (len(person), SIZE, SIZE))
    else:
        stated = person.covariances if person.covariances is not None else np.broadcast_to(typical, (len(person), SIZE, SIZE))
        values, vectors = np.linalg.eigh(stated)
        values = np.maximum(values, 1e-12)[:, None]
        roots, inverse = ((vectors * values ** (sign * power / 2)) @ vectors.transpose(0, 2, 1) for sign in (1, -1))
    return Images(person.shapes.astype(np.float64), roots, inverse, *groups_of(person.names))


def fit_likelihood(people: list[Person], hand: HandInfo, source: dict[str, Any]) -> Likelihood:
    """Fit all of it to people with known shapes. Raises InputError: too few of them."""
    people = [person for person in people if person.true_shape is not None and len(person) > 1]
    if len(people) < LEAST_PEOPLE:
        raise InputError(f"calibrate.validation: {source.get('predictions')}: expected at least {LEAST_PEOPLE} people with known "
                         f"shapes and two images each, found {len(people)}; predict more held-out people")
    stated = [person.covariances for person in people if person.covariances is not None]
    typical = np.concatenate(stated).mean(0) if len(stated) == len(people) else None
    power, images, effects, tried = _fit_effects(people, typical)
    means, covariances = (np.stack(part) for part in zip(*(person_mean(some, effects) for some in images)))
    truth = np.stack([person.true_shape for person in people]).astype(np.float64)
    offset, slope, person_covariance, choice = fit_people(truth, means, covariances)
    distances = np.concatenate([_distances(some, effects, mean) for some, mean in zip(images, means)])
    return Likelihood(
        offset, slope, person_covariance, effects, power, typical,
        max(float(np.quantile(distances, GATE_SHARE)), float(stats.chi2.ppf(GATE_SHARE, SIZE))),
        tuple(person.subject for person in people), {"name": hand.name, "sha256": hand.sha256}, source,
        {**choice, "loglik_by_power": tried, "images": int(sum(map(len, images)))})


def _distances(images: Images, effects: Effects, mean: np.ndarray) -> np.ndarray:
    residual = images.means - mean
    return np.einsum("ni,ni->n", residual, np.linalg.solve(total_covariance(images, effects), residual[..., None])[..., 0])


def _fit_effects(people: list[Person], typical: np.ndarray | None) -> tuple[float, list[Images], Effects, dict[str, float]]:
    """Power of the stated covariance, images and effects, by restricted likelihood; a thinned set chooses the power."""
    found, tried = {}, {}
    for power in POWERS if typical is not None else (0.0,):
        images = [images_of(person, power, typical) for person in people]
        thin = [_thinned(some, SEQUENCES // 2) for some in images]
        effects, loglik = fit_effects(thin, start_effects(thin), ITERATIONS // 4)
        found[power], tried[f"{power:g}"] = (images, effects), loglik
    power = max(found, key=lambda p: tried[f"{p:g}"])
    images, effects = found[power]
    effects, _ = fit_effects([_thinned(some, SEQUENCES) for some in images], effects, ITERATIONS)
    return power, images, effects, tried


def _thinned(images: Images, sequences: int) -> Images:
    """Evenly spread sequences, at most so many: the cost is that of their number cubed."""
    count = images.sequence.max() + 1
    return images.take(np.flatnonzero(np.isin(images.sequence, np.linspace(0, count - 1, min(count, sequences)).round())))


def start_effects(images: list[Images]) -> Effects:
    """A quarter of the images' spread about their people's mean for each level."""
    residual = np.concatenate([some.means - some.means.mean(0) for some in images])
    spread = residual.T @ residual / len(residual) / 4 + 1e-4 * np.eye(SIZE)
    back = np.concatenate([some.inverse_roots for some in images]).mean(0)
    return Effects(spread, spread, spread, back @ spread @ back)


def fit_effects(images: list[Images], effects: Effects, iterations: int) -> tuple[Effects, float]:
    """EM for the covariances of the effects; returns them and the last restricted log-likelihood."""
    last = -np.inf
    for _ in range(iterations):
        found = [moments(some, effects) for some in images]
        loglik = sum(one.loglik for one in found)
        if loglik - last < 5e-5 * sum(map(len, images)) and np.isfinite(last):
            break
        last = loglik
        effects = Effects(**{f.name: sum(one.sums[f.name] for one in found) / sum(one.counts[f.name] for one in found)
                             for f in fields(Effects)})
    return effects, float(loglik)


def fit_people(truth: np.ndarray, means: np.ndarray, covariances: np.ndarray,
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """offset (10), slope (10,10), person (10,10) and how they were chosen.

    truth, means (p,10) · covariances (p,10,10) of the means. Everything that is scored is scored on a person left out.
    """
    best: tuple[float, tuple] = (-np.inf, ())
    blurred = covariances.mean(0)
    for ridge in RIDGES:
        fits = [_regress(np.delete(truth, p, 0), np.delete(means, p, 0), ridge) for p in range(len(truth))]
        residual = np.stack([means[p] - offset - slope @ truth[p] for p, (offset, slope) in enumerate(fits)])
        for diagonal, widen in product(TO_DIAGONAL, WIDEN):
            score = 0.0
            for p, (offset, slope) in enumerate(fits):
                person = _person_covariance(np.delete(residual, p, 0), blurred, diagonal, widen)
                shape, covariance = posterior_of(offset, slope, person, means[p], covariances[p])
                error = truth[p] - shape
                score -= 0.5 * (error @ np.linalg.solve(covariance, error) + np.linalg.slogdet(covariance)[1])
            if score > best[0]:
                best = score, (ridge, diagonal, widen, residual)
    score, (ridge, diagonal, widen, residual) = best
    offset, slope = _regress(truth, means, ridge)
    person = _person_covariance(residual, blurred, diagonal, widen)
    return offset, slope, person, {"ridge_people": ridge, "towards_diagonal": diagonal, "widened": widen,
                                   "log_score_per_person": float(score) / len(truth)}


def _regress(truth: np.ndarray, means: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """offset and slope of means on truth; `ridge` draws every coefficient's dependence on the *others* towards none."""
    design = np.concatenate([np.ones((len(truth), 1)), truth], 1)
    gram, right = design.T @ design, design.T @ means
    slope, offset = np.empty((SIZE, SIZE)), np.empty(SIZE)
    for k in range(SIZE):
        penalty = np.full(1 + SIZE, ridge + 1e-6)
        penalty[[0, 1 + k]] = 1e-6
        found = np.linalg.solve(gram + np.diag(penalty), right[:, k])
        offset[k], slope[k] = found[0], found[1:]
    return offset, slope


def _person_covariance(residual: np.ndarray, blurred: np.ndarray, diagonal: float, widen: float) -> np.ndarray:
    """Covariance of u from residuals of people left out, less what the images' noise adds to them, at least a tenth of it."""
    found = residual.T @ residual / len(residual)
    found = widen * ((1 - diagonal) * found + diagonal * np.diag(np.diag(found)))
    root = np.linalg.cholesky(found)
    back = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(np.eye(SIZE) - back @ blurred @ back.T)
    return root @ (vectors * np.maximum(values, 0.1)) @ vectors.T @ root.T


def write_likelihood(path: str | Path, likelihood: Likelihood) -> None:
    """Write likelihood.json, whole or not at all."""
    value = {f.name: getattr(likelihood, f.name) for f in fields(likelihood)}
    value["effects"] = {f.name: getattr(likelihood.effects, f.name).tolist() for f in fields(Effects)}
    value = {key: item.tolist() if isinstance(item, np.ndarray) else item for key, item in value.items()}
    write_json(path, {"kind": KIND, "version": VERSION, **value})


def read_likelihood(path: str | Path, hand: HandInfo) -> Likelihood:
    """Read likelihood.json. Raises InputError: another file or version, broken numbers, another hand model."""
    value = read_json(path, _REMEDY)
    if not isinstance(value, dict) or value.get("kind") != KIND or value.get("version") != VERSION:
        raise InputError(f"{path}: expected a likelihood.json of version {VERSION}, found other json; {_REMEDY}")
    if lacking := sorted({f.name for f in fields(Likelihood)} - value.keys()):
        raise InputError(f"{path}: the likelihood lacks {', '.join(lacking)}; {_REMEDY}")
    if value["hand"].get("sha256") != hand.sha256:
        raise InputError(f"{path}: fitted for the hand model {value['hand'].get('name')}, but the one in use is {hand.name} "
                         f"({hand.sha256[:12]}); set hand= to that model, or {_REMEDY}")

    def numbers(found: object, *shape: int) -> np.ndarray:
        array = number_array(found)
        if array is None or array.shape != shape:
            raise InputError(f"{path}: expected {' x '.join(map(str, shape))} finite numbers in each covariance; {_REMEDY}")
        return array

    square = (SIZE, SIZE)
    effects = Effects(**{f.name: numbers(value["effects"].get(f.name), *square) for f in fields(Effects)})
    return Likelihood(numbers(value["offset"], SIZE), numbers(value["slope"], *square), numbers(value["person"], *square),
                      effects, float(value["power"]), None if value["typical"] is None else numbers(value["typical"], *square),
                      float(value["gate"]), tuple(value["people"]), value["hand"], value["source"], value["choice"],
                      tuple((int(n), float(most)) for n, most in value["mixed"]))
