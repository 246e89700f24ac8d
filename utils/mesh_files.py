"""Triangle meshes on disk: PLY, binary little endian, as every mesh viewer opens it, or as text, as OpenMesh writes it (CMR's
NNN_mesh.ply and template.ply, FreiHAND's mesh/). Units and frame go into a comment line.

Written whole or not at all. The reader takes what the writer writes, and the same layout from other programs (float positions
first among the vertex properties, triangles as a uchar-counted int list), and refuses everything else in one line.
"""
import re
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import require_file, write_bytes

_SIZES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
          "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
          "double": "<f8", "float64": "<f8"}
_FACE = np.dtype([("n", "u1"), ("ids", "<i4", (3,))])
_BINARY, _ASCII = "format binary_little_endian 1.0", "format ascii 1.0"


def write_ply(path: str | Path, verts: np.ndarray, faces: np.ndarray, colours: np.ndarray | None = None,
              comment: str = "", ascii: bool = False) -> None:
    """Write verts (v,3), stored as float32, faces (f,3) of vertex ids, and colours (v,3) uint8 RGB where given.

    ascii: as text, with as many digits as float32 needs to come back unchanged.
    """
    verts, faces = np.asarray(verts), np.asarray(faces)
    if verts.ndim != 2 or verts.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise TypeError(f"expected verts (v,3) and faces (f,3), found {verts.shape} and {faces.shape}")
    if not np.isfinite(verts).all() or (len(faces) and not 0 <= faces.min() <= faces.max() < len(verts)):
        raise TypeError("verts must be finite, and every face id one of a vertex")
    kinds = [(axis, "<f4") for axis in "xyz"] + ([(c, "u1") for c in ("red", "green", "blue")] if colours is not None else [])
    table = np.empty(len(verts), np.dtype(kinds))
    for index, axis in enumerate("xyz"):
        table[axis] = verts[:, index]
    if colours is not None:
        for index, name in enumerate(("red", "green", "blue")):
            table[name] = np.asarray(colours, np.uint8)[:, index]
    lines = ["ply", _ASCII if ascii else _BINARY, *(f"comment {line}" for line in comment.splitlines()),
             f"element vertex {len(verts)}",
             *(f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in kinds),
             f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    body = (_text if ascii else _binary)(table, faces)
    write_bytes(path, ("\n".join(lines) + "\n").encode("ascii", "replace") + body)


def _binary(table: np.ndarray, faces: np.ndarray) -> bytes:
    triangles = np.empty(len(faces), _FACE)
    triangles["n"], triangles["ids"] = 3, faces
    return table.tobytes() + triangles.tobytes()


def _text(table: np.ndarray, faces: np.ndarray) -> bytes:
    line = " ".join("%.9g" if kind[1] == "<f4" else "%d" for kind in table.dtype.descr) + "\n"
    vertices = "".join(line % row for row in table.tolist())
    return (vertices + "3 %d %d %d\n" * len(faces) % tuple(faces.ravel().tolist())).encode()


def read_ply(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Verts (v,3) float32 and faces (f,3) int64 of a PLY of triangles, binary little endian or text; InputError for others."""
    path = require_file(path, "name a .ply file")
    data = path.read_bytes()
    if data.startswith(b"ply\r\nformat ascii"):
        data = data.replace(b"\r\n", b"\n")
    head, mark, body = data.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not mark or lines[0] != "ply" or lines[1].rstrip() not in (_BINARY, _ASCII):
        raise InputError(f"{path}: expected a PLY file, binary little-endian or ascii, found another kind; save it as one")
    counts = {name: int(number) for name, number in re.findall(r"^element (\w+) (\d{1,12}) *$", "\n".join(lines), re.M)}
    before, _, after = "\n".join(lines).partition("element face")
    kinds = [(name, _SIZES.get(kind, "")) for kind, name in re.findall(r"^property (\w+) (\w+) *$", before, re.M)]
    listed = re.search(r"^property list (uchar|uint8) (int|int32|uint|uint32) vertex_ind(ices|ex) *$", after, re.M)
    positions = [name for name, _ in kinds[:3]] == list("xyz") and all(kind for _, kind in kinds)
    if set(counts) != {"vertex", "face"} or not positions or not listed or after.count("property") > 1:
        raise InputError(f"{path}: expected the elements vertex (x, y, z, ...) and face (a list of ids); save plain triangles")
    parse = _from_text if lines[1].rstrip() == _ASCII else _from_binary
    verts, sizes, faces = parse(path, body, kinds, counts["vertex"], counts["face"])
    if (sizes != 3).any() or (len(faces) and not 0 <= faces.min() <= faces.max() < len(verts)):
        raise InputError(f"{path}: faces that are no triangles, or name vertices that do not exist; save a plain triangle mesh")
    if not np.isfinite(verts).all():
        raise InputError(f"{path}: expected finite positions, found some that are none; save it again")
    return verts, faces


def _from_binary(path: Path, body: bytes, kinds: list, vertices: int, faces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (v,3) float32, corners of each face (f,), ids (f,3) int64."""
    vertex = np.dtype(kinds)
    split = vertices * vertex.itemsize
    if len(body) != split + faces * _FACE.itemsize:
        raise InputError(f"{path}: {len(body)} bytes of data do not fit the header; cut short, or no triangles: save it again")
    table, triangles = np.frombuffer(body[:split], vertex), np.frombuffer(body[split:], _FACE)
    with np.errstate(over="ignore"):
        return np.stack([table[axis] for axis in "xyz"], 1).astype(np.float32), triangles["n"], triangles["ids"].astype(np.int64)


def _from_text(path: Path, body: bytes, kinds: list, vertices: int, faces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words = body.split()
    split = vertices * len(kinds)
    if len(words) != split + 4 * faces:
        raise InputError(f"{path}: {len(words)} numbers do not fit the header; cut short, or no triangles: save it again")
    try:
        table = np.array(words[:split], np.bytes_).astype(np.float64).reshape(vertices, len(kinds))
        triangles = np.array(words[split:], np.bytes_).astype(np.int64).reshape(faces, 4)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: expected numbers after the header, found something else ({error}); save it again") from error
    with np.errstate(over="ignore"):
        return table[:, :3].astype(np.float32), triangles[:, 0], triangles[:, 1:]
