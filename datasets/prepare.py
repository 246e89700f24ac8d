"""`prepare` of any dataset: its pictures once -> crops in lmdb, labels in a columnar index, counts of what was left out.

A dataset says what there is to do (a Job) and how one piece of it is cut; here is what they share. Processes cut one task each
into a shard; then the shards are joined in order and removed as they go, so the disk holds the crops once. A shard is finished
when its .npz exists, a joined one is a committed lmdb transaction, and meta.json comes last: after a kill at any point the same
command goes on from there. Shards know their task's files (fingerprint) and the folder knows its plan: neither is mixed with
another. Splits and subsets are chosen when reading; nothing here depends on them.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from datasets.cache import ColumnWriter, Crops, CropWriter
from datasets.processes import in_processes
from utils.errors import InputError
from utils.files import atomic_path, read_json, write_json

log = logging.getLogger(__name__)
Columns = Mapping[str, tuple[type | str, tuple[int, ...]]]  # name -> dtype and shape of one row
EXAMPLES = 3  # broken files named per task and reason
STORED = ("factor", "pixels", "quality")  # keys of a plan that are options of dataset.stored


class Task(Protocol):
    """One piece of the work: `shard` is where it goes (`<shard>.<stream>` per stream, then `<shard>.npz`), `name` what messages
    call it: a path within the tree."""

    name: str
    shard: Path
    fingerprint: str


@dataclass(frozen=True)
class Job:
    """A tree to prepare. Pictures are in the order of tasks, and of rows in a task.

    cut(task) writes the shard by `write_shard` and returns {"counts", "examples"}; a module's own function, light to import.
    streams: what is stored of a picture ("crops", "masks": one lmdb file each) · left_out: pictures that no task looks at, by
    reason · about: what counts.json says besides · meta: what meta.json says besides · check: called before any work, to refuse a
    hand model that the labels were not made with · finish(folder): writes further files, before meta.json.
    """

    title: str
    version: int
    root: Path
    plan: dict[str, Any]
    tasks: Sequence[Task]
    cut: Callable[[Any], dict]
    columns: Columns
    fingerprint: str
    streams: tuple[str, ...] = ("crops",)
    unit: str = "sequence"
    left_out: Mapping[str, int] = field(default_factory=Counter)
    about: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    hint: str = "see dataset.hands"
    check: Callable[[], None] | None = None
    finish: Callable[[Path], None] | None = None

    @property
    def format(self) -> str:
        return f"{self.title}-prepared"


def shard_of(folder: str | Path, name: str) -> Path:
    """Where a task's shard lies."""
    return Path(folder) / "shards" / name


def fingerprint(*parts: object) -> str:
    """Hex digest of numbers, texts, bytes and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def prepare(job: Job, folder: str | Path, workers: int) -> dict:
    """Do the job into `folder`; returns the counts, also written to counts.json.

    Raises InputError: wrong input (what was finished so far is kept), another plan's folder, a killed worker, a full disk.
    """
    started, workers, folder = time.monotonic(), workers or os.cpu_count() or 1, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _require_ours(folder, job.root)
    with _locked(folder):
        for left in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):  # of a killed run
            left.unlink()
        if (folder / "meta.json").exists():
            return _finished(folder, job)
        _claim(folder, job.plan)
        with _full_disk(folder):
            if job.check is not None:
                job.check()
            fresh = _cut_all(job, [t for t in job.tasks if not _is_finished(t, job)], workers)
            counts, examples = _count(job)
            if not counts["kept"]:
                raise InputError(f"{job.root}: no frame is left of {sum(counts.values())}: {_reasons(counts)}; {job.hint}, and "
                                 f"remove {folder} before you prepare again")
            _join(folder, job)
            summary = {"root": str(job.root), "frames": sum(counts.values()), "kept": counts.pop("kept"),
                       "excluded": dict(sorted(counts.items())), "examples": examples, **job.about, "workers": workers,
                       "seconds": round(time.monotonic() - started, 2), "frames_now": fresh}
            if job.finish is not None:
                job.finish(folder)
            write_json(folder / "counts.json", summary)
            write_json(folder / "meta.json", {"format": job.format, "version": job.version, "plan": job.plan,
                                              "rows": summary["kept"], "streams": list(job.streams), **job.meta,
                                              "fingerprint": job.fingerprint})
            shutil.rmtree(folder / "shards")
    return summary


def write_shard(path: Path, columns: Columns, rows: list[dict], streams: Mapping[str, list[bytes]], fingerprint: str,
                counts: Counter, examples: Mapping[str, list[str]]) -> dict:
    """The streams end to end in one file each, then the labels: a shard whose .npz exists is finished. Returns cut's answer."""
    table = {name: np.array([row[name] for row in rows], dtype).reshape(len(rows), *shape)
             for name, (dtype, shape) in columns.items()}
    for stream, values in streams.items():
        with atomic_path(path.with_suffix(f".{stream}")) as temporary, open(temporary, "wb") as file:
            file.writelines(values)
    lengths = {f"{stream}_lengths": np.array([len(v) for v in values], np.int64) for stream, values in streams.items()}
    with atomic_path(path.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, **lengths, fingerprint=np.array(fingerprint),
                 reasons=np.array(list(counts), dtype=str), counts=np.array(list(counts.values()), np.int64),
                 examples=np.array([line for lines in examples.values() for line in lines], dtype=str),
                 example_reasons=np.array([reason for reason, lines in examples.items() for _ in lines], dtype=str), **table)
    return {"counts": dict(counts), "examples": dict(examples)}


def read_meta(folder: Path, title: str, version: int) -> dict[str, Any]:
    """meta.json of a prepared folder, or InputError."""
    meta = read_json(folder / "meta.json", "run `run.py prepare <option file>` first, or set dataset.prepared")
    if not isinstance(meta, dict) or meta.get("format") != f"{title}-prepared" or meta.get("version") != version:
        raise InputError(f"{folder}/meta.json: expected {title}-prepared, version {version}; remove the folder and prepare again")
    return meta


def same_plan(folder: Path, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """InputError naming the first option in which a prepared folder's plan differs from the one asked for."""
    for key, wanted in json.loads(json.dumps(plan)).items():
        if stored.get(key) != wanted and key != "unreadable":
            option = f"stored.{key}" if key in STORED else key
            found = f"with dataset.{option}={stored[key]}" if key in stored else f"without dataset.{option}"
            raise InputError(f"{folder}: prepared {found}, the options say {wanted}; "
                             "name another folder by dataset.prepared and prepare again, or set the option back")


def _require_ours(folder: Path, root: Path) -> None:
    """Refuse a folder that holds something else, the dataset above all: nothing there is ours to write or delete."""
    found = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".part"}
    if folder.resolve() == Path(root).resolve() or (found and not found & {"plan.json", "meta.json"}):
        raise InputError(f"dataset.prepared={folder}: expected a new folder or one that prepare made, found other files "
                         f"({', '.join(sorted(found)[:3])}); name another")


def _finished(folder: Path, job: Job) -> dict:
    """The counts of a folder that is already whole; InputError if it holds something else."""
    meta = read_json(folder / "meta.json", f"remove {folder} and prepare again")
    if not isinstance(meta, dict) or meta.get("format") != job.format or meta.get("version") != job.version:
        raise InputError(f"{folder}/meta.json: expected version {job.version} of a prepared folder's, found something else; "
                         f"remove {folder} and prepare again")
    same_plan(folder, meta["plan"], job.plan)
    if meta["fingerprint"] != job.fingerprint:
        raise InputError(f"{folder}: prepared from another tree than {job.root} is now; "
                         "remove the folder, or name another by dataset.prepared")
    if len(Crops(folder / "crops.lmdb")) != meta["rows"]:
        raise InputError(f"{folder}/crops.lmdb: expected {meta['rows']} crops, found another number; "
                         "remove the folder and prepare again")
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return {**read_json(folder / "counts.json", f"remove {folder} and prepare again"), "frames_now": 0}


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Mark an unfinished folder as this plan's, or refuse another plan's."""
    path = folder / "plan.json"
    if path.exists():
        same_plan(folder, read_json(path, f"remove {folder} and prepare again"), plan)
    else:
        write_json(path, plan)


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


def _is_finished(task: Task, job: Job) -> bool:
    """Whether a shard of exactly this task's files exists."""
    path = task.shard.with_suffix(".npz")
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as shard:
        if str(shard["fingerprint"]) == task.fingerprint:
            return True
    raise InputError(f"{job.root / task.name}: changed since this preparation began; "
                     f"remove {path.parent.parent} and prepare again")


def _cut_all(job: Job, tasks: list[Task], workers: int) -> int:
    """Cut the tasks, several processes at once; returns the number of pictures looked at. On failure running ones finish."""
    frames = 0
    with tqdm(total=len(job.tasks), initial=len(job.tasks) - len(tasks), desc="prepare", unit=job.unit, disable=None) as bar:
        for result in in_processes(job.cut, tasks, workers):
            frames += sum(result["counts"].values())
            bar.update()
            bar.set_postfix(frames=frames)
    return frames


def _count(job: Job) -> tuple[Counter, dict[str, list[str]]]:
    """Pictures by fate over the whole tree, and a few names of broken ones."""
    counts, examples = Counter(kept=0) + Counter(job.left_out), {}
    counts["kept"] += 0
    for task in job.tasks:
        with np.load(task.shard.with_suffix(".npz"), allow_pickle=False) as shard:
            counts.update(dict(zip(shard["reasons"].tolist(), shard["counts"].tolist())))
            for reason, line in zip(shard["example_reasons"].tolist(), shard["examples"].tolist()):
                if len(examples.setdefault(reason, [])) < 10:
                    examples[reason].append(line)
    return counts, examples


def _join(folder: Path, job: Job) -> None:
    """Shards in order -> <stream>.lmdb and index/. A shard's crops go once committed, its labels once meta.json is there."""
    for stream in job.streams:
        _join_stream(folder, stream, [task.shard for task in job.tasks])
    rows = 0
    for task in job.tasks:
        with np.load(task.shard.with_suffix(".npz"), allow_pickle=False) as shard:
            rows += len(shard[next(iter(job.columns))])
    with ColumnWriter(folder / "index", rows, job.columns) as columns:
        for task in job.tasks:
            with np.load(task.shard.with_suffix(".npz"), allow_pickle=False) as shard:
                columns.append({name: shard[name] for name in job.columns})


def _join_stream(folder: Path, stream: str, shards: list[Path]) -> None:
    lengths = []
    for path in shards:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as shard:
            lengths.append(shard[f"{stream}_lengths"])
    ends = np.cumsum([len(x) for x in lengths])
    with CropWriter(folder / f"{stream}.lmdb") as writer:
        for path, length, end in tqdm(list(zip(shards, lengths, ends)), desc=f"join {stream}", unit="part", disable=None):
            if end > writer.rows:
                data = path.with_suffix(f".{stream}").read_bytes()
                if len(data) != length.sum() or writer.rows != end - len(length):
                    raise InputError(f"{path}.{stream}: not what prepare wrote; remove {folder} and prepare again")
                cuts = np.cumsum(length)
                writer.append(data[b - n:b] for n, b in zip(length.tolist(), cuts.tolist()))
            path.with_suffix(f".{stream}").unlink(missing_ok=True)


def _reasons(counts: Counter) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common() if n) or "the tree has no frames"
