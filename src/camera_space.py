"""Errors in the camera under named protocols: a method's wrist-relative hand, placed by 2D joints (src/root.py), and the truth.

Depth is the hand's size over its size in pixels, so what is known of its size is the protocol (utils/camera_scores.py): "K", the
hand as predicted; "K + identity", a calibrated shape; "K + true shape". A method that is told no shape gets a protocol's shape
afterwards: re-posed with its own rotations where it predicts them, else its mesh scaled by the ratio of the fifteen bones' summed
lengths, which no pose changes. A method that is told one answers for one protocol, that of what it was told.
"""
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.identity import HandInfo, load_draws, load_identities, require_unscored
from src.root import FAULTS, fault_line, solve_root
from utils.camera import invert_affine
from utils.camera_scores import CAMERA_METRICS, camera_summary
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import PARENTS, T21_PARENTS
from utils.predictions import Predictions, read_predictions
from utils.score_rows import camera_errors

log = logging.getLogger(__name__)

CHUNK = 512
OWN_JOINTS = "the method's own 2D joints"
OWN = {"nothing": "K", "mean": "K", "identities": "K + identity", "truth": "K + true shape"}  # by what the method was told
TIPS21 = (4, 8, 12, 16, 20)
BONES21 = [(joint, parent) for joint, parent in enumerate(T21_PARENTS) if parent >= 0 and joint not in TIPS21]

Shapes = Mapping[int, np.ndarray]  # subject -> (10,)


class Keypoints(NamedTuple):
    """uv (n,21,2) pixels of the whole picture (mirrored first where the row is) · confidence (n,21) · source: where from."""

    uv: np.ndarray
    confidence: np.ndarray
    source: str


class CameraScores(NamedTuple):
    """samples: protocol -> metric -> (n,) mm, NaN where a row has none · summary: `camera`, `camera_ratios` and
    `camera_keypoints` of scores.json."""

    samples: dict[str, dict[str, np.ndarray]]
    summary: dict[str, Any]


class KeypointsFile:
    """A predictions file with 2D joints, asked by name of frame."""

    def __init__(self, path: str | Path):
        """Raises InputError: absent, another file, or no 2D joints in it."""
        self.predictions = read_predictions(path)
        self.predictions.require("pred_joints_uv")
        self.path = Path(path)
        self._row = {name: row for row, name in enumerate(self.predictions["name"].tolist())}

    def require(self, names: Iterable[str]) -> None:
        """InputError where the file lacks some of these frames."""
        names = list(names)
        if missing := [name for name in names if name not in self._row]:
            raise InputError(f"test.keypoints: {self.path} lacks {len(missing)} of the {len(names)} frames (first: "
                             f"{missing[0]}); predict the 2D joints of the same split, sequences and frames")

    def rows(self, names: Sequence[str], mirrored: np.ndarray) -> Keypoints:
        """The frames' keypoints in this order. InputError: a frame is missing, or was mirrored in one of the two only."""
        self.require(names)
        rows = np.array([self._row[name] for name in names], dtype=np.int64)
        other = np.asarray(self.predictions["mirrored"])[rows] != np.asarray(mirrored)
        if other.any():
            raise InputError(f"test.keypoints: {self.path}: {names[int(np.argmax(other))]} is mirrored there and not here, or "
                             "here and not there; predict the 2D joints with the same dataset.hands")
        return keypoints_of(self.predictions, rows, str(self.path))

    @property
    def told(self) -> dict[str, Any]:
        """What a predictions file says of the keypoints it holds."""
        meta = self.predictions.meta
        return {"path": str(self.path), **{key: meta.get(key) for key in ("method", "run", "checkpoint", "index_hash")}}


def keypoints_of(predictions: Predictions, rows: np.ndarray | slice = slice(None), source: str | None = None) -> Keypoints:
    """The 2D joints that a predictions file holds; confidence 1 where it has none."""
    uv = np.asarray(predictions["pred_joints_uv"][rows], np.float64)
    confidence = predictions.get("pred_uv_confidence")
    confidence = np.ones(uv.shape[:2]) if confidence is None else np.asarray(confidence[rows], np.float64)
    if source is None:
        source = str((predictions.meta.get("keypoints") or {}).get("path") or OWN_JOINTS)
    return Keypoints(uv, confidence, source)


def load_camera_identities(spec: str | Sequence[str], hand: HandInfo, scored: Sequence[str]) -> list[Shapes]:
    """Shapes by person for "K + identity": identity files, a folder of them, or of draws (one entry each).

    Raises InputError as src/identity.py does, also where a frame that calibrated is among the scored ones.
    """
    draws = load_draws(spec, hand) if isinstance(spec, str) and Path(spec).is_dir() else {"": load_identities(spec, hand)}
    require_unscored(spec, scored)
    return list(draws.values())


def shapes_by_protocol(predictions: Predictions, identities: Sequence[Shapes] | None = None) -> dict[str, np.ndarray | None]:
    """Protocol -> shapes (draws,n,10) to give each row; None = the hand as the file has it.

    identities: calibrated shapes, one mapping per draw. Raises InputError: a person without identity, identities for a method
    that was told one already.
    """
    told = str(predictions.meta.get("told", "nothing"))
    if told != "nothing":
        if identities is not None:
            raise InputError("test.camera_identity: this method is told whose hand it sees; tell it with test.identity, one test "
                             "per protocol")
        if told not in OWN:
            raise InputError(f"{predictions.path}: told {told}: expected one of {', '.join(OWN)}; write it with `run.py test`")
        return {OWN[told]: None}
    protocols: dict[str, np.ndarray | None] = {"K": None}
    if identities is not None:
        subjects = np.asarray(predictions["subject"]).tolist()
        for shapes in identities:
            if missing := sorted(set(subjects) - set(shapes)):
                raise InputError(f"test.camera_identity: no identity of subject {missing[0]}; there are files for "
                                 f"{sorted(shapes)}; calibrate that subject too")
        protocols["K + identity"] = np.stack([[shapes[s] for s in subjects] for shapes in identities]).astype(np.float64)
    if "true_shape" in predictions and np.isfinite(predictions["true_shape"]).all(1).any():
        protocols["K + true shape"] = np.asarray(predictions["true_shape"], np.float64)[None]
    return protocols


def camera_scores(
    predictions: Predictions, hand: HandModel, keypoints: Keypoints, shapes_by_protocol: Mapping[str, np.ndarray | None],
    bootstrap: int = 2000, seed: int = 0,
) -> CameraScores:
    """Place every row's hand by its keypoints under each protocol and measure it in the camera.

    keypoints: of the file's rows, in its order. shapes_by_protocol: protocol -> shapes (n,10) or (draws,n,10), errors averaged
    over the draws; None = the hand as predicted. Rows that cannot be placed are NaN, counted and told. Raises InputError: columns
    missing, another hand model, no row that can be placed.
    """
    predictions.require("pred_joints", "pred_verts", "true_joints", "true_verts", "K", "crop_from_image")
    predictions.require_hand(hand.name, hand.sha256)
    samples, faults = {}, {}
    for protocol, shapes in shapes_by_protocol.items():
        draws = [None] if shapes is None else list(shapes if shapes.ndim == 3 else shapes[None])
        found = [_of_shapes(predictions, hand, keypoints, one) for one in draws]
        samples[protocol] = {key: np.mean([values[key] for values, _ in found], 0) for key in CAMERA_METRICS}
        line = fault_line(found[0][1])
        if not np.isfinite(samples[protocol]["root_mm"]).any():
            raise InputError(_nowhere(predictions.path, protocol, keypoints.source, found[0][1]))
        if line:
            faults[protocol] = line
            log.warning(f"{predictions.path}: {protocol}: {line}")
    told = {"source": keypoints.source, "faults": faults}
    subject = np.asarray(predictions["subject"])
    return CameraScores(samples, {**camera_summary(samples, subject, bootstrap, seed), "camera_keypoints": told})


def _nowhere(path: Path, protocol: str, source: str, fault: Tensor) -> str:
    """Why no row has errors in the camera: of a method's own 2D joints one that has hardly learnt, of others' the file."""
    if source == OWN_JOINTS and len(fault) and (fault > 0).all():
        reasons = ", ".join(FAULTS[number] for number in fault.unique().tolist())
        return f"{protocol}: not scored: {source} place none of {len(fault):,} frames ({reasons}); train longer?"
    line = fault_line(fault)
    joints = source if source == OWN_JOINTS else f"the 2D joints of {source}"
    return (f"{path}: {protocol}: no frame can be scored in the camera by {joints}{': ' + line if line else ''}; are they 2D "
            "joints of these frames?")


def place(predictions: Predictions, hand: HandModel, keypoints: Keypoints, rows: slice, shapes: np.ndarray | None = None,
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
    """Joints (b,21,3) and vertices (b,778,3) relative to the wrist, its place (b,3) (NaN: none) and the reasons (b), of rows.

    shapes: (b,10) of the hand to assume, None = as predicted. Metres, float64.
    """
    joints, verts = _hand_of(predictions, hand, rows, shapes)
    K, crop_from_image = (torch.from_numpy(np.array(predictions[key][rows], np.float64)) for key in ("K", "crop_from_image"))
    uv, confidence = (torch.from_numpy(np.array(value[rows])) for value in keypoints[:2])
    with torch.no_grad():
        fit = solve_root(torch.from_numpy(joints), uv, invert_affine(crop_from_image) @ K, confidence)
    return joints, verts, fit.root.numpy(), fit.fault


def _of_shapes(predictions: Predictions, hand: HandModel, keypoints: Keypoints, shapes: np.ndarray | None,
               ) -> tuple[dict[str, np.ndarray], Tensor]:
    """CAMERA_METRICS of every row, and why rows have no place (rows without label or shape do not count there)."""
    pieces, faults = [], []
    for start in range(0, len(predictions), CHUNK):
        rows = slice(start, min(start + CHUNK, len(predictions)))
        given = None if shapes is None else shapes[rows]
        true = [np.asarray(predictions[key][rows], np.float64) for key in ("true_joints", "true_verts")]
        known = np.isfinite(true[0]).all((1, 2)) & np.isfinite(true[1]).all((1, 2))
        known &= True if given is None else np.isfinite(given).all(1)
        joints, verts, root, fault = place(predictions, hand, keypoints, rows, None if given is None else np.nan_to_num(given))
        errors = camera_errors(joints, verts, root, *true)
        pieces.append({key: np.where(known, value, np.nan) for key, value in errors.items()})
        faults.append(fault[torch.from_numpy(known)])
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in CAMERA_METRICS}, torch.cat(faults)


def _hand_of(predictions: Predictions, hand: HandModel, rows: slice, shapes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Wrist-relative joints and vertices of the rows as predicted, or with the given shapes."""
    joints, verts = (np.array(predictions[key][rows], np.float64) for key in ("pred_joints", "pred_verts"))
    if shapes is None:
        return joints, verts
    to = {"dtype": hand.weights.dtype, "device": hand.weights.device}
    with torch.no_grad():
        shaped = hand.shaped(torch.from_numpy(shapes).to(**to))
        if "pred_rotations" in predictions:
            posed = shaped.posed(torch.from_numpy(np.array(predictions["pred_rotations"][rows])).to(**to))
            joints = hand.joints(posed, *predictions.joint_set)
            return tuple((points - joints[:, :1]).double().cpu().numpy() for points in (joints, posed.verts))
        rest = shaped.rest_joints.double().cpu().numpy()
    wanted = sum(np.linalg.norm(rest[:, joint] - rest[:, parent], axis=1) for joint, parent in enumerate(PARENTS) if parent >= 0)
    length = sum(np.linalg.norm(joints[:, joint] - joints[:, parent], axis=1) for joint, parent in BONES21)
    ratio = (wanted / np.where(length > 0, length, np.nan))[:, None, None]
    return ratio * joints, ratio * verts
