"""Hand files: MANO's pickle in all its dialects is read without being run; every other input gets its one line."""
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from utils.errors import InputError
from utils.mano_file import SHAPES, HandArrays, convert_mano, read_hand_file, write_hand_npz

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
sys.path.insert(0, str(Path(__file__).parent))
import toy_pickle as tp
from toy_mano import toy_mano

TOY = toy_mano(0)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    return tp.dumps(tp.original(TOY))


def toy_arrays(**changes) -> HandArrays:
    return HandArrays(**{**{key: TOY[key] for key in SHAPES}, "name": "toy_right", **changes})


def same(arrays: HandArrays, toy: dict = TOY) -> bool:
    return all(np.array_equal(getattr(arrays, key), toy[key]) for key in SHAPES)


def fails(path: Path, *words: str, shapedirs: str = "as_is") -> str:
    """The message of reading `path`: one line that names the file and holds `words`."""
    with pytest.raises(InputError) as caught:
        read_hand_file(path, shapedirs)
    message = str(caught.value)
    assert "\n" not in message and str(path.name) in message
    for word in words:
        assert word in message
    return message


@pytest.mark.filterwarnings("ignore:dtype")
def test_original_pickle(original, tmp_path):
    """The real object graph (chumpy selection, csc, Fortran order, Python 2 byte strings) gives the arrays bit for bit."""
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(original)  # noqa: S301  written above; shows that the look-alike is as awkward as the original
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(original)
    arrays = read_hand_file(path)
    assert same(arrays) and arrays.side == "right" and arrays.name == "MANO_RIGHT" and arrays.f.dtype == np.int64


def test_chumpy_is_never_imported(original, tmp_path):
    """A fresh interpreter reads the pickle although importing chumpy or scipy is made to fail, and has opened neither."""
    (tmp_path / "MANO_LEFT.pkl").write_bytes(original)
    code = ("import sys; sys.modules['chumpy'] = sys.modules['scipy'] = None\n"
            "from utils.mano_file import read_hand_file\n"
            f"assert read_hand_file({str(tmp_path / 'MANO_LEFT.pkl')!r}).side == 'left'")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", [
    tp.plain(TOY, tp.coo(TOY["J_regressor"])), tp.plain(TOY, tp.coo(TOY["J_regressor"], "scipy.sparse._coo")),
    tp.plain(TOY, TOY["J_regressor"]), tp.plain(TOY, tp.csc(TOY["J_regressor"])),
], ids=["coo", "coo of newer scipy", "dense", "csc"])
def test_python2_resaves(content, tmp_path):
    """Re-saves with plain arrays and each form of regressor read the same."""
    path = tmp_path / "mano_right.pkl"
    path.write_bytes(tp.dumps(content))
    assert same(read_hand_file(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "toarray"])
def test_python3_resaves(form, protocol, tmp_path):
    """Re-saves by today's pickle, numpy and scipy, in every protocol from 2 and every regressor, read the same."""
    regressor = getattr(scipy.sparse, form)(TOY["J_regressor"]) if form != "toarray" else TOY["J_regressor"]
    content = {**TOY, "posedirs": np.asfortranarray(TOY["posedirs"]), "J_regressor": regressor}
    assert same(read_hand_file(tp.resave(tmp_path / "right.pkl", content, protocol)))


def test_bytes_keys(tmp_path):
    """A re-save made with encoding='bytes' has bytes for keys."""
    path = tp.resave(tmp_path / "right.pkl", {key.encode(): value for key, value in TOY.items()}, 4)
    assert same(read_hand_file(path))


class Shell:
    """Pickles into a call of os.system."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(protocol, tmp_path):
    """A pickle that would run a shell command is refused in one line naming the global, and the command has not run."""
    proof = tmp_path / "proof"
    path = tp.resave(tmp_path / "MANO_RIGHT.pkl", {**TOY, "J": Shell(f"touch {proof}")}, protocol)
    if protocol == 0:
        fails(path, "expected a MANO pickle", "template/")  # has not even the protocol's mark
    else:
        fails(path, f"asks for {os.system.__module__}.system", "nothing in it was run", "template/")
    assert not proof.exists()


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"), ("__builtin__", "eval"), ("builtins", "exec"), ("subprocess", "Popen"), ("numpy", "load"),
    ("numpy", "save"), ("numpy.core.multiarray", "fromfile"), ("operator", "attrgetter"),
    ("chumpy.ch", "MatVecMult"), ("scipy.sparse", "os"),
    ("utils.mano_file", "subprocess"), ("numpy", "dtype.__class__"), ("torch", "load"),
])
def test_every_other_global_is_refused(module, name, tmp_path):
    """Whatever is not on the list is refused by the name the file gives it, called or not."""
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(tp.dumps({"v_template": tp.Made(tp.Global(module, name), ("1",))}))
    fails(path, f"asks for {module}.{name}")


def test_allowed_names_do_nothing(tmp_path):
    """The allowed globals are inert: calling them with odd arguments or states neither runs nor breaks anything but the file."""
    path = tmp_path / "MANO_RIGHT.pkl"
    for value in (tp.Made(tp.Global("numpy", "ndarray"), ((10**15,),)),
                  tp.Made(tp.Global("numpy", "dtype"), ("O",), {"__class__": 1}),
                  tp.Made(tp.Global("numpy.core.multiarray", "_reconstruct"), (tp.Global("__builtin__", "set"),), ({}, {})),
                  tp.Made(tp.Global("chumpy.ch", "Ch"), (), {"x": 3}, new=True)):
        path.write_bytes(tp.dumps(tp.plain({**TOY, "v_template": value}, TOY["J_regressor"])))
        fails(path, "v_template")


def test_object_arrays_are_refused(tmp_path):
    """An array of Python objects is no array of numbers."""
    path = tp.resave(tmp_path / "right.pkl", {**TOY, "hands_mean": np.array([{}] * 45, dtype=object)}, 4)
    fails(path, "hands_mean", "expected numbers")


def test_persistent_ids_are_refused(tmp_path):
    """A pickle that refers to outside objects, as torch's do, is refused."""
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(b"\x80\x02U\x01xQ.")
    fails(path, "persistent object")


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.97, 0.999999])
def test_truncated_pickle(share, original, tmp_path):
    """A pickle cut off anywhere is said to be cut off or damaged."""
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(original[:int(len(original) * share)])
    fails(path, "cut off or damaged", "download")


def test_damaged_pickle_never_crashes(original, tmp_path):
    """Random damage to the object graph (of a small, incomplete file) ends in an InputError, nothing else."""
    rng = np.random.default_rng(0)
    small = tp.dumps({"v_template": np.ones((4, 3)), "J_regressor": tp.csc(np.eye(3)), "kintree_table": TOY["kintree_table"]})
    path = tmp_path / "MANO_RIGHT.pkl"
    for _ in range(300):
        data = bytearray(small)
        for place in rng.integers(2, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        fails(path)


@pytest.mark.parametrize(("data", "word"), [
    (b"", "an empty file"), (b"<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"some notes about hands\n", "a text file"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "another kind"),
    (pickle.dumps([1, 2], 2), "found a list"), (pickle.dumps({"a": 1}, 2), "it has no v_template"),
])
def test_other_files(data, word, tmp_path):
    """Other files under MANO's name are called what they are."""
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(data)
    fails(path, word, "download mano_v1_2")


def test_absent(tmp_path):
    """An absent file and a folder: what was found, where to get it, what to use instead."""
    fails(tmp_path / "MANO_RIGHT.pkl", "found nothing", "https://mano.is.tue.mpg.de", "free_hand_right.npz")
    (tmp_path / "MANO_LEFT.pkl").mkdir()
    fails(tmp_path / "MANO_LEFT.pkl", "found a folder")


@pytest.mark.parametrize(("key", "value", "words"), [
    ("v_template", np.zeros((6890, 3)), ("v_template: expected shape (778, 3), found (6890, 3)",)),
    ("shapedirs", np.zeros((778, 3, 20)), ("shapedirs: expected shape (778, 3, 10)",)),
    ("weights", np.full((778, 16), np.nan), ("weights: 12448 values are not finite",)),
    ("hands_mean", np.full(45, np.inf), ("hands_mean: 45 values are not finite",)),
    ("weights", np.ones((778, 16)), ("weights: expected rows that add up to 1, found one off by 15",)),
    ("f", np.full((1538, 3), 778), ("f: expected vertex ids 0..777, found 778..778",)),
    ("kintree_table", np.zeros((2, 24), np.int64), ("kintree_table: expected MANO's 16 joints",)),
    ("posedirs", "lbs", ("posedirs: expected an array of numbers, found str",)),
])
def test_wrong_contents(key, value, words, tmp_path):
    """Wrong shapes, values and skeletons, in the pickle and in the .npz: the array, the expectation, what was found."""
    fails(tp.resave(tmp_path / "right.pkl", {**TOY, key: value}, 4), *words)
    if key != "kintree_table":
        path = tmp_path / "right.npz"
        np.savez(path, format="hand-model-1", side="right", name="toy", **{**{k: TOY[k] for k in SHAPES}, key: value})
        fails(path, *(words if key != "posedirs" else ("posedirs: expected an array of numbers",)))


@pytest.mark.parametrize("key", list(SHAPES))
def test_missing_keys(key, tmp_path):
    """A missing array is named."""
    fails(tp.resave(tmp_path / "right.pkl", {k: v for k, v in TOY.items() if k != key}, 4), f"it has no {key}")


def test_npz_round_trip(tmp_path):
    """Written and read again: the same numbers, texts and extras; equal bytes when written twice; float32 when asked."""
    arrays = toy_arrays(provenance="a test", licence="none", extras={"pose_std": np.linspace(1, 0, 45)})
    write_hand_npz(tmp_path / "a.npz", arrays)
    write_hand_npz(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_hand_file(tmp_path / "a.npz")
    assert same(back) and back.sha256 == arrays.sha256 and np.array_equal(back.extras["pose_std"], arrays.extras["pose_std"])
    assert (back.name, back.side, back.provenance, back.licence) == ("toy_right", "right", "a test", "none")
    write_hand_npz(tmp_path / "c.npz", arrays, np.float32)
    assert np.abs(read_hand_file(tmp_path / "c.npz").v_template - TOY["v_template"]).max() < 1e-7


def npz_bytes(**content) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def test_broken_npz(tmp_path):
    """Truncated, foreign, of another format, with pickled objects inside, with an unknown side: one line each, nothing run."""
    path = tmp_path / "hand.npz"
    write_hand_npz(path, toy_arrays())
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.999):
        path.write_bytes(whole[:int(len(whole) * share)])
        fails(path, "found a file that breaks")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    path.write_bytes(damaged)
    fails(path)
    path.write_bytes(npz_bytes(a=np.zeros(3)))
    fails(path, "expected a hand model .npz", "found arrays a")
    path.write_bytes(npz_bytes(format="hand-model-2"))
    fails(path, "format hand-model-1, found format hand-model-2")
    path.write_bytes(npz_bytes(format="hand-model-1", side="up", **{key: TOY[key] for key in SHAPES}))
    fails(path, "side: expected right or left, found up")
    proof = tmp_path / "proof"
    path.write_bytes(npz_bytes(format="hand-model-1", v_template=np.array([Shell(f"touch {proof}")], dtype=object)))
    fails(path, "found a file that breaks")
    assert not proof.exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x")
    fails(path, "expected a hand model .npz")


def test_convert(original, tmp_path):
    """`run.py convert mano`: the .npz is the same hand, bit for bit and by its hash, and says where it is from."""
    source, out = tmp_path / "MANO_LEFT.pkl", tmp_path / "out" / "MANO_LEFT.npz"
    source.write_bytes(original)
    convert_mano(source, out)
    back = read_hand_file(out)
    assert same(back) and back.sha256 == read_hand_file(source).sha256
    assert back.side == "left" and "MANO_LEFT.pkl" in back.provenance and "MANO" in back.licence
    assert str(tmp_path) not in back.provenance
    flipped = convert_mano(source, tmp_path / "flipped.npz", "flip_x")
    assert np.array_equal(read_hand_file(tmp_path / "flipped.npz").shapedirs, flipped.shapedirs)
    with pytest.raises(InputError, match=r"ends in \.npz"):
        convert_mano(source, tmp_path / "out.pkl")
    source.write_bytes(original[:1000])
    with pytest.raises(InputError):
        convert_mano(source, tmp_path / "never.npz")
    assert not (tmp_path / "never.npz").exists() and not list(tmp_path.glob(".*"))


def test_left_shapedirs(original, tmp_path):
    """as_is keeps, flip_x negates x, negate all; refused for right hands, for hands already changed, for unknown words."""
    left = tmp_path / "MANO_LEFT.pkl"
    left.write_bytes(original)
    base = TOY["shapedirs"]
    assert np.array_equal(read_hand_file(left).shapedirs, base)
    assert np.array_equal(read_hand_file(left, "flip_x").shapedirs, base * np.array([-1, 1, 1])[:, None])
    assert np.array_equal(read_hand_file(left, "negate").shapedirs, -base)
    assert len({read_hand_file(left, s).sha256 for s in ("as_is", "flip_x", "negate")}) == 3
    fails(left, "expected one of as_is, flip_x, negate", shapedirs="flip")
    right = tmp_path / "MANO_RIGHT.pkl"
    right.write_bytes(original)
    fails(right, "is for left hands", shapedirs="flip_x")
    flipped = tmp_path / "MANO_LEFT_flipped.npz"
    convert_mano(left, flipped, "flip_x")
    assert np.array_equal(read_hand_file(flipped, "flip_x").shapedirs, read_hand_file(flipped).shapedirs)  # asked for, there
    fails(flipped, "has flip_x ones already", shapedirs="negate")


def test_unfixed_left_of_a_mirrored_right(tmp_path):
    """MANO's unmended left hand = mirrored right with the right's shapedirs; flip_x makes exactly the mirror image of it."""
    right = toy_arrays()
    mirrored = right.mirrored()
    unmended = toy_arrays(**{key: getattr(mirrored, key) for key in SHAPES if key != "shapedirs"}, side="left")
    assert unmended.with_shapedirs("flip_x").sha256 == mirrored.sha256
    assert mirrored.with_shapedirs("flip_x") is mirrored
    with pytest.raises(InputError):
        mirrored.with_shapedirs("negate")


def test_mirroring_twice_is_nothing():
    """right -> left -> right: the same arrays, extras and name."""
    extras = {"joint_axes": np.arange(135.0).reshape(15, 3, 3), "joint_limits": np.arange(90.0).reshape(15, 3, 2)}
    arrays = toy_arrays(extras=extras)
    mirrored = arrays.mirrored()
    assert mirrored.side == "left" and mirrored.name == "toy_left" and mirrored.sha256 != arrays.sha256
    assert (mirrored.extras["joint_limits"][..., 0] <= mirrored.extras["joint_limits"][..., 1]).all()
    back = mirrored.mirrored()
    assert back.sha256 == arrays.sha256 and all(np.array_equal(back.extras[key], extras[key]) for key in extras)


def test_side_from_the_name(original, tmp_path, caplog):
    """left or right in the file name decides; both is refused; neither is taken for right, with a warning."""
    for name, side in (("MANO_LEFT.pkl", "left"), ("mano_right_py3.pkl", "right")):
        (tmp_path / name).write_bytes(original)
        assert read_hand_file(tmp_path / name).side == side
    (tmp_path / "left_or_right.pkl").write_bytes(original)
    fails(tmp_path / "left_or_right.pkl", "both left and right")
    (tmp_path / "hand.pkl").write_bytes(original)
    assert read_hand_file(tmp_path / "hand.pkl").side == "right" and "neither left nor right" in caplog.text
    assert read_hand_file(tmp_path / "hand.pkl", side="left").side == "left"
