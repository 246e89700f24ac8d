"""utils/official_files.py and official_faults.py: lists read in bounded memory as json reads them; refusals with the cause."""
import copy
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils import official_files
from utils.errors import InputError
from utils.official_files import LABELS, PREDICTION, open_lists

NAN, INF = float("nan"), float("inf")


def read(path: Path, points: int | None = 7) -> tuple[np.ndarray, np.ndarray]:
    """Joints and vertices of a prediction."""
    with open_lists(path, PREDICTION) as reader:
        xyz = reader.whole("joints", 21)
        verts = list(reader.entries("vertices", points))
        reader.finish()
    return xyz, np.concatenate(verts) if verts else np.empty((0, 0, 3))


def small(samples: int = 12) -> tuple[list, list]:
    """Joints (21 x 3) and vertices (7 x 3, for brevity) as nested lists."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(samples, 21, 3)).tolist(), rng.normal(size=(samples, 7, 3)).tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.sampled_from([3, 64, 1000, 1 << 22]), indent=st.sampled_from([None, 0, 3, "\t"]), spaces=st.booleans(),
       samples=st.integers(1, 5), data=st.data())
def test_reads_what_json_reads(tmp_path, monkeypatch, block, indent, spaces, samples, data):
    """Any whitespace, any way to write a number and any block size give exactly what json.loads gives."""
    monkeypatch.setattr(official_files, "BLOCK", block)
    monkeypatch.setattr(official_files, "HEAD", 10)
    number = st.one_of(st.floats(-1e9, 1e9), st.integers(-10**9, 10**9), st.sampled_from([0, -0.0, 1, 5e-324]))
    values = data.draw(st.lists(number, min_size=4, max_size=4))
    xyz, verts = ([[[values[(i + j + k) % 4] for k in range(3)] for j in range(n)] for i in range(samples)] for n in (21, 2))
    text = json.dumps([xyz, verts], indent=indent, separators=(" , ", " : ") if spaces else None)
    path = tmp_path / "pred.json"
    path.write_text(f"\n {text.replace('e-', 'E-')} \r\n")
    found = read(path, None)
    expected = json.loads(text)
    for ours, theirs in zip(found, expected):
        assert np.array_equal(ours, np.array(theirs, float))
        assert np.array_equal(np.signbit(ours), np.signbit(np.array(theirs, float)))


def test_labels_and_zip(tmp_path):
    """A label file is one list; a zip gives what the json in it gives; empty lists are lists."""
    xyz, verts = small()
    text = json.dumps([xyz, verts])
    with zipfile.ZipFile(tmp_path / "pred.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("pred.json", text)
    found = read(tmp_path / "pred.zip")
    assert np.array_equal(found[0], xyz) and np.array_equal(found[1], verts)
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(verts))
    with open_lists(tmp_path / "evaluation_verts.json", LABELS) as reader:
        assert np.array_equal(reader.whole("vertices", 7), verts)
        reader.finish()
    (tmp_path / "empty.json").write_text(" [ [ ] , [\n] ] ")
    assert [len(part) for part in read(tmp_path / "empty.json")] == [0, 0]


def test_memory_is_bounded(tmp_path, monkeypatch):
    """Vertices of 19 MB of json are streamed with 64 KB blocks in less than 2 MB."""
    monkeypatch.setattr(official_files, "BLOCK", 1 << 16)
    entry = json.dumps(np.random.default_rng(0).normal(size=(778, 3)).tolist())
    with open(tmp_path / "v.json", "w") as file:
        file.write("[" + ", ".join([entry] * 400) + "]")
    assert (tmp_path / "v.json").stat().st_size > 19e6
    tracemalloc.start()
    with open_lists(tmp_path / "v.json", LABELS) as reader:
        assert sum(len(rows) for rows in reader.entries("vertices", 778)) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def changed(change) -> str:
    """A good prediction with something changed, as json.dump writes it (NaN and all)."""
    xyz, verts = (copy.deepcopy(part) for part in small())
    got = change(xyz, verts)
    return json.dumps([xyz, verts] if got is None else got)


def put(part: str, sample: int, value: object, point: int | None = None):
    """A change: an entry, or a point of it, becomes `value`."""
    def change(xyz: list, verts: list) -> None:
        entries = xyz if part == "joints" else verts
        if point is None:
            entries[sample] = value
        else:
            entries[sample][point] = value
    return change


GOOD = changed(lambda xyz, verts: None)
SMALL = small()
REFUSED = {
    "empty": (" \n", "found an empty file"),
    "text": ("hello", "expected json, .*found 'hello'"),
    "web page": ("<!DOCTYPE html>", "found a web page"),
    "lfs": ("version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer|found 'versionhttps"),
    "byte order mark": ("\ufeff" + GOOD, "byte order mark"),
    "table": ('{"images": [], "annotations": []}', "found a table with the keys images, annotations: json of another dataset"),
    "tables": ('[{"xyz": [[0, 0, 1]]}]', r"inside 1 list\(s\)"),
    "dexycb": ("12," + ",".join(["-1.5"] * 63) + "\n13", "DexYCB's result text"),
    "camera matrices": (json.dumps([np.eye(3).tolist()] * 3), "a list of camera matrices such as evaluation_K.json"),
    "joints only": (json.dumps(SMALL[0]), "one list of 21 x 3: joints only"),
    "other list only": (json.dumps(SMALL[1]), "one list of 7 x 3 only, where a prediction holds both"),
    "one list": (json.dumps([SMALL[0]]), "found one list only; the vertices are missing"),
    "three lists": (json.dumps([SMALL[0], SMALL[1], SMALL[1]]), "expected a closing bracket after the list"),
    "scales": ("[0.02, 0.03]", "one flat list of numbers, such as evaluation_scale.json"),
    "mano": (json.dumps([[[0.1] * 61]] * 3), "FreiHAND's MANO labels"),
    "flat": (changed(lambda xyz, verts: [np.reshape(xyz, (12, 63)).tolist(), verts]), "flat entries of 63 .*make them 21 x 3"),
    "kept batch axis": (changed(lambda xyz, verts: [[[x] for x in xyz], verts]), "entries of 1 x 21 x 3 instead of 21 x 3"),
    "one sample": (json.dumps([SMALL[0][0], np.zeros((778, 3)).tolist()]), "one sample only, or one level less"),
    "pairs": (json.dumps([[x, np.zeros((778, 3)).tolist()] for x in SMALL[0]]), "pairs of joints and vertices"),
    "swapped": (json.dumps([np.zeros((2, 778, 3)).tolist(), SMALL[0]]), r"vertices come first; .* \[joints, vertices\]"),
    "no tips": (changed(lambda xyz, verts: [[x[:16] for x in xyz], verts]), "16 x 3: MANO's 16 joints without the fingertips"),
    "one without tips": (changed(put("joints", 5, SMALL[0][5][:16])), "sample 5 of the joints .*found 16 x 3"),
    "other mesh": (changed(put("vertices", 5, SMALL[1][5][:6])), "sample 5 of the vertices .*found 6 x 3: all samples must have"),
    "null": (changed(put("joints", 7, None)), "sample 7 of the joints .*found null: was this sample not predicted"),
    "first null": (changed(put("joints", 0, None)), "sample 0 of the joints .*found null"),
    "last null": (changed(put("vertices", 11, None)), "sample 11 of the vertices .*found null"),
    "empty entry": (changed(put("joints", 7, [])), "sample 7 of the joints .*found an empty list"),
    "deeper": (changed(put("vertices", 11, [SMALL[1][11]])), "sample 11 of the vertices .*found a list of 7 as point 0"),
    "flat entry": (changed(put("joints", 7, sum(SMALL[0][7], []))), "sample 7 of the joints .*found a flat list of 63"),
    "nan": (changed(put("joints", 7, [0, NAN, 1], 3)), r"sample 7 of the joints \(counted from 0\): .*point 3 is NaN"),
    "last nan": (changed(put("vertices", 11, [0, 1, NAN], 6)), "sample 11 of the vertices .*point 6 is NaN"),
    "infinite": (changed(put("vertices", 7, [0, -INF, 1], 3)), "sample 7 of the vertices .*point 3 is infinite"),
    "too large": (changed(put("joints", 7, [77777, 0, 1], 3)).replace("77777", "1e999"), "sample 7 of the joints .*infinite"),
    "too far": (changed(put("joints", 7, [0, 0, -10**30], 3)), r"sample 7 of the joints .*point 3 is -1e\+30, expected metres"),
    "text number": (changed(put("joints", 7, ["0.1", 0, 1], 3)), "sample 7 of the joints .*found text in point 3"),
    "true": (changed(put("joints", 7, [True, 0, 1], 3)), "sample 7 of the joints .*found true or false in point 3"),
    "2d": (changed(put("joints", 7, [0, 1], 3)), "sample 7 of the joints .*found a list of 2 as point 3"),
    "no number": (changed(put("joints", 7, [77777, 0, 1], 3)).replace("77777", "1.2.3"), "other text in sample 7 of the joints"),
    "plus": (changed(put("joints", 7, [77777, 0, 1], 3)).replace("77777", "+1"), "other text in sample 7 of the joints"),
    "space in a number": (changed(put("joints", 7, [77777, 0, 1], 3)).replace("77777,", "1 2"), "expected commas .*'1 2'"),
    "line end in a number": (changed(put("joints", 7, [77777, 0], 3)).replace("77777,", "0.\r\n1,"), "commas between"),
    "long gap in a number": (changed(put("joints", 7, [0, 77777], 3)).replace("77777", f"1{' ' * 2000}000"), "commas between"),
    "number without end": (changed(put("joints", 7, [77777, 0, 1], 3)).replace("77777", "9" * 400), "number of 400 digits"),
    "tables as samples": (changed(put("joints", 7, {"xyz": []})), "sample 7 of the joints .*found a table: write it again"),
    "no comma": (GOOD.replace("], [", "] [", 1), "other text in sample 0 of the joints"),
    "comma too many": (GOOD[:-2] + ",]]", "the list of vertices ends oddly after 12 entries"),
    "second text": (GOOD + GOOD, "expected the end of the file after the list"),
    "vertices null": (json.dumps([SMALL[0], None]), "expected a list of vertices after the list, found 'null"),
    "numpy's text": ("array(" + GOOD, "found 'array"),
}


@pytest.mark.parametrize("block", [777, 1 << 22])
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, block, tmp_path, monkeypatch):
    """Each broken or foreign file against the words that name its fault, read in small and in large blocks."""
    monkeypatch.setattr(official_files, "BLOCK", block)
    text, words = REFUSED[case]
    (tmp_path / "pred.json").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        read(tmp_path / "pred.json")
    assert str(error.value).startswith(str(tmp_path / "pred.json")) and "\n" not in str(error.value)


@pytest.mark.parametrize("end", [4, 10, 300, 5000, len(GOOD) // 2, *(len(GOOD) - n for n in range(1, 60))])
def test_truncated(end, tmp_path):
    """A prediction cut off anywhere is refused as cut off, never read as a shorter one."""
    (tmp_path / "pred.json").write_text(GOOD[:end])
    with pytest.raises(InputError, match="truncated|cut off"):
        read(tmp_path / "pred.json")


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le"])
def test_utf_16(code, tmp_path):
    """What a shell's redirection writes on Windows, with its mark and without: named."""
    (tmp_path / "pred.json").write_text(GOOD, encoding=code)
    with pytest.raises(InputError, match="text in UTF-16"):
        read(tmp_path / "pred.json")


def test_labels_that_are_none(tmp_path):
    """A prediction, camera matrices or NaN in the labels' place."""
    for text, words in ((GOOD, "is it a prediction"), (json.dumps([np.eye(3).tolist()]), "camera matrices"),
                        (json.dumps([[[NAN] * 3] * 21]), "point 0 is NaN; fetch"), ("[null]", "found null: fetch the labels"),
                        (json.dumps([[[0] * 3] * 778]), "hold each other's labels"),
                        ("[[0.1, 0.2], [0.3, 0.4]]", "1 level.s. less")):
        (tmp_path / "evaluation_xyz.json").write_text(text)
        with pytest.raises(InputError, match=words), open_lists(tmp_path / "evaluation_xyz.json", LABELS) as reader:
            reader.whole("joints", 21)


def test_zips_that_are_refused(tmp_path):
    """No json, several, one in a folder, an encrypted, a damaged and a cut archive: one line each."""
    def archive(name: str, **members: str) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            for member, text in members.items():
                file.writestr(member.replace("__", "/").replace("_", "."), text)
        return tmp_path / name

    good = archive("good.zip", pred_json=GOOD).read_bytes()
    damaged, locked = bytearray(good), bytearray(good)
    damaged[1000:1100] = bytes(100)
    locked[6] |= 1
    locked[locked.rfind(b"PK\1\2") + 8] |= 1
    for name, method in (("bz2.zip", zipfile.ZIP_BZIP2), ("lzma.zip", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as file:
            file.writestr("pred.json", GOOD)
        data = bytearray((tmp_path / name).read_bytes())
        data[500:600] = bytes(100)
        (tmp_path / name).write_bytes(data)
    for name, data in (("cut.zip", good[: len(good) // 2]), ("damaged.zip", damaged), ("locked.zip", locked)):
        (tmp_path / name).write_bytes(data)
    expected = {
        archive("none.zip", a_txt="x"): "expected pred.json at the top of the zip, found only a.txt",
        archive("empty.zip"): "found nothing",
        archive("two.zip", a_json=GOOD, b_json=GOOD): "found only a.json, b.json",
        archive("folder.zip", out__pred_json=GOOD): "found only out/pred.json; zip it with: zip -j",
        tmp_path / "cut.zip": "a zip that breaks", tmp_path / "damaged.zip": "one that breaks",
        tmp_path / "locked.zip": "encrypted", **{tmp_path / name: "one that breaks" for name in ("bz2.zip", "lzma.zip")}}
    for path, words in expected.items():
        with pytest.raises(InputError, match=words):
            read(path)
    other = archive("other.zip", mine_json=GOOD)
    with pytest.raises(InputError, match="found only mine.json"):
        read(other)
    with open_lists(other, PREDICTION, alone=True) as reader:
        assert len(reader.whole("joints", 21)) == 12
    with pytest.raises(InputError, match="expected a file, found a folder"):
        read(tmp_path)


def test_files_that_are_not_files_or_not_ours_to_read(tmp_path, monkeypatch):
    """A device in the file's place, and a file without permission, for what they are."""
    with pytest.raises(InputError, match="expected a file, found a pipe or a device"):
        read(Path("/dev/null"))
    (tmp_path / "pred.json").write_text(GOOD)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="pred.json: expected a file that may be read, found one without permission"):
        read(tmp_path / "pred.json")


def test_faults_of_the_caller_stay_its_own(tmp_path):
    """An error raised while a zip is open is not taken for a broken zip."""
    with zipfile.ZipFile(tmp_path / "pred.zip", "w") as archive:
        archive.writestr("pred.json", GOOD)
    with pytest.raises(RuntimeError, match="mine"), open_lists(tmp_path / "pred.zip", PREDICTION):
        raise RuntimeError("mine")


def test_endless_lists(tmp_path, monkeypatch):
    """A list of more entries than any test set, or an entry that never ends, stops early."""
    monkeypatch.setattr(official_files, "MOST_ENTRIES", 10)
    (tmp_path / "pred.json").write_text(GOOD)
    with pytest.raises(InputError, match="found more than 10 entries of joints; is it the right file"):
        read(tmp_path / "pred.json")
    monkeypatch.setattr(official_files, "BLOCK", 1000)
    monkeypatch.setattr(official_files, "LONGEST_ENTRY", 5000)
    (tmp_path / "long.json").write_text("[[[[" + "0, " * 100_000 + "0]]]]")
    with pytest.raises(InputError, match="sample 0 of the joints"):
        read(tmp_path / "long.json")
