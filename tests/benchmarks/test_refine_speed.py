"""Hands per second of the solver on 2D keypoints, start to finish, against 300 Adam steps; memory against the number of hands.

    pytest -o addopts="" -s tests/benchmarks/test_refine_speed.py

1000 hands of the free hand's own poses and people, keypoints with 1.5 px of noise, starts some 11 degrees and 3 cm off, the shape
held. Opponents meet the same hands in the same process. One poses the whole mesh at every step, as the original did; the faithful
mode of `refine` gives the same numbers from the joints alone, and is timed too (on one thread: its tensors are too small for
more). Time is asserted nowhere; that the solver's energy is no higher is.
"""
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from solver_cases import free_hand, scene

from src.refine_faithful import fit_faithful
from src.solver import SolverOptions, solve
from utils.rotation import rows6d_from_matrix

HANDS = 1000
SETTINGS = {"no priors": {}, "pose prior": {"pose_prior": 1.0},
            "pose prior, stay, Huber": {"pose_prior": 0.3, "stay": 0.3, "robust": "huber"}}
MEMORY = """
import re, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from solver_cases import free_hand, scene
from src.solver import SolverOptions, solve

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

case = scene({n})
solve(free_hand(), case.seen.rows(slice(0, 32)), case.start.rows(slice(0, 32)), SolverOptions(iterations=2))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
solve(free_hand(), case.seen, case.start, SolverOptions(iterations=8))
sys.stdout.write(str(memory("VmHWM") - before))
"""


@pytest.fixture(params=[1, 4], ids=lambda n: f"{n} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_hands_per_second(threads, capsys):
    """Prints the rates and their ratios; checks that the energy without priors is no higher than Adam's on 95 % of the frames."""
    case, hand = scene(HANDS), free_hand()
    trans = case.start.root - hand.shaped(case.true.shape).rest_joints[:, 0]
    rows6d = rows6d_from_matrix(case.start.rotations)
    uv, K = case.seen.uv[:, 0], case.seen.K[:, 0]

    def adam(whole_mesh: bool):
        return fit_faithful(hand, uv, torch.ones(HANDS, 21), K, rows6d, case.true.shape, trans, whole_mesh=whole_mesh).energy

    runs = {name: lambda options=options: solve(hand, case.seen, case.start, SolverOptions(**options)).energy
            for name, options in SETTINGS.items()}
    runs["300 Adam steps, whole mesh"] = lambda: adam(True)
    if threads == 1:
        runs["300 Adam steps, joints"] = lambda: adam(False)
    solve(hand, case.seen, case.start, SolverOptions(iterations=2))  # first calls are slower
    seconds, energy = {name: [] for name in runs}, {}
    for turn in range(3):
        for name, run in runs.items():
            if turn == 0 or "Adam" not in name:
                start = time.perf_counter()
                energy[name] = run()
                seconds[name].append(time.perf_counter() - start)
    rates = {name: HANDS / min(times) for name, times in seconds.items()}
    with capsys.disabled():
        sys.stdout.write(f"\n{threads} threads, {HANDS} hands\n")
        for name, rate in rates.items():
            ratios = ", ".join(f"{rate / rates[other]:5.1f} x {other}" for other in rates if "Adam" in other)
            sys.stdout.write(f"{name:28s} {rate:6.0f} hands/s  {ratios},  energy {energy[name].mean():.2f} px^2\n")
    assert (energy["no priors"] <= energy["300 Adam steps, whole mesh"]).float().mean() >= 0.95


def test_memory(capsys):
    """Peak memory of solving 1000 and 4000 hands, beyond what was there before: bounded by the chunk, not by the hands."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak is read from /proc")
    root = Path(__file__).resolve().parent.parent.parent
    used = {}
    for n in (1000, 4000):
        script = MEMORY.format(root=str(root), tests=str(root / "tests"), n=n)
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
        used[n] = float(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory beyond the input: {used[1000]:.0f} MB for 1000 hands, {used[4000]:.0f} MB for 4000\n")
    assert used[4000] < 1.2 * used[1000] + 20
