"""Photographs and videos of one person's hand as predictions to calibrate from: rows, cameras, failures, and what is refused."""
import json

import numpy as np
import pytest
import torch

from src.calibrate_options import CalibrateOptions
from src.demo_hand import Keypoints
from src.photographs import predict_photographs
from tests.demo_cases import CPU, HAND, HEIGHT, WIDTH, CropLike, K, box_of, save, save_json
from tests.test_exif import FOCAL_35MM, photo
from tests.track_cases import NoisyOracle, cut_file, moving_hand, pictures_of, video_of
from utils.camera import K_of_mirror
from utils.errors import InputError
from utils.predictions import read_predictions

TRUTHS = moving_hand(8)


def predicted(tmp_path, method=None, **options):
    """The predictions that a calibration would read, and the options it would get."""
    chosen = predict_photographs(method or NoisyOracle(TRUTHS, 0.02), HAND, CalibrateOptions(**options), tmp_path / "out",
                                 CropLike(), CPU, checkpoint="c.pt")
    return read_predictions(chosen.predictions), chosen


@pytest.fixture
def folder(tmp_path) -> dict:
    """A folder of eight photographs, half of them of the left hand, with boxes and K, as options."""
    (tmp_path / "anna").mkdir()
    boxes = {}
    for t, (truth, picture) in enumerate(zip(TRUTHS, pictures_of(TRUTHS))):
        left, top, width, height = box_of(truth)
        if t % 2:
            picture, left = picture[:, ::-1], WIDTH - 1 - left - width
        save(tmp_path / "anna" / f"{t}.png", picture)
        boxes[f"{t}.png"] = {"box": [left, top, width, height], "side": "left" if t % 2 else "right"}
    return {"input": str(tmp_path / "anna"), "boxes": save_json(tmp_path / "b.json", boxes), "subject": 5,
            "K": save_json(tmp_path / "K.json", K.tolist())}


def test_rows(folder, tmp_path):
    """Every picture is a row: its subject, name, side, the K of the mirrored picture behind crop and crop matrix, and the
    method's answer; nothing that only the demo makes up."""
    file, chosen = predicted(tmp_path, **folder)
    assert chosen.predictions == str(tmp_path / "out" / "photographs.npz") and chosen.subject == 5
    assert np.asarray(file["name"]).tolist() == [f"anna/{t}.png" for t in range(8)]
    assert set(file["subject"]) == {5} and file["mirrored"].tolist() == [False, True] * 4
    for t in range(8):
        whole = np.linalg.inv(file["crop_from_image"][t].astype(float)) @ file["K"][t]
        expected = K_of_mirror(torch.from_numpy(K), WIDTH).numpy() if t % 2 else K
        np.testing.assert_allclose(whole, expected, atol=1e-3)
    np.testing.assert_allclose(file["pred_shape"].mean(0), TRUTHS[0].shape, atol=0.2)
    assert "pred_root" not in file and "pred_joints_uv" not in file and "pred_rotations" in file
    file.require_hand(HAND.name, HAND.sha256)
    assert file.meta["checkpoint"] == "c.pt" and file.meta["dataset"]["dataset"] == "photographs"
    assert file.meta["dataset"]["K"] == {f"file {folder['K']}": 8}


def test_second_networks_keypoints(folder, tmp_path):
    """With a second network the file has 2D joints of the whole (mirrored) picture, which joint fits read."""
    second = Keypoints(NoisyOracle(TRUTHS, uv=True), CropLike(96, 2.0))
    options = CalibrateOptions(**folder, keypoints="out/pose2d")
    chosen = predict_photographs(NoisyOracle(TRUTHS), HAND, options, tmp_path / "out", CropLike(), CPU, checkpoint="c.pt",
                                 keypoints=second)
    assert chosen.keypoints is None
    file = read_predictions(chosen.predictions)
    rays = (TRUTHS[2].joints + TRUTHS[2].root).numpy() @ K.T
    np.testing.assert_allclose(file["pred_joints_uv"][2], rays[:, :2] / rays[:, 2:], atol=1e-3)
    assert file["pred_uv_confidence"].shape == (8, 21)


def test_some_frames_of_a_video(tmp_path, monkeypatch):
    """A video longer than is looked at: frames evenly spread over it, by name; one recording."""
    monkeypatch.setattr("src.photographs.MOST", 3)
    path = video_of(tmp_path / "clip.avi", pictures_of(TRUTHS))
    file, _ = predicted(tmp_path, input=str(path), n=1, fov=60)
    names = np.asarray(file["name"]).tolist()
    assert len(names) == 3 and len(set(names)) == 3 and all(name.startswith("clip.avi/00000") for name in names)
    assert np.ptp(file["index"]) >= 4


def test_a_video_that_ends_early(tmp_path, caplog):
    """What could be read counts, and one line says what is missing."""
    path = cut_file(video_of(tmp_path / "clip.avi", pictures_of(TRUTHS)), 0.6)
    file, _ = predicted(tmp_path, input=str(path), fov=60)
    assert 2 <= len(file) < 8 and "the video ends after" in caplog.text and file.meta["dataset"]["cut_short"]


def test_cameras_are_told(tmp_path, caplog):
    """EXIF where a photograph has it, nominal where not: both counted, and a nominal camera is warned of."""
    (tmp_path / "mixed").mkdir()
    for t in range(4):
        photo(tmp_path / "mixed" / f"{t}.jpg", {FOCAL_35MM: 26} if t else {}, (WIDTH, HEIGHT))
    file, _ = predicted(tmp_path, input=str(tmp_path / "mixed"))
    cameras = file.meta["dataset"]["K"]
    assert sorted((words.partition(":")[0], count) for words, count in cameras.items()) == [("EXIF", 3), ("nominal", 1)]
    assert "EXIF in 3" in caplog.text and "nominal in 1 pictures, so the size of the hand is a guess" in caplog.text


def test_pictures_that_fail_are_named(folder, tmp_path, caplog):
    """A broken picture and one without a box: named and counted, and the others are in the file."""
    (tmp_path / "anna" / "3.png").write_bytes(b"no picture")
    boxes = json.loads((tmp_path / "b.json").read_text())
    del boxes["6.png"]
    save_json(tmp_path / "b.json", boxes)
    file, _ = predicted(tmp_path, **folder)
    assert len(file) == 6 and file.meta["dataset"]["failed"] == 2
    assert "2 pictures could not be used: " in caplog.text and "3.png: expected a picture" in caplog.text
    assert "6.png: the box file has no entry" in caplog.text


@pytest.mark.parametrize(("method", "options", "message"), [
    (NoisyOracle(TRUTHS, told=True), {}, "calibrate.input: this model is told whose hand it sees"),
    (NoisyOracle(TRUTHS, parameters=False), {}, "^calibrate.input: this model predicts no shape"),
    (None, {"fov": 50}, "calibrate.K and calibrate.fov are both given"),
    (None, {"input": "anna/0.png"}, "1 usable picture of a hand; at least 2 are needed"),
    (None, {"input": "nowhere"}, "calibrate.input: expected a picture"),
    (None, {"boxes": "pair.json"}, "0 usable .*2 hands, right and right: one person has one of each"),
    (None, {"boxes": "none.json"}, "0 usable pictures of a hand; at least"),
])
def test_bad_input(folder, tmp_path, monkeypatch, method, options, message):
    """Each wrong method, option or set of pictures: one line, and no file."""
    monkeypatch.chdir(tmp_path)
    save_json(tmp_path / "pair.json", [[10, 10, 50, 50], [90, 90, 50, 50]])
    save_json(tmp_path / "none.json", {f"{t}.png": None for t in range(8)})
    with pytest.raises(InputError, match=message) as caught:
        predicted(tmp_path, method, **{**folder, **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
