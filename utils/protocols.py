"""Official evaluations and their files, and the line that says by which protocol a number was made (specs/datasets.md 2).

DexYCB hand pose: absolute, root-relative and Procrustes-aligned (reflections allowed) joint errors, each as mean, AUC and PCK
over 0 to 50 mm, equal to the official script's to 1e-9. Its result file is text: one line per image of the split, the image's
number in the official order, then 21 x 3 coordinates in millimetres, camera frame, T21. Both hands count, each in its own
camera: rows that were mirrored on the way in are mirrored back here.
Seed: the original system wrote no official result file and never evaluated by this protocol.
"""
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from utils import metrics
from utils.errors import InputError
from utils.files import atomic_path, require_file
from utils.metrics import Measures
from utils.predictions import Predictions, index_hash

LOW_MM, HIGH_MM = 0.0, 50.0
FIELDS = 64
FARTHEST_MM = 1e12  # a larger number is a fault in any unit, and its square may overflow
REMEDY = "each line is: image number, then 63 coordinates in mm, separated by commas"
WRITE_ROWS = 4096


class OfficialText(NamedTuple):
    """What was written: how many lines, and whether the absolute numbers mean anything (the method predicts a root)."""

    path: Path
    lines: int
    absolute: bool
    note: str


def dexycb_hpe(pred_mm: Float[np.ndarray, "n 21 3"], true_mm: Float[np.ndarray, "n 21 3"]) -> dict[str, Measures]:
    """DexYCB's hand pose evaluation: `absolute`, `root_relative`, `procrustes`; millimetres."""
    errors = {
        "absolute": metrics.distances(pred_mm, true_mm),
        "root_relative": metrics.distances(pred_mm - pred_mm[:, :1], true_mm - true_mm[:, :1]),
        "procrustes": metrics.distances(metrics.procrustes(pred_mm, true_mm, reflections=True), true_mm),
    }
    return {key: metrics.measures(error, LOW_MM, HIGH_MM) for key, error in errors.items()}


def dexycb_from_predictions(predictions: Predictions) -> dict[str, Measures]:
    """The official numbers of a predictions file's own frames; `absolute` over those that have a root, if any."""
    predictions.require("true_joints", "pred_joints")
    true = np.asarray(predictions["true_joints"], np.float64)
    known = np.isfinite(true).all((1, 2))
    if not known.any():
        raise InputError(f"{predictions.path}: no row has true joints, so there is nothing to score")
    root, placed = _roots(predictions, slice(None))
    pred = np.asarray(predictions["pred_joints"], np.float64) + root[:, None]
    out = dexycb_hpe(1e3 * pred[known], 1e3 * true[known])
    if not (known & placed).any():
        del out["absolute"]
    elif not placed[known].all():
        both = known & placed
        out["absolute"] = metrics.measures(metrics.distances(1e3 * pred[both], 1e3 * true[both]), LOW_MM, HIGH_MM)
    return out


def _roots(predictions: Predictions, rows: slice) -> tuple[Float[np.ndarray, "n 3"], Bool[np.ndarray, "n"]]:
    """Wrist positions of the rows, zero where there is none, and which rows have one."""
    root = predictions.get("pred_root")
    count = len(predictions["name"][rows])
    if root is None:
        return np.zeros((count, 3)), np.zeros(count, bool)
    placed = np.isfinite(root[rows]).all(1)
    return np.where(placed[:, None], root[rows], 0.0).astype(np.float64), placed


def write_dexycb_text(predictions: Predictions, path: str | os.PathLike) -> OfficialText:
    """Write DexYCB's official result file: every row of the predictions, left hands mirrored back, 4 decimals.

    A row without a root is placed with its wrist at the origin: root-relative and aligned numbers are then right and the absolute
    ones meaningless, which the answer's `note` says. Raises InputError where the rows have no official image number.
    """
    path = Path(path)
    predictions.require("official_index")
    numbers = np.asarray(predictions["official_index"])
    if (numbers < 0).any():
        name = predictions["name"][int(np.argmax(numbers < 0))]
        raise InputError(f"{predictions.path}: {name} has no number in the official order of this split; write the official file "
                         "from predictions of an official split (s0 to s3)")
    repeated = np.flatnonzero(np.bincount(numbers) > 1)
    if len(repeated):
        raise InputError(f"{predictions.path}: image {repeated[0]} occurs twice; predict each frame of the split once")
    joints, without = predictions["pred_joints"], 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        for start in range(0, len(predictions), WRITE_ROWS):
            rows = slice(start, start + WRITE_ROWS)
            root, known = _roots(predictions, rows)
            without += int((~known).sum())
            placed = np.asarray(joints[rows], np.float64) + root[:, None]
            placed[np.asarray(predictions["mirrored"][rows]), :, 0] *= -1
            table = np.concatenate([numbers[rows, None].astype(np.float64), 1e3 * placed.reshape(len(placed), 63)], 1)
            np.savetxt(file, table, fmt=["%d"] + ["%.4f"] * 63, delimiter=",")
    whole = without == len(predictions)
    note = "the method predicts no wrist position" if whole else f"{without} of {len(predictions)} frames have no wrist position"
    note += (": wrists lie at the origin there, so only the root-relative and Procrustes numbers of the official script mean "
             "anything")
    return OfficialText(path, len(predictions), not without, note if without else "")


def read_dexycb_text(path: str | os.PathLike) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n 21 3"]]:
    """Image numbers and joints (mm) of an official result file.

    Raises InputError with the line's number: wrong count of fields, not a number, not finite, no whole image number, an image
    twice, an empty line or file.
    """
    path = require_file(path, "give the official result file (.txt)")
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text, found other bytes ({error.reason} at byte {error.start}); {REMEDY}") from error
    cut = lines[-1] != ""
    if not cut:
        lines.pop()  # the newline that ends the last line
    if not lines:
        raise InputError(f"{path}: the result file is empty; {REMEDY}")
    table = np.empty((len(lines), FIELDS))
    for row, line in enumerate(lines):
        fields = line.split(",")
        if len(fields) != FIELDS:
            found = "an empty line" if not line.strip() else f"{len(fields)} numbers"
            found += ": the file is cut off there" if cut and row == len(lines) - 1 else ""
            raise InputError(f"{path}, line {row + 1}: expected {FIELDS} numbers, found {found}; {REMEDY}")
        try:
            table[row] = fields  # numpy parses the texts
        except ValueError as error:
            raise InputError(f"{path}, line {row + 1}: expected numbers, found another text ({error}); {REMEDY}") from error
    return _checked_numbers(path, table), table[:, 1:].reshape(-1, 21, 3)


def _checked_numbers(path: Path, table: np.ndarray) -> np.ndarray:
    """The image numbers of a parsed table whose every value is finite and whose images are whole and distinct."""
    finite = (np.abs(table) <= FARTHEST_MM).all(1)
    if not finite.all():
        raise InputError(f"{path}, line {int(np.argmin(finite)) + 1}: a number is nan, inf or beyond {FARTHEST_MM:g}; predict "
                         "that image again")
    whole = (table[:, 0] >= 0) & (table[:, 0] == np.floor(table[:, 0])) & (table[:, 0] < 2**31)
    if not whole.all():
        row = int(np.argmin(whole))
        raise InputError(f"{path}, line {row + 1}: expected a whole image number from 0 up, found {table[row, 0]:g}; {REMEDY}")
    numbers = table[:, 0].astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    twice = np.flatnonzero(np.diff(numbers[order]) == 0)
    if len(twice):
        first, second = order[twice[0]] + 1, order[twice[0] + 1] + 1
        number = numbers[order[twice[0]]]
        raise InputError(f"{path}, lines {first} and {second}: image {number} occurs twice; keep one line per image")
    return numbers


def lines_of(numbers: Int[np.ndarray, "n"], wanted: Int[np.ndarray, "m"]) -> tuple[Int[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """For each wanted image its line among those that hold `numbers`, and whether it has none (the line then means nothing)."""
    order = np.argsort(numbers)
    place = order[np.minimum(np.searchsorted(numbers, wanted, sorter=order), len(numbers) - 1)]
    return place, numbers[place] != wanted


def protocol_line(predictions: Predictions, alignment: str = "wrist joint, or Procrustes without reflection (PA)") -> str:
    """By what protocol: split, frames, people, hands, root joint, crop, alignment, index hash; equal for comparable runs."""
    known: dict[str, Any] = dict(predictions.meta.get("dataset") or {})
    number, people = len(predictions), np.unique(predictions["subject"])
    of = f" of {len(people)} {'person' if len(people) == 1 else 'people'}" if people.any() else ", people not named"
    mirrored = int(np.asarray(predictions["mirrored"]).sum())
    sides = "right hands" if not mirrored else f"{number - mirrored} right and {mirrored} left hands (mirrored)"
    head = " ".join(str(known.pop(key)) for key in ("name", "dataset", "split") if known.get(key)) or "unnamed split"
    parts = [head, f"{number:,} frames{of}", sides]
    parts.append(f"root: {known.pop('root', known.pop('root_joint', 'wrist joint'))}")
    for key in ("hands", "official", "no_labels"):  # hands are of the whole split: the frames here are counted above
        known.pop(key, None)
    parts += [f"{key.replace('_', ' ')}: {known[key]}" for key in sorted(known) if _short(known[key])]
    parts.append(f"alignment: {alignment}")
    parts.append(f"index {predictions.meta.get('index_hash') or index_hash(predictions['name'].tolist())}")
    return " · ".join(parts)


def _short(value: Any) -> bool:
    """Whether a value of reader.protocol() fits on a line."""
    return isinstance(value, (str, int, float, bool)) and value != "" and len(str(value)) <= 80
