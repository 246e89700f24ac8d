"""datasets/dex_ycb_score.py: the official script's numbers from files on disk, COCO's by hand, and each refusal."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
from dex_ycb_cases import dump, toy_hand, write_tree
from eval_cases import golden_hands, golden_numbers

from datasets.dex_ycb import SERIALS
from datasets.dex_ycb_score import score
from datasets.dex_ycb_truth import images_of, open_tree, read_joints
from utils.errors import InputError
from utils.joints import H21_FROM_T21

WIDTH, HEIGHT = 160, 120


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What the official script gave."""
    return golden_numbers()


@pytest.fixture(scope="module")
def golden_tree(golden, tmp_path_factory) -> Path:
    """The goldens' tree, no more than the official loader needs: 10 people x 100 recordings x 1 frame, camera 7's labels only."""
    root = tmp_path_factory.mktemp("golden")
    true = golden_hands("main")["true_xyz"].astype(np.float32)
    valid = golden["dexycb.valid_ids"].tolist()
    for number in range(int(golden["dexycb.n_total"])):
        person, recording = divmod(number, 100)
        folder = root / f"20200{person + 100}-subject-{person + 1:02d}" / f"20200{person + 100}_{recording:06d}"
        dump(folder / "meta.yml", {"num_frames": 1, "mano_sides": [("right", "left")[number // 20 % 2]], "mano_calib": ["x"]})
        joints = true[valid.index(number)] if number in valid else np.full((21, 3), -1, np.float32)
        (folder / SERIALS[7]).mkdir()
        np.savez(folder / SERIALS[7] / "labels_000000.npz", joint_3d=joints[None])
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A small tree with hands of both sides; 8 of s0/test's 32 images have none; the hand's pixels are a block."""
    hands = {side: toy_hand(side) for side in ("right", "left")}
    root = write_tree(tmp_path_factory.mktemp("tree"), hands, sequences=10, cameras=2, frames=2, width=WIDTH, height=HEIGHT)
    for number, path in enumerate(paths(root)):
        with np.load(path) as file:
            labels = dict(file)
        if number % 4 == 3:
            labels |= {"joint_3d": 0 * labels["joint_3d"] - 1, "joint_2d": 0 * labels["joint_2d"] - 1}
        else:
            labels["seg"][20:60, 30:80] = 255  # 2,000 pixels: medium for COCO
        np.savez(path, **labels)
    return root


def paths(root: Path) -> list[Path]:
    """Labels of s0/test in official order, found without the code that is tested: every fifth recording of persons 3 to 10."""
    return [folder / serial / f"labels_{frame:06d}.npz" for person in sorted(root.glob("*-subject-*"))[2:]
            for folder in sorted(person.iterdir())[4::5] for serial in SERIALS[:2] for frame in range(2)]


def truth(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, joints (n,21,3) mm and joint_2d (n,21,2) of the images with a hand."""
    labels = [np.load(path) for path in paths(root)]
    valid = [i for i, file in enumerate(labels) if (file["joint_3d"] != -1).any()]
    return (np.array(valid), np.stack([1e3 * labels[i]["joint_3d"][0] for i in valid]).astype(np.float64),
            np.stack([labels[i]["joint_2d"][0] for i in valid]).astype(np.float64))


def text_file(path: Path, numbers: np.ndarray, joints_mm: np.ndarray) -> Path:
    """The result file: millimetres, 4 decimals."""
    path.write_text("".join(",".join([str(i), *(f"{x:.4f}" for x in row.ravel())]) + "\n" for i, row in zip(numbers, joints_mm)))
    return path


def run(pred: Path, root: Path, **options) -> dict:
    """scores.json of a run that ends well."""
    out = pred.parent / "scores"
    text = score("dex_ycb", pred, root, out=out, **options)
    found = json.loads((out / "scores.json").read_text())
    assert (out / "scores.txt").read_text() in text
    return {**found, "text": text}


def refused(pred: Path, root: Path, *words: str, **options) -> None:
    """The file is refused in one line with these words, and nothing is written."""
    with pytest.raises(InputError) as error:
        score("dex_ycb", pred, root, out=pred.parent / "none", **options)
    line = str(error.value)
    for word in words:
        assert re.search(word, line), f"{word!r} is not in {line!r}"
    assert not (pred.parent / "none").exists()


@pytest.mark.parametrize("scenario", ["main", "mirror", "zeros"])
def test_official_numbers(golden, golden_tree, scenario, tmp_path):
    """absolute, root_relative, procrustes: mean, median, AUC and PCK from files on disk equal the official script's to 1e-9."""
    joints = golden_hands(scenario)["pred_xyz"] * 1000
    found = run(text_file(tmp_path / "r.txt", golden["dexycb.valid_ids"], joints), golden_tree, split="s2_test")
    assert (found["n"], found["images"]) == (50, 1000) and not found["partial"]
    for key, measured in found["measures"].items():
        for name, quantity in (("mean_mm", "mean"), ("median_mm", "median"), ("auc", "auc"), ("pck", "pck")):
            expected = golden[f"dexycb.{scenario}.{key}.{quantity}"]
            np.testing.assert_allclose(measured[name], expected, rtol=0, atol=1e-9)
        line = f"{found['scores'][key + '_mean_mm']:>12.4f}{found['scores'][key + '_auc']:>10.4f}"
        assert re.search(f"^{key} +{line.strip()}$", found["text"], re.MULTILINE)
    assert set(found["measures"]) == {"absolute", "root_relative", "procrustes"}
    proper = found["ours"]["procrustes_proper_mean_mm"] - found["measures"]["procrustes"]["mean_mm"]
    assert proper > 50 if scenario == "mirror" else abs(proper) < 1e-6
    assert "ours, not the official program's" in found["text"]


def test_images_are_numbered_as_the_loader_does(tree):
    """Official numbers and labels of s0/test, against a list of files made by the rule of the specification."""
    images = images_of(open_tree(tree, SERIALS), "s0/test")
    assert images.total == 32 * 2 == len(images.number) and images.number.tolist() == list(range(64))
    expected = np.concatenate([np.load(path)["joint_3d"] for path in paths(tree)])
    np.testing.assert_array_equal(read_joints(images, np.arange(64)), expected)


def test_perfect_and_known_offsets(tree, tmp_path):
    """The truth scores 0 and AUC 1; hands moved by 30 mm have 30 mm absolute and 0 root-relative; both sides count."""
    numbers, joints, _ = truth(tree)
    perfect = run(text_file(tmp_path / "r.txt", numbers, joints), tree)
    assert perfect["scores"]["absolute_mean_mm"] < 1e-3 and perfect["scores"]["root_relative_auc"] > 0.99 and perfect["n"] == 48
    moved = run(text_file(tmp_path / "r.txt", numbers, joints + [0, 0, 30]), tree)
    assert abs(moved["scores"]["absolute_mean_mm"] - 30) < 1e-3 and moved["scores"]["root_relative_mean_mm"] < 1e-3


def test_partial_file(tree, tmp_path):
    """--count scores the images with a hand that the file has, exactly so many, and says so; without it they are missing."""
    numbers, joints, _ = truth(tree)
    pred = text_file(tmp_path / "r.txt", numbers[:20], joints[:20] + [0, 0, 3])
    found = run(pred, tree, count=20)
    assert found["partial"] and found["n"] == 20 and "partial: 20 images with a hand" in found["text"]
    assert abs(found["scores"]["absolute_mean_mm"] - 3) < 1e-3
    refused(pred, tree, "expected 21 images with a hand", "found 20", "--count 20", count=21)
    refused(pred, tree, "28 of the 48 images with a hand in s0/test are missing", f"first: image {numbers[20]}", "--count 20")


def test_root_relative_file_is_scored_and_its_absolute_line_marked(tree, tmp_path):
    """Wrists at the origin, as methods without a root write them: scored, and said of the absolute numbers."""
    numbers, joints, _ = truth(tree)
    found = run(text_file(tmp_path / "r.txt", numbers, joints - joints[:, :1]), tree)
    assert found["scores"]["root_relative_mean_mm"] < 1e-3 and "absolute numbers are meaningless" in found["text"]
    assert re.search("^absolute .*meaningless", found["text"], re.MULTILINE)


def test_lines_beyond_the_split_are_ignored_and_said(tree, tmp_path):
    """Numbers past the last image, and of images without a hand, change nothing."""
    numbers, joints, _ = truth(tree)
    found = run(text_file(tmp_path / "r.txt", [*numbers, 3, 64, 900], [*joints, *joints[:3]]), tree)
    assert found["scores"]["absolute_mean_mm"] < 1e-3 and "2 of its 51 lines are beyond the 64 images" in found["text"]


def test_implausible_files_are_refused(tree, tmp_path):
    """Metres, OpenGL axes, H21, left hands never mirrored back, samples backwards: refused by name, scored with --unchecked."""
    numbers, joints, _ = truth(tree)
    left = images_of(open_tree(tree, SERIALS), "s0/test").sides(numbers) == 1
    assert 10 < left.sum() < 40
    flipped = np.where(left[:, None, None], joints * [-1, 1, 1], joints)
    for pred, words in ((joints / 1000, ("millimetres", "in metres")), (joints * [1, -1, -1], ("OpenGL's",)),
                        (joints[:, list(H21_FROM_T21)], ("another order", "H21"))):
        refused(text_file(tmp_path / "r.txt", numbers, pred), tree, *words, "--unchecked")
    refused(text_file(tmp_path / "r.txt", numbers, joints[::-1]), tree, "samples backwards")
    refused(text_file(tmp_path / "r.txt", numbers, flipped), tree, "left hands", "mirror")
    found = run(text_file(tmp_path / "r.txt", numbers, joints / 1000), tree, unchecked=True)
    assert found["unchecked"] and found["scores"]["absolute_mean_mm"] > 100 and "were not checked" in found["text"]


def test_result_of_another_split(tree, tmp_path):
    """A longer split's file has every number, and is recognised by its hands."""
    other = images_of(open_tree(tree, SERIALS), "s0/train")
    joints = read_joints(other, np.arange(len(other.number)))
    pred = text_file(tmp_path / "r.txt", other.number, 1e3 * joints.astype(float))
    refused(pred, tree, "these are the hands of s0/train, not of s0/test", "--split s0/train")
    assert run(pred, tree, split="s0/train")["scores"]["absolute_mean_mm"] < 1e-3


BROKEN_TEXT = {
    "short line": (lambda lines: [*lines[:3], lines[3].rpartition(",")[0]], "line 4: expected 64 numbers, found 63"),
    "empty line": (lambda lines: [lines[0], "", *lines[1:]], "line 2: expected 64 numbers, found an empty line"),
    "twice": (lambda lines: [*lines, lines[0]], "image 0 occurs twice"),
    "nan": (lambda lines: [lines[0].replace(lines[0].split(",")[5], "nan")], "line 1: a number is nan"),
    "far": (lambda lines: [lines[0].replace(lines[0].split(",")[5], "1e300")], "line 1: a number is nan, inf or beyond 1e.12"),
    "nothing": (lambda lines: [], "empty"),
}


@pytest.mark.parametrize("fault", BROKEN_TEXT)
def test_broken_text(tree, fault, tmp_path):
    """Wrong length, duplicates, NaN: the line's number and the reason."""
    numbers, joints, _ = truth(tree)
    pred = text_file(tmp_path / "r.txt", numbers, joints)
    change, words = BROKEN_TEXT[fault]
    pred.write_text("".join(line + "\n" for line in change(pred.read_text().splitlines())))
    refused(pred, tree, words)


def test_wrong_truth_and_options(tree, tmp_path):
    """No tree, no such split, a person missing, a broken or absent label, an unknown ending, --count 0."""
    numbers, joints, _ = truth(tree)
    pred = text_file(tmp_path / "r.txt", numbers, joints)
    refused(pred, tmp_path / "absent", "DEX_YCB_DIR", "--truth")
    refused(pred, tmp_path, "expected folders such as")
    refused(pred, tree, "--split s9/test", split="s9/test")
    refused(pred, tree, "--count 0", count=0)
    refused(tmp_path / "no.txt", tree, "expected a file, found nothing", "--pred")
    refused(text_file(tmp_path / "r.csv", numbers, joints), tree, "expected DexYCB's result file")
    label = paths(tree)[5]
    whole = label.read_bytes()
    for content, words in ((whole[:100], "breaks"), (None, "expected labels, found nothing")):
        label.unlink()
        if content is not None:
            label.write_bytes(content)
        try:
            refused(pred, tree, label.name, words)
        finally:
            label.write_bytes(whole)


def coco_file(path: Path, numbers: np.ndarray, uv: np.ndarray, scores: list[float] | None = None, **change) -> Path:
    """A COCO result list of 2D hands; `change` replaces or adds keys of the second entry."""
    entries = [{"image_id": int(n), "category_id": 22, "keypoints": np.c_[hand, np.ones(21)].ravel().tolist(), "score": float(s)}
               for n, hand, s in zip(numbers, uv, scores or [1.0] * len(numbers))]
    entries[1] = {key: value for key, value in {**entries[1], **change}.items() if value is not None}
    path.write_text(json.dumps(entries))
    return path


def test_coco_perfect_and_missed_hands(tree, tmp_path):
    """Perfect keypoints: every number 1, but none large. Half of the hands missed: AP 51/101 (recall 0 to 0.5), AR 0.5."""
    numbers, _, uv = truth(tree)
    found = run(coco_file(tmp_path / "r.json", numbers, uv), tree)
    assert found["n"] == 48 and found["images"] == 64
    assert {k: round(v, 9) for k, v in found["scores"].items()} == {
        **dict.fromkeys(("AP", "AP50", "AP75", "APM", "AR", "AR50", "AR75", "ARM"), 1.0), "APL": -1.0, "ARL": -1.0}
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= 20 ] = 1.000" in found["text"]
    half = run(coco_file(tmp_path / "r.json", numbers[::2], uv[::2]), tree)
    assert abs(half["scores"]["AP"] - 51 / 101) < 1e-9 and abs(half["scores"]["AR"] - 0.5) < 1e-9
    assert "24 of the hands' images have no entry" in half["text"]
    part = run(coco_file(tmp_path / "r.json", numbers[::2], uv[::2]), tree, count=24)
    assert part["scores"]["AP"] > 1 - 1e-9 and part["partial"]
    refused(tmp_path / "r.json", tree, r"expected 20 images with a hand \(--count\), found 24", count=20)


@pytest.mark.parametrize("oks", [0.97, 0.72, 0.52, 0.4])
def test_coco_known_offset(tree, oks, tmp_path):
    """All joints off by d px: OKS = exp(-d^2 / (2 area (2 * 0.05)^2)), so AP is the share of thresholds 0.5 to 0.95 below it."""
    numbers, _, uv = truth(tree)
    offset = np.sqrt(-np.log(oks) * 2 * 2000 * 0.1**2)
    found = run(coco_file(tmp_path / "r.json", numbers, uv + [offset, 0]), tree)["scores"]
    share = np.mean(np.linspace(0.5, 0.95, 10) <= oks)
    assert abs(found["AP"] - share) < 1e-9 and abs(found["AR"] - share) < 1e-9
    assert found["AP50"] == (oks >= 0.5) and found["AP75"] == (oks >= 0.75)


def test_coco_false_hands_cost_precision(tree, tmp_path):
    """A surer hand in a picture without one: at every recall the precision is n / (n + 1)."""
    numbers, _, uv = truth(tree)
    scores = [0.5] * len(numbers) + [0.9]
    found = run(coco_file(tmp_path / "r.json", [*numbers, 3], [*uv, uv[0]], scores), tree)["scores"]
    assert abs(found["AP"] - 48 / 49) < 1e-9 and found["AR"] > 1 - 1e-9


def test_coco_joints_without_a_place_do_not_count(tree, tmp_path):
    """Joints at -1, -1 in the labels have visibility 0: wherever they are predicted, the hand is perfect."""
    numbers, _, uv = truth(tree)
    path = paths(tree)[numbers[0]]
    whole = path.read_bytes()
    with np.load(path) as file:
        labels = dict(file)
    labels["joint_2d"][0, 5:] = -1
    np.savez(path, **labels)
    moved = uv.copy()
    moved[0, 5:] += 500
    try:
        assert run(coco_file(tmp_path / "r.json", numbers, moved), tree)["scores"]["AP"] > 1 - 1e-9
    finally:
        path.write_bytes(whole)
    assert run(coco_file(tmp_path / "r.json", numbers, moved), tree)["scores"]["AP"] < 1 - 1e-3


BAD_ENTRIES = {
    "image": ({"image_id": "1"}, "entry 1: expected image_id, a whole number"),
    "no category": ({"category_id": None}, "entry 1: expected category_id"),
    "no score": ({"score": None}, "entry 1: expected score, a finite number, found nothing"),
    "no keypoints": ({"keypoints": None}, "entry 1: expected keypoints, 63 finite numbers, found nothing"),
    "few keypoints": ({"keypoints": [1.0] * 51}, "entry 1: .* found 51 values"),
    "text keypoints": ({"keypoints": ["1"] * 63}, "entry 1: expected keypoints"),
    "nan keypoints": ({"keypoints": [float("nan")] * 63}, "entry 1: expected keypoints"),
    "endless keypoints": ({"keypoints": [10**400] * 63}, "entry 1: expected keypoints"),
    "endless score": ({"score": 10**400}, "entry 1: expected score, a finite number"),
    "beyond": ({"image_id": 64}, "1 of its 48 hands are in images beyond the 64 of s0/test .first: image 64.*--split"),
}


@pytest.mark.parametrize("fault", BAD_ENTRIES)
def test_coco_bad_entry(tree, fault, tmp_path):
    """A malformed entry: its number, what was expected and what was found."""
    numbers, _, uv = truth(tree)
    change, words = BAD_ENTRIES[fault]
    refused(coco_file(tmp_path / "r.json", numbers, uv, **change), tree, words)


def test_coco_bad_files(tree, tmp_path):
    """Not a list, no hand in it, cut off; and shares for pixels, u and v swapped, H21."""
    numbers, _, uv = truth(tree)
    pred = tmp_path / "r.json"
    for text, words in (("{}", "expected a list of hands"), ("[]", "expected a list of hands"),
                        ("[1]", "entry 0: expected an object"), ("[{", "breaks"), (f"[{'9' * 5000}]", "breaks"),
                        ('[{"image_id": 1, "category_id": 3, "score": 1}]', "entries of other categories")):
        pred.write_text(text)
        refused(pred, tree, words)
    refused(coco_file(pred, numbers, uv / [WIDTH, HEIGHT]), tree, "between 0 and 1", "width and height")
    refused(coco_file(pred, numbers, uv[..., ::-1]), tree, "u and v swapped")
    refused(coco_file(pred, numbers, uv[:, list(H21_FROM_T21)]), tree, "another order", "H21")
    assert run(coco_file(pred, numbers, uv / [WIDTH, HEIGHT]), tree, unchecked=True)["scores"]["AP"] == 0
    other = {"category_id": 3, "keypoints": None}
    assert "1 entries of other categories were left out" in run(coco_file(pred, numbers, uv, **other), tree)["text"]
