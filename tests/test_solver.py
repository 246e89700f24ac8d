"""The batched solver on hands whose truth is known: keypoints, views, depth, 3D targets, robust loss, priors, rows that fail."""
from dataclasses import replace

import pytest
import torch
from solver_cases import error_mm, free_hand, joints_of, scene

from src.refine_faithful import fit_faithful
from src.solver import HandState, Observations, SolverOptions, solve
from src.solver_pose import FREE, Model
from src.solver_terms import terms_of
from utils.camera import project
from utils.rotation import geodesic, matrix_from_axis_angle, rows6d_from_matrix

F64 = torch.float64


def test_clean_keypoints():
    """Keypoints without noise are met to a hundredth of a pixel; every frame converges; the shape is held."""
    case = scene(40, noise_px=0.0)
    solved = solve(free_hand(), case.seen, case.start, SolverOptions(iterations=100, tolerance=1e-4))
    assert solved.converged.all() and solved.energy.median() < 1e-4 and solved.energy.max() < 0.05
    assert torch.equal(solved.state.shape, case.start.shape) and solved.shape is None and solved.shape_cov is None
    uv = project(joints_of(solved.state), case.seen.K[:, 0])
    assert torch.allclose((uv - case.seen.uv[:, 0]).square().mean((1, 2)), solved.energy, atol=1e-3)


def test_not_worse_than_adam():
    """Without priors, the energy is no higher than that of 300 Adam steps from the same start (specs: idhandmesh 6.4)."""
    case = scene(60, seed=2, spread=1.5)
    hand, uv, K = free_hand(), case.seen.uv[:, 0], case.seen.K[:, 0]
    wrist = hand.shaped(case.true.shape).rest_joints[:, 0]
    adam = fit_faithful(hand, uv, torch.ones(60, 21), K, rows6d_from_matrix(case.start.rotations), case.true.shape,
                        case.start.root - wrist)
    solved = solve(hand, case.seen, case.start, SolverOptions())
    assert (solved.energy <= adam.energy).float().mean() >= 0.95
    assert torch.allclose(solved.start_energy, adam.start_energy, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"pose_prior": 1.0, "robust": "huber"}, {"stay": 1.0}], ids=str)
def test_chunks(options):
    """The answer is that of all frames at once, whatever the chunk: 7 or 1000 at a time, or a frame by itself."""
    case = scene(60, seed=3)
    whole = solve(free_hand(), case.seen, case.start, SolverOptions(chunk=1000, **options))
    pieces = solve(free_hand(), case.seen, case.start, SolverOptions(chunk=7, **options))
    one = solve(free_hand(), case.seen.rows(slice(41, 42)), case.start.rows(slice(41, 42)), SolverOptions(**options))
    for name in ("rotations", "root"):
        assert (getattr(whole.state, name) - getattr(pieces.state, name)).abs().max() < 1e-5
        assert (getattr(whole.state, name)[41] - getattr(one.state, name)[0]).abs().max() < 1e-5


def test_rows_that_fail():
    """NaN starts, starts behind the camera, no keypoint, broken keypoints or cameras: they keep their start, the others go on."""
    case = scene(16, seed=4)
    uv, weight, K = case.seen.uv.clone(), torch.ones(16, 1, 21), case.seen.K.clone()
    rotations, root = case.start.rotations.clone(), case.start.root.clone()
    rotations[0], root[1], root[2, 2], weight[3], uv[4, 0, 7], K[5] = torch.nan, torch.nan, -0.5, 0.0, torch.nan, 0.0
    K[6], root[7, 2] = torch.inf, 0.0
    weight[8, 0, :5], uv[8, 0, :5] = 0.0, torch.nan  # some keypoints missing: no failure
    weight[9, 0, 20] = torch.nan  # nor is a confidence that is none
    start = HandState(rotations, root, case.start.shape)
    seen = replace(case.seen, uv=uv, uv_weight=weight, K=K)
    solved = solve(free_hand(), seen, start, SolverOptions(pose_prior=0.1))
    assert solved.converged.tolist() == [False] * 8 + [True] * 8
    for name in ("rotations", "root", "shape"):
        assert torch.equal(getattr(solved.state, name)[:8].nan_to_num(7), getattr(start, name)[:8].nan_to_num(7))
        assert torch.isfinite(getattr(solved.state, name)[8:]).all()
    assert torch.isfinite(solved.energy[8:]).all() and (solved.energy < solved.start_energy)[8:].all()
    alone = solve(free_hand(), seen.rows(slice(8, 16)), start.rows(slice(8, 16)), SolverOptions(pose_prior=0.1))
    assert torch.equal(alone.state.rotations, solved.state.rotations[8:])


@pytest.mark.parametrize("share", ["each", "person"])
def test_rows_that_fail_with_free_shape(share):
    """The same where the shape is free: a broken frame has no say in its person's shape; a person with none has the prior's."""
    case = scene(12, seed=5)
    person = torch.tensor([0] * 5 + [1] * 5 + [2] * 2) if share == "person" else None
    weight, root = torch.ones(12, 1, 21), case.start.root.clone()
    root[0], root[5], weight[10:] = torch.nan, torch.nan, 0.0
    start, seen = replace(case.start, root=root), replace(case.seen, uv_weight=weight)
    options = SolverOptions(pose_prior=1.0)
    solved = solve(free_hand(), seen, start, options, free_shape=share, person=person)
    good = [*range(1, 5), *range(6, 10)]
    assert torch.nonzero(solved.converged).flatten().tolist() == good
    assert torch.isfinite(solved.shape).all() and torch.isfinite(solved.shape_cov).all()
    assert torch.allclose(solved.shape_cov[-1], torch.eye(10), atol=1e-6)
    alone = solve(free_hand(), seen.rows(torch.tensor(good)), start.rows(torch.tensor(good)), options, free_shape=share,
                  person=person[good] if share == "person" else None)
    assert torch.allclose(alone.state.shape, solved.state.shape[good], atol=1e-4)


@pytest.mark.parametrize("robust", ["huber", "cauchy"])
def test_robust(robust):
    """A keypoint that is 150 px off spoils a plain fit, and hardly one with a robust loss."""
    case = scene(40, seed=6)
    uv = case.seen.uv.clone()
    uv[torch.arange(40), 0, torch.arange(40) % 21] += 150.0
    seen = replace(case.seen, uv=uv)
    errors = {}
    for kind in ("none", robust):
        solved = solve(free_hand(), seen, case.start, SolverOptions(robust=kind, pose_prior=1.0, robust_scale=2.0))
        errors[kind] = (project(joints_of(solved.state), seen.K[:, 0]) - project(case.joints, seen.K[:, 0])).norm(dim=-1).median()
    assert errors[robust] < 3.0 < 3 * errors[robust] < errors["none"]


def test_confidence():
    """A keypoint of little confidence moves the hand as little as one with a large standard deviation."""
    case = scene(10, seed=7)
    uv = case.seen.uv.clone()
    uv[:, :, 8] += 60.0
    weight = torch.ones(10, 1, 21)
    weight[:, :, 8] = 1e-3
    solved = solve(free_hand(), replace(case.seen, uv=uv, uv_weight=weight), case.start, SolverOptions(pose_prior=1.0))
    moved = (project(joints_of(solved.state), case.seen.K[:, 0]) - uv[:, 0]).norm(dim=-1)
    assert moved[:, 8].median() > 50 and moved[:, :8].median() < 5
    quarter = solve(free_hand(), replace(case.seen, uv_weight=torch.full((10, 1, 21), 0.25)), case.start, SolverOptions(stay=1.0))
    twice = solve(free_hand(), replace(case.seen, sigma_px=2 * case.seen.sigma_px), case.start, SolverOptions(stay=1.0))
    assert torch.allclose(quarter.state.rotations, twice.state.rotations, atol=1e-4)


def test_priors():
    """Where keypoints say next to nothing, the pose prior leads to the hand's mean pose, and `stay` leaves the start as it is."""
    case = scene(8, seed=8)
    faint = replace(case.seen, sigma_px=1e4)
    mean = matrix_from_axis_angle(free_hand().hands_mean.view(15, 3))
    prior = solve(free_hand(), faint, case.start, SolverOptions(pose_prior=1.0, tolerance=1e-6))
    assert geodesic(prior.state.rotations[:, 1:], mean).max() < 0.02
    stay = solve(free_hand(), faint, case.start, SolverOptions(stay=1.0, tolerance=1e-6))
    assert geodesic(stay.state.rotations, case.start.rotations).max() < 0.02
    assert stay.converged.all()


def test_views_and_depth():
    """The position is known to a centimetre from one camera, to a millimetre with a second one across, or with depths."""
    case = scene(30, seed=9, noise_px=0.7)
    turn = matrix_from_axis_angle(torch.tensor([0.0, 1.57, 0.0]))
    second = torch.cat((turn, torch.tensor([[-0.7], [0.0], [0.7]])), 1)
    cameras = torch.stack((torch.eye(3, 4), second)).expand(30, 2, 3, 4)
    K = case.seen.K.expand(30, 2, 3, 3)
    world = case.joints @ turn.T + second[:, 3]
    generator = torch.Generator().manual_seed(0)
    uv = torch.stack((project(case.joints, K[:, 0]), project(world, K[:, 1])), 1)
    uv = uv + 0.7 * torch.randn(uv.shape, generator=generator)
    depth = case.joints[:, None, :, 2] + 0.002 * torch.randn(30, 1, 21, generator=generator)
    options, errors = SolverOptions(pose_prior=1.0), {}
    both = replace(case.seen, uv=uv, K=K, camera_from_world=cameras)
    with_depth = replace(case.seen, depth=depth, sigma_depth_m=0.002)
    only_depth = replace(with_depth, uv_weight=torch.where(torch.arange(21) < 2, 1.0, 0.0).expand(30, 1, 21))
    for name, seen in {"one": case.seen, "two": both, "depth": with_depth, "little": only_depth}.items():
        solved = solve(free_hand(), seen, case.start, options)
        assert solved.converged.all()
        errors[name] = 1000 * (solved.state.root - case.true.root).norm(dim=1).median()
    assert errors["two"] < 1.5 and errors["depth"] < 1.5 and errors["one"] > 2 * errors["two"]
    assert errors["little"] < 10


@pytest.mark.parametrize("targets", ["points", "verts"])
def test_3d_targets(targets):
    """Joints or vertices in 3D with a free shape: they are met, and a missing one (weight 0, NaN) does no harm."""
    case = scene(12, seed=10)
    start = replace(case.start, shape=torch.zeros(12, 10))
    seen = Observations(points=case.joints.clone(), point_weight=torch.ones(12, 21), sigma_point_m=1e-3)
    seen.points[:, 3], seen.point_weight[:, 3] = torch.nan, 0.0
    if targets == "verts":
        seen = Observations(verts=case.verts, sigma_vert_m=1e-3)
    solved = solve(free_hand(), seen, start, SolverOptions(), free_shape="each")
    assert solved.converged.all() and error_mm(solved.state, case).median() < {"points": 1.0, "verts": 0.1}[targets]
    assert solved.energy.median() < 0.3  # mm^2


@pytest.mark.parametrize("robust", ["none", "huber", "cauchy"])
def test_gradient(robust):
    """The normal equations' right-hand side is half the objective's gradient, all of its terms together (autograd, float64)."""
    case = scene(3, seed=11, dtype=F64, noise_px=6.0)
    seen = replace(case.seen, sigma_px=2.0, depth=case.joints[:, None, :, 2] + 0.01, points=case.joints + 0.01,
                   verts=case.verts - 0.01, uv_weight=torch.linspace(0, 1, 21, dtype=F64).expand(3, 1, 21))
    model = Model(free_hand(F64), SolverOptions(robust=robust, pose_prior=0.7, stay=0.3), "all", True)
    terms = terms_of(model, seen, case.true, torch.ones(3, 10), 2 * torch.eye(10, dtype=F64).expand(3, 10, 10))
    start = terms_of(model, seen, case.start).start
    step = torch.zeros(3, FREE, dtype=F64, requires_grad=True)
    gradient, = torch.autograd.grad(terms.objective(start.moved(step)).sum(), step)
    ours = terms.normal(start)[:, :FREE, FREE]
    assert (ours - gradient / 2).abs().max() < 1e-8 * gradient.abs().max()


def test_each_is_a_person_of_one_frame():
    """A shape of each frame's own is what persons of one frame have: the same posterior from two ways to compute it."""
    case = scene(6, seed=12, dtype=F64)
    seen = replace(case.seen, depth=case.joints[:, None, :, 2], sigma_depth_m=0.003)
    options = SolverOptions(pose_prior=1.0, tolerance=1e-9, iterations=100)
    start = replace(case.start, shape=torch.zeros(6, 10, dtype=F64))
    mean = 0.3 * torch.ones(6, 10, dtype=F64)
    cov = 0.5 * torch.eye(10, dtype=F64).expand(6, 10, 10)
    prior = {"shape_mean": mean, "shape_cov": cov}
    each = solve(free_hand(F64), seen, start, options, free_shape="each", **prior)
    person = solve(free_hand(F64), seen, start, options, free_shape="person", person=torch.arange(6), **prior)
    assert torch.allclose(each.shape, person.shape, atol=1e-3) and torch.allclose(each.shape_cov, person.shape_cov, atol=1e-3)


def test_person():
    """One shape of many frames: nothing pulls at it at the end (autograd), it is nearer the truth than the frames' own shapes,
    every row has it, and chunks and the order of the rows do not matter."""
    shape = torch.randn(3, 10, generator=torch.Generator().manual_seed(1), dtype=F64)
    person = torch.arange(3).repeat(8)
    case = scene(24, seed=13, dtype=F64, shape=shape[person])
    seen = replace(case.seen, depth=case.joints[:, None, :, 2], sigma_depth_m=0.003)
    start = replace(case.start, shape=torch.zeros(24, 10, dtype=F64))
    options, hand = SolverOptions(pose_prior=1.0, tolerance=1e-9, iterations=100), free_hand(F64)
    solved = solve(hand, seen, start, options, free_shape="person", person=person)
    assert torch.equal(solved.state.shape, solved.shape[person])
    terms = terms_of(Model(hand, options, (), True), seen, solved.state)
    step = torch.zeros(24, FREE, dtype=F64, requires_grad=True)
    slope, = torch.autograd.grad(terms.objective(terms.start.moved(step)).sum(), step)
    pull = torch.zeros(3, 10, dtype=F64).index_add(0, person, slope[:, 51:]) + 2 * solved.shape
    assert (pull @ solved.shape_cov @ pull.T).diagonal().max() < 1e-3  # squared standard deviations still to go, times four
    each = solve(hand, seen, start, options, free_shape="each")
    assert (solved.shape - shape).abs().mean() < 0.8 * (each.shape - shape[person]).abs().mean()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    again = solve(hand, seen.rows(order), start.rows(order), options.model_copy(update={"chunk": 5}), free_shape="person",
                  person=person[order])
    assert torch.allclose(again.shape, solved.shape, atol=1e-4)


def test_posterior_is_calibrated():
    """The truth lies where the shape's covariance says: squared distances of 60 people, in its units, average ten."""
    person = torch.arange(60).repeat_interleave(4)
    shape = torch.randn(60, 10, generator=torch.Generator().manual_seed(3))
    case = scene(240, seed=14, shape=shape[person])
    generator = torch.Generator().manual_seed(4)
    depth = case.joints[:, None, :, 2] + 0.003 * torch.randn(240, 1, 21, generator=generator)
    seen = replace(case.seen, depth=depth, sigma_depth_m=0.003)
    solved = solve(free_hand(), seen, replace(case.start, shape=torch.zeros(240, 10)), SolverOptions(pose_prior=1.0),
                   free_shape="person", person=person)
    away = (solved.shape - shape).double()
    squared = (away[:, None] @ torch.linalg.inv(solved.shape_cov.double()) @ away[:, :, None]).flatten()
    assert 8.0 < squared.mean() < 12.5
    assert solved.shape_cov.diagonal(dim1=1, dim2=2)[:, 0].max() < 0.05  # the size is known: depth was measured
