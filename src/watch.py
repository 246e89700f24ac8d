"""What the loop sees of its steps: means of the loss terms, and the stop at a loss that is not finite.

Numbers are read one step late on a GPU, so that watching does not make it wait; `settle_all` before every checkpoint keeps a
broken step out of it.
"""
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from src.processes import World
from utils.errors import InputError


class Step(NamedTuple):
    """A finished step: means of the terms over the whole batch, norm of the gradient before clipping, and whether a process asked
    to stop or to save. All processes read the same, at the same step."""

    step: int
    terms: dict[str, float]
    grad_norm: float
    stop: bool
    save: bool


class _Pending(NamedTuple):
    step: int
    overall: Tensor  # terms' means, then the shares of processes that ask to stop and to save
    own: Tensor  # (terms, samples) of this process
    grad_norm: Tensor
    indices: list[int]
    ready: "torch.cuda.Event | None"


def _to_host(value: Tensor) -> Tensor:
    """A copy under way to pinned memory; into ordinary memory the program would wait for it."""
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


class Watch:
    """Takes each step's terms, gives back settled steps, adds up the epoch.

    names, weights: the loss terms; one of weight 0 may be anything. name_of: a sample's name from its index.
    """

    def __init__(self, weights: dict[str, float], world: World, name_of: Callable[[int], str], kept: str):
        self.names, self.weights, self.world, self.name_of, self.kept = list(weights), weights, world, name_of, kept
        self._queue: deque[_Pending] = deque()
        self.sums, self.count = [0.0] * len(weights), 0

    def push(self, step: int, own: Tensor, grad_norm: Tensor, indices: list[int], stop: bool, save: bool) -> list[Step]:
        """own (terms,b): per-sample terms of this process's samples `indices` in step `step`; stop, save: what this process asks
        for. Returns the steps now settled."""
        own = own.detach()
        overall = torch.cat((own.mean(1), own.new_tensor([float(stop), float(save)])))
        overall = self.world.sum(overall) / self.world.size
        ready = None
        if own.is_cuda:
            overall, own, grad_norm = map(_to_host, (overall, own, grad_norm))
            ready = torch.cuda.Event()
            ready.record()
        self._queue.append(_Pending(step, overall, own, grad_norm, indices, ready))
        return self._settled(leave=0 if ready is None else 1)

    def settle_all(self) -> list[Step]:
        """Every step pushed so far, waited for."""
        return self._settled(leave=0)

    def epoch_means(self) -> dict[str, float]:
        """Means of the terms over the steps since the last call, and a fresh start."""
        means = {name: total / max(self.count, 1) for name, total in zip(self.names, self.sums)}
        self.sums, self.count = [0.0] * len(self.names), 0
        return means

    def _settled(self, leave: int) -> list[Step]:
        done = []
        while len(self._queue) > leave:
            done.append(self._settle(self._queue.popleft()))
        return done

    def _settle(self, pending: _Pending) -> Step:
        if pending.ready is not None:
            pending.ready.synchronize()
        *means, stop, save = pending.overall.tolist()
        terms = dict(zip(self.names, means))
        weighed = torch.tensor([self.weights[name] != 0 for name in self.names])
        if not (pending.overall[:-2][weighed].isfinite().all() and pending.grad_norm.isfinite()):
            self._refuse(pending, weighed)
        self.sums = [total + mean for total, mean in zip(self.sums, means)]
        self.count += 1
        return Step(pending.step, terms, float(pending.grad_norm), stop > 0, save > 0)

    def _refuse(self, pending: _Pending, weighed: Tensor) -> None:
        """Name the terms and the samples, those of every process."""
        broken = ~pending.own.isfinite() & weighed[:, None]
        here = [name for name, row in zip(self.names, broken) if row.any()], \
               [self.name_of(pending.indices[i]) for i in broken.any(0).nonzero()[:, 0].tolist()]
        found = self.world.gather(here)
        terms = sorted({term for part, _ in found for term in part})
        samples = [sample for _, part in found for sample in part]
        what = f"loss {', '.join(terms)}" if terms else "the gradient (every loss is finite)"
        if not samples:
            samples = [self.name_of(index) for index in pending.indices]
        listed = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        raise InputError(f"training stopped: in step {pending.step} {what} is not finite, samples {listed}; look at these "
                         f"samples' labels, or lower train.lr or set train.clip; {self.kept} keeps the last good state")
