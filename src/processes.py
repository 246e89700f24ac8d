"""Several processes under torchrun: who am I, sums over all, batch-norm over the whole batch, and the request to stop.

`torchrun --nproc_per_node=N run.py train ...` starts N of us; each takes its share of every batch, gradients are averaged (gloo
on CPUs, nccl on GPUs). torch's SyncBatchNorm needs a GPU, so CPU processes use the one here; both give the arithmetic of one
process with the whole batch. Per-sample losses are averaged over the whole batch; a loss on *pairs* of samples sees the pairs
within one process's share (and part, when accumulating) only.
"""
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The processes of this run: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: object) -> list:
        """Everyone's small object, by rank."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def world_of(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, joined for the length of the block; alone without torchrun."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    cuda = device.type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class _SumOverAll(torch.autograd.Function):
    """Sum over all processes, of the value forwards and of its gradient backwards."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _SumOverAll.apply(gradient)


class CpuSyncNorm(nn.modules.batchnorm._BatchNorm):
    """Batch-norm whose statistics are of all processes' equally large shares, for CPUs. State dict as BatchNorm's."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected (b,c,...), found {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.float()
        size = dist.get_world_size()
        mean = _SumOverAll.apply(wide.mean(axes)) / size
        shape = (1, -1) + (1,) * (x.dim() - 2)
        centred = wide - mean.view(shape)
        var = _SumOverAll.apply(centred.square().mean(axes)) / size
        if self.track_running_stats:
            self._follow(mean.detach(), var.detach(), size * x.numel() // x.shape[1])
        scale = torch.rsqrt(var + self.eps) * (self.weight if self.affine else 1)
        out = centred * scale.view(shape) + (self.bias.view(shape) if self.affine else 0)
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, n: int) -> None:
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var * n / max(n - 1, 1), momentum)


def with_synced_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every batch-norm replaced by one over all processes; parameters and buffers are kept."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synced = CpuSyncNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            synced.__dict__.update(child.__dict__)  # the same parameters and buffers
            setattr(module, name, synced)
        else:
            with_synced_norm(child, device)
    return module


class StopRequest:
    """SIGTERM and SIGINT (Ctrl-C), turned into a request that the loop grants after its step; a second signal kills.

    Under torchrun the launcher repeats the terminal's signal at once, so there the second counts only a second later.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._grace_s = 1.0 if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0.0
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._requested)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _requested(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since >= self._grace_s:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
