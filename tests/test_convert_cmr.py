"""convert cmr_*: goldens of the published networks through it; every tensor used or left out for a reason; wrong files."""
import numpy as np
import pytest
import torch
from cmr_cases import UNUSED, formula_pyramid, hollow, manifest, published, toy_pyramid
from idhand_cases import GOLDENS, given, plain_batch, toy_hand

from options.load import load as load_options
from src.checkpoint import load
from src.cmr import Cmr, Options, networks
from src.convert import convert
from utils.errors import InputError

# What the original calls the maps of the stages, first to last.
MAPS = {"sg": ("mask_prior", "uv_prior", "uv_pred"), "pg": ("uv_prior", "uv_prior2", "uv_pred"), "g": ("uv_prior", "uv_pred")}


def converted(state, what, folder):
    torch.save(state, folder / "theirs.pt")
    convert(what, folder / "theirs.pt", folder / "ours.pt")
    (folder / "theirs.pt").unlink()
    return load(folder / "ours.pt")


def method_of(found, pyramid, dtype):
    method = Cmr(Options(**found["method_options"]), toy_hand(), pyramid)
    method.load_state_dict(found["model"], strict=True)
    return method.to(dtype).eval()


def relative(ours, golden):
    """Largest difference by the largest value."""
    return np.abs(ours.double().numpy() - golden).max() / np.abs(golden).max()


@pytest.mark.parametrize("variant", ["sg", "pg", "g"])
def test_golden(variant, tmp_path):
    """SG, PG and G, weights by formula, at 64 pixels (SG's mesh at 224, too): meshes of all levels and every fourth cell of all
    maps to 1e-5 of the largest value; all numbers but the unused layer's (NaN) arrive; PG from a dict with model_state_dict."""
    theirs = published(f"cmr_{variant}")
    found = converted({"epoch": 3, "model_state_dict": theirs} if variant == "pg" else theirs, f"cmr_{variant}", tmp_path)
    assert found["method"] == "cmr" and found["hand"] is None
    used = sum(value.numel() for name, value in theirs.items() if not name.startswith(UNUSED))
    assert sum(value.numel() for value in found["model"].values()) == used
    assert all(value.isfinite().all() for value in found["model"].values())
    del theirs
    method = method_of(found, toy_pyramid(), torch.float32)
    with torch.no_grad(), np.load(GOLDENS / f"cmr_{variant}.npz") as stored:
        out = method(plain_batch((given("image", 2, 3, 64, 64) + 1) / 2))
        for level, mesh in enumerate(out.meshes):
            assert relative(mesh, stored[f"mesh_pred_{level}"]) < 1e-5
        maps = [torch.sigmoid(logits)[..., 1::4, 1::4] for logits in out.logits]
        assert relative(maps[-1][:, 21], stored["mask_pred"]) < 1e-5
        for name, drawn in zip(MAPS[variant], [*maps[:-1], maps[-1][:, :21]], strict=True):
            assert relative(drawn[:, 0] if name == "mask_prior" else drawn, stored[name]) < 1e-5
        if variant == "sg":
            mesh = method(plain_batch((given("image", 2, 3, 224, 224) + 1) / 2)).meshes[0]
            assert relative(mesh, stored["mesh_pred_0.224"]) < 1e-5


def test_golden_dexycb(tmp_path):
    """The DexYCB variant at 224 pixels in float64: meshes and the maps' sums to 1e-12, arg-max exact, and decoded."""
    method = method_of(converted(published("cmr_pg_dexycb"), "cmr_pg_dexycb", tmp_path), formula_pyramid(), torch.float64)
    batch = plain_batch((given("image", 2, 3, 224, 224, dtype=torch.float64) + 1) / 2)
    with torch.no_grad():
        out = method(batch)
    with np.load(GOLDENS / "cmr_pg_dexycb.npz") as stored:
        for level, mesh in enumerate(out.meshes):
            assert relative(mesh, stored[f"f64.mesh_pred.{level}"]) < 1e-12
        for name, logits in zip(MAPS["pg"], out.logits, strict=True):
            maps = torch.sigmoid(logits)
            assert relative(maps.sum((2, 3)), stored[f"{name}.sum"]) < 1e-12
            assert relative(maps[:, :, ::14, ::14], stored[f"{name}.grid14"]) < 5e-5  # stored from float32
            np.testing.assert_array_equal(maps.flatten(2).argmax(-1).numpy(), stored[f"{name}.argmax"])
        flat = stored["uv_pred.argmax"]
    pred = method.decode(out, batch)
    np.testing.assert_array_equal(pred.joints_uv.numpy(), 2 * np.stack((flat % 112, flat // 112), -1))
    assert pred.mask is None and torch.isfinite(pred.root).all()


@pytest.mark.parametrize("net, what, expected", [
    ("cmr_sg", "cmr_sg", {"variant": "sg", "backbone": "resnet18", "attention": True, "silhouette": True, "origin": "wrist"}),
    ("cmr_pg", "cmr_pg", {"variant": "pg", "backbone": "resnet18", "attention": True, "silhouette": True, "origin": "wrist"}),
    ("cmr_g", "cmr_g", {"variant": "g", "backbone": "resnet18", "attention": False, "silhouette": True, "origin": "wrist"}),
    ("cmr_g_res50_att", "cmr_g", {"variant": "g", "backbone": "resnet50", "attention": True, "silhouette": True}),
    ("cmr_pg_dexycb", "cmr_pg_dexycb", {"variant": "pg", "silhouette": False, "origin": "mano"}),
])
def test_options_are_read_off(net, what, expected, tmp_path):
    """Variant, depth, attention, silhouette, channels and spirals come from the file's names and sizes; the rest as published."""
    found = converted({f"module.{name}": value for name, value in hollow(net).items()}, what, tmp_path)["method_options"]
    expected = {**expected, "channels": [64, 128, 256, 512], "seq_length": 27, "target": "published", "decoder": "argmax"}
    assert {key: found[key] for key in expected} == expected and found["registration"]["solver"] == "faithful"


def broken(net, kind):
    """A hollow published state dict with one fault."""
    state = hollow(net)
    if kind == "missing":
        del state["uv_head.conv.weight"], state["heads.3.layer.bias"]
    if kind == "unknown":
        state["camera_head.weight"] = torch.zeros(3)
    if kind == "surplus":
        state["de_layers.6.conv1.layer.bias"] = torch.zeros(3)
    if kind == "length":
        state["heads.0.layer.weight"] = torch.zeros(3, 1000)
    if kind == "channels":
        state["de_layers.4.conv1.layer.weight"] = torch.zeros(63, 131)
    return state


@pytest.mark.parametrize("net, what, kind, line", [
    ("cmr_sg", "cmr_pg", "", r"theirs\.pt: expected cmr_pg, found cmr_sg \(it has .*mask_delayer\.\*\); run convert cmr_sg"),
    ("cmr_pg", "cmr_sg", "", r"expected cmr_sg, found cmr_pg \(it has .*uvm_head\.conv\.weight of 22 rows\); run convert cmr_pg"),
    ("cmr_pg", "cmr_pg_dexycb", "", r"expected cmr_pg_dexycb, found cmr_pg \("),
    ("cmr_pg_dexycb", "cmr_pg", "", r"expected cmr_pg, found cmr_pg_dexycb \(it has .*uvm_head\.conv\.weight of 21 rows\)"),
    ("cmr_g", "cmr_sg", "", r"expected cmr_sg, found cmr_g \(it has backbone_mesh\.\*"),
    ("cmr_pg", "pose2d", "", r"expected pose2d, found cmr_pg \("),
    ("cmr_sg", "cmr_sg", "missing", r"2 tensors of cmr_sg are missing: decoder\.heads\.3\.layer\.bias, stages\.1\.head\.weight;"),
    ("cmr_sg", "cmr_sg", "unknown", r"1 tensor belongs to no part of the network: camera_head\.weight; pass a checkpoint of the"),
    ("cmr_sg", "cmr_sg", "surplus", r"1 tensor has no place in cmr_sg: decoder\.blocks\.5\.conv1\.layer\.bias; the file is"),
    ("cmr_g", "cmr_g", "length", r"decoder\.heads\.0\.layer\.weight should be of size \(3, 13824\), found \(3, 1000\); the file"),
    ("cmr_g", "cmr_g", "channels", r"blocks\.3\.conv1\.layer\.weight should be of size \(64, 131\), found \(63, 131\); the file"),
])
def test_wrong_network(net, what, kind, line, tmp_path):
    """Another variant's checkpoint, or one with missing, surplus or odd-sized tensors: a line that names them, and no file."""
    with pytest.raises(InputError, match=line):
        converted(broken(net, kind), what, tmp_path)
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize("changes, line", [
    ({"de_layers.x.weight": torch.zeros(3)}, r"1 tensor belongs to no part of the network: de_layers\.x\.weight; pass"),
    ({"de_layers": torch.zeros(3)}, r"1 tensor belongs to no part of the network: de_layers; pass"),
    ({"backbone2.fc.extra": torch.zeros(3)}, r"1 tensor belongs to no part of the network: backbone2\.fc\.extra; pass"),
    ({"heads.0.layer.weight": torch.zeros(3, 512)}, r"heads\.0\.layer\.weight should be of size \(3, 13824\), found \(3, 512"),
    ({"heads.0.layer.weight": torch.zeros(())}, r"heads\.0\.layer\.weight should be of size \(3, 13824\), found \(\);"),
    ({"de_layers.4.conv1.layer.weight": torch.zeros(())}, r"conv1\.layer\.weight should be of size \(64, 131\), found \(\);"),
    ({"uvm_head.conv.weight": torch.zeros(21, 64, 3, 3)}, r"2\.head\.weight should be of size \(22, 64, 3, 3\), found \(21, "),
    ({"attention.gamma": torch.zeros(1, dtype=torch.int64)}, r"attention\.gamma should be real numbers, found torch\.int64, "),
    ({"module.attention.gamma": torch.zeros(1)}, r"1 tensor is there twice, with and without module\.; pass"),
    ({7: torch.zeros(1)}, r"expected a checkpoint with model_state_dict, or a bare state dict; found 7, "),
])
def test_odd_tensors(changes, line, tmp_path):
    """Names, sizes and kinds of numbers that no release has: a line that names them, no traceback, and no file."""
    with pytest.raises(InputError, match=line):
        converted({**hollow("cmr_sg"), **changes}, "cmr_sg", tmp_path)
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize("what, changes, line", [
    ("cmr_sg", {"mask_delayer.": None}, r"a checkpoint of cmr_sg \(mask_delayer\.\* is missing\), found attention\."),
    ("cmr_sg", {"mask_delayer.": None, "heads.": None}, r"\(heads\.\* and mask_delayer\.\* are missing\), found attention\."),
    ("cmr_pg", {"uvm_head.conv.weight": (20, 64, 3, 3)}, r"a checkpoint of cmr_pg with uvm_head\.conv\.weight of 22 rows, found"),
])
def test_what_tells_it_from_the_wanted_one(what, changes, line, tmp_path):
    """A file with some of a network's prefixes, or another number of maps, is told by what it lacks alone."""
    state = {name: value for name, value in hollow(what).items() if not any(name.startswith(key) for key in changes)}
    state |= {name: torch.zeros(size) for name, size in changes.items() if size}
    with pytest.raises(InputError, match=line):
        converted(state, what, tmp_path)


def test_cut_file(tmp_path):
    """Half of a published file: a line, not the traceback of torch's reader."""
    torch.save(hollow("cmr_g"), tmp_path / "theirs.pt")
    whole = (tmp_path / "theirs.pt").read_bytes()
    (tmp_path / "theirs.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match=r"theirs\.pt: expected a torch checkpoint, found a file that is truncated"):
        convert("cmr_g", tmp_path / "theirs.pt", tmp_path / "ours.pt")


@pytest.mark.parametrize("file, net", [("freihand_cmr_sg", "cmr_sg"), ("freihand_cmr_pg", "cmr_pg"), ("freihand_cmr_g", "cmr_g"),
                                       ("dex_ycb_cmr", "cmr_pg_dexycb")])
def test_option_file_is_the_published_network(file, net, tmp_path):
    """The recipe's option file builds the network of the published file, and accepts its converted checkpoint's options."""
    options = load_options(f"options/{file}.yaml", [])
    with torch.device("meta"):
        count = sum(value.numel() for part in networks(options.method).values() for value in part.state_dict().values())
    sizes = [torch.Size(shape).numel() for name, shape in manifest(net).items() if not name.startswith(UNUSED)]
    assert count == sum(sizes)
    found = converted(hollow(net), net, tmp_path)["method_options"]
    ours = options.method.model_dump(mode="json")
    assert {key for key in ours if ours[key] != found[key]} <= Cmr.training_only
