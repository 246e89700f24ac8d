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

from utils.bootstrap import Interval, paired_difference
from utils.errors import InputError
from utils.files import atomic_path, read_json, require_file, write_json, write_text
from utils.score import FORMAT, METRICS, VERSION, Scores

HEADLINE = ("mpjpe_mm", "mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm", "f5", "f15")
REMEDY = "write it with `run.py test <option file>`"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def write_scores(folder: str | os.PathLike, scores: Scores) -> Path:
    """Write samples.npz and scores.json into `folder`, each whole or not at all; the path of scores.json."""
    folder = Path(folder)
    with atomic_path(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, name=scores.name, subject=scores.subject, joint_errors_mm=scores.joint_errors_mm,
                 **{f"metric.{key}": value for key, value in scores.samples.items()})
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
        samples = {key.removeprefix("metric."): value for key, value in arrays.items() if key.startswith("metric.")}
        scores = Scores(summary, samples, arrays["joint_errors_mm"], arrays["name"], arrays["subject"])
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise InputError(f"{beside}: expected per-frame scores, found a file that breaks ({error}); {REMEDY}") from error
    if lacking := {"n", "subjects", "metrics", "protocol_line", "by_subject", "by_joint", "curves", "official"} - summary.keys():
        raise InputError(f"{path}: scores without {', '.join(sorted(lacking))}; {REMEDY}")
    if len(scores.name) != summary["n"]:
        raise InputError(f"{beside}: {len(scores.name)} frames, but {path.name} beside it counts {summary['n']}; score again")
    return scores


def compare(a: Scores, b: Scores, metric: str, draws: int = 2000, seed: int = 0) -> Interval:
    """Paired mean and 95 % intervals of metric(a) - metric(b) over the same frames (whatever their order in the files).

    Raises InputError where the two did not score the same frames, or one of them lacks the metric.
    """
    for scores in (a, b):
        if metric not in scores.samples:
            raise InputError(f"{metric} is not among the scores of {_label(scores)}; there are {', '.join(scores.samples)}")
    order_a, order_b = np.argsort(a.name, kind="stable"), np.argsort(b.name, kind="stable")
    if not np.array_equal(a.name[order_a], b.name[order_b]):
        shared = len(np.intersect1d(a.name, b.name))
        raise InputError(f"{_label(a)} and {_label(b)} scored different frames ({len(a.name)} and {len(b.name)}, {shared} of "
                         "them shared); test both on the same split and number of frames")
    return paired_difference(a.samples[metric][order_a], b.samples[metric][order_b], a.subject[order_a], draws, seed)


def results_table(
    runs: Sequence[tuple[str, dict]], form: Literal["markdown", "text"] = "markdown", metrics: Sequence[str] = HEADLINE
) -> str:
    """One row per run, one column per metric with its 95 % interval, and under it the protocol of each set of frames.

    runs: (label, summary) pairs; a metric that a run lacks shows as a dash.
    """
    keys = [key for key in metrics if any(key in summary["metrics"] for _, summary in runs)]
    rows = [["", *(_title(key) for key in keys), "frames"]]
    rows += [[label, *(cell(summary, key) for key in keys), f"{summary['n']:,}"] for label, summary in runs]
    lines = _markdown(rows) if form == "markdown" else _text(rows)
    protocols: dict[str, list[str]] = {}
    for label, summary in runs:
        protocols.setdefault(summary["protocol_line"], []).append(label)
    notes = [f"{', '.join(labels)}: {line}" if len(protocols) > 1 else line for line, labels in protocols.items()]
    people = {len(summary["subjects"]) for _, summary in runs}
    if any(told(summary) != "nothing" for _, summary in runs):
        notes.append("Shape told to the method: " + ", ".join(f"{label}: {told(summary)}" for label, summary in runs) + ".")
    notes.append(f"Brackets: 95 % bootstrap interval by person and frame ({' or '.join(map(str, sorted(people)))} people).")
    gap = "  \n" if form == "markdown" else "\n"
    return "\n".join(lines) + "\n\n" + gap.join(notes) + "\n"


def told(summary: dict) -> str:
    """What shape the method was told: nothing, truth, or identities."""
    return str(summary.get("meta", {}).get("told", "unknown"))


def cell(summary: dict, key: str) -> str:
    """Mean and interval as text, or a dash."""
    found = summary["metrics"].get(key)
    if found is None:
        return "–"
    digits = 2 if METRICS[key].unit == "mm" else 3
    low, high = found["ci95"]
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def write_readme_table(path: str | os.PathLike, table: str) -> None:
    """Put `table` between the two results markers of a README; the rest stays as it is.

    Raises InputError where the markers are absent, repeated or in the wrong order.
    """
    path = require_file(path, f"write one with the markers {BEGIN} and {END}")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"{path}: expected the markers {BEGIN} and {END}, once each and in this order; put them where the "
                         "results table belongs")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    write_text(path, f"{head}{BEGIN}\n{table.strip()}\n{END}{tail}")


def _title(key: str) -> str:
    metric = METRICS[key]
    return f"{metric.title} {'mm ' if metric.unit == 'mm' else ''}{'↓' if metric.lower else '↑'}"


def _label(scores: Scores) -> str:
    meta = scores.summary.get("meta", {})
    return str(meta.get("run") or meta.get("checkpoint") or meta.get("method") or "a run")


def _markdown(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(item.replace("|", "\\|") for item in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]


def _text(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(item.rjust(w) for item, w in zip(row[1:], widths[1:]))]) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
