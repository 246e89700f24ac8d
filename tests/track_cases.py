"""What the tests of tracks share: a hand that moves, a method that answers it with noise, and videos of it."""
from pathlib import Path

import cv2
import numpy as np
import torch

from src.method import Method
from tests.demo_cases import HAND, Truth, a_hand, picture_of
from utils.batch import Batch, Prediction
from utils.hand import HandModel
from utils.rotation import matrix_from_axis_angle


def moving_hand(frames: int) -> list[Truth]:
    """The hand of tests/demo_cases.py, turning and moving steadily."""
    return [a_hand(root=(-0.04 + 0.004 * t, 0.02, 0.5), turn=(0.3, 2.0 + 0.02 * t, 0.4)) for t in range(frames)]


class NoisyOracle(Method):
    """Answers the truths one after the other, with noise on rotations and shape (`noise`, radians and coefficients).

    told: it needs an identity, and poses that. with_root: it predicts a root, too. uv: 2D joints as well, in the crop.
    parameters: off, it predicts a mesh alone.
    """

    def __init__(self, truths: list[Truth], noise: float = 0.0, told: bool = False, with_root: bool = False, uv: bool = False,
                 parameters: bool = True, hand: HandModel = HAND):
        super().__init__()
        self.truths, self.noise, self.with_root, self.uv = truths, noise, with_root, uv
        self.parameters, self.hand = parameters, hand
        self.needs = frozenset({"identity"}) if told else frozenset()
        self.calls = 0

    def forward(self, batch: Batch) -> int:
        self.calls += 1
        return self.calls - 1

    def losses(self, out, batch):
        return {}

    def decode(self, out: int, batch: Batch) -> Prediction:
        truth, generator = self.truths[out % len(self.truths)], torch.Generator().manual_seed(out)
        turns = matrix_from_axis_angle(torch.randn(16, 3, generator=generator) * self.noise)
        shape = truth.shape + torch.randn(10, generator=generator) * self.noise * 5
        shape = batch.identity[0] if self.needs else shape
        posed = self.hand(truth.rotations @ turns, shape)
        joints = self.hand.joints(posed)
        verts, joints = posed.verts - joints[0], joints - joints[0]
        uv = None
        if self.uv:
            rays = (truth.joints + truth.root) @ batch.K[0].T
            uv = (rays[:, :2] / rays[:, 2:])[None]
        keep = self.parameters
        return Prediction(verts[None], joints[None], root=truth.root[None] if self.with_root else None,
                          rotations=(truth.rotations @ turns)[None] if keep else None, shape=shape[None] if keep else None,
                          joints_uv=uv, uv_confidence=torch.ones(1, 21) if self.uv else None)


def video_of(path: Path, pictures: list[np.ndarray], fps: float = 25, code: str = "MJPG") -> Path:
    """A video of RGB pictures; MJPG in an avi keeps the frames before a cut readable."""
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (width, height))
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    return path


def pictures_of(truths: list[Truth]) -> list[np.ndarray]:
    """Each hand on its dark ground."""
    return [picture_of(truth) for truth in truths]


def cut_file(path: Path, share: float) -> Path:
    """The first part of a file alone."""
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    """A video's frames, RGB."""
    video, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, picture = video.read()
        if not good:
            return frames
        frames.append(picture[..., ::-1])
