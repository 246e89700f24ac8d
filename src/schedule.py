"""Learning rate by step, optimisers, and the running average of the weights.

The rate is a function of the step alone, so that nothing about it need be saved. multistep is torch's MultiStepLR (the
original's schedule, specs/idhandmesh.md section 4: factor 0.1 at epochs 5 and 10 of 16); cosine falls from the end of the warm-up
to the last step, or epoch by epoch as torch's CosineAnnealingLR with T_max = epochs.
"""
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from src.method import Method
from src.train_options import TrainOptions

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def total_steps(options: TrainOptions, steps_per_epoch: int) -> int:
    """Length of the run in steps."""
    return options.steps if options.epochs is None else options.epochs * steps_per_epoch


def units_done(options: TrainOptions, step: int, steps_per_epoch: int) -> int:
    """Whole epochs after `step` steps where the run is counted in epochs, else the steps."""
    return step if options.epochs is None else step // steps_per_epoch


def lr_factor(options: TrainOptions, step: int, steps_per_epoch: int) -> float:
    """Share of `lr` that step 0, 1, ... is taken with."""
    factor = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    if options.schedule == "multistep":
        done = units_done(options, step, steps_per_epoch)
        factor *= options.gamma ** sum(milestone <= done for milestone in options.milestones)
    elif options.schedule == "cosine":
        if options.lr_per == "epoch":
            share = (step // steps_per_epoch) / options.epochs
        else:
            falling = max(total_steps(options, steps_per_epoch) - options.warmup, 1)
            share = min(max(step - options.warmup, 0) / falling, 1.0)
        factor *= options.lr_end + (1 - options.lr_end) * (1 + math.cos(math.pi * share)) / 2
    return factor


def build_optimizer(method: Method, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser over the method's groups; every other parameter is frozen.

    A group may say `lr` (instead of the option file's) or `lr_scale` (times it), and the optimiser's own keys.
    """
    groups = []
    for group in method.parameter_groups():
        group = dict(group)
        scale = group.pop("lr_scale", 1.0)
        rate = group.pop("lr", options.lr) * scale
        groups.append({**group, "params": list(group["params"]), "lr": rate, "full_lr": rate})
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    if not trained:
        raise TypeError(f"{type(method).__name__}.parameter_groups() holds no parameter: there is nothing to train")
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    extra = {"momentum": options.momentum} if options.optimizer == "sgd" else {}
    return OPTIMIZERS[options.optimizer](groups, lr=options.lr, weight_decay=options.weight_decay, fused=True, **extra)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's rate = its full rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor


class Ema:
    """Running average of a method's weights and float buffers (batch-norm statistics included): a += (1 - d) (w - a).

    The decay d of update n = 0, 1, ... is min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.
    """

    def __init__(self, method: nn.Module, decay: float):
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in method.state_dict().items()}

    @torch.no_grad()
    def update(self, method: nn.Module, n: int) -> None:
        """Take in the weights after update `n`; whole numbers (batch-norm's counter) are copied."""
        decay = min(self.decay, (1 + n) / (10 + n))
        now = method.state_dict()
        floats = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [now[name] for name in floats], 1 - decay)
        for name in now.keys() - set(floats):
            self.average[name].copy_(now[name])

    def load(self, average: dict[str, Tensor]) -> None:
        """Go on from a saved average of the same method."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextlib.contextmanager
    def applied(self, method: nn.Module) -> Iterator[None]:
        """The method with averaged weights; its own come back afterwards, bit for bit."""
        own: dict[str, Any] = {name: value.detach().clone() for name, value in method.state_dict().items()}
        method.load_state_dict(self.average)
        try:
            yield
        finally:
            method.load_state_dict(own)
