"""How much a track trembles, and how much its hand's size does.

Jitter is the mean size of the second difference of the camera-space joints, x(t+1) - 2 x(t) + x(t-1), in mm/frame^2, and as an
acceleration in m/s^2. It contains the hand's true motion; where the true joints are known, the acceleration *error* (mean size of
the difference of the two accelerations, Kanazawa et al., CVPR 2019) does not. Frames that are not neighbours are not compared.
"""
from typing import Any

import numpy as np
import torch

from utils.hand import HandModel

LENGTH_BONES = ((0, 9), (9, 10), (10, 11), (11, 12))  # T21: wrist to the middle fingertip


def accelerations(joints: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(m,k,3) second differences of joints (n,k,3) at the m places where three frames in a row are there; frames (n) rising."""
    middle = np.flatnonzero((np.diff(frames)[1:] == 1) & (np.diff(frames)[:-1] == 1)) + 1
    return joints[middle + 1] - 2 * joints[middle] + joints[middle - 1]


def jitter(joints: np.ndarray, frames: np.ndarray, fps: float, true: np.ndarray | None = None) -> dict[str, Any]:
    """Mean acceleration of a track's joints (n,21,3), camera space, metres; None where no three frames follow each other.

    {mm_per_frame2, m_per_s2, triples}, and with the true joints (n,21,3) error_mm_per_frame2, error_m_per_s2.
    """
    found = accelerations(np.asarray(joints, dtype=np.float64), np.asarray(frames))
    result = {"triples": len(found), **_figures("", found, fps)}
    if true is not None:
        result |= _figures("error_", found - accelerations(np.asarray(true, dtype=np.float64), np.asarray(frames)), fps)
    return result


def _figures(prefix: str, accelerations_m: np.ndarray, fps: float) -> dict[str, float | None]:
    size = float(np.linalg.norm(accelerations_m, axis=-1).mean()) if len(accelerations_m) else None
    return {f"{prefix}mm_per_frame2": None if size is None else size * 1000,
            f"{prefix}m_per_s2": None if size is None else size * fps**2}


def hand_lengths_mm(hand: HandModel, shapes: np.ndarray) -> np.ndarray:
    """(n) wrist to middle fingertip along the bones at rest, mm, of shapes (n,10): the size of a hand whatever its pose."""
    shaped = torch.as_tensor(np.asarray(shapes), dtype=hand.weights.dtype, device=hand.weights.device)
    flat = torch.eye(3, dtype=shaped.dtype, device=shaped.device).expand(len(shaped), 16, 3, 3)
    return bone_lengths_mm(hand.joints(hand(flat, shaped)).cpu().numpy())


def bone_lengths_mm(joints: np.ndarray) -> np.ndarray:
    """(n) wrist to middle fingertip along the bones of joints (n,21,3), mm."""
    return 1000 * sum(np.linalg.norm(joints[:, b] - joints[:, a], axis=-1) for a, b in LENGTH_BONES)


def spread_mm(lengths: np.ndarray) -> dict[str, float]:
    """{mean_mm, sd_mm, range_mm} of the hand's length over a track."""
    lengths = np.asarray(lengths, dtype=np.float64)
    return {"mean_mm": float(lengths.mean()), "sd_mm": float(lengths.std()), "range_mm": float(np.ptp(lengths))}
