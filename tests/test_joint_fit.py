"""src/joint_fit.py: shapes from keypoints and depth against the people they were made of; what is refused."""
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fit_cases import HAND, K, write_case

from src.calibrate import CalibrateOptions, calibrate
from src.calibration_basis import hand_size_mm, rest_mesh_basis, rest_mesh_mm
from src.calibration_draws import orders_of_draw
from src.calibration_people import select_people
from src.identity import read_identity
from src.joint_fit import estimates
from src.joint_fit_data import frames_of, moments_of, triangulate
from src.joint_fit_noise import RawFit, Stated, measure_noise
from src.joint_fit_options import FitOptions
from utils.errors import InputError
from utils.predictions import read_predictions

SHAPES = np.random.default_rng(7).normal(size=(3, 10))
BASIS = rest_mesh_basis(HAND)


def estimated(path: Path, method: str, n: int, fit: dict | None = None, **options):
    """The estimator on everybody of a predictions file."""
    chosen = CalibrateOptions(method=method, n=n, fit=FitOptions(**(fit or {})), **options)
    selection = selected(path)
    return estimates(selection, orders_of_draw(selection.people, 0), chosen, HAND)


def selected(path: Path):
    return select_people(read_predictions(path), HAND, sequences=[], subjects=[], sides="both", confidence=False, shapes=False)


def mesh_errors(found, shapes: np.ndarray = SHAPES) -> list[float]:
    return [float(rest_mesh_mm(BASIS, found[subject].shape - shape)) for subject, shape in enumerate(shapes, 1)]


def size_errors(found, shapes: np.ndarray = SHAPES) -> list[float]:
    return [abs(float(hand_size_mm(HAND, found[subject].shape)) - float(hand_size_mm(HAND, shape)))
            for subject, shape in enumerate(shapes, 1)]


def test_views_without_noise(tmp_path: Path):
    """Exact keypoints of four cameras and two moments: every person's hand to half a millimetre, from shapes 60 % wrong."""
    write_case(tmp_path / "p.npz", SHAPES)
    found = estimated(tmp_path / "p.npz", "views", 2, {"keypoint_px": 0.2, "alike": 0.0})
    assert max(mesh_errors(found)) < 0.5 and max(size_errors(found)) < 0.2
    assert all(estimate.n == 8 and estimate.cue == "calibrated cameras (8 pictures of 2 moments)" for estimate in found.values())
    assert set(found[1].frames) == {f"subject-01/take-{m}/cam-{c}/color_{m:06d}.jpg" for m in range(2) for c in range(4)}


def test_more_cameras_know_more(tmp_path: Path):
    """Keypoints 1.5 px off: the stated covariance falls with the cameras, and the shape errs by less than 3 deviations."""
    write_case(tmp_path / "p.npz", SHAPES, px=1.5)
    few, many = (estimated(tmp_path / "p.npz", "views", 2, {"cameras": cameras, "keypoint_px": 1.5}) for cameras in (2, 4))
    for subject, shape in enumerate(SHAPES, 1):
        assert few[subject].n == 4 and many[subject].n == 8
        assert np.trace(many[subject].covariance) < np.trace(few[subject].covariance) < 10
        off = many[subject].shape - shape
        assert off @ np.linalg.inv(many[subject].covariance) @ off < 10 + 3 * np.sqrt(20)


def test_single_pictures_keep_the_prior_of_size(tmp_path: Path):
    """Single views know no size: without a likelihood the first coefficient stays as uncertain as the prior, and the cue says so;
    they do say something of the proportions."""
    write_case(tmp_path / "p.npz", SHAPES, moments=6, cameras=1)
    found = estimated(tmp_path / "p.npz", "joint", 6, {"keypoint_px": 0.5, "alike": 0.0})
    for estimate in found.values():
        assert estimate.cue.startswith("none: the hand model's mean")
        assert estimate.covariance[0, 0] > 0.8 and np.diag(estimate.covariance)[1:4].min() < 0.5


@pytest.mark.parametrize("mirrored", [False, True])
def test_depth_of_one_picture(tmp_path: Path, mirrored: bool):
    """One depth picture, keypoints 1 px off: sizes to 2 mm, meshes four times as near as the network's; left hands alike,
    whose pictures are mirrored in reading."""
    write_case(tmp_path / "p.npz", SHAPES, moments=1, cameras=1, px=1.0, mirrored=mirrored, depth_root=tmp_path)
    found = estimated(tmp_path / "p.npz", "depth", 1, depth_root=str(tmp_path))
    assert max(size_errors(found)) < 2 and max(mesh_errors(found)) < 1.5
    assert np.mean(mesh_errors(found)) < np.mean([rest_mesh_mm(BASIS, 0.6 * shape) for shape in SHAPES]) / 4
    assert all(e.n == 1 and e.cue == "depth camera (1 picture)" and e.settings["explained"][0] > 0.92 for e in found.values())


def test_hidden_hands_do_not_count(tmp_path: Path):
    """A depth picture with something in front of the hand is passed over for the person's next one; with nothing else there is
    nobody to calibrate."""
    made = write_case(tmp_path / "p.npz", SHAPES[:1], moments=3, cameras=1, px=0.5, depth_root=tmp_path)
    order = orders_of_draw(selected(tmp_path / "p.npz").people, 0)[1]
    for tried, row in enumerate(order):
        name = str(made["name"][row]).replace("color_", "aligned_depth_to_color_").replace(".jpg", ".png")
        hide(tmp_path / name)
        if tried < 2:
            found = estimated(tmp_path / "p.npz", "depth", 1, depth_root=str(tmp_path))
            assert found[1].frames == (made["name"][order[tried + 1]],) and found[1].settings["tried"] == tried + 2
    with pytest.raises(InputError, match="nobody can be calibrated: no depth picture that shows a hand"):
        estimated(tmp_path / "p.npz", "depth", 1, depth_root=str(tmp_path))


def hide(path: Path) -> None:
    """A box half a metre from the camera over most of the picture."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    picture[60:200, 60:260] = 500
    cv2.imwrite(str(path), picture)


def test_keypoints_of_another_file(tmp_path: Path):
    """Keypoints come from a file of their own, matched by name whatever its order; one that lacks a frame is refused."""
    write_case(tmp_path / "p.npz", SHAPES[:1], without=("pred_joints_uv", "pred_uv_confidence"), columns={"pred_verts": np.zeros(
        (8, 778, 3)), "pred_joints": np.zeros((8, 21, 3))})
    made = write_case(tmp_path / "q.npz", SHAPES[:1])
    back = {key: value[::-1] for key, value in made.items()}
    write_case(tmp_path / "uv.npz", SHAPES[:1], columns=back)
    exact = {"keypoint_px": 0.2, "alike": 0.0}
    one = estimated(tmp_path / "p.npz", "views", 2, exact, keypoints=str(tmp_path / "uv.npz"))
    assert np.allclose(one[1].shape, estimated(tmp_path / "q.npz", "views", 2, exact)[1].shape, atol=1e-6)
    with pytest.raises(InputError, match=r"p.npz: no 2D keypoints \(pred_joints_uv\) to fit to; name a file of a 2D network's"):
        estimated(tmp_path / "p.npz", "views", 2)
    write_case(tmp_path / "few.npz", SHAPES[:1], moments=1)
    with pytest.raises(InputError, match=r"few.npz: calibrate.keypoints has no row of subject-01/take-1/cam-\d/color_000001.jpg "
                                         "and 3 others of the 8 frames chosen from"):
        estimated(tmp_path / "p.npz", "views", 2, keypoints=str(tmp_path / "few.npz"))


def test_bad_keypoints_are_left_out(tmp_path: Path):
    """Moments whose keypoints belong to no hand do not count, and are told; NaN and zero confidence are missing keypoints."""
    made = write_case(tmp_path / "a.npz", SHAPES[:1], moments=3)
    uv, confidence = made["pred_joints_uv"].copy(), made["pred_uv_confidence"].copy()
    uv[0, 3], confidence[1, 5] = np.nan, 0.0
    uv[1, 5] = 1e4
    uv[8:] = np.random.default_rng(0).uniform(0, 200, uv[8:].shape)
    write_case(tmp_path / "b.npz", SHAPES[:1], moments=3, columns={"pred_joints_uv": uv, "pred_uv_confidence": confidence})
    found = estimated(tmp_path / "b.npz", "views", 3, {"keypoint_px": 0.5, "alike": 0.0})
    assert found[1].n == 8 and found[1].warnings == ("1 of 3 frames left out: no place found, or keypoints far from any hand",)
    assert mesh_errors(found, SHAPES[:1])[0] < 0.8


def test_moments(tmp_path: Path):
    """Only moments of two cameras whose place is known count, at most so many cameras of each."""
    made = write_case(tmp_path / "p.npz", SHAPES[:1], moments=3, cameras=3)
    pose = made["world_from_camera"].copy()
    pose[[0, 1]] = np.nan
    write_case(tmp_path / "p.npz", SHAPES[:1], moments=3, cameras=3, columns={"world_from_camera": pose})
    frames = frames_of(read_predictions(tmp_path / "p.npz"), np.arange(9), None, FitOptions())
    assert moments_of(frames, range(9), 8) == [[3, 4, 5], [6, 7, 8]]
    assert moments_of(frames, range(8, -1, -1), 2) == [[8, 7], [5, 4]]


def test_triangulation():
    """Exact rays meet in the point; two equal cameras leave it unknown."""
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (5, 3))
    pose = np.tile(np.eye(4), (3, 1, 1))
    pose[:, :3, 3] = [[0, 0, -0.6], [0.2, 0, -0.6], [0.2, 0, -0.6]]
    seen = (points - pose[:, None, :3, 3]) @ K.T
    uv = seen[..., :2] / seen[..., 2:]
    found, known = triangulate(uv[:2], np.ones((2, 5)), np.tile(K, (2, 1, 1)), pose[:2])
    assert known.all() and np.allclose(found, points, atol=1e-9)
    assert not triangulate(uv[1:], np.ones((2, 5)), np.tile(K, (2, 1, 1)), pose[1:])[1].any()


def raw_fit(told: np.ndarray, said: np.ndarray, prior: tuple[np.ndarray, np.ndarray], n: int) -> RawFit:
    """The fit of n pictures of information `told` each, which put the shape at `said`."""
    covariance = np.linalg.inv(np.linalg.inv(prior[1]) + n * told)
    return RawFit(covariance @ (np.linalg.inv(prior[1]) @ prior[0] + n * told @ said), covariance, *prior, n)


def test_common_errors_do_not_average_away():
    """Stated: independent errors change nothing; common ones leave n pictures what one has; a prior alone stays the prior."""
    draw = np.random.default_rng(0)
    root = draw.normal(size=(10, 10))
    told, prior, said = root @ root.T, (draw.normal(size=10), np.diag(draw.uniform(0.5, 2, 10))), draw.normal(size=10)
    fit, one, four = (raw_fit(told, said, prior, n) for n in (8, 1, 4))
    for stated, factor, expected in ((Stated(0.0), 1, fit), (Stated(1.0), 1, one), (Stated(0.25), np.inf, four)):
        mean, covariance = stated.posterior(fit, factor)
        assert np.allclose(mean, expected.mean) and np.allclose(covariance, expected.covariance)
    assert Stated(0.25).effective_n(fit) == pytest.approx(8 / 2.75)
    empty = raw_fit(0 * told, said, prior, 3)
    assert np.allclose(Stated(0.3).posterior(empty)[0], prior[0]) and np.allclose(Stated(0.3).posterior(empty)[1], prior[1])


def test_measured_noise_is_undone():
    """Fits that shrink long fingers, are off for everybody and err about a person: measured on 60 people, the posterior of 60
    others is unbiased, nearer than the fits, and its 68 % interval holds 62-74 %."""
    draw = np.random.default_rng(1)
    told, slope, offset = np.diag(draw.uniform(5, 200, 10)), np.diag(draw.uniform(0.4, 1, 10)), draw.normal(size=10)
    prior = np.zeros(10), np.eye(10)

    def person() -> tuple[np.ndarray, RawFit]:
        truth = draw.normal(size=10)
        said = offset + slope @ truth + 0.4 * draw.normal(size=10) + draw.normal(size=10) / np.sqrt(np.diag(told))
        return truth, raw_fit(told, said, prior, 1)

    (known, fits), (truth, others) = (zip(*(person() for _ in range(60))) for _ in range(2))
    noise = measure_noise(fits, np.array(known))
    mean, covariance = (np.stack(x) for x in zip(*map(noise.posterior, others)))
    error, before = mean - truth, np.stack([fit.mean for fit in others]) - truth
    assert np.abs(error.mean(0)).max() < 0.35 and np.square(error).mean() < 0.5 * np.square(before).mean()
    assert 0.62 < (np.abs(error) < np.sqrt(np.einsum("pii->pi", covariance))).mean() < 0.74
    more = noise.posterior(others[0], np.inf)[1]
    assert (np.diag(more) <= np.diag(covariance[0])).all() and np.diag(more).max() > 0.05
    assert 0 < noise.effective_n(others[0]) < 1


def test_validation_people_measure_the_noise(tmp_path: Path):
    """With calibrate.validation the fit's errors are measured on its people: a keypoint network that draws hands 4 % too small
    is seen through; people without known shapes, and too few of them, are refused."""
    def drawn_small(path: Path, shapes: np.ndarray, seed: int, **more) -> None:
        made = write_case(path, shapes, moments=1, cameras=3, px=0.5, seed=seed)
        uv = made["pred_joints_uv"]
        middle = uv.mean(1, keepdims=True)
        write_case(path, shapes, moments=1, cameras=3, px=0.5, seed=seed,
                   columns={"pred_joints_uv": middle + 0.96 * (uv - middle), **more})

    shapes = np.random.default_rng(3).normal(size=(28, 10))
    drawn_small(tmp_path / "val.npz", shapes[:24], 1)
    drawn_small(tmp_path / "p.npz", shapes[24:], 2)
    plain = estimated(tmp_path / "p.npz", "views", 1)
    told = estimated(tmp_path / "p.npz", "views", 1, validation=str(tmp_path / "val.npz"))
    assert np.mean(size_errors(plain, shapes[24:])) > 4 and np.mean(size_errors(told, shapes[24:])) < 2.5
    assert told[1].settings["noise"]["people"] == 24 and plain[1].settings["noise"] == {"stated": True, "alike": 0.2}
    drawn_small(tmp_path / "few.npz", shapes[:3], 1)
    with pytest.raises(InputError, match="few.npz: calibrate.validation: expected at least 8 people whom method views can fit"):
        estimated(tmp_path / "p.npz", "views", 1, validation=str(tmp_path / "few.npz"))
    drawn_small(tmp_path / "unknown.npz", shapes[:9], 1, true_shape=np.full((27, 10), np.nan))
    with pytest.raises(InputError, match="unknown.npz: calibrate.validation needs people of known shape, but subject 1 has no"):
        estimated(tmp_path / "p.npz", "views", 1, validation=str(tmp_path / "unknown.npz"))


@pytest.mark.parametrize(("method", "without", "line"), [
    ("views", ("world_from_camera",), "needs the cameras' places, but the file has no column world_from_camera; predict on a"),
    ("views", ("instant",), "needs the cameras' places, but the file has no column instant"),
    ("joint", ("pred_rotations",), "p.npz: no column pred_rotations"),
    ("depth", (), "set calibrate.depth_root to the folder that the frames' names start from"),
])
def test_refused_files(tmp_path: Path, method: str, without: tuple[str, ...], line: str):
    """What a method needs and a file or the options lack, in one line."""
    write_case(tmp_path / "p.npz", SHAPES[:1], without=without)
    with pytest.raises(InputError, match=line) as caught:
        estimated(tmp_path / "p.npz", method, 2)
    assert "\n" not in str(caught.value)


def test_refused_contents(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """One camera only, no confident keypoint, K that cannot be inverted, no depth picture: a line each; one of two people
    without a second camera is left out, aloud."""
    write_case(tmp_path / "one.npz", SHAPES[:1], cameras=1)
    with pytest.raises(InputError, match="nobody can be calibrated: no moment that two cameras with known places saw"):
        estimated(tmp_path / "one.npz", "views", 2)
    with pytest.raises(InputError, match=r"cam-0/aligned_depth_to_color_00000\d.png: expected a depth picture, found nothing"):
        estimated(tmp_path / "one.npz", "depth", 1, depth_root=str(tmp_path))
    write_case(tmp_path / "two.npz", SHAPES[:1], columns={"pred_uv_confidence": np.zeros((8, 21))})
    with pytest.raises(InputError, match="two.npz: none of the 8 chosen frames has four keypoints of positive confidence"):
        estimated(tmp_path / "two.npz", "joint", 8)
    write_case(tmp_path / "K.npz", SHAPES[:1], columns={"K": np.zeros((8, 3, 3))})
    with pytest.raises(InputError, match=r"K.npz: K or crop_from_image of subject-01/\S+ cannot be inverted \(8 such rows\)"):
        estimated(tmp_path / "K.npz", "joint", 8)
    made = write_case(tmp_path / "half.npz", SHAPES[:2])
    pose = made["world_from_camera"].copy()
    pose[:7] = np.nan
    write_case(tmp_path / "half.npz", SHAPES[:2], columns={"world_from_camera": pose})
    with caplog.at_level(logging.WARNING):
        assert set(estimated(tmp_path / "half.npz", "views", 2)) == {2}
    assert "left out, no moment that two cameras with known places saw: subjects [1]" in caplog.text


def test_the_command(tmp_path: Path):
    """calibrate.method=views, with a ruler on top: an identity file with its cue, covariance and frames."""
    write_case(tmp_path / "p.npz", SHAPES[:1], px=1.0)
    size = float(hand_size_mm(HAND, SHAPES[0]))
    options = CalibrateOptions(predictions=str(tmp_path / "p.npz"), method="views", n=2, curve_methods=["random"], curve_n=[1],
                               measured=f"wrist_to_middle_tip:{size}mm+-1mm")
    calibrate(options, tmp_path / "out", hand=HAND)
    identity = read_identity(tmp_path / "out" / "1.json", HAND)
    assert identity.cue == "ruler; calibrated cameras (8 pictures of 2 moments)" and len(identity.frames) == identity.n == 8
    assert abs(float(hand_size_mm(HAND, identity.shape)) - size) < 1.5
    assert identity.stop["floor_mm"] < identity.mesh_sd_mm and torch.isfinite(torch.from_numpy(identity.vertex_sd_mm)).all()
