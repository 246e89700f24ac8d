"""datasets/mixed.py: shares, order and labels of several datasets in one training."""
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import default_collate

from datasets import mixed
from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options as DexYcbOptions
from datasets.dex_ycb import prepare
from datasets.mixed import Mixed, open_reader
from datasets.reader import Reader
from tests.dex_ycb_cases import SERIALS, toy_hand, write_tree
from utils.batch import Batch
from utils.camera import project
from utils.errors import InputError

HANDS = {"right": toy_hand()}
CROP = CropOptions(pixels=32)


def options_of(root: Path, name: str, **changes) -> DexYcbOptions:
    return DexYcbOptions(root=str(root / "tree"), prepared=str(root / name), width=160, height=120, serials=SERIALS[:2],
                         workers=1, setup="s1", in_image=False, **changes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[DexYcbOptions, DexYcbOptions]:
    """One tree prepared twice, at different sizes: two datasets that differ in the number of rows and of stored pixels."""
    root = tmp_path_factory.mktemp("mixed")
    write_tree(root / "tree", HANDS | {"left": toy_hand("left")}, people=10, sequences=2, lefts=False)
    small = options_of(root, "small", stored={"factor": 2.0, "pixels": 40}, every=3)
    large = options_of(root, "large", stored={"factor": 3.0, "pixels": 64})
    for one in (small, large):
        prepare(one, HANDS)
    return small, large


def mixture(parts, **changes) -> mixed.Options:
    small, large = parts
    return mixed.Options(**{"train": [{"dataset": small, "weight": 3.0}, {"dataset": large}], "test": large, **changes})


def opened(options: mixed.Options, split: str = "train", needs=None, augment: AugmentOptions | None = None, train: bool = True,
           ) -> Mixed | Reader:
    return open_reader(options, CROP, augment or AugmentOptions(), split=split, train=train, seed=5, hands=HANDS, needs=needs)


def batch_of(source: Mixed, keys: list[tuple[int, int]]) -> Batch:
    return source.batch(default_collate([source[key] for key in keys]))


def test_shares_follow_the_weights(parts):
    """3 to 1 of an epoch of 40 slots are 30 and 10, whatever the parts' sizes; the default length is all rows of all parts."""
    source = opened(mixture(parts, length=40))
    assert source.slots == [30, 10]
    assert Counter(source.row(0, slot)[0] for slot in range(40)) == {0: 30, 1: 10}
    assert len(opened(mixture(parts))) == sum(source.counts)


def test_every_row_has_its_turn(parts):
    """Over any number of epochs a part's rows are read equally often, to within one."""
    source = opened(mixture(parts, length=37))
    for part, count in enumerate(source.counts):
        seen = Counter(row for epoch in range(9) for slot in range(37) for p, _, row in [source.row(epoch, slot)] if p == part)
        times = [seen[row] for row in range(count)]
        assert max(times) - min(times) <= 1 and max(times) > 0


def test_order_is_arithmetic(parts):
    """A reader that is opened anew gives the same rows, pictures and random numbers for any (epoch, slot), asked in any order."""
    first = opened(mixture(parts), augment=AugmentOptions(rotate=30))
    again = opened(mixture(parts), augment=AugmentOptions(rotate=30))
    for key in [(7, 3), (0, 0), (2, len(first) - 1)]:
        one, two = first[key], again[key]
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_row_of_two_passes_differs(parts):
    """The same row in two passes of one epoch is augmented differently."""
    source = opened(mixture(parts, length=200), augment=AugmentOptions(rotate=30))
    where: dict[tuple[int, int], list[int]] = {}
    for slot in range(200):
        part, _, row = source.row(0, slot)
        where.setdefault((part, row), []).append(slot)
    slots = next(found for found in where.values() if len(found) > 1)
    assert not np.array_equal(source[0, slots[0]]["random"], source[0, slots[1]]["random"])


def test_rows_are_the_parts_own(parts):
    """A mixed batch holds, row by row, exactly what each part alone makes of that sample."""
    source = opened(mixture(parts), augment=AugmentOptions(rotate=30, scale=0.1, shift=0.05))
    keys = [(1, slot) for slot in range(0, len(source), 3)]
    batch = batch_of(source, keys)
    for i, key in enumerate(keys):
        part, turn, row = source.row(*key)
        own = source.parts[part]
        alone = own.batch(default_collate([own[turn, row]]))
        assert source.sample_name(int(batch.index[i])).endswith(own.sample_name(row))
        for name in ("K", "joints", "verts", "joints_uv", "root", "rotations", "shape"):
            torch.testing.assert_close(getattr(batch, name)[i], getattr(alone, name)[0], rtol=1e-5, atol=1e-5)
        assert (batch.image[i] - alone.image[0]).abs().max() < 0.51 / 255  # the grid is float32 in units of the padded picture
    torch.testing.assert_close(project(batch.joints, batch.K), batch.joints_uv, rtol=0, atol=0.02)


class Sparse(Reader):
    """A dataset with 2D joints alone: what one part has and the other has not."""

    pose_pca, pose_flat_mean, tips, joints_kind = True, False, "manopth", "chain"
    provides = frozenset({"image", "K", "crop_from_image", "mirrored", "index", "subject", "joints_uv",
                          "uv_confidence", "has_uv"})
    read_pixels = 20

    def __len__(self) -> int:
        return 4

    def sample_name(self, index: int) -> str:
        return f"sparse/{index}"

    def protocol(self) -> dict:
        return {"dataset": "sparse"}

    def read(self, index: int) -> dict:
        uv = np.stack([np.linspace(5, 15, 21), np.linspace(15, 5, 21)], 1).astype(np.float32)
        return {"image": np.full((20, 20, 3), 99, np.uint8), "stored_from_image": np.eye(3), "K": np.eye(3, dtype=np.float32),
                "width": np.int64(20), "box": np.array([10, 10, 10.0]), "mirrored": np.bool_(False), "subject": np.int64(0),
                "joints_uv": uv}


def test_what_a_part_lacks_is_flagged(parts):
    """A part with 2D joints alone: its rows have has_joints, has_verts, has_shape False and finite fields."""
    options = mixture(parts)
    sparse = Sparse(CROP, AugmentOptions(), HANDS, train=False, seed=5)
    source = Mixed(options, (sparse, opened(options).parts[1]), 5)
    assert {"verts", "joints", "shape", "has_verts"} <= source.provides and "identity" not in source.provides
    keys = [(0, slot) for slot in range(len(source))]
    batch = batch_of(source, keys)
    part = torch.tensor([source.row(*key)[0] for key in keys])
    for flag in ("has_joints", "has_verts", "has_shape", "has_root", "has_rotations"):
        assert torch.equal(getattr(batch, flag), part == 1), flag
    assert batch.has_uv.all() and torch.isfinite(project(batch.root[:, None], batch.K)).all()
    assert torch.isfinite(batch.verts).all() and torch.isfinite(batch.rotations).all()


def test_only_what_is_needed(parts):
    """needs joints_uv alone: no mesh is made."""
    batch = batch_of(opened(mixture(parts), needs=frozenset({"joints_uv"})), [(0, 0), (0, 40)])
    assert batch.verts is None and batch.joints_uv is not None and batch.has_uv.all()


def test_other_splits_are_of_one_dataset(parts):
    """test and val come from dataset.test, or are refused where none is named."""
    assert not isinstance(opened(mixture(parts), "test", train=False), Mixed)
    with pytest.raises(InputError, match="dataset.test: split val is read from one dataset"):
        opened(mixture(parts, test=None), "val", train=False)


def test_refusals(parts):
    """No mixture of mixtures, no part without a share, nothing to prepare, left hands read in one way."""
    with pytest.raises(ValidationError, match="a mixture of mixtures"):
        mixture(parts, test=mixture(parts))
    with pytest.raises(InputError, match="part 2 gets none of 1 samples"):
        opened(mixture(parts, length=1))
    with pytest.raises(InputError, match="prepare its datasets one by one"):
        mixed.prepare(mixture(parts), HANDS)
    small, large = (one.model_copy(update={"hands": "mirror_left", "left_shapedirs": how})
                    for one, how in zip(parts, ("as_is", "flip_x")))
    with pytest.raises(ValidationError, match="read the left hand file differently"):
        mixture((small, large))
