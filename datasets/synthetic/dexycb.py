"""`synth dexycb`: a synthetic dataset in DexYCB's on-disk layout, which DexYCB's own toolkit reads unchanged (specs 1.1, 5).

Ten people with hands of known length, 8 calibrated cameras around a table, gestures and grasps, labels exact to float32. The same
seed gives the same bytes whatever the number of worker processes. A run that was stopped goes on where it was: a recording is
written beside its place and renamed when whole. `synthetic.json` in the root says what made the tree; a folder that holds
anything and has no such file is never written to. What the toolkit wants: 10 people x 100 sequences, 8 cameras, 640x480; other
counts and sizes are for our reader.
"""
import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from datasets.processes import in_processes
from datasets.synthetic import dexycb_files as dexycb
from datasets.synthetic.motion import Wish
from datasets.synthetic.people import REAL_SIZES_MM, Side, make_people
from datasets.synthetic.scene import Rig, sample_intrinsics, sample_rig
from datasets.synthetic.sequence import Studio, master, write_sequence
from utils.errors import InputError
from utils.files import read_json, write_json, write_text
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.strict import Strict

MARKER = "synthetic.json"
VERSION = 1  # of what is drawn: raise it when equal options would give other bytes
_NOT_CONTENT = {"out", "workers"}
Share = Annotated[float, Field(ge=0, le=1)]


class Options(Strict):
    """What is written. Shares are probabilities per sequence, but `no_hand`, the mean share of frames before the hand appears."""

    name: Literal["dexycb"]
    out: str = Field("data/synth_dexycb", description="root of the tree: what dataset.root then names")
    seed: int = Field(0, ge=0)
    people: int = Field(10, ge=1, le=1000, description="subjects; s1 tests on the 8th and 9th")
    sizes_mm: tuple[float, ...] | None = Field(REAL_SIZES_MM, description="wrist to middle fingertip of each person's flat hand; "
                                                                          "null = people drawn from the hand model's own prior")
    tones: tuple[Share, ...] | None = Field(None, description="skin of each person, 0 light to 1 dark; null = drawn")
    sequences: int = Field(100, ge=1, le=1500, description="recordings of each person; DexYCB's toolkit wants 100")
    frames: int = Field(72, ge=1, le=999_999, description="of each recording and camera")
    seconds: float = Field(2.4, gt=0, description="how long a recording lasts: fewer frames are further apart")
    cameras: int = Field(8, ge=1, le=8)
    width: int = Field(640, ge=32, le=4096)
    height: int = Field(480, ge=32, le=4096)
    focal: float = Field(0.96, gt=0.2, lt=10, description="focal length as a share of the width")
    distance_m: tuple[float, float] = Field((0.62, 0.86), description="cameras to the middle of the scene")
    elevation_deg: tuple[float, float] = Field((18.0, 62.0), description="cameras above the table")
    left: Share = Field(0.5, description="left hands")
    no_hand: Share = 0.12
    leaving: Share = Field(0.08, description="recordings in which the hand moves far off, out of some pictures")
    grasps: Share = Field(0.6, description="recordings with a grasp; the others are gestures")
    roam_m: float = Field(0.06, ge=0, le=0.2, description="standard deviation of the hand's place, each way")
    idle: tuple[int, int] = Field((1, 3), description="further things on the table, least and most")
    noise: tuple[float, float] = Field((0.0, 6.0), description="sensor noise, standard deviation of 255 levels")
    blur: tuple[float, float] = Field((0.4, 1.1), description="lens blur, sigma in pixels of a picture 640 wide")
    quality: tuple[int, int] = Field((70, 96), description="JPEG quality")
    depth: bool = Field(True, description="aligned depth pictures; no label of ours needs them")
    workers: int = Field(0, ge=0, description="processes; 0 = one per core")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.tones is not None and len(self.tones) < self.people:
            raise ValueError(f"tones: expected one for each of {self.people} people, found {len(self.tones)}")
        if self.sizes_mm is not None and len(self.sizes_mm) < self.people:
            raise ValueError(f"sizes_mm: expected one for each of {self.people} people, or null, found {len(self.sizes_mm)}")
        ranges = {"distance_m": (0.45, 5.0), "elevation_deg": (5, 75), "idle": (0, 6), "noise": (0, 60), "blur": (0, 20),
                  "quality": (1, 100)}
        for key, (low, high) in ranges.items():
            first, last = getattr(self, key)
            if not low <= first <= last <= high:
                raise ValueError(f"{key}: expected two rising numbers in {low}..{high}, found {first}, {last}")
        return self


def write(options: Options, hand_right: HandModel, hand_left: HandModel | None) -> dict[str, int]:
    """Write the tree; returns {"sequences": ..., "written": ..., "pictures": ...}. hand_left is needed where options.left > 0.

    Raises InputError: `out` holds something else, other options, a hand that cannot be so small, disk full, a worker killed.
    """
    if options.left > 0 and hand_left is None:
        raise InputError("synth.left: left hands need a left hand model; set hand_left, or synth.left=0")
    root = Path(options.out)
    right, left = hand_right.arrays, hand_left.arrays if options.left > 0 else None
    studio = make_studio(options, right, left)
    _claim(root, options, right, left)
    try:
        _write_calibration(root, studio)
        shutil.rmtree(root / ".part", ignore_errors=True)
        every = [(s, i) for s in range(options.people) for i in range(options.sequences)]
        todo = [task for task in every if not _folder(root, *task).is_dir()]
        per_task = options.cameras * options.frames
        finished = (len(every) - len(todo)) * per_task
        with tqdm(total=len(every) * per_task, initial=finished, unit=" pictures", desc="synth dexycb") as bar:
            for count in _run(options, studio, (right, left), root, todo):
                bar.update(count)
        shutil.rmtree(root / ".part", ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done = sum(_folder(root, *task).is_dir() for task in every)
        raise InputError(f"{root}: disk full after {done} of {len(every)} sequences; make room and run the same command to go "
                         "on") from error
    return {"sequences": len(every), "written": len(todo), "pictures": len(todo) * per_task}


def make_studio(options: Options, right: HandArrays, left: HandArrays | None) -> Studio:
    """People, cameras and hands, all from the options."""
    side = Side(HandModel(right, torch.float64))
    rng = np.random.default_rng([options.seed, 12])
    K = sample_intrinsics(options.cameras, options.focal, options.width, options.height, rng)
    rigs = [sample_rig(K, options.distance_m, options.elevation_deg, np.random.default_rng([options.seed, 13, person]))
            for person in range(options.people)]
    return Studio(
        seed=options.seed, width=options.width, height=options.height,
        people=tuple(make_people(options.people, options.sizes_mm, side, options.seed, options.tones)),
        rigs=tuple(_from_master(rig) for rig in rigs), right=side,
        left=None if left is None else Side(HandModel(left, torch.float64)),
        wish=Wish(options.frames, options.seconds, options.no_hand, options.leaving, options.grasps, options.idle,
                  options.roam_m),
        left_share=options.left, sequences=options.sequences, noise=options.noise, blur=options.blur, quality=options.quality,
        depth=options.depth)


def world_from_camera(rig: Rig) -> np.ndarray:
    """(c,4,4): the world is the master camera's frame."""
    return rig.camera_from_table[master(len(rig.K))] @ np.linalg.inv(rig.camera_from_table)


def _from_master(rig: Rig) -> Rig:
    """The rig as its calibration file tells it, rounding included, so that labels and files agree to the last bit."""
    to_world, world_from_table = (np.round(a, 9) for a in (world_from_camera(rig), rig.camera_from_table[master(len(rig.K))]))
    return Rig(np.linalg.inv(to_world) @ world_from_table, rig.K, rig.seat)


def _claim(root: Path, options: Options, right: HandArrays, left: HandArrays | None) -> None:
    """Make the folder ours, or refuse: it holds something else, or a synthetic set of other options."""
    content = {"options": json.loads(options.model_dump_json(exclude=_NOT_CONTENT)), "hand_right": right.sha256,
               "hand_left": left.sha256 if left else None, "version": VERSION}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: expected a folder or nothing, found a file; choose another synth.out")
    if not root.is_dir() or not any(root.iterdir()):
        write_json(root / MARKER, {
            "synthetic": True, "note": "Rendered, not recorded: no real person's hand. Layout of DexYCB.", "hands": right.name,
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


def _folder(root: Path, subject: int, index: int) -> Path:
    return root / dexycb.subject_name(subject) / dexycb.sequence_name(subject, index)


def _write_calibration(root: Path, studio: Studio) -> None:
    """Intrinsics once, extrinsics and hand shape per person."""
    folder = root / "calibration"
    for c, K in enumerate(studio.rigs[0].K):
        name = f"{dexycb.SERIALS[c]}_{studio.width}x{studio.height}.yml"
        write_text(folder / "intrinsics" / name, dexycb.intrinsics_yml(K))
    for person, rig in zip(studio.people, studio.rigs):
        poses = dict(zip(dexycb.SERIALS, world_from_camera(rig)))
        chief = master(len(rig.K))
        poses["apriltag"] = rig.camera_from_table[chief]  # the tag lies in the middle of the table
        write_text(folder / f"extrinsics_{dexycb.session(person.index)}" / "extrinsics.yml",
                   dexycb.extrinsics_yml(poses, dexycb.SERIALS[chief]))
        write_text(folder / f"mano_{dexycb.mano_calib(person.index)}" / "mano.yml", dexycb.mano_yml(person.shape))


def _run(options: Options, studio: Studio, hands: tuple, root: Path, todo: list[tuple[int, int]]) -> Iterator[int]:
    """Write the recordings, here or in worker processes; yields pictures as they are done."""
    workers = min(options.workers or len(os.sched_getaffinity(0)), len(todo))
    if workers <= 1:
        threads = torch.get_num_threads(), cv2.getNumThreads()
        try:
            for task in todo:
                yield write_sequence(studio, *task, _folder(root, *task), root / ".part" / f"{task[0]}-{task[1]}")
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])
        return
    results = in_processes(partial(_task, options, *hands, root), todo, workers)
    with _one_thread_each():  # the processes start with the first result
        yield next(results)
    yield from results


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
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


_STUDIO: list[Studio] = []  # of a worker process


def _task(options: Options, right: HandArrays, left: HandArrays | None, root: Path, task: tuple[int, int]) -> int:
    if not _STUDIO:
        torch.set_num_threads(1)
        _STUDIO.append(make_studio(options, right, left))
    return write_sequence(_STUDIO[0], *task, _folder(root, *task), root / ".part" / f"{task[0]}-{task[1]}")
