"""Are these one person's images? Two people mixed in one folder, found by the spread of the predicted shapes.

Units are sequences (or single images, where there are fewer than four sequences). The statistic is the logarithm of how much
likelier the units are as two people than as one, at the best of many ways to divide them. As a best it is above zero for one
person too, so it is judged against one-person folders drawn from the likelihood with the very same units: in standard
deviations above their mean, with the share p of them that reach it. Before warning it must also exceed what any held-out person
showed with as many images or more, since the likelihood is not perfect either, which more images show more clearly.
"""
from typing import NamedTuple

import numpy as np

from src.calibration_effects import SIZE, Images, person_mean, total_covariance
from src.calibration_likelihood import Likelihood

DRAWS = 200
SPLITS = 20  # places to divide, along each direction
DIRECTIONS = 3
LEAST_UNITS = 4
COUNTS = (20, 60)  # images with which the held-out people are tried, and with all
P_LIMIT = 0.01


class Mixture(NamedTuple):
    """deviations: standard deviations of the statistic above one person's · p: share of one-person folders that reach it ·
    ratio: the statistic · smaller: (n) bool, the images of the smaller part."""

    deviations: float
    p: float
    ratio: float
    smaller: np.ndarray

    def suspect(self, limit: float) -> bool:
        """Whether to warn. limit: `limit_of` as many images."""
        return self.p <= P_LIMIT and self.deviations > limit


def mixture(images: Images, likelihood: Likelihood, seed: int = 0) -> Mixture | None:
    """Judge one folder; None where it is too small to judge."""
    unit = images.sequence if images.sequence.max() + 1 >= LEAST_UNITS else np.arange(len(images))
    count = unit.max() + 1
    if count < LEAST_UNITS:
        return None
    means, covariances = _units(images, unit, likelihood)
    centre, _ = person_mean(images, likelihood.effects)
    generator = np.random.default_rng(seed)
    noise = np.einsum("uij,duj->dui", np.linalg.cholesky(covariances), generator.normal(size=(DRAWS, count, SIZE)))
    ratios, members = _best_ratios(np.concatenate([means[None], centre + noise]), covariances, likelihood)
    alone = ratios[1:]
    member = members[0]
    if member.mean() > 0.5:
        member = ~member
    return Mixture(float((ratios[0] - alone.mean()) / alone.std()), float((1 + (alone >= ratios[0]).sum()) / (1 + DRAWS)),
                   float(ratios[0]), member[unit])


def held_out_limits(people: list[Images], likelihood: Likelihood, seed: int = 0) -> tuple[tuple[int, float], ...]:
    """(n, the most deviations that any of these people, each alone, shows with n images), for rising n."""
    generator, largest = np.random.default_rng(seed), max(map(len, people))
    limits = []
    for n in [n for n in COUNTS if n < largest] + [largest]:
        some = [images.take(generator.permutation(len(images))[:n]) for images in people]
        found = [mixture(images, likelihood) for images in some]
        limits.append((n, max((one.deviations for one in found if one is not None), default=0.0)))
    return tuple(limits)


def limit_of(likelihood: Likelihood, count: int) -> float:
    """Deviations that held-out people reach with `count` images, or the next larger number that was tried."""
    return next((most for n, most in likelihood.mixed if n >= count), likelihood.mixed[-1][1] if likelihood.mixed else 0.0)


def _units(images: Images, unit: np.ndarray, likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """Mean answer (u,10) and its covariance about the person's (u,10,10), for each unit."""
    if len(np.unique(unit)) == len(images):
        return images.means, total_covariance(images, likelihood.effects)
    found = [person_mean(images.take(np.flatnonzero(unit == u)), likelihood.effects) for u in range(unit.max() + 1)]
    return tuple(np.stack(part) for part in zip(*found))


def _best_ratios(means: np.ndarray, covariances: np.ndarray, likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """Best log ratio (d) and division (d,u) of folders (d,u,10) with equal covariances (u,10,10): thresholds along directions in
    which people differ most for the images' scatter."""
    between = likelihood.slope @ likelihood.slope.T + likelihood.person
    precision = np.linalg.inv(covariances)
    root = np.linalg.cholesky(covariances.mean(0))
    back = np.linalg.inv(root)
    directions = (back.T @ np.linalg.eigh(back @ between @ back.T)[1][:, ::-1])[:, :DIRECTIONS]
    weighted = np.einsum("uij,duj->dui", precision, means)
    whole = _evidence(precision.sum(0), weighted.sum(1), between, likelihood.offset)
    least = max(1, means.shape[1] // 10)
    places = np.unique(np.linspace(least, means.shape[1] - least, SPLITS).round().astype(int))
    best = np.full(len(means), -np.inf)
    member = np.zeros(means.shape[:2], bool)
    for direction in directions.T:
        order = np.argsort(means @ direction, axis=1)
        precisions = np.cumsum(precision[order], 1)[:, places - 1]
        sums = np.cumsum(np.take_along_axis(weighted, order[..., None], 1), 1)[:, places - 1]
        ratio = (_evidence(precisions, sums, between, likelihood.offset)
                 + _evidence(precision.sum(0) - precisions, weighted.sum(1)[:, None] - sums, between, likelihood.offset)
                 - whole[:, None])
        top = ratio.argmax(1)
        better = ratio.max(1) > best
        best = np.maximum(best, ratio.max(1))
        rank = np.argsort(order, axis=1)
        member[better] = (rank < places[top][:, None])[better]
    return best, member


def _evidence(precision: np.ndarray, weighted: np.ndarray, between: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Log probability of units of one person with mean answer ~ N(offset, between), less what cancels in a ratio."""
    prior = np.linalg.inv(between)
    joint = precision + prior
    right = weighted + prior @ offset
    quadratic = np.einsum("...i,...i->...", right, np.linalg.solve(joint, right[..., None])[..., 0])
    return 0.5 * (quadratic - offset @ prior @ offset - np.linalg.slogdet(joint)[1] - np.linalg.slogdet(between)[1])
