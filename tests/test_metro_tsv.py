"""METRO's TSV files against the original's (tests/goldens/metro.json: the tree of make_tree.py), and against the tree itself."""
import base64
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dex_ycb_cases import SERIALS, toy_hand, write_tree
from fill import uniform
from make_tree import main as make_tree
from PIL import Image
from toy_mano import toy_mano

from datasets.dex_ycb import Options
from datasets.metro_tsv import KINDS, crop_box, cut, export, hw_column, label_column
from datasets.metro_tsv_hand import regressed_joints
from utils.errors import InputError
from utils.joints import T21_FROM_H21

GOLDENS = Path(__file__).parent / "goldens"
METRO = json.loads((GOLDENS / "metro.json").read_text())
CROP = {key[5:]: value for key, value in np.load(GOLDENS / "crop.npz").items() if key.startswith("crop.")}
KEYS = [path[len("../../data/dex_ycb/"):] for path in CROP["orig_paths"]]
HANDS = {"right": toy_hand()}
PRODUCTS = "029f65b0"  # of the matrix products below, where the goldens' digits can be had


def rows_of(folder: Path, name: str) -> list[str]:
    text = (folder / name).read_text(encoding="ascii")
    assert text.endswith("\n") and "\r" not in text
    return text[:-1].split("\n")


def labels_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(row.split("\t")[1])[0] for row in rows_of(folder, f"{split}.label.tsv")]


def products() -> str:
    """What this processor and its libraries make of matrix products of the sizes that a hand needs."""
    toy = {key: torch.from_numpy(value).float() for key, value in toy_mano(0).items() if value.dtype == np.float64}
    bends, betas = (torch.from_numpy(uniform(f"metro.{n}", (n, 1), -1, 1)).float() for n in (135, 10))
    turns = torch.from_numpy(uniform("metro.turns", (4, 4, 16), -1, 1)).float()
    found = (toy["posedirs"] @ bends, toy["shapedirs"] @ betas, toy["J_regressor"] @ toy["v_template"], turns @ toy["weights"].T)
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in found)).hexdigest()[:8]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the goldens' tree. Its labels are put back as the original read them: make_tree.py has them to rounding."""
    folder = tmp_path_factory.mktemp("metro")
    make_tree(str(folder / "tree"))
    for key, uv, joints in zip(KEYS, CROP["orig_joint_2d"], CROP["joint_3d"]):
        path = folder / "tree" / key.replace("color_", "labels_").replace(".jpg", ".npz")
        labels = dict(np.load(path))
        assert np.abs(labels["joint_2d"] - uv).max() < 2e-4 and np.abs(labels["joint_3d"] - joints).max() < 5e-7
        np.savez(path, pose_m=labels["pose_m"], joint_2d=uv[None], joint_3d=joints[None])
    said = export(Options(root=str(folder / "tree")), folder / "tsv", hands=HANDS)
    assert "val: 15 rows" in said and "1 no hand" in said and "train left out: " in said and "test left out: " in said
    return folder / "tsv"


def test_golden_files(golden: Path):
    """Names, sizes, row numbers and keys of the golden tree, byte for byte; splits that the tree lacks have no files."""
    assert {path.name for path in golden.iterdir()} == {f"val.{kind}.{end}" for kind in KINDS for end in ("tsv", "lineidx")}
    assert rows_of(golden, "val.hw.tsv")[:2] == METRO["hw"] and rows_of(golden, "val.linelist.tsv") == METRO["linelist"]
    for kind in ("img", "hw", "label"):
        keys = [row.split("\t")[0] for row in rows_of(golden, f"val.{kind}.tsv")]
        assert keys == [f"cropped_hand_size_2/{key}" for key in KEYS]
    assert [json.loads(row.split("\t")[1]) for row in rows_of(golden, "val.hw.tsv")] == [
        [{"height": h, "width": w}] for w, h in CROP["crop_size_wh"]]


def test_golden_labels(golden: Path):
    """Labels of the golden tree byte for byte, and so where each row begins, where the processor's products have those digits."""
    if products() != PRODUCTS:
        pytest.skip("this processor rounds float32 products otherwise; test_golden_numbers and test_golden_text hold anywhere")
    assert rows_of(golden, "val.label.tsv")[:2] == METRO["label"]
    assert rows_of(golden, "val.label.lineidx") == METRO["lineidx_label"]


def test_golden_numbers(golden: Path):
    """All 15 rows' numbers: crops and shapes exactly, pose and joints to float32's rounding."""
    for row, uv, joints, mano in zip(labels_of(golden, "val"), CROP["cropped_joint_2d"], CROP["regressed_joint_3d"],
                                     CROP["mano_params"], strict=True):
        assert row["2d_joints"] == [[*pair, 1] for pair in uv.tolist()] and row["betas"] == mano[51:].tolist()
        np.testing.assert_allclose(np.array(row["3d_joints"])[0, :, :3], joints - mano[48:51], atol=5e-7)
        assert np.array(row["3d_joints"]).shape == (1, 21, 4) and set(np.array(row["3d_joints"])[0, :, 3]) == {1}
        fingers = toy_mano(0)["hands_mean"] + mano[3:48] @ toy_mano(0)["hands_components"]
        np.testing.assert_allclose(row["pose"], [*mano[:3], *fingers], atol=5e-7)


def test_golden_text():
    """Given the original's numbers, the text of every row is the original's: 2 rows in full, 15 by where they begin."""
    begins, labels = [0], []
    pose = [json.loads(row.split("\t")[1])[0]["pose"] for row in METRO["label"]]
    for n, key in enumerate(KEYS):
        mano, size = CROP["mano_params"][n], CROP["crop_size_wh"][n, ::-1].tolist()
        if n >= len(pose):
            components = np.float32(toy_mano(0)["hands_components"])
            pose.append(np.concatenate([mano[:3], np.float32(toy_mano(0)["hands_mean"]) + in_order(mano[3:48], components)]))
        label = label_column(size, CROP["cropped_joint_2d"][n], CROP["regressed_joint_3d"][n] - mano[48:51],
                             np.float32(pose[n]), tuple(mano[51:].tolist()))
        labels.append(f"cropped_hand_size_2/{key}\t{label}")
        begins.append(begins[-1] + len(labels[-1]) + 1)
        assert n > 1 or f"cropped_hand_size_2/{key}\t{hw_column((*size, 3))}" == METRO["hw"][n]
    assert labels[:2] == METRO["label"] and [str(b) for b in begins[:-1]] == METRO["lineidx_label"]


def in_order(row: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """row @ matrix, summed in order."""
    total = row[0] * matrix[0]
    for factor, line in zip(row[1:], matrix[1:]):
        total = total + factor * line
    return total


def test_same_hand_as_everywhere():
    """The original's arithmetic and the hand model in float64 are one function, at any pose."""
    draw = np.random.default_rng(3)
    mano = draw.normal(0, 1, (7, 61)).astype(np.float32)
    mano[:, 51:] = mano[0, 51:]
    mano[5, :48] = 0
    joints, pose = regressed_joints(HANDS["right"], mano)
    hand, numbers = toy_hand().double(), torch.from_numpy(mano).double()
    posed = hand(hand.rotations_from_pose(numbers[:, :48], pca=True, flat_mean=False), numbers[:, 51:]).moved(numbers[:, 48:51])
    np.testing.assert_allclose(joints, hand.joints(posed, "manopth", "regressed"), atol=5e-6)  # the toy hand is metres wide
    np.testing.assert_allclose(pose[:, 3:], hand.axis_angle_from_pca(numbers[:, 3:48]), atol=2e-6)
    assert joints.dtype == pose.dtype == np.float32 and len(T21_FROM_H21) == joints.shape[1]


@pytest.mark.parametrize("box", [(20.4, 10.5, 52.49, 43.5), (-7.5, -3.2, 30.5, 34.6), (60.2, 50.7, 110.4, 101.5),
                                 (-20.5, -20.5, 140.5, 140.5), (0.0, 0.5, 96.0, 80.0)])
def test_cut_is_pil(box: tuple[float, ...]):
    """The crop is the one that PIL cuts (the original's tool), rounding and black border included."""
    image = np.random.default_rng(0).integers(1, 256, (80, 96, 3)).astype(np.uint8)
    assert np.array_equal(cut(image, np.float32(box)), np.array(Image.fromarray(image).crop(box)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people, three sequences (the second a left hand), two cameras, two frames."""
    return write_tree(tmp_path_factory.mktemp("ten") / "tree", {**HANDS, "left": toy_hand("left")}, sequences=3)


def options(tree: Path, **changes: object) -> Options:
    return Options(root=str(tree), **{"width": 160, "height": 120, "in_image": False, **changes})


def test_three_splits(tree: Path, tmp_path: Path):
    """Every right-hand frame is in one split, in official order; .lineidx says where rows begin; twice is the same bytes."""
    said = export(options(tree), tmp_path, hands=HANDS)
    assert [line.split(" rows")[0] for line in said.splitlines()] == ["train: 56", "val: 8", "test: 16"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3 * 4 * 2
    keys = []
    for split in ("train", "val", "test"):
        for kind in KINDS:
            begins = list(map(int, rows_of(tmp_path, f"{split}.{kind}.lineidx")))
            text = (tmp_path / f"{split}.{kind}.tsv").read_text()
            assert [text[b:].split("\n")[0] for b in begins] == rows_of(tmp_path, f"{split}.{kind}.tsv")
        keys.append([row.split("\t")[0] for row in rows_of(tmp_path, f"{split}.label.tsv")])
        assert keys[-1] == sorted(keys[-1])
        assert rows_of(tmp_path, f"{split}.linelist.tsv") == [str(n) for n in range(len(keys[-1]))]
    pictures = {str(path.relative_to(tree)) for path in tree.glob("*-subject-*/*_00000[02]/*/color_*.jpg")}
    assert sorted(key.removeprefix("cropped_hand_size_2/") for some in keys for key in some) == sorted(pictures)
    export(options(tree), tmp_path, hands=HANDS)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_pictures(tree: Path, tmp_path: Path):
    """The img column decodes to the crop of the picture, of the size in the hw column, to the loss of two JPEG encodings."""
    export(options(tree), tmp_path, hands=HANDS)
    for row, hw, label in zip(rows_of(tmp_path, "val.img.tsv"), rows_of(tmp_path, "val.hw.tsv"), labels_of(tmp_path, "val")):
        key, coded = row.split("\t")
        crop = cv2.imdecode(np.frombuffer(base64.b64decode(coded, validate=True), np.uint8), cv2.IMREAD_COLOR)
        assert json.loads(hw.split("\t")[1]) == [{"height": crop.shape[0], "width": crop.shape[1]}]
        path = tree / key.removeprefix("cropped_hand_size_2/")
        uv = np.load(str(path).replace("color_", "labels_").replace(".jpg", ".npz"))["joint_2d"][0]
        expected = np.array(Image.open(path).crop(tuple(crop_box(uv).tolist())))[..., ::-1].astype(int)
        assert np.abs(crop - expected).mean() < 4 and label["scale"] == max(crop.shape[:2]) / 200
        np.testing.assert_allclose(np.array(label["2d_joints"])[:, :2], uv - crop_box(uv)[:2], atol=1e-5)


def test_choices(tree: Path, tmp_path: Path):
    """The setup, the stride and the filter of the options hold; a split that comes to nothing loses an earlier export's files."""
    said = export(options(tree, setup="s2"), tmp_path / "s2", hands=HANDS)  # unseen cameras: 0 to 5 train
    assert "train: 80 rows" in said and "val left out: DexYCB s2/val is empty" in said
    said = export(options(tree, stride=2), tmp_path / "stride", hands=HANDS)
    assert "train: 28 rows" in said and "val: 4 rows" in said
    moved = shutil.copytree(tree, tmp_path / "tree")
    export(options(moved), tmp_path / "out", hands=HANDS)
    for path in moved.glob("*-subject-07/*/*/labels_*.npz"):
        labels = dict(np.load(path))
        np.savez(path, **{**labels, "joint_3d": -np.ones_like(labels["joint_3d"]), "joint_2d": -np.ones_like(labels["joint_2d"])})
    assert "val left out: no frame is left of it (8 no hand)" in export(options(moved), tmp_path / "out", hands=HANDS)
    assert {path.name.split(".")[0] for path in (tmp_path / "out").iterdir()} == {"train", "test"}


REFUSED = {
    "left hands": ({"hands": "mirror_left"}, "dataset.hands=mirror_left"),
    "sequences": ({"sequences": "even"}, "dataset.sequences=even: export writes whole splits"),
    "every": ({"every": 2}, "dataset.every=2: export writes whole splits"),
    "no tree": ({"root": "nowhere"}, "nowhere: expected a folder, found nothing"),
    "other calibration": ({"width": 640, "height": 480}, "640x480.yml: expected a file, found nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_options(tree: Path, tmp_path: Path, case: str):
    """One line that names the option or the file; nothing is written."""
    changes, expected = REFUSED[case]
    with pytest.raises(InputError, match=expected):
        export(options(tree).model_copy(update=changes), tmp_path / "out", hands=HANDS)
    assert not (tmp_path / "out").exists()


def test_refused_section(tmp_path: Path):
    """No dataset section is one line."""
    with pytest.raises(InputError, match="expected a `dataset:` section with name: dex_ycb, found none"):
        export(None, tmp_path, hands=HANDS)


def test_refused_hand(tree: Path, tmp_path: Path):
    """Labels of another hand model than the one given: the line says so, and no file appears."""
    with pytest.raises(InputError, match="are not those of the hand model toy"):
        export(options(tree), tmp_path, hands={"right": toy_hand(salt=1)})
    assert not list(tmp_path.iterdir())


def test_refused_folder(tree: Path, tmp_path: Path):
    """A folder of other files, the dataset itself, a file: one line, and nothing there is touched. Leftovers of a kill go."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".val.img.tsv.x1.part").write_text("half")
    with pytest.raises(InputError, match="found others .notes.txt.; name another by --out"):
        export(options(tree), tmp_path, hands=HANDS)
    with pytest.raises(InputError, match="expected a folder or nothing, found a file"):
        export(options(tree), tmp_path / "notes.txt", hands=HANDS)
    with pytest.raises(InputError, match="found others"):
        export(options(tree), tree, hands=HANDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".val.img.tsv.x1.part", "notes.txt"]
    (tmp_path / "notes.txt").unlink()
    export(options(tree), tmp_path, hands=HANDS)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["color_000001.jpg", "labels_000001.npz"])
def test_broken_file(tree: Path, tmp_path: Path, name: str):
    """A cut-off picture or label file: a line with its name and no file of that split, or, by option, counted and left out."""
    broken = shutil.copytree(tree, tmp_path / "tree")
    path = next(broken.glob(f"*-subject-07/*_000002/{SERIALS[1]}/{name}"))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=name):
        export(options(broken), tmp_path / "out", hands=HANDS)
    assert {found.name.split(".")[0] for found in (tmp_path / "out").iterdir()} == {"train"}
    assert "val: 7 rows" in export(options(broken, unreadable="skip"), tmp_path / "out", hands=HANDS)
    assert rows_of(tmp_path / "out", "val.linelist.tsv") == [str(n) for n in range(7)]


def test_nothing_to_export(tmp_path: Path):
    """A tree of left hands only: one line, no file."""
    hands = {"right": toy_hand(), "left": toy_hand("left")}
    tree = write_tree(tmp_path / "tree", hands, people=2, sequences=2)
    for folder in tree.glob("*-subject-*/*_000000"):
        shutil.copy(folder.with_name(folder.name[:-1] + "1") / "meta.yml", folder / "meta.yml")
    with pytest.raises(InputError, match="nothing to export"):
        export(options(tree), tmp_path / "out", hands=HANDS)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
