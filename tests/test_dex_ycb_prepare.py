"""datasets/dex_ycb_prepare.py: what is kept and counted, and that neither a kill nor a full disk costs finished work."""
import contextlib
import fcntl
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from dex_ycb_cases import SERIALS, toy_hand, write_tree

import datasets.cache as cache
from datasets.cache import ColumnWriter, Crops, CropWriter, read_columns
from datasets.dex_ycb import Options, prepare
from datasets.dex_ycb_frames import COLUMNS
from datasets.pictures import stored_square
from utils.errors import InputError

HANDS = {"right": toy_hand(), "left": toy_hand(mirror=True)}
ROOT = Path(__file__).resolve().parent.parent
SHAPES = {name: shape for name, (_, shape) in COLUMNS.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people x 5 sequences (2 of them left) x 2 cameras x 4 frames."""
    return write_tree(tmp_path_factory.mktemp("tree"), HANDS, people=4, frames=4)


def chosen(tree: Path, folder: Path, **changes) -> Options:
    return Options(root=str(tree), prepared=str(folder), width=160, height=120, **{"workers": 1, "in_image": False, **changes})


def content(folder: Path) -> tuple[dict[str, bytes], list[bytes]]:
    """Everything that a reader reads."""
    columns = read_columns(folder / "index", SHAPES)
    crops = Crops(folder / "crops.lmdb")
    return {name: column.tobytes() for name, column in columns.items()}, [crops[i].tobytes() for i in range(len(crops))]


@pytest.fixture(scope="module")
def undisturbed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(chosen(tree, folder, hands="mirror_left"), HANDS)
    return content(folder)


def bend(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        labels = {key: file[key] for key in file.files}
    np.savez(path, **{**labels, **changes})


def test_counts_and_reasons(tmp_path: Path):
    """Every frame is kept or counted under its reason; both add up to all frames; the text says so."""
    root = write_tree(tmp_path / "tree", HANDS, people=3, sequences=2, frames=4)
    camera = root / "20200710-subject-01" / "20200710_000000" / SERIALS[0]
    none = {"joint_3d": -np.ones((1, 21, 3), np.float32), "joint_2d": -np.ones((1, 21, 2), np.float32)}
    bend(camera / "labels_000000.npz", **none, pose_m=np.zeros((1, 51), np.float32))
    with np.load(camera / "labels_000001.npz") as file:  # moved to the right until some, not all, joints leave the picture
        joints = file["joint_3d"] + np.float32([0.42, 0, 0])
    K = np.array([160.0, 161.6]), np.array([82.0, 57.0])
    uv = (joints[..., :2] / joints[..., 2:] * K[0] + K[1]).astype(np.float32)
    assert 0 < (uv[..., 0] > 160).sum() < 21
    bend(camera / "labels_000001.npz", joint_3d=joints, joint_2d=uv)
    done = prepare(chosen(root, tmp_path / "out", in_image=True), HANDS)
    assert done.counts["excluded"] == {"a joint outside the picture": 1, "left hand": 24, "no hand": 1}
    assert done.counts["kept"] == 22 and done.counts["frames"] == 3 * 2 * 2 * 4
    assert "22 of 48 frames kept, of 3 people, 6 sequences, 2 cameras" in str(done) and "left out: 24 left hand" in str(done)
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["kept"] == 22
    everything = prepare(chosen(root, tmp_path / "all", hands="mirror_left"), HANDS)
    assert everything.counts["kept"] == 47
    labels = read_columns(tmp_path / "all" / "index", SHAPES)
    assert labels["inside"].sum() == 46 and labels["side"].sum() == 24


def test_processes_change_nothing(tree: Path, tmp_path: Path, undisturbed):
    """Three processes write what one writes, in the same order."""
    prepare(chosen(tree, tmp_path, hands="mirror_left"), HANDS, workers=3)
    assert content(tmp_path) == undisturbed
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == [
        "cameras.npz", "counts.json", "crops.lmdb", "index", "meta.json", "plan.json"]


def test_index_is_the_labels(tree: Path, tmp_path: Path):
    """A row's columns are the label file's numbers, the person's shape and the camera's K; pose.npz is kept beside them."""
    prepare(chosen(tree, tmp_path), HANDS)
    labels = read_columns(tmp_path / "index", SHAPES)
    keys = np.stack([labels[name] for name in ("subject", "sequence", "camera", "frame")], 1)
    row = keys.tolist().index([2, 4, 1, 3])
    folder = tree / "20200712-subject-03" / "20200712_000004"
    with np.load(folder / SERIALS[1] / "labels_000003.npz") as file:
        assert np.array_equal(labels["mano"][row, :51], file["pose_m"][0])
        assert np.array_equal(labels["joint_3d"][row], file["joint_3d"][0])
        assert np.array_equal(labels["joint_2d"][row], file["joint_2d"][0])
    with np.load(folder / "pose.npz") as file:
        assert np.array_equal(labels["world"][row], file["pose_m"][3, 0])
    text = (tree / "calibration" / "mano_20200101_000000_subject-03_right" / "mano.yml").read_text()
    np.testing.assert_allclose(labels["mano"][row, 51:], [float(x) for x in re.findall(r"-? ?(-?\d\.\d+)", text)], rtol=1e-6)
    np.testing.assert_allclose(labels["K"][row], [161.6, 161.6, 82, 57])
    with np.load(tmp_path / "cameras.npz") as file:
        assert np.array_equal(file["world_from_camera"][2, 4, 1], [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("pixels", [None, 48, 150])
def test_crops_show_the_picture(tree: Path, tmp_path: Path, pixels: int | None):
    """A stored crop, native or resized either way, is the picture where `stored` says, black beyond its edge."""
    prepare(chosen(tree, tmp_path, stored={"factor": 4.0, "pixels": pixels, "quality": 100}), HANDS)
    labels, crops = read_columns(tmp_path / "index", SHAPES), Crops(tmp_path / "crops.lmdb")
    meta = json.loads((tmp_path / "meta.json").read_text())
    beyond = 0
    for row in range(0, meta["rows"], 7):
        s, q, c, f = (int(labels[name][row]) for name in ("subject", "sequence", "camera", "frame"))
        picture = cv2.imread(str(tree / meta["people"][s] / meta["sequences"][s][q] / SERIALS[c] / f"color_{f:06d}.jpg"))
        left, top, side = labels["stored"][row]
        whole = cv2.copyMakeBorder(picture, 300, 300, 300, 300, cv2.BORDER_CONSTANT)[top + 300:, left + 300:][:side, :side]
        beyond += int(left < 0 or top < 0 or left + side > 160 or top + side > 120)
        crop = cv2.imdecode(crops[row], cv2.IMREAD_COLOR)
        if pixels:
            whole = cv2.resize(whole, (pixels, pixels), interpolation=cv2.INTER_AREA if side > pixels else cv2.INTER_LINEAR)
        assert crop.shape == whole.shape and np.abs(crop.astype(int) - whole).mean() < 3
    assert beyond


def test_stored_square_covers_its_crop():
    """The whole-pixel square holds the crop's every edge, and is no more than two pixels wider."""
    for box in np.random.default_rng(0).uniform((-50, -50, 5), (700, 500, 300), (1000, 3)):
        left, top, side = stored_square(box, 1.7)
        low, high = box[:2] - 0.85 * box[2], box[:2] + 0.85 * box[2]
        assert (np.array([left, top]) - 0.5 <= low).all() and (np.array([left, top]) + side - 0.5 >= high).all()
        assert side <= 1.7 * box[2] + 2


def test_stride_and_limit(tree: Path, tmp_path: Path):
    """Every second frame, at most two of them; the frames' own numbers stay."""
    done = prepare(chosen(tree, tmp_path / "a", stride=2), HANDS)
    assert done.counts["frames"] == 4 * 5 * 2 * 2
    assert set(read_columns(tmp_path / "a" / "index", SHAPES)["frame"].tolist()) == {0, 2}
    prepare(chosen(tree, tmp_path / "b", limit=3), HANDS)
    assert set(read_columns(tmp_path / "b" / "index", SHAPES)["frame"].tolist()) == {0, 1, 2}


def test_second_run_does_nothing(tree: Path, tmp_path: Path):
    """Prepared already: the counts come back, no file is touched."""
    first = prepare(chosen(tree, tmp_path), HANDS)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}
    again = prepare(chosen(tree, tmp_path), HANDS)
    assert again.counts["kept"] == first.counts["kept"] and "everything was there already" in str(again)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}


def test_mixtures_are_refused(tree: Path, tmp_path: Path):
    """One folder never mixes two plans or two trees, and two runs never write it at once."""
    prepare(chosen(tree, tmp_path / "out"), HANDS)
    with pytest.raises(InputError, match=r"prepared with dataset\.stored\.factor=2\.0, the options say 3\.0"):
        prepare(chosen(tree, tmp_path / "out", stored={"factor": 3.0}), HANDS)
    other = write_tree(tmp_path / "other", HANDS, people=4, frames=4, seed=1)
    with pytest.raises(InputError, match=r"prepared from another tree than .*other is now; remove the folder"):
        prepare(chosen(other, tmp_path / "out"), HANDS)
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prepare is writing it"):
            prepare(chosen(tree, tmp_path / "out"), HANDS)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {root!r})
import datasets.cache, datasets.dex_ycb_frames, datasets.prepare, datasets.dex_ycb_prepare as p
from utils.errors import InputError

def dying(function, at):
    def run(*args, **kwargs):
        run.calls += 1
        if run.calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    run.calls = 0
    return run

{before}
try:
    p.prepare_tree({tree!r}, {folder!r}, p.Plan(**{plan!r}), {workers})
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def run_script(options: Options, before: str = "", **popen) -> subprocess.Popen:
    script = SCRIPT.format(root=str(ROOT), tree=options.root, folder=options.prepared, plan=asdict(options.plan()),
                           workers=options.workers, before=before)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, **popen)


KILLS = {
    "cutting": "p.cut_sequence = dying(p.cut_sequence, 6)",
    "between a shard's two files": "datasets.dex_ycb_frames.np.savez = dying(datasets.dex_ycb_frames.np.savez, 4)",
    "after a commit": "p.Path.unlink = dying(p.Path.unlink, 45)",
    "writing the index": "datasets.cache.ColumnWriter.append = dying(datasets.cache.ColumnWriter.append, 7)",
    "before the last file": "datasets.prepare.write_json = dying(datasets.prepare.write_json, 3)",
    "before cleaning up": "datasets.prepare.shutil.rmtree = dying(datasets.prepare.shutil.rmtree, 1)",
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_anywhere_it_goes_on(tree: Path, tmp_path: Path, undisturbed, when: str):
    """SIGKILL at any point, then the same command: bit-equal to an undisturbed run, and finished sequences are not cut again."""
    options = chosen(tree, tmp_path, hands="mirror_left")
    killed = run_script(options, KILLS[when])
    assert killed.wait(60) == -signal.SIGKILL
    finished = len(list(tmp_path.glob("shards/*.npz")))
    done = prepare(options, HANDS)
    assert content(tmp_path) == undisturbed and done.counts["kept"] == len(undisturbed[1])
    assert done.counts["frames_now"] == (0 if when == "before cleaning up" else 8 * (20 - finished)) and finished
    assert not (tmp_path / "shards").exists() and not list(tmp_path.rglob("*.part"))


def test_killed_parent_leaves_no_process(tmp_path: Path):
    """SIGKILL of the command while its processes work: they end by themselves, and the next run completes."""
    tree = write_tree(tmp_path / "tree", HANDS, people=4, sequences=12, cameras=4, frames=4)
    options = chosen(tree, tmp_path / "out", workers=2, hands="mirror_left")
    parent = run_script(options, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("shards/*.npz")):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    parent.kill()
    parent.wait()
    assert not (tmp_path / "out" / "meta.json").exists(), "the tree is too small to be killed in time"
    while in_session(parent.pid):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.02)
    done = prepare(options, HANDS)
    assert 0 < done.counts["frames_now"] < done.counts["frames"] == done.counts["kept"]


def in_session(session: int) -> list[int]:
    """Living processes of a session (field 6 of /proc/<pid>/stat)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_killed_worker_is_one_line(tmp_path: Path):
    """A process of prepare that is killed ends the run with one line; the next run completes."""
    tree = write_tree(tmp_path / "tree", HANDS, people=2, sequences=10, frames=4)
    options = chosen(tree, tmp_path / "out", workers=2, hands="mirror_left")

    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match=r"a worker process ended before its work did \(killed by signal 9; out of mem"):
        prepare(options, HANDS)
    killer.join()
    assert prepare(options, HANDS).counts["kept"] == 160


@pytest.mark.parametrize("limit", [10_000, 120_000])
def test_full_disk_is_one_line(tree: Path, tmp_path: Path, undisturbed, limit: int):
    """A write that the system refuses (a limit on file size: first a shard's, then the lmdb's) ends with 2 and one line."""
    options = chosen(tree, tmp_path, hands="mirror_left")
    run = run_script(options, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    _, stderr = run.communicate(timeout=60)
    last = stderr.strip().splitlines()[-1]
    assert run.returncode == 2 and "Traceback" not in stderr
    assert re.search(r"cannot be written \(.*GB free there\); the finished sequences are kept: make room", last), last
    assert str(tmp_path) in last
    prepare(options, HANDS)
    assert content(tmp_path) == undisturbed


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Crops beyond the map's first size grow it, also where the estimate fell short; rows come back in order."""
    monkeypatch.setattr(cache, "SPARE", 1 << 16)
    monkeypatch.setattr(cache, "PAGE", 16)
    values = [bytes([i % 256]) * (i * 37 % 9000 + 1) for i in range(600)]
    with CropWriter(tmp_path / "x.lmdb") as writer:
        for start in range(0, 600, 100):
            writer.append(values[start:start + 100])
        assert writer.rows == 600
    crops = Crops(tmp_path / "x.lmdb")
    assert len(crops) == 600 and all(crops[i].tobytes() == values[i] for i in range(600))
    with pytest.raises(InputError, match="no crop of row 600"):
        crops[600]


def test_columns_are_whole_or_absent(tmp_path: Path):
    """Columns written in pieces read back as one array; too few rows leave no file behind."""
    with ColumnWriter(tmp_path, 5, {"a": (np.int32, ()), "b": (np.float32, (2,))}) as writer:
        writer.append({"a": [1, 2], "b": np.ones((2, 2))})
        writer.append({"a": [3, 4, 5], "b": np.zeros((3, 2))})
    columns = read_columns(tmp_path, {"a": (), "b": (2,)})
    assert columns["a"].tolist() == [1, 2, 3, 4, 5] and columns["a"].dtype == np.int32 and columns["b"].sum() == 4
    with pytest.raises(TypeError, match="1 of 3 rows"), ColumnWriter(tmp_path, 3, {"c": (np.int32, ())}) as writer:
        writer.append({"c": [1, 2]})
    assert not list(tmp_path.glob("*c.npy*"))
