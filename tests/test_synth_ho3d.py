"""The synthetic HO3D tree: layout by the spec, labels against each other, the mesh and the pictures; our reader."""
import pickle

import cv2
import numpy as np
import pytest
import torch
from synth_ho3d_cases import GL, HAND, Tree, make_trees, pixels, skinned

from datasets import ho3d as reading
from datasets.augment import AugmentOptions, CropOptions
from datasets.synthetic import ho3d, things
from datasets.synthetic.ho3d_files import DEPTH_UNIT_M, PEOPLE, THINGS, pickle_bytes
from datasets.synthetic.ho3d_recording import surface_points
from utils.hand import HandModel
from utils.joints import T21_FROM_H21, TIPS
from utils.render import render
from utils.safe_pickle import load_pickle

OBJECT = {"objTrans": ((3,), "float32"), "objRot": ((3, 1), "float32"), "objCorners3D": ((8, 3), "float32"),
          "objCorners3DRest": ((8, 3), "float32"), "objName": str, "objLabel": int, "camMat": ((3, 3), "float64")}
KEYS = {
    "train": {**OBJECT, "handPose": ((48,), "float32"), "handTrans": ((3,), "float32"), "handBeta": ((10,), "float32"),
              "handJoints3D": ((21, 3), "float32"), "camIDList": list, "handVertContact": ((778,), "bool"),
              "handVertDist": ((778,), "float32"), "handVertIntersec": ((778,), "bool"),
              "handVertObjSurfProj": ((778, 3), "float32")},
    "evaluation": {**OBJECT, "handJoints3D": ((3,), "float32"), "handBoundingBox": list},
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Tree]:
    return make_trees(tmp_path_factory.mktemp("synth"))


@pytest.fixture(params=["v2", "v3"])
def tree(request, trees) -> Tree:
    return trees[request.param]


def test_layout_is_the_spec_s(tree):
    """Folders, names and numbers of files of both versions against specs/datasets.md 1.3."""
    names = {"v3": ({"SB10"}, {"SB11", "SM1", "MPM10", "MPM11"}), "v2": ({"SB1", "SM2"}, {"SB2", "SM1", "MPM1", "MPM2"})}
    lists = {"train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json", "synthetic.json"}
    extra = {"calibration", "manual_annotations"} if tree.version == "v3" else set()
    rendered = f"HO3D_{tree.version}_segmentations_rendered"
    assert {p.name for p in tree.root.iterdir()} == lists | extra | {"train", "evaluation", rendered}
    for split, wanted in zip(("train", "evaluation"), names[tree.version]):
        assert {p.name for p in (tree.root / split).iterdir()} == wanted
        for sequence in wanted:
            folder = tree.root / split / sequence
            assert {p.name for p in folder.iterdir()} == {"rgb", "depth", "meta"}
            for kind, form in (("rgb", "png" if tree.version == "v2" else "jpg"), ("depth", "png"), ("meta", "pkl")):
                assert sorted(p.name for p in (folder / kind).iterdir()) == [f"{t:04d}.{form}" for t in range(4)]
            assert cv2.imread(str(next((folder / "rgb").iterdir()))).shape == (120, 160, 3)
    seg = {f"{p.parent.parent.name}/{p.stem}" for p in (tree.root / rendered / "train").rglob("*.*")}
    assert seg == set(tree.lines["train"])  # rendered from annotations, so not for other frames


def test_meta_pickles_have_the_spec_s_keys(tree):
    """Keys, types, shapes of both splits; listed frames are complete; others in the folders hold None alone."""
    bare = 0
    for split in ("train", "evaluation"):
        for path in sorted((tree.root / split).glob("*/meta/*.pkl")):
            meta = load_pickle(path, "")
            assert set(meta) == set(KEYS[split])
            if f"{path.parent.parent.name}/{path.stem}" not in tree.lines[split]:
                assert not any(value is not None for value in meta.values())
                bare += 1
                continue
            for key, wanted in KEYS[split].items():
                value = meta[key]
                assert (value.shape, value.dtype.name) == wanted if isinstance(wanted, tuple) else type(value) is wanted
            assert THINGS[meta["objLabel"]] == meta["objName"]
    assert bare >= 1 and len(tree.lines["train"]) >= 2 and len(tree.lines["evaluation"]) >= 6


@pytest.mark.filterwarnings("ignore:dtype")
def test_pickles_are_python_2_s(tree):
    """Protocol 2 by old numpy's names; Python's own pickle wants latin1 for it, as for the originals, and reads the same."""
    path = tree.path("train", tree.lines["train"][0], "meta", "pkl")
    data = path.read_bytes()
    assert data.startswith(b"\x80\x02") and b"numpy.core.multiarray" in data and b"numpy._core" not in data
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(data)  # noqa: S301  written here
    whole, safe = pickle.loads(data, encoding="latin1"), load_pickle(path, "")  # noqa: S301
    assert list(whole) == list(safe)
    for key, value in safe.items():
        assert np.array_equal(whole[key], value) and getattr(whole[key], "dtype", None) == getattr(value, "dtype", None)


def test_odd_values_are_not_pickled():
    """What Python 2 would have pickled otherwise is refused; long text and empty lists are not."""
    assert pickle.loads(pickle_bytes({"a": "x" * 300, "b": []}), encoding="latin1") == {"a": "x" * 300, "b": []}  # noqa: S301
    with pytest.raises(TypeError, match="float"):
        pickle_bytes({"a": 1.5})


def test_labels_agree_with_the_hand_model(tree):
    """handJoints3D against LBS(handPose, handBeta) + handTrans; OpenGL: the hand lies at negative z."""
    for split, _, meta, joints, verts in tree.frames():
        assert joints[:, 2].max() < -0.1 and verts[:, 2].max() < -0.1
        np.testing.assert_allclose(joints[16:], verts[list(TIPS["ho3d"])], atol=1e-6)
        if split == "train":
            np.testing.assert_allclose(joints, skinned(meta)[0], atol=1e-6)
        else:
            np.testing.assert_array_equal(meta["handJoints3D"], joints[0].astype(np.float32))
            uv = pixels(verts, meta["camMat"])
            low, high = np.clip(uv.min(0), 0, [159, 119]), np.clip(uv.max(0), 0, [159, 119])
            np.testing.assert_allclose(meta["handBoundingBox"], [*low, *high], atol=1.01)


def test_one_person_has_one_shape(tree):
    """handBeta is the same in a person's training sequences and another for other people; sizes as asked for."""
    shapes = {line[:2]: meta["handBeta"] for _, line, meta, *_ in tree.frames() if "handBeta" in meta}
    for split, line, meta, *_ in tree.frames():
        if split == "train":
            np.testing.assert_array_equal(meta["handBeta"], shapes[line[:2]])
    assert tree.version == "v3" or not np.array_equal(shapes["SB"], shapes["SM"])
    model = HandModel(HAND.arrays, torch.float64)
    for stem, shape in shapes.items():
        rest = model.shaped(torch.from_numpy(shape).double())
        size = 1000 * (rest.rest_verts[TIPS["manopth"][2]] - rest.rest_joints[0]).norm().item()
        assert size == pytest.approx(ho3d.REAL_SIZES_MM[PEOPLE.index(stem)], abs=0.01)


def test_pictures_show_the_labels(tree):
    """Projected joints on the masks, depth against a fresh rendering of the labelled hand, the thing within its corners."""
    on_hand, seen, shown = 0, 0, []
    for split, line, meta, joints, verts in tree.frames():
        uv, depth = pixels(joints, meta["camMat"]), tree.depth(split, line)
        inside = ((uv > 1) & (uv < [158, 118])).all(1)
        if split == "train":
            hand, thing = tree.masks(line)
            cells = ((uv[inside] + 0.5) / 4).astype(int)
            masks = cv2.dilate((hand | thing).astype(np.uint8), np.ones((3, 3)))  # fingers are half a cell thin
            covered = masks[cells[:, 1], cells[:, 0]]
            on_hand, seen = on_hand + covered.sum(), seen + len(covered)
            corners = pixels(meta["objCorners3D"], meta["camMat"]) / 4
            rows, columns = np.nonzero(thing)
            assert len(rows) > 3 and columns.min() >= corners[:, 0].min() - 1.5 and columns.max() <= corners[:, 0].max() + 1.5
            assert rows.min() >= corners[:, 1].min() - 1.5 and rows.max() <= corners[:, 1].max() + 1.5
        K = torch.from_numpy(meta["camMat"]).float()
        drawn = render(torch.from_numpy(verts * GL).float()[None], HAND.faces, K, 120, 160).depth[0].numpy()
        gap = (drawn - depth)[drawn > 0]
        assert (gap > -0.0015).mean() > 0.97  # the picture shows the hand there, or what is before it
        shown.append((np.abs(gap) < 0.0015).mean())
    assert on_hand > 0.95 * seen and np.mean(shown) > 0.75


def test_thing_and_contact(tree):
    """objCorners3D is objRot and objTrans of the rest corners; contact, distance, inside and projection agree with vertices."""
    touched = 0
    for split, _, meta, _, verts in tree.frames():
        turn = cv2.Rodrigues(meta["objRot"].astype(np.float64))[0]
        rest = meta["objCorners3DRest"]
        np.testing.assert_allclose(rest @ turn.T + meta["objTrans"], meta["objCorners3D"], atol=1e-6)
        np.testing.assert_allclose(np.ptp(rest, axis=0), things.SIZES[meta["objLabel"]][1], atol=1e-6)
        if split == "train":
            near = (meta["handVertObjSurfProj"] - meta["objTrans"]) @ turn
            assert np.abs(things.distance(meta["objLabel"], near)).max() < 1e-5
            away = np.linalg.norm(verts - meta["handVertObjSurfProj"], axis=1)
            np.testing.assert_allclose(away, meta["handVertDist"], atol=1e-5)
            np.testing.assert_array_equal(meta["handVertContact"], meta["handVertDist"] < 0.004)
            inside = things.distance(meta["objLabel"], (verts - meta["objTrans"]) @ turn)
            assert (meta["handVertIntersec"] == (inside < 0))[np.abs(inside) > 1e-5].all()
            touched += meta["handVertContact"].sum()
    assert touched > 10


@pytest.mark.parametrize("number", THINGS)
def test_surface_points(number):
    """Points about a thing come onto its surface; for flat sides the way there is the signed distance."""
    points = np.random.default_rng(0).normal(0, 0.08, (300, 3))
    near, inside = surface_points(number, points)
    away = things.distance(number, points)
    assert (np.abs(things.distance(number, near)) < 1e-6).mean() > 0.99
    np.testing.assert_array_equal(inside, away < 0)
    if things.SIZES[number][0] == "box":
        np.testing.assert_allclose(np.linalg.norm(near - points, axis=1), np.abs(away), atol=1e-6)


def test_calibration_joins_the_cameras(trees):
    """trans_<i>, by the order of cam_orders.txt and in OpenCV axes, brings both cameras' wrists together; intrinsics = camMat."""
    tree, joined = trees["v3"], 0
    wrists = {line: joints[0] for _, line, _, joints, _ in tree.frames()}
    for stem, split in (("SB1", ("train", "evaluation")), ("MPM1", ("evaluation", "evaluation"))):
        folder = tree.root / "calibration" / stem / "calibration"
        assert float((folder / "cam_0_depth_scale.txt").read_text()) == DEPTH_UNIT_M
        order = np.loadtxt(folder / "cam_orders.txt").astype(int).tolist()
        assert sorted(order) == [0, 1] and len(list(folder.iterdir())) == 6
        common = {camera: np.loadtxt(folder / f"trans_{i}.txt") for i, camera in enumerate(order)}
        for i, camera in enumerate(order):
            pairs = dict(pair.split(": ") for pair in (folder / f"cam_{i}_intrinsics.txt").read_text().strip().split(", ")[:6])
            lines = [line for line in wrists if line.startswith(f"{stem}{camera}/")]
            K = tree.meta(split[camera], lines[0])["camMat"]
            assert [float(pairs[key]) for key in ("fx", "fy", "ppx", "ppy")] == [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
        for t in range(4):
            if {f"{stem}0/{t:04d}", f"{stem}1/{t:04d}"} <= set(wrists):
                a, b = (common[c][:3, :3] @ (wrists[f"{stem}{c}/{t:04d}"] * GL) + common[c][:3, 3] for c in (0, 1))
                np.testing.assert_allclose(a, b, atol=1e-6)
                joined += 1
    assert joined >= 2


def test_manual_annotations_are_fingertips(trees):
    """(5,3), little to thumb, within millimetres of the second camera's joints 20..16."""
    tree = trees["v3"]
    joints = {line: joints for _, line, _, joints, _ in tree.frames()}
    found = list((tree.root / "manual_annotations").iterdir())
    assert found
    for path in found:
        stem, frame = path.stem.split("_")
        assert np.abs(np.load(path) - joints[f"{stem}1/{frame}"][[20, 19, 18, 17, 16]]).max() < 0.008


def test_camera_matrices(trees):
    """v2: the one matrix of the real set, scaled; v3: each camera its own."""
    K = {v: {line.split("/")[0]: meta["camMat"] for _, line, meta, *_ in tree.frames()} for v, tree in trees.items()}
    for found in K["v2"].values():
        np.testing.assert_allclose(found, [[154.33575, 0, 77.73], [0, 154.33575, 59.98], [0, 0, 1]], atol=1e-9)
    assert len({found.tobytes() for found in K["v3"].values()}) == len(K["v3"])


def test_our_reader_gets_the_labels_back(tree, tmp_path):
    """prepare and open_reader on the tree: joints of train and evaluation in T21 and OpenCV, vertices, masks, counts."""
    options = reading.Options(root=str(tree.root), prepared=str(tmp_path / "prepared"), version=tree.version, width=160,
                              height=120, workers=1)
    reading.prepare(options, {"right": HAND})
    for split in ("train", "evaluation"):
        reader = reading.open_reader(options, CropOptions(pixels=64, factor=1.5), AugmentOptions(), split=split, train=False,
                                     seed=0, hands={"right": HAND})
        batch = reader.batch(torch.utils.data.default_collate([reader[(0, i)] for i in range(len(reader))]))
        frames = [frame for frame in tree.frames() if frame[0] == split]
        assert len(reader) == len(frames)
        np.testing.assert_allclose(batch.joints, np.stack([f[3] * GL for f in frames])[:, list(T21_FROM_H21)], atol=1e-6)
        np.testing.assert_allclose(batch.verts, np.stack([f[4] * GL for f in frames]), atol=1e-5)


