"""utils/report*.py: one self-contained page with valid figures, the right frames and pictures, and nothing unescaped."""
import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from eval_cases import toy_hand, write_file
from official_export_cases import random_columns, write_predictions

from utils.camera import project
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import read_predictions
from utils.report import ReportRun, write_report
from utils.report_pictures import TILE, choose, tiles
from utils.results import compare
from utils.score import score

K = np.array([[500.0, 0, 159.5], [0, 500.0, 119.5], [0, 0, 1]])
CURVE = {"truth_known": True, "draws": 10, "note": "a mean", "methods": {
    "random": [{"n": n, "mesh_error_mm": 5 / n, "mesh_error_mm_interval": [4 / n, 6 / n]} for n in (1, 5, 20)],
    "top": [{"n": n, "mesh_error_mm": 4 / n, "mesh_error_mm_interval": None} for n in (1, 5, 20)],
    "weighted": [{"n": 1, "mesh_error_mm": None, "mesh_error_mm_interval": None}]}}


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand of MANO's sizes."""
    return toy_hand()


@pytest.fixture(scope="module")
def runs(hand, tmp_path_factory) -> list[ReportRun]:
    """Two runs over the same 12 frames; the second predicts the truth. One label needs escaping."""
    folder, out = tmp_path_factory.mktemp("runs"), []
    for label, perfect in (("base<line> & co", False), ("perfect", True)):
        write_file(folder / f"{perfect}.npz", hand, perfect=perfect)
        predictions = read_predictions(folder / f"{perfect}.npz")
        out.append(ReportRun(label, score(predictions, hand, bootstrap=100), predictions))
    return out


def picture_of(index: int) -> tuple[np.ndarray, np.ndarray, None]:
    """A grey picture whose brightness tells the row."""
    return np.full((240, 320, 3), 10 * index + 20, np.uint8), K, None


class Seen(HTMLParser):
    """Tags, addresses, headings and visible text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text, self.headings, self._in = "", [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href")]
        self._in = tag

    def handle_data(self, data: str) -> None:
        if self._in not in ("script", "style"):
            self.text += data
        if self._in == "h2" and data.strip():
            self.headings.append(data)


def figures_of(html: str) -> list[dict]:
    """The figures' data in the page."""
    return [entry["figure"] for entry in json.loads(re.search(r"const figures = (\[.*\]);\n", html).group(1))]


@pytest.fixture(scope="module")
def page(runs, hand, tmp_path_factory) -> str:
    """The page of both runs with everything in it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    written = write_report(path, "Title <1>", runs, hand=hand, picture_of=picture_of, pictures=6, calibration=CURVE,
                           notes=["a note"])
    assert written == path and [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_page_is_self_contained(page):
    """No address but data URIs, plotly exactly once, figures addressed by id, everything under 8 MB."""
    seen = Seen(page)
    assert seen.addresses and all(address.startswith("data:image/jpeg;base64,") for address in seen.addresses)
    assert "link" not in seen.tags and "iframe" not in seen.tags and seen.tags.count("script") == 2
    assert page.count("plotly.js v") == 1 and len(page) < 8e6
    for number in range(len(figures_of(page))):
        assert f'id="figure-{number}"' in page


def test_page_holds_every_section_and_number(page, runs):
    """Headings in order; the table's means and intervals are those of the scores; labels are escaped."""
    seen = Seen(page)
    assert seen.headings == ["Results", "In the camera", "Difference to base<line> & co, frame by frame",
                             "How large the errors are", "Where the errors are", "Calibration",
                             "Best, median and worst frames", "A hand to turn", "How to read this"]
    assert "<line>" not in page and "base&lt;line&gt; &amp; co" in page and "a note" in seen.text
    for run in runs:
        found = run.scores.summary["metrics"]["mpvpe_mm"]
        assert f"{found['mean']:.2f}" in seen.text and f"{found['ci95'][0]:.2f}–{found['ci95'][1]:.2f}" in seen.text
    difference = compare(runs[1].scores, runs[0].scores, "mpvpe_mm")
    assert difference.ci95[1] < 0 and f'<span class="good">{difference.mean:+.2f}</span>' in page
    assert runs[0].scores.summary["protocol_line"] in seen.text and seen.text.count("index ") == 1


def test_figures_are_valid_plotly(page):
    """Every figure passes plotly's own check of properties, and none holds NaN (json has none)."""
    figures = figures_of(page)
    assert len(figures) == 8
    for figure in figures:
        go.Figure(figure)
        assert figure["data"]
    assert "NaN" not in json.dumps(figures) and "Infinity" not in json.dumps(figures)


def test_figures_show_the_scores(page, runs):
    """PCK ends, bars by joint and person, and the histogram's total against the scores; the meshes against the file."""
    pck, _, histogram, _, joints, people, calibration, meshes = figures_of(page)
    curves = runs[0].scores.summary["curves"]
    np.testing.assert_allclose(pck["data"][0]["y"], curves["joints"], atol=1e-5)
    np.testing.assert_allclose(pck["data"][1]["y"], curves["pa_joints"], atol=1e-5)
    assert abs(sum(histogram["data"][0]["y"]) - 1) < 1e-3
    np.testing.assert_allclose(joints["data"][0]["y"], runs[0].scores.summary["by_joint"]["mpjpe_mm"][1:], atol=1e-3)
    assert people["data"][0]["customdata"] == [4, 4, 4] and people["data"][0]["x"] == ["person 0", "person 1", "person 2"]
    assert [trace["name"] for trace in calibration["data"]] == ["random", "top"]  # weighted has no known error
    assert calibration["data"][0]["error_y"]["array"] == [1.0, 0.2, 0.05] and "error_y" not in calibration["data"][1]
    assert [trace["name"] for trace in meshes["data"]] == 3 * ["truth", "base&lt;line&gt; &amp; co", "perfect"]
    row = int(np.argsort(runs[0].scores.samples["mpvpe_mm"])[6])  # the median of 12
    found, truth = runs[0].predictions, meshes["data"][0]
    expected = 1e3 * (np.asarray(found["true_verts"][row], float) - np.asarray(found["true_joints"][row, 0], float))
    shown = np.stack([truth["x"], -np.array(truth["z"]), truth["y"]], 1)  # x right, z up, y away from the reader
    assert np.abs(shown - expected).max() < 0.06
    assert abs(np.mean(meshes["data"][1]["intensity"]) - runs[0].scores.samples["mpvpe_mm"][row]) < 0.06
    assert np.max(meshes["data"][2]["intensity"]) < 0.1  # the perfect run


def test_pictures_are_of_the_ranked_frames(page, runs):
    """Best, median and worst rows of the first run, four pictures each; brightness tells that each shows its own row."""
    error = runs[0].scores.samples["mpvpe_mm"]
    order = np.argsort(error)
    images = [cv2.imdecode(np.frombuffer(base64.b64decode(uri), np.uint8), cv2.IMREAD_COLOR) for uri in re.findall(
        r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert len(images) == 6 * 4 and all(image.shape == (TILE, TILE, 3) for image in images)
    expected = [*order[:2], *sorted(order[5:7], key=lambda r: error[r]), *order[-2:]]
    brightness = [int(np.bincount(image[image > 15]).argmax()) for image in images[::4]]  # beyond the picture is black
    assert [round((value - 20) / 10) for value in brightness] == expected
    text = Seen(page).text
    assert all(f"{error[row]:.1f} mm" in text and f"s/{row:03d}" in text for row in expected)


def test_tiles_put_the_mesh_where_the_camera_sees_it(hand):
    """A small tetrahedron-like patch of the hand is drawn at its projection, scaled to the tile; the rest is the picture."""
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    verts = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]) + [0.05, 0.02, 0.6]
    made = tiles(picture_of, 3, verts, np.zeros(3), [verts], faces)
    picture, truth = (cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR).astype(int)
                      for uri in (made.picture, made.truth))
    drawn = np.abs(truth - picture).max(2) > 15
    uv = project(torch.from_numpy(verts), torch.from_numpy(K)).numpy()
    scale = TILE / (1.5 * (uv.max(0) - uv.min(0)).max())
    ys, xs = np.nonzero(drawn)
    np.testing.assert_allclose([xs.max() - xs.min(), ys.max() - ys.min()], (uv.max(0) - uv.min(0)) * scale, atol=3)
    np.testing.assert_allclose([(xs.max() + xs.min()) / 2, (ys.max() + ys.min()) / 2], [(TILE - 1) / 2] * 2, atol=2)
    assert made.preds[0] != made.picture


def test_choose_prefers_different_videos():
    """Best three of one video and one other: the other video's frame comes in; missing errors are never chosen; few rows do."""
    error = np.array([1.0, 1.1, 1.2, 9.0, 5.0, np.nan, 6.0, 7.0, 8.0])
    names = ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "c/0", "c/1", "d/0"]
    chosen = choose(error, names, 6)
    assert [(c.kind, c.row) for c in chosen if c.kind == "best"] == [("best", 0), ("best", 4)]
    assert 5 not in {c.row for c in chosen} and len({c.row for c in chosen}) == 6
    assert [c.row for c in choose(np.array([2.0, np.nan]), ["a/0", "a/1"], 9)] == [0]
    assert choose(error, names, 0) == []


def test_page_of_scores_alone(runs, tmp_path):
    """Without predictions, hand or pictures (averaged scores): tables and curves, no samples, no hand to turn."""
    path = write_report(tmp_path / "r.html", "One", [ReportRun("one", runs[0].scores)])
    seen = Seen(path.read_text())
    assert seen.headings == ["Results", "In the camera", "How large the errors are", "Where the errors are", "How to read this"]
    assert "img" not in seen.tags and "mind the interval" in seen.text


def test_official_numbers_are_shown_by_their_own_names(tmp_path):
    """FreiHAND's and HO3D's numbers of scores.json are in the page by the names of scores.txt; without a wrist only aligned."""
    runs = []
    for what in ("freihand", "ho3d_v3"):
        columns = random_columns(8)
        if what == "ho3d_v3":
            del columns["pred_root"]
        predictions = read_predictions(write_predictions(tmp_path / f"{what}.npz", what, columns))
        runs.append(ReportRun(what, score(predictions, None, bootstrap=100), predictions))
    text = Seen(write_report(tmp_path / "r.html", "Two", runs).read_text()).text
    for run in runs:
        for name, value in run.scores.summary["official"].items():
            assert name in text and f"{value:.4f}" in text
    assert "by FreiHAND's official formulas" in text and "by HO3D v3's official formulas" in text
    assert text.count("xyz_mean3d") == 1 and text.count("mesh_al_mean3d") == 2 and "DexYCB's official formulas" not in text


def test_runs_over_other_frames_are_shown_but_not_compared(runs, hand, tmp_path):
    """Different frames: two protocol lines, and in place of differences the reason."""
    write_file(tmp_path / "p.npz", hand, rows=6)
    predictions = read_predictions(tmp_path / "p.npz")
    other = ReportRun("few", score(predictions, hand, bootstrap=100), predictions)
    path = write_report(tmp_path / "r.html", "Two", [runs[0], other], hand=hand)
    text = Seen(path.read_text()).text
    assert "Not compared:" in text and "(6 and 12, 6 of them shared)" in text and "few: dex_ycb s1/test · 6 frames" in text


def test_wrong_calls_get_one_line(runs, tmp_path):
    """No runs, equal labels, an unknown reference: refused before anything is written."""
    for wrong, reference, message in (([], None, "expected runs with different labels, found \\[\\]"),
                                      ([runs[0], runs[0]], None, "expected runs with different labels"),
                                      (runs, "nobody", "no run is called nobody; there are base<line> & co, perfect")):
        with pytest.raises(InputError, match=message):
            write_report(tmp_path / "r.html", "x", wrong, reference=reference)
    assert list(tmp_path.iterdir()) == []
