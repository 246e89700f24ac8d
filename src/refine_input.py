"""What `refine` works on: rows of a predictions file, their keypoints, the shape to hold, and why a frame cannot be refined.

Keypoints are pixels of the whole picture (mirrored first where the row is), so K is that of the whole picture, too:
inv(crop_from_image) K. Two files are joined by frame names, whatever their order. Everything is read in chunks.
A frame that cannot be refined gets its reason here and never stops the others. Meshes without rotations get the pose (and shape)
that the solver fits to them (src/fit.py).
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.fit import FitOptions, fit_hands
from src.fit_input import Hands
from src.identity import HandInfo, load_draws, load_identities, require_unscored
from src.root_head import hand_length
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions

PROTOCOLS = {"truth": "K + true shape", "identities": "K + identity"}  # by whose shape is held; "K" by the method's own
SINGULAR = 1e-10
ABSENT, NO_KEYPOINT, NO_CONFIDENCE = "not in the keypoints file", "no valid keypoint", "all confidences zero"
TOO_LITTLE, BAD_CAMERA = "no keypoint above min_confidence", "K not invertible"
BAD_POSE, NO_SHAPE = "no finite pose", "no shape to hold"

Shapes = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Frames:
    """b rows: uv (b,21,2) px and weight (b,21), 0 where missing · K (b,3,3) · rotations (b,16,3,3) · shape (b,10) · root (b,3) as
    the method predicted it, for a hand of the held shape, or NaN · reason (b) why a row cannot be refined, "" where it can ·
    seen_uv, confidence: the keypoints as the file has them. float64."""

    uv: np.ndarray
    weight: np.ndarray
    K: np.ndarray
    rotations: np.ndarray
    shape: np.ndarray
    root: np.ndarray
    reason: np.ndarray
    seen_uv: np.ndarray
    confidence: np.ndarray


class KeypointSource:
    """The 2D joints of the frames of a predictions file: its own, those of a second file, or the true ones."""

    def __init__(self, predictions: Predictions, source: Predictions | None, truth: bool):
        self._predictions, self._source, self._truth = predictions, source or predictions, truth
        self._row_of = None
        if truth:
            if "true_joints_uv" not in predictions:
                predictions.require("true_joints")
        elif "pred_joints_uv" not in self._source:
            raise InputError(f"{self._source.path}: no column pred_joints_uv, so there is nothing to fit to; set "
                             "refine.keypoints to a 2D network's predictions of the same frames")
        if source is not None:
            self._join(predictions, source)

    def of(self, rows: slice, K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uv (b,21,2) NaN where there is none, confidence (b,21), 1 where the file tells none, present (b) bool."""
        size = rows.stop - rows.start
        if self._truth:
            return self._true(rows, K), np.ones((size, 21)), np.ones(size, bool)
        which = np.arange(rows.start, rows.stop) if self._row_of is None else self._row_of[rows]
        present = which >= 0
        uv = np.full((size, 21, 2), np.nan)
        uv[present] = self._source["pred_joints_uv"][which[present]]
        confidence = np.zeros((size, 21))
        found = self._source.get("pred_uv_confidence")
        confidence[present] = 1.0 if found is None else found[which[present]]
        return uv, confidence, present

    def _true(self, rows: slice, K: np.ndarray) -> np.ndarray:
        if "true_joints_uv" in self._predictions:
            return np.asarray(self._predictions["true_joints_uv"][rows], np.float64)
        seen = np.asarray(self._predictions["true_joints"][rows], np.float64) @ K.transpose(0, 2, 1)
        return seen[..., :2] / seen[..., 2:]

    def _join(self, predictions: Predictions, source: Predictions) -> None:
        place = {name: row for row, name in enumerate(source["name"].tolist())}
        if len(place) < len(source):
            raise InputError(f"{source.path}: {len(source) - len(place)} frames are there twice; predict each frame once")
        names = predictions["name"].tolist()
        self._row_of = np.array([place.get(name, -1) for name in names])
        found = self._row_of >= 0
        if not found.any():
            raise InputError(f"{source.path}: none of the {len(names)} frames of {predictions.path} (first: {names[0]}); predict "
                             "the keypoints of the same split")
        turned = np.asarray(predictions["mirrored"])[found] != np.asarray(source["mirrored"])[self._row_of[found]]
        if turned.any():
            raise InputError(f"{source.path}: {names[int(np.flatnonzero(found)[turned][0])]} is mirrored here and not in "
                             f"{predictions.path}, or the other way about; predict both with the same dataset.hands")


def read_frames(predictions: Predictions, keypoints: KeypointSource, rows: slice, hand: HandModel, *, shape: str,
                shapes: Shapes | None, min_confidence: float, weigh: bool) -> Frames:
    """The rows of a chunk. shape: predicted, told, truth; shapes: of identity files, by subject, over it."""
    rotations, fitted = start_poses(predictions, rows, hand)
    size = len(rotations)
    reason = np.full(size, "", dtype="<U64")
    K, regular = picture_K(predictions, rows)
    uv, confidence, present = keypoints.of(rows, K)
    weight, lacking = weights(uv, confidence, min_confidence)
    unshaped = fitted is not None and shapes is None and shape == "predicted"
    held = fitted if unshaped else shape_of(predictions, rows, shape, shapes)
    finite_pose = np.isfinite(rotations).all((1, 2, 3))
    for text, wrong in ((NO_SHAPE, ~np.isfinite(held).all(1)), (BAD_POSE, ~finite_pose), (BAD_CAMERA, ~regular)):
        reason[wrong] = text
    reason[lacking != ""] = lacking[lacking != ""]
    reason[~present] = ABSENT
    root = predictions.get("pred_root")
    root = np.full((size, 3), np.nan) if root is None else np.asarray(root[rows], np.float64)
    if "pred_shape" in predictions and shape != "predicted":  # the same picture of a larger hand is farther away
        root = root * lengths_ratio(hand, held, np.asarray(predictions["pred_shape"][rows], np.float64))
    return Frames(np.where(weight[..., None] > 0, uv, 0.0), weight if weigh else (weight > 0).astype(float), K,
                  rotations, held, root, reason, uv, confidence)


def lengths_ratio(hand: HandModel, held: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(b,1) length of the flat hand of the held shapes (b,10) over that of the predicted ones."""
    held_m, predicted_m = (hand_length(hand, torch.from_numpy(np.nan_to_num(shape)).to(hand.weights)).double().cpu().numpy()
                           for shape in (held, predicted))
    return (held_m / predicted_m)[:, None]


def start_poses(predictions: Predictions, rows: slice, hand: HandModel) -> tuple[np.ndarray, np.ndarray | None]:
    """rotations (b,16,3,3) to start from, and None; of a method of meshes alone, fitted rotations and shape (b,10)."""
    if "pred_rotations" in predictions:
        return np.asarray(predictions["pred_rotations"][rows], np.float64), None
    verts = np.asarray(predictions["pred_verts"][rows], np.float64)
    finite = np.isfinite(verts).all((1, 2))
    hands = Hands(joints=None, verts=verts, subject=np.arange(len(verts)), finite=finite)
    rotations, shape = np.full((len(verts), 16, 3, 3), np.nan), np.full((len(verts), 10), np.nan)
    if finite.any():
        found = fit_hands(hand, hands, np.flatnonzero(finite), FitOptions(), torch.zeros(10))
        good = found.converged.cpu().numpy()
        which = np.flatnonzero(finite)[good]
        rotations[which], shape[which] = (x.double().cpu().numpy()[good] for x in (found.state.rotations, found.state.shape))
    return rotations, shape


def weights(uv: np.ndarray, confidence: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (b,21) of every keypoint, 0 = missing, and for frames where none is left the reason (b), else ""."""
    valid = np.isfinite(uv).all(2)
    weight = np.nan_to_num(confidence, nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    reason = np.full(len(uv), "", dtype="<U64")
    reason[~(valid & (weight >= least)).any(1)] = TOO_LITTLE
    reason[~(valid & (weight > 0)).any(1)] = NO_CONFIDENCE
    reason[~valid.any(1)] = NO_KEYPOINT
    return np.where(valid & (weight >= least), weight, 0.0), reason


def picture_K(predictions: Predictions, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """K (b,3,3) of the whole picture and (b) whether it can be inverted; the identity where not."""
    both = [np.asarray(predictions[key][rows], np.float64) for key in ("crop_from_image", "K")]
    good = np.logical_and(*map(_regular, both))
    crop_from_image, K = (np.where(good[:, None, None], matrix, np.eye(3)) for matrix in both)
    return np.linalg.solve(crop_from_image, K), good


def _regular(matrix: np.ndarray) -> np.ndarray:
    """(b) finite and far from singular, whatever the scale."""
    finite = np.isfinite(matrix).all((1, 2))
    known = np.where(finite[:, None, None], matrix, 0.0)
    return finite & (np.abs(np.linalg.det(known)) > SINGULAR * np.linalg.norm(known, axis=2).prod(1))


def shape_of(predictions: Predictions, rows: slice, shape: str, shapes: Shapes | None) -> np.ndarray:
    """(b,10) shapes to hold, NaN where there is none. InputError: a subject without an identity file."""
    if shapes is None:
        return np.asarray(predictions[{"predicted": "pred_shape", "told": "identity", "truth": "true_shape"}[shape]][rows], float)
    subjects = np.asarray(predictions["subject"][rows])
    if unknown := sorted(set(subjects.tolist()) - set(shapes)):
        raise InputError(f"refine.shape: no identity of subject {unknown[0]}; there are files for {sorted(shapes)}; calibrate "
                         "that subject too")
    return np.stack([np.asarray(shapes[subject], float) for subject in subjects.tolist()])


def shape_sets(spec: str | Sequence[str], hand: HandInfo, predictions: Predictions) -> dict[str, Shapes | None]:
    """{name: shapes by subject}: one set, or one per draw of a calibration; None = a column of the predictions file.

    Raises InputError: identity files of another hand model, or calibrated on a frame that is scored.
    """
    columns = {"predicted": "pred_shape", "told": "identity", "truth": "true_shape"}
    if isinstance(spec, str) and spec in columns:
        from_mesh = spec == "predicted" and "pred_rotations" not in predictions  # then the shape is fitted with the pose
        if columns[spec] not in predictions and not from_mesh:
            raise InputError(f"{predictions.path}: refine.shape = {spec}, but the file has no column {columns[spec]}; hold "
                             "another shape: predicted, told, truth, or identity files")
        return {"": None}
    sets = load_draws(spec, hand) if isinstance(spec, str) and Path(spec).is_dir() else {"": load_identities(spec, hand)}
    for name in sets:
        require_unscored(Path(spec) / name if name else spec, predictions["name"].tolist())
    return sets


def protocol_of(spec: str | Sequence[str], predictions: Predictions) -> tuple[str, str]:
    """(camera protocol, what the result was told: nothing, truth or identities) of a held shape."""
    if spec in ("predicted", "told"):
        told = str(predictions.meta.get("told", "nothing"))
    else:
        told = "truth" if spec == "truth" else "identities"
    return PROTOCOLS.get(told, "K"), told
