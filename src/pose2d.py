"""2D joints of a hand from one crop, by heat maps in three stages (Kong et al., ECCV 2022; specs/idhandmesh.md 6.1).

The image part of CMR (Chen et al., CVPR 2021). Each stage is a residual network and a decoder with skips that draws 21 maps at
half the crop's size; stages two and three see the first one's stem beside the maps before them, stage three also the ten sums of
two fingertips' maps. All stages are trained on the same target. The published settings are in options/dex_ycb_2d_pose.yaml;
`width` and `stages` make it fit a CPU. Seed: the original ran an unused pooling and 1000-way layer in each stage; none here.
"""
from itertools import combinations
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from src.backbones import BackboneOptions, normalise
from src.losses import labelled, mean_known
from src.method import Method
from src.stage import Stage, start_published
from utils.batch import Batch, Prediction
from utils.hand import HandModel
from utils.heatmap import draw_gaussian, draw_published, read_argmax, read_subcell
from utils.precision import full_precision
from utils.strict import Strict

JOINTS = 21
PAIRS = tuple(combinations((4, 8, 12, 16, 20), 2))  # of fingertips, T21


class Options(Strict):
    """`method:` of an option file. The published settings are in options/dex_ycb_2d_pose.yaml."""

    name: Literal["pose2d"] = "pose2d"
    stages: int = Field(3, ge=1, le=3)
    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    weights: str | None = Field(None, description="of each stage: null = from scratch; torchvision's IMAGENET1K_V1; or a file")
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count")
    normalise: Literal["half", "imagenet"] = Field("half", description="(x - 0.5) / 0.5, or ImageNet's mean and deviation")
    target: Literal["gaussian", "published"] = Field("gaussian", description="published: truncated to pixels, drawn, then halved")
    sigma: float = Field(1.5, gt=0, le=10, description="of target gaussian, in cells (two pixels of the crop)")
    head_bias: float | None = Field(-4.0, description="first bias of the maps' logits: maps begin near empty; null = torch's own")
    place_loss: bool = Field(False, description="the term place: where the maps' softmax has its mean, beside what the maps draw")
    decoder: Literal["subcell", "argmax"] = Field("subcell", description="argmax: the cell's first pixel, as published")

    @model_validator(mode="after")
    def _published_weights_fit(self) -> Self:
        if self.weights is not None and self.width != 1:
            raise ValueError("published weights need width 1; set weights: null to train from scratch")
        return self

    @property
    def trunk(self) -> BackboneOptions:
        """What src/backbones.py needs to know of it."""
        return BackboneOptions(backbone=self.backbone, weights=self.weights, width=self.width, normalise=self.normalise)


class Out(NamedTuple):
    """logits (stages,b,21,h,w) of the maps of each stage, first to last, h = w = half the crop's pixels."""

    logits: Tensor


def networks(options: Options) -> dict[str, nn.Module]:
    """Everything that has weights, by its name in a checkpoint."""
    seen = (0, JOINTS, JOINTS + len(PAIRS))[:options.stages]
    return {"stages": nn.ModuleList(Stage(options.trunk, maps, JOINTS, options.head_bias) for maps in seen)}


class Pose2d(Method):
    """See the file's docstring."""

    needs = frozenset({"joints_uv"})
    compares = frozenset({"joints_uv"})
    training_only = frozenset({"weights", "target", "sigma", "head_bias", "place_loss"})

    def __init__(self, options: Options, hand: HandModel):
        super().__init__()
        self.loss_names = ("heatmap",) + ("place",) * options.place_loss
        self.options, self.hand = options, hand  # the hand is no part of it: its name goes into checkpoints
        for name, module in networks(options).items():
            self.add_module(name, module)

    def start_weights(self) -> None:
        """The published weights in every stage's residual network; raises InputError where they cannot be had."""
        start_published(self.stages, self.options.trunk)

    def forward(self, batch: Batch) -> Out:
        first = self.stages[0](normalise(batch.image, self.options.normalise))
        found = [first.logits]
        for stage in self.stages[1:]:
            maps = torch.sigmoid(found[-1])
            if len(found) == 2:
                maps = torch.cat((maps, pair_sums(maps)), 1)
            found.append(stage(torch.cat((first.stem, maps), 1)).logits)
        return Out(torch.stack(found))

    def target(self, batch: Batch, cells: int) -> Tensor:
        """(b,21,cells,cells) the maps that every stage should draw."""
        pixels = batch.image.shape[-1]
        if self.options.target == "published":
            return draw_published(batch.joints_uv, pixels)
        return draw_gaussian(batch.joints_uv, pixels, cells, self.options.sigma)

    def losses(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """heatmap: mean binary cross-entropy over joints and cells, summed over the stages; a joint weighs its uv_confidence.
        place: mean distance, in cells, of the last maps' softmax means from the joints (a gradient where the maps are empty)."""
        target = self.target(batch, out.logits.shape[-1]).to(out.logits).expand_as(out.logits)
        term = F.binary_cross_entropy_with_logits(out.logits, target, reduction="none").mean((3, 4)).sum(0)
        if batch.uv_confidence is not None:
            term = term * batch.uv_confidence
        terms = {"heatmap": labelled(term.mean(1), batch.has_uv)}
        if self.options.place_loss:
            away = (softmax_mean(out.logits[-1], batch.image.shape[-1]) - batch.joints_uv).norm(dim=-1)
            away = away * (out.logits.shape[-1] / batch.image.shape[-1])
            if batch.uv_confidence is not None:
                away = away * batch.uv_confidence
            terms["place"] = labelled(away.mean(1), batch.has_uv)
        return terms

    def metrics(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """joints_uv_px: mean distance of the known joints in pixels of the crop."""
        error = mean_known((self.decode(out, batch).joints_uv - batch.joints_uv).norm(dim=-1), batch.uv_confidence)
        return {"joints_uv_px": labelled(error, batch.has_uv).mean()}

    def decode(self, out: Out, batch: Batch) -> Prediction:
        """joints_uv in pixels of the crop, uv_confidence the value of the last stage's peak."""
        pixels = batch.image.shape[-1]
        if self.options.decoder == "argmax":
            uv, confidence = read_argmax(torch.sigmoid(out.logits[-1]), pixels)
        else:
            uv, confidence = read_subcell(F.logsigmoid(out.logits[-1]), pixels)
        return Prediction(joints_uv=uv, uv_confidence=confidence)


def pair_sums(maps: Tensor) -> Tensor:
    """(b,10,h,w) of (b,21,h,w): what two fingertips' maps add up to, for all pairs; between 0 and 2."""
    return torch.stack([maps[:, a] + maps[:, b] for a, b in PAIRS], 1)


@full_precision
def softmax_mean(logits: Tensor, pixels: int) -> Tensor:
    """(b,21,2) pixels of the crop: the mean of the cells' centres under the softmax of each map (Sun et al., ECCV 2018)."""
    share = torch.softmax(logits.flatten(2), -1).unflatten(2, logits.shape[2:])
    cell = pixels / logits.shape[-1]
    centres = (torch.arange(logits.shape[-1], device=logits.device, dtype=share.dtype) + 0.5) * cell - 0.5
    return torch.stack(((share.sum(2) * centres).sum(-1), (share.sum(3) * centres).sum(-1)), -1)


def build(options: Options, hand: HandModel) -> Pose2d:
    """The method; its weights are random until `start_weights` or a checkpoint."""
    return Pose2d(options, hand)
