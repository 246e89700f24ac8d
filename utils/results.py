"""Scores on disk, compared and as tables: scores.json (means, intervals, tables, curves) and samples.npz (values per frame).

`samples.npz` lets two runs be compared frame by frame: the paired difference is far sharper than two separate intervals. The
results table of README.md is written from scores.json files alone, between two markers, so that no number there was typed.
"""
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from utils.bootstrap import Interval, paired_difference, paired_ratio
from utils.camera_scores import camera_rows, entry_of, interval_text, keypoint_lines, ratio_lines, stand_in_lines
from utils.errors import InputError
from utils.files import atomic_path, read_json, require_file, write_json, write_text
from utils.score import FORMAT, VERSION, Scores
from utils.score_metrics import heading

HEADLINE = ("mpjpe_mm", "mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm", "f5", "f15")
UV_HEADLINE = ("uv_px", "uv_crop_px")  # of methods that predict joints in the picture alone
REMEDY = "write it with `run.py test <option file>`"


def write_scores(folder: str | os.PathLike, scores: Scores) -> Path:
    """Write samples.npz and scores.json into `folder`, each whole or not at all; the path of scores.json."""
    folder = Path(folder)
    with atomic_path(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, name=scores.name, subject=scores.subject, joint_errors_mm=scores.joint_errors_mm,
                 **{f"metric.{key}": value for key, value in scores.samples.items()},
                 **{f"camera.{key}": value for key, value in scores.camera.items()})
    write_json(folder / "scores.json", scores.summary)
    return folder / "scores.json"


def read_scores(path: str | os.PathLike) -> Scores:
    """Scores from a scores.json or the folder that holds one.

    Raises InputError: absent, another file, another version, or a samples.npz that is absent, broken or of other frames.
    """
    path = Path(path)
    path = path / "scores.json" if path.is_dir() else path
    summary = read_json(path, REMEDY)
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise InputError(f"{path}: expected a scores.json, found other json; {REMEDY}")
    if summary.get("version") != VERSION:
        raise InputError(f"{path}: scores of version {summary.get('version')}, this program reads version {VERSION}; score again")
    beside = require_file(path.parent / "samples.npz", REMEDY)
    try:
        with np.load(beside, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        samples, camera = ({key.removeprefix(kind): value for key, value in arrays.items() if key.startswith(kind)}
                           for kind in ("metric.", "camera."))
        scores = Scores(summary, samples, arrays["joint_errors_mm"], arrays["name"], arrays["subject"], camera)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise InputError(f"{beside}: expected per-frame scores, found a file that breaks ({error}); {REMEDY}") from error
    if lacking := {"n", "subjects", "metrics", "protocol_line", "by_subject", "by_joint", "curves", "official"} - summary.keys():
        raise InputError(f"{path}: scores without {', '.join(sorted(lacking))}; {REMEDY}")
    if len(scores.name) != summary["n"]:
        raise InputError(f"{beside}: {len(scores.name)} frames, but {path.name} beside it counts {summary['n']}; score again")
    return scores


def compare(a: Scores, b: Scores, metric: str, draws: int = 2000, seed: int = 0, metric_b: str | None = None) -> Interval:
    """Paired mean and 95 % intervals of metric(a) - metric(b) over the same frames (whatever their order in the files).

    metric: a name of METRICS, or "<protocol>/<metric>" of errors in the camera; metric_b: another one for b. Raises InputError
    where the two did not score the same frames, one of them lacks the metric, or no frame has it in both.
    """
    one, other, subject = paired(a, b, metric, metric_b or metric)
    return paired_difference(one, other, subject, draws, seed)


def ratio(a: Scores, b: Scores, metric: str, draws: int = 2000, seed: int = 0, metric_b: str | None = None) -> Interval:
    """As `compare`, of mean metric(a) over mean metric(b): "K + identity/depth_mm" of one run to "K/depth_mm" of another, say."""
    one, other, subject = paired(a, b, metric, metric_b or metric)
    found = paired_ratio(one, other, subject, draws, seed)
    if found is None:
        raise InputError(f"{metric_b or metric} of {b.label} is zero on every frame: there is no ratio to it")
    return found


def paired(a: Scores, b: Scores, metric_a: str, metric_b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two metrics frame by frame, and the frames' people."""
    values_a, values_b = a.values(metric_a), b.values(metric_b)
    order_a, order_b = np.argsort(a.name, kind="stable"), np.argsort(b.name, kind="stable")
    if not np.array_equal(a.name[order_a], b.name[order_b]):
        shared = len(np.intersect1d(a.name, b.name))
        raise InputError(f"{a.label} and {b.label} scored different frames ({len(a.name)} and {len(b.name)}, {shared} of "
                         "them shared); test both on the same split and number of frames")
    values_a, values_b = values_a[order_a], values_b[order_b]
    if not np.isfinite(values_a - values_b).any():
        raise InputError(f"{metric_a} of {a.label} and {metric_b} of {b.label}: no frame has both, so there is nothing "
                         "to compare")
    return values_a, values_b, a.subject[order_a]


def results_table(
    runs: Sequence[tuple[str, dict]], form: Literal["markdown", "text"] = "markdown", metrics: Sequence[str] | None = None
) -> str:
    """One row per run, one column per metric with its 95 % interval, and under it the protocol of each set of frames; then, where
    runs have them, errors in the camera by what was given to find depth with.

    runs: (label, summary) pairs; a metric that a run lacks shows as a dash. metrics: None = those of meshes, and of joints in the
    picture where a run has nothing else.
    """
    keys = [key for key in metrics or headline(runs) if any(entry_of(summary, key) for _, summary in runs)]
    rows = [["", *map(heading, keys), "frames"]]
    rows += [[label, *(cell(summary, key) for key in keys), f"{summary['n']:,}"] for label, summary in runs]
    gap = "  \n" if form == "markdown" else "\n"
    parts = [lay_out(rows, form)]
    protocols: dict[str, list[str]] = {}
    for label, summary in runs:
        protocols.setdefault(summary["protocol_line"], []).append(label)
    notes = [f"{', '.join(labels)}: {line}" if len(protocols) > 1 else line for line, labels in protocols.items()]
    notes += [*told_note(runs), f"Brackets: 95 % bootstrap interval by {by_people(runs)}."]
    parts.append(gap.join(notes))
    if camera := camera_rows(runs):
        parts.append(lay_out(camera, form))
        if lines := ratio_lines(runs) + keypoint_lines(runs) + stand_in_lines(runs):
            parts.append(gap.join(lines))
    return "\n\n".join(parts) + "\n"


def headline(runs: Sequence[tuple[str, dict]]) -> tuple[str, ...]:
    """The metrics that these runs' tables show first."""
    mesh = ["mpjpe_mm" in summary["metrics"] for _, summary in runs]
    return HEADLINE * any(mesh) + UV_HEADLINE * (not all(mesh))


def told(summary: dict) -> str:
    """What shape the method was told: nothing, truth, or identities."""
    return str(summary.get("meta", {}).get("told", "unknown"))


def told_note(runs: Sequence[tuple[str, dict]]) -> list[str]:
    """The line that says which run was told a shape; none where no run was."""
    if all(told(summary) == "nothing" for _, summary in runs):
        return []
    return ["Shape told to the method: " + ", ".join(f"{label}: {told(summary)}" for label, summary in runs) + "."]


def by_people(runs: Sequence[tuple[str, dict]]) -> str:
    """What the intervals are resampled by."""
    people = {len(summary["subjects"]) if any(summary["subjects"]) else 0 for _, summary in runs}  # 0: nobody is named
    counts = " or ".join(map(str, sorted(people)))
    return f"person and frame ({counts} people)" if people != {0} else "frame (people are not named)"


def cell(summary: dict, key: str) -> str:
    """Mean and interval as text, or a dash."""
    return interval_text(entry_of(summary, key), key)


def write_readme_table(path: str | os.PathLike, table: str, mark: str | None = None) -> None:
    """Put `table` between the two results markers of a README, those called `mark` where it has several; the rest stays.

    Raises InputError where the markers are absent, repeated or in the wrong order.
    """
    begin, end = (f"<!-- results:{mark + ':' if mark else ''}{which} -->" for which in ("begin", "end"))
    path = require_file(path, f"write one with the markers {begin} and {end}")
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{path}: expected the markers {begin} and {end}, once each and in this order; put them where the "
                         "results table belongs")
    head, tail = text.split(begin)[0], text.split(end)[1]
    write_text(path, f"{head}{begin}\n{table.strip()}\n{end}{tail}")


def lay_out(rows: list[list[str]], form: Literal["markdown", "text"]) -> str:
    """A table; the first row is its head."""
    return "\n".join((_markdown if form == "markdown" else _text)(rows))


def _markdown(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(item.replace("|", "\\|") for item in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]


def _text(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(item.rjust(w) for item, w in zip(row[1:], widths[1:]))]) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
