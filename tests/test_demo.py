"""Demo: a method that answers the truth about rendered hands, so that any fault of crop, camera, placement or side shows."""
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.demo import PLACED, PREDICTED, DemoOptions, demo
from src.demo_geometry import place_by_box, sample
from src.demo_input import read_picture
from src.identity import Identity, write_identity
from src.method import Method
from utils.batch import Batch, Prediction
from utils.camera import crop_matrix
from utils.errors import InputError
from utils.hand import HandModel, mirror_points
from utils.mesh_files import read_ply
from utils.render import render
from utils.rotation import matrix_from_axis_angle

ROOT = Path(__file__).resolve().parent.parent
HAND = HandModel.load(ROOT / "template" / "free_hand_right.npz")
HEIGHT, WIDTH = 240, 320
K = np.array([[300.0, 0, 157], [0, 296, 122], [0, 0, 1]])
CPU = torch.device("cpu")


class CropLike(NamedTuple):
    """The three crop options that the demo reads."""

    pixels: int = 64
    factor: float = 1.5
    antialias: bool = True


class Truth(NamedTuple):
    """A posed right hand: wrist-relative verts (778,3) and joints (21,3), root (3), rotations (16,3,3), shape (10)."""

    verts: torch.Tensor
    joints: torch.Tensor
    root: torch.Tensor
    rotations: torch.Tensor
    shape: torch.Tensor


class Oracle(Method):
    """Answers the truth; keeps the batches it was shown. `told`: it needs an identity, and answers with that shape."""

    def __init__(self, truth: Truth, told: bool = False, with_root: bool = False):
        super().__init__()
        self.truth, self.with_root, self.seen = truth, with_root, []
        self.needs = frozenset({"identity"}) if told else frozenset()

    def forward(self, batch: Batch) -> Truth:
        self.seen.append(batch)
        return self.truth

    def losses(self, out, batch):
        return {}

    def decode(self, out: Truth, batch: Batch) -> Prediction:
        shape = batch.identity if "identity" in self.needs else out.shape[None]
        return Prediction(out.verts[None], out.joints[None], root=out.root[None] if self.with_root else None,
                          rotations=out.rotations[None], shape=shape)


def a_hand(root: tuple[float, float, float] = (0.05, 0.03, 0.5), turn: tuple[float, float, float] = (0.3, 2.2, 0.4)) -> Truth:
    """A half-closed right hand of some person, seen aslant."""
    pose = torch.zeros(48)
    pose[:3] = torch.tensor(turn)
    rotations = HAND.rotations_from_pose(pose, pca=True, flat_mean=False)
    shape = torch.linspace(-1, 1, 10)
    posed = HAND(rotations, shape)
    joints = HAND.joints(posed)
    return Truth(posed.verts - joints[0], joints - joints[0], torch.tensor(root), rotations, shape)


def silhouette(verts: torch.Tensor, K, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height,width) bool: where a mesh in the camera is seen."""
    buffers = render(verts[None].float(), HAND.faces, torch.as_tensor(K).float(), height, width)
    return (buffers.face[0] >= 0).numpy()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def picture_of(truth: Truth) -> np.ndarray:
    """The hand, flat and bright on a dark, coloured ground."""
    return np.where(silhouette(truth.verts + truth.root, K)[..., None], np.uint8([240, 240, 240]), np.uint8([30, 10, 60]))


def box_of(truth: Truth) -> list[float]:
    """[left, top, width, height] of the projected joints."""
    rays = (truth.joints + truth.root).double().numpy() @ K.T
    uv = rays[:, :2] / rays[:, 2:]
    return [*uv.min(0).tolist(), *np.ptp(uv, axis=0).tolist()]


def save(path: Path, picture: np.ndarray) -> Path:
    """Lossless, RGB."""
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def save_json(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


@pytest.fixture
def scene(tmp_path) -> tuple[Truth, Path, dict]:
    """One right hand's picture with its box and K, as options."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in" / "hand.png", picture_of(truth))
    return truth, path, {"input": str(path), "boxes": save_json(tmp_path / "boxes.json", {"hand.png": box_of(truth)}),
                         "K": save_json(tmp_path / "K.json", K.tolist())}


def test_right_hand_lies_on_its_picture(scene, tmp_path):
    """With the true box and K: the root comes back to a tenth of a millimetre, the mesh covers its picture, the JSON says all."""
    truth, _, options = scene
    result = demo(Oracle(truth), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU, checkpoint="c.pt")
    assert result == {"pictures": 1, "hands": 1, "folder": str(tmp_path / "out")}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["hand.json", "hand.ply", "hand.png"]
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    (hand,) = said["hands"]
    np.testing.assert_allclose(hand["root"], truth.root, atol=1e-4)
    np.testing.assert_allclose(list(hand["joints"].values()), truth.joints, atol=1e-6)
    np.testing.assert_allclose(hand["rotations"], truth.rotations, atol=1e-6)
    assert hand["root_source"] == PLACED and hand["side"] == "right" and (hand["verts"], hand["faces"]) == (778, 1538)
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


def test_one_broken_picture_does_not_stop_the_others(tmp_path):
    """A truncated picture between good ones: the good ones are done, one line names the broken one, nothing of it is left."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        cv2.imwrite(str(tmp_path / "in" / name), picture_of(truth))
    data = (tmp_path / "in" / "b.jpg").read_bytes()
    (tmp_path / "in" / "b.jpg").write_bytes(data[:len(data) // 2])
    expected = "1 of 3 pictures could not be shown: .*b.jpg: the picture is cut short .*other 2 are in"
    with pytest.raises(InputError, match=expected) as caught:
        demo(Oracle(truth), HAND, DemoOptions(input=str(tmp_path / "in")), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}.{s}" for n in "ac" for s in ("json", "ply", "png")]


def spoiled(truth: Truth) -> Truth:
    """With one NaN."""
    return truth._replace(verts=truth.verts.clone().index_fill_(0, torch.tensor([5]), float("nan")))


@pytest.mark.parametrize(("files", "options", "message"), [
    ({}, {"input": "nowhere.jpg"}, "demo.input: expected a picture or a folder of pictures, found nothing at"),
    ({}, {"input": "."}, "demo.input: no picture in the folder"),
    ({"a.png": b""}, {"input": "a.png"}, "a.png: expected a picture .* found an empty file"),
    ({"a.png": b"not a picture"}, {"input": "a.png"}, "a.png: expected a picture .* found another kind of file"),
    ({"b.json": b"[1, 2"}, {"boxes": "b.json"}, "b.json: expected json"),
    ({"b.json": b"[1, 2, 0, 4]"}, {"boxes": "b.json"}, r"b.json: the file: expected \[left, .* found \[1, 2, 0, 4\]"),
    ({"b.json": b"[1, 2, 3]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b"[1, 2, 3, NaN]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b"[]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b'{"hand.png": {"box": [1, 2, 3, 4], "side": "up"}}'}, {"boxes": "b.json"}, "b.json: hand.png: expected"),
    ({"b.json": b'{"o.png": [1, 2, 3, 4]}'}, {"boxes": "b.json"}, "hand.png: the box file has no entry .*; it has o.png"),
    ({"b.json": b'{"images": [{"id": 1}], "annotations": []}'}, {"boxes": "b.json"}, "b.json: a COCO file whose images"),
    ({}, {"boxes": "b.json"}, "b.json: expected a file, found nothing"),
    ({}, {"K": "k.npy"}, "k.npy: expected a file, found nothing"),
    ({"k.npy": b"no array"}, {"K": "k.npy"}, "k.npy: expected an array of numpy"),
    ({"k.json": b"[[1, 0, 2], [0, 1, 2]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b"[[0, 0, 2], [0, 1, 2], [0, 0, 1]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b"[[1, 0, 2], [0, 1, Infinity], [0, 0, 1]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b'{"b.png": 1}'}, {"K": "k.json"}, "k.json: no camera matrix of 'hand.png'"),
    ({}, {"K": "."}, "no camera matrix for hand.png; expected one of hand.npy, hand.json"),
    ({"k.json": b"[]"}, {"K": "k.json", "fov": 50}, "demo.K and demo.fov are both given"),
])
def test_bad_input(tmp_path, monkeypatch, files, options, message):
    """Each wrong file or option: one line that names it, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "hand.png", picture_of(a_hand()))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        demo(Oracle(a_hand()), HAND, DemoOptions(**{"input": "in/hand.png", **options}), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_prediction_that_is_not_finite(scene, tmp_path):
    """A checkpoint that answers NaN: one line, nothing written."""
    truth, _, options = scene
    with pytest.raises(InputError, match="hand.png: the prediction is not finite; the checkpoint c.pt is broken"):
        demo(Oracle(spoiled(truth)), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU, checkpoint="c.pt")
    assert not (tmp_path / "out").exists()


def test_results_do_not_mix_with_the_pictures(scene, tmp_path):
    """The pictures' own folder as output is refused."""
    truth, path, options = scene
    with pytest.raises(InputError, match="is the folder of the pictures"):
        demo(Oracle(truth), HAND, DemoOptions(**options), path.parent, CropLike(), CPU)


def test_identity_is_told_where_it_is_needed(scene, tmp_path):
    """An identity-aware model is told the file's shape; without one, or a model that is told none, one line says so."""
    truth, _, options = scene
    shape = np.linspace(1, -1, 10)
    identity = str(tmp_path / "7.json")
    model = {"name": HAND.name, "sha256": HAND.sha256}
    write_identity(identity, Identity(subject=7, shape=shape, hand=model, n=20, method="random"))
    oracle = Oracle(truth, told=True)
    demo(oracle, HAND, DemoOptions(**options, identity=identity), tmp_path / "out", CropLike(), CPU)
    np.testing.assert_allclose(oracle.seen[0].identity[0], shape, rtol=1e-6)
    assert oracle.seen[0].subject.item() == 7
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert said["identity"]["file"] == identity and said["identity"]["subject"] == 7
    np.testing.assert_allclose(said["hands"][0]["shape"], shape, rtol=1e-6)
    with pytest.raises(InputError, match="demo.identity: this model is told whose hand it sees; set demo.identity"):
        demo(oracle, HAND, DemoOptions(**options), tmp_path / "no", CropLike(), CPU)
    with pytest.raises(InputError, match="demo.identity: .* is given, but this model predicts the shape itself"):
        demo(Oracle(truth), HAND, DemoOptions(**options, identity=identity), tmp_path / "no", CropLike(), CPU)
    write_identity(identity, Identity(subject=7, shape=shape, hand={"name": "MANO", "sha256": "ab" * 32}, n=20, method="random"))
    with pytest.raises(InputError, match="7.json: a shape of the hand model MANO"):
        demo(oracle, HAND, DemoOptions(**options, identity=identity), tmp_path / "no", CropLike(), CPU)
    assert not (tmp_path / "no").exists()


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
    found = place_by_box(joints, camera, (uv.min(0) + uv.max(0)) / 2, np.ptp(uv, axis=0).max())
    np.testing.assert_allclose(found, root, atol=1e-6)


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
