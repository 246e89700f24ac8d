"""The pyramid of a hand model: made once, kept, read back, the original's transform.pkl, and refusals of what is another's."""
import logging
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from pydantic import ValidationError

from utils.errors import InputError
from utils.hand import HandModel
from utils.mesh import Pyramid
from utils.pyramid import (
    PUBLISHED,
    PyramidOptions,
    cache_path,
    is_published,
    published_hashes,
    pyramid_of,
    template_verts,
    write_pyramid,
)

ROOT = Path(__file__).resolve().parent.parent
HAND = HandModel.load(ROOT / "template/free_hand_right.npz")
OPTIONS = PyramidOptions(factors=(4, 4), seq_length=9)
TOY = np.load(ROOT / "tests/goldens/toy_mesh.npz")  # see tests/test_mesh.py
TOY_HAND = HandModel(replace(HAND.arrays, f=TOY["face_0"].astype(np.int64), name="toy mesh"))


def same(one: Pyramid, other: Pyramid) -> bool:
    return all(len(a) == len(b) and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b))
               for a, b in zip(one, other))


def transform(changes=None, form=scipy.sparse.csc_matrix) -> dict:
    """The golden toy mesh as the original's transform.pkl has it, less what `changes` replaces."""
    meshes, down, up = [TOY["vertices_0"]], [], []
    for level in range(4):
        kept = TOY[f"down_keep_{level}"].astype(int)
        count, coarse = len(meshes[-1]), len(kept)
        down.append(form((np.ones(coarse, np.float32), (np.arange(coarse), kept)), shape=(coarse, count)))
        places = (TOY[f"up_row_{level}"].astype(int), TOY[f"up_col_{level}"].astype(int))
        up.append(form((TOY[f"up_val_{level}"], places), shape=(count, coarse)))
        meshes.append(meshes[-1][kept])
    faces = [TOY[f"face_{level}"].astype(np.uint32) for level in range(5)]
    return {"vertices": meshes, "face": faces, "adj": [form(np.eye(3))] * 5, "down_transform": down, "up_transform": up,
            **(changes or {})}


def write_transform(path: Path, protocol: int = 4, old_scipy: bool = False, **arguments) -> Path:
    data = pickle.dumps(transform(**arguments), protocol=protocol)
    if old_scipy:  # the same modules before scipy 1.8; both names at one length of line, as protocol 2 writes them
        assert b"cscipy.sparse._csc\n" in data
        data = data.replace(b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n")
    path.write_bytes(data)
    return path


def test_made_once(tmp_path, caplog):
    """The second call reads what the first one kept, bit for bit; the file's name follows hand and options, not `pyramid`."""
    caplog.set_level(logging.INFO)
    first = pyramid_of(HAND, OPTIONS, tmp_path)
    path, = tmp_path.iterdir()
    assert path == cache_path(HAND, OPTIONS, tmp_path) and path.name.startswith("pyramid_") and len(path.stem) == 8 + 12
    written = path.read_bytes()
    assert same(pyramid_of(HAND, OPTIONS, tmp_path), first) and path.read_bytes() == written
    assert same(pyramid_of(HAND, OPTIONS.model_copy(update={"pyramid": str(path)}), tmp_path / "unused"), first)
    assert not (tmp_path / "unused").exists() and not caplog.text
    write_pyramid(tmp_path / "again.npz", first, HAND, OPTIONS)
    assert (tmp_path / "again.npz").read_bytes() == written


@pytest.mark.parametrize("change", [{"template": "rest"}, {"up_weights": "barycentric"}, {"seq_length": 8}, {"dilation": 2},
                                    {"factors": (4, 3)}, {"keep_boundary": True}])
def test_each_option_makes_another(tmp_path, change):
    """Another value of any option is another file and another pyramid, and a named file made with the old one is refused."""
    first, changed = pyramid_of(HAND, OPTIONS, tmp_path), OPTIONS.model_copy(update=change)
    assert cache_path(HAND, changed, tmp_path) != cache_path(HAND, OPTIONS, tmp_path)
    assert not same(pyramid_of(HAND, changed, tmp_path), first)
    named = changed.model_copy(update={"pyramid": str(cache_path(HAND, OPTIONS, tmp_path))})
    with pytest.raises(InputError, match="made with .*found one made with"):
        pyramid_of(HAND, named, tmp_path)


def test_options_of_a_method(tmp_path):
    """A method's own options beside the pyramid's change nothing."""
    class Options(PyramidOptions):
        width: float = 1.0

    assert cache_path(HAND, Options(), tmp_path) == cache_path(HAND, PyramidOptions(), tmp_path)


@pytest.mark.parametrize("wrong", [{"seq_length": 0}, {"dilation": 0}, {"factors": ()}, {"factors": (1, 2)}, {"template": "flat"},
                                   {"up_weights": "any"}])
def test_wrong_options(wrong):
    """Values that make no pyramid are refused by the options themselves."""
    with pytest.raises(ValidationError):
        PyramidOptions(**wrong)


def test_template():
    """mean_pose: the mean pose 0.3 m away to six digits; rest: the flat hand where the hand model has it."""
    verts = template_verts(HAND, "mean_pose")
    assert np.array_equal(verts, np.round(verts, 6)) and verts.dtype == np.float64
    pose = HAND.rotations_from_pose(HAND.weights.new_zeros(48), pca=False, flat_mean=False)
    np.testing.assert_allclose(verts - (0, 0, 0.3), HAND(pose, HAND.weights.new_zeros(10)).verts, atol=1e-6)
    assert np.array_equal(template_verts(HAND, "rest"), HAND.arrays.v_template)


def test_another_hand(tmp_path):
    """A pyramid of the left hand, as the named file or under the right hand's name in the folder, is refused in one line."""
    left = HAND.mirrored()
    path = cache_path(HAND, OPTIONS, tmp_path)
    write_pyramid(path, pyramid_of(left, OPTIONS, tmp_path), left, OPTIONS)
    for options in (OPTIONS, OPTIONS.model_copy(update={"pyramid": str(path)})):
        with pytest.raises(InputError, match=f"{path.name}.*that of another mesh.*{left.sha256[:12]}") as refused:
            pyramid_of(HAND, options, tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", [
    lambda p: p._replace(faces=(p.faces[0][::-1], *p.faces[1:])),
    lambda p: p._replace(spirals=(p.spirals[0] + 1, *p.spirals[1:])),
    lambda p: p._replace(columns=(p.columns[0] - 1, *p.columns[1:])), lambda p: p._replace(weights=p.weights[:1]),
    lambda p: p._replace(weights=(p.weights[0] * np.float32(np.nan), *p.weights[1:])),
    lambda p: p._replace(kept=(p.kept[0][:-1], *p.kept[1:]))])
def test_parts_that_do_not_fit(tmp_path, change):
    """Faces in another order, ids of no vertex, a part too few, NaN: refused, whoever wrote the file."""
    path = cache_path(HAND, OPTIONS, tmp_path)
    write_pyramid(path, change(pyramid_of(HAND, OPTIONS, tmp_path)), HAND, OPTIONS)
    with pytest.raises(InputError, match=f"{path.name}.*remove it, and it is made again"):
        pyramid_of(HAND, OPTIONS, tmp_path)


@pytest.mark.parametrize("change", [lambda data: data[:1000], lambda data: b"PK" + data[:50], lambda data: b"", lambda data: b"?",
                                    lambda data: data.replace("mesh-pyramid-1".encode("utf-32-le"), b"?" * 56)])
def test_damaged_file(tmp_path, change):
    """Cut short, empty, no archive, another format: one line each, for the kept file and for a named one."""
    pyramid_of(HAND, OPTIONS, tmp_path)
    path = cache_path(HAND, OPTIONS, tmp_path)
    path.write_bytes(change(path.read_bytes()))
    for options in (OPTIONS, OPTIONS.model_copy(update={"pyramid": str(path)})):
        with pytest.raises(InputError, match=path.name):
            pyramid_of(HAND, options, tmp_path)


def test_no_such_file(tmp_path):
    """A named file that is not there."""
    with pytest.raises(InputError, match="expected a file, found nothing; name a pyramid"):
        pyramid_of(HAND, OPTIONS.model_copy(update={"pyramid": str(tmp_path / "none.npz")}), tmp_path)


def test_folder_that_cannot_be_written(tmp_path, caplog):
    """It is a warning, and the pyramid is there."""
    (tmp_path / "file").write_text("in the way")
    pyramid = pyramid_of(HAND, OPTIONS, tmp_path / "file")
    assert len(pyramid.kept) == 2 and "could not be kept" in caplog.text
    assert [record.levelname for record in caplog.records if "kept" in record.message] == ["WARNING"]


def _make(folder: Path) -> list[int]:
    return [len(kept) for kept in pyramid_of(HAND, OPTIONS, folder).kept]


def test_several_processes(tmp_path):
    """Four at once over one folder: each gets the pyramid, and one whole file is left."""
    with ProcessPoolExecutor(4) as pool:
        assert list(pool.map(_make, [tmp_path] * 8)) == [[195, 49]] * 8
    assert [path.name for path in tmp_path.iterdir()] == [cache_path(HAND, OPTIONS).name]


@pytest.mark.parametrize("arguments", [
    {}, {"protocol": 2}, {"protocol": 2, "old_scipy": True}, {"protocol": 5}, {"form": scipy.sparse.csr_matrix},
    {"form": scipy.sparse.coo_matrix}, {"form": scipy.sparse.csc_array}], ids=str)
def test_transform(tmp_path, arguments):
    """The original's transform.pkl of the toy mesh: the golden kept vertices, faces, weights at their columns, and spirals."""
    path = write_transform(tmp_path / "transform.pkl", **arguments)
    pyramid = pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(path)), tmp_path)
    for level in range(4):
        assert np.array_equal(pyramid.kept[level], TOY[f"down_keep_{level}"])
        assert np.array_equal(pyramid.faces[level + 1], TOY[f"face_{level + 1}"])
        assert np.array_equal(pyramid.spirals[level], TOY[f"spiral_L27_d1_{level}"])
        order = np.lexsort((TOY[f"up_col_{level}"], TOY[f"up_row_{level}"]))
        assert np.array_equal(pyramid.columns[level].ravel(), TOY[f"up_col_{level}"][order])
        assert np.array_equal(pyramid.weights[level].ravel(), TOY[f"up_val_{level}"][order])
    assert list(tmp_path.iterdir()) == [path]


def test_transform_row_of_fewer_entries(tmp_path):
    """A file whose zeros were not stored: the same matrix, the missing entries weigh nothing."""
    content = transform()
    content["up_transform"][0].eliminate_zeros()
    (tmp_path / "transform.pkl").write_bytes(pickle.dumps(content))
    pyramid = pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(tmp_path / "transform.pkl")), tmp_path)
    matrix = np.zeros((778, 389), np.float32)
    np.add.at(matrix, (np.arange(778)[:, None], pyramid.columns[0]), pyramid.weights[0])
    assert np.array_equal(matrix, content["up_transform"][0].toarray())


def _level(key, index, value):
    content = transform()[key]
    return {key: [*content[:index], value(content[index]), *content[index + 1:]]}


@pytest.mark.parametrize(("changes", "found"), [
    (lambda: _level("face", 0, lambda f: f[::-1]), "faces of another mesh"),
    (lambda: _level("face", 2, lambda f: f + 1), "faces of no vertices"),
    (lambda: _level("vertices", 1, lambda v: v[:-1]), "levels of 778, 388, 195, 98, 49 vertices, where factors 2, 2, 2, 2 make"),
    (lambda: _level("vertices", 1, lambda v: v * np.nan), "no finite points"),
    (lambda: _level("down_transform", 1, lambda m: m * 2), "does not select"),
    (lambda: _level("down_transform", 1, lambda m: m[::-1][:, :-1]), "does not select"),
    (lambda: _level("up_transform", 1, lambda m: scipy.sparse.csc_matrix(np.ones(m.shape))), "does not mix three"),
    (lambda: _level("up_transform", 1, lambda m: m * np.nan), "no numbers"),
    (lambda: {"up_transform": [np.eye(3)] * 4}, "where a sparse matrix was expected"),
    (lambda: {"face": None}, "found another one"), (lambda: {"vertices": []}, "found another one")])
def test_transform_of_another_mesh(tmp_path, changes, found):
    """Other faces, other sizes, matrices that select or mix nothing: one line that says which."""
    path = write_transform(tmp_path / "transform.pkl", changes=changes())
    with pytest.raises(InputError, match=f"transform.pkl.*{found}") as refused:
        pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(path)), tmp_path)
    assert "\n" not in str(refused.value)


def test_transform_of_the_toy_is_not_the_free_hands(tmp_path):
    """Faces of another mesh than the hand's, and other factors than the options', are refused."""
    path = write_transform(tmp_path / "transform.pkl")
    with pytest.raises(InputError, match="faces of another mesh"):
        pyramid_of(HAND, PyramidOptions(pyramid=str(path)), tmp_path)
    with pytest.raises(InputError, match="factors 4, 4 make 778, 195, 49"):
        pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(path), factors=(4, 4)), tmp_path)


@pytest.mark.parametrize("data", [pickle.dumps(print), pickle.dumps([1, 2]), b"", b"\x80\x04", pickle.dumps({"face": Path("x")})])
def test_pickle_that_is_no_transform(tmp_path, data):
    """A call of anything, another content, half a file: one line, and nothing is run."""
    (tmp_path / "transform.pkl").write_bytes(data)
    with pytest.raises(InputError, match="transform.pkl: expected a transform.pkl"):
        pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(tmp_path / "transform.pkl")), tmp_path)


def test_transform_cut_anywhere(tmp_path):
    """A file cut off at any of a hundred places is refused."""
    data = write_transform(tmp_path / "transform.pkl").read_bytes()
    for end in np.linspace(1, len(data) - 1, 100).astype(int):
        (tmp_path / "transform.pkl").write_bytes(data[:end])
        with pytest.raises(InputError, match=r"transform\.pkl"):
            pyramid_of(TOY_HAND, PyramidOptions(pyramid=str(tmp_path / "transform.pkl")), tmp_path)


def test_published_hashes(monkeypatch, tmp_path, caplog):
    """As many digits as the published list has, of int64 little endian (1, 2, 3 by sha256sum); a hand that has them says so."""
    levels = tuple(np.array([[1, 2, 3]]) * level for level in range(1, 6))
    hashes = published_hashes(Pyramid(levels, levels[:4], (), (), levels[:4]))
    assert hashes["faces"][0] == hashes["kept"][0] == "e2e2033ae7e19d68" and hashes["spirals"][0] == "e2e2033a"
    assert {part: [len(text) for text in texts] for part, texts in hashes.items()} == {
        part: [len(text) for text in texts] for part, texts in PUBLISHED.items()}
    pyramid = pyramid_of(HAND, OPTIONS, tmp_path)
    assert not is_published(pyramid)
    monkeypatch.setattr("utils.pyramid.PUBLISHED", published_hashes(pyramid))
    caplog.set_level(logging.INFO)
    pyramid_of(HAND, OPTIONS, tmp_path)
    assert is_published(pyramid) and "CMR's published one (" in caplog.text
