"""Is the stated uncertainty true? Coverage of intervals over people, bias for large and small hands, the stop rule against
errors.

A 68 % interval should hold the true coefficient for 68 % of the people, and a mesh said to be known to 1 mm should be wrong by
about 1 mm. Content of coverage.json; only where the true shapes are known. `margin` is one standard error over people,
since one person's draws and coefficients err alike.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from src.calibration_basis import hand_size_mm, mesh_gram, rest_mesh_basis
from src.calibration_curve import Cell
from src.calibration_stop import mesh_sd_mm
from utils.hand import HandModel

LEVELS = (0.5, 0.68, 0.95)
BINS = 6
LIMITS_MM = (1.0, 2.0, 3.0, 4.0, 5.0)


def coverage(cells: Sequence[Cell], truth: np.ndarray, hand: HandModel, enough_mm: float) -> dict[str, Any]:
    """{"levels", "people", "methods": {method: {"points": [per n], "stop": [per n], "limits": [per limit], "reliability": [per
    bin]}}}.

    stop: the decisions at each n; limits: all n together, also for limits other than `enough_mm`, which may be out of reach.

    truth (people, 10), in the order of the cells' people. Methods without a covariance are left out.
    """
    gram, found = mesh_gram(rest_mesh_basis(hand)), {}
    for method in dict.fromkeys(cell.method for cell in cells if cell.covariances is not None):
        own = [cell for cell in cells if cell.method == method and cell.covariances is not None]
        pairs = [_errors(cell, truth, gram) for cell in own]
        sd, error = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        found[method] = {"points": [_point(cell, truth, hand) for cell in own],
                         "stop": [{"n": cell.n, **_stop(*pair, enough_mm)} for cell, pair in zip(own, pairs)],
                         "limits": [_stop(sd, error, limit) for limit in sorted({enough_mm, *LIMITS_MM})],
                         "reliability": _reliability(sd, error)}
    return {"levels": list(LEVELS), "people": len(truth), "enough_mm": enough_mm, "methods": found,
            "note": "covered: share of true coefficients within the interval; margin: one standard error over people"}


def coverage_note(found: dict[str, Any], n: int) -> str:
    """One sentence per method on the coverage at `n` images, or the nearest number below that was tried; begins with a space."""
    said = ""
    for method, of in found["methods"].items():
        point = next((p for p in reversed(of["points"]) if p["n"] <= n), of["points"][0])
        shares = ", ".join(f"{100 * share:.0f} % within the {100 * level:.0f} % interval"
                           for level, share in zip(found["levels"], point["covered"]))
        said += f" {method}, n = {point['n']}: true coefficients of {point['people']} people: {shares}."
    return said


def covered(shapes: np.ndarray, covariances: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(levels, ..., 10) bool: true coefficients within the central intervals of LEVELS."""
    sd = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))
    width = stats.norm.ppf(0.5 + np.array(LEVELS) / 2).reshape(-1, *[1] * shapes.ndim)
    return np.abs(shapes - truth) <= width * sd


def _point(cell: Cell, truth: np.ndarray, hand: HandModel) -> dict[str, Any]:
    """One n: coverage, and what is left of the pull to the mean hand."""
    answered = np.isfinite(cell.shapes).all((0, 2))
    shapes, covariances, truth = cell.shapes[:, answered], cell.covariances[:, answered], truth[answered]
    inside = covered(shapes, covariances, truth)  # (levels, draws, people, 10)
    by_person = inside.mean((1, 3))
    error = truth - shapes
    distance = np.einsum("dpi,dpi->dp", error, np.linalg.solve(covariances, error[..., None])[..., 0])
    joint = [float((distance <= stats.chi2.ppf(level, 10)).mean()) for level in LEVELS]
    return {"n": cell.n, "people": int(answered.sum()), "covered": inside.mean((1, 2, 3)).tolist(),
            "margin": (by_person.std(1, ddof=1) / np.sqrt(by_person.shape[1])).tolist() if len(truth) > 1 else None,
            "covered_by_coefficient": inside.mean((1, 2)).tolist(), "covered_all_ten_at_once": joint,
            **_bias(shapes, truth, hand)}


def _bias(shapes: np.ndarray, truth: np.ndarray, hand: HandModel) -> dict[str, Any]:
    """Slope of truth on estimate (1: nothing to correct), and the mean size error in mm of the smallest and largest thirds, by
    *estimated* size: a Gaussian posterior is right on average for the hands that it calls large, and for those it calls small."""
    size, true_size = hand_size_mm(hand, shapes), np.broadcast_to(hand_size_mm(hand, truth), shapes.shape[:2])
    centred = size - size.mean()
    third = np.quantile(size, [1 / 3, 2 / 3])
    part = {"smallest": size <= third[0], "largest": size >= third[1]}
    return {"slope_true_on_estimate": float((shapes * truth).sum() / (shapes**2).sum()),
            "size_slope_true_on_estimate": float((centred * true_size).sum() / (centred**2).sum()) if len(truth) > 1 else None,
            "size_bias_mm": {name: float((size - true_size)[rows].mean()) for name, rows in part.items()}}


def _errors(cell: Cell, truth: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stated standard deviation and true rms error of the mesh in mm, (draws, people answered) each."""
    answered = np.isfinite(cell.shapes).all((0, 2))
    error = (cell.shapes - truth)[:, answered]
    return mesh_sd_mm(gram, cell.covariances[:, answered]), np.sqrt(np.einsum("dpi,ij,dpj->dp", error, gram, error))


def _stop(sd: np.ndarray, error: np.ndarray, enough_mm: float) -> dict[str, Any]:
    """Decisions by one limit, and the true errors of those called enough and not enough."""
    enough = sd < enough_mm
    return {"enough_mm": enough_mm, "decisions": int(enough.size), "enough": _spread(error[enough], enough_mm),
            "not_enough": _spread(error[~enough], enough_mm)}


def _spread(error: np.ndarray, enough_mm: float) -> dict[str, Any]:
    if not error.size:
        return {"count": 0}
    low, middle, high = np.quantile(error, [0.1, 0.5, 0.9]).tolist()
    return {"count": int(error.size), "rms_mm": float(np.sqrt((error**2).mean())), "p10_mm": low, "median_mm": middle,
            "p90_mm": high, "share_below": float((error < enough_mm).mean())}


def _reliability(sd: np.ndarray, error: np.ndarray) -> list[dict[str, Any]]:
    """All decisions in bins of equal size by stated standard deviation: stated against true rms error, mm."""
    rows = []
    for part in np.array_split(np.argsort(sd, kind="stable"), BINS):
        if len(part):
            rows.append({"count": len(part), "stated_mm": float(np.sqrt((sd[part]**2).mean())),
                         "true_rms_mm": float(np.sqrt((error[part]**2).mean()))})
    return rows
