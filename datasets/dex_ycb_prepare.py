"""`prepare dex_ycb`: every person and camera once -> crops in lmdb, labels in a columnar index, counts of what was left out.

Setups and splits are chosen when reading; nothing here depends on them. Processes cut one sequence each into a shard of two
files; then the shards are joined in official order and removed as they go, so the disk holds the crops once. A shard is finished
when its .npz exists, a joined one is a committed lmdb transaction, and meta.json comes last: after a kill at any point the same
command goes on from there. Shards know their sequence's files (fingerprint) and the folder knows its plan: neither is mixed with
another.
"""
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.cache import ColumnWriter, Crops, CropWriter
from datasets.dex_ycb_frames import COLUMNS, Plan, Task, cut_sequence
from datasets.dex_ycb_tree import SIDES, Sequence, Tree, read_extrinsics, scan
from datasets.processes import in_processes
from utils.errors import InputError
from utils.files import atomic_path, read_json, write_json

log = logging.getLogger(__name__)
FORMAT, VERSION = "dex_ycb-prepared", 1
Check = Callable[[Tree, Plan], None]


def prepare_tree(root: str | Path, folder: str | Path, plan: Plan, workers: int, check: Check | None = None) -> dict:
    """Prepare the tree `root` into `folder`; returns the counts, also written to counts.json.

    check: called with the tree before any work, to refuse a hand model that the labels were not made with.
    Raises InputError: wrong input (the sequences finished so far are kept), another plan's folder, a killed worker, a full disk.
    """
    started, workers = time.monotonic(), workers or os.cpu_count() or 1
    tree, folder = scan(root, plan.serials, plan.width, plan.height), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _require_ours(folder, tree.root)
    with _locked(folder):
        for left in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):  # of a killed run
            left.unlink()
        if (folder / "meta.json").exists():
            return _finished(folder, tree, plan)
        _claim(folder, plan)
        if check is not None:
            check(tree, plan)
        cameras = read_extrinsics(tree)
        todo = [s for s in tree.sequences if s.num_frames and not _left_out(s, plan)]
        tasks = [Task(tree.root, s, tree.K, plan, _shard(folder, s)) for s in todo]
        with _full_disk(folder):
            fresh = _cut_all([t for t in tasks if not _is_finished(t)], len(tasks), workers)
            counts, examples = _count(tree, plan, [t.shard for t in tasks])
            if not counts["kept"]:
                raise InputError(f"{root}: no frame is left of {sum(counts.values())}: {_reasons(counts)}; see dataset.hands and "
                                 f"dataset.in_image, and remove {folder} before you prepare again")
            _join(folder, [t.shard for t in tasks])
            summary = {"root": str(root), "frames": sum(counts.values()), "kept": counts.pop("kept"),
                       "excluded": dict(sorted(counts.items())), "examples": examples, "people": [p for p in tree.people if p],
                       "sequences": len(tree.sequences), "cameras": len(tree.serials), "workers": workers,
                       "seconds": round(time.monotonic() - started, 2), "frames_now": fresh}
            with atomic_path(folder / "cameras.npz") as temporary, open(temporary, "wb") as file:
                np.savez(file, world_from_camera=cameras, K=tree.K)
            write_json(folder / "counts.json", summary)
            write_json(folder / "meta.json", _meta(tree, plan, summary["kept"]))
            shutil.rmtree(folder / "shards")
    return summary


def _require_ours(folder: Path, root: Path) -> None:
    """Refuse a folder that holds something else, the dataset above all: nothing there is ours to write or delete."""
    found = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".part"}
    if folder.resolve() == Path(root).resolve() or (found and not found & {"plan.json", "meta.json"}):
        raise InputError(f"dataset.prepared={folder}: expected a new folder or one that prepare made, found other files "
                         f"({', '.join(sorted(found)[:3])}); name another")


def _meta(tree: Tree, plan: Plan, rows: int) -> dict:
    """Everything about the rows that is not a column."""
    sequences: list[list[str]] = [[""] * tree.num_frames().shape[1] for _ in tree.people]
    sides = [[-1] * len(row) for row in sequences]
    for s in tree.sequences:
        sequences[s.subject][s.index], sides[s.subject][s.index] = s.folder.split("/")[1], s.side
    return {"format": FORMAT, "version": VERSION, "plan": asdict(plan), "rows": rows, "people": list(tree.people),
            "sequences": sequences, "sides": sides, "num_frames": tree.num_frames().tolist(), "serials": list(tree.serials),
            "fingerprint": _fingerprint(tree)}


def _fingerprint(tree: Tree) -> str:
    cameras = np.ascontiguousarray(tree.K).tobytes()
    return hashlib.sha256("".join(s.folder + s.fingerprint for s in tree.sequences).encode() + cameras).hexdigest()


def _finished(folder: Path, tree: Tree, plan: Plan) -> dict:
    """The counts of a folder that is already whole; InputError if it holds something else."""
    meta = read_json(folder / "meta.json", f"remove {folder} and prepare again")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise InputError(f"{folder}/meta.json: expected version {VERSION} of a prepared folder's, found something else; "
                         f"remove {folder} and prepare again")
    same_plan(folder, meta["plan"], plan)
    if meta["fingerprint"] != _fingerprint(tree):
        raise InputError(f"{folder}: prepared from another tree than {tree.root} is now; "
                         "remove the folder, or name another by dataset.prepared")
    if len(Crops(folder / "crops.lmdb")) != meta["rows"]:
        raise InputError(f"{folder}/crops.lmdb: expected {meta['rows']} crops, found another number; "
                         "remove the folder and prepare again")
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return {**read_json(folder / "counts.json", f"remove {folder} and prepare again"), "frames_now": 0}


def same_plan(folder: Path, stored: dict, plan: Plan) -> None:
    """InputError naming the first option in which a prepared folder's plan differs from the one asked for."""
    for key, wanted in json.loads(json.dumps(asdict(plan))).items():
        if stored.get(key) != wanted and key != "unreadable":
            option = f"stored.{key}" if key in ("factor", "pixels", "quality") else key
            raise InputError(f"{folder}: prepared with dataset.{option}={stored.get(key)}, the options say {wanted}; "
                             "name another folder by dataset.prepared and prepare again, or set the option back")


def _claim(folder: Path, plan: Plan) -> None:
    """Mark an unfinished folder as this plan's, or refuse another plan's."""
    path = folder / "plan.json"
    if path.exists():
        same_plan(folder, read_json(path, f"remove {folder} and prepare again"), plan)
    else:
        write_json(path, asdict(plan))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One prepare per folder; the lock goes with the process, however it ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another prepare is writing it; "
                             "wait for it, or name another folder by dataset.prepared") from error
        yield


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """A write that the system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        free = shutil.disk_usage(folder).free / 1e9
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror}; {free:.1f} GB free there); the "
                         "finished sequences are kept: make room and run the same command again") from error


def _left_out(s: Sequence, plan: Plan) -> bool:
    return plan.hands == "right" and SIDES[s.side] == "left"


def _shard(folder: Path, s: Sequence) -> Path:
    return folder / "shards" / f"{s.subject:02d}_{s.index:04d}"


def _is_finished(task: Task) -> bool:
    """Whether a shard of exactly this sequence's files exists."""
    path = task.shard.with_suffix(".npz")
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as shard:
        if str(shard["fingerprint"]) == task.sequence.fingerprint:
            return True
    raise InputError(f"{task.root / task.sequence.folder}: changed since this preparation began; "
                     f"remove {path.parent.parent} and prepare again")


def _cut_all(tasks: list[Task], total: int, workers: int) -> int:
    """Cut the sequences, several processes at once; returns the number of frames looked at. On failure running ones finish."""
    frames = 0
    with tqdm(total=total, initial=total - len(tasks), desc="prepare", unit="sequence", disable=None) as bar:
        for result in in_processes(cut_sequence, tasks, workers):
            frames += sum(result["counts"].values())
            bar.update()
            bar.set_postfix(frames=frames)
    return frames


def _count(tree: Tree, plan: Plan, shards: list[Path]) -> tuple[Counter, dict[str, list[str]]]:
    """Frames by fate over the whole tree, and a few names of broken ones."""
    counts, examples = Counter(kept=0), {}
    for s in tree.sequences:
        if _left_out(s, plan):
            counts["left hand"] += len(plan.frames(s.num_frames)) * len(s.cameras)
    for path in shards:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as shard:
            counts.update(dict(zip(shard["reasons"].tolist(), shard["counts"].tolist())))
            for reason, line in zip(shard["example_reasons"].tolist(), shard["examples"].tolist()):
                if len(examples.setdefault(reason, [])) < 10:
                    examples[reason].append(line)
    return counts, examples


def _join(folder: Path, shards: list[Path]) -> None:
    """Shards in order -> crops.lmdb and index/. A shard's crops go once committed, its labels once meta.json is there."""
    lengths = []
    for path in shards:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as shard:
            lengths.append(shard["lengths"])
    ends = np.cumsum([len(x) for x in lengths])
    with CropWriter(folder / "crops.lmdb") as writer:
        for path, length, end in tqdm(list(zip(shards, lengths, ends)), desc="join", unit="sequence", disable=None):
            if end > writer.rows:
                data = path.with_suffix(".crops").read_bytes()
                if len(data) != length.sum() or writer.rows != end - len(length):
                    raise InputError(f"{path}.crops: not what prepare wrote; remove {folder} and prepare again")
                cuts = np.cumsum(length)
                writer.append(data[b - n:b] for n, b in zip(length.tolist(), cuts.tolist()))
            path.with_suffix(".crops").unlink(missing_ok=True)
    with ColumnWriter(folder / "index", int(ends[-1]), COLUMNS) as columns:
        for path in shards:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as shard:
                columns.append({name: shard[name] for name in COLUMNS})


def _reasons(counts: Counter) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common() if n) or "the tree has no frames"


def summary_text(summary: dict, folder: str | Path) -> str:
    """What run.py prints at the end."""
    speed = summary["frames_now"] / max(summary["seconds"], 1e-9)
    lines = [f"{summary['kept']} of {summary['frames']} frames kept, of {len(summary['people'])} people, "
             f"{summary['sequences']} sequences, {summary['cameras']} cameras -> {folder}"]
    lines += [f"  left out: {n} {reason}" for reason, n in summary["excluded"].items() if n]
    lines += [f"    e.g. {line}" for several in summary["examples"].values() for line in several[:2]]
    lines.append(f"{speed:.0f} frames/s, {summary['seconds']:.0f} s, {summary['workers']} processes" if summary["frames_now"]
                 else "everything was there already")
    return "\n".join(lines)
