"""src/camera_space.py and utils/camera_scores.py: hands placed by 2D joints under each protocol, told, averaged, compared."""
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import toy_hand, write_file

from src.camera_space import KeypointsFile, camera_scores, keypoints_of, load_camera_identities, place, shapes_by_protocol
from src.identity import Identity, write_identity
from src.summary import ReportOptions, comparison_lines, mean_over_files, summarise
from utils.batch import ROOT_BY
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions, PredictionsWriter, read_predictions
from utils.results import compare, ratio, read_scores, results_table, write_scores
from utils.score import Scores, score, with_camera


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand of MANO's sizes."""
    return toy_hand()


def changed(path: Path, **columns: np.ndarray | None) -> Predictions:
    """The file with some columns replaced, or left out where None."""
    found = read_predictions(path)
    kept = {key: np.array(found[key]) for key in found.columns if key != "name"} | columns
    with PredictionsWriter(path.with_name("changed.npz"), found.meta) as writer:
        writer.append(name=found["name"].tolist(), **{key: value for key, value in kept.items() if value is not None})
    return read_predictions(path.with_name("changed.npz"))


@pytest.fixture()
def perfect(hand, tmp_path) -> Predictions:
    """Predictions and 2D joints equal to the truth; rotations, no root."""
    write_file(tmp_path / "p.npz", hand, perfect=True, root=False, uv="too", rotations=True)
    return read_predictions(tmp_path / "p.npz")


def depths(found) -> dict[str, float]:
    """Mean depth error by protocol, mm."""
    return {protocol: float(np.nanmean(values["depth_mm"])) for protocol, values in found.samples.items()}


def test_truth_is_placed_where_it_is(hand, perfect):
    """Right hands and exact 2D joints: every protocol and metric under 0.05 mm (float32 columns)."""
    shapes = shapes_by_protocol(perfect, [{s: perfect["true_shape"][s] for s in range(3)}])
    assert list(shapes) == ["K", "K + identity", "K + true shape"]
    del shapes["K + identity"]  # rows of one person have different shapes in this file
    found = camera_scores(perfect, hand, keypoints_of(perfect), shapes, bootstrap=100)
    for values in found.samples.values():
        assert set(values) == {"camera_mpjpe_mm", "camera_mpvpe_mm", "depth_mm", "root_mm"}
        assert max(np.abs(value).max() for value in values.values()) < 0.05


def test_a_protocols_shape_is_posed_with_the_predicted_rotations(hand, perfect):
    """Wrong shapes, right rotations: K is wrong by the hand's size, K + true shape is not; K's errors by definition."""
    rng = np.random.default_rng(0)
    other = hand(*(_tensor(x) for x in (perfect["pred_rotations"], perfect["true_shape"] + rng.normal(0, 1, (12, 10)))))
    joints = (hand.joints(other) - other.chain[:, :1]).numpy()
    wrong = changed(perfect.path, pred_joints=joints, pred_verts=(other.verts - other.chain[:, :1]).numpy())
    found = camera_scores(wrong, hand, keypoints_of(wrong), shapes_by_protocol(wrong), bootstrap=100)
    assert depths(found)["K"] > 1 and depths(found)["K + true shape"] < 0.05
    placed = place(wrong, hand, keypoints_of(wrong), slice(0, 12))
    expected = 1e3 * np.linalg.norm(placed[0] + placed[2][:, None] - wrong["true_joints"], axis=2).mean(1)
    np.testing.assert_allclose(found.samples["K"]["camera_mpjpe_mm"], expected, atol=1e-3)
    np.testing.assert_allclose(found.samples["K"]["root_mm"],
                               1e3 * np.linalg.norm(placed[2] - wrong["true_joints"][:, 0], axis=1), atol=1e-3)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float64))


def test_a_mesh_is_scaled_by_its_bones(hand, perfect):
    """No rotations predicted, meshes 1.2 times too large: K is off by a fifth of the distance, K + true shape is exact."""
    large = changed(perfect.path, pred_rotations=None, pred_verts=1.2 * perfect["pred_verts"],
                    pred_joints=1.2 * perfect["pred_joints"])
    found = camera_scores(large, hand, keypoints_of(large), shapes_by_protocol(large), bootstrap=100)
    np.testing.assert_allclose(found.samples["K"]["depth_mm"], 0.2 * 700, rtol=1e-3)
    assert depths(found)["K + true shape"] < 0.1
    assert found.summary["camera_ratios"]["K + true shape / K"]["mean"] < 1e-3


def test_draws_are_averaged_and_people_must_be_known(hand, perfect):
    """Two draws: each frame's mean over both; a person without identity is named; ratios are those of the means."""
    shapes = [{s: np.full(10, 0.1 * (draw + s)) for s in range(3)} for draw in range(2)]
    both, *each = (camera_scores(perfect, hand, keypoints_of(perfect), {"K": None, **shapes_by_protocol(perfect, some)},
                                 bootstrap=100) for some in (shapes, shapes[:1], shapes[1:]))
    expected = np.mean([found.samples["K + identity"]["camera_mpvpe_mm"] for found in each], 0)
    np.testing.assert_allclose(both.samples["K + identity"]["camera_mpvpe_mm"], expected)
    entry = both.summary["camera"]["K + identity"]["depth_mm"]
    assert entry["mean"] == pytest.approx(depths(both)["K + identity"]) and entry["n"] == 12
    quotient = both.summary["camera_ratios"]["K + identity / K"]
    assert quotient["mean"] == pytest.approx(depths(both)["K + identity"] / depths(both)["K"])
    assert quotient["ci95"][0] <= quotient["mean"] <= quotient["ci95"][1]
    with pytest.raises(InputError, match=r"no identity of subject 2; there are files for \[0, 1\]"):
        shapes_by_protocol(perfect, [{0: np.zeros(10), 1: np.zeros(10)}])


@pytest.mark.parametrize("told, protocol", [("truth", "K + true shape"), ("identities", "K + identity"), ("mean", "K")])
def test_a_told_method_answers_for_one_protocol(hand, tmp_path, told, protocol):
    """What it was told names the protocol, and its own hand is what is placed; further identities are refused."""
    write_file(tmp_path / "p.npz", hand, told=True, root=False, uv="too", meta={"told": told})
    predictions = read_predictions(tmp_path / "p.npz")
    assert shapes_by_protocol(predictions) == {protocol: None}
    with pytest.raises(InputError, match="test.camera_identity: this method is told whose hand it sees"):
        shapes_by_protocol(predictions, [{}])
    write_file(tmp_path / "p.npz", hand, told=True, root=False, uv="too", meta={"told": "a tale"})
    with pytest.raises(InputError, match="told a tale: expected one of nothing, mean, identities, truth"):
        shapes_by_protocol(read_predictions(tmp_path / "p.npz"))


def test_a_refined_file_is_reported_by_its_protocol(hand, tmp_path):
    """A file with a root and camera_protocol in its meta: scores in the camera under that name, without keypoints."""
    write_file(tmp_path / "p.npz", hand, meta={"camera_protocol": "K + identity"})
    scores = score(read_predictions(tmp_path / "p.npz"), hand, bootstrap=100)
    assert list(scores.summary["camera"]) == ["K + identity"]
    assert scores.summary["camera"]["K + identity"]["depth_mm"]["mean"] == pytest.approx(4.0, abs=1e-3)


def test_rows_that_cannot_be_placed_or_scored(hand, perfect, caplog):
    """No confidence, NaN pixels: NaN, counted and told once per protocol. No label, no true shape: NaN, not counted."""
    confidence, uv = np.ones((12, 21)), np.array(perfect["pred_joints_uv"])
    confidence[0], uv[1] = 0, np.nan
    joints, shape = np.array(perfect["true_joints"]), np.array(perfect["true_shape"])
    joints[2], shape[3] = np.nan, np.nan
    some = changed(perfect.path, pred_joints_uv=uv, pred_uv_confidence=confidence, true_joints=joints, true_shape=shape)
    with caplog.at_level(logging.WARNING):
        found = camera_scores(some, hand, keypoints_of(some), shapes_by_protocol(some), bootstrap=100)
    assert np.isnan(found.samples["K"]["root_mm"]).tolist() == [True] * 3 + [False] * 9
    assert np.isnan(found.samples["K + true shape"]["root_mm"]).tolist() == [True] * 4 + [False] * 8
    assert found.summary["camera"]["K"]["root_mm"]["n"] == 9
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "K: 2 of 11 frames have no wrist position: 2 with fewer than two keypoints",
        "K + true shape: 2 of 10 frames have no wrist position: 2 with fewer than two keypoints"]
    none = changed(perfect.path, pred_uv_confidence=np.zeros((12, 21)))
    with pytest.raises(InputError, match="^K: not scored: the method's own 2D joints place none of 12 frames"):
        camera_scores(none, hand, keypoints_of(none), shapes_by_protocol(none), bootstrap=100)


def test_keypoints_are_matched_by_name(hand, perfect):
    """Rows in any order get their own keypoints; missing frames are counted, other mirroring and no keypoints refused."""
    names = perfect["name"].tolist()
    file = KeypointsFile(perfect.path)
    order = np.random.default_rng(1).permutation(12)
    found = file.rows([names[i] for i in order], np.array(perfect["mirrored"])[order])
    np.testing.assert_array_equal(found.uv, np.asarray(perfect["pred_joints_uv"], float)[order])
    assert (found.confidence == 1).all() and found.source == str(perfect.path)
    with pytest.raises(InputError, match=r"p.npz lacks 2 of the 14 frames \(first: other/1\)"):
        file.require([*names, "other/1", "other/2"])
    with pytest.raises(InputError, match="s/000 is mirrored there and not here, or here and not there"):
        file.rows(names, ~np.array(perfect["mirrored"]))
    write_file(perfect.path.with_name("mesh.npz"), hand)
    with pytest.raises(InputError, match="mesh.npz: no column pred_joints_uv"):
        KeypointsFile(perfect.path.with_name("mesh.npz"))


def test_identities_may_not_come_from_scored_frames(hand, tmp_path):
    """A folder of files, one of draws, and a list load alike; a scored frame among those that calibrated is refused."""
    for place_ in (tmp_path / "one", tmp_path / "draws/0", tmp_path / "draws/1"):
        place_.mkdir(parents=True)
        write_identity(place_ / "8.json", Identity(8, np.arange(10.0), hand.info, 1, "random", frames=("s/000",)))
    for spec, count in ((str(tmp_path / "one"), 1), (str(tmp_path / "draws"), 2), ([str(tmp_path / "one/8.json")], 1)):
        found = load_camera_identities(spec, hand, ["s/001"])
        assert len(found) == count and found[0][8].tolist() == list(range(10))
        with pytest.raises(InputError, match="1 of 1 calibration frames are scored as well"):
            load_camera_identities(spec, hand, ["s/000", "s/001"])


@pytest.fixture()
def scored(hand, tmp_path) -> Scores:
    """Scores of imperfect predictions with errors in the camera by protocol, and by the root they predict."""
    write_file(tmp_path / "s.npz", hand, uv="too", rotations=True)
    predictions = read_predictions(tmp_path / "s.npz")
    identities = [{s: predictions["true_shape"][s] for s in range(3)}]
    found = camera_scores(predictions, hand, keypoints_of(predictions), shapes_by_protocol(predictions, identities), 100)
    return with_camera(score(predictions, hand, bootstrap=100), found.samples, found.summary)


def test_scores_in_the_camera_on_disk_and_in_tables(scored, tmp_path):
    """Read back equal; the table has a row per protocol and the ratios; compared and divided by "<protocol>/<metric>"."""
    write_scores(tmp_path / "run", scored)
    back = read_scores(tmp_path / "run")
    assert back.summary == scored.summary and back.camera.keys() == scored.camera.keys() and len(back.camera) == 16
    table = results_table([("a", back.summary)], "markdown")
    for protocol in ("predicted root", "K", "K + identity", "K + true shape"):
        mean = back.summary["camera"][protocol]["depth_mm"]["mean"]
        assert f"| a | {protocol} |" in table and f" {mean:.2f} [" in table
    assert "a: ratio of depth errors, K + identity / K: " in table and "placed by the method's own 2D joints" in table
    assert "stand-in" not in table
    lost = {**back.summary, "meta": {**back.summary["meta"], "placed_by": {ROOT_BY[0]: 12}}}
    words = "12 of 12 frames were placed by nothing: their root is a stand-in."
    assert f"\n{words}\n" in results_table([("a", lost)], "text")
    assert f"\na: {words}\n" in results_table([("a", lost), ("b", back.summary)], "text")
    difference = compare(back, scored, "K + identity/depth_mm", 100, metric_b="K/depth_mm")
    means = {protocol: np.mean(back.camera[f"{protocol}/depth_mm"]) for protocol in ("K", "K + identity")}
    assert difference.mean == pytest.approx(means["K + identity"] - means["K"])
    quotient = ratio(back, scored, "K + identity/depth_mm", 100, metric_b="K/depth_mm")
    assert quotient.as_dict() == back.summary["camera_ratios"]["K + identity / K"]
    with pytest.raises(InputError, match="K/f5 is not among the scores of toy; there are mpjpe_mm, .*K/depth_mm"):
        compare(back, scored, "K/f5")


def test_scores_in_the_camera_are_averaged_over_files(scored):
    """Two files of one run: protocols averaged frame by frame; the report's metric and ratios may be of protocols."""
    other = Scores(scored.summary, scored.samples, scored.joint_errors_mm, scored.name, scored.subject,
                   {key: 3 * value for key, value in scored.camera.items()})
    mean = mean_over_files([scored, other], 100)
    expected = 2 * scored.summary["camera"]["K"]["depth_mm"]["mean"]
    assert mean.summary["camera"]["K"]["depth_mm"]["mean"] == pytest.approx(expected)
    summary = summarise(ReportOptions(metric="K/depth_mm", reference="one"), {"one": scored, "mean": mean})
    assert summary["differences"]["mean"]["mean"] == pytest.approx(expected / 2)
    assert summary["mean"]["ci95"] == mean.summary["camera"]["K"]["depth_mm"]["ci95"]
    ratios = {"thrice": ("mean", "K/depth_mm", "one", "K/depth_mm")}
    summary = summarise(ReportOptions(ratios=ratios), {"one": scored, "mean": mean})
    assert summary["ratios"]["thrice"]["mean"] == pytest.approx(2) and summary["ratios"]["thrice"]["n"] == 12
    assert comparison_lines(summary)[0].startswith("thrice: ratio 2.000 [2.000, 2.000], 95 % by person")
    with pytest.raises(InputError, match="report.ratios.thrice: no run is called mean; there are one"):
        summarise(ReportOptions(ratios=ratios), {"one": scored})
    with pytest.raises(InputError, match="report.metric = K/nothing: expected one of mpjpe_mm, .*<protocol>/<one of camera_"):
        summarise(ReportOptions(metric="K/nothing"), {"one": scored})
