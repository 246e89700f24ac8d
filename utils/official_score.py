"""`run.py score freihand|ho3d_v2|ho3d_v3`: a prediction's official numbers, from files alone (specs/datasets.md 2.3, 2.4).

Files are checked, then measured: shape, length and NaN always, units, axes and joint order (utils/official_checks.py) unless
unchecked. Vertices of prediction and labels are read in step and measured in threads, so that 1 GB of json needs a few hundred
MB. The official text comes first and exactly; what is ours stands apart.
Seed: the originals hold all lists in memory and need up to 80 minutes; their scores.html and pck_data.json are not written, the
curves are in scores.json.
"""
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from utils.errors import InputError
from utils.files import require_file, require_folder, sha256, write_json, write_text
from utils.official_checks import check_joints, check_labels, check_part, check_verts
from utils.official_files import LABELS, PREDICTION, EntryReader, open_lists
from utils.official_protocols import F_THRESHOLDS_M, JOINTS, PROTOCOLS, VERTS, Official, OfficialScores, Piece, Protocol

FORMAT, VERSION = "official-scores", 1
CHUNK, WAITING = 64, 16  # samples measured at a time, by one thread; chunks in memory
XYZ_FILE, VERTS_FILE = "evaluation_xyz.json", "evaluation_verts.json"
OTHER_LISTS = {
    32_560: "FreiHAND's training list", 130_240: "all of FreiHAND's training pictures", 66_034: "HO3D v2's training list",
    83_325: "HO3D v3's training list", **{known.count: f"{known.title}'s evaluation list" for known in PROTOCOLS.values()}}


class _Task(NamedTuple):
    """What is scored against what, and how many samples."""

    protocol: Protocol
    pred: Path
    xyz: Path
    verts: Path
    count: int
    unchecked: bool


def score(protocol: str, pred: Path, truth: Path, *, out: Path | None = None, count: int | None = None, unchecked: bool = False,
          split: str = "") -> str:
    """Scores a pred.json (or its zip) against a folder with the evaluation labels; the text to print.

    count: a partial file's number of samples, the first of the list; None = the whole list. unchecked: no plausibility checks,
    and a mesh that is not MANO's is scored as the official program does. out: a folder for scores.txt (the official text) and
    scores.json. split: of no use here, these protocols have one. Raises InputError, one line: wrong files or numbers.
    """
    task = _task(protocol, Path(pred), Path(truth), count, unchecked)
    if out is not None and Path(out).exists():
        require_folder(out, "--out is a folder for scores.txt and scores.json")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with ThreadPoolExecutor(min(threads, 4), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            hashes = [pool.submit(sha256, path) for path in (task.pred, task.xyz, task.verts)] if out is not None else []
            found, notes = _measure(task, pool)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)
    if out is not None:
        files = {name: {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.result()} for name, path, digest in
                 zip(("pred", "true_xyz", "true_verts"), (task.pred, task.xyz, task.verts), hashes)}
        write_text(Path(out) / "scores.txt", found.text)
        write_json(Path(out) / "scores.json", _summary(task, found, notes, files))
    return _text(task, found, notes)


def _task(name: str, pred: Path, truth: Path, count: int | None, unchecked: bool) -> _Task:
    protocol = PROTOCOLS[name]
    if count is not None and not 1 <= count <= protocol.count:
        raise InputError(f"--count {count}: expected 1 to {protocol.count:,}, the entries of {protocol.title}'s evaluation list")
    where = f"give the folder with {XYZ_FILE} and {VERTS_FILE}: {protocol.labels}"
    require_folder(truth, where)
    xyz, verts = (require_file(truth / file, where) for file in (XYZ_FILE, VERTS_FILE))
    require_file(pred, "give pred.json, or the zip that holds it (--pred)")
    return _Task(protocol, pred, xyz, verts, protocol.count if count is None else count, unchecked)


def _measure(task: _Task, pool: ThreadPoolExecutor) -> tuple[OfficialScores, list[str]]:
    """Reads and measures everything; the scores, and what must be said about them."""
    with open_lists(task.xyz, LABELS) as labels:
        true_xyz = labels.whole("joints", JOINTS)
        labels.finish()
    asked = task.count != task.protocol.count
    longer = asked and task.count < len(true_xyz) <= task.protocol.count  # labels of more than the predicted part
    every = true_xyz
    true_xyz = true_xyz[: task.count] if longer else _of_length(true_xyz, task, labels.path, task.protocol.labels)
    alone = task.protocol.name == "freihand"  # its program takes a single json of another name, HO3D's does not
    with open_lists(task.pred, PREDICTION, alone) as reader, open_lists(task.verts, LABELS) as labels:
        pred_xyz = _of_length(reader.whole("joints", JOINTS), task, reader.path, "")
        if not task.unchecked:
            check_labels(every, task.protocol, task.xyz)
            check_part(pred_xyz, every, task.protocol, task.pred)
        said = [] if task.unchecked else check_joints(pred_xyz, true_xyz, task.protocol, task.pred)
        official, waiting, foreign = Official(task.protocol), deque[Future[Piece]](), False
        for start, pred_verts, true_verts in _in_step(task, reader, labels, longer):
            rows = slice(start, start + len(pred_verts))
            foreign = pred_verts.shape[1] != VERTS
            if not task.unchecked and start == 0:
                said += check_verts(pred_verts, pred_xyz[rows], true_verts, task.protocol, task.pred)
            waiting.append(pool.submit(official.measure, pred_xyz[rows], true_xyz[rows], pred_verts, true_verts))
            while len(waiting) > WAITING:
                official.join(waiting.popleft().result())
        for piece in waiting:
            official.join(piece.result())
    found = official.result()
    for name, value in found.values.items():
        if not np.isfinite(value):  # a length of 1e-160 to scale by, say; the official program prints nan
            raise InputError(f"{task.pred}: {name} is not finite: two predicted joints are next to each other; predict again")
    return found, _notes(task, reader.path, foreign) + said


def _of_length(xyz: Float[np.ndarray, "n 21 3"], task: _Task, path: str, published: str) -> Float[np.ndarray, "n 21 3"]:
    """The joints, if there are as many as are to be scored. published: where labels are, of labels."""
    if len(xyz) == task.count:
        return xyz
    known = f" (as many as {OTHER_LISTS[len(xyz)]})" if len(xyz) in OTHER_LISTS else ""
    asked = "" if task.count == task.protocol.count else " (--count)"
    if published:
        part = f"; a part is scored with --count {len(xyz)}" if not asked and 0 < len(xyz) < task.protocol.count else ""
        remedy = f"{'give those of the predicted samples or of the whole list: ' if asked else ''}{published}{part}"
    elif asked and 0 < len(xyz) <= task.protocol.count:
        remedy = "--count is the number of samples in the file"
    elif not asked and 0 < len(xyz) < task.protocol.count and not known:
        remedy = f"predict the whole evaluation list, in its order, or score a part with --count {len(xyz)}"
    else:
        remedy = "predict the evaluation list, in its order"
    raise InputError(f"{path}: expected {task.count:,} entries for {task.protocol.title}{asked}, found {len(xyz):,}{known}; "
                     f"{remedy}")


def _in_step(task: _Task, reader: EntryReader, labels: EntryReader, longer: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First sample, predicted (b,v,3) and true vertices (b,778,3) of each chunk; both lists must be as long as the joints'.

    longer: the labels go on after the samples to score, and are not read to their end.
    """
    pred = _Rows(reader.entries("vertices", None if task.unchecked else VERTS))
    true = _Rows(labels.entries("vertices", VERTS))
    for start in range(0, task.count, CHUNK):
        wanted = min(CHUNK, task.count - start)
        chunk = [rows.take(wanted) for rows in (pred, true)]
        for piece, path in zip(chunk, (reader.path, labels.path)):
            if len(piece) < wanted:
                raise _unequal(path, task.count, start + len(piece))
        yield start, *chunk
    for rows, lists in ((pred, reader),) if longer else ((pred, reader), (true, labels)):
        if more := rows.rest():
            raise _unequal(lists.path, task.count, task.count + more)
        lists.finish()


def _unequal(path: str, wanted: int, found: int) -> InputError:
    return InputError(f"{path}: expected {wanted:,} entries of vertices, as many as of joints, found {found:,}; both lists must "
                      "have one entry per sample")


class _Rows:
    """Rows of consecutive arrays, taken in other numbers than they come."""

    def __init__(self, arrays: Iterator[np.ndarray]):
        self._arrays, self._held, self._at = arrays, None, 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows, fewer at the end."""
        parts: list[np.ndarray] = []
        while count and self._more():
            part = self._held[self._at : self._at + count]
            self._at, count = self._at + len(part), count - len(part)
            parts.append(part)
        return np.concatenate(parts) if parts else np.empty((0, 0, 3))

    def rest(self) -> int:
        """How many rows are left; none are afterwards."""
        left = 0
        while self._more():
            left, self._at = left + len(self._held) - self._at, len(self._held)
        return left

    def _more(self) -> bool:
        while self._held is None or self._at >= len(self._held):
            self._held, self._at = next(self._arrays, None), 0
            if self._held is None:
                return False
        return True


def _notes(task: _Task, path: str, foreign: bool) -> list[str]:
    """What a reader of the scores must know."""
    whole = task.count == task.protocol.count
    official = f"{task.protocol.title}'s {task.protocol.count:,} samples"
    notes = [f"whole: all of {official}" if whole else f"partial: {task.count:,} of {official}, the first; no official result"]
    if task.unchecked:
        notes.append("unchecked: units, axes, joint order and place were not checked (--unchecked)")
    if foreign:
        notes.append(f"not MANO's {VERTS} vertices: mesh lines are the official program's sign of failure, and its aligned "
                     "F-scores of such meshes are wrong by a scale")
    if path != str(task.pred) and not path.endswith("(pred.json)"):
        notes.append(f"no pred.json in the zip: took its only other json, as the official program does: {path}")
    return notes


def _text(task: _Task, found: OfficialScores, notes: list[str]) -> str:
    """The official text, and clearly apart what is ours."""
    ours = "".join(f"  {key}: {value:f}\n" for key, value in found.ours.items())
    return (f"{found.text}\nours, not the official program's (Procrustes with proper rotations; the official one accepts "
            f"reflections):\n{ours}\n{task.protocol.title}, means in cm\n" + "\n".join(notes))


def _summary(task: _Task, found: OfficialScores, notes: list[str], files: dict[str, Any]) -> dict[str, Any]:
    """The content of scores.json."""
    sets = {key: {"mean_m": value.mean, "median_m": value.median, "auc": value.auc, "pck": value.pck.tolist()}
            for key, value in found.measures.items()}
    thresholds = next(iter(found.measures.values())).thresholds.tolist()
    return {
        "format": FORMAT, "version": VERSION, "protocol": task.protocol.name, "n": found.n,
        "official_count": task.protocol.count, "partial": found.n != task.protocol.count, "unchecked": task.unchecked,
        "notes": notes, "scores": found.values, "units": "means in cm, auc and f_score as shares", "measures": sets,
        "thresholds_m": thresholds, "f_thresholds_m": list(F_THRESHOLDS_M.values()), "ours": found.ours, "files": files,
    }
