"""Tables of report.html: results with intervals, errors in the camera by protocol, and differences frame by frame."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils import report_figures as figures
from utils.camera_scores import RATIOS, keypoint_lines
from utils.comparison import DASH, cost_cells, cost_of
from utils.errors import InputError
from utils.official_predictions import official_scores
from utils.official_protocols import PROTOCOLS
from utils.predictions import Predictions
from utils.report_page import paragraph, table, text
from utils.results import compare, headline, told
from utils.score import Scores
from utils.score_metrics import CAMERA_METRICS, METRICS, digits, heading

GROUPS = {
    "wrists aligned": ("mpjpe_mm", "mpvpe_mm", "auc_joints", "auc_verts", "f5", "f15"),
    "Procrustes-aligned (PA)": ("pa_mpjpe_mm", "pa_mpvpe_mm", "pa_auc_joints", "pa_auc_verts", "pa_f5", "pa_f15"),
    "shape the hand was built with": ("shape_error", "rest_mesh_mm"),
    "joints in the picture": ("uv_px", "uv_crop_px"),
    "as the original program measures": ("seed_root_relative_mpjpe_mm", "seed_root_relative_mpvpe_mm", "seed_mpvpe_mm"),
}
GIVEN = {
    "K": "given: the camera matrix",
    "K + identity": "given: the camera matrix, and a shape calibrated from other frames of the person",
    "K + true shape": "given: the camera matrix, and the true shape",
}


@dataclass(frozen=True)
class ReportRun:
    """One column of the page. predictions: the file that was scored, for overlays and the hand to turn; None leaves this run out
    of them (scores averaged over several files, say)."""

    label: str
    scores: Scores
    predictions: Predictions | None = None


def results(runs: Sequence[ReportRun]) -> str:
    """Metrics by run, with intervals; the best of each row in bold where runs can be compared."""
    rows: list[list[str]] = []
    for group, keys in GROUPS.items():
        known = [key for key in keys if any(key in run.scores.summary["metrics"] for run in runs)]
        if known:
            rows.append([group])
        rows += [_metric_row(runs, key, lambda run, key=key: run.scores.summary["metrics"].get(key)) for key in known]
    rows += _official_rows(runs)
    rows.append(["what was measured"])
    rows.append(["frames", *(f"{run.scores.summary['n']:,}" for run in runs)])
    rows.append(["shape told to the method", *(text(told(run.scores.summary)) for run in runs)])
    return table(_head(runs), rows + _cost_rows(runs))


def _cost_rows(runs: Sequence[ReportRun]) -> list[list[str]]:
    """Size, speed and training, where some run says so; the speed with what it was measured on."""
    costs = [cost_cells(cost_of(run.scores.summary)) for run in runs]
    rows = [[text(name), *(text(cost[name]) for cost in costs)] for name in costs[0] if any(cost[name] != DASH for cost in costs)]
    return [["what it costs"], *rows] if rows else []


def _official_rows(runs: Sequence[ReportRun]) -> list[list[str]]:
    """The official numbers of each evaluation that some run has; those that need a wrist are absent where none was predicted."""
    rows: list[list[str]] = []
    found = [official_scores(run.scores.summary) for run in runs]
    for name in dict.fromkeys(name for name, values in found if values):
        here = [values if values and other == name else {} for other, values in found]
        if name in PROTOCOLS:
            rows.append([f"by {PROTOCOLS[name].title}'s official formulas, reflections accepted: means in cm ↓, the others ↑"])
            titles = {key: text(key) for key in PROTOCOLS[name].names}
        else:
            rows.append(["by DexYCB's official formulas, reflections accepted: mean mm ↓ and AUC ↑"])
            titles = {key: key.replace("_", "-") for key in ("absolute", "root_relative", "procrustes")}
        rows += [[title, *(_official_value(values.get(key)) for values in here)] for key, title in titles.items()
                 if any(key in values for values in here)]
    return rows


def _official_value(value: Mapping[str, float] | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else f"{value['mean_mm']:.2f} / {value['auc']:.4f}"


def camera(runs: Sequence[ReportRun]) -> list[str]:
    """Errors in the camera, by what was given to find depth with; empty where no run has any."""
    summaries = [run.scores.summary for run in runs]
    protocols = list(dict.fromkeys(protocol for summary in summaries for protocol in summary.get("camera", {})))
    rows: list[list[str]] = []
    for protocol in sorted(protocols, key=lambda name: list(GIVEN).index(name) if name in GIVEN else len(GIVEN)):
        rows.append([text(protocol) + (f" ({GIVEN[protocol]})" if protocol in GIVEN else "")])
        rows += [_metric_row(runs, key, lambda run, key=key, protocol=protocol: run.scores.summary.get("camera", {})
                             .get(protocol, {}).get(key)) for key in CAMERA_METRICS]
    names = [f"{one} / {other}" for one, other in RATIOS]
    known = [name for name in names if any(name in summary.get("camera_ratios", {}) for summary in summaries)]
    if known:
        rows.append(["ratio of depth errors, on the frames that both protocols have"])
    for name in known:
        rows.append([text(name), *(_cell(summary.get("camera_ratios", {}).get(name), 3, False) for summary in summaries)])
    lines = keypoint_lines([(run.label, run.scores.summary) for run in runs])
    return [table(_head(runs), rows), *(paragraph(line, "soft") for line in lines)] if rows else []


def differences(runs: Sequence[ReportRun], reference: str) -> list[str]:
    """Paired differences to the reference run, of the metrics that every run has."""
    base = next(run for run in runs if run.label == reference)
    others = [run for run in runs if run is not base]
    keys = [key for key in (*headline([(run.label, run.scores.summary) for run in runs]),
                            *(key for key in base.scores.camera if key.endswith(("/depth_mm", "/camera_mpjpe_mm"))))
            if all(key in run.scores.samples or key in run.scores.camera for run in runs)]
    if not keys:
        return [paragraph("Not compared: no metric that every run has.", "soft")]
    rows = []
    for key in keys:
        protocol, _, metric = key.rpartition("/")
        cells = []
        for run in others:
            try:
                found = compare(run.scores, base.scores, key)
            except InputError as error:
                return [paragraph(f"Not compared: {error}", "soft")]
            low, high = found.ci95
            lower, places = METRICS[metric].lower, digits(metric)
            better, worse = ((high < 0), (low > 0)) if lower else ((low > 0), (high < 0))
            style = "good" if better else "bad" if worse else "soft"
            cells.append(f'<span class="{style}">{found.mean:+.{places}f}</span>'
                         f'<span class="ci" title="frames alone: {found.ci95_frames[0]:+.{places}f} to '
                         f'{found.ci95_frames[1]:+.{places}f}">{low:+.{places}f} to {high:+.{places}f}</span>')
        name = METRICS[metric].title + (f", {protocol}" if protocol else "")
        rows.append([f"{text(name)} {'↓' if METRICS[metric].lower else '↑'}", *cells])
    return [table(["", *(f"{text(run.label)} − {text(reference)}" for run in others)], rows),
            paragraph("Same frames, so this is sharper than two intervals side by side. Green: better, red: worse, grey: the "
                      "interval holds zero.", "soft")]


def interval_note(runs: Sequence[ReportRun]) -> str:
    """What the small numbers are."""
    people = sorted({len(run.scores.summary["subjects"]) for run in runs})
    count = " or ".join(map(str, people))
    if not any(any(run.scores.summary["subjects"]) for run in runs):
        return "Small numbers: 95 % bootstrap interval over frames; the dataset does not name its people."
    few = " So few people say little about others: mind the interval." if people[0] < 5 else ""
    return (f"Small numbers: 95 % bootstrap interval, people resampled first ({count} here), then their frames; hover for the "
            f"interval over frames alone.{few}{' Bold: best of the row.' if len(runs) > 1 else ''}")


def _head(runs: Sequence[ReportRun]) -> list[str]:
    return ["", *(f'<span class="key" style="background:{figures.colour(i)}"></span>{text(r.label)}' for i, r in enumerate(runs))]


def _metric_row(runs: Sequence[ReportRun], key: str, entry_of: Callable[[ReportRun], Mapping[str, Any] | None]) -> list[str]:
    """Title and cells of one metric, the best in bold."""
    found = [entry_of(run) for run in runs]
    means = [entry["mean"] for entry in found if entry]
    best = (min if METRICS[key].lower else max)(means, default=None)
    cells = [_cell(entry, digits(key), len(means) > 1 and entry is not None and entry["mean"] == best) for entry in found]
    return [f'<span title="{text(METRICS[key].text)}">{text(heading(key))}</span>', *cells]


def _cell(entry: Mapping[str, Any] | None, places: int, best: bool) -> str:
    if entry is None:
        return "–"
    (low, high), frames = entry["ci95"], entry["ci95_frames"]
    hint = f"frames alone: {frames[0]:.{places}f} to {frames[1]:.{places}f}; n = {entry['n']:,}"
    return (f'<span{" class=best" if best else ""}>{entry["mean"]:.{places}f}</span>'
            f'<span class="ci" title="{hint}">{low:.{places}f}–{high:.{places}f}</span>')
