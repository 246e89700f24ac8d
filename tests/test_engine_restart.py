"""Runs that are killed, as programs of their own: SIGKILL at any step, SIGTERM, Ctrl-C, an impatient second signal."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.toy_method import weights_hash

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def command(folder, *pairs, **options):
    return [sys.executable, "-m", "tests.toy_method", str(folder), json.dumps(options), *pairs]


def start(*args, **options):
    """The toy's training in the background, in a process group of its own."""
    return subprocess.Popen(command(*args, **options), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def wait_for(path, seconds=60):
    """Until the file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_killed_at_three_steps_is_bit_equal(tmp_path, device):
    """SIGKILL in the midst of three steps drawn at random, between checkpoints and across epochs: model, average and optimiser
    end with the bits of an undisturbed run. Drop-out, batch-norm statistics, momentum, warm-up and clipping take part."""
    options = {"epochs": 10, "save_every": 4, "ema": 0.95, "optimizer": "adamw", "schedule": "cosine", "warmup": 5, "clip": 1.0,
               "batch": 8, "accumulate": 2}
    pairs = ("bn=true", "dropout=0.3", f"device={device}")
    whole = start(tmp_path / "whole", *pairs, **options)
    seed = random.SystemRandom().randrange(10**6)
    calls = sorted(random.Random(seed).sample(range(1, 55), 3))  # of the forward, two to a step
    for n, call in enumerate(calls):
        begun = torch.load(tmp_path / "cut/last.pt", weights_only=True)["step"] if n else 0
        killed = start(tmp_path / "cut", *pairs, f"kill_at={call - 2 * begun}", **options)
        assert killed.wait(100) == -signal.SIGKILL, f"seed {seed}"
    assert start(tmp_path / "cut", *pairs, **options).wait(100) == 0
    assert whole.wait(100) == 0
    assert torch.load(tmp_path / "cut/last.pt", weights_only=True)["step"] == 30
    assert weights_hash(tmp_path / "whole/last.pt") == weights_hash(tmp_path / "cut/last.pt"), f"seed {seed}: calls {calls}"


@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_saves_and_ends(tmp_path, number, workers):
    """A signal to the whole group (as Ctrl-C) ends the run after its step: exit code 0, nothing on stderr but the log, saved."""
    options = {"steps": 10_000, "workers": workers}
    run = start(tmp_path, "slow=0.05", **options)
    wait_for(tmp_path / "last.pt")
    time.sleep(1)
    os.killpg(run.pid, number)
    stderr = run.communicate(timeout=30)[1]
    assert run.returncode == 0 and "Traceback" not in stderr
    result = json.loads((tmp_path / "result.json").read_text())
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["step"]
    assert result["stopped_by"] == number and 0 < result["steps"] == saved < 10_000


def test_a_second_signal_kills(tmp_path):
    """Whoever cannot wait for the step to end sends the signal again; the checkpoint of before stays."""
    run = start(tmp_path, "slow=30", steps=5)
    wait_for(tmp_path / "last.pt")
    time.sleep(1)
    run.terminate()
    time.sleep(0.5)
    assert run.poll() is None
    run.terminate()
    assert run.wait(10) == -signal.SIGTERM
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 0


def test_workers_end_with_a_killed_run(tmp_path):
    """Worker processes have a group of their own; they end by themselves once their run was killed."""
    run = start(tmp_path, "slow=0.2", steps=10_000, workers=2)
    wait_for(tmp_path / "last.pt")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if not children.exists():
        run.kill()
        pytest.skip("this kernel does not list children")
    end = time.monotonic() + 30
    while len(children.read_text().split()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 2
    time.sleep(1)
    run.kill()
    run.wait()
    end = time.monotonic() + 30
    while any(_alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
