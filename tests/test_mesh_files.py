"""PLY files: what is written comes back, the header says what follows, and broken files are refused in one line."""
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils.errors import InputError
from utils.mesh_files import read_ply, write_ply

VERTS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
FACES = np.array([[0, 1, 2], [2, 3, 4], [4, 0, 1]])


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("colours", [None, np.arange(15, dtype=np.uint8).reshape(5, 3)])
def test_round_trip(tmp_path, colours, ascii):
    """Positions bit for bit, faces as given, with and without colours and a comment, binary and text."""
    write_ply(tmp_path / "m.ply", VERTS, FACES, colours, comment="metres\ncamera axes", ascii=ascii)
    verts, faces = read_ply(tmp_path / "m.ply")
    assert (verts == VERTS).all() and (faces == FACES).all()


def test_bytes_are_those_of_the_format(tmp_path):
    """The header line by line, and the size of the body: 12 bytes a vertex, 13 a face; the first numbers at their places."""
    write_ply(tmp_path / "m.ply", VERTS, FACES, comment="metres")
    header, _, body = (tmp_path / "m.ply").read_bytes().partition(b"end_header\n")
    assert header.decode().split("\n")[:-1] == [
        "ply", "format binary_little_endian 1.0", "comment metres", "element vertex 5", "property float x", "property float y",
        "property float z", "element face 3", "property list uchar int vertex_indices"]
    assert len(body) == 5 * 12 + 3 * 13
    assert body[:12] == VERTS[0].astype("<f4").tobytes() and body[60:73] == b"\x03" + FACES[0].astype("<i4").tobytes()


@pytest.mark.parametrize("change", [
    lambda data: data[:-1], lambda data: data[:40], lambda data: b"", lambda data: data + b"\0",
    lambda data: data.replace(b"binary_little", b"binary_big"), lambda data: data.replace(b"float x", b"float w"),
    lambda data: data.replace(b"element face", b"element edge"), lambda data: data[:-13] + b"\x04" + data[-12:],
    lambda data: data[:-4] + b"\x05\0\0\0"])
def test_broken_files(tmp_path, change):
    """Cut short, too long, another byte order, other elements, no triangles, ids of no vertex: one line each."""
    path = tmp_path / "m.ply"
    write_ply(path, VERTS, FACES)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="m.ply"):
        read_ply(path)


def test_absent_file(tmp_path):
    """A file that is not there."""
    with pytest.raises(InputError, match="expected a file, found nothing"):
        read_ply(tmp_path / "m.ply")


@pytest.mark.parametrize(("verts", "faces"), [
    (VERTS[:, :2], FACES), (VERTS, FACES[:, :2]), (VERTS, FACES + 3), (VERTS * np.nan, FACES)])
def test_nonsense_is_not_written(tmp_path, verts, faces):
    """Wrong shapes, ids of no vertex, NaN: refused before anything is written."""
    with pytest.raises(TypeError):
        write_ply(tmp_path / "m.ply", verts, faces)
    assert not list(tmp_path.iterdir())


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_any_mesh_comes_back(data, ascii, coloured):
    """Whatever float32 positions, triangles and colours are written, the same come back."""
    count = data.draw(st.integers(1, 12))
    verts = data.draw(hnp.arrays(np.float32, (count, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
    faces = data.draw(hnp.arrays(np.int64, st.tuples(st.integers(0, 9), st.just(3)), elements=st.integers(0, count - 1)))
    colours = data.draw(hnp.arrays(np.uint8, (count, 3))) if coloured else None
    with TemporaryDirectory() as folder:
        write_ply(Path(folder) / "m.ply", verts, faces, colours, ascii=ascii)
        back, ids = read_ply(Path(folder) / "m.ply")
    assert np.array_equal(back, verts) and np.array_equal(ids, faces) and back.dtype == np.float32


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_any_damage_is_told(data, ascii):
    """A file with a piece cut out, or any byte replaced, is read or refused in one line, nothing else."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.ply"
        write_ply(path, VERTS, FACES, ascii=ascii)
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:start] + data.draw(st.binary(max_size=3)) + content[start + data.draw(st.integers(0, 40)):])
        try:
            verts, faces = read_ply(path)
        except InputError as refused:
            assert "m.ply" in str(refused) and "\n" not in str(refused)
        else:
            assert np.isfinite(verts).all() and faces.shape[1:] == (3,)


OPENMESH = b"""ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
element face 2
property list uchar int vertex_indices
end_header
0.095587 0.0063 0.29
-0.1 1e-05 0.3
1 0 -0
0.25 -.5 7
3 0 1 2
3 2 1 3
"""


@pytest.mark.parametrize("change", [
    lambda data: data, lambda data: data.replace(b"\n", b"\r\n"), lambda data: data.rstrip(),
    lambda data: data[:200] + data[200:].replace(b"\n", b" \n"),
    lambda data: data.replace(b"property float", b"property double").replace(b"uchar int", b"uint8 uint32"),
    lambda data: data.replace(b"format ascii 1.0", b"format ascii 1.0 \ncomment VCGLIB generated")])
def test_text_of_other_programs(tmp_path, change):
    """Text as OpenMesh and others write it: blanks at line ends, both line ends, other names of the types, comments."""
    (tmp_path / "m.ply").write_bytes(change(OPENMESH))
    verts, faces = read_ply(tmp_path / "m.ply")
    assert np.array_equal(verts, np.array([[0.095587, 0.0063, 0.29], [-0.1, 1e-5, 0.3], [1, 0, 0], [0.25, -0.5, 7]], np.float32))
    assert faces.tolist() == [[0, 1, 2], [2, 1, 3]]


def test_text_as_it_is_written(tmp_path):
    """The header of the text form and its lines; CMR's mesh files have no colours."""
    write_ply(tmp_path / "m.ply", VERTS, FACES, ascii=True)
    lines = (tmp_path / "m.ply").read_text().splitlines()
    assert lines[:2] == ["ply", "format ascii 1.0"] and lines[-3:] == ["3 0 1 2", "3 2 3 4", "3 4 0 1"]
    assert lines[8] == "end_header" and np.array_equal(np.array(lines[9].split(), np.float32), VERTS[0])
    assert len(lines) == 9 + 5 + 3


@pytest.mark.parametrize("change", [
    lambda data: data.replace(b"0.25", b"a"), lambda data: data.replace(b"0.25", b"nan"),
    lambda data: data.replace(b"0.25", b"1e60"),
    lambda data: data.replace(b"3 2 1 3", b"4 2 1 3"), lambda data: data.replace(b"3 2 1 3", b"4 2 1 3 0"),
    lambda data: data.replace(b"3 2 1 3", b"3 2 1 4"), lambda data: data.replace(b"3 2 1 3", b"3 2 1.5 3"),
    lambda data: data.replace(b"3 2 1 3", b"3 2 -1 3"), lambda data: data.replace(b"3 2 1 3", b"3 2 1 99999999999999999999"),
    lambda data: data[:-6], lambda data: data + b"1", lambda data: data.replace(b"vertex 4", b"vertex 99999999999999"),
    lambda data: data.replace(b"vertex_indices\n", b"vertex_indices\nproperty uchar flags\n"),
    lambda data: data.replace(b"float y", b"float"), lambda data: data.replace(b"ascii 1.0", b"ascii 2.0")])
def test_broken_text(tmp_path, change):
    """Words for numbers, NaN, numbers too large, no triangles, ids of no vertex, cut short, too long: one line each."""
    (tmp_path / "m.ply").write_bytes(change(OPENMESH))
    with pytest.raises(InputError, match=r"m\.ply"):
        read_ply(tmp_path / "m.ply")
