"""datasets/interhand*.py: small trees of the official layout read back, fits and joints in the camera, hands as rows, faults."""
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from interhand_cases import CAMERAS, HANDS, SEQUENCE, SUBJECT, camera, known, link_samples, mesh, seen, write_tree

import run
from datasets.augment import AugmentOptions, CropOptions
from datasets.interhand import Options, open_reader, prepare
from datasets.interhand_hand import Rest, fit_in_camera
from datasets.interhand_reader import InterHand, rest_of
from datasets.interhand_tree import Camera, Fit
from datasets.json_lists import objects
from utils.batch import Batch
from utils.camera import project, transform_uv
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import T21_FROM_INTERHAND

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT.parent / "shared" / "samples" / "interhand"
CROP = CropOptions(pixels=64, factor=1.3)
HANDS32 = {side: HandModel(hand.arrays) for side, hand in HANDS.items()}
FOLDER = f"Capture3/{SEQUENCE}"
TYPES = {10: ("right", "left"), 20: ("right",), 30: ("left",), 40: ("right", "left")}
FITTED = {(10, "right"), (10, "left"), (40, "right")}  # 20: null, 30: the wrist is not annotated, 40 left: absent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", ("test",))


def options(tree: Path, **changes) -> Options:
    return Options(**{"root": str(tree), "prepared": str(tree.parent / "out"), "workers": 1, "hands": "mirror_left", **changes})


def opened(chosen: Options, **changes) -> InterHand:
    how = {"split": "test", "train": False, "seed": 0, "hands": HANDS32, **changes}
    return open_reader(chosen, CROP, AugmentOptions(), **how)


def batch_of(reader: InterHand) -> Batch:
    raws = [reader[0, i] for i in range(len(reader))]
    return reader.batch({key: torch.stack([torch.as_tensor(raw[key]) for raw in raws]) for key in raws[0]})


def rows_of_tree(split: str = "test") -> list[tuple[str, int, str, str]]:
    """name, frame, side and camera of every row that write_tree should give, in order."""
    return [(f"images/{split}/{FOLDER}/cam{name}/image{frame}.jpg" + f"#{side}" * (len(sides) == 2), frame, side, name)
            for frame, sides in TYPES.items() for name in CAMERAS for side in sides]


def as_right(points: np.ndarray, side: str) -> np.ndarray:
    return points * ((-1, 1, 1) if side == "left" else (1, 1, 1))


def test_rows_and_labels_come_back(tree: Path):
    """Every hand of every picture is a row; joints, pixels and validity against the formula, K * joints = uv within 0.01 px."""
    done = prepare(options(tree), HANDS32)
    assert done.counts["kept"] == 12 and done.counts["people"] == [SUBJECT] and "left out" not in str(done)
    reader = opened(options(tree))
    batch, expected = batch_of(reader), rows_of_tree()
    assert [reader.sample_name(i) for i in range(len(reader))] == [name for name, *_ in expected]
    for i, (_, frame, side, name) in enumerate(expected):
        first = 21 * (side == "left")
        flags = known(frame)[first:first + 21][list(T21_FROM_INTERHAND)]
        joints = as_right(seen(mesh(frame, side)[1], name), side)
        assert bool(batch.has_joints[i]) == flags.all() and bool(batch.has_root[i]) == flags[0] and bool(batch.has_uv[i])
        np.testing.assert_array_equal(batch.uv_confidence[i].numpy(), flags)
        np.testing.assert_allclose(batch.joints[i].numpy()[flags], joints[flags], atol=1e-6)
        if flags[0]:
            np.testing.assert_allclose(batch.root[i], joints[0], atol=1e-6)
        uv = project(torch.from_numpy(joints).float()[None], batch.K[i:i + 1])[0]
        np.testing.assert_allclose(batch.joints_uv[i][flags], uv[flags], atol=0.01)
    assert (batch.subject == SUBJECT).all() and batch.mirrored.tolist() == [side == "left" for _, _, side, _ in expected]


def test_fits_in_the_camera(tree: Path):
    """Meshes of the fits against the world's meshes moved into the camera, 1e-6 m, both sides; absent and null fits have none."""
    prepare(options(tree), HANDS32)
    batch = batch_of(opened(options(tree)))
    for i, (_, frame, side, name) in enumerate(rows_of_tree()):
        fitted = (frame, side) in FITTED
        assert bool(batch.has_verts[i]) == bool(batch.has_shape[i]) == fitted
        if fitted:
            np.testing.assert_allclose(batch.verts[i], as_right(seen(mesh(frame, side)[0], name), side), atol=1e-6)


def test_frame_of_a_fit():
    """fit_in_camera of any rotation and place against the posed mesh moved by hand, 1e-8 m: it turns about J0(shape)."""
    draw = np.random.default_rng(5)
    R = cv2.Rodrigues(draw.uniform(-2, 2, 3))[0]
    view = Camera(R, draw.uniform(-900, 900, 3), np.ones(2), np.zeros(2))
    for hand in HANDS.values():
        fit = Fit(draw.uniform(-0.8, 0.8, 48), draw.uniform(-2, 2, 10), draw.uniform(-1, 1, 3))
        pose, trans = fit_in_camera(fit, view, rest_of(hand))
        world, moved = (_verts(hand, p, fit.shape, t) for p, t in ((fit.pose, fit.trans), (pose, trans)))
        np.testing.assert_allclose(moved, (world - view.place / 1000) @ R.T, rtol=0, atol=1e-8)
        assert np.abs(fit_in_camera(fit, view, Rest(np.zeros(3), np.zeros((10, 3))))[1] - trans).max() > 0.01


def _verts(hand, pose: np.ndarray, shape: np.ndarray, trans: np.ndarray) -> np.ndarray:
    pose, shape, trans = (torch.from_numpy(x)[None] for x in (pose, shape, trans))
    return hand(hand.rotations_from_pose(pose, pca=False, flat_mean=False), shape).moved(trans).verts[0].numpy()


def test_picture_lies_under_the_joints(tree: Path):
    """Crop and whole picture are bright at every known joint, also where mirrored, in pictures of either orientation."""
    prepare(options(tree), HANDS32)
    reader = opened(options(tree))
    batch = batch_of(reader)
    for i, (*_, name) in enumerate(rows_of_tree()):
        flags = batch.uv_confidence[i] > 0
        u, v = batch.joints_uv[i][flags].round().long().clamp(0, 63).T
        assert batch.image[i, 1, v, u].mean() > 0.6
        picture = reader.picture(i)
        back = torch.linalg.inv(torch.from_numpy(picture.crop_from_image).double())
        u, v = transform_uv(back[None], batch.joints_uv[i:i + 1].double())[0][flags].round().long().numpy().T
        assert picture.image.shape[1::-1] == CAMERAS[name] and (picture.image[v, u, 1] > 180).mean() > 0.9


def test_conventions_are_stated(tree: Path):
    """What is provided, and what tables say: annotated joints, regressed ones of a hand model's answers, no official protocol."""
    prepare(options(tree), HANDS32)
    reader = opened(options(tree))
    assert {"joints", "joints_uv", "verts", "rotations", "shape", "chain_wrist", "root"} <= reader.provides
    assert not reader.provides & {"identity", "mask"} and tuple(reader.joint_set) == ("manopth", "regressed")
    assert "not MANO's" in reader.protocol()["joints"] and reader.protocol()["hands"].startswith("6 right and 6 left")
    assert "MANO fits 0.0 mm from the annotated joints (median of 4 hands)" in (tree.parent / "out/counts.json").read_text()


def test_choices(tree: Path):
    """hand_type chooses when reading; hands=right, known and limit when preparing, each counted."""
    prepare(options(tree), HANDS32)
    for kind, frames in (("single", (20, 30)), ("interacting", (10, 40)), ("all", (10, 20, 30, 40))):
        reader = opened(options(tree, hand_type=kind))
        assert [reader.sample_name(i) for i in range(len(reader))] == [n for n, frame, *_ in rows_of_tree() if frame in frames]
    right = options(tree, hands="right", prepared=str(tree.parent / "right"))
    assert prepare(right, {"right": HANDS32["right"]}).counts["excluded"] == {"left hand": 6}
    assert len(opened(right, hands={"right": HANDS32["right"]})) == 6
    assert len(opened(options(tree, hands="right"))) == 6  # of the folder with both
    whole = options(tree, known=21, prepared=str(tree.parent / "whole"))
    assert prepare(whole, HANDS32).counts["excluded"]["fewer known joints than dataset.known"] == 4
    some = options(tree, limit=2, prepared=str(tree.parent / "some"))
    assert prepare(some, HANDS32).counts["kept"] == 3  # two pictures: of frames 10 and 30


def test_without_fits(tree: Path):
    """No fits in the tree, or fits=false: joints and pixels alone; the latter asks for no hand model."""
    prepare(options(tree, fits=False), {})
    reader = opened(options(tree, fits=False), hands={})
    assert not reader.provides & {"verts", "shape", "rotations"} and batch_of(reader).joints.shape == (12, 21, 3)
    bare = write_tree(tree.parent / "bare", ("val",), fits=False)
    chosen = options(bare, prepared=str(tree.parent / "b"))
    prepare(chosen, HANDS32)
    assert "verts" not in opened(chosen, split="val").provides


def test_oldest_release_and_bare_names(tree: Path):
    """joint_3d.json with bare lists, and file names without folders: the same rows and labels."""
    old = write_tree(tree.parent / "old", ("test",), oldest=True)
    path = old / "annotations/test/InterHand2.6M_test_data.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = Path(image["file_name"]).name
    path.write_text(json.dumps(content))
    of_old = options(old, prepared=str(tree.parent / "o"))
    prepare(options(tree), HANDS32), prepare(of_old, HANDS32)
    for name in ("name", "joints", "joint_valid", "trans"):
        np.testing.assert_array_equal(*(np.load(tree.parent / folder / f"index/{name}.npy") for folder in ("out", "o")))


def test_hand_models_belong_to_the_folder(tree: Path):
    """A folder read, or prepared again, with another hand model than its fits were placed by: refused; so is no left model."""
    prepare(options(tree), HANDS32)
    arrays = HANDS["right"].arrays
    other = {**HANDS32, "right": HandModel(replace(arrays, v_template=1.01 * arrays.v_template))}
    with pytest.raises(InputError, match="prepared with another right hand model than .*: set hand back, or prepare again"):
        opened(options(tree), hands=other)
    with pytest.raises(InputError, match="prepared with dataset.hand_models"):
        prepare(options(tree), other)
    with pytest.raises(InputError, match="needs a left hand model for the MANO fits: set hand_left=template/MANO_LEFT.pkl"):
        prepare(options(tree, prepared=str(tree.parent / "n")), {"right": HANDS32["right"]})


def test_fits_far_from_the_joints_are_refused(tree: Path):
    """Fits in millimetres: the side, how far off they are and what to set, before any picture is cut."""
    path = tree / "annotations/test/InterHand2.6M_test_MANO_NeuralAnnot.json"
    content = json.loads(path.read_text())
    for hands in content["3"].values():
        for one in hands.values():
            if one:
                one["trans"] = [1000 * x for x in one["trans"]]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the right hands' MANO fits lie \d+ mm from the annotated joints .*dataset.fits=false"):
        prepare(options(tree), HANDS32)
    assert not (tree.parent / "out").exists()


def test_goes_on_where_it_stopped(tree: Path, monkeypatch: pytest.MonkeyPatch):
    """A missing picture stops a later task; mended, the folder is byte for byte that of a run in one go."""
    monkeypatch.setattr("datasets.tasks.PICTURES", 5)
    path = tree / f"images/test/{FOLDER}/cam400026/image30.jpg"
    path.rename(tree / "away")
    with pytest.raises(InputError, match=r"cam400026/image30.jpg: expected a picture, found nothing"):
        prepare(options(tree), HANDS32)
    assert len(list((tree.parent / "out/shards").glob("*.npz"))) == 1
    (tree / "away").rename(path)
    assert prepare(options(tree), HANDS32).counts["frames_now"] == 7
    again = options(tree, prepared=str(tree.parent / "again"))
    prepare(again, HANDS32)
    for name in ("crops.lmdb", "index/joints.npy", "index/pose.npy", "index/name.npy", "index/interacting.npy", "meta.json"):
        assert (tree.parent / "out" / name).read_bytes() == (tree.parent / "again" / name).read_bytes()
    assert prepare(again, HANDS32).counts["frames_now"] == 0


def json_of(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Bend a json file's content."""
    def bend(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return bend


def set_at(*keys: str | int, to: object) -> Callable[[Path], None]:
    """Put `to` at a place of a json file."""
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to
    return json_of(change)


IMAGE, ONE, JOINTS = ("images", 0), ("annotations", 0), ("3", "10")
FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "data cut off": ("data", lambda p: p.write_bytes(p.read_bytes()[:-9]), "expected annotations: a list of {key: value}, found "
                                                                            "one cut off; unpack the annotations again"),
    "data cut off early": ("data", lambda p: p.write_bytes(p.read_bytes()[:300]), "expected images: a list of {key: value}, "
                                                                                   "found one cut off"),
    "data broken": ("data", lambda p: p.write_bytes(p.read_bytes().replace(b'"bbox": [', b'"bbox": [,')),
                    "found a file that breaks"),
    "data is a list": ("data", lambda p: p.write_text("[1]"), "expected images: a list of {key: value}, found none"),
    "images are numbers": ("data", set_at("images", to=[1, 2]), "expected images: a list of {key: value}, found "),
    "data of something else": ("data", lambda p: p.write_text('{"images": [], "a": 1}'),
                               "expected annotations: a list of {key: value}, found none; unpack"),
    "no image of an annotation": ("data", set_at(*ONE, "image_id", to=7), "annotations[0]: image_id 7 is not among its images"),
    "two annotations of an image": ("data", set_at(*ONE, "image_id", to=101), "annotations[1]: image_id 101 is not among its "
                                                                              "images, or comes twice"),
    "no capture": ("data", set_at(*IMAGE, "capture", to=None), "image 100: expected capture, a whole number, found none"),
    "a sequence of numbers": ("data", set_at(*IMAGE, "seq_name", to=5), "image 100: expected seq_name, text, found 5"),
    "hand_type": ("data", set_at(*ONE, "hand_type", to="both"), "expected hand_type right, left or interacting, found 'both'"),
    "41 flags": ("data", set_at(*ONE, "joint_valid", to=[[1]] * 41), "expected joint_valid: 42 times 0 or 1, found 41 numbers"),
    "flags of 2": ("data", set_at(*ONE, "joint_valid", to=[2] * 42), "expected joint_valid: 42 times 0 or 1"),
    "camera missing": ("camera", Path.unlink, "expected a file, found nothing; unpack the annotations again"),
    "capture without cameras": ("camera", lambda p: p.write_text("{}"), "expected capture 3, which image 100 of data.json names"),
    "an unknown camera": ("camera", json_of(lambda c: c["3"]["campos"].pop("400026")),
                          "3.campos.400026: expected 3 finite numbers, found none"),
    "a rotation of 2 rows": ("camera", json_of(lambda c: c["3"]["camrot"]["400026"].pop()),
                             "3.camrot.400026: expected 3 x 3 finite numbers, found a list of 2"),
    "no rotation": ("camera", set_at("3", "camrot", "400026", to=[[1, 0, 0], [0, 2, 0], [0, 0, 1]]), "expected a rotation and"),
    "joints missing": ("joint_3d", Path.unlink, "expected a file, found nothing; unpack the annotations again"),
    "frame missing": ("joint_3d", json_of(lambda c: c["3"].pop("10")), "expected 3.10, which image 100 of data.json names, found "
                                                                       "none"),
    "21 joints": ("joint_3d", set_at(*JOINTS, "world_coord", to=[[0, 0, 0]] * 21),
                  "3.10.world_coord: expected 42 x 3 finite numbers, found a list of 21"),
    "joints of text": ("joint_3d", set_at(*JOINTS, "world_coord", to=[["a"] * 3] * 42), "expected 42 x 3 finite numbers"),
    "fits cut off": ("MANO_NeuralAnnot", lambda p: p.write_bytes(p.read_bytes()[:-9]), "expected json, found a file that breaks"),
    "a pose of 45": ("MANO_NeuralAnnot", set_at(*JOINTS, "left", "pose", to=[0.0] * 45),
                     "3.10.left.pose: expected 48 finite numbers, found a list of 45"),
    "a fit without shape": ("MANO_NeuralAnnot", json_of(lambda c: c["3"]["10"]["right"].pop("shape")),
                            "3.10.right.shape: expected 10 finite numbers, found none"),
}
PICTURE = Path(f"images/test/{FOLDER}/cam400026/image20.jpg")
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (Path.unlink, "expected a picture, found nothing; unpack the archive again", "picture missing"),
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "expected a whole JPEG, found one cut off", "picture broken"),
    "transposed": (lambda p: cv2.imwrite(str(p), np.zeros((512, 334, 3), np.uint8)),
                   "expected 512x334 pixels, found 334x512; unpack the archive again", "picture of another size"),
}


@pytest.mark.parametrize("kind", FILES)
def test_broken_annotations(tree: Path, kind: str):
    """A broken annotation file: its path, the place in it, what was expected and found, in one line, before any work."""
    what, bend, line = FILES[kind]
    path = tree / f"annotations/test/InterHand2.6M_test_{what}.json"
    bend(path)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), HANDS32)
    assert line in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tree.parent / "out").exists()


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_picture(tree: Path, kind: str):
    """A broken picture stops with its name in one line; with unreadable=skip it is counted under its reason and named."""
    bend, line, reason = BROKEN[kind]
    bend(tree / PICTURE)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), HANDS32)
    assert f"{tree / PICTURE}: {line}" in str(caught.value) and "\n" not in str(caught.value)
    done = prepare(options(tree, unreadable="skip", prepared=str(tree.parent / "skipped")), HANDS32)
    assert done.counts["excluded"][reason] == 1 and done.counts["kept"] == 11 and line in str(done)


def test_no_tree_and_unlabelled_pictures(tree: Path, tmp_path: Path):
    """No folder; no annotations; pictures without one and hands without joints left out; joints behind the camera named."""
    with pytest.raises(InputError, match="expected a folder, found nothing; link or unpack the dataset there"):
        prepare(options(tmp_path / "nowhere"), HANDS32)
    with pytest.raises(InputError, match="is dataset.root the folder that holds images and annotations"):
        prepare(options(tree / "images"), HANDS32)
    path = tree / "annotations/test/InterHand2.6M_test_data.json"
    json_of(lambda c: (c["annotations"].pop(), c["annotations"][2].update(joint_valid=[0] * 42)))(path)
    assert prepare(options(tree), HANDS32).counts["excluded"] == {"no known joint": 1, "picture without an annotation": 1}
    view = camera("400026")
    set_at("3", "campos", "400026", to=(view["campos"] + view["camrot"].T @ (0, 0, 2200)).tolist())(
        tree / "annotations/test/InterHand2.6M_test_camera.json")
    with pytest.raises(InputError, match="image10.jpg: expected known joints in front of the camera, found one at -"):
        prepare(options(tree, prepared=str(tree.parent / "behind")), HANDS32)


OPTION_FILE = """
name: tiny
out: {out}
device: cpu
dataset: {{name: interhand, root: {root}, prepared: {out}/prepared, hands: mirror_left, workers: 1}}
crop: {{pixels: 32, factor: 1.3}}
method: {method}
loss: {loss}
train: {{split: train, val_split: val, batch: 4, steps: 3, optimizer: adamw, lr: 1e-3, workers: 0}}
test: {{split: test, batch: 4, workers: 0, report: false}}
"""
MESH = {"method": "{name: idhand, backbone: resnet18, weights: null, width: 0.125, surface_losses: false}",
        "loss": "{verts: 1, pose: 1, shape: 1}"}
PIXELS = {"method": "{name: pose2d, stages: 1, weights: null, width: 0.125}", "loss": "{heatmap: 1}"}


@pytest.mark.parametrize("method", (MESH, PIXELS), ids=("mesh", "pixels"))
def test_methods_by_option_file_alone(tmp_path: Path, method: dict[str, str], capsys: pytest.CaptureFixture):
    """prepare, train (validated) and test of a method of meshes and of one of 2D joints; rows without a label are left out."""
    write_tree(tmp_path / "tree")
    file = tmp_path / "tiny.yaml"
    file.write_text(OPTION_FILE.format(root=tmp_path / "tree", out=tmp_path, **method))
    for command in ("prepare", "train", "test"):
        assert run.main([command, str(file)]) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "tiny/test/scores.json").read_text())
    metric = scores["metrics"]["mpjpe_mm" if method is MESH else "uv_px"]
    assert metric["n"] == (6 if method is MESH else 8) and 0 < metric["mean"] < 1000


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples (../shared/samples/interhand) are not here")
def test_real_samples(tmp_path: Path):
    """Four real pictures through prepare and reader: joints' boxes, widened by a fifth, are the json's to 0.01 px; K * joints."""
    tree = link_samples(SAMPLES, tmp_path / "tree")
    chosen = options(tree, fits=False)
    assert prepare(chosen, {}).counts["kept"] == 6
    reader = opened(chosen, hands={})
    batch = batch_of(reader)
    assert batch.has_joints.all() and batch.mirrored.tolist() == [False, True, False, True, True, False]
    torch.testing.assert_close(project(batch.joints, batch.K), batch.joints_uv, atol=0.01, rtol=0)
    uv = np.load(tmp_path / "out/index/joints_uv.npy")
    content = json.loads((SAMPLES / "test_interhand2.6m_data.json").read_text())
    for image, annotation in zip(content["images"], content["annotations"]):
        rows = [i for i in range(6) if image["file_name"] in reader.sample_name(i)]
        low, high = uv[rows].reshape(-1, 2).min(0), uv[rows].reshape(-1, 2).max(0)
        size = 1.2 * (high - low)
        np.testing.assert_allclose(annotation["bbox"], [*((low + high - size) / 2), *size], atol=0.01)
        assert reader.picture(rows[0]).image.shape[:2] == (image["height"], image["width"])
    bones = (batch.joints[:, 1:] - batch.joints[:, :-1]).norm(dim=-1)
    palm = (batch.joints[:, [5, 9, 13, 17]] - batch.joints[:, :1]).norm(dim=-1)
    assert ((palm > 0.06) & (palm < 0.12)).all() and (bones[:, [5, 9, 13]] > bones[:, [7, 11, 15]]).all()


@pytest.mark.parametrize("block", (1, 7, 64, 1 << 20))
@pytest.mark.parametrize("indent", (None, 2))
def test_lists_of_large_files(tmp_path: Path, block: int, indent: int | None, monkeypatch: pytest.MonkeyPatch):
    """Lists read block by block against json.loads, whatever the blocks, whitespace and order of the lists."""
    monkeypatch.setattr("datasets.json_lists.BLOCK", block)
    content = {"info": {"a": [1, {"b": 2}]}, "annotations": [{"id": i, "x": [[1], [0.5, i]], "s": "a]b,"} for i in range(5)],
               "none": [], "images": [{"id": 7}]}
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content, indent=indent))
    for key in ("annotations", "images", "none"):
        assert list(objects(path, key, "write it again")) == content[key]
