"""IdHandMesh's three arms: the published networks' stored answers, and what must hold whatever the weights are."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from idhand_cases import GOLDENS, NETS, given, golden_batch, published, random_batch, small, small_method, toy_hand
from pydantic import ValidationError

from options.load import load as load_options
from src.checkpoint import load
from src.convert import convert
from src.idhand import SCALE_M, IdHand, Options, Out, zoom_cue
from utils.errors import InputError
from utils.hand import Posed
from utils.rotation import axis_angle_from_matrix_seed, geodesic, matrix_from_axis_angle, matrix_from_quaternion

# Golden files lie beside this one; one more per salt, if there is (e.g. ours_salt1.npz), is tested by itself.
GOLDEN = sorted((path.stem.partition("_")[0], int(path.stem.partition("_salt")[2] or 0), path)
                for net in NETS for path in GOLDENS.glob(f"{net}*.npz"))
LOSSES = {"verts": ("l1_loss", 1), "normal": ("normal_loss", 0.1), "edge": ("edge_loss", 1), "pose": ("mano_pose_loss", 1),
          "shape": ("mano_shape_loss", 1), "conf": ("conf_loss", 1)}  # ours -> the original's name, and the weight in its number


@pytest.fixture(scope="module")
def hand():
    return toy_hand()


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda case: f"{case[0]}-salt{case[1]}")
def golden(request, tmp_path_factory):
    """(stored arrays, {dtype: (method, batch, forward, heads on the stored feature, losses)}), all through `convert`."""
    net, salt, path = request.param
    folder = tmp_path_factory.mktemp(net)
    torch.save({"epoch": 15, "model_state_dict": published(net, salt)}, folder / "theirs.pt")
    convert(NETS[net], folder / "theirs.pt", folder / "ours.pt")
    found, stored = load(folder / "ours.pt"), np.load(path)
    runs = {}
    for dtype in (torch.float32, torch.float64):
        hand = toy_hand(dtype)
        # Every term is compared, so the second stage's option, under which the branch's alone is computed, is off.
        method = IdHand(Options(**{**found["method_options"], "train_only_conf": False}), hand)
        method.load_state_dict(found["model"])
        method = method.to(dtype).eval()
        batch = golden_batch(hand, torch.from_numpy(stored["f64.gt.mesh"]), dtype)
        with torch.no_grad():
            out = method(batch)
            heads = method.heads(given("feature", 2, 1000, dtype=dtype), batch.identity)
            runs[dtype] = method, batch, out, heads, method.losses(out, batch)
    return stored, runs


def close(value, stored, name, tolerance):
    """Largest difference relative to the array's largest number."""
    expected = stored[f"f64.{name}"]
    error = np.abs(value.double().numpy().reshape(expected.shape) - expected).max()
    assert error <= tolerance * max(np.abs(expected).max(), 1e-12), f"{name}: {error:.2e}"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.float64, 1e-12)], ids=["float32", "float64"])
def test_golden_network(golden, dtype, tolerance):
    """Feature, pose after each iteration, shape and confidence of the original networks, whole and from the stored feature."""
    stored, runs = golden
    method, batch, out, heads, _ = runs[dtype]
    with torch.no_grad():
        close(method.backbone(2 * batch.image - 1), stored, "feature", tolerance)
    for prefix, found in (("", out), ("head.", heads)):
        for i in range(3):
            close(found.poses6d[i], stored, f"{prefix}pose6d_iter{i + 1}", tolerance)
        assert geodesic(found.rotations, matrix_from_axis_angle(
            torch.from_numpy(stored[f"f64.{prefix}axis_angle"]).to(dtype).unflatten(1, (16, 3)))).max() < tolerance
    if "f64.head.shape" in stored:
        close(out.shape, stored, "mano_shape_pred", tolerance)
        close(heads.shape, stored, "head.shape", tolerance)
    if "f64.head.conf" in stored:
        close(out.confidence, stored, "conf_pred", tolerance)
        close(heads.confidence, stored, "head.conf", tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.float64, 1e-7)], ids=["float32", "float64"])
def test_golden_mesh(golden, dtype, tolerance):
    """Mesh and joints of the original networks; in float64 to the 1e-8 that the original adds inside Rodrigues' norm."""
    stored, runs = golden
    method, _, out, heads, _ = runs[dtype]
    for found, mesh, joints in ((out, "mesh_pred", "keypoints_pred"), (heads, "head.mesh", "head.keypoints")):
        close(found.verts / SCALE_M, stored, mesh, tolerance)
        close(method.hand.joints(Posed(found.verts, found.chain)) / SCALE_M, stored, joints, tolerance)


def test_golden_mesh_is_exact_but_for_the_originals_epsilon(golden):
    """Through the original's detour (axis-angle of either sign, 1e-8 inside Rodrigues' norm) float64 agrees to 1e-12."""
    stored, runs = golden
    method, _, _, heads, _ = runs[torch.float64]
    axis_angle = axis_angle_from_matrix_seed(heads.rotations)
    close(axis_angle, stored, "head.axis_angle", 1e-12)
    angle = (axis_angle + 1e-8).norm(dim=-1, keepdim=True)
    rotations = matrix_from_quaternion(torch.cat((torch.cos(angle / 2), torch.sin(angle / 2) * axis_angle / angle), -1))
    close(method.hand(rotations, heads.shape).verts / SCALE_M, stored, "head.mesh", 1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.float64, 1e-8)], ids=["float32", "float64"])
def test_golden_losses(golden, dtype, tolerance):
    """Every loss term of the original on its forward outputs; conf, a difference of large numbers, to 5e-4 in float32."""
    stored, runs = golden
    losses = runs[dtype][-1]
    for name, term in losses.items():
        theirs, weight = LOSSES[name]
        loose = name == "conf" and dtype == torch.float32
        close(weight * term.mean(), stored, f"loss.{theirs}", 5e-4 if loose else tolerance)


def test_published_option_files_are_what_convert_writes(tmp_path):
    """options/dex_ycb_{baseline,given,conf}.yaml build the network of the converted checkpoint (published weights aside)."""
    for net, file in (("baseline", "baseline"), ("ours", "given"), ("conf", "conf")):
        torch.save(published(net), tmp_path / "theirs.pt")
        convert(NETS[net], tmp_path / "theirs.pt", tmp_path / "ours.pt")
        options = load_options(f"options/dex_ycb_{file}.yaml").method.model_copy(update={"weights": None})
        assert options.model_dump(mode="json") == load(tmp_path / "ours.pt")["method_options"]


def test_controlled_arms_differ_by_the_source_of_shape_alone():
    """The controlled pair of option files: equal but for name, method.shape and its loss term."""
    baseline, told = (load_options(f"options/dex_ycb_controlled_{arm}.yaml").model_dump(mode="json")
                      for arm in ("baseline", "given"))
    assert (baseline["method"].pop("shape"), told["method"].pop("shape")) == ("predicted", "given")
    assert baseline["loss"].pop("shape") == 1
    assert baseline.pop("name") != told.pop("name")
    assert baseline == told


@pytest.mark.parametrize("changes", [{"shape": "predicted", "pose_update": "add", "camera_cue": "zoom", "conf_branch": 2},
                                     {"shape": "predicted", "shape_head": "gaussian"},
                                     {"shape": "given", "pose_update": "multiply"},
                                     {"shape": "given", "shape_into": "heads", "identity_noise": 0.1}],
                         ids=["predicted", "gaussian", "given", "heads"])
def test_learns_one_batch(hand, changes):
    """On four samples of noise the weighted loss falls below a third within 60 steps, and every weight gets a gradient."""
    method, batch = small_method(hand, **changes), random_batch(hand)
    optimizer = torch.optim.Adam(method.parameters(), 2e-3)
    totals = []
    for _ in range(60):
        losses = method.losses(method(batch), batch)
        assert tuple(losses) == method.loss_names and all(term.shape == (4,) for term in losses.values())
        total = sum(term.mean() * (0.1 if name in ("normal", "conf") else 1) for name, term in losses.items())
        optimizer.zero_grad()
        total.backward()
        totals.append(total.item())
        optimizer.step()
    falls_below = 0.5 if changes.get("shape_head") == "gaussian" else 1 / 3  # a likelihood has no zero to fall to
    assert totals[-1] < totals[0] * falls_below
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def truth_as_output(method, batch):
    """The Out of a network that is right."""
    posed = method.hand(batch.rotations, batch.shape)
    pose = batch.rotations[..., :2, :].reshape(1, len(batch), 96)
    return Out(pose, batch.rotations, batch.shape, posed.verts, posed.chain, torch.arange(len(batch)).float())


def test_perfect_answer_costs_nothing(hand):
    """The true hand, standing anywhere in the camera, has loss 0 in every term, and decodes to the wrist-relative truth."""
    method, batch = small_method(hand), random_batch(hand)
    out = truth_as_output(method, batch)
    for name, term in method.losses(out, batch).items():
        assert term.max() < 1e-5, name
    answer = method.decode(out, batch)
    torch.testing.assert_close(answer.verts, batch.verts - batch.root[:, None], rtol=0, atol=1e-6)
    torch.testing.assert_close(answer.joints, batch.joints - batch.root[:, None], rtol=0, atol=1e-6)
    assert method.metrics(out, batch)["shape_error"] == 0


def test_calibrated_identity_is_no_target(hand):
    """With an identity that is not the truth, the given arm's mesh follows the identity and its loss the truth."""
    method, batch = small_method(hand, shape="given").eval(), random_batch(hand)
    told = replace(batch, identity=batch.identity + 1)
    with torch.no_grad():
        right, wrong = method(batch), method(told)
        losses = method.losses(wrong, batch)
    assert torch.equal(right.poses6d, wrong.poses6d) and torch.equal(wrong.shape, told.identity)
    target = (batch.verts - batch.root[:, None] + hand.shaped(batch.shape).rest_joints[:, :1]) / SCALE_M
    torch.testing.assert_close(losses["verts"], (wrong.verts / SCALE_M - target).abs().mean((1, 2)))
    assert "shape" not in losses and "shape" not in method.loss_names and "identity" in method.needs


def test_given_arm_without_identity_is_refused(hand):
    """No identity: one line that says what to pass, in place of a mean hand."""
    with pytest.raises(InputError, match=r"method\.shape=given: this model is told whose hand .* pass an identity file"):
        small_method(hand, shape="given")(replace(random_batch(hand), identity=None))


def test_decode_is_wrist_relative_and_turns_with_the_global_rotation(hand):
    """Joint 0 is the origin; a further global rotation of the predicted pose turns mesh and joints about it."""
    method, batch = small_method(hand, pose_update="multiply").eval(), random_batch(hand)
    turn = matrix_from_axis_angle(torch.tensor([0.3, -1.0, 2.0]))
    with torch.no_grad():
        out = method(batch)
        turned_rotations = torch.cat((turn @ out.rotations[:, :1], out.rotations[:, 1:]), 1)
        posed = hand(turned_rotations, out.shape)
        answer = method.decode(out, batch)
        turned = method.decode(out._replace(rotations=turned_rotations, verts=posed.verts, chain=posed.chain), batch)
    assert answer.joints[:, 0].abs().max() == 0 and answer.root is None and answer.confidence is None
    torch.testing.assert_close(turned.verts, answer.verts @ turn.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.joints, answer.joints @ turn.T, rtol=0, atol=1e-5)
    assert torch.equal(answer.joints[:, [4, 8, 12, 16, 20]], answer.verts[:, [745, 317, 444, 556, 673]])


def test_second_stage_moves_the_branch_alone(hand):
    """A training step with train_only_conf changes conf_branch and nothing else, batch-norm statistics included."""
    method, batch = small_method(hand, conf_branch=3, train_only_conf=True), random_batch(hand)
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = torch.optim.Adam(method.parameter_groups(), 1e-2)
    out = method(batch)
    assert not out.verts.requires_grad and out.confidence.requires_grad and method.loss_names == ("conf",)
    method.losses(out, batch)["conf"].mean().backward()
    optimizer.step()
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("conf_branch.") for name in moved)
    assert method.conf_branch.training and not method.backbone.training and not method.eval().conf_branch.training


def test_confidence_does_not_reach_the_backbone(hand):
    """In joint training the ranking loss has a gradient in its branch alone: the feature is detached."""
    method, batch = small_method(hand, conf_branch=2), random_batch(hand)
    method.losses(method(batch), batch)["conf"].mean().backward()
    got = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert got == {"conf_branch"}


def test_confidence_variants(hand):
    """Sigmoid stays in (0, 1), the regression loss is |c + e|, and one sample alone has ranking loss 0."""
    batch = random_batch(hand)
    method = small_method(hand, conf_branch=1, conf_sigmoid=True, conf_drop_out=True, conf_loss="regression")
    out = method(batch)
    assert out.confidence.min() > 0 and out.confidence.max() < 1
    expected = (out.confidence + (out.shape - batch.shape).abs().mean(1)).abs()
    torch.testing.assert_close(method.losses(out, batch)["conf"], expected)
    alone = small_method(hand, conf_branch=1).eval()
    one = batch.rows(slice(0, 1))
    assert alone.losses(alone(one), one)["conf"].tolist() == [0.0] and "rank_accuracy" not in alone.metrics(alone(one), one)
    assert 0 <= alone.metrics(alone(batch), batch)["rank_accuracy"] <= 1


def test_zoom_cue(hand):
    """The cue is the angle under which the crop was cut: resampling leaves it, a longer lens changes it and the answer."""
    method, batch = small_method(hand, camera_cue="zoom").eval(), random_batch(hand)
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    resampled = replace(batch, image=batch.image[..., ::2, ::2], K=half @ batch.K)
    torch.testing.assert_close(zoom_cue(resampled), zoom_cue(batch))
    longer = replace(batch, K=torch.diag(torch.tensor([2.0, 2, 1])) @ batch.K)
    torch.testing.assert_close(zoom_cue(batch) - zoom_cue(longer), torch.full((4,), float(np.log(2) / 0.4)))
    with torch.no_grad():
        assert not torch.allclose(method(batch).shape, method(longer).shape)
        blind = small_method(hand).eval()
        assert torch.equal(blind(batch).shape, blind(longer).shape)


def test_autocast_keeps_geometry_in_float32(hand):
    """Under bf16 autocast the answer is float32, a mesh of its own rotations and shape, and near the full-precision one."""
    method, batch = small_method(hand, pose_update="multiply").eval(), random_batch(hand)
    with torch.no_grad():
        full = method(batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = method(batch)
    assert all(value.dtype == torch.float32 for value in out if value is not None)
    eye = out.rotations @ out.rotations.transpose(-1, -2)
    torch.testing.assert_close(eye, torch.eye(3).expand_as(eye), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.verts, hand(out.rotations, out.shape).verts, rtol=0, atol=1e-6)
    assert 0 < (out.shape - full.shape).abs().max() < 0.05


def test_unlabelled_rows_cost_nothing(hand):
    """Rows without mesh or shape label have every term at zero; the others keep theirs."""
    method, batch = small_method(hand, conf_branch=1).eval(), random_batch(hand)
    has = torch.tensor([True, False, True, True])
    out = method(batch)
    every, some = method.losses(out, batch), method.losses(out, replace(batch, has_verts=has, has_shape=has, has_rotations=has))
    for name in set(every) - {"conf"}:
        assert torch.equal(some[name], every[name] * has)


def test_a_mesh_without_its_pose_numbers_costs_nothing(hand):
    """A labelled mesh whose pose numbers are missing (zeros) has no place about MANO's point: no mesh, root or pose term."""
    method, batch = small_method(hand, root_head=True).eval(), random_batch(hand)
    has, out = torch.tensor([True, False, True, True]), method(batch)
    terms = method.losses(out, replace(batch, has_verts=torch.ones(4, dtype=torch.bool), has_shape=has, has_rotations=has))
    every = method.losses(out, batch)
    for name, term in terms.items():
        assert torch.equal(term, every[name] * has), name


def test_start_poses(hand):
    """identity is a rotation per joint, mean the hand's mean pose, degenerate the baseline's parallel rows."""
    starts = {kind: small_method(hand, start_pose=kind).start for kind in ("identity", "mean", "degenerate")}
    assert starts["identity"].view(16, 6)[3].tolist() == [1, 0, 0, 0, 1, 0]
    assert starts["degenerate"].view(16, 6)[3].tolist() == [1, 0, 0, 1, 0, 0]
    mean = matrix_from_axis_angle(torch.cat((torch.zeros(3), hand.hands_mean)).view(16, 3))
    torch.testing.assert_close(starts["mean"].view(16, 2, 3), mean[:, :2])


def test_checkpoint_holds_no_hand(hand):
    """A state dict has the network's weights alone: nothing of the hand model, nothing derived from it."""
    names = {name.split(".")[0] for name in small_method(hand, start_pose="mean", conf_branch=1).state_dict()}
    assert names == {"backbone", "pose_heads", "shape_head", "conf_branch"}


@pytest.mark.parametrize("changes, line", [
    ({"shape": "given", "conf_branch": 1}, "conf_branch judges a predicted shape"),
    ({"train_only_conf": True}, "train_only_conf needs a confidence branch"),
    ({"conf_branch": 2, "conf_drop_out": True}, "one-layer branch only"),
    ({"start_pose": "degenerate", "pose_update": "multiply"}, "is no rotation"),
    ({"shape": "given", "shape_head": "gaussian"}, "shape_head belongs to a predicted shape"),
    ({"shape_into": "heads"}, "shape_into says where a given shape enters"),
    ({"shape": "given", "identity_noise": 0.1}, "set shape_into: heads"),
    ({"conf_branch": 4}, "Input should be 0, 1, 2, 3 or 6"),
    ({"weights": "IMAGENET1K_V1"}, "published weights need width 1"),
])
def test_options_that_contradict(changes, line):
    """Combinations that mean nothing are refused with the reason."""
    with pytest.raises(ValidationError, match=line):
        small(**changes)


def test_gaussian_shape_head(hand):
    """Its loss is torch's Gaussian likelihood of mean and variance; the covariance that decode gives is that variance."""
    method, batch = small_method(hand, shape_head="gaussian").eval(), random_batch(hand)
    with torch.no_grad():
        out = method(batch)
        likelihood = torch.nn.functional.gaussian_nll_loss
        expected = likelihood(out.shape, batch.shape, out.shape_log_var.exp(), reduction="none").mean(1)
        torch.testing.assert_close(method.losses(out, batch)["shape"], expected)
        answer = method.decode(out, batch)
    torch.testing.assert_close(answer.shape_cov.diagonal(dim1=-2, dim2=-1), out.shape_log_var.exp())
    assert (answer.shape_cov - torch.diag_embed(answer.shape_cov.diagonal(dim1=-2, dim2=-1)) == 0).all()


def test_shape_in_the_heads(hand):
    """Fresh, the heads answer as those that see no shape; once the layers are not zero, the pose depends on the shape told, as it
    would with ten more inputs; noise comes in training alone."""
    plain, seeing = (small_method(hand, shape="given", shape_into=into) for into in ("layer", "heads"))
    assert plain.load_state_dict(seeing.state_dict(), strict=False).missing_keys == []
    seeing.options = seeing.options.model_copy(update={"identity_noise": 0.5})
    plain.eval(), seeing.eval()
    batch = random_batch(hand)
    with torch.no_grad():
        torch.testing.assert_close(seeing(batch).rotations, plain(batch).rotations)
        for layer in seeing.identity_heads:
            layer.weight.normal_()
        first = seeing.pose_heads[0]
        feature, start = torch.randn(4, first[0].in_features - 96), seeing.start.expand(4, -1)
        joined = torch.cat((feature, start, batch.identity), 1)
        weight = torch.cat((first[0].weight, seeing.identity_heads[0].weight), 1)
        by_hand = first[2](torch.relu(first[1](torch.relu(joined @ weight.t() + first[0].bias))))
        torch.testing.assert_close(seeing.heads(feature, batch.identity).poses6d[0], start + by_hand)
        other = replace(batch, identity=batch.identity.flip(0))
        assert not torch.allclose(seeing(batch).rotations, seeing(other).rotations, atol=1e-3)
        torch.testing.assert_close(seeing(batch).rotations, seeing(batch).rotations)
        seeing.train()
        assert not torch.allclose(seeing.heads(feature, batch.identity).poses6d, seeing.heads(feature, batch.identity).poses6d)


COMPILE = """
import torch
from tests.idhand_cases import random_batch, small_method
from utils.hand import HandModel
hand = HandModel.load("template/free_hand_right.npz")
method, batch = small_method(hand, shape="predicted", camera_cue="zoom", pose_update="multiply").eval(), random_batch(hand)
with torch.no_grad():
    expected = method(batch)
    out = torch.compile(method, backend="eager", fullgraph=True)(batch)
torch.testing.assert_close(out.verts, expected.verts)
"""


def test_compiles_in_one_graph():
    """Forward has no graph break: torch.compile traces it whole (eager backend), with equal answers. In a process of its own:
    the shape checks that this one installs cannot be traced."""
    subprocess.run([sys.executable, "-c", COMPILE], cwd=Path(__file__).resolve().parent.parent, check=True)
