"""`score` of whole official lists from json files, all included, on 2 cores: FreiHAND in 20 s, HO3D v2 in 90 s and 4 GB."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.official_protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"freihand": (20.0, 4.0), "ho3d_v2": (90.0, 4.0)}  # s, GB
SAMPLES = 96  # different ones, written again and again: the reader does not know
CHILD = """
import os, resource, sys, time
started = time.perf_counter()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from pathlib import Path
from utils.official_score import score
folder = Path(sys.argv[2])
text = score(sys.argv[1], folder / "pred.json", folder, out=folder / "out")
sys.stdout.write(f"{time.perf_counter() - started} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}\\n{text}")
"""


def _write(file, points: np.ndarray, count: int) -> None:
    """One list of `count` entries, as json.dump writes it."""
    entries = [json.dumps(entry) for entry in points.tolist()]
    file.write("[")
    for i in range(count):
        file.write((", " if i else "") + entries[i % len(entries)])
    file.write("]")


def write_files(folder: Path, name: str) -> int:
    """Prediction and labels of the protocol's size, errors of about 10 mm; bytes in all."""
    protocol, rng = PROTOCOLS[name], np.random.default_rng(0)
    place = rng.normal(0, 0.05, (SAMPLES, 1, 3)) + [0, 0, 0.6]
    true = {key: (place + rng.normal(0, 0.04, (SAMPLES, k, 3))) * protocol.axes for key, k in (("xyz", 21), ("verts", 778))}
    pred = {key: value + rng.normal(0, 0.006, value.shape) for key, value in true.items()}
    for key, value in true.items():
        with open(folder / f"evaluation_{key}.json", "w") as file:
            _write(file, value, protocol.count)
    with open(folder / "pred.json", "w") as file:
        file.write("[")
        _write(file, pred["xyz"], protocol.count)
        file.write(", ")
        _write(file, pred["verts"], protocol.count)
        file.write("]")
    return sum(path.stat().st_size for path in folder.glob("*.json"))


@pytest.mark.parametrize("name", LIMITS)
def test_score_of_a_whole_list(name, tmp_path):
    """Seconds and peak memory of a child process that reads and scores everything, start of Python included."""
    size, (limit_s, limit_gb) = write_files(tmp_path, name), LIMITS[name]
    command = [sys.executable, "-c", CHILD, name, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    head, text = done.stdout.split("\n", 1)
    seconds, gigabytes = map(float, head.split())
    assert f"all of {PROTOCOLS[name].title}'s {PROTOCOLS[name].count:,} samples" in text
    sys.stdout.write(f"\nscore {name}, {PROTOCOLS[name].count} samples, {size / 1e9:.2f} GB of json, 2 cores: {seconds:.1f} s, "
                     f"peak {gigabytes:.2f} GB (wanted: at most {limit_s:g} s and {limit_gb:g} GB)\n")
    assert gigabytes < limit_gb  # seconds are for the machine at hand to judge
