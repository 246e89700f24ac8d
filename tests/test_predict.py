"""src/predict.py: every frame once, labels and told shapes as given, modes restored, and the line of each fault."""
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import toy_hand
from torch import Tensor, nn

from src.method import Method
from src.predict import TestOptions, predict
from utils.batch import Batch, Prediction
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions, index_hash, read_predictions
from utils.rotation import matrix_from_axis_angle

CPU = torch.device("cpu")


class ToySource:
    """Random poses of two people; the picture's first pixel is the row's number."""

    provides = frozenset({"joints", "verts", "shape", "root"})

    def __init__(self, hand: HandModel, count: int = 11, labelled: bool = True):
        self.hand, self.count, self.labelled = hand, count, labelled
        self.asked: list[tuple[int, int]] = []
        self.broken = self.deadly = -1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        self.asked.append(key)
        if key[1] == self.broken:
            raise InputError(f"picture {key[1]}: expected a JPEG, found nothing; unpack the dataset again")
        if key[1] == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": np.int64(key[1])}

    def batch(self, raw: dict[str, Tensor]) -> Batch:
        index = raw["index"]
        image = torch.zeros(len(index), 3, 4, 4)
        image[:, 0, 0, 0] = index.float()
        subject = 8 + index % 2
        shape = (subject[:, None] * torch.linspace(-0.1, 0.1, 10)).float()
        pose = torch.sin(index[:, None, None] * 0.7 + torch.arange(48.0).view(16, 3)) * 0.2
        rotations = matrix_from_axis_angle(pose)
        posed = self.hand(rotations, shape)
        root = torch.tensor([0.0, 0.1, 0.6]).expand(len(index), 3)
        move = (root - posed.chain[:, 0])[:, None]
        known = index != 3
        eye = torch.eye(3).expand(len(index), 3, 3)
        joints, verts = self.hand.joints(posed) + move, posed.verts + move
        return Batch(image, eye, eye, index % 3 == 0, index, subject, joints=joints, verts=verts, rotations=rotations, root=root,
                     shape=shape if self.labelled else None, identity=shape + 1, has_joints=known, has_verts=known,
                     has_shape=known, has_rotations=known)

    def sample_name(self, index: int) -> str:
        return f"toy/{index:03d}"

    def protocol(self) -> dict:
        return {"dataset": "toy", "split": "test"}

    def columns(self, indices) -> dict[str, np.ndarray]:
        return {"official_index": 10 * np.asarray(indices)}


class ToyMethod(Method):
    """Answers with a hand of the told shape, or of one shape, that depends on the picture's number; drop-out shows the mode."""

    def __init__(self, hand: HandModel, told: bool, bad: int = -1):
        super().__init__()
        self.hand, self.bad = hand, bad
        self.needs = frozenset({"identity"}) if told else frozenset()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(1, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        number = self.drop(self.linear(batch.image[:, 0, :1, 0]))
        self.seen.append(number.dtype)
        return number, batch.image[:, 0, 0, 0]

    def losses(self, out, batch):
        return {}

    def decode(self, out: tuple[Tensor, Tensor], batch: Batch) -> Prediction:
        number, index = out
        assert number.dtype == torch.float32 and not torch.is_grad_enabled()
        shape = batch.identity if "identity" in self.needs else torch.full((len(batch), 10), 0.5)
        rotations = matrix_from_axis_angle(0.01 * number[:, None].expand(-1, 16, 3))
        posed = self.hand(rotations, shape)
        joints = self.hand.joints(posed)
        joints[index == self.bad, 5] = float("nan")
        return Prediction(posed.verts - joints[:, :1], joints - joints[:, :1], shape=shape, confidence=number[:, 0])


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand, float32 as in a method."""
    return toy_hand().float()


def run(tmp_path: Path, method: Method, source: ToySource, **options) -> Predictions:
    """Predict to a file and open it."""
    predict(method, source, tmp_path / "p.npz", device=CPU, meta={"method": "toy", "checkpoint": "out/toy/last.pt"}, **options)
    return read_predictions(tmp_path / "p.npz")


def test_every_frame_once_in_order(hand, tmp_path):
    """11 frames in batches of 4: all rows in the reader's order, the partial batch too, asked as (epoch 0, index); cost noted."""
    source, method = ToySource(hand), ToyMethod(hand, told=False)
    got = run(tmp_path, method, source, batch=4)
    assert got["index"].tolist() == list(range(11)) and source.asked == [(0, index) for index in range(11)]
    expected = {"name": [f"toy/{i:03d}" for i in range(11)], "official_index": list(range(0, 110, 10)),
                "mirrored": [i % 3 == 0 for i in range(11)], "subject": [8 + i % 2 for i in range(11)]}
    assert {key: got[key].tolist() for key in expected} == expected
    assert got.meta["dataset"]["split"] == "test" and got.meta["told"] == "nothing"
    assert got.meta["checkpoint"] == "out/toy/last.pt"
    assert got.meta["parameters"] == 2 and got.meta["speed"]["batch"] == 4 and got.meta["speed"]["images_per_s"] > 0
    assert "identity" not in got and "pred_root" not in got and "confidence" in got


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_and_workers_do_not_matter(hand, tmp_path, workers):
    """Batches of 3 by worker processes and one batch of 64 give equal columns (to float32 rounding)."""
    method = ToyMethod(hand, told=False)
    predict(method, ToySource(hand), tmp_path / "q.npz", device=CPU, batch=3, workers=workers)
    one, other = run(tmp_path, method, ToySource(hand)), read_predictions(tmp_path / "q.npz")
    for key in one.columns:
        if key != "name":
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-6)
    assert one.meta["index_hash"] == other.meta["index_hash"] == index_hash(one["name"].tolist())


def test_labels_are_absolute_and_missing_ones_nan(hand, tmp_path):
    """True columns equal the source's labels; the row without labels is NaN in them, not in the prediction."""
    source = ToySource(hand)
    got = run(tmp_path, ToyMethod(hand, told=False), source)
    expected = source.batch({"index": torch.arange(11)})
    for key in ("true_joints", "true_verts", "true_shape", "true_root", "true_rotations"):
        value = got[key]
        assert np.isnan(value[3]).all()
        keep = np.arange(11) != 3
        np.testing.assert_array_equal(value[keep], getattr(expected, key.removeprefix("true_")).numpy()[keep])
    assert np.isfinite(got["pred_verts"]).all() and np.abs(got["pred_joints"][:, 0]).max() == 0


def test_mode_is_restored_and_drop_out_is_off(hand, tmp_path):
    """Two runs of a method in train mode agree (eval inside) and it is in train mode again afterwards."""
    method = ToyMethod(hand, told=False).train()
    first = np.array(run(tmp_path, method, ToySource(hand))["confidence"])
    np.testing.assert_array_equal(first, run(tmp_path, method, ToySource(hand))["confidence"])
    assert method.training and method.drop.training


def test_bfloat16_covers_the_network_alone(hand, tmp_path):
    """amp=bf16: the linear layer answers in bfloat16, decode sees float32 (asserted there)."""
    method = ToyMethod(hand, told=False)
    run(tmp_path, method, ToySource(hand), amp="bf16")
    assert set(method.seen) == {torch.bfloat16}


def test_told_shape_is_truth_or_the_subject_s_identity(hand, tmp_path):
    """None tells the true shape; a dict or a function tells each subject's; what was told is in the file."""
    source, method = ToySource(hand), ToyMethod(hand, told=True)
    with pytest.raises(InputError, match="no true shape to tell"):  # row 3 has no label
        run(tmp_path, method, source)
    got = run(tmp_path, method, ToySource(hand, count=3))
    assert got.meta["told"] == "truth"
    np.testing.assert_array_equal(got["identity"], source.batch({"index": torch.arange(3)}).shape.numpy())
    shapes = {8: np.arange(10) * 0.1, 9: -np.ones(10)}
    for identities in (shapes, shapes.__getitem__):
        got = run(tmp_path, method, source, identities=identities, batch=4)
        assert got.meta["told"] == "identities"
        expected = np.stack([shapes[s] for s in got["subject"].tolist()]).astype(np.float32)
        np.testing.assert_array_equal(got["identity"], expected)
        np.testing.assert_array_equal(got["pred_shape"], expected)


def test_frames_are_spread_evenly(hand, tmp_path):
    """frames=4 of 11: evenly spread rows; more than there are: all."""
    assert run(tmp_path, ToyMethod(hand, told=False), ToySource(hand), frames=4)["index"].tolist() == [0, 2, 5, 8]
    assert len(run(tmp_path, ToyMethod(hand, told=False), ToySource(hand), frames=400)) == 11


def fault(tmp_path: Path, method: Method, source: ToySource, **options) -> str:
    """The one line of a failing prediction, which leaves no file."""
    with pytest.raises(InputError) as caught:
        run(tmp_path, method, source, **options)
    assert os.listdir(tmp_path) == [] and "\n" not in str(caught.value)
    return str(caught.value)


def test_faults_get_one_line_and_leave_nothing(hand, tmp_path):
    """Identity of a missing subject, identity nobody reads, no truth to tell, unreadable picture, not finite, empty split."""
    plain, told = ToyMethod(hand, told=False), ToyMethod(hand, told=True)
    assert fault(tmp_path, told, ToySource(hand), identities={8: np.zeros(10)}) == (
        "test.identity: no identity of subject 9; there are files for [8]; calibrate that subject too")
    assert fault(tmp_path, plain, ToySource(hand), identities={8: np.zeros(10)}) == (
        "test.identity: this method is never told a shape; leave test.identity out, or test an identity-aware method")
    assert "this split has no true shapes to tell; name a folder of identity files" in fault(
        tmp_path, told, ToySource(hand, labelled=False))
    for workers in (0, 1):
        source = ToySource(hand)
        source.broken = 5
        assert fault(tmp_path, plain, source, batch=2, workers=workers) == (
            "picture 5: expected a JPEG, found nothing; unpack the dataset again")
    assert fault(tmp_path, ToyMethod(hand, told=False, bad=6), ToySource(hand), batch=4) == (
        "toy/006: pred_joints is not finite; the checkpoint out/toy/last.pt is broken or was trained to divergence: train again, "
        "or test an earlier one")
    assert "the split holds no frame" in fault(tmp_path, plain, ToySource(hand, count=0))


def test_killed_worker_is_one_line(hand, tmp_path):
    """A decoding process killed by the system ends the run with one line and no file."""
    source = ToySource(hand)
    source.deadly = 5
    line = fault(tmp_path, ToyMethod(hand, told=False), source, batch=2, workers=1)
    assert line.startswith("a process that decodes images died") and line.endswith(
        "lower test.workers or test.batch and run again; nothing was written")


def test_options_refuse_what_makes_no_sense():
    """A tag that would leave the run's folder, zero frames and unknown keys are refused."""
    for wrong in ({"tag": "../x"}, {"tag": ".."}, {"frames": 0}, {"batches": 3}, {"amp": "fp8"}):
        with pytest.raises(ValueError):
            TestOptions(**wrong)
    assert TestOptions().identity is None and TestOptions(identity=["8.json"]).identity == ["8.json"]
