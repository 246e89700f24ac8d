"""Scores of joints in the picture: alone (a 2D network) or beside a mesh; files, tables, comparison and the page of them."""
import base64
import re

import cv2
import numpy as np
import pytest
from eval_cases import toy_hand, write_file

from src.summary import ReportOptions, mean_over_files, summarise
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import read_predictions
from utils.report import ReportRun, write_report
from utils.report_pictures import TILE, joint_tiles
from utils.results import compare, read_scores, results_table, write_scores
from utils.score import Scores, score

K = np.array([[500.0, 0, 160], [0, 500.0, 120], [0, 0, 1]])


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand of MANO's sizes."""
    return toy_hand()


@pytest.fixture(scope="module")
def run(hand, tmp_path_factory) -> ReportRun:
    """Scores of a file of 2D joints alone, half a pixel off; two of its 12 rows unlabelled."""
    path = tmp_path_factory.mktemp("uv") / "p.npz"
    write_file(path, hand, uv="alone", unlabelled=2)
    predictions = read_predictions(path)
    return ReportRun("pose2d", score(predictions, hand, bootstrap=100), predictions)


@pytest.fixture(scope="module")
def mesh(hand, tmp_path_factory) -> ReportRun:
    """The same frames by a method of meshes that was given 2D joints."""
    path = tmp_path_factory.mktemp("mesh") / "p.npz"
    write_file(path, hand, uv="too", unlabelled=2)
    predictions = read_predictions(path)
    return ReportRun("mesh", score(predictions, hand, bootstrap=100), predictions)


def picture_of(index: int) -> tuple[np.ndarray, np.ndarray, None]:
    """A dark picture."""
    return np.full((240, 320, 3), 40, np.uint8), K, None


def test_pixels_of_the_picture_and_of_the_crop(run):
    """Half a pixel to the right everywhere: 0.5 px in the picture, 1 px in a crop of scale 2; by joint, person and threshold."""
    summary = run.scores.summary
    assert set(summary["metrics"]) == set(run.scores.samples) == {"uv_px", "uv_crop_px"}
    for key, value in (("uv_px", 0.5), ("uv_crop_px", 1.0)):
        entry = summary["metrics"][key]
        assert entry["mean"] == pytest.approx(value, abs=1e-4) and entry["n"] == 10 and entry["unit"] == "px"
        assert np.isnan(run.scores.samples[key]).tolist() == [True] * 2 + [False] * 10
    np.testing.assert_allclose(summary["by_joint"]["uv_px"], 0.5, atol=1e-4)
    assert summary["by_subject"]["1"]["n"] == 4 and summary["by_subject"]["1"]["uv_px"] == pytest.approx(0.5, abs=1e-4)
    curve, thresholds = np.array(summary["curves"]["uv"]), np.array(summary["curves"]["thresholds_px"])
    assert (curve[thresholds > 0.51] == 1).all() and (curve[thresholds < 0.49] == 0).all() and thresholds[-1] == 20
    assert "alignment: none, pixels of the picture" in summary["protocol_line"] and summary["official"] is None


def test_beside_a_mesh_they_are_two_more_metrics(mesh):
    """A method of meshes given 2D joints: all metrics of meshes, and these; the table's columns are those of meshes."""
    found = mesh.scores.summary["metrics"]
    assert {"mpjpe_mm", "f5", "uv_px", "uv_crop_px"} <= set(found) and found["uv_px"]["n"] == 10
    table = results_table([("mesh", mesh.scores.summary)])
    assert "2D joints" not in table.splitlines()[0] and "MPVPE mm ↓" in table


def test_nothing_to_score(hand, tmp_path):
    """No row labelled, or no column of labels at all: one line."""
    write_file(tmp_path / "p.npz", hand, uv="alone", unlabelled=12)
    with pytest.raises(InputError, match="p.npz: no row has true joints, so there is nothing to score"):
        score(read_predictions(tmp_path / "p.npz"), hand)


def test_files_tables_and_comparison(run, mesh, tmp_path):
    """Read back equal; the table shows pixels; a metric that a run lacks is named, whoever asks for it."""
    write_scores(tmp_path, run.scores)
    back = read_scores(tmp_path)
    assert back.summary == run.scores.summary and np.isnan(back.joint_errors_mm).all()
    table = results_table([("pose2d", back.summary)])
    assert "| 2D joints px ↓ | 2D joints in the crop px ↓ | frames |" in table.replace("|  |", "|", 1) and "| 0.50 [" in table
    both = results_table([("pose2d", back.summary), ("mesh", mesh.scores.summary)])
    assert "MPJPE mm ↓" in both and "2D joints px ↓" in both and "| pose2d | – |" in both
    assert compare(back, mesh.scores, "uv_px", 100).mean == pytest.approx(0, abs=1e-6)
    lacking = "mpvpe_mm is not among the scores of toy; there are uv_px, uv_crop_px"
    with pytest.raises(InputError, match=lacking):
        compare(mesh.scores, back, "mpvpe_mm")
    with pytest.raises(InputError, match=lacking):
        summarise(ReportOptions(), {"pose2d": back})
    assert summarise(ReportOptions(metric="uv_px"), {"pose2d": back})["pose2d"]["uv_px"] == pytest.approx(0.5, abs=1e-4)
    assert mean_over_files([back, back], 100).summary["metrics"]["uv_px"]["mean"] == pytest.approx(0.5, abs=1e-4)
    empty = Scores(back.summary, {"uv_px": np.full(12, np.nan)}, back.joint_errors_mm, back.name, back.subject)
    with pytest.raises(InputError, match="no frame has both, so there is nothing to compare"):
        compare(back, empty, "uv_px")


def test_page_of_2d_joints(run, mesh, hand, tmp_path):
    """Tables, curves and pictures with joints drawn, no mesh to turn; beside a run of meshes the page holds both kinds."""
    page = write_report(tmp_path / "r.html", "2D", [run], hand=hand, picture_of=picture_of, pictures=3).read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == ["Results", "How large the errors are", "Where the errors are", "Best, median and worst frames",
                        "How to read this"]
    assert page.count("data:image/jpeg") == 3 * 3 and "0.5 px" in page and "joints in the picture" in page
    page = write_report(tmp_path / "r.html", "both", [mesh, run], hand=hand, picture_of=picture_of, pictures=3).read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert "A hand to turn" in headings and "Difference to mesh, frame by frame" in headings
    difference = page.split("Difference to mesh")[1].split("</section>")[0]
    assert "2D joints" in difference and "MPJPE" not in difference and "Not compared" not in difference


def test_joints_are_drawn_where_they_are():
    """A wide skeleton, whole picture or stored crop alike: drawn pixels span its extent in the tile, centred."""
    rng = np.random.default_rng(0)
    true = np.array([160, 120]) + rng.uniform(-50, 50, (21, 2))
    crop = np.array([[2.0, 0, -100], [0, 2.0, -60], [0, 0, 1]])
    for shown_from_image in (np.eye(3), crop):
        shown = (np.full((400, 500, 3), 40, np.uint8), shown_from_image @ K)
        made = joint_tiles(lambda index, shown=shown: shown, 0, K, true, [true + 5])
        picture, truth, pred = (cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
                                .astype(int) for uri in (made.picture, made.truth, made.preds[0]))
        ys, xs = np.nonzero(np.abs(truth - picture).max(2) > 60)
        scale = TILE / (1.5 * (true.max(0) - true.min(0)).max())
        wanted = (true.max(0) - true.min(0)) * scale + 6  # and the dots' size
        np.testing.assert_allclose([xs.max() - xs.min(), ys.max() - ys.min()], wanted, atol=3)
        np.testing.assert_allclose([(xs.max() + xs.min()) / 2, (ys.max() + ys.min()) / 2], [(TILE - 1) / 2] * 2, atol=2)
        ys, xs = np.nonzero(np.abs(pred - picture).max(2) > 60)
        np.testing.assert_allclose((xs.max() + xs.min()) / 2, (TILE - 1) / 2 + 5 * scale, atol=2)
