"""IdHandMesh: a hand mesh from one crop, told whose hand it is (Kong et al., ECCV 2022; specs/idhandmesh.md section 3).

One class for three arms: `shape: predicted` regresses the MANO shape (the baseline), `shape: given` is told it and uses it in
the hand layer (as published) or in the pose heads as well, `conf_branch` ranks the baseline's answers by their shape error.
Three unshared heads refine 16 rotations (6D: first two rows) from the image feature; the hand layer makes the mesh, in the
camera's axes, about MANO's translation point. Network unit: 0.2 m. The published settings are options, the questionable ones
with a cure beside them; see `Seed:`.
"""
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from src.backbones import BackboneOptions, build_backbone, load_published, normalise
from src.losses import both, labelled, mean_abs, rank_accuracy, ranking_loss, surface_losses
from src.method import Method
from src.mlp import Mlp
from src.root_head import RootHead, root_loss, root_of
from utils.batch import Batch, Prediction
from utils.errors import InputError
from utils.hand import HandModel, Posed
from utils.precision import full_precision
from utils.rotation import matrix_from_rows6d, rows6d_from_matrix

SCALE_M = 0.2  # metres per network unit
POSE, SHAPE = 96, 10
# Hidden layers of the confidence branch by the original's number for them, which counts differently each time.
CONF_HIDDEN = {1: (), 2: (256,), 3: (256, 64, 16), 6: (512, 256, 128, 64, 32, 16)}
LOG_VAR = (-8.0, 3.0)  # of a shape coefficient: standard deviations of 0.02 to 4.5
CUE_MEAN, CUE_STD = -1.1, 0.4  # of log(crop side / focal length): hands of 0.15 to 0.45 m of crop at 0.5 to 1 m


class Options(BackboneOptions):
    """`method:` of an option file. The published settings are in options/dex_ycb_{baseline,given,conf}.yaml."""

    name: Literal["idhand"] = "idhand"
    shape: Literal["predicted", "given"] = "predicted"
    shape_into: Literal["layer", "heads"] = Field("layer", description="where a given shape enters: the hand layer alone, as "
                                                                       "published; heads: the pose heads see it, too")
    identity_noise: float = Field(0.0, ge=0, description="heads: standard deviation of noise on the shape they see in training, "
                                                         "as a calibration errs")
    shape_head: Literal["point", "gaussian"] = Field("point", description="gaussian: mean and log-variance, fitted by likelihood")
    start_pose: Literal["degenerate", "identity", "mean"] = Field("identity", description="mean: the hand model's mean pose")
    pose_update: Literal["add", "multiply"] = "add"
    iterations: int = Field(3, ge=1, le=10)
    hidden: tuple[int, ...] = Field((512, 256, 128), description="widths of the hidden layers of the pose and shape heads")
    dropout: float = Field(0.0, ge=0, lt=1)
    root_head: bool = Field(False, description="also predict the wrist's position in the camera, see src/root_head.py")
    camera_cue: Literal["none", "zoom"] = Field("none", description="zoom: the heads see log(crop side / focal length)")
    surface_losses: bool = Field(True, description="the terms normal and edge; without them a step is a third shorter on a CPU")
    conf_branch: Literal[0, 1, 2, 3, 6] = Field(0, description="variant of the confidence branch, see CONF_HIDDEN; 0 = none")
    conf_drop_out: bool = Field(False, description="drop-out 0.2 before the one-layer confidence branch")
    conf_sigmoid: bool = False
    conf_loss: Literal["ranking", "regression"] = "ranking"
    conf_margin: float = Field(1.0, ge=0)
    train_only_conf: bool = Field(False, description="second stage: everything but the confidence branch is frozen")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start_pose == "degenerate" and self.pose_update == "multiply":
            raise ValueError("start_pose degenerate is no rotation, so it cannot be multiplied; use identity or mean")
        if self.shape == "given" and self.shape_head != "point":
            raise ValueError("shape_head belongs to a predicted shape; leave it out, or use shape: predicted")
        if self.shape == "predicted" and self.shape_into != "layer":
            raise ValueError("shape_into says where a given shape enters; leave it out, or use shape: given")
        if self.identity_noise and self.shape_into != "heads":
            raise ValueError("identity_noise is of the shape that the heads see; set shape_into: heads, or identity_noise: 0")
        if self.conf_branch and self.shape == "given":
            raise ValueError("conf_branch judges a predicted shape; use shape: predicted, or conf_branch: 0")
        if self.train_only_conf and not self.conf_branch:
            raise ValueError("train_only_conf needs a confidence branch; set conf_branch to 1, 2, 3 or 6")
        if self.conf_drop_out and self.conf_branch != 1:
            raise ValueError("conf_drop_out exists in the one-layer branch only; set conf_branch: 1, or conf_drop_out: false")
        return self


class Out(NamedTuple):
    """poses6d (iterations,b,96) after each iteration, first to last · rotations (b,16,3,3) of the last · shape (b,10) predicted
    or given · verts (b,778,3), chain (b,16,3) metres about the MANO translation point, camera axes · confidence (b) or None ·
    shape_log_var (b,10) of the predicted shape, or None · root (b,3) answer of the root head, or None."""

    poses6d: Tensor
    rotations: Tensor
    shape: Tensor
    verts: Tensor
    chain: Tensor
    confidence: Tensor | None
    shape_log_var: Tensor | None = None
    root: Tensor | None = None


def networks(options: Options) -> dict[str, nn.Module]:
    """Everything that has weights, by its name in a checkpoint; needs no hand model."""
    backbone = build_backbone(options)
    seen = backbone.feature_size + (options.camera_cue == "zoom")
    heads = (Mlp((seen + POSE, *options.hidden, POSE), options.dropout) for _ in range(options.iterations))
    parts: dict[str, nn.Module] = {"backbone": backbone, "pose_heads": nn.ModuleList(heads)}
    if options.shape == "predicted":
        parts["shape_head"] = Mlp((seen, *options.hidden, SHAPE * (1 + (options.shape_head == "gaussian"))), options.dropout)
    if options.shape_into == "heads":
        # Ten more inputs of each pose head, as layers of their own that start at zero: training can go on from a trunk without.
        into = [nn.Linear(SHAPE, options.hidden[0], bias=False) for _ in range(options.iterations)]
        for layer in into:
            nn.init.zeros_(layer.weight)
        parts["identity_heads"] = nn.ModuleList(into)
    if options.root_head:
        parts["root_head"] = RootHead(seen, options.hidden[0])
    if options.conf_branch:
        parts["conf_branch"] = Mlp((seen, *CONF_HIDDEN[options.conf_branch], 1), drop_input=0.2 * options.conf_drop_out)
    return parts


def start_pose(kind: str, hand: HandModel) -> Tensor:
    """(96) the 6D pose that the first head sees."""
    if kind == "mean":
        return rows6d_from_matrix(hand.rotations_from_pose(hand.hands_mean.new_zeros(48), pca=True, flat_mean=False)).flatten()
    # Seed: the published baseline takes the identity's first two *columns*, which as rows are parallel: a constant input, not a
    # rotation, but the published weights were trained on it.
    one = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0] if kind == "degenerate" else [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return hand.hands_mean.new_tensor(one).repeat(16)


class IdHand(Method):
    """The three arms; see the file's docstring."""

    training_only = frozenset({"weights", "dropout", "surface_losses", "conf_drop_out", "conf_loss", "conf_margin",
                               "train_only_conf", "identity_noise"})

    def __init__(self, options: Options, hand: HandModel):
        super().__init__()
        self.options, self.hand = options, hand
        for name, module in networks(options).items():
            self.add_module(name, module)
        self.register_buffer("start", start_pose(options.start_pose, hand), persistent=False)
        if options.train_only_conf:
            self.requires_grad_(False)
            self.conf_branch.requires_grad_(True)
        self.told = options.shape == "given"
        self.loss_names = self._loss_names()
        self.needs = frozenset({"identity"} if self.told else ()) | (
            {"shape"} if options.train_only_conf else {"verts", "root", "chain_wrist", "shape", "rotations"})

    def _loss_names(self) -> tuple[str, ...]:
        if self.options.train_only_conf:
            return ("conf",)
        surface = ("normal", "edge") * self.options.surface_losses
        return (("verts", *surface, "pose") + ("shape",) * (not self.told) + ("root",) * self.options.root_head
                + ("conf",) * bool(self.options.conf_branch))

    def train(self, mode: bool = True) -> Self:
        """Seed: in the original's second stage the "frozen" backbone stayed in train mode, so its batch-norm statistics drifted
        and went into the checkpoint that calibrates; here all but the branch stays in eval mode."""
        super().train(mode)
        if self.options.train_only_conf:
            for name, child in self.named_children():
                child.train(mode and name == "conf_branch")
        return self

    def start_weights(self) -> None:
        """The backbone's published weights; raises InputError where they cannot be had."""
        load_published(self.backbone, self.options)

    def forward(self, batch: Batch) -> Out:
        """Raises InputError where the arm is told the shape and the batch holds none."""
        if self.told and batch.identity is None:
            raise InputError("method.shape=given: this model is told whose hand it sees, and was given no identity; pass an "
                             "identity file (written by calibrate), or use a model with method.shape=predicted")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.train_only_conf):
            feature = self.backbone(normalise(batch.image, self.options.normalise))
            if self.options.camera_cue == "zoom":
                feature = torch.cat((feature, zoom_cue(batch)[:, None].to(feature.dtype)), 1)
        return self.heads(feature, batch.identity if self.told else None)

    def heads(self, feature: Tensor, identity: Tensor | None = None) -> Out:
        """All that follows the backbone: feature (b,f), zoom cue included, and the shape (b,10) that the given arm is told."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.train_only_conf):
            poses = self._refine(feature, identity)
            shape, log_var = (identity, None) if self.told else self._shape(feature)
            rotations = matrix_from_rows6d(poses[-1].unflatten(-1, (16, 6)))
            posed = self.hand(rotations, shape)
            root = self.root_head(feature) if self.options.root_head else None
        return Out(torch.stack(poses), rotations, shape, posed.verts, posed.chain, self._confidence(feature), log_var, root)

    def _shape(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted shape (b,10) and, of a gaussian head, its log-variance (b,10)."""
        found = self.shape_head(feature)
        if self.options.shape_head == "point":
            return found, None
        return found[:, :SHAPE], found[:, SHAPE:].clamp(*LOG_VAR)

    def _refine(self, feature: Tensor, identity: Tensor | None) -> list[Tensor]:
        """The 6D pose (b,96) after each iteration."""
        pose, poses = self.start.expand(len(feature), -1), []
        if self.options.shape_into == "heads" and self.training and self.options.identity_noise:
            identity = identity + self.options.identity_noise * torch.randn_like(identity)
        for number, head in enumerate(self.pose_heads):
            known = self.identity_heads[number](identity) if self.options.shape_into == "heads" else None
            delta = head(torch.cat((feature, pose), 1), known)
            pose = pose + delta if self.options.pose_update == "add" else _compose(delta, pose)
            poses.append(pose)
        return poses

    def _confidence(self, feature: Tensor) -> Tensor | None:
        if not self.options.conf_branch:
            return None
        confidence = self.conf_branch(feature.detach())[:, 0]
        return torch.sigmoid(confidence) if self.options.conf_sigmoid else confidence

    def losses(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """Lengths in network units. Seed: the pose term sees the last iteration only, and in `add` its 6D before Gram-Schmidt."""
        terms = {}
        if not self.options.train_only_conf:
            terms = self._mesh_terms(out, batch)
            true_pose = rows6d_from_matrix(batch.rotations).flatten(1)
            terms["pose"] = labelled(mean_abs(out.poses6d[-1], true_pose), batch.has_rotations)
            if self.options.root_head:
                known = both(batch.has_verts, batch.has_rotations)
                terms["root"] = labelled(root_loss(out.root, self.hand, batch), known)
        if not self.told and "shape" in self.loss_names:
            terms["shape"] = labelled(self._shape_term(out, batch), batch.has_shape)
        if self.options.conf_branch:
            terms["conf"] = self._conf_term(out, batch)
        return terms

    def _mesh_terms(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        # Both meshes are about MANO's translation point, from which the wrist stands off by its rest place J0(shape).
        wrist = self.hand.shaped(batch.shape).rest_joints[:, 0]
        true_wrist = batch.root if batch.chain_wrist is None else batch.chain_wrist
        true = (batch.verts + (wrist - true_wrist)[:, None]) / SCALE_M
        pred = out.verts / SCALE_M
        terms = {"verts": mean_abs(pred, true)}
        if self.options.surface_losses:
            terms["normal"], terms["edge"] = surface_losses(pred, true, self.hand.faces)
        known = both(batch.has_verts, batch.has_rotations)  # without pose numbers a mesh has no place about MANO's point
        return {name: labelled(term, known) for name, term in terms.items()}

    def _shape_term(self, out: Out, batch: Batch) -> Tensor:
        """L1, or the Gaussian's negative log-likelihood per coefficient (less its constant)."""
        if out.shape_log_var is None:
            return mean_abs(out.shape, batch.shape)
        square = (out.shape - batch.shape).square()
        return 0.5 * (out.shape_log_var + square * torch.exp(-out.shape_log_var)).mean(1)

    def _conf_term(self, out: Out, batch: Batch) -> Tensor:
        error = mean_abs(out.shape, batch.shape).detach()
        if self.options.conf_loss == "ranking":
            return ranking_loss(out.confidence, error, self.options.conf_margin, batch.has_shape)
        return labelled((out.confidence + error).abs(), batch.has_shape)

    def metrics(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """shape_error: mean absolute difference of the ten numbers; rank_accuracy: share of pairs that it ranks rightly."""
        if self.told or batch.shape is None:
            return {}
        error = mean_abs(out.shape, batch.shape)
        found = {"shape_error": labelled(error, batch.has_shape).mean()}
        if out.confidence is not None and len(error) > 1:
            found["rank_accuracy"] = rank_accuracy(out.confidence, error, batch.has_shape)
        return found

    def decode(self, out: Out, batch: Batch) -> Prediction:
        """Wrist-relative, joints as the dataset's labels are. A root where there is a head for it."""
        joints = self.hand.joints(Posed(out.verts, out.chain), *self.joint_set)
        wrist = joints[:, :1]
        cov = None if out.shape_log_var is None else torch.diag_embed(torch.exp(out.shape_log_var))
        root = None if out.root is None else root_of(out.root, out.shape, self.hand, batch)
        return Prediction(out.verts - wrist, joints - wrist, root, rotations=out.rotations, shape=out.shape, shape_cov=cov,
                          confidence=out.confidence)


def zoom_cue(batch: Batch) -> Tensor:
    """(b) log(crop side / focal length), in pixels of the crop as cut, at about unit spread: what a resized crop hides."""
    return (torch.log(batch.image.shape[-1] / batch.K[:, 0, 0]) - CUE_MEAN) / CUE_STD


@full_precision
def _compose(delta: Tensor, pose: Tensor) -> Tensor:
    """R(delta) R(pose) per joint, back as 6D rows (b,96)."""
    turned = matrix_from_rows6d(delta.unflatten(-1, (16, 6))) @ matrix_from_rows6d(pose.unflatten(-1, (16, 6)))
    return rows6d_from_matrix(turned).flatten(1)


def build(options: Options, hand: HandModel) -> IdHand:
    """The method; its weights are random until `start_weights` or a checkpoint."""
    return IdHand(options, hand)
