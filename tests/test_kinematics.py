"""Joints without the mesh, against the posed mesh; their Jacobian, against automatic differentiation of the posed mesh.

Of two hands: the toy model (every vertex hangs on every joint and bends with all of them, weights that do not quite add up to 1)
and the free one (fingertips rigid, so that most of the general case is skipped).
"""
import pytest
import torch
from toy_hand import F64, random_inputs, toy

from utils.hand import HandModel
from utils.kinematics import Kinematics, exp_and_left_jacobian
from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle

HANDS = {
    "toy": lambda dtype: toy(dtype, weights=toy().arrays.weights * 1.003),
    "free": lambda dtype: HandModel.load("template/free_hand_right.npz", dtype=dtype),
    "free left": lambda dtype: HandModel.load("template/free_hand_left.npz", dtype=dtype),
}


@pytest.fixture(params=HANDS)
def hand(request) -> HandModel:
    return HANDS[request.param](F64)


@pytest.mark.parametrize("dtype, bound", [(F64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("name", HANDS)
def test_joints(name, dtype, bound):
    """The 21 joints are those of HandModel.joints of the posed mesh, in both precisions."""
    hand = HANDS[name](dtype)
    rotations, shape = random_inputs(7, dtype=dtype)
    assert (Kinematics(hand).joints(rotations, shape) - hand.joints(hand(rotations, shape))).abs().max() < bound


def test_joints_at_root(hand):
    """With a root the wrist lies there, and the hand is otherwise the same."""
    rotations, shape = random_inputs(3)
    root = torch.randn(3, 3, dtype=F64)
    free, placed = Kinematics(hand).joints(rotations, shape), Kinematics(hand).joints(rotations, shape, root)
    assert torch.allclose(placed - root[:, None], free - free[:, :1], atol=1e-14)
    assert torch.allclose(placed[:, 0], root, atol=1e-15)


def _autograd(hand: HandModel, rotations: torch.Tensor, shape: torch.Tensor, root: torch.Tensor, points) -> list[torch.Tensor]:
    """Derivatives of `points` of the posed mesh, wrist at root, by left perturbation, fingers' axis-angles, root and shape."""
    fingers = axis_angle_from_matrix(rotations[1:])

    def place(turn, fingers, root, shape):
        all16 = torch.cat(((matrix_from_axis_angle(turn) @ rotations[0])[None], matrix_from_axis_angle(fingers)))
        posed = hand(all16, shape)
        return points(posed) - posed.chain[:1] + root

    return torch.autograd.functional.jacobian(place, (torch.zeros(3, dtype=F64), fingers, root, shape))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0, 3.0])
def test_jacobian(hand, scale):
    """Derivatives of the joints by rotation, fingers, root and shape equal autograd's through the mesh, near and far from 0."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, 16, 3, generator=generator, dtype=F64)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True) * scale * torch.rand(2, 16, 1, generator=generator, dtype=F64)
    rotations, (_, shape) = matrix_from_axis_angle(vectors), random_inputs(2)
    root = torch.randn(2, 3, generator=generator, dtype=F64)
    points, *ours = Kinematics(hand).jacobian(rotations, shape, root)
    for i in range(2):
        turn, fingers, by_root, by_shape = _autograd(hand, rotations[i], shape[i], root[i], hand.joints)
        theirs = torch.cat((turn, fingers.flatten(2)), 2), by_root, by_shape
        for mine, reference in zip(ours, theirs):
            assert (mine[i] - reference).abs().max() < 1e-9
    posed = hand(rotations, shape)
    assert torch.allclose(points, hand.joints(posed) - posed.chain[:, :1] + root[:, None], atol=1e-13)


def test_vertices(hand):
    """Vertices that are followed too: places and derivatives equal those of the posed mesh; all and a few alike."""
    rotations, shape = random_inputs(1)
    n = 1
    inputs = rotations[:, 0].permute(1, 2, 0), axis_angle_from_matrix(rotations[:, 1:]).permute(1, 2, 0), shape.T
    kinematics, few = Kinematics(hand, "all"), Kinematics(hand, (5, 700))
    placed, placed_few = (k.place(*inputs, by_pose=True, by_shape=True) for k in (kinematics, few))
    posed = hand(rotations, shape)
    assert torch.allclose(placed.points[21:, :, 0], posed.verts[0] - posed.chain[0, :1], atol=1e-13)
    assert torch.allclose(placed_few.points[21:], placed.points[[26, 721]], atol=1e-15)
    turn, fingers, _, by_shape = _autograd(hand, rotations[0], shape[0], torch.zeros(3, dtype=F64), lambda p: p.verts[::37])
    dense = torch.zeros(799, 16, 3, 3, n, dtype=F64)
    dense[kinematics.pairs] = placed.blocks
    assert (dense[21::37, 0, :, :, 0] - turn).abs().max() < 1e-9
    assert (dense[21::37, 1:, :, :, 0].transpose(1, 2) - fingers).abs().max() < 1e-9
    assert (placed.shapes[21::37, :, :, 0] - by_shape).abs().max() < 1e-9


def test_left_jacobian():
    """exp(a + d) = exp(J_l d) exp(a): J_l against the rotation's own derivative, across the switch to power series."""
    for length in (0.0, 1e-8, 0.0999, 0.1001, 1.0, 3.1, 6.0):
        vector = torch.tensor([0.6, -0.64, 0.48], dtype=F64) * length
        rotation, left = exp_and_left_jacobian(vector[:, None])
        assert torch.allclose(rotation[..., 0], matrix_from_axis_angle(vector), atol=1e-15)
        change = torch.autograd.functional.jacobian(matrix_from_axis_angle, vector)  # (3,3,3 numbers)
        for k in range(3):
            skew = change[..., k] @ rotation[..., 0].T
            axis = torch.stack((skew[2, 1], skew[0, 2], skew[1, 0]))
            assert (axis - left[:, k, 0]).abs().max() < 1e-12


def test_differentiable(hand):
    """Gradients flow through the joints as they do through the posed mesh."""
    rotations, shape = (x.requires_grad_() for x in random_inputs(2))
    target = torch.randn(2, 21, 3, dtype=F64)
    ours = torch.autograd.grad((Kinematics(hand).joints(rotations, shape) * target).sum(), (rotations, shape))
    theirs = torch.autograd.grad((hand.joints(hand(rotations, shape)) * target).sum(), (rotations, shape))
    tangent = [x[0] @ rotations.detach().transpose(-1, -2) for x in (ours, theirs)]  # along rotations: off them they may differ
    turning = [x - x.transpose(-1, -2) for x in tangent]
    assert (turning[0] - turning[1]).abs().max() < 1e-9
    assert (ours[1] - theirs[1]).abs().max() < 1e-12
