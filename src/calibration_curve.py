"""How far a calibrated shape is from the true one against the number of images n, for every method the predictions allow.

Errors: mean absolute error of the ten coefficients, the rest mesh's mean vertex error in mm with both wrists at the origin, and
the error of the hand's size (wrist to middle fingertip). `recovered` is the share of a single image's error that is gone: 1 is
the true shape, 0 no better than one image. Where the truth is unknown the curve holds the spread between draws alone. A person
with fewer than n images is counted with all there are, and the point says how many people that concerns; n beyond everybody's
images gives no point at all.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.calibrate_options import CalibrateOptions
from src.calibration_basis import hand_size_mm, mesh_gram, rest_mesh_basis, rest_mesh_mm
from src.calibration_draws import orders_of_draw
from src.calibration_estimate import Estimate, Estimator
from src.calibration_people import Person, Selection
from src.calibration_stop import mesh_sd_mm
from utils.hand import HandModel

NOTE = "weighted: softmax weights over n images; a mean keeps the regressor's pull to the mean hand."
DRAWN = ("random", "weighted", "posterior", "joint")  # these depend on the draw


@dataclass(frozen=True)
class Cell:
    """One method at one n: shapes (draws, people, 10), covariances (draws, people, 10, 10) or None, NaN where it had no
    answer."""

    method: str
    n: int
    shapes: np.ndarray
    covariances: np.ndarray | None
    effective_n: np.ndarray | None


def curve_cells(selection: Selection, options: CalibrateOptions, hand: HandModel, estimators: Mapping[str, Estimator],
                ) -> list[Cell]:
    """Every estimator at every n over the draws. Raises InputError as they do."""
    all_orders = [orders_of_draw(selection.people, options.seed + draw) for draw in range(options.draws)]
    orders = [{subject: one[subject] for subject in selection.wanted} for one in all_orders]
    largest = max(len(selection.people[subject]) for subject in selection.wanted)
    cells = []
    for method, estimator in estimators.items():
        for n in sorted({n for n in options.curve_n if n <= largest}) if method != "all" else [largest]:
            at = options.model_copy(update={"method": method, "n": n})
            used = orders if method in DRAWN else orders[:1]
            if method == "weighted":  # it takes every image it is given
                used = [{subject: order[:n] for subject, order in one.items()} for one in used]
            cells.append(_cell(method, n, [estimator(selection, one, at, hand) for one in used], selection.wanted))
    return cells


def _cell(method: str, n: int, found: Sequence[dict[int, Estimate]], wanted: Sequence[int]) -> Cell:
    def stacked(value: str, size: tuple[int, ...]) -> np.ndarray:
        none = np.full(size, np.nan)
        return np.array([[getattr(one[subject], value) if subject in one else none for subject in wanted] for one in found])

    sure = all(estimate.covariance is not None for one in found for estimate in one.values())
    counted = all(estimate.effective_n is not None for one in found for estimate in one.values())
    return Cell(method, n, stacked("shape", (10,)), stacked("covariance", (10, 10)) if sure else None,
                stacked("effective_n", ()) if counted else None)


def calibration_curve(selection: Selection, options: CalibrateOptions, hand: HandModel, cells: Sequence[Cell]) -> dict[str, Any]:
    """Content of curve.json: error and spread of each method against n.

    {"people": [...], "truth_known", "draws", "single_image": {...}, "methods": {method: [point, ...]}} with points {n, draws,
    people_with_fewer, images, shape_error, mesh_error_mm, size_error_mm, each with _interval, mesh_spread_mm, recovered
    {shape, mesh, size}, and, for methods with a covariance, mesh_sd_mm and effective_n}; intervals hold the middle 95 % of the
    draws' means over people; errors are None where a person's truth is unknown, intervals where there is one draw.
    """
    chosen = [selection.people[subject] for subject in selection.wanted]
    known = all(person.true_shape is not None for person in chosen)
    single = _single_image(chosen, hand) if known else None
    methods: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        methods.setdefault(cell.method, []).append(_point(cell, chosen, hand, single))
    return {"people": [person.subject for person in chosen], "truth_known": known,
            "images": {str(person.subject): len(person) for person in chosen}, "seed": options.seed, "draws": options.draws,
            "temperature": options.temperature, "single_image": single, "methods": methods, "note": NOTE}


def shape_errors(shapes: np.ndarray, truth: np.ndarray, hand: HandModel) -> dict[str, np.ndarray]:
    """{shape_error, mesh_error_mm, size_error_mm} of shapes (...,10) against truth that broadcasts with them, each (...)."""
    difference = shapes.astype(np.float64) - truth
    return {"shape_error": np.abs(difference).mean(-1), "mesh_error_mm": rest_mesh_mm(rest_mesh_basis(hand), difference),
            "size_error_mm": np.abs(hand_size_mm(hand, shapes) - hand_size_mm(hand, truth))}


def _single_image(chosen: Sequence[Person], hand: HandModel) -> dict[str, float] | None:
    """The error of a single image's shape: mean over a person's images, then over people."""
    if any(person.shapes is None for person in chosen):
        return None
    errors = [shape_errors(person.shapes, person.true_shape, hand) for person in chosen]
    return {key: float(np.mean([one[key].mean() for one in errors])) for key in errors[0]}


def _point(cell: Cell, chosen: Sequence[Person], hand: HandModel, single: Mapping[str, float] | None) -> dict[str, Any]:
    """One method at one n over all its draws."""
    basis, draws = rest_mesh_basis(hand), len(cell.shapes)
    answered = np.isfinite(cell.shapes).all((0, 2))
    point: dict[str, Any] = {"n": cell.n, "draws": draws, "images": int(sum(min(cell.n, len(person)) for person in chosen)),
                             "people_with_fewer": sum(len(person) < cell.n for person in chosen),
                             "people_without_answer": int((~answered).sum()), "mesh_spread_mm": None, "recovered": None}
    shapes = cell.shapes[:, answered]
    if draws > 1 and answered.any():
        point["mesh_spread_mm"] = float(rest_mesh_mm(basis, shapes - shapes.mean(0)).mean())
    known = answered.any() and all(person.true_shape is not None for person in chosen)
    truth = np.stack([p.true_shape for p, has in zip(chosen, answered) if has]) if known else None
    found = shape_errors(shapes, truth, hand) if known else dict.fromkeys(("shape_error", "mesh_error_mm", "size_error_mm"))
    for key, errors in found.items():
        point[key] = float(errors.mean()) if known else None
        point[f"{key}_interval"] = np.percentile(errors.mean(1), [2.5, 97.5]).tolist() if known and draws > 1 else None
    if known and single is not None:
        point["recovered"] = {name: 1 - point[key] / single[key] for name, key in
                              (("shape", "shape_error"), ("mesh", "mesh_error_mm"), ("size", "size_error_mm"))}
    if cell.covariances is not None and answered.any():
        point["mesh_sd_mm"] = float(mesh_sd_mm(mesh_gram(basis), cell.covariances[:, answered]).mean())
    if cell.effective_n is not None and answered.any():
        point["effective_n"] = float(cell.effective_n[:, answered].mean())
    return point
