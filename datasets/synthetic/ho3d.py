"""`synth ho3d`: a synthetic dataset in HO3D's on-disk layout, v2 or v3, which HO3D's own scripts read unchanged (specs 1.3, 5).

People with right hands of known length take things before one camera or several; labels exact to float32. train.txt and
evaluation.txt name the annotated frames; the public evaluation labels stand in the root as published since November 2024. The
same seed gives the same bytes whatever the number of worker processes; a run that was stopped goes on where it was. What the
official evaluation wants: evaluation_lines of 11524 (v2) or 20137 (v3), which repeat the frames if there are fewer.
"""
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import orjson
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from datasets.synthetic import ho3d_files as ho3d
from datasets.synthetic.claim import claim, disk_full, run_tasks
from datasets.synthetic.ho3d_files import Recording
from datasets.synthetic.ho3d_recording import Studio, direct, outputs, write_recording
from datasets.synthetic.motion import Wish
from datasets.synthetic.people import REAL_SIZES_MM, Side, make_people, require_people, require_ranges
from utils.errors import InputError
from utils.files import atomic_path, write_text
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.strict import Strict

VERSION = 1  # of what is drawn: raise it when equal options would give other bytes
LISTS = ("train.txt", "evaluation_xyz.json", "evaluation_verts.json", "evaluation.txt")  # the last one says that all are there
Share = Annotated[float, Field(ge=0, le=1)]


class Options(Strict):
    """What is written. Names of people are HO3D's: SB is in both splits (by camera), SM too, MPM and AP in evaluation only."""

    name: Literal["ho3d"]
    version: Literal["v2", "v3"] = Field("v3", description="v2: png pictures, one camera matrix; v3: jpg, a matrix per camera")
    out: str = Field("data/synth_ho3d", description="root of the tree: what dataset.root then names")
    seed: int = Field(0, ge=0)
    people: int = Field(10, ge=1, le=len(ho3d.PEOPLE), description=f"in this order: {', '.join(ho3d.PEOPLE)}")
    sizes_mm: tuple[float, ...] | None = Field(REAL_SIZES_MM, description="wrist to middle fingertip of each person's flat hand; "
                                                                          "null = people drawn from the hand model's own prior")
    tones: tuple[Share, ...] | None = Field(None, description="skin of each person, 0 light to 1 dark; null = drawn")
    sequences: int = Field(1, ge=1, le=9, description="recordings of each person, each seen by all cameras (SM's by one)")
    frames: int = Field(100, ge=1, le=10_000, description="of each recording and camera")
    seconds: float = Field(10.0, gt=0, description="how long a recording lasts: fewer frames are further apart")
    cameras: int = Field(5, ge=1, le=5)
    evaluation_lines: int | None = Field(None, ge=1, description="lines of evaluation.txt: 11524 (v2) or 20137 (v3) for the "
                                                                 "official evaluation; null = every annotated frame once")
    width: int = Field(640, ge=32, le=4096)
    height: int = Field(480, ge=32, le=4096)
    distance_m: tuple[float, float] = Field((0.5, 0.8), description="cameras to the middle of the scene")
    elevation_deg: tuple[float, float] = Field((15.0, 60.0), description="cameras above the table")
    unannotated: Share = Field(0.05, description="frames without annotation, which no list names; those that show less than 15 "
                                                 "joints have none either")
    grasps: Share = Field(1.0, description="recordings with a grasp; the others are gestures beside the thing")
    roam_m: float = Field(0.04, ge=0, le=0.2, description="standard deviation of the hand's place, each way")
    idle: tuple[int, int] = Field((0, 0), description="further things on the table, least and most")
    noise: tuple[float, float] = Field((0.0, 6.0), description="sensor noise, standard deviation of 255 levels")
    blur: tuple[float, float] = Field((0.4, 1.1), description="lens blur, sigma in pixels of a picture 640 wide")
    quality: tuple[int, int] = Field((80, 96), description="JPEG quality (v3)")
    depth: bool = Field(True, description="depth pictures; no label of ours needs them")
    workers: int = Field(0, ge=0, description="processes; 0 = one per core")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        require_people(self.people, tones=self.tones, sizes_mm=self.sizes_mm)
        splits = {split for one in ho3d.recordings(self.people, self.sequences, self.cameras) for split in one.splits}
        if len(splits) < 2:
            raise ValueError(f"people, sequences, cameras: these {self.people}, {self.sequences}, {self.cameras} make a "
                             f"{splits.pop()} split alone; expected train and evaluation, so raise one of them")
        require_ranges(self, {"distance_m": (0.4, 5.0), "elevation_deg": (5, 75), "idle": (0, 6), "noise": (0, 60),
                              "blur": (0, 20), "quality": (1, 100)})
        return self


def write(options: Options, hand_right: HandModel, hand_left: HandModel | None = None) -> dict[str, int]:
    """Write the tree; returns {"sequences": ..., "written": ..., "pictures": ...}: folders, those of them made now.

    hand_left is not used: HO3D has right hands only. Raises InputError: `out` holds something else, or a set of other options, a
    hand that cannot be so small, disk full, a worker killed.
    """
    root, right = Path(options.out), hand_right.arrays
    studio = make_studio(options, right)
    claim(root, options, right, None, layout=f"HO3D {options.version}", version=VERSION)
    every = ho3d.recordings(options.people, options.sequences, options.cameras)

    def done(recording: Recording) -> bool:
        return all((root / folder).is_dir() for folder in outputs(options.version, recording))

    with disk_full(root, lambda: f"{sum(map(done, every))} of {len(every)} recordings"):
        shutil.rmtree(root / ".part", ignore_errors=True)
        todo = [recording for recording in every if not done(recording)]
        total, now = (sum(recording.cameras for recording in some) * options.frames for some in (every, todo))
        with tqdm(total=total, initial=total - now, unit=" pictures", desc="synth ho3d") as bar:
            for count in run_tasks(partial(write_recording, studio, root=root), partial(_task, options, right, root), todo,
                                   options.workers):
                bar.update(count)
        shutil.rmtree(root / ".part", ignore_errors=True)
        if todo or not all((root / name).is_file() for name in LISTS):
            _write_lists(options, studio, every, root)
    return {"sequences": total // options.frames, "written": now // options.frames, "pictures": now}


def make_studio(options: Options, right: HandArrays) -> Studio:
    """People, cameras and hand, all from the options."""
    side = Side(HandModel(right, torch.float64))
    across, down = options.width / 640, options.height / 480
    K = np.array([[617.343 * across, 0, 312.92 * across - 0.5], [0, 617.343 * across, 241.92 * down - 0.5], [0, 0, 1]])
    return Studio(
        version=options.version, seed=options.seed, width=options.width, height=options.height,
        K=K if options.version == "v2" else None, focal=617.343 / 640, distance_m=options.distance_m,
        elevation_deg=options.elevation_deg, side=side,
        people=tuple(make_people(options.people, options.sizes_mm, side, options.seed, options.tones)),
        wish=Wish(options.frames, options.seconds, 0.0, 0.0, options.grasps, options.idle, options.roam_m),
        unannotated=options.unannotated, noise=options.noise, blur=options.blur, quality=options.quality, depth=options.depth)


_STUDIO: list[Studio] = []  # of a worker process


def _task(options: Options, right: HandArrays, root: Path, recording: Recording) -> int:
    if not _STUDIO:
        torch.set_num_threads(1)
        _STUDIO.append(make_studio(options, right))
    return write_recording(_STUDIO[0], recording, root)


def _write_lists(options: Options, studio: Studio, every: list[Recording], root: Path) -> None:
    """train.txt, evaluation.txt and the public evaluation labels, from the recordings' labels made up again."""
    lines: dict[str, list[str]] = {"train": [], "evaluation": []}
    xyz, verts = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in write_recording: sums depend on it in the last digit
    try:
        for recording in every:
            for split, name, view in zip(recording.splits, recording.sequences, direct(studio, recording).views):
                lines[split] += [f"{name}/{t:04d}" for t in np.flatnonzero(view.annotated)]
                if split == "evaluation":
                    xyz += list(view.joints[view.annotated])
                    verts += list(view.verts[view.annotated])
    finally:
        torch.set_num_threads(threads)
    if not lines["evaluation"]:
        raise InputError("synth.unannotated: no frame of the evaluation sequences is annotated; lower it, or raise synth.frames")
    chosen = _chosen(len(xyz), options.evaluation_lines or len(xyz))
    write_text(root / "train.txt", "".join(f"{line}\n" for line in lines["train"]))
    _write_json(root / "evaluation_xyz.json", (xyz[i] for i in chosen))
    _write_json(root / "evaluation_verts.json", (verts[i] for i in chosen))
    write_text(root / "evaluation.txt", "".join(f"{lines['evaluation'][i]}\n" for i in chosen))


def _chosen(have: int, want: int) -> np.ndarray:
    """Places (want) among `have` frames: evenly spread, or all of them again and again."""
    return np.arange(want) % have if want >= have else np.arange(want) * have // want


def _write_json(path: Path, arrays: Iterator[np.ndarray]) -> None:
    """A json list of arrays, one by one: the official lists have up to 47 million numbers."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        before = b"["
        for array in arrays:
            file.write(before + orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY))
            before = b", "
        file.write(b"]")
