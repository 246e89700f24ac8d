"""pose2d: the published network's stored maps through `convert`, and what must hold whatever the weights are."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from idhand_cases import GOLDENS, fill, given, plain_batch
from pydantic import ValidationError

from options.load import load as load_options
from src.checkpoint import load
from src.convert import convert
from src.maps import PAIRS, target_maps
from src.pose2d import Options, Out, Pose2d, build
from utils.errors import InputError
from utils.heatmap import draw_gaussian

MAPS = ("uv_prior", "uv_prior2", "uv_pred")  # the original's names of what stages one to three draw
LEFT_OUT = {"backbone2.fc.weight", "backbone2.fc.bias", "backbone3.fc.weight", "backbone3.fc.bias", "backbone1.fc.weight",
            "backbone1.fc.bias"}


@pytest.fixture(scope="module")
def published():
    """The published state dict, weights by formula; what is never used is NaN."""
    manifest = json.loads((GOLDENS / "manifest_pose2d.json").read_text())
    return {name: torch.full(shape, torch.nan) if name in LEFT_OUT else torch.from_numpy(fill(name, shape))
            for name, shape in manifest.items()}


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pose2d")
    torch.save({"epoch": 15, "model_state_dict": published}, folder / "theirs.pt")
    convert("pose2d", folder / "theirs.pt", folder / "ours.pt")
    (folder / "theirs.pt").unlink()
    return load(folder / "ours.pt")


def small(seed=0, **changes):
    """A network that a test can train."""
    torch.manual_seed(seed)
    return build(Options(**{"stages": 3, "width": 0.125, **changes}), None)


def blobs(count=4, pixels=32, seed=0):
    """Pictures with one bright spot at each of 21 joints that lie on a line of random place, and their pixels."""
    generator = torch.Generator().manual_seed(seed)
    ends = 5 + (pixels - 11) * torch.rand(count, 2, 2, generator=generator)
    share = torch.linspace(0, 1, 21)[:, None]
    uv = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    line = draw_gaussian(uv, pixels, pixels, 1.5)
    image = torch.stack((line.amax(1), line[:, 0], line[:, 20]), 1)
    return plain_batch(image, joints_uv=uv, uv_confidence=torch.ones(count, 21), has_uv=torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 5e-5)], ids=["float64", "float32"])
def test_golden(converted, dtype, tolerance):
    """All three stages' maps of the published network: sums (float64 to 1e-12, float32 to 5e-5), every seventh cell, arg-max."""
    method = Pose2d(Options(**converted["method_options"]), None)
    method.load_state_dict(converted["model"], strict=True)
    method = method.to(dtype).eval()
    batch = plain_batch((given("image", 2, 3, 224, 224, dtype=dtype) + 1) / 2)
    with torch.no_grad():
        out = method(batch)
    with np.load(GOLDENS / "pose2d.npz") as stored:
        for name, logits in zip(MAPS, out.logits, strict=True):
            maps = torch.sigmoid(logits).double().numpy()
            sums = stored[f"{name}.sum"]
            assert np.abs(maps.sum((2, 3)) - sums).max() <= tolerance * sums.max()
            assert np.abs(maps[:, :, ::7, ::7] - stored[f"{name}.grid7"]).max() <= 5e-5
            if dtype == torch.float64:  # saturated maps tie in float32
                np.testing.assert_array_equal(maps.reshape(2, 21, -1).argmax(-1), stored[f"{name}.argmax"])
        if dtype == torch.float64:  # cell (x, y) of the last stage, as the export wrote it, times 224 / 112
            flat = stored["uv_pred.argmax"]
            uv = method.decode(out, batch).joints_uv.numpy()
            np.testing.assert_array_equal(uv, 2 * np.stack((flat % 112, flat // 112), -1))


def test_every_weight_arrives(published, converted):
    """The converted file holds every number of the published network but the unused layers', which are NaN here."""
    theirs = sum(value.numel() for name, value in published.items() if name not in LEFT_OUT)
    assert sum(value.numel() for value in converted["model"].values()) == theirs
    assert converted["method"] == "pose2d" and converted["hand"] is None
    assert all(value.isfinite().all() for value in converted["model"].values())
    assert torch.equal(converted["model"]["stages.2.decoder.1.conv.weight"], published["uvm_delayer.1.conv.weight"])
    assert torch.equal(converted["model"]["stages.1.reduce.2.norm.bias"], published["backbone2.reduce.2.norm.bias"])


@pytest.mark.parametrize("fault, line", [
    ("lacking", r"1 tensor of pose2d is missing: stages\.1\.head\.weight; the file"),
    ("cmr", r"expected a checkpoint of pose2d without de_layers\.\*, found backbone1\.bn1"),
    ("idhand", r"expected pose2d, found idhand_given \(it has pose_6d_extractor\.\*, no shape_extractor"),
])
def test_wrong_network(published, fault, line, tmp_path):
    """A cut file, CMR's (the same image part and a mesh decoder) and an arm of idhand: one line, nothing written."""
    state = {name: value for name, value in published.items() if not name.startswith("backbone")}
    state["backbone1.bn1.weight"] = published["backbone1.bn1.weight"]
    if fault == "lacking":
        state = {name: value for name, value in published.items() if name != "uv_head.conv.weight"}
    if fault == "cmr":
        state["de_layers.0.weight"] = torch.zeros(2)
    if fault == "idhand":
        state = {"pose_6d_extractor.0.0.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=line):
        convert("pose2d", tmp_path / "theirs.pt", tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_ten_pairs_of_fingertips():
    """Stage three sees the ten sums of two fingertips' maps, each pair once."""
    assert len(set(PAIRS)) == 10 and {tip for pair in PAIRS for tip in pair} == {4, 8, 12, 16, 20}


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_sizes(stages, backbone):
    """Any number of stages, blocks with and without bottleneck, a crop that is no multiple of 32: maps of half the crop."""
    method = small(stages=stages, backbone=backbone).eval()
    out = method(blobs(2, pixels=80))
    assert out.logits.shape == (stages, 2, 21, 40, 40)
    assert torch.sigmoid(out.logits[0]).mean() < 0.2  # begins near empty


@pytest.mark.parametrize("target", ["gaussian", "published"])
def test_learns(target):
    """Trained on one batch, every stage's loss falls and the joints are found to within a pixel and a half."""
    method, batch = small(target=target, decoder="subcell"), blobs()
    optimizer = torch.optim.Adam(method.parameters(), 4e-3)
    first = None
    for _ in range(90):
        loss = 10 * method.losses(method(batch), batch)["heatmap"].mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.train()  # statistics of this one batch
    with torch.no_grad():
        out = method(batch)
        assert method.losses(out, batch)["heatmap"].mean() < 0.05 * first
        assert method.metrics(out, batch)["joints_uv_px"] < 1.5
        assert method.decode(out, batch).uv_confidence.min() > 0.2


def test_loss_against_definition():
    """Mean binary cross-entropy of each stage, summed, written out in float64; per sample, unlabelled rows zero."""
    method, batch = small(target="gaussian", sigma=1.2), blobs(3)
    batch = replace(batch, has_uv=torch.tensor([True, False, True]))
    logits = torch.randn(3, 3, 21, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    p, t = torch.sigmoid(logits), draw_gaussian(batch.joints_uv.double(), 32, 16, 1.2)
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).mean((2, 3, 4)).sum(0)
    found = method.losses(Out(logits), batch)["heatmap"]
    torch.testing.assert_close(found, expected * torch.tensor([1.0, 0.0, 1.0]), rtol=1e-6, atol=0)


def test_unsure_joints_weigh_nothing():
    """A joint of confidence 0 gives no gradient, wherever its label is."""
    method, batch = small(stages=1), blobs(2)
    confidence = torch.ones(2, 21)
    confidence[:, 5] = 0
    batch = replace(batch, uv_confidence=confidence)
    logits = torch.randn(1, 2, 21, 16, 16, requires_grad=True)
    method.losses(Out(logits), batch)["heatmap"].sum().backward()
    assert (logits.grad[:, :, 5] == 0).all() and (logits.grad[:, :, 4] != 0).any()


def test_perfect_maps_give_the_joints():
    """Logits whose sigmoid is the target decode to the joints, and a joint outside the crop to a confidence near 0."""
    method, batch = small(), blobs(3)
    uv = batch.joints_uv.clone()
    uv[:, 7] = torch.tensor([-9.0, 10.0])
    batch = replace(batch, joints_uv=uv)
    maps = target_maps(method.options, batch, 16).clamp(1e-6, 1 - 1e-6).double()
    pred = method.decode(Out(torch.logit(maps).expand(3, -1, -1, -1, -1)), batch)
    known = torch.arange(21) != 7
    assert (pred.joints_uv - uv)[:, known].abs().max() < 0.02
    assert pred.uv_confidence[:, known].min() > 0.85 and pred.uv_confidence[:, 7].max() < 0.01
    assert pred.verts is None and pred.joints is None


def test_shares_no_state_between_rows():
    """In eval mode a row's answer does not depend on its neighbours."""
    method, batch = small().eval(), blobs(3)
    with torch.no_grad():
        torch.testing.assert_close(method(batch).logits[:, 1:2], method(batch.rows(slice(1, 2))).logits, rtol=1e-4, atol=1e-5)


def test_published_weights_start_every_stage(tmp_path):
    """weights: a file's tensors stand in all three stages' residual layers, its stem in the first alone."""
    from torchvision.models import resnet18

    torch.manual_seed(1)
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "r18.pth")
    method = build(Options(weights=str(tmp_path / "r18.pth")), None)
    method.start_weights()
    for stage in method.stages:
        assert torch.equal(stage.trunk.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])
    assert torch.equal(method.stages[0].trunk.conv1.weight, state["conv1.weight"])
    assert not hasattr(method.stages[1].trunk, "conv1")


def test_weights_need_the_published_width():
    """Published weights in a narrower network are refused with the remedy."""
    with pytest.raises(ValidationError, match="width 1"):
        Options(weights="IMAGENET1K_V1", width=0.5)


def test_option_file_is_the_published_network(published):
    """options/dex_ycb_2d_pose.yaml builds the network of the published file, trained as published (spec 4, 6.1)."""
    options = load_options("options/dex_ycb_2d_pose.yaml", [])
    train = options.train
    assert (train.epochs, train.batch, train.lr, train.milestones, train.keep_best) == (16, 32, 1e-4, [10, 15], "joints_uv_px")
    assert options.loss == {"heatmap": 10} and options.method.target == "published" and options.method.decoder == "argmax"
    with torch.device("meta"):
        count = sum(p.numel() for p in Pose2d(options.method, None).state_dict().values())
    assert count == sum(value.numel() for name, value in published.items() if name not in LEFT_OUT)
