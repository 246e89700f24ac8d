"""2D joints of a hand from one crop, by heat maps in three stages (Kong et al., ECCV 2022; specs/idhandmesh.md 6.1).

The image part of CMR (Chen et al., CVPR 2021). Each stage is a residual network and a decoder with skips that draws 21 maps at
half the crop's size; stages two and three see the first one's stem beside the maps before them, stage three also the ten sums of
two fingertips' maps. All stages are trained on the same target. The published settings are in options/dex_ycb_2d_pose.yaml;
`width` and `stages` make it fit a CPU. Seed: the original ran an unused pooling and 1000-way layer in each stage; none here.
"""
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from src.backbones import normalise
from src.losses import labelled, mean_known
from src.maps import JOINTS, MAP_TRAINING_ONLY, PAIRS, MapOptions, map_terms, pair_sums, read_maps
from src.method import Method
from src.stage import Stage, StageOptions, start_published
from utils.batch import Batch, Prediction
from utils.hand import HandModel


class Options(StageOptions, MapOptions):
    """`method:` of an option file. The published settings are in options/dex_ycb_2d_pose.yaml."""

    name: Literal["pose2d"] = "pose2d"
    stages: int = Field(3, ge=1, le=3)


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
    training_only = frozenset({"weights"}) | MAP_TRAINING_ONLY

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

    def losses(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """heatmap and, by option, place: see src/maps.py."""
        return map_terms(list(out.logits), self.options, batch)

    def metrics(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """joints_uv_px: mean distance of the known joints in pixels of the crop."""
        error = mean_known((self.decode(out, batch).joints_uv - batch.joints_uv).norm(dim=-1), batch.uv_confidence)
        return {"joints_uv_px": labelled(error, batch.has_uv).mean()}

    def decode(self, out: Out, batch: Batch) -> Prediction:
        """joints_uv in pixels of the crop, uv_confidence the value of the last stage's peak."""
        uv, confidence = read_maps(out.logits[-1], self.options, batch.image.shape[-1])
        return Prediction(joints_uv=uv, uv_confidence=confidence)


def build(options: Options, hand: HandModel) -> Pose2d:
    """The method; its weights are random until `start_weights` or a checkpoint."""
    return Pose2d(options, hand)
