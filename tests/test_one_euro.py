"""One-Euro filter: the paper's arithmetic, constant signals, changes of axes, half turns, and what smoothness costs in lag."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.one_euro import OneEuro, OneEuroOptions
from utils.rotation import geodesic, matrix_from_axis_angle, rotation_about_z

DT = 1 / 30


def filtered(signal: torch.Tensor, kind: str = "points", seconds: float | list[float] = DT, **options) -> torch.Tensor:
    """The whole track (t,k,...) through a new filter."""
    one = OneEuro(OneEuroOptions(**options), kind)
    steps = seconds if isinstance(seconds, list) else [seconds] * len(signal)
    return torch.stack([one(value, step) for value, step in zip(signal, steps)])


def wobbling(seed: int, frames: int = 40, k: int = 3) -> torch.Tensor:
    """Random rotations (frames,k,3,3) that turn on from frame to frame, with noise."""
    generator = torch.Generator().manual_seed(seed)
    speed = torch.randn(k, 3, generator=generator, dtype=torch.float64) * 0.1
    noise = torch.randn(frames, k, 3, generator=generator, dtype=torch.float64) * 0.05
    turns = matrix_from_axis_angle(speed + noise)
    track = [turns[0]]
    for turn in turns[1:]:
        track.append(track[-1] @ turn)
    return torch.stack(track)


def test_the_papers_arithmetic():
    """A single coordinate goes through algorithm 1 of Casiez et al., written out here in plain numbers."""
    generator = np.random.default_rng(0)
    signal, steps = generator.normal(size=50).cumsum(), generator.uniform(0.01, 0.1, 50)
    expected, slow, speed = [], None, 0.0
    for x, te in zip(signal, steps):
        def alpha(cutoff, te=te):
            return 1 / (1 + 1 / (2 * math.pi * cutoff) / te)
        if slow is not None:
            speed = alpha(1.3) * ((x - slow) / te) + (1 - alpha(1.3)) * speed
            a = alpha(0.8 + 0.4 * abs(speed))
            slow = a * x + (1 - a) * slow
        else:
            slow = x
        expected.append(slow)
    got = filtered(torch.from_numpy(signal)[:, None, None], seconds=steps.tolist(), min_cutoff=0.8, beta=0.4, d_cutoff=1.3)
    np.testing.assert_allclose(got[:, 0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["points", "rotations"])
def test_constant_stays(kind):
    """What does not change comes back unchanged, to the last bits, at any setting."""
    value = wobbling(1)[7] if kind == "rotations" else torch.randn(5, 3, dtype=torch.float64)
    got = filtered(value.expand(30, *value.shape), kind, min_cutoff=0.1, beta=2.0)
    torch.testing.assert_close(got, value.expand_as(got), atol=1e-14, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_other_axes_same_motion(seed):
    """Turning a track and filtering it is filtering and then turning: points, and rotations from both sides; shifts as well."""
    generator = torch.Generator().manual_seed(seed)
    turn = matrix_from_axis_angle(torch.randn(3, generator=generator, dtype=torch.float64))
    points = torch.randn(40, 4, 3, generator=generator, dtype=torch.float64).cumsum(0) * 0.02
    for moved, back in ((points @ turn.T, lambda x: x @ turn.T), (points + 7, lambda x: x + 7)):
        torch.testing.assert_close(filtered(moved), back(filtered(points)), atol=1e-12, rtol=0)
    track = wobbling(seed)
    smooth = filtered(track, "rotations")
    torch.testing.assert_close(filtered(turn @ track, "rotations"), turn @ smooth, atol=1e-11, rtol=0)
    torch.testing.assert_close(filtered(track @ turn, "rotations"), smooth @ turn, atol=1e-11, rtol=0)


def test_rotations_stay_rotations():
    """Thousands of float32 rotations: every answer is orthonormal with determinant one, to float64."""
    track = torch.cat([wobbling(seed, 200, 2) for seed in range(10)]).float()
    got = filtered(track, "rotations")
    eye = torch.eye(3, dtype=torch.float64).expand_as(got)
    torch.testing.assert_close(got @ got.mT, eye, atol=1e-14, rtol=0)
    assert torch.linalg.det(got).min() > 0.999


def test_turning_on_and_on():
    """A hand that spins at constant speed, through many half turns, is followed at one constant angle behind."""
    angle = torch.arange(400, dtype=torch.float64) * 0.15
    track = rotation_about_z(angle)[:, None]
    behind = geodesic(filtered(track, "rotations", min_cutoff=2.0, beta=0.5), track)[100:, 0]
    assert behind.std() < 1e-6 and 0 < behind.mean() < 0.15


def lag_and_jitter(**options) -> tuple[float, float]:
    """Seconds behind a ramp of 1 per second, and the share of a still hand's noise acceleration that is left."""
    ramp = torch.arange(600, dtype=torch.float64)[:, None, None] * DT
    behind = float((ramp - filtered(ramp, **options))[-1])
    noise = torch.randn(3000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    smooth = filtered(noise, **options)
    return behind, float(smooth.diff(n=2, dim=0).abs().mean() / noise.diff(n=2, dim=0).abs().mean())


def test_smoothness_costs_lag_and_speed_buys_it_back():
    """A lower cut-off trembles less and lags more; beta takes the lag from a moving hand and leaves a still one almost smooth."""
    cutoffs = [lag_and_jitter(min_cutoff=c, beta=0.0) for c in (4.0, 1.0, 0.25)]
    lags, jitters = zip(*cutoffs)
    assert lags[0] < lags[1] < lags[2] and jitters[0] > jitters[1] > jitters[2]
    np.testing.assert_allclose(lags, [1 / (2 * math.pi * c) for c in (4.0, 1.0, 0.25)], rtol=1e-3)
    quick = lag_and_jitter(min_cutoff=0.25, beta=2.0)
    assert quick[0] < lags[2] / 5 and quick[1] < jitters[1]


def test_a_gap_counts_as_the_time_it_was():
    """After a long pause the new value is trusted; two steps in no time are refused."""
    one = OneEuro(OneEuroOptions(min_cutoff=1.0, beta=0.0))
    one(torch.zeros(1, 1), DT)
    near, far = one(torch.ones(1, 1), DT).item(), None
    one = OneEuro(OneEuroOptions(min_cutoff=1.0, beta=0.0))
    one(torch.zeros(1, 1), DT)
    far = one(torch.ones(1, 1), 30.0).item()
    assert near < 0.2 and far > 0.99
    with pytest.raises(ValueError, match="above 0"):
        one(torch.ones(1, 1), 0.0)
