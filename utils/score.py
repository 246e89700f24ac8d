"""Scoring a predictions file: per-sample metrics, 95 % intervals, tables by subject and joint, curves -> scores.json.

Headline numbers are wrist-relative: both hands moved so that their wrist joint is the origin, nothing else aligned; PA numbers
after the best rotation, scale and translation (no reflection). All 21 joints count, the wrist with its zero, as in the
official programs. `seed_*` are the three numbers the original program printed (specs/idhandmesh.md 1.2), with its own joints,
regressed from the posed mesh: compare papers' tables with those.
Seed: the original averaged means of batches, so that a short last batch weighed as much as a full one; here samples count alike.
"""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from utils import metrics
from utils.bootstrap import Interval, intervals
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import T21_FROM_H21, T21_NAMES, TIPS
from utils.predictions import Predictions
from utils.protocols import dexycb_from_predictions, protocol_line

FORMAT, VERSION = "hand-scores", 1
CHUNK = 64  # samples at a time and thread: their arrays stay in the cache, and memory does not grow with n
MAX_MM = 50.0
F_MM = (5.0, 15.0)


READ = ("pred_verts", "pred_joints", "pred_root", "pred_shape", "identity",
        "true_verts", "true_joints", "true_root", "true_shape")


class Metric(NamedTuple):
    """How a metric is shown: unit, whether less is better, and what it is."""

    unit: str
    lower: bool
    title: str
    text: str


METRICS = {
    "mpjpe_mm": Metric("mm", True, "MPJPE", "mean joint error, wrists aligned"),
    "mpvpe_mm": Metric("mm", True, "MPVPE", "mean vertex error, wrists aligned"),
    "pa_mpjpe_mm": Metric("mm", True, "PA-MPJPE", "mean joint error after rotation, scale and translation"),
    "pa_mpvpe_mm": Metric("mm", True, "PA-MPVPE", "mean vertex error after rotation, scale and translation"),
    "auc_joints": Metric("", False, "AUC-J", "area under the joints' PCK curve, 0 to 50 mm, wrists aligned"),
    "auc_verts": Metric("", False, "AUC-V", "area under the vertices' PCK curve, 0 to 50 mm, wrists aligned"),
    "pa_auc_joints": Metric("", False, "PA-AUC-J", "the same, Procrustes-aligned"),
    "pa_auc_verts": Metric("", False, "PA-AUC-V", "the same, Procrustes-aligned"),
    "f5": Metric("", False, "F@5", "F-score of the vertices at 5 mm, wrists aligned"),
    "f15": Metric("", False, "F@15", "F-score of the vertices at 15 mm, wrists aligned"),
    "pa_f5": Metric("", False, "PA-F@5", "F-score at 5 mm, Procrustes-aligned"),
    "pa_f15": Metric("", False, "PA-F@15", "F-score at 15 mm, Procrustes-aligned"),
    "seed_root_relative_mpjpe_mm": Metric("mm", True, "orig. RR-MPJPE", "the original's root_relative_mpjpe: regressed joints"),
    "seed_root_relative_mpvpe_mm": Metric("mm", True, "orig. RR-MPVPE", "the original's root_relative_mpvpe: regressed wrists"),
    "seed_mpvpe_mm": Metric("mm", True, "orig. MPVPE", "the original's mpvpe: in the frame of the MANO translation"),
    "shape_error": Metric("", True, "shape", "mean absolute error of the ten shape coefficients used"),
    "rest_mesh_mm": Metric("mm", True, "rest mesh", "mean vertex error of the flat hand of the shape used, wrists aligned"),
    "root_mm": Metric("mm", True, "root", "distance of the predicted wrist to the true one in the camera"),
    "camera_mpjpe_mm": Metric("mm", True, "camera MPJPE", "mean joint error in the camera, nothing aligned"),
    "camera_mpvpe_mm": Metric("mm", True, "camera MPVPE", "mean vertex error in the camera, nothing aligned"),
}
CURVES = {"joints": "joints", "verts": "vertices", "pa_joints": "joints, aligned", "pa_verts": "vertices, aligned"}


@dataclass(frozen=True)
class Scores:
    """summary: what scores.json holds · samples: metric -> (n,) float64, NaN where a row has none · joint_errors_mm (n,21) ·
    name (n,) · subject (n,)."""

    summary: dict[str, Any]
    samples: dict[str, np.ndarray]
    joint_errors_mm: np.ndarray
    name: np.ndarray
    subject: np.ndarray


class Body:
    """What scoring needs of a hand model, in float64 and linear form."""

    def __init__(self, hand: HandModel):
        self.regressor = np.zeros((21, 778))
        self.regressor[:16] = hand.J_regressor.detach().double().cpu().numpy()
        self.regressor[np.arange(16, 21), TIPS["manopth"]] = 1.0
        self.regressor = self.regressor[list(T21_FROM_H21)]
        with torch.no_grad():
            shaped = hand.shaped(torch.cat([torch.zeros(1, 10), torch.eye(10)]).to(hand.J_regressor))
        verts, wrists = shaped.rest_verts.double().cpu().numpy(), shaped.rest_joints[:, 0].double().cpu().numpy()
        self.wrist, self.wrist_of_shape = wrists[0], wrists[1:] - wrists[0]
        relative = verts - wrists[:, None]
        self.verts_of_shape = (relative[1:] - relative[0]).reshape(10, -1)

    def rest_wrist(self, shape: np.ndarray) -> np.ndarray:
        """(n,1,3) metres: the rest wrist about the MANO translation point, J0(shape)."""
        return (self.wrist + shape @ self.wrist_of_shape)[:, None]

    def rest_difference(self, shape_difference: np.ndarray) -> np.ndarray:
        """(n,778,3) metres between two wrist-aligned rest meshes."""
        return (shape_difference @ self.verts_of_shape).reshape(len(shape_difference), -1, 3)


def score(predictions: Predictions, hand: HandModel | None, *, bootstrap: int = 2000, seed: int = 0, threads: int = 0) -> Scores:
    """All metrics of a predictions file.

    hand: the model the predictions were made with (checked); None leaves out what needs one (`seed_*`, rest mesh).
    threads: 0 = as many as torch uses. Raises InputError: no true joints or vertices, another hand model, nothing to score.
    """
    predictions.require("true_joints", "true_verts", "true_root")
    if hand is not None:
        predictions.require_hand(hand.name, hand.sha256)
    body = Body(hand) if hand is not None else None
    slices = [slice(start, min(start + CHUNK, len(predictions))) for start in range(0, len(predictions), CHUNK)]
    pieces = _in_threads(lambda rows: _score_rows(predictions, rows, body), slices, threads)
    samples = {key: np.concatenate([piece.samples[key] for piece in pieces]) for key in METRICS if key in pieces[0].samples}
    joint_errors = {key: np.concatenate([piece.joint_errors[key] for piece in pieces]) for key in pieces[0].joint_errors}
    if not np.isfinite(samples["mpjpe_mm"]).any():
        raise InputError(f"{predictions.path}: no row has true joints, so there is nothing to score")
    subject = np.asarray(predictions["subject"])
    summary = {
        "format": FORMAT, "version": VERSION, "n": len(predictions), "subjects": np.unique(subject).tolist(),
        "protocol_line": protocol_line(predictions), "meta": predictions.meta,
        "metrics": _metrics_table(samples, subject, bootstrap, seed), "bootstrap": {"draws": bootstrap, "seed": seed},
        "by_subject": _by_subject(samples, subject),
        "by_joint": {"joints": list(T21_NAMES), **{k: np.nanmean(v, 0).tolist() for k, v in joint_errors.items()}},
        "official": _official(predictions),
        "curves": {"thresholds_mm": metrics.thresholds_of(0.0, MAX_MM).tolist(), **_curves(pieces)},
    }
    return Scores(summary, samples, joint_errors["mpjpe_mm"], np.asarray(predictions["name"]), subject)


class _Piece(NamedTuple):
    samples: dict[str, np.ndarray]
    joint_errors: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]  # counts by index of the first threshold reached


def _score_rows(predictions: Predictions, rows: slice, body: Body | None) -> _Piece:
    """Metrics of a few rows; rows without labels become NaN."""
    size = rows.stop - rows.start
    data = {key: np.asarray(predictions[key][rows], dtype=np.float64) for key in READ if key in predictions}
    labelled = np.isfinite(data["true_joints"]).all((1, 2)) & np.isfinite(data["true_verts"]).all((1, 2))
    data = {key: value[labelled] for key, value in data.items()}
    samples, joint_errors, histograms = _errors(data) if labelled.any() else ({}, {}, {})
    if labelled.any():
        samples.update(_shape_errors(data, body))
    keys = _keys(predictions, body)
    return _Piece({key: _spread(samples.get(key), labelled, (size,)) for key in keys},
                  {key: _spread(joint_errors.get(key), labelled, (size, 21)) for key in ("mpjpe_mm", "pa_mpjpe_mm")},
                  {key: histograms.get(key, np.zeros(metrics.STEPS + 1, int)) for key in CURVES})


def _keys(predictions: Predictions, body: Body | None) -> list[str]:
    """Metrics this file allows."""
    shape_used = "identity" in predictions or "pred_shape" in predictions
    left_out = set()
    if "pred_root" not in predictions:
        left_out |= {"root_mm", "camera_mpjpe_mm", "camera_mpvpe_mm"}
    if body is None:
        left_out |= {key for key in METRICS if key.startswith("seed_")} | {"rest_mesh_mm"}
    if not shape_used or "true_shape" not in predictions:
        left_out |= {"shape_error", "rest_mesh_mm", "seed_mpvpe_mm"}
    return [key for key in METRICS if key not in left_out]


def _errors(data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Everything that needs no hand model, of labelled rows; millimetres."""
    thresholds = metrics.thresholds_of(0.0, MAX_MM)
    samples, joint_errors, histograms = {}, {}, {}
    root = data["true_joints"][:, :1]
    for points, kind in (("joints", "mpjpe_mm"), ("verts", "mpvpe_mm")):
        true, pred = 1e3 * (data[f"true_{points}"] - root), 1e3 * data[f"pred_{points}"]
        for prefix in ("", "pa_"):
            moved = metrics.procrustes(pred, true, reflections=False) if prefix else pred
            error = metrics.distances(moved, true)
            index = metrics.first_threshold(error, thresholds)
            samples[prefix + kind] = error.mean(1)
            samples[f"{prefix}auc_{points}"] = metrics.auc_from_index(index, metrics.STEPS)
            histograms[prefix + points] = np.bincount(index.ravel(), minlength=metrics.STEPS + 1)
            if points == "joints":
                joint_errors[prefix + kind] = error
            else:
                f = metrics.f_scores(moved, true, F_MM)[:, :, 0]
                samples[prefix + "f5"], samples[prefix + "f15"] = f.T
    if "pred_root" in data:
        move = data["pred_root"][:, None] - root
        samples["root_mm"] = 1e3 * np.linalg.norm(move[:, 0], axis=1)
        for points, kind in (("joints", "camera_mpjpe_mm"), ("verts", "camera_mpvpe_mm")):
            true = data[f"true_{points}"] - root
            samples[kind] = 1e3 * metrics.distances(data[f"pred_{points}"] + move, true).mean(1)
    return samples, joint_errors, histograms


def _shape_errors(data: dict[str, np.ndarray], body: Body | None) -> dict[str, np.ndarray]:
    """The original's three numbers and the errors of the shape used: the one the method was told, else its own."""
    samples = {}
    used, true_shape = data.get("identity", data.get("pred_shape")), data.get("true_shape")
    if used is not None and true_shape is not None:
        samples["shape_error"] = np.abs(used - true_shape).mean(1)
    if body is None:
        return samples
    pred, true = data["pred_verts"], data["true_verts"] - data["true_root"][:, None]
    pred_joints, true_joints = body.regressor @ pred, body.regressor @ true
    samples["seed_root_relative_mpjpe_mm"] = 1e3 * metrics.distances(
        pred_joints - pred_joints[:, :1], true_joints - true_joints[:, :1]).mean(1)
    samples["seed_root_relative_mpvpe_mm"] = 1e3 * metrics.distances(pred - pred_joints[:, :1], true - true_joints[:, :1]).mean(1)
    if "shape_error" in samples:
        pred, true = pred + body.rest_wrist(used), true + body.rest_wrist(true_shape)
        samples["seed_mpvpe_mm"] = 1e3 * metrics.distances(pred, true).mean(1)
        difference = body.rest_difference(used - true_shape)
        samples["rest_mesh_mm"] = 1e3 * np.linalg.norm(difference, axis=2).mean(1)
    return samples


def _spread(values: np.ndarray | None, where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.full(shape, np.nan)
    if values is not None:
        out[where] = values
    return out


def _in_threads(work: Callable[[slice], _Piece], slices: list[slice], threads: int) -> list[_Piece]:
    """`work` on every slice in order; each thread keeps torch to itself, so that threads do not multiply."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(work, slices))
        finally:
            torch.set_num_threads(before)


def _metrics_table(samples: dict[str, np.ndarray], subject: np.ndarray, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    found = intervals(np.stack(list(samples.values()), 1), subject, draws, seed)
    return {key: _as_dict(interval) | {"unit": METRICS[key].unit} for key, interval in zip(samples, found) if interval}


def _as_dict(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "ci95": list(interval.ci95), "ci95_frames": list(interval.ci95_frames), "n": interval.n}


def _by_subject(samples: dict[str, np.ndarray], subject: np.ndarray) -> dict[str, dict[str, float]]:
    table = {}
    for person in np.unique(subject).tolist():
        rows = subject == person
        table[str(person)] = {"n": int(rows.sum())} | {
            key: float(np.nanmean(value[rows])) for key, value in samples.items() if np.isfinite(value[rows]).any()}
    return table


def _official(predictions: Predictions) -> dict[str, dict[str, float]] | None:
    """DexYCB's official numbers on these frames (reflections accepted), where the frames are numbered in its order."""
    if "official_index" not in predictions:
        return None
    return {key: {"mean_mm": found.mean, "auc": found.auc} for key, found in dexycb_from_predictions(predictions).items()}


def _curves(pieces: list[_Piece]) -> dict[str, list[float]]:
    out = {}
    for key in CURVES:
        counts = np.sum([piece.histograms[key] for piece in pieces], 0)
        out[key] = (np.cumsum(counts[: metrics.STEPS]) / counts.sum()).tolist()
    return out
