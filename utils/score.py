"""Scoring a predictions file: per-sample metrics, 95 % intervals, tables by subject and joint, curves -> scores.json.

Headline numbers are wrist-relative: both hands moved so that their wrist joint is the origin, nothing else aligned; PA numbers
after the best rotation, scale and translation (no reflection). All 21 joints count, the wrist with its zero, as in the
official programs. `seed_*` are the three numbers the original program printed (specs/idhandmesh.md 1.2), with its own joints,
regressed from the posed mesh: compare papers' tables with those.
Errors in the camera are kept apart, by protocol (utils/camera_scores.py): here those of a root that the file itself holds.
Seed: the original averaged means of batches, so that a short last batch weighed as much as a full one; here samples count alike.
"""
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from utils import metrics
from utils.bootstrap import intervals
from utils.camera_scores import PREDICTED_ROOT, CameraSamples, camera_summary, flat
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import T21_NAMES
from utils.official_predictions import official_of, official_values
from utils.official_protocols import PROTOCOLS
from utils.predictions import Predictions
from utils.protocols import dexycb_from_predictions, protocol_line
from utils.score_metrics import CAMERA_METRICS, CURVES, MAX_MM, MAX_PX, METRICS, UV_CURVE
from utils.score_rows import Body, Piece, metrics_of, score_rows

FORMAT, VERSION = "hand-scores", 1
CHUNK = 64  # samples at a time and thread: their arrays stay in the cache, and memory does not grow with n


@dataclass(frozen=True)
class Scores:
    """summary: what scores.json holds · samples: metric -> (n,) float64, NaN where a row has none · joint_errors_mm (n,21), NaN
    without 3D joints · name (n,) · subject (n,) · camera: "<protocol>/<metric>" -> (n,), errors in the camera by protocol."""

    summary: dict[str, Any]
    samples: dict[str, np.ndarray]
    joint_errors_mm: np.ndarray
    name: np.ndarray
    subject: np.ndarray
    camera: dict[str, np.ndarray] = field(default_factory=dict)

    def values(self, metric: str) -> np.ndarray:
        """(n,) of a metric, or of "<protocol>/<metric>"; InputError where these scores have none."""
        found = self.samples.get(metric, self.camera.get(metric))
        if found is None:
            raise InputError(f"{metric} is not among the scores of {self.label}; there are "
                             f"{', '.join([*self.samples, *self.camera])}")
        return found

    @property
    def label(self) -> str:
        """What messages call these scores."""
        meta = self.summary.get("meta", {})
        return str(meta.get("run") or meta.get("checkpoint") or meta.get("method") or "a run")


def score(predictions: Predictions, hand: HandModel | None, *, bootstrap: int = 2000, seed: int = 0, threads: int = 0) -> Scores:
    """All metrics of a predictions file: of meshes, of joints in the picture, of what it holds.

    hand: the model the predictions were made with (checked); None leaves out what needs one (`seed_*`, rest mesh).
    threads: 0 = as many as torch uses. Raises InputError: no true joints or vertices, another hand model, nothing to score.
    """
    mesh = "pred_verts" in predictions
    predictions.require(*(("true_joints", "true_verts", "true_root") if mesh else ("true_joints_uv",)))
    if hand is not None and mesh:
        predictions.require_hand(hand.name, hand.sha256)
    body = Body(hand) if hand is not None and mesh else None
    keys = metrics_of(predictions, body)
    slices = [slice(start, min(start + CHUNK, len(predictions))) for start in range(0, len(predictions), CHUNK)]
    pieces = _in_threads(lambda rows: score_rows(predictions, rows, body, keys), slices, threads)
    samples = {key: np.concatenate([piece.samples[key] for piece in pieces]) for key in keys}
    joint_errors = {key: np.concatenate([piece.joint_errors[key] for piece in pieces]) for key in pieces[0].joint_errors}
    if not np.isfinite(samples["mpjpe_mm" if mesh else "uv_px"]).any():
        raise InputError(f"{predictions.path}: no row has true joints, so there is nothing to score")
    subject = np.asarray(predictions["subject"])
    camera = _predicted_root(predictions, samples)
    summary = {
        "format": FORMAT, "version": VERSION, "n": len(predictions), "subjects": np.unique(subject).tolist(),
        "protocol_line": protocol_line(predictions) if mesh else protocol_line(predictions, "none, pixels of the picture"),
        "meta": predictions.meta,
        "metrics": _metrics_table(samples, subject, bootstrap, seed), "bootstrap": {"draws": bootstrap, "seed": seed},
        "by_subject": _by_subject(samples, subject), "by_joint": _by_joint(joint_errors),
        "official": _official(predictions, threads), "curves": _curves(pieces),
        **(camera_summary(camera, subject, bootstrap, seed) if camera else {}),
    }
    return Scores(summary, samples, joint_errors.get("mpjpe_mm", np.full((len(subject), 21), np.nan)),
                  np.asarray(predictions["name"]), subject, flat(camera))


def _predicted_root(predictions: Predictions, samples: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Errors in the camera by the root that the file itself holds, under the name of what that was found with."""
    if "root_mm" not in samples:
        return {}
    name = str(predictions.meta.get("camera_protocol") or PREDICTED_ROOT)
    return {name: {key: samples[key] for key in CAMERA_METRICS}}


def with_camera(scores: Scores, samples: CameraSamples, summary: Mapping[str, Any]) -> Scores:
    """`scores` with errors in the camera by further protocols (what src/camera_space.py finds)."""
    both = {"camera": {**scores.summary.get("camera", {}), **summary["camera"]}}
    return replace(scores, summary={**scores.summary, **summary, **both}, camera={**scores.camera, **flat(samples)})


def _in_threads(work: Callable[[Any], Any], parts: Sequence[Any], threads: int) -> list[Any]:
    """`work` on every part in order; each thread keeps torch to itself, so that threads do not multiply."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(work, parts))
        finally:
            torch.set_num_threads(before)


def _metrics_table(samples: dict[str, np.ndarray], subject: np.ndarray, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    found = intervals(np.stack(list(samples.values()), 1), subject, draws, seed)
    return {key: interval.as_dict() | {"unit": METRICS[key].unit} for key, interval in zip(samples, found) if interval}


def _by_subject(samples: dict[str, np.ndarray], subject: np.ndarray) -> dict[str, dict[str, float]]:
    table = {}
    for person in np.unique(subject).tolist():
        rows = subject == person
        table[str(person)] = {"n": int(rows.sum())} | {
            key: float(np.nanmean(value[rows])) for key, value in samples.items() if np.isfinite(value[rows]).any()}
    return table


def _official(predictions: Predictions, threads: int) -> dict[str, Any] | None:
    """The official numbers of these frames (reflections accepted), where they are numbered in an official order.

    FreiHAND, HO3D: values by the names of scores.txt. DexYCB: mean_mm and auc of each alignment.
    """
    name = official_of(predictions)
    if name in PROTOCOLS:
        return official_values(predictions, name, lambda work, parts: _in_threads(work, parts, threads))
    if name != "dex_ycb" or "pred_joints" not in predictions:
        return None
    return {key: {"mean_mm": found.mean, "auc": found.auc} for key, found in dexycb_from_predictions(predictions).items()}


def _by_joint(errors: dict[str, np.ndarray]) -> dict[str, list]:
    """Mean error of each joint, of every metric that some row has."""
    known = {key: value for key, value in errors.items() if np.isfinite(value).any(0).all()}
    return {"joints": list(T21_NAMES), **{key: np.nanmean(value, 0).tolist() for key, value in known.items()}}


def _curves(pieces: list[Piece]) -> dict[str, list[float]]:
    """Share of points within each threshold, for what the file holds."""
    out = {f"thresholds_{unit}": metrics.thresholds_of(0.0, top).tolist() for unit, top in (("mm", MAX_MM), ("px", MAX_PX))}
    for key in (*CURVES, UV_CURVE):
        counts = np.sum([piece.histograms[key] for piece in pieces], 0)
        if counts.sum():
            out[key] = (np.cumsum(counts[: metrics.STEPS]) / counts.sum()).tolist()
    return out
