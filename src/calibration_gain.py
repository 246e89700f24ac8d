"""What a calibrated shape does for posed hands: the predicted pose with other shapes in the hand layer, no network needed.

On the frames of `calibrate.scored`: pose each hand by the predicted rotations with the predicted, the mean, the calibrated and
the true shape, wrists aligned, against the true mesh. `recovered` is the share of the gap between predicted and true shape that
is closed. The shape enters the hand layer only; a network told the shape may gain more.
"""
from typing import Any

import numpy as np
import torch

from src.identity import Identity
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions

CHUNK = 256
NEEDED = ("pred_rotations", "pred_shape", "true_verts", "true_root", "true_shape")


def posed_gain(scored: Predictions, shapes: dict[str, dict[int, np.ndarray]], hand: HandModel, frames: int,
               ) -> dict[str, Any] | None:
    """Mean wrist-relative vertex error in mm per kind of shape, and the share of the gap recovered; None where columns lack.

    shapes: {name: {subject: (10,)}}, each for the same people · frames: at most so many, evenly spread over those people's.
    Raises InputError: predictions of another hand model, no frame of these people.
    """
    if any(column not in scored for column in NEEDED):
        return None
    scored.require_hand(hand.name, hand.sha256)
    people = np.array(sorted(set.intersection(*(set(of) for of in shapes.values()))))
    rows = np.flatnonzero(np.isin(np.asarray(scored["subject"]), people))
    whole = np.isfinite(np.asarray(scored["true_shape"])[rows]).all(1) & np.isfinite(np.asarray(scored["true_root"])[rows]).all(1)
    rows = rows[whole]
    if not len(rows):
        raise InputError(f"{scored.path}: calibrate.scored: no labelled frame of the calibrated people {people[:8].tolist()}; "
                         "name the predictions of their other recordings")
    rows = rows[np.linspace(0, len(rows) - 1, min(frames, len(rows))).round().astype(int)]
    subject = np.asarray(scored["subject"])[rows]
    used = {"predicted": np.asarray(scored["pred_shape"])[rows], "true": np.asarray(scored["true_shape"])[rows],
            **{name: np.stack([of[int(s)] for s in subject]) for name, of in shapes.items()}}
    error = {name: float(_errors_mm(scored, rows, shape, hand).mean()) for name, shape in used.items()}
    gap = error["predicted"] - error["true"]
    recovered = {name: (error["predicted"] - error[name]) / gap for name in shapes} if gap > 0 else None
    return {"frames": len(rows), "people": len(people), "mpvpe_mm": error, "recovered": recovered}


def shapes_of(identities: dict[int, Identity]) -> dict[int, np.ndarray]:
    """{subject: shape}."""
    return {subject: identity.shape for subject, identity in identities.items()}


def _errors_mm(scored: Predictions, rows: np.ndarray, shapes: np.ndarray, hand: HandModel) -> np.ndarray:
    """(n) mm: mean vertex distance of the hands so shaped from the true ones, wrists aligned."""
    found = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start:start + CHUNK]
        rotations = torch.from_numpy(np.asarray(scored["pred_rotations"][part])).to(hand.weights)
        with torch.no_grad():
            posed = hand(rotations, torch.from_numpy(shapes[start:start + CHUNK]).to(hand.weights))
        verts = (posed.verts - posed.chain[:, :1]).double().cpu().numpy()
        true = np.asarray(scored["true_verts"][part], np.float64) - np.asarray(scored["true_root"][part], np.float64)[:, None]
        found.append(1000 * np.linalg.norm(verts - true, axis=-1).mean(1))
    return np.concatenate(found)
