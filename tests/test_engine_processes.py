"""torchrun with two processes against one process with the whole batch, on the CPU (gloo); no network needed."""
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from src.processes import CpuSyncNorm, with_synced_norm
from tests.test_engine_restart import ENVIRONMENT, ROOT, command, wait_for
from tests.toy_method import curves, weights_hash

pytestmark = pytest.mark.usefixtures("one_launcher")


def torchrun(folder, *pairs, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(launcher + command(folder, *pairs, **options)[1:], cwd=ROOT, env=ENVIRONMENT, text=True,
                            stderr=subprocess.PIPE)


def succeeds(run: subprocess.Popen) -> None:
    """Waits for torchrun, and shows what it said where it failed."""
    said = run.communicate(timeout=100)[1]
    assert run.returncode == 0, said[-4000:]


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    """Every loss of 30 steps equals that of one process to 1e-5, batch-norm and accumulation included; so do the epoch means."""
    options = {"epochs": 5, "log_every": 1, "optimizer": "sgd", "lr": 0.05, "batch": 4, "accumulate": 2}
    both = torchrun(tmp_path / "two", "bn=true", **options)
    one = subprocess.run(command(tmp_path / "one", "bn=true", **options), cwd=ROOT, env=ENVIRONMENT, timeout=100)
    succeeds(both)
    assert one.returncode == 0
    for tag in ("train_joints", "train_size", "train/joints"):
        expected = curves(tmp_path / "one", tag)
        assert len(expected) == (30 if tag != "train/joints" else 5)
        assert curves(tmp_path / "two", tag) == pytest.approx(expected, abs=1e-5)
    weights = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("one", "two")]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_stopped_processes_go_on_bit_equal(tmp_path):
    """SIGTERM to torchrun stops both processes at the same step; going on gives the bits of an undisturbed run of two."""
    options = {"steps": 40, "ema": 0.9, "validate_every": 7}
    whole = torchrun(tmp_path / "whole", "dropout=0.3", **options)
    succeeds(whole)
    cut = torchrun(tmp_path / "cut", "dropout=0.3", "slow=0.1", **options)
    wait_for(tmp_path / "cut/last.pt")
    time.sleep(1)
    cut.send_signal(signal.SIGTERM)
    cut.communicate(timeout=60)
    steps = torch.load(tmp_path / "cut/last.pt", weights_only=True)["step"]
    assert 0 < steps < 40
    again = torchrun(tmp_path / "cut", "dropout=0.3", **options)
    succeeds(again)
    assert weights_hash(tmp_path / "whole/last.pt") == weights_hash(tmp_path / "cut/last.pt")


def test_a_bad_sample_of_one_process_is_named_by_both(tmp_path):
    """The NaN sits in one process's share; both end with its name, and neither hangs."""
    run = torchrun(tmp_path, "broken=[13]", steps=30, save_every=1)
    stderr = run.communicate(timeout=100)[1]
    assert run.returncode != 0
    lines = re.findall(r"^training stopped: in step (\d+) loss joints is not finite, samples toy/013;", stderr, re.M)
    assert lines and set(lines) == {str(torch.load(tmp_path / "last.pt", weights_only=True)["step"])}


NORM = """
import sys, torch, torch.distributed as dist
from torch import nn
from src.processes import with_synced_norm
dist.init_process_group("gloo")
rank = dist.get_rank()
x, weight, bias = torch.load(sys.argv[1], weights_only=True)
for momentum in (0.1, None):
    norm = nn.Sequential(nn.BatchNorm2d(5, momentum=momentum))
    norm[0].weight.data, norm[0].bias.data = weight, bias
    norm = with_synced_norm(norm, torch.device("cpu"))
    for _ in range(2):
        mine = x[rank::2].clone().requires_grad_()
        out = norm(mine)
        norm.zero_grad()
        (out ** 3).sum().backward()
    found = {"out": out.detach(), "x": mine.grad, "w": norm[0].weight.grad, "state": norm[0].state_dict()}
    torch.save(found, f"{sys.argv[2]}/{momentum}{rank}")
dist.destroy_process_group()
"""


def test_cpu_sync_norm_is_batch_norm(tmp_path):
    """Output, gradients and running statistics over two processes equal torch's BatchNorm2d on the joined batch, with a running
    and with a cumulative mean."""
    x, weight, bias = torch.randn(8, 5, 3, 4) * 3 + 1, torch.rand(5) + 0.5, torch.randn(5)
    torch.save((x, weight, bias), tmp_path / "in.pt")
    (tmp_path / "norm.py").write_text(NORM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "norm.py")]
    run = subprocess.run([*launcher, str(tmp_path / "in.pt"), str(tmp_path)], cwd=ROOT, timeout=100,
                         env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0
    for momentum in (0.1, None):
        norm = nn.BatchNorm2d(5, momentum=momentum)
        norm.weight.data, norm.bias.data = weight, bias
        for _ in range(2):
            whole = x.clone().requires_grad_()
            out = norm(whole)
            norm.zero_grad()
            (out ** 3).sum().backward()
        found = [torch.load(tmp_path / f"{momentum}{rank}", weights_only=True) for rank in (0, 1)]
        for rank in (0, 1):
            torch.testing.assert_close(found[rank]["out"], out.detach()[rank::2], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[rank]["x"], whole.grad[rank::2], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(dict(found[rank]["state"]), dict(norm.state_dict()), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0]["w"] + found[1]["w"], norm.weight.grad, rtol=1e-4, atol=1e-3)


def test_synced_norm_keeps_parameters():
    """Conversion keeps every parameter object, buffer and name; eval mode is plain batch-norm."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm1d(4, affine=False))
    module[1](torch.randn(5, 4, 2, 2))
    before, parameters = {k: v.clone() for k, v in module.state_dict().items()}, list(module.parameters())
    expected = module[1].eval()(torch.ones(1, 4, 2, 2))
    synced = with_synced_norm(module, torch.device("cpu"))
    assert [type(m) for m in (synced[1][0], synced[2])] == [CpuSyncNorm] * 2
    assert all(a is b for a, b in zip(parameters, synced.parameters()))
    torch.testing.assert_close(dict(synced.state_dict()), before)
    assert torch.equal(synced[1](torch.ones(1, 4, 2, 2)), expected)
