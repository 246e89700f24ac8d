"""`run.py refine`: pose and position fitted to 2D keypoints with the shape held -> a new predictions file, scored.

The keypoints come from a 2D network, the start pose from a mesh method, the shape from that method, from identity files or from
the truth: whose it is names the protocol of the camera-space scores. `fast` is the solver (src/solver.py), `faithful` the
original's 300 Adam steps (src/refine_faithful.py; Kong et al., ECCV 2022, specs/idhandmesh.md 6.4). Frames are independent, go by
chunks, and memory does not grow with their number. A frame that cannot be refined, or does not converge, keeps its start: its
pose with the held shape, at the position it would have started from; such frames are counted, with the reason.
Seed: the original's switch to true 2D joints is keypoints=truth, its mask (computed, and switched off) min_confidence=0.1.
"""
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from src.camera_space import Keypoints, camera_scores, shapes_by_protocol
from src.refine_input import Frames, KeypointSource, Shapes, picture_K, protocol_of, read_frames, shape_sets
from src.refine_solve import Refined, solve_frames
from src.solver_data import SolverOptions
from utils.errors import InputError
from utils.hand import HandModel
from utils.official_predictions import official_of
from utils.predictions import Predictions, PredictionsWriter, read_predictions
from utils.protocols import write_dexycb_text
from utils.report import ReportRun, write_report
from utils.results import results_table, write_scores
from utils.score import Scores, score, with_camera
from utils.strict import Strict

log = logging.getLogger(__name__)

REMEDY = "write it with `run.py test <option file>`"


class RefineSolver(SolverOptions):
    """The solver with priors for keypoints that are off by some pixels; measured in README.md, page "Whose hand"."""

    robust: Literal["none", "huber", "cauchy"] = Field("huber", description="loss of a keypoint's pixel distance")
    robust_scale: float = Field(1.5, gt=0, description="distance where the robust loss sets in, in standard deviations")
    pose_prior: float = Field(0.3, ge=0, description="weight of the Gaussian in the hand's pose space; 1 = as if true")
    stay: float = Field(0.5, ge=0, description="weight of the Gaussian about the start's pose")


class RefineOptions(Strict):
    """What is fitted to what (`refine:` of an option file)."""

    predictions: str | None = Field(
        None, description="predictions file of a mesh method: the start; rotations it lacks are fitted to its meshes")
    keypoints: str | None = Field(
        None, description="predictions file with pred_joints_uv of the same frames, joined by name; null = the same file; "
                          "truth = the true 2D joints")
    shape: str | list[str] = Field(
        "predicted", description="shape to hold: predicted, told (what the method was told), truth, or identity files: a folder, "
                                 "one file, a list, or a folder of draws")
    mode: Literal["fast", "faithful"] = Field("fast", description="Levenberg-Marquardt, or the original's 300 Adam steps")
    solver: RefineSolver = Field(RefineSolver(), description="of mode fast")
    sigma_px: float = Field(2.0, gt=0, description="fast: standard deviation of a keypoint of confidence 1, in pixels")
    weigh: bool = Field(True, description="fast: keypoints count by their confidence; faithful never weighs")
    min_confidence: float = Field(0.0, ge=0, le=1, description="keypoints below it are left out; 0 = off")
    start: Literal["root", "constant", "predicted"] = Field(
        "root", description="position to start from: closed form from keypoints and start pose; constant = 0.85 m on the wrist's "
                            "ray; predicted = the method's pred_root")
    root_prior: float = Field(0.0, ge=0, description="fast: the method's pred_root says the depth to within this share (standard "
                                                     "deviation), for a hand of the held length; 0 = not used")
    farthest_m: float = Field(3.0, gt=0, description="a wrist that ends farther away than this did not converge")
    chunk: int = Field(1024, ge=1, description="frames read, solved and written at once: bounds the memory, changes no result")
    tag: str = Field("refined", min_length=1, pattern=r"^\w[\w.-]*$", description="results go to out/<name>/<tag>")
    out: str = Field("", description="folder of the results; empty = out/<name>/<tag>")
    official_text: bool = Field(True, description="also write the dataset's official result file, where it has one")
    report: bool = Field(True, description="also write report.html: before and after")
    bootstrap: int = Field(2000, ge=100, description="draws behind the 95 % intervals")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")


@dataclass
class Tally:
    """Counts of a run: frames, why some kept their start (reason -> number, with the first one's name), energies, seconds."""

    frames: int = 0
    kept: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0
    seconds: float = 0.0

    def add(self, names: list[str], found: Refined) -> None:
        """One chunk."""
        self.frames += len(names)
        for row in np.flatnonzero(found.reason != ""):
            self.kept[str(found.reason[row])] += 1
            self.first.setdefault(str(found.reason[row]), names[row])
        done = found.reason == ""
        self.before += float(found.start_energy[done].sum(dtype=np.float64))
        self.after += float(found.energy[done].sum(dtype=np.float64))

    @property
    def refined(self) -> int:
        """Frames that ended elsewhere than at their start, or for which the start was best."""
        return self.frames - sum(self.kept.values())

    def energies(self) -> tuple[float | None, float | None]:
        """Mean squared pixel error before and after, over the refined frames; None where there are none."""
        return (self.before / self.refined, self.after / self.refined) if self.refined else (None, None)

    def summary(self) -> dict[str, Any]:
        """For the meta of a predictions file."""
        before, after = self.energies()
        return {"frames": self.frames, "refined": self.refined, "kept": dict(self.kept), "energy_before_px2": before,
                "energy_after_px2": after}

    def lines(self, label: str) -> str:
        """What the user reads."""
        kept = ", ".join(f"{count} {reason} (first: {self.first[reason]})" for reason, count in self.kept.most_common())
        before, after = self.energies()
        energy = f"; reprojection {before**0.5:.2f} -> {after**0.5:.2f} px rms" if self.refined else ""
        return (f"{label}: {self.refined} of {self.frames} frames refined, {sum(self.kept.values())} kept their start"
                f"{': ' + kept if kept else ''}{energy}; {self.seconds:.1f} s, {self.frames / self.seconds:.0f} hands/s")


def refine(options: RefineOptions, folder: Path, *, hand: HandModel, device: torch.device, run: str) -> str:
    """Refine, score and report; results go to `folder` (or options.out), or to a subfolder per draw. Returns what to print.

    Raises InputError: no or unfit files, another hand model, nothing that could be refined.
    """
    folder = Path(options.out) if options.out else Path(folder)
    if options.predictions is None:
        raise InputError(f"refine.predictions: name the predictions file to start from; {REMEDY}")
    predictions = read_predictions(options.predictions)
    predictions.require("pred_verts", "K", "crop_from_image")
    predictions.require_hand(hand.name, hand.sha256)
    hand = predictions.fitted_hand(hand)
    truth = options.keypoints == "truth"
    source = read_predictions(options.keypoints) if options.keypoints and not truth else None
    keypoints = KeypointSource(predictions, source, truth)
    if options.start == "predicted" or options.root_prior:
        predictions.require("pred_root")
    sets = shape_sets(options.shape, hand, predictions)
    hand.to(device)
    before = _before(predictions, keypoints, list(sets.values()), hand, options) if _labelled(predictions) else None
    rows, lines = [("as predicted", before.summary)] if before else [], []
    for name, shapes in sets.items():
        place = folder / name if name else folder
        tally = refine_file(predictions, keypoints, shapes, place / "predictions.npz", options, hand=hand, run=run)
        lines.append(tally.lines(str(place)))
        if not tally.refined:
            raise InputError(f"{options.predictions}: no frame could be refined: {lines[-1]}")
        refined = read_predictions(place / "predictions.npz")
        if before is None:
            continue
        scores = _score(refined, hand, options)
        write_scores(place, scores)
        rows.append((str(place), scores.summary))
        if options.official_text and official_of(refined) == "dex_ycb":
            write_dexycb_text(refined, place / "dexycb_results.txt")
        if options.report and not name:
            runs = [ReportRun("refined", scores, refined), ReportRun("as predicted", before, predictions)]
            write_report(place / "report.html", str(place), runs, hand=hand, reference="as predicted", notes=lines)
    table = results_table(rows, "text") if rows else "no true joints and vertices in the file: nothing scored\n"
    return table + "\n" + "\n".join(lines)


def refine_file(predictions: Predictions, keypoints: KeypointSource, shapes: Shapes | None, path: Path, options: RefineOptions, *,
                hand: HandModel, run: str) -> Tally:
    """One set of shapes: the refined predictions file, whole or not at all, and what became of its frames."""
    protocol, told = protocol_of(options.shape, predictions)
    meta = {**predictions.meta, "run": run, "told": told, "camera_protocol": protocol}
    meta.pop("speed", None)  # that of the network alone; what refinement takes is told below
    tally, start = Tally(), time.perf_counter()
    chunks = [slice(i, min(i + options.chunk, len(predictions))) for i in range(0, len(predictions), options.chunk)]
    with PredictionsWriter(path, meta) as writer:
        for rows in tqdm(chunks, desc="refine", unit="chunk", disable=None):
            frames = read_frames(predictions, keypoints, rows, hand, shape=str(options.shape), shapes=shapes,
                                 min_confidence=options.min_confidence, weigh=options.weigh and options.mode == "fast")
            found = solve_frames(hand, frames, faithful=options.mode == "faithful", solver=options.solver,
                                 sigma_px=options.sigma_px, start=options.start, farthest_m=options.farthest_m,
                                 root_prior=options.root_prior, total=len(predictions))
            names = predictions["name"][rows].tolist()
            writer.append(name=names, **_columns(predictions, rows, frames, found, told))
            tally.add(names, found)
        tally.seconds = time.perf_counter() - start
        writer.meta["refine"] = {
            "mode": options.mode, "shape_source": options.shape, "keypoints": options.keypoints or options.predictions,
            "predictions": options.predictions,
            "pose": "predicted" if "pred_rotations" in predictions else "fitted to pred_verts",
            **tally.summary(), "options": options.model_dump(mode="json")}
    return tally


def _columns(predictions: Predictions, rows: slice, frames: Frames, found: Refined, told: str) -> dict[str, np.ndarray]:
    """The rows' columns: the old ones, and over them what was refined; where a row has nothing new, its old value, or NaN."""
    columns = {key: np.asarray(predictions[key][rows]) for key in predictions.columns if key not in ("name", "pred_shape_cov")}
    for key in ("verts", "joints", "rotations", "root", "shape"):
        new = getattr(found, key)
        old = columns.get(f"pred_{key}", np.full(new.shape, np.nan))
        lacking = ~np.isfinite(new).reshape(len(new), -1).all(1)
        columns[f"pred_{key}"] = np.where(lacking.reshape(-1, *(1,) * (new.ndim - 1)), old, new)
    if told != "nothing":
        columns["identity"] = found.shape
    columns["pred_joints_uv"], columns["pred_uv_confidence"] = frames.seen_uv, frames.confidence
    return columns


def _labelled(predictions: Predictions) -> bool:
    """Whether there is any truth to score against."""
    return all(key in predictions for key in ("true_joints", "true_verts", "true_root"))


def _before(predictions: Predictions, source: KeypointSource, sets: list[Shapes | None], hand: HandModel, options: RefineOptions,
            ) -> Scores:
    """Scores of the file to start from; in the camera its hands are placed in closed form by the same keypoints."""
    rows = [slice(i, min(i + options.chunk, len(predictions))) for i in range(0, len(predictions), options.chunk)]
    parts = [source.of(part, picture_K(predictions, part)[0])[:2] for part in rows]
    keypoints = Keypoints(*(np.concatenate(values) for values in zip(*parts)), options.keypoints or options.predictions)
    told = predictions.meta.get("told", "nothing") != "nothing"
    shapes = shapes_by_protocol(predictions, None if told or sets[0] is None else sets)
    camera = camera_scores(predictions, hand, keypoints, shapes, options.bootstrap, options.seed)
    return with_camera(_score(predictions, hand, options), camera.samples, camera.summary)


def _score(predictions: Predictions, hand: HandModel, options: RefineOptions) -> Scores:
    return score(predictions, hand, bootstrap=options.bootstrap, seed=options.seed)
