"""Several datasets in one training, each with a weight: `dataset: {name: mixed, train: [...], test: {...}}`.

An epoch has `length` slots, shared out by weight. Slot and epoch give a part's running number, and that its row: a part is gone
through in an order of its own, permuted anew on every pass by (seed, part, pass), whatever its weight. So the samples of a step
follow from (seed, epoch, slot) alone, as everywhere: a run that is killed goes on with the same ones.
Every part makes its own labels by its own conventions; a field that a part has not is silenced by its has_* flag. What a method
is told (`identity`) must come from every part.
"""
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from datasets.augment import AugmentOptions, CropOptions
from datasets.prepared import BASE
from datasets.reader import NOWHERE, Hands, Reader
from utils.batch import Batch, JointSet
from utils.errors import InputError
from utils.strict import Strict, named

FLAGS = {"joints": "has_joints", "verts": "has_verts", "rotations": "has_rotations", "shape": "has_shape", "root": "has_root",
         "chain_wrist": "has_rotations", "joints_uv": "has_uv", "uv_confidence": "has_uv", "mask": "has_mask"}
PEOPLE = 1_000_000  # a part's subjects are numbered from part * PEOPLE: nobody is in two datasets
Dataset = Annotated[SerializeAsAny[Strict], named("datasets")]


class Part(Strict):
    """One dataset of a mixture."""

    dataset: Dataset
    split: str = Field("train", description="split of that dataset")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other parts'")


class Options(Strict):
    """`dataset:` of an option file."""

    name: Literal["mixed"] = "mixed"
    train: tuple[Part, ...] = Field(min_length=1, description="what the split `train` is mixed of")
    test: Dataset | None = Field(None, description="the dataset that every other split is read from")
    length: int | None = Field(None, ge=1, description="samples of an epoch; null = as many as all parts have")

    @model_validator(mode="after")
    def _one_left_hand(self) -> Self:
        found = [d for d in (*(part.dataset for part in self.train), self.test) if d is not None]
        if any(d.name == "mixed" for d in found):
            raise ValueError("a mixture of mixtures: name the datasets themselves")
        if len({d.left_shapedirs for d in found if d.hands == "mirror_left"}) > 1:
            raise ValueError("parts with hands=mirror_left read the left hand file differently (left_shapedirs); train on right "
                             "hands only, or on parts that agree")
        return self

    @property
    def left_shapedirs(self) -> str:
        """How the left hand file is read: as the parts that read left hands say."""
        found = [d for d in (*(part.dataset for part in self.train), self.test) if d is not None]
        return next((d.left_shapedirs for d in found if d.hands == "mirror_left"), "as_is")


def prepare(options: Options, hands: Hands) -> str:
    """A mixture has nothing of its own to prepare: InputError that says so."""
    raise InputError(f"dataset.name=mixed: prepare its datasets one by one ({_names(options)}), each by its own option file")


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> "Mixed | Reader":
    """The mixture for split `train`; options.test's own reader for any other. Raises InputError as the parts do."""
    def opened(dataset: Strict, of: str) -> Reader:
        return import_module(f"datasets.{dataset.name}").open_reader(dataset, crop, augment, split=of, train=train, seed=seed,
                                                                     hands=hands, needs=needs)

    if split == "train":
        return Mixed(options, tuple(opened(part.dataset, part.split) for part in options.train), seed, needs)
    if options.test is None:
        raise InputError(f"dataset.test: split {split} is read from one dataset, and none is named; set dataset.test")
    return opened(options.test, split)


class Mixed:
    """utils.batch.Source over several readers. Rows are numbered through all parts: part p's follow those of part p - 1."""

    def __init__(self, options: Options, parts: tuple[Reader, ...], seed: int, needs: frozenset[str] | None = None):
        self.options, self.parts, self.seed = options, parts, seed
        self.counts = [len(part) for part in parts]
        self.first_row = [0, *np.cumsum(self.counts).tolist()]
        self.slots = _shares([part.weight for part in options.train], options.length or sum(self.counts))
        self.first_slot = [0, *np.cumsum(self.slots).tolist()]
        self.joint_set: JointSet = parts[0].joint_set
        self.size = max(part.read_pixels for part in parts)
        self._raw = self._templates()
        labelled = frozenset(FLAGS) | frozenset(FLAGS.values())
        every = frozenset.intersection(*(part.provides for part in parts))
        self.provides = every | (frozenset.union(*(part.provides for part in parts)) & labelled)
        wanted = self.provides if needs is None else self.provides & needs
        self._fields = sorted(BASE | wanted | {FLAGS[name] for name in wanted if name in FLAGS})  # of every batch

    def _templates(self) -> dict[str, np.ndarray]:
        """Zeros of every entry that some part's samples have."""
        found: dict[str, np.ndarray] = {}
        self._own: list[frozenset[str]] = []
        for part in self.parts:
            raw = part[0, 0]
            self._own.append(frozenset(raw))
            found |= {name: np.zeros_like(value) for name, value in raw.items() if name not in ("image", "mask")}
        return found

    def __len__(self) -> int:
        return self.first_slot[-1]

    def row(self, epoch: int, slot: int) -> tuple[int, int, int]:
        """(part, pass, row of the part) of a slot."""
        part = int(np.searchsorted(self.first_slot, slot, side="right")) - 1
        turn, place = divmod(epoch * self.slots[part] + slot - self.first_slot[part], self.counts[part])
        return part, turn, int(_permutation(self.seed, part, turn, self.counts[part])[place])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, slot = int(key[0]), int(key[1])
        if not 0 <= slot < len(self):
            raise IndexError(f"slot {slot} of {len(self)}")
        part, turn, row = self.row(epoch, slot)
        raw = self.parts[part][turn, row]
        raw["index"] = np.int64(self.first_row[part] + row)
        image = np.zeros((self.size, self.size, 3), np.uint8)  # beyond a stored picture is black, as for a crop that leaves it
        image[:len(raw["image"]), :len(raw["image"])] = raw["image"]
        whole = {**self._raw, **raw, "image": image, "part": np.int64(part)}
        if any("mask" in own for own in self._own):
            whole["mask"] = np.zeros(image.shape[:2], np.uint8)
            if "mask" in raw:
                whole["mask"][:len(raw["mask"]), :len(raw["mask"])] = raw["mask"]
        return whole

    def batch(self, raw: dict[str, Tensor]) -> Batch:
        """Rows of each part by its own reader, put together in the order of the stack."""
        rows, batches = [], []
        for number, part in enumerate(self.parts):
            where = torch.nonzero(raw["part"] == number).flatten()
            if not len(where):
                continue
            own = {name: value[where] for name, value in raw.items() if name in self._own[number]}
            size = part.read_pixels
            own |= {name: own[name][:, :size, :size].contiguous() for name in ("image", "mask") if name in own}
            rows.append(where)
            batches.append(self._whole(part.batch(own), number))
        order = torch.argsort(torch.cat(rows))
        return Batch(**{name: torch.cat([b[name] for b in batches])[order] for name in batches[0]})

    def _whole(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """A part's batch with every field that is wanted; what the part lacks is neutral and flagged as missing."""
        n, image = len(batch), batch.image
        found = {f.name: value for f in fields(batch) if (value := getattr(batch, f.name)) is not None}
        found["subject"] = found["subject"] + number * PEOPLE
        for name in set(FLAGS) & set(self._fields):
            found.setdefault(FLAGS[name], torch.full((n,), name in found, device=image.device))
            if name not in found:
                found[name] = _neutral(name, image)
        return {name: found[name] for name in self._fields}

    def sample_name(self, index: int) -> str:
        part = int(np.searchsorted(self.first_row, index, side="right")) - 1
        return f"{self.options.train[part].dataset.name}: {self.parts[part].sample_name(index - self.first_row[part])}"

    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {}

    def protocol(self) -> dict[str, Any]:
        return {"dataset": f"mixture of {_names(self.options)}", "split": "train", "slots": self.slots,
                "parts": [part.protocol() for part in self.parts]}


def _names(options: Options) -> str:
    return ", ".join(f"{part.dataset.name} {part.split}" for part in options.train)


def _shares(weights: list[float], length: int) -> list[int]:
    """`length` slots by weight: whole numbers, the largest remainders rounded up."""
    exact = np.array(weights) / sum(weights) * length
    slots = np.floor(exact).astype(int)
    slots[np.argsort(slots - exact, kind="stable")[:length - slots.sum()]] += 1
    if (slots == 0).any():
        raise InputError(f"dataset.train: part {int(np.argmin(slots)) + 1} gets none of {length} samples; raise its weight or "
                         "dataset.length")
    return slots.tolist()


@lru_cache(maxsize=16)
def _permutation(seed: int, part: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 41, part, turn]).permutation(count)


def _neutral(name: str, image: Tensor) -> Tensor:
    """A field's value in rows that have none of it: finite wherever a loss may look."""
    n = len(image)
    if name in ("root", "chain_wrist"):
        return image.new_tensor(NOWHERE).expand(n, 3)
    if name == "rotations":
        return torch.eye(3, device=image.device).expand(n, 16, 3, 3)
    sizes = {"joints": (21, 3), "verts": (778, 3), "shape": (10,), "joints_uv": (21, 2), "uv_confidence": (21,),
             "mask": image.shape[2:]}
    return image.new_zeros(n, *sizes[name])
