"""The people of a predictions file: every person's predicted shapes, confidences and true shape, checked.

Which frames count is said by their folders (`sequences`), so that calibration frames can be kept apart from scored ones.
"""
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.identity import HandInfo
from utils.errors import InputError
from utils.predictions import Predictions


@dataclass(frozen=True)
class Person:
    """Predictions in dataset order: rows (m) of the file, frame names, predicted shapes (m,10) float32 (None where the method
    predicts none), their covariances (m,10,10) as the network states them, confidence (m) and true shape (10), each or None."""

    subject: int
    names: np.ndarray
    rows: np.ndarray
    shapes: np.ndarray | None = None
    covariances: np.ndarray | None = None
    confidence: np.ndarray | None = None
    true_shape: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Selection:
    """Everyone in the selected frames (the draws depend on all of them), and `wanted`, the subjects asked for."""

    people: dict[int, Person]
    wanted: list[int]
    predictions: Predictions

    @property
    def path(self) -> Path:
        """The predictions file."""
        return self.predictions.path

    @property
    def meta(self) -> dict[str, Any]:
        """What it says of itself."""
        return self.predictions.meta


def select_people(predictions: Predictions, hand: HandInfo, *, sequences: Sequence[str], subjects: Sequence[int],
                  sides: str, confidence: bool, shapes: bool = True) -> Selection:
    """The frames in `sequences` (empty = all) of these sides, by person; `subjects` (empty = all) are those asked for.

    confidence, shapes: whether these columns are needed. Raises InputError: no shape in the file, or one the method was told; no
    confidence where it is needed; another hand model; a person or a sequence that is not there; values that are not finite; a
    person with two true shapes.
    """
    path = predictions.path
    if shapes:
        predictions.require("pred_shape")
    predictions.require_hand(hand.name, hand.sha256)
    if "identity" in predictions:
        raise InputError(f"{path}: made by a method that was told the shape, so it holds nothing to calibrate from; give the "
                         "predictions of one that predicts it (baseline or confidence model)")
    if confidence and "confidence" not in predictions:
        raise InputError(f"{path}: calibrate.method top and weighted need the column confidence, which this file lacks; "
                         "predict with a confidence model, or set calibrate.method=random")
    names = np.asarray(predictions["name"])
    keep = _in_sequences(names, sequences, path)
    if sides != "both":
        keep &= np.asarray(predictions["mirrored"]) == (sides == "left")
        if not keep.any():
            raise InputError(f"{path}: calibrate.sides={sides}: no frame of a {sides} hand among the chosen ones; set it to both")
    subject = np.asarray(predictions["subject"])
    people = {int(s): _person(predictions, int(s), np.flatnonzero(keep & (subject == s))) for s in np.unique(subject[keep])}
    wanted = sorted(set(subjects)) or sorted(people)
    if missing := [s for s in wanted if s not in people]:
        raise InputError(f"{path}: calibrate.subjects: no frame of {missing} among the chosen ones; "
                         f"there are {sorted(people)}")
    return Selection(people, wanted, predictions)


def _in_sequences(names: np.ndarray, sequences: list[str], path: Path) -> np.ndarray:
    """(n) bool: frames whose folder is, or lies in, one of the named ones; every pattern must find some."""
    if not sequences:
        return np.ones(len(names), dtype=bool)
    folders, row = np.unique([name.rpartition("/")[0] for name in names.tolist()], return_inverse=True)
    keep = np.zeros(len(folders), dtype=bool)
    for pattern in sequences:
        forms = (pattern, f"{pattern}/*", f"*/{pattern}", f"*/{pattern}/*")
        found = np.array([any(fnmatch.fnmatchcase(folder, form) for form in forms) for folder in folders.tolist()])
        if not found.any():
            raise InputError(f"{path}: calibrate.sequences: no frame in {pattern!r}; folders are like {folders[0]!r}")
        keep |= found
    return keep[row]


def _person(predictions: Predictions, subject: int, rows: np.ndarray) -> Person:
    """One person's rows, checked to be finite."""
    columns: dict[str, np.ndarray] = {}
    names = np.asarray(predictions["name"])[rows]
    for key in ("pred_shape", "pred_shape_cov", "confidence"):
        if key in predictions:
            columns[key] = np.asarray(predictions[key][rows])
            bad = ~np.isfinite(columns[key].reshape(len(rows), -1)).all(1)
            if bad.any():
                raise InputError(f"{predictions.path}: {key} of {names[bad][0]} is not finite ({bad.sum()} such rows of subject "
                                 f"{subject}); predict again with a sound checkpoint")
    covariances = columns.get("pred_shape_cov")
    if covariances is not None:
        covariances = covariances.astype(np.float64)
        if (bad := np.linalg.eigvalsh(covariances)[:, 0] <= 0).any():
            raise InputError(f"{predictions.path}: pred_shape_cov of {names[bad][0]} is no covariance ({bad.sum()} such rows of "
                             f"subject {subject}); predict again with a sound checkpoint")
    return Person(subject, names, rows, columns.get("pred_shape"), covariances, columns.get("confidence"),
                  _true_shape(predictions, subject, rows))


def _true_shape(predictions: Predictions, subject: int, rows: np.ndarray) -> np.ndarray | None:
    """A person's true shape, or None where no row has it. Rows that disagree would make every error meaningless."""
    if "true_shape" not in predictions:
        return None
    labels = np.asarray(predictions["true_shape"][rows], dtype=np.float64)
    labels = labels[np.isfinite(labels).all(1)]
    if not len(labels):
        return None
    if (apart := np.ptp(labels, axis=0).max()) > 1e-4:
        raise InputError(f"{predictions.path}: true_shape of subject {subject} differs between frames by {apart:.3g}; where left "
                         "and right hands are labelled apart, choose calibrate.sides=right or left; else `subject` is wrong")
    return labels[0]
