"""Methods that are told 2D joints: test and demo tell them given keypoints, in their crop, and never the labels."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_cases import CPU, HAND, CropLike, Oracle, scene
from idhand_cases import plain_batch
from torch import Tensor, nn

from src.camera_space import KeypointsFile
from src.demo import DemoOptions, demo
from src.demo_hand import BY_KEYPOINTS, Keypoints
from src.method import Method
from src.predict import predict
from utils.batch import Batch, Prediction
from utils.camera import project
from utils.errors import InputError
from utils.predictions import PredictionsWriter, read_predictions

assert scene  # a fixture
FRAMES = 5
CROP = torch.tensor([[2.0, 0, -30], [0, 2.0, -10], [0, 0, 1]])  # crop_from_image


class Source:
    """Frames whose labels are all 7 pixels; crops of scale 2."""

    provides = frozenset({"joints_uv"})

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        return {"index": np.int64(key[1])}

    def batch(self, raw: dict[str, Tensor]) -> Batch:
        n = len(raw["index"])
        batch = plain_batch(torch.zeros(n, 3, 8, 8), joints_uv=torch.full((n, 21, 2), 7.0), uv_confidence=torch.ones(n, 21),
                            has_uv=torch.zeros(n, dtype=torch.bool))
        return replace(batch, index=raw["index"], crop_from_image=CROP.expand(n, 3, 3))

    def sample_name(self, index: int) -> str:
        return f"s/{index:03d}"

    def protocol(self) -> dict:
        return {"dataset": "toy", "split": "test"}

    def columns(self, indices) -> dict[str, np.ndarray]:
        return {}


class Told(Method):
    """Keeps what it was told, and answers with some 2D joints of its own."""

    sees_keypoints = True
    needs = frozenset({"joints_uv"})

    def __init__(self):
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.zeros(())), []

    def forward(self, batch: Batch) -> Tensor:
        self.told.append(batch)
        return self.weight.expand(len(batch), 21, 2)

    def losses(self, out, batch):
        return {}

    def decode(self, out: Tensor, batch: Batch) -> Prediction:
        points = torch.rand(len(batch), 21, 3)
        return Prediction(points.repeat(1, 38, 1)[:, :778], points, joints_uv=out - 1)


@pytest.fixture
def keypoints(tmp_path) -> tuple[KeypointsFile, np.ndarray, np.ndarray]:
    """A predictions file with 2D joints of the frames, in another order, and their numbers by frame."""
    uv = np.random.default_rng(0).uniform(0, 60, (FRAMES, 21, 2)).astype(np.float32)
    confidence = np.random.default_rng(1).uniform(0, 1, (FRAMES, 21)).astype(np.float32)
    order = [3, 1, 4, 0, 2]
    with PredictionsWriter(tmp_path / "uv.npz", {"method": "pose2d", "dataset": {}, "told": "nothing"}) as writer:
        writer.append(name=[f"s/{row:03d}" for row in order], pred_joints_uv=uv[order], pred_uv_confidence=confidence[order],
                      index=np.array(order), subject=np.zeros(5, np.int64), mirrored=np.zeros(5, bool))
    return KeypointsFile(tmp_path / "uv.npz"), uv, confidence


def test_the_files_joints_take_the_labels_place(keypoints, tmp_path):
    """Every frame is told the file's joints of its name, in its crop, with their confidence; the labels stay the truth, and the
    stored 2D joints are the file's."""
    file, uv, confidence = keypoints
    method = Told()
    predict(method, Source(), tmp_path / "p.npz", device=CPU, batch=2, keypoints=file)
    rows = {int(row): told for batch in method.told for row, *told in zip(batch.index, batch.joints_uv, batch.uv_confidence)}
    assert sorted(rows) == list(range(FRAMES)) and all(batch.has_uv is None for batch in method.told)
    for row, (told, sure) in rows.items():
        np.testing.assert_allclose(told.numpy(), 2 * uv[row] - [30, 10], atol=1e-4)
        np.testing.assert_allclose(sure.numpy(), confidence[row], atol=1e-6)
    found = read_predictions(tmp_path / "p.npz")
    np.testing.assert_allclose(found["pred_joints_uv"], uv, atol=1e-4)
    assert np.isnan(found["true_joints_uv"]).all() and found.meta["keypoints"]["method"] == "pose2d"


def test_test_without_keypoints(tmp_path):
    """Without a file of 2D joints: one line with the remedy, nothing computed, nothing written."""
    method = Told()
    with pytest.raises(InputError, match="test.keypoints: this method is told where the joints are .* and never by the labels"):
        predict(method, Source(), tmp_path / "p.npz", device=CPU)
    assert not method.told and not (tmp_path / "p.npz").exists()


class Sees(Oracle):
    """The second network: the true 2D joints in pixels of its own crop."""

    def decode(self, out, batch: Batch) -> Prediction:
        uv = project((out.joints + out.root)[None], batch.K)
        return Prediction(joints_uv=uv, uv_confidence=torch.linspace(0.1, 1, 21)[None])


def test_demo_tells_the_second_networks_joints(scene, tmp_path):
    """The demo tells the method what demo.keypoints sees, put into the method's own crop: there, the true hand's projections."""
    truth, _, options = scene
    method = Oracle(truth)
    method.sees_keypoints = True
    second = Keypoints(Sees(truth), CropLike(pixels=48, factor=2.0))
    demo(method, HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU, keypoints=second)
    (batch,) = method.seen
    assert batch.image.shape[-1] == 64
    expected = project((truth.joints + truth.root)[None], batch.K)
    torch.testing.assert_close(batch.joints_uv, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(batch.uv_confidence, torch.linspace(0.1, 1, 21)[None])
    assert BY_KEYPOINTS in (tmp_path / "out" / "hand.json").read_text()


def test_demo_without_keypoints(scene, tmp_path):
    """A method that is told 2D joints, and no network that finds them: one line, no result."""
    truth, _, options = scene
    method = Oracle(truth)
    method.sees_keypoints = True
    with pytest.raises(InputError, match="demo.keypoints: this model is told where the joints are in the picture; name the run"):
        demo(method, HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    assert not method.seen and not list((tmp_path / "out").glob("*"))
