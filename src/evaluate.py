"""`run.py test`: predict a split -> predictions file, then score the *file* -> scores.json, official result text, report.html.

What an identity-aware method is told is one *set* of shapes: the truth, a folder of identity files, or several draws of a
calibration (`<folder>/draws`), each predicted and scored on its own. Where a method predicts 2D joints, or test.keypoints gives
them, hands are also placed in the camera and scored there by protocol (src/camera_space.py).
"""
import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.camera_space import KeypointsFile, Shapes, camera_scores, keypoints_of, load_camera_identities, shapes_by_protocol
from src.cost import training_of
from src.identity import load_draws, load_identities, require_unscored
from src.method import Method
from src.plots import FOLDER, Plots
from src.predict import Identities, TestOptions, chosen_rows, predict
from src.validate import spread
from utils.batch import Source
from utils.errors import InputError
from utils.hand import HandModel
from utils.official_predictions import official_of
from utils.official_protocols import PROTOCOLS
from utils.predictions import Predictions, read_predictions
from utils.protocols import write_dexycb_text
from utils.report import ReportRun, write_report
from utils.results import results_table, write_scores
from utils.score import Scores, score, with_camera

log = logging.getLogger(__name__)


def evaluate(method: Method, source: Source, options: TestOptions, folder: Path, *, hand: HandModel, device: torch.device,
             meta: Mapping[str, Any]) -> str:
    """Predict and score every identity set; results go to `folder` (one set) or `folder`/<set>. Returns the results table.

    The evaluation of a benchmark without its labels (protocol()["no_labels"] says where they are) is predicted alone.

    Raises InputError as predict, score and the identity files do.
    """
    sets = _identity_sets(options, hand, source)
    keypoints, persons = _camera_inputs(method, source, options, hand)
    told = {"told": "mean"} if options.identity == "mean" else {}
    trained = training_of(meta["checkpoint"]) if "checkpoint" in meta else None
    rows, official = [], None
    lacking = method.compares - source.provides
    published = source.protocol().get("no_labels") if lacking else None
    for stale in folder.glob("*/scores.json"):  # of an earlier calibration with more draws
        if stale.parent.name.isdigit() and stale.parent.name not in sets:
            shutil.rmtree(stale.parent)
    for name, shapes in sets.items():
        place = folder / name if name else folder
        with _plots(source, options, place, hand, keypoints) as plots:
            predict(method, source, place / "predictions.npz", device=device, batch=options.batch, workers=options.workers,
                    identities=shapes, frames=options.frames, amp=options.amp, keypoints=keypoints, plots=plots,
                    meta={**meta, "identity": options.identity or "truth", "trained": trained, **told})
        predictions = read_predictions(place / "predictions.npz")
        if published:
            for stale in ("scores.json", "samples.npz", "report.html"):
                (place / stale).unlink(missing_ok=True)
            continue
        scores = _scored(predictions, hand, options, persons)
        write_scores(place, scores)
        if options.official_text and official_of(predictions) == "dex_ycb" and "pred_joints" in predictions:
            official = write_dexycb_text(predictions, place / "dexycb_results.txt")
        rows.append((str(place), scores.summary))
        if options.report and not name:
            run = ReportRun(str(meta["run"]), scores, predictions)
            write_report(place / "report.html", str(place), [run], hand=hand, picture_of=source.picture,
                         pictures=options.pictures)
    if official is not None and official.note:
        log.info(official.note)
    if options.official_text and official_of(predictions) in PROTOCOLS and _whole(predictions):
        log.info("the official file: run.py export %s %s --out pred.zip", official_of(predictions), predictions.path)
    if published:
        return f"{folder}: predicted, not scored, as the split has no {', '.join(sorted(lacking))}: {published}"
    return results_table(rows, "text")


def _whole(predictions: Predictions) -> bool:
    """Whether the rows are the official list from its beginning, as a submission must be."""
    number = predictions.get("official_index")
    return number is not None and np.array_equal(np.sort(number), np.arange(len(predictions)))


def _plots(source: Source, options: TestOptions, place: Path, hand: HandModel, keypoints: KeypointsFile | None,
           ) -> contextlib.AbstractContextManager[Plots | None]:
    """What draws the frames that test.plots asks for; nothing where it asks for none."""
    if not options.plots:
        return contextlib.nullcontext()
    rows = chosen_rows(len(source), options.frames)
    asked = [rows[i] for i in spread(len(rows), max(options.plots, 0))]

    def uv_of(chosen: list[int], mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return keypoints.rows([source.sample_name(row) for row in chosen], mirrored)[:2]

    return Plots(place / FOLDER, asked, hand, uv_of if keypoints is not None else None)


def _scored(predictions: Predictions, hand: HandModel, options: TestOptions, persons: list[Shapes] | None) -> Scores:
    """All scores of a predictions file; in the camera too, where it holds a hand and 2D joints to place it by.

    A method whose own 2D joints place no hand, as those of one that has hardly learnt, is scored about the wrist, and told.
    """
    scores = score(predictions, hand, bootstrap=options.bootstrap, seed=options.seed)
    if "pred_joints" not in predictions or "pred_joints_uv" not in predictions:
        return scores
    shapes = shapes_by_protocol(predictions, persons)
    try:
        camera = camera_scores(predictions, hand, keypoints_of(predictions), shapes, options.bootstrap, options.seed)
    except InputError as error:
        if options.keypoints is not None:
            raise
        log.warning("in the camera, %s", error)
        return scores
    return with_camera(scores, camera.samples, camera.summary)


def _camera_inputs(method: Method, source: Source, options: TestOptions, hand: HandModel,
                   ) -> tuple[KeypointsFile | None, list[Shapes] | None]:
    """The 2D joints and the calibrated shapes of the scores in the camera, checked before anything is predicted."""
    keypoints = None if options.keypoints is None else KeypointsFile(options.keypoints)
    names = _scored_names(source, options)
    if keypoints is not None:
        keypoints.require(names)
    if options.camera_identity is None:
        return keypoints, None
    if keypoints is None and "joints_uv" not in method.compares:
        raise InputError("test.camera_identity: hands are placed in the camera by 2D joints; give test.keypoints as well")
    if "identity" in method.needs:
        raise InputError("test.camera_identity: this method is told whose hand it sees; tell it with test.identity, one test per "
                         "protocol")
    return keypoints, load_camera_identities(options.camera_identity, hand, names)


def _scored_names(source: Source, options: TestOptions) -> list[str]:
    return [source.sample_name(row) for row in chosen_rows(len(source), options.frames)]


def _identity_sets(options: TestOptions, hand: HandModel, source: Source) -> dict[str, Identities | None]:
    """Set name -> shapes by person; None = the truth. The frames that calibrated may not be among the scored ones."""
    spec = options.identity
    if spec is None or spec == "truth":
        return {"": None}
    if spec == "mean":
        return {"": lambda subject: np.zeros(10)}
    sets = load_draws(spec, hand) if isinstance(spec, str) and Path(spec).is_dir() else {"": load_identities(spec, hand)}
    names = _scored_names(source, options)
    for name in sets:
        require_unscored(Path(spec) / name if name else spec, names)
    return sets
