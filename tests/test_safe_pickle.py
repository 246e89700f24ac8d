"""Pickles of arrays: Python 2's and 3's dialects are read without being run; hostile and broken ones get their one line."""
import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from utils.errors import InputError
from utils.safe_pickle import load_pickle

sys.path.insert(0, str(Path(__file__).parent))
import toy_pickle as tp

RNG = np.random.default_rng(0)
META = {  # an HO3D meta file, and what else numpy can put into one
    "handJoints3D": RNG.normal(size=(21, 3)), "handPose": RNG.normal(size=48).astype(np.float32),
    "objRot": RNG.normal(size=(3, 1)), "handVertContact": RNG.uniform(size=778) < 0.1, "objName": "021_bleach",
    "camMat": np.asfortranarray(RNG.normal(size=(3, 3))),
    "objLabel": 12, "camIDList": ["0", "1"], "handTrans": None, "empty": np.zeros((0, 3)), "ids": np.arange(6, dtype=np.uint16),
}


def same(found: object, expected: object) -> bool:
    """Equal in type, dtype, shape and value, all the way down."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        equal = all(map(same, found.flat, expected.flat)) if expected.dtype == object else np.array_equal(found, expected)
        return equal and found.dtype == expected.dtype and found.shape == expected.shape
    return type(found) is type(expected) and found == expected


def fails(path: Path, data: bytes, *words: str) -> str:
    """The message of reading `data`: one line that names the file, what was expected, and holds `words` and the remedy."""
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_pickle(path, "fetch it again")
    message = str(caught.value)
    assert message.startswith(f"{path}: expected a pickle of arrays, found ") and message.endswith("; fetch it again")
    assert "\n" not in message and "\x1b" not in message and len(message) < len(str(path)) + 400
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "0000.pkl"


@pytest.mark.filterwarnings("ignore:dtype")
def test_python2_pickle(path):
    """Protocol 2 with byte strings and old numpy's names, as HO3D's are: every value, dtype and order, arrays writable."""
    path.write_bytes(tp.dumps(META))
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(path.read_bytes())  # noqa: S301  written above: as awkward as an original
    found = load_pickle(path, "")
    assert same(found, META)
    found["camMat"][0, 0] = 1


@pytest.mark.parametrize("protocol", range(6))
def test_python3_pickle(path, protocol):
    """Every protocol of today's pickle and numpy, with scalars, bytes, text and object arrays, sets and foreign byte order."""
    content = {**META, "scalar": np.float32(1.5), "bool": np.True_, "bytes": b"\x80\xff", "set": {1, "a"}, "none": b"",
               "names": np.array(["a", "bc"]), "mixed": np.array([None, "x", {"a": np.arange(3)}], object),
               "nested": ([1, 2.5], (True, np.ones(2))), 7: "é"}
    path.write_bytes(pickle.dumps({**content, "big": np.arange(3, dtype=">i4")}, protocol=protocol))
    found = load_pickle(path, "")
    big = found.pop("big")
    assert same(found, content) and big.dtype == np.int32 and list(big) == [0, 1, 2]


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_names_of_old_and_new_numpy(path, core, protocol):
    """numpy.core and numpy._core, whichever numpy wrote the file, name the same array."""
    data = pickle.dumps(META, protocol=protocol)
    old, new = (b"numpy._core", b"numpy.core") if core == "core" else (b"numpy.core", b"numpy._core")
    if protocol == 2:
        data = data.replace(old, new)  # names end with a line: any length will do
    path.write_bytes(data)
    assert same(load_pickle(path, ""), META)


def test_rhd_annotations(path):
    """A dict with int keys of dicts of arrays, as RHD's, in Python 2's protocol 0, 2 and today's."""
    anno = {i: {"xyz": RNG.normal(size=(42, 3)), "uv_vis": RNG.normal(size=(42, 3)), "K": np.eye(3)} for i in range(20)}
    for data in (tp.dumps(anno), pickle.dumps(anno, 0), pickle.dumps(anno, 4)):
        path.write_bytes(data)
        assert same(load_pickle(path, ""), anno)


def test_shared_arrays_are_read_once(path):
    """One array under two names stays one, also beside a memo with more entries than opcodes have bytes for."""
    one = np.ones(3)
    path.write_bytes(pickle.dumps({"a": one, "b": one, "c": [str(i) for i in range(300)]}, 2))
    found = load_pickle(path, "")
    assert found["a"] is found["b"] and len(found["c"]) == 300


class Calls:
    """Pickles into a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, open, getattr, __import__, np.load])
def test_code_is_refused_and_not_run(path, tmp_path, protocol, function):
    """A pickle that calls a function, deep inside honest data: refused by the function's name, and nothing was run."""
    proof = tmp_path / "proof"
    argument = {os.system: f"touch {proof}", open: str(proof)}.get(function, f"__import__('os').system('touch {proof}')")
    hostile = Calls(function, argument, *(["w"] if function is open else []))
    data = pickle.dumps({"a": np.ones(2), "b": [({"c": hostile},)]}, protocol)
    message = fails(path, data, "asks for", "nothing in it was run")
    assert function.__name__ in message and not proof.exists()


ARGUMENT = b"X\x0a\x00\x00\x00touch nope"


@pytest.mark.parametrize(("data", "name"), [
    (b"cos\nsystem\n(" + ARGUMENT + b"tR", "os.system"),                                    # REDUCE
    (b"(" + ARGUMENT + b"ios\nsystem\n", "os.system"),                                      # INST
    (b"(cos\nsystem\n" + ARGUMENT + b"o", "os.system"),                                     # OBJ
    (b"csubprocess\nPopen\n(" + ARGUMENT + b"t\x81", "subprocess.Popen"),                   # NEWOBJ
    (b"csubprocess\nPopen\n(" + ARGUMENT + b"t}\x92", "subprocess.Popen"),                  # NEWOBJ_EX
    (b"\x8c\x08builtins\x8c\x04eval\x93(" + ARGUMENT + b"tR", "builtins.eval"),             # STACK_GLOBAL
    (b"c__builtin__\neval\n(" + ARGUMENT + b"tR", "__builtin__.eval"),
    (b"cnumpy\nload\n(" + ARGUMENT + b"tR", "numpy.load"),
    (b"cnumpy\nndarray.tofile\n(" + ARGUMENT + b"tR", "numpy.ndarray.tofile"),              # a path through an allowed name
    (b"\x8c\x05numpy\x8c\x11dtype.__class__.x\x93.", "numpy.dtype.__class__"),
    (b"cutils.safe_pickle\nload_pickle\n(" + ARGUMENT + b"tR", "utils.safe_pickle.load_pickle"),
    (b"cos\x1b[31m\nsystem\n(" + ARGUMENT + b"tR", "os\\x1b[31m.system"),                   # no colours on the terminal
    (b"\x82\x01", "the registered extension 1"), (b"U\x01xQ", "the persistent object x"),
])
def test_every_way_to_call_is_refused(path, data, name, monkeypatch, tmp_path):
    """Each opcode that calls or looks up something, with names outside the list: refused by name, nothing run."""
    monkeypatch.chdir(tmp_path)
    fails(path, b"\x80\x04" + data + b".", f"asks for {name}", "nothing in it was run")
    assert not (tmp_path / "nope").exists()


def made(module: str, name: str, *args: object, state: object = None) -> tp.Made:
    return tp.Made(tp.Global(module, name), args, state)


def array(code: str, shape: tuple, raw: object) -> tp.Made:
    return made("numpy.core.multiarray", "_reconstruct", state=(1, shape, made("numpy", "dtype", code), False, raw))


@pytest.mark.parametrize("value", [
    made("numpy", "ndarray", (10**15,)), made("numpy", "dtype", "O", state={"__class__": 1}),
    made("numpy.core.multiarray", "_reconstruct", tp.Global("__builtin__", "set"), state=({}, {})),
    made("numpy.core.multiarray", "scalar", made("numpy", "dtype", "O8"), b"12345678"),
    made("numpy.core.multiarray", "scalar", made("numpy", "dtype", "f8,f8"), b"1" * 16),
    array("O8", (10**12,), []), array("f8", (10**12,), b""), array("f8", (10**12,), []), array("S0", (10**12,), b""),
    array("M8", (1,), b"12345678"), array("V8", (1,), b"12345678"), made("_codecs", "encode", "text", "zlib"),
    made("__builtin__", "set", [()]), made("__builtin__", "bytes", 10**12), tp.Global("numpy", "ndarray"),
], ids=range(15))
def test_allowed_names_do_nothing(path, value):
    """Allowed names with odd arguments and states neither run, nor reserve memory, nor break anything but the file."""
    fails(path, tp.dumps({"a": value}))


def honest() -> bytes:
    return tp.dumps(META)


@pytest.mark.parametrize("share", [0.0005, 0.2, 0.5, 0.97, 0.9999])
def test_truncated(path, share):
    """A pickle cut off anywhere is said to be cut off or damaged."""
    for data in (honest(), pickle.dumps(META, 5)):
        fails(path, data[:max(1, int(len(data) * share))], "cut off or damaged")


def test_damaged_pickle_never_crashes(path):
    """Random damage to small files of each protocol: content of some sort or one InputError, nothing else."""
    small = {"a": np.ones((2, 2), np.float32), "b": [None, "x", ("y", 1.5)], 3: np.float64(2)}
    for data in (tp.dumps(small | {3: 2}), *(pickle.dumps(small, p) for p in (0, 2, 4, 5))):
        for _ in range(300):
            damaged = bytearray(data)
            for place in RNG.integers(2, len(data), 3):
                damaged[place] = RNG.integers(256)
            path.write_bytes(damaged)
            try:
                load_pickle(path, "fetch it again")
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(("data", "word"), [
    (b"", "an empty file"), (b"PK\x03\x04", "a zip archive"), (b"<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"some notes about hands\n", "a text file"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "another kind"),
])
def test_no_pickle(path, data, word):
    """Other files under a pickle's name are called what they are."""
    fails(path, data, word)


def test_absent(tmp_path):
    """Nothing, or a folder, where the pickle should be."""
    with pytest.raises(InputError, match="0000.pkl: expected a file, found nothing; fetch it again"):
        load_pickle(tmp_path / "0000.pkl", "fetch it again")
    with pytest.raises(InputError, match="found a folder"):
        load_pickle(tmp_path, "fetch it again")


def looped(container: bytes, closing: bytes) -> bytes:
    """A container that holds itself by the memo."""
    return b"\x80\x02" + container + b"q\x00h\x00" + closing + b"."


@pytest.mark.parametrize(("data", "words"), [
    (looped(b"]", b"a"), "holds itself"), (looped(b"}", b"K\x01h\x00s0K\x01h\x00s"), "holds itself"),
    (b"\x80\x02]" * 1 + b"]" * 5000 + b"a" * 5000 + b".", "recursion"),
    (b"\x80\x02Nr\xff\xff\xff\x7f}j\xff\xff\xff\x7fNs.", None),                      # a memo number of 2^31
    (b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"abc.", "17179869184 bytes announced"),
    (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.", "cut off or damaged"),
    (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N", "cut off or damaged"),
    (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "a key that is neither text nor a number"),  # its hash would overflow the stack
    (b"\x80\x02}()" + b"\x85" * 200_000 + b"Nu.", "a key that is neither text nor a number"),
    (b"\x80\x02()" + b"\x85" * 200_000 + b"Nd.", "a key that is neither text nor a number"),
    (b"\x80\x04\x8f()" + b"\x85" * 200_000 + b"\x90.", "a key that is neither text nor a number"),
    (b"\x80\x04()" + b"\x85" * 200_000 + b"\x91.", "a key that is neither text nor a number"),
], ids=range(12))
def test_loops_depths_and_sizes(path, data, words):
    """Files that hold themselves, nest without end or announce what they do not have: refused, in less than 200 MB."""
    tracemalloc.start()
    try:
        if words is None:
            path.write_bytes(data)
            assert load_pickle(path, "") == {None: None}
        else:
            fails(path, data, words)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_the_same_bytes_a_thousand_times(path):
    """An array's bytes named again and again by the memo: refused before they fill the memory; doubling lists cost nothing."""
    raw = b"T" + struct.pack("<i", 800_000) + b"\0" * 800_000 + b"q\x01"
    one = tp.dumps(array("f8", (100_000,), b"@@"))[2:-1]
    arrays = [one.replace(b"T\x02\x00\x00\x00@@", raw if i == 0 else b"h\x01") for i in range(1000)]
    fails(path, b"\x80\x02](" + b"".join(arrays) + b"e.", "more bytes than the file has")
    path.write_bytes(b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".")
    load_pickle(path, "")
