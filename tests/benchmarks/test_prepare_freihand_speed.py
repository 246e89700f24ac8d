"""Speed of `prepare freihand`: lists, 224x224 JPEG and masks in, labels and crops out, by number of processes.

    pytest tests/benchmarks/test_prepare_freihand_speed.py --benchmark-enable

Pictures are camera-like in what JPEG sees: grain over soft shapes, 15 kB. Lists are written with as many digits as the real ones.
The rates are printed, not asserted: how busy the machine is decides them. Wanted: 500 pictures/s on four cores.
"""
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.freihand import Options, prepare

sys.path.insert(0, str(Path(__file__).parent.parent))
from freihand_cases import SIZE, free_hand, sample_lists, silhouette, write_list

HANDS = {"right": free_hand()}
CORES = len(os.sched_getaffinity(0))
SAMPLES = 2000  # in four versions


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 training samples, 8,000 pictures of one content; vertices and all, 100 MB of json."""
    root = tmp_path_factory.mktemp("speed") / "tree"
    (root / "training" / "rgb").mkdir(parents=True)
    (root / "training" / "mask").mkdir()
    lists = sample_lists(HANDS["right"], SAMPLES, 0)
    for name, values in lists.items():
        write_list(root / f"training_{name}.json", values)
    draw = np.random.default_rng(0)
    soft = cv2.resize(draw.uniform(0, 255, (8, 8, 3)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(soft + draw.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    points = lists["verts"][0] @ lists["K"][0].T
    mask = cv2.merge([silhouette(points[:, :2] / points[:, 2:], HANDS["right"].faces.numpy())] * 3)
    for folder, image, count in (("rgb", picture, 4 * SAMPLES), ("mask", mask, SAMPLES)):
        jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 92))[1].tobytes()
        for i in range(count):
            (root / "training" / folder / f"{i:08d}.jpg").write_bytes(jpeg)
    return root


@pytest.mark.parametrize("workers,masks", [(1, True), (2, True), (4, True), (4, False)])
def test_prepare(tree: Path, tmp_path: Path, benchmark, workers: int, masks: bool):
    """Pictures per second from the tree on disk to crops, masks and labels, lists and process start included."""
    if workers > CORES:
        pytest.skip(f"{CORES} cores")
    folders = iter(range(9))

    def run() -> int:
        options = Options(root=str(tree), prepared=str(tmp_path / str(next(folders))), masks=masks)
        return prepare(options, HANDS, workers).counts["kept"]

    kept = benchmark.pedantic(run, rounds=2)
    rate = kept / benchmark.stats.stats.min
    benchmark.extra_info["frames_per_s"] = round(rate)
    sys.stderr.write(f"\nprepare freihand, {workers} processes, masks {masks}: {rate:.0f} pictures/s\n")
    assert kept == 4 * SAMPLES
