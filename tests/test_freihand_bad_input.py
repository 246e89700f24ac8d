"""Broken FreiHAND trees: one line that names the file and the remedy, finished work kept, and the mended tree goes through."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from freihand_cases import ROOT, free_hand, read_list, write_list, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets.freihand import Options, prepare
from datasets.freihand_tree import read_mano
from utils.errors import InputError

HANDS = {"right": free_hand()}
SAMPLES = 4
Bend = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training samples in two versions, three evaluation ones."""
    return write_tree(tmp_path_factory.mktemp("freihand") / "tree", HANDS["right"], SAMPLES, 3, versions=2)


@pytest.fixture
def tree(whole_tree: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_tree, tmp_path / "tree")


def options(tree: Path, **changes) -> Options:
    return Options(root=str(tree), prepared=str(tree.parent / "out"), workers=1, **changes)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def text(value: str) -> Bend:
    return lambda path: path.write_text(value)


def entries(change: Callable[[list], object]) -> Bend:
    """Change the list in a json file, in place or by what is returned."""
    def bend(path: Path) -> None:
        values = json.loads(path.read_text())
        path.write_text(json.dumps(change(values) or values))
    return bend


def like(name: str) -> Bend:
    """Put another list of the tree in its place."""
    return lambda path: shutil.copy(path.with_name(name), path)


def put(value: object, *at: int) -> Bend:
    def change(values: list) -> None:
        for i in at[:-1]:
            values = values[i]
        values[at[-1]] = value
    return entries(change)


def other_size(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((120, 160, 3), np.uint8))


def bigger(path: Path) -> None:
    """Vertices of the other samples: those of the list, one on."""
    write_list(path, np.roll(read_list(path), 1, 0) + 0.05)


K, XYZ, MANO, VERTS = (f"training_{name}.json" for name in ("K", "xyz", "mano", "verts"))
LISTS: dict[str, tuple[str, Bend, str]] = {
    "K missing": (K, Path.unlink, "expected a file, found nothing; unpack the archive again"),
    "xyz missing": (XYZ, Path.unlink, "expected a file, found nothing; unpack the archive again"),
    "mano missing": (MANO, Path.unlink, "expected a file, found nothing; unpack the archive again"),
    "K cut off": (K, cut_off, "truncated"),
    "xyz cut off": (XYZ, cut_off, "truncated"),
    "mano cut off": (MANO, cut_off, "the file is truncated"),
    "verts cut off": (VERTS, cut_off, "truncated"),
    "mano empty": (MANO, text(""), "found an empty file"),
    "xyz empty": (XYZ, text(""), "found an empty file"),
    "K an empty list": (K, text("[]"), "expected a list with an entry per sample, found an empty one"),
    "xyz a web page": (XYZ, text("<html>404</html>"), "found a web page"),
    "mano a web page": (MANO, text("<html>404</html>"), "found a web page"),
    "xyz a table": (XYZ, text('{"images": [1], "annotations": []}'), "json of another dataset or program?"),
    "mano a table": (MANO, text('{"images": [1], "annotations": []}'),
                     "found a table with the keys images, annotations: json of another dataset?"),
    "mano text": (MANO, text("hello"), "expected json, found text that is none"),
    "xyz in K's place": (K, like(XYZ), "expected 3 x 3 numbers, found 21 x 3"),
    "verts in xyz' place": (XYZ, like(VERTS), "expected 21 x 3 numbers, found 778 x 3"),
    "xyz in verts' place": (VERTS, like(XYZ), "expected 778 x 3 numbers, found 21 x 3"),
    "mano in xyz' place": (XYZ, like(MANO), "expected 21 x 3 numbers, found a list of 61 as point 0"),
    "xyz in mano's place": (MANO, like(XYZ), "sample 0 (counted from 0): expected [[61 numbers]], found a list of 21"),
    "scale in mano's place": (MANO, like("training_scale.json"), "expected [[61 numbers]], found another value"),
    "mano one level flat": (MANO, entries(lambda x: [e[0] for e in x]), "expected [[61 numbers]], found a list of 61"),
    "mano of 58 numbers": (MANO, entries(lambda x: [[e[0][:58]] for e in x]), "expected [[61 numbers]], found [[58 values]]"),
    "text in mano": (MANO, put("a", 2, 0, 3), "sample 2 (counted from 0): expected [[61 numbers]], found values that are not"),
    "NaN in mano": (MANO, put(float("nan"), 1, 0, 3), "found numbers that json does not have"),
    "NaN in xyz": (XYZ, put(float("nan"), 1, 3, 0), "sample 1 of the joints (counted from 0): a coordinate of point 3 is NaN"),
    "no scale in mano": (MANO, put(0.0, 3, 0, 60), "sample 3 (counted from 0): expected finite numbers and a scale above 0"),
    "K transposed": (K, put([[400.0, 0, 0], [0, 400.0, 0], [112.0, 112.0, 1]], 2),
                     "sample 2 (counted from 0): expected a matrix fx 0 cx, 0 fy cy, 0 0 1, found [[400.0, 0"),
    "negative focal length": (K, put(-400.0, 1, 0, 0), "sample 1 (counted from 0): expected a matrix fx 0 cx"),
    "a short xyz": (XYZ, entries(lambda x: x[:-1]), "expected 4 entries, as training_K.json has, found 3: are they of one rel"),
    "a short mano": (MANO, entries(lambda x: x[:-1]), "expected 4 entries, as training_K.json has, found 3: are they of one rel"),
    "a short verts": (VERTS, entries(lambda x: x[:-1]), "expected 4 entries, as training_K.json has, found 3: are they of one r"),
    "a long verts": (VERTS, entries(lambda x: x + x), "expected 4 entries, as training_K.json has, found more: are they of one"),
    "a list twice": (XYZ, lambda p: p.write_text(p.read_text() * 2), "write the json once"),
    "verts of others": (VERTS, bigger, "expected the vertices of training_xyz.json's hands, found others (joints"),
    "evaluation without joints": ("evaluation_xyz.json", Path.unlink, "expected a file, found nothing"),
}
PICTURE, MASK = "training/rgb/00000007.jpg", "training/mask/00000003.jpg"
PICTURES: dict[str, tuple[str, Bend, str, str, int]] = {
    "picture missing": (PICTURE, Path.unlink, "expected a picture, found nothing; unpack", "picture missing", 1),
    "picture cut off": (PICTURE, cut_off, "expected a whole JPEG, found one cut off after", "picture broken", 1),
    "picture empty": (PICTURE, text(""), "expected a JPEG, found an empty file", "picture broken", 1),
    "picture of another size": (PICTURE, other_size, "expected 224x224 pixels, found 160x120; unpack the archive again",
                                "picture of another size", 1),
    "mask missing": (MASK, Path.unlink, "expected a mask, found nothing; unpack the archive again, or set dataset.masks=false",
                     "mask missing", 2),
    "mask cut off": (MASK, cut_off, "expected a whole JPEG, found one cut off", "mask broken", 2),
    "mask of another size": (MASK, other_size, "expected 224x224 pixels, found 160x120", "mask of another size", 2),
    "joints behind the camera": (XYZ, put([[0.0, 0.0, -0.6]] * 21, 3),
                                 "training_xyz.json: sample 3 (counted from 0): expected joints in front of the camera (z > 0)",
                                 "joints behind the camera", 2),
}


def refused(tree: Path, **changes) -> str:
    with pytest.raises(InputError) as caught:
        prepare(options(tree, **changes), HANDS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", LISTS)
def test_broken_list_stops_before_the_work(tree: Path, kind: str):
    """A missing, broken or foreign list: its path, what was expected and found in one line, before any picture is cut."""
    name, bend, line = LISTS[kind]
    whole = (tree / name).read_bytes()
    bend(tree / name)
    message = refused(tree)
    assert line in message and str(tree / name) in message
    assert not list(tree.parent.glob("out/shards/*")) and not list(tree.parent.glob("out/labels/*"))
    (tree / name).write_bytes(whole)
    assert prepare(options(tree), HANDS).counts["kept"] == 2 * SAMPLES + 3


@pytest.mark.parametrize("kind", PICTURES)
def test_broken_picture_stops_or_is_skipped(tree: Path, kind: str):
    """A broken picture or mask: its file in one line; by unreadable=skip left out, counted under its reason, and named."""
    name, bend, line, reason, count = PICTURES[kind]
    bend(tree / name)
    message = refused(tree)
    assert line in message and str(tree / name) in message and not (tree.parent / "out" / "meta.json").exists()
    done = prepare(options(tree, unreadable="skip").model_copy(update={"prepared": str(tree.parent / "skipped")}), HANDS)
    assert done.counts["excluded"] == {reason: count} and done.counts["kept"] == 2 * SAMPLES + 3 - count
    assert line in done.counts["examples"][reason][0] and line in str(done)


def test_no_tree(tmp_path: Path):
    """No folder, a folder of something else, and lists without pictures or with too many."""
    with pytest.raises(InputError, match="nowhere: expected a folder, found nothing; link or unpack the dataset there"):
        prepare(options(tmp_path / "nowhere"), HANDS)
    with pytest.raises(InputError, match=r"expected training_K\.json, training/rgb and so on, .* found neither; is dataset"):
        prepare(options(tmp_path), HANDS)


def test_pictures_and_lists_of_two_releases(tree: Path):
    """No pictures at all, or more than the lists have samples: refused with both numbers."""
    shutil.copy(tree / PICTURE, tree / "training/rgb/00000016.jpg")
    assert "training/rgb: expected pictures 0 to 15, as training_K.json has 4 samples, found 00000016.jpg" in refused(tree)
    shutil.rmtree(tree / "training/rgb")
    assert "training/rgb: expected a folder, found nothing; unpack the archive again" in refused(tree)
    (tree / "training/rgb").mkdir()
    assert "training/rgb: expected pictures such as 00000000.jpg, found none" in refused(tree)


def test_hand_outside_the_picture(tree: Path):
    """A sample whose joints lie outside its picture is left out and counted, whatever dataset.unreadable says."""
    xyz, verts = (read_list(tree / name) for name in (XYZ, VERTS))
    xyz[1, :, 0] += 2.0
    verts[1, :, 0] += 2.0
    write_list(tree / XYZ, xyz)
    write_list(tree / VERTS, verts)
    assert prepare(options(tree), HANDS).counts["excluded"] == {"the hand outside the picture": 2}


def test_changed_since(tree: Path):
    """A tree that changed after it was prepared, or while it was unfinished, is refused, not mixed."""
    prepare(options(tree), HANDS)
    put(0.61, 1, 3, 2)(tree / XYZ)
    assert "prepared from another tree than" in refused(tree)
    shutil.rmtree(tree.parent / "out")
    whole = (tree / "evaluation/rgb/00000001.jpg").read_bytes()
    cut_off(tree / "evaluation/rgb/00000001.jpg")
    refused(tree)
    (tree / "evaluation/rgb/00000001.jpg").write_bytes(whole)
    put(0.62, 1, 3, 2)(tree / XYZ)
    assert "changed since this preparation began; remove" in refused(tree)


def test_full_disk_while_labels_are_written(tree: Path):
    """A limit on file size below that of the vertices' column: one line that names the folder; then it goes through."""
    code = ("import resource, sys; from freihand_cases import free_hand; from datasets.freihand import Options, prepare\n"
            "from utils.errors import InputError\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "try: prepare(Options(root=sys.argv[1], prepared=sys.argv[2], workers=1), {'right': free_hand()})\n"
            "except InputError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code, str(tree), str(tree.parent / "out")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))})
    wanted = r".*out.*: cannot be written \(File too large; .* make room and run the same command again\n"
    assert re.fullmatch(wanted, done.stdout), done
    assert prepare(options(tree), HANDS).counts["kept"] == 2 * SAMPLES + 3


def test_left_hands_are_no_option():
    """FreiHAND has right hands only: hands=mirror_left is refused with the option file, not with an empty split."""
    with pytest.raises(ValidationError, match="hands"):
        Options(hands="mirror_left")


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_broken_list_gets_through(tree: Path, data: st.DataObject):
    """Any bytes cut off or changed in the list of mano: read as such a list, or refused with a line, and nothing else."""
    content = bytearray((tree / MANO).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    bent = tree / "bent.json"
    bent.write_bytes(content[:data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(InputError):
        values = read_mano(bent)
        assert values.shape == (SAMPLES, 61) and np.isfinite(values).all()
