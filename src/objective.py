"""What is minimised: sum over terms of weight x mean over the batch, and what is refused before the first step."""
import dataclasses
import difflib
from typing import Any

import torch
from torch import Tensor, nn

from src.method import Method
from src.numerics import in_float32
from src.train_options import TrainOptions
from utils.batch import Batch, Source, require_fields
from utils.errors import InputError


def checked_weights(method: Method, source: Source, options: TrainOptions, loss_weights: dict[str, float],
             val_source: Source | None) -> dict[str, float]:
    """The weights in the method's order, after everything that can be refused before the first step."""
    if options.epochs is None and options.steps is None:
        raise InputError("train.epochs, train.steps: give one of them, the length of the run")
    names = method.loss_names
    for name, weight in loss_weights.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise InputError(f"loss.{name} = {weight}: {type(method).__name__} has no such loss; "
                             + (f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"))
        if not 0 <= weight < float("inf"):
            raise InputError(f"loss.{name} = {weight}: expected a weight of 0 or above")
    if lacking := [name for name in names if name not in loss_weights]:
        raise InputError(f"loss.{lacking[0]}: no weight given; {type(method).__name__} needs one for each of {', '.join(names)} "
                         "(0 = computed and logged only)")
    if not any(loss_weights.values()):
        raise InputError(f"loss: every weight is 0; give one of {', '.join(names)} a weight")
    if options.keep_best and val_source is None:
        raise InputError(f"train.keep_best={options.keep_best}: nothing is validated; set train.val_split, or keep_best to null")
    for split, found in ((options.split, source), (options.val_split, val_source)):
        if found is not None and (missing := require_fields(method.needs, found.provides)):
            raise InputError(f"{type(method).__name__} needs {', '.join(sorted(missing))}, which split {split} of this dataset "
                             f"does not provide (it has {', '.join(sorted(found.provides))}); choose another dataset or method"
                             + (", or prepare it with dataset.masks=true" if "mask" in missing else ""))
    return {name: float(loss_weights[name]) for name in names}


class Objective(nn.Module):
    """batch -> (loss, per-sample terms (t,b), metrics) of one process's share. A module, for DistributedDataParallel."""

    def __init__(self, method: Method, weights: dict[str, float], amp: torch.dtype | None, channels_last: bool):
        super().__init__()
        self.method, self.weights, self.amp, self.channels_last = method, weights, amp, channels_last

    def answer(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """The method's output in float32 and its per-sample terms."""
        if self.channels_last:
            batch = dataclasses.replace(batch, image=batch.image.contiguous(memory_format=torch.channels_last))
        with torch.autocast(batch.image.device.type, self.amp, enabled=self.amp is not None):
            out = self.method(batch)
        out = in_float32(out)
        terms = self.method.losses(out, batch)
        wrong = {name: tuple(term.shape) for name, term in terms.items() if term.shape != (len(batch),)}
        if wrong or terms.keys() != self.weights.keys():
            raise TypeError(f"{type(self.method).__name__}.losses: expected {list(self.weights)} of shape ({len(batch)},), found "
                            f"{list(terms)} with wrong shapes {wrong}")
        return out, terms

    def forward(self, batch: Batch, with_metrics: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        out, terms = self.answer(batch)
        loss = sum(weight * terms[name].mean() for name, weight in self.weights.items() if weight)
        metrics = {}
        if with_metrics:
            with torch.no_grad():
                metrics = self.method.metrics(out, batch)
        return loss, torch.stack([terms[name].detach() for name in self.weights]), metrics
