"""Engine in one process: arithmetic of a step, what is refused, what is logged. Restarts and several processes: other files."""
import contextlib
import logging
import math
import os
import resource
import signal

import pytest
import torch
from torch.utils.data import get_worker_info

from src.checkpoint import save_weights
from src.engine import TrainOptions
from src.processes import World
from src.schedule import Ema, build_optimizer
from tests.toy_method import ToyMethod, ToySource, curves, method, run, weights_hash
from utils.errors import InputError


def test_learns(tmp_path):
    """The whole loop lowers the loss of the toy by far."""
    run(tmp_path, method(), ToySource(), steps=150, lr=3e-3, log_every=1)
    losses = curves(tmp_path, "train_joints")
    assert losses[150] < 0.3 * losses[1]


def test_overfit_sees_one_batch(tmp_path):
    """overfit: only the samples of step 0 are asked for, always as of epoch 0, and their loss nearly vanishes."""
    data = ToySource()
    run(tmp_path, method(), data, steps=300, lr=1e-2, overfit=True, log_every=1)
    assert len(set(data.asked)) == 8 and {epoch for epoch, _ in data.asked} == {0}
    losses = curves(tmp_path, "train_joints")
    assert losses[300] < 0.1 * losses[1]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulate_is_the_whole_batch(tmp_path, accumulate):
    """A step in 2 or 4 parts moves the weights as one part does, but for rounding."""
    models = method(), method()
    for name, model, parts in zip("ab", models, (1, accumulate)):
        run(tmp_path / name, model, ToySource(), steps=10, optimizer="sgd", lr=0.1, accumulate=parts, clip=0.5)
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_clip_bounds_the_step(tmp_path):
    """With plain SGD of rate 1 and clip c, a step moves the weights by exactly c; the logged norm is that before clipping."""
    model = method()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run(tmp_path, model, ToySource(), steps=1, optimizer="sgd", momentum=0, lr=1.0, clip=0.01, log_every=1)
    moved = sum((now - then).square().sum() for now, then in zip(model.parameters(), before)).sqrt()
    assert moved.item() == pytest.approx(0.01, rel=1e-4)
    assert curves(tmp_path, "grad_norm")[1] > 0.01


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizer_is_torchs(tmp_path, name):
    """Ten steps of the engine equal a bare torch loop with torch's own optimiser, channels_last included."""
    model, plain, data = method(), method(), ToySource(8)
    options = TrainOptions(batch=8, steps=10, optimizer=name, lr=1e-2, weight_decay=0.1)
    run(tmp_path, model, data, **options.model_dump())
    extra = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name](
        plain.parameter_groups(), lr=1e-2, weight_decay=0.1, **extra)
    for step in range(10):
        raw = torch.utils.data.default_collate([data[(step, index)] for index in range(8)])
        batch = data.batch(raw)
        terms = plain.losses(plain(batch), batch)
        optimizer.zero_grad()
        (terms["joints"].mean() + 0.01 * terms["size"].mean()).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_parameter_groups(tmp_path):
    """lr_scale multiplies a group's rate, and a parameter in no group is frozen."""
    model = method()
    model.parameter_groups = lambda: [{"params": model.head.parameters()}, {"params": [model.conv.weight], "lr_scale": 0.1}]
    optimizer = build_optimizer(model, TrainOptions(lr=1e-2))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 1e-3])
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["unused", "conv.bias"]
    model.parameter_groups = lambda: []
    with pytest.raises(TypeError, match="nothing to train"):
        build_optimizer(model, TrainOptions())


def test_ema_maths():
    """The average equals sum_i a_i w_i written out in float64, warm-up of the decay and buffers included."""
    model, decay = ToyMethod(bn=True), 0.8
    ema = Ema(model, decay)
    weights = [{name: value.double().clone() for name, value in model.state_dict().items()}]
    for n in range(30):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.randn(value.shape).to(value.dtype))
        ema.update(model, n)
        weights.append({name: value.double().clone() for name, value in model.state_dict().items()})
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(30)]
    assert decays[0] == 0.1 and decays[-1] < decay < (1 + 40) / (10 + 40)
    shares = [math.prod(decays)] + [(1 - decays[i]) * math.prod(decays[i + 1:]) for i in range(30)]
    assert sum(shares) == pytest.approx(1)
    for name, average in ema.average.items():
        if average.is_floating_point():
            expected = sum(share * w[name] for share, w in zip(shares, weights))
            torch.testing.assert_close(average.double(), expected, rtol=1e-4, atol=1e-5)
    assert ema.average["norm.num_batches_tracked"] == model.norm.num_batches_tracked


def test_ema_applied_gives_back():
    """Inside `applied` the model holds the average, afterwards its own bits."""
    model = ToyMethod(bn=True)
    ema = Ema(model, 0.9)
    with torch.no_grad():
        model.conv.weight.add_(1)
    own = model.conv.weight.clone()
    with ema.applied(model):
        torch.testing.assert_close(model.conv.weight, own - 1, rtol=0, atol=1e-6)
        assert not torch.equal(model.conv.weight, own)
    assert torch.equal(model.conv.weight, own)


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_and_resume_are_bit_equal(tmp_path, workers):
    """A run stopped by SIGTERM and gone on with ends with the bits of an undisturbed one, whatever decodes the samples."""
    options = {"epochs": 5, "ema": 0.9, "schedule": "cosine", "optimizer": "adamw", "warmup": 3}
    run(tmp_path / "whole", method(bn=True, dropout=0.2), ToySource(), **options)
    first = run(tmp_path / "cut", method(bn=True, dropout=0.2, term_at=6), ToySource(), workers=workers, **options)
    assert first.stopped_by == signal.SIGTERM and first.steps == 7 and first.total == 15
    second = run(tmp_path / "cut", method(seed=5, bn=True, dropout=0.2), ToySource(), save_every=1, log_every=3, **options)
    assert second.stopped_by is None and second.steps == 15
    assert weights_hash(tmp_path / "whole/last.pt") == weights_hash(tmp_path / "cut/last.pt")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_epoch_means_survive_a_restart(tmp_path):
    """The mean of an epoch that was interrupted counts the steps before the interruption too."""
    run(tmp_path / "whole", method(), ToySource(), epochs=2)
    run(tmp_path / "cut", method(term_at=1), ToySource(), epochs=2)
    run(tmp_path / "cut", method(), ToySource(), epochs=2)
    assert curves(tmp_path / "whole", "train/joints") == curves(tmp_path / "cut", "train/joints")


def test_finished_run_is_left_alone(tmp_path, caplog):
    """Training again in a finished run's folder says so and touches nothing."""
    run(tmp_path, method(), ToySource(), steps=5)
    before = (tmp_path / "last.pt").read_bytes()
    with caplog.at_level(logging.INFO):
        result = run(tmp_path, method(), ToySource(), steps=5)
    assert "finished (5 steps)" in caplog.text and result.steps == 5
    assert (tmp_path / "last.pt").read_bytes() == before


def test_other_options_in_a_folder_are_refused(tmp_path):
    """The message names the key, both values and the remedy; options that do not reach the weights may differ."""
    run(tmp_path, method(term_at=2), ToySource(), steps=9, lr=1e-3)
    with pytest.raises(InputError, match=r"train.lr = 0.001 then and 0.01 now.*name=, or delete the folder"):
        run(tmp_path, method(), ToySource(), steps=9, lr=1e-2)
    with pytest.raises(InputError, match="seed = 0 then and 1 now"):
        run(tmp_path, method(), ToySource(), seed=1, steps=9, lr=1e-3)
    with pytest.raises(InputError, match=r"training data changed since this run began \(\S+ = .* then and .* now\); give"):
        run(tmp_path, method(), ToySource(40), steps=9, lr=1e-3)
    assert run(tmp_path, method(), ToySource(), steps=9, lr=1e-3, validate_every=2, workers=1).steps == 9


def test_weights_alone_are_no_run(tmp_path):
    """Converted weights that lie where a run's checkpoint belongs are not gone on with: init is named."""
    save_weights(tmp_path / "last.pt", "toy", method().state_dict())
    with pytest.raises(InputError, match="found weights alone; give this run another name= and start from them by train.init="):
        run(tmp_path, method(), ToySource(), steps=2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_non_finite_loss_stops(tmp_path, accumulate):
    """A NaN label stops the run, names term and sample, and the checkpoint of before stays."""
    data = ToySource(broken=(13,))
    with pytest.raises(InputError) as caught:
        run(tmp_path, method(), data, steps=30, save_every=1, accumulate=accumulate)
    message = str(caught.value)
    assert "loss joints is not finite, samples toy/013;" in message and "last.pt keeps the last good state" in message
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert f"in step {saved['step']} " in message
    assert all(value.isfinite().all() for value in saved["model"].values())


class FlatRoot(ToyMethod):
    """Its loss is finite but its gradient is not: the root of zero."""

    def losses(self, out, batch):
        return {**super().losses(out, batch), "size": (out * 0).square().sum((1, 2)).sqrt()}


def test_non_finite_gradient_stops(tmp_path):
    """A gradient that is not finite under a finite loss is caught in its own step, before a checkpoint."""
    with pytest.raises(InputError, match=r"in step 0 the gradient \(every loss is finite\) is not finite"):
        run(tmp_path, FlatRoot(), ToySource(), steps=5, save_every=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 0


class NanTerm(ToyMethod):
    def losses(self, out, batch):
        return {**super().losses(out, batch), "size": out.sum((1, 2)) * torch.nan}


def test_term_of_weight_zero_is_only_watched(tmp_path):
    """A term of weight 0 may be NaN: it is logged, and reaches neither weights nor guard."""
    result = run(tmp_path, NanTerm(), ToySource(), steps=3, weights={"joints": 1, "size": 0}, log_every=1)
    assert result.steps == 3 and math.isnan(curves(tmp_path, "train_size")[3])


@pytest.mark.parametrize("weights, message", [
    ({"joint": 1.0}, r"loss.joint = 1.0: ToyMethod has no such loss; did you mean joints\?"),
    ({"joints": 1.0}, r"loss.size: no weight given; ToyMethod needs one for each of joints, size"),
    ({"joints": -1.0, "size": 0}, "loss.joints = -1.0: expected a weight of 0 or above"),
    ({"joints": 0, "size": 0}, "every weight is 0"),
])
def test_loss_weights_are_checked(tmp_path, weights, message):
    """Wrong loss weights are refused before the first step, with the nearest name."""
    with pytest.raises(InputError, match=message):
        run(tmp_path / "x", method(), ToySource(), weights=weights, steps=1)
    assert not (tmp_path / "x").exists()


def test_unfit_data_and_lengths_are_refused(tmp_path):
    """A dataset without a needed field, a batch larger than the data, uneven shares, no length, both lengths."""
    needy = method()
    needy.needs = frozenset({"joints", "mask"})
    with pytest.raises(InputError, match="ToyMethod needs mask, which split train of this dataset does not provide"):
        run(tmp_path, needy, ToySource(), steps=1)
    with pytest.raises(InputError, match=r"train.batch = 8: expected at most .* found 5"):
        run(tmp_path, method(), ToySource(5), steps=1)
    with pytest.raises(InputError, match="train.epochs, train.steps: give one"):
        run(tmp_path, method(), ToySource())
    with pytest.raises(ValueError, match="give one and set the other to null"):
        TrainOptions(epochs=1, steps=1)
    with pytest.raises(ValueError, match="cannot be computed in accumulate = 3"):
        TrainOptions(batch=8, accumulate=3)


def test_uneven_shares_are_refused(tmp_path, monkeypatch):
    """A batch that the processes and parts cannot share evenly is one line, before anything is written."""
    monkeypatch.setattr("src.engine.world_of", lambda device: contextlib.nullcontext(World(0, 3)))
    with pytest.raises(InputError, match=r"train.batch = 8: cannot be split over 3 processes and train.accumulate = 2 parts"):
        run(tmp_path / "x", method(), ToySource(), steps=1, accumulate=2)
    assert not (tmp_path / "x").exists()


class Misshapen(ToyMethod):
    def losses(self, out, batch):
        return {**super().losses(out, batch), "size": out.mean()}


def test_wrong_loss_shape_is_our_bug(tmp_path):
    """A term that is not per sample is a TypeError that names it, not wrong training."""
    with pytest.raises(TypeError, match=r"wrong shapes \{'size': \(\)\}"):
        run(tmp_path, Misshapen(), ToySource(), steps=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_sample(tmp_path, workers):
    """The source's own line reaches the user from the thread and from a worker process alike."""
    with pytest.raises(InputError) as caught:
        run(tmp_path, method(), ToySource(unreadable=(3,)), steps=9, workers=workers)
    assert str(caught.value) == "picture 3: expected a JPEG, found nothing"


class DyingSource(ToySource):
    def __getitem__(self, key):
        if get_worker_info() is not None and key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_killed_worker(tmp_path):
    """A worker process killed from outside ends the run with one line, and the last checkpoint stays good."""
    with pytest.raises(InputError, match=r"a process that decodes images died .* lower train.workers"):
        run(tmp_path, method(), DyingSource(), steps=9, workers=1, save_every=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] <= 3


def test_full_disk(tmp_path):
    """A checkpoint that the disk refuses is one line, and the one before stays whole; nothing half-written is left."""
    run(tmp_path, method(term_at=3), ToySource(), steps=9)
    before, limits = weights_hash(tmp_path / "last.pt"), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"last.pt: the checkpoint could not be written \(File too large\); make room"):
            run(tmp_path, method(), ToySource(), steps=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert weights_hash(tmp_path / "last.pt") == before
    assert not list(tmp_path.glob(".*"))


def test_start_weights_once(tmp_path):
    """Published weights are fetched by a fresh run only: neither by a resumed one nor by one with `init`."""
    models = [method(term_at=1), method(), method()]
    for model in models[:2]:
        run(tmp_path / "a", model, ToySource(), steps=4)
    run(tmp_path / "b", models[2], ToySource(), steps=1, init=str(tmp_path / "a/last.pt"))
    assert [model.started for model in models] == [1, 0, 0]


def test_init_starts_from_the_average(tmp_path):
    """`init` takes the running average of the run it names: a step of rate ~0 keeps it."""
    run(tmp_path / "a", method(), ToySource(), steps=20, ema=0.9, lr=1e-2)
    model = method(seed=9)
    run(tmp_path / "b", model, ToySource(), steps=1, init=str(tmp_path / "a/last.pt"), lr=1e-12)
    average = torch.load(tmp_path / "a/last.pt", weights_only=True)["ema"]
    torch.testing.assert_close(model.state_dict(), average, rtol=0, atol=1e-9)


def test_kept_checkpoints(tmp_path):
    """keep_every keeps a copy at the end of each second epoch, named by its step."""
    run(tmp_path, method(), ToySource(), epochs=4, keep_every=2)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["last.pt", "step_0000006.pt", "step_0000012.pt"]
    assert torch.load(tmp_path / "step_0000006.pt", weights_only=True)["step"] == 6
