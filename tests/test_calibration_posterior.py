"""The posterior of a person's shape on a simulated network: unbiased, calibrated, robust; the stop rule; two people mixed."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_cases import Network, write_people
from test_calibrate import HAND

from src.calibrate import CalibrateOptions, calibrate
from src.calibration_basis import mesh_gram, rest_mesh_basis
from src.calibration_coverage import covered
from src.calibration_effects import total_covariance
from src.calibration_estimate import Estimate
from src.calibration_likelihood import fit_likelihood, read_likelihood, write_likelihood
from src.calibration_mixed import held_out_limits, limit_of, mixture
from src.calibration_people import Person
from src.calibration_posterior import estimate
from src.calibration_stop import decide, vertex_sd_mm
from src.identity import read_identity
from utils.errors import InputError
from utils.predictions import PredictionsWriter

NETWORK = Network()
GRAM = mesh_gram(rest_mesh_basis(HAND))
TEST = dict(sequences=10, cameras=4, frames=1)


@pytest.fixture(scope="module")
def likelihood():
    """Fitted to forty held-out people."""
    return fit_likelihood(NETWORK.people(0, 40), HAND, {"predictions": "v.npz"})


@pytest.fixture(scope="module")
def strangers() -> list[Person]:
    """People the likelihood has not seen."""
    return NETWORK.people(1, 150, first=1000, **TEST)


def posteriors(people, likelihood, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapes, covariances and true shapes, each person from n images drawn at random."""
    rng = np.random.default_rng(2)
    found = [estimate(person, rng.permutation(len(person))[:n], likelihood, GRAM) for person in people]
    return tuple(np.stack(part) for part in zip(*((one.shape, one.covariance, p.true_shape) for one, p in zip(found, people))))


@pytest.mark.parametrize("n", [1, 5, 20])
def test_intervals_cover(likelihood, strangers, n):
    """50, 68 and 95 % intervals hold that share of the true coefficients of people the fit has not seen."""
    inside = covered(*posteriors(strangers, likelihood, n)).mean((1, 2))
    assert (np.abs(inside - [0.5, 0.68, 0.95]) < [0.05, 0.05, 0.025]).all(), inside


def test_a_stated_covariance_is_used(likelihood):
    """The likelihood prefers to believe the stated covariances, and finds by how much they are overstated."""
    assert likelihood.power == 1 and likelihood.choice["loglik_by_power"]["1"] > likelihood.choice["loglik_by_power"]["0"]
    np.testing.assert_allclose(np.trace(likelihood.effects.image) / 10, 1 / 1.7, rtol=0.1)


def test_large_and_small_hands_are_not_pulled_to_the_mean():
    """Where the network knows people well (small person error), the posterior's slope on the truth is one; the mean's is 0.6."""
    sharp = Network(person=0.02, sequence=0.1, camera=0.02)
    likelihood = fit_likelihood(sharp.people(0, 40), HAND, {})
    people = sharp.people(3, 100, first=1000, sequences=20, cameras=2, frames=2)
    shapes, _, truth = posteriors(people, likelihood, 80)
    means = np.stack([person.shapes.mean(0) for person in people]) - sharp.offset
    assert abs((means * truth).sum() / (truth**2).sum() - 0.6) < 0.02
    assert abs((shapes * truth).sum() / (truth**2).sum() - 1) < 0.05
    for half in (truth > 1, truth < -1):  # large and small coefficients alike
        assert abs((shapes - truth)[half].mean()) < 0.08 < abs((means - truth)[half].mean())


def test_what_the_posterior_says_is_right_on_average(likelihood, strangers):
    """Truth regressed on the posterior's mean has slope one at every n: nothing is left to correct."""
    for n in (2, 20):
        shapes, _, truth = posteriors(strangers, likelihood, n)
        assert abs((shapes * truth).sum() / (shapes**2).sum() - 1) < 0.06


def test_confident_images_count_more(likelihood):
    """An answer stated with a wide covariance moves the posterior less than the same with a narrow one."""
    person = NETWORK.people(4, 1, **TEST)[0]
    rows, moved = np.arange(12), []
    plain, shifted = person.shapes.copy(), person.shapes.copy()
    plain[0] = person.shapes[1:12].mean(0)
    shifted[0] = plain[0] + 0.15
    for stated in (0.3, 5.0):
        covariances = person.covariances.copy()
        covariances[0] = stated * np.eye(10)
        before, after = (estimate(replace(person, covariances=covariances, shapes=s), rows, likelihood, GRAM).shape
                         for s in (plain, shifted))
        moved.append(np.abs(after - before).sum())
    assert 0 < moved[1] < 0.4 * moved[0]


def test_effective_number_of_images(likelihood):
    """Frames of one recording are worth hardly more than one image; photographs on their own are worth their number."""
    person = NETWORK.people(5, 1, sequences=1, cameras=1, frames=40)[0]
    person = replace(person, covariances=np.tile(0.2 * np.eye(10), (40, 1, 1)))
    rows = np.arange(40)
    alike = estimate(person, rows, likelihood, GRAM)
    apart = estimate(replace(person, names=np.array([f"{i}.jpg" for i in rows])), rows, likelihood, GRAM)
    assert alike.effective_n < 2.5 and abs(apart.effective_n - apart.n) < 1e-4
    assert np.trace(GRAM @ apart.covariance) < np.trace(GRAM @ alike.covariance)


def test_outliers_are_rejected(likelihood):
    """Three wild images of twenty: found, named by their absence from the frames, and without effect."""
    for person in NETWORK.people(6, 5, **TEST):
        rows = np.arange(20)
        clean = estimate(person, rows, likelihood, GRAM)
        shapes = person.shapes.copy()
        shapes[[2, 7, 11]] += np.array([6.0, -6.0, 8.0])[:, None]
        found = estimate(replace(person, shapes=shapes), rows, likelihood, GRAM)
        without = estimate(person, np.delete(rows, [2, 7, 11]), likelihood, GRAM)
        assert set(person.names[[2, 7, 11]]).isdisjoint(found.frames) and clean.n - found.n == 3 and clean.n >= 19
        assert f"{20 - found.n} of 20 images are outliers" in found.warnings[0]
        np.testing.assert_allclose(found.shape, without.shape, atol=1e-9)


def test_without_stated_covariances():
    """A network that states no covariance: intervals still cover."""
    bare = [replace(person, covariances=None) for person in NETWORK.people(0, 40)]
    likelihood = fit_likelihood(bare, HAND, {})
    assert likelihood.power == 0 and likelihood.typical is None
    people = [replace(person, covariances=None) for person in NETWORK.people(1, 100, first=1000, **TEST)]
    inside = covered(*posteriors(people, likelihood, 10)).mean((1, 2))
    assert (np.abs(inside - [0.5, 0.68, 0.95]) < [0.06, 0.06, 0.03]).all(), inside


def test_two_people_in_one_folder(likelihood):
    """Images of two different people mixed: suspected, with the right ones in the smaller part; one person's never are."""
    limits = held_out_limits([likelihood.images(person) for person in NETWORK.people(0, 40)], likelihood)
    likelihood = replace(likelihood, mixed=limits)
    assert [n for n, _ in limits] == [20, 48] and limit_of(likelihood, 30) == limit_of(likelihood, 96) == limits[1][1]
    alone = [mixture(likelihood.images(person), likelihood) for person in NETWORK.people(7, 30, first=500, sequences=12)]
    assert sum(one.suspect(limit_of(likelihood, 96)) for one in alone) <= 1
    rng, apart = np.random.default_rng(8), np.zeros(10)
    apart[6:] = 2.0
    for _ in range(5):
        one = NETWORK.answers(rng, apart, 1, sequences=8)
        other = NETWORK.answers(rng, -apart, 2, sequences=4)
        both = Person(1, np.concatenate([one.names, other.names]), np.arange(96), np.concatenate([one.shapes, other.shapes]),
                      np.concatenate([one.covariances, other.covariances]))
        found = mixture(likelihood.images(both), likelihood)
        assert found.suspect(limit_of(likelihood, 96)) and found.p < 0.01
        assert found.smaller[64:].mean() > 0.9 and found.smaller[:64].mean() < 0.1
    assert mixture(likelihood.images(one).take(np.arange(3)), likelihood) is None


def an_estimate(scale: float, floor: float, n: int = 10) -> Estimate:
    """Shape variance `scale` that falls with the images to `floor`."""
    return Estimate(np.zeros(10), n, "c", covariance=scale * np.eye(10),
                    covariance_at=lambda f: (floor + (scale - floor) / f) * np.eye(10))


def test_stop_rule():
    """Enough; so many further images, which then are enough and one fewer are not; a floor above the limit; no prediction."""
    unit = np.sqrt(np.trace(GRAM))  # mm of mesh per unit standard deviation
    assert decide(an_estimate(0.9 / unit**2, 0), GRAM, 1.0)["enough"]
    said = decide(an_estimate(4 / unit**2, 0.25 / unit**2), GRAM, 1.0)
    assert not said["enough"] and said["further_images"] == 40 and "40 further images" in said["text"]
    np.testing.assert_allclose([said["mesh_sd_mm"], said["floor_mm"]], [2, 0.5])
    said = decide(an_estimate(4 / unit**2, 2.25 / unit**2), GRAM, 1.0)
    assert said["further_images"] is None and "no number of images will do: the floor is 1.50 mm" in said["text"]
    said = decide(replace(an_estimate(4 / unit**2, 0), covariance_at=None), GRAM, 1.0)
    assert said["floor_mm"] is None and said["further_images"] is None and not said["enough"]
    assert decide(Estimate(np.zeros(10), 3, "c"), GRAM, 1.0) is None


def test_predicted_standard_deviation_at_more_images(likelihood):
    """What the posterior says twice as many images would leave, against twice as many images of the same kind."""
    person = NETWORK.people(9, 1, sequences=40, cameras=1, frames=1)[0]
    person = replace(person, covariances=np.tile(0.3 * np.eye(10), (40, 1, 1)), names=np.array([f"{i}.jpg" for i in range(40)]))
    half, whole = (estimate(person, np.arange(n), likelihood, GRAM) for n in (20, 40))
    if half.n == 20 and whole.n == 40:
        np.testing.assert_allclose(half.covariance_at(2.0), whole.covariance, rtol=1e-6, atol=1e-9)
    assert (np.linalg.eigvalsh(half.covariance - half.covariance_at(np.inf)) > -1e-12).all()


def test_vertex_standard_deviations():
    """Of the mesh, against rest meshes of shapes drawn from the covariance."""
    rng = np.random.default_rng(0)
    covariance = Network().person_covariance
    basis = rest_mesh_basis(HAND)
    verts = np.einsum("ns,svc->nvc", rng.multivariate_normal(np.zeros(10), covariance, size=4000), basis)
    np.testing.assert_allclose(vertex_sd_mm(basis, covariance), 1000 * np.sqrt(verts.var(0).sum(-1)), rtol=0.08)
    np.testing.assert_allclose(np.sqrt(np.trace(GRAM @ covariance)), np.sqrt((vertex_sd_mm(basis, covariance)**2).mean()))


def test_likelihood_file(likelihood, tmp_path):
    """What is written comes back equal; another hand model, another json and broken numbers are refused in one line."""
    path = tmp_path / "likelihood.json"
    likelihood = replace(likelihood, mixed=((20, 1.5), (48, 2.5)))
    write_likelihood(path, likelihood)
    found = read_likelihood(path, HAND)
    assert (found.slope == likelihood.slope).all() and (found.effects.image == likelihood.effects.image).all()
    assert all(getattr(found, key) == getattr(likelihood, key) for key in ("people", "mixed", "gate", "choice", "power"))
    value = json.loads(path.read_text())
    for change, message in (({"hand": {"name": "MANO", "sha256": "00"}}, "fitted for the hand model MANO"),
                            ({"kind": "identity"}, "expected a likelihood.json of version 1"),
                            ({"slope": [[0.0] * 10] * 9}, "expected 10 x 10 finite numbers")):
        path.write_text(json.dumps({**value, **change}))
        with pytest.raises(InputError, match=message):
            read_likelihood(path, HAND)
    del value["gate"]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="the likelihood lacks gate"):
        read_likelihood(path, HAND)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Predictions of held-out people and of ten to calibrate."""
    folder = tmp_path_factory.mktemp("files")
    return (write_people(folder / "val.npz", NETWORK.people(0, 30), HAND),
            write_people(folder / "test.npz", NETWORK.people(1, 10, first=1000), HAND))


def test_calibrate_by_posterior(files, tmp_path):
    """From two files to identities, curve, coverage and a likelihood that gives the same identities when read again."""
    options = CalibrateOptions(predictions=str(files[1]), validation=str(files[0]), method="posterior", n=20, draws=3,
                               curve_n=[1, 5, 20], write_draws=True)
    text = calibrate(options, tmp_path / "a", hand=HAND)
    assert "no number of images will do" in text or "further images" in text or "enough:" in text
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    at_20 = {method: points[-1] for method, points in curve["methods"].items()}
    assert at_20["posterior"]["mesh_error_mm"] < 0.9 * at_20["random"]["mesh_error_mm"]
    assert at_20["posterior"]["recovered"]["mesh"] > at_20["random"]["recovered"]["mesh"]
    assert 1 < at_20["posterior"]["effective_n"] < 20
    points = json.loads((tmp_path / "a" / "coverage.json").read_text())["methods"]["posterior"]
    assert [p["n"] for p in points["points"]] == [1, 5, 20] and points["stop"][0]["decisions"] == 30
    assert sum(row["count"] for row in points["reliability"]) == 90
    for row in points["reliability"]:
        assert 0.6 < row["stated_mm"] / row["true_rms_mm"] < 1.6
    most = points["limits"][-1]
    assert most["enough_mm"] == 5 and most["enough"]["count"] + most["not_enough"]["count"] == 90
    again = options.model_copy(update={"validation": None, "likelihood": str(tmp_path / "a" / "likelihood.json")})
    calibrate(again, tmp_path / "b", hand=HAND)
    for subject in range(1000, 1010):
        one, other = (read_identity(tmp_path / f / f"{subject}.json", HAND) for f in "ab")
        np.testing.assert_array_equal(one.shape, other.shape)
        assert one.method == "posterior" and one.side == "right" and one.cue.startswith("camera cue")
        np.testing.assert_allclose(one.mesh_sd_mm, np.sqrt(np.mean(one.vertex_sd_mm**2)), rtol=1e-3)
        assert one.stop["mesh_sd_mm"] == one.mesh_sd_mm and len(one.frames) == one.n
    random = tmp_path / "r"
    calibrate(CalibrateOptions(predictions=str(files[1])), random, hand=HAND)
    assert set(one.frames) <= set(read_identity(random / "1009.json").frames)  # drawn as `random` draws


def test_two_people_are_warned_of(files, tmp_path, caplog):
    """A person whose images are half another's: a warning with the statistic, in the log, the text and the identity file."""
    rng, apart = np.random.default_rng(8), np.full(10, 1.5)
    one, other = (NETWORK.answers(rng, sign * apart, 2000) for sign in (1, -1))
    both = Person(2000, np.concatenate([one.names, np.char.replace(other.names, "seq", "other")]), np.arange(96),
                  np.concatenate([one.shapes, other.shapes]), np.concatenate([one.covariances, other.covariances]))
    path = write_people(tmp_path / "mixed.npz", [both, *NETWORK.people(3, 2, first=2001)], HAND, truth=False)
    options = CalibrateOptions(predictions=str(path), validation=str(files[0]), method="posterior", draws=1)
    text = calibrate(options, tmp_path / "o", hand=HAND)
    assert "subject 2000: the images scatter like those of two people: " in caplog.text and "(p < 0.005" in text
    assert [bool([w for w in read_identity(tmp_path / "o" / f"{s}.json").settings["warnings"] if "two people" in w])
            for s in (2000, 2001, 2002)] == [True, False, False]


def test_predictions_without_a_stated_covariance(files, tmp_path, caplog):
    """A likelihood of stated covariances and predictions without: every image counts as a typical one, and that is said."""
    calibrate(CalibrateOptions(predictions=str(files[1]), validation=str(files[0]), method="posterior", draws=1, curve_n=[5]),
              tmp_path / "a", hand=HAND)
    path = write_people(tmp_path / "bare.npz", NETWORK.people(1, 3, first=1000), HAND, covariances=False)
    likelihood = str(tmp_path / "a" / "likelihood.json")
    options = CalibrateOptions(predictions=str(path), likelihood=likelihood, method="posterior", draws=1)
    calibrate(options, tmp_path / "b", hand=HAND)
    assert "bare.npz has no pred_shape_cov: every image counts as a typical one" in caplog.text
    assert read_identity(tmp_path / "b" / "1000.json").mesh_sd_mm > 0


def test_gain_on_posed_hands(files, tmp_path):
    """Predicted poses with other shapes: the truth has no error where the pose is true, and shares are as errors are."""
    rng, people = np.random.default_rng(5), NETWORK.people(1, 10, first=1000)
    rotations = HAND.rotations_from_pose(torch.from_numpy(0.3 * rng.normal(size=(30, 48))), pca=True, flat_mean=False)
    truth = np.repeat(np.stack([person.true_shape for person in people]), 3, 0)
    posed = HAND(rotations, torch.from_numpy(truth))
    root = rng.normal(size=(30, 3))
    verts = (posed.verts - posed.chain[:, :1]).numpy() + root[:, None]
    with PredictionsWriter(tmp_path / "scored.npz", {"hand": HAND.info, "dataset": {"dataset": "simulated"}}) as writer:
        writer.append(name=[f"other/{i}" for i in range(30)], subject=np.repeat([p.subject for p in people], 3),
                      index=np.arange(30), mirrored=np.zeros(30, bool), pred_verts=verts, pred_joints=np.zeros((30, 21, 3)),
                      pred_shape=np.concatenate([p.shapes[:3] for p in people]), pred_rotations=rotations.numpy(),
                      true_shape=truth, true_verts=verts, true_root=root)
    options = CalibrateOptions(predictions=str(files[1]), validation=str(files[0]), method="posterior", draws=1, curve_n=[20],
                               scored=str(tmp_path / "scored.npz"))
    text = calibrate(options, tmp_path / "o", hand=HAND)
    gain = json.loads((tmp_path / "o" / "calibration.json").read_text())["posed"]
    error = gain["mpvpe_mm"]
    assert gain["frames"] == 30 and error["true"] < 1e-2 < error["posterior"] < error["random"] < error["predicted"]
    np.testing.assert_allclose(gain["recovered"]["posterior"], 1 - error["posterior"] / error["predicted"], atol=1e-3)
    assert "posed hands (30 frames)" in text


def test_a_ruler_needs_no_images(tmp_path):
    """A measurement alone: an identity that stands on the ruler, surer than the prior; two people at once are refused."""
    calibrate(CalibrateOptions(measured="wrist_to_middle_tip:145mm", subjects=[4]), tmp_path, hand=HAND)
    found = read_identity(tmp_path / "4.json", HAND)
    assert "ruler" in found.cue and found.n == 0 and found.mesh_sd_mm < np.sqrt(np.trace(GRAM))
    with pytest.raises(InputError, match="one ruler measures one person"):
        calibrate(CalibrateOptions(measured="wrist_to_middle_tip:145mm", subjects=[4, 5]), tmp_path, hand=HAND)


@pytest.mark.parametrize(("change", "message"), [
    ({"validation": None}, "posterior must know how the network errs"),
    ({"likelihood": "some.json"}, "not both"),
    ({"validation": "same"}, r"the people \[1000, 1001.* are among the held-out ones"),
    ({"validation": "other_checkpoint"}, "made with the checkpoint other/last.pt, but .* with run/last.pt"),
    ({"validation": "few"}, "expected at least 8 people with known shapes and two images each, found 3"),
    ({"method": "random", "validation": None, "measured": "width:80mm"}, "one ruler measures one person"),
])
def test_bad_input(files, tmp_path, change, message):
    """Options and files that do not fit: one line, nothing written."""
    named = {"same": lambda: files[1], "few": lambda: write_people(tmp_path / "few.npz", NETWORK.people(0, 3), HAND),
             "other_checkpoint": lambda: write_people(tmp_path / "o.npz", NETWORK.people(0, 9), HAND, checkpoint="other/last.pt")}
    change = {key: str(named[value]()) if value in named else value for key, value in change.items()}
    options = CalibrateOptions(**{"predictions": str(files[1]), "validation": str(files[0]), "method": "posterior", **change})
    with pytest.raises(InputError, match=message) as caught:
        calibrate(options, tmp_path / "out", hand=HAND)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_covariance_that_is_none(files, tmp_path):
    """A stated covariance that is not positive definite: refused with the frame's name."""
    person = NETWORK.people(0, 1)[0]
    person.covariances[3] = -np.eye(10)
    path = write_people(tmp_path / "p.npz", [person], HAND)
    with pytest.raises(InputError, match=r"pred_shape_cov of subject-0/seq_0/cam_1/1.jpg is no covariance \(1 such rows"):
        calibrate(CalibrateOptions(predictions=str(path)), tmp_path / "out", hand=HAND)


def test_total_covariance_is_of_single_images(likelihood):
    """The spread of images about a person's mean, against many images of a person."""
    person = NETWORK.people(11, 1, sequences=60, cameras=20, frames=1)[0]
    images = likelihood.images(person)
    expected = np.trace(total_covariance(images, likelihood.effects).mean(0))
    np.testing.assert_allclose(np.trace(np.cov(images.means.T)), expected, rtol=0.25)
