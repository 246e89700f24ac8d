"""Speed of the hand layer against smplx's MANO on the same toy arrays, same inputs (axis-angle and shape), one CPU thread.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_hand_speed.py --benchmark-enable

Opponents take turns within each repeat, so that both meet the same load of the machine. The last test prints the ratios
and asserts that both made the same mesh, nothing about time.
"""
import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.hand import HandModel
from utils.mano_file import SHAPES, HandArrays
from utils.rotation import matrix_from_axis_angle

sys.path.insert(0, str(Path(__file__).parent.parent / "goldens"))
from toy_mano import toy_mano

smplx = pytest.importorskip("smplx")
from smplx.utils import Struct  # noqa: E402

TOY = toy_mano(0)
HAND = HandModel(HandArrays(**{key: TOY[key] for key in SHAPES}, name="toy"))
BATCHES = (1024, 256, 32, 1)


@pytest.fixture(autouse=True)
def one_thread():
    """One CPU thread for both, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contest(batch: int, backward: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """What each side runs: axis-angle (batch,48) and shape (batch,10) to vertices and joints, and back if wanted."""
    with contextlib.redirect_stdout(io.StringIO()):  # smplx prints a warning about ten shape coefficients
        layer = smplx.MANO("toy", data_struct=Struct(**TOY), use_pca=False, flat_hand_mean=True, batch_size=batch, is_rhand=True)
    generator = torch.Generator().manual_seed(0)
    pose = (0.4 * torch.randn(batch, 48, generator=generator)).requires_grad_(backward)
    shape = torch.randn(batch, 10, generator=generator).requires_grad_(backward)

    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        out = layer(betas=shape, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
        return out.vertices, out.joints

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        return HAND(matrix_from_axis_angle(pose.view(batch, 16, 3)), shape)

    def run(forward: Callable) -> torch.Tensor:
        pose.grad = shape.grad = None
        verts, joints = forward()
        if backward:
            (verts.square().sum() + joints.square().sum()).backward()
        return verts

    def both(forward: Callable) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.set_grad_enabled(backward):
                return run(forward)
        return call

    return {"smplx": both(theirs), "ours": both(ours)}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("side", ["smplx", "ours"])
def test_hand_layer(benchmark, side, batch, backward):
    """pytest-benchmark's table for each side; the answers are checked to be the same mesh."""
    benchmark.group = f"hand layer, batch {batch}, {'forward+backward' if backward else 'forward'}"
    sides = contest(batch, backward)
    verts = benchmark.pedantic(sides[side], rounds=10 if batch > 100 else 50, warmup_rounds=3)
    assert torch.allclose(verts, sides["smplx"](), atol=1e-5)


def test_ratios(capsys):
    """Prints how many times faster than smplx each case is: medians of turns taken one after the other."""
    lines = []
    for batch in BATCHES:
        for backward in (False, True):
            sides, seconds = contest(batch, backward), {"smplx": [], "ours": []}
            for repeat in range(25 if batch > 100 else 200):
                for name, call in sides.items():
                    start = time.perf_counter()
                    call()
                    if repeat >= 3:
                        seconds[name].append(time.perf_counter() - start)
            slow, fast = (1000 * np.median(seconds[name]) for name in ("smplx", "ours"))
            what = "forward+backward" if backward else "forward"
            lines.append(f"hand layer, batch {batch}, {what}, one thread: "
                         f"smplx {slow:.2f} ms, ours {fast:.2f} ms, ratio {slow / fast:.2f}")
            assert torch.allclose(sides["ours"](), sides["smplx"](), atol=1e-5)
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
