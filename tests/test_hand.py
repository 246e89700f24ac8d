"""The hand model: the mathematics that any such model must obey. (tests/test_hand_golden.py: the originals' numbers.)"""
import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import skinning
from utils.hand import HandModel, Posed, mirror_axis_angle, mirror_points, mirror_rotations
from utils.joints import H21_FROM_T21, LEFT_TIPS, PARENTS, TIPS, reorder
from utils.rotation import matrix_from_axis_angle

sys.path.insert(0, str(Path(__file__).parent))
from toy_hand import F64, error, random_inputs, toy

FREE = Path(__file__).parent.parent / "template" / "free_hand_right.npz"


@pytest.fixture(scope="module", params=["toy", "free"])
def hand(request) -> HandModel:
    """In float64: the toy arrays, and the free hand where it has been built."""
    if request.param == "free" and not FREE.is_file():
        pytest.skip("template/free_hand_right.npz is not there")
    return toy(F64) if request.param == "toy" else HandModel.load(FREE, dtype=F64)


def test_identity_is_the_flat_hand(hand):
    """Identity rotations: the rest mesh and rest joints, which are the regressor's, for any shape."""
    _, shape = random_inputs(5)
    shaped = hand.shaped(shape)
    posed = shaped.posed(torch.eye(3, dtype=F64).expand(16, 3, 3))
    assert torch.allclose(posed.verts, shaped.rest_verts, atol=1e-12)
    assert torch.allclose(posed.chain, shaped.rest_joints, atol=1e-12)
    assert torch.allclose(hand.regress(shaped.rest_verts), shaped.rest_joints, atol=1e-12)
    template = torch.from_numpy(hand.arrays.v_template)
    direction = torch.from_numpy(hand.arrays.shapedirs)
    assert torch.allclose(shaped.rest_verts, template + torch.einsum("vcs,bs->bvc", direction, shape), atol=1e-12)


def test_global_rotation_turns_about_the_wrist(hand):
    """The wrist stays at rest_joints[0]; the global rotation turns everything else rigidly about it."""
    rotations, shape = random_inputs(4)
    shaped = hand.shaped(shape)
    wrist = shaped.rest_joints[:, :1]
    straight = rotations.clone()
    straight[:, 0] = torch.eye(3, dtype=F64)
    posed, reference = shaped.posed(rotations), shaped.posed(straight)
    assert torch.allclose(posed.chain[:, :1], wrist, atol=1e-14)
    for turned, still in zip(posed, reference):
        # 1e-7: the free hand is stored in float32, where a vertex's weights add up to 1 within 1e-7 only
        assert torch.allclose(turned, (still - wrist) @ rotations[:, 0].transpose(1, 2) + wrist, atol=1e-7)


def test_bones_keep_their_length(hand):
    """Any pose leaves the distance of each joint from its parent as at rest, and moves no joint before the turned one."""
    rotations, shape = random_inputs(6)
    shaped = hand.shaped(shape)
    chain, rest = shaped.posed(rotations).chain, shaped.rest_joints
    parents = list(PARENTS[1:])
    lengths = [(x[:, 1:] - x[:, parents]).norm(dim=-1) for x in (chain, rest)]
    assert torch.allclose(*lengths, atol=1e-12)
    for joint in range(16):
        other = rotations.clone()
        other[:, joint] = random_inputs(6, seed=9)[0][:, joint]
        moved = (shaped.posed(other).chain - chain).norm(dim=-1).amax(0) > 1e-9
        descendants = {j for j in range(16) for a in ancestors(j) if a == joint}
        assert set(moved.nonzero().flatten().tolist()) == descendants


def ancestors(joint: int) -> list[int]:
    """All joints between this one and the wrist, without itself."""
    out = []
    while (joint := PARENTS[joint]) >= 0:
        out.append(joint)
    return out


def test_formula_written_out(hand):
    """Against the textbook: 4x4 transforms one joint after the other, every vertex a weighted sum (spec 3.1); to 1e-12."""
    rotations, shape = random_inputs()
    a = hand.arrays
    verts = a.v_template + a.shapedirs @ shape.numpy()
    joints = a.J_regressor @ verts
    turns = rotations.numpy()
    verts = verts + a.posedirs @ (turns[1:] - np.eye(3)).ravel()
    world = []
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = turns[j], joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    moved = np.zeros_like(verts)
    for j in range(16):
        moved += a.weights[:, j:j + 1] * ((verts - joints[j]) @ world[j][:3, :3].T + world[j][:3, 3])
    posed = hand(rotations, shape)
    assert error(posed.verts, moved) < 1e-12 and error(posed.chain, np.stack([w[:3, 3] for w in world])) < 1e-12


@pytest.mark.parametrize("rotation_axes", [(), (1,), (4,), (3, 4), (3, 1), (0,), (40,), (2, 40)])
@pytest.mark.parametrize("shape_axes", [(), (1,), (4,), (3, 1)])
def test_leading_axes_broadcast(rotation_axes, shape_axes):
    """Any leading axes of shape and rotations, broadcast like arithmetic, give what each row gives alone."""
    try:
        batch = torch.broadcast_shapes(rotation_axes, shape_axes)
    except RuntimeError:
        batch = None
    hand = toy(F64)
    rotations, shape = random_inputs(*rotation_axes)[0], random_inputs(*shape_axes, seed=3)[1]
    if batch is None:
        with pytest.raises((RuntimeError, TypeError)):
            hand(rotations, shape)
        return
    posed = hand(rotations, shape)
    assert posed.verts.shape == (*batch, 778, 3) and posed.chain.shape == (*batch, 16, 3)
    assert hand.joints(posed).shape == (*batch, 21, 3) and posed.verts.is_contiguous()
    flat_r, flat_s = rotations.expand(*batch, 16, 3, 3).reshape(-1, 16, 3, 3), shape.expand(*batch, 10).reshape(-1, 10)
    for i in list(range(len(flat_r)))[::7]:
        alone = hand(flat_r[i], flat_s[i])
        assert torch.allclose(posed.verts.view(-1, 778, 3)[i], alone.verts, atol=1e-13)
        assert torch.allclose(posed.chain.view(-1, 16, 3)[i], alone.chain, atol=1e-13)


@pytest.mark.parametrize("count", [1, 9, 64, 65, 130])
def test_pieces_equal_the_plain_formula(count, monkeypatch):
    """The piecewise CPU path and the plain formula: equal values and gradients, for every number of rows in the last piece."""
    hand = toy(F64)
    results = []
    for small in (0, 10**9):
        monkeypatch.setattr(skinning, "_SMALL", small)
        rotations, shape = (x.requires_grad_() for x in random_inputs(count))
        verts, chain = hand(rotations, shape)
        weights = torch.randn(verts.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        grads = torch.autograd.grad((verts * weights).sum() + chain.square().sum(), (rotations, shape))
        with torch.no_grad():
            assert torch.equal(hand(rotations, shape).verts, verts)
        results.append((verts, *grads))
    for pieces, plain in zip(*results):
        assert torch.allclose(pieces, plain, atol=1e-11, rtol=1e-10)


def test_only_one_input_needs_a_gradient():
    """Gradients to shape alone (calibration) and rotations alone (refinement) are those of both together."""
    hand = toy(F64)
    rotations, shape = (x.requires_grad_() for x in random_inputs(20))
    both = torch.autograd.grad(hand(rotations, shape).verts.square().sum(), (rotations, shape))
    assert torch.allclose(torch.autograd.grad(hand(rotations, shape.detach()).verts.square().sum(), rotations)[0], both[0])
    assert torch.allclose(torch.autograd.grad(hand(rotations.detach(), shape).verts.square().sum(), shape)[0], both[1])


def test_gradcheck(hand):
    """Analytic gradients of vertices and joints to pose vector and shape equal finite differences."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(778 + 16, 3, generator=generator, dtype=F64)

    def energy(pose, shape):
        posed = hand(matrix_from_axis_angle(pose), shape)
        return (torch.cat((posed.verts, posed.chain), -2) * probe).sum()

    pose = 0.5 * torch.randn(16, 3, generator=generator, dtype=F64)
    shape = torch.randn(10, generator=generator, dtype=F64)
    assert torch.autograd.gradcheck(energy, (pose.requires_grad_(), shape.requires_grad_()))


def test_second_derivatives_of_the_piecewise_path():
    """deform by pieces is twice differentiable, as second-order refinement needs it."""
    generator = torch.Generator().manual_seed(0)
    coefficients, basis, transforms, weights = (torch.randn(*size, generator=generator, dtype=F64)
                                                for size in ((10, 2), (2, 12), (10, 3, 4, 2), (2, 4)))
    run = lambda c, t: skinning.deform(c, basis, t, weights)  # noqa: E731
    inputs = (coefficients.requires_grad_(), transforms.requires_grad_())
    assert torch.autograd.gradcheck(run, inputs) and torch.autograd.gradgradcheck(run, inputs)


def test_per_sample_jacobian_by_vmap():
    """torch.func works through one hand: the Jacobian to the shape is the posed shape basis, the same by vmap and by loop."""
    hand = toy(F64)
    rotations, shape = random_inputs(3)
    verts = lambda r, s: hand(r, s).chain  # noqa: E731
    together = torch.func.vmap(torch.func.jacrev(verts, argnums=1))(rotations, shape)
    alone = torch.autograd.functional.jacobian(lambda s: verts(rotations[1], s), shape[1])
    assert torch.allclose(together[1], alone, atol=1e-12)


def test_pca_and_axis_angle(hand):
    """Coefficients -> axis-angle -> coefficients; fewer coefficients are the first ones; pose vectors agree however given."""
    coeffs = torch.randn(3, 45, generator=torch.Generator().manual_seed(0), dtype=F64)
    for mean in (True, False):
        assert torch.allclose(hand.pca_from_axis_angle(hand.axis_angle_from_pca(coeffs, mean), mean), coeffs, atol=1e-6)
    few = torch.cat((coeffs[:, :6], torch.zeros(3, 39, dtype=F64)), 1)
    assert torch.allclose(hand.axis_angle_from_pca(coeffs[:, :6]), hand.axis_angle_from_pca(few), atol=1e-14)
    assert torch.equal(hand.axis_angle_from_pca(coeffs[:, :0]), hand.hands_mean.expand(3, 45))
    root = torch.tensor([0.1, 2.0, -0.4], dtype=F64).expand(3, 3)
    by_pca = hand.rotations_from_pose(torch.cat((root, coeffs), 1), pca=True, flat_mean=False)
    absolute = hand.axis_angle_from_pca(coeffs)
    assert torch.allclose(by_pca, hand.rotations_from_pose(torch.cat((root, absolute), 1), False, flat_mean=True), atol=1e-12)
    relative = absolute - hand.hands_mean
    assert torch.allclose(by_pca, hand.rotations_from_pose(torch.cat((root, relative), 1), False, flat_mean=False), atol=1e-12)


def test_joint_conventions(hand):
    """Tips are the named vertices, chain and regressed differ in nothing else, orders are permutations of each other."""
    posed = hand(*random_inputs(2))
    for name, ids in TIPS.items():
        joints = hand.joints(posed, name)
        assert torch.equal(joints[:, 4::4], posed.verts[:, ids])
        assert torch.equal(reorder(joints, "H21", "T21"), hand.joints(posed, name, order="H21"))
        assert torch.equal(reorder(hand.joints(posed, name, order="H21"), "T21", "H21"), joints)
    assert torch.equal(hand.joints(posed, order="M16"), posed.chain)
    assert torch.equal(reorder(hand.joints(posed), "M16", "T21"), posed.chain)
    regressed = hand.joints(posed, kind="regressed")
    assert torch.equal(regressed[:, 4::4], hand.joints(posed)[:, 4::4])
    assert torch.allclose(reorder(regressed, "M16", "T21"), hand.J_regressor @ posed.verts)
    for wrong in ({"tips": "openpose"}, {"kind": "marker"}, {"order": "T20"}):
        with pytest.raises((KeyError, TypeError)):  # TypeError where signatures are checked (tests/conftest.py)
            hand.joints(posed, **wrong)


def test_reorder_refuses():
    """Unknown orders, wrong counts, and fingertips out of nothing are errors."""
    joints = np.arange(63.0).reshape(21, 3)
    assert np.array_equal(reorder(joints, "H21", "T21"), joints[list(H21_FROM_T21)])
    for arguments in (("T20", "T21"), ("T21", "M16"), ("M16", "OpenPose")):
        with pytest.raises(ValueError):
            reorder(joints, *arguments)
    with pytest.raises(ValueError, match="H21 has 21 joints, found 16"):
        reorder(joints[:16], "T21", "H21")


def test_mirror(hand):
    """The mirrored model, posed by mirrored rotations, is the posed model's mirror image, vertex by vertex, joint by joint."""
    rotations, shape = random_inputs(4)
    left = hand.mirrored()
    right_posed, left_posed = hand(rotations, shape), left(mirror_rotations(rotations), shape)
    for ours, theirs in zip(left_posed, right_posed):
        assert torch.allclose(ours, mirror_points(theirs), atol=1e-12)
    for kind in ("chain", "regressed"):
        for tips in TIPS:
            image = mirror_points(hand.joints(right_posed, tips, kind))
            assert torch.allclose(left.joints(left_posed, tips, kind), image, atol=1e-12)
    coeffs = torch.randn(4, 45, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.allclose(left.axis_angle_from_pca(coeffs), mirror_axis_angle(hand.axis_angle_from_pca(coeffs)), atol=1e-12)
    assert {hand.side, left.side} == {"left", "right"}
    back = left.mirrored()
    assert back.sha256 == hand.sha256 and torch.equal(back(rotations, shape).verts, right_posed.verts)


def test_mirrored_faces_keep_looking_outward(hand):
    """Mirroring turns the winding round: the signed volume of a closed-over mesh keeps its sign."""
    left = hand.mirrored()
    volumes = []
    for model in (hand, left):
        corners = torch.from_numpy(model.arrays.v_template)[model.faces]
        volumes.append(torch.linalg.det(corners).sum().item() / 6)
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-9)


def test_mirror_helpers_agree():
    """Mirrored axis-angle is the log of the mirrored matrix, triple by triple; mirroring twice is nothing."""
    pose = torch.randn(5, 48, generator=torch.Generator().manual_seed(0), dtype=F64)
    matrices = matrix_from_axis_angle(pose.unflatten(-1, (16, 3)))
    mirrored = matrix_from_axis_angle(mirror_axis_angle(pose).unflatten(-1, (16, 3)))
    assert torch.allclose(mirrored, mirror_rotations(matrices), atol=1e-14)
    assert torch.equal(mirror_axis_angle(mirror_axis_angle(pose)), pose)
    assert torch.equal(mirror_rotations(mirror_rotations(matrices)), matrices)
    points = torch.randn(7, 3)
    x = matrices[0, 0] @ points[0].double()
    assert torch.allclose(mirror_rotations(matrices[0, 0]) @ mirror_points(points[0].double()), mirror_points(x), atol=1e-14)


def test_left_tips():
    """A real left hand takes manopth's 445 for the middle finger; a mirrored right keeps the right hand's vertices."""
    left = toy(side="left")
    posed = left(*random_inputs(dtype=torch.float32))
    assert torch.equal(left.joints(posed)[12], posed.verts[445]) and left.tips is LEFT_TIPS
    assert toy().mirrored().tips is TIPS and toy(side="left").mirrored().tips is LEFT_TIPS


@pytest.mark.skipif(not FREE.is_file(), reason="template/free_hand_right.npz is not there")
def test_free_left_hand_mirrors_the_right():
    """The two files of template/ are mirror images: equal hash after mirroring, equal tips."""
    left = HandModel.load(FREE.with_name("free_hand_left.npz"))
    assert left.side == "left" and left.mirrored().sha256 == HandModel.load(FREE).sha256 and left.tips is TIPS


def test_precision():
    """.double() and .to(float64) are exact, .half() and .bfloat16() leave float32; inputs of another precision are refused."""
    exact = toy(F64)
    assert all(torch.equal(a, b) for a, b in zip(toy().double().buffers(), exact.buffers()))
    assert torch.equal(toy().to(F64).weights, exact.weights) and toy().double().float().weights.dtype == torch.float32
    method = torch.nn.Sequential(torch.nn.Linear(2, 2), toy())
    for cast in ("half", "bfloat16"):
        hand = getattr(copy.deepcopy(method), cast)()[1]
        assert hand.weights.dtype == torch.float32 and torch.equal(hand.weights, toy().weights)
    with pytest.raises(TypeError, match="rotations are torch.float64, the hand model is torch.float32"):
        toy()(random_inputs()[0], torch.zeros(10))
    with pytest.raises(TypeError, match="float32 or float64"):
        toy(torch.float16)
    for rotations, shape in ((torch.eye(3), torch.zeros(10)), (torch.eye(3).expand(16, 3, 3), torch.zeros(9))):
        with pytest.raises((ValueError, TypeError), match="expected|Expected"):
            toy()(rotations, shape)
    with pytest.raises(ValueError, match=r"shape: expected \(\.\.\., 10\), found \(2, 9\)"):
        toy().require(torch.zeros(2, 9), "shape", (10,))


def test_autocast_leaves_the_hand_alone():
    """Inside bf16 autocast, and for bf16 inputs, the hand is computed in float32; gradients flow back in bf16's own type."""
    hand = toy()
    rotations, shape = random_inputs(12, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        posed = hand(rotations, shape)
        joints = hand.joints(posed, kind="regressed")
    assert torch.equal(posed.verts, hand(rotations, shape).verts) and joints.dtype == torch.float32
    half = shape.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        hand(rotations, half).verts.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and torch.isfinite(half.grad).all()


def test_a_checkpoint_contains_no_hand():
    """No parameters and nothing in state_dict, so that weights can be passed on without MANO in them; deepcopy works."""
    hand = toy()
    assert not hand.state_dict() and not list(hand.parameters())
    twin = copy.deepcopy(hand)
    inputs = random_inputs(2, dtype=torch.float32)
    assert torch.equal(twin(*inputs).verts, hand(*inputs).verts) and twin.sha256 == hand.sha256


def test_moved():
    """Posed.moved adds the translation to vertices and joints alike."""
    posed = Posed(torch.zeros(2, 778, 3), torch.zeros(2, 16, 3)).moved(torch.tensor([[1.0, 2, 3], [0, 0, 0]]))
    assert posed.verts[0, 5].tolist() == posed.chain[0, 7].tolist() == [1, 2, 3] and not posed.verts[1].any()


def test_with_tips():
    """The same hand under another set of fingertips: default joints are those of the named set, the model itself is unchanged."""
    hand = HandModel.load(FREE)
    other, posed = hand.with_tips("ho3d"), hand(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10))
    assert torch.equal(other.joints(posed), hand.joints(posed, "ho3d"))
    assert not torch.equal(hand.joints(posed), hand.joints(posed, "ho3d"))
    assert torch.equal(other.in_float64().joints(posed), other.joints(posed)) and other.sha256 == hand.sha256
