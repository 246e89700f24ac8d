"""CMR: a hand mesh from one crop by 2D cues, and its place in the camera (Chen et al., CVPR 2021; specs/cmr_boukhayma_metro.md).

Stages draw a silhouette (S), the 2D pose (P) and sums of joints' maps, the grouped sub-poses (G), each seeing what the one before
drew; the last one's feature becomes a mesh by a spiral decoder over a mesh pyramid (2.3, 2.4). `variant` sg and pg have three
stages, g has two. Without `silhouette`, pg is the DexYCB variant of Kong et al. (ECCV 2022; specs/idhandmesh.md 7.1). Meshes are
in units of 0.2 m about the wrist, in the camera's axes; the wrist's place in the camera is found by registration.
"""
import math
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from src.backbones import normalise
from src.losses import both, labelled, mean_abs, mean_known, surface_losses
from src.maps import FINGERS, JOINTS, MAP_TRAINING_ONLY, PAIRS, MapOptions, finger_sums, map_terms, pair_sums, read_maps
from src.method import Method
from src.register import RegisterOptions, Registration, register
from src.silhouette import extents_of_masks
from src.spiral import MeshDecoder
from src.stage import Stage, StageOptions, start_published
from utils.batch import Batch, Prediction
from utils.hand import HandModel, Posed
from utils.mesh import Pyramid
from utils.precision import full_precision
from utils.pyramid import PyramidOptions, is_published, pyramid_of

SCALE_M = 0.2  # metres per network unit
FEATURE = 1000  # the classifier's logits
VERTS = 778
LEAST_SPIRAL = 3
CMR_TIPS = "ho3d"  # of utils.joints.TIPS


class Options(StageOptions, MapOptions, PyramidOptions):
    """`method:` of an option file. The published settings are in options/freihand_cmr_*.yaml, dex_ycb_cmr.yaml."""

    name: Literal["cmr"] = "cmr"
    variant: Literal["sg", "pg", "g"] = Field("pg", description="what the stages before the last one draw: silhouette and pose, "
                                                                "pose twice, pose once")
    silhouette: bool = Field(True, description="the last stage draws the hand's silhouette, too; needs masks to train on")
    attention: bool = Field(True, description="of the feature with itself; sg and pg always have it, the published g has not")
    channels: tuple[int, ...] = Field((64, 128, 256, 512), description="of the mesh decoder's levels, finest first")
    origin: Literal["wrist", "mano"] = Field("wrist", description="of the network's meshes: the labelled wrist, or MANO's "
                                                                  "translation point, as the published DexYCB variant")
    registration: RegisterOptions = RegisterOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.variant == "sg" and not self.silhouette:
            raise ValueError("silhouette: sg is the variant that begins with one; use variant pg or g, or silhouette: true")
        if self.variant != "g" and not self.attention:
            raise ValueError("attention: sg and pg always have it; use variant g, or attention: true")
        if len(self.channels) != len(self.factors):
            raise ValueError(f"channels: expected one for each of the {len(self.factors)} factors, found {len(self.channels)}")
        if any(count < 4 or count % 4 for count in self.channels):
            raise ValueError(f"channels: expected multiples of 4, found {list(self.channels)}")
        if self.seq_length < LEAST_SPIRAL:
            raise ValueError(f"seq_length: a third of each spiral is convolved on its own; expected {LEAST_SPIRAL} or more, "
                             f"found {self.seq_length}")
        return self


class Out(NamedTuple):
    """logits: of each stage's maps (b,k,c,c), first to last, c = half the crop's pixels; k = 1 is a silhouette, 21 the joints, 22
    the joints and a silhouette · meshes: (b,778,3), (b,389,3), ... finest first, network units."""

    logits: list[Tensor]
    meshes: list[Tensor]


class SelfAttention(nn.Module):
    """What each number z_i of a vector (b,d) makes of all others: z + gamma softmax_j(q_i k_j) v, gamma = 0 at first.

    d tokens of one number each, unscaled, in full precision. The fused kernel never holds the (b,d,d) table of products: 4 MB a
    sample at d = 1000, and ten times the time on a CPU.
    """

    def __init__(self, features: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, features) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.gamma = nn.Parameter(torch.zeros(1))

    @full_precision
    def forward(self, z: Tensor) -> Tensor:
        q, k, v = (layer(z)[:, None, :, None] for layer in (self.query, self.key, self.value))
        return self.gamma * F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0, :, 0] + z


def networks(options: Options, pyramid: Pyramid | None = None) -> dict[str, nn.Module]:
    """Everything that has weights, by its name in a checkpoint. Without a pyramid, with index tables of zeros."""
    last = JOINTS + options.silhouette
    drawn = {"sg": (1, JOINTS, last), "pg": (JOINTS, JOINTS, last), "g": (JOINTS, last)}[options.variant]
    seen = [0, *drawn[:-1]]
    seen[-1] += len(PAIRS) + (len(FINGERS) if options.variant == "g" else 0)
    stages = [Stage(options.trunk, maps, out, options.head_bias, latent=place == len(drawn))
              for place, (maps, out) in enumerate(zip(seen, drawn), 1)]
    parts: dict[str, nn.Module] = {"stages": nn.ModuleList(stages)}
    if options.attention:
        parts["attention"] = SelfAttention(FEATURE)
    if pyramid is None:
        with torch.device("cpu"):  # its index tables are worked on, which torch's meta device cannot
            parts["decoder"] = MeshDecoder(FEATURE, options.channels, _sizes_alone(options))
    else:
        parts["decoder"] = MeshDecoder(FEATURE, options.channels, pyramid)
    return parts


def _sizes_alone(options: PyramidOptions) -> Pyramid:
    """A pyramid of the options' sizes whose tables are all zero: what the sizes of weights follow from."""
    sizes = [VERTS]
    for factor in options.factors:
        sizes.append(math.ceil(sizes[-1] / factor))
    fine, coarse = sizes[:-1], sizes[1:]
    ids = [tuple(np.zeros((count, width), np.int64) for count in fine) for width in (3, options.seq_length)]
    return Pyramid((), tuple(np.zeros(count, np.int64) for count in coarse), ids[0],
                   tuple(np.zeros((count, 3), np.float32) for count in fine), ids[1])


class Cmr(Method):
    """See the file's docstring. pyramid: of another mesh than the hand model's, which tests need; None = as the options say."""

    compares = frozenset({"joints", "verts", "root", "joints_uv"})
    training_only = frozenset({"weights", "decoder", "pyramid", "registration"}) | MAP_TRAINING_ONLY

    def __init__(self, options: Options, hand: HandModel, pyramid: Pyramid | None = None):
        super().__init__()
        self.options, self.hand = options, hand
        pyramid = pyramid or pyramid_of(hand, options)
        if not is_published(pyramid):
            self.misfit = "the mesh pyramid of this hand model is not the one that CMR's published weights were trained on"
        for name, module in networks(options, pyramid).items():
            self.add_module(name, module)
        self.loss_names = (("verts", "heatmap") + ("place",) * options.place_loss + ("mask",) * options.silhouette
                           + ("normal", "edge"))
        self.needs = (frozenset({"verts", "root", "joints_uv"}) | ({"mask"} if options.silhouette else set())
                      | ({"shape", "chain_wrist"} if options.origin == "mano" else set()))

    def start_weights(self) -> None:
        """The published weights in every stage's residual network; raises InputError where they cannot be had."""
        start_published(self.stages, self.options.trunk)

    def forward(self, batch: Batch) -> Out:
        variant = self.options.variant
        first = self.stages[0](normalise(batch.image, self.options.normalise))
        stem, logits = first.stem, [first.logits]
        for stage in self.stages[1:-1]:
            middle = stage(torch.cat((stem, torch.sigmoid(logits[-1])), 1))
            logits.append(middle.logits)
            if variant == "sg":  # the last stage sees what the silhouette's stage made of the first stem; in pg, the first stem
                stem = middle.stem
        joints = torch.sigmoid(logits[-1])
        groups = [pair_sums(joints)] + [finger_sums(joints)] * (variant == "g")
        last = self.stages[-1](torch.cat((stem, joints, *groups), 1))
        logits.append(last.logits)
        return Out(logits, self.decoder(self.attention(last.feature) if self.options.attention else last.feature))

    def losses(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """verts: mean |coordinate| off, network units, summed over the levels. normal, edge: of the finest mesh. heatmap (and, by
        option, place): see src/maps.py. mask: mean cross-entropy of the cells, summed over the stages that draw a silhouette."""
        true = self._true_mesh(batch)
        levels = zip(out.meshes, self.decoder.levels(true), strict=True)
        terms = {"verts": sum(mean_abs(pred, level) for pred, level in levels)}
        terms["normal"], terms["edge"] = surface_losses(out.meshes[0], true, self.hand.faces)
        known = both(batch.has_verts, batch.has_root if self.options.origin == "wrist" else batch.has_rotations)
        terms = {name: labelled(term, known) for name, term in terms.items()}
        terms |= map_terms([maps[:, :JOINTS] for maps in out.logits if maps.shape[1] >= JOINTS], self.options, batch)
        if self.options.silhouette:
            terms["mask"] = self._mask_term(out, batch)
        return {name: terms[name] for name in self.loss_names}

    def _true_mesh(self, batch: Batch) -> Tensor:
        """(b,778,3) network units about the network's origin."""
        if self.options.origin == "wrist":
            return (batch.verts - batch.root[:, None]) / SCALE_M
        rest = self.hand.shaped(batch.shape).rest_joints[:, 0]  # of the chain's wrist from MANO's translation point
        return (batch.verts + (rest - batch.chain_wrist)[:, None]) / SCALE_M

    def _mask_term(self, out: Out, batch: Batch) -> Tensor:
        drawn = [maps[:, -1] for maps in out.logits if maps.shape[1] != JOINTS]
        target = F.adaptive_avg_pool2d(batch.mask[:, None].to(drawn[-1]), drawn[-1].shape[1:])[:, 0]
        if self.options.target == "published":
            target = (target >= 0.5).to(target)  # Seed: halved as whole numbers
        term = sum(F.binary_cross_entropy_with_logits(maps, target, reduction="none").mean((1, 2)) for maps in drawn)
        return labelled(term, batch.has_mask)

    def _read(self, out: Out, batch: Batch) -> tuple[Tensor, Tensor]:
        return read_maps(out.logits[-1][:, :JOINTS], self.options, batch.image.shape[-1])

    def metrics(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """joints_uv_px: mean distance of the known joints in pixels of the crop. mask_iou: of the silhouette, if it is drawn."""
        error = mean_known((self._read(out, batch)[0] - batch.joints_uv).norm(dim=-1), batch.uv_confidence)
        found = {"joints_uv_px": _mean_labelled(error, batch.has_uv)}
        if self.options.silhouette and batch.mask is not None:
            pred = out.logits[-1][:, JOINTS] > 0
            true = F.adaptive_avg_pool2d(batch.mask[:, None].to(out.logits[-1]), pred.shape[1:])[:, 0] >= 0.5
            iou = (pred & true).sum((1, 2)) / (pred | true).sum((1, 2)).clamp_min(1)
            found["mask_iou"] = _mean_labelled(iou, batch.has_mask)
        return found

    def decode(self, out: Out, batch: Batch) -> Prediction:
        """verts, joints regressed from them, joints_uv of the last stage's maps, mask; root by registration with the crop's K.

        A row that shows too little to be placed stands where the registration starts, at 0.6 m on the camera's axis.
        """
        verts, joints, wrist = self._mesh(out)
        uv, confidence = self._read(out, batch)
        mask = torch.sigmoid(out.logits[-1][:, JOINTS]) if self.options.silhouette else None
        root = by = None
        if self.options.registration.solver != "none":
            found = self._place(verts, joints, uv, confidence, mask, batch)
            root, by = found.translation + wrist[:, 0], found.by
        joints = torch.cat((torch.zeros_like(wrist), joints[:, 1:] - wrist), 1)
        return Prediction(verts - wrist, joints, root, joints_uv=uv, uv_confidence=confidence, mask=mask,
                          root_by=by)

    def _place(self, verts: Tensor, joints: Tensor, uv: Tensor, confidence: Tensor, mask: Tensor | None, batch: Batch,
               ) -> Registration:
        """Where the network's origin is in the camera, metres."""
        options, size, outlines = self.options.registration, batch.image.shape[-1], (None, None)
        if options.solver == "faithful":  # Seed: the original's regressor has its own fingertips, whatever was labelled
            joints = self.hand.joints(Posed(verts, None), CMR_TIPS, "regressed")
        if mask is not None and options.use_silhouette:
            outlines = extents_of_masks(mask, size, options.mask_threshold)
        return register(verts, joints, uv, confidence, batch.K.to(verts), size, *outlines, options)

    def _mesh(self, out: Out) -> tuple[Tensor, Tensor, Tensor]:
        """Metres about the network's origin: verts (b,778,3), joints (b,21,3) regressed from them, wrist (b,1,3).

        Seed: trained about the labelled wrist, the original is evaluated about the one regressed from its mesh; here so where
        labels are regressed as well. A chain's wrist is where the network was told it is: at its origin.
        """
        verts = out.meshes[0].to(self.hand.J_regressor) * SCALE_M
        joints = self.hand.joints(Posed(verts, None), self.joint_set.tips, "regressed")
        if self.joint_set.kind == "chain" and self.options.origin == "wrist":
            return verts, joints, torch.zeros_like(joints[:, :1])
        return verts, joints, joints[:, :1]


def _mean_labelled(values: Tensor, has: Tensor | None) -> Tensor:
    """Mean over the rows that have a label; 0 where none has."""
    return labelled(values, has).sum() / (len(values) if has is None else has.sum().clamp_min(1))


def build(options: Options, hand: HandModel) -> Cmr:
    """The method; its weights are random until `start_weights` or a checkpoint."""
    return Cmr(options, hand)
