"""Methods side by side on the same frames: one table of errors, size, speed and training, all of it from scores.json files.

A controlled comparison differs in the method alone. What all runs share - protocol, crop, backbone, schedule, training data - is
said once, and whatever differs is said by run, so that a comparison that is none shows it. Differences to a reference are paired,
frame by frame. Errors in the camera are those of the position that a method finds by itself or by the camera matrix ("given" says
which); a run without one has a dash.
"""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from utils.batch import ROOT_BY
from utils.bootstrap import intervals
from utils.camera_scores import PREDICTED_ROOT, entry_of, given_of, keypoint_lines
from utils.errors import InputError
from utils.results import by_people, lay_out, paired, told_note
from utils.score import Scores
from utils.score_metrics import CAMERA_METRICS, digits, heading

COMPARED = ("mpjpe_mm", "mpvpe_mm", "pa_mpjpe_mm", "pa_mpvpe_mm", "camera_mpjpe_mm", "camera_mpvpe_mm")
DASH = "–"
OF_METHOD = ("method.backbone", "method.width", "method.weights")  # the options of a method that a comparison holds fixed
ALIKE = (*OF_METHOD, "train.steps", "train.epochs", "train.batch", "train.optimizer", "train.lr", "train.schedule", "train.init",
         "data.dataset", "data.split", "data.crop")  # said of all runs; any other option only where it differs
SILENT = ("crop.pixels", "crop.factor", "train.split")  # said by data.crop and data.split
LONGEST = 80

Runs = Mapping[str, Scores]
Facts = Mapping[str, Mapping[str, str]]  # label -> name -> value


def compared(runs: Runs, reference: str | None = None, metrics: Sequence[str] = (), draws: int = 2000) -> dict[str, Any]:
    """Numbers and words of the comparison, as summary.json holds them.

    metrics: names of METRICS or "<protocol>/<metric>"; empty = COMPARED; those that no run has are left out. Raises InputError
    where the runs scored different frames, or none is called `reference`.
    """
    if reference is not None and reference not in runs:
        raise InputError(f"report.reference: no run is called {reference}; there are {', '.join(runs)}")
    _require_same_frames(runs)
    keys = [key for key in metrics or COMPARED if any(entry_of(scores.summary, key) for scores in runs.values())]
    found: dict[str, Any] = {"metrics": keys, "reference": reference, "runs": {}, "differences": {}}
    for label, scores in runs.items():
        entries = {key: entry_of(scores.summary, key) for key in keys}
        found["runs"][label] = {"scores": {key: entry for key, entry in entries.items() if entry},
                                "given": given_of(scores.summary), **cost_of(scores.summary)}
        if reference is not None and label != reference:
            found["differences"][label] = _differences(scores, runs[reference], keys, draws)
    return found | _words(runs, keys)


def comparison_table(found: Mapping[str, Any], form: Literal["markdown", "text"] = "markdown") -> str:
    """What `compared` found: one row per run, the paired differences, and what is alike and what is not."""
    keys, runs = found["metrics"], found["runs"]
    given = any(key in CAMERA_METRICS for key in keys)
    rows = [["", *map(heading, keys), *["given"] * given, "parameters, M", "images/s ↑", "images seen"]]
    for label, run in runs.items():
        cells = [_half_width(run["scores"].get(key), key) for key in keys]
        rows.append([label, *cells, *[run["given"] or DASH] * given, *cost_cells(run).values()])
    parts = [lay_out(rows, form)]
    if found["differences"]:
        rows = [[f"minus {found['reference']}", *map(heading, keys)]]
        rows += [[label, *(_signed(entries.get(key), key) for key in keys)] for label, entries in found["differences"].items()]
        parts.append(lay_out(rows, form))
    words = [line for name in ("protocol", "training", "speed", "notes") for line in found[name]]
    parts.append(("  \n" if form == "markdown" else "\n").join(words))
    return "\n\n".join(parts) + "\n"


def cost_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, images per second, and the training: steps and batch of the run, and images it saw with those of the runs that
    it started from (`images_known`: whether all of these are). None where the scores do not say."""
    meta = summary.get("meta", {})
    trained, speed = meta.get("trained") or {}, meta.get("speed") or {}
    before = [entry["images"] for entry in trained.get("before", [])]
    images = trained["images"] + sum(filter(None, before)) if trained else None
    return {"parameters": meta.get("parameters"), "images_per_s": speed.get("images_per_s"), "steps": trained.get("steps"),
            "batch": trained.get("batch"), "images_seen": images, "images_known": None not in before}


def cost_cells(cost: Mapping[str, Any]) -> dict[str, str]:
    """Parameters in millions, images per second and images seen, as a table shows them."""
    parameters, speed, seen = cost["parameters"], cost["images_per_s"], cost["images_seen"]
    return {"parameters, M": DASH if parameters is None else f"{parameters / 1e6:.2f}",
            "images/s ↑": DASH if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
            "images seen": DASH if seen is None else f"{seen:,}" + ("" if cost["images_known"] else " + ?")}


def fact_lines(title: str, facts: Facts) -> list[str]:
    """What is the same for all runs in one line, then what is not by run, runs that say the same together."""
    every = list(facts.values())
    same = {name: value for name, value in (every[0] if every else {}).items() if all(one.get(name) == value for one in every)}
    lines = [f"{title}: " + " · ".join(same.values()) + "."] * bool(same)
    rest: dict[tuple[str, ...], list[str]] = {}
    for label, own in facts.items():
        rest.setdefault(tuple(value for name, value in own.items() if name not in same), []).append(label)
    return lines + [f"{title} of {', '.join(labels)}: {' · '.join(values)}." for values, labels in rest.items() if values]


def _require_same_frames(runs: Runs) -> None:
    first, *others = runs.values()
    names = np.sort(first.name)
    for other in others:
        if not np.array_equal(names, np.sort(other.name)):
            shared = len(np.intersect1d(names, other.name))
            raise InputError(f"{first.label} and {other.label} scored different frames ({len(names)} and {len(other.name)}, "
                             f"{shared} of them shared); a comparison is of the same frames: test both on the same split")


def _differences(scores: Scores, base: Scores, keys: Sequence[str], draws: int) -> dict[str, Any]:
    """Paired differences of the metrics that both have on some frame; the same draws of frames serve all metrics."""
    pairs = {key: paired(scores, base, _sample_of(scores, key), _sample_of(base, key)) for key in keys
             if entry_of(scores.summary, key) and entry_of(base.summary, key)}
    if not pairs:
        return {}
    _, _, subject = next(iter(pairs.values()))
    found = intervals(np.stack([one - other for one, other, _ in pairs.values()], 1), subject, draws)
    return {key: interval.as_dict() for key, interval in zip(pairs, found) if interval}


def _sample_of(scores: Scores, key: str) -> str:
    """The name of a metric's values by frame."""
    return f"{given_of(scores.summary)}/{key}" if key in CAMERA_METRICS else key


def _words(runs: Runs, keys: Sequence[str]) -> dict[str, list[str]]:
    """Lines on protocol, training and speed, and how to read the table."""
    summaries = [(label, scores.summary) for label, scores in runs.items()]
    metas = {label: summary.get("meta", {}) for label, summary in summaries}
    timed = {label: _speed(meta["speed"]) for label, meta in metas.items() if meta.get("speed")}
    trained = _training(metas) if any(meta.get("trained") for meta in metas.values()) else {}
    notes = told_note(summaries)
    given: dict[str, list[str]] = {}
    for label, meta in metas.items():
        if told := meta.get("keypoints"):
            given.setdefault(str(told.get("run") or told["path"]), []).append(label)
    notes += [f"{', '.join(labels)}: given the 2D joints of {source}, whose size and time are not counted here."
              for source, labels in given.items()]
    notes += _camera_notes(summaries, keys)
    notes.append(f"±: half the 95 % bootstrap interval by {by_people(summaries)}"
                 f"{'; [ ]: that of the paired difference' if len(runs) > 1 else ''}.")
    return {"protocol": fact_lines("Protocol", {label: _protocol(summary["protocol_line"]) for label, summary in summaries}),
            "training": fact_lines("Training", trained), "notes": notes,
            "speed": fact_lines("Images per second of network and decoder", timed)}


def _camera_notes(summaries: Sequence[tuple[str, Mapping[str, Any]]], keys: Sequence[str]) -> list[str]:
    """What the columns of errors in the camera stand on: of the protocols that are shown, and no other."""
    asked = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in CAMERA_METRICS}
    shown = [(label, summary, {name or given_of(summary) for name in asked} & set(summary.get("camera", {})))
             for label, summary in summaries]
    by_itself = [(label, summary) for label, summary, names in shown if PREDICTED_ROOT in names]
    by_K = [(label, summary) for label, summary, names in shown if names - {PREDICTED_ROOT}]
    if not by_itself + by_K:
        return []
    words = [*["predicted root: where the method itself puts the wrist"] * bool(by_itself),
             *["K: found from 2D joints and the camera matrix"] * bool(by_K)]
    lost = [(label, summary.get("meta", {}).get("placed_by", {}).get(ROOT_BY[0]), summary["n"]) for label, summary in by_itself]
    return ["; ".join(["In the camera nothing is aligned", *words]) + ".",
            *(f"{label}: {count:,} of {n:,} frames could not be placed and count where its search starts."
              for label, count, n in lost if count), *keypoint_lines(by_K)]


def _protocol(line: str) -> dict[str, str]:
    """The parts of a protocol line by name, or by place where they have none."""
    parts = line.split(" · ")
    return {part.partition(": ")[0] if ": " in part else str(place): part for place, part in enumerate(parts)}


def _speed(speed: Mapping[str, Any]) -> dict[str, str]:
    threads = speed.get("threads")
    return {"device": speed["device"], **({"threads": f"{threads} thread{'s' * (threads > 1)}"} if threads else {}),
            "batch": f"batches of {speed['batch']}", "precision": speed["precision"]}


def _training(metas: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """What decided each run's training: ALIKE, and of the other options those in which some two runs differ."""
    flat = {label: _flat(meta["trained"]) for label, meta in metas.items() if meta.get("trained")}
    first = next(iter(flat.values()))
    names = dict.fromkeys([*ALIKE, *(name for one in flat.values() for name in one)])
    told = [name for name in names if (name in ALIKE and first.get(name) is not None)
            or any(one.get(name) != first.get(name) for one in flat.values())]
    return {label: {name: f"{_plain(name)} {_short(flat[label][name])}" for name in told if name in flat[label]}
            if label in flat else {"": "not noted, or by another program"} for label in metas}


def _flat(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a comparison should hold fixed, and the protocol of the training data."""
    options = {name: value for name, value in trained["options"].items() if name not in SILENT and (
        name in OF_METHOD or name.startswith(("train.", "crop.", "augment.", "dataset.", "hand", "seed")))}
    data = {}
    for key, value in trained["data"].items():
        data |= {f"data.{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {f"data.{key}": value}
    return {**options, "train.steps": trained["steps"], "train.epochs": None, **data}


def _plain(name: str) -> str:
    """An option's name without the section, where that says nothing."""
    section, _, rest = name.partition(".")
    return rest if section in ("train", "method", "data") else name


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _half_width(entry: Mapping[str, Any] | None, key: str) -> str:
    """Mean and half the width of its interval."""
    if entry is None:
        return DASH
    places, (low, high) = digits(key), entry["ci95"]
    return f"{entry['mean']:.{places}f} ± {(high - low) / 2:.{places}f}"


def _signed(entry: Mapping[str, Any] | None, key: str) -> str:
    if entry is None:
        return DASH
    places, (low, high) = digits(key), entry["ci95"]
    return f"{entry['mean']:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"
