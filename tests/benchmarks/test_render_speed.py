"""Speed of the renderer and of `synth dexycb`: pictures per second.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_render_speed.py --benchmark-enable

The last test prints how many pictures per second `synth` writes with one process and with all cores (issue: at least 60 at
640x480 on 4 cores, 15 per core), start-up of the processes included.
"""
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from datasets.synthetic.dexycb import Options, write
from utils.hand import HandModel
from utils.render import rasterise, render

ROOT = Path(__file__).resolve().parent.parent.parent
HANDS = {side: HandModel.load(ROOT / f"template/free_hand_{side}.npz") for side in ("right", "left")}
SIZES = {"640x480": (480, 640, 615.0), "320x240": (240, 320, 307.0), "128x128 crop": (128, 128, 480.0)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", [rasterise, render], ids=["fragments", "dense buffers"])
def test_render(benchmark, what, size):
    """8 pictures of a hand 0.74 m away, one thread: time per call."""
    height, width, focal = SIZES[size]
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    hand = HANDS["right"]
    verts = hand(torch.eye(3).expand(8, 16, 3, 3), torch.zeros(8, 10)).verts
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # palm towards the camera
    verts = verts @ turn.T + torch.tensor([0.0, 0, 0.74])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.group = f"render, batch 8, {size}, one thread"
    result = benchmark.pedantic(what, (verts, hand.faces, K, height, width), rounds=20, warmup_rounds=3)
    torch.set_num_threads(before)
    assert (result.face >= 0).sum() > 8 * 1500


def test_synth_rate(tmp_path, capsys):
    """Pictures per second of whole runs, files included."""
    lines, cores = [], len(os.sched_getaffinity(0))
    for name, change in (("640x480", {}), ("320x240", {"width": 320, "height": 240})):
        for workers in sorted({1, cores}):
            options = Options(name="dexycb", out=str(tmp_path / f"{name}-{workers}"), sequences=2 * workers, frames=8, people=10,
                              workers=workers, **change)
            start = time.perf_counter()
            pictures = write(options, HANDS["right"], HANDS["left"])["pictures"]
            rate = pictures / (time.perf_counter() - start)
            lines.append(f"synth dexycb {name}, {workers} processes: {rate:.0f} pictures/s over {pictures} pictures")
            assert pictures == 1280 * workers
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
