"""Speed of `prepare`: 640x480 JPEG in, crop out, by number of processes; and of the reader that feeds training.

    pytest tests/benchmarks/test_prepare_speed.py --benchmark-enable

Pictures are camera-like in what JPEG sees: grain over soft shapes, 72 kB. The rates are printed, not asserted: how busy the
machine is decides them. Wanted: 300 frames/s on four cores.
"""
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options, open_reader, prepare

sys.path.insert(0, str(Path(__file__).parent.parent))
from dex_ycb_cases import toy_hand, write_tree

HANDS = {"right": toy_hand()}
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 people x 2 sequences x 8 cameras x 25 frames: 3,200 pictures of one content."""
    root = write_tree(tmp_path_factory.mktemp("speed") / "tree", HANDS, people=8, sequences=2, cameras=8, frames=25, width=640,
                      height=480, lefts=False)
    draw = np.random.default_rng(0)
    soft = cv2.resize(draw.uniform(0, 255, (12, 16, 3)).astype(np.float32), (640, 480), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(soft + draw.normal(0, 4, (480, 640, 3)), 0, 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 92))[1].tobytes()
    for path in root.rglob("color_*.jpg"):
        path.write_bytes(jpeg)
    return root


@pytest.mark.parametrize("workers,pixels", [(1, None), (2, None), (4, None), (4, 112)])
def test_prepare(tree: Path, tmp_path: Path, benchmark, workers: int, pixels: int | None):
    """Frames per second from the tree on disk to crops and index, process start included."""
    if workers > CORES:
        pytest.skip(f"{CORES} cores")
    folders = iter(range(9))

    def run() -> int:
        options = Options(root=str(tree), prepared=str(tmp_path / str(next(folders))), stored={"pixels": pixels})
        return prepare(options, HANDS, workers).counts["kept"]

    kept = benchmark.pedantic(run, rounds=2)
    rate = kept / benchmark.stats.stats.min
    benchmark.extra_info["frames_per_s"] = round(rate)
    sys.stderr.write(f"\nprepare, {workers} processes, stored {pixels or 'at native size'}: {rate:.0f} frames/s\n")
    assert kept == 3200


def test_reader(tree: Path, tmp_path: Path):
    """Milliseconds of one thread for a batch of 64 of the quickstart's size, by stage."""
    options = Options(root=str(tree), prepared=str(tmp_path), setup="s0", stored={"factor": 2.25, "pixels": 112})
    prepare(options, HANDS, min(CORES, 4))
    augment = AugmentOptions(rotate=30, scale=0.15, shift=0.06, probability=0.8, brightness=48, contrast=0.4, saturation=0.6,
                             hue=40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for colour in ("hsv", "linear"):
            reader = open_reader(options, CropOptions(pixels=64, factor=1.3), augment.model_copy(update={"colour": colour}),
                                 split="train", train=True, seed=0, hands=HANDS)
            spent = {"read": 1e9, "collate": 1e9, "batch": 1e9}
            for turn in range(8):
                marks = [time.perf_counter()]
                samples = [reader[(turn, i)] for i in range(64 * turn, 64 * turn + 64)]
                marks.append(time.perf_counter())
                raw = default_collate(samples)
                marks.append(time.perf_counter())
                reader.batch(raw)
                marks.append(time.perf_counter())
                spent = {name: min(least, 1e3 * (b - a)) for (name, least), a, b in zip(spent.items(), marks, marks[1:])}
            sys.stderr.write(f"\nreader, batch of 64 at 64 px, colour {colour}, one thread: " +
                             ", ".join(f"{name} {ms:.1f} ms" for name, ms in spent.items()) + "\n")
    finally:
        torch.set_num_threads(threads)
