"""Runs of synth ho3d: lists of any length, equal bytes, stopped runs, refusals, names."""
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from synth_ho3d_cases import COMMON, HAND, SMALL, Tree, files, make_trees

from datasets.synthetic import ho3d
from datasets.synthetic.ho3d import Options, write
from datasets.synthetic.ho3d_files import recordings
from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Tree]:
    return make_trees(tmp_path_factory.mktemp("synth"))


@pytest.fixture(params=["v2", "v3"])
def tree(request, trees) -> Tree:
    return trees[request.param]


@pytest.mark.parametrize(("lines", "have"), [(37, 14), (9, 14)])
def test_evaluation_list_of_any_length(trees, tmp_path, lines, have):
    """More lines than frames repeat them in order, fewer are spread evenly; the json lists follow, training is as before."""
    root = tmp_path / "tree"
    shutil.copytree(trees["v3"].root, root)
    (root / "synthetic.json").unlink()
    for name in ho3d.LISTS:
        (root / name).unlink()
    options = Options(**SMALL["v3"] | {"evaluation_lines": lines}, out=str(root))
    ho3d.claim(tmp_path / "other", options, HAND.arrays, None, layout="HO3D v3", version=ho3d.VERSION)
    shutil.copy(tmp_path / "other/synthetic.json", root)
    assert write(options, HAND)["written"] == 0
    tree, before = Tree(root, "v3"), trees["v3"]
    every = before.lines["evaluation"]
    assert tree.lines["train"] == before.lines["train"] and len(tree.lines["evaluation"]) == lines == len(tree.xyz)
    at = [every.index(line) for line in tree.lines["evaluation"]]
    assert at == [i % len(every) for i in range(lines)] if lines > len(every) else (np.diff(at) > 0).all()
    np.testing.assert_array_equal(tree.xyz, before.xyz[at])
    np.testing.assert_array_equal(tree.verts, before.verts[at])


def test_same_seed_same_bytes_whatever_the_workers(trees, tmp_path):
    """Two worker processes against one: every file of the tree, byte for byte; another seed gives other pictures."""
    write(Options(**SMALL["v3"] | {"workers": 2}, out=str(tmp_path / "b")), HAND)
    assert files(tmp_path / "b") == files(trees["v3"].root)
    fewer = {"people": 1, "frames": 1, "seed": 6, "depth": False, "unannotated": 0}
    write(Options(**SMALL["v3"] | fewer, out=str(tmp_path / "c")), HAND)
    other = files(tmp_path / "c")
    assert other["train/SB10/rgb/0000.jpg"] != files(trees["v3"].root)["train/SB10/rgb/0000.jpg"]
    assert not any("/depth/" in name for name in other)


def test_a_stopped_run_goes_on(tree, tmp_path):
    """Sequences and lists lost or half written are written again to the same bytes; finished ones are not touched."""
    root, expected = tmp_path / "again", files(tree.root)
    shutil.copytree(tree.root, root)
    lost, kept = ("train/SB10", "evaluation/MPM10") if tree.version == "v3" else ("train/SB1", "evaluation/MPM1")
    shutil.rmtree(root / lost)
    (root / ".part/SB1/train").mkdir(parents=True)
    (root / "evaluation.txt").unlink()
    before = (root / kept / "meta/0000.pkl").stat().st_mtime_ns
    done = write(Options(**SMALL[tree.version], out=str(root)), HAND)
    assert done["written"] == (2 if tree.version == "v3" else 1)  # a recording's cameras are drawn together
    assert files(root) == expected and (root / kept / "meta/0000.pkl").stat().st_mtime_ns == before
    stamp = (root / "evaluation_verts.json").stat().st_mtime_ns
    assert write(Options(**SMALL[tree.version], out=str(root)), HAND)["written"] == 0
    assert (root / "evaluation_verts.json").stat().st_mtime_ns == stamp and files(root) == expected


def test_refuses_folders_that_are_not_its_own(trees, tmp_path):
    """The real set's folder, a file, a set of other options, of another dataset: one line each, nothing written."""
    real = tmp_path / "real"
    (real / "train/ABF10").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(trees["v3"].root / "synthetic.json", other)
    for root, change, words in ((real, {}, "no synthetic.json"), (tmp_path / "file", {}, "found a file"),
                                (other, {"version": "v2"}, "version: v3 there, v2 now")):
        before = files(tmp_path)
        with pytest.raises(InputError, match=words) as caught:
            write(Options(**SMALL["v3"] | change, out=str(root)), HAND)
        assert "\n" not in str(caught.value) and str(root) in str(caught.value) and files(tmp_path) == before


def test_wrong_wishes_are_refused(tmp_path):
    """Impossible sizes, one split alone, too many people, ranges upside down, no annotated frame."""
    with pytest.raises(InputError, match=r"synth.sizes_mm: a hand of 30 mm"):
        write(Options(**SMALL["v3"] | {"sizes_mm": (30.0, 200.0, 180.0)}, out=str(tmp_path / "a")), HAND)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="make a train split alone"):
        Options(**COMMON | {"people": 1, "cameras": 1})
    for change in ({"sizes_mm": (180.0,)}, {"distance_m": (0.9, 0.6)}, {"quality": (0, 50)}, {"people": 11}, {"version": "v1"},
                   {"tones": (0.5,)}, {"cameras": 6}, {"frames": 10_001}, {"left": 0.5}):
        with pytest.raises(ValueError):
            Options(**COMMON | change)
    few = {"people": 1, "frames": 1, "unannotated": 1.0, "depth": False}
    with pytest.raises(InputError, match="synth.unannotated: no frame"):
        write(Options(**SMALL["v3"] | few, out=str(tmp_path / "b")), HAND)


def test_disk_full_is_one_line_and_keeps_what_is_done(tmp_path, monkeypatch):
    """ENOSPC in the second recording: InputError, one recording kept, and the same command goes on."""
    real, count = ho3d.write_recording, [0]

    def fails(*args, **more):
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **more)

    options = Options(**SMALL["v3"] | {"people": 2, "frames": 1, "unannotated": 0}, out=str(tmp_path / "a"))
    monkeypatch.setattr(ho3d, "write_recording", fails)
    with pytest.raises(InputError, match="disk full after 1 of 2 recordings"):
        write(options, HAND)
    monkeypatch.setattr(ho3d, "write_recording", real)
    assert write(options, HAND)["written"] == 1


def killed(*_: object) -> int:
    """A worker process that the system kills."""
    os.kill(os.getpid(), 9)
    return 0


def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    """SIGKILL in a worker process: InputError that says how to go on, no half-written sequence and no list."""
    monkeypatch.setattr(ho3d, "_task", killed)
    with pytest.raises(InputError, match="worker process ended .* run the same command"):
        write(Options(**SMALL["v3"] | {"workers": 2}, out=str(tmp_path / "a")), HAND)
    assert [p.name for p in (tmp_path / "a").iterdir() if not p.name.startswith(".")] == ["synthetic.json"]


def test_names_are_ho3d_s():
    """The whole table: names without repetition, evaluation names of the spec, people on both sides and on one."""
    every = recordings(10, 9, 5)
    names = {name: split for one in every for name, split in zip(one.sequences, one.splits)}
    assert len(names) == sum(one.cameras for one in every)
    held = {name for one in recordings(10, 1, 5) for name, split in zip(one.sequences, one.splits) if split == "evaluation"}
    assert held == {"SM1", *(f"MPM1{c}" for c in range(5)), "SB11", "SB13", *(f"AP1{c}" for c in range(5))}
    assert names["ABF10"] == names["SM2"] == names["SB10"] == "train"


def test_option_file():
    """options/synth_ho3d.yaml is valid and has the official evaluation's number of lines."""
    options = Options(**yaml.safe_load((ROOT / "options/synth_ho3d.yaml").read_text())["synth"])
    assert options.evaluation_lines == {"v2": 11524, "v3": 20137}[options.version]
