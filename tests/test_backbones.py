"""Backbones: torchvision's networks as the yardstick, and every way in which published weights cannot be had."""
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models import WeightsEnum

from src.backbones import BackboneOptions, ResNet, load_published, normalise
from utils.errors import InputError


def options(**changes):
    return BackboneOptions(**{"backbone": "resnet18", "feature": "logits1000", **changes})


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_is_torchvisions_network(name):
    """With torchvision's own state dict, loaded strictly: the logits, and the pooled map, of torchvision's forward."""
    theirs = getattr(torchvision.models, name)().eval()
    image = torch.randn(2, 3, 64, 64)
    ours = ResNet(options(backbone=name)).eval()
    ours.load_state_dict(theirs.state_dict())
    pooled = ResNet(options(backbone=name, feature="pooled")).eval()
    pooled.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))
        torch.testing.assert_close(theirs.fc(pooled(image)), theirs(image))
    assert (ours.feature_size, pooled.feature_size) == (1000, theirs.fc.in_features)


def test_starts_as_torchvision_starts():
    """Fresh convolutions have torchvision's spread (fan out, ReLU), and batch-norm starts at 1 and 0."""
    theirs, ours = torchvision.models.resnet18(), ResNet(options())
    for name, value in ours.state_dict().items():
        other = theirs.state_dict()[name]
        assert value.shape == other.shape
        if value.dim() == 4:
            assert value.std() == pytest.approx(other.std(), rel=0.1)
        elif "bn" in name:
            assert torch.equal(value, other)


@pytest.mark.parametrize("changes, size", [
    ({"feature": "flat", "cells": 2, "width": 0.5}, 1024),
    ({"feature": "flat", "cells": 1, "width": 0.5}, 256),
    ({"feature": "pooled", "width": 0.25}, 128),
    ({"feature": "flat", "cells": 4, "stem": "3x3", "max_pool": False}, 8192),
])
def test_small_networks_for_small_crops(changes, size):
    """Feature sizes at 64 pixels, and that fewer channels, a small stem and no pooling run."""
    backbone = ResNet(options(**changes)).eval()
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, size) == (2, backbone.feature_size)


def test_flat_feature_keeps_places():
    """At 64 pixels `flat` is the last map as it is: four cells, of which the pooled feature is the mean."""
    flat, pooled = (ResNet(options(feature=feature)).eval() for feature in ("flat", "pooled"))
    pooled.load_state_dict(flat.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(flat(image).view(2, 512, 4).mean(2), pooled(image))


def test_crop_too_small_for_the_cells():
    """More cells than the last map has: a line with the remedy, in place of repeated cells."""
    with pytest.raises(InputError, match=r"method\.cells=4: the last map of a 64-pixel crop has only 2 cells a side; lower "):
        ResNet(options(feature="flat", cells=4))(torch.zeros(1, 3, 64, 64))


def test_normalise():
    """half maps [0,1] to [-1,1]; imagenet is torchvision's own transform."""
    image = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(normalise(image, "half"), (image - 0.5) / 0.5)
    expected = torchvision.transforms.functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(image, "imagenet"), expected)


def test_weights_from_a_file(tmp_path):
    """A state dict file fills the network; without its head where the feature does not use it."""
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    for feature in ("logits1000", "flat"):
        chosen = options(feature=feature, weights=str(tmp_path / "resnet18.pth"))
        backbone = ResNet(chosen)
        load_published(backbone, chosen)
        assert torch.equal(backbone.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)


def test_weights_by_name(monkeypatch):
    """A short name means this backbone's weights, a full one itself; both are fetched through torchvision."""
    asked = []
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda weights, **_: asked.append(str(weights)) or state)
    for name in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT"):
        chosen = options(weights=name)
        backbone = ResNet(chosen)
        load_published(backbone, chosen)
        assert torch.equal(backbone.fc.weight, state["fc.weight"])
    assert asked == ["ResNet18_Weights.IMAGENET1K_V1"] * 3


def test_no_network(monkeypatch):
    """Without a network the run stops with a remedy; it never starts from scratch unasked."""
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    chosen = options(weights="IMAGENET1K_V1")
    with pytest.raises(InputError, match=r"method\.weights=IMAGENET1K_V1: https://.* could not be fetched .*no route to host.*"
                                         r"set method\.weights to the file, or to null to train from scratch"):
        load_published(ResNet(chosen), chosen)


def files(folder):
    (folder / "broken.pth").write_bytes(b"not torch")
    torch.save([1, 2], folder / "list.pth")
    torch.save(torchvision.models.resnet34().state_dict(), folder / "resnet34.pth")


@pytest.mark.parametrize("weights, line", [
    ("none.pth", r"none\.pth: expected a file, found nothing; set method\.weights to a state dict that is there, or to null"),
    ("broken.pth", r"broken\.pth: expected a torch state dict, found a file that breaks"),
    ("list.pth", r"list\.pth: expected a flat state dict of tensors"),
    ("resnet34.pth", r"resnet34\.pth: does not fit resnet18 with feature logits1000"),
])
def test_wrong_weight_files(weights, line, tmp_path):
    """Absent, broken, foreign and unfitting files: one line each."""
    files(tmp_path)
    chosen = options(weights=str(tmp_path / weights))
    with pytest.raises(InputError, match=line):
        load_published(ResNet(chosen), chosen)


def test_unknown_weight_name():
    """A name that torchvision does not know: a line with one that it does."""
    chosen = options(weights="IMAGENET22K")
    with pytest.raises(InputError, match=r"method\.weights=IMAGENET22K: torchvision has no such weights for resnet18; use "):
        load_published(ResNet(chosen), chosen)
