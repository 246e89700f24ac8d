"""Jitter and size of a track: accelerations that are known in closed form, gaps, and lengths that no pose changes."""
from pathlib import Path

import numpy as np
import pytest
import torch

from src.jitter import bone_lengths_mm, hand_lengths_mm, jitter, spread_mm
from utils.hand import HandModel
from utils.rotation import matrix_from_axis_angle

HAND = HandModel.load(Path(__file__).resolve().parent.parent / "template" / "free_hand_right.npz")


def test_free_fall():
    """Joints that fall with 9.81 m/s2 at 25 frames per second: that acceleration, and 9.81 / 625 metres per frame squared."""
    t = np.arange(30) / 25
    joints = np.random.default_rng(0).normal(size=(1, 21, 3)) + (t * 0.3 + 4.905 * t**2)[:, None, None] * [0, 1, 0]
    found = jitter(joints, np.arange(30), 25)
    assert found["triples"] == 28
    np.testing.assert_allclose([found["m_per_s2"], found["mm_per_frame2"]], [9.81, 9810 / 625], rtol=1e-9)


def test_error_leaves_true_motion_out():
    """The error of the truth itself is none; of the truth with an alternating shift of 1 mm it is 4 mm per frame squared."""
    true = np.random.default_rng(1).normal(size=(20, 21, 3)).cumsum(0)
    shaken = true + 0.001 * (-1.0) ** np.arange(20)[:, None, None] * [1, 0, 0]
    assert jitter(true, np.arange(20), 30, true)["error_mm_per_frame2"] == 0
    np.testing.assert_allclose(jitter(shaken, np.arange(20), 30, true)["error_mm_per_frame2"], 4, rtol=1e-9)


def test_frames_that_are_missing_are_not_neighbours():
    """A steady hand with gaps has no jitter, though differences across a gap would; too few frames say nothing."""
    frames = np.array([0, 1, 2, 5, 6, 7, 9])
    found = jitter(frames[:, None, None] * np.ones((1, 21, 3)), frames, 30)
    assert found["triples"] == 2 and found["mm_per_frame2"] < 1e-9
    assert jitter(np.zeros((2, 21, 3)), np.arange(2), 30)["mm_per_frame2"] is None


def test_length_of_a_hand():
    """Flat mean hand: the length is that of its own bones; the shape changes it, turning the whole hand does not."""
    flat = torch.eye(3).expand(1, 16, 3, 3).clone()
    shapes = torch.tensor([[0.0] * 10, [1.0] + [0.0] * 9])
    lengths = hand_lengths_mm(HAND, shapes.numpy())
    flat[:, 0] = matrix_from_axis_angle(torch.tensor([0.3, 1.0, -2.0]))
    turned = bone_lengths_mm(HAND.joints(HAND(flat, shapes)).numpy())
    np.testing.assert_allclose(turned, lengths, rtol=1e-5)
    assert 150 < lengths[0] < 220 and abs(lengths[1] - lengths[0]) > 3
    assert spread_mm(np.array([180.0, 180.0])) == {"mean_mm": 180, "sd_mm": 0, "range_mm": 0}
    assert spread_mm(lengths)["sd_mm"] == pytest.approx(abs(lengths[1] - lengths[0]) / 2)
