"""The true hands of a DexYCB split, read from its frames' labels by their official image number (specs/datasets.md 1.1, 2.2).

3D: joint_3d, metres, camera frame, T21; -1 everywhere = no hand in this picture. 2D, for the COCO numbers: joint_2d in pixels,
and the box and area of the hand's pixels in the segmentation. Only what is asked is read; nothing is cached, nothing goes stale.
No torch in here: a worker process starts in a fraction of a second and stays small.
"""
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.dex_ycb_frames import BREAKS, read_labels
from datasets.dex_ycb_splits import part, select
from datasets.dex_ycb_tree import Tree, scan
from datasets.pictures import Broken
from datasets.processes import in_processes
from utils.errors import InputError
from utils.files import require_folder

OFFICIAL = tuple(f"{setup}/{split}" for setup in ("s0", "s1", "s2", "s3") for split in ("train", "val", "test"))
HAND = 255  # of the segmentation
ALONE = 4000  # images that one process reads sooner than others start


class Images(NamedTuple):
    """The frames of a split. name: such as s0/test. total: images that the official order counts; number (n), ascending, of those
    whose recording has the camera. recording (n): index into tree.sequences. camera, frame (n)."""

    tree: Tree
    name: str
    total: int
    number: np.ndarray
    recording: np.ndarray
    camera: np.ndarray
    frame: np.ndarray

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of the image numbers that the split has."""
        return np.flatnonzero(np.isin(self.number, numbers))

    def sides(self, rows: np.ndarray) -> np.ndarray:
        """(m) of datasets.dex_ycb_tree.SIDES."""
        return np.array([s.side for s in self.tree.sequences])[self.recording[rows]]


class Labels2d(NamedTuple):
    """Of m frames whose segmentation has a hand: row, joints (m,21,2) px, box (m,4) as x, y, width, height, area (m) px."""

    row: np.ndarray
    joints: np.ndarray
    box: np.ndarray
    area: np.ndarray


def split_name(text: str) -> str:
    """s0/test of s0/test or s0_test. Raises InputError where it is no official split."""
    name = text.replace("_", "/")
    if name not in OFFICIAL:
        raise InputError(f"--split {text}: expected a setup and split of DexYCB: s0 to s3, and train, val or test, as in s0/test")
    return name


def open_tree(root: Path, serials: tuple[str, ...]) -> Tree:
    """The dataset at `root`, of which labels and meta.yml are enough. Raises InputError, see scan."""
    root = require_folder(root, "give the folder of the dataset (DEX_YCB_DIR) as --truth")
    return scan(root, serials, 640, 480, calibration=False)


def images_of(tree: Tree, name: str) -> Images:
    """The frames of an official split. Raises InputError where the tree lacks a person of the split, or all of it."""
    counts = [(i, c, s.num_frames) for i, s in enumerate(tree.sequences) for c in s.cameras]
    recording, camera, frames = np.array(counts, np.int64).reshape(-1, 3).repeat([c[2] for c in counts], 0).T
    frame = np.arange(len(frames)) - np.repeat(np.cumsum([0, *(c[2] for c in counts)])[:-1], [c[2] for c in counts])
    subject, sequence = (np.array([getattr(s, key) for s in tree.sequences])[recording] for key in ("subject", "index"))
    setup, split = name.split("/")
    table = tree.num_frames()
    rows, number = select(setup, split, table, len(tree.serials), subject=subject, sequence=sequence, camera=camera, frame=frame)
    if (number < 0).any():
        raise InputError(f"{tree.root}: a person of {name} is missing, so its images have no official numbers; unpack the whole "
                         "dataset, or choose another --split")
    one = part(setup, split, *table.shape, len(tree.serials))
    total = int(table[np.ix_(one.subjects, one.sequences)].sum()) * len(one.cameras)
    rows, number = rows[order := np.argsort(number)], number[order]
    return Images(tree, name, total, number, recording[rows], camera[rows], frame[rows])


def read_joints(images: Images, rows: np.ndarray) -> np.ndarray:
    """(m,21,3) float32 joint_3d, metres, of these rows; all -1 where there is no hand. Raises InputError: a broken file."""
    out = np.empty((len(rows), 21, 3), np.float32)
    for at, values in _read(images, rows, _joints_of):
        out[at] = values
    bad = ~np.isfinite(out).all((1, 2))
    if bad.any():
        raise InputError(f"{_path(images, rows[np.argmax(bad)])}: expected finite numbers in joint_3d, found NaN or infinity; "
                         "unpack the file again")
    return out


def read_2d(images: Images, rows: np.ndarray) -> Labels2d:
    """joint_2d, and box and area of the hand's pixels, of the rows that have such pixels. Raises InputError: a broken file."""
    joints, box = np.empty((len(rows), 21, 2), np.float64), np.empty((len(rows), 5), np.float64)
    for at, (uv, found) in _read(images, rows, _uv_of):
        joints[at], box[at] = uv, found
    has = box[:, 4] > 0
    return Labels2d(rows[has], joints[has], box[has, :4], box[has, 4])


def _read(images: Images, rows: np.ndarray, function):
    """(places in rows, what function(paths) gives) for each recording, as they come."""
    order = np.argsort(images.recording[rows], kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(images.recording[rows][order])) + 1) if len(rows) else []
    tasks = [(function, number, [_path(images, row) for row in rows[group]]) for number, group in enumerate(groups)]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    done = in_processes(_work, tasks, 1 if len(rows) < ALONE else min(workers, 8))
    for number, values in tqdm(done, f"labels of {images.name}", len(tasks), leave=False, disable=None):
        yield groups[number], values


def _path(images: Images, row: int) -> Path:
    folder = images.tree.root / images.tree.sequences[images.recording[row]].folder
    return folder / images.tree.serials[images.camera[row]] / f"labels_{images.frame[row]:06d}.npz"


def _work(task) -> tuple:
    function, number, paths = task
    try:
        return number, function(paths)
    except Broken as broken:
        raise InputError(str(broken)) from broken


def _joints_of(paths: list[Path]) -> np.ndarray:
    return np.stack([read_labels(path, ("joint_3d",))["joint_3d"] for path in paths])


def _uv_of(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """joint_2d (k,21,2), and x, y, width, height and area (k,5) of the hand in the segmentation; area 0 where it has none."""
    joints = np.stack([read_labels(path, ("joint_2d",))["joint_2d"] for path in paths])
    boxes = np.zeros((len(paths), 5))
    for i, path in enumerate(paths):
        try:
            with np.load(path, allow_pickle=False) as file:
                v, u = np.nonzero(file["seg"] == HAND)
        except BREAKS as error:
            raise Broken("labels broken", f"{path}: expected seg, a picture of uint8, found a file that breaks "
                                          f"({str(error).splitlines()[0]}); unpack it again") from error
        if len(u):
            boxes[i] = u.min(), v.min(), u.max() - u.min() + 1, v.max() - v.min() + 1, len(u)
    return joints, boxes
