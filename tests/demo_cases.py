"""What the tests of the demo share: a method that answers the truth about rendered hands, and pictures of them."""
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

from src.method import Method
from utils.batch import Batch, Prediction
from utils.hand import HandModel
from utils.render import render

ROOT = Path(__file__).resolve().parent.parent
HAND = HandModel.load(ROOT / "template" / "free_hand_right.npz")
HEIGHT, WIDTH = 240, 320
K = np.array([[300.0, 0, 157], [0, 296, 122], [0, 0, 1]])
CPU = torch.device("cpu")


class CropLike(NamedTuple):
    """The three crop options that the demo reads."""

    pixels: int = 64
    factor: float = 1.5
    antialias: bool = True


class Truth(NamedTuple):
    """A posed right hand: wrist-relative verts (778,3) and joints (21,3), root (3), rotations (16,3,3), shape (10)."""

    verts: torch.Tensor
    joints: torch.Tensor
    root: torch.Tensor
    rotations: torch.Tensor
    shape: torch.Tensor


class Oracle(Method):
    """Answers the truth; keeps the batches it was shown. `told`: it needs an identity, and answers with that shape."""

    def __init__(self, truth: Truth, told: bool = False, with_root: bool = False):
        super().__init__()
        self.truth, self.with_root, self.seen = truth, with_root, []
        self.needs = frozenset({"identity"}) if told else frozenset()

    def forward(self, batch: Batch) -> Truth:
        self.seen.append(batch)
        return self.truth

    def losses(self, out, batch):
        return {}

    def decode(self, out: Truth, batch: Batch) -> Prediction:
        shape = batch.identity if "identity" in self.needs else out.shape[None]
        return Prediction(out.verts[None], out.joints[None], root=out.root[None] if self.with_root else None,
                          rotations=out.rotations[None], shape=shape)


def a_hand(root: tuple[float, float, float] = (0.05, 0.03, 0.5), turn: tuple[float, float, float] = (0.3, 2.2, 0.4)) -> Truth:
    """A half-closed right hand of some person, seen aslant."""
    pose = torch.zeros(48)
    pose[:3] = torch.tensor(turn)
    rotations = HAND.rotations_from_pose(pose, pca=True, flat_mean=False)
    shape = torch.linspace(-1, 1, 10)
    posed = HAND(rotations, shape)
    joints = HAND.joints(posed)
    return Truth(posed.verts - joints[0], joints - joints[0], torch.tensor(root), rotations, shape)


def silhouette(verts: torch.Tensor, K, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height,width) bool: where a mesh in the camera is seen."""
    buffers = render(verts[None].float(), HAND.faces, torch.as_tensor(K).float(), height, width)
    return (buffers.face[0] >= 0).numpy()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def picture_of(truth: Truth) -> np.ndarray:
    """The hand, flat and bright on a dark, coloured ground."""
    return np.where(silhouette(truth.verts + truth.root, K)[..., None], np.uint8([240, 240, 240]), np.uint8([30, 10, 60]))


def box_of(truth: Truth) -> list[float]:
    """[left, top, width, height] of the projected joints."""
    rays = (truth.joints + truth.root).double().numpy() @ K.T
    uv = rays[:, :2] / rays[:, 2:]
    return [*uv.min(0).tolist(), *np.ptp(uv, axis=0).tolist()]


def save(path: Path, picture: np.ndarray) -> Path:
    """Lossless, RGB."""
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def save_json(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


@pytest.fixture
def scene(tmp_path) -> tuple[Truth, Path, dict]:
    """One right hand's picture with its box and K, as options."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in" / "hand.png", picture_of(truth))
    return truth, path, {"input": str(path), "boxes": save_json(tmp_path / "boxes.json", {"hand.png": box_of(truth)}),
                         "K": save_json(tmp_path / "K.json", K.tolist())}
