"""Errors in the camera by protocol: what a method was given to find depth with is part of the number's name.

"K": the camera matrix alone, the hand as predicted · "K + identity": a shape calibrated from other frames of that person ·
"K + true shape": the true shape, what calibration can reach at best · "predicted root": as a method that predicts a root answers.
A protocol's values are (n,) per metric, NaN where a row has none; ratios of depth errors are over the frames that both have.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.batch import ROOT_BY
from utils.bootstrap import intervals, paired_ratio
from utils.score_metrics import CAMERA_METRICS, digits, heading

PROTOCOLS = ("K", "K + identity", "K + true shape")
PREDICTED_ROOT = "predicted root"
RATIOS = (("K + identity", "K"), ("K + identity", "K + true shape"), ("K + true shape", "K"))
RATIO_OF = "depth_mm"

CameraSamples = Mapping[str, Mapping[str, np.ndarray]]  # protocol -> metric (CAMERA_METRICS) -> (n,)


def camera_summary(samples: CameraSamples, subject: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """What scores.json says of them: `camera` {protocol: {metric: {mean, ci95, ci95_frames, n}}} and `camera_ratios`
    {"A / B": the same of mean depth error A over B}."""
    camera = {}
    for protocol, values in samples.items():
        found = intervals(np.stack(list(values.values()), 1), subject, draws, seed)
        camera[protocol] = {key: interval.as_dict() for key, interval in zip(values, found) if interval}
    ratios = {}
    for one, other in RATIOS:
        if one in samples and other in samples:
            found = paired_ratio(samples[one][RATIO_OF], samples[other][RATIO_OF], subject, draws, seed)
            if found is not None:
                ratios[f"{one} / {other}"] = found.as_dict()
    return {"camera": camera, "camera_ratios": ratios}


def flat(samples: CameraSamples) -> dict[str, np.ndarray]:
    """"<protocol>/<metric>" -> (n,), as samples.npz and `compare` name them."""
    return {f"{protocol}/{key}": value for protocol, values in samples.items() for key, value in values.items()}


def nested(samples: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `flat`."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, value in samples.items():
        protocol, _, key = name.rpartition("/")
        out.setdefault(protocol, {})[key] = value
    return out


def given_of(summary: Mapping[str, Any]) -> str | None:
    """The protocol that a camera-space metric without one is of: what knows least of the person; None where there is none."""
    known = summary.get("camera", {})
    return next((name for name in (PREDICTED_ROOT, *PROTOCOLS, *known) if known.get(name)), None)


def entry_of(summary: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """{mean, ci95, ci95_frames, n} of a metric, or of "<protocol>/<metric>"; None where the scores have none."""
    protocol, _, metric = key.rpartition("/")
    if protocol or metric in CAMERA_METRICS:
        return summary.get("camera", {}).get(protocol or given_of(summary), {}).get(metric)
    return summary["metrics"].get(metric)


def camera_rows(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """A table's head and rows, one per run and protocol; empty where no run has camera-space scores."""
    rows = []
    for label, summary in runs:
        for protocol, found in summary.get("camera", {}).items():
            count = max((entry["n"] for entry in found.values()), default=0)
            rows.append([label, protocol, *(interval_text(found.get(key), key) for key in CAMERA_METRICS), f"{count:,}"])
    return [["", "given", *map(heading, CAMERA_METRICS), "frames"], *rows] if rows else []


def ratio_lines(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The ratios of depth errors in words, one line per run that has any."""
    lines = []
    for label, summary in runs:
        found = [f"{name}: {entry['mean']:.3f} [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]"
                 for name, entry in summary.get("camera_ratios", {}).items()]
        if found:
            lines.append(f"{label}: ratio of depth errors, {', '.join(found)}.")
    return lines


def keypoint_lines(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """By which keypoints each run's hands were placed, and how many frames could not be; runs of the same words together."""
    labels: dict[str, list[str]] = {}
    for label, summary in runs:
        if told := summary.get("camera_keypoints"):
            faults = "".join(f"; {protocol}: {line}" for protocol, line in told["faults"].items())
            labels.setdefault(f"placed by {told['source']}{faults}.", []).append(label)
    return [f"{', '.join(who)}: {line}" for line, who in labels.items()]


def stand_in_lines(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """How many frames of each run had nothing to place the hand by; none where all had."""
    found = [(label, stand_ins(summary.get("meta", {})), summary["n"]) for label, summary in runs]
    return [f"{f'{label}: ' if len(runs) > 1 else ''}{count:,} of {n:,} frames were placed by nothing: their root is a stand-in."
            for label, count, n in found if count]


def stand_ins(meta: Mapping[str, Any]) -> int:
    """Rows of a predictions file whose root stands on nothing, by what its `meta` says; `refine` has placed them anew."""
    return 0 if "refine" in meta else (meta.get("placed_by") or {}).get(ROOT_BY[0], 0)


def interval_text(found: Mapping[str, Any] | None, key: str) -> str:
    """Mean and 95 % interval as text, or a dash."""
    if found is None:
        return "–"
    places, (low, high) = digits(key), found["ci95"]
    return f"{found['mean']:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
