"""The synthetic FreiHAND tree: its layout by the official readers' rules, labels against each other and the pictures; reruns."""
import errno
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.synthetic import freihand, single
from datasets.synthetic.freihand import Options, write
from datasets.synthetic.freihand_files import EVALUATION, LISTS, TRAINING, write_list
from utils.errors import InputError
from utils.hand import HandModel
from utils.render import render

ROOT = Path(__file__).resolve().parent.parent
N, EVAL = 11, 3  # neither is a whole number of tasks
SMALL = dict(name="freihand", train=N, evaluation=EVAL, people=3, evaluation_people=1, sizes_mm=(165.0, 180.0, 200.0), workers=1,
             seed=3)


@pytest.fixture(scope="module")
def hand() -> HandModel:
    return HandModel.load(ROOT / "template/free_hand_right.npz")


@pytest.fixture(scope="module")
def tree(tmp_path_factory, hand) -> Path:
    root = tmp_path_factory.mktemp("synth") / "freihand"
    assert write(Options(**SMALL, out=str(root)), hand, None) == {"sequences": 3, "written": 3, "pictures": 4 * N + EVAL}
    return root


@pytest.fixture(scope="module")
def labels(tree) -> dict[str, dict[str, np.ndarray]]:
    """Of both splits, as json.load reads them: float64."""
    return {split: {name: np.array(json.loads((tree / f"{split}_{name}.json").read_text())) for name in LISTS}
            for split in (TRAINING, EVALUATION)}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def picture(tree: Path, split: str, number: int, kind: str = "rgb") -> np.ndarray:
    return cv2.imread(str(tree / split / kind / f"{number:08d}.jpg"), cv2.IMREAD_UNCHANGED)


def test_layout_and_counts(tree, labels):
    """Files, numbers, sizes and shapes of the lists against specs/datasets.md 1.2."""
    assert names(tree) == sorted(["training", "evaluation", "synthetic.json",
                                  *(f"{s}_{n}.json" for s in labels for n in ("K", "mano", "scale", "xyz", "verts"))])
    assert names(tree / "training") == ["mask", "rgb"] and names(tree / "evaluation") == ["rgb"]
    for folder, count in (("training/rgb", 4 * N), ("training/mask", N), ("evaluation/rgb", EVAL)):
        assert names(tree / folder) == [f"{i:08d}.jpg" for i in range(count)]
    for split, count in ((TRAINING, N), (EVALUATION, EVAL)):
        shapes = {name: array.shape for name, array in labels[split].items()}
        assert shapes == {"K": (count, 3, 3), "mano": (count, 1, 61), "scale": (count,), "xyz": (count, 21, 3),
                          "verts": (count, 778, 3)}
    assert picture(tree, TRAINING, 4 * N - 1).shape == (224, 224, 3) == picture(tree, EVALUATION, 0).shape
    assert picture(tree, TRAINING, 0, "mask").shape == (224, 224, 3)


def test_numbers_are_float32_and_the_text_is_json_dumps(tree, labels, tmp_path):
    """Every number is the shortest decimal of its float32; the text is what json.dump writes; an empty list, several parts."""
    number = r"[-+.e0-9]+"  # small ones look otherwise: 9e-05, 0.00009
    for split, lists in labels.items():
        for name, array in lists.items():
            rounded = array.astype(np.float32)
            assert [float(str(x)) for x in rounded.ravel()[:5000]] == array.ravel()[:5000].tolist()
            text = (tree / f"{split}_{name}.json").read_text()
            assert re.sub(number, "0", json.dumps(array.tolist())) == re.sub(number, "0", text)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 10.0**k, 2000) for k in range(-9, 9)]).astype(np.float32)
    write_list(tmp_path / "a.json", [values[:7], values[7:]])
    assert np.array_equal(np.array(json.loads((tmp_path / "a.json").read_text())).astype(np.float32), values)
    write_list(tmp_path / "b.json", [])
    assert json.loads((tmp_path / "b.json").read_text()) == []


@pytest.mark.parametrize("split", [TRAINING, EVALUATION])
def test_mano_entries_give_verts_and_joints(labels, hand, split):
    """Posed by the rules of 1.2 with a model made anew: verts, xyz, scale to float32; the right kind of joints, no other."""
    told, model = labels[split], HandModel(hand.arrays, torch.float64)
    mano = told["mano"][:, 0]
    rotations = model.rotations_from_pose(torch.from_numpy(mano[:, :48]), pca=False, flat_mean=False)
    posed = model(rotations, torch.from_numpy(mano[:, 48:58]))
    joints = model.joints(posed, "freihand", "regressed").numpy()
    f, s = (told["K"][:, 0, 0] + told["K"][:, 1, 1]) / 2, mano[:, 60]
    root = np.stack([(mano[:, 58] - told["K"][:, 0, 2]) / s, (mano[:, 59] - told["K"][:, 1, 2]) / s, f / s], 1)
    place = (root - joints[:, 9])[:, None]
    np.testing.assert_allclose(joints + place, told["xyz"], atol=1e-7)
    np.testing.assert_allclose(posed.verts.numpy() + place, told["verts"], atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(told["xyz"][:, 9] - told["xyz"][:, 10], axis=1), told["scale"], atol=1e-7, rtol=0)
    np.testing.assert_allclose(told["xyz"][:, [4, 8, 12, 16, 20]], told["verts"][:, [744, 320, 443, 555, 672]], atol=0)
    chain = model.joints(posed, "freihand", "chain").numpy()
    assert np.abs(chain - joints).max() > 1e-4
    np.testing.assert_allclose(f / told["xyz"][:, 9, 2], s, rtol=1e-6)


@pytest.mark.parametrize("split", [TRAINING, EVALUATION])
def test_joints_lie_inside_the_picture_as_wished(labels, split):
    """Projected by K: all 21 inside, the box's size in the wished range, mano's uv at joint 9; principal point in the middle."""
    told, options = labels[split], Options(**SMALL)
    uv = told["xyz"] @ told["K"].swapaxes(1, 2)
    uv = uv[..., :2] / uv[..., 2:]
    assert uv.min() > 4 and uv.max() < 219
    np.testing.assert_allclose(uv[:, 9], told["mano"][:, 0, 58:60], atol=0.2)
    assert (told["K"][:, :2, 2] == 112).all() and (told["K"][:, 2] == [0, 0, 1]).all()
    assert (told["K"][:, 0, 0] >= options.focal[0]).all() and (told["K"][:, 0, 0] <= options.focal[1]).all()
    side = (uv.max(1) - uv.min(1)).max(1) / 224
    assert (side < 0.87).all() and (side > 0.25).all() and np.median(side) > 0.4
    assert (told["xyz"][:, 9, 2] >= 0.399).all()


def test_masks_are_the_hand_that_is_seen(tree, labels, hand):
    """Masks against the posed mesh drawn with the labels' K: within it but for an edge of 2 px; things may hide some of it."""
    verts, K = (torch.from_numpy(labels[TRAINING][name]).float() for name in ("verts", "K"))
    drawn = (render(verts, hand.faces, K, 224, 224).face >= 0).numpy()
    overlap = []
    for i in range(N):
        mask = picture(tree, TRAINING, i, "mask")
        assert (mask == mask[..., :1]).all() and ((mask < 60) | (mask > 195)).mean() > 0.985
        overlap.append((mask[..., 0] > 127)[drawn[i]].mean())
        around = cv2.dilate(drawn[i].astype(np.uint8), np.ones((5, 5))) > 0
        assert (mask[..., 0] > 127).mean() < 0.75 and not (mask[..., 0] > 127)[~around].any()
    assert np.median(overlap) > 0.93 and min(overlap) > 0.3


def test_versions_show_one_hand_before_other_backgrounds(tree):
    """gs is green off the mask, the others are not the same picture; in the mask they resemble each other more than outside."""
    inside, outside, green = [], [], []
    for i in range(N):
        gs, hom, sample, auto = (picture(tree, TRAINING, i + k * N).astype(float) for k in range(4))
        mask = cv2.erode((picture(tree, TRAINING, i, "mask")[..., 0] > 127).astype(np.uint8), np.ones((5, 5))) > 0
        away = cv2.dilate((picture(tree, TRAINING, i, "mask")[..., 0] > 127).astype(np.uint8), np.ones((9, 9))) == 0
        grey = [x.mean(2) for x in (gs, hom)]
        inside.append(np.corrcoef(grey[0][mask], grey[1][mask])[0, 1])
        outside.append(np.corrcoef(grey[0][away], grey[1][away])[0, 1])
        green.append((gs[away][:, 1] > gs[away][:, [0, 2]].max(1)).mean())
        assert all(np.abs(a - b).mean() > 2 for a, b in ((gs, hom), (hom, sample), (sample, auto)))
    assert np.median(inside) > 0.8 and np.median(np.abs(outside)) < 0.6 and np.median(green) > 0.8


def test_people_of_the_evaluation_are_new(labels):
    """Shape coefficients: two people in training, another in the evaluation; evaluation_people=0 puts all in both."""
    shapes = {split: {tuple(row) for row in told["mano"][:, 0, 48:58]} for split, told in labels.items()}
    assert len(shapes[TRAINING]) == 2 and len(shapes[EVALUATION]) == 1 and not shapes[TRAINING] & shapes[EVALUATION]
    options = Options(**SMALL | {"evaluation_people": 0, "train": 24, "evaluation": 24})
    for split in (TRAINING, EVALUATION):
        assert [freihand.person_of(options, task) for task in options.tasks(split)] == [0, 1, 2]


def test_real_sizes_are_numbered_as_the_real_set():
    """32,560 and 3,960 samples: every picture once, the four versions of a sample apart by 32,560."""
    options = Options(name="freihand")
    numbers = [n for task in options.tasks(TRAINING) for n in options.numbers(task)]
    assert sorted(numbers) == list(range(130_240)) and numbers[:5] == [0, 32_560, 65_120, 97_680, 1]
    assert sorted(n for task in options.tasks(EVALUATION) for n in options.numbers(task)) == list(range(3960))


def test_what_the_official_pred_needs(tree, hand, tmp_path):
    """evaluation_K and evaluation_scale of equal length with a picture each; without the published labels, only these two."""
    root = tmp_path / "bare"
    write(Options(**SMALL | {"train": 0, "evaluation": 2, "evaluation_labels": False}, out=str(root)), hand, None)
    for folder, count in ((tree, EVAL), (root, 2)):
        K, scale = (json.loads((folder / f"evaluation_{name}.json").read_text()) for name in ("K", "scale"))
        assert len(K) == len(scale) == count and np.shape(K[0]) == (3, 3) and isinstance(scale[0], float)
        assert all((folder / f"evaluation/rgb/{i:08d}.jpg").is_file() for i in range(count))
    assert names(root) == ["evaluation", "evaluation_K.json", "evaluation_scale.json", "synthetic.json"]


def test_same_seed_same_bytes_whatever_the_workers(tree, tmp_path, hand):
    """Two worker processes against one: every file of the tree, byte for byte; another seed gives other pictures."""
    write(Options(**SMALL | {"workers": 2}, out=str(tmp_path / "b")), hand, None)
    assert files(tmp_path / "b") == files(tree)
    write(Options(**SMALL | {"seed": 4, "train": 1, "evaluation": 0}, out=str(tmp_path / "c")), hand, None)
    assert files(tmp_path / "c")["training/rgb/00000000.jpg"] != files(tree)["training/rgb/00000000.jpg"]


def test_a_stopped_run_goes_on(tree, tmp_path, hand, monkeypatch):
    """Stopped after one part, or a picture, mask or list lost: the same bytes in the end, and finished parts are not touched."""
    root, expected, real, count = tmp_path / "again", files(tree), freihand._write, [0]

    def stops(*args):
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(freihand, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        write(Options(**SMALL, out=str(root)), hand, None)
    assert not list(root.glob("*_*.json"))
    monkeypatch.setattr(freihand, "_write", real)
    assert write(Options(**SMALL, out=str(root)), hand, None)["written"] == 2
    assert files(root) == expected
    before = (root / "training/rgb/00000001.jpg").stat().st_mtime_ns
    (root / "training/rgb/00000009.jpg").unlink()
    assert write(Options(**SMALL, out=str(root)), hand, None)["written"] == 1
    (root / "training/mask/00000010.jpg").unlink()
    (root / "evaluation_xyz.json").unlink()
    assert write(Options(**SMALL, out=str(root)), hand, None) == {"sequences": 3, "written": 2, "pictures": 4 * 3 + EVAL}
    assert files(root) == expected and (root / "training/rgb/00000001.jpg").stat().st_mtime_ns == before
    assert write(Options(**SMALL, out=str(root)), hand, None)["written"] == 0 and files(root) == expected


def test_refuses_folders_that_are_not_its_own(tree, tmp_path, hand):
    """The real set's folder, a file, a set of other options, another dataset's synthetic set: one line, nothing written."""
    real = tmp_path / "real"
    (real / "training").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    other, dex = tmp_path / "other", tmp_path / "dex"
    for folder in (other, dex):
        folder.mkdir()
        shutil.copy(tree / "synthetic.json", folder)
    marker = json.loads((dex / "synthetic.json").read_text())
    (dex / "synthetic.json").write_text(json.dumps(marker | {"options": {"name": "dexycb"}, "digest": ""}))
    cases = ((real, {}, "no synthetic.json"), (tmp_path / "file", {}, "found a file"),
             (dex, {}, "name: dexycb there, freihand now"), (other, {"train": 4}, f"train: {N} there, 4 now"))
    for root, change, words in cases:
        before = files(tmp_path)
        with pytest.raises(InputError, match=words) as caught:
            write(Options(**SMALL | change, out=str(root)), hand, None)
        assert "\n" not in str(caught.value) and str(root) in str(caught.value) and files(tmp_path) == before


def test_wrong_wishes_are_refused(tmp_path, hand):
    """A hand the model cannot have, too few sizes, nobody left for training, nothing to write, ranges upside down."""
    with pytest.raises(InputError, match=r"synth.sizes_mm: a hand of 30 mm"):
        write(Options(**SMALL | {"sizes_mm": (30.0, 180.0, 200.0)}, out=str(tmp_path / "a")), hand, None)
    assert not (tmp_path / "a").exists()
    for change in ({"sizes_mm": (180.0,)}, {"tones": (0.5,)}, {"evaluation_people": 3}, {"train": 0, "evaluation": 0},
                   {"fill": (0.5, 0.95)}, {"focal": (500, 400)}, {"versions": 5}, {"left": 0.5}):
        with pytest.raises(ValueError):
            Options(**SMALL | change)


def test_disk_full_is_one_line_and_keeps_what_is_done(tmp_path, hand, monkeypatch):
    """ENOSPC in the second part: InputError, one part kept, and the same command goes on."""
    real, count = freihand._write, [0]

    def fails(*args):
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    options = Options(**SMALL | {"versions": 1, "train": 3, "evaluation": 1}, out=str(tmp_path / "a"))
    monkeypatch.setattr(freihand, "_write", fails)
    with pytest.raises(InputError, match="disk full after 1 of 2 parts"):
        write(options, hand, None)
    monkeypatch.setattr(freihand, "_write", real)
    assert write(options, hand, None)["written"] == 1


def test_views_are_right_hands_of_every_orientation(hand):
    """200 samples: thumb on the right hand's side of palm and fingers; the global rotation is spread over all of them."""
    options = Options(**SMALL)
    studio = freihand.make_studio(options, hand.arrays)
    framing = single.Framing(options.focal, options.distance_m, options.fill, options.off_centre)
    views = single.sample_views(studio.side, studio.people[0], framing, 200, 0.0, np.random.default_rng(0))
    anatomy = studio.side.anatomy(studio.people[0].shape)
    turn, *_ = single.pose(studio.side, views.labels.mano[:, 0].astype(np.float64))
    forward, side, palm = (turn @ axis for axis in (anatomy.forward, anatomy.side, anatomy.palm))
    np.testing.assert_allclose(np.cross(forward, palm), side, atol=1e-9)  # a left hand's would be its negative
    for axis in (forward, palm):
        assert (np.abs(axis.mean(0)) < 0.35).all() and (axis.std(0) > 0.4).all()
    camera = views.labels.verts - views.camera_from_world[:, None, :3, 3]
    np.testing.assert_allclose(camera @ views.camera_from_world[:, :3, :3], views.verts, atol=1e-6)


def test_a_held_thing_hides_few_joints(hand):
    """Forty grasps: the share of joints behind the thing is at most HIDDEN in every one, and is counted (not always 0)."""
    studio, rng = freihand.make_studio(Options(**SMALL), hand.arrays), np.random.default_rng(1)
    person, shares = studio.people[1], []
    anatomy = studio.side.anatomy(person.shape)
    for number in (2, 5, 12, 21):
        for _ in range(10):
            angles, place = single._grasping(studio.side, person, anatomy, number, rng)
            mano = np.zeros((1, 61))
            mano[0, 3:48] = single.axis_angle_from_angles(angles, anatomy.axes).ravel() - studio.side.model.hands_mean.numpy()
            _, wrist, _, joints = single.pose(studio.side, mano)
            turn, elbow = single._aim(anatomy, joints[0] - wrist, number, place, rng)
            shares.append(single._hidden(joints[0] - wrist, number, place, -turn[2]))
            assert turn[2] @ elbow > single.NEARER
    assert max(shares) <= single.HIDDEN and max(shares) > 0


def test_the_option_file_is_the_real_sets_size():
    """options/synth_freihand.yaml against the counts of the real set."""
    from options.load import load

    options = load(ROOT / "options/synth_freihand.yaml")
    assert isinstance(options.synth, Options) and (options.synth.train, options.synth.evaluation) == (32_560, 3960)
