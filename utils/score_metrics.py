"""The metrics of scores.json by name: unit, direction and words, for tables and the report; and the curves that are kept.

`camera_*`, root_mm and depth_mm are in the camera, nothing aligned; utils/camera_scores.py holds them by protocol. `uv_*` are of
2D joints, in pixels: those of a method that predicts them, or those that a test was given.
"""
from typing import NamedTuple

MAX_MM, MAX_PX = 50.0, 20.0  # where PCK curves end


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
    "depth_mm": Metric("mm", True, "depth", "error of the wrist along the camera's axis, without sign"),
    "camera_mpjpe_mm": Metric("mm", True, "camera MPJPE", "mean joint error in the camera, nothing aligned"),
    "camera_mpvpe_mm": Metric("mm", True, "camera MPVPE", "mean vertex error in the camera, nothing aligned"),
    "uv_px": Metric("px", True, "2D joints", "mean distance of the 2D joints to the true ones, pixels of the whole picture"),
    "uv_crop_px": Metric("px", True, "2D joints in the crop", "the same in pixels of the crop that the method saw"),
}
CURVES = {"joints": "joints", "verts": "vertices", "pa_joints": "joints, aligned", "pa_verts": "vertices, aligned"}
UV_CURVE = "uv"  # over thresholds in px
CAMERA_METRICS = ("camera_mpjpe_mm", "camera_mpvpe_mm", "depth_mm", "root_mm")


def digits(key: str) -> int:
    """Decimals that a table shows of a metric (or <protocol>/<metric>): hundredths of mm and px, thousandths of shares."""
    return 2 if METRICS[key.rpartition("/")[2]].unit else 3


def heading(key: str) -> str:
    """Title, unit and direction of a metric (or <protocol>/<metric>), as the head of a table's column."""
    protocol, _, name = key.rpartition("/")
    metric = METRICS[name]
    title = f"{metric.title}, {protocol}," if protocol else metric.title
    return f"{title} {metric.unit + ' ' if metric.unit else ''}{'↓' if metric.lower else '↑'}"
