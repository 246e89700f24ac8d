"""Calibration: predictions of a person's images -> that person's identity file (shape), and the curve against n.

Kong et al., ECCV 2022 (specs/idhandmesh.md section 5). Reads predictions files only, never images or a network. Methods:
`random` mean of n images drawn as the original drew them, seed and order included; `top` mean of the n most confident;
`weighted` mean of all images with weights softmax(confidence / temperature); `all` plain mean. Seed: the original never read
the confidence, and drew from the very frames it then scored; here the two are kept apart unless allowed.

All four are means of a regressor's answers, so they keep its pull towards the mean hand: a small hand stays somewhat too
large and a large one too small, however many images are averaged. Nothing here corrects for that.
"""
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from src.calibration_curve import calibration_curve, rest_mesh_basis, rest_mesh_mm, rest_mesh_spread_mm
from src.calibration_draws import chosen_rows, mean_shape, orders_of_draw
from src.calibration_people import Person, Selection, select_people
from src.identity import COMPANIONS, HandInfo, Identity, require_apart, write_identity
from utils.errors import InputError
from utils.files import write_json
from utils.hand import HandModel
from utils.predictions import read_predictions
from utils.strict import Strict

log = logging.getLogger(__name__)
Count = Annotated[int, Field(ge=1)]


class CalibrateOptions(Strict):
    """Which predictions calibrate whom, and how (`calibrate:` of an option file)."""

    predictions: str = Field("", description="predictions file of the images that calibrate (written by `test`)")
    scored: str | None = Field(None, description="predictions file of the frames to be scored; may share no frame with the above")
    allow_scored_frames: bool = Field(False, description="calibrate on scored frames all the same, as the original did")
    out: str = Field("", description="folder of the identity files; empty = out/<name>/identities")
    sequences: list[str] = Field(default_factory=list, description="only frames in these folders (globs); empty = all")
    sides: Literal["both", "right", "left"] = Field("both", description="frames of which hands (left ones count mirrored)")
    subjects: list[int] = Field(default_factory=list, description="only these people; empty = all in the file")
    method: Literal["random", "top", "weighted", "all"] = Field("random", description="a person's images, and their weights")
    n: Count = Field(20, description="images per person for random and top (weighted and all use every image)")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the draws of `random`; 0 is the original's")
    draws: Count = Field(10, description="draws averaged in the curve; the identity file holds draw 0")
    write_draws: bool = Field(False, description="random: write the identity files of every draw to <out>/draws/<draw>/")
    temperature: float = Field(1.0, gt=0, description="weighted: weights are softmax(confidence / temperature)")
    curve_n: list[Count] = Field([1, 2, 3, 4, 5, 10, 20, 50, 100, 200], min_length=1, description="n of the curve")


def calibrate(predictions_path: str | Path, options: CalibrateOptions, folder: str | Path, *, hand: HandModel,
              scored_predictions: str | Path | None = None) -> dict[str, Any]:
    """Write `<subject>.json` for every person, curve.json and calibration.json to `folder`; returns calibration.json's content.

    predictions_path: predictions of the images that calibrate, by a method that predicts the shape · hand: the HandModel the
    predictions were made with · scored_predictions: predictions of the frames to be scored, which may hold no frame that
    calibrates (options.allow_scored_frames lifts this). Raises InputError: no shape or no confidence in the file, another
    hand model, shared frames, a person or a sequence that is not there, values that are not finite.
    Source: specs/idhandmesh.md section 5.
    """
    selection = _selection(predictions_path, options, hand)
    identities = _identities(selection, options, hand)
    draws = [identities]
    if options.write_draws and options.method == "random":
        draws += [_identities(selection, options, hand, draw) for draw in range(1, options.draws)]
    used = [name for draw in draws for identity in draw.values() for name in identity.frames]
    _require_apart(selection, used, options, scored_predictions)
    curve = calibration_curve(selection.people, selection.wanted, hand, counts=options.curve_n, seed=options.seed,
                              draws=options.draws, temperature=options.temperature)
    summary = _summary(selection, identities, options, curve, hand)
    folder = Path(folder)
    _write(folder, identities)
    _clear_draws(folder)
    if options.write_draws:
        for draw, content in enumerate(draws):
            _write(folder / "draws" / str(draw), content)
    write_json(folder / "curve.json", {"kind": COMPANIONS[1], **curve})
    write_json(folder / "calibration.json", {"kind": COMPANIONS[0], **summary})
    return summary


def _write(folder: Path, identities: dict[int, Identity]) -> None:
    for subject, identity in identities.items():
        write_identity(folder / f"{subject}.json", identity)


def _clear_draws(folder: Path) -> None:
    """Draws of an earlier calibration with more draws or other people must not mix with the new ones."""
    for stale in list(folder.glob("draws/*/*.json")):
        stale.unlink()
        if not any(stale.parent.iterdir()):
            stale.parent.rmdir()


def _identities(selection: Selection, options: CalibrateOptions, hand: HandModel, draw: int = 0) -> dict[int, Identity]:
    """Every wanted person's identity, from one draw."""
    basis = rest_mesh_basis(hand)
    orders = orders_of_draw(selection.people, options.seed + draw)
    identities = {}
    for subject in selection.wanted:
        person = selection.people[subject]
        rows = chosen_rows(person, orders[subject], options.method, options.n)
        shape, weight = mean_shape(person, rows, options.method, options.temperature)
        std = error = None
        if len(rows) > 1:
            effective = 1 / (weight**2).sum()  # = n for a plain mean
            variance = weight @ (person.shapes[rows] - shape.astype(np.float64)) ** 2 * effective / (effective - 1)
            std, error = np.sqrt(variance), np.sqrt(variance / effective)
        identities[subject] = Identity(
            subject=subject, shape=shape, hand={"name": hand.name, "sha256": hand.sha256}, n=len(rows), method=options.method,
            confidence_used=options.method in ("top", "weighted"), standard_error=error,
            spread={"shape_std": None if std is None else std.tolist(),
                    "rest_mesh_mm": None if std is None else rest_mesh_spread_mm(basis, person.shapes[rows], weight)},
            settings={"n": options.n, "seed": options.seed, "draw": draw, "temperature": options.temperature},
            source=_source(selection, person, options),
            frames=tuple(person.names[rows].tolist()))
    return identities


def _selection(predictions_path: str | Path, options: CalibrateOptions, hand: HandInfo) -> Selection:
    if str(predictions_path) in ("", "."):
        raise InputError("calibrate.predictions: no predictions file named; write one with `run.py test` of a model that gives "
                         "the shape, and set calibrate.predictions=<file>")
    return select_people(read_predictions(predictions_path), hand, sequences=options.sequences, subjects=options.subjects,
                         sides=options.sides, confidence=options.method in ("top", "weighted"))


def _require_apart(selection: Selection, used: list[str], options: CalibrateOptions, scored: str | Path | None) -> None:
    """Refuse frames that are scored as well (see src/identity.py), unless that is what the options ask for."""
    if scored is not None and not options.allow_scored_frames:
        require_apart(used, np.asarray(read_predictions(scored)["name"]).tolist(), f"{selection.path} and {scored}")


def _source(selection: Selection, person: Person, options: CalibrateOptions) -> dict[str, Any]:
    """What an identity was made from, for its file."""
    folders = {name.rpartition("/")[0] for name in person.names.tolist()}
    return {"predictions": str(selection.path), **{key: selection.meta.get(key) for key in ("method", "checkpoint", "dataset")},
            "sequences": options.sequences or None, "sides": options.sides, "folders": len(folders),
            "images_available": len(person), "scored_frames_allowed": options.allow_scored_frames}


def _summary(selection: Selection, identities: dict[int, Identity], options: CalibrateOptions, curve: dict[str, Any],
             hand: HandModel) -> dict[str, Any]:
    """Content of calibration.json: what was asked, and per person what came out; fewer images than asked are said aloud."""
    basis = rest_mesh_basis(hand)
    people = []
    for subject, identity in identities.items():
        person = selection.people[subject]
        short = options.method in ("random", "top") and identity.n < options.n
        if short:
            log.warning("subject %d: %d images where %d were asked for; all of them used", subject, identity.n, options.n)
        entry = {"subject": subject, "file": f"{subject}.json", "images_available": len(person), "images_used": identity.n,
                 "fewer_than_asked": short, "rest_mesh_spread_mm": identity.spread["rest_mesh_mm"],
                 "shape_error": None, "mesh_error_mm": None}
        if person.true_shape is not None:
            difference = identity.shape - person.true_shape
            entry |= {"shape_error": float(np.abs(difference).mean()), "mesh_error_mm": float(rest_mesh_mm(basis, difference))}
        people.append(entry)
    return {"method": options.method, "n": options.n, "seed": options.seed, "predictions": str(selection.path),
            "hand": {"name": hand.name, "sha256": hand.sha256}, "curve": "curve.json", "truth_known": curve["truth_known"],
            "people": people}
