"""Prediction: a method over a split -> one predictions file (utils/predictions.py), the first half of `run.py test`.

Every frame of the split once, in the reader's order, without augmentation; scoring happens afterwards and on the file.
`identity` is what an identity-aware method is *told*: the truth, or calibrated shapes by subject. It is stored next to the truth,
so that a score can say which was used.
Seed: the original's exports dropped the last, partial batch (up to 31 frames) and read the told shape from a path fixed in the
dataset class; here every frame is kept and the shapes are an argument.
"""
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from src.camera_space import KeypointsFile
from src.cost import parameters_of, speed_of
from src.loader import stacks, worker_deaths
from src.method import Method
from src.numerics import autocast_type, in_float32
from src.plots import Plots
from src.validate import spread
from utils.batch import ROOT_BY, UNSTORED, Batch, Prediction, Source, stack_to
from utils.camera import invert_affine, transform_uv
from utils.errors import InputError
from utils.predictions import PredictionsWriter
from utils.strict import Strict

log = logging.getLogger(__name__)
REMEDY = "lower test.workers or test.batch and run again; nothing was written"
Identities = Mapping[int, np.ndarray] | Callable[[int], np.ndarray]


class TestOptions(Strict):
    """What `run.py test` predicts and how it is scored (`test:` of an option file)."""

    __test__ = False  # for pytest: not a test class

    split: str = Field("test", description="split of the dataset, as its reader names it")
    frames: int | None = Field(None, ge=1, description="only this many frames, evenly spread over the split; null = all")
    checkpoint: str | None = Field(None, description="checkpoint to test; null = the run's last")
    identity: str | list[str] | None = Field(
        None, description="what an identity-aware method is told: null or truth = the true shape; mean = the mean hand; else a "
                          "folder of identity files, or a list of such files")
    keypoints: str | None = Field(
        None, description="predictions file with 2D joints of these frames: hands are placed by them, and scored in the camera; "
                          "a method that is told 2D joints is told these")
    camera_identity: str | list[str] | None = Field(
        None, description="identity files (folder, folder of draws, or list) of protocol `K + identity`, for methods that are "
                          "told no shape")
    tag: str = Field("test", min_length=1, pattern=r"^\w[\w.-]*$", description="results go to out/<name>/<tag>")
    batch: int = Field(64, ge=1)
    workers: int = Field(0, ge=0, description="processes that decode images; 0 = a thread beside the loop (best on few cores)")
    amp: Literal["off", "bf16", "auto"] = Field("off", description="bfloat16 network; auto = where the device computes in it")
    official_text: bool = Field(True, description="also write the dataset's official result file, where it has one")
    report: bool = Field(True, description="also write report.html")
    pictures: int = Field(9, ge=0, le=60, description="samples drawn in the report: a third each of best, median and worst")
    plots: int = Field(0, ge=-1, description="frames, evenly spread, drawn in five panels in plots/ with their meshes; -1 = all")
    bootstrap: int = Field(2000, ge=100, description="draws behind the 95 % intervals")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")


def predict(method: Method, source: Source, path: str | Path, *, device: torch.device, batch: int = 64, workers: int = 0,
            identities: Identities | None = None, frames: int | None = None, amp: Literal["off", "bf16", "auto"] = "off",
            meta: Mapping[str, Any] | None = None, keypoints: KeypointsFile | None = None, plots: Plots | None = None) -> None:
    """Predict every frame of `source` and write the predictions file `path`, whole or not at all.

    identities: shapes (10,) by subject that the method is told; None = the true shape. frames: an evenly spread choice.
    meta: what the file says of itself (method, hand {name, sha256}, checkpoint, identity source, options); `dataset` is
    source.protocol() unless given, `told` what kind of shape a method was told, `parameters` and `speed` what it costs
    (src/cost.py). keypoints: 2D joints to store with a method that predicts none, or is told them: in place of the
    labels, and of its own. plots: draws some of the frames meanwhile. Raises InputError: a subject without identity, a method
    that is told none, one that is to be told 2D joints, an unreadable sample, a prediction that is not finite, a killed worker,
    a full disk.
    """
    told = "identity" in method.needs
    if identities is not None and not told:
        raise InputError("test.identity: this method is never told a shape; leave test.identity out, or test an identity-aware "
                         "method")
    if method.sees_keypoints and keypoints is None:
        raise InputError("test.keypoints: this method is told where the joints are in the picture, and never by the labels; name "
                         "a predictions file with 2D joints of these frames (run.py test of method pose2d)")
    rows = chosen_rows(len(source), frames)
    asked = [[(0, row) for row in rows[i:i + batch]] for i in range(0, len(rows), batch)]
    if not rows:
        raise InputError("test.split: the split holds no frame; choose another one, or prepare the dataset again")
    known = {"dataset": dict(source.protocol()), **(meta or {})}
    known["told"] = known.get("told") or ("identities" if identities is not None else "truth") if told else "nothing"
    if keypoints is not None:
        known["keypoints"] = keypoints.told
    narrow, was_training, first, by = autocast_type(amp, device), method.training, None, []
    method.to(device).eval()
    try:
        found = stacks(source, asked, workers=workers, pinned=device.type == "cuda", remedy=REMEDY)
        with worker_deaths(REMEDY), contextlib.closing(found), torch.inference_mode(), PredictionsWriter(path, known) as writer:
            for raw in tqdm(found, desc="predict", unit="batch", total=len(asked), disable=None):
                samples = source.batch(stack_to(raw, device))
                if told:
                    samples = replace(samples, identity=_told(samples, identities))
                seen = _keypoints_told(samples, source, keypoints) if method.sees_keypoints else samples
                answer = _answer(method, seen, narrow)
                _append(writer, source, samples, answer, keypoints)
                first = seen if first is None else first
                by += [] if answer.root_by is None else answer.root_by.tolist()
                if plots is not None:
                    plots.add(samples, answer)
            if plots is not None:
                plots.finish()  # the speed is of a process that does nothing else
            speed = speed_of(lambda: _answer(method, first, narrow), len(first), device, narrow)
            writer.meta |= {"parameters": parameters_of(method), "speed": speed}
            if by:
                writer.meta["placed_by"] = {text: by.count(number) for number, text in enumerate(ROOT_BY) if number in by}
                log.info("%s: placed by %s", path, "; ".join(f"{text}: {n}" for text, n in writer.meta["placed_by"].items()))
    finally:
        method.train(was_training)


def _answer(method: Method, samples: Batch, narrow: torch.dtype | None) -> Prediction:
    """Network, in `narrow` where that is not None, and decoder, in float32; 2D joints that a method is told are no answer."""
    with torch.autocast(samples.image.device.type, narrow, enabled=narrow is not None):
        out = method(samples)
    answer = method.decode(in_float32(out), samples)
    return answer._replace(joints_uv=None, uv_confidence=None) if method.sees_keypoints else answer


def chosen_rows(count: int, frames: int | None) -> list[int]:
    """The rows that `predict` takes: all of 0..count-1, or `frames` of them, evenly spread."""
    return spread(count, frames or 0)


def _told(samples: Batch, identities: Identities | None) -> Tensor:
    """(b,10) shape the method is told: the truth, or the identity of each row's subject."""
    if identities is None:
        if samples.shape is None:
            raise InputError("test.identity: this split has no true shapes to tell; name a folder of identity files "
                             "(run.py calibrate)")
        if samples.has_shape is not None and not bool(samples.has_shape.all()):
            raise InputError("test.identity: some of these frames have no true shape to tell (no label, or a left hand whose "
                             "model is not the right one's mirror image); choose others (dataset.hands=right), or name "
                             "identity files")
        return samples.shape
    shapes = []
    for subject in samples.subject.tolist():
        try:
            shape = identities(subject) if callable(identities) else identities[subject]
        except KeyError as error:
            have = "" if callable(identities) else f"; there are files for {sorted(identities)}"
            raise InputError(f"test.identity: no identity of subject {subject}{have}; calibrate that subject too") from error
        shapes.append(np.asarray(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(shapes)).to(samples.image.device)


def _keypoints_told(samples: Batch, source: Source, keypoints: KeypointsFile) -> Batch:
    """The batch with the file's 2D joints, put into the crops, where the labels were."""
    found = keypoints.rows([source.sample_name(row) for row in samples.index.tolist()], _numpy(samples.mirrored))
    uv, confidence = (torch.from_numpy(value).to(samples.image.device) for value in found[:2])
    uv = transform_uv(samples.crop_from_image.double(), uv)
    return replace(samples, joints_uv=uv.to(samples.image), uv_confidence=confidence.to(samples.image), has_uv=None)


def _append(writer: PredictionsWriter, source: Source, samples: Batch, answer: Prediction, keypoints: KeypointsFile | None,
            ) -> None:
    """One batch of rows into the file."""
    rows = samples.index.tolist()
    names = [source.sample_name(row) for row in rows]
    columns = {key: _numpy(getattr(samples, key)) for key in ("subject", "index", "mirrored", "K", "crop_from_image")}
    if answer.joints_uv is not None:
        if keypoints is not None:
            raise InputError("test.keypoints: this method predicts 2D joints itself; leave test.keypoints out")
        answer = answer._replace(joints_uv=_whole_picture(answer.joints_uv, samples))
    for field, value in zip(answer._fields, answer):
        if value is not None and field not in UNSTORED:
            key = field if field == "confidence" else f"pred_{field}"
            columns[key] = _numpy(value)
            finite = np.isfinite(columns[key]).reshape(len(rows), -1).all(1)
            if not finite.all():
                made = writer.meta.get("checkpoint", "tested")
                raise InputError(f"{names[int(np.argmin(finite))]}: {key} is not finite; the checkpoint {made} is broken or was "
                                 "trained to divergence: train again, or test an earlier one")
    if keypoints is not None:
        columns["pred_joints_uv"], columns["pred_uv_confidence"], _ = keypoints.rows(names, columns["mirrored"])
    columns.update(_truth(samples))
    if writer.meta["told"] != "nothing":
        columns["identity"] = _numpy(samples.identity)
    columns.update(source.columns(rows))
    writer.append(name=names, **columns)


def _truth(samples: Batch) -> dict[str, np.ndarray]:
    """Labels of the batch, absolute in the camera; rows without one are NaN, and joints that are not known in the picture."""
    pairs = {"true_joints": (samples.joints, samples.has_joints), "true_verts": (samples.verts, samples.has_verts),
             "true_root": (samples.root, samples.has_joints if samples.has_root is None else samples.has_root),
             "true_shape": (samples.shape, samples.has_shape),
             "true_rotations": (samples.rotations, samples.has_rotations)}
    if samples.joints_uv is not None:
        uv = _whole_picture(samples.joints_uv, samples)
        if samples.uv_confidence is not None:
            uv = torch.where((samples.uv_confidence > 0)[..., None], uv, torch.nan)
        pairs["true_joints_uv"] = (uv, samples.has_uv)
    columns = {}
    for key, (value, present) in pairs.items():
        if value is None:
            continue
        columns[key] = _numpy(value)
        if present is not None:
            columns[key][~_numpy(present).astype(bool)] = np.nan
    return columns


def _whole_picture(uv: Tensor, samples: Batch) -> Tensor:
    """(b,21,2) pixels of the crops as pixels of the whole (mirrored) pictures."""
    return transform_uv(invert_affine(samples.crop_from_image.double()), uv.double()).float()


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy().copy()
