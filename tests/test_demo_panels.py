"""demo.panels: names, content and sides of the five-panel pictures, and camera matrices that are not the picture's."""
import json

import cv2
import numpy as np
import pytest
import torch

import src.demo
from src.demo import DemoOptions, demo
from src.demo_plots import plot_names
from tests.demo_cases import (
    CPU,
    HAND,
    HEIGHT,
    WIDTH,
    CropLike,
    K,
    Oracle,
    a_hand,
    box_of,
    iou,
    picture_of,
    save,
    save_json,
    scene,
)
from utils.batch import Batch, Prediction
from utils.camera import project
from utils.errors import InputError
from utils.mesh_files import read_ply

__all__ = ["scene"]


class Seer(Oracle):
    """Also answers 2D joints, projected by the crop's K, and a mask: the crop's left half."""

    def decode(self, out, batch: Batch) -> Prediction:
        mask = torch.zeros(1, 16, 16)
        mask[..., :8] = 0.9
        return super().decode(out, batch)._replace(joints_uv=project(out.joints + out.root, batch.K), mask=mask)


def show(method, tmp_path, where: str = "out", **options) -> list[np.ndarray]:
    """The five panels (RGB) of the one plot that the demo writes."""
    demo(method, HAND, DemoOptions(**options, panels=True), tmp_path / where, CropLike(), CPU)
    (path,) = (tmp_path / where).glob("*_plot.jpg")
    picture = cv2.imread(str(path))[..., ::-1]
    assert picture.shape == (224, 1120, 3)
    return np.split(picture.astype(int), 5, axis=1)


def red(panel: np.ndarray) -> np.ndarray:
    """(h,w) bool: where the panel is reddish, without caption and seams."""
    found = panel[..., 0] - panel[..., 1:].max(-1) > 50
    found[-16:], found[:, [0, 1, -1, -2]] = False, False
    return found


def test_folder_with_K_beside_gives_cmr_s_names(tmp_path):
    """NNN_img.jpg and NNN_K.npy in one folder: NNN_plot.jpg, NNN_mesh.ply, and the usual picture and JSON, which names them."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    for name in ("7_img", "12_img"):
        save(tmp_path / "in" / f"{name}.jpg", picture_of(truth))
        np.save(tmp_path / "in" / f"{name.removesuffix('_img')}_K.npy", K)
    options = DemoOptions(input=str(tmp_path / "in"), K=str(tmp_path / "in"), panels=True)
    assert demo(Oracle(truth, with_root=True), HAND, options, tmp_path / "out", CropLike(), CPU)["hands"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{number}_{end}" for number in (7, 12) for end in ("plot.jpg", "mesh.ply", "img.png", "img.json"))
    said = json.loads((tmp_path / "out" / "7_img.json").read_text())
    assert said["plots"] == ["7_plot.jpg"] and said["hands"][0]["mesh"] == "7_mesh.ply" and said["K"] == K.tolist()
    verts, faces = read_ply(tmp_path / "out" / "7_mesh.ply")
    np.testing.assert_allclose(verts, truth.verts + truth.root, atol=1e-6)
    assert (faces == HAND.faces.numpy()).all()


def test_names_stay_apart():
    """NNN_img gives NNN, another name itself, and two that would share one keep their whole names."""
    assert plot_names(["7_img", "8", "cup_of_tea"]) == ["7", "8", "cup_of_tea"]
    assert plot_names(["7_img", "7"]) == ["7_img", "7"] and plot_names(["_img"]) == ["_img"]


def test_two_hands_two_plots(tmp_path):
    """One picture with two boxes: numbered plots and meshes; without meshes, plots alone."""
    path = save(tmp_path / "a_img.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    boxes = save_json(tmp_path / "b.json", [{"box": [100, 100, 40, 40]}, {"box": [90, 80, 90, 90], "side": "left"}])
    options = {"input": str(path), "boxes": boxes, "panels": True}
    demo(Oracle(a_hand()), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a_img.png", "a_img.json", "a_mesh_0.ply", "a_mesh_1.ply", "a_plot_0.jpg", "a_plot_1.jpg"}
    demo(Oracle(a_hand()), HAND, DemoOptions(**options, meshes=False), tmp_path / "bare", CropLike(), CPU)
    assert not list((tmp_path / "bare").glob("*.ply")) and len(list((tmp_path / "bare").glob("a_plot_*.jpg"))) == 2


def test_without_the_option_nothing_changes(scene, tmp_path):
    """No plot, and the mesh keeps its name."""
    truth, _, options = scene
    demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["hand.json", "hand.ply", "hand.png"]


def test_the_crop_and_what_is_seen_in_it(scene, tmp_path):
    """The true hand: mesh and silhouette cover the crop's bright pixels; a predicted mask takes the silhouette's place."""
    truth, _, options = scene
    panels = show(Oracle(truth, with_root=True), tmp_path, **options)
    bright, dark = panels[1].min(-1) > 200, panels[1].max(-1) < 90  # hand and ground, where no bone covers them
    bright[-16:], dark[-16:] = False, False
    tinted = red(panels[0])
    assert tinted[bright].mean() > 0.94 and tinted[dark].mean() < 0.1
    masked = red(show(Seer(truth, with_root=True), tmp_path, "seer", **options)[0])
    half = np.zeros_like(masked)
    half[:-16, 2:112] = True
    assert iou(masked, half) > 0.95


def test_2d_joints_of_the_method_are_drawn_where_it_saw_them(scene, tmp_path):
    """A method's own 2D joints, carried to the picture and back to the panel, lie on the true ones' projection (no caption)."""
    truth, _, options = scene
    own, projected = (show(method, tmp_path, name, **options)[1] for name, method in (
        ("own", Seer(truth, with_root=True)), ("projected", Oracle(truth, with_root=True))))
    assert np.abs(own[:-16] - projected[:-16]).mean() < 1 and own[-8, 180].max() < 90
    assert (own[-14:] - projected[-14:]).mean() > 5  # the darkened strip


def test_left_hand_is_the_mirrored_picture(scene, tmp_path):
    """The mirrored picture as a left hand: the first three panels are mirrored (to the light's side and JPEG's rounding)."""
    truth, _, options = scene
    right = show(Seer(truth, with_root=True), tmp_path, "right", **options)
    (tmp_path / "mirrored").mkdir()
    mirrored = save(tmp_path / "mirrored" / "hand.png", picture_of(truth)[:, ::-1])
    x, y, w, h = box_of(truth)
    camera = K.copy()
    camera[0, 2] = WIDTH - 1 - K[0, 2]
    left = show(Seer(truth, with_root=True), tmp_path, "left", input=str(mirrored), side="left",
                boxes=save_json(tmp_path / "left.json", [WIDTH - 1 - x - w, y, w, h]),
                K=save_json(tmp_path / "K_left.json", camera.tolist()))
    for a, b in zip(right[:2], left[:2]):
        assert np.abs(a[:-16] - b[:-16, ::-1]).mean() < 3
    covered = [panel.max(-1) - panel.min(-1) > 0 for panel in (right[2], left[2])]
    assert np.abs(right[2][:-16] - left[2][:-16, ::-1]).mean() < 12 and covered[0].any()
    verts, _ = read_ply(tmp_path / "left" / "hand_mesh.ply")
    np.testing.assert_allclose(verts * [-1, 1, 1], truth.verts + truth.root, atol=1e-6)


def test_what_is_not_known_is_said(scene, tmp_path):
    """A stand-in place: relative axes without a camera. No K: `nominal` in the JSON and the panels; a given K has neither."""
    truth, path, options = scene
    known = show(Oracle(truth, with_root=True), tmp_path, "known", **options)
    lent = show(Oracle(truth), tmp_path, "lent", **options)
    nominal = show(Oracle(truth, with_root=True), tmp_path, "nominal", input=str(path), boxes=options["boxes"])
    words = [panels[3][2:13, 3:110].min() < 160 for panels in (known, lent, nominal)]
    assert words == [False, True, True]
    cameras = [red(panels[3]).sum() > 30 for panels in (known, lent, nominal)]
    assert cameras == [True, False, True]
    said = json.loads((tmp_path / "nominal" / "hand.json").read_text())
    assert said["K_source"].startswith("nominal: focal length = longer side")


@pytest.mark.parametrize(("metric", "note"), [(True, "placed by the box"), (False, "placed by the box, nominal camera")])
def test_a_stand_in_place_by_a_nominal_camera_says_both(scene, tmp_path, monkeypatch, metric, note):
    """The third panel says both where neither place nor camera is known: the axes are then about the wrist and name no camera."""
    truth, path, options = scene
    plots = []
    monkeypatch.setattr(src.demo, "write_panels", lambda file, plot: plots.append(plot))
    demo(Oracle(truth), HAND, DemoOptions(**{**options, "K": options["K"] if metric else None}, panels=True), tmp_path / "out",
         CropLike(), CPU)
    assert plots[0].notes.place == note


def test_a_K_in_other_units_than_pixels(scene, tmp_path):
    """K divided by the picture's width, as some programs write it: one line that names the focal length, nothing written."""
    truth, _, options = scene
    options["K"] = save_json(tmp_path / "other.json", (np.diag([1 / WIDTH, 1 / WIDTH, 1]) @ K).tolist())
    with pytest.raises(InputError, match=r"expected focal lengths in pixels of hand.png \(320 x 240\), found ") as caught:
        demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value) and "other.json" in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "message"), [
    (None, r"expected a principal point in hand.png \(320 x 240 pixels\), found \(400.0, 122.0\)"),
    ([640, 480], r"a camera matrix of pictures of size \[640, 480\], but hand.png has 320 x 240: scale K"),
])
def test_a_K_of_another_image_size(scene, tmp_path, size, message):
    """Principal point outside the picture, or a stated size that is not the picture's: one line, nothing written."""
    truth, _, options = scene
    other = K.copy()
    other[0, 2] = 400
    stated = other.tolist() if size is None else {"K": K.tolist(), "size": size}
    options["K"] = save_json(tmp_path / "other.json", stated)
    with pytest.raises(InputError, match=message) as caught:
        demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value) and "other.json" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_crop_s_K_may_look_past_it(scene, tmp_path):
    """A file that states the picture's size may have its principal point outside, by picture, too."""
    truth, _, options = scene
    other = K.copy()
    other[0, 2] = 400
    stated = {"K": other.tolist(), "size": [WIDTH, HEIGHT]}
    for number, value in enumerate((stated, {"hand.png": stated})):
        chosen = DemoOptions(**options | {"K": save_json(tmp_path / f"{number}.json", value)})
        demo(Oracle(truth), HAND, chosen, tmp_path / f"out{number}", CropLike(), CPU)
        assert json.loads((tmp_path / f"out{number}" / "hand.json").read_text())["K"] == other.tolist()


def test_a_track_has_no_panels(scene, tmp_path):
    """demo.panels with demo.track is refused in one line."""
    truth, path, options = scene
    chosen = DemoOptions(**options | {"input": str(path.parent)}, panels=True, track=True)
    with pytest.raises(InputError, match="demo.panels: five-panel pictures are of pictures"):
        demo(Oracle(truth), HAND, chosen, tmp_path / "out", CropLike(), CPU)
