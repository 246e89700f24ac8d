"""`run.py score dex_ycb`: a result file's official numbers against the dataset's own labels (specs/datasets.md 2.2).

3D (.txt): lines of image number and 63 coordinates in mm: absolute, root-relative and Procrustes errors over every hand of the
split, both sides. 2D (.json): COCO's keypoint numbers, see datasets/dex_ycb_coco.py. Labels are read from the tree every time.
Beside the official numbers: Procrustes with proper rotations, labelled as ours.
"""
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets import dex_ycb_coco as coco
from datasets.dex_ycb import SERIALS
from datasets.dex_ycb_truth import OFFICIAL, Images, images_of, open_tree, read_2d, read_joints, split_name
from utils import metrics, plausible
from utils.errors import InputError
from utils.files import require_file, require_folder, sha256, write_json, write_text
from utils.metrics import Measures
from utils.official_checks import ANYWAY, FEWEST, check_joints
from utils.plausible import Case, centred, error
from utils.protocols import HIGH_MM, LOW_MM, dexycb_hpe, lines_of, read_dexycb_text

FORMAT, VERSION = "official-scores", 1
PROBES = 100  # images that are looked at in another split
NO_PLACE = "wrists (or another root) lie at the origin: the absolute numbers are meaningless"


class Asked(NamedTuple):
    """What DexYCB's files hold, for the plausibility checks."""

    title: str = "DexYCB"
    order: str = "T21"
    frame: str = "opencv"


def score(protocol: str, pred: Path, truth: Path, *, out: Path | None = None, count: int | None = None, unchecked: bool = False,
          split: str = "s0/test") -> str:
    """Scores a result file (.txt: 3D, .json: 2D) against the tree `truth`; the text to print.

    count: score only the images with a hand that the file has, exactly so many; None = every one of the split. unchecked: no
    plausibility checks. out: a folder for scores.txt and scores.json. Raises InputError, one line.
    """
    name, pred = split_name(split), require_file(pred, "give DexYCB's result file as --pred: .txt (3D) or .json (2D, COCO)")
    if count is not None and count < 1:
        raise InputError(f"--count {count}: expected the number of images with a hand that {pred.name} has, from 1 up")
    if out is not None and Path(out).exists():
        require_folder(out, "--out is a folder for scores.txt and scores.json")
    if pred.suffix not in (".txt", ".json"):
        raise InputError(f"{pred}: expected DexYCB's result file, .txt (3D) or .json (2D, COCO), found the ending "
                         f"{pred.suffix!r}; rename it")
    score_one = _score_2d if pred.suffix == ".json" else _score_3d
    summary, text = score_one(pred, Path(truth), name, count, unchecked)
    if unchecked:
        summary["notes"].append("unchecked: units, axes, joint order and place were not checked (--unchecked)")
    if out is not None:
        files = {"pred": {"name": pred.name, "bytes": pred.stat().st_size, "sha256": sha256(pred)}}
        head = {"format": FORMAT, "version": VERSION, "protocol": protocol, "split": name, "partial": count is not None,
                "unchecked": unchecked, "files": files}
        write_json(Path(out) / "scores.json", {**head, **summary})
        write_text(Path(out) / "scores.txt", text)
    return f"{text}\nDexYCB {name}; " + "; ".join(summary["notes"])


def _score_3d(pred: Path, truth: Path, name: str, count: int | None, unchecked: bool) -> tuple[dict[str, Any], str]:
    numbers, joints = read_dexycb_text(pred)
    images = images_of(open_tree(truth, SERIALS), name)
    rows, true = _hands(images, images.rows(numbers) if count is not None else np.arange(len(images.number)))
    chosen, notes = _chosen(pred, images, numbers, rows, count)
    joints, true_mm = joints[chosen], (true * np.float32(1000)).astype(np.float64)
    if not unchecked:
        notes += _check(pred, images, images.number[rows], images.sides(rows), joints, true_mm)
    if plausible.root_at_origin(Case(joints / 1000, true_mm / 1000, "opencv", "mm", "T21")) is not None:
        notes.append(NO_PLACE)
    found = dexycb_hpe(joints, true_mm)
    proper = metrics.distances(metrics.procrustes(joints, true_mm, reflections=False), true_mm)
    ours = metrics.measures(proper, LOW_MM, HIGH_MM)
    summary = {"n": len(rows), "images": images.total, "notes": notes, "scores": _named(found),
               "units": "means in mm, auc as shares",
               "measures": {key: {"mean_mm": m.mean, "median_mm": m.median, "auc": m.auc, "pck": m.pck.tolist()}
                            for key, m in found.items()},
               "thresholds_mm": ours.thresholds.tolist(), "ours": _named({"procrustes_proper": ours})}
    return summary, _text(found, ours, NO_PLACE in notes)


def _hands(images: Images, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with a hand and its joints (m,21,3), metres, float32."""
    joints = read_joints(images, rows)
    valid = (joints != -1).any((1, 2))
    return rows[valid], joints[valid]


def _chosen(path: Path, images: Images, numbers: np.ndarray, rows: np.ndarray, count: int | None) -> tuple[np.ndarray, list[str]]:
    """Lines of the file that belong to `rows`, all images with a hand; and what must be said of the file."""
    wanted = images.number[rows]
    place, missing = lines_of(numbers, wanted)
    beyond = int((numbers >= images.total).sum())
    past = f"{beyond:,} of its {len(numbers):,} lines are beyond the {images.total:,} images of {images.name}"
    if count is not None and len(rows) != count:
        raise InputError(f"{path}: expected {count:,} images with a hand (--count), found {len(rows):,} among its "
                         f"{len(numbers):,} lines{f'; {past}' if beyond else ''}; give --count {len(rows)}, or the "
                         f"result of {images.name}")
    if missing.any():
        cause = f"{past}: is it the result of another split (--split)?" if beyond else (
            "is it the result of the same split, both hands? a part is scored with --count "
            f"{len(rows) - int(missing.sum())}")
        raise InputError(f"{path}: {int(missing.sum()):,} of the {len(rows):,} images with a hand in {images.name} are missing "
                         f"(first: image {wanted[int(np.argmax(missing))]}); {cause}")
    if not len(rows):
        raise InputError(f"{images.tree.root}: {images.name} has no image with a hand; is it the right tree?")
    notes = [f"whole: all {len(rows):,} images with a hand of {images.total:,}" if count is None else
             f"partial: {len(rows):,} images with a hand (--count), no official result"]
    if beyond:
        notes.append(f"{past}, and ignored as officially")
    return place, notes


def _check(path: Path, images: Images, numbers: np.ndarray, sides: np.ndarray, pred_mm: np.ndarray,
           true_mm: np.ndarray) -> list[str]:
    """Refuses joints of another split, what utils.official_checks refuses, and left hands alone that were never mirrored back.

    Returns what must be said of the file."""
    pred, true = pred_mm / 1000, true_mm / 1000
    chance = np.random.default_rng(0).permutation(len(pred))
    strange = len(pred) >= 10 and error(centred(pred), centred(true)) > 0.75 * error(centred(pred), centred(true)[chance])
    other = _other_split(images, numbers, pred) if strange else None
    if other:
        raise InputError(f"{path}: these are the hands of {other}, not of {images.name}: give --split {other} ({ANYWAY})")
    said = check_joints(pred, true, Asked(), path, unit="mm", absolute=False)
    left = sides == 1
    if not said and FEWEST <= left.sum() < len(left):
        fault, rights = (plausible.mirrored(Case(pred[side], true[side], "opencv", "mm", "T21")) for side in (left, ~left))
        if fault is not None and rights is None:
            raise InputError(f"{path}: the left hands are {fault.found} ({ANYWAY})")
    return said


def _other_split(images: Images, numbers: np.ndarray, pred: np.ndarray) -> str | None:
    """The official split whose hands the file has under the same numbers, if it is plainly another one."""
    here = plausible.rows_of(len(numbers), PROBES)
    for name in OFFICIAL:
        try:
            other = images_of(images.tree, name)
            there, mine, rows = np.intersect1d(numbers[here], other.number, return_indices=True)
            rows, true = _hands(other, rows)
        except InputError:  # the tree has nothing of it, or not the labels
            continue
        same = here[mine[np.isin(there, other.number[rows])]]
        if name != images.name and len(rows) >= 10 and error(centred(pred[same]), centred(true)) < 0.35 * plausible.size(true):
            return name
    return None


def _named(found: dict[str, Measures]) -> dict[str, float]:
    return {f"{key}_{kind}": value for key, m in found.items() for kind, value in (("mean_mm", m.mean), ("auc", m.auc))}


def _text(found: dict[str, Measures], ours: Measures, no_place: bool) -> str:
    """The official numbers, four decimals as the authors print them, and apart what is ours."""
    lines = [f"{'alignment':<18}{'mean (mm)':>12}{'AUC':>10}"]
    for key, m in found.items():
        mark = "  (meaningless: hands without a place)" if no_place and key == "absolute" else ""
        lines.append(f"{key:<18}{m.mean:>12.4f}{m.auc:>10.4f}{mark}")
    lines += ["", "ours, not the official program's (Procrustes with proper rotations; the official one accepts reflections):",
              f"{'procrustes_proper':<18}{ours.mean:>12.4f}{ours.auc:>10.4f}", ""]
    return "\n".join(lines)


def _score_2d(pred: Path, truth: Path, name: str, count: int | None, unchecked: bool) -> tuple[dict[str, Any], str]:
    found = coco.read_results(pred)
    images = images_of(open_tree(truth, SERIALS), name)
    if (beyond := found.image >= images.total).any():
        raise InputError(f"{pred}: {int(beyond.sum()):,} of its {len(found.image):,} hands are in images beyond the "
                         f"{images.total:,} of {name} (first: image {found.image[np.argmax(beyond)]}); is it the result "
                         "of another split (--split)?")
    true = read_2d(images, images.rows(found.image) if count is not None else np.arange(len(images.number)))
    number = images.number[true.row]
    if not len(number):
        raise InputError(f"{truth}: no image of {name} {'in the file ' if count else ''}has a hand in its segmentation; is it "
                         "the right tree?")
    if count is not None and len(number) != count:
        raise InputError(f"{pred}: expected {count:,} images with a hand (--count), found {len(number):,}; give --count "
                         f"{len(number)}, or the result of {name}")
    if not unchecked:
        coco.check(pred, found, true, number)
    scores, text = coco.evaluate(found, true, number, np.unique(found.image) if count is not None else np.arange(images.total))
    notes = [f"whole: {len(number):,} hands in {images.total:,} images" if count is None else
             f"partial: {len(number):,} hands (--count), no official result"]
    if found.others:
        notes.append(f"{found.others:,} entries of other categories were left out")
    if missing := int((~np.isin(number, found.image)).sum()):
        notes.append(f"{missing:,} of the hands' images have no entry in the file")
    notes.append("COCO keypoints of category 22, OKS sigma 0.05")
    return {"n": len(number), "images": images.total, "notes": notes, "scores": scores,
            "units": "shares; -1 = no hand of that size"}, text
