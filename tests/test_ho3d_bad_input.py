"""Broken HO3D trees: one line that names the file and the remedy; broken frames can be counted and left out instead."""
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from ho3d_cases import FRAMES, HAND, HEIGHT, WIDTH, Made, options, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.augment import AugmentOptions, CropOptions
from datasets.ho3d import Options, open_reader, prepare
from datasets.ho3d_frame import read_meta
from datasets.ho3d_tree import read_tree
from datasets.pictures import Broken, Excluded
from utils.errors import InputError

HANDS = {"right": HAND}
LINE = "ABF10/0002"
Bend = Callable[[Made], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_tree(tmp_path_factory.mktemp("sound") / "tree")


@pytest.fixture
def made(tmp_path: Path, sound: Made) -> Made:
    shutil.copytree(sound.root, tmp_path / "tree")
    lists = {split: list(lines) for split, lines in sound.lists.items()}
    return Made(tmp_path / "tree", sound.version, sound.frames, lists, sound.camera_from_world)


class Evil:
    """A pickle of this asks for a command to be run."""

    def __reduce__(self):
        return (print, ("this ran",))


def meta(data: bytes) -> Bend:
    return lambda made: made.meta(LINE).write_bytes(data)


def change(**values: object) -> Bend:
    return lambda made: made.change(LINE, **values)


def changed_evaluation(**values: object) -> Bend:
    return lambda made: made.change("AP10/0001", **values)


def cut_off(made: Made) -> None:
    made.meta(LINE).write_bytes(made.meta(LINE).read_bytes()[:-2000])


def other_size(made: Made) -> None:
    cv2.imwrite(str(made.rgb(LINE)), np.zeros((2 * HEIGHT, WIDTH, 3), np.uint8))


def mask_of(made: Made) -> Path:
    return made.root / "HO3D_v3_segmentations_rendered/train/ABF10/seg/0002.png"


def flat_joints(made: Made) -> None:
    joints = made.frames[LINE]["joints"]
    made.change(LINE, handJoints3D=joints * 0 + joints[0])


FRAME: dict[str, tuple[Bend, str, str]] = {
    "picture missing": (lambda m: m.rgb(LINE).unlink(), r"rgb/0002: expected .png \(v2\) or .jpg \(v3\), found neither",
                        "picture missing"),
    "picture cut off": (lambda m: m.rgb(LINE).write_bytes(m.rgb(LINE).read_bytes()[:300]),
                        "expected a whole JPEG, found one cut off after 300 bytes", "picture broken"),
    "picture empty": (lambda m: m.rgb(LINE).write_bytes(b""), "expected a JPEG, found an empty file", "picture broken"),
    "picture of another size": (other_size, "expected 160x120 pixels, found 160x240", "picture of another size"),
    "pickle missing": (lambda m: m.meta(LINE).unlink(), "0002.pkl: expected a pickle, found nothing", "annotation missing"),
    "pickle empty": (meta(b""), "expected a pickle of HO3D's annotation, found an empty file", "annotation broken"),
    "pickle cut off": (cut_off, "expected a pickle of HO3D's annotation, found one cut off or damaged", "annotation broken"),
    "pickle runs code": (meta(pickle.dumps(Evil(), 2)), "found one that asks for .*print; nothing in it was run",
                         "annotation broken"),
    "no pickle": (meta(b"<html>404</html>"), r"found a web page \(was it saved without logging in\?\)", "annotation broken"),
    "a list": (meta(pickle.dumps([1, 2], 2)), "expected handJoints3D, handPose, handTrans, handBeta, camMat, found a list",
               "annotation broken"),
    "other keys": (meta(pickle.dumps({"xyz": 1, "K": 2}, 2)), "expected handJoints3D.*, found keys xyz, K", "annotation broken"),
    "evaluation's joints": (change(handJoints3D=np.zeros(3, np.float32)),
                            r"expected handJoints3D \(21, 3\) of numbers, found \(3,\) float32; an evaluation frame\?",
                            "annotation broken"),
    "text for numbers": (change(handPose="flat"), r"expected handPose \(48,\) of numbers, found \(\) <U4", "annotation broken"),
    "another shape": (change(handBeta=np.zeros(9)), r"expected handBeta \(10,\) of numbers, found \(9,\)", "annotation broken"),
    "NaN": (change(handTrans=np.array([0, np.nan, 0])), "expected finite numbers in handTrans, found NaN",
            "annotation not finite"),
    "camera skewed": (change(camMat=np.array([[600, 1, 320], [0, 600, 240], [0, 0, 1.0]])),
                      "expected camMat fx 0 cx, 0 fy cy, 0 0 1, found", "camera broken"),
    "OpenCV axes": (lambda m: m.change(LINE, handJoints3D=m.frames[LINE]["joints"] * np.float32([1, -1, -1])),
                    r"expected the wrist in front of the camera \(z < 0 in OpenGL axes\), found z = 0\.",
                    "joints behind the camera"),
    "one joint": (flat_joints, "expected 2D joints spread over a hand, found all of them within a pixel", "box empty"),
    "mask missing": (lambda m: mask_of(m).unlink(), "expected a segmentation .png or .jpg, as other frames of ABF10 have, found "
                     "neither; .*dataset.masks=false", "mask missing"),
    "mask broken": (lambda m: mask_of(m).write_bytes(b"\x89PNG\r\n\x1a\nxIEND"), "cannot be decoded", "mask broken"),
    "mask of another shape": (lambda m: cv2.imwrite(str(mask_of(m)), np.zeros((30, 80, 3), np.uint8)),
                              "expected a part of 160x120 pixels, found 80x30", "mask of another size"),
    "no box": (changed_evaluation(handBoundingBox=[30, 40, 30, 60]), r"expected handBoundingBox x0 y0 x1 y1 .* found \[30.0",
               "box empty"),
    "training's joints": (changed_evaluation(handJoints3D=np.zeros((21, 3))),
                          r"expected handJoints3D \(3,\) of numbers, found \(21, 3\) float64; a training frame\?",
                          "annotation broken"),
    "another wrist": (changed_evaluation(handJoints3D=np.array([0.5, 0, -0.6])),
                      r"expected the wrist of its entry in evaluation_xyz.json, found one \d+ mm off", "labels of another frame"),
}


@pytest.mark.parametrize("case", FRAME)
def test_broken_frames(made: Made, case: str):
    """A broken file stops the work with one line that names it; unreadable=skip counts it, names it and goes on."""
    bend, message, reason = FRAME[case]
    bend(made)
    with pytest.raises(InputError, match=message) as raised:
        prepare(options(made), HANDS)
    assert "\n" not in str(raised.value) and str(made.root) in str(raised.value)
    shutil.rmtree(made.root.parent / "prepared")
    done = prepare(options(made, unreadable="skip"), HANDS)
    assert done.counts["excluded"] == {reason: 1} and done.counts["kept"] == 5 * FRAMES - 1
    assert len(done.counts["examples"][reason]) == 1


def replaced(name: str, old: str, new: str) -> Bend:
    def bend(made: Made) -> None:
        before = (made.root / name).read_text()
        assert old in before
        (made.root / name).write_text(before.replace(old, new, 1))
    return bend


def shorter(name: str) -> Bend:
    return lambda made: (made.root / name).write_text(json.dumps(json.loads((made.root / name).read_text())[:-1]))


def turned_round(made: Made) -> None:
    path = made.root / "evaluation_verts.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


def longer(made: Made) -> None:
    path = made.root / "evaluation_verts.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps([*values, values[0]]))


def gone(made: Made, *names: str) -> None:
    for name in names:
        path = made.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def other_colours(made: Made) -> None:
    for path in (made.root / "HO3D_v3_segmentations_rendered").rglob("*.png"):
        image = cv2.imread(str(path))
        cv2.imwrite(str(path), image[..., [1, 0, 2]])  # blue and green change places: hand and thing


CALIBRATION = "calibration/SB1/calibration/"
TREE: dict[str, tuple[Bend, str]] = {
    "nothing there": (lambda m: gone(m, "train", "evaluation", "train.txt", "evaluation.txt"),
                      "expected train.txt, train/, evaluation.txt and evaluation/, found none of them"),
    "no root": (lambda m: shutil.rmtree(m.root), "expected a folder, found nothing; link or unpack the dataset there"),
    "no list": (lambda m: gone(m, "train.txt"), "train.txt: expected a file, found nothing; the folder train is there without"),
    "an empty list": (lambda m: (m.root / "train.txt").write_text("\n"), "expected lines <sequence>/<frame>, found an empty"),
    "another list": (replaced("train.txt", "SB10/0001", "SB10,0001"),
                     "train.txt: line 2: expected <sequence>/<frame> such as ABF10/0000, found 'SB10,0001'"),
    "a way out": (replaced("train.txt", "SB10/0001", "../../SB10/0001"), "line 2: expected <sequence>/<frame>"),
    "a list of bytes": (lambda m: (m.root / "train.txt").write_bytes(b"\xff\xfe\x00"), "found a file that is no text"),
    "a sequence absent": (lambda m: gone(m, "train/SB12"), "train/SB12/rgb: expected a folder, as train.txt names frames of "
                          "SB12, found nothing; unpack the archive again"),
    "without pickles": (lambda m: gone(m, "evaluation/AP10/meta"), "AP10/meta: expected a folder, as evaluation.txt names"),
    "other version": (lambda m: (m.root / "evaluation.txt").write_text("AP10/0000\n" * 11524),
                      "expected 20137 lines of HO3D v3, found 11524, which is v2's number; set dataset.version=v2"),
    "other version's training": (lambda m: (m.root / "train.txt").write_text("SB10/0000\n" * 66034),
                                 "train.txt: expected 83325 lines of HO3D v3, found 66034, which is v2's number"),
    "labels of fewer": (shorter("evaluation_xyz.json"), "evaluation_xyz.json: expected 8 entries, one for each line of "
                        "evaluation.txt, found 7"),
    "vertices of fewer": (shorter("evaluation_verts.json"), "evaluation_verts.json: expected 8 entries, .* found 7"),
    "vertices of more": (longer, "evaluation_verts.json: expected 8 entries, .* found 9"),
    "vertices in another order": (turned_round, "sample 0 .* expected the vertices of evaluation_xyz.json's hand, found finger"),
    "labels cut off": (lambda m: (m.root / "evaluation_xyz.json").write_text((m.root / "evaluation_xyz.json").read_text()[:-9]),
                       "evaluation_xyz.json: .*truncated"),
    "labels are a table": (lambda m: (m.root / "evaluation_xyz.json").write_text('{"a": 1}'), "evaluation_xyz.json: "),
    "vertices alone": (lambda m: gone(m, "evaluation_xyz.json"), "evaluation_xyz.json: expected it beside evaluation_verts.json"),
    "other colours": (other_colours, r"joints on the hand's colour \(0, 0, 255\), found \d+ on the thing's and 0 on the hand's"),
    "no camera order": (lambda m: (m.root / CALIBRATION / "cam_orders.txt").write_text(""),
                        r"cam_orders.txt: expected the cameras' numbers, each once, found \[\]"),
    "a camera twice": (lambda m: (m.root / CALIBRATION / "cam_orders.txt").write_text("0 1 1"), "each once, found"),
    "no pose": (lambda m: gone(m, CALIBRATION + "trans_1.txt"), "trans_1.txt: expected a file, found nothing"),
    "no rotation": (lambda m: (m.root / CALIBRATION / "trans_1.txt").write_text("2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"),
                    r"trans_1.txt: expected 4x4 numbers, a rotation and a translation, found 2 0 0 0 \(16 values\)"),
    "no matrix": (lambda m: (m.root / CALIBRATION / "trans_1.txt").write_text("a b"), r"found a b \(2 values\)"),
    "no intrinsics": (lambda m: (m.root / CALIBRATION / "cam_2_intrinsics.txt").write_text("fx: 5"),
                      "cam_2_intrinsics.txt: expected fx, fy, ppx and ppy, found 'fx: 5'"),
}


@pytest.mark.parametrize("case", TREE)
def test_broken_trees(made: Made, case: str):
    """A broken list, label file, folder or calibration is refused with one line that names it."""
    bend, message = TREE[case]
    bend(made)
    with pytest.raises(InputError, match=message) as raised:
        prepare(options(made), HANDS)
    assert "\n" not in str(raised.value)
    assert not (made.root.parent / "prepared" / "meta.json").exists()


def test_a_list_saved_on_windows(made: Made):
    """A byte order mark, CRLF and blank lines at the end change nothing."""
    path = made.root / "train.txt"
    before = read_tree(made.root, "v3").lines["train"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    assert read_tree(made.root, "v3").lines["train"] == before


def test_a_missing_sequence_can_be_left_out(made: Made):
    """unreadable=skip counts the lines of a sequence that is not there; the others keep their official numbers."""
    gone(made, "evaluation/SB11")
    done = prepare(options(made, unreadable="skip"), HANDS)
    assert done.counts["excluded"] == {"sequence missing": FRAMES} and done.counts["kept"] == 4 * FRAMES
    reader = open_reader(options(made, unreadable="skip"), CropOptions(factor=1.5), AugmentOptions(), split="evaluation",
                         train=False, seed=0, hands=HANDS)
    assert reader.columns(range(FRAMES))["official_index"].tolist() == list(range(FRAMES, 2 * FRAMES))


def test_broken_calibration_is_found_before_the_work(made: Made):
    """A calibration that cannot be read stops the preparation before a picture is cut."""
    (made.root / CALIBRATION / "trans_1.txt").write_text("")
    with pytest.raises(InputError, match="trans_1.txt: expected 4x4 numbers"):
        prepare(options(made), HANDS)
    assert not list((made.root.parent / "prepared").rglob("*.npz"))


def test_options_that_do_not_fit(made: Made):
    """Left hands and unknown versions are no options; another split is named."""
    with pytest.raises(ValueError, match="hands"):
        Options(hands="mirror_left")
    prepare(options(made), HANDS)
    with pytest.raises(InputError, match="HO3D: no split test in .*; there are train, evaluation"):
        open_reader(options(made), CropOptions(), AugmentOptions(), split="test", train=False, seed=0, hands=HANDS)
    with pytest.raises(InputError, match="prepared with dataset.version=v3, the options say v2"):
        open_reader(options(made, version="v2"), CropOptions(), AugmentOptions(), split="train", train=False, seed=0, hands=HANDS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_one_line(sound: Made, tmp_path: Path, data: st.DataObject):
    """However a pickle's bytes are changed: read as numbers of the right shapes, or refused in one line; nothing else."""
    raw = bytearray(sound.meta(LINE).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.pkl"
    path.write_bytes(bytes(raw[:data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else bytes(raw))
    try:
        assert read_meta(path, "train")["handJoints3D"].shape == (21, 3)
    except Broken as broken:
        assert "\n" not in str(broken) and str(path) in str(broken)
    except Excluded:
        pass
