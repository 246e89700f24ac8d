"""Shared losses: against the originals' numbers, a plain per-face loop, torch's own ranking loss, and mathematics."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.losses import labelled, length, mean_abs, mean_known, rank_accuracy, ranking_loss, surface_losses
from utils.rotation import matrix_from_axis_angle

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from fill import uniform
from toy_mano import toy_mano

FACES = torch.from_numpy(toy_mano()["f"].astype(np.int64))


def mesh(name: str) -> torch.Tensor:
    return torch.from_numpy(uniform(f"input.{name}", (2, 778, 3), -1, 1)).double()


def test_mesh_losses_golden():
    """The three mesh terms of the original program on formula-made meshes (golden_aux: loss.*)."""
    pred, true = mesh("mesh_a"), mesh("mesh_b")
    normal, edge = surface_losses(pred, true, FACES)
    assert mean_abs(pred, true).mean() == pytest.approx(0.6677313, rel=1e-6)
    assert normal.mean() == pytest.approx(0.49846467, rel=1e-6)
    assert edge.mean() == pytest.approx(0.5690185, rel=1e-6)


def test_ranking_golden():
    """Loss at margin 1 and accuracy of the original program on eight samples with one tie (golden_aux: rank.*)."""
    confidence = torch.from_numpy(uniform("input.conf", (8,), -2, 2))
    error = torch.from_numpy(uniform("input.l1", (8,), 0, 1))
    error[3] = error[5]
    assert ranking_loss(confidence, error).mean() == pytest.approx(1.0735215, rel=1e-6)
    assert rank_accuracy(confidence, error) == pytest.approx(0.5714286, rel=1e-6)


def test_mesh_losses_against_a_loop():
    """Each sample's own term, against numpy over one face and one edge at a time."""
    pred, true = mesh("mesh_a"), mesh("mesh_b")
    faces = FACES[::37]
    normal_term, edge_term = surface_losses(pred, true, faces)
    for row in range(2):
        cosines, differences = [], []
        for a, b, c in faces.tolist():
            p, t = pred[row].numpy(), true[row].numpy()
            normal = np.cross(t[b] - t[a], t[c] - t[a])
            for i, j in ((a, b), (a, c), (b, c)):
                cosines.append(abs((p[j] - p[i]) @ normal) / np.linalg.norm(p[j] - p[i]) / np.linalg.norm(normal))
                differences.append(abs(np.linalg.norm(p[j] - p[i]) - np.linalg.norm(t[j] - t[i])))
        assert normal_term[row] == pytest.approx(np.mean(cosines), rel=1e-9)
        assert edge_term[row] == pytest.approx(np.mean(differences), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_mesh_losses_are_zero_for_the_truth_and_ignore_common_motion(seed):
    """A perfect prediction costs nothing; turning and moving both meshes leaves the edge and normal terms alone."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(2, 778, 3, generator=generator, dtype=torch.float64)
    pred = true + 0.1 * torch.randn(2, 778, 3, generator=generator, dtype=torch.float64)
    turn = matrix_from_axis_angle(3 * torch.rand(3, generator=generator, dtype=torch.float64))
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    normal, edge = surface_losses(true, true, FACES)
    assert mean_abs(true, true).max() == 0 and edge.max() == 0 and normal.max() < 1e-9
    before = surface_losses(pred, true, FACES)
    after = surface_losses(pred @ turn.T + shift, true @ turn.T + shift, FACES)
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31 - 1), st.floats(0, 2))
def test_ranking_against_torch(count, seed, margin):
    """Mean over rows, and its gradient, against torch's loss over torch.combinations; errors are rounded, so ties occur."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randn(count, generator=generator, dtype=torch.float64).requires_grad_()
    error = (4 * torch.rand(count, generator=generator, dtype=torch.float64)).round()
    i, j = torch.combinations(torch.arange(count)).T
    sign = torch.sign(error[j] - error[i])
    expected = torch.nn.functional.margin_ranking_loss(confidence[i], confidence[j], sign, margin=margin)
    found = ranking_loss(confidence, error, margin).mean()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, confidence)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    right = (confidence[i] - confidence[j]) * sign > 0
    torch.testing.assert_close(rank_accuracy(confidence, error).double(), right.double().mean())


def test_ranking_of_one_sample_is_zero():
    """A batch of one has no pair: loss 0 with a gradient of 0, not NaN."""
    confidence = torch.tensor([0.3], requires_grad=True)
    loss = ranking_loss(confidence, torch.tensor([0.5]))
    loss.mean().backward()
    assert loss.tolist() == [0.0] and confidence.grad.tolist() == [0.0]


def test_ranking_leaves_unlabelled_rows_out():
    """With rows marked unlabelled, the mean over the batch is the loss of the labelled rows alone."""
    generator = torch.Generator().manual_seed(1)
    confidence, error = torch.randn(6, generator=generator), torch.rand(6, generator=generator)
    has = torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(ranking_loss(confidence, error, has=has).mean(), ranking_loss(confidence[has], error[has]).mean())
    torch.testing.assert_close(rank_accuracy(confidence, error, has), rank_accuracy(confidence[has], error[has]))
    assert labelled(torch.ones(6), has).tolist() == has.float().tolist()


def test_length_has_a_gradient_at_zero():
    """The norm of a collapsed edge differentiates to zero, where the plain square root gives NaN."""
    x = torch.tensor([[0.0, 0, 0], [3, 0, 4]], requires_grad=True)
    assert length(x).tolist() == [pytest.approx(0, abs=1e-11), 5.0]
    length(x).sum().backward()
    assert x.grad.tolist() == [[0, 0, 0], [pytest.approx(0.6), 0, pytest.approx(0.8)]]


def test_mean_over_known_joints():
    """mean_known leaves out points of confidence zero, whatever they hold; zero where none is known; all without confidences."""
    values = torch.tensor([[1.0, 2.0, torch.nan], [4.0, 5.0, 9.0], [torch.inf, 7.0, 8.0]])
    confidence = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert mean_known(values, confidence).tolist() == [1.5, 6.0, 0.0]
    assert mean_known(values[1:2], None).tolist() == [6.0]
