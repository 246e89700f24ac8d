"""Samples of report.html: frames that the first run does best, middling and worst on, drawn as every run sees them.

Meshes lie over the picture at the true wrist and can be turned; of methods that predict 2D joints alone, the joints are drawn.
"""
from collections.abc import Sequence

import numpy as np

from utils import report_figures as figures
from utils.report_page import Page, paragraph, table, text
from utils.report_pictures import Choice, PictureOf, Tiles, choose, joint_tiles, tiles, true_hand
from utils.report_tables import ReportRun
from utils.score_metrics import METRICS

MESH_RANK, UV_RANK = "mpvpe_mm", "uv_px"


def add_samples(page: Page, runs: Sequence[ReportRun], faces: np.ndarray | None, picture_of: PictureOf | None, count: int,
                ) -> None:
    """Pictures, `count` in all, and a hand to turn, of the runs that have predictions. faces (f,3): None draws no mesh."""
    runs = [run for run in runs if run.predictions is not None]
    meshes = [run for run in runs if "pred_verts" in run.predictions]
    if meshes and faces is not None:
        _add_meshes(page, _Shown(meshes, MESH_RANK), faces, picture_of, count)
    elif runs and not meshes and picture_of is not None and count:
        shown = _Shown([run for run in runs if "pred_joints_uv" in run.predictions], UV_RANK)
        body = [shown.joints_row(choice, picture_of) for choice in shown.choose(max(count, 3))]
        _add_pictures(page, shown, body, "Green: true joints; blue: predicted.")


def _add_meshes(page: Page, shown: "_Shown", faces: np.ndarray, picture_of: PictureOf | None, count: int) -> None:
    chosen = shown.choose(max(count, 3))
    if picture_of is not None and count:
        body = [shown.mesh_row(choice, picture_of, faces) for choice in chosen]
        _add_pictures(page, shown, body, "Hands are drawn at the true wrist position;")
    of_kind = {kind: [choice for choice in chosen if choice.kind == kind] for kind in ("median", "best", "worst")}
    place = {"median": lambda found: found[len(found) // 2], "best": lambda found: found[0], "worst": lambda found: found[-1]}
    choices = [shown.turned(place[kind](found)) for kind, found in of_kind.items() if found]
    if choices:
        caption = ("Drag to turn, scroll to come nearer. Grey: truth; coloured: prediction, by its distance to the truth. The "
                   "legend shows and hides hands.")
        page.section("A hand to turn", page.figure(figures.meshes(choices, faces), caption))


def _add_pictures(page: Page, shown: "_Shown", body: list[list[str]], how: str) -> None:
    head = ["", "picture", "truth", *(text(run.label) for run in shown.runs)]
    note = f"Ranked by {METRICS[shown.rank].title} of {shown.runs[0].label}. {how} pictures of left hands are mirrored."
    page.section("Best, median and worst frames", table(head, body, "samples"), paragraph(note, "soft"))


class _Shown:
    """Runs with predictions, the same frame in each of them, and the metric that ranks frames."""

    def __init__(self, runs: Sequence[ReportRun], rank: str):
        self.runs, self.rank = runs, rank
        self._rows = [{name: row for row, name in enumerate(run.predictions["name"].tolist())} for run in self.runs]
        self._names = self.runs[0].predictions["name"].tolist()

    def choose(self, count: int) -> list[Choice]:
        """Frames that every run has, by the first run's error."""
        scores = self.runs[0].scores
        error_of = dict(zip(scores.name.tolist(), scores.samples[self.rank].tolist()))
        everywhere = set(error_of).intersection(*self._rows)
        error = np.array([error_of[name] if name in everywhere else np.nan for name in self._names])
        return choose(error, self._names, count)

    def mesh_row(self, choice: Choice, picture_of: PictureOf, faces: np.ndarray) -> list[str]:
        """Cells of the table of pictures, meshes drawn."""
        name, first = self._names[choice.row], self.runs[0].predictions
        verts, root = true_hand(first, choice.row)
        made = tiles(picture_of, int(first["index"][choice.row]), verts, root, self._predicted(name, "pred_verts"), faces)
        return self._row(choice, made)

    def joints_row(self, choice: Choice, picture_of: PictureOf) -> list[str]:
        """Cells of the table of pictures, joints in the picture drawn."""
        name, first, row = self._names[choice.row], self.runs[0].predictions, choice.row
        K_image = np.linalg.inv(np.asarray(first["crop_from_image"][row], np.float64)) @ np.asarray(first["K"][row], np.float64)
        true = np.asarray(first["true_joints_uv"][row], np.float64)
        made = joint_tiles(picture_of, int(first["index"][row]), K_image, true, self._predicted(name, "pred_joints_uv"))
        return self._row(choice, made)

    def _row(self, choice: Choice, made: Tiles) -> list[str]:
        name, unit = self._names[choice.row], METRICS[self.rank].unit
        errors = [float(run.scores.samples[self.rank][run.scores.name == name][0]) for run in self.runs]
        cells = [f"{_image(uri)}{error:.1f} {unit}" for uri, error in zip(made.preds, errors)]
        return [f'{choice.kind}<div class="name">{text(name)}</div>', _image(made.picture), _image(made.truth), *cells]

    def turned(self, choice: Choice) -> tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]:
        """Title, truth and predictions in mm, wrists at the origin."""
        verts, root = true_hand(self.runs[0].predictions, choice.row)
        preds = self._predicted(self._names[choice.row], "pred_verts")
        return (f"{choice.kind}, {choice.error:.1f} mm", 1e3 * (verts - root),
                [(text(run.label), 1e3 * verts) for run, verts in zip(self.runs, preds)])

    def _predicted(self, name: str, column: str) -> list[np.ndarray]:
        return [np.asarray(run.predictions[column][rows[name]], np.float64) for run, rows in zip(self.runs, self._rows)]


def _image(uri: str) -> str:
    return f'<img src="{uri}" alt="" loading="lazy">'
