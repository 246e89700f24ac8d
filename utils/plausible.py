"""Typical mistakes in files of predicted hands, told apart from poor predictions: unit, root, axes, side.

Each rule takes one mistake as a hypothesis, undoes it, and speaks up only where the undone file explains the truth far better
than the file as it is *and* the mistake's own sign is clear in most samples. A network that is merely bad (noise, the mean
pose, one answer for all, all zeros) is not improved by undoing anything, so it passes. Axes and side relative to the hand are
judged only where the truth has the bones of hands. Metres inside; points (n,k,3) are joints or vertices of n samples.
"""
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from utils import metrics

ROWS = 2000  # at most so many samples, evenly spread, are looked at
MOST = 0.9  # share of the samples that must show a sign
AXES = {"opencv": "OpenCV's (x right, y down, z forward)", "opengl": "OpenGL's (x right, y up, z backwards)"}
UNITS = {"m": {1000.0: "millimetres", 100.0: "centimetres", 0.01: "metres divided by 100",
               0.001: "metres divided by 1000 once too often"},
         "mm": {0.001: "metres", 0.1: "centimetres", 1000.0: "millimetres multiplied by 1000 once too often"}}
FULL = {"m": "metres", "mm": "millimetres"}
HUGE = 8.0  # times the true hands' size: no hand of a network that answers in the unit asked for


class Case(NamedTuple):
    """A file's points and the truth's, metres; what is asked for: frame (opencv, opengl), unit of the file, joint order."""

    pred: Float[np.ndarray, "n k 3"]
    true: Float[np.ndarray, "n k 3"]
    frame: str
    unit: str
    order: str


class Fault(NamedTuple):
    """found: what is wrong, its likely cause and the remedy, in words · undone: the points without the mistake."""

    found: str
    undone: Float[np.ndarray, "n k 3"]


def rows_of(count: int, most: int = ROWS) -> np.ndarray:
    """At most `most` row numbers, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def error(pred: np.ndarray, true: np.ndarray) -> float:
    """Median over samples of the mean distance, the unit of the points."""
    return float(np.median(metrics.distances(pred, true).mean(1)))


def centred(points: np.ndarray) -> np.ndarray:
    """Points about their own middle, which no order of joints changes."""
    return points - points.mean(1, keepdims=True)


def size(points: np.ndarray) -> float:
    """Median over samples of the distance of points to their middle."""
    return float(np.median(np.linalg.norm(centred(points), axis=2).mean(1)))


def improved(before: np.ndarray, after: np.ndarray, true: np.ndarray) -> float:
    """Share of the samples whose mean distance falls."""
    return float(np.mean(metrics.distances(after, true).mean(1) < metrics.distances(before, true).mean(1)))


def hand_like(t21: Float[np.ndarray, "n 21 3"]) -> bool:
    """Whether joints in the order T21 have the bones of hands: neighbours along a finger are near (a random cloud: 1.4 sizes)."""
    ends = np.array([j for j in range(21) if j % 4 != 1 and j])
    bones = np.linalg.norm(t21[:, ends] - t21[:, ends - 1], axis=2)
    return bool(np.median(bones.mean(1)) < 0.8 * size(t21))


def unit(case: Case) -> Fault | None:
    """Coordinates in another unit: of the wrong size by a power of ten, and right once divided."""
    if size(case.true) < 1e-3:  # labels of nothing
        return None
    scale = size(case.pred) / size(case.true)
    names = UNITS[case.unit]
    factor = min(names, key=lambda f: abs(np.log(max(scale, 1e-12) / f)))
    if not factor / 1.5 < scale < factor * 1.5:
        return _huge(case, scale) if scale > HUGE else None
    undone = case.pred / factor
    before, after = error(case.pred, case.true), error(undone, case.true)
    shape_before, shape_after = (error(centred(p), centred(case.true)) for p in (case.pred, undone))
    sane = after < 0.5 * np.median(np.linalg.norm(case.true.mean(1), axis=1)) or shape_after < 0.9 * size(case.true)
    if not sane or not (after < 0.2 * before or shape_after < 0.35 * shape_before):
        return _huge(case, scale) if scale > HUGE else None
    how = f"divide them by {factor:g}" if factor > 1 else f"multiply them by {1 / factor:g}"
    large = f"{scale:.0f} times too large" if factor > 1 else f"{1 / scale:.0f} times too small"
    return Fault(f"hands about {large} (coordinates in {names[factor]}?): {how}", undone)


def _huge(case: Case, scale: float) -> Fault:
    """Far too large by no power of ten that is a unit: normalised by the hand's scale, pixels, or nothing of hands."""
    return Fault(f"hands about {scale:.0f} times too large (divided by a scale, such as FreiHAND's evaluation_scale.json, or "
                 f"pixels?): write {FULL[case.unit]} in the camera", case.pred / scale)


def root_at_origin(case: Case) -> Bool[np.ndarray, "n"] | None:
    """(n) which samples have their root at the origin, where nearly all have; None where the file is absolute, or all zero.

    The root is any one joint, or the middle of all. Too: a file whose hands are right about their wrist, yet at the camera.
    """
    places = np.concatenate([case.pred, case.pred.mean(1, keepdims=True)], 1)
    at = np.linalg.norm(places, axis=2) < 1e-4
    best = int(at.mean(0).argmax())
    away = np.linalg.norm(case.true.mean(1), axis=1)
    if size(case.pred) > 0.2 * size(case.true) and np.median(away) > 0.15 and at[:, best].mean() > MOST:
        return at[:, best]
    near = np.linalg.norm(case.pred.mean(1), axis=1) < np.minimum(0.5 * away, 0.15)
    return near if shape_right(case) and near.mean() > MOST and np.median(away) > 0.3 else None


def shape_right(case: Case) -> bool:
    """Whether the points are right about their middle to half a hand's size: more than noise or a collapsed hand can be."""
    return error(centred(case.pred), centred(case.true)) < 0.5 * size(case.true)


def wrist_relative(case: Case) -> Fault | None:
    """Root-relative coordinates where absolute ones are asked."""
    where = root_at_origin(case)
    if where is None:
        return None
    share = f"in {where.mean():.0%} of the samples"
    return Fault(f"wrist-relative coordinates, or relative to another root: the hand lies at the camera's centre {share} (root "
                 "subtracted, never added back?): add the root's position in the camera to every point", placed(case))


def placed(case: Case) -> np.ndarray:
    """The prediction moved, each sample by itself, to the truth's middle."""
    return centred(case.pred) + case.true.mean(1, keepdims=True)


def axes(case: Case) -> Fault | None:
    """Hands behind the camera, and right once signs are changed: OpenGL's axes for OpenCV's, or the other way round."""
    front = 1.0 if case.frame == "opencv" else -1.0
    if np.mean(front * case.pred[..., 2].mean(1) < 0) < MOST or np.mean(front * case.true[..., 2].mean(1) > 0) < MOST:
        return None
    signs = min(((x, y, -1.0) for x in (1.0, -1.0) for y in (-1.0, 1.0)), key=lambda s: error(case.pred * s, case.true))
    if error(case.pred * signs, case.true) > 0.5 * error(case.pred, case.true):
        return None
    other = AXES["opengl" if case.frame == "opencv" else "opencv"]
    cause = f"the axes are {other}?" if signs == (1.0, -1.0, -1.0) else "signs of the axes?"
    return Fault(f"hands behind the camera ({cause}): multiply all points by {_shown(signs)}", case.pred * signs)


def turned(case: Case) -> Fault | None:
    """Hands turned half round about an axis: signs of two coordinates, of all points or only about the root."""
    before = error(centred(case.pred), centred(case.true))
    signs = min(((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0)),
                key=lambda s: error(centred(case.pred) * s, centred(case.true)))
    if error(centred(case.pred) * signs, centred(case.true)) > 0.5 * before:
        return None
    if improved(centred(case.pred), centred(case.pred) * signs, centred(case.true)) < MOST:
        return None
    undone, about = _signed(case, signs)
    return Fault(f"hands turned half round (axes of another convention{about}?): multiply the points{about} by "
                 f"{_shown(signs)}", undone)


def mirrored(case: Case) -> Fault | None:
    """Mirror images of the hands: the alignment that may reflect fits nearly all samples far better than a rotation."""
    errors = [metrics.distances(metrics.procrustes(case.pred, case.true, reflections=either), case.true).mean(1)
              for either in (True, False)]
    if np.median(errors[0] / np.maximum(errors[1], 1e-12)) > 0.6 or np.mean(errors[0] < 0.85 * errors[1]) < MOST:
        return None
    signs = min(((-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0)),
                key=lambda s: error(centred(case.pred) * s, centred(case.true)))
    undone, about = _signed(case, signs)
    cause = "left hands, or pictures mirrored on the way in and never back" if signs[0] < 0 else "the sign of one axis"
    return Fault(f"mirror images of the true hands ({cause}?): multiply the points{about} by {_shown(signs)}", undone)


def _signed(case: Case, signs: tuple[float, float, float]) -> tuple[np.ndarray, str]:
    """The points with signs changed: about the camera, or about their first point where that is better."""
    root = case.pred[:, :1]
    whole, relative = case.pred * signs, (case.pred - root) * signs + root
    if error(whole, case.true) <= error(relative, case.true):
        return whole, ""
    return relative, " relative to the wrist"


def _shown(signs: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{s:.0f}" for s in signs) + ")"
