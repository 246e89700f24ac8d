"""`synth dexycb`: a synthetic dataset in DexYCB's on-disk layout, which DexYCB's own toolkit reads unchanged (specs 1.1, 5).

Ten people with hands of known length, 8 calibrated cameras around a table, gestures and grasps, labels exact to float32. The same
seed gives the same bytes whatever the number of worker processes. A run that was stopped goes on where it was: a recording is
written beside its place and renamed when whole. `synthetic.json` in the root says what made the tree; a folder that holds
anything and has no such file is never written to. What the toolkit wants: 10 people x 100 sequences, 8 cameras, 640x480; other
counts and sizes are for our reader.
"""
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from datasets.synthetic import dexycb_files as dexycb
from datasets.synthetic.claim import claim, disk_full, run_tasks
from datasets.synthetic.motion import Wish
from datasets.synthetic.people import REAL_SIZES_MM, Side, make_people, require_people, require_ranges
from datasets.synthetic.scene import Rig, sample_intrinsics, sample_rig
from datasets.synthetic.sequence import Studio, master, write_sequence
from utils.errors import InputError
from utils.files import write_text
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.strict import Strict

VERSION = 1  # of what is drawn: raise it when equal options would give other bytes
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
        require_people(self.people, tones=self.tones, sizes_mm=self.sizes_mm)
        require_ranges(self, {"distance_m": (0.45, 5.0), "elevation_deg": (5, 75), "idle": (0, 6), "noise": (0, 60),
                              "blur": (0, 20), "quality": (1, 100)})
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
    claim(root, options, right, left, layout="DexYCB", version=VERSION)
    every = [(s, i) for s in range(options.people) for i in range(options.sequences)]
    per_task = options.cameras * options.frames
    with disk_full(root, lambda: f"{sum(_folder(root, *task).is_dir() for task in every)} of {len(every)} sequences"):
        _write_calibration(root, studio)
        shutil.rmtree(root / ".part", ignore_errors=True)
        todo = [task for task in every if not _folder(root, *task).is_dir()]
        finished = (len(every) - len(todo)) * per_task
        with tqdm(total=len(every) * per_task, initial=finished, unit=" pictures", desc="synth dexycb") as bar:
            for count in run_tasks(partial(_write, studio, root), partial(_task, options, right, left, root), todo,
                                   options.workers):
                bar.update(count)
        shutil.rmtree(root / ".part", ignore_errors=True)
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


_STUDIO: list[Studio] = []  # of a worker process


def _task(options: Options, right: HandArrays, left: HandArrays | None, root: Path, task: tuple[int, int]) -> int:
    if not _STUDIO:
        torch.set_num_threads(1)
        _STUDIO.append(make_studio(options, right, left))
    return _write(_STUDIO[0], root, task)


def _write(studio: Studio, root: Path, task: tuple[int, int]) -> int:
    return write_sequence(studio, *task, _folder(root, *task), root / ".part" / f"{task[0]}-{task[1]}")
