"""datasets/dex_ycb_splits.py: setups, splits and official image numbers against the definition, written as plain loops."""
import numpy as np
import pytest
from dex_ycb_cases import SERIALS

from datasets.dex_ycb import Options
from datasets.dex_ycb_splits import SETUPS, part, select
from datasets.dex_ycb_tree import subject_indices
from utils.errors import InputError

ALL_PEOPLE, ALL, CAMERAS = range(10), range(100), range(8)
FOLDS = {"s5": ((0, 1), 3), "s6": ((4, 5), 9), "s7": ((2, 9), 5), "s9": ((4, 9), 5), "s10": ((2, 3), 0), "s11": ((0, 2), 3)}


def official(setup: str, split: str) -> tuple[list[int], list[int], list[int]]:
    """Subjects, cameras, sequences, as the tables of specs/datasets.md 1.1 and specs/idhandmesh.md 1.3 say them."""
    if setup == "s0":
        people = {"train": list(ALL_PEOPLE), "val": [0, 1], "test": [2, 3, 4, 5, 6, 7, 8, 9]}[split]
        return people, list(CAMERAS), [i for i in ALL if (i % 5 != 4 if split == "train" else i % 5 == 4)]
    if setup == "s1":
        return {"train": [0, 1, 2, 3, 4, 5, 9], "val": [6], "test": [7, 8]}[split], list(CAMERAS), list(ALL)
    if setup == "s2":
        return list(ALL_PEOPLE), {"train": [0, 1, 2, 3, 4, 5], "val": [6], "test": [7]}[split], list(ALL)
    if setup == "s3":
        groups = {"train": set(range(20)) - {3, 7, 11, 15, 19}, "val": {3, 19}, "test": {7, 11, 15}}[split]
        return list(ALL_PEOPLE), list(CAMERAS), [i for i in ALL if i // 5 in groups]
    test, val = FOLDS[setup]
    people = {"train": [p for p in ALL_PEOPLE if p not in (*test, val)], "val": [val], "test": list(test)}[split]
    return people, list(CAMERAS), list(ALL)


def every_frame(num_frames: np.ndarray, cameras: int) -> dict[str, np.ndarray]:
    rows = [(s, q, c, f) for s in range(len(num_frames)) for q in range(num_frames.shape[1]) for c in range(cameras)
            for f in range(num_frames[s, q])]
    return dict(zip(("subject", "sequence", "camera", "frame"), np.array(rows).T))


LENGTHS = np.random.default_rng(0).integers(0, 4, (10, 100))
KEYS = every_frame(LENGTHS, 8)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("setup", ["s0", "s1", "s2", "s3", *FOLDS])
def test_official_numbers(setup: str, split: str):
    """Members and image numbers of every frame of a full-sized tree of uneven sequences, by four nested loops."""
    people, cameras, sequences = official(setup, split)
    expected, number = {}, 0
    for s in people:
        for q in sequences:
            for c in cameras:
                for f in range(LENGTHS[s, q]):
                    expected[s, q, c, f] = number
                    number += 1
    rows, numbers = select(setup, split, LENGTHS, 8, **KEYS)
    found = dict(zip(zip(*(KEYS[key][rows].tolist() for key in KEYS)), numbers.tolist()))
    assert found == expected


def test_real_sizes():
    """With 72 frames everywhere the splits have the sequences of the official table (s3: 750, 100, 150)."""
    sizes = {(setup, split): [len(x) for x in official(setup, split)] for setup in ("s0", "s1", "s2", "s3")
             for split in ("train", "val", "test")}
    for (setup, split), (people, cameras, sequences) in sizes.items():
        one = part(setup, split)
        assert (len(one.subjects), len(one.cameras), len(one.sequences)) == (people, cameras, sequences)
    assert [sizes["s3", split][0] * sizes["s3", split][2] for split in ("train", "val", "test")] == [750, 100, 150]


def test_left_out_frames_still_count():
    """The number of a frame does not change when other frames were left out of the prepared folder."""
    rows, numbers = select("s1", "test", LENGTHS, 8, **KEYS)
    some = np.flatnonzero(np.random.default_rng(1).random(len(KEYS["frame"])) < 0.3)
    kept, fewer = select("s1", "test", LENGTHS, 8, **{key: value[some] for key, value in KEYS.items()})
    assert dict(zip(some[kept].tolist(), fewer.tolist())).items() <= dict(zip(rows.tolist(), numbers.tolist())).items()


def test_random_split():
    """s4: 80/5/15 % of all frames, disjoint and complete, fixed, whatever was left out of the folder; no official numbers."""
    parts = {split: select("s4", split, LENGTHS, 8, **KEYS) for split in ("train", "val", "test", "train+val")}
    total = len(KEYS["frame"])
    rows = np.concatenate([parts[split][0] for split in ("train", "val", "test")])
    assert sorted(rows.tolist()) == list(range(total)) and all((numbers == -1).all() for _, numbers in parts.values())
    assert [len(parts[split][0]) for split in ("train", "val")] == [int(0.8 * total), int(0.85 * total) - int(0.8 * total)]
    assert set(parts["train+val"][0]) == set(parts["train"][0]) | set(parts["val"][0])
    some = np.arange(0, total, 3)
    fewer, _ = select("s4", "test", LENGTHS, 8, **{key: value[some] for key, value in KEYS.items()})
    assert set(some[fewer].tolist()) == set(parts["test"][0].tolist()) & set(some.tolist())


@pytest.mark.parametrize("people", [8, 10, 16, 61, 160])
def test_population(people: int):
    """Synthetic sets of any size: everyone is in one of train, val and test, s1's two test people in test, all three filled."""
    parts = {split: part("population", split, people, 3, 2) for split in ("train", "val", "test")}
    assert sorted(person for one in parts.values() for person in one.subjects) == list(range(people))
    assert {7, 8} & set(range(people)) <= set(parts["test"].subjects)
    assert {(one.sequences, one.cameras) for one in parts.values()} == {((0, 1, 2), (0, 1))}
    shares = [len(parts[split].subjects) / people for split in ("train", "val", "test")]
    assert np.abs(np.array(shares) - [3 / 8, 2 / 8, 3 / 8]).max() < 0.1
    lengths = np.ones((people, 1), int)
    keys = every_frame(lengths, 1)
    for split, one in parts.items():
        rows, numbers = select("population", split, lengths, 1, **keys)
        assert keys["subject"][rows].tolist() == list(one.subjects) and numbers.tolist() == list(range(len(rows)))


def test_train_and_val_together():
    """train+val is both, in official order of the tree, without numbers."""
    rows, numbers = select("s1", "train+val", LENGTHS, 8, **KEYS)
    both = np.union1d(select("s1", "train", LENGTHS, 8, **KEYS)[0], select("s1", "val", LENGTHS, 8, **KEYS)[0])
    assert np.array_equal(rows, both) and (numbers == -1).all()


def test_small_trees():
    """A tree of 4 people, 6 sequences, 3 cameras: ranks choose, what it lacks is empty, and the line says so."""
    lengths = np.full((4, 6), 2)
    keys = every_frame(lengths, 3)
    rows, numbers = select("s0", "test", lengths, 3, **keys)
    assert set(keys["subject"][rows]) == {2, 3} and set(keys["sequence"][rows]) == {4} and numbers.tolist() == list(range(12))
    with pytest.raises(InputError, match=r"DexYCB s1/test is empty: it takes subjects \[\], .* of a tree of 4 subjects, 6 seq"):
        select("s1", "test", lengths, 3, **keys)
    with pytest.raises(InputError, match="split 'dev' of DexYCB s1: expected one of train, val, test"):
        select("s1", "dev", lengths, 3, **keys)


def test_incomplete_download():
    """People keep the index of their folder's number; a split that lacks one of its people has no official numbers."""
    assert list(subject_indices(["20200928-subject-07", "20201002-subject-08"]).values()) == [6, 7]
    assert subject_indices(["anna", "berta"]) == {"anna": 0, "berta": 1}
    lengths = LENGTHS.copy()
    lengths[7] = 0
    keys = every_frame(lengths, 8)
    assert (select("s1", "test", lengths, 8, **keys)[1] == -1).all()
    assert (select("s1", "val", lengths, 8, **keys)[1] >= 0).all()


def test_options_offer_every_setup():
    """The option `setup` allows exactly the setups that exist, and the default serials are the official eight."""
    assert set(Options.model_fields["setup"].annotation.__args__) == set(SETUPS)
    assert len(SERIALS) == 8 and list(SERIALS) == sorted(SERIALS)
