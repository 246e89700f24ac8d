"""`run.py test`: predict a split -> predictions file, then score the *file* -> scores.json, official result text, report.html.

What an identity-aware method is told is one *set* of shapes: the truth, a folder of identity files, or several draws of a
calibration (`<folder>/draws`), each predicted and scored on its own.
"""
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.identity import load_draws, load_identities, require_unscored
from src.method import Method
from src.predict import TestOptions, chosen_rows, predict
from utils.batch import Source
from utils.hand import HandModel
from utils.predictions import read_predictions
from utils.protocols import write_dexycb_text
from utils.report import ReportRun, write_report
from utils.results import results_table, write_scores
from utils.score import score

log = logging.getLogger(__name__)

def evaluate(method: Method, source: Source, options: TestOptions, folder: Path, *, hand: HandModel, device: torch.device,
             meta: Mapping[str, Any]) -> str:
    """Predict and score every identity set; results go to `folder` (one set) or `folder`/<set>. Returns the results table.

    Raises InputError as predict, score and the identity files do.
    """
    sets = _identity_sets(options, hand, source)
    rows, official = [], None
    for stale in folder.glob("*/scores.json"):  # of an earlier calibration with more draws
        if stale.parent.name.isdigit() and stale.parent.name not in sets:
            shutil.rmtree(stale.parent)
    for name, shapes in sets.items():
        place = folder / name if name else folder
        predict(method, source, place / "predictions.npz", device=device, batch=options.batch, workers=options.workers,
                identities=shapes, frames=options.frames, amp=options.amp,
                meta={**meta, "identity": options.identity or "truth"})
        predictions = read_predictions(place / "predictions.npz")
        scores = score(predictions, hand, bootstrap=options.bootstrap, seed=options.seed)
        write_scores(place, scores)
        if options.official_text and "official_index" in predictions:
            official = write_dexycb_text(predictions, place / "dexycb_results.txt")
        rows.append((str(place), scores.summary))
        if options.report and not name:
            run = ReportRun(str(meta["run"]), scores, predictions)
            write_report(place / "report.html", str(place), [run], hand=hand, picture_of=source.picture,
                         pictures=options.pictures)
    if official is not None and official.note:
        log.info(official.note)
    return results_table(rows, "text")


def _identity_sets(options: TestOptions, hand: HandModel, source: Source) -> dict[str, dict[int, np.ndarray] | None]:
    """Set name -> shapes by person; None = the truth. The frames that calibrated may not be among the scored ones."""
    spec = options.identity
    if spec is None or spec == "truth":
        return {"": None}
    sets = load_draws(spec, hand) if isinstance(spec, str) and Path(spec).is_dir() else {"": load_identities(spec, hand)}
    names = [source.sample_name(row) for row in chosen_rows(len(source), options.frames)]
    for name in sets:
        require_unscored(Path(spec) / name if name else spec, names)
    return sets
