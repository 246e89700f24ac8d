"""utils/metrics.py and utils/bootstrap.py: goldens, invariances, brute force, coverage of the intervals."""
import numpy as np
import pytest
from eval_cases import golden_hands, golden_numbers, rodrigues
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from utils import metrics
from utils.bootstrap import intervals, paired_difference


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What the official programs gave."""
    return golden_numbers()


@pytest.mark.parametrize("scenario", ["main", "mirror", "zeros"])
@pytest.mark.parametrize("dataset", ["freihand", "ho3d"])
def test_shared_parts_equal_the_official_programs(golden, dataset, scenario):
    """Distances, both alignments, mean, median, AUC, PCK and F-scores against FreiHAND's and HO3D's eval.py, to 1e-9."""
    hands = golden_hands(scenario)
    opengl = np.array([1.0, -1.0, -1.0]) if dataset == "ho3d" else 1.0
    true_xyz, true_verts = hands["true_xyz"] * opengl, hands["true_verts"] * opengl
    pred_xyz, pred_verts = hands["pred_xyz"] * opengl, hands["pred_verts"] * opengl
    aligned_verts = metrics.procrustes(pred_verts, true_verts, reflections=True)
    aligned_xyz = metrics.procrustes(pred_xyz, true_xyz, reflections=True)
    pairs = {"xyz": (pred_xyz, true_xyz), "mesh": (pred_verts, true_verts), "mesh_al": (aligned_verts, true_verts)}
    if dataset == "ho3d":
        pairs["xyz_procrustes_al"] = (aligned_xyz, true_xyz)
        pairs["xyz_scale_trans_al"] = (metrics.scale_and_translation(pred_xyz, true_xyz, reference=4), true_xyz)
    else:
        pairs["xyz_al"] = (aligned_xyz, true_xyz)
    for key, (pred, true) in pairs.items():
        got = metrics.measures(metrics.distances(pred, true), 0.0, 0.05)
        for quantity in ("mean", "median", "auc", "pck"):
            expected = golden[f"{dataset}.{scenario}.{key}.{quantity}"]
            np.testing.assert_allclose(getattr(got, quantity), expected, rtol=0, atol=1e-9)
    expected = golden[f"{dataset}.{scenario}.fscore"]  # sample, threshold, (raw, aligned), (threshold, F, precision, recall)
    for place, pred in enumerate((pred_verts, aligned_verts)):
        got = metrics.f_scores(pred, true_verts, (0.005, 0.015))
        np.testing.assert_allclose(got, expected[:, :, place, 1:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["thresholds", "millimetres", "same"])
def test_errors_on_a_threshold_fall_on_the_official_side_of_it(kind):
    """Errors that lie on a threshold, or are 0, to the last bit: distances and scale-translation against the formulas by hand."""
    rng = np.random.default_rng(3)
    true = rng.uniform(-0.1, 0.1, (300, 21, 3)) + [0, 0, 0.6]
    if kind == "thresholds":  # whole-numbered triangles and boxes, as long as a threshold of the PCK curve
        sides = np.array([[3, 4, 0], [2, 3, 6], [1, 2, 2], [-6, 6, 7]])[rng.integers(4, size=(300, 21))]
        length = metrics.thresholds_of(0.0, 0.05)[rng.integers(100, size=(300, 21, 1))]
        pred = true + sides / np.linalg.norm(sides, axis=-1, keepdims=True) * length
    else:
        true = true.round(3)
        pred = (true + rng.integers(-20, 21, true.shape) / 1000 * (kind != "same")).round(3)
    scaled = metrics.scale_and_translation(pred, true, reference=4)
    for i in range(len(true)):
        s, wanted = (np.sqrt(np.sum(np.square(points[4] - points[0]))) for points in (pred[i], true[i]))
        by_hand = pred[i] / s * wanted
        by_hand = by_hand - by_hand[0] + true[i, 0]
        assert (scaled[i] == by_hand).all()
        for points in (pred[i], by_hand):
            distances = np.sqrt(np.sum(np.square(true[i] - points), axis=1))
            assert (metrics.distances(points[None], true[i, None])[0] == distances).all()


def test_procrustes_undoes_similarities_and_only_the_official_one_reflections():
    """A scaled, turned, moved copy aligns to 1e-7; a mirrored one aligns with reflections and does not without."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20, 21, 3))
    turn = rodrigues(rng.normal(size=(20, 3)))
    copy = 0.3 * true @ turn.transpose(0, 2, 1) + rng.normal(size=(20, 1, 3))
    for reflections in (True, False):
        assert np.abs(metrics.procrustes(copy, true, reflections) - true).max() < 1e-6
    mirrored = copy * [-1, 1, 1]
    assert metrics.distances(metrics.procrustes(mirrored, true, True), true).max() < 1e-6
    proper = metrics.procrustes(mirrored, true, False)
    assert metrics.distances(proper, true).mean(1).min() > 0.1
    volume = np.linalg.det(np.linalg.lstsq(mirrored[0] - mirrored[0].mean(0), proper[0] - proper[0].mean(0), rcond=None)[0])
    assert volume > 0  # the map applied is a proper rotation times a positive scale


def test_proper_alignment_is_the_best_rotation():
    """No small rotation, scaling or shift of the aligned points lowers the squared error, reflected case included."""
    rng = np.random.default_rng(1)
    true, pred = rng.normal(size=(8, 21, 3)), rng.normal(size=(8, 21, 3))
    aligned = metrics.procrustes(pred, true, reflections=False)
    best = ((aligned - true) ** 2).sum((1, 2))
    middle = aligned.mean(1, keepdims=True)
    for _ in range(200):
        turn = rodrigues(rng.normal(size=(8, 3)) * 0.02)
        moved = (1 + 0.01 * rng.normal()) * (aligned - middle) @ turn + middle + 0.01 * rng.normal(size=3)
        assert (((moved - true) ** 2).sum((1, 2)) >= best - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 4.0, 30.0]), far=st.sampled_from([0.0, 600.0]),
       sizes=st.sampled_from([(40, 40), (778, 500), (1, 7)]))
def test_f_scores_equal_a_tree_search(seed, spread, far, sizes):
    """The matrix-product F-score decides every point as an exact nearest-neighbour search in float64 does."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(2, sizes[0], 3)) * 40
    pred = rng.normal(size=(2, sizes[1], 3)) * spread + true[:, rng.integers(sizes[0], size=sizes[1])] + far
    got = metrics.f_scores(pred, true, (5.0, 15.0))
    for i in range(2):
        to_pred, to_true = cKDTree(pred[i]).query(true[i])[0], cKDTree(true[i]).query(pred[i])[0]
        for k, threshold in enumerate((5.0, 15.0)):
            assert got[i, k, 1] == (to_pred < threshold).mean() and got[i, k, 2] == (to_true < threshold).mean()


def test_f_score_threshold_is_strict_and_decided_in_float64():
    """Points at exactly 5 mm miss, 1e-12 mm nearer hit: rounding of the float32 search never decides."""
    true = np.zeros((2, 1, 3))
    pred = np.array([[[3.0, 4.0, 0.0]], [[3.0, 4.0 - 1e-12, 0.0]]])
    assert metrics.f_scores(pred, true, (5.0,))[:, 0, 0].tolist() == [0.0, 1.0]


def test_auc_per_sample_averages_to_the_curve_s_area():
    """mean(auc_from_index) is the trapezoid area of the pooled PCK curve; errors on a threshold count as within it."""
    thresholds = metrics.thresholds_of(0.0, 50.0)
    errors = np.abs(np.random.default_rng(0).normal(size=(30, 21))) * 30
    errors[0, :3], errors[1, :2] = (0.0, thresholds[7], 50.0), (1e-12, 50.1)
    index = metrics.first_threshold(errors, thresholds)
    pck = metrics.pck_from_index(index, metrics.STEPS)
    np.testing.assert_array_equal(pck, [(errors <= t).mean() for t in thresholds])
    expected = np.trapezoid(pck, thresholds) / 50
    assert abs(metrics.auc_from_index(index, metrics.STEPS).mean() - expected) < 1e-12
    assert abs(metrics.measures(errors, 0.0, 50.0).auc - expected) < 1e-12
    assert metrics.measures(np.zeros((2, 3)), 0.0, 50.0).auc == 1.0
    assert abs(metrics.measures(np.full((2, 3), 1e-9), 0.0, 50.0).auc - (1 - 0.5 / 99)) < 1e-12


def test_intervals_are_calibrated_and_repeat():
    """Frames-only 95 % intervals cover the true mean about 95 times in 100; with spread between people theirs are wider."""
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, size=(200, 100))  # 100 independent sets of 200 samples
    people = np.repeat(np.arange(10), 20)
    found = intervals(values, people, draws=400, seed=1)
    covered = np.mean([i.ci95_frames[0] <= 3.0 <= i.ci95_frames[1] for i in found])
    assert 0.88 <= covered <= 1.0
    width = np.mean([i.ci95_frames[1] - i.ci95_frames[0] for i in found])
    assert abs(width - 2 * 1.96 * 2 / np.sqrt(200)) < 0.05
    between = intervals(values[:, :1] + rng.normal(0, 3, 10)[people][:, None], people, draws=400, seed=1)[0]
    assert between.ci95[1] - between.ci95[0] > 3 * (between.ci95_frames[1] - between.ci95_frames[0])
    assert intervals(values[:, :3], people, draws=400, seed=1) == found[:3]
    assert intervals(values[:, :3], people, draws=400, seed=2) != found[:3]


def test_intervals_skip_missing_values():
    """NaN samples do not count: mean and n are of the rest; a column of NaN has no interval."""
    values = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [6.0, np.nan]])
    first, second = intervals(values, np.array([0, 0, 1, 1]), draws=200)
    assert first.mean == 3.0 and first.n == 3 and second is None
    assert 1.0 <= first.ci95[0] <= 3.0 <= first.ci95[1] <= 6.0


def test_paired_difference_is_sharper_than_two_intervals():
    """Frames differ by 10 mm, methods by 0.5: only the paired interval excludes zero."""
    rng = np.random.default_rng(0)
    frame = rng.normal(20, 10, 400)
    a, b = frame + rng.normal(0, 1, 400), frame + 0.5 + rng.normal(0, 1, 400)
    people = np.repeat([0, 1], 200)
    difference = paired_difference(a, b, people)
    assert difference.ci95_frames[1] < 0 and difference.ci95[1] < 0 and abs(difference.mean + 0.5) < 0.15
    alone_a, alone_b = intervals(np.stack([a, b], 1), people)
    assert alone_a.ci95_frames[1] > alone_b.ci95_frames[0]
    with pytest.raises(ValueError, match="no sample has both values"):
        paired_difference(np.array([np.nan, 1.0]), np.array([1.0, np.nan]), np.array([0, 0]))
