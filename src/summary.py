"""`run.py report`: the scores of several tests -> one table, paired differences, summary.json, and one page to open from disk.

A run of several score files (draws of a calibration) counts as one: each frame's error is averaged over the files first.
`recovered` is the share of the gain of the last run in `gain` over the reference that another run keeps.
"""
import platform
from collections.abc import Sequence
from glob import glob
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field

from src.identity import COMPANIONS
from utils.bootstrap import intervals
from utils.camera_scores import camera_summary, nested
from utils.comparison import compared, comparison_table
from utils.errors import InputError
from utils.files import read_json, require_file, write_json
from utils.hand import HandModel
from utils.predictions import Predictions, read_predictions
from utils.report import ReportRun, write_report
from utils.results import compare, ratio, read_scores, results_table, write_readme_table
from utils.score import Scores
from utils.score_metrics import CAMERA_METRICS, METRICS
from utils.strict import Strict


class Pictured(Protocol):
    """What the page needs of a reader (datasets/reader.py): rows with names, and pictures to draw on."""

    def __len__(self) -> int: ...
    def sample_name(self, index: int) -> str: ...
    def picture(self, index: int) -> Any: ...


class ReportOptions(Strict):
    """What is put side by side (`report:` of an option file)."""

    title: str = "Results"
    out: str = Field("", description="folder of report.html and summary.json; empty = out/<name>")
    runs: dict[str, list[str]] = Field(default_factory=dict, description="label -> scores.json files (globs), averaged")
    reference: str | None = Field(None, description="label of the run that the others are compared with, frame by frame")
    full_gain: str | None = Field(None, description="label of the run whose gain over the reference counts as all of it")
    table: Literal["results", "comparison"] = Field(
        "results", description="comparison: methods on the same frames, with size, speed and training, and what is not alike")
    metrics: list[str] = Field(default_factory=list, description="columns of the table, named as `metric` is; empty = the usual")
    metric: str = Field("mpvpe_mm", description="metric of the comparison; K + identity/depth_mm, say, is one in the camera")
    ratios: dict[str, tuple[str, str, str, str]] = Field(
        default_factory=dict, description="name -> [run, metric, run, metric]: ratio of means on the same frames, paired; say "
                                          "[refined, K + identity/depth_mm, refined, K/depth_mm]")
    curve: str | None = Field(None, description="curve.json of a calibration")
    stages: str | None = Field(None, description="text file of `stage seconds` lines")
    readme: str | None = Field(None, description="README whose results table is rewritten between its markers")
    readme_mark: str | None = Field(None, pattern=r"^[\w.-]+$", description="of several tables: <!-- results:MARK:begin --> ...")
    pictures: int = Field(9, ge=0, le=60, description="frames drawn, a third each of best, median and worst")
    bootstrap: int = Field(2000, ge=100)


def gather(options: ReportOptions) -> dict[str, Scores]:
    """Scores by label. Raises InputError: no runs, a pattern without files, files that do not belong together."""
    if not options.runs:
        raise InputError("report.runs: expected labels with scores.json files, found none; see options/quickstart_report.yaml")
    runs = {}
    for label, patterns in options.runs.items():
        paths = sorted({path for pattern in patterns for path in glob(pattern)})
        if not paths:
            raise InputError(f"report.runs.{label}: no file fits {', '.join(patterns)}; run the tests first")
        runs[label] = mean_over_files([read_scores(path) for path in paths], options.bootstrap)
    return runs


_SAMPLES, _CAMERA = attrgetter("samples"), attrgetter("camera")


def mean_over_files(files: Sequence[Scores], bootstrap: int) -> Scores:
    """One Scores with each frame's values averaged over the files; raises InputError where their frames differ."""
    first = files[0]
    if len(files) == 1:
        return first
    if any(not np.array_equal(first.name, other.name) for other in files[1:]):
        raise InputError("report.runs: files of one run scored different frames; test them on the same split")
    samples, camera = ({key: np.mean([part(file)[key] for file in files], 0) for key in part(first)
                        if all(key in part(file) for file in files)} for part in (_SAMPLES, _CAMERA))
    table = {key: entry for key, entry in first.summary["metrics"].items() if key in samples}
    for key, found in zip(samples, intervals(np.stack(list(samples.values()), 1), first.subject, bootstrap, 0)):
        if found is not None:
            table[key] = {**table[key], **found.as_dict()}
    in_camera = camera_summary(nested(camera), first.subject, bootstrap, 0) if camera else {}
    summaries = [file.summary for file in files]
    summary = {**first.summary, "metrics": table, "files_averaged": len(files), **in_camera,
               **{key: _mean_of([one[key] for one in summaries]) for key in ("by_subject", "by_joint", "curves", "official")}}
    return Scores(summary, samples, np.mean([file.joint_errors_mm for file in files], 0), first.name, first.subject, camera)


def _mean_of(values: Sequence[Any]) -> Any:
    """Mean of equally nested dicts and lists of numbers; what is no number is taken from the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean_of(items) for items in zip(*values)]
    return float(np.mean(values)) if isinstance(first, float) else first


def summarise(options: ReportOptions, runs: dict[str, Scores]) -> dict[str, Any]:
    """Content of summary.json: per run all metrics, intervals, frames; differences; share recovered; seconds per stage."""
    if options.full_gain is not None and options.reference is None:
        raise InputError(f"report.full_gain = {options.full_gain}: over which run? give report.reference as well")
    _require_known("report.metric", options.metric)
    for name in options.metrics:
        _require_known("report.metrics", name)
    summary: dict[str, Any] = {}
    for label, scores in runs.items():
        scores.values(options.metric)  # raises where this run lacks it
        found, in_camera = scores.summary["metrics"], scores.summary.get("camera", {})
        protocol, _, key = options.metric.rpartition("/")
        entry = (in_camera.get(protocol, {}) if protocol else found).get(key)
        if entry is None:
            raise InputError(f"report.metric = {options.metric}: no frame of {label} has it; choose another metric")
        summary[label] = {key: found[key]["mean"] for key in found}
        summary[label] |= {"ci95": entry["ci95"], "ci95_frames": entry["ci95_frames"],
                           "frames": scores.summary["n"], "files_averaged": scores.summary.get("files_averaged", 1)}
        if in_camera:
            summary[label] |= {"camera": in_camera, "camera_ratios": scores.summary.get("camera_ratios", {})}
    if options.reference is not None:
        summary["differences"] = _differences(options, runs)
        if options.full_gain is not None:
            summary["recovered"] = _recovered(options, summary["differences"])
    if options.table == "comparison":
        summary["comparison"] = compared(runs, options.reference, options.metrics, options.bootstrap)
    if options.ratios:
        summary["ratios"] = _ratios(options, runs)
    if options.stages is not None:
        summary["seconds"] = read_stages(options.stages)
    return summary | {"protocol": next(iter(runs.values())).summary["protocol_line"], "metric": options.metric,
                      "machine": {"system": platform.platform(), "python": platform.python_version()}}


def _require_known(option: str, name: str) -> None:
    protocol, _, metric = name.rpartition("/")
    if metric not in (CAMERA_METRICS if protocol else METRICS):
        raise InputError(f"{option} = {name}: expected one of {', '.join(METRICS)}, or <protocol>/<one of "
                         f"{', '.join(CAMERA_METRICS)}>")


def _differences(options: ReportOptions, runs: dict[str, Scores]) -> dict[str, Any]:
    for key in (options.reference, options.full_gain):
        if key is not None and key not in runs:
            raise InputError(f"report.reference, report.full_gain: no run is called {key}; there are {', '.join(runs)}")
    out = {}
    for label, scores in runs.items():
        if label != options.reference:
            found = compare(scores, runs[options.reference], options.metric, options.bootstrap)
            out[label] = {"minus": options.reference, "mean": found.mean, "ci95": list(found.ci95),
                          "ci95_frames": list(found.ci95_frames)}
    return out


def _ratios(options: ReportOptions, runs: dict[str, Scores]) -> dict[str, Any]:
    out = {}
    for name, (one, metric, other, metric_b) in options.ratios.items():
        if unknown := [label for label in (one, other) if label not in runs]:
            raise InputError(f"report.ratios.{name}: no run is called {unknown[0]}; there are {', '.join(runs)}")
        out[name] = ratio(runs[one], runs[other], metric, options.bootstrap, metric_b=metric_b).as_dict()
    return out


def _recovered(options: ReportOptions, differences: dict[str, Any]) -> dict[str, float]:
    """Share of the full gain; only where there is a gain to share."""
    full = differences[options.full_gain]["mean"]
    return {label: found["mean"] / full for label, found in differences.items() if full < 0 and label != options.full_gain}


def read_stages(path: str) -> dict[str, float]:
    """Seconds by stage, lines of the same stage added up (a run that was stopped and went on)."""
    seconds: dict[str, float] = {}
    for line in require_file(path, "scripts/quickstart.sh writes it").read_text(errors="replace").splitlines():
        name, _, number = line.partition(" ")
        try:
            seconds[name] = seconds.get(name, 0.0) + float(number)
        except ValueError as error:
            raise InputError(f"{path}: expected lines `stage seconds`, found `{line[:60]}`; delete it and run again") from error
    return seconds


def write_summary(options: ReportOptions, folder: Path, runs: dict[str, Scores]) -> str:
    """Write summary.json (and the README's table); returns the table and the comparison as text."""
    summary = summarise(options, runs)
    write_json(folder / "summary.json", summary)
    labelled = [(label, scores.summary) for label, scores in runs.items()]
    markdown, text = (comparison_table(summary["comparison"], form) if options.table == "comparison" else
                      results_table(labelled, form, options.metrics or None) for form in ("markdown", "text"))
    if options.readme is not None:
        write_readme_table(options.readme, markdown, options.readme_mark)
    return text + "\n" + "\n".join(comparison_lines(summary))


def write_page(options: ReportOptions, folder: Path, runs: dict[str, Scores], hand: HandModel, source: Pictured | None) -> None:
    """Write report.html. source: the reader of the scored frames, for overlays; None = none. InputError if it reads others."""
    summary = summarise(options, runs)
    columns = [ReportRun(label, scores, _predictions(options.runs[label])) for label, scores in runs.items()]
    if source is not None and options.pictures:
        _require_same_frames(columns[0].predictions, source)
    picture_of = None if source is None else source.picture
    curve = _curve(options.curve) if options.curve else None
    averaged = [f"{label}: each frame's error is the mean over {scores.summary['files_averaged']} draws of the calibration."
                for label, scores in runs.items() if "files_averaged" in scores.summary]
    alike = summary["comparison"]["training"] + summary["comparison"]["speed"] if options.table == "comparison" else []
    write_report(folder / "report.html", options.title, columns, hand=hand, picture_of=picture_of, pictures=options.pictures,
                 reference=options.reference, calibration=curve, notes=averaged + alike + comparison_lines(summary))


def _require_same_frames(predictions: Predictions, source: Pictured) -> None:
    """Overlays go by the row in the reader, so its rows must be those that were predicted."""
    for row, name in zip(np.asarray(predictions["index"]).tolist(), predictions["name"].tolist()):
        found = source.sample_name(row) if row < len(source) else "nothing"
        if found != name:
            raise InputError(f"{predictions.path}: its frame {name} is row {row}, where this option file's dataset has {found}; "
                             "set dataset and test.split as in that test, or report.pictures=0")


def _curve(path: str) -> dict[str, Any]:
    curve = read_json(path, "run.py calibrate writes it")
    if not isinstance(curve, dict) or curve.get("kind") != COMPANIONS[1]:
        raise InputError(f"{path}: expected the curve.json of a calibration, found other json; run.py calibrate writes it")
    return curve


def _predictions(patterns: Sequence[str]) -> Predictions:
    """The predictions behind a run's (first) scores, which lie beside them."""
    first = min(path for pattern in patterns for path in glob(pattern))
    return read_predictions(Path(first).parent / "predictions.npz")


def comparison_lines(summary: dict[str, Any]) -> list[str]:
    """The paired differences in words; not those that a comparison's table has."""
    lines: list[str] = []
    for label, found in ({} if "comparison" in summary else summary.get("differences", {})).items():
        people, frames = (f"[{low:+.2f}, {high:+.2f}]" for low, high in (found["ci95"], found["ci95_frames"]))
        lines.append(f"{label} - {found['minus']}: {found['mean']:+.2f} {summary['metric']}, paired 95 % by person and frame "
                     f"{people}, by frame {frames}")
    for label, share in summary.get("recovered", {}).items():
        lines.append(f"{label} recovers {100 * share:.0f} % of the gain")
    for name, found in summary.get("ratios", {}).items():
        low, high = found["ci95"]
        lines.append(f"{name}: ratio {found['mean']:.3f} [{low:.3f}, {high:.3f}], 95 % by person and frame, n = {found['n']:,}")
    if "seconds" in summary:
        lines.append("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))
    return lines
