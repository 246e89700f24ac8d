"""utils/protocols.py: DexYCB's official numbers against the official script, its text file both ways, the line of each fault."""
from pathlib import Path

import numpy as np
import pytest
from eval_cases import golden_hands, golden_numbers, text_scores, toy_hand, write_file

from utils.errors import InputError
from utils.predictions import read_predictions
from utils.protocols import (
    dexycb_from_predictions,
    dexycb_hpe,
    lines_of,
    protocol_line,
    read_dexycb_text,
    write_dexycb_text,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What the official script gave."""
    return golden_numbers()


def golden_text(path: Path, scenario: str, golden: dict[str, np.ndarray]) -> None:
    """The result file of the golden recipe: millimetres, 4 decimals, one line for each of the split's labelled images."""
    joints = golden_hands(scenario)["pred_xyz"].reshape(50, 63) * 1000
    lines = [",".join([str(i), *(f"{x:.4f}" for x in row)]) for i, row in zip(golden["dexycb.valid_ids"], joints)]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("scenario", ["main", "mirror", "zeros"])
def test_result_file_scores_as_the_official_script_scores_it(golden, scenario, tmp_path):
    """absolute, root_relative and procrustes mean, median, AUC and PCK of a result file, to 1e-9, whatever its order of lines."""
    path = tmp_path / "result.txt"
    golden_text(path, scenario, golden)
    lines = path.read_text().splitlines()
    extra = ",".join(["3"] + ["1.5"] * 63)  # an image without a hand: ignored
    path.write_text("\n".join([*lines[::-1], extra]) + "\n")
    got = text_scores(path, golden["dexycb.valid_ids"], golden["dexycb.gt_mm"])
    assert set(got) == {"absolute", "root_relative", "procrustes"}
    for alignment, measured in got.items():
        for quantity in ("mean", "median", "auc", "pck"):
            expected = golden[f"dexycb.{scenario}.{alignment}.{quantity}"]
            np.testing.assert_allclose(getattr(measured, quantity), expected, rtol=0, atol=1e-9)


def test_recipe_makes_the_official_truth(golden):
    """The stored truth is the recipe's in float32 times 1000, so the goldens above rest on the same hands."""
    recipe = golden_hands("main")["true_xyz"].astype(np.float32) * np.float32(1000)
    np.testing.assert_array_equal(recipe.astype(float), golden["dexycb.gt_mm"])
    np.testing.assert_allclose(golden_hands("main")["pred_xyz"], golden["check.pred_xyz"], rtol=0, atol=1e-12)


def test_written_text_reads_back_and_unmirrors_left_hands(tmp_path):
    """Numbers to 1e-4 mm by official image number; rows that were mirrored have x negated; root added."""
    arrays = write_file(tmp_path / "p.npz", toy_hand(), rows=12)
    info = write_dexycb_text(read_predictions(tmp_path / "p.npz"), tmp_path / "out.txt")
    assert info.absolute and info.lines == 12 and info.note == ""
    numbers, joints = read_dexycb_text(tmp_path / "out.txt")
    assert numbers.tolist() == (7 * np.arange(12)[::-1]).tolist()
    expected = 1e3 * (arrays["pred_joints"] + arrays["pred_root"][:, None])
    expected[1::2, :, 0] *= -1
    assert np.abs(joints - expected).max() < 2e-4
    assert all(line.count(",") == 63 for line in (tmp_path / "out.txt").read_text().splitlines())


def test_official_numbers_are_the_same_from_file_and_text(tmp_path):
    """The predictions file and the official text it writes give the same three scores, mirrored rows included."""
    arrays = write_file(tmp_path / "p.npz", toy_hand(), rows=12)
    predictions = read_predictions(tmp_path / "p.npz")
    write_dexycb_text(predictions, tmp_path / "out.txt")
    true = 1e3 * arrays["true_joints"]
    true[1::2, :, 0] *= -1
    from_text = text_scores(tmp_path / "out.txt", arrays["official_index"], true)
    for key, measured in dexycb_from_predictions(predictions).items():
        assert abs(measured.mean - from_text[key].mean) < 1e-3 and abs(measured.auc - from_text[key].auc) < 1e-3


def test_without_root_the_wrist_is_the_origin_and_that_is_said(tmp_path):
    """No root: wrists at the origin, the caller is told, and no absolute number is given."""
    write_file(tmp_path / "p.npz", toy_hand(), rows=6, root=False)
    predictions = read_predictions(tmp_path / "p.npz")
    info = write_dexycb_text(predictions, tmp_path / "out.txt")
    assert not info.absolute and "only the root-relative and Procrustes numbers" in info.note
    assert np.abs(read_dexycb_text(tmp_path / "out.txt")[1][:, 0]).max() < 1e-3
    assert set(dexycb_from_predictions(predictions)) == {"root_relative", "procrustes"}


def test_mirror_is_accepted_by_the_official_alignment_alone():
    """A reflected prediction has Procrustes error 0 in the official numbers (golden: AUC 0.994949), not in the headline ones."""
    hands = golden_hands("mirror")
    got = dexycb_hpe(1e3 * hands["pred_xyz"], 1e3 * hands["true_xyz"])["procrustes"]
    assert got.mean < 1e-4 and abs(got.auc - 0.994949494949) < 1e-9


def line(path: Path, text: str) -> str:
    """The one line that a result file of this text gets."""
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_dexycb_text(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_malformed_result_files_get_the_reason_and_the_line(golden, tmp_path):
    """Wrong count, empty line, text, nan, fraction, negative, twice, empty, missing image, absent, binary: each its line."""
    path = tmp_path / "r.txt"
    good = ",".join(["4"] + ["1.5"] * 63)
    other = ",".join(["5"] + ["1.5"] * 63)
    remedy = "each line is: image number, then 63 coordinates in mm, separated by commas"
    assert line(path, f"{good}\n4,1,2\n") == f"{path}, line 2: expected 64 numbers, found 3 numbers; {remedy}"
    assert line(path, f"{good}\n\n{other}\n") == f"{path}, line 2: expected 64 numbers, found an empty line; {remedy}"
    assert "line 1: expected numbers, found another text (could not convert string to float: 'x'" in line(path, good[:-3] + "x")
    assert "line 2: a number is nan, inf" in line(path, f"{good}\n{other[:-3]}nan\n")
    assert "line 2: expected 64 numbers, found 63 numbers: the file is cut" in line(path, f"{good}\n{other.rpartition(',')[0]}")
    assert "line 1: expected a whole image number from 0 up, found 4.5" in line(path, "4.5" + good[1:])
    assert "line 1: expected a whole image number from 0 up, found -4" in line(path, "-" + good)
    assert "lines 1 and 3: image 4 occurs twice; keep one line per image" in line(path, f"{good}\n{other}\n{good}\n")
    assert "the result file is empty" in line(path, "")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected text, found other bytes"):
        read_dexycb_text(path)
    with pytest.raises(InputError, match="none.txt: expected a file, found nothing; give the official result file"):
        read_dexycb_text(tmp_path / "none.txt")
    golden_text(path, "main", golden)
    path.write_text("\n".join(path.read_text().splitlines()[2:]) + "\n")
    missing = lines_of(read_dexycb_text(path)[0], golden["dexycb.valid_ids"])[1]
    assert missing.sum() == 2 and golden["dexycb.valid_ids"][missing.argmax()] == 7


def test_rows_without_official_number_are_not_written(tmp_path):
    """A frame outside the official order, or one predicted twice, is refused before a file appears."""
    for numbers, reason in (([3, -1], "s/001 has no number in the official order"), ([3, 3], "image 3 occurs twice")):
        write_file(tmp_path / "p.npz", toy_hand(), rows=2)
        predictions = read_predictions(tmp_path / "p.npz")
        predictions._columns["official_index"] = np.array(numbers)
        with pytest.raises(InputError, match=reason):
            write_dexycb_text(predictions, tmp_path / "out.txt")
        assert not (tmp_path / "out.txt").exists()


def test_protocol_line_names_what_matters(tmp_path):
    """Split, frames, people, hands, root, crop, alignment, and the hash of the frames; the same for what is comparable."""
    write_file(tmp_path / "p.npz", toy_hand(), rows=7, told=True)
    predictions = read_predictions(tmp_path / "p.npz")
    predictions.meta["dataset"] |= {"crop": "square, 1.3 x the joints' box, 64 px", "frames_hash": {"left out": "not short"}}
    assert protocol_line(predictions) == (
        "dex_ycb s1/test · 7 frames of 3 people · 4 right and 3 left hands (mirrored) · root: wrist joint · "
        "crop: square, 1.3 x the joints' box, 64 px · alignment: wrist joint, or Procrustes without reflection (PA) · "
        f"index {predictions.meta['index_hash']}")
