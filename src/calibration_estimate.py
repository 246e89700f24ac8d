"""What an estimator of a person's shape returns, and where the estimators live.

An estimator is a function `estimates(selection, orders, options, hand) -> {subject: Estimate}`. `orders` holds, for every wanted
subject, all row numbers of that person in the order of the draw (src/calibration_draws.py); an estimator of n images takes the
first `options.n`, one of views or depth the first `options.n` moments it can use. It leaves out, with a warning, a person it can
say nothing about. Rows of the predictions file: `selection.predictions[column][person.rows[order]]`.
"""
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.calibrate_options import CalibrateOptions
from src.calibration_people import Selection
from utils.hand import HandModel

CAMERA_CUE = "camera cue of the trained network"  # how far a crop was zoomed, which is all a single image knows of size
MEANS = ("random", "top", "weighted", "all")
FITS = {"joint": "src.joint_fit", "views": "src.joint_fit", "depth": "src.joint_fit"}  # each has `estimates`


@dataclass(frozen=True)
class Estimate:
    """One person's shape as an estimator has it.

    shape (10) · covariance (10,10) of its error, or None · n images used · cue: what its absolute size stands on · frames: names
    of the images used, None where they have none · effective_n: as many independent images would say as much · covariance_at: the
    covariance that `factor` times as many images of the same kind would leave (inf allowed), None where that is not known ·
    spread, standard_error, settings: as in src/identity.py · warnings: lines about this person.
    """

    shape: np.ndarray
    n: int
    cue: str
    covariance: np.ndarray | None = None
    frames: tuple[str, ...] | None = None
    effective_n: float | None = None
    covariance_at: Callable[[float], np.ndarray] | None = None
    spread: dict[str, Any] | None = None
    standard_error: np.ndarray | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Orders = Mapping[int, np.ndarray]
Estimator = Callable[[Selection, Orders, CalibrateOptions, HandModel], dict[int, Estimate]]


def fit_estimator(method: str) -> Estimator:
    """The estimator of a method that fits the images (joint, views, depth)."""
    return importlib.import_module(FITS[method]).estimates
