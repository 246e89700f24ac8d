"""`prepare dex_ycb`: the tree as a Job of datasets/prepare.py, one task per recording, every person and camera once.

Setups and splits are chosen when reading; nothing here depends on them.
"""
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets.dex_ycb_frames import COLUMNS, Plan, Task, cut_sequence
from datasets.dex_ycb_tree import SIDES, Sequence, Tree, read_extrinsics, scan
from datasets.prepare import Job, prepare, shard_of
from utils.files import atomic_path

TITLE, VERSION = "dex_ycb", 1
Check = Callable[[Tree, Plan], None]


def prepare_tree(root: str | Path, folder: str | Path, plan: Plan, workers: int, check: Check | None = None) -> dict:
    """Prepare the tree `root` into `folder`; returns the counts, also written to counts.json.

    check: called with the tree before any work, to refuse a hand model that the labels were not made with.
    Raises InputError: wrong input (the sequences finished so far are kept), another plan's folder, a killed worker, a full disk.
    """
    tree = scan(root, plan.serials, plan.width, plan.height)
    todo = [s for s in tree.sequences if s.num_frames and not _left_out(s, plan)]
    left_out = Counter({"left hand": sum(len(plan.frames(s.num_frames)) * len(s.cameras)
                                         for s in tree.sequences if _left_out(s, plan))})

    def finish(target: Path) -> None:
        with atomic_path(target / "cameras.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, world_from_camera=read_extrinsics(tree), K=tree.K)

    return prepare(Job(
        title=TITLE, version=VERSION, root=tree.root, plan=plan.stored(), cut=cut_sequence, columns=COLUMNS,
        streams=("crops", "masks") if plan.masks else ("crops",),
        tasks=[Task(tree.root, s, tree.K, plan, shard_of(folder, f"{s.subject:02d}_{s.index:04d}")) for s in todo],
        fingerprint=_fingerprint(tree), left_out=left_out, meta=_meta(tree),
        about={"people": [p for p in tree.people if p], "sequences": len(tree.sequences), "cameras": len(tree.serials)},
        hint="see dataset.hands and dataset.in_image", finish=finish,
        check=None if check is None else lambda: _check(tree, plan, check)), folder, workers)


def _check(tree: Tree, plan: Plan, check: Check) -> None:
    check(tree, plan)
    read_extrinsics(tree)  # a broken calibration is found before the work


def _meta(tree: Tree) -> dict:
    """Everything about the rows that is not a column."""
    sequences: list[list[str]] = [[""] * tree.num_frames().shape[1] for _ in tree.people]
    sides = [[-1] * len(row) for row in sequences]
    for s in tree.sequences:
        sequences[s.subject][s.index], sides[s.subject][s.index] = s.folder.split("/")[1], s.side
    return {"people": list(tree.people), "sequences": sequences, "sides": sides, "num_frames": tree.num_frames().tolist(),
            "serials": list(tree.serials)}


def _fingerprint(tree: Tree) -> str:
    cameras = np.ascontiguousarray(tree.K).tobytes()
    return hashlib.sha256("".join(s.folder + s.fingerprint for s in tree.sequences).encode() + cameras).hexdigest()


def _left_out(s: Sequence, plan: Plan) -> bool:
    return plan.hands == "right" and SIDES[s.side] == "left"
