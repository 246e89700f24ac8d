"""Rotations: round trips, orthonormality, scipy's answers, the goldens of the originals, and finite gradients everywhere."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from utils import rotation as rot

GOLDEN = Path(__file__).parent / "goldens" / "toy_mano_aux.npz"
EYE = torch.eye(3, dtype=torch.float64)
vectors = arrays(np.float64, 3, elements=st.floats(-8, 8)).map(torch.from_numpy)
sixes = arrays(np.float64, 6, elements=st.floats(-3, 3)).map(torch.from_numpy)
axes = vectors.filter(lambda v: v.norm() > 0.1).map(lambda v: v / v.norm())


def is_rotation(matrix: torch.Tensor, tolerance: float = 1e-12) -> bool:
    """Orthonormal with determinant one."""
    close = (matrix @ matrix.transpose(-1, -2) - EYE.to(matrix)).abs().max() < tolerance
    return bool(close and (torch.linalg.det(matrix) - 1).abs().max() < tolerance)


@given(vectors)
def test_exp_is_a_rotation_and_scipys(vector):
    """exp of any vector, longer than pi too, is orthonormal and equals scipy's."""
    matrix = rot.matrix_from_axis_angle(vector)
    assert is_rotation(matrix)
    assert np.allclose(matrix.numpy(), Rotation.from_rotvec(vector.numpy()).as_matrix(), atol=1e-12)


@given(vectors)
def test_log_inverts_exp_with_least_angle(vector):
    """exp(log(R)) = R and |log(R)| <= pi, whatever vector R came from."""
    matrix = rot.matrix_from_axis_angle(vector)
    back = rot.axis_angle_from_matrix(matrix)
    assert back.norm() <= math.pi + 1e-12
    assert torch.allclose(rot.matrix_from_axis_angle(back), matrix, atol=1e-12)


@given(axes, st.floats(0, math.pi - 1e-4))
def test_axis_angle_round_trip_below_pi(axis, angle):
    """log(exp(v)) = v for every angle below pi, down to zero."""
    assert torch.allclose(rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(axis * angle)), axis * angle, atol=1e-9)


@given(axes)
def test_half_turns(axis):
    """At exactly pi the matrix 2 n n^T - I has log +pi n or -pi n, and geodesic distance pi from the identity."""
    matrix = 2 * torch.outer(axis, axis) - EYE
    back = rot.axis_angle_from_matrix(matrix)
    assert min((back - math.pi * axis).abs().max(), (back + math.pi * axis).abs().max()) < 1e-7
    assert abs(rot.geodesic(EYE, matrix) - math.pi) < 1e-7


@given(vectors)
def test_quaternion_round_trip(vector):
    """matrix -> quaternion -> matrix, unit length, w >= 0, scipy's up to sign; and axis-angle -> quaternion agrees."""
    matrix = rot.matrix_from_axis_angle(vector)
    quaternion = rot.quaternion_from_matrix(matrix)
    assert quaternion[0] >= 0 and abs(quaternion.norm() - 1) < 1e-12
    assert torch.allclose(rot.matrix_from_quaternion(-3 * quaternion), matrix, atol=1e-12)
    x, y, z, w = Rotation.from_matrix(matrix.numpy()).as_quat()
    assert np.isclose(abs(quaternion.numpy() @ (w, x, y, z)), 1, atol=1e-12)
    assert torch.allclose(rot.matrix_from_quaternion(rot.quaternion_from_axis_angle(vector)), matrix, atol=1e-12)


@given(sixes)
def test_rows6d_give_rotations(d6):
    """Gram-Schmidt of any two independent rows is a rotation whose first row has the direction given."""
    if torch.linalg.cross(d6[:3], d6[3:]).norm() < 1e-3:
        return
    matrix = rot.matrix_from_rows6d(d6)
    assert is_rotation(matrix, 1e-10)
    assert torch.allclose(matrix[0], d6[:3] / d6[:3].norm(), atol=1e-12)
    assert matrix[1] @ d6[3:] > 0 and abs(matrix[2] @ d6[3:]) < 1e-9


@given(vectors)
def test_rows6d_round_trip(vector):
    """matrix -> first two rows -> matrix."""
    matrix = rot.matrix_from_axis_angle(vector)
    assert torch.equal(rot.rows6d_from_matrix(matrix), torch.cat((matrix[0], matrix[1])))
    assert torch.allclose(rot.matrix_from_rows6d(rot.rows6d_from_matrix(matrix)), matrix, atol=1e-12)


@given(vectors, vectors)
def test_geodesic_is_the_relative_angle(first, second):
    """Distance = |log(A^T B)|, symmetric, and unchanged when both are turned."""
    a, b = rot.matrix_from_axis_angle(torch.stack((first, second)))
    distance = rot.geodesic(a, b)
    assert abs(distance - rot.axis_angle_from_matrix(a.T @ b).norm()) < 1e-7
    assert abs(distance - rot.geodesic(b, a)) < 1e-12
    assert abs(distance - rot.geodesic(b @ a, b @ b)) < 1e-7


@given(st.floats(-7, 7))
def test_rotation_about_z(angle):
    """R_z is exp(angle z) and turns x towards y."""
    angle = torch.tensor(angle, dtype=torch.float64)
    assert torch.allclose(rot.rotation_about_z(angle), rot.matrix_from_axis_angle(torch.tensor([0, 0, 1.0]).double() * angle))
    assert torch.allclose(rot.rotation_about_z(torch.tensor(math.pi / 2)) @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]),
                          atol=1e-6)


HARD = [(0, 0, 0), (1e-30, 0, 0), (1e-9, -1e-9, 0), (1e-3, 0, 0), (0.001000001, 0, 0), (math.pi, 0, 0), (0, math.pi, 0),
        (0, 0, -math.pi), (math.pi - 1e-9, 0, 0), (0, math.pi + 1e-9, 0), (math.pi / math.sqrt(2), math.pi / math.sqrt(2), 0),
        (2 * math.pi, 0, 0), (0, 3 * math.pi, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vector", HARD)
def test_gradients_are_finite_at_the_hard_places(vector, dtype):
    """Every map has a finite value and a finite, not exploding gradient at the identity, at pi, beside it and at whole turns."""
    vector = torch.tensor(vector, dtype=dtype, requires_grad=True)
    matrix = rot.matrix_from_axis_angle(vector)
    outs = [matrix, rot.axis_angle_from_matrix(matrix), rot.axis_angle_from_matrix_seed(matrix),
            rot.quaternion_from_matrix(matrix), rot.quaternion_from_axis_angle(vector),
            rot.matrix_from_rows6d(rot.rows6d_from_matrix(matrix)),
            rot.geodesic(matrix, torch.eye(3, dtype=dtype)), rot.matrix_from_quaternion(rot.quaternion_from_matrix(matrix))]
    for out in outs:
        weights = torch.linspace(-1, 1.3, out.numel(), dtype=dtype).view(out.shape)
        (grad,) = torch.autograd.grad((out * weights).sum(), vector, retain_graph=True)
        assert torch.isfinite(out).all() and torch.isfinite(grad).all() and grad.abs().max() < 100


def test_gradient_at_the_identity_is_right():
    """d exp at 0 are the three generators; d (log o exp) at 0 is the identity: zeroed gradients would pass the finite test."""
    zero = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(rot.matrix_from_axis_angle, zero)
    x = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    assert torch.allclose(jacobian @ x, torch.tensor([[0, -0.5, -0.2], [0.5, 0, -0.3], [0.2, 0.3, 0]]).double())
    log_exp = torch.autograd.functional.jacobian(lambda v: rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(v)), zero)
    assert torch.allclose(log_exp, EYE)


def test_gradcheck():
    """Analytic gradients equal finite differences, on both sides of the small-angle switch and near pi."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=-1)
    vectors = axis * torch.tensor([5e-4, 2e-3, 0.5, 1.5, 3.0, 3.1], dtype=torch.float64)[:, None]
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(rot.matrix_from_axis_angle, vectors)
    assert torch.autograd.gradcheck(lambda v: rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(v)), vectors)
    d6 = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rot.matrix_from_rows6d, d6)
    quaternion = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rot.matrix_from_quaternion, quaternion)


def test_parallel_rows_give_zeros_and_zero_gradient():
    """Degenerate 6D input: zeros where there is no direction, as the originals have it, and no infinite gradient."""
    d6 = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], requires_grad=True)
    matrix = rot.matrix_from_rows6d(d6)
    assert matrix[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]] and not matrix[2].any()
    matrix.sum().backward()
    assert torch.isfinite(d6.grad).all() and d6.grad.abs().max() < 10


def test_goldens_of_the_original():
    """golden_aux rot.*: 6D -> matrix -> axis-angle (row 1 degenerate, angles beyond pi), axis-angle -> matrix -> 6D, to 1e-12."""
    golden = {key[4:]: torch.from_numpy(value) for key, value in np.load(GOLDEN).items() if key.startswith("rot.")}
    assert torch.allclose(rot.matrix_from_rows6d(golden["d6"]), golden["matrix"], atol=1e-12)
    assert torch.allclose(rot.axis_angle_from_matrix_seed(golden["matrix"]), golden["axis_angle"], atol=1e-12)
    assert torch.allclose(rot.matrix_from_axis_angle(golden["aa"]), golden["aa_matrix"], atol=1e-12)
    assert torch.allclose(rot.rows6d_from_matrix(rot.matrix_from_axis_angle(golden["aa"])), golden["aa_d6"], atol=1e-12)
    assert golden["axis_angle"].norm(dim=-1).max() > math.pi  # so the sign rule of the original was exercised
    proper = [i for i in range(16) if i != 1]
    ours = rot.axis_angle_from_matrix(golden["matrix"])
    assert ours.norm(dim=-1).max() <= math.pi + 1e-12
    assert torch.allclose(rot.matrix_from_axis_angle(ours)[proper], golden["matrix"][proper], atol=1e-12)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), max_size=3))
def test_leading_axes(lead):
    """Every map takes any leading axes, also none and empty ones, and treats rows alone."""
    vectors = torch.randn(*lead, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = rot.matrix_from_axis_angle(vectors)
    assert matrix.shape == (*lead, 3, 3)
    assert rot.axis_angle_from_matrix(matrix).shape == (*lead, 3) == rot.axis_angle_from_matrix_seed(matrix).shape
    assert rot.quaternion_from_matrix(matrix).shape == (*lead, 4) and rot.geodesic(matrix, matrix).shape == tuple(lead)
    assert rot.matrix_from_rows6d(rot.rows6d_from_matrix(matrix)).shape == (*lead, 3, 3)
    flat = rot.matrix_from_axis_angle(vectors.reshape(-1, 3)).view(*lead, 3, 3)
    assert torch.allclose(flat, matrix, atol=1e-15)


def test_autocast_and_half_inputs_change_nothing():
    """Inside bf16 autocast the maps answer in float32, digit for digit; bf16 inputs are raised first."""
    vectors = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    plain = rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(vectors))
    with torch.autocast("cpu", torch.bfloat16):
        inside = rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(vectors))
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)
    assert rot.matrix_from_rows6d(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.float32
