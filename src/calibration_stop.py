"""The stop rule: are these images enough, and if not, would more help?

The rest mesh is linear in the ten coefficients, so their covariance gives that of every vertex. A vertex's standard deviation is
the root of the trace of its 3x3 covariance (wrists aligned), the mesh's the rms over its 778 vertices, both in mm. "Enough" is a
mesh below the option `calibrate.enough_mm`. More images of the same kind shrink the images' share of the covariance, but not what
the network gets wrong about a person in every image: that share is a floor that no number of images goes under.
"""
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from src.calibration_estimate import Estimate

MOST = 1e6  # times as many images: beyond that, more images are no remedy
# What gives size, and the word by which an estimate's cue says that it has it already.
_REMEDIES = {"ruler": "a ruler with more lengths (calibrate.measured)", "cameras": "a second calibrated view",
             "depth": "depth pictures"}


def vertex_sd_mm(basis: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(778) mm: standard deviation of every vertex of the rest mesh, wrists aligned, from the shape's covariance (10,10).

    basis (10,778,3) metres: src/calibration_basis.py: rest_mesh_basis.
    """
    return 1000 * np.sqrt(np.maximum(np.einsum("svc,st,tvc->v", basis, covariance, basis, optimize=True), 0))


def mesh_sd_mm(gram: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Standard deviation of the mesh in mm, (...), from covariances (...,10,10): rms over the vertices."""
    return np.sqrt(np.maximum(np.einsum("st,...st->...", gram, covariance), 0))


def _remedy(cue: str) -> str:
    """What the estimate does not stand on yet; more lengths of a ruler always help."""
    others = [text for word, text in _REMEDIES.items() if word == "ruler" or word not in cue]
    return f"use {', '.join(others[:-1])} or {others[-1]}" if len(others) > 1 else f"use {others[0]}"


def decide(estimate: Estimate, gram: np.ndarray, enough_mm: float) -> dict[str, Any] | None:
    """Enough or not, and how many further images it would take; None for an estimator without a covariance.

    Returns {enough, enough_mm, mesh_sd_mm, floor_mm, further_images, text}; floor_mm and further_images are None where the
    estimator cannot say them, further_images too where no number of images will do.
    """
    if estimate.covariance is None:
        return None
    now = float(mesh_sd_mm(gram, estimate.covariance))
    at = estimate.covariance_at
    floor = None if at is None else float(mesh_sd_mm(gram, at(math.inf)))
    said: dict[str, Any] = {"enough": now < enough_mm, "enough_mm": enough_mm, "mesh_sd_mm": now, "floor_mm": floor,
                            "further_images": None}
    if said["enough"]:
        text = f"enough: the mesh is known to {now:.2f} mm"
    elif at is None:
        text = f"not enough: the mesh is known to {now:.2f} mm only; {_remedy(estimate.cue)}"
    else:
        factor = _factor(lambda f: float(mesh_sd_mm(gram, at(f))), enough_mm)
        if factor is None:
            text = (f"not enough: the mesh is known to {now:.2f} mm only, and no number of images will do: the floor is "
                    f"{floor:.2f} mm; {_remedy(estimate.cue)}")
        else:
            said["further_images"] = max(1, math.ceil(estimate.n * (factor - 1)))
            text = (f"not enough: the mesh is known to {now:.2f} mm only; about {said['further_images']} further images like "
                    f"these would bring it under {enough_mm:g} mm")
    return {**said, "text": text}


def _factor(sd_mm_at: Callable[[float], float], enough_mm: float) -> float | None:
    """Times as many images for a standard deviation under `enough_mm`, by bisection; None where MOST would not do."""
    if sd_mm_at(MOST) >= enough_mm:
        return None
    low, high = 0.0, math.log(MOST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sd_mm_at(math.exp(middle)) < enough_mm else (middle, high)
    return math.exp(high)
