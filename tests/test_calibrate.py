"""Calibration: the published draws bit for bit, every other method against its formula, and the refusals."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.calibrate import CalibrateOptions, calibrate
from src.calibration_basis import rest_mesh_basis, rest_mesh_mm, rest_mesh_spread_mm
from src.identity import load_draws, load_identities, read_identity, require_unscored
from utils.errors import InputError
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.predictions import PredictionsWriter

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from toy_mano import toy_mano

GOLDEN = np.load(Path(__file__).parent / "goldens" / "calibration.npz")
TOY = {key: array.astype(np.int64 if key == "f" else np.float64) for key, array in toy_mano().items() if key != "kintree_table"}
HAND = HandModel(HandArrays(**TOY, name="toy"), torch.float64)


@pytest.fixture
def hand() -> HandModel:
    """The toy hand of the goldens, in float64."""
    return HAND


def write_predictions(path: Path, shapes: np.ndarray, subjects: np.ndarray, *, names=None, mirrored=None, **columns) -> Path:
    """A predictions file with these predicted shapes; meshes are zero, calibration never looks at them."""
    n = len(shapes)
    meta = {"method": "idhand", "hand": {"name": "toy", "sha256": HAND.sha256}, "dataset": {"split": "test"}}
    with PredictionsWriter(path, meta) as writer:
        writer.append(name=[f"subject-{s}/seq_{i % 4}/{i:04d}.jpg" for i, s in enumerate(subjects)] if names is None else names,
                      pred_verts=np.zeros((n, 778, 3)), pred_joints=np.zeros((n, 21, 3)), subject=subjects, index=np.arange(n),
                      mirrored=np.zeros(n, bool) if mirrored is None else mirrored, pred_shape=shapes, **columns)
    return path


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory) -> Path:
    """The 87 predictions of the goldens."""
    return write_predictions(tmp_path_factory.mktemp("golden") / "p.npz", GOLDEN["pred_shape_params"], GOLDEN["subject_ids"])


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Two people, 60 and 30 images, noisy shapes whose noise the confidence knows, with truth."""
    generator = np.random.default_rng(0)
    subjects = np.repeat([3, 5], [60, 30])
    truth = np.where(subjects[:, None] == 3, np.linspace(-1, 1, 10), np.linspace(2, -1, 10)).astype(np.float32)
    noise = generator.uniform(0.05, 1, 90)
    shapes = (truth + noise[:, None] * generator.normal(size=(90, 10))).astype(np.float32)
    data = {"shapes": shapes, "subjects": subjects, "truth": truth, "confidence": -noise.astype(np.float32)}
    path = tmp_path_factory.mktemp("people") / "p.npz"
    return write_predictions(path, shapes, subjects, true_shape=truth, confidence=data["confidence"]), data


def run(path, folder: Path, hand: HandModel, **options) -> dict:
    """calibrate() with these options; the content of calibration.json."""
    assert "identity file" in calibrate(CalibrateOptions(predictions=str(path), **options), folder, hand=hand)
    return json.loads((folder / "calibration.json").read_text())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 20, 50, 100, 200])
def test_random_is_the_published_calibration(golden_file, hand, tmp_path, n):
    """Mean of n random images, seed 0: every coefficient as in the original's file, bit for bit; n may exceed the images."""
    run(golden_file, tmp_path, hand, n=n)
    shapes = load_identities(tmp_path, hand)
    for subject in (8, 9):
        assert (shapes[subject].astype(np.float32) == GOLDEN[f"calibrated_randomly_{n}_shape_all_subjects.{subject}"]).all()


def test_all_is_the_published_mean(golden_file, hand, tmp_path):
    """The mean of all images equals the original's bit for bit."""
    run(golden_file, tmp_path, hand, method="all")
    for subject, shape in load_identities(tmp_path, hand).items():
        assert (shape.astype(np.float32) == GOLDEN[f"calibrated_shape_all_subjects.{subject}"]).all()


def test_rest_meshes_of_the_published_calibration(hand):
    """Difference of two calibrated people's rest meshes (goldens: MANO's mean pose, every tenth vertex) from the hand layer."""
    rotations = hand.rotations_from_pose(torch.zeros(48, dtype=torch.float64), pca=True, flat_mean=False)
    for key, shape in (("8", GOLDEN["calibrated_randomly_20_shape_all_subjects.8"]), ("mean_shape", np.zeros(10))):
        verts = hand(rotations, torch.from_numpy(shape.astype(np.float64))).verts.numpy()
        np.testing.assert_allclose(verts[::10], GOLDEN[f"calibrated_randomly_20_rest_pose_template.{key}"], atol=2e-6)


def test_a_person_is_drawn_alike_whoever_is_asked_for(golden_file, hand, tmp_path):
    """calibrate.subjects changes which files are written, not what is in them."""
    run(golden_file, tmp_path, hand, subjects=[9])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["9.json", "calibration.json", "curve.json"]
    assert (load_identities(tmp_path)[9].astype(np.float32) == GOLDEN["calibrated_randomly_20_shape_all_subjects.9"]).all()


def test_top_takes_the_most_confident(people, hand, tmp_path):
    """top: mean over the n rows of highest confidence."""
    path, data = people
    run(path, tmp_path, hand, method="top", n=7)
    for subject in (3, 5):
        rows = np.flatnonzero(data["subjects"] == subject)
        best = rows[np.argsort(-data["confidence"][rows])[:7]]
        identity = read_identity(tmp_path / f"{subject}.json", hand)
        np.testing.assert_allclose(identity.shape, data["shapes"][best].mean(0), atol=1e-6)
        assert identity.n == 7 and identity.confidence_used
        assert set(identity.frames) == {f"subject-{subject}/seq_{i % 4}/{i:04d}.jpg" for i in best}


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1e6])
def test_weighted_is_the_softmax_mean(people, hand, tmp_path, temperature):
    """weighted: softmax(confidence / temperature) over all rows; very hot, it is the plain mean."""
    path, data = people
    run(path, tmp_path, hand, method="weighted", temperature=temperature)
    rows = data["subjects"] == 5
    weight = np.exp(data["confidence"][rows].astype(float) / temperature)
    expected = (weight / weight.sum()) @ data["shapes"][rows]
    identity = read_identity(tmp_path / "5.json")
    np.testing.assert_allclose(identity.shape, expected, atol=1e-6)
    if temperature == 1e6:
        np.testing.assert_allclose(identity.shape, data["shapes"][rows].mean(0), atol=1e-5)
        np.testing.assert_allclose(identity.standard_error, data["shapes"][rows].std(0, ddof=1) / np.sqrt(30), rtol=1e-4)


def test_spread_of_an_identity(people, hand, tmp_path):
    """std, standard error and rest-mesh spread of an identity against numpy on the rows it names, and posed meshes."""
    path, data = people
    run(path, tmp_path, hand, n=20)
    identity = read_identity(tmp_path / "3.json")
    rows = [int(name[-8:-4]) for name in identity.frames]
    shapes = data["shapes"][rows].astype(np.float64)
    assert len(set(rows)) == 20 and set(data["subjects"][rows]) == {3}
    np.testing.assert_allclose(identity.spread["shape_std"], shapes.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(identity.standard_error, shapes.std(0, ddof=1) / np.sqrt(20), rtol=1e-5)
    shaped = hand.shaped(torch.from_numpy(shapes))
    verts = (shaped.rest_verts - shaped.rest_joints[:, :1]).numpy()
    expected = 1000 * np.sqrt(((verts - verts.mean(0)) ** 2).sum(-1).mean())
    np.testing.assert_allclose(identity.spread["rest_mesh_mm"], expected, rtol=1e-5)


def test_rest_mesh_distance(hand):
    """rest_mesh_mm against the distance of two shaped hands with their wrists together, and leading axes."""
    shapes = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 10)))
    shaped = hand.shaped(shapes)
    verts = (shaped.rest_verts - shaped.rest_joints[:, :1]).numpy()
    difference = (shapes[0] - shapes[1]).numpy()
    expected = 1000 * np.linalg.norm(verts[0] - verts[1], axis=-1).mean()
    basis = rest_mesh_basis(hand)
    np.testing.assert_allclose(rest_mesh_mm(basis, difference), expected, rtol=1e-9)
    np.testing.assert_allclose(rest_mesh_mm(basis, np.tile(difference, (2, 3, 1))), np.full((2, 3), expected), rtol=1e-9)
    assert rest_mesh_spread_mm(basis, shapes.numpy(), np.array([1.0, 0.0])) == 0


def test_curve(people, hand, tmp_path):
    """Error falls like 1/sqrt(n) for random images; some points by hand; no point beyond everybody's images."""
    path, data = people
    summary = run(path, tmp_path, hand, draws=50, curve_n=[1, 4, 16, 60, 200])
    curve = json.loads((tmp_path / "curve.json").read_text())
    random = {point["n"]: point for point in curve["methods"]["random"]}
    assert sorted(random) == [1, 4, 16, 60] and curve["images"] == {"3": 60, "5": 30}
    assert random[60]["people_with_fewer"] == 1 and random[60]["images"] == 90 and random[16]["people_with_fewer"] == 0
    assert 1.5 < random[1]["shape_error"] / random[4]["shape_error"] < 2.5
    assert 1.5 < random[4]["mesh_error_mm"] / random[16]["mesh_error_mm"] < 2.7
    low, high = random[4]["shape_error_interval"]
    assert low < random[4]["shape_error"] < high
    assert random[60]["mesh_spread_mm"] < 1e-3 < random[4]["mesh_spread_mm"] < random[1]["mesh_spread_mm"]
    everything = np.mean([np.abs(data["shapes"][data["subjects"] == s].mean(0) - data["truth"][data["subjects"] == s][0]).mean()
                          for s in (3, 5)])
    (point,) = curve["methods"]["all"]
    np.testing.assert_allclose(point["shape_error"], everything, rtol=1e-5)
    np.testing.assert_allclose(random[60]["shape_error"], everything, rtol=1e-4)
    tops = {p["n"]: p for p in curve["methods"]["top"]}
    assert tops[4]["shape_error"] < random[4]["shape_error"]  # the confidence knows the noise here
    assert tops[4]["draws"] == 1 and tops[4]["shape_error_interval"] is None
    weighted = {p["n"]: p for p in curve["methods"]["weighted"]}
    np.testing.assert_allclose(weighted[1]["shape_error"], random[1]["shape_error"], rtol=1e-5)  # one image: weight 1
    person = {p["subject"]: p for p in summary["people"]}[3]
    expected = np.abs(load_identities(tmp_path)[3] - np.linspace(-1, 1, 10)).mean()
    np.testing.assert_allclose(person["shape_error"], expected, atol=1e-6)


def test_draws(golden_file, hand, tmp_path):
    """Draw k, as written, is the original's procedure with seed k; draw 0 is the identity files'."""
    for count in (4, 3):  # the second time over the first, whose fourth draw must go
        run(golden_file, tmp_path, hand, draws=count, write_draws=True)
    written = load_draws(tmp_path / "draws", hand)
    assert list(written) == ["0", "1", "2"] and all(sorted(draw) == [8, 9] for draw in written.values())
    for k, draw in enumerate(written.values()):
        generator = np.random.RandomState(k)
        for subject in (8, 9):
            rows = GOLDEN["pred_shape_params"][GOLDEN["subject_ids"] == subject].copy()
            generator.shuffle(rows)
            np.testing.assert_array_equal(draw[subject].astype(np.float32), rows[:20].mean(0))
    assert (load_draws(tmp_path, hand)[""][8] == written["0"][8]).all()
    third = read_identity(tmp_path / "draws" / "2" / "9.json")
    require_unscored(tmp_path / "draws", ["somewhere/else.jpg"])
    with pytest.raises(InputError, match=r"draws.2.9.json: 1 of 20 calibration frames are scored"):
        alone = set(third.frames) - {f for d in "01" for f in read_identity(tmp_path / "draws" / d / "9.json").frames}
        require_unscored(tmp_path / "draws", [sorted(alone)[0]])


def test_without_truth_and_confidence(golden_file, hand, tmp_path):
    """No truth: the curve has the draws' spread alone. No confidence: no top and no weighted curve. Fewer images: said."""
    summary = run(golden_file, tmp_path, hand, n=40)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert sorted(curve["methods"]) == ["all", "random"] and not curve["truth_known"]
    for point in curve["methods"]["random"]:
        assert point["shape_error"] is None and point["mesh_error_mm"] is None and point["mesh_spread_mm"] > 0
    assert [(p["images_used"], p["fewer_than_asked"]) for p in summary["people"]] == [(40, False), (37, True)]


def test_fewer_than_two_images(hand, tmp_path, caplog):
    """A person with one image is left out, aloud, and the others go on; where nobody has two, nothing is written."""
    path = write_predictions(tmp_path / "p.npz", np.ones((3, 10)), np.array([4, 5, 5]))
    assert [p["subject"] for p in run(path, tmp_path / "out", hand)["people"]] == [5]
    assert "fewer than 2 images of subject 4: left out" in caplog.text
    with pytest.raises(InputError, match="fewer than 2 images of subject 4"):
        run(path, tmp_path / "none", hand, subjects=[4])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("pattern", ["seq_1", "subject-3/seq_1", "*/seq_1", "subject-*/seq_1"])
def test_sequences_choose_frames(people, hand, tmp_path, pattern):
    """Only frames of the named folders count."""
    path, data = people
    run(path, tmp_path, hand, sequences=[pattern], subjects=[3], method="all")
    rows = [i for i in range(60) if i % 4 == 1]
    np.testing.assert_allclose(load_identities(tmp_path)[3], data["shapes"][rows].mean(0), atol=1e-6)


def test_sides_choose_frames(hand, tmp_path):
    """right and left hands apart, where a person's two hands are labelled with two shapes; together they are refused."""
    shapes = np.arange(40).reshape(4, 10) / 10
    mirrored = np.array([False, True, False, True])
    truth = mirrored[:, None] + np.zeros(10)
    path = write_predictions(tmp_path / "p.npz", shapes, np.full(4, 2), mirrored=mirrored, true_shape=truth)
    for side, rows in (("right", [0, 2]), ("left", [1, 3])):
        run(path, tmp_path / side, hand, sides=side, method="all")
        np.testing.assert_allclose(load_identities(tmp_path / side)[2], shapes[rows].mean(0), atol=1e-6)
    with pytest.raises(InputError, match="true_shape of subject 2 differs between frames by 1; .* calibrate.sides"):
        run(path, tmp_path / "both", hand)


def test_scored_frames_are_kept_apart(people, hand, tmp_path):
    """Frames that will be scored must not calibrate, unless the option says so (as the original did); draws are checked too."""
    path, data = people
    names = [f"subject-{s}/seq_{i % 4}/{i:04d}.jpg" for i, s in enumerate(data["subjects"])]
    rows = [i for i in range(90) if i % 4 == 2]
    scored = write_predictions(tmp_path / "s.npz", data["shapes"][rows], data["subjects"][rows], names=[names[i] for i in rows])

    def call(**options) -> None:
        run(path, tmp_path / "out", hand, scored=str(scored), **options)

    with pytest.raises(InputError, match="calibration frames are scored as well"):
        call()
    call(allow_scored_frames=True)
    call(sequences=["seq_0", "seq_1", "seq_3"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["3.json", "5.json", "calibration.json", "curve.json"]
    require_unscored(tmp_path / "out", [names[i] for i in rows])
    with pytest.raises(InputError, match="3.json: .* calibration frames are scored as well"):
        require_unscored(tmp_path / "out", names)
    run(path, tmp_path / "out", hand, allow_scored_frames=True)
    require_unscored(tmp_path / "out", names)


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "top"}, "needs? the column confidence"),
    ({"method": "weighted"}, "needs? the column confidence"),
    ({"subjects": [1, 8]}, r"calibrate.subjects: no frame of \[1\] .* there are \[8, 9\]"),
    ({"sequences": ["seq_7"]}, "calibrate.sequences: no frame in 'seq_7'"),
    ({"sides": "left"}, "no frame of a left hand"),
])
def test_options_that_do_not_fit_the_file(golden_file, hand, tmp_path, options, message):
    """Options that ask for what the file has not: one line, nothing written."""
    with pytest.raises(InputError, match=message):
        run(golden_file, tmp_path / "out", hand, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("columns", "message"), [
    ({"identity": np.zeros((4, 10))}, "told the shape"),
    ({"confidence": np.array([1, 2, np.inf, 0])}, "confidence of subject-1/seq_2/0002.jpg is not finite"),
    ({"pred_shape": np.full((4, 10), np.nan)}, r"pred_shape of subject-1/seq_0/0000.jpg is not finite \(4 such rows"),
])
def test_files_that_cannot_calibrate(hand, tmp_path, columns, message):
    """Shapes the method was told, values that are not finite: one line, nothing written."""
    shapes = columns.pop("pred_shape", np.zeros((4, 10)))
    path = write_predictions(tmp_path / "p.npz", shapes, np.ones(4, int), **columns)
    with pytest.raises(InputError, match=message):
        run(path, tmp_path / "out", hand)
    assert not (tmp_path / "out").exists()


def test_no_predictions_file(hand, tmp_path):
    """No file named, and one that is not there: one line each."""
    with pytest.raises(InputError, match="calibrate.predictions: no predictions file named"):
        run("", tmp_path / "out", hand)
    with pytest.raises(InputError, match="p.npz: expected a file, found nothing"):
        run(tmp_path / "p.npz", tmp_path / "out", hand)


def test_predictions_of_another_hand(golden_file, hand, tmp_path):
    """Predictions made with one hand model, calibration with another: refused."""
    other = HandModel(hand.arrays, torch.float64)
    other.name, other.sha256 = "other", "cd" * 32
    with pytest.raises(InputError, match="made with hand model toy"):
        run(golden_file, tmp_path, other)


def test_rows_with_unlabelled_truth(hand, tmp_path):
    """Rows whose true shape is NaN (unlabelled) are no truth; the others are."""
    truth = np.full((3, 10), np.nan)
    truth[1] = 0.5
    path = write_predictions(tmp_path / "p.npz", np.zeros((3, 10)), np.ones(3, int), true_shape=truth)
    summary = run(path, tmp_path / "out", hand)
    assert summary["people"][0]["shape_error"] == 0.5
