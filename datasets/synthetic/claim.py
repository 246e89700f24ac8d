"""What all writers of synthetic sets share: whose folder it is, work in processes, a full disk in one line.

`synthetic.json` in the root says what made the tree; a folder that holds anything and has no such file, or one of other options,
is never written to. Tasks are done here or in worker processes with the same result; each of them writes beside its place and
renames when whole, so that a run that was stopped goes on where it was.
"""
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from datasets.processes import in_processes
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.mano_file import HandArrays
from utils.strict import Strict

MARKER = "synthetic.json"
_NOT_CONTENT = {"out", "workers"}


def claim(root: Path, options: Strict, right: HandArrays, left: HandArrays | None, *, layout: str, version: int) -> None:
    """Make the folder ours, or refuse: it holds something else, or a synthetic set of other options.

    options: all of them but `out` and `workers` decide the bytes. layout: the real set's name, for the note. version: of what is
    drawn, raised when equal options would give other bytes. Raises InputError.
    """
    content = {"options": json.loads(options.model_dump_json(exclude=_NOT_CONTENT)), "hand_right": right.sha256,
               "hand_left": left.sha256 if left else None, "version": version}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: expected a folder or nothing, found a file; choose another synth.out")
    if not root.is_dir() or not any(root.iterdir()):
        write_json(root / MARKER, {
            "synthetic": True, "note": f"Rendered, not recorded: no real person's hand. Layout of {layout}.", "hands": right.name,
            "licence": "as this project", **content, "digest": digest})
        return
    if not (root / MARKER).is_file():
        raise InputError(f"{root}: holds files but no {MARKER}, so it is no synthetic set and nothing is written there; choose "
                         "another synth.out")
    found = read_json(root / MARKER, "remove the folder, or choose another synth.out")
    if not isinstance(found, dict) or found.get("digest") != digest:
        raise InputError(f"{root}: holds a synthetic set made otherwise ({_difference(found, content)}); remove it, or choose "
                         "another synth.out")


def _difference(found: object, content: dict) -> str:
    """The first thing in which a marker differs, in words."""
    before = found.get("options") if isinstance(found, dict) else None
    if isinstance(before, dict):
        for key, value in content["options"].items():
            if before.get(key) != value:
                return f"{key}: {before.get(key)} there, {value} now"
        return "another hand model or version of this program"
    return f"{MARKER} is damaged"


@contextlib.contextmanager
def disk_full(root: Path, done: Callable[[], str]) -> Iterator[None]:
    """A full disk inside the block becomes one line. done() -> "2 of 4 sequences"."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{root}: disk full after {done()}; make room and run the same command to go on") from error


def run_tasks(here: Callable[[Any], Any], there: Callable[[Any], Any], todo: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results of all tasks as they come: here(task) in this process where one is enough, else there(task) in processes.

    there: a module's own function or a functools.partial of one, all its arguments small enough to be sent. workers 0 = cores.
    Threads of torch and OpenCV, which tasks may set to one, are put back.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(todo))
    if workers <= 1:
        threads = torch.get_num_threads(), cv2.getNumThreads()
        try:
            yield from map(here, todo)
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])
        return
    results = in_processes(there, todo, workers)
    with one_thread_each():  # the processes start with the first result
        yield next(results)
    yield from results


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started here get linear algebra on one thread: as many threads as cores in each of them slow one another down."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
