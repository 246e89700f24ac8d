"""What a joint fit's posterior is worth: measured on held-out people with known shapes, or as the options state it.

Laplace's covariance takes keypoint errors for independent and unbiased. A network's are neither: it draws a joint too far out
in every picture of a person, a long finger nearer to the mean one, and something of that in everybody's pictures. Measured: the
fit's own mean is taken for an answer like a network's, whose regression on the truth and whose error about a person are found on
the held-out people (src/calibration_likelihood.py: offset, slope, covariance `person`), fitted to as many pictures each as are
fitted here. Stated: a share `alike` of the errors' variance is common to all of a person's pictures, so n of them tell
1 / (1 + (n - 1) alike) of what they seem to (the design effect of cluster samples: Kish, Survey Sampling, 1965).
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from src.calibration_likelihood import fit_people, posterior_of


class RawFit(NamedTuple):
    """A fit that takes everything for independent: mean (10), covariance (10,10), the prior's mean and covariance, n pictures."""

    mean: np.ndarray
    covariance: np.ndarray
    prior_mean: np.ndarray
    prior_covariance: np.ndarray
    n: int

    @property
    def told(self) -> np.ndarray:
        """Information of the pictures (10,10)."""
        return np.linalg.inv(self.covariance) - np.linalg.inv(self.prior_covariance)

    @property
    def sampling(self) -> np.ndarray:
        """Covariance (10,10) of the mean about what it is on average for this person, by independent errors."""
        return self.covariance @ self.told @ self.covariance


@dataclass(frozen=True)
class Stated:
    """By the options: a share of the errors' variance that a person's pictures have in common."""

    alike: float

    def posterior(self, fit: RawFit, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (10) and covariance (10,10); factor: as if there were so many times as many pictures (inf allowed)."""
        left = self.alike + (1 - self.alike) / (fit.n * factor)  # variance of the pictures' mean error, in units of one's
        share = 1 / (fit.n * max(left, 1e-12))
        told, before = fit.told, np.linalg.inv(fit.prior_covariance)
        covariance = np.linalg.inv(before + share * told)
        right = before @ fit.prior_mean
        said = np.linalg.solve(fit.covariance, fit.mean) - right
        return covariance @ (right + share * said), (covariance + covariance.T) / 2

    def effective_n(self, fit: RawFit) -> float:
        """As many independent pictures would say as much."""
        return fit.n / (1 + (fit.n - 1) * self.alike)

    def settings(self) -> dict[str, Any]:
        """For the identity file."""
        return {"stated": True, "alike": self.alike}


@dataclass(frozen=True)
class Measured:
    """offset (10), slope (10,10), person (10,10), on so many people."""

    offset: np.ndarray
    slope: np.ndarray
    person: np.ndarray
    people: int
    choice: dict[str, Any]

    def posterior(self, fit: RawFit, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """As Stated.posterior."""
        return posterior_of(self.offset, self.slope, self.person, fit.mean, fit.sampling / factor)

    def effective_n(self, fit: RawFit) -> float:
        """As Stated.effective_n."""
        own = np.trace(fit.sampling)
        return float(fit.n * own / (own + np.trace(self.person)))

    def settings(self) -> dict[str, Any]:
        """For the identity file."""
        return {"stated": False, "people": self.people, "offset": self.offset.tolist(), "slope": self.slope.tolist(),
                "person": self.person.tolist(), "choice": self.choice}


def measure_noise(fits: Sequence[RawFit], truth: np.ndarray) -> Measured:
    """The noise of an estimator, from fits of held-out people and their true shapes (p,10)."""
    means, sampling = (np.stack([getattr(fit, name) for fit in fits]) for name in ("mean", "sampling"))
    offset, slope, person, choice = fit_people(np.asarray(truth, np.float64), means, sampling)
    return Measured(offset, slope, person, len(fits), choice)
