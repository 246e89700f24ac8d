"""Speed and memory of the mesh decoder against the original formulation, on the same weights and pyramid, one CPU thread.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_spiral_speed.py --benchmark-enable

The original formulation (specs/cmr_boukhayma_metro.md 2.1): up-sampling picks 3n rows, multiplies and scatters them; each of a
block's four convolutions gathers its own (b,n,L*channels) by index_select before its Linear. "plain" is this project's own
SpiralConv and up_sample, one after the other. Sides take turns within each repeat, so that all meet the same load of the
machine. Prints medians of the ratios turn by turn; asserts that all make the same meshes, nothing about time.
"""
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.spiral import MeshDecoder, SpiralConv, up_sample
from utils.hand import HandModel
from utils.pyramid import PyramidOptions, pyramid_of

CHANNELS = (64, 128, 256, 512)
FEATURES = 1000
BATCHES = (32, 1)
FREE_HAND = Path(__file__).parents[2] / "template" / "free_hand_right.npz"
STEPS = ("forward", "backward", "forward+backward", "inference")


@pytest.fixture(autouse=True)
def one_thread():
    """One CPU thread for all, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Original:
    """The original's steps with a decoder's weights: (b,1000) -> meshes, finest first."""

    def __init__(self, decoder: MeshDecoder, ups: list[tuple[Tensor, Tensor]]):
        self.decoder, self.ups = decoder, ups

    def up(self, x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
        rows = torch.arange(len(columns)).repeat_interleave(3)
        picked = x.index_select(1, columns.flatten()) * weights.view(-1, 1)
        return picked.new_zeros(len(x), len(columns), x.shape[2]).scatter_add(1, rows[None, :, None].expand_as(picked), picked)

    def convolve(self, conv: SpiralConv, x: Tensor) -> Tensor:
        return conv.layer(x.index_select(1, conv.spirals.flatten()).view(len(x), len(conv.spirals), -1))

    def __call__(self, latent: Tensor) -> list[Tensor]:
        decoder, meshes = self.decoder, []
        x = decoder.start(latent).view(len(latent), decoder.coarsest, -1)
        for block, head, up in zip(decoder.blocks, decoder.heads, self.ups):
            x = self.up(x, *up)
            long, middle, short, own = (self.convolve(conv, x) for conv in
                                        (block.conv, block.conv_2d3, block.conv_d3, block.conv1))
            x = F.relu(own + torch.cat((long, middle, short), -1))
            mesh = self.convolve(head, x)
            meshes.insert(0, (mesh + self.up(meshes[0], *up)) / 2 if meshes else mesh)
            x = torch.cat((x, meshes[0]), -1)
        return meshes


class Plain(Original):
    """The same with this project's SpiralConv and up_sample."""

    def up(self, x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
        return up_sample(x, columns, weights)

    def convolve(self, conv: SpiralConv, x: Tensor) -> Tensor:
        return conv(x)


def sides(folder: Path) -> dict[str, Callable[[Tensor], list[Tensor]]]:
    """All on one set of weights and the free hand's pyramid, which is kept in `folder`."""
    torch.manual_seed(0)
    pyramid = pyramid_of(HandModel.load(FREE_HAND), PyramidOptions(), folder)
    decoder = MeshDecoder(FEATURES, CHANNELS, pyramid)
    ups = [(torch.from_numpy(columns), torch.from_numpy(weights)) for columns, weights in zip(pyramid.columns, pyramid.weights)]
    return {"original": Original(decoder, ups[::-1]), "plain": Plain(decoder, ups[::-1]), "ours": decoder}


def parameters(side: Callable) -> list[nn.Parameter]:
    return list((side if isinstance(side, MeshDecoder) else side.decoder).parameters())


def turn(side: Callable, latent: Tensor) -> list[float]:
    """Seconds of the STEPS."""
    for parameter in parameters(side):
        parameter.grad = None
    start = time.perf_counter()
    loss = sum(mesh.square().mean() for mesh in side(latent))
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    with torch.inference_mode():
        side(latent)
    return [middle - start, end - middle, end - start, time.perf_counter() - end]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("side", ["original", "plain", "ours"])
def test_decoder(benchmark, side, batch, tmp_path):
    """pytest-benchmark's table for forward and backward; the answers are checked to be the same meshes."""
    benchmark.group = f"mesh decoder, batch {batch}, forward+backward"
    found, latent = sides(tmp_path), torch.randn(batch, FEATURES)
    benchmark.pedantic(turn, (found[side], latent), rounds=3 if batch > 1 else 20, warmup_rounds=1)
    with torch.no_grad():
        for one, other in zip(found[side](latent), found["original"](latent), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16 autocast"])
def test_ratios(capsys, tmp_path, precision):
    """Prints how many times faster than the original each is: medians over turns taken one after the other."""
    found, lines = sides(tmp_path), []
    for batch in BATCHES:
        latent, seconds = torch.randn(batch, FEATURES), {name: [] for name in found}
        for repeat in range(6 if batch > 1 else 26):
            for name, side in found.items():
                with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
                    took = turn(side, latent)
                if repeat:
                    seconds[name].append(took)
        times = {name: np.array(rows) for name, rows in seconds.items()}
        for place, step in enumerate(STEPS):
            row = [f"{name} {1000 * np.median(rows[:, place]):.1f} ms" for name, rows in times.items()]
            row += [f"original/{name} {np.median(times['original'][:, place] / times[name][:, place]):.2f}"
                    for name in ("plain", "ours")]
            lines.append(f"mesh decoder, {precision}, batch {batch}, {step}, one thread: {', '.join(row)}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert all(rows.min() > 0 for rows in times.values())


def high_water() -> float:
    """Most memory this process ever held, in MiB. (getrusage tells the parent's, where that held more.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(name: str, folder: Path, batch: int, queue: multiprocessing.Queue) -> None:
    """Peak memory in MiB beyond what stood before, of three steps; in a process of its own."""
    torch.set_num_threads(1)
    side = sides(folder)[name]
    before = high_water()
    for _ in range(3):
        turn(side, torch.randn(batch, FEATURES))
    queue.put(high_water() - before)


def test_memory(capsys, tmp_path):
    """Prints the peak memory of forward and backward at batch 32; ours is less than half the original's."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in ("original", "plain", "ours"):
        queue = context.Queue()
        process = context.Process(target=peak, args=(name, tmp_path, 32, queue))
        process.start()
        found[name] = queue.get(timeout=300)
        process.join()
    with capsys.disabled():
        sys.stdout.write("\nmesh decoder, batch 32, peak memory of forward and backward, gradients of 138 MB in it: "
                         + ", ".join(f"{name} {value:.0f} MiB" for name, value in found.items()) + "\n")
    assert 0 < found["ours"] < found["original"] / 2
