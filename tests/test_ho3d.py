"""datasets/ho3d.py: HO3D's labels come back in our frame and order, both splits, with and without the public labels."""
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ho3d_cases import FRAMES, GL, HAND, HEIGHT, WIDTH, K, Made, hand_quarter, options, pixels, skinned, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.augment import AugmentOptions, CropOptions
from datasets.cache import Crops, read_columns
from datasets.ho3d import open_reader, prepare
from datasets.ho3d_depth import read_depth
from datasets.ho3d_frame import our_joints, our_points, our_pose
from datasets.ho3d_reader import Ho3d
from src.idhand import Options as IdhandOptions
from src.idhand import build
from utils.batch import Batch, require_fields
from utils.errors import InputError
from utils.joints import T21_FROM_H21, reorder
from utils.official_protocols import PROTOCOLS

HANDS = {"right": HAND}
CROP = CropOptions(pixels=64, factor=1.5)
AUGMENT = AugmentOptions(rotate=90, scale=0.2, shift=0.1, probability=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    tree = write_tree(tmp_path_factory.mktemp("ho3d") / "tree")
    prepare(options(tree), HANDS)
    return tree


def opened(made: Made, split: str, train: bool = False, **changes) -> Ho3d:
    return open_reader(options(made, **changes), CROP, AUGMENT, split=split, train=train, seed=3, hands=HANDS)


def all_of(reader: Ho3d) -> Batch:
    return reader.batch(torch.utils.data.default_collate([reader[(0, i)] for i in range(len(reader))]))


def far(a: object, b: object) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_training_labels_come_back(tmp_path: Path, version: str):
    """Joints are the pickle's, to the bit; vertices of the turned pose are HO3D's own to float32; K * joints = joints_uv."""
    tree = write_tree(tmp_path / "tree", version)
    prepare(options(tree), HANDS)
    reader = opened(tree, "train")
    raw, batch = [reader[(0, i)] for i in range(len(reader))], all_of(reader)
    assert len(reader) == 3 * FRAMES and reader.sample_name(0) == f"train/SB10/rgb/0000.{'png' if version == 'v2' else 'jpg'}"
    for i, line in enumerate(tree.lists["train"]):
        frame = tree.frames[line]
        assert np.array_equal(raw[i]["joints"], (frame["joints"] * np.float32([1, -1, -1]))[list(T21_FROM_H21)])
        assert far(batch.verts[i], frame["verts"] @ GL) < 1e-6
        assert far(raw[i]["joints_uv"], pixels(frame["joints"])[list(T21_FROM_H21)]) < 1e-3
        assert np.array_equal(raw[i]["shape"], frame["handBeta"])
    uv = batch.joints @ batch.K.mT
    assert far(uv[..., :2] / uv[..., 2:], batch.joints_uv) < 0.01
    assert far(batch.root, batch.joints[:, 0]) == 0 and batch.has_shape.all() and batch.has_mask.all()


def test_maps_are_their_own_inverse():
    """HO3D -> ours -> HO3D: points and joints to the bit, pose numbers to 1e-6 (as rotations), translations to 1e-12."""
    draw = np.random.default_rng(0)
    points, joints = draw.normal(size=(778, 3)).astype(np.float32), draw.normal(size=(5, 21, 3)).astype(np.float32)
    assert np.array_equal(our_points(our_points(points)), points) and our_points(points).dtype == np.float32
    back = reorder(our_joints(joints), "H21", "T21") * PROTOCOLS["ho3d_v2"].axes  # as a submission is written
    assert np.array_equal(back, joints)
    for _ in range(200):
        pose, trans, wrist = draw.normal(size=48), draw.normal(size=3), draw.normal(size=3)
        pose[:3] *= draw.uniform(0, np.pi) / np.linalg.norm(pose[:3])
        back, moved = our_pose(*our_pose(pose, trans, wrist), wrist)
        assert far(back, pose) < 1e-6 and far(moved, trans) < 1e-12


@given(st.lists(st.floats(-3.2, 3.2), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_turned_pose_turns_the_hand(vector: list[float]):
    """The hand of the turned pose is the hand of HO3D's pose in the other axes, to 1e-9, whatever the rotation."""
    pose, trans, beta = np.zeros(48), np.array([0.1, -0.2, -0.7]), np.linspace(-1, 1, 10)
    pose[:3], pose[3:] = vector, np.linspace(-0.3, 0.3, 45)
    rest = HAND.arrays.J_regressor[0] @ (HAND.arrays.v_template + HAND.arrays.shapedirs @ beta)
    joints, verts = skinned(pose, trans, beta)
    ours = skinned(*our_pose(pose, trans, rest), beta)
    assert far(ours[0], joints @ GL) < 1e-9 and far(ours[1], verts @ GL) < 1e-9


@pytest.mark.parametrize("vector", [(0, 0, 0), (np.pi, 0, 0), (0, np.pi, 0), (1e-9, 0, 0), (0, 0, -np.pi), (np.pi - 1e-8, 0, 0)])
def test_turned_pose_at_the_ends(vector: tuple[float, float, float]):
    """Identity, half turns and their neighbours: turned twice is the same rotation."""
    pose = np.zeros(48)
    pose[:3] = vector
    twice = our_pose(our_pose(pose, np.zeros(3), np.zeros(3))[0], np.zeros(3), np.zeros(3))[0]
    assert far(cv2.Rodrigues(twice[:3])[0], cv2.Rodrigues(pose[:3])[0]) < 1e-7


def test_augmented_geometry(made: Made):
    """Turned, scaled and moved crops: K * joints = joints_uv, the wrist is the root, fingertips are vertices of the mesh."""
    reader = opened(made, "train", train=True)
    batch = reader.batch(torch.utils.data.default_collate([reader[(1, i)] for i in range(len(reader))]))
    uv = batch.joints @ batch.K.mT
    assert far(uv[..., :2] / uv[..., 2:], batch.joints_uv) < 0.01
    assert far(batch.verts[:, [744, 333, 444, 555, 672]], batch.joints[:, 4::4]) < 1e-6
    still = all_of(opened(made, "train"))
    assert far(batch.root[:, 2], still.root[:, 2]) < 1e-6 and far(batch.joints, still.joints) > 0.01


def test_evaluation_with_public_labels(made: Made):
    """Joints and vertices are the json's, in the order of evaluation.txt; no pose numbers are claimed; official indices."""
    reader = opened(made, "evaluation")
    batch = all_of(reader)
    frames = [made.frames[line] for line in made.lists["evaluation"]]
    assert far(batch.joints, np.stack([(f["joints"] @ GL)[list(T21_FROM_H21)] for f in frames])) < 1e-7
    assert far(batch.verts, np.stack([f["verts"] @ GL for f in frames])) < 1e-7 and batch.has_verts.all()
    assert {"joints", "verts", "root", "joints_uv"} <= reader.provides
    assert not {"shape", "rotations", "identity"} & reader.provides and batch.shape is None
    assert reader.columns(range(len(reader)))["official_index"].tolist() == list(range(2 * FRAMES))
    assert reader.protocol()["official"] == "ho3d_v3" and "official" not in opened(made, "train").protocol()


def test_evaluation_without_public_labels(tmp_path: Path):
    """The pickles alone: the wrist as root, the box of handBoundingBox, and nothing else is provided or said to be known."""
    tree = write_tree(tmp_path / "tree", public=False)
    done = prepare(options(tree), HANDS)
    assert "evaluation: the wrist alone is labelled; the HO3D evaluation labels are released with" in str(done)
    reader = opened(tree, "evaluation")
    batch = all_of(reader)
    wrists = np.stack([tree.frames[line]["joints"][0] @ GL for line in tree.lists["evaluation"]])
    assert far(batch.root, wrists) < 1e-7 and batch.has_root.all()
    assert "root" in reader.provides and not {"joints", "verts", "joints_uv", "shape"} & reader.provides
    assert not batch.has_joints.any() and batch.verts is None
    assert "put evaluation_xyz.json and evaluation_verts.json into dataset.root" in reader.protocol()["no_labels"]
    uv = pixels(tree.frames[tree.lists["evaluation"][0]]["verts"])
    low, high = uv.min(0).astype(int), (uv.max(0) + 1).astype(int)
    assert far(reader.read(0)["box"], [*(low + high) / 2, (high - low).max()]) < 1e-5


def test_joints_without_vertices(tmp_path: Path):
    """With evaluation_xyz.json alone the vertices are not claimed."""
    tree = write_tree(tmp_path / "tree", public=False)
    tree.write_public(verts=False)
    assert "no evaluation_verts.json, so no vertices" in str(prepare(options(tree), HANDS))
    reader = opened(tree, "evaluation")
    assert "joints" in reader.provides and "verts" not in reader.provides


def test_repeated_lines(tmp_path: Path):
    """Lines that come again are rows of their own: unique names, their own official numbers, the same picture."""
    tree = write_tree(tmp_path / "tree", public=False)
    tree.lists["evaluation"] = ["SB11/0001", "AP10/0000", "SB11/0001", "SB11/0001"]
    tree.write_lists()
    tree.write_public()
    prepare(options(tree), HANDS)
    reader = opened(tree, "evaluation")
    names = [reader.sample_name(i) for i in range(4)]
    assert names == ["evaluation/SB11/rgb/0001.jpg", "evaluation/AP10/rgb/0000.jpg", "evaluation/SB11/rgb/0001.jpg#2",
                     "evaluation/SB11/rgb/0001.jpg#3"]
    assert reader.columns([0, 3])["official_index"].tolist() == [0, 3]
    assert far(all_of(reader).joints[0], all_of(reader).joints[2]) == 0
    assert np.array_equal(reader.picture(0).image, reader.picture(2).image)
    assert reader.picture(2).image.shape == (HEIGHT, WIDTH, 3)


def test_only_annotated_frames_that_are_named(tmp_path: Path):
    """A frame whose fields are None is left out and counted; frames that no list names are not looked at, however broken."""
    tree = write_tree(tmp_path / "tree")
    nothing = dict.fromkeys(("handPose", "handTrans", "handBeta", "handJoints3D", "camMat"))
    tree.change("SB12/0002", **nothing)
    tree.lists["train"].remove("ABF10/0003")
    tree.write_lists()
    tree.meta("ABF10/0003").write_bytes(b"no pickle")
    done = prepare(options(tree), HANDS)
    assert done.counts["excluded"] == {"no annotation": 1} and done.counts["kept"] == 5 * FRAMES - 2
    names = [opened(tree, "train").sample_name(i) for i in range(3 * FRAMES - 2)]
    assert "train/SB12/rgb/0002.jpg" not in names and "train/ABF10/rgb/0003.jpg" not in names
    assert names[0] == "train/SB10/rgb/0000.jpg"


def test_order_is_that_of_the_lists(tmp_path: Path):
    """A shuffled evaluation.txt gives rows in its own order, each with the labels of its own line."""
    tree = write_tree(tmp_path / "tree", public=False)
    tree.lists["evaluation"] = tree.lists["evaluation"][::-1]
    tree.write_lists()
    tree.write_public()
    prepare(options(tree), HANDS)
    reader = opened(tree, "evaluation")
    assert [reader.picture_name(i)[11:15] for i in range(2)] == ["AP10", "AP10"]
    assert far(all_of(reader).root[0], tree.frames[f"AP10/{FRAMES - 1:04d}"]["joints"][0] @ GL) < 1e-7


def test_depth_bytes(tmp_path: Path):
    """Red is the low byte, green the high one, blue nothing; the unit is the file's; RGB order of the file, not OpenCV's."""
    units = np.array([[0, 1, 255], [256, 4097, 65535]])
    rgb = np.stack([units & 255, units >> 8, np.full_like(units, 7)], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "d.png"), rgb[..., ::-1])
    depth = read_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32 and far(depth, units * 0.00012498664727900177) < 1e-6
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match=r"expected 3 channels of 8 bits .* found \(4, 4\) uint16"):
        read_depth(tmp_path / "grey.png")
    with pytest.raises(InputError, match="expected a depth picture, found nothing"):
        read_depth(tmp_path / "none.png")


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_masks(tmp_path: Path, version: str):
    """The hand's colour of a quarter-size segmentation, each pixel repeated, cut as the picture is; not the thing's."""
    tree = write_tree(tmp_path / "tree", version)
    prepare(options(tree, stored={"factor": 2.0, "quality": 95}), HANDS)
    labels = read_columns(tmp_path / "prepared" / "index", {"stored": (3,), "has_mask": ()})
    masks = Crops(tmp_path / "prepared" / "masks.lmdb")
    assert labels["has_mask"].tolist() == [True] * (3 * FRAMES) + [False] * (2 * FRAMES)
    whole = np.kron(hand_quarter(tree.frames["SB10/0000"]), np.ones((4, 4), bool))
    left, top, side = labels["stored"][0]
    wide = np.pad(whole, 200)[top + 200:, left + 200:][:side, :side]
    assert np.array_equal(cv2.imdecode(masks[0], cv2.IMREAD_GRAYSCALE) > 127, wide) and wide.any()
    reader = opened(tree, "train")
    batch = all_of(reader)
    at = batch.joints_uv.round().long()
    hit = torch.stack([batch.mask[i][uv[:, 1].clamp(0, 63), uv[:, 0].clamp(0, 63)] for i, uv in enumerate(at)])
    assert "mask" in reader.provides and hit.mean() > 0.9 and batch.mask.mean() < 0.6
    assert "mask" not in opened(tree, "evaluation").provides


def test_without_masks(tmp_path: Path):
    """A tree without segmentations, or masks=false, gives no mask."""
    bare, whole = write_tree(tmp_path / "a" / "tree", masks=False), write_tree(tmp_path / "b" / "tree")
    prepare(options(bare), HANDS)
    prepare(options(whole, masks=False), HANDS)
    assert "mask" not in opened(bare, "train").provides and "mask" not in opened(whole, "train", masks=False).provides


def test_limit_and_processes(tmp_path: Path):
    """At most so many pictures of each split, evenly spread; two processes write what one writes."""
    tree = write_tree(tmp_path / "tree")
    prepare(options(tree, limit=3), HANDS)
    reader = opened(tree, "train", limit=3)
    assert [reader.sample_name(i)[6:20] for i in range(3)] == ["SB10/rgb/0000.", "SB12/rgb/0000.", "ABF10/rgb/0000"]
    assert opened(tree, "evaluation", limit=3).columns(range(3))["official_index"].tolist() == [0, 2, 5]
    for name, workers in (("one", 1), ("two", 2)):
        prepare(options(tree, prepared=str(tmp_path / name)), HANDS, workers=workers)
    for file in ("index/joints.npy", "index/name.npy", "verts/verts.npy", "cameras/world_from_camera.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A broken picture stops the work; mended, the same command goes on and ends with what an undisturbed one writes."""
    monkeypatch.setattr("datasets.tasks.PICTURES", 4)
    tree = write_tree(tmp_path / "tree")
    whole = tree.rgb("AP10/0002").read_bytes()
    tree.rgb("AP10/0002").write_bytes(whole[:200])
    with pytest.raises(InputError, match="AP10/rgb/0002.jpg: expected a whole JPEG"):
        prepare(options(tree), HANDS)
    tree.rgb("AP10/0002").write_bytes(whole)
    assert prepare(options(tree), HANDS).counts["frames_now"] == 4
    prepare(options(tree, prepared=str(tmp_path / "other")), HANDS)
    for file in sorted(path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*.npy")):
        assert (tmp_path / "other" / file).read_bytes() == (tmp_path / "prepared" / file).read_bytes()
    assert prepare(options(tree), HANDS).counts["frames_now"] == 0


def test_wide_pictures_are_not_needed(made: Made):
    """The picture for the report is the tree's own; where the tree is away, the stored crop with its own K."""
    reader, away = opened(made, "train"), opened(made, "train", root=str(made.root.parent / "away"))
    assert reader.picture(0).image.shape == (HEIGHT, WIDTH, 3) and far(reader.picture(0).K, K) < 1e-4
    small = away.picture(0)
    points = reader.read(0)["joints"]
    both = [(points @ p.K.T)[:, :2] / points[:, 2:] for p in (reader.picture(0), small)]
    both = [uv @ p.crop_from_image[:2, :2].T + p.crop_from_image[:2, 2] for uv, p in zip(both, (reader.picture(0), small))]
    assert small.image.shape[0] < WIDTH and far(*both) < 1e-3


@pytest.mark.parametrize("shape", ["predicted", "given"])
def test_methods_train_on_it(made: Made, shape: str):
    """The identity-aware models find every label that they read in the training split; told ones, none in the evaluation."""
    method = build(IdhandOptions(name="idhand", shape=shape, backbone="resnet18"), HAND)
    assert not require_fields(method.needs, opened(made, "train").provides)
    lacking = require_fields(method.needs, opened(made, "evaluation").provides)
    assert ("identity" in lacking) == (shape == "given")


def test_picture_of_png_before_jpg(tmp_path: Path):
    """Where both are there the png is read, as the official reader does."""
    tree = write_tree(tmp_path / "tree")
    cv2.imwrite(str(tree.rgb("SB10/0000").with_suffix(".png")), np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    prepare(options(tree), HANDS)
    reader = opened(tree, "train")
    assert reader.sample_name(0) == "train/SB10/rgb/0000.png" and reader.sample_name(1) == "train/SB10/rgb/0001.jpg"
    assert all_of(reader).image[0].median() > 0.7 > all_of(reader).image[1].median()


def test_hand_of_another_file_is_refused(made: Made, tmp_path: Path):
    """Labels that another hand model made are refused before any picture is read."""
    arrays = replace(HAND.arrays, v_template=HAND.arrays.v_template * 1.2)
    with pytest.raises(InputError, match=r"the labels' hands are not those of the hand model .* \(joints up to \d+ mm apart\)"):
        prepare(options(made, prepared=str(tmp_path / "x")), {"right": type(HAND)(arrays)})
