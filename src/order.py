"""Which samples a step trains on, and its random numbers: arithmetic in (seed, epoch, step, process), never a state to be saved.

An epoch is a permutation by a generator seeded with (seed, epoch), cut into steps; its incomplete last batch is dropped, as the
original did. A step's batch is cut into equal shares, one for each part and process, in the same order however many there are, so
that the number of processes and parts changes the arithmetic of a step by rounding alone.
"""
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from utils.errors import InputError

Key = tuple[int, int]  # (epoch, index): what a Source is asked for


def mixed_seed(*numbers: int) -> int:
    """63 bits that look random and differ for every list of whole numbers."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Order:
    """Samples of each step of a run over `count` samples. overfit: every step gets the samples of step 0."""

    count: int
    batch: int
    seed: int
    overfit: bool = False
    _epochs: dict[int, list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.batch > self.count:
            raise InputError(f"train.batch = {self.batch}: expected at most the number of samples of the split, found "
                             f"{self.count}; lower train.batch or prepare more data")

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch

    def keys(self, step: int) -> list[Key]:
        """The `batch` samples of step 0, 1, ..."""
        epoch, place = divmod(0 if self.overfit else step, self.steps_per_epoch)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # this one and the next, which decoding ahead may have reached
                del self._epochs[min(self._epochs)]
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._epochs[epoch] = torch.randperm(self.count, generator=generator).tolist()
        return [(epoch, index) for index in self._epochs[epoch][place * self.batch:(place + 1) * self.batch]]

    def shares(self, first: int, last: int, rank: int, processes: int, parts: int) -> Iterator[list[Key]]:
        """This process's samples for steps first..last-1, one list for each of a step's parts."""
        size = self.batch // (processes * parts)
        for step in range(first, last):
            keys = self.keys(step)
            for part in range(parts):
                start = (part * processes + rank) * size
                yield keys[start:start + size]
