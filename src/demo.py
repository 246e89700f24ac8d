"""Demo: pictures of hands -> overlay (PNG), mesh (PLY) and numbers (JSON), with a person's identity file where one is given.

Each hand is cropped as in training (utils/camera.py), left ones from the mirrored picture and mirrored back afterwards. A method
that predicts no root is drawn where its joints fill the box (src/demo_geometry.py), and the JSON says so. K is read, follows from
a stated field of view, or is nominal; the JSON says which. A picture that fails leaves nothing behind and does not stop
the others; the demo ends by naming those that failed.
"""
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from src.demo_geometry import Cut, cut_hand, place_by_box
from src.demo_input import Camera, CameraSource, HandBox, boxes_of, list_pictures, read_boxes, read_picture
from src.identity import Identity, read_identity
from src.method import Method
from utils.batch import Batch, Prediction
from utils.errors import InputError
from utils.files import write_bytes, write_json
from utils.hand import HandModel, mirror_points, mirror_rotations
from utils.joints import T21_NAMES
from utils.mesh_files import write_ply
from utils.render import overlay
from utils.strict import Strict

log = logging.getLogger(__name__)
PLACED, PREDICTED = "placed by the box, not predicted", "predicted"


class DemoOptions(Strict):
    """What the demo shows and what it may assume (`demo:` of an option file)."""

    input: str = Field("", description="a picture, or a folder of pictures")
    checkpoint: str | None = Field(None, description="checkpoint to show; null = the run's last")
    out: str = Field("", description="folder of the results; empty = out/<name>/demo")
    boxes: str | None = Field(None, description="json with boxes [left, top, width, height] of the hands; null = whole pictures")
    K: str | None = Field(None, description="camera matrix: .json or .npy, or a folder with one per picture; null = from fov")
    fov: float | None = Field(None, gt=0, lt=180, description="degrees across the longer side; null = a nominal camera")
    side: Literal["right", "left"] = Field("right", description="which hand it is, where the box does not say")
    identity: str | None = Field(None, description="identity file of the person shown (written by `calibrate`)")
    alpha: float = Field(0.8, ge=0, le=1, description="opacity of the drawn mesh")


class Crop(Protocol):
    """The crop options of the run (datasets/augment.py: CropOptions), by which the network was trained."""

    pixels: int
    factor: float
    antialias: bool


class ShownHand(NamedTuple):
    """One hand of a picture, in the camera of the picture as it is (a left hand is a left hand again), metres, wrist-relative."""

    side: str
    cut: Cut
    box: HandBox | None
    verts: np.ndarray
    joints: np.ndarray
    root: np.ndarray
    root_source: str
    faces: np.ndarray
    rotations: np.ndarray | None
    shape: np.ndarray | None
    confidence: float | None


@dataclass(frozen=True)
class _Run:
    """What stays the same for all pictures."""

    method: Method
    hand: HandModel
    options: DemoOptions
    crop: Crop
    device: torch.device
    cameras: CameraSource
    boxes: dict[str, list[HandBox]] | list[HandBox] | None
    identity: Identity | None
    checkpoint: str | None


def demo(method: Method, hand: HandModel, options: DemoOptions, folder: str | Path, crop: Crop, device: torch.device, *,
         checkpoint: str | None = None) -> dict[str, Any]:
    """Show `options.input`; write <picture>.png, .ply (one per hand) and .json to `folder`. Returns {pictures, hands, folder}.

    method: with its weights loaded; hand: the right hand model it was built with; crop: the crop options it was trained with;
    checkpoint: its name, for the JSON. Raises InputError: no picture, a broken box, K or identity file, an identity missing where
    the method is told one or given where it is not; and, after all other pictures are done, for pictures that failed.
    """
    pictures = list_pictures(options.input)
    folder = Path(folder)
    if folder.resolve() == pictures[0].parent.resolve():
        raise InputError(f"demo.out: {folder} is the folder of the pictures, and results would mix with them; name another")
    run = _Run(method.to(device), hand, options, crop, device, CameraSource(options.K, options.fov),
               None if options.boxes is None else read_boxes(options.boxes), _identity(method, hand, options), checkpoint)
    was_training = method.training
    method.eval()
    hands, failed = 0, []
    try:
        for path, name in tqdm(list(zip(pictures, _names(pictures))), desc="demo", unit="picture", disable=None):
            try:
                hands += _picture(run, path, folder, name)
            except InputError as error:
                failed.append(str(error))
    finally:
        method.train(was_training)
    if failed:
        done = len(pictures) - len(failed)
        rest = f"; the other {done} are in {folder}" if done else ""
        raise InputError(f"{len(failed)} of {len(pictures)} pictures could not be shown: {' | '.join(failed)}{rest}")
    return {"pictures": len(pictures), "hands": hands, "folder": str(folder)}


def _identity(method: Method, hand: HandModel, options: DemoOptions) -> Identity | None:
    """The person's identity, exactly where the method is told one."""
    told = "identity" in method.needs
    if told and options.identity is None:
        raise InputError("demo.identity: this model is told whose hand it sees; set demo.identity=<file written by "
                         "calibrate>, or use a model that predicts the shape")
    if options.identity is None:
        return None
    if not told:
        raise InputError(f"demo.identity: {options.identity} is given, but this model predicts the shape itself and would ignore "
                         "it; leave it out, or use an identity-aware model")
    return read_identity(options.identity, hand)


def _names(pictures: list[Path]) -> list[str]:
    """Names of the results: the pictures' stems, whole names where two share a stem."""
    stems = [path.stem for path in pictures]
    return [path.name if stems.count(path.stem) > 1 else path.stem for path in pictures]


def _picture(run: _Run, path: Path, folder: Path, name: str) -> int:
    """All hands of one picture; nothing is written before all are computed. Returns how many."""
    picture = read_picture(path)
    camera = run.cameras.camera(path, *picture.shape[:2])
    boxes = boxes_of(run.boxes, path)
    hands = [_hand(run, path, picture, camera.K, box) for box in ([None] if boxes is None else boxes)]
    drawn = picture
    for shown in sorted(hands, key=lambda h: -h.root[2]):  # far to near
        drawn = overlay(drawn, shown.verts + shown.root, shown.faces, camera.K, alpha=run.options.alpha)
    names = [f"{name}.ply" if len(hands) == 1 else f"{name}_{number}.ply" for number in range(len(hands))]
    for shown, file in zip(hands, names):
        write_ply(folder / file, shown.verts + shown.root, shown.faces,
                  comment=f"{shown.side} hand, metres, camera axes x right y down z forward, root {shown.root_source}")
    write_bytes(folder / f"{name}.png", cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
    write_json(folder / f"{name}.json", _numbers_of(run, path, picture, camera, list(zip(hands, names))))
    return len(hands)


def _hand(run: _Run, path: Path, picture: np.ndarray, K: np.ndarray, box: HandBox | None) -> ShownHand:
    """One hand: crop, network, placement, and back to the picture's own side."""
    side = (box.side if box else None) or run.options.side
    cut = cut_hand(picture, K, box, side, factor=run.crop.factor, pixels=run.crop.pixels, antialias=run.crop.antialias)
    answer = _predict(run, cut)
    if not all(torch.isfinite(part).all() for part in answer if part is not None):
        raise InputError(f"{path}: the prediction is not finite; the checkpoint {run.checkpoint or ''} is broken: train again or "
                         "show an earlier one")
    verts, joints, rotations, faces = answer.verts[0].double(), answer.joints[0].double(), answer.rotations, run.hand.faces.cpu()
    if answer.root is None:
        root, root_source = torch.from_numpy(place_by_box(joints.numpy(), cut.K_full, cut.centre, cut.hand_side)), PLACED
    else:
        root, root_source = answer.root[0].double(), PREDICTED
    if cut.mirrored:
        verts, joints, root = mirror_points(verts), mirror_points(joints), mirror_points(root)
        rotations = None if rotations is None else mirror_rotations(rotations)
        faces = faces.flip(-1)  # a mirrored triangle turns the other way round
    rotations, shape = (None if part is None else part[0].numpy() for part in (rotations, answer.shape))
    return ShownHand(side, cut, box, verts.numpy(), joints.numpy(), root.numpy(), root_source, faces.numpy(), rotations, shape,
                     None if answer.confidence is None else float(answer.confidence[0]))


def _predict(run: _Run, cut: Cut) -> Prediction:
    """The method's answer on one crop, on the CPU."""
    def row(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].float()

    subject, identity = (run.identity.subject, row(run.identity.shape)) if run.identity else (0, None)
    batch = Batch(image=row(cut.image).permute(0, 3, 1, 2) / 255, K=row(cut.K), crop_from_image=row(cut.crop_from_image),
                  mirrored=torch.tensor([cut.mirrored]), index=torch.tensor([0]), subject=torch.tensor([subject]),
                  identity=identity).to(run.device)
    with torch.inference_mode():
        answer = run.method.decode(run.method(batch), batch)
    return Prediction(*(None if part is None else part.float().cpu().clone() for part in answer))


def _numbers_of(run: _Run, path: Path, picture: np.ndarray, camera: Camera, hands: list[tuple[ShownHand, str]]) -> dict[str, Any]:
    """Content of the JSON of one picture."""
    entries = []
    for shown, file in hands:
        whole = shown.box is None
        entries.append({
            "side": shown.side, "mesh": file, "verts": len(shown.verts), "faces": len(shown.faces),
            "box": "whole picture" if whole else list(shown.box[:4]),
            "crop_from_image": shown.cut.crop_from_image.tolist(), "mirrored_before_crop": shown.cut.mirrored,
            "root": shown.root.tolist(), "root_source": shown.root_source,
            "joints": dict(zip(T21_NAMES, shown.joints.tolist())), "rotations": _listed(shown.rotations),
            "shape": _listed(shown.shape), "confidence": shown.confidence})
    identity = run.identity and {"file": run.options.identity, "subject": run.identity.subject, "method": run.identity.method,
                                 "n": run.identity.n, "shape": run.identity.shape.tolist()}
    return {"picture": str(path), "size": [picture.shape[1], picture.shape[0]],
            "frame": "camera axes x right, y down, z forward; metres; joints relative to the wrist, which lies at root",
            "K": camera.K.tolist(), "K_source": camera.source, "hands": entries,
            "checkpoint": run.checkpoint, "identity": identity, "hand_model": {"name": run.hand.name, "sha256": run.hand.sha256},
            "crop": {"factor": run.crop.factor, "pixels": run.crop.pixels}}


def _listed(array: np.ndarray | None) -> list | None:
    return None if array is None else array.tolist()
