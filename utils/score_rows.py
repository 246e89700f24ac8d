"""Per-sample errors of a few rows of a predictions file: what utils/score.py does to many, in threads.

Rows without labels become NaN. A file may hold a mesh with its joints, joints in the picture, or both; each has its own labels.
"""
from typing import NamedTuple

import numpy as np
import torch

from utils import metrics
from utils.hand import HandModel
from utils.joints import T21_FROM_H21, TIPS
from utils.predictions import Predictions
from utils.score_metrics import CAMERA_METRICS, CURVES, MAX_MM, MAX_PX, METRICS, UV_CURVE

F_MM = (5.0, 15.0)
READ = ("pred_verts", "pred_joints", "pred_root", "pred_shape", "identity",
        "true_verts", "true_joints", "true_root", "true_shape")
BY_JOINT = ("mpjpe_mm", "pa_mpjpe_mm", "uv_px")


class Piece(NamedTuple):
    """samples: metric -> (rows,) · joint_errors: metric of BY_JOINT -> (rows,21) · histograms: curve -> counts by index of the
    first threshold reached."""

    samples: dict[str, np.ndarray]
    joint_errors: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]


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


def score_rows(predictions: Predictions, rows: slice, body: Body | None, keys: list[str]) -> Piece:
    """The metrics `keys` (see `metrics_of`) of the rows."""
    size = rows.stop - rows.start
    samples, joint_errors, histograms = {}, {}, {}
    if "pred_verts" in predictions:
        data = {key: np.asarray(predictions[key][rows], dtype=np.float64) for key in READ if key in predictions}
        labelled = np.isfinite(data["true_joints"]).all((1, 2)) & np.isfinite(data["true_verts"]).all((1, 2))
        if labelled.any():
            data = {key: value[labelled] for key, value in data.items()}
            found = _errors(data)
            found.samples.update(_shape_errors(data, body))
            samples = {key: _spread(value, labelled) for key, value in found.samples.items()}
            joint_errors = {key: _spread(value, labelled) for key, value in found.joint_errors.items()}
            histograms = found.histograms
    if "uv_px" in keys:
        found = _uv_errors(predictions, rows)
        samples, joint_errors, histograms = (one | other for one, other in zip((samples, joint_errors, histograms), found))
    unknown = np.full(size, np.nan)
    return Piece({key: samples.get(key, unknown) for key in keys},
                 {key: joint_errors.get(key, np.full((size, 21), np.nan)) for key in BY_JOINT if key in keys},
                 {key: histograms.get(key, np.zeros(metrics.STEPS + 1, int)) for key in (*CURVES, UV_CURVE)})


def metrics_of(predictions: Predictions, body: Body | None) -> list[str]:
    """Metrics this file allows."""
    left_out = set()
    if "pred_verts" not in predictions:
        left_out |= set(METRICS) - {"uv_px", "uv_crop_px"}
    if "pred_joints_uv" not in predictions or "true_joints_uv" not in predictions:
        left_out |= {"uv_px", "uv_crop_px"}
    if "crop_from_image" not in predictions:
        left_out |= {"uv_crop_px"}
    if "pred_root" not in predictions:
        left_out |= set(CAMERA_METRICS)
    if body is None:
        left_out |= {key for key in METRICS if key.startswith("seed_")} | {"rest_mesh_mm"}
    if not ("identity" in predictions or "pred_shape" in predictions) or "true_shape" not in predictions:
        left_out |= {"shape_error", "rest_mesh_mm", "seed_mpvpe_mm"}
    return [key for key in METRICS if key not in left_out]


def camera_errors(pred_joints: np.ndarray, pred_verts: np.ndarray, root: np.ndarray, true_joints: np.ndarray,
                  true_verts: np.ndarray) -> dict[str, np.ndarray]:
    """CAMERA_METRICS (n,) in mm of wrist-relative joints and vertices whose wrist is at `root` (n,3); truth in the camera."""
    true_root = true_joints[:, :1]
    move = root[:, None] - true_root
    out = {"root_mm": 1e3 * np.linalg.norm(move[:, 0], axis=1), "depth_mm": 1e3 * np.abs(move[:, 0, 2])}
    for pred, true, key in ((pred_joints, true_joints, "camera_mpjpe_mm"), (pred_verts, true_verts, "camera_mpvpe_mm")):
        out[key] = 1e3 * metrics.distances(pred + move, true - true_root).mean(1)
    return {key: out[key] for key in CAMERA_METRICS}


def _uv_errors(predictions: Predictions, rows: slice) -> Piece:
    """Pixel errors of the rows, NaN where a row has no label or no answer."""
    pred, true = (np.asarray(predictions[key][rows], np.float64) for key in ("pred_joints_uv", "true_joints_uv"))
    off = pred - true
    error = np.linalg.norm(off, axis=2)
    samples = {"uv_px": error.mean(1)}
    if "crop_from_image" in predictions:
        turn = np.asarray(predictions["crop_from_image"][rows], np.float64)[:, :2, :2]
        samples["uv_crop_px"] = np.linalg.norm(off @ turn.transpose(0, 2, 1), axis=2).mean(1)
    index = metrics.first_threshold(error[np.isfinite(samples["uv_px"])], metrics.thresholds_of(0.0, MAX_PX))
    return Piece(samples, {"uv_px": error}, {UV_CURVE: np.bincount(index.ravel(), minlength=metrics.STEPS + 1)})


def _errors(data: dict[str, np.ndarray]) -> Piece:
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
        samples |= camera_errors(*(data[key] for key in ("pred_joints", "pred_verts", "pred_root", "true_joints", "true_verts")))
    return Piece(samples, joint_errors, histograms)


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


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`values` at the rows `where`, NaN elsewhere."""
    out = np.full((len(where), *values.shape[1:]), np.nan)
    out[where] = values
    return out
