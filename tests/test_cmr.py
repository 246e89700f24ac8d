"""cmr: modules and losses against the originals' goldens, what must hold whatever the weights are, and that it learns."""
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cmr_cases import formula_pyramid, free_hand, free_pyramid, hands, small
from idhand_cases import GOLDENS, fill, given
from pydantic import ValidationError

from src.checkpoint import load_weights, save_weights
from src.cmr import SCALE_M, Options, Out, SelfAttention
from src.losses import mean_abs, surface_losses
from src.maps import FINGERS, finger_sums, pair_sums
from src.register import RegisterOptions
from src.stage import ConvNorm
from utils.batch import JointSet
from utils.camera import project
from utils.errors import InputError
from utils.hand import Posed
from utils.heatmap import draw_gaussian

VARIANTS = ("sg", "pg", "g")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    return free_pyramid(tmp_path_factory.mktemp("pyramid"))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "cmr_modules.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def filled(module, rename=lambda name: name):
    """The module with weights by formula under the originals' names, in eval mode."""
    state = {name: torch.from_numpy(fill(rename(name), value.shape)) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()


def true_out(method, batch, sharp=12.0):
    """What a perfect network says: the true mesh at every level, maps that peak at the joints, the mask."""
    cells = batch.image.shape[-1] // 2
    maps = torch.logit(draw_gaussian(batch.joints_uv, 2 * cells, cells, 1.5).clamp(1e-6, 1 - 1e-6))
    mask = sharp * (2 * F.adaptive_avg_pool2d(batch.mask[:, None], cells) - 0.99)
    both = torch.cat((maps, mask), 1)
    last = both if method.options.silhouette else maps
    before = {"sg": [mask, maps], "pg": [maps, maps], "g": [maps]}[method.options.variant]
    return Out([*before, last], method.decoder.levels((batch.verts - batch.root[:, None]) / SCALE_M))


def test_golden_attention(golden):
    """Self-attention of a vector of 12, weights by formula: the original's answer; at gamma 0 the vector itself."""
    module = filled(SelfAttention(12), lambda name: f"{name.split('.')[0]}_conv.{name.split('.')[1]}" if "." in name else name)
    assert torch.equal(module.gamma.detach(), golden["self_attention_gamma"])
    latent = given("latent", 3, 12)
    torch.testing.assert_close(module(latent).detach(), golden["self_attention"], rtol=1e-5, atol=1e-6)
    assert torch.equal(SelfAttention(12)(latent), latent)


def test_golden_convolution(golden):
    """Convolution with bias, batch norm and ReLU in eval mode: the original's ConvBlock."""
    found = filled(ConvNorm(3, 4, 3))(given("image", 2, 3, 8, 8)).detach()
    torch.testing.assert_close(found, golden["convblock"], rtol=1e-5, atol=1e-6)


def test_golden_losses(golden):
    """The mesh terms on the toy mesh with noise, and cross-entropy by logits, against the originals' values."""
    with np.load(GOLDENS / "toy_mesh.npz") as stored:
        verts, faces = torch.from_numpy(stored["vertices_0"]).float(), torch.from_numpy(stored["face_0"].astype(np.int64))
    true = ((verts - verts[0]) / SCALE_M).expand(2, -1, -1)
    pred = true + given("noise", 2, 778, 3, low=-0.05, high=0.05)
    normal, edge = surface_losses(pred, true, faces)
    bce = F.binary_cross_entropy_with_logits(torch.logit(given("prob", 2, 21, 8, 8, low=0.01, high=0.99)),
                                             given("target", 2, 21, 8, 8, low=0, high=1))
    for name, value in (("l1", mean_abs(pred, true)), ("normal", normal), ("edge", edge), ("bce", bce)):
        torch.testing.assert_close(value.mean(), golden[f"loss_{name}"], rtol=1e-5, atol=1e-7)


def test_sums_of_maps():
    """Ten sums of two fingertips' maps and five of a finger's four, in order, each joint but the wrist in one finger."""
    maps = torch.rand(2, 21, 4, 4)
    pairs, fingers = pair_sums(maps), finger_sums(maps)
    torch.testing.assert_close(pairs[:, 0], maps[:, 4] + maps[:, 8])
    torch.testing.assert_close(pairs[:, 9], maps[:, 16] + maps[:, 20])
    torch.testing.assert_close(fingers[:, 1], maps[:, 5] + maps[:, 6] + maps[:, 7] + maps[:, 8])
    assert sorted(sum(FINGERS, ())) == list(range(1, 21)) and pairs.shape[1] == 10 and fingers.shape[1] == 5


@pytest.mark.parametrize("variant, silhouette, maps", [
    ("sg", True, (1, 21, 22)), ("pg", True, (21, 21, 22)), ("pg", False, (21, 21, 21)), ("g", True, (21, 22)),
    ("g", False, (21, 21))])
def test_sizes(variant, silhouette, maps):
    """Maps of half the crop and meshes of all levels; the mask is a term, a need and an answer only where it is drawn."""
    method, batch = small(formula_pyramid(), variant=variant, silhouette=silhouette).eval(), hands(2, pixels=80)
    with torch.no_grad():
        out = method(batch)
        terms, pred = method.losses(out, batch), method.decode(out, batch)
    assert [tuple(drawn.shape) for drawn in out.logits] == [(2, count, 40, 40) for count in maps]
    assert [tuple(mesh.shape) for mesh in out.meshes] == [(2, count, 3) for count in (778, 389, 195, 98)]
    assert tuple(terms) == method.loss_names == ("verts", "heatmap", *(("mask",) * silhouette), "normal", "edge")
    assert all(term.shape == (2,) and term.isfinite().all() for term in terms.values())
    assert ("mask" in method.needs) == silhouette == (pred.mask is not None) == ("mask_iou" in method.metrics(out, batch))
    assert not silhouette or pred.mask.shape == (2, 40, 40) and (pred.mask.min() >= 0) and (pred.mask.max() <= 1)
    assert pred.verts.shape == (2, 778, 3) and pred.joints.shape == (2, 21, 3) and pred.root.isfinite().all()
    assert torch.sigmoid(out.logits[0]).mean() < 0.2  # begins near empty


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns(variant, pyramid):
    """Trained on one batch for fifty steps the mesh's terms fall to a fifth, the maps' and the masks' to a half or less."""
    method, batch = small(pyramid, variant=variant, place_loss=True), hands()
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    weights = {"verts": 1, "heatmap": 10, "place": 0.05, "mask": 0.5, "normal": 0.1, "edge": 1}
    first = None
    for _ in range(50):
        terms = {name: term.mean() for name, term in method.losses(method(batch), batch).items()}
        first = first or {name: term.item() for name, term in terms.items()}
        optimizer.zero_grad()
        sum(weights[name] * term for name, term in terms.items()).backward()
        optimizer.step()
    fallen = {name: term.item() / first[name] for name, term in terms.items()}
    assert fallen["verts"] < 0.25 and fallen["edge"] < 0.2 and fallen["normal"] < 1
    assert fallen["heatmap"] < 0.75 and fallen["place"] < 0.5 and fallen["mask"] < 0.5, fallen


def test_shares_no_state_between_rows(pyramid):
    """In eval mode a row's answer does not depend on its neighbours."""
    method, batch = small(pyramid, variant="sg").eval(), hands(3)
    with torch.no_grad():
        alone, among = method(batch.rows(slice(1, 2))), method(batch)
    for one, all_ in zip([*alone.logits, *alone.meshes], [*among.logits, *among.meshes], strict=True):
        torch.testing.assert_close(all_[1:2], one, rtol=1e-4, atol=1e-5)


def test_losses_against_definition(pyramid):
    """verts: levels' mean absolute errors in units of 0.2 m about the wrist, summed; mask: cross-entropy of both silhouettes."""
    method, batch = small(pyramid, variant="sg"), hands(2)
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(2, count, 32, 32, generator=generator) for count in (1, 21, 22)]
    meshes = [torch.randn(2, count, 3, generator=generator) for count in (778, 389, 195, 98)]
    terms = method.losses(Out(logits, meshes), batch)
    true, expected = (batch.verts - batch.root[:, None]) / 0.2, torch.zeros(2)
    for level, pred in enumerate(meshes):
        expected += (pred - true).abs().mean((1, 2))
        true = true[:, pyramid.kept[level]]
    torch.testing.assert_close(terms["verts"], expected)
    mask = batch.mask.reshape(2, 32, 2, 32, 2).mean((2, 4))
    drawn = torch.sigmoid(torch.stack((logits[0][:, 0], logits[2][:, 21])))
    torch.testing.assert_close(terms["mask"], -(mask * drawn.log() + (1 - mask) * (1 - drawn).log()).mean((2, 3)).sum(0))
    joints = torch.sigmoid(torch.stack((logits[1], logits[2][:, :21])))
    target = draw_gaussian(batch.joints_uv, 64, 32, 1.5)
    expected = -(target * joints.log() + (1 - target) * (1 - joints).log()).mean((2, 3, 4)).sum(0)
    torch.testing.assert_close(terms["heatmap"], expected)


def test_published_mask_is_whole(pyramid):
    """target published: a cell is hand where at least two of its four pixels are; the term of that mask's own logits is least."""
    method, batch = small(pyramid, variant="g", target="published"), hands(1)
    mask = torch.zeros(1, 64, 64)
    mask[:, 10, 10] = mask[:, 20, 20] = mask[:, 21, 21] = 1
    whole = torch.full((1, 32, 32), -20.0)
    whole[:, 10, 10] = 20  # of pixels 20 and 21; the lone pixel's cell (5, 5) is none
    out = method(batch)
    logits = [out.logits[0], torch.cat((out.logits[1][:, :21], whole[:, None]), 1)]
    assert method.losses(Out(logits, out.meshes), replace(batch, mask=mask))["mask"].item() < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_unlabelled_rows_are_silent(variant, pyramid):
    """A row without labels has zero terms and sends no gradient to maps or meshes; its neighbour's are as before."""
    method, batch = small(pyramid, variant=variant, place_loss=True).eval(), hands(2)
    some = torch.tensor([True, False])
    zeros = {name: getattr(batch, name) * some.view(-1, *[1] * (getattr(batch, name).dim() - 1))
             for name in ("verts", "root", "joints_uv", "mask", "uv_confidence")}
    bare = replace(batch, has_verts=some, has_root=some, has_uv=some, has_mask=some, **zeros)
    found = method(batch)
    out = Out(*([value.detach().requires_grad_() for value in values] for values in found))
    terms = method.losses(out, bare)
    for name, term in method.losses(out, batch).items():
        assert terms[name][1] == 0 and terms[name][0] == term[0] and term[1] > 0
    sum(term.sum() for term in terms.values()).backward()
    for value in (*out.logits, *out.meshes):
        assert (value.grad[1] == 0).all() and (value.grad[0] != 0).any()


@pytest.mark.parametrize("silhouette", [True, False])
@pytest.mark.parametrize("solver", ["fast", "faithful"])
def test_perfect_network_is_right(silhouette, solver, pyramid):
    """True meshes and maps decode to the true mesh, pixels and, by the crop's K, to the wrist within a centimetre."""
    method = small(pyramid, variant="g", silhouette=silhouette, registration=RegisterOptions(solver=solver))
    batch = hands(3, pixels=128)
    method.joint_set = JointSet("ho3d")
    seen = project(free_hand().joints(Posed(batch.verts, None), "ho3d", "regressed"), batch.K)
    batch = replace(batch, joints_uv=seen)
    out = true_out(method, batch)
    pred = method.decode(out, batch)
    torch.testing.assert_close(pred.verts, batch.verts - batch.root[:, None], rtol=0, atol=1e-6)
    assert (pred.joints_uv - batch.joints_uv).norm(dim=-1).max() < 0.05
    assert (pred.root - batch.root).norm(dim=-1).max() < 0.01
    assert method.metrics(out, batch)["joints_uv_px"] < 0.05
    assert not silhouette or method.metrics(out, batch)["mask_iou"] > 0.97


def test_no_registration(pyramid):
    """solver none: no place in the camera, the rest as before."""
    method, batch = small(pyramid, variant="g", registration={"solver": "none"}), hands(1)
    pred = method.decode(true_out(method, batch), batch)
    assert pred.root is None and pred.joints_uv is not None


@pytest.mark.parametrize("kind", ["chain", "regressed"])
@pytest.mark.parametrize("tips", ["manopth", "freihand"])
def test_joints_are_as_the_labels(kind, tips, pyramid):
    """Fingertips of the dataset's set; the wrist is the network's origin for a chain's labels, else regressed from the mesh."""
    method, batch = small(pyramid, variant="g"), hands(2)
    method.joint_set = JointSet(tips, kind)
    out = true_out(method, batch)
    pred, verts = method.decode(out, batch), out.meshes[0] * SCALE_M
    wrist = torch.zeros(2, 1, 3) if kind == "chain" else free_hand().regress(verts)[:, :1]
    assert (pred.joints[:, 0] == 0).all()
    torch.testing.assert_close(pred.verts, verts - wrist)
    torch.testing.assert_close(pred.joints[:, 8], pred.verts[:, free_hand().tips[tips][1]])
    torch.testing.assert_close(pred.joints[:, 5:6], free_hand().regress(verts)[:, 1:2] - wrist)


def test_about_manos_point():
    """origin mano: a mesh about MANO's point, as the hand model makes it, has no error; answers are about its wrist."""
    hand, batch = free_hand(), hands(2)
    method = small(formula_pyramid(), origin="mano", silhouette=False)
    made = hand(batch.rotations, batch.shape).verts / SCALE_M
    meshes = method.decoder.levels(made)
    out = Out(true_out(small(formula_pyramid(), silhouette=False), batch).logits, meshes)
    assert method.losses(out, batch)["verts"].max() < 1e-5 and {"shape", "chain_wrist"} <= method.needs
    pred = method.decode(out, batch)
    torch.testing.assert_close(pred.verts, made * SCALE_M - hand.regress(made * SCALE_M)[:, :1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong, line", [
    ({"variant": "sg", "silhouette": False}, "silhouette: sg is the variant that begins with one; use variant pg or g"),
    ({"variant": "pg", "attention": False}, "attention: sg and pg always have it"),
    ({"channels": (8, 8, 16)}, "channels: expected one for each of the 4 factors, found 3"),
    ({"channels": (8, 8, 16, 18)}, r"channels: expected multiples of 4, found \[8, 8, 16, 18\]"),
    ({"seq_length": 2}, "seq_length: a third of each spiral is convolved on its own; expected 3 or more, found 2"),
    ({"weights": "IMAGENET1K_V1", "width": 0.5}, "published weights need width 1"),
    ({"registration": {"solver": "fastest"}}, "registration.solver"),
])
def test_options_are_refused(wrong, line):
    """What no network can be is refused with the remedy."""
    with pytest.raises(ValidationError, match=line):
        Options(**wrong)


def test_checkpoint_holds_no_mesh():
    """Index tables and up-sampling weights belong to the hand model: the state dict has weights and batch statistics alone."""
    names = small(formula_pyramid(), variant="g", attention=False).state_dict()
    assert {name.split(".")[0] for name in names} == {"stages", "decoder"}
    last = {name.split(".")[-1] for name in names}
    assert last == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_runs_in_bfloat16(pyramid):
    """Under autocast the answers are those of float32 to one part in ten, and the attention's exponents stay finite."""
    method, batch = small(pyramid, variant="pg").eval(), hands(2)
    with torch.no_grad():
        method.attention.gamma.fill_(1.0)
        exact = method(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = method(batch)
    for one, other in zip(exact.meshes, rough.meshes, strict=True):
        assert (one - other.float()).abs().max() < 0.1 * one.abs().max()


@pytest.mark.parametrize("one, other", [("sg", "pg"), ("pg", "sg"), ("g", "pg"), ("pg", "g")])
def test_checkpoint_of_another_variant_is_refused(one, other, tmp_path):
    """One line that names the file, a weight that does not fit and the remedy; no weight is changed."""
    path, theirs, mine = tmp_path / "last.pt", small(formula_pyramid(), variant=one), small(formula_pyramid(), 1, variant=other)
    save_weights(path, "cmr", theirs.state_dict(), hand_info=free_hand().info)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(InputError, match=r"last\.pt: does not fit the method: .*stages\..*; use the method options") as raised:
        load_weights(mine, path, method_name="cmr", hand_info=free_hand().info)
    assert "\n" not in str(raised.value) and all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
