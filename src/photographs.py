"""Photographs, or a video, of one person's hand -> a predictions file, from which `calibrate` tells whose hand it is.

The network sees each hand as in the demo (src/demo_hand.py): its box from a file, or one large hand per picture; K from a file, a
stated field of view, EXIF, or nominal, which the file's `dataset` says. A picture that fails is named and the others go on. What
a photograph tells of the hand's absolute size stands on K alone: with a nominal one, measure the hand (calibrate.measured).
Frames of one video, or pictures of one folder, are one recording: they err alike, and `calibrate` may count them so.
"""
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from src.calibrate_options import CalibrateOptions
from src.demo_camera import CameraSource
from src.demo_hand import PREDICTED, Crop, Keypoints, Seen, View, evaluating, look, require_fit
from src.demo_input import Unfit, boxes_of, counted, first_of, read_boxes
from src.demo_video import Frame, Frames
from src.method import Method
from src.validate import spread
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import PredictionsWriter

log = logging.getLogger(__name__)
FILE = "photographs.npz"
MOST = 200  # pictures looked at, unless calibrate.n asks for more: errors of one recording are alike
UNKNOWN_STEP = 10  # every so many frames of a video that does not say how long it is
LEAST = 2


def predict_photographs(method: Method, hand: HandModel, chosen: CalibrateOptions, folder: str | Path, crop: Crop,
                        device: torch.device, *, checkpoint: str, keypoints: Keypoints | None = None) -> CalibrateOptions:
    """Write `folder`/photographs.npz from the pictures at `chosen.input`; returns the options with `predictions` set to it.

    method: with its weights, one that predicts the shape; crop: as it was trained; keypoints: a second network, for 2D joints.
    Raises InputError: a method that is told the shape or predicts none, nothing to read, fewer than two usable pictures.
    """
    if "identity" in method.needs:
        raise InputError("calibrate.input: this model is told whose hand it sees, so it cannot tell; use one that predicts the "
                         "shape")
    frames = Frames(chosen.input, section="calibrate")
    require_fit(method, keypoints, "calibrate")
    cameras = CameraSource(chosen.K, chosen.fov, "calibrate")
    boxes = None if chosen.boxes is None else read_boxes(chosen.boxes)
    view = View(method.to(device), hand, crop, device, chosen.side, None, checkpoint, keypoints)
    path = Path(folder) / FILE
    failed: list[str] = []
    sources: Counter[str] = Counter()
    nominal, rows = 0, []
    with evaluating(method, keypoints and keypoints.method.to(device)):
        for frame in tqdm(_some(frames, max(chosen.n, MOST)), desc="calibrate", unit="picture", disable=None):
            try:
                found, camera = _rows(view, frame, cameras, boxes, chosen.subject)
            except Unfit:
                raise
            except InputError as error:
                failed.append(str(error))
                continue
            rows += found
            if found:
                sources[camera.source] += 1
                nominal += not camera.metric
    if failed:
        log.warning("%s could not be used: %s", counted(len(failed), "picture"), first_of(failed))
    if frames.cut_short:
        log.warning("%s", frames.cut_short)
    if len(rows) < LEAST:
        why = f" ({len(failed)} failed; first: {failed[0]})" if failed else ""
        raise InputError(f"{chosen.input}: {counted(len(rows), 'usable picture')} of a hand{why}; at least {LEAST} are needed; "
                         "20 or more from several sides and in several poses are good")
    _write(path, rows, _meta(view, chosen, sources, len(rows), len(failed), frames.cut_short))
    log.log(logging.WARNING if nominal else logging.INFO, "%s", _told(chosen, sources, nominal, len(rows), len(failed)))
    return chosen.model_copy(update={"predictions": str(path), "keypoints": None})  # they are in the file itself


def _some(frames: Frames, most: int):
    """The frames to look at, evenly spread: all of them up to `most`."""
    wanted = set(spread(frames.announced, most)) if frames.announced else None
    for frame in frames:
        if frame.number in wanted if wanted is not None else frame.number % UNKNOWN_STEP == 0:
            yield frame


def _rows(view: View, frame: Frame, cameras: CameraSource, boxes: Any, subject: int):
    """The predictions of one picture's hands as rows of a predictions file, and its camera."""
    if frame.picture is None:
        raise InputError(frame.fault)
    camera = cameras.camera(frame.path, *frame.picture.shape[:2])
    found = boxes_of(boxes, frame.path, "calibrate")
    sides = [view.side] if found is None else [box.side or view.side for box in found]
    if len(set(sides)) < len(sides):
        raise InputError(f"{frame.path}: {len(sides)} hands, {' and '.join(sides)}: one person has one of each; leave the others "
                         "out of calibrate.boxes")
    seen = [look(view, frame.path, frame.picture, camera.K, box) for box in ([None] if found is None else found)]
    name = f"{frame.path.resolve().parent.name if frame.path.is_file() else frame.path.parent.name}/{frame.path.name}"
    return [_row(one, f"{name} {one.side}" if len(seen) > 1 else name, frame, subject) for one in seen], camera


def _row(seen: Seen, name: str, frame: Frame, subject: int) -> dict[str, Any]:
    if seen.shape is None:
        raise Unfit("calibrate.input: this model predicts no shape, so it cannot tell whose hand it sees; use one that does")
    row = {"name": name, "subject": subject, "index": frame.number, "mirrored": seen.cut.mirrored, "K": seen.cut.K,
           "crop_from_image": seen.cut.crop_from_image, "pred_verts": seen.verts, "pred_joints": seen.joints,
           "pred_shape": seen.shape, "pred_shape_cov": seen.shape_cov, "pred_rotations": seen.rotations,
           "pred_root": seen.root if seen.root_source.startswith(PREDICTED) else None, "confidence": seen.confidence,
           "pred_joints_uv": seen.uv, "pred_uv_confidence": seen.uv_confidence}
    return {key: value for key, value in row.items() if value is not None}


def _write(path: Path, rows: list[dict[str, Any]], meta: Mapping[str, Any]) -> None:
    """All rows have the same columns: one network made them."""
    with PredictionsWriter(path, dict(meta)) as writer:
        for row in rows:
            writer.append(name=[row["name"]], **{key: np.asarray(value)[None] for key, value in row.items() if key != "name"})


def _meta(view: View, chosen: CalibrateOptions, sources: Counter[str], used: int, failed: int,
          cut_short: str | None) -> dict[str, Any]:
    crop = view.crop
    return {"method": type(view.method).__name__, "hand": view.hand.info, "checkpoint": view.checkpoint, "told": "nothing",
            "dataset": {"dataset": "photographs", "split": chosen.input, "root_joint": "wrist", "hands": f"{used} hands",
                        "boxes": chosen.boxes or "whole pictures", "crop": f"{crop.factor:g} x box, {crop.pixels} px",
                        "K": dict(sources), "failed": failed, "cut_short": cut_short}}


def _told(chosen: CalibrateOptions, sources: Counter[str], nominal: int, used: int, failed: int) -> str:
    """What the identity will stand on, in words."""
    kinds: Counter[str] = Counter()
    for source, count in sources.items():
        kinds[source.partition(":")[0].partition(" ")[0]] += count
    cameras = ", ".join(f"{kind} in {count}" for kind, count in kinds.items())
    text = f"{chosen.input}: {used} hands of subject {chosen.subject} seen, {failed} pictures failed; camera matrix: {cameras}"
    if nominal:
        text += (f". The camera matrix is nominal in {nominal} pictures, so the size of the hand is a guess there: give "
                 "calibrate.K, calibrate.fov, or a length with calibrate.measured")
    return text
