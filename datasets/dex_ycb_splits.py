"""DexYCB's splits: which frames of the tree belong to a setup and split, and the official number of each frame.

s0-s3 are the official ones (specs/datasets.md 1.1), s5-s11 the other subject partitions of Kong et al. (ECCV 2022;
specs/idhandmesh.md 1.3), all exact. s4 is their random 80/5/15 % of all frames, here with our own seeded draw: Seed: theirs
follows from the list of annotations they had written, so its very frames cannot be had. Indices are 0-based ranks in sorted
names. The official image number of a frame is its position in: for subject, for sequence, for camera of the split, for frame;
all frames count, with or without a hand, so it needs the number of frames of every sequence, also of those left out.
"""
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError

SPLITS = ("train", "val", "test", "train+val")
SETUPS = ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s9", "s10", "s11", "population")
_TEST_VAL = {"s1": ((7, 8), (6,)), "s5": ((0, 1), (3,)), "s6": ((4, 5), (9,)), "s7": ((2, 9), (5,)), "s9": ((4, 9), (5,)),
             "s10": ((2, 3), (0,)), "s11": ((0, 2), (3,))}
PEOPLE, SEQUENCES, CAMERAS = 10, 100, 8  # of the real dataset; a smaller synthetic tree has the first of each
# population, for synthetic sets of many people: of every eight, counted from 0, three train, two validate, three test. The latter
# include s1's two test people, so a set of any size has them unseen.
_POPULATION = {"train": (1, 3, 5), "val": (4, 6), "test": (0, 2, 7)}
RANDOM_SHARES = (0.80, 0.85)  # s4: train up to 80 %, val up to 85 %, test the rest


@dataclass(frozen=True)
class Part:
    """One official split: subjects, sequences of each subject, cameras, in the order that numbers its images."""

    subjects: tuple[int, ...]
    sequences: tuple[int, ...]
    cameras: tuple[int, ...]


def part(setup: str, split: str, people: int = PEOPLE, sequences: int = SEQUENCES, cameras: int = CAMERAS) -> Part:
    """The subjects, sequences and cameras of a setup's train, val or test (not s4), cut to what the tree has."""
    everyone, every, all_cameras = range(max(PEOPLE, people)), range(max(SEQUENCES, sequences)), range(CAMERAS)
    chosen: tuple[Iterable[int], Iterable[int], Iterable[int]]
    if setup == "s0":
        chosen = ({"train": everyone, "val": (0, 1), "test": everyone[2:]}[split],
                  [i for i in every if (i % 5 == 4) == (split != "train")], all_cameras)
    elif setup == "s2":
        chosen = everyone, every, {"train": range(6), "val": (6,), "test": (7,)}[split]
    elif setup == "s3":
        groups = {"train": set(range(20)) - {3, 7, 11, 15, 19}, "val": {3, 19}, "test": {7, 11, 15}}[split]
        chosen = everyone, [i for i in every if i // 5 in groups], all_cameras
    elif setup == "population":
        chosen = [i for i in everyone if i % 8 in _POPULATION[split]], every, all_cameras
    else:
        test, val = _TEST_VAL[setup]
        chosen = ({"train": [i for i in everyone if i not in (*test, *val)], "val": val, "test": test}[split], every, all_cameras)
    return Part(*(tuple(i for i in some if i < most) for some, most in zip(chosen, (people, sequences, cameras))))


def select(setup: str, split: str, num_frames: np.ndarray, cameras: int, *, subject: np.ndarray, sequence: np.ndarray,
           camera: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m) of the split, in their given order, and the official image number (m) of each.

    num_frames (people, sequences) of the whole tree; subject, sequence, camera, frame (n) of the rows that exist.
    A frame of s4, of train+val, or of a tree that lacks a person of the split has no official number: -1. Raises InputError where
    the tree has nothing of the split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} of DexYCB {setup}: expected one of {', '.join(SPLITS)}")
    if setup == "s4":
        member = _random_member(split, num_frames, cameras, subject, sequence, camera, frame)
        number = np.full(len(subject), -1, np.int64)
    else:
        parts = [part(setup, name, *num_frames.shape, cameras) for name in split.split("+")]
        member = np.zeros(len(subject), bool)
        for one in parts:
            member |= np.isin(subject, one.subjects) & np.isin(sequence, one.sequences) & np.isin(camera, one.cameras)
        if len(parts) == 1 and num_frames[list(parts[0].subjects)].any(1).all():
            number = _official(parts[0], num_frames, subject, sequence, camera, frame)
        else:
            number = np.full(len(subject), -1, np.int64)
    rows = np.flatnonzero(member)
    if not len(rows):
        wanted = "a share of all frames" if setup == "s4" else "; ".join(
            f"subjects {list(p.subjects)}, sequences {_short(p.sequences)}, cameras {list(p.cameras)}" for p in parts)
        raise InputError(f"DexYCB {setup}/{split} is empty: it takes {wanted} (counted from 0) of a tree of "
                         f"{num_frames.shape[0]} subjects, {num_frames.shape[1]} sequences each and {cameras} cameras; "
                         "choose another dataset.setup, or a larger tree")
    return rows, number[rows]


def _short(numbers: tuple[int, ...]) -> str:
    return str(list(numbers)) if len(numbers) < 8 else f"[{numbers[0]}, {numbers[1]}, ... {numbers[-1]}]"


def _official(one: Part, num_frames: np.ndarray, subject: np.ndarray, sequence: np.ndarray, camera: np.ndarray,
              frame: np.ndarray) -> np.ndarray:
    """Official image number (n) of each row; meaningless for rows outside the split."""
    block = np.zeros_like(num_frames, dtype=np.int64)  # frames of one camera, where the sequence belongs to the split
    inside = np.ix_(one.subjects, one.sequences)
    block[inside] = num_frames[inside]
    images = block * len(one.cameras)
    start = np.cumsum(images).reshape(images.shape) - images
    rank = np.zeros(max((*one.cameras, camera.max(initial=0))) + 1, np.int64)
    rank[list(one.cameras)] = np.arange(len(one.cameras))
    return start[subject, sequence] + rank[camera] * num_frames[subject, sequence] + frame


def _random_member(split: str, num_frames: np.ndarray, cameras: int, subject: np.ndarray, sequence: np.ndarray,
                   camera: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Which rows s4 puts in `split`: a seeded permutation of every frame of the tree, so filters do not move a frame."""
    whole = Part(tuple(range(num_frames.shape[0])), tuple(range(num_frames.shape[1])), tuple(range(cameras)))
    total = int(num_frames.sum()) * cameras
    drawn = np.random.Generator(np.random.Philox(key=4)).permutation(total)
    place = drawn[_official(whole, num_frames, subject, sequence, camera, frame)]
    first, second = (int(share * total) for share in RANDOM_SHARES)
    spans = {"train": (0, first), "val": (first, second), "test": (second, total), "train+val": (0, second)}
    low, high = spans[split]
    return (place >= low) & (place < high)
