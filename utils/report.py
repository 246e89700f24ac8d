"""report.html: one self-contained page about one run or several side by side, from their scores (and pictures, where given).

Sections: results with 95 % intervals, paired differences, PCK curves, errors by joint and by person, histograms, calibration
curve, best / median / worst frames with overlays, a hand to turn, and by which protocol all of it was measured. Opens from disk,
needs no network, follows the reader's light or dark setting.
"""
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import report_figures as figures
from utils.errors import InputError
from utils.files import write_text
from utils.hand import HandModel
from utils.predictions import Predictions
from utils.report_page import Page, paragraph, table, text
from utils.report_pictures import Choice, PictureOf, choose, tiles, true_hand
from utils.results import HEADLINE, compare, told
from utils.score import METRICS, Scores

GROUPS = {
    "wrists aligned": ("mpjpe_mm", "mpvpe_mm", "auc_joints", "auc_verts", "f5", "f15"),
    "Procrustes-aligned (PA)": ("pa_mpjpe_mm", "pa_mpvpe_mm", "pa_auc_joints", "pa_auc_verts", "pa_f5", "pa_f15"),
    "shape the hand was built with": ("shape_error", "rest_mesh_mm"),
    "in the camera": ("root_mm", "camera_mpjpe_mm", "camera_mpvpe_mm"),
    "as the original program measures": ("seed_root_relative_mpjpe_mm", "seed_root_relative_mpvpe_mm", "seed_mpvpe_mm"),
}
RANKED_BY = "mpvpe_mm"


@dataclass(frozen=True)
class ReportRun:
    """One column of the page. predictions: the file that was scored, for overlays and the hand to turn; None leaves this run out
    of them (scores averaged over several files, say)."""

    label: str
    scores: Scores
    predictions: Predictions | None = None


def write_report(
    path: str | os.PathLike, title: str, runs: Sequence[ReportRun], *, hand: HandModel | None = None,
    picture_of: PictureOf | None = None, pictures: int = 9, reference: str | None = None,
    calibration: Mapping[str, Any] | None = None, notes: Sequence[str] = (),
) -> Path:
    """Write the page atomically; returns its path.

    hand: faces for overlays and the hand to turn. picture_of: reader row -> (image (h,w,3) RGB, K, ...) for overlays of the
    first run's best, median and worst frames, `pictures` in all. reference: label that the others are compared with, frame by
    frame; None = the first. calibration: content of a calibration's curve.json. notes: further lines under the results.
    Raises InputError: no runs, labels that repeat, an unknown reference.
    """
    labels = [run.label for run in runs]
    if not runs or len(set(labels)) < len(labels):
        raise InputError(f"report: expected runs with different labels, found {labels}; name each once")
    if reference is not None and reference not in labels:
        raise InputError(f"report: no run is called {reference}; there are {', '.join(labels)}")
    page = Page(title)
    page.add(f"<header><h1>{text(title)}</h1>{_protocols(runs)}</header>")
    page.section("Results", _results(runs), *(paragraph(note, "soft") for note in (_interval_note(runs), *notes)))
    if len(runs) > 1:
        page.section(f"Difference to {reference or labels[0]}, frame by frame", *_differences(runs, reference or labels[0]))
    _add_figures(page, runs)
    if calibration is not None:
        page.section("Calibration", page.figure(figures.calibration(calibration), _calibration_caption(calibration)))
    if hand is not None and any(run.predictions is not None for run in runs):
        _add_samples(page, runs, hand, picture_of, pictures)
    page.section("How to read this", _glossary(runs))
    write_text(path, page.html())
    return Path(path)


def _protocols(runs: Sequence[ReportRun]) -> str:
    """The protocol line, once if all runs share it."""
    lines: dict[str, list[str]] = {}
    for run in runs:
        lines.setdefault(run.scores.summary["protocol_line"], []).append(run.label)
    told = [line if len(lines) == 1 else f"{', '.join(labels)}: {line}" for line, labels in lines.items()]
    return "".join(paragraph(line, "protocol") for line in told)


def _results(runs: Sequence[ReportRun]) -> str:
    """Metrics by run, with intervals; the best of each row in bold where runs can be compared."""
    head = ["", *(f'<span class="key" style="background:{figures.colour(i)}"></span>{text(r.label)}' for i, r in enumerate(runs))]
    rows: list[list[str]] = []
    for group, keys in GROUPS.items():
        known = [key for key in keys if any(key in run.scores.summary["metrics"] for run in runs)]
        if known:
            rows.append([group])
        for key in known:
            found = [run.scores.summary["metrics"].get(key) for run in runs]
            means = [entry["mean"] for entry in found if entry]
            best = (min if METRICS[key].lower else max)(means)
            cells = [_cell(entry, key, len(means) > 1 and entry is not None and entry["mean"] == best) for entry in found]
            arrow, unit = "↓" if METRICS[key].lower else "↑", " mm" if METRICS[key].unit == "mm" else ""
            rows.append([f'<span title="{text(METRICS[key].text)}">{text(METRICS[key].title)}{unit} {arrow}</span>', *cells])
    if any(run.scores.summary.get("official") for run in runs):
        rows.append(["by DexYCB's official formulas, reflections accepted: mean mm ↓ and AUC ↑"])
        for key in ("absolute", "root_relative", "procrustes"):
            found = [(run.scores.summary.get("official") or {}).get(key) for run in runs]
            if any(found):
                rows.append([key.replace("_", "-"), *(f"{f['mean_mm']:.2f} / {f['auc']:.4f}" if f else "–" for f in found)])
    rows.append(["what was measured"])
    rows.append(["frames", *(f"{run.scores.summary['n']:,}" for run in runs)])
    rows.append(["shape told to the method", *(text(told(run.scores.summary)) for run in runs)])
    return table(head, rows)


def _cell(entry: Mapping[str, Any] | None, key: str, best: bool) -> str:
    if entry is None:
        return "–"
    digits = 2 if METRICS[key].unit == "mm" else 3
    (low, high), frames = entry["ci95"], entry["ci95_frames"]
    hint = f"frames alone: {frames[0]:.{digits}f} to {frames[1]:.{digits}f}; n = {entry['n']:,}"
    return (f'<span{" class=best" if best else ""}>{entry["mean"]:.{digits}f}</span>'
            f'<span class="ci" title="{hint}">{low:.{digits}f}–{high:.{digits}f}</span>')


def _interval_note(runs: Sequence[ReportRun]) -> str:
    people = sorted({len(run.scores.summary["subjects"]) for run in runs})
    count = " or ".join(map(str, people))
    few = " So few people say little about others: mind the interval." if people[0] < 5 else ""
    return (f"Small numbers: 95 % bootstrap interval, people resampled first ({count} here), then their frames; hover for the "
            f"interval over frames alone.{few}{' Bold: best of the row.' if len(runs) > 1 else ''}")


def _differences(runs: Sequence[ReportRun], reference: str) -> list[str]:
    """Paired differences of the headline metrics to the reference run."""
    base = next(run for run in runs if run.label == reference)
    others = [run for run in runs if run is not base]
    rows = []
    for key in HEADLINE:
        cells = []
        for run in others:
            try:
                found = compare(run.scores, base.scores, key)
            except InputError as error:
                return [paragraph(f"Not compared: {error}", "soft")]
            low, high = found.ci95
            better = (high < 0) if METRICS[key].lower else (low > 0)
            worse = (low > 0) if METRICS[key].lower else (high < 0)
            style = "good" if better else "bad" if worse else "soft"
            digits = 2 if METRICS[key].unit == "mm" else 3
            cells.append(f'<span class="{style}">{found.mean:+.{digits}f}</span>'
                         f'<span class="ci" title="frames alone: {found.ci95_frames[0]:+.{digits}f} to '
                         f'{found.ci95_frames[1]:+.{digits}f}">{low:+.{digits}f} to {high:+.{digits}f}</span>')
        rows.append([f"{text(METRICS[key].title)} {'↓' if METRICS[key].lower else '↑'}", *cells])
    return [table(["", *(f"{text(run.label)} − {text(reference)}" for run in others)], rows),
            paragraph("Same frames, so this is sharper than two intervals side by side. Green: better, red: worse, grey: the "
                      "interval holds zero.", "soft")]


def _add_figures(page: Page, runs: Sequence[ReportRun]) -> None:
    pairs = [(text(run.label), run.scores) for run in runs]
    parts = [page.figure(figures.pck(pairs, which), f"Share of {name} within a threshold of the truth. Solid: wrists aligned; "
                         "dotted: Procrustes-aligned.") for which, name in (("joints", "joints"), ("verts", "vertices"))]
    for key in ("mpvpe_mm", "pa_mpvpe_mm"):
        metric = METRICS[key]
        parts.append(page.figure(figures.histogram(pairs, key, metric.title), f"{metric.title}: {metric.text}, by frame."))
    page.section("How large the errors are", '<div class="grid">', *parts, "</div>")
    page.section("Where the errors are", '<div class="grid">',
                 page.figure(figures.by_joint(pairs), "Mean error of each joint, wrists aligned (hover for PA)."),
                 page.figure(figures.by_subject(pairs), "Mean vertex error of each person, wrists aligned."), "</div>")


def _calibration_caption(curve: Mapping[str, Any]) -> str:
    draws = curve.get("draws")
    return ("Error of a person's calibrated hand against the number of images it was calibrated from"
            + (f"; bars: middle 95 % of {draws} draws" if draws else "") + ". " + str(curve.get("note", ""))).strip()


def _add_samples(page: Page, runs: Sequence[ReportRun], hand: HandModel, picture_of: PictureOf | None, count: int) -> None:
    """Overlays and a hand to turn: frames that the first run does best, middling and worst on, of all runs with predictions."""
    shown = _Shown(runs)
    faces = hand.faces.cpu().numpy()
    chosen = shown.choose(max(count, 3))
    if picture_of is not None and count:
        body = [shown.row(choice, picture_of, faces) for choice in chosen]
        head = ["", "picture", "truth", *(text(run.label) for run in shown.runs)]
        note = (f"Ranked by {METRICS[RANKED_BY].title} of {shown.runs[0].label}. Hands are drawn at the true wrist position; "
                "pictures of left hands are mirrored.")
        page.section("Best, median and worst frames", table(head, body, "samples"), paragraph(note, "soft"))
    of_kind = {kind: [choice for choice in chosen if choice.kind == kind] for kind in ("median", "best", "worst")}
    place = {"median": lambda found: found[len(found) // 2], "best": lambda found: found[0], "worst": lambda found: found[-1]}
    choices = [shown.turned(place[kind](found)) for kind, found in of_kind.items() if found]
    if choices:
        caption = ("Drag to turn, scroll to come nearer. Grey: truth; coloured: prediction, by its distance to the truth. The "
                   "legend shows and hides hands.")
        page.section("A hand to turn", page.figure(figures.meshes(choices, faces), caption))


class _Shown:
    """The runs that have predictions, and the same frame in each of them."""

    def __init__(self, runs: Sequence[ReportRun]):
        self.runs = [run for run in runs if run.predictions is not None]
        self._rows = [{name: row for row, name in enumerate(run.predictions["name"].tolist())} for run in self.runs]
        self._names = self.runs[0].predictions["name"].tolist()

    def choose(self, count: int) -> list[Choice]:
        """Frames that every run has, by the first run's error."""
        scores = self.runs[0].scores
        error_of = dict(zip(scores.name.tolist(), scores.samples[RANKED_BY].tolist()))
        everywhere = set(error_of).intersection(*self._rows)
        error = np.array([error_of[name] if name in everywhere else np.nan for name in self._names])
        return choose(error, self._names, count)

    def row(self, choice: Choice, picture_of: PictureOf, faces: np.ndarray) -> list[str]:
        """Cells of the table of pictures."""
        name, first = self._names[choice.row], self.runs[0].predictions
        verts, root = true_hand(first, choice.row)
        made = tiles(picture_of, int(first["index"][choice.row]), verts, root, self._predicted(name), faces)
        errors = [float(run.scores.samples[RANKED_BY][run.scores.name == name][0]) for run in self.runs]
        cells = [f"{_image(uri)}{error:.1f} mm" for uri, error in zip(made.preds, errors)]
        return [f'{choice.kind}<div class="name">{text(name)}</div>', _image(made.picture), _image(made.truth), *cells]

    def turned(self, choice: Choice) -> tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]:
        """Title, truth and predictions in mm, wrists at the origin."""
        verts, root = true_hand(self.runs[0].predictions, choice.row)
        preds = self._predicted(self._names[choice.row])
        return (f"{choice.kind}, {choice.error_mm:.1f} mm", 1e3 * (verts - root),
                [(text(run.label), 1e3 * verts) for run, verts in zip(self.runs, preds)])

    def _predicted(self, name: str) -> list[np.ndarray]:
        return [np.asarray(run.predictions["pred_verts"][rows[name]], np.float64) for run, rows in zip(self.runs, self._rows)]


def _image(uri: str) -> str:
    return f'<img src="{uri}" alt="" loading="lazy">'


def _glossary(runs: Sequence[ReportRun]) -> str:
    keys = [key for key in METRICS if any(key in run.scores.summary["metrics"] for run in runs)]
    entries = "".join(f"<dt>{text(METRICS[key].title)}</dt><dd>{text(METRICS[key].text)}</dd>" for key in keys)
    return paragraph("Every number is a mean over frames of a per-frame value, never a mean of batches. Wrists aligned: both "
                     "hands are moved so that their wrist joints coincide. PA: the best rotation, scale and translation, without "
                     "reflection (the official DexYCB, FreiHAND and HO3D scripts accept reflections). All 21 joints count, the "
                     "wrist too.") + f"<dl>{entries}</dl>"
