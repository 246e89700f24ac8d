"""utils/comparison.py: the comparison's table from scores.json files holds their numbers, and shows what is not alike."""
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from eval_cases import toy_hand, write_file

from src.summary import ReportOptions, gather, summarise, write_summary
from utils.batch import ROOT_BY
from utils.comparison import COMPARED, DASH, compared, comparison_table, fact_lines
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import read_predictions
from utils.report import ReportRun, write_report
from utils.results import compare, write_scores
from utils.score import Scores, score
from utils.score_metrics import digits

CROPS = {"one": "1.3 x box, 64 px", "two": "1.3 x box, 64 px", "other": "130 px about the centre"}


def trained(lr: float, before: list[dict]) -> dict:
    """What a test notes of a run of 300 steps of 16 images."""
    options = {"method.backbone": "resnet18", "method.width": 0.5, "method.name": "a", "loss.verts": lr, "train.batch": 16,
               "train.lr": lr, "train.steps": 400, "augment.rotate": 30.0}
    return {"steps": 300, "batch": 16, "images": 4800, "seconds": 7.0, "device": "cpu", "options": options, "before": before,
            "data": {"dataset": "toy", "split": "train", "crop": CROPS["one"], "rows": {"frames": 90, "index_hash": "ab"}}}


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand of MANO's sizes."""
    return toy_hand()


@pytest.fixture(scope="module")
def folder(hand, tmp_path_factory) -> Path:
    """Tests of three methods on the same 12 frames: one with a root, one without, one of another crop that notes nothing."""
    place = tmp_path_factory.mktemp("runs")
    speed = {"images_per_s": 1234.5, "repeats": 7, "batch": 64, "device": "Chip", "threads": 2, "precision": "float32"}
    metas = {"one": {"parameters": 4_093_258, "speed": speed, "trained": trained(1e-3, [])},
             "two": {"parameters": 12_345, "speed": speed | {"images_per_s": 5.67, "threads": 1},
                     "trained": trained(5e-4, [{"file": "a.pt", "images": 200}, {"file": "b.pt", "images": None}])},
             "other": {"keypoints": {"path": "uv.npz", "run": "the 2D net"}}}
    for seed, (name, meta) in enumerate(metas.items()):
        dataset = {"dataset": "toy", "split": "test", "crop": CROPS[name]}
        write_file(place / f"{name}.npz", hand, root=name == "one", note=name, meta={"dataset": dataset, **meta},
                   perfect=name == "other", seed=0 if seed else 3)
        write_scores(place / name, score(read_predictions(place / f"{name}.npz"), hand, bootstrap=100))
    return place


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Scores]:
    """The three, read back."""
    return gather(ReportOptions(runs={name: [f"{folder}/{name}/scores.json"] for name in CROPS}))


def cells(table: str, label: str) -> list[str]:
    """The cells of the first row of this label."""
    return [cell.strip() for cell in re.search(rf"^\| {label} \|(.*)\|$", table, re.MULTILINE).group(1).split("|")]


def test_numbers_are_those_of_the_files(folder, runs):
    """Each cell against scores.json: means, half widths, parameters, speed, images seen; a dash where there is no such number."""
    table = comparison_table(compared(runs, draws=100))
    head = table.splitlines()[0]
    assert head.count("|") == 2 + len(COMPARED) + 4 and "PA-MPVPE mm ↓" in head and "camera MPVPE mm ↓" in head
    for name in CROPS:
        summary = json.loads((folder / name / "scores.json").read_text())
        found = cells(table, name)
        for key, cell in zip(COMPARED, found):
            entry = summary["metrics"].get(key)
            if entry is None:
                assert name != "one" and key.startswith("camera_") and cell == DASH
            else:
                low, high = entry["ci95"]
                assert cell == f"{entry['mean']:.{digits(key)}f} ± {(high - low) / 2:.{digits(key)}f}"
    assert cells(table, "one")[6:] == ["predicted root", "4.09", "1,234", "4,800"]
    assert cells(table, "two")[6:] == [DASH, "0.01", "5.7", "5,000 + ?"]
    assert cells(table, "other")[6:] == [DASH] * 4


def test_differences_are_paired(runs):
    """The second table against `compare`, metric by metric; where one run has no root there is a dash."""
    found = compared(runs, "one", ["mpvpe_mm", "pa_f5", "depth_mm"], draws=100)
    table = comparison_table(found).split("\n\n")[1]
    for name in ("two", "other"):
        for key, cell in zip(("mpvpe_mm", "pa_f5"), cells(table, name)):
            expected = compare(runs[name], runs["one"], key, draws=100)
            places, (low, high) = digits(key), expected.ci95
            assert cell == f"{expected.mean:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"
        assert cells(table, name)[2] == DASH
    assert found["differences"]["two"]["mpvpe_mm"]["ci95"] == list(compare(runs["two"], runs["one"], "mpvpe_mm", draws=100).ci95)


def test_what_is_not_alike_is_said(runs):
    """Crop, rate, start, threads: each difference in the line of its runs, what all share once, nothing of the methods' own."""
    found = compared(runs, draws=100)
    assert len(found["protocol"]) == 3 and "12 frames of 3 people" in found["protocol"][0]
    assert found["protocol"][1:] == ["Protocol of one, two: crop: 1.3 x box, 64 px.",
                                     "Protocol of other: crop: 130 px about the centre."]
    assert found["training"][0].startswith("Training of one: backbone resnet18 · width 0.5 · steps 300 · batch 16 · lr 0.001 · ")
    assert found["training"][2] == "Training of other: not noted, or by another program."
    assert found["notes"][0] == "other: given the 2D joints of the 2D net, whose size and time are not counted here."
    both = compared({name: runs[name] for name in ("one", "two")}, draws=100)
    assert both["training"] == [
        "Training: backbone resnet18 · width 0.5 · steps 300 · batch 16 · dataset toy · split train · crop 1.3 x box, 64 px.",
        "Training of one: lr 0.001.", "Training of two: lr 0.0005."]
    assert both["speed"] == ["Images per second of network and decoder: Chip · batches of 64 · float32.",
                             "Images per second of network and decoder of one: 2 threads.",
                             "Images per second of network and decoder of two: 1 thread."]
    assert len(both["protocol"]) == 1 and fact_lines("x", {}) == []
    assert comparison_table(both, "text").splitlines()[-1].startswith("±: half the 95 % bootstrap interval by person")


def test_camera_of_a_named_protocol(folder, runs, hand):
    """A bare camera metric is of what knows least of the person; one with a protocol is that protocol's or a dash."""
    write_file(folder / "told.npz", hand, note="told", meta={"camera_protocol": "K + identity"})
    told = score(read_predictions(folder / "told.npz"), hand, bootstrap=100)
    found = compared({"one": runs["one"], "told": told}, None, ["depth_mm", "K + identity/depth_mm"], draws=100)
    table = comparison_table(found)
    assert "| depth mm ↓ | depth, K + identity, mm ↓ |" in table
    assert cells(table, "one")[:3] == ["4.00 ± 0.00", DASH, "predicted root"]
    assert cells(table, "told")[:3] == ["4.00 ± 0.00", "4.00 ± 0.00", "K + identity"]


def test_words_are_of_the_protocols_that_are_shown(runs):
    """Where hands are placed by K is said where such errors are shown, with their faults; stand-ins count, and are counted."""
    def with_camera(scores: Scores, **meta) -> Scores:
        summary = {**scores.summary, "meta": {**scores.summary["meta"], **meta}}
        summary["camera"] = {**summary["camera"], "K": summary["camera"]["predicted root"]}
        summary["camera_keypoints"] = {"source": "its own 2D joints", "faults": {"K": "3 of 12 frames have no wrist position"}}
        return replace(scores, summary=summary)

    one = with_camera(runs["one"], placed_by={ROOT_BY[0]: 5, ROOT_BY[1]: 7})
    notes = compared({"one": one}, draws=100)["notes"]
    assert notes[0] == "In the camera nothing is aligned; predicted root: where the method itself puts the wrist."
    assert notes[1] == "one: 5 of 12 frames could not be placed and count where its search starts." and len(notes) == 3
    notes = compared({"one": one}, metrics=["K/depth_mm"], draws=100)["notes"]
    assert notes[0] == "In the camera nothing is aligned; K: found from 2D joints and the camera matrix."
    assert notes[1] == "one: placed by its own 2D joints; K: 3 of 12 frames have no wrist position." and len(notes) == 3
    placed = with_camera(runs["one"], placed_by={ROOT_BY[1]: 12})
    assert "could not be placed" not in " ".join(compared({"one": placed}, draws=100)["notes"])
    assert "camera" not in " ".join(compared({"one": one}, metrics=["mpvpe_mm"], draws=100)["notes"])


def test_report_writes_it_between_named_markers(folder, runs, hand, tmp_path):
    """`report` with table: comparison: summary.json, the answer and the README's named table hold it; other tables stay."""
    readme = tmp_path / "README.md"
    marks = "<!-- results:begin -->\nkept\n<!-- results:end -->\n<!-- results:s1:begin -->\nold\n<!-- results:s1:end -->\n"
    readme.write_text(marks)
    options = ReportOptions(runs={name: [f"{folder}/{name}/scores.json"] for name in CROPS}, table="comparison", reference="one",
                            readme=str(readme), readme_mark="s1", bootstrap=100)
    told = write_summary(options, tmp_path, runs)
    found = compared(runs, "one", draws=100)
    assert told.startswith(comparison_table(found, "text")) and "paired 95 %" not in told
    assert readme.read_text() == marks.replace("old", comparison_table(found).strip())
    written = json.loads((tmp_path / "summary.json").read_text())["comparison"]
    assert written == json.loads(json.dumps(found)) and written["runs"]["one"]["parameters"] == 4_093_258
    missing = ReportOptions(**{**options.model_dump(), "readme_mark": "s2"})
    with pytest.raises(InputError, match="expected the markers <!-- results:s2:begin --> and <!-- results:s2:end -->, once each"):
        write_summary(missing, tmp_path, runs)


def test_page_has_the_same_columns(runs, tmp_path):
    """report.html holds size, speed and images seen of the runs that noted them."""
    write_report(tmp_path / "report.html", "t", [ReportRun(label, scores) for label, scores in runs.items()])
    page = (tmp_path / "report.html").read_text()
    assert "what it costs" in page and all(cell in page for cell in ("4.09", "1,234", "5,000 + ?"))


def test_what_cannot_be_compared_is_refused(folder, runs, hand):
    """Other frames, with or without a reference; a reference that is no run; a metric that is none: one line each."""
    write_file(folder / "few.npz", hand, rows=7, note="few")
    few = {"one": runs["one"], "few": score(read_predictions(folder / "few.npz"), hand, bootstrap=100)}
    for reference in (None, "one"):
        with pytest.raises(InputError, match=r"one and few scored different frames \(12 and 7, 7 of them shared\); a comp"):
            compared(few, reference)
    with pytest.raises(InputError, match="report.reference: no run is called zero; there are one, two, other"):
        compared(runs, "zero")
    for name in ("mpjpe", "K/mpjpe_mm"):
        with pytest.raises(InputError, match=f"report.metrics = {name}: expected one of mpjpe_mm, .*<protocol>/<one of camera_"):
            summarise(ReportOptions(table="comparison", metrics=[name]), runs)
