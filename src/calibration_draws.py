"""Which images of a person calibrate, with which weights, and the mean they give (specs/idhandmesh.md section 5).

A draw shuffles every person's images, one person after the other, with one legacy generator, exactly as the original did with
numpy's global one: draw 0 of seed 0 gives the published pipeline's shapes bit for bit.
"""
from typing import Literal

import numpy as np

from src.calibration_people import Person

MethodName = Literal["random", "top", "weighted", "all"]


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
    """Rows of a person's images that a method averages over, fewer than n where there are fewer."""
    if method == "random":
        return order[:n]
    if method == "top":
        return np.argsort(-person.confidence, kind="stable")[:n]
    return np.arange(len(person))


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
