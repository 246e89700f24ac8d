"""One hand of one picture: crop, network, the person's shape where one is held, and its place in the camera.

Everything is a right hand in the camera of the picture, mirrored first for a left one, until `shown` mirrors it back. The shape
is predicted, told to the network, or held: a method that predicts it is then posed again with the identity's shape and its own
rotations. The root is predicted, follows from 2D keypoints (src/root.py), or puts the joints into the box.
"""
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from src.demo_geometry import Cut, cut_hand, place_by_box
from src.demo_input import HandBox, Unfit
from src.identity import Identity
from src.method import Method
from src.root import FAULTS, solve_root
from utils.batch import ROOT_BY, Batch, Prediction
from utils.camera import invert_affine, transform_uv
from utils.errors import InputError
from utils.hand import HandModel, mirror_points, mirror_rotations
from utils.mesh_files import write_ply

log = logging.getLogger(__name__)
BY_BOX, BY_KEYPOINTS, PREDICTED = "placed by the box, not predicted", "from 2D keypoints and K", "predicted"
LACKING = (0, 4, 5)  # numbers of ROOT_BY where 2D joints, silhouette or both did not count
NO_MESH = "this model predicts no mesh, so there is none to show; use one that does"
TOLD, HELD = "told to the network by the identity file", "held by the identity file"


class Crop(Protocol):
    """The crop options of a run (datasets/augment.py: CropOptions), by which its network was trained."""

    pixels: int
    factor: float
    antialias: bool


class Keypoints(NamedTuple):
    """A second network, for 2D joints, on its device and in eval mode, and the crop it was trained with."""

    method: Method
    crop: Crop


@dataclass(frozen=True)
class View:
    """What stays the same for all pictures: a trained method on its device, in eval mode, and whose hand it looks at."""

    method: Method
    hand: HandModel
    crop: Crop
    device: torch.device
    side: str
    identity: Identity | None = None
    checkpoint: str | None = None
    keypoints: Keypoints | None = None

    @property
    def told(self) -> bool:
        """Whether the network itself is told the shape."""
        return "identity" in self.method.needs

    @property
    def holds(self) -> bool:
        """Whether the identity's shape takes the place of a predicted one."""
        return self.identity is not None and not self.told


class Seen(NamedTuple):
    """A right hand in the camera of the (mirrored) picture; float64, metres, verts (778,3) and joints (21,3) about the wrist.

    root (3) · rotations (16,3,3) · shape (10) · shape_cov (10,10) · uv (21,2) in the (mirrored) picture, uv_confidence (21)
    uv_pixel: the size of a pixel of their crop in the picture · mask (c,c) chances on a grid over `cut`'s crop. What nobody
    predicts is None.
    """

    side: str
    cut: Cut
    box: HandBox | None
    verts: Tensor
    joints: Tensor
    root: Tensor
    root_source: str
    rotations: Tensor | None
    shape: Tensor | None
    shape_source: str | None
    shape_cov: Tensor | None
    confidence: float | None
    uv: Tensor | None = None
    uv_confidence: Tensor | None = None
    uv_pixel: float = 1.0
    pose_source: str = PREDICTED
    mask: Tensor | None = None

    @property
    def absolute(self) -> np.ndarray:
        """(21,3) joints in the camera."""
        return (self.joints + self.root).numpy()


class Joints2d(NamedTuple):
    """uv (21,2) in the (mirrored) picture, or None · confidence (21) · pixel: the size of their crop's pixels in the picture."""

    uv: Tensor | None
    confidence: Tensor | None
    pixel: float


class ShownHand(NamedTuple):
    """One hand in the camera of the picture as it is (left hands are left again); metres, verts and joints about the wrist."""

    seen: Seen
    verts: np.ndarray
    joints: np.ndarray
    root: np.ndarray
    faces: np.ndarray
    rotations: np.ndarray | None


@contextlib.contextmanager
def evaluating(*methods: Method | None) -> Iterator[None]:
    """In eval mode, and afterwards as before."""
    before = [(method, method.training) for method in methods if method is not None]
    for method, _ in before:
        method.eval()
    try:
        yield
    finally:
        for method, training in before:
            method.train(training)


def require_fit(method: Method, keypoints: Keypoints | None, section: str) -> None:
    """Unfit, before any picture, for a method without a mesh, or that is told 2D joints which nobody finds. section: the options
    that the message speaks of. What only an answer shows, `look` finds at the first picture."""
    if "verts" not in method.compares:
        raise Unfit(NO_MESH)
    if method.sees_keypoints and keypoints is None:
        raise Unfit(f"{section}.keypoints: this model is told where the joints are in the picture; name the run of one that "
                    "finds them (method pose2d)")
    if keypoints is not None and "identity" in keypoints.method.needs:
        raise Unfit(f"{section}.keypoints: this model is told whose hand it sees; name the run of one that is not")
    if keypoints is not None and keypoints.method.sees_keypoints:
        raise Unfit(f"{section}.keypoints: this model is itself told where the joints are in the picture; name the run of one "
                    "that finds them (method pose2d)")


def look(view: View, where: Path, picture: np.ndarray, K: np.ndarray, box: HandBox | None) -> Seen:
    """The method's own answer for one hand. where: names the picture in the messages. InputError: an answer that is not finite;
    Unfit: one without a mesh."""
    side = (box.side if box else None) or view.side
    cut = cut_hand(picture, K, box, side, factor=view.crop.factor, pixels=view.crop.pixels, antialias=view.crop.antialias)
    second = None if view.keypoints is None else _second(view, where, picture, K, box, side)
    answer = _predict(view, view.method, cut, second)
    if answer.verts is None:
        raise Unfit(NO_MESH)
    _require_finite(answer, where, view.checkpoint or "")
    verts, joints, root, rotations, shape, cov = (None if part is None else part[0].double() for part in (
        answer.verts, answer.joints, answer.root, answer.rotations, answer.shape, answer.shape_cov))
    source = PREDICTED
    if answer.root_by is not None:
        by = int(answer.root_by[0])
        root, source = root if by else None, f"{PREDICTED}: {ROOT_BY[by]}"
        if not by or (answer.mask is not None and by in LACKING):
            log.warning("%s: placed by %s", where, ROOT_BY[by])
    keypoints = second or _keypoints(answer, cut)
    place = torch.zeros(3, dtype=torch.float64) if root is None else root
    seen = Seen(side, cut, box, verts, joints, place, source, rotations, shape,
                None if shape is None else TOLD if view.told else PREDICTED, cov,
                None if answer.confidence is None else float(answer.confidence[0]), *keypoints,
                mask=None if answer.mask is None else answer.mask[0])
    return placed(seen, where) if root is None else seen


def _second(view: View, where: Path, picture: np.ndarray, K: np.ndarray, box: HandBox | None, side: str) -> Joints2d:
    """What the second network sees."""
    crop = view.keypoints.crop
    cut = cut_hand(picture, K, box, side, factor=crop.factor, pixels=crop.pixels, antialias=crop.antialias)
    answer = _predict(view, view.keypoints.method, cut)
    if answer.joints_uv is None:
        raise Unfit("demo.keypoints: this model predicts no 2D joints; name the run of one that does (method pose2d)")
    _require_finite(answer, where, "of demo.keypoints")
    return _keypoints(answer, cut)


def _keypoints(answer: Prediction, cut: Cut) -> Joints2d:
    """The 2D joints of an answer on this crop, or that there are none."""
    if answer.joints_uv is None:
        return Joints2d(None, None, 1.0)
    back = invert_affine(torch.from_numpy(cut.crop_from_image))
    confidence = torch.ones(21) if answer.uv_confidence is None else answer.uv_confidence[0]
    return Joints2d(transform_uv(back, answer.joints_uv[0].double()), confidence.double(), float(back[0, 0]))


def _require_finite(answer: Prediction, where: Path, checkpoint: str) -> None:
    if not all(torch.isfinite(part).all() for part in answer if part is not None):
        raise InputError(f"{where}: the prediction is not finite; the checkpoint {checkpoint} is broken: train again or show an "
                         "earlier one")


def placed(seen: Seen, where: Path) -> Seen:
    """The hand where its joints meet the 2D keypoints, or, without those, fill the box."""
    cut, source = seen.cut, BY_BOX
    if seen.uv is not None:
        K = torch.from_numpy(cut.K_full)
        fit = solve_root(seen.joints[None], seen.uv[None], K[None], seen.uv_confidence[None])
        if fit.valid[0]:
            return seen._replace(root=fit.root[0], root_source=BY_KEYPOINTS)
        source = f"{BY_BOX} (keypoints: {FAULTS[int(fit.fault[0])]})"
    root = torch.from_numpy(place_by_box(seen.joints.numpy(), cut.K_full, cut.centre, cut.hand_side, where))
    return seen._replace(root=root, root_source=source)


def held(view: View, seen: Seen, where: Path) -> Seen:
    """The hand with the identity's shape, in the same pose, and placed again where its root was not predicted."""
    if seen.rotations is None:
        raise Unfit("demo.identity: this model predicts no rotations, so the identity's shape cannot be posed; leave the "
                    "identity out, or use a model that predicts them")
    seen = posed(view, seen, seen.rotations, torch.from_numpy(view.identity.shape))._replace(shape_source=HELD, shape_cov=None)
    return seen if seen.root_source.startswith(PREDICTED) else placed(seen, where)


def posed(view: View, seen: Seen, rotations: Tensor, shape: Tensor) -> Seen:
    """The hand with these rotations (16,3,3) and shape (10), about its wrist; the root stays."""
    at = view.hand.weights
    result = view.hand(rotations[None].to(at), shape[None].to(at))
    verts, joints = (part[0].double().cpu() for part in (result.verts, view.hand.joints(result)))
    return seen._replace(verts=verts - joints[0], joints=joints - joints[0], rotations=rotations, shape=shape)


def shown(view: View, seen: Seen) -> ShownHand:
    """Back to the picture's own side."""
    verts, joints, root, rotations = seen.verts, seen.joints, seen.root, seen.rotations
    faces = view.hand.faces.cpu()
    if seen.cut.mirrored:
        verts, joints, root = mirror_points(verts), mirror_points(joints), mirror_points(root)
        rotations = None if rotations is None else mirror_rotations(rotations)
        faces = faces.flip(-1)  # a mirrored triangle turns the other way round
    return ShownHand(seen, verts.numpy(), joints.numpy(), root.numpy(), faces.numpy(),
                     None if rotations is None else rotations.float().numpy())


def write_mesh(path: Path, one: ShownHand) -> None:
    """The mesh as PLY, in the camera."""
    write_ply(path, one.verts + one.root, one.faces, comment=f"{one.seen.side} hand, metres, camera axes x right y down z "
                                                             f"forward, root {one.seen.root_source}")


def _predict(view: View, method: Method, cut: Cut, joints: Joints2d | None = None) -> Prediction:
    """A method's answer on one crop, on the CPU. joints: what a method that is told 2D joints is told."""
    def row(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].float()

    told = "identity" in method.needs
    batch = Batch(image=row(cut.image).permute(0, 3, 1, 2) / 255, K=row(cut.K), crop_from_image=row(cut.crop_from_image),
                  mirrored=torch.tensor([cut.mirrored]), index=torch.tensor([0]),
                  subject=torch.tensor([view.identity.subject if view.identity else 0]),
                  identity=row(view.identity.shape) if told else None)
    if method.sees_keypoints:
        uv = transform_uv(torch.from_numpy(cut.crop_from_image), joints.uv)
        batch = replace(batch, joints_uv=row(uv.numpy()), uv_confidence=row(joints.confidence.numpy()))
    batch = batch.to(view.device)
    with torch.inference_mode():
        answer = method.decode(method(batch), batch)
    return Prediction(*(None if part is None else part.float().cpu().clone() for part in answer))
