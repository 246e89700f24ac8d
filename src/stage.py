"""One stage of a network that draws heat maps: a residual network, and a decoder with skips to maps at half the picture's size.

The image part of CMR (Chen et al., CVPR 2021; specs/cmr_boukhayma_metro.md 2.1, 2.3), which the 2D detector of Kong et al. (ECCV
2022) shares. The first stage sees the normalised picture; a later one sees maps at half its size (an earlier stage's stem beside
what has been drawn so far), which three convolutions turn into a stem of its own. With `latent` the classifier's 1000 logits
come along: they are the feature that CMR makes a mesh of.
"""
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from src.backbones import BackboneOptions, ResNet, build_backbone, load_published
from utils.strict import Strict


class StageOptions(Strict):
    """Mixed into the options of a method that is made of stages."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    weights: str | None = Field(None, description="of each stage: null = from scratch; torchvision's IMAGENET1K_V1; or a file")
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count of the stages")
    normalise: Literal["half", "imagenet"] = Field("half", description="(x - 0.5) / 0.5, or ImageNet's mean and deviation")

    @model_validator(mode="after")
    def _published_weights_fit(self) -> Self:
        if self.weights is not None and self.width != 1:
            raise ValueError("published weights need width 1; set weights: null to train from scratch")
        return self

    @property
    def trunk(self) -> BackboneOptions:
        """What src/backbones.py needs to know of it."""
        return BackboneOptions(backbone=self.backbone, weights=self.weights, width=self.width, normalise=self.normalise)


class StageOut(NamedTuple):
    """logits (b,k,h,w) of the maps, h = w = half the picture's pixels · stem (b,c,h,w) · feature (b,1000), or None."""

    logits: Tensor
    stem: Tensor
    feature: Tensor | None


class ConvNorm(nn.Module):
    """Convolution with bias, batch norm, and a ReLU where asked."""

    def __init__(self, channels: int, out: int, kernel: int, relu: bool = True):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.BatchNorm2d(out), relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class Stage(nn.Module):
    """What a stage sees (the picture, or `channels` maps beside a stem) -> `maps` logits; see the file's docstring.

    seen: maps beside the stem that a later stage sees; 0 = a first stage, which sees the picture. head_bias: first bias of the
    logits, None = torch's own. latent: also the feature, by the classifier of the trunk.
    """

    def __init__(self, trunk: BackboneOptions, seen: int, maps: int, head_bias: float | None = None, latent: bool = False):
        super().__init__()
        self.trunk = build_backbone(trunk.model_copy(update={"feature": "logits1000" if latent else "pooled"}))
        self.latent = latent
        stem, wide = channels_of(self.trunk)
        if seen:  # a later stage: three convolutions in place of the stem
            del self.trunk.conv1, self.trunk.bn1
            width, middle = stem + seen, 2 * stem
            self.reduce = nn.Sequential(ConvNorm(width, width, 3), ConvNorm(width, middle, 3),
                                        ConvNorm(middle, stem, 1, relu=False))
        self.decoder = nn.ModuleList((ConvNorm(wide[3] + wide[2], wide[2], 3), ConvNorm(wide[2] + wide[1], wide[1], 3),
                                      ConvNorm(wide[1] + wide[0], wide[0], 3), ConvNorm(wide[0], wide[0], 3)))
        self.head = nn.Conv2d(wide[0], maps, 3, padding=1)
        if head_bias is not None:
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, x: Tensor) -> StageOut:
        trunk = self.trunk
        stem = self.reduce(x) if hasattr(self, "reduce") else F.relu(trunk.bn1(trunk.conv1(x)))
        levels = [trunk.layer1(trunk.maxpool(stem))]
        for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
            levels.append(layer(levels[-1]))
        x = levels.pop()
        feature = trunk.fc(x.mean((2, 3))) if self.latent else None
        for block in self.decoder:
            skip = levels.pop() if levels else None
            size = (stem if skip is None else skip).shape[2:]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            x = block(x if skip is None else torch.cat((x, skip), 1))
        return StageOut(self.head(x), stem, feature)


def channels_of(trunk: ResNet) -> tuple[int, list[int]]:
    """Channels of the stem, and of the four levels as they come out."""
    last = [getattr(trunk, f"layer{level}")[-1] for level in (1, 2, 3, 4)]
    return last[0].conv1.out_channels, [block.conv1.in_channels for block in last]


def start_published(stages: nn.ModuleList, trunk: BackboneOptions) -> None:
    """The published weights in every stage's residual network; raises InputError where they cannot be had."""
    if trunk.weights is None:
        return
    options = trunk.model_copy(update={"feature": "logits1000"})
    whole = build_backbone(options)
    load_published(whole, options)
    for stage in stages:
        own = stage.trunk.state_dict()
        stage.trunk.load_state_dict({name: value for name, value in whole.state_dict().items() if name in own})
