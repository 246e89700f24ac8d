"""A predictions file as FreiHAND's or HO3D's official evaluation reads it (specs/datasets.md 2.3, 2.4): its order, joints, frame.

Samples come by official_index, ascending, in chunks, so that memory does not grow with their number: a mapped column is read in
ascending rows of the file whatever the order of samples, and its pages are given back after every chunk. Points are metres,
absolute in the camera: the predicted wrist is added to the wrist-relative prediction, or the true one (HO3D's evaluation set
gives it, and many papers add it). FreiHAND: T21, OpenCV axes. HO3D: H21, OpenGL axes, which are the others times (1, -1, -1).
Rows that were mirrored on the way in are mirrored back. Predicted numbers are float32 that stay what they are as text: each is
given as the double nearest to a short decimal, so that `test` scores the very numbers that `export` writes.
Seed: the original wrote no official result file.
"""
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from utils.errors import InputError
from utils.joints import reorder
from utils.official_protocols import PROTOCOLS, Official, Piece
from utils.predictions import Predictions

CHUNK = 256
SCATTERED = 16  # rows at a time that lie apart in the file: each of them maps its neighbourhood, up to 2 MB
PARTS = ("xyz", "verts")
COLUMN = {"xyz": "joints", "verts": "verts"}  # of each part, after pred_ or true_
DECIMALS = range(6, 16)
PLACE = ("place the hands in the camera first (run.py refine), use a method that predicts the wrist (method.root_head), or take "
         "--root true where the dataset gives the true wrist")

Root = Literal["pred", "true"] | None
Chunk = dict[str, np.ndarray]
Each = Callable[[Callable[[np.ndarray], Piece | None], list[np.ndarray]], Iterable[Piece | None]]  # as `map`, or in threads


def official_of(predictions: Predictions) -> str | None:
    """The official evaluation whose samples these are: a name of PROTOCOLS, dex_ycb, or None (a training split, say)."""
    if "official_index" not in predictions:
        return None
    return (predictions.meta.get("dataset") or {}).get("official", "dex_ycb")  # once there was DexYCB alone, and no such word


def official_scores(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Of a scores.json: which official evaluation, and its numbers by name (none: empty)."""
    name = (summary.get("meta", {}).get("dataset") or {}).get("official", "dex_ycb")
    return str(name), summary.get("official") or {}


def official_chunks(predictions: Predictions, protocol: str, *, root: Root = "pred", with_truth: bool = False,
                    parts: tuple[str, ...] = PARTS) -> Iterator[Chunk]:
    """Up to CHUNK samples at a time: pred_xyz (b,21,3), pred_verts (b,778,3) and, asked for, true_xyz and true_verts; float64.

    root: whose wrist the prediction is put at; None leaves it at the origin. parts: which of PARTS. Labels that a row lacks are
    NaN. Raises InputError: a column is missing, or a predicted number is not finite.
    """
    predictions.require("official_index", *(f"pred_{COLUMN[part]}" for part in parts))
    if with_truth:
        predictions.require(*(f"true_{COLUMN[part]}" for part in parts))
    if root is not None and f"{root}_root" not in predictions:
        raise InputError(f"{predictions.path}: expected the wrist's position in the camera (column {root}_root), found none; "
                         f"{PLACE}")
    for rows in _chunks_of_rows(predictions):
        yield _chunk(predictions, protocol, rows, root, with_truth, parts)


def _chunks_of_rows(predictions: Predictions) -> list[np.ndarray]:
    """The file's rows in the official order, cut into chunks."""
    order = np.argsort(np.asarray(predictions["official_index"]), kind="stable")
    return [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]


def _chunk(predictions: Predictions, protocol: str, rows: np.ndarray, root: Root, with_truth: bool, parts: tuple[str, ...],
           ) -> Chunk:
    """These rows, in this order."""
    wrist = np.float32(0) if root is None else _rows(predictions, f"{root}_root", rows)[:, None]
    signs = np.where(_rows(predictions, "mirrored", rows)[:, None, None], np.float32([-1, 1, 1]), np.float32([1, 1, 1]))
    signs = signs * np.asarray(PROTOCOLS[protocol].axes, np.float32)
    chunk = {}
    for part in parts:
        points = _ordered(_rows(predictions, f"pred_{COLUMN[part]}", rows) + wrist, protocol, part) * signs
        finite = np.isfinite(points).all((1, 2))
        if not finite.all():
            _refuse_nan(predictions, rows[int(np.argmin(finite))], root)
        chunk[f"pred_{part}"] = short_decimals(points)
        if with_truth:
            true = _ordered(_rows(predictions, f"true_{COLUMN[part]}", rows), protocol, part)
            chunk[f"true_{part}"] = short_decimals(true * signs)  # as lists of float32 labels have them
    return chunk


def _ordered(points: np.ndarray, protocol: str, part: str) -> np.ndarray:
    return reorder(points, PROTOCOLS[protocol].order, "T21") if part == "xyz" else points


def _rows(predictions: Predictions, column: str, rows: np.ndarray) -> np.ndarray:
    """A copy of these rows, read in the file's order; the pages that were mapped for it are given back."""
    values = predictions[column]
    found = np.empty((len(rows), *values.shape[1:]), values.dtype)
    ascending = np.argsort(rows)
    together = rows[ascending[-1]] - rows[ascending[0]] < 2 * len(rows)
    for part in (ascending,) if together else np.split(ascending, range(SCATTERED, len(rows), SCATTERED)):
        found[part] = values[rows[part]]
        if isinstance(values.base, mmap.mmap):
            values.base.madvise(mmap.MADV_DONTNEED)
    return found


def _refuse_nan(predictions: Predictions, row: int, root: Root) -> None:
    name = predictions["name"][row]
    if root is not None and not np.isfinite(predictions[f"{root}_root"][row]).all():
        raise InputError(f"{predictions.path}: {name} has no {'true wrist' if root == 'true' else 'predicted wrist position'} "
                         f"({root}_root is not finite); {PLACE}")
    raise InputError(f"{predictions.path}: the prediction of {name} is not finite; predict again with another checkpoint")


def short_decimals(values: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Doubles whose shortest text is a short decimal that reads back as the same float32; error below half a float32 step.

    A value too small for DECIMALS stays as it is, with all its digits.
    """
    wanted = np.ascontiguousarray(values, np.float32).reshape(-1)
    found, left = wanted.astype(np.float64), np.arange(wanted.size)
    for digits in DECIMALS:
        tried = np.rint(found[left] * 10.0**digits) / 10.0**digits  # a quotient of whole numbers: the decimal's nearest double
        same = tried.astype(np.float32) == wanted[left]
        found[left[same]] = tried[same]
        left = left[~same]
    return found.reshape(values.shape)


def require_whole(predictions: Predictions) -> None:
    """InputError unless the official indices are 0 to n-1, each once; it names the first that is not."""
    predictions.require("official_index")
    numbers = np.sort(np.asarray(predictions["official_index"]))
    wrong = np.flatnonzero(numbers != np.arange(len(numbers)))
    if not len(wrong):
        return
    expected, found = int(wrong[0]), int(numbers[wrong[0]])
    if found < 0:
        name = predictions["name"][int(np.argmin(predictions["official_index"]))]
        raise InputError(f"{predictions.path}: {name} has no place in the official list; predict the evaluation split "
                         "(test.split)")
    if found < expected:
        raise InputError(f"{predictions.path}: official sample {found} occurs twice; predict each frame of the split once")
    raise InputError(f"{predictions.path}: official sample {expected} is missing (the next one there is {found}); predict the "
                     "whole evaluation split: no test.frames, no choice of sequences, no frame left out by prepare")


def official_values(predictions: Predictions, protocol: str, each: Each = map) -> dict[str, float] | None:
    """The values of scores.txt by their names, from the file's own rows that have labels, in the protocol's units (cm, shares).

    Where a row has no predicted wrist, those without alignment are left out: the others do not depend on the wrist. None where no
    row has labels. each: how the chunks are gone through.
    """
    if not {"pred_verts", "true_joints", "true_verts"} <= set(predictions.columns):
        return None
    placed = "pred_root" in predictions and bool(np.isfinite(predictions["pred_root"]).all())
    official = Official(PROTOCOLS[protocol])

    def measure(rows: np.ndarray) -> Piece | None:
        chunk = _chunk(predictions, protocol, rows, "pred" if placed else None, True, PARTS)
        labelled = np.isfinite(chunk["true_xyz"]).all((1, 2)) & np.isfinite(chunk["true_verts"]).all((1, 2))
        if not labelled.any():
            return None
        return official.measure(*(chunk[key][labelled] for key in ("pred_xyz", "true_xyz", "pred_verts", "true_verts")))

    pieces = [piece for piece in each(measure, _chunks_of_rows(predictions)) if piece is not None]
    for piece in pieces:
        official.join(piece)
    values = official.result().values if pieces else {}
    return {name: value for name, value in values.items() if placed or "_al_" in name} or None
