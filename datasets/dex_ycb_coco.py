"""DexYCB's 2D hand keypoints as COCO evaluates keypoints (specs/datasets.md 2.2), by pycocotools itself.

A result file is COCO's list of {image_id, category_id, keypoints, score}: image_id the image's number in the official order of
the split, category 22 the hand, 63 numbers x, y, v in pixels of the whole picture, T21 (v is not looked at). True hands are the
frames whose segmentation has a hand: keypoints joint_2d, all visible but those at -1, -1; box and area of the hand's pixels.
"""
import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.dex_ycb_truth import Labels2d
from utils.errors import InputError
from utils.files import read_json
from utils.plausible import Case, error
from utils.plausible_order import joint_order

CATEGORY, SIGMA = 22, 0.05
FARTHEST = 1e9  # px; also the largest score
STATS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
ENTRY = ('an entry is {"image_id": number in the split, "category_id": 22, "keypoints": [63 numbers: x, y, v of 21 joints], '
         '"score": number}')


class Detections(NamedTuple):
    """Hands found in pictures: image (n) official number, joints (n,21,2) px, score (n); others: entries of other categories."""

    image: np.ndarray
    joints: np.ndarray
    score: np.ndarray
    others: int


def read_results(path: Path) -> Detections:
    """The hands of a COCO result file. Raises InputError, a line with the number of the entry, counted from 0."""
    entries = read_json(path, f"give a COCO result list: {ENTRY}")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: expected a list of hands, found {_shown(entries)}; {ENTRY}")
    hands = [i for i, entry in enumerate(entries) if _category(path, i, entry) == CATEGORY]
    if not hands:
        raise InputError(f"{path}: expected hands (category_id {CATEGORY}), found {len(entries)} entries of other categories; "
                         f"{ENTRY}")
    table = np.empty((len(hands), 63))
    for row, i in enumerate(hands):
        table[row] = _keypoints(path, i, entries[i])
    image = np.array([entries[i]["image_id"] for i in hands], np.int64)
    score = np.array([entries[i]["score"] for i in hands], np.float64)
    return Detections(image, table.reshape(-1, 21, 3)[..., :2], score, len(entries) - len(hands))


def _category(path: Path, i: int, entry: object) -> int:
    """The category of an entry whose image, category and score are good."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}, entry {i}: expected an object, found {_shown(entry)}; {ENTRY}")
    for key in ("image_id", "category_id"):
        if type(entry.get(key)) is not int or not 0 <= entry[key] < 2**31:
            raise InputError(f"{path}, entry {i}: expected {key}, a whole number from 0 up, found {_shown(entry.get(key))}; "
                             f"{ENTRY}")
    if not _finite(entry.get("score")):
        raise InputError(f"{path}, entry {i}: expected score, a finite number, found {_shown(entry.get('score'))}; {ENTRY}")
    return entry["category_id"]


def _keypoints(path: Path, i: int, entry: dict) -> np.ndarray:
    values = entry.get("keypoints")
    if not isinstance(values, list) or len(values) != 63 or not all(map(_finite, values)):
        found = f"{len(values)} values" if isinstance(values, list) and len(values) != 63 else _shown(values)
        raise InputError(f"{path}, entry {i}: expected keypoints, 63 finite numbers, found {found}; {ENTRY}")
    return np.array(values, np.float64)


def _finite(value: object) -> bool:
    """Whether a json value is a number that may be meant: not NaN, not endless."""
    return type(value) in (int, float) and abs(value) <= FARTHEST


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."


def check(path: Path, found: Detections, true: Labels2d, number: np.ndarray) -> None:
    """Refuses the usual mistakes of 2D files: shares of the picture for pixels, u and v swapped, joints in another order.

    number (m): image of each true hand. Raises InputError, one line.
    """
    best = {found.image[i]: i for i in np.argsort(found.score, kind="stable")}
    seen = (true.joints != -1).all((1, 2))
    pairs = [(best[n], i) for i, n in enumerate(number) if n in best and seen[i]]
    if not pairs:
        return
    pred, joints = (points[[pair[k] for pair in pairs]] for k, points in enumerate((found.joints, true.joints)))
    zero = np.zeros((*pred.shape[:2], 1))
    case = Case(np.concatenate([pred, zero], 2), np.concatenate([joints, zero], 2), "opencv", "m", "T21")
    fault = None
    if 0 < np.abs(pred).max() <= 1.5 and np.abs(joints).max() > 20:
        fault = "coordinates between 0 and 1 (shares of the picture?): multiply them by its width and height"
    elif error(case.pred[..., [1, 0, 2]], case.true) < 0.4 * error(case.pred, case.true):
        fault = "u and v swapped (row and column?): write x to the right first, then y down"
    elif (order := joint_order(case)) is not None:
        fault = order.found
    if fault:
        raise InputError(f"{path}: DexYCB expects keypoints in pixels, x, y, v of each joint, in T21; found {fault} (--unchecked "
                         "scores the file as it is)")


def evaluate(found: Detections, true: Labels2d, number: np.ndarray, images: np.ndarray) -> tuple[dict[str, float], str]:
    """COCO's ten keypoint numbers (-1 where there is nothing of that size), and its text.

    number (m): image of each true hand. images: every image that counts; hands found elsewhere are left out.
    """
    annotations = [_annotation(i + 1, int(number[i]), true, i) for i in range(len(number))]
    coco = COCO()
    coco.dataset = {"images": [{"id": int(i)} for i in images], "annotations": annotations, "info": {},
                    "categories": [{"id": CATEGORY, "name": "hand"}]}
    ours = np.isin(found.image, images)
    flat = np.concatenate([found.joints, np.full((*found.joints.shape[:2], 1), 2.0)], 2).reshape(-1, 63)
    results = [{"image_id": int(found.image[i]), "category_id": CATEGORY, "keypoints": flat[i].tolist(), "score": found.score[i]}
               for i in np.flatnonzero(ours)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        coco.createIndex()
        scored = COCOeval(coco, coco.loadRes(results), "keypoints")
        scored.params.kpt_oks_sigmas = np.full(21, SIGMA)
        scored.params.imgIds = sorted({*number.tolist(), *found.image[ours].tolist()})  # the others have nothing to count
        scored.evaluate()
        scored.accumulate()
        said.seek(0)
        said.truncate()
        scored.summarize()
    return dict(zip(STATS, map(float, scored.stats))), said.getvalue()


def _annotation(number: int, image: int, true: Labels2d, i: int) -> dict:
    seen = (true.joints[i] != -1).any(1)
    keypoints = np.concatenate([true.joints[i], 2.0 * seen[:, None]], 1)
    return {"id": number, "image_id": image, "category_id": CATEGORY, "iscrowd": 0, "keypoints": keypoints.ravel().tolist(),
            "num_keypoints": int(seen.sum()), "bbox": true.box[i].tolist(), "area": float(true.area[i])}
