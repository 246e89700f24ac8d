"""Speed of the five-panel pictures: pictures per second, from a crop and its answer to JPEG and PLY on disk.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_panels_speed.py --benchmark-enable

Issue: at least 10 pictures per second on 4 cores. The last test goes the way of `run.py test test.plots=-1`, on its one thread.
"""
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from src.plots import Plots, plot_of, write_both
from utils.batch import Batch, Prediction
from utils.hand import HandModel
from utils.panels import five_panels

ROOT = Path(__file__).resolve().parent.parent.parent
HAND = HandModel.load(ROOT / "template/free_hand_right.npz")
COUNT, PIXELS = 64, 224


def samples() -> tuple[Batch, Prediction]:
    """Random pictures and answers with everything that can be drawn: mask, 2D joints, mesh, place."""
    torch.manual_seed(0)
    posed = HAND(HAND.rotations_from_pose(0.4 * torch.randn(COUNT, 48), pca=True, flat_mean=False), torch.randn(COUNT, 10))
    joints = HAND.joints(posed)
    root = torch.tensor([-0.05, 0.05, 0.6]) + 0.02 * torch.randn(COUNT, 3)
    K = torch.tensor([[500.0, 0, 112], [0, 500, 112], [0, 0, 1]]).expand(COUNT, 3, 3)
    eye = torch.eye(3).expand(COUNT, 3, 3)
    batch = Batch(torch.rand(COUNT, 3, PIXELS, PIXELS), K, eye, torch.arange(COUNT) % 2 == 0, torch.arange(COUNT),
                  torch.zeros(COUNT, dtype=torch.long))
    mask = torch.rand(COUNT, 1, 7, 7)
    mask = torch.nn.functional.interpolate(mask, size=(112, 112), mode="bilinear")[:, 0]
    return batch, Prediction(posed.verts - joints[:, :1], joints - joints[:, :1], root, joints_uv=224 * torch.rand(COUNT, 21, 2),
                             mask=mask)


@pytest.mark.parametrize("what", ["drawn", "on disk"])
def test_one_picture(benchmark, tmp_path, what):
    """One picture, one thread: time per picture, drawn, and encoded and written with its mesh."""
    batch, answer = samples()
    first = Prediction(*(None if part is None else part[:1] for part in answer))
    plot = plot_of(batch.rows(slice(0, 1)), first, HAND.faces.numpy())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.group = "five panels, one thread"
    if what == "drawn":
        row = benchmark.pedantic(five_panels, plot[:7], rounds=20, warmup_rounds=3)
        assert row.shape == (224, 1120, 3) and len(np.unique(row)) > 100
    else:
        benchmark.pedantic(write_both, (tmp_path, "0", plot), rounds=20, warmup_rounds=3)
        assert (tmp_path / "0_plot.jpg").stat().st_size > 10_000
    torch.set_num_threads(before)


def test_rate_of_a_test(tmp_path, capsys):
    """Pictures per second of a batch as `test` draws it, all files on disk."""
    batch, answer = samples()
    start = time.perf_counter()
    with Plots(tmp_path, range(COUNT), HAND) as plots:
        plots.add(batch, answer)
    rate = COUNT / (time.perf_counter() - start)
    assert len(list(tmp_path.iterdir())) == 2 * COUNT
    with capsys.disabled():
        sys.stdout.write(f"\nfive panels, {len(os.sched_getaffinity(0))} cores: {rate:.0f} pictures/s over {COUNT} pictures\n")
