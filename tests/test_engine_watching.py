"""What a run shows and in which numbers it computes: validation, TensorBoard, autocast, reproducible kernels."""
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.board import tiled
from src.numerics import autocast_type, in_float32
from src.validate import prediction_errors, spread
from tests.toy_method import ToyMethod, ToySource, curves, method, run
from utils.batch import Prediction


def test_validation_is_the_mean_over_samples(tmp_path):
    """val/mpjpe_mm equals the mean over samples computed by hand, uneven last batch included."""
    model, data = method(), ToySource(11)
    run(tmp_path, model, ToySource(), steps=3, val=data, validate_every=3)
    batch = data.batch(torch.utils.data.default_collate([data[(0, i)] for i in range(11)]))
    with torch.no_grad():
        out = model.eval()(batch)
    true, pred = batch.joints - batch.joints[:, :1], out - out[:, :1]
    assert curves(tmp_path, "val/mpjpe_mm")[3] == pytest.approx(1000 * (pred - true).norm(dim=-1).mean().item(), rel=1e-5)
    assert curves(tmp_path, "val/joints")[3] == pytest.approx((out - batch.joints).abs().mean().item(), rel=1e-5)


def test_wrist_errors():
    """Moving truth and labels' root changes nothing; a vertex off by 3-4-0 mm counts 5 mm; rows without labels are marked."""
    batch = ToySource().batch(torch.utils.data.default_collate([ToySource()[(0, i)] for i in range(2)]))
    joints = torch.rand(2, 21, 3)
    verts = torch.rand(2, 778, 3)
    known = torch.tensor([True, False])
    batch = batch.__class__(**{**batch.__dict__, "joints": joints + 5, "verts": verts + 5, "has_verts": known})
    off = torch.tensor([0.003, -0.004, 0.0])
    pred = Prediction(verts - joints[:, :1] + off, joints - joints[:, :1])
    errors = prediction_errors(pred, batch)
    torch.testing.assert_close(errors["mpjpe_mm"][0], torch.zeros(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(errors["mpvpe_mm"][0], torch.full((2,), 5.0), atol=2e-3, rtol=0)
    assert errors["mpvpe_mm"][1] is known


def test_spread_rows():
    """Evenly spread rows: all for 0 or too many, else rising, without repeats, over the whole range."""
    assert spread(5, 0) == spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 4) == [0, 25, 50, 75]


def test_board(tmp_path):
    """Every curve that the issue asks for is there, once per step, also after a restart; and the pictures."""
    run(tmp_path, method(term_at=4), ToySource(), epochs=3, log_every=1, val=ToySource(4))
    run(tmp_path, method(), ToySource(), epochs=3, log_every=1, val=ToySource(4))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train_joints", "train_size", "train_largest", "train/joints", "lr", "grad_norm", "speed/images_per_s",
            "speed/data_wait_share", "val/mpjpe_mm", "val/joints"} <= tags
    assert [point.step for point in events.Scalars("train_joints")] == list(range(1, 10))
    assert sorted(curves(tmp_path, "val/mpjpe_mm")) == [3, 6, 9]
    assert events.Tags()["images"] == ["train/img"]
    assert all(0 <= point.value <= 1 for point in events.Scalars("speed/data_wait_share"))


def test_tiled_picture():
    """Five 8x8 pictures become two rows of four places; a joint inside is a red dot at (row v, column u)."""
    data = ToySource()
    batch = data.batch(torch.utils.data.default_collate([data[(0, i)] for i in range(5)]))
    picture = tiled(batch)
    assert picture.shape == (3, 16, 32)
    torch.testing.assert_close(picture[:, 3, 8 + 2], torch.tensor([1.0, 0.1, 0.1]))  # joint 1 of picture 1: uv = (2, 3)
    assert (picture[:, 8:, 8:] == 0).all()


class Watchful(ToyMethod):
    """Says which types its parts run in."""

    def forward(self, batch):
        self.forward_type = torch.nn.functional.linear(batch.image.flatten(1)[:, :4], torch.ones(1, 4)).dtype
        self.layout = batch.image.is_contiguous(memory_format=torch.channels_last)
        return super().forward(batch)

    def losses(self, out, batch):
        self.loss_type = out.dtype
        return super().losses(out, batch)


@pytest.mark.parametrize("amp, forward_type", [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_covers_the_forward_alone(tmp_path, amp, forward_type):
    """bf16: the forward computes in bfloat16, losses get float32; images are channels_last."""
    model = Watchful()
    run(tmp_path, model, ToySource(), steps=2, amp=amp)
    assert (model.forward_type, model.loss_type, model.layout) == (forward_type, torch.float32, True)


def test_numerics():
    """auto asks the CPU; nested outputs become float32 and keep their types."""
    has = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert autocast_type("auto", torch.device("cpu")) == (torch.bfloat16 if has else None)
    half = torch.zeros(2, dtype=torch.bfloat16)
    found = in_float32({"a": [half, (half, 3)], "b": Prediction(half, torch.zeros(2, dtype=torch.long))})
    assert found["a"][0].dtype == found["a"][1][0].dtype == found["b"].verts.dtype == torch.float32
    assert isinstance(found["b"], Prediction) and found["b"].joints.dtype == torch.long and found["a"][1][1] == 3


def test_global_switches_are_given_back(tmp_path):
    """Reproducible kernels are on during training only."""
    assert not torch.are_deterministic_algorithms_enabled()
    run(tmp_path, method(), ToySource(), steps=1)
    assert not torch.are_deterministic_algorithms_enabled()
