"""utils/score.py and utils/results.py: metrics against their definitions, files, comparison, tables, the line of each fault."""

import numpy as np
import pytest
import torch
from eval_cases import toy_hand, write_file

from utils import metrics
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import T21_FROM_H21, TIPS
from utils.predictions import read_predictions
from utils.results import compare, read_scores, results_table, told, write_readme_table, write_scores
from utils.score import METRICS, Scores, score


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand of MANO's sizes."""
    return toy_hand()


@pytest.fixture(scope="module")
def scored(hand, tmp_path_factory) -> tuple[Scores, dict[str, np.ndarray]]:
    """Scores of a file of 12 random rows, and the file's columns."""
    path = tmp_path_factory.mktemp("scored") / "p.npz"
    arrays = write_file(path, hand)
    return score(read_predictions(path), hand, bootstrap=200), {k: v.astype(float) for k, v in arrays.items()}


def test_scores_equal_their_definitions(scored, hand):
    """Each metric of each row against a plain loop written from its definition."""
    scores, data = scored
    regressor = np.concatenate([hand.J_regressor.numpy(), np.eye(778)[list(TIPS["manopth"])]])[list(T21_FROM_H21)]
    for row in range(12):
        pred_v, pred_j = 1e3 * data["pred_verts"][row], 1e3 * data["pred_joints"][row]
        true_v, true_j = (1e3 * (data[key][row] - data["true_joints"][row, 0]) for key in ("true_verts", "true_joints"))
        shaped = [hand.shaped(torch.from_numpy(data[key][row])) for key in ("pred_shape", "true_shape")]
        wrists = [1e3 * s.rest_joints[0].numpy() for s in shaped]
        rest = [1e3 * (s.rest_verts - s.rest_joints[0]).numpy() for s in shaped]
        regressed = [regressor @ v for v in (pred_v, true_v)]

        def mean(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.mean([np.linalg.norm(x - y) for x, y in zip(a, b)]))

        offset = np.array([0.0, 3.0, 4.0])
        aligned = metrics.procrustes(pred_v[None], true_v[None], reflections=False)[0]
        expected = {
            "mpjpe_mm": mean(pred_j, true_j), "mpvpe_mm": mean(pred_v, true_v), "pa_mpvpe_mm": mean(aligned, true_v),
            "seed_root_relative_mpjpe_mm": mean(regressed[0] - regressed[0][0], regressed[1] - regressed[1][0]),
            "seed_root_relative_mpvpe_mm": mean(pred_v - regressed[0][0], true_v - regressed[1][0]),
            "seed_mpvpe_mm": mean(pred_v + wrists[0], true_v + wrists[1]), "rest_mesh_mm": mean(*rest),
            "shape_error": float(np.abs(data["pred_shape"][row] - data["true_shape"][row]).mean()),
            "root_mm": 5.0, "depth_mm": 4.0,
            "camera_mpjpe_mm": mean(pred_j + offset, true_j), "camera_mpvpe_mm": mean(pred_v + offset, true_v)}
        for key, value in expected.items():
            assert abs(scores.samples[key][row] - value) < 2e-4, key  # float32 columns
    assert set(scores.samples) == set(METRICS) - {"uv_px", "uv_crop_px"}
    assert list(scores.summary["camera"]) == ["predicted root"]
    np.testing.assert_array_equal(scores.values("predicted root/depth_mm"), scores.samples["depth_mm"])


def test_summary_is_the_mean_of_the_samples(scored):
    """scores.json: means, n, by subject and by joint are averages over samples; PCK ends agree with the samples."""
    scores, _ = scored
    for key, entry in scores.summary["metrics"].items():
        assert abs(entry["mean"] - scores.samples[key].mean()) < 1e-12 and entry["n"] == 12
        assert entry["ci95_frames"][0] <= entry["mean"] <= entry["ci95_frames"][1]
    table = scores.summary["by_subject"]
    assert [table[s]["n"] for s in ("0", "1", "2")] == [4, 4, 4]
    assert abs(table["1"]["mpvpe_mm"] - scores.samples["mpvpe_mm"][scores.subject == 1].mean()) < 1e-12
    official = scores.summary["official"]
    assert set(official) == {"absolute", "root_relative", "procrustes"}
    assert abs(official["root_relative"]["mean_mm"] - scores.samples["mpjpe_mm"].mean()) < 1e-3
    assert official["procrustes"]["mean_mm"] <= scores.samples["pa_mpjpe_mm"].mean() * 1.2  # another objective, near it
    by_joint = scores.summary["by_joint"]
    assert by_joint["mpjpe_mm"][0] < 1e-4 and abs(np.mean(by_joint["mpjpe_mm"]) - scores.samples["mpjpe_mm"].mean()) < 1e-9
    curve = np.array(scores.summary["curves"]["joints"])
    assert abs(np.trapezoid(curve) / 99 - scores.samples["auc_joints"].mean()) < 1e-12
    for part in ("s1/test", "12 frames of 3 people", "6 right and 6 left hands (mirrored)"):
        assert part in scores.summary["protocol_line"]


def test_scoring_does_not_depend_on_chunks_or_threads(scored, hand, tmp_path, monkeypatch):
    """One row at a time in three threads gives the samples of one chunk in one, and torch keeps its thread count."""
    write_file(tmp_path / "p.npz", hand)
    monkeypatch.setattr("utils.score.CHUNK", 1)
    before = torch.get_num_threads()
    again = score(read_predictions(tmp_path / "p.npz"), hand, bootstrap=200, threads=3)
    assert torch.get_num_threads() == before
    for key, value in scored[0].samples.items():
        np.testing.assert_allclose(again.samples[key], value, rtol=0, atol=1e-9)
    assert again.summary["metrics"]["f5"]["ci95"] == scored[0].summary["metrics"]["f5"]["ci95"]


def test_perfect_predictions_score_perfectly(hand, tmp_path):
    """Prediction = truth: errors at float32 rounding, F-scores and AUC at the top."""
    write_file(tmp_path / "p.npz", hand, perfect=True, root=False)
    means = {k: v["mean"] for k, v in score(read_predictions(tmp_path / "p.npz"), hand, bootstrap=100).summary["metrics"].items()}
    assert max(v for k, v in means.items() if k.endswith("_mm")) < 1e-3
    assert min(means[k] for k in ("f5", "f15", "pa_f5", "pa_f15")) == 1.0
    assert min(means["auc_joints"], means["pa_auc_verts"]) > 0.994


def test_what_cannot_be_scored_is_left_out_or_refused(hand, tmp_path):
    """No root: no camera errors. No hand: no seed numbers. Unlabelled rows: fewer n. No labels at all, another hand: refused."""
    write_file(tmp_path / "a.npz", hand, root=False, unlabelled=5)
    scores = score(read_predictions(tmp_path / "a.npz"), None, bootstrap=100)
    assert {"root_mm", "camera_mpjpe_mm", "seed_mpvpe_mm", "rest_mesh_mm"}.isdisjoint(scores.samples)
    assert "shape_error" in scores.samples
    assert scores.summary["n"] == 12 and scores.summary["metrics"]["mpvpe_mm"]["n"] == 7
    assert np.isnan(scores.samples["f5"]).tolist() == [True] * 5 + [False] * 7
    write_file(tmp_path / "b.npz", hand, unlabelled=12)
    with pytest.raises(InputError, match="no row has true joints, so there is nothing to score"):
        score(read_predictions(tmp_path / "b.npz"), hand)
    with pytest.raises(InputError, match="made with hand model toy .* but this run uses other"):
        score(read_predictions(tmp_path / "a.npz"), toy_hand(1, "other"))


def test_told_shape_is_the_shape_used(hand, tmp_path):
    """For a method that is told a shape, shape error and MANO frame follow the identity column, and the table says so."""
    arrays = write_file(tmp_path / "p.npz", hand, told=True)
    scores = score(read_predictions(tmp_path / "p.npz"), hand, bootstrap=100)
    expected = np.abs(arrays["identity"] - arrays["true_shape"]).mean(1)
    np.testing.assert_allclose(scores.samples["shape_error"], expected, atol=1e-6)
    table = results_table([("a", scores.summary)])
    assert told(scores.summary) == "truth" and "Shape told to the method: a: truth." in table


def test_scores_on_disk_compared_and_tabled(scored, hand, tmp_path):
    """Written and read back equal; paired comparison by name; the table holds the numbers and the protocol once."""
    path = write_scores(tmp_path / "run", scored[0])
    back = read_scores(tmp_path / "run")
    assert path.name == "scores.json" and back.summary == scored[0].summary
    assert all(np.array_equal(back.samples[key], value) for key, value in scored[0].samples.items())
    difference = compare(back, scored[0], "mpvpe_mm")
    assert difference.mean == 0 and difference.ci95 == (0, 0)
    mixed = Scores(back.summary, {k: v[::-1] for k, v in back.samples.items()}, back.joint_errors_mm[::-1], back.name[::-1],
                   back.subject[::-1])
    assert compare(mixed, scored[0], "f5").mean == 0
    table = results_table([("one", back.summary), ("two|three", back.summary)])
    mean = back.summary["metrics"]["mpvpe_mm"]["mean"]
    assert table.count(f"| {mean:.2f} [") == 2 and table.count("index ") == 1 and "two\\|three" in table
    assert len({len(line) for line in results_table([("one", back.summary), ("two", back.summary)], "text").split("\n")[:4]}) == 1


def test_broken_scores_get_one_line(scored, tmp_path):
    """Other json, other version, missing or broken samples, other frames: each its line."""
    write_scores(tmp_path, scored[0])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="other.json: expected a scores.json, found other json"):
        read_scores(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"format": "hand-scores", "version": 0}')
    with pytest.raises(InputError, match="scores of version 0, this program reads version 1; score again"):
        read_scores(tmp_path / "other.json")
    few = Scores(scored[0].summary, {k: v[:3] for k, v in scored[0].samples.items()}, scored[0].joint_errors_mm[:3],
                 scored[0].name[:3], scored[0].subject[:3])
    with pytest.raises(InputError, match="scored different frames \\(12 and 3, 3 of them shared\\)"):
        compare(scored[0], few, "f5")
    with pytest.raises(InputError, match="nonsense is not among the scores of toy"):
        compare(scored[0], few, "nonsense")
    write_scores(tmp_path, few)
    with pytest.raises(InputError, match="samples.npz: 3 frames, but scores.json beside it counts 12; score again"):
        read_scores(tmp_path)
    (tmp_path / "samples.npz").write_bytes((tmp_path / "samples.npz").read_bytes()[:-30])
    with pytest.raises(InputError, match="samples.npz: expected per-frame scores, found a file that breaks"):
        read_scores(tmp_path)
    (tmp_path / "samples.npz").unlink()
    with pytest.raises(InputError, match="samples.npz: expected a file, found nothing"):
        read_scores(tmp_path)


def test_readme_table_goes_between_the_markers(tmp_path):
    """Only the text between the markers changes, also the second time; a README without them is refused."""
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    for table in ("| a |\n", "| b |\n"):
        write_readme_table(path, table)
    assert path.read_text() == "before\n<!-- results:begin -->\n| b |\n<!-- results:end -->\nafter\n"
    path.write_text("nothing here")
    with pytest.raises(InputError, match="expected the markers"):
        write_readme_table(path, "x")
