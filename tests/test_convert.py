"""convert idhand_*: every published tensor used or left out for a reason, and each wrong file refused in one line."""
from collections import Counter

import pytest
import torch
from idhand_cases import NETS, published, toy_hand

from src.checkpoint import load, save, save_weights
from src.convert import convert, options_of
from src.idhand import IdHand, Options
from utils.errors import InputError

PARAMETERS = {"baseline": 28_449_874, "ours": 27_771_848, "conf": 28_450_875}


def write(path, state, **rest):
    torch.save({"epoch": 15, "model_state_dict": state, **rest}, path)
    return path


@pytest.fixture(scope="module")
def states():
    """The three published state dicts, and a folder's worth of time saved by making them once."""
    return {net: published(net) for net in NETS}


@pytest.mark.parametrize("net", NETS)
def test_every_weight_arrives(net, states, tmp_path):
    """The converted file has as many numbers as the published network, none of MANO's (NaN here), and fills the method."""
    optimiser = {"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-6}]},
                 "scheduler_state_dict": {"milestones": Counter([5, 10]), "last_epoch": 15}}
    convert(NETS[net], write(tmp_path / "theirs.pt", states[net], **optimiser), tmp_path / "ours.pt")
    found = load(tmp_path / "ours.pt")
    assert found["method"] == "idhand" and found["hand"] is None
    method = IdHand(Options(**found["method_options"]), toy_hand())
    method.load_state_dict(found["model"], strict=True)
    assert sum(p.numel() for p in method.parameters()) == PARAMETERS[net]
    assert sum(p.numel() for p in method.backbone.parameters()) == 25_557_032
    assert all(torch.isfinite(value).all() for value in found["model"].values())
    assert torch.equal(found["model"]["pose_heads.2.3.weight"], states[net]["pose_6d_extractor.2.9.weight"])
    name = "layer4.2.bn3.running_var"
    assert torch.equal(found["model"][f"backbone.{name}"], states[net][f"feature_extractor.{name}"])


def test_bare_state_dict_and_parallel_prefix(states, tmp_path):
    """A bare state dict, and one saved from a wrapped module, convert to the same weights."""
    torch.save(states["ours"], tmp_path / "bare.pt")
    torch.save({f"module.{name}": value for name, value in states["ours"].items()}, tmp_path / "wrapped.pt")
    models = []
    for name in ("bare", "wrapped"):
        convert("idhand_given", tmp_path / f"{name}.pt", tmp_path / f"{name}_ours.pt")
        models.append(load(tmp_path / f"{name}_ours.pt")["model"])
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def broken(state, kind):
    """A published state dict with one fault."""
    state = dict(state)
    if kind == "missing":
        del state["feature_extractor.layer3.1.bn2.weight"], state["pose_6d_extractor.1.3.bias"]
    if kind == "size":
        state["shape_extractor.9.weight"] = torch.zeros(20, 128)
    if kind == "unknown":
        state["pose_6d_extractor.0.12.weight"] = torch.zeros(3)
    if kind == "foreign":
        state["camera_head.weight"] = torch.zeros(3)
    return state


@pytest.mark.parametrize("net, what, kind, line", [
    ("baseline", "idhand_given", "",
     r"theirs\.pt: expected idhand_given, found idhand_baseline \(it has pose_6d_extractor\.\*, shape_extractor\.\*, no conf_b"),
    ("ours", "idhand_baseline", "",
     r"idhand_given \(it has pose_6d_extractor\.\*, no shape_extractor\.\*, no conf_branch\.\*\); run convert idhand_given"),
    ("conf", "idhand_baseline", "",
     r"found idhand_conf \(it has pose_6d_extractor\.\*, shape_extractor\.\*, conf_branch\.\*\); run convert idhand_conf on it"),
    ("baseline", "idhand_baseline", "missing",
     r"2 tensors of idhand_baseline are missing: backbone\.layer3\.1\.bn2\.weight, pose_heads\.1\.1\.bias; the file "),
    ("baseline", "idhand_baseline", "size", r"shape_head\.3\.weight should be of size \(10, 128\), found \(20, 128\); the file"),
    ("baseline", "idhand_baseline", "unknown", r"1 tensor has no place in idhand_baseline: pose_heads\.0\.4\.weight; the file"),
    ("baseline", "idhand_baseline", "foreign", r"1 tensor belongs to no part of the network: camera_head\.weight; pass a "),
])
def test_wrong_network(net, what, kind, line, states, tmp_path):
    """Another arm's checkpoint, or one with missing, surplus or odd-sized tensors: a line that names them, and no file."""
    with pytest.raises(InputError, match=line):
        convert(what, write(tmp_path / "theirs.pt", broken(states[net], kind)), tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def not_checkpoints(folder):
    (folder / "text.pt").write_text("not a checkpoint")
    torch.save({"model_state_dict": {"layer.weight": torch.zeros(2)}}, folder / "other.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"a": torch.zeros(1000)}, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:900])


@pytest.mark.parametrize("file, line", [
    ("none.pt", r"none\.pt: expected a file, found nothing; pass a checkpoint of the ECCV 2022 release"),
    ("text.pt", r"text\.pt: expected a torch checkpoint, found a file that is truncated or something else"),
    ("cut.pt", r"cut\.pt: expected a torch checkpoint, found a file that is truncated or something else"),
    ("list.pt", r"list\.pt: expected a checkpoint with model_state_dict, or a bare state dict; found list"),
    ("other.pt", r"expected a checkpoint of idhand_baseline with pose_6d_extractor\.\* and shape_.*, found layer\.weight; pass"),
])
def test_not_a_checkpoint(file, line, tmp_path):
    """A missing, foreign or truncated file: one line, nothing written."""
    not_checkpoints(tmp_path)
    with pytest.raises(InputError, match=line):
        convert("idhand_baseline", tmp_path / file, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize("text", ["not a checkpoint", "hello" * 50, "text\n", "GW}NS1", "ekZGX9W41"])
def test_unreadable_file_in_plain_words(text, tmp_path):
    """Of an unreadable file the kind of error is told; torch's own lines, and file names of other releases, are not."""
    (tmp_path / "text.pt").write_text(text)
    with pytest.raises(InputError, match=r"something else \([A-Za-z]+\); pass a checkpoint of the ECCV 2022 release$"):
        convert("idhand_baseline", tmp_path / "text.pt", tmp_path / "ours.pt")


def test_own_checkpoint_needs_no_conversion(states, tmp_path):
    """A converted file, converted once more, is told to be this project's already."""
    convert("idhand_given", write(tmp_path / "theirs.pt", states["ours"]), tmp_path / "ours.pt")
    with pytest.raises(InputError, match=r"ours\.pt: this is a checkpoint of this project already; no conversion is needed"):
        convert("idhand_given", tmp_path / "ours.pt", tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists()


def test_a_trained_run_is_not_overwritten(states, tmp_path):
    """--out that holds a run trained here: refused before any work, the run untouched; a converted file is replaced."""
    theirs, out = write(tmp_path / "theirs.pt", states["ours"]), tmp_path / "last.pt"
    save(out, method_name="idhand", hand_info=None, model={"a": torch.ones(2)}, optimizer={"state": {}}, step=3)
    before = out.read_bytes()
    for file in (theirs, tmp_path / "none.pt"):
        with pytest.raises(InputError, match=r"last\.pt: holds a trained run; choose another --out, or delete the folder"):
            convert("idhand_given", file, out)
    assert out.read_bytes() == before
    save_weights(out, "idhand", {"a": torch.ones(2)}, converted_from="other.pt")
    convert("idhand_given", theirs, out)
    assert load(out)["converted_from"] == "theirs.pt"


def test_unknown_conversion(tmp_path):
    """A name that is no conversion lists those there are."""
    with pytest.raises(InputError, match=r"convert idhand: no such conversion; there are mano, idhand_baseline, idhand_given, "):
        convert("idhand", tmp_path / "theirs.pt", tmp_path / "ours.pt")


@pytest.mark.parametrize("variant, layers", [(1, (0,)), (2, (0, 2)), (3, (0, 2, 4, 6)), (6, (0, 2, 4, 6, 8, 10, 12))])
def test_confidence_variants_are_read_off_the_names(variant, layers):
    """The number of linear layers tells the original's variant; drop-out shows in the first layer's place."""
    head = {"pose_6d_extractor.0.0.weight": torch.zeros(1)}
    names = {f"conf_branch.{layer}.weight": torch.zeros(1) for layer in layers}
    assert options_of("idhand_conf", head | names).conf_branch == variant
    assert not options_of("idhand_conf", head | names).conf_drop_out
    assert options_of("idhand_conf", head | {"conf_branch.1.weight": torch.zeros(1)}).conf_drop_out
