"""report.html: one self-contained page about one run or several side by side, from their scores (and pictures, where given).

Sections: results with 95 % intervals, errors in the camera by protocol, paired differences, PCK curves, errors by joint and by
person, histograms, calibration curve, best / median / worst frames with overlays, a hand to turn, and by which protocol all of it
was measured. Opens from disk, needs no network, follows the reader's light or dark setting.
"""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import report_figures as figures
from utils import report_tables as tables
from utils.errors import InputError
from utils.files import write_text
from utils.hand import HandModel
from utils.report_page import Page, paragraph, text
from utils.report_pictures import PictureOf
from utils.report_samples import add_samples
from utils.report_tables import ReportRun
from utils.score_metrics import CAMERA_METRICS, METRICS, UV_CURVE


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
    page.section("Results", tables.results(runs), *(paragraph(note, "soft") for note in (tables.interval_note(runs), *notes)))
    if in_camera := tables.camera(runs):
        page.section("In the camera", *in_camera)
    if len(runs) > 1:
        page.section(f"Difference to {reference or labels[0]}, frame by frame", *tables.differences(runs, reference or labels[0]))
    _add_figures(page, runs)
    if calibration is not None:
        page.section("Calibration", page.figure(figures.calibration(calibration), _calibration_caption(calibration)))
    add_samples(page, runs, None if hand is None else hand.faces.cpu().numpy(), picture_of, pictures)
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


def _add_figures(page: Page, runs: Sequence[ReportRun]) -> None:
    """How large the errors are and where: of meshes, and of joints in the picture where a run is about nothing else."""
    pairs = [(text(run.label), run.scores) for run in runs]
    mesh = [pair for pair in pairs if "joints" in pair[1].summary["curves"]]
    large, where = [], []
    if mesh:
        large = [page.figure(figures.pck(mesh, which), f"Share of {name} within a threshold of the truth. Solid: wrists aligned; "
                             "dotted: Procrustes-aligned.") for which, name in (("joints", "joints"), ("verts", "vertices"))]
        for key in ("mpvpe_mm", "pa_mpvpe_mm"):
            large.append(page.figure(figures.histogram(mesh, key), f"{METRICS[key].title}: {METRICS[key].text}, by frame."))
        where = [page.figure(figures.by_joint(mesh), "Mean error of each joint, wrists aligned (hover for PA)."),
                 page.figure(figures.by_subject(mesh), "Mean vertex error of each person, wrists aligned.")]
    flat = [pair for pair in pairs if UV_CURVE in pair[1].summary["curves"]]
    if flat and len(mesh) < len(pairs):
        large.append(page.figure(figures.pck(flat, UV_CURVE), "Share of 2D joints within a threshold of the truth."))
        large.append(page.figure(figures.histogram(flat, "uv_px"), f"{METRICS['uv_px'].text.capitalize()}, by frame."))
        where.append(page.figure(figures.by_joint(flat, "uv_px"), "Mean distance of each joint, pixels of the whole picture."))
        where.append(page.figure(figures.by_subject(flat, "uv_px"), "Mean distance of the 2D joints, by person."))
    page.section("How large the errors are", '<div class="grid">', *large, "</div>")
    page.section("Where the errors are", '<div class="grid">', *where, "</div>")


def _calibration_caption(curve: Mapping[str, Any]) -> str:
    draws = curve.get("draws")
    return ("Error of a person's calibrated hand against the number of images it was calibrated from"
            + (f"; bars: middle 95 % of {draws} draws" if draws else "") + ". " + str(curve.get("note", ""))).strip()


def _glossary(runs: Sequence[ReportRun]) -> str:
    summaries = [run.scores.summary for run in runs]
    keys = [key for key in METRICS if any(key in summary["metrics"] for summary in summaries) or (
        key in CAMERA_METRICS and any(summary.get("camera") for summary in summaries))]
    entries = "".join(f"<dt>{text(METRICS[key].title)}</dt><dd>{text(METRICS[key].text)}</dd>" for key in keys)
    return paragraph("Every number is a mean over frames of a per-frame value, never a mean of batches. Wrists aligned: both "
                     "hands are moved so that their wrist joints coincide. PA: the best rotation, scale and translation, without "
                     "reflection (the official DexYCB, FreiHAND and HO3D scripts accept reflections). All 21 joints count, the "
                     "wrist too.") + f"<dl>{entries}</dl>"
