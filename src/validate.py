"""Errors of a method on a split while it trains: wrist-relative means in mm, pixels, and the loss terms.

These watch a run; they choose nothing and are not the evaluation (`run.py test` is, with protocol and intervals).
"""
from collections.abc import Callable

import torch
from torch import Tensor

from src.loader import stacks
from src.losses import mean_known
from src.method import Method
from src.processes import World
from utils.batch import Batch, Prediction, Source, stack_to


def validate(method: Method, source: Source, *, frames: int, batch: int, workers: int, device: torch.device,
             world: World, forward: Callable[[Batch], tuple[object, dict[str, Tensor]]], stop: Callable[[], bool],
             ) -> dict[str, float] | None:
    """mpjpe_mm and mpvpe_mm (against joints and verts, both relative to their wrist), joints_uv_px (pixels of the crop), whatever
    of these the method predicts, and its loss terms, as means over samples; None if `stop()` said so on any process meanwhile.

    frames: how many, evenly spread; 0 = all. batch: samples at once on each process. forward: batch -> (out, per-sample terms).
    """
    rows = spread(len(source), frames)[world.rank::world.size]
    asked = [[(0, row) for row in rows[i:i + batch]] for i in range(0, len(rows), batch)]
    sums: dict[str, Tensor] = {}
    was_training = method.training
    method.eval()
    try:
        with torch.no_grad():
            for raw in stacks(source, asked, workers=workers, pinned=device.type == "cuda"):
                if stop():
                    break
                _add(sums, method, source.batch(stack_to(raw, device)), forward)
    finally:
        method.train(was_training)
    return _means(sums, stop(), device, world)


def spread(count: int, frames: int) -> list[int]:
    """`frames` rows evenly over 0..count-1, or all."""
    if not 0 < frames < count:
        return list(range(count))
    return [i * count // frames for i in range(frames)]


def _add(sums: dict[str, Tensor], method: Method, batch: Batch, forward: Callable) -> None:
    """Add a batch's totals and counts."""
    out, terms = forward(batch)
    errors = {name: (term, None) for name, term in terms.items()}
    errors.update(prediction_errors(method.decode(out, batch), batch))
    for name, (value, known) in errors.items():
        known = torch.ones_like(value, dtype=torch.bool) if known is None else known.bool()
        total = torch.stack((value.double().where(known, 0.0).sum(), known.double().sum()))
        sums[name] = sums.get(name, 0) + total


def prediction_errors(pred: Prediction, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
    """name -> ((b) mean distance per sample; which rows are labelled): mm, relative to the meshes' own wrists, or pixels."""
    errors = {}
    if batch.joints is not None and pred.joints is not None:
        true_wrist = batch.joints[:, :1]
        errors["mpjpe_mm"] = (1000 * (pred.joints - (batch.joints - true_wrist)).norm(dim=-1).mean(-1), batch.has_joints)
        if batch.verts is not None:
            errors["mpvpe_mm"] = (1000 * (pred.verts - (batch.verts - true_wrist)).norm(dim=-1).mean(-1), batch.has_verts)
    if batch.joints_uv is not None and pred.joints_uv is not None:
        off = (pred.joints_uv - batch.joints_uv).norm(dim=-1)
        errors["joints_uv_px"] = (mean_known(off, batch.uv_confidence), batch.has_uv)
    return errors


def _means(sums: dict[str, Tensor], stopped: bool, device: torch.device, world: World) -> dict[str, float] | None:
    """Totals of all processes; one whose share is empty takes the names from the others."""
    names = sorted({name for part in world.gather(sorted(sums)) for name in part})
    totals = torch.stack([sums.get(name, torch.zeros(2)).to(device, torch.float64) for name in names]
                         + [torch.tensor([float(stopped), 0.0], dtype=torch.float64, device=device)])
    totals = world.sum(totals).cpu()
    if totals[-1, 0] > 0:
        return None
    return {name: (total / count).item() for name, (total, count) in zip(names, totals[:-1]) if count > 0}
