"""Broken DexYCB trees: one line that names the file and the remedy, finished work kept, and the mended tree goes through."""
import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from dex_ycb_cases import SERIALS, toy_hand, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.cache import Crops
from datasets.dex_ycb import Options, prepare
from datasets.dex_ycb_frames import read_labels
from datasets.pictures import Broken, decode
from utils.errors import InputError

HANDS = {"right": toy_hand()}
LAST = Path("20200711-subject-02/20200711_000001")  # the last sequence: by then one of each other kind is finished
LABELS, PICTURE = LAST / SERIALS[0] / "labels_000001.npz", LAST / SERIALS[0] / "color_000001.jpg"
INTRINSICS = Path(f"calibration/intrinsics/{SERIALS[0]}_160x120.yml")
MANO = Path("calibration/mano_20200101_000000_subject-02_right/mano.yml")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", HANDS, people=2, sequences=2, frames=2, lefts=False)


def options(tree: Path, **changes) -> Options:
    return Options(root=str(tree), prepared=str(tree.parent / "out"), width=160, height=120, workers=1, in_image=False,
                   **changes)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def text(value: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(value)


def bytes_of(value: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(value)


def label(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Bend arrays of an npz; a function that returns None takes the array out."""
    def bend(path: Path) -> None:
        with np.load(path) as file:
            labels = {key: changes[key](file[key]) if key in changes else file[key] for key in file.files}
        np.savez(path, **{key: value for key, value in labels.items() if value is not None})
    return bend


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def bend(path: Path) -> None:
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
    return bend


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def other_size(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((240, 320, 3), np.uint8))


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


FRAMES: dict[str, tuple[Path, Callable[[Path], None], str, str]] = {
    "picture missing": (PICTURE, Path.unlink, "expected a picture, found nothing", "picture missing"),
    "picture cut off": (PICTURE, cut_off, "expected a whole JPEG, found one cut off after", "picture broken"),
    "picture empty": (PICTURE, bytes_of(b""), "expected a JPEG, found an empty file", "picture broken"),
    "not a picture": (PICTURE, text("<html>404</html>" * 9), "expected a JPEG, found another kind of file", "picture broken"),
    "garbage in a JPEG": (PICTURE, bytes_of(b"\xff\xd8" + b"x" * 900 + b"\xff\xd9"), "cannot be decoded", "picture broken"),
    "picture of another size": (PICTURE, other_size, "expected 160x120 pixels, found 320x240; set dataset.width",
                                "picture of another size"),
    "labels missing": (LABELS, Path.unlink, "expected labels, found nothing", "labels missing"),
    "labels cut off": (LABELS, cut_off, "expected an npz with pose_m, joint_3d, joint_2d, found a file that breaks",
                       "labels broken"),
    "labels are text": (LABELS, text("x = 1"), "found a file that breaks", "labels broken"),
    "labels are one array": (LABELS, lambda p: p.write_bytes(npy(np.zeros(3))), "found a file that breaks", "labels broken"),
    "a key is missing": (LABELS, label(joint_2d=lambda x: None), "found a file that breaks ('joint_2d", "labels broken"),
    "another shape": (LABELS, label(joint_3d=lambda x: x[0]), "expected joint_3d (1, 21, 3) of floats, found (21, 3)",
                      "labels broken"),
    "whole numbers": (LABELS, label(joint_3d=lambda x: x.astype(int)), "floats, found (1, 21, 3) int64", "labels broken"),
    "NaN labels": (LABELS, label(pose_m=with_nan), "expected finite numbers in pose_m, found NaN", "labels not finite"),
    "behind the camera": (LABELS, label(joint_3d=lambda x: x * np.float32([1, 1, -1])),
                          "expected joint_3d in front of the camera", "joints behind the camera"),
    "pixels off": (LABELS, label(joint_2d=lambda x: x + np.float32(3.1)),
                   "joint_2d off by 3.1 px from K*joint_3d; is calibration/intrinsics the 160x120 set?", "joint_2d off"),
}
SEQUENCES: dict[str, tuple[Path, Callable[[Path], None], str]] = {
    "pose.npz broken": (LAST / "pose.npz", cut_off, "expected an npz with pose_m, found a file that breaks"),
    "pose.npz of another length": (LAST / "pose.npz", label(pose_m=lambda x: x[:1]), "expected pose_m (2, 1, 51) of floats"),
    "meta.yml broken": (LAST / "meta.yml", text("a: [1"), "expected yaml, found a file that breaks"),
    "meta.yml empty": (LAST / "meta.yml", text(""), "expected `key: value` lines, found NoneType"),
    "num_frames": (LAST / "meta.yml", replaced("num_frames: 2", "num_frames: two"),
                   "expected num_frames: a whole number, found 'two'"),
    "mano_sides": (LAST / "meta.yml", replaced("- right", "- both"), "expected mano_sides: [right] or [left], found ['both']"),
    "mano_calib unquoted": (LAST / "meta.yml", replaced("20200101_000000_subject-02_right", "20200101_000000"),
                            "expected mano_calib: [one name, quoted], found [20200101000000]"),
    "serials": (LAST / "meta.yml", replaced("serials:", "serials: 5\nothers:"), "expected serials: a list, found 5"),
    "unknown serials": (LAST / "meta.yml", replaced("serials:", "serials: ['7']\nothers:"),
                        "none of its serials ['7'] is among dataset.serials; set that option"),
    "mano.yml missing": (MANO, Path.unlink, "expected a file, found nothing; meta.yml names it"),
    "nine betas": (MANO, replaced("- ", "- 0.5\n- "), "expected betas: 10 finite numbers, found ["),
    "betas NaN": (MANO, text("betas: [.nan, 0, 0, 0, 0, 0, 0, 0, 0, 0]"), "expected betas: 10 finite numbers, found [nan, 0"),
    "betas text": (MANO, text("betas: hand"), "expected betas: 10 finite numbers, found 'hand'"),
    "code in yaml": (MANO, text("betas: !!python/object/apply:os.getcwd []"), "expected yaml, found a file that breaks"),
    "intrinsics missing": (INTRINSICS, Path.unlink,
                           "expected a file, found nothing; unpack the calibration archive, or set dataset.width"),
    "intrinsics without colour": (INTRINSICS, text("depth: {fx: 1}"),
                                  "expected color: {fx, fy, ppx, ppy}: 4 finite numbers, found None"),
    "negative focal length": (INTRINSICS, text("color: {fx: -1, fy: 1, ppx: 1, ppy: 1}"), "expected focal lengths above 0"),
    "intrinsics of another size": (INTRINSICS, text("color: {fx: 320, fy: 323, ppx: 164, ppy: 114}"),
                                   "px from K*joint_3d; is calibration"),
    "extrinsics broken": (Path("calibration/extrinsics_x/extrinsics.yml"), text("extrinsics: {'836212060125': [1, 2]}"),
                          "expected extrinsics: 836212060125: 12 finite numbers, found [1, 2]"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_broken_frame_stops(tree: Path, kind: str):
    """A broken frame: its file is named in one line; the sequences before it are kept; mended, the same command completes."""
    path, bend, line, _ = FRAMES[kind]
    whole = (tree / path).read_bytes()
    bend(tree / path)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), HANDS)
    message = str(caught.value)
    assert line in message and "20200711_000001" in message and "_000001." in message and "\n" not in message
    assert len(list((tree.parent / "out" / "shards").glob("*.npz"))) == 3 and not (tree.parent / "out" / "meta.json").exists()
    (tree / path).write_bytes(whole)
    done = prepare(options(tree), HANDS)
    assert done.counts["kept"] == 16 and done.counts["frames_now"] == 4


@pytest.mark.parametrize("kind", FRAMES)
def test_broken_frame_is_skipped_by_option(tree: Path, kind: str):
    """unreadable=skip: the frame is left out, counted under its reason, and named."""
    path, bend, line, reason = FRAMES[kind]
    bend(tree / path)
    done = prepare(options(tree, unreadable="skip"), HANDS)
    assert done.counts["excluded"] == {reason: 1} and done.counts["kept"] == 15
    assert line in done.counts["examples"][reason][0] and line in str(done)
    assert len(Crops(tree.parent / "out" / "crops.lmdb")) == 15


@pytest.mark.parametrize("kind", SEQUENCES)
def test_broken_sequence_or_calibration_stops(tree: Path, kind: str):
    """A broken file of a sequence or of the calibration: its path, what was expected, what was found, in one line."""
    path, bend, line = SEQUENCES[kind]
    bend(tree / path)
    with pytest.raises(InputError) as caught:
        prepare(options(tree), HANDS)
    message = str(caught.value)
    assert line in message and "\n" not in message
    assert str(path) in message or "calibration/intrinsics the" in message


def test_broken_frame_in_a_process(tree: Path):
    """The line of a broken file comes out of a worker process unchanged, and what the others did is kept."""
    cut_off(tree / LABELS)
    with pytest.raises(InputError, match=r"labels_000001\.npz: expected an npz with pose_m"):
        prepare(options(tree), HANDS, workers=2)
    assert list((tree.parent / "out" / "shards").glob("*.npz"))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_broken_file_gets_through(tree: Path, data: st.DataObject):
    """Any bytes cut off or changed in a label file or picture: read, or refused with a line, and nothing else."""
    path = data.draw(st.sampled_from([tree / LABELS, tree / PICTURE]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    bent = tree / "bent"
    bent.write_bytes(content[:data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(Broken):
        if path.suffix == ".npz":
            assert {key: value.shape for key, value in read_labels(bent).items()} == {
                "pose_m": (51,), "joint_3d": (21, 3), "joint_2d": (21, 2)}
        else:
            assert decode(bent, 160, 120).shape == (120, 160, 3)


def test_optional_files(tree: Path):
    """A tree of labels and pictures alone, as the official toolkit accepts it, goes through: no pose.npz, no extrinsics."""
    for path in [*tree.rglob("pose.npz"), *tree.rglob("extrinsics.yml")]:
        path.unlink()
    assert prepare(options(tree), HANDS).counts["kept"] == 16
    assert np.isnan(np.load(tree.parent / "out" / "index" / "world.npy")).all()


def test_no_tree(tmp_path: Path):
    """No folder, and a folder that is no DexYCB."""
    with pytest.raises(InputError, match="expected a folder, found nothing; link or unpack the dataset there"):
        prepare(options(tmp_path / "nowhere"), HANDS)
    with pytest.raises(InputError, match="expected folders such as 20200709-subject-01/<sequence>/meta.yml, found none"):
        prepare(options(tmp_path), HANDS)


def test_unequal_people(tree: Path):
    """A person with fewer sequences would shift the splits: refused with the numbers."""
    shutil.rmtree(tree / LAST)
    with pytest.raises(InputError, match=r"expected as many sequences of each person, found .*'20200711-subject-02': 1.* unfin"):
        prepare(options(tree), HANDS)


def test_nothing_left(tree: Path):
    """A tree whose every frame is left out: refused with the reasons."""
    for path in tree.rglob("meta.yml"):
        replaced("- right", "- left")(path)
    with pytest.raises(InputError, match="no frame is left of 16: 16 left hand"):
        prepare(options(tree), HANDS)


def test_another_hand_is_refused_before_the_work(tree: Path):
    """Labels of another hand than the option's: refused before any sequence is cut."""
    with pytest.raises(InputError, match=r"the labels' right hands are not those of the hand model toy .*: set hand to the file"):
        prepare(options(tree), {"right": toy_hand(salt=1)})
    assert not (tree.parent / "out" / "shards").exists()


def test_changed_while_unfinished(tree: Path):
    """A sequence that changed since its shard was cut is refused, not mixed."""
    whole = (tree / LABELS).read_bytes()
    cut_off(tree / LABELS)
    with pytest.raises(InputError, match="found a file that breaks"):
        prepare(options(tree), HANDS)
    (tree / LABELS).write_bytes(whole)
    first = tree / "20200710-subject-01/20200710_000000" / SERIALS[0] / "labels_000000.npz"
    label(joint_2d=lambda x: x + np.float32(0.5))(first)
    with pytest.raises(InputError, match="20200710_000000: changed since this preparation began; remove"):
        prepare(options(tree), HANDS)
