"""Demo: a method that answers the truth about rendered hands, so that any fault of crop, camera, placement or side shows."""
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.demo import DemoOptions, demo
from src.demo_geometry import place_by_box, sample
from src.demo_hand import BY_BOX, PREDICTED
from src.demo_input import read_picture
from src.identity import Identity, write_identity
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
    silhouette,
)
from utils.camera import crop_matrix
from utils.hand import mirror_points
from utils.mesh_files import read_ply
from utils.rotation import matrix_from_axis_angle


def test_right_hand_lies_on_its_picture(scene, tmp_path):
    """With the true box and K: the root comes back to a tenth of a millimetre, the mesh covers its picture, the JSON says all."""
    truth, _, options = scene
    result = demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU, checkpoint="c.pt")
    text = f"1 picture, 1 hand -> {tmp_path / 'out'}"
    assert result == {"pictures": 1, "hands": 1, "folder": str(tmp_path / "out"), "text": text}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["hand.json", "hand.ply", "hand.png"]
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    (hand,) = said["hands"]
    np.testing.assert_allclose(hand["root"], truth.root, atol=1e-4)
    np.testing.assert_allclose(list(hand["joints"].values()), truth.joints, atol=1e-6)
    np.testing.assert_allclose(hand["rotations"], truth.rotations, atol=1e-6)
    assert hand["root_source"] == BY_BOX and hand["side"] == "right" and (hand["verts"], hand["faces"]) == (778, 1538)
    assert said["K"] == K.tolist() and said["K_source"].startswith("file ")
    assert said["checkpoint"] == "c.pt" and said["identity"] is None
    verts, faces = read_ply(tmp_path / "out" / "hand.ply")
    assert iou(silhouette(torch.from_numpy(verts), K), silhouette(truth.verts + truth.root, K)) > 0.98
    assert (faces == HAND.faces.numpy()).all()
    drawn = cv2.imread(str(tmp_path / "out" / "hand.png"))
    before = cv2.imread(options["input"])
    changed = (drawn != before).any(-1)
    assert iou(changed, silhouette(truth.verts + truth.root, K)) > 0.9


@pytest.mark.parametrize(("pixels", "factor"), [(64, 1.5), (224, 2.0), (33, 1.1)])
def test_the_network_sees_the_hand_where_K_says(scene, tmp_path, pixels, factor):
    """The truth rendered with the crop's K covers the crop's bright pixels, whatever its size; the box is its middle 1/factor."""
    truth, _, options = scene
    oracle = Oracle(truth)
    demo(oracle, HAND, DemoOptions(**options), tmp_path / "out", CropLike(pixels, factor), CPU)
    (batch,) = oracle.seen
    assert batch.image.shape == (1, 3, pixels, pixels) and not batch.mirrored.item()
    assert 0 <= batch.image.min() <= batch.image.max() <= 1
    seen = batch.image[0].mean(0).numpy() > 0.47
    assert iou(seen, silhouette(truth.verts + truth.root, batch.K[0], pixels, pixels)) > 0.9
    left, top, width, height = box_of(truth)
    corner = batch.crop_from_image[0].double().numpy() @ [left + width / 2, top + height / 2, 1]
    np.testing.assert_allclose(corner[:2], (pixels - 1) / 2, atol=1e-3)
    np.testing.assert_allclose(batch.crop_from_image[0, 0, 0], pixels / factor / max(width, height), rtol=1e-5)


def test_left_hand_is_the_mirrored_result(scene, tmp_path):
    """The mirrored picture as a left hand: same crop, and mirrored joints, root, rotations, mesh and overlay."""
    truth, path, options = scene
    right, left = Oracle(truth), Oracle(truth)
    demo(right, HAND, DemoOptions(**options), tmp_path / "right", CropLike(), CPU)
    (tmp_path / "mirrored").mkdir()
    mirrored = save(tmp_path / "mirrored" / "hand.png", picture_of(truth)[:, ::-1])
    x, y, w, h = box_of(truth)
    box = {"box": [WIDTH - 1 - x - w, y, w, h], "side": "left"}
    K_left = K.copy()
    K_left[0, 2] = WIDTH - 1 - K[0, 2]
    demo(left, HAND, DemoOptions(input=str(mirrored), boxes=save_json(tmp_path / "left.json", box),
                                 K=save_json(tmp_path / "K_left.json", K_left.tolist())), tmp_path / "left", CropLike(), CPU)
    a, b = right.seen[0], left.seen[0]
    assert b.mirrored.item()
    torch.testing.assert_close(a.K, b.K, atol=1e-3, rtol=0)
    torch.testing.assert_close(a.crop_from_image, b.crop_from_image, atol=1e-3, rtol=0)
    torch.testing.assert_close(a.image, b.image, atol=0.02, rtol=0)
    (said,) = json.loads((tmp_path / "left" / "hand.json").read_text())["hands"]
    assert said["side"] == "left"
    np.testing.assert_allclose(list(said["joints"].values()), mirror_points(truth.joints), atol=1e-6)
    np.testing.assert_allclose(said["root"], mirror_points(truth.root), atol=1e-4)
    turned = HAND.mirrored()(torch.tensor(said["rotations"]), truth.shape)
    verts, faces = read_ply(tmp_path / "left" / "hand.ply")
    relative = turned.verts - turned.chain[:1]
    np.testing.assert_allclose(verts - np.array(said["root"]), relative, atol=2e-6)
    assert (np.sort(faces, 1) == np.sort(HAND.faces.numpy(), 1)).all() and volume(verts, faces) > 0
    drawn_right, drawn_left = (cv2.imread(str(tmp_path / side / "hand.png")).astype(int) for side in ("right", "left"))
    assert np.abs(drawn_right - drawn_left[:, ::-1]).mean() < 1


def volume(verts: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume of a mesh (closed by its wrist loop's cone to the mean): positive where the faces look outward."""
    corners = (verts - verts.mean(0))[faces]
    return float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


def test_mesh_of_a_right_hand_looks_outward(scene, tmp_path):
    """The PLY's faces of a right hand enclose a positive volume."""
    truth, _, options = scene
    demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    assert volume(*read_ply(tmp_path / "out" / "hand.ply")) > 0


def test_whole_picture(scene, tmp_path):
    """Without boxes the picture is the crop: its longer side fits, the rest is black, and the hand fills 1/factor of it."""
    truth, path, _ = scene
    oracle = Oracle(truth)
    demo(oracle, HAND, DemoOptions(input=str(path), fov=60), tmp_path / "out", CropLike(pixels=80, factor=2), CPU)
    batch = oracle.seen[0]
    np.testing.assert_allclose(batch.crop_from_image[0] @ torch.tensor([-0.5, HEIGHT / 2 - 0.5, 1]), [-0.5, 39.5, 1], atol=1e-4)
    np.testing.assert_allclose(batch.crop_from_image[0] @ torch.tensor([WIDTH - 0.5, 0, 1]), [79.5, 9.625, 1], atol=1e-4)
    assert batch.image[..., :10, :].max() == 0 and batch.image[..., -10:, :].max() == 0
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert said["hands"][0]["box"] == "whole picture"
    assert said["K_source"] == "stated field of view: 60 degrees across the longer side"
    focal = said["K"][0][0]
    np.testing.assert_allclose(np.degrees(2 * np.arctan(WIDTH / 2 / focal)), 60)
    uv = (truth.joints.numpy() + said["hands"][0]["root"]) @ np.array(said["K"]).T
    uv = uv[:, :2] / uv[:, 2:]
    np.testing.assert_allclose(np.ptp(uv, axis=0).max(), WIDTH / 2, rtol=1e-5)
    np.testing.assert_allclose((uv.min(0) + uv.max(0)) / 2, [159.5, 119.5], atol=1e-3)


def test_predicted_root_is_used(scene, tmp_path):
    """A method that predicts a root is shown there, and the JSON says so; on a left hand it is mirrored."""
    truth, _, options = scene
    for side in ("right", "left"):
        demo(Oracle(truth, with_root=True), HAND, DemoOptions(**options, side=side), tmp_path / side, CropLike(), CPU)
        (hand,) = json.loads((tmp_path / side / "hand.json").read_text())["hands"]
        expected = truth.root if side == "right" else mirror_points(truth.root)
        np.testing.assert_allclose(hand["root"], expected, atol=1e-6)
        assert hand["root_source"] == PREDICTED


def test_two_hands_in_one_picture(tmp_path):
    """Two boxes: two meshes, one overlay with both, one JSON with both; the nearer hand is drawn over the farther one."""
    truth = a_hand()
    path = save(tmp_path / "pair.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    boxes = [{"box": [100, 100, 40, 40]}, {"box": [90, 80, 90, 90], "side": "left"}]
    options = DemoOptions(input=str(path), boxes=save_json(tmp_path / "b.json", {"pair.png": boxes}), alpha=1)
    assert demo(Oracle(truth), HAND, options, tmp_path / "out", CropLike(), CPU)["hands"] == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pair.json", "pair.png", "pair_0.ply", "pair_1.ply"]
    hands = json.loads((tmp_path / "out" / "pair.json").read_text())["hands"]
    assert [h["mesh"] for h in hands] == ["pair_0.ply", "pair_1.ply"] and [h["side"] for h in hands] == ["right", "left"]
    assert hands[1]["root"][2] < hands[0]["root"][2]
    near = DemoOptions(input=str(path), boxes=save_json(tmp_path / "n.json", {"pair.png": boxes[1]}), alpha=1)
    demo(Oracle(truth), HAND, near, tmp_path / "near", CropLike(), CPU)
    both, alone = (cv2.imread(str(tmp_path / folder / "pair.png")) for folder in ("out", "near"))
    covered = silhouette(torch.from_numpy(read_ply(tmp_path / "near" / "pair.ply")[0]), hands_K(tmp_path / "near" / "pair.json"))
    inner = cv2.erode(covered.astype(np.uint8), np.ones((5, 5))) > 0
    assert inner.sum() > 200 and (both[inner] == alone[inner]).all()


def hands_K(path: Path) -> np.ndarray:
    """The K that a result says it used."""
    return np.array(json.loads(path.read_text())["K"])


def test_folder_of_pictures_with_their_own_K(tmp_path):
    """A folder: every picture with the K beside it (two naming rules), COCO boxes, equal stems told apart by their suffix."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    (tmp_path / "K").mkdir()
    names = ["0_img.png", "1.png", "1.bmp"]
    for number, name in enumerate(names):
        save(tmp_path / "in" / name, picture_of(truth))
        matrix = K + np.diag([number, number, 0])
        np.save(tmp_path / "K" / "0_K.npy", matrix) if number == 0 else save_json(tmp_path / "K" / "1.json", matrix.tolist())
    coco = {"images": [{"id": i, "file_name": f"somewhere/{name}"} for i, name in enumerate(names)],
            "annotations": [{"image_id": i, "bbox": box_of(truth)} for i in range(3)]}
    options = DemoOptions(input=str(tmp_path / "in"), K=str(tmp_path / "K"), boxes=save_json(tmp_path / "coco.json", coco))
    assert demo(Oracle(truth), HAND, options, tmp_path / "out", CropLike(), CPU)["pictures"] == 3
    assert hands_K(tmp_path / "out" / "0_img.json")[0, 0] == 300 and hands_K(tmp_path / "out" / "1.png.json")[0, 0] == 302
    assert (tmp_path / "out" / "1.bmp.ply").is_file()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.15, 3), st.floats(0.3, 3))
def test_placement_is_the_inverse_of_projection(seed, depth, zoom):
    """A random joint set at a random place: its box gives the place back, for wide and narrow cameras, near and far."""
    generator = np.random.default_rng(seed)
    joints = generator.uniform(-0.08, 0.08, (21, 3))
    root = np.array([*generator.uniform(-0.4, 0.4, 2) * depth, depth])
    camera = np.array([[600 * zoom, 0, 310], [0, 590 * zoom, 250], [0, 0, 1]])
    rays = (joints + root) @ camera.T
    uv = rays[:, :2] / rays[:, 2:]
    found = place_by_box(joints, camera, (uv.min(0) + uv.max(0)) / 2, np.ptp(uv, axis=0).max(), "a.jpg")
    np.testing.assert_allclose(found, root, atol=1e-6)


def test_a_hand_that_does_not_fit_its_box_is_told_by_name(caplog):
    """A box so large that the hand would touch the camera: one line with the picture's name and what is off, never 0.0 px."""
    joints = a_hand().joints.double().numpy()
    place_by_box(joints, K, np.array([160.0, 120]), 60.0, "a.jpg")
    assert not caplog.text
    place_by_box(joints, K, np.array([160.0, 120]), 40000.0, "a.jpg")
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"a.jpg: a hand so near that it does not fit its box: .*0\.\d\d times its size; are the box and K", line)
    assert "drawn 0" not in line


@pytest.mark.parametrize("side", [20.0, 61.7, 150.0, 500.0])
@pytest.mark.parametrize("antialias", [True, False])
def test_crop_samples_at_the_mapped_places(side, antialias):
    """On a picture whose values are its coordinates, every crop pixel holds its own place (half-pixel rule)."""
    height, width = 400, 500
    v, u = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([u, v, np.ones_like(u)], -1)
    crop_from_image = crop_matrix(torch.tensor([260.3, 190.9]).double(), torch.tensor(side).double(), 32).numpy()
    got = sample(picture, crop_from_image, 32, antialias)
    y, x = np.mgrid[:32, :32]
    places = np.linalg.inv(crop_from_image) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1).astype(float)
    reach = side / 32 if antialias else 1
    inside = ((places[:2] > reach) & (places[:2] < np.array([[width], [height]]) - 1 - reach)).all(0)
    assert inside.sum() > 500
    np.testing.assert_allclose(got.reshape(-1, 3)[inside, :2], places[:2].T[inside], atol=0.06)


@pytest.mark.parametrize(("kind", "channels"), [("png", 1), ("png", 4), ("jpg", 3)])
def test_pictures_of_other_kinds(tmp_path, kind, channels):
    """Grey, with alpha, and a photograph that its camera marked as turned: all come as RGB, upright."""
    picture = np.zeros((40, 60, channels), np.uint8)
    picture[:10, :20] = 255
    data = cv2.imencode(f".{kind}", picture)[1].tobytes()
    if kind == "jpg":  # orientation 6: shown turned by 90 degrees clockwise
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        data = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    (tmp_path / f"a.{kind}").write_bytes(data)
    got = read_picture(tmp_path / f"a.{kind}")
    assert got.shape == ((60, 40, 3) if kind == "jpg" else (40, 60, 3)) and got.dtype == np.uint8
    bright = got[:20, -10:] if kind == "jpg" else got[:10, :20]
    assert bright[2:-2, 2:-2].min() > 240 and got.mean() < 40


def test_antialias_averages():
    """A fine checkerboard shrunk eight times is grey with antialias; without it single samples keep the squares' contrast."""
    v, u = np.mgrid[:512, :512]
    picture = np.repeat((((u + v) % 2) * 255).astype(np.uint8)[..., None], 3, -1)
    crop_from_image = crop_matrix(torch.tensor([255.5, 255.5]), torch.tensor(509.0), 64).numpy()
    assert sample(picture, crop_from_image, 64, True)[2:-2, 2:-2].std() < 8 < sample(picture, crop_from_image, 64, False).std()


def test_rotation_of_the_oracle_is_no_special_case(tmp_path):
    """Several orientations of the hand, each placed from its own box: root and silhouette come back."""
    for number, turn in enumerate([(0.0, 0.0, 0.0), (1.5, 0.0, 0.0), (0.0, 0.0, 3.0), (-1.0, 1.0, 1.0)]):
        truth = a_hand(root=(-0.03, 0.02, 0.4 + 0.1 * number), turn=turn)
        assert torch.allclose(truth.rotations[0], matrix_from_axis_angle(torch.tensor(turn)), atol=1e-6)
        path = save(tmp_path / f"{number}.png", picture_of(truth))
        options = DemoOptions(input=str(path), boxes=save_json(tmp_path / "b.json", box_of(truth)),
                              K=save_json(tmp_path / "k.json", K.tolist()))
        demo(Oracle(truth), HAND, options, tmp_path / "out", CropLike(), CPU)
        verts, _ = read_ply(tmp_path / "out" / f"{number}.ply")
        assert iou(silhouette(torch.from_numpy(verts), K), silhouette(truth.verts + truth.root, K)) > 0.98


@pytest.mark.parametrize("shape", ["predicted", "given"])
def test_a_real_method_fits_in(scene, tmp_path, shape):
    """IdHand with random weights, zoom cue and float32 through the whole demo, with and without being told the shape."""
    from src.idhand import Options, build

    _, _, options = scene
    torch.manual_seed(0)
    method = build(Options(backbone="resnet18", width=0.25, feature="pooled", camera_cue="zoom", shape=shape, weights=None), HAND)
    identity = str(tmp_path / "7.json")
    model = {"name": HAND.name, "sha256": HAND.sha256}
    write_identity(identity, Identity(subject=7, shape=np.ones(10), hand=model, n=20, method="random"))
    chosen = DemoOptions(**options, identity=identity if shape == "given" else None)
    demo(method, HAND, chosen, tmp_path / "out", CropLike(), CPU)
    (hand,) = json.loads((tmp_path / "out" / "hand.json").read_text())["hands"]
    uv = (np.array(list(hand["joints"].values())) + hand["root"]) @ K.T
    uv = uv[:, :2] / uv[:, 2:]
    _, _, width, height = json.loads(Path(options["boxes"]).read_text())["hand.png"]
    np.testing.assert_allclose(np.ptp(uv, axis=0).max(), max(width, height), rtol=1e-4)
    if shape == "given":
        np.testing.assert_allclose(hand["shape"], 1)
    assert method.training
