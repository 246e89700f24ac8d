"""src/root.py: exact without noise, equivariant, differentiable, robust; the reason of each row that cannot be solved."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.root import FAULTS, RootFit, fault_line, solve_root
from utils.camera import crop_matrix, project
from utils.rotation import matrix_from_axis_angle


def scene(seed: int, rows: int = 6, general: bool = False) -> tuple[torch.Tensor, ...]:
    """Hand-sized joints (wrist first, at the origin), a camera, the wrist's true place, confidences in (0.1, 1); float64."""
    rng = torch.Generator().manual_seed(seed)
    joints = 0.05 * torch.randn(rows, 21, 3, generator=rng, dtype=torch.float64)
    joints[:, 0] = 0
    root = torch.cat((0.2 * torch.randn(rows, 2, generator=rng, dtype=torch.float64),
                      0.4 + torch.rand(rows, 1, generator=rng, dtype=torch.float64)), 1)
    K = torch.tensor([[480.0, 0, 310], [0, 500, 250], [0, 0, 1]], dtype=torch.float64).repeat(rows, 1, 1)
    if general:
        K = K + torch.rand(rows, 3, 3, generator=rng, dtype=torch.float64) * torch.tensor([[90.0], [90.0], [0.05]])
    confidence = 0.1 + 0.9 * torch.rand(rows, 21, generator=rng, dtype=torch.float64)
    return joints, K, root, confidence


def seen(joints: torch.Tensor, K: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Pixels of the placed joints."""
    return project(joints + root[:, None], K)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), general=st.booleans(), keep=st.integers(2, 21), depth=st.sampled_from(["size", "pixels"]))
def test_exact_without_noise(seed, general, keep, depth):
    """Any camera matrix, from two keypoints up: the true place to 1e-9 m, residual to 1e-6 px."""
    joints, K, root, confidence = scene(seed, general=general)
    confidence[:, keep:] = 0
    fit = solve_root(joints, seen(joints, K, root), K, confidence, depth=depth)
    assert fit.valid.all() and (fit.root - root).abs().max() < (1e-9 if keep > 3 else 1e-7) and fit.residual_px.max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.floats(0.5, 2.0))
def test_larger_hand_stands_farther(seed, size):
    """Joints scaled by s with the same pixels give s times the root, noise or not: size is what depth is measured with."""
    joints, K, root, confidence = scene(seed)
    uv = seen(joints, K, root) + torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (6, 21, 2)))
    one, other = solve_root(joints, uv, K, confidence), solve_root(size * joints, uv, K, confidence)
    torch.testing.assert_close(other.root, size * one.root, rtol=1e-6, atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), side=st.floats(60, 500), angle=st.floats(-3, 3))
def test_pixels_of_a_crop_give_the_same_place(seed, side, angle):
    """The picture cropped anywhere and turned in its plane, K mapped alike: the same root from noisy keypoints."""
    joints, K, root, confidence = scene(seed)
    uv = seen(joints, K, root) + torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (6, 21, 2)))
    for centre in ((300.0, 200.0), (-50.0, 500.0)):
        crop = crop_matrix(torch.tensor([centre]).double(), torch.tensor([side]).double(), int(side), angle).expand(6, 3, 3)
        moved = uv @ crop[:, :2, :2].mT + crop[:, None, :2, 2]
        one, other = solve_root(joints, uv, K, confidence), solve_root(joints, moved, crop @ K, confidence)
        torch.testing.assert_close(other.root, one.root, rtol=1e-3, atol=2e-4)  # int(side): FLOOR_PX of another pixel size


def test_order_of_rows_and_joints_and_scale_of_confidence_do_not_matter():
    """Rows alone or together, joints permuted, confidences times 7: the same answer; float32 in, float32 out."""
    joints, K, root, confidence = scene(3)
    uv = seen(joints, K, root) + torch.randn(6, 21, 2, generator=torch.Generator().manual_seed(0)).double()
    fit, turn = solve_root(joints, uv, K, confidence), torch.randperm(21)
    again = solve_root(joints[:, turn], uv[:, turn], K, 7 * confidence[:, turn])
    torch.testing.assert_close(again.root, fit.root)
    torch.testing.assert_close(solve_root(joints[2:3], uv[2:3], K[2:3], confidence[2:3]).root, fit.root[2:3])
    half = solve_root(joints.float(), uv.float(), K.float(), confidence.float())
    assert half.root.dtype == torch.float32 and (half.root - fit.root).abs().max() < 1e-5


def test_depth_matches_the_spreads():
    """Without reweighting: root_z from a plain loop over the definition, the spread of x X_z - X_xy over that of the rays."""
    joints, K, root, confidence = scene(4, rows=2)
    uv = seen(joints, K, root) + torch.randn(2, 21, 2, generator=torch.Generator().manual_seed(1)).double()
    fit = solve_root(joints, uv, K, confidence, steps=0)
    for row in range(2):
        weights, spreads = confidence[row].numpy(), []
        rays = [torch.linalg.inv(K[row]).numpy() @ [*u, 1.0] for u in uv[row].numpy()]
        spans = [ray[:2] * joint[2] - joint[:2] for ray, joint in zip(rays, joints[row].numpy())]
        for points in (np.array(spans), np.array(rays)[:, :2]):
            middle = np.average(points, axis=0, weights=weights)
            spreads.append(np.average(((points - middle) ** 2).sum(1), weights=weights))
        assert fit.root[row, 2].item() == pytest.approx(np.sqrt(spreads[0] / spreads[1]), rel=1e-12)


def test_pixels_is_the_least_squares_answer():
    """depth=pixels, small noise: moving the root by a millimetre along any axis raises the mean squared distance."""
    joints, K, root, _ = scene(4)
    uv = seen(joints, K, root) + 0.02 * torch.randn(6, 21, 2, generator=torch.Generator().manual_seed(1)).double()
    fit = solve_root(joints, uv, K, torch.ones(6, 21).double(), depth="pixels")
    best = fit.residual_px.square()
    for axis in range(3):
        for sign in (-1, 1):
            moved = fit.root.clone()
            moved[:, axis] += sign * 1e-3
            energy = (seen(joints, K, moved) - uv).square().sum(-1).mean(-1)
            assert (energy > best).all()


def test_noise_moves_the_mean_as_derived():
    """4 px of noise: mean depth error by -(noise / spread)^2 / 2 of the distance; none for depth=pixels, twice it linear."""
    rows = 4000
    joints, K, root, confidence = scene(5, rows)
    clean = seen(joints, K, root)
    uv = clean + 4 * torch.randn(rows, 21, 2, generator=torch.Generator().manual_seed(2)).double()
    even = torch.ones_like(confidence)
    spread = (clean - clean.mean(1, keepdim=True)).square().sum(-1).mean(1)
    expected = -(root[:, 2] * 2 * 4**2 / spread).mean() / 2
    size, linear, pixels = ((solve_root(joints, uv, K, even, **how).root - root)[:, 2].mean() for how in (
        {}, {"depth": "pixels", "steps": 0}, {"depth": "pixels", "steps": 8}))
    assert size == pytest.approx(expected, rel=0.35) and linear == pytest.approx(2 * expected, rel=0.35)
    assert pixels.abs() < 0.3 * expected.abs()


def test_wrong_poses_move_size_least():
    """Hands turned by 0.35 rad about random axes, 8 mm of joint noise: depth error of `size` under either least squares."""
    rows = 2000
    joints, K, root, confidence = scene(10, rows)
    rng = torch.Generator().manual_seed(5)
    axis = torch.nn.functional.normalize(torch.randn(rows, 1, 3, generator=rng).double(), dim=-1)
    turned = joints @ matrix_from_axis_angle(0.35 * axis)[:, 0] + 0.008 * torch.randn(rows, 21, 3, generator=rng).double()
    uv = seen(joints, K, root)
    size, linear, pixels = ((solve_root(turned, uv, K, confidence, **how).root - root)[:, 2].abs().mean() for how in (
        {}, {"depth": "pixels", "steps": 0}, {"depth": "pixels"}))
    assert size < 0.9 * pixels and size < 0.9 * linear


def test_wrong_keypoints_hardly_move_it():
    """Four keypoints of 21 put 80 px away: the median root error stays within 3 times that of clean keypoints."""
    rows = 500
    joints, K, root, confidence = scene(6, rows)
    clean = seen(joints, K, root) + torch.randn(rows, 21, 2, generator=torch.Generator().manual_seed(3)).double()
    wrong = clean.clone()
    wrong[:, [3, 8, 12, 20]] += 80.0
    errors = [(solve_root(joints, uv, K, confidence).root - root).norm(dim=1).median() for uv in (clean, wrong)]
    assert errors[1] < 3 * errors[0] and errors[1] < 0.03


@pytest.mark.parametrize("depth", ["size", "pixels"])
def test_gradients(depth):
    """gradcheck in float64 with respect to joints, pixels, K and confidence, missing keypoints included."""
    joints, K, root, confidence = scene(7, rows=2)
    confidence[0, 4:9] = 0
    uv = seen(joints, K, root) + torch.randn(2, 21, 2, generator=torch.Generator().manual_seed(4)).double()
    inputs = tuple(x.clone().requires_grad_() for x in (joints, uv, K, confidence.clamp_min(0.2)))
    assert torch.autograd.gradcheck(lambda *x: solve_root(*x, steps=3, depth=depth).root, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("depth", ["size", "pixels"])
def test_gradients_are_finite_beside_rows_without_answer(depth):
    """Noise-free rows and every kind of unsolvable row in one batch: finite gradients of the valid rows' roots everywhere."""
    inputs = [x.clone().requires_grad_() for x in broken()]
    fit = solve_root(*inputs, depth=depth)
    fit.root[fit.valid].sum().backward()
    for value in inputs:
        assert torch.isfinite(value.grad).all()


def broken() -> list[torch.Tensor]:
    """Rows: fine · all confidences zero · one keypoint · all pixels NaN · singular K · NaN K · one point · behind · one NaN."""
    joints, K, root, confidence = scene(8, rows=9)
    uv = seen(joints, K, root)
    joints[7, 5, 2] = -3.0
    confidence[1] = 0
    confidence[2, 1:] = 0
    uv[3] = torch.nan
    K[4, 1, 1] = 0
    K[4, 1, 2] = 0
    K[5, 0, 0] = torch.nan
    uv[6] = 100.0
    uv[8, 5] = torch.nan
    return [joints, uv, K, confidence]


def test_rows_without_answer_are_marked_and_counted():
    """Each unsolvable row has its reason and a NaN root; the others, one with a NaN keypoint too, are exact; one line counts."""
    joints, uv, K, confidence = broken()
    fit = solve_root(joints, uv, K, confidence)
    assert isinstance(fit, RootFit) and fit.fault.tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 0]
    assert fit.valid.tolist() == [code == 0 for code in fit.fault.tolist()]
    assert fit.root[~fit.valid].isnan().all() and fit.residual_px[~fit.valid].isnan().all()
    assert (fit.root[[0, 8]] - scene(8, rows=9)[2][[0, 8]]).abs().max() < 1e-9
    assert fault_line(fit.fault) == (f"7 of 9 frames have no wrist position: 3 with {FAULTS[1]}, 2 with {FAULTS[2]}, "
                                     f"1 with {FAULTS[3]}, 1 with {FAULTS[4]}")
    assert fault_line(torch.zeros(4, dtype=torch.long)) == ""


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    """No rows give no roots; one row is solved."""
    joints, K, root, confidence = (x[:rows] for x in scene(9))
    assert solve_root(joints, seen(joints, K, root), K, confidence).root.shape == (rows, 3)
