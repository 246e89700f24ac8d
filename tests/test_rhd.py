"""datasets/rhd*.py: small trees of the real layout read back, the choice of the hand, orders, masks, depth, and real samples."""
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rhd_cases import LARGER, annotation, depth_of, hand_joints, write_pickle, write_tree

import run
from datasets.augment import AugmentOptions, CropOptions
from datasets.rhd import Options, Rhd, open_reader, prepare
from datasets.rhd_tree import SIZE, chosen_side, read_annotations, read_depth, read_mask
from utils.batch import Batch
from utils.camera import project, transform_uv
from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT.parent / "shared" / "samples" / "rhd"
CROP = CropOptions(pixels=64, factor=1.3)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def options(tree: Path, **changes) -> Options:
    return Options(**{"root": str(tree), "prepared": str(tree.parent / "out"), "workers": 1, "hands": "mirror_left", **changes})


def opened(chosen: Options, split: str = "training", **changes) -> Rhd:
    return open_reader(chosen, CROP, AugmentOptions(), **{"split": split, "train": False, "seed": 0, "hands": {}, **changes})


def batch_of(reader: Rhd) -> Batch:
    raws = [reader[0, i] for i in range(len(reader))]
    return reader.batch({key: torch.stack([torch.as_tensor(raw[key]) for raw in raws]) for key in raws[0]})


def test_labels_come_back(tree: Path):
    """Joints of the chosen hand in T21 and the camera, left ones mirrored, against the formula to float32; K * joints = uv."""
    done = prepare(options(tree), {})
    assert done.counts["kept"] == 6 and "training: 4 pictures" in str(done)
    for split, count in (("training", 4), ("evaluation", 2)):
        reader = opened(options(tree), split)
        batch = batch_of(reader)
        assert [reader.sample_name(i) for i in range(count)] == [f"{split}/color/{i:05d}.png" for i in range(count)]
        for i in range(count):
            joints = hand_joints(LARGER[i], i)
            mirrored = joints * ((-1, 1, 1) if LARGER[i] == "left" else (1, 1, 1))
            np.testing.assert_allclose(batch.joints[i], mirrored, atol=1e-6)
            assert bool(batch.mirrored[i]) == (LARGER[i] == "left")
        torch.testing.assert_close(project(batch.joints, batch.K), batch.joints_uv, atol=0.01, rtol=0)
        assert (batch.uv_confidence == 1).all() and batch.has_uv.all() and batch.has_joints.all() and batch.verts is None


def test_what_it_provides(tree: Path):
    """Joints, 2D joints and mask, and no mesh; the protocol says that the joints are not MANO's."""
    prepare(options(tree), {})
    reader = opened(options(tree))
    assert {"joints", "joints_uv", "mask", "root"} <= reader.provides
    assert not reader.provides & {"verts", "rotations", "shape", "identity", "chain_wrist"}
    protocol = reader.protocol()
    assert "not MANO's" in protocol["joints"] and protocol["hands"] == "3 right and 1 left hands (mirrored)"
    assert protocol["dataset"] == "RHD" and "official" not in protocol and not reader.columns([0, 1])


def test_picture_and_mask_lie_under_the_joints(tree: Path):
    """The crop is bright and the mask on at every joint, and off between the hands: also where the hand was mirrored."""
    prepare(options(tree), {})
    reader = opened(options(tree))
    batch = batch_of(reader)
    at = batch.joints_uv.round().long().clamp(0, 63)
    for i in range(len(reader)):
        assert (batch.mask[i, at[i, :, 1], at[i, :, 0]] == 1).all()
        assert batch.image[i, 1, at[i, :, 1], at[i, :, 0]].mean() > 0.6
        assert 0.02 < batch.mask[i].mean() < 0.6
        blue = batch.image[i, 2].mean(0)  # grows to the right, to the left where mirrored
        assert (blue[48:].mean() < blue[:16].mean()) == (LARGER[i] == "left")


def test_whole_picture(tree: Path):
    """picture(): the whole picture, mirrored for a left hand, whose joints lie at K * joints."""
    prepare(options(tree), {})
    reader = opened(options(tree))
    batch = batch_of(reader)
    for i in range(len(reader)):
        picture = reader.picture(i)
        uv = project(batch.joints[i:i + 1], torch.from_numpy(picture.K)[None])
        assert picture.image.shape == (SIZE, SIZE, 3)
        there = picture.image[tuple(uv[0].round().long().numpy().T[::-1])]
        assert (there[:, 1] > 180).mean() > 0.9
        torch.testing.assert_close(transform_uv(torch.from_numpy(picture.crop_from_image)[None], uv), batch.joints_uv[i:i + 1],
                                   atol=0.01, rtol=0)


def test_right_hands_only(tree: Path):
    """hands=right keeps the pictures whose chosen hand is right; a folder with both serves that choice, too."""
    done = prepare(options(tree, hands="right"), {})
    assert done.counts["kept"] == 4 and done.counts["excluded"] == {"left hand": 2}
    assert [opened(options(tree, hands="right")).sample_name(i)[-9:] for i in range(3)] == ["00000.png", "00002.png", "00003.png"]
    both = options(tree, prepared=str(tree.parent / "both"))
    prepare(both, {})
    assert len(opened(both)) == 4 and len(opened(both.model_copy(update={"hands": "right"}))) == 3
    with pytest.raises(InputError, match="prepared with dataset.hands=right, the options say mirror_left"):
        opened(options(tree))


@pytest.mark.parametrize("left, right, side", [(3, 2, "left"), (2, 3, "right"), (2, 2, "right"), (0, 0, None)])
def test_hand_of_more_pixels(left: int, right: int, side: str | None):
    """The hand with more pixels, ids 2-17 and 18-33, the right one of equal ones; none where there is none."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[0, :9] = 1
    mask[1, :left] = np.array([2, 17, 9])[:left]
    mask[2, :right] = np.array([18, 33, 20])[:right]
    assert chosen_side(mask) == side


def test_depth_bytes(tree: Path):
    """read_depth against the formula to half a step of 16 bits over 5 m: red is the high byte."""
    depth = read_depth(tree / "training/depth/00000.png")
    assert depth.shape == (SIZE, SIZE) and depth.dtype == np.float32
    np.testing.assert_allclose(depth, depth_of(read_mask(tree / "training/mask/00000.png")), atol=0.5 * 5 / 65535 + 1e-6)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[..., 2], picture[..., 1] = 1, 2
    cv2.imwrite(str(tree / "d.png"), picture)
    np.testing.assert_allclose(read_depth(tree / "d.png"), (256 + 2) / 65535 * 5, rtol=1e-6)


def test_visible_and_limit(tree: Path):
    """visible leaves out hands with fewer visible joints, limit thins each split evenly; both are counted."""
    done = prepare(options(tree, visible=10), {})  # of picture 1's 21 joints 7 are visible, of the others' 14
    assert done.counts["excluded"] == {"fewer visible joints than dataset.visible": 2} and done.counts["kept"] == 4
    some = options(tree, limit=2, prepared=str(tree.parent / "some"))
    assert prepare(some, {}).counts["frames"] == 4
    assert [opened(some).sample_name(i)[-9:] for i in range(2)] == ["00000.png", "00002.png"]


def test_one_split_is_enough(tree: Path):
    """A tree with the evaluation part alone, its pickle beside the folder: prepared; the other split is refused by name."""
    shutil.rmtree(tree / "training")
    (tree / "evaluation/anno_evaluation.pickle").rename(tree / "anno_evaluation.pickle")
    assert prepare(options(tree), {}).counts["kept"] == 2
    assert len(opened(options(tree), "evaluation")) == 2
    with pytest.raises(InputError, match="RHD training: no picture is left"):
        opened(options(tree))
    with pytest.raises(InputError, match="no split test in .*; there are training, evaluation"):
        opened(options(tree), "test")


def test_goes_on_where_it_stopped(tree: Path, monkeypatch: pytest.MonkeyPatch):
    """A broken picture stops the second task: the first's shard is kept; mended, the folder is that of a run in one go."""
    monkeypatch.setattr("datasets.tasks.PICTURES", 2)
    path = tree / "training/color/00002.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"00002\.png: expected a whole PNG, found one cut off"):
        prepare(options(tree), {})
    assert len(list((tree.parent / "out/shards").glob("*.npz"))) == 1
    path.write_bytes(whole)
    assert prepare(options(tree), {}).counts["frames_now"] == 4
    again = options(tree, prepared=str(tree.parent / "again"))
    prepare(again, {})
    for name in ("crops.lmdb", "masks.lmdb", "index/joints.npy", "index/name.npy", "meta.json"):
        assert (tree.parent / "out" / name).read_bytes() == (tree.parent / "again" / name).read_bytes()
    assert prepare(again, {}).counts["frames_now"] == 0


def bent(**changes: object) -> Callable[[Path], None]:
    """A pickle whose entry of picture 1 has other values (None = none)."""
    def bend(path: Path) -> None:
        entries = {number: annotation(number) for number in range(4)}
        entries[1] = {key: value for key, value in (entries[1] | changes).items() if value is not None}
        write_pickle(path, entries)
    return bend


def moved(name: str, by: float) -> np.ndarray:
    value = annotation(1)[name].copy()
    value[..., :2 if name == "uv_vis" else None] += by
    return value


def picture(value: np.ndarray) -> Callable[[Path], None]:
    return lambda path: cv2.imwrite(str(path), value)


class Runs:
    """Would run a program if it were unpickled by pickle.load."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


PICKLE, COLOR, MASK = (Path("training") / name for name in ("anno_training.pickle", "color/00001.png", "mask/00001.png"))
K = annotation(1)["K"]
BROKEN: dict[str, tuple[Path, Callable[[Path], object], str, str]] = {
    "picture missing": (COLOR, Path.unlink, "expected a picture, found nothing", "picture missing"),
    "picture cut off": (COLOR, lambda p: p.write_bytes(p.read_bytes()[:-40]), "found one cut off after", "picture broken"),
    "picture of another size": (COLOR, picture(np.zeros((64, 96, 3), np.uint8)),
                                "expected 320x320 pixels, found 96x64; unpack the archive again", "picture of another size"),
    "mask missing": (MASK, Path.unlink, "expected a mask, found nothing", "mask missing"),
    "mask is a web page": (MASK, lambda p: p.write_text("<html>"), "expected a PNG, found another kind of file", "mask broken"),
    "mask of another size": (MASK, picture(np.zeros((64, 64), np.uint8)), "expected 320x320 pixels, found 64x64; unpack RHD",
                             "mask of another size"),
    "mask in colour": (MASK, picture(np.zeros((SIZE, SIZE, 3), np.uint8)), "expected a mask of one byte per pixel from 0 to 33",
                       "mask broken"),
    "mask of 0 and 255": (MASK, picture(np.full((SIZE, SIZE), 255, np.uint8)), "up to 255", "mask broken"),
    "NaN": (PICKLE, bent(xyz=np.full((42, 3), np.nan)), "expected finite numbers of this picture", "labels not finite"),
    "behind the camera": (PICKLE, bent(xyz=-annotation(1)["xyz"]), "expected xyz in front of the camera",
                          "joints behind the camera"),
    "pixels off": (PICKLE, bent(uv_vis=moved("uv_vis", 3.1)), "uv_vis off by 3.1 px from K*xyz", "uv_vis off"),
    "K with skew": (PICKLE, bent(K=K + 3 * np.eye(3)[[1, 2, 0]].T), "expected K = [[fx, 0, cx]", "K broken"),
}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-300]), "expected RHD's annotations, found one cut off or damaged"),
    "text": (lambda p: p.write_text("hello"), "expected RHD's annotations, found a text file; unpack RHD_published_v2.zip"),
    "a list": (lambda p: write_pickle(p, [1, 2]), "expected a dict from picture numbers to xyz, uv_vis and K, found a list of 2"),
    "empty": (lambda p: write_pickle(p, {}), "found a dict of 0"),
    "names as keys": (lambda p: write_pickle(p, {"a": annotation(0)}), "expected a dict from picture numbers"),
    "entries are lists": (lambda p: write_pickle(p, {0: [1]}), "expected xyz, uv_vis and K of picture 0, found a list of 1"),
    "no K": (bent(K=None), "expected K (3, 3) of picture 1, found none"),
    "one hand": (bent(xyz=np.zeros((21, 3))), "expected xyz (42, 3) of picture 1, found an array (21, 3) of float64"),
    "code": (lambda p: write_pickle(p, {0: Runs()}), "mkdir; nothing in it was run"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_picture(tree: Path, kind: str):
    """A broken picture stops with one line that names it; with unreadable=skip it is counted under its reason and named."""
    path, bend, line, reason = BROKEN[kind]
    bend(tree / path)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), {})
    assert line in str(caught.value) and "00001.png" in str(caught.value) and "\n" not in str(caught.value)
    done = prepare(options(tree, unreadable="skip", prepared=str(tree.parent / "skipped")), {})
    assert done.counts["excluded"] == {reason: 1} and done.counts["kept"] == 5
    assert line in done.counts["examples"][reason][0] and line in str(done)


@pytest.mark.parametrize("kind", REFUSED)
def test_broken_annotations(tree: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """A broken or hostile pickle: its path, what was expected and found, in one line; nothing of it is run or prepared."""
    bend, line = REFUSED[kind]
    monkeypatch.chdir(tree)
    bend(tree / PICKLE)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), {})
    assert line in str(caught.value) and str(tree / PICKLE) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tree / "ran").exists() and not (tree.parent / "out").exists()


def test_no_tree(tmp_path: Path):
    """No folder, and a folder that is no RHD."""
    with pytest.raises(InputError, match="expected a folder, found nothing; link or unpack the dataset there"):
        prepare(options(tmp_path / "nowhere"), {})
    with pytest.raises(InputError, match="is dataset.root the folder RHD_published_v2"):
        prepare(options(tmp_path), {})


def test_hand_nowhere_and_outside(tree: Path):
    """A picture whose mask has no hand, and one whose hand is outside, are left out and counted."""
    cv2.imwrite(str(tree / MASK), np.ones((SIZE, SIZE), np.uint8))
    entry = annotation(2)
    entry["K"][0, 2] += 900
    entry["uv_vis"][:, 0] += 900
    write_pickle(tree / PICKLE, {number: annotation(number) if number != 2 else entry for number in range(4)})
    assert prepare(options(tree), {}).counts["excluded"] == {"no hand in the mask": 1, "the hand outside the picture": 1}


OPTION_FILE = """
name: tiny
out: {out}
device: cpu
dataset: {{name: rhd, root: {root}, prepared: {out}/prepared, hands: mirror_left, workers: 1}}
crop: {{pixels: 32, factor: 1.3}}
method: {method}
loss: {loss}
train: {{split: training, val_split: null, batch: 2, steps: 3, optimizer: adamw, lr: 1e-3, workers: 0}}
test: {{split: evaluation, batch: 2, workers: 0, report: false}}
"""


def test_methods_by_option_file_alone(tree: Path, capsys: pytest.CaptureFixture):
    """prepare, train and test of the 2D method by an option file; a method of meshes is refused in a line, nothing begun."""
    out, file = tree.parent / "run", tree.parent / "tiny.yaml"
    write = {"root": tree, "out": out, "method": "{name: pose2d, stages: 1, weights: null, width: 0.125}", "loss": "{heatmap: 1}"}
    file.write_text(OPTION_FILE.format(**write))
    for command in ("prepare", "train", "test"):
        assert run.main([command, str(file)]) == 0, capsys.readouterr().err
    scores = json.loads((out / "tiny/test/scores.json").read_text())
    assert scores["n"] == 2 and 0 < scores["metrics"]["uv_px"]["mean"] < 320 and "not MANO's" in scores["protocol_line"]
    write |= {"method": "{name: idhand, backbone: resnet18, weights: null, width: 0.125}",
              "loss": "{verts: 1, normal: 0, edge: 0, pose: 1, shape: 1}"}
    file.write_text(OPTION_FILE.format(**write).replace("name: tiny", "name: mesh"))
    capsys.readouterr()
    assert run.main(["train", str(file)]) == 2
    line = capsys.readouterr().err
    assert "verts" in line and "does not provide" in line and line.count("\n") == 1 and not (out / "mesh/last.pt").exists()


def real_annotations(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """The real samples as RHD's own pickles have them: millimetres to metres, the other hand zeros far outside."""
    content = json.loads((folder / "test_rhd.json").read_text())
    cameras = {image["id"]: image["cam_param"] for image in content["images"]}
    entries = {}
    for one in content["annotations"]:
        camera, first = cameras[one["image_id"]], {"left": 0, "right": 21}[one["hand_type"]]
        K = np.diag([*camera["focal"], 1.0])
        K[:2, 2] = camera["princpt"]
        xyz, uv_vis = np.zeros((42, 3)), np.zeros((42, 3))
        xyz[first:first + 21], uv_vis[first:first + 21] = np.array(one["joint_cam"]) / 1000, one["keypoints"]
        entries[one["image_id"]] = {"xyz": xyz, "uv_vis": uv_vis, "K": K}
    return entries


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples (../shared/samples/rhd) are not here")
def test_real_samples(tmp_path: Path):
    """Three real pictures through prepare and reader: K * joints within 0.1 px of the labels, bones that lengthen to the palm."""
    entries = real_annotations(SAMPLES)
    write_pickle(tmp_path / "tree/training/anno_training.pickle", entries)
    for number, entry in entries.items():
        for kind in ("color", "mask"):
            (tmp_path / "tree/training" / kind).mkdir(exist_ok=True)
        (tmp_path / f"tree/training/color/{number:05d}.png").symlink_to((SAMPLES / f"{number:05d}.png").resolve())
        mask = np.zeros((SIZE, SIZE), np.uint8)  # the samples bring none: discs stand for it
        side = "left" if entry["xyz"][:21].any() else "right"
        for u, v in entry["uv_vis"][{"left": slice(0, 21), "right": slice(21, 42)}[side], :2].round().astype(int):
            cv2.circle(mask, (int(u), int(v)), 4, {"left": 2, "right": 18}[side], -1)
        cv2.imwrite(str(tmp_path / f"tree/training/mask/{number:05d}.png"), mask)
    assert prepare(options(tmp_path / "tree"), {}).counts["kept"] == 3
    batch = batch_of(opened(options(tmp_path / "tree")))
    assert batch.mirrored.tolist() == [True, True, False]
    scale = batch.crop_from_image[:, :1, 0].abs()  # pixels of the crop per pixel of the picture
    assert ((project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1) / scale).max() < 0.1
    bones = (batch.joints[:, 1:] - batch.joints[:, :-1]).norm(dim=-1)
    palm = (batch.joints[:, [5, 9, 13, 17]] - batch.joints[:, :1]).norm(dim=-1)
    assert (palm > 0.055).all() and (palm < 0.12).all()  # base joints: their bone is the palm's
    assert (bones[:, [5, 9, 13, 17]] > bones[:, [7, 11, 15, 19]]).all()  # a finger's first bone and its last


def test_annotations_of_later_protocols(tmp_path: Path):
    """Pickles of later protocols are read as well; entries come in the order of their numbers."""
    path = tmp_path / "anno.pickle"
    path.write_bytes(pickle.dumps({3: annotation(3), 1: annotation(1)}, protocol=5))
    found = read_annotations(path)
    assert list(found) == [1, 3]
    np.testing.assert_array_equal(found[3]["xyz"], annotation(3)["xyz"])
