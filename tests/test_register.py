"""2D-1D registration (src/register.py and its two solvers): goldens, exact data, the batch against SLSQP, and broken rows."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from register_cases import SIZE, crops
from test_silhouette import GOLDEN

from src import register_faithful, register_fast
from src.register import BLEND, KEYPOINTS, NONE, SILHOUETTE, RegisterOptions, register
from src.silhouette import extents, extents_of_masks
from utils.camera import project

CASES = ("clean_nopoly", "noise_poly", "outlier_nopoly", "outlier_poly", "lowconf_poly", "polyblend", "polyfar", "allconf_low",
         "conf_none")
BOUNDS = (0.3, 2.0)


def golden(name: str) -> dict[str, torch.Tensor | None]:
    """Arguments of `register`, but for the options."""
    def given(key: str) -> torch.Tensor | None:
        return torch.from_numpy(GOLDEN[key])[None].double() if key in GOLDEN else None

    confidence, outline = given(f"{name}.conf"), given(f"{name}.poly")
    return {"verts": given("verts"), "joints": given("joints"), "uv": given(f"{name}.uv"), "K": given("K"), "size": SIZE,
            "confidence": None if confidence is None else confidence[..., 0],
            "extents": None if outline is None else extents(outline[:, 0])}


def start(n: int) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64).expand(n, 3)


def extents_energy(c, target, t) -> np.ndarray:
    rows = zip(*(x.numpy() for x in (t, c.verts, target, c.K)))
    return np.array([register_faithful.extents_energy(*row, SIZE) for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_golden_faithful(name):
    """Every solve of the original (place 1e-5 m, energy 1e-4 relative), the blend of the two stages and its flag."""
    case, solves = golden(name), {"2D": [], "1D": []}

    def watch(stage, t, energy):
        solves[stage].append((*t, energy))

    used = torch.ones(1, 21, dtype=torch.bool) if case["confidence"] is None else case["confidence"] > 0.1
    if used.any():
        register_faithful.by_keypoints(case["joints"], case["uv"], used, case["K"], start(1), BOUNDS, watch=watch)
    if case["extents"] is not None:
        register_faithful.by_extents(case["verts"], case["extents"], case["K"], start(1), BOUNDS, SIZE, watch=watch)
    for stage, t, energy in (("2D", "t_uv", "f_uv"), ("1D", "t_poly", "f_poly")):
        found = np.array(solves[stage]).reshape(-1, 4)
        np.testing.assert_allclose(found[:, :3], GOLDEN[f"{name}.{t}"].reshape(-1, 3), atol=1e-5)
        np.testing.assert_allclose(found[:, 3], GOLDEN[f"{name}.{energy}"], rtol=1e-4, atol=1e-9)
    found = register(**case, options=RegisterOptions(solver="faithful"))
    np.testing.assert_allclose(found.translation[0].numpy(), GOLDEN[f"{name}.t_final"], atol=1e-5)
    assert found.ok.item() == GOLDEN[f"{name}.ok"]


@pytest.mark.parametrize("name", CASES)
def test_golden_fast(name):
    """The batched solver on the same cases: 2D within 0.2 mm of the original's, 1D energies no higher, the same answer chosen."""
    case = golden(name)
    found = register(**case)
    slow = register(**case, options=RegisterOptions(solver="faithful"))
    assert found.ok.item() == GOLDEN[f"{name}.ok"]
    alone = register(**{**case, "extents": None}).translation[0].numpy()
    if len(GOLDEN[f"{name}.t_uv"]):
        assert found.source == slow.source
        np.testing.assert_allclose(alone, GOLDEN[f"{name}.t_uv"][-1], atol=2e-4)
        np.testing.assert_allclose(found.translation[0].numpy(), GOLDEN[f"{name}.t_final"], atol=2.5e-3)
    if case["extents"] is not None:
        t, ok = register_fast.by_extents(case["verts"], case["extents"], case["K"], start(1), BOUNDS, SIZE)
        arrays = (t, case["verts"], case["extents"], case["K"])
        energy = register_faithful.extents_energy(*(x[0].numpy() for x in arrays), SIZE)
        assert ok.all() and energy <= GOLDEN[f"{name}.f_poly"].item()


@pytest.mark.parametrize("solver", ["fast", "faithful"])
def test_pixels_cure_outliers(solver):
    """Three gross outliers drive the algebraic residual to the nearest bound; in pixels the truth is met to a centimetre."""
    case = golden("outlier_nopoly")
    found = register(**case, options=RegisterOptions(solver=solver))
    assert found.translation[0, 2].item() == pytest.approx(0.3)
    found = register(**case, options=RegisterOptions(solver=solver, residual="pixel"))
    assert found.ok.all() and np.linalg.norm(found.translation[0].numpy() - GOLDEN["t_true"]) < 0.01


def test_outliers_in_a_batch():
    """Over 60 hands with three keypoints anywhere in the crop: mean depth error in pixels below 1.5 cm, algebraic above 3 cm."""
    c = crops(60, seed=2, masks=False)
    draw = torch.Generator().manual_seed(0)
    uv = c.uv.clone()
    for row in uv:
        row[torch.randperm(21, generator=draw)[:3]] = SIZE * torch.rand(3, 2, generator=draw).double()
    error = {r: (register(c.verts, c.joints, uv, None, c.K, SIZE, options=RegisterOptions(residual=r)).translation - c.true)[:, 2]
             for r in ("algebraic", "pixel")}
    assert error["pixel"].abs().mean() < 0.015 and error["algebraic"].abs().mean() > 0.03


@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_exact_without_noise(residual):
    """Exact keypoints, and the mesh's own extents, give the true translation to 1e-6 m in both stages, whatever the crop."""
    c = crops(50, seed=1, noise_px=0, masks=False)
    found = register(c.verts, c.joints, c.uv, None, c.K, SIZE, options=RegisterOptions(residual=residual))
    assert found.ok.all() and (found.source == KEYPOINTS).all() and found.distance.isnan().all()
    assert (found.translation - c.true).abs().max() < 1e-6
    target = extents(project(c.verts + c.true[:, None], c.K))
    nothing = torch.zeros(50, 21)
    found = register(c.verts, c.joints, c.uv, nothing, c.K, SIZE, target, options=RegisterOptions(residual=residual))
    assert not found.ok.any() and (found.source == SILHOUETTE).all() and (found.translation - c.true).abs().max() < 1e-6


@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_keypoint_energy_is_no_higher(residual, monkeypatch):
    """One round on 60 noisy hands: the batch's energy is nowhere above SLSQP's by 1e-9; 19 of 20 places agree to 1 mm."""
    monkeypatch.setattr(register_fast, "ROUNDS", 1)
    monkeypatch.setattr(register_faithful, "ROUNDS", 1)
    c = crops(60, seed=3, masks=False)
    used = torch.rand(60, 21, generator=torch.Generator().manual_seed(0)) > 0.2
    arguments = (c.joints, c.uv, used, c.K, start(60), BOUNDS, residual)
    fast, slow = register_fast.by_keypoints(*arguments)[0], register_faithful.by_keypoints(*arguments)[0]
    off = register_faithful._algebraic if residual == "algebraic" else register_faithful._pixel

    def energy(t):
        rows = zip(*(x.numpy() for x in (t, c.joints, c.uv, c.K, used)))
        return np.array([np.square(off(t, x[u], uv[u], K)[0]).mean() for t, x, uv, K, u in rows])

    assert (energy(fast) <= energy(slow) + 1e-9).all()
    assert ((fast - slow).norm(dim=1) < 1e-3).double().mean() >= 0.95  # SLSQP may stop early


def test_rounds_like_slsqp():
    """All rounds on 60 noisy hands, keypoints missing: nine of ten answers agree to 1 mm, so the same keypoints were dropped."""
    c = crops(60, seed=4, noise_px=6, masks=False)
    confidence = torch.rand(60, 21, generator=torch.Generator().manual_seed(0))
    found = {s: register(c.verts, c.joints, c.uv, confidence, c.K, SIZE, options=RegisterOptions(solver=s)).translation
             for s in ("fast", "faithful")}
    near = (found["fast"] - found["faithful"]).norm(dim=1) < 1e-3
    assert near.double().mean() >= 0.9


def test_extents_energy_is_no_higher():
    """On 60 drawn silhouettes the batch's energy is nowhere above SLSQP's, nor a wiggle away; depth to 4 mm in the median."""
    c = crops(60, seed=6)
    target, has = extents_of_masks(c.mask, SIZE)
    assert has.all()
    arguments = (c.verts, target, c.K, start(60), BOUNDS, SIZE)
    fast, slow = register_fast.by_extents(*arguments)[0], register_faithful.by_extents(*arguments)[0]
    energy = extents_energy(c, target, fast)
    assert (energy <= extents_energy(c, target, slow) + 1e-9).all()
    for axis in range(3):
        for step in (-1e-4, 1e-4):
            assert (energy <= extents_energy(c, target, fast + step * torch.eye(3).double()[axis]) + 1e-12).all()
    assert (fast - c.true)[:, 2].abs().median() < 4e-3


def test_never_above_the_start():
    """Targets of other hands, which no translation meets: the energy is no higher than at the start, depth stays in bounds."""
    c = crops(40, seed=7)
    target = extents_of_masks(c.mask, SIZE)[0].roll(1, 0) * torch.linspace(0.2, 3, 40).double()[:, None]
    found, ok = register_fast.by_extents(c.verts, target, c.K, start(40), BOUNDS, SIZE)
    assert ok.all() and (extents_energy(c, target, found) <= extents_energy(c, target, start(40))).all()
    assert (found[:, 2] >= 0.3).all() and (found[:, 2] <= 2).all()


@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_bounds(residual):
    """Hands beyond the farthest depth end exactly on it, x and y solved for that depth as SLSQP does, to 1 mm."""
    c = crops(30, seed=8, noise_px=0, masks=False)
    target, beyond = extents(project(c.verts + c.true[:, None], c.K)), c.true[:, 2] > 0.6
    found = {}
    for solver in ("fast", "faithful"):
        options = RegisterOptions(solver=solver, residual=residual, depth_bounds=(0.3, 0.5))
        found[solver] = register(c.verts, c.joints, c.uv, None, c.K, SIZE, target, options=options).translation
        assert (found[solver][:, 2] >= 0.3).all() and (found[solver][:, 2] <= 0.5).all()
    assert beyond.sum() > 10 and (found["fast"][beyond, 2] == 0.5).all()
    assert ((found["fast"] - found["faithful"])[beyond].norm(dim=1) < 1e-3).double().mean() > 0.9


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 3), scale=st.sampled_from([1e-6, 1.0, 1e6]),
       low=st.floats(-1, 0), high=st.floats(0, 1))
def test_bounded_minimum(seed, rank, scale, low, high):
    """The closed form against the conditions of a minimum with one bounded coordinate, also where the quadratic is flat."""
    draw = torch.Generator().manual_seed(seed)
    J = torch.randn(8, 6, rank, generator=draw).double() @ torch.randn(8, rank, 3, generator=draw).double()
    off = torch.randn(8, 6, generator=draw).double()
    H, g = scale * J.mT @ J, scale * (J.mT @ off[..., None])[..., 0]
    if rank == 1:  # then x and y have no minimum of their own: only bounds are promised
        g = torch.zeros_like(g)
    d = register_fast.bounded_minimum(H, g, torch.full((8,), low, dtype=H.dtype), torch.full((8,), high, dtype=H.dtype))
    assert torch.isfinite(d).all() and (d[:, 2] >= low).all() and (d[:, 2] <= high).all()
    slope = (H @ d[..., None])[..., 0] + g
    bar = 1e-6 * scale * (1 + H.abs().amax((1, 2)) / scale) * (1 + d.abs().amax(1))
    assert (slope[:, :2].abs().amax(1) < bar).all()
    inside = (d[:, 2] > low + 1e-9) & (d[:, 2] < high - 1e-9)
    upward = (slope[:, 2] > -bar) | (d[:, 2] >= high - 1e-9)  # at the upper bound the energy may fall beyond it
    downward = (slope[:, 2] < bar) | (d[:, 2] <= low + 1e-9)
    assert (upward & downward).all() and (slope[:, 2].abs() < bar)[inside].all()


@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_rows_stand_alone(residual):
    """A row's answer is the same (1e-9 m) alone, in another order, and beside rows that cannot be placed."""
    c = crops(12, seed=9)
    target, has = extents_of_masks(c.mask, SIZE)
    options = RegisterOptions(residual=residual)
    uv = c.uv.clone()
    uv[3], uv[7, 2] = torch.nan, torch.inf
    whole = register(c.verts, c.joints, uv, None, c.K, SIZE, target, has, options)
    for rows in ([5], list(range(11, -1, -1))):
        part = register(*(x[rows] for x in (c.verts, c.joints, uv)), None, c.K[rows], SIZE, target[rows], has[rows], options)
        assert torch.allclose(part.translation, whole.translation[rows], atol=1e-9, rtol=0)
        assert torch.equal(part.source, whole.source[rows]) and torch.equal(part.ok, whole.ok[rows])


@pytest.mark.parametrize("solver", ["fast", "faithful"])
def test_broken_rows(solver):
    """Keypoints, meshes, matrices and extents that are not numbers: the row is not ok, or 2D alone, and its number is finite."""
    c = crops(6, seed=10)
    target, has = extents_of_masks(c.mask, SIZE)
    fine = register(c.verts, c.joints, c.uv, None, c.K, SIZE, target, has, RegisterOptions(solver=solver))
    verts, joints, uv, K = c.verts.clone(), c.joints.clone(), c.uv.clone(), c.K.clone()
    uv[0, 4, 1], verts[1, 9], joints[2, 0], K[3, 0, 0], target[4, 3] = torch.nan, torch.inf, torch.nan, torch.inf, torch.nan
    found = register(verts, joints, uv, None, K, SIZE, target, has, RegisterOptions(solver=solver))
    assert found.ok.tolist() == [False, False, False, False, True, True] and torch.isfinite(found.translation).all()
    assert found.source[1:5].tolist() == [NONE, NONE, NONE, KEYPOINTS]
    assert torch.equal(found.translation[1:4], start(3)) and torch.equal(found.translation[5], fine.translation[5])
    if solver == "fast":
        assert found.source[0] == SILHOUETTE and (found.translation[0] - c.true[0]).norm() < 0.05


def test_a_keypoint_that_does_not_count():
    """Numbers that are none do no harm where the confidence says that the keypoint does not count."""
    c = crops(4, seed=12, noise_px=0, masks=False)
    confidence, uv = torch.ones(4, 21), c.uv.clone()
    uv[:, 3], confidence[:, 3], confidence[:, 5] = torch.nan, 0.0, torch.nan
    found = register(c.verts, c.joints, uv, confidence, c.K, SIZE)
    assert found.ok.all() and (found.translation - c.true).abs().max() < 1e-6


def test_no_keypoint_counts():
    """All confidences low: the silhouette's answer, not ok; without one the start; the original blends with the start."""
    case = golden("allconf_low")
    found = register(**case)
    assert not found.ok.any() and found.source == SILHOUETTE and found.distance.isnan().all()
    second = register_fast.by_extents(case["verts"], case["extents"], case["K"], start(1), BOUNDS, SIZE)[0]
    assert torch.equal(found.translation, second)
    assert register(**case, options=RegisterOptions(solver="faithful")).source == BLEND
    for silent in ({**case, "extents": None}, {**case, "has_extents": torch.tensor([False])}):
        found = register(**silent)
        assert not found.ok.any() and found.source == NONE and torch.equal(found.translation, start(1))
    assert register(**case, options=RegisterOptions(min_confidence=0.01)).ok.all()


def test_one_keypoint():
    """One keypoint says nothing of depth: it stays at the start's, and the joint lies on the keypoint's ray."""
    c = crops(5, seed=13, masks=False)
    confidence = torch.zeros(5, 21)
    confidence[:, 8] = 1
    found = register(c.verts, c.joints, c.uv, confidence, c.K, SIZE).translation
    assert torch.allclose(found[:, 2], torch.full((5,), 0.6).double(), atol=1e-6)
    assert (project(c.joints + found[:, None], c.K) - c.uv)[:, 8].abs().max() < 1e-6


def test_blend_is_continuous():
    """Where the silhouette's answer moves away from the 2D one, its share goes from 0 at 2 cm to 1 at 6 cm, linearly."""
    c = crops(1, seed=14, noise_px=0, masks=False)
    for gap, share, source in ((0.0, 0, KEYPOINTS), (0.019, 0, KEYPOINTS), (0.03, 0.25, BLEND), (0.05, 0.75, BLEND),
                               (0.061, 1, SILHOUETTE)):
        away = torch.tensor([0, 0, gap]).double()
        found = register(c.verts, c.joints, c.uv, None, c.K, SIZE, extents(project(c.verts + (c.true + away)[:, None], c.K)))
        assert found.source.item() == source and found.distance.item() == pytest.approx(gap, abs=1e-6)
        assert torch.allclose(found.translation, c.true + share * away, atol=1e-5)


def test_options():
    """solver none and use_silhouette false do what they say; bounds in the wrong order, and odd chances, are refused."""
    case = golden("polyfar")
    none = register(**case, options=RegisterOptions(solver="none"))
    assert not none.ok.any() and none.source == NONE and torch.equal(none.translation, start(1))
    alone = register(**case, options=RegisterOptions(use_silhouette=False))
    assert alone.source == KEYPOINTS and torch.equal(alone.translation, register(**{**case, "extents": None}).translation)
    for bounds in ((0.5, 0.3), (0.0, 1.0), (0.3, float("inf"))):
        with pytest.raises(ValidationError, match="depth_bounds"):
            RegisterOptions(depth_bounds=bounds)
    for name in ("min_confidence", "mask_threshold"):
        for value in (-0.1, 1.0, float("nan")):
            with pytest.raises(ValidationError, match=name):
                RegisterOptions(**{name: value})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_types(kind):
    """float32 in, float32 out, to 0.01 mm of float64; bfloat16 does not stop it; no rows at all give none."""
    c = crops(6, seed=15, noise_px=0, masks=False)
    whole = [x.to(kind) for x in (c.verts, c.joints, c.uv)]
    found = register(*whole, torch.ones(6, 21, dtype=kind), c.K.float(), SIZE)
    assert found.translation.dtype == torch.float32
    assert (found.translation - c.true).abs().max() < (1e-5 if kind == torch.float32 else 0.1)
    empty = register(*(x[:0] for x in whole), None, c.K[:0].float(), SIZE, torch.zeros(0, 24))
    assert empty.translation.shape == (0, 3) and empty.source.shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("residual", ["algebraic", "pixel"])
def test_gpu(residual):
    """The same answers on a GPU, to 1e-6 m."""
    c = crops(50, seed=16)
    target, has = extents_of_masks(c.mask, SIZE)
    arguments = (c.verts, c.joints, c.uv, torch.ones(50, 21), c.K, SIZE, target, has)
    options = RegisterOptions(residual=residual)
    here = register(*arguments, options)
    there = register(*(x.cuda() if torch.is_tensor(x) else x for x in arguments), options)
    assert torch.allclose(here.translation, there.translation.cpu(), atol=1e-6) and torch.equal(here.source, there.source.cpu())
