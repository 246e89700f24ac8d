"""The hand model against the numbers of manopth, smplx, MANO's own code and the identity-aware models (goldens)."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.joints import TIPS
from utils.rotation import axis_angle_from_matrix_seed, matrix_from_axis_angle, matrix_from_rows6d

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from fill import uniform
from toy_hand import F64, error, toy

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = dict(np.load(GOLDENS / "toy_mano_posed.npz"))  # golden_mano.npz with every 13th vertex (verts[:, ::13]), joints whole
AUX = dict(np.load(GOLDENS / "toy_mano_aux.npz"))  # golden_aux.npz rot.* and mano.*, every 13th vertex


def pose_inputs(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, bool]:
    """Pose vector and whether it is PCA, of a golden's `pca45` | `pca6` | `aa` part."""
    given = {key: torch.from_numpy(GOLDEN[f"in.{key}"]).to(dtype) for key in ("rot", "pca", "aa")}
    fingers = given["aa"] if name == "aa" else given["pca"][:, :int(name[3:])]
    return torch.cat((given["rot"], fingers), 1), name != "aa"


@pytest.mark.parametrize("key", sorted(key[:-6] for key in GOLDEN if key.startswith("manopth.") and ".c" in key and "verts" in key
                                       and "extra" not in key))
def test_manopth(key):
    """manopth's 36 combinations of pose space, mean, centring and translation to 1e-6 m; centring is that library's own step."""
    _, space, flat, centre, trans = key.split(".")
    hand = toy()
    pose, pca = pose_inputs(space, torch.float32)
    posed = hand(hand.rotations_from_pose(pose, pca, flat == "flat1"), torch.from_numpy(GOLDEN["in.betas"]))
    if trans == "t1":  # manopth skips centring as soon as any translation is given
        posed = posed.moved(torch.from_numpy(GOLDEN["in.trans"]))
    joints = hand.joints(posed, "manopth")
    if trans == "t0" and centre != "cNone":
        origin = joints[:, int(centre[1:])]
        posed, joints = posed.moved(-origin), joints - origin[:, None]
    assert error(posed.verts[:, ::13], GOLDEN[f"{key}.verts"] / 1000) < 1e-6
    assert error(joints, GOLDEN[f"{key}.joints"] / 1000) < 1e-6


@pytest.mark.parametrize("case", ["nobetas", "zeropose", "root_palm", "c9_mixed_trans", "left", "rot6d"])
def test_manopth_extras(case):
    """manopth's options: no betas, flat hand, palm root, translation of one row, left hand, 6D global rotation; 1e-6 m."""
    hand = toy(side="left") if case == "left" else toy()
    pose, pca = pose_inputs("pca45", torch.float32)
    shape, trans = torch.from_numpy(GOLDEN["in.betas"]), torch.zeros(4, 3)
    rotations = hand.rotations_from_pose(pose, pca, flat_mean=False)
    if case == "rot6d":
        columns = matrix_from_rows6d(torch.from_numpy(GOLDEN["in.rot6d"])).transpose(1, 2)  # manopth's own 6D means columns
        rotations = torch.cat((columns[:, None], rotations[:, 1:]), 1)
    if case == "zeropose":
        rotations, shape = torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10)
    if case == "nobetas":
        shape = torch.zeros(4, 10)
    if case == "c9_mixed_trans":
        trans = torch.from_numpy(GOLDEN["in.trans"]) * torch.tensor([1.0, 0, 0, 0])[:, None]
    posed = hand(rotations, shape)
    joints = hand.joints(posed)
    verts_mm, joints_mm = GOLDEN[f"manopth.extra.{case}.verts"], GOLDEN[f"manopth.extra.{case}.joints"]
    if case == "nobetas":  # centred on joint 9
        trans = -joints[:, 9]
    if case == "root_palm":
        joints[:, 0] = (posed.verts[:, 95] + posed.verts[:, 22]) / 2
    assert error(posed.moved(trans).verts[:, ::13], verts_mm / 1000) < 1e-6
    assert error(joints + trans[:, None], joints_mm / 1000) < 1e-6


@pytest.mark.parametrize("key", sorted(key[:-6] for key in GOLDEN if key.startswith("smplx.") and ".flat" in key
                                       and "verts" in key))
def test_smplx(key):
    """smplx's entries to 1e-6 m. Its pca45 is no PCA: with 45 components it reads the numbers as axis-angle."""
    _, space, flat, trans = key.split(".")
    hand = toy()
    pose, pca = pose_inputs(space, torch.float32)
    pca = pca and space != "pca45"
    rotations = hand.rotations_from_pose(pose, pca, flat == "flat1")
    posed = hand(rotations, torch.from_numpy(GOLDEN["in.betas"]))
    if trans == "t1":
        posed = posed.moved(torch.from_numpy(GOLDEN["in.trans"]))
    else:
        full = torch.from_numpy(GOLDEN[f"{key}.full_pose"]).unflatten(1, (16, 3))
        assert error(rotations, matrix_from_axis_angle(full).numpy()) < 1e-5
        assert bool(GOLDEN[f"{key}.attr_use_pca"]) == pca
    assert error(posed.verts[:, ::13], GOLDEN[f"{key}.verts"]) < 1e-6
    assert error(posed.chain, GOLDEN[f"{key}.joints"]) < 1e-6


def test_smplx_layer_and_tips():
    """smplx's layer fed with matrices, and its fingertip ids."""
    hand = toy()
    pose, _ = pose_inputs("aa", torch.float32)
    posed = hand(hand.rotations_from_pose(pose, pca=False, flat_mean=True), torch.from_numpy(GOLDEN["in.betas"]))
    posed = posed.moved(torch.from_numpy(GOLDEN["in.trans"]))
    assert error(posed.verts[:, ::13], GOLDEN["smplx.layer_rotmat.verts"]) < 1e-6
    assert error(posed.chain, GOLDEN["smplx.layer_rotmat.joints"]) < 1e-6
    assert TIPS["smplx"] == tuple(GOLDEN["smplx.extra.tip_vertex_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("key", ["webuser.pca45.flat0.t1", "webuser.pca6.flat0.t1", "webuser.pca45.flat1.t1", "ho3d.fullpose"])
def test_manos_own_code(key, dtype):
    """MANO's chumpy code and HO3D's convention (float64): 1e-9 m in float64, 1e-6 m in float32."""
    hand = toy(dtype)
    pose, pca = pose_inputs("aa" if "ho3d" in key else key.split(".")[1], dtype)
    flat = "ho3d" in key or "flat1" in key
    posed = hand(hand.rotations_from_pose(pose, pca, flat), torch.from_numpy(GOLDEN["in.betas"]).to(dtype))
    posed = posed.moved(torch.from_numpy(GOLDEN["in.trans"]).to(dtype))
    tolerance = 1e-9 if dtype == F64 else 1e-6
    assert error(posed.verts[:, ::13], GOLDEN[f"{key}.verts"]) < tolerance
    if "ho3d" in key:
        assert error(hand.joints(posed, "ho3d", order="H21"), GOLDEN["ho3d.fullpose.joints21"]) < tolerance
    else:
        assert error(posed.chain, GOLDEN[f"{key}.joints"]) < tolerance


def test_freihand_joints():
    """Joints regressed from the posed mesh with FreiHAND's fingertips."""
    hand = toy()
    pose, pca = pose_inputs("aa", torch.float32)
    posed = hand(hand.rotations_from_pose(pose, pca, flat_mean=False), torch.from_numpy(GOLDEN["in.betas"]))
    assert error(hand.joints(posed, "freihand", "regressed"), GOLDEN["freihand_style.aa.flat0.joints21"]) < 1e-6


def test_the_identity_aware_models_layer():
    """golden_aux mano.*: flat axis-angle and PCA with mean, millimetres, and the first shape in the mean pose; 1e-6 m."""
    hand = toy()
    pose = torch.from_numpy(uniform("input.gt_pose", (2, 48), -0.5, 0.5))
    shape = torch.from_numpy(uniform("input.gt_shape", (2, 10), -2, 2))
    for name, pca, flat in (("flat", False, True), ("pca45", True, False)):
        posed = hand(hand.rotations_from_pose(pose, pca, flat), shape)
        assert error(posed.verts[:, ::13], AUX[f"mano.{name}.verts_mm"] / 1000) < 1e-6
        assert error(hand.joints(posed), AUX[f"mano.{name}.joints_mm"] / 1000) < 1e-6
    mean = hand.rotations_from_pose(torch.zeros(48), pca=True, flat_mean=False)  # what the original calls the rest hand
    assert error(hand(mean, shape[0]).verts[::13], AUX["mano.rest_mesh_m"]) < 1e-6


def test_degenerate_6d_gives_a_finite_hand():
    """The baseline's degenerate start pose: flat by the originals' axis-angle; taken as it is, still finite."""
    hand = toy()
    start = matrix_from_rows6d(torch.tensor([1.0, 0, 0, 1, 0, 0])).expand(16, 3, 3)
    through = matrix_from_axis_angle(axis_angle_from_matrix_seed(start))
    assert torch.equal(through, torch.eye(3).expand(16, 3, 3))
    assert torch.isfinite(hand(start, torch.zeros(10)).verts).all()
