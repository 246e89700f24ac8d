"""src/plots.py and test.plots: which frames are drawn, where the hand is put, left hands, and that all is on disk at the end."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from eval_cases import toy_hand

import src.plots
from src.plots import Plot, Plots, plot_of
from src.predict import TestOptions
from tests.demo_cases import HAND, a_hand
from tests.test_evaluate import Source, Toy, run
from utils.batch import Batch, Prediction
from utils.camera import project
from utils.errors import InputError
from utils.mesh_files import read_ply
from utils.panels import five_panels

TRUTH = a_hand(root=(-0.02, 0.03, 0.5))
FACES = HAND.faces.numpy()
K = torch.tensor([[300.0, 0, 40], [0, 300, 36], [0, 0, 1]])


@pytest.fixture(scope="module")
def toy():
    """A toy hand, float32 as in a method."""
    return toy_hand().float()


def sample(mirrored: bool = False, **fields) -> Batch:
    """A grey crop of 80 pixels, of row 3."""
    image = torch.full((1, 3, 80, 80), 0.25)
    image[:, 0, :, :8] = 1
    return Batch(image=image, K=K[None], crop_from_image=torch.tensor([[[2.0, 0, -30], [0, 2, -10], [0, 0, 1]]]),
                 mirrored=torch.tensor([mirrored]), index=torch.tensor([3]), subject=torch.tensor([0]), **fields)


def answer(**fields) -> Prediction:
    return Prediction(TRUTH.verts[None], TRUTH.joints[None], **fields)


def test_a_predicted_place_is_the_place():
    """Picture in 0..255, mesh at the root, the crop's K; mask and 2D joints as answered; no notes."""
    uv, mask = torch.rand(1, 21, 2) * 80, torch.rand(1, 20, 20)
    plot = plot_of(sample(), answer(root=TRUTH.root[None], joints_uv=uv, mask=mask), FACES)
    assert (plot.picture[0, 0] == [255, 64, 64]).all() and (plot.picture[0, 40] == 64).all()
    np.testing.assert_allclose(plot.verts, TRUTH.verts + TRUTH.root, atol=1e-6)
    np.testing.assert_allclose(plot.uv, uv[0])
    assert (plot.mask == mask[0].numpy()).all() and plot.absolute and plot.notes == ("", "") and (K.numpy() == plot.K).all()


@pytest.mark.parametrize("given", ["own", "from a file"])
def test_2d_joints_place_a_hand(given):
    """Without a root: exact 2D joints of the crop, or a file's of the whole picture, put the hand where it is."""
    uv = project(TRUTH.joints + TRUTH.root, K)[None]
    whole = (uv + torch.tensor([30, 10])) / 2
    asked = []

    def uv_of(rows, mirrored):
        asked.append((rows, mirrored.tolist()))
        return whole.numpy(), np.ones((1, 21))

    plot = plot_of(sample(), answer(joints_uv=uv) if given == "own" else answer(), FACES, uv_of)
    np.testing.assert_allclose(plot.joints, TRUTH.joints + TRUTH.root, atol=1e-4)
    np.testing.assert_allclose(plot.uv, uv[0], atol=1e-4)
    assert plot.absolute and plot.place == "from 2D keypoints and K" and asked == ([] if given == "own" else [([3], [False])])


def test_a_stand_in_place_is_said():
    """Nobody knows: the true wrist where there is one, else mid-crop, in words; the space is then relative."""
    at_truth = plot_of(sample(root=TRUTH.root[None]), answer(), FACES)
    np.testing.assert_allclose(at_truth.joints[0], TRUTH.root, atol=1e-6)
    unlabelled = {"root": torch.full((1, 3), torch.nan), "has_root": torch.tensor([False])}
    for fields in ({}, unlabelled):
        plot = plot_of(sample(**fields), answer(), FACES)
        uv = project(torch.from_numpy(plot.joints).float(), K)
        np.testing.assert_allclose((uv.amin(0) + uv.amax(0)) / 2, 39.5, atol=0.01)
        assert not plot.absolute and plot.notes.place == plot.place == "placed in mid-crop"
    assert not at_truth.absolute and at_truth.notes.place == "placed at the true wrist"


def test_left_hands_are_shown_as_they_were():
    """A mirrored row: everything mirrored back, so that joints still project on the 2D joints; twice is the identity."""
    uv = project(TRUTH.joints + TRUTH.root, K)[None]
    told = answer(root=TRUTH.root[None], joints_uv=uv, mask=torch.rand(1, 20, 20))
    right, left = (plot_of(sample(mirrored=side), told, FACES) for side in (False, True))
    assert (left.picture[:, ::-1] == right.picture).all() and left.side == "left" and right.side == "right"
    np.testing.assert_allclose(project(torch.from_numpy(left.joints), torch.from_numpy(left.K)), left.uv, atol=1e-3)
    np.testing.assert_allclose(left.uv[:, 0], 79 - right.uv[:, 0], atol=1e-4)
    again = left.mirrored()
    for name in Plot._fields[:7]:
        np.testing.assert_allclose(getattr(again, name), getattr(right, name), atol=1e-12)
    normal = [np.cross(*(p.verts[p.faces[:, i]] - p.verts[p.faces[:, 0]] for i in (1, 2))) for p in (right, left)]
    np.testing.assert_allclose(normal[0] * [-1, 1, 1], normal[1], atol=1e-12)  # outward stays outward


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_files_hold_what_the_panels_show(tmp_path):
    """A JPEG of the very panels, colours in order, and the mesh in the camera; only of chosen rows; an earlier test's go."""
    (tmp_path / "p").mkdir()
    for name in ("00099_plot.jpg", "00099_mesh.ply", "notes.txt"):
        (tmp_path / "p" / name).write_bytes(b"")
    told = answer(root=TRUTH.root[None])
    with Plots(tmp_path / "p", [3], HAND) as plots:
        plots.add(sample(), told)
    with Plots(tmp_path / "q", [4], HAND) as plots:
        plots.add(sample(), told)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["00003_mesh.ply", "00003_plot.jpg", "notes.txt"]
    assert not (tmp_path / "q").exists()
    plot = plot_of(sample(), told, FACES)
    expected = five_panels(*plot[:7], absolute=plot.absolute, notes=plot.notes)
    assert np.abs(read(tmp_path / "p" / "00003_plot.jpg").astype(int) - expected).mean() < 2
    np.testing.assert_allclose(read_ply(tmp_path / "p" / "00003_mesh.ply")[0], plot.verts, atol=1e-6)


@pytest.mark.parametrize(("asked", "frames", "rows"), [
    (0, None, None), (3, None, [0, 4, 8]), (-1, 5, [0, 2, 4, 7, 9]), (2, 5, [0, 4]), (99, None, list(range(12)))])
def test_which_frames(toy, tmp_path, asked, frames, rows):
    """test.plots of 12 frames: none, some evenly spread over those tested, all; scores are the same."""
    table = run(Toy(toy), toy, tmp_path, plots=asked, frames=frames, report=False)
    assert "MPJPE" in table
    if rows is None:
        assert not (tmp_path / "plots").exists()
    else:
        names = sorted(path.name for path in (tmp_path / "plots").iterdir())
        assert names == [f"{row:05d}_{end}" for row in rows for end in ("mesh.ply", "plot.jpg")]


def test_drawing_goes_on_beside_the_network_within_bounds(toy, tmp_path, monkeypatch):
    """With room for one waiting picture, all are still drawn; faults of the drawing end the test, and close its threads."""
    monkeypatch.setattr(src.plots, "WAITING", 1)
    run(Toy(toy), toy, tmp_path, plots=-1, report=False)
    assert len(list((tmp_path / "plots").glob("*_plot.jpg"))) == len(Source(toy))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(src.plots, "write_both", full)
    with pytest.raises(OSError, match="No space left"):
        run(Toy(toy), toy, tmp_path / "full", plots=2, report=False)
    assert not (tmp_path / "full" / "predictions.npz").exists()


def test_a_method_without_a_mesh_is_refused(toy, tmp_path):
    """2D joints alone cannot be shown: one line."""
    with pytest.raises(InputError, match="test.plots: this method predicts no mesh"):
        run(Toy(toy, mesh=False, uv=True), toy, tmp_path, plots=1)


def test_options():
    """-1, 0 and counts; nothing below."""
    assert TestOptions().plots == 0 and TestOptions(plots=-1).plots == -1
    with pytest.raises(ValueError, match="plots"):
        TestOptions(plots=-2)
