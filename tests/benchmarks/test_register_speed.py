"""Hands per second of the batched registration against SLSQP hand by hand, one thread; with and without finding the contours.

    pytest -o addopts="" -s tests/benchmarks/test_register_speed.py

1000 free hands in crops of 224 pixels, keypoints with 2 px of noise, masks of 112 cells. The opponent is the faithful path, here,
in the same process, on the first 200 of them. The contours are found by the same code for both, so that counting them in can
only lower the ratio. Prints errors of depth, too; asserted is that the energies are no higher than SLSQP's on 99 % of the hands,
and the ratio.
"""
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from register_cases import SIZE, crops

from src import register_faithful, register_fast
from src.register import RegisterOptions, register
from src.silhouette import extents_of_masks

HANDS, SLOW_HANDS, RATIO = 1000, 200, 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def seconds(run, turns: int) -> float:
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def line(text: str) -> None:
    sys.stdout.write(text + "\n")


@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_ratio(residual, capsys):
    """1000 hands at least 20 times as fast as SLSQP without the contours, and with them still more than 10."""
    c = crops(HANDS, seed=5)
    mask = c.mask.float()
    target, has = extents_of_masks(mask, SIZE)
    fast, slow = RegisterOptions(residual=residual), RegisterOptions(residual=residual, solver="faithful")
    few = slice(0, SLOW_HANDS)
    few = (c.verts[few], c.joints[few], c.uv[few], None, c.K[few], SIZE, target[few], has[few])
    opponent = seconds(lambda: register(*few, slow), 2)
    opponent *= 1e3 / SLOW_HANDS
    ours = 1e3 / HANDS * seconds(lambda: register(c.verts, c.joints, c.uv, None, c.K, SIZE, target, has, fast), 5)
    outline = 1e3 / HANDS * seconds(lambda: extents_of_masks(mask, SIZE), 5)
    with capsys.disabled():
        line(f"\n{residual}: ms a hand: SLSQP {opponent:.2f}, batched {ours:.3f}, contours {outline:.3f}: "
             f"{opponent / ours:.1f} x, contours included {(opponent + outline) / (ours + outline):.1f} x")
    assert opponent / ours >= RATIO and (opponent + outline) / (ours + outline) >= RATIO / 2


def test_errors(capsys):
    """Prints the depth errors on 300 hands; 1D energies are no higher than SLSQP's (1e-9) on 99 % of them."""
    n = 300
    c = crops(n, seed=5)
    target, has = extents_of_masks(c.mask, SIZE)
    start = torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64).expand(n, 3)
    energy = {}
    for name, solver in (("fast", register_fast), ("faithful", register_faithful)):
        second = solver.by_extents(c.verts, target, c.K, start, (0.3, 2.0), SIZE)[0]
        rows = zip(*(x.numpy() for x in (second, c.verts, target, c.K)))
        energy[name] = np.array([register_faithful.extents_energy(*row, SIZE) for row in rows])
        with capsys.disabled():
            line(f"\n{name:9s} silhouette           {told(second, c.true)}, energy {energy[name].mean():.3e}")
        for residual in ("algebraic", "pixel"):
            options = RegisterOptions(solver=name, residual=residual)
            for what, outlined in (("2D", None), ("blend", has)):
                found = register(c.verts, c.joints, c.uv, None, c.K, SIZE, target if what == "blend" else None, outlined, options)
                with capsys.disabled():
                    line(f"{name:9s} {residual:9s} {what:10s} {told(found.translation, c.true)}")
    higher = energy["fast"] > energy["faithful"] + 1e-9
    with capsys.disabled():
        line(f"batched energy above SLSQP's on {higher.sum()} of {n}, below on {(energy['fast'] < energy['faithful']).sum()}")
    assert higher.mean() <= 0.01


def told(found: torch.Tensor, true: torch.Tensor) -> str:
    off = 1e3 * (found - true)[:, 2]
    return f"depth error mm: mean {off.abs().mean():5.2f}, median {off.abs().median():5.2f}, bias {off.mean():5.2f}"
