"""Boukhayma et al., CVPR 2019: a hand model's numbers by regression (specs/cmr_boukhayma_metro.md 2.8; idhandmesh.md 7.2).

A residual network makes 22 numbers: weak perspective (scale, shift), global axis-angle, 6 pose coefficients about the mean pose,
10 shape. It sees the picture or, by its second stem, the picture and 21 maps of 2D joints that are known: labels in training and
validation, given keypoints in test and demo. `mano: published` fixes the root joint at half a turn about x and turns the hand
afterwards about MANO's origin, which is our root rotation and a shift (`Out.shift`); `layer`, of the DexYCB comparison, turns the
root joint. Both stems are in every checkpoint, as published; the one not in use is frozen. The original has no training code: the
mesh terms are idhandmesh 7.2's, the others our own; how wide the published maps are is not known.
"""
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from src.backbones import BackboneOptions, build_backbone, load_published, normalise
from src.losses import both, labelled, mean_abs, mean_known, surface_losses
from src.method import Method
from src.root import solve_root
from src.root_head import angular_size
from utils.batch import Batch, Prediction
from utils.errors import InputError
from utils.hand import HandModel, Posed
from utils.heatmap import draw_gaussian
from utils.joints import T21_FROM_H21
from utils.precision import full_precision
from utils.rotation import matrix_from_axis_angle
from utils.strict import Strict

SCALE_M = 0.2  # metres per network unit, of the mesh terms
CAMERA, TURN, SHAPE = 3, 3, 10
PIXELS = 256  # side of the published crop, in whose pixels the camera numbers are
MEAN_CAMERA = (545.0, 128.0, 128.0)  # pixels per metre, pixels
FLIP = (1.0, -1.0, -1.0)  # half a turn about x: a right hand in axes of y up, z back, seen in the camera's
WINDOW = 7  # cells of the published average pooling
# Maps and published joints go wrist, index, middle, little, ring, thumb, base to tip: as triples of T21 numbers
# (0,5,6)(7,8,9)(10,11,12)(17,18,19)(20,13,14)(15,16,1)(2,3,4).
PUBLISHED_FROM_T21 = (0, *range(5, 13), *range(17, 21), *range(13, 17), *range(1, 5))
PUBLISHED_TIPS = (745, 333, 444, 555, 672)  # thumb, index, middle, ring, little
NEAREST_M, FARTHEST_M = 0.25, 20.0  # a scale that means a place outside of these counts as theirs where the root is solved


class Options(Strict):
    """`method:` of an option file. The defaults are the release's; the DexYCB comparison's are in the recipes' option file."""

    name: Literal["boukhayma"] = "boukhayma"
    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet34"
    weights: str | None = Field(None, description="null = from scratch; torchvision's name, IMAGENET1K_V1; or a file")
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count")
    stem: Literal["image", "heatmaps"] = Field("image", description="heatmaps: it is also told 2D joints, drawn as 21 maps")
    normalise: Literal["none", "half", "imagenet"] = Field("none", description="of the picture; none = [0,1], as published")
    pool: Literal["corner", "global"] = Field("corner", description="corner: the last map's first 7 x 7 cells, as published; "
                                                                    "at 256 pixels its last row and column are left out")
    mano: Literal["published", "layer"] = "published"
    pca: int = Field(6, ge=1, le=45, description="pose coefficients")
    weak_perspective: bool = Field(True, description="the answer has 2D joints, and a root by them; false: both are discarded")
    camera_gain: float = Field(1.0, gt=0, description="factor on the network's scale and shift: the published ones are pixels, "
                                                      "which a network from scratch is long in reaching; then e.g. 50")
    heatmap_sigma: float = Field(5.0, gt=0, description="of the maps it is told, in pixels of a 256-pixel crop")
    keypoint_noise: float = Field(0.0, ge=0, description="standard deviation added to the labels it is told, pixels of the crop")
    terms: tuple[Literal["joints_uv", "pose", "shape"], ...] = Field(
        (), description="losses beside the mesh's: 2D joints; squared pose coefficients; squared shape")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights is not None and self.width != 1:
            raise ValueError("published weights need width 1; set weights: null to train from scratch")
        if "joints_uv" in self.terms and not self.weak_perspective:
            raise ValueError("terms: joints_uv trains the weak perspective; set weak_perspective: true, or leave joints_uv out")
        if self.keypoint_noise and self.stem != "heatmaps":
            raise ValueError("keypoint_noise is on the joints that are drawn; set stem: heatmaps, or keypoint_noise: 0")
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"terms: {list(self.terms)} names one twice; leave one out")
        return self

    @property
    def trunk(self) -> BackboneOptions:
        """What src/backbones.py needs to know of it."""
        return BackboneOptions(backbone=self.backbone, weights=self.weights, width=self.width, feature="pooled")


class Out(NamedTuple):
    """camera (b,3) pixels per metre and shift, in pixels of a crop of 256 · pca (b,k) · rotations (b,16,3,3) · shape (b,10) ·
    verts (b,778,3), chain (b,16,3) metres about MANO's translation point, camera axes · shift (b,3) from there to the origin of
    the weak perspective: joints_uv = camera[1:] + camera[0] (joints + shift)_xy."""

    camera: Tensor
    pca: Tensor
    rotations: Tensor
    shape: Tensor
    verts: Tensor
    chain: Tensor
    shift: Tensor

    @property
    def posed(self) -> Posed:
        """verts and chain."""
        return Posed(self.verts, self.chain)


def networks(options: Options) -> dict[str, nn.Module]:
    """Everything that has weights, by its name in a checkpoint; needs no hand model."""
    backbone = build_backbone(options.trunk)
    heatmap_stem = nn.Conv2d(3 + len(PUBLISHED_FROM_T21), backbone.conv1.out_channels, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(heatmap_stem.weight, mode="fan_out", nonlinearity="relu")
    return {"backbone": backbone, "heatmap_stem": heatmap_stem,
            "head": nn.Linear(backbone.feature_size, CAMERA + TURN + options.pca + SHAPE)}


class Boukhayma(Method):
    """See the file's docstring."""

    training_only = frozenset({"weights", "keypoint_noise", "terms"})

    def __init__(self, options: Options, hand: HandModel):
        super().__init__()
        self.options, self.hand = options, hand
        for name, module in networks(options).items():
            self.add_module(name, module)
        self.sees_keypoints = options.stem == "heatmaps"
        (self.backbone.conv1 if self.sees_keypoints else self.heatmap_stem).requires_grad_(False)
        self.loss_names = ("verts", "normal", "edge", *options.terms)
        seen = self.sees_keypoints or "joints_uv" in options.terms
        self.needs = frozenset({"verts", "root", "chain_wrist", "shape", "rotations"}) | frozenset({"joints_uv"} if seen else ())
        self.compares = Method.compares | ({"joints_uv"} if options.weak_perspective else set())

    def start_weights(self) -> None:
        """The backbone's published weights; raises InputError where they cannot be had. The stem for maps has none."""
        load_published(self.backbone, self.options.trunk)

    def forward(self, batch: Batch) -> Out:
        """Raises InputError where the maps have no joints to be drawn from, or the crop is too small for the pooling."""
        return self.posed(self.head(self.feature(self.stem_input(batch))))

    def stem_input(self, batch: Batch) -> Tensor:
        """(b,3,h,w) the picture, or (b,24,h,w) picture and maps in the published order."""
        image = batch.image if self.options.normalise == "none" else normalise(batch.image, self.options.normalise)
        if not self.sees_keypoints:
            return image
        if batch.joints_uv is None:
            raise InputError("method.stem=heatmaps: this model is told where the joints are in the picture, and was given none; "
                             "name 2D joints (test.keypoints, demo.keypoints), or use a model with method.stem=image")
        return torch.cat((image, self._maps(batch).to(image)), 1)

    @full_precision
    def _maps(self, batch: Batch) -> Tensor:
        """(b,21,h,w) peaks as high as the joints' confidence; empty for joints outside the crop and rows without any."""
        uv, pixels = batch.joints_uv, batch.image.shape[-1]
        if self.training and self.options.keypoint_noise:
            uv = uv + self.options.keypoint_noise * torch.randn_like(uv)
        maps = draw_gaussian(uv, pixels, pixels, self.options.heatmap_sigma * pixels / PIXELS)
        if batch.uv_confidence is not None:
            maps = maps * batch.uv_confidence[..., None, None]
        if batch.has_uv is not None:
            maps = maps * batch.has_uv[:, None, None, None]
        return maps[:, PUBLISHED_FROM_T21]

    def feature(self, x: Tensor) -> Tensor:
        """(b,f) pooled feature of what the stem sees."""
        trunk, pixels = self.backbone, x.shape[-1]
        x = self.heatmap_stem(x) if self.sees_keypoints else trunk.conv1(x)
        x = trunk.maxpool(F.relu(trunk.bn1(x)))
        x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        if self.options.pool == "global":
            return x.mean((2, 3))
        if min(x.shape[2:]) < WINDOW:
            raise InputError(f"method.pool=corner: the last map of a {pixels}-pixel crop has only {x.shape[3]} cells a side and "
                             "7 are averaged; set crop.pixels to 224 or more, or method.pool to global")
        return x[:, :, :WINDOW, :WINDOW].mean((2, 3))  # Seed: at 256 pixels 15 of the last map's 64 cells are never looked at

    @full_precision
    def posed(self, numbers: Tensor) -> Out:
        """The hand of the network's numbers (b,16+pca)."""
        camera, turn, pca, shape = numbers.split((CAMERA, TURN, self.options.pca, SHAPE), 1)
        camera = self.options.camera_gain * camera + camera.new_tensor(MEAN_CAMERA)
        turn = matrix_from_axis_angle(turn)
        fingers = matrix_from_axis_angle(self.hand.axis_angle_from_pca(pca).unflatten(1, (15, 3)))
        shaped = self.hand.shaped(shape)
        shift = torch.zeros_like(camera)
        root = turn
        if self.options.mano == "published":
            root = turn * turn.new_tensor(FLIP)
            wrist = shaped.rest_joints[:, 0]
            shift = (turn @ wrist[:, :, None])[:, :, 0] - wrist
        rotations = torch.cat((root[:, None], fingers), 1)
        return Out(camera, pca, rotations, shape, *shaped.posed(rotations), shift)

    @full_precision
    def published(self, out: Out) -> tuple[Tensor, Tensor]:
        """(x2d (b,799,2), x3d (b,799,3)) as the release returns them: its 21 joints, then the vertices; pixels of a crop of 256,
        metres about the weak perspective's origin."""
        both_kinds = torch.cat((out.chain, out.verts[:, PUBLISHED_TIPS]), 1)[:, T21_FROM_H21][:, PUBLISHED_FROM_T21]
        points = torch.cat((both_kinds, out.verts), 1) + out.shift[:, None]
        return self._weak(out, points), points

    @staticmethod
    def _weak(out: Out, points: Tensor) -> Tensor:
        return out.camera[:, None, 1:] + out.camera[:, None, :1] * points[..., :2]

    @full_precision
    def joints_uv(self, out: Out, joints: Tensor, pixels: int) -> Tensor:
        """(b,21,2) pixels of a crop of `pixels` of joints about MANO's translation point. At other sizes than the published 256
        the whole picture is scaled, by the half-pixel rule (utils/camera.py)."""
        return (self._weak(out, joints + out.shift[:, None]) + 0.5) * (pixels / PIXELS) - 0.5

    def losses(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """verts, normal, edge: network units of 0.2 m, about MANO's translation point. joints_uv: mean absolute error in crop
        sides. pose, shape: mean squares (priors, no labels)."""
        wrist = self.hand.shaped(batch.shape).rest_joints[:, 0]
        true_wrist = batch.root if batch.chain_wrist is None else batch.chain_wrist
        true, pred = (batch.verts + (wrist - true_wrist)[:, None]) / SCALE_M, out.verts / SCALE_M
        known = both(batch.has_verts, batch.has_rotations)  # without pose numbers a mesh has no place about MANO's point
        mesh = (mean_abs(pred, true), *surface_losses(pred, true, self.hand.faces))
        terms = {name: labelled(term, known) for name, term in zip(("verts", "normal", "edge"), mesh)}
        if "joints_uv" in self.loss_names:
            pixels = batch.image.shape[-1]
            off = (self.joints_uv(out, self._joints(out), pixels) - batch.joints_uv).abs().mean(-1) / pixels
            terms["joints_uv"] = labelled(mean_known(off, batch.uv_confidence), batch.has_uv)
        priors = {"pose": out.pca, "shape": out.shape}
        return terms | {name: value.square().mean(1) for name, value in priors.items() if name in self.loss_names}

    def decode(self, out: Out, batch: Batch) -> Prediction:
        """Wrist-relative, joints as the dataset's labels are; hand(rotations, shape), moved, is the mesh. With weak perspective
        the 2D joints, and the root that they mean under the crop's K (src/root.py)."""
        joints = self._joints(out)
        wrist = joints[:, :1]
        answer = Prediction(out.verts - wrist, joints - wrist, rotations=out.rotations, shape=out.shape)
        if not self.options.weak_perspective:
            return answer
        pixels = batch.image.shape[-1]
        # The scale of a picture that says nothing may be any number, even none above 0: such a hand has no place.
        nearest, farthest = (PIXELS / (angular_size(batch) * metres) for metres in (NEAREST_M, FARTHEST_M))
        scale = out.camera[:, 0].clamp(farthest, nearest)
        held = out._replace(camera=torch.cat((scale[:, None], out.camera[:, 1:]), 1))
        uv = self.joints_uv(held, joints, pixels)
        fit = solve_root(answer.joints, uv, batch.K, torch.ones_like(uv[..., 0]))
        return answer._replace(root=fit.root, joints_uv=self.joints_uv(out, joints, pixels))

    def _joints(self, out: Out) -> Tensor:
        return self.hand.joints(out.posed, *self.joint_set)


def build(options: Options, hand: HandModel) -> Boukhayma:
    """The method; its weights are random until `start_weights` or a checkpoint."""
    return Boukhayma(options, hand)
