"""95 % bootstrap intervals of means over samples, by subject and frame, and paired differences between two runs.

Percentile intervals. `ci95` resamples people first and then, within each person drawn, that person's frames: it says how far the
number would move with other people. `ci95_frames` keeps the people and resamples the frames alone. With two test subjects, as
in DexYCB's unseen-subject split, the first rests on two people and is wide, rightly. Frames of one video resemble each other,
so both are somewhat too narrow. The same seed gives the same interval.
"""
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

BLOCK = 64  # draws per matrix product: bounds memory at BLOCK x n


class Interval(NamedTuple):
    """Mean over the samples that have the value, how many those are, and the two 95 % intervals."""

    mean: float
    n: int
    ci95: tuple[float, float]
    ci95_frames: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """As scores.json holds it."""
        return {"mean": self.mean, "ci95": list(self.ci95), "ci95_frames": list(self.ci95_frames), "n": self.n}


def intervals(
    values: Float[np.ndarray, "n m"], subject: Int[np.ndarray, "n"], draws: int = 2000, seed: int = 0
) -> list[Interval | None]:
    """One Interval per column; NaN marks samples without the value, a column of nothing else gives None."""
    known = np.isfinite(values)
    filled = np.concatenate([np.where(known, values, 0.0), known], 1)
    columns = values.shape[1]
    low_high = []
    for by_subject in (True, False):
        totals = _resampled_sums(filled, subject, draws, np.random.default_rng(seed), by_subject)
        counts = totals[:, columns:]
        means = np.where(counts > 0, totals[:, :columns] / np.where(counts > 0, counts, 1.0), np.nan)
        low_high.append([_percentiles(means[:, column]) for column in range(columns)])
    out: list[Interval | None] = []
    for column in range(columns):
        n = int(known[:, column].sum())
        mean = float(values[known[:, column], column].mean()) if n else 0.0
        out.append(Interval(mean, n, low_high[0][column], low_high[1][column]) if n else None)
    return out


def paired_difference(
    a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], subject: Int[np.ndarray, "n"], draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of mean(a - b) over the same samples; a negative error difference means that a is better.

    ValueError where no sample has both values.
    """
    result = intervals((np.asarray(a, float) - np.asarray(b, float))[:, None], subject, draws, seed)[0]
    if result is None:
        raise ValueError("no sample has both values")
    return result


def paired_ratio(
    a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], subject: Int[np.ndarray, "n"], draws: int = 2000, seed: int = 0
) -> Interval | None:
    """Interval of mean(a) / mean(b) over the samples that have both values, each draw's means from the same samples; None where
    no sample has both, or b is zero throughout."""
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any() or not np.any(b[known]):
        return None
    values, people = np.stack([a, b], 1)[known].astype(float), np.asarray(subject)[known]
    low_high = []
    for by_subject in (True, False):
        sums = _resampled_sums(values, people, draws, np.random.default_rng(seed), by_subject)
        low_high.append(_percentiles(sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)))
    mean = values.mean(0)
    return Interval(float(mean[0] / mean[1]), len(values), low_high[0], low_high[1])


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    means = means[np.isfinite(means)]
    if not len(means):
        return (float("nan"), float("nan"))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _resampled_sums(
    values: np.ndarray, subject: np.ndarray, draws: int, rng: np.random.Generator, by_subject: bool
) -> np.ndarray:
    """(draws, columns) sums of `values` over resampled rows."""
    people, code = np.unique(subject, return_inverse=True)
    rows = [np.flatnonzero(code == person) for person in range(len(people))]
    n = len(values)
    out = np.empty((draws, values.shape[1]))
    for start in range(0, draws, BLOCK):
        weights = np.zeros((min(BLOCK, draws - start), n))
        for row in weights:
            if not by_subject:
                row += np.bincount(rng.integers(n, size=n), minlength=n)
                continue
            for person, times in enumerate(np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))):
                size = len(rows[person])
                if times:
                    row[rows[person]] = np.bincount(rng.integers(size, size=times * size), minlength=size)
        out[start : start + len(weights)] = weights @ values
    return out
