"""Heat maps as what a network learns and says: drawn as targets, compared as logits, read as pixels.

What the 2D detector and CMR share (specs/cmr_boukhayma_metro.md 2.3, 3.1, 3.3.7; specs/idhandmesh.md 6.1): ways to draw and to
read are in utils/heatmap.py. Seed: the originals took the cross-entropy of sigmoids; of logits it is the same, never infinite.
"""
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from src.losses import labelled
from utils.batch import Batch
from utils.heatmap import draw_gaussian, draw_published, read_argmax, read_subcell
from utils.precision import full_precision
from utils.strict import Strict

JOINTS = 21
PAIRS = tuple(combinations((4, 8, 12, 16, 20), 2))  # of fingertips, T21
FINGERS = tuple(tuple(range(first, first + 4)) for first in (1, 5, 9, 13, 17))


class MapOptions(Strict):
    """Mixed into the options of a method that draws heat maps of joints."""

    target: Literal["gaussian", "published"] = Field("gaussian", description="published: truncated to pixels, drawn, then halved")
    sigma: float = Field(1.5, gt=0, le=10, description="of target gaussian, in cells (two pixels of the crop)")
    head_bias: float | None = Field(-4.0, description="first bias of the maps' logits: maps begin near empty; null = torch's own")
    place_loss: bool = Field(False, description="the term place: where the maps' softmax has its mean, beside what the maps draw")
    decoder: Literal["subcell", "argmax"] = Field("subcell", description="argmax: the cell's first pixel, as published")


MAP_TRAINING_ONLY = frozenset({"target", "sigma", "head_bias", "place_loss"})


def target_maps(options: MapOptions, batch: Batch, cells: int) -> Tensor:
    """(b,21,cells,cells) the maps that a stage should draw."""
    pixels = batch.image.shape[-1]
    if options.target == "published":
        return draw_published(batch.joints_uv, pixels)
    return draw_gaussian(batch.joints_uv, pixels, cells, options.sigma)


def map_terms(logits: list[Tensor], options: MapOptions, batch: Batch) -> dict[str, Tensor]:
    """Terms (b) of the stages' maps (b,21,c,c), first to last; a joint weighs its uv_confidence.

    heatmap: mean binary cross-entropy over joints and cells, summed over the stages. place, where asked: mean distance, in cells,
    of the last maps' softmax means from the joints (a gradient where the maps are empty).
    """
    target = target_maps(options, batch, logits[-1].shape[-1]).to(logits[-1])
    term = sum(F.binary_cross_entropy_with_logits(maps, target, reduction="none").mean((2, 3)) for maps in logits)
    terms = {"heatmap": term}
    if options.place_loss:
        away = (softmax_mean(logits[-1], batch.image.shape[-1]) - batch.joints_uv).norm(dim=-1)
        terms["place"] = away * (logits[-1].shape[-1] / batch.image.shape[-1])
    if batch.uv_confidence is not None:
        terms = {name: value * batch.uv_confidence for name, value in terms.items()}
    return {name: labelled(value.mean(1), batch.has_uv) for name, value in terms.items()}


def read_maps(logits: Tensor, options: MapOptions, pixels: int) -> tuple[Tensor, Tensor]:
    """Joints (b,21,2) in pixels of the crop, and the values (b,21) of the maps' peaks."""
    if options.decoder == "argmax":
        return read_argmax(torch.sigmoid(logits), pixels)
    return read_subcell(F.logsigmoid(logits), pixels)


def pair_sums(maps: Tensor) -> Tensor:
    """(b,10,h,w) of (b,21,h,w): what two fingertips' maps add up to, for all pairs; between 0 and 2."""
    return torch.stack([maps[:, a] + maps[:, b] for a, b in PAIRS], 1)


def finger_sums(maps: Tensor) -> Tensor:
    """(b,5,h,w) of (b,21,h,w): what the four maps of each finger add up to; between 0 and 4."""
    return torch.stack([maps[:, finger].sum(1) for finger in map(list, FINGERS)], 1)


@full_precision
def softmax_mean(logits: Tensor, pixels: int) -> Tensor:
    """(b,21,2) pixels of the crop: the mean of the cells' centres under the softmax of each map (Sun et al., ECCV 2018)."""
    share = torch.softmax(logits.flatten(2), -1).unflatten(2, logits.shape[2:])
    cell = pixels / logits.shape[-1]
    centres = (torch.arange(logits.shape[-1], device=logits.device, dtype=share.dtype) + 0.5) * cell - 0.5
    return torch.stack(((share.sum(2) * centres).sum(-1), (share.sum(3) * centres).sum(-1)), -1)
