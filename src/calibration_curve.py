"""How far a calibrated shape is from the true one against the number of images n, for every method the predictions allow.

Errors: mean absolute error of the ten coefficients, and the rest mesh's mean vertex error in mm with both wrists at the
origin. Where the truth is unknown the curve holds the spread between draws alone. A person with fewer than n images is counted
with all there are, and the point says how many people that concerns; n beyond everybody's images gives no point at all.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from src.calibration_draws import chosen_rows, mean_shape, orders_of_draw
from src.calibration_people import Person
from utils.hand import HandModel


def rest_mesh_basis(hand: HandModel) -> np.ndarray:
    """(10, 778, 3) metres: change of the wrist-relative rest mesh per unit of each coefficient (the mesh is affine in them)."""
    directions = hand.arrays.shapedirs.transpose(2, 0, 1)
    return directions - np.einsum("v,svc->sc", hand.arrays.J_regressor[0], directions)[:, None]


def rest_mesh_mm(basis: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Mean vertex distance in mm, (...), of two wrist-relative rest meshes whose shapes differ by `difference` (..., 10)."""
    return 1000 * np.linalg.norm(np.einsum("...s,svc->...vc", difference.astype(np.float64), basis), axis=-1).mean(-1)


def rest_mesh_spread_mm(basis: np.ndarray, shapes: np.ndarray, weight: np.ndarray) -> float:
    """Distance in mm of single images' rest meshes from their mean: root mean square over images (weighted) and vertices."""
    centred = shapes.astype(np.float64) - weight @ shapes.astype(np.float64)
    covariance = (weight[:, None] * centred).T @ centred
    return float(1000 * np.sqrt(np.einsum("ij,ivc,jvc->", covariance, basis, basis) / basis.shape[1]))


def calibration_curve(people: dict[int, Person], wanted: Sequence[int], hand: HandModel, *, counts: Sequence[int], seed: int,
                      draws: int, temperature: float) -> dict[str, Any]:
    """Error and spread of each method against n.

    people: everyone in the file (the draws depend on it); wanted: the subjects the curve is about. Returns
    {"people": [...], "truth_known": bool, "draws": ..., "methods": {method: [point, ...]}} with points
    {n, draws, people_with_fewer, images, shape_error, shape_error_interval, mesh_error_mm, mesh_error_mm_interval,
    mesh_spread_mm}; the intervals hold the middle 95 % of the draws' means over people; errors are None where a person's
    truth is unknown, intervals where there is one draw.
    """
    basis = rest_mesh_basis(hand)
    orders = [orders_of_draw(people, seed + draw) for draw in range(draws)]
    chosen = [people[subject] for subject in wanted]
    largest = max(map(len, chosen))
    counts = sorted({n for n in counts if n <= largest})
    confident = all(person.confidence is not None for person in chosen)
    methods: dict[str, list[dict[str, Any]]] = {}
    for method in ("random", *(("top", "weighted") if confident else ()), "all"):
        used = orders if method in ("random", "weighted") else orders[:1]
        at = counts if method != "all" else [largest]
        methods[method] = [_point(chosen, used, method, n, temperature, basis) for n in at]
    return {"people": [person.subject for person in chosen], "truth_known": all(p.true_shape is not None for p in chosen),
            "images": {str(person.subject): len(person) for person in chosen}, "seed": seed, "draws": draws,
            "temperature": temperature, "methods": methods,
            "note": "weighted: softmax weights over n images; a mean keeps the regressor's pull to the mean hand"}


def _point(chosen: Sequence[Person], orders: Sequence[dict[int, np.ndarray]], method: str, n: int, temperature: float,
           basis: np.ndarray) -> dict[str, Any]:
    """One method at one n over all its draws."""
    several = len(orders) > 1
    shapes = np.stack([[_shape(person, order[person.subject], method, n, temperature) for person in chosen] for order in orders])
    point: dict[str, Any] = {"n": n, "draws": len(orders), "images": int(sum(min(n, len(person)) for person in chosen)),
                             "people_with_fewer": sum(len(person) < n for person in chosen),
                             "mesh_spread_mm": float(rest_mesh_mm(basis, shapes - shapes.mean(0)).mean()) if several else None}
    errors: dict[str, np.ndarray | None] = {"shape_error": None, "mesh_error_mm": None}
    if all(person.true_shape is not None for person in chosen):
        difference = shapes - np.stack([person.true_shape for person in chosen])
        errors = {"shape_error": np.abs(difference).mean((1, 2)), "mesh_error_mm": rest_mesh_mm(basis, difference).mean(1)}
    for key, per_draw in errors.items():
        known = per_draw is not None
        point[key] = float(per_draw.mean()) if known else None
        point[f"{key}_interval"] = np.percentile(per_draw, [2.5, 97.5]).tolist() if known and several else None
    return point


def _shape(person: Person, order: np.ndarray, method: str, n: int, temperature: float) -> np.ndarray:
    rows = order[:n] if method == "weighted" else chosen_rows(person, order, method, n)
    return mean_shape(person, rows, method, temperature)[0]
