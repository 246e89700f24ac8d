"""Which images of a person calibrate, with which weights, and the mean they give (specs/idhandmesh.md section 5).

A draw shuffles every person's images, one person after the other, with one legacy generator, exactly as the original did with
numpy's global one: draw 0 of seed 0 gives the published pipeline's shapes bit for bit.
"""
from collections.abc import Mapping

import numpy as np

from src.calibrate_options import CalibrateOptions, MethodName
from src.calibration_basis import rest_mesh_basis, rest_mesh_spread_mm
from src.calibration_estimate import CAMERA_CUE, Estimate
from src.calibration_people import Person, Selection
from utils.hand import HandModel


def orders_of_draw(people: dict[int, Person], seed: int) -> dict[int, np.ndarray]:
    """Order of each person's images in one draw: {subject: (m,) row numbers}. `people` must hold *all* people of the file.

    Seed: `np.random.seed(0)` once, then `np.random.shuffle` of each person's rows, people in rising order. A person's draw
    depends on the numbers of images of those before, therefore people who are not asked for are shuffled too.
    """
    generator = np.random.RandomState(seed)
    orders = {}
    for subject in sorted(people):
        orders[subject] = np.arange(len(people[subject]))
        generator.shuffle(orders[subject])
    return orders


def chosen_rows(person: Person, order: np.ndarray, method: MethodName, n: int) -> np.ndarray:
    """Rows of a person's images that a method averages over, fewer than n where there are fewer; `weighted` and `all` take all
    that are in `order`."""
    if method == "random":
        return order[:n]
    if method == "top":
        return np.argsort(-person.confidence, kind="stable")[:n]
    return np.sort(order)


def weights(confidence: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(confidence / temperature): (m) float64 that sum to 1."""
    scaled = confidence.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max())
    return scaled / scaled.sum()


def mean_shape(person: Person, rows: np.ndarray, method: MethodName, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Shape (10) and the weights (len(rows)) it was averaged with. Plain means stay in float32, as the original's."""
    if method == "weighted":
        weight = weights(person.confidence[rows], temperature)
        return weight @ person.shapes[rows].astype(np.float64), weight
    return person.shapes[rows].mean(axis=0), np.full(len(rows), 1 / len(rows))


def mean_estimates(selection: Selection, orders: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
                   ) -> dict[int, Estimate]:
    """The estimator of the four means: no covariance, only the images' spread and its standard error."""
    basis, found = rest_mesh_basis(hand), {}
    for subject, order in orders.items():
        person = selection.people[subject]
        rows = chosen_rows(person, order, options.method, options.n)
        shape, weight = mean_shape(person, rows, options.method, options.temperature)
        std = error = None
        if len(rows) > 1:
            effective = 1 / (weight**2).sum()  # = n for a plain mean
            variance = weight @ (person.shapes[rows] - shape.astype(np.float64)) ** 2 * effective / (effective - 1)
            std, error = np.sqrt(variance), np.sqrt(variance / effective)
        spread = {"shape_std": None if std is None else std.tolist(),
                  "rest_mesh_mm": None if std is None else rest_mesh_spread_mm(basis, person.shapes[rows], weight)}
        found[subject] = Estimate(shape, len(rows), CAMERA_CUE, frames=tuple(person.names[rows].tolist()), spread=spread,
                                  standard_error=error, settings={"temperature": options.temperature})
    return found
