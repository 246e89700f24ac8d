"""Image backbones: torchvision's residual networks with their published weights, or narrower and from scratch.

He et al., CVPR 2016; torchvision's variant (stride in the 3x3 of a bottleneck), with torchvision's parameter names, so that a
published state dict loads by itself. `width` scales every channel count; `stem` and `max_pool` fit pictures smaller than
224 pixels; `feature` says what the heads get: the 1000 ImageNet logits (as the ECCV 2022 identity-aware models do), the
pooled last map, or that map flattened, which keeps where things are.
"""
import pickle
from pathlib import Path
from typing import Literal, Self
from urllib.error import URLError

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.resnet import BasicBlock, Bottleneck

from utils.errors import InputError
from utils.files import require_file
from utils.strict import Strict

BLOCKS = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet34": (BasicBlock, (3, 4, 6, 3)), "resnet50": (Bottleneck, (3, 4, 6, 3))}
CLASSES = 1000  # of ImageNet
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BackboneOptions(Strict):
    """Mixed into the options of a method that has one image backbone."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet50"
    weights: str | None = Field(None, description="null = from scratch; torchvision's name, IMAGENET1K_V1; or a file")
    feature: Literal["logits1000", "pooled", "flat"] = "pooled"
    cells: int = Field(2, ge=1, description="feature flat: the last map is averaged to cells x cells, then flattened")
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count")
    stem: Literal["7x7", "3x3"] = "7x7"
    max_pool: bool = Field(True, description="halve once more after the stem")
    normalise: Literal["half", "imagenet"] = Field("half", description="(x - 0.5) / 0.5, or ImageNet's mean and deviation")

    @model_validator(mode="after")
    def _published_weights_fit(self) -> Self:
        if self.weights is not None and (self.width != 1 or self.stem != "7x7"):
            raise ValueError("published weights need width 1 and stem 7x7; set weights: null to train from scratch")
        return self


class ResNet(nn.Module):
    """(b,3,h,w) normalised picture -> (b,feature_size). Without weights, torchvision's initialisation."""

    def __init__(self, options: BackboneOptions):
        super().__init__()
        block, counts = BLOCKS[options.backbone]
        planes = [max(8, round(64 * 2**level * options.width)) for level in range(4)]
        self.kind, self.cells = options.feature, options.cells
        kernel = int(options.stem[0])
        self.conv1 = nn.Conv2d(3, planes[0], kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if options.max_pool else nn.Identity()
        channels = planes[0]
        for level, (width, count) in enumerate(zip(planes, counts)):
            self.add_module(f"layer{level + 1}", _layer(block, channels, width, count, stride=1 if level == 0 else 2))
            channels = width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.feature_size = {"logits1000": CLASSES, "pooled": channels, "flat": channels * options.cells**2}[options.feature]
        if options.feature == "logits1000":
            self.fc = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.kind == "flat":
            if min(x.shape[2:]) < self.cells:
                raise InputError(f"method.cells={self.cells}: the last map of a {image.shape[3]}-pixel crop has only "
                                 f"{x.shape[3]} cells a side; lower method.cells or raise crop.pixels")
            return F.adaptive_avg_pool2d(x, self.cells).flatten(1)
        pooled = x.mean((2, 3))
        return self.fc(pooled) if self.kind == "logits1000" else pooled


def _layer(block: type, channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` residual blocks, the first with `stride` and, where the sizes differ, a 1x1 convolution on the skip."""
    out = width * block.expansion
    skip = None
    if stride != 1 or channels != out:
        skip = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(block(channels, width, stride, skip), *(block(out, width) for _ in range(count - 1)))


def build_backbone(options: BackboneOptions) -> ResNet:
    """The backbone of the options, from scratch (`load_published` starts it from `options.weights`)."""
    return ResNet(options)


def normalise(image: Tensor, kind: Literal["half", "imagenet"]) -> Tensor:
    """(b,3,h,w) RGB in [0,1] -> what the backbone was trained on."""
    if kind == "half":
        return image * 2 - 1
    mean, std = (image.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def load_published(backbone: ResNet, options: BackboneOptions) -> None:
    """Start `backbone` from `options.weights`; does nothing where that is null.

    Raises InputError where the weights cannot be fetched (no network), read, or do not fit: never a silent fresh start.
    """
    if options.weights is None:
        return
    state = _read(options.weights) if _is_path(options.weights) else _fetch(options.backbone, options.weights)
    if not hasattr(backbone, "fc"):
        state = {key: value for key, value in state.items() if key not in ("fc.weight", "fc.bias")}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"method.weights={options.weights}: does not fit {options.backbone} with feature {options.feature} "
                         f"({str(error).splitlines()[-1].strip()[:200]}); choose the backbone that it was trained as") from error


def _is_path(weights: str) -> bool:
    return "/" in weights or Path(weights).suffix in (".pth", ".pt")


def _read(path: str) -> dict[str, Tensor]:
    require_file(path, "set method.weights to a state dict that is there, or to null to train from scratch")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(f"method.weights={path}: expected a torch state dict, found a file that breaks "
                         f"({type(error).__name__}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"method.weights={path}: expected a flat state dict of tensors; save the backbone's state_dict() alone")
    return state


def _fetch(backbone: str, name: str) -> dict[str, Tensor]:
    full = name if "." in name else f"{backbone.replace('resnet', 'ResNet')}_Weights.{name}"
    try:
        weights = get_weight(full)
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(f"method.weights={name}: torchvision has no such weights for {backbone}; "
                         "use IMAGENET1K_V1, a file, or null to train from scratch") from error
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"method.weights={name}: {weights.url} could not be fetched ({error}); fetch it where there is a "
                         "network and set method.weights to the file, or to null to train from scratch") from error
