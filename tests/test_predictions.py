"""utils/predictions.py: round trip, bounded memory, nothing half-written, and the line each broken file gets."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from utils.errors import InputError
from utils.predictions import COLUMNS, VERSION, PredictionsWriter, index_hash, read_predictions

ROOT = Path(__file__).resolve().parent.parent
META = {"method": "toy", "hand": {"name": "toy hand", "sha256": "ab" * 32}, "dataset": {"split": "s1/test"}}


def columns_of(rows: int, seed: int = 0, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Random columns of every kind."""
    rng = np.random.default_rng(seed)
    out = {}
    for key, (dtype, shape) in COLUMNS.items():
        if key not in without:
            out[key] = (rng.normal(size=(rows, *shape)) * 10).astype(dtype)
    return out


def write(path: Path, sizes: tuple[int, ...] = (3, 4), without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Write batches of `sizes` rows; the columns written, joined."""
    parts = [columns_of(n, seed, without) for seed, n in enumerate(sizes)]
    with PredictionsWriter(path, META) as writer:
        for i, part in enumerate(parts):
            writer.append(name=[f"sequence/ünï_{i}_{k}" for k in range(sizes[i])], **part)
    return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


def line(path: Path) -> str:
    """The one line a broken file gets."""
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_round_trip_is_bit_equal(tmp_path):
    """What is appended in batches, the last one partial, is what is read, bit for bit, in row order."""
    expected = write(tmp_path / "p.npz", (4, 4, 1))
    got = read_predictions(tmp_path / "p.npz")
    assert len(got) == 9 and set(got.columns) == set(COLUMNS) | {"name"}
    for key, array in expected.items():
        assert got[key].dtype == array.dtype and np.array_equal(got[key], array), key
    assert got["name"][8] == "sequence/ünï_2_0"
    assert got.meta["method"] == "toy" and got.meta["version"] == VERSION and got.meta["rows"] == 9


def test_index_hash_is_of_the_set_of_frames(tmp_path):
    """The hash in the file is sha256 of the sorted names, whatever their order; other frames give another."""
    write(tmp_path / "p.npz")
    got = read_predictions(tmp_path / "p.npz")
    names = got["name"].tolist()
    assert got.meta["index_hash"] == index_hash(reversed(names)) != index_hash(names[1:])
    assert index_hash(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()[:12]


def test_plain_numpy_opens_it_and_same_input_gives_same_bytes(tmp_path):
    """numpy.load without pickle reads every member; two writes of the same rows are the same file."""
    expected = write(tmp_path / "a.npz")
    write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert json.loads(str(file["meta"]))["dataset"] == {"split": "s1/test"}
        for key, array in expected.items():
            assert np.array_equal(file[key], array)


def test_columns_are_mapped_and_aligned(tmp_path):
    """The reader maps the file: no column is loaded, each is aligned (torch needs that) and read-only."""
    write(tmp_path / "p.npz")
    got = read_predictions(tmp_path / "p.npz")
    for key in COLUMNS:
        assert isinstance(got[key], np.memmap) and got[key].flags.aligned and not got[key].flags.writeable, key


def test_compressed_copy_is_read_too(tmp_path):
    """A file saved again with compression still opens."""
    expected = write(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as file:
        np.savez_compressed(tmp_path / "q.npz", **dict(file))
    assert np.array_equal(read_predictions(tmp_path / "q.npz")["pred_verts"], expected["pred_verts"])


def test_failing_block_leaves_nothing_and_keeps_the_old_file(tmp_path):
    """An exception while predicting keeps the finished file of an earlier run and leaves no other."""
    path = tmp_path / "p.npz"
    write(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="boom"), PredictionsWriter(path, META) as writer:
        writer.append(name=["a", "b"], **columns_of(2))
        raise RuntimeError("boom")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.npz"]


def test_killed_writer_leaves_nothing(tmp_path):
    """SIGKILL between two appends: the folder is empty afterwards."""
    code = ("import sys; sys.path.insert(0, 'tests'); import test_predictions as t\n"
            "w = t.PredictionsWriter(sys.argv[1], t.META)\n"
            "w.append(name=['x'] * 64, **t.columns_of(64))\n"
            "print('ready', flush=True); sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p.npz")], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert os.listdir(tmp_path) == []


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    """A disk that fills up while writing gives one InputError line and no file."""
    writer = PredictionsWriter(tmp_path / "p.npz", META)
    writer.append(name=["a"], **columns_of(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.predictions.write_member", full)
    with pytest.raises(InputError) as caught:
        writer.close()
    assert str(caught.value) == (f"{tmp_path}/p.npz: cannot be written (No space left on device); free space or name another "
                                 "place and run again; nothing was left there")
    assert os.listdir(tmp_path) == []


def test_real_refusal_of_the_system_is_one_line_too(tmp_path):
    """A process that may write no file beyond 1 MB: the append, or the close, ends in the one line and leaves nothing."""
    code = ("import sys, resource; sys.path.insert(0, 'tests'); import test_predictions as t\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
            "try:\n"
            "    with t.PredictionsWriter(sys.argv[1], t.META) as writer:\n"
            "        for _ in range(int(sys.argv[2])):\n"
            "            writer.append(name=['x'] * 64, **t.columns_of(64))\n"
            "except t.InputError as error:\n"
            "    print(error)\n")
    for batches in ("4", "1"):  # 2.4 MB of vertices: refused in append; 0.6 MB a column, 1.3 MB in all: refused in close
        command = [sys.executable, "-c", code, str(tmp_path / "p.npz"), batches]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == (f"{tmp_path}/p.npz: cannot be written (File too large); free space or name another place and run "
                               "again; nothing was left there\n"), done.stderr
        assert os.listdir(tmp_path) == []


def test_broken_files_get_one_line(tmp_path):
    """Absent, other kind, cut short at many places, other npz, other version, missing column, pickled objects: each its line."""
    path = tmp_path / "p.npz"
    assert line(tmp_path / "none.npz").endswith("expected a file, found nothing; write it with `run.py test <option file>`")
    path.write_text("hello")
    assert "expected a predictions file (.npz), found another kind of file" in line(path)
    write(path)
    whole = path.read_bytes()
    for cut in (5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "cut short or damaged" in line(path)
    np.savez(path, a=np.zeros(3))
    assert "a zip or npz file, but not a predictions file" in line(path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    newer = json.loads(str(arrays["meta"])) | {"version": 9}
    np.savez(path, **(arrays | {"meta": np.array(json.dumps(newer))}))
    assert "predictions file of version 9, this program reads version 1; predict again" in line(path)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "pred_joints"})
    assert "without the column pred_joints" in line(path)
    np.savez(path, **(arrays | {"subject": arrays["subject"][:3]}))
    assert "column subject: expected int64 (7,), found int64 (3,)" in line(path)
    np.savez(path, **(arrays | {"confidence": np.array([print] * 7, dtype=object)}))
    assert "holds objects" in line(path)
    np.savez(path, **{k: v[:0] if v.ndim else v for k, v in arrays.items()})
    assert "without a single row" in line(path)


def test_missing_optional_column_says_why(tmp_path):
    """Asking for what a method or a split does not have names the column and the reason."""
    write(tmp_path / "p.npz", without=("confidence", "true_verts"))
    got = read_predictions(tmp_path / "p.npz")
    assert got.get("confidence") is None and "confidence" not in got
    with pytest.raises(InputError, match="no column confidence; .* the method that made it does not predict this"):
        got["confidence"]
    with pytest.raises(InputError, match="no column true_verts; .* the split it was predicted on has no such labels"):
        got.require("name", "true_verts")
    with pytest.raises(InputError, match=r"made with hand model toy hand \(abababababab\), but this run uses MANO \(cdcdcd"):
        got.require_hand("MANO", "cd" * 32)
    got.require_hand("toy hand", "ab" * 32)


def test_wrong_columns_are_our_bug(tmp_path):
    """Unknown, missing or misshapen columns are refused when appended, before anything is written."""
    writer = PredictionsWriter(tmp_path / "p.npz", META)
    with pytest.raises(TypeError, match="not columns of a predictions file: \\['nonsense'\\]"):
        writer.append(name=["a"], nonsense=np.zeros(1), **columns_of(1))
    with pytest.raises(TypeError, match="columns missing: \\['pred_verts'\\]"):
        writer.append(name=["a"], **columns_of(1, without=("pred_verts",)))
    with pytest.raises(TypeError, match=r"expected \(2, 778, 3\), found \(1, 778, 3\)"):
        writer.append(name=["a", "b"], **columns_of(1, without=("index", "mirrored", "subject")) | {
            k: np.zeros(2) for k in ("index", "mirrored", "subject")})
    with pytest.raises(InputError, match="no predictions to write"):
        PredictionsWriter(tmp_path / "q.npz", META).close()
    assert not [p for p in os.listdir(tmp_path) if p.endswith(".npz")]


def test_zip_is_stored(tmp_path):
    """Members are stored, not deflated: floats do not shrink, and mapping needs them plain."""
    write(tmp_path / "p.npz")
    with zipfile.ZipFile(tmp_path / "p.npz") as archive:
        assert archive.testzip() is None and {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
