"""PLY files: what is written comes back, the header says what follows, and broken files are refused in one line."""
import numpy as np
import pytest

from utils.errors import InputError
from utils.mesh_files import read_ply, write_ply

VERTS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
FACES = np.array([[0, 1, 2], [2, 3, 4], [4, 0, 1]])


@pytest.mark.parametrize("colours", [None, np.arange(15, dtype=np.uint8).reshape(5, 3)])
def test_round_trip(tmp_path, colours):
    """Positions bit for bit, faces as given, with and without colours and a comment."""
    write_ply(tmp_path / "m.ply", VERTS, FACES, colours, comment="metres\ncamera axes")
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
