"""The base of every dataset's reader: a subclass says what a sample is (`read`), the base makes a Batch of many.

In a worker process: `read(index)` decodes one stored picture; the base adds random numbers that follow from (seed, epoch, index)
and checks the labels. On the device, whole batches at once: crop, rotation, scale, shift, colour, hand model. Everything is
placed by maps of utils/camera.py, so image, K, pixels, 3D joints, vertices and rotations stay one geometry
(tests/test_reader.py). A left hand becomes a right one: picture, K, pixels and 3D are mirrored; its vertices come from the left
hand model, then mirrored. Seed: the original scaled labels in place (a second read scaled again), cut non-square crops and kept
the full picture's K.
"""
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.augment import RANDOM, AugmentOptions, CropOptions, augment_colours, crop_square, placement, resample
from utils.batch import Batch, JointSet
from utils.camera import K_of_crop, K_of_mirror, crop_matrix, invert_affine, mirror_matrix, transform_uv
from utils.errors import InputError
from utils.hand import HandModel, mirror_points, mirror_rotations
from utils.precision import full_precision
from utils.rotation import rotation_about_z

POINTS = ("joints", "verts", "root", "chain_wrist")  # of Batch, turned with the picture
Hands = Mapping[str, HandModel]  # side ("right", "left") -> model
Raw = dict[str, np.ndarray]

REQUIRED = {"stored_from_image": (3, 3), "K": (3, 3), "width": (), "box": (3,), "mirrored": (), "subject": ()}
LABELS = {"pose": (48,), "shape": (10,), "trans": (3,), "joints": (21, 3), "joints_uv": (21, 2), "verts": (778, 3), "root": (3,)}
FLAG_OF = {"pose": "has_hand", "shape": "has_hand", "trans": "has_hand", "joints_uv": "has_uv"}  # else has_<label>
FLAGS = ("has_joints", "has_hand", "has_verts", "has_root", "has_uv", "has_mask")
NOWHERE = (0.0, 0.0, 1.0)  # root of a row that has none: projects to finite pixels, so that a silenced loss term stays finite
UV_TOLERANCE = 2.0  # pixels between joints_uv and K * joints
MIRROR_TOLERANCE_M = 1e-4  # between the left hand model and the right one's mirror image, for one shape
CHECK_EVERY = 64  # after the first epoch, which checks every sample


class Picture(NamedTuple):
    """A picture to draw on, mirrored if the hand was a left one: image (h,w,3) RGB uint8 · K (3,3) of it · crop_from_image."""

    image: np.ndarray
    K: np.ndarray
    crop_from_image: np.ndarray


class Reader(ABC):
    """A dataset's split as utils.batch.Source. Subclasses set the four conventions and write `__len__`, `read`, `sample_name`.

    pose_pca, pose_flat_mean: what the 48 pose numbers mean (HandModel.rotations_from_pose) · tips, joints_kind: what its 21
    joints are (HandModel.joints) · provides: Batch fields.

    `read(index)` returns the stored picture `image` (s,s,3) RGB uint8, where it lies: `stored_from_image` (3,3), the whole
    picture's K (3,3) and `width`, `box` (3) = centre and side of the hand's box in pixels of the whole picture, `mirrored` (a
    left hand, in the dataset's own side and camera), `subject` (number), and the LABELS it has: pose, shape, trans, joints,
    joints_uv of the whole picture, verts, root (the wrist joint), and `mask` (s,s) of the stored picture, 0 or 255, and `hull`
    (n,2) = pixels of the whole picture whose box, turned with the picture, takes the place of `box` in training. Every sample of
    a dataset brings the same ones; one that lacks a label brings zeros and `has_joints`, `has_hand` (pose, shape and trans),
    `has_verts`, `has_root`, `has_uv`, `has_mask` = False. joint_valid (21): which joints_uv are known.
    """

    pose_pca: bool
    pose_flat_mean: bool
    tips: str
    joints_kind: str
    provides: frozenset[str] = frozenset({
        "image", "K", "crop_from_image", "mirrored", "index", "subject", "joints", "verts", "rotations", "shape", "root",
        "joints_uv", "uv_confidence", "identity", "has_joints", "has_verts", "has_shape", "has_uv", "has_root",
        "has_rotations", "chain_wrist"})

    def __init__(self, crop: CropOptions, augment: AugmentOptions, hands: Hands, *, train: bool, seed: int,
                 needs: frozenset[str] | None = None):
        self.crop, self.augment, self.seed, self.train = crop, augment, seed, train and augment.active
        self.hands = dict(hands)
        self.needs = self.provides if needs is None else needs
        self.samples = 1  # per side of a pixel when the crop is read from the stored picture
        self.mirrors = True  # False where no sample is a left hand: saves a look at every batch
        self._on: dict[torch.device, dict[str, HandModel]] = {}
        self._left_shape_holds: bool | None = None

    @property
    def joint_set(self) -> JointSet:
        """What the labelled joints are."""
        return JointSet(self.tips, self.joints_kind)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Raw:
        """One sample as the class says; raises InputError with the sample's name where it cannot be read."""

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """Name of the sample within its dataset, a path: unique, and what predictions files carry."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What a table must say about these frames."""

    def describe(self, index: int) -> str:
        """The sample as error messages name it."""
        return f"#{index} ({self.sample_name(index)})"

    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Further columns of a predictions file, by row; none in general."""
        return {}

    def __getitem__(self, key: tuple[int, int]) -> Raw:
        epoch, index = int(key[0]), int(key[1])
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        raw = self.read(index)
        if epoch == 0 or (epoch + index) % CHECK_EVERY == 0:
            self.check(raw, index)
        raw["index"] = np.int64(index)
        if self.train:
            raw["random"] = random_numbers(self.seed, epoch, index)
        return raw

    def check(self, raw: Raw, index: int) -> None:
        """InputError with the sample's name where a sample breaks the contract: shapes, finite labels, joints_uv = K * joints."""
        image = raw["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
            raise InputError(f"{self.describe(index)}: expected a square RGB picture of bytes, "
                             f"found {image.shape} {image.dtype}; prepare again")
        if "mask" in raw and (raw["mask"].shape != image.shape[:2] or raw["mask"].dtype != np.uint8):
            raise InputError(f"{self.describe(index)}: expected a mask of bytes {image.shape[:2]}, found {raw['mask'].shape} "
                             f"{raw['mask'].dtype}; prepare again")
        for name, shape in {**REQUIRED, **LABELS}.items():
            if name not in raw:
                if name in REQUIRED:
                    raise InputError(f"{self.describe(index)}: {name} is missing; prepare again")
                continue
            if not raw.get(FLAG_OF.get(name, f"has_{name}"), True):
                continue
            value = np.asarray(raw[name])
            if value.shape != shape:
                raise InputError(f"{self.describe(index)}: expected {name} {shape}, found {value.shape}; prepare again")
            if not np.isfinite(value).all():
                raise InputError(f"{self.describe(index)}: {name} is not finite; "
                                 "is the label file whole? unpack it and prepare again")
        if "joints" in raw and "joints_uv" in raw and raw.get("has_joints", True) and raw.get("has_uv", True):
            points = raw["joints"] @ np.asarray(raw["K"], np.float32).T
            off = np.abs(points[:, :2] / points[:, 2:] - raw["joints_uv"]).max(1)
            off = float(off[raw["joint_valid"]].max(initial=0) if "joint_valid" in raw else off.max())
            if not off <= UV_TOLERANCE:
                raise InputError(f"{self.describe(index)}: joint_2d off by {off:.1f} px from K*joint_3d; "
                                 "is the calibration that of these pictures' size?")

    @full_precision
    def batch(self, raw: dict[str, Tensor]) -> Batch:
        """A collated stack as a Batch on its device; deterministic in the stack."""
        with torch.no_grad():
            mirrored = raw["mirrored"].bool()
            any_mirrored = self.mirrors and bool(mirrored.any())
            crop_from_image, crop_from_stored_image, K, angle = self._place(raw, mirrored, any_mirrored)
            image, mask = self._pictures(raw, crop_from_stored_image, "mask" in raw and "mask" in self.needs)
            labels = self._labels(raw, mirrored, any_mirrored, crop_from_image, angle)
            if mask is not None:
                labels["mask"] = mask
                labels["has_mask"] = raw["has_mask"].bool() if "has_mask" in raw else torch.ones_like(mirrored)
            return Batch(image=image, K=K.float(), crop_from_image=crop_from_image.float(), mirrored=mirrored,
                         index=raw["index"].long(), subject=raw["subject"].long(), **labels)

    def _place(self, raw: dict[str, Tensor], mirrored: Tensor, any_mirrored: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps in float64: crop_from_image (mirrored pictures), the same from the picture as stored, K of the crop, angle (b)."""
        K, box, width = raw["K"].double(), raw["box"].double(), raw["width"].double()
        hull = raw["hull"].double() if "hull" in raw else None
        if any_mirrored:
            flip = torch.where(mirrored[:, None, None], mirror_matrix(width, K), torch.eye(3, dtype=K.dtype, device=K.device))
            K = torch.where(mirrored[:, None, None], K_of_mirror(K, width), K)
            box = torch.cat((transform_uv(flip, box[:, None, :2])[:, 0], box[:, 2:]), 1)
            hull = transform_uv(flip, hull) if hull is not None else None
        centre, side, angle = box[:, :2], box[:, 2] * self.crop.factor, torch.zeros_like(box[:, 2])
        if self.train and self.augment.moves:
            place = placement(raw["random"], self.augment)
            angle, (centre, side) = place.angle, crop_square(box, hull, self.crop.factor, place, self.augment)
        crop_from_image = crop_matrix(centre, side, self.crop.pixels, angle)
        unmirrored = crop_from_image @ flip if any_mirrored else crop_from_image
        return crop_from_image, unmirrored, K_of_crop(K, crop_from_image, angle), angle

    def _pictures(self, raw: dict[str, Tensor], crop_from_stored_image: Tensor, masked: bool) -> tuple[Tensor, Tensor | None]:
        """image (b,3,p,p) and, if `masked`, mask (b,p,p) of 0 and 1: whether more than half of a pixel is hand."""
        stored_from_crop = raw["stored_from_image"].double() @ invert_affine(crop_from_stored_image)
        seen = resample(raw["image"], stored_from_crop, self.crop.pixels, self.samples, raw["mask"] if masked else None)
        image = seen[:, :3] / 255
        image = augment_colours(image, raw["random"], self.augment) if self.train else image
        return image, (seen[:, 3] > 127.5).float() if masked else None

    def _labels(self, raw: dict[str, Tensor], mirrored: Tensor, any_mirrored: bool, crop_from_image: Tensor, angle: Tensor,
                ) -> dict[str, Tensor]:
        """Joints, pixels and the hand, mirrored and turned like the picture."""
        turn = rotation_about_z(angle).float() if self.train and self.augment.rotate else None
        known = {flag: raw[flag].bool() if flag in raw else torch.ones_like(mirrored) for flag in FLAGS}
        found = self._points(raw, mirrored, any_mirrored)
        for name in POINTS if turn is not None else ():
            if name in found:
                found[name] = (found[name].reshape(len(turn), -1, 3) @ turn.transpose(1, 2)).reshape(found[name].shape)
        if turn is not None and "rotations" in found:
            found["rotations"] = torch.cat(((turn @ found["rotations"][:, 0])[:, None], found["rotations"][:, 1:]), 1)
        if "joints" in found:
            found["has_joints"] = known["has_joints" if "joints" in raw else "has_hand"]
            if "root" not in found:
                found |= {"root": found["joints"][:, 0], "has_root": found["has_joints"]}
        if "root" in raw:
            found["has_root"] = known["has_root"]
        if "root" in found and {"has_joints", "has_hand", "has_root"} & set(raw):  # else every row has one
            found["root"] = torch.where(found["has_root"][:, None], found["root"], found["root"].new_tensor(NOWHERE))
        if self.joints_kind == "chain" and "root" in found:
            found["chain_wrist"] = found["root"]
        if "verts" in found:
            found["has_verts"] = known["has_verts" if "verts" in raw else "has_hand"]
        if "has_shape" in found:
            found |= {"has_shape": found["has_shape"] & known["has_hand"], "has_rotations": known["has_hand"]}
        if "joints_uv" in raw:
            found |= self._pixels(raw, mirrored, any_mirrored, crop_from_image) | {"has_uv": known["has_uv"]}
        return found

    def _points(self, raw: dict[str, Tensor], mirrored: Tensor, any_mirrored: bool) -> dict[str, Tensor]:
        """What the hand model makes of the pose numbers, and labelled points in its place; all as right hands."""
        given = {name for name in ("joints", "verts") if name in raw}
        of_hand = {"rotations", "shape", "identity"} | {"joints", "verts", "root", "chain_wrist"} - given
        found: dict[str, Tensor] = {}
        if "pose" in raw and self.needs & (of_hand - {"root"} if "joints" in given else of_hand):
            found = self._hand(raw, mirrored, any_mirrored)
        for name in ("joints", "verts", "root"):
            if name in raw:
                points = raw[name]
                flip = mirrored.view(-1, *[1] * (points.dim() - 1))
                found[name] = torch.where(flip, mirror_points(points), points) if any_mirrored else points
        return found

    def _pixels(self, raw: dict[str, Tensor], mirrored: Tensor, any_mirrored: bool, crop_from_image: Tensor) -> dict[str, Tensor]:
        uv = raw["joints_uv"].double()
        if any_mirrored:
            flipped = torch.stack((raw["width"].double()[:, None] - 1 - uv[..., 0], uv[..., 1]), -1)
            uv = torch.where(mirrored[:, None, None], flipped, uv)
        uv = transform_uv(crop_from_image, uv).float()
        sure = raw["joint_valid"] if "joint_valid" in raw else torch.ones_like(uv[..., 0])
        return {"joints_uv": uv, "uv_confidence": sure.float()}

    def _hand(self, raw: dict[str, Tensor], mirrored: Tensor, any_mirrored: bool) -> dict[str, Tensor]:
        """Rotations, shape, vertices and joints of the pose numbers, as right hands in the camera."""
        if not any_mirrored:
            found = self._posed(raw, "right")
        elif bool(mirrored.all()):
            found = _mirrored(self._posed(raw, "left"))
        else:
            rows = [torch.nonzero(~mirrored).flatten(), torch.nonzero(mirrored).flatten()]
            right, left = ({name: raw[name][some] for name in LABELS if name in raw} for some in rows)
            right, left = self._posed(right, "right"), _mirrored(self._posed(left, "left"))
            order = torch.argsort(torch.cat(rows))
            found = {name: torch.cat((right[name], left[name]))[order] for name in right}
        found["has_shape"] = ~mirrored if any_mirrored and not self.left_shape_holds() else torch.ones_like(mirrored)
        return found | {"shape": raw["shape"], "identity": raw["shape"]}

    def _posed(self, raw: dict[str, Tensor], side: str) -> dict[str, Tensor]:
        hand = self._hands_on(raw["pose"].device)[side]
        rotations = hand.rotations_from_pose(raw["pose"], pca=self.pose_pca, flat_mean=self.pose_flat_mean)
        found = {"rotations": rotations}
        if self.joints_kind != "chain" and "chain_wrist" in self.needs:
            found["chain_wrist"] = hand.shaped(raw["shape"]).rest_joints[:, 0] + raw["trans"]
        made = {"verts"} - set(raw) | ({"joints", "root"} if "joints" not in raw else set())
        if self.needs & made:
            posed = hand(rotations, raw["shape"]).moved(raw["trans"])
            found |= {"verts": posed.verts, "joints": hand.joints(posed, self.tips, self.joints_kind)}
        return found

    def _hands_on(self, device: torch.device) -> dict[str, HandModel]:
        if device not in self._on:
            self._on[device] = {side: deepcopy(hand).float().to(device) for side, hand in self.hands.items()}
        return self._on[device]

    def left_shape_holds(self) -> bool:
        """Whether equal shape numbers give a left hand that is the right one's mirror image (MANO's own files: they do not)."""
        if self._left_shape_holds is None:
            spread = torch.cat((torch.zeros(1, 10), 2 * torch.eye(10)))
            right, left = (self.hands[side] for side in ("right", "left"))
            right, left = (hand.shaped(spread.to(hand.weights)).rest_verts.cpu() for hand in (right, left))
            self._left_shape_holds = bool((mirror_points(left) - right).abs().max() <= MIRROR_TOLERANCE_M)
        return self._left_shape_holds


def _mirrored(left: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mirror_rotations(value) if name == "rotations" else mirror_points(value) for name, value in left.items()}


def random_numbers(seed: int, epoch: int, index: int) -> np.ndarray:
    """(RANDOM,) float32 in [0, 1), a function of its arguments alone (counter-based generator: any sample, any order)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, index])).random(RANDOM, dtype=np.float32)
