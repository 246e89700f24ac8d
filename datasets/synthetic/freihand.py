"""`synth freihand`: a synthetic dataset in FreiHAND v2's on-disk layout (specs/datasets.md 1.2, 2.3, 5), right hands only.

One hand per picture of 224x224, mostly filling it: any view, gestures and grasps; every training sample in four versions (other
background and colours), labels exact to float32, the evaluation's labels as published in 2022. FreiHAND's masks are lossy JPEG;
here they cover what is seen of the hand, no forearm, no held thing: the crops of 1.3 times the mask's box that CMR takes fit
hands alone (specs/cmr_boukhayma_metro.md 3.3). The 130 pixels of its evaluation cut into them: at the default `fill` the median
hand is 131 pixels across, and 47 of 100 pictures have a joint outside. The same seed gives the same bytes whatever the number
of processes. A stopped run goes on: samples are made eight at a time, written beside their places and renamed; the json lists
come last. Nothing but `synthetic.json` is there beyond the real set's files.
"""
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from datasets.synthetic import freihand_files as files
from datasets.synthetic import freihand_looks as looks
from datasets.synthetic.assemble import assemble
from datasets.synthetic.claim import claim, disk_full, run_tasks
from datasets.synthetic.dexycb_files import jpeg_bytes
from datasets.synthetic.freihand_files import EVALUATION, TRAINING
from datasets.synthetic.people import Person, Side, make_people, require_people, require_ranges
from datasets.synthetic.scene import sample_lighting
from datasets.synthetic.single import Framing, Views, sample_views
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.strict import Strict

VERSION = 2   # of what is drawn: raise it when equal options would give other bytes
TOGETHER = 8  # samples of one task: one person, sleeve, light and thing
BEYOND = 0.12  # share of pictures that reach over the edge of the camera's own
Share = Annotated[float, Field(ge=0, le=1)]
Task = tuple[str, int]  # split, number of the eight samples in it


class Options(Strict):
    """What is written. The real set has 32,560 training and 3,960 evaluation samples."""

    name: Literal["freihand"]
    out: str = Field("data/synth_freihand", description="root of the tree: what dataset.root then names")
    seed: int = Field(0, ge=0)
    train: int = Field(32_560, ge=0, le=10_000_000, description="training samples; pictures are `versions` times as many")
    evaluation: int = Field(3960, ge=0, le=10_000_000, description="evaluation samples; the official pred.py wants 3,960")
    versions: int = Field(4, ge=1, le=4, description="of each training sample: gs, hom, sample, auto")
    evaluation_labels: bool = Field(True, description="evaluation_{xyz,verts,mano}.json too, as published since 2022")
    people: int = Field(32, ge=1, le=1000)
    evaluation_people: int = Field(8, ge=0, description="the last so many people are in the evaluation only; 0: all are in both")
    sizes_mm: tuple[float, ...] | None = Field(None, description="wrist to middle fingertip of each person's flat hand; null = "
                                                                 "people drawn from the hand model's own prior")
    tones: tuple[Share, ...] | None = Field(None, description="skin of each person, 0 light to 1 dark; null = drawn")
    grasps: Share = Field(0.5, description="of the samples hold a thing; the others are gestures")
    focal: tuple[float, float] = Field((350.0, 550.0), description="focal length, px")
    distance_m: tuple[float, float] = Field((0.4, 0.9), description="camera to joint 9")
    fill: tuple[float, float] = Field((0.38, 0.72), description="longer side of the joints' box, share of the picture")
    off_centre: float = Field(11.0, ge=0, description="most that the box's middle is off the picture's, px; 11 at most is used")
    noise: tuple[float, float] = Field((0.0, 5.0), description="sensor noise, standard deviation of 255 levels")
    blur: tuple[float, float] = Field((0.2, 0.9), description="lens blur, sigma in px")
    quality: tuple[int, int] = Field((80, 96), description="JPEG quality")
    workers: int = Field(0, ge=0, description="processes; 0 = one per core")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.train + self.evaluation == 0:
            raise ValueError("train, evaluation: expected samples in one of them, found 0 and 0")
        if self.evaluation_people >= self.people:
            raise ValueError(f"evaluation_people: expected fewer than people ({self.people}), found {self.evaluation_people}")
        require_people(self.people, tones=self.tones, sizes_mm=self.sizes_mm)
        require_ranges(self, {"focal": (150, 2000), "distance_m": (0.25, 5.0), "fill": (0.1, 0.85), "noise": (0, 60),
                              "blur": (0, 10), "quality": (1, 100)})
        return self

    def samples(self, split: str) -> int:
        return self.train if split == TRAINING else self.evaluation

    def tasks(self, split: str) -> list[Task]:
        return [(split, i) for i in range(-(-self.samples(split) // TOGETHER))]

    def rows(self, task: Task) -> range:
        """Samples of a task."""
        return range(TOGETHER * task[1], min(TOGETHER * (task[1] + 1), self.samples(task[0])))

    def numbers(self, task: Task) -> list[int]:
        """Numbers of its pictures: samples one after the other, each in all versions."""
        repeats = self.versions if task[0] == TRAINING else 1
        return [row + k * self.samples(task[0]) for row in self.rows(task) for k in range(repeats)]

    def lists(self, split: str) -> tuple[str, ...]:
        """Labels that are told."""
        return files.LISTS if split == TRAINING or self.evaluation_labels else ("K", "scale")


@dataclass(frozen=True)
class Studio:
    """What all samples share."""

    options: Options
    side: Side
    people: tuple[Person, ...]


def write(options: Options, hand_right: HandModel, hand_left: HandModel | None) -> dict[str, int]:
    """Write the tree; returns {"sequences": tasks of eight samples, "written": those done now, "pictures": rgb pictures now}.

    hand_left is not used: FreiHAND has right hands only. Raises InputError: `out` holds something else, or a set of other
    options, a hand that cannot be so small, disk full, a worker killed.
    """
    root, right = Path(options.out), hand_right.arrays
    studio = make_studio(options, right)
    claim(root, options, right, None, layout="FreiHAND v2", version=VERSION)
    every = [task for split in (TRAINING, EVALUATION) for task in options.tasks(split)]
    with disk_full(root, lambda: f"{len(every) - len(_todo(options, root))} of {len(every)} parts"):
        todo = _todo(options, root)
        (root / ".part").mkdir(exist_ok=True)
        pictures = sum(len(options.numbers(task)) for task in every)
        done = pictures - sum(len(options.numbers(task)) for task in todo)
        with tqdm(total=pictures, initial=done, unit=" pictures", desc="synth freihand") as bar:
            for count in run_tasks(partial(_write, studio, root), partial(_task, options, right, root), todo, options.workers):
                bar.update(count)
        for split in (TRAINING, EVALUATION):
            shards = [_shard(root, task) for task in options.tasks(split)]
            if shards:
                files.write_lists(root, split, options.lists(split), shards)
        shutil.rmtree(root / ".part")
    return {"sequences": len(every), "written": len(todo), "pictures": pictures - done}


def make_studio(options: Options, right: HandArrays) -> Studio:
    """People and hand, all from the options."""
    side = Side(HandModel(right, torch.float64))
    return Studio(options, side, tuple(make_people(options.people, options.sizes_mm, side, options.seed, options.tones)))


def person_of(options: Options, task: Task) -> int:
    """Whose hand: people in turn, each with samples that follow one another, as they were recorded."""
    split, number = task
    first, count = 0, options.people
    if options.evaluation_people:
        first = options.people - options.evaluation_people if split == EVALUATION else 0
        count = options.evaluation_people if split == EVALUATION else options.people - options.evaluation_people
    return first + number * count // len(options.tasks(split))


def _todo(options: Options, root: Path) -> list[Task]:
    """Tasks without all their pictures, or without labels where a list is still to be written."""
    todo = []
    for split in (TRAINING, EVALUATION):
        told = all(files.list_path(root, split, name).is_file() for name in options.lists(split))
        pictures, masks = (_names(root / split / kind) for kind in ("rgb", "mask"))
        for task in options.tasks(split):
            whole = all(files.picture_path(root, split, n).name in pictures for n in options.numbers(task))
            whole &= split == EVALUATION or all(files.mask_path(root, split, n).name in masks for n in options.rows(task))
            if not whole or not (told or _shard(root, task).is_file()):
                todo.append(task)
    return todo


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _shard(root: Path, task: Task) -> Path:
    return root / ".part" / f"{task[0]}-{task[1]:07d}.npz"


_STUDIO: list[Studio] = []  # of a worker process


def _task(options: Options, right: HandArrays, root: Path, task: Task) -> int:
    if not _STUDIO:
        torch.set_num_threads(1)
        _STUDIO.append(make_studio(options, right))
    return _write(_STUDIO[0], root, task)


def _write(studio: Studio, root: Path, task: Task) -> int:
    """Make eight samples, put their pictures and masks into place, then their labels. Returns the number of pictures."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    options, split = studio.options, task[0]
    rng = np.random.default_rng([options.seed, 2000 + (split == EVALUATION), task[1]])
    person = studio.people[person_of(options, task)]
    framing = Framing(options.focal, options.distance_m, options.fill, options.off_centre)
    views = sample_views(studio.side, person, framing, len(options.rows(task)), options.grasps, rng)
    pictures, masks = draw(studio, person, views, split, rng)
    content = {files.picture_path(root, split, n): data for n, data in zip(options.numbers(task), pictures, strict=True)}
    if split == TRAINING:
        content |= {files.mask_path(root, split, n): data for n, data in zip(options.rows(task), masks, strict=True)}
    temporary = _shard(root, task).with_suffix(".jpg")
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    views.labels.save(_shard(root, task))
    return len(pictures)


def draw(studio: Studio, person: Person, views: Views, split: str, rng: np.random.Generator) -> tuple[list[bytes], list[bytes]]:
    """JPEG pictures, sample by sample in all versions, and masks."""
    options, hand, count = studio.options, studio.side.anatomy(person.shape), len(views.verts)
    surface, verts, normals = assemble(options.seed, studio.side, person, hand, views.clip, views.verts, rng)
    lighting = sample_lighting(rng)
    gain = rng.uniform(0.75, 1.2, (count, 1)) * (1 + rng.normal(0, 0.04, (count, 3)))
    K = views.labels.K.astype(np.float64)
    uv = (views.labels.xyz / views.labels.xyz[..., 2:]) @ K.swapaxes(1, 2)
    cutouts = looks.cut_out(surface, verts, normals, views.camera_from_world, K, lighting, gain)
    pictures, masks = [], []
    for i, cutout in enumerate(cutouts):
        sensor = looks.Sensor(rng.uniform(*options.blur), rng.uniform(*options.noise),
                              int(rng.integers(options.quality[0], options.quality[1] + 1)))
        frame = looks.frame_of_camera(uv[i, :, :2], BEYOND, rng)
        scene = looks.scenery(options.seed, views.camera_from_world[i], K[i], lighting, rng)
        if split == TRAINING:
            images = looks.versions(options.versions, cutout, looks.green_screen(options.seed, rng), scene, rng)
        else:
            images = [looks.paste(cutout, scene)]
        pictures += [jpeg_bytes(looks.develop(image, sensor, frame, rng), sensor.quality) for image in images]
        masks.append(files.mask_bytes(((cutout.hand > 0.5) * frame * 255).astype(np.uint8)))
    return pictures, masks
