"""utils/official_score.py: scores from files on disk against the official programs, and what is refused or said."""
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from eval_cases import GOLDENS, golden_numbers
from official_cases import SCENARIOS, scenario, write_json, write_pred, write_truth

from utils import official_score
from utils.errors import InputError
from utils.official_protocols import PROTOCOLS
from utils.official_score import score


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What the official programs gave, their texts too."""
    return {**golden_numbers(), **json.loads((GOLDENS / "official.json").read_text())}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """pred.json and truth folder of scenario main, FreiHAND; read only."""
    folder = tmp_path_factory.mktemp("official")
    hands = scenario("main", "freihand")
    return write_pred(folder / "pred.json", hands), write_truth(folder / "truth", hands)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("protocol", ["freihand", "ho3d_v2", "ho3d_v3"])
def test_golden_scenarios_from_disk(golden, protocol, name, tmp_path):
    """scores.txt byte for byte and every mean, median, AUC and PCK value of scores.json to 1e-9, zipped and indented."""
    dataset, hands = protocol.split("_")[0], scenario(name, protocol)
    pred = write_pred(tmp_path / "pred.json", hands, indent=1 if name == "mirror" else None)
    if name == "zeros":
        with zipfile.ZipFile(tmp_path / "pred.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(pred, "pred.json")
        pred = tmp_path / "pred.zip"
    text = score(protocol, pred, write_truth(tmp_path / "truth", hands), out=tmp_path / "out", count=50,
                 unchecked=name == "nonmano")
    expected = golden[f"{dataset}.{name}.scores_txt"]
    assert (tmp_path / "out" / "scores.txt").read_bytes() == expected.encode() and text.startswith(expected + "\nours, not")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(found["measures"]) == (4 if dataset == "freihand" else 5) - 2 * (name == "nonmano")
    for key, measure in found["measures"].items():
        for kind, unit in (("mean", "_m"), ("median", "_m"), ("auc", ""), ("pck", "")):
            wanted = golden[f"{dataset}.{'main' if name == 'nonmano' else name}.{key}.{kind}"]
            np.testing.assert_allclose(measure[kind + unit], wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["thresholds_m"], np.linspace(0, 0.05, 100), atol=1e-15)
    assert "".join(f"{key}: {value:f}\n" for key, value in found["scores"].items()) == expected
    assert found["files"]["pred"]["sha256"] == hashlib.sha256(pred.read_bytes()).hexdigest()
    assert found["partial"] and found["n"] == 50 and found["unchecked"] is (name == "nonmano")


def test_what_is_said(files, tmp_path):
    """The text names what is ours, that the result is partial or unchecked, and which json of a zip was taken."""
    pred, truth = files
    text = score("freihand", pred, truth, count=50)
    assert "partial: 50 of FreiHAND's 3,960 samples" in text and "unchecked" not in text
    assert "xyz_proper_al_mean3d: 0.898258" in text.split("ours, not the official program's")[1]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(pred, "mine.json")
    text = score("freihand", tmp_path / "a.zip", truth, count=50, unchecked=True)
    assert "took its only other json" in text and "unchecked: units" in text


def test_whole_list_and_longer_labels(monkeypatch, tmp_path):
    """A list of official length is whole; a part of it scores against the whole list's labels as against its own."""
    small = {"freihand": PROTOCOLS["freihand"]._replace(count=50)}
    monkeypatch.setattr(official_score, "PROTOCOLS", small)
    hands = scenario("main", "freihand")
    truth = write_truth(tmp_path / "truth", hands)
    text = score("freihand", write_pred(tmp_path / "pred.json", hands), truth, out=tmp_path / "out")
    assert "whole: all of FreiHAND's 50 samples" in text
    assert not json.loads((tmp_path / "out" / "scores.json").read_text())["partial"]
    part = {key: value[:20] for key, value in hands.items()}
    pred, own = write_pred(tmp_path / "part.json", part), write_truth(tmp_path / "own", part)
    assert score("freihand", pred, truth, count=20) == score("freihand", pred, own, count=20)
    with pytest.raises(InputError, match=r"expected 50 entries for FreiHAND, found 20; .* or score a part with --count 20"):
        score("freihand", pred, truth)
    with pytest.raises(InputError, match=r"expected 30 entries for FreiHAND \(--count\), found 20"):
        score("freihand", pred, truth, count=30)


@pytest.mark.parametrize(("protocol", "entries", "count", "message"), [
    ("freihand", 40, 50, r"pred.json: expected 50 entries for FreiHAND \(--count\), found 40"),
    ("freihand", 0, 50, "found 0; predict the evaluation list"),
    ("ho3d_v2", 3960, None, r"expected 11,524 entries for HO3D v2, found 3,960 \(as many as FreiHAND's evaluation list\)"),
    ("ho3d_v3", 11524, None, r"expected 20,137 .* found 11,524 \(as many as HO3D v2's evaluation list\)"),
    ("freihand", 32560, None, r"found 32,560 \(as many as FreiHAND's training list\)"),
])
def test_wrong_length(protocol, entries, count, message, tmp_path):
    """A list of another length is refused before any vertex is read, and another dataset's count is named."""
    wanted = count or PROTOCOLS[protocol].count
    entry = json.dumps(np.arange(63.0).reshape(21, 3).tolist())
    (tmp_path / "evaluation_xyz.json").write_text(f"[{', '.join([entry] * wanted)}]")
    (tmp_path / "evaluation_verts.json").write_text("[[[0")
    (tmp_path / "pred.json").write_text(f"[[{', '.join([entry] * entries)}], [[[1")
    with pytest.raises(InputError, match=message):
        score(protocol, tmp_path / "pred.json", tmp_path, count=count, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("protocol", "published"), [
    ("freihand", "FreiHAND_pub_v2_eval.zip on the dataset's project page since January 2022"),
    ("ho3d_v3", "local eval.py on the ho3d GitHub repository since November 2024")])
def test_missing_labels(protocol, published, files, tmp_path):
    """No folder, an empty one, or one of the two files only: each says where the labels are published."""
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "evaluation_xyz.json", [])
    for truth in (tmp_path / "none", tmp_path, tmp_path / "half", files[0]):
        with pytest.raises(InputError, match=published):
            score(protocol, files[0], truth, count=50)


def test_unequal_lists(files, tmp_path):
    """Joints and vertices of unequal length, in the prediction or in the labels, and truth and prediction swapped."""
    pred, truth = files
    hands = scenario("main", "freihand")
    write_json(tmp_path / "evaluation_xyz.json", hands["true_xyz"])
    for verts, found in ((hands["true_verts"][:30], 30), (np.tile(hands["true_verts"], (2, 1, 1)), 100)):
        write_json(tmp_path / "evaluation_verts.json", verts)
        with pytest.raises(InputError, match=f"evaluation_verts.json: expected 50 entries of vertices, .*found {found}"):
            score("freihand", pred, tmp_path, count=50)
        write_json(tmp_path / "p.json", [hands["pred_xyz"], verts])
        with pytest.raises(InputError, match=f"p.json: expected 50 entries of vertices, .*found {found}"):
            score("freihand", tmp_path / "p.json", truth, count=50)
    with pytest.raises(InputError, match="joints only, where a prediction holds both"):
        score("freihand", truth / "evaluation_xyz.json", truth, count=50)


@pytest.mark.parametrize("count", [0, -1, 3961])
def test_count_outside_the_list(files, count):
    """--count is 1 to the official number."""
    with pytest.raises(InputError, match=f"--count {count}: expected 1 to 3,960"):
        score("freihand", *files, count=count)


def test_checks_can_be_switched_off(files, tmp_path):
    """Millimetres and a foreign mesh are refused by default; unchecked, both are scored, and said to be unchecked."""
    _, truth = files
    hands = scenario("main", "freihand")
    mm = write_pred(tmp_path / "mm.json", {**hands, "pred_xyz": 1e3 * hands["pred_xyz"], "pred_verts": 1e3 * hands["pred_verts"]})
    foreign = write_pred(tmp_path / "foreign.json", scenario("nonmano", "freihand"))
    with pytest.raises(InputError, match="mm.json.*millimet"):
        score("freihand", mm, truth, count=50)
    with pytest.raises(InputError, match="expected 778 x 3 numbers, found 500 x 3.*--unchecked"):
        score("freihand", foreign, truth, count=50)
    assert "xyz_mean3d: 6" in score("freihand", mm, truth, count=50, unchecked=True)
    assert "not MANO's 778 vertices" in score("freihand", foreign, truth, count=50, unchecked=True)


def test_refusals_leave_nothing(files, tmp_path):
    """NaN in the last sample's vertices, scores that are not finite: no folder is made; --out that is a file is refused."""
    hands = scenario("main", "freihand")
    hands["pred_verts"][49, 777, 2] = np.nan
    pred = write_pred(tmp_path / "pred.json", hands)
    with pytest.raises(InputError, match=r"sample 49 of the vertices \(counted from 0\): a coordinate of point 777 is NaN"):
        score("freihand", pred, files[1], count=50, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hands["pred_verts"][49, 777, 2] = 0
    hands["pred_xyz"][3, 0], hands["pred_xyz"][3, 4] = 0, 1e-160
    with pytest.raises(InputError, match="xyz_scale_trans_al_mean3d is not finite: two predicted joints are next to each other"):
        score("ho3d_v2", write_pred(pred, hands), files[1], count=50, out=tmp_path / "out", unchecked=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="pred.json: expected a folder, found a file; --out"):
        score("freihand", *files, count=50, out=pred)
