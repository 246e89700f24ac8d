"""options/build.py: what an option file's objects say when they are put together."""
import logging

import pytest

from options.build import keypoints_of, trained
from options.load import load
from src.checkpoint import save_weights
from src.cmr import Options, networks
from utils.errors import InputError

SMALL = ["hand=template/free_hand_right.npz", "hand_left=null", "crop.pixels=64", "method.width=0.125", "method.weights=null",
         "method.channels=[4,4,4,4]", "method.attention=false", "method.variant=g"]


def test_another_variant_is_told_by_its_option(tmp_path):
    """A checkpoint of another variant: the option that differs, not the weights that follow from it nor train.init's options."""
    options = load("options/freihand_cmr_g.yaml", [*SMALL, f"out={tmp_path}"])
    other = {**options.method.model_dump(mode="json"), "variant": "sg"}
    save_weights(tmp_path / "w.pt", "cmr", {}, method_options=other)
    with pytest.raises(InputError, match=r"\(method\.variant = 'sg' there and 'g' now\); use the option file it was"):
        trained(options, str(tmp_path / "w.pt"))


def test_keypoints_of_no_run(tmp_path):
    """A folder that holds no run, or does not exist, or a run without weights: one line with the option and what is missing."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "options.yaml").touch()
    for name in ("nowhere", "begun"):
        with pytest.raises(InputError, match=rf"^calibrate.keypoints: no run in {tmp_path / name} \(options.yaml and last.pt\)$"):
            keypoints_of(str(tmp_path / name), "calibrate")


def test_published_weights_on_another_mesh_are_told(tmp_path, caplog):
    """A converted checkpoint of CMR beside the free hand, whose pyramid is not the published one: a warning with file and hand;
    the same weights, trained here: none."""
    options = load("options/freihand_cmr_g.yaml", [*SMALL, f"out={tmp_path}"])
    state = {f"{name}.{key}": value for name, module in networks(Options(**options.method.model_dump())).items()
             for key, value in module.state_dict().items()}
    for told in ({"converted_from": "theirs.pt"}, {}):
        caplog.clear()
        save_weights(tmp_path / "w.pt", "cmr", state, method_options=options.method.model_dump(mode="json"), **told)
        with caplog.at_level(logging.WARNING):
            trained(options, str(tmp_path / "w.pt"))
        assert ("theirs.pt" in caplog.text and "free_hand_right" in caplog.text) == bool(told)
