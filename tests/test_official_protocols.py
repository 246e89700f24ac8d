"""utils/official_protocols.py: the official programs' numbers, whatever the pieces; what is ours beside them."""
import json

import numpy as np
import pytest
from eval_cases import GOLDENS, golden_numbers
from official_cases import SCENARIOS, scenario

from utils import metrics
from utils.joints import reorder
from utils.official_protocols import F_KINDS, F_THRESHOLDS_M, PROTOCOLS, Official

KINDS = ("mean", "median", "auc", "pck")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What the official programs gave, their texts too."""
    return {**golden_numbers(), **json.loads((GOLDENS / "official.json").read_text())}


def official(protocol: str, hands: dict[str, np.ndarray], *cuts: int) -> Official:
    """All samples, fed in pieces that end at the cuts."""
    out = Official(PROTOCOLS[protocol])
    for start, end in zip((0, *cuts), (*cuts, None)):
        out.add(*(hands[key][start:end] for key in ("pred_xyz", "true_xyz", "pred_verts", "true_verts")))
    return out


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_equal_the_official_programs(golden, protocol, name):
    """Every mean, median, AUC, PCK curve and F to 1e-9 and the text of scores.txt, fed in three uneven pieces."""
    found, dataset = official(protocol, scenario(name, protocol), 1, 33).result(), protocol.split("_")[0]
    assert found.text == golden[f"{dataset}.{name}.scores_txt"] and found.n == 50
    for key, measure in found.measures.items():
        for kind in KINDS:  # of a foreign mesh the joints' numbers are those of main: the joints are the same
            expected = golden[f"{dataset}.{'main' if name == 'nonmano' else name}.{key}.{kind}"]
            np.testing.assert_allclose(getattr(measure, kind), expected, rtol=0, atol=1e-9)
    assert len(found.measures) == len(PROTOCOLS[protocol].joint_sets) + 2 * (name != "nonmano")
    shares = golden[f"{dataset}.{name}.f_mean"] if name == "nonmano" else golden[f"{dataset}.{name}.fscore"][..., 1].mean(0)
    for row, mm in zip(shares, F_THRESHOLDS_M):
        np.testing.assert_allclose([found.values[f"{kind}_{mm}"] for kind in F_KINDS], row, rtol=0, atol=1e-9)


def test_pieces_do_not_matter():
    """Pieces of 1, 20 and 29 samples against one of 50: the same to 1e-12, and measured out of order the same as in order."""
    hands = scenario("main", "ho3d_v2")
    whole, cut = official("ho3d_v2", hands).result(), official("ho3d_v2", hands, 1, 21).result()
    for key, value in whole.values.items():
        assert abs(value - cut.values[key]) < 1e-12
    for key, value in whole.ours.items():
        assert abs(value - cut.ours[key]) < 1e-12


@pytest.mark.parametrize("name", ["main", "mirror", "zeros"])
def test_ours_is_the_proper_alignment(name):
    """`ours` against Procrustes without reflections of all samples at once; it equals the official one where that is proper."""
    hands = scenario(name, "freihand")
    found = official("freihand", hands, 7).result()
    for key, part in (("xyz", "xyz"), ("mesh", "verts")):
        aligned = metrics.procrustes(hands[f"pred_{part}"], hands[f"true_{part}"], reflections=False)
        expected = metrics.measures(metrics.distances(aligned, hands[f"true_{part}"]), 0.0, 0.05)
        assert abs(found.ours[f"{key}_proper_al_mean3d"] - 100 * expected.mean) < 1e-9
        assert abs(found.ours[f"{key}_proper_al_auc3d"] - expected.auc) < 1e-12
        same = abs(found.ours[f"{key}_proper_al_mean3d"] - found.values[f"{key}_al_mean3d"]) < 1e-9
        assert same is (name != "mirror")


def test_frames_do_not_change_what_is_measured():
    """HO3D's OpenGL axes against the same hands in OpenCV's by FreiHAND's protocol: equal, as distances are."""
    cv, gl = (official(name, scenario("main", name)).result() for name in ("freihand", "ho3d_v2"))
    renamed = {"xyz_al_mean3d": "xyz_procrustes_al_mean3d", "xyz_al_auc3d": "xyz_procrustes_al_auc3d"}
    for key, value in cv.values.items():
        assert abs(value - gl.values[renamed.get(key, key)]) < 1e-9
    assert np.array_equal(PROTOCOLS["ho3d_v3"].axes * PROTOCOLS["ho3d_v3"].axes, np.ones(3))


def test_scale_alignment_uses_the_middle_finger():
    """HO3D's second alignment against its words: wrist on wrist, and the wrist to middle MCP as long as the truth's."""
    assert reorder(np.arange(21)[:, None], to="H21", of="T21")[PROTOCOLS["ho3d_v2"].reference, 0] == 9  # T21's middle MCP
    hands = scenario("main", "ho3d_v2")
    pred, true = hands["pred_xyz"], hands["true_xyz"]
    scale = np.linalg.norm(true[:, 4] - true[:, 0], axis=1) / np.linalg.norm(pred[:, 4] - pred[:, 0], axis=1)
    moved = (pred - pred[:, :1]) * scale[:, None, None] + true[:, :1]
    expected = 100 * np.linalg.norm(moved - true, axis=2).mean()
    assert abs(official("ho3d_v2", hands).result().values["xyz_scale_trans_al_mean3d"] - expected) < 1e-9


def test_perfect_predictions():
    """Prediction = truth: zero error, AUC 1 as it is and 1 - 0.5/99 aligned, F 1."""
    hands = scenario("main", "freihand")
    found = official("freihand", {**hands, "pred_xyz": hands["true_xyz"], "pred_verts": hands["true_verts"]}).result().values
    assert found["xyz_mean3d"] == found["mesh_mean3d"] == 0 and found["xyz_auc3d"] == found["mesh_auc3d"] == 1
    assert abs(found["mesh_al_auc3d"] - (1 - 0.5 / 99)) < 1e-12
    assert all(found[f"{kind}_{mm}"] == 1 for kind in F_KINDS for mm in F_THRESHOLDS_M)


def test_without_a_mesh():
    """Joints alone: the lines of the joints and no other; joints with and without a mesh do not mix; nothing has no score."""
    hands = scenario("main", "freihand")
    joints = Official(PROTOCOLS["freihand"])
    joints.add(hands["pred_xyz"], hands["true_xyz"])
    found = joints.result()
    whole = official("freihand", hands).result()
    assert found.values == {key: whole.values[key] for key in ("xyz_mean3d", "xyz_auc3d", "xyz_al_mean3d", "xyz_al_auc3d")}
    with pytest.raises(ValueError, match="mesh of the same kind"):
        joints.add(hands["pred_xyz"], hands["true_xyz"], hands["pred_verts"], hands["true_verts"])
    with pytest.raises(ValueError, match="no sample"):
        Official(PROTOCOLS["freihand"]).result()
