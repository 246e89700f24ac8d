"""Training: a plain loop on torch, from one CPU to many GPUs under torchrun.

Exact resume: a run killed at any step and started again ends with the weights of an undisturbed run, bit for bit on the same
device, number of threads and of processes. The samples of a step are arithmetic (src/order.py), each step seeds torch from (seed,
step, process), and checkpoints hold all else: weights, their average, optimiser, step. A run whose folder holds an unfinished run
of the same options goes on with it.

The loss is sum_t weight_t mean_b term_t over the whole batch of a step, however it is split over processes and parts. bfloat16
autocast covers a method's forward alone: losses and decoding are in float32.
Seed: the original's resume forgot optimiser and schedule, and every epoch looked at the test split.
"""
import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from src import checkpoint
from src.board import Board
from src.loader import stacks, worker_deaths
from src.method import Method
from src.numerics import autocast_type, reproducible
from src.objective import Objective, checked_weights
from src.order import Order, mixed_seed
from src.processes import StopRequest, World, with_synced_norm, world_of
from src.schedule import Ema, build_optimizer, lr_factor, set_lr, total_steps
from src.train_options import TrainOptions
from src.validate import validate
from src.watch import Step, Watch
from utils.batch import Source, stack_to
from utils.errors import InputError
from utils.files import write_text

__all__ = ["TrainOptions", "TrainResult", "train"]
log = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """steps done of `total`, over all restarts · seconds in the loop (validation and checkpoints left out) · data_wait_share of
    them · images_per_s · checkpoint: last.pt · stopped_by: the signal that ended the run early, or None."""

    steps: int
    total: int
    seconds: float
    data_wait_share: float
    images_per_s: float
    checkpoint: Path
    stopped_by: int | None


def train(method: Method, source: Source, options: TrainOptions, *, loss_weights: dict[str, float], folder: Path,
          options_text: str, seed: int, device: torch.device, hand_info: dict[str, str] | None, method_name: str,
          val_source: Source | None = None) -> TrainResult:
    """Train `method` on `source` (opened with train=True, but for `overfit` without augmentation), or go on with the unfinished
    run in `folder`; a finished one is left as it is.

    loss_weights: one for each of method.loss_names. folder: gets last.pt, options.yaml (options_text, the resolved yaml), board/.
    device: this process's. hand_info: {name, sha256} of the hand model. Raises InputError: options or weights that do not fit the
    method, the data or the folder's run; a loss that is not finite (names of terms and samples); samples that cannot be read; a
    full disk. SIGTERM and SIGINT save and return.
    """
    weights = checked_weights(method, source, options, loss_weights, val_source)
    with StopRequest() as stop, world_of(device) as world, reproducible(options.deterministic):
        loop = _Loop(method, source, options, weights, Path(folder), options_text, seed, device, world, stop, val_source,
                     {"method_name": method_name, "hand_info": hand_info})
        return loop.run()


class _Loop:
    """One run: its state, and what happens in and around a step."""

    def __init__(self, method: Method, source: Source, options: TrainOptions, weights: dict[str, float], folder: Path,
                 options_text: str, seed: int, device: torch.device, world: World, stop: StopRequest, val_source: Source | None,
                 identity: dict[str, Any]):
        self.options, self.folder, self.options_text, self.seed, self.identity = options, folder, options_text, seed, identity
        self.source, self.val_source, self.device, self.world, self.stop = source, val_source, device, world, stop
        if options.batch % (world.size * options.accumulate):
            raise InputError(f"train.batch = {options.batch}: cannot be split over {world.size} processes and train.accumulate = "
                             f"{options.accumulate} parts; choose a multiple of {world.size * options.accumulate}")
        self.order = Order(len(source), options.batch, seed, options.overfit)
        self.total = total_steps(options, self.order.steps_per_epoch)
        self.last = folder / "last.pt"
        self.data = json.dumps(source.protocol(), sort_keys=True, default=str)
        self.amp = autocast_type(options.amp, device)
        self.method = method.to(device)
        self.watch = Watch(weights, world, source.sample_name, str(self.last))
        self.step, self.seconds, self.waited = 0, 0.0, 0.0
        self.validated, self.best = 0, float("inf")  # last step that was validated; lowest value of options.keep_best so far

    def run(self) -> TrainResult:
        """From wherever the folder stands to the end, or to a signal."""
        found = checkpoint.load(self.last, "cpu") if self.last.exists() else None
        if found is not None:
            checkpoint.require_fitting(found, self.last, **self.identity)
            checkpoint.require_same_run(found, self.last, self.options_text, self.data)
            self.step, self.seconds, self.waited = found["step"], found["seconds"], found["waited"]
            self.validated, self.best = found.get("validated", self.step), found.get("best", self.best)
            if self.step >= self.total and not self._validation_missed():
                log.info("%s: this run is finished (%d steps); another name= starts another run", self.folder, self.step)
                return self._result()
        self._start(found)
        self.world.wait()  # nobody writes before all have looked
        self._save_first(found)
        del found
        self.board, self.board_step = Board(self.folder, self.step, self.world.first), self.step
        self.board_seconds, self.board_waited = self.seconds, self.waited
        try:
            self._steps()
        finally:
            self.board.close()
        return self._result()

    def _start(self, found: dict[str, Any] | None) -> None:
        """Weights, optimiser and average: new ones, those of `init`, or the checkpoint's."""
        options, method = self.options, self.method
        if found is not None:
            checkpoint.fill(method, found["model"], self.last)
        elif options.init:
            checkpoint.load_weights(method, options.init, **self.identity, allow_missing=options.init_missing,
                                    allow_unused=options.init_unused)
        elif self.world.first:  # the others receive them below
            method.start_weights()
        if options.channels_last:
            method.to(memory_format=torch.channels_last)
        if self.world.size > 1 and options.sync_norm:
            with_synced_norm(method, self.device)
        if options.compile:
            method.compile()
        self.optimizer = build_optimizer(method, options)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.objective = Objective(method, self.watch.weights, self.amp, options.channels_last)
        unused = options.unused_parameters or not all(self.watch.weights.values())
        self.parallel = self.objective if self.world.size == 1 else DistributedDataParallel(
            self.objective, find_unused_parameters=unused, gradient_as_bucket_view=True)
        self.ema = Ema(method, options.ema) if options.ema else None
        if found is not None:
            self.optimizer.load_state_dict(found["optimizer"])
            if self.ema:
                self.ema.load(found["ema"])
            self.watch.sums, self.watch.count = found["epoch_sums"], found["epoch_count"]
            log.info("%s: going on from step %d of %d", self.folder, self.step, self.total)
            if found["processes"] != self.world.size or found["device"] != str(self.device.type):
                log.warning("%s: began with %d processes on %s, goes on with %d on %s: not bit-equal to an undisturbed run",
                            self.folder, found["processes"], found["device"], self.world.size, self.device.type)

    def _save_first(self, found: dict[str, Any] | None) -> None:
        """Also what random weights a run begins with is kept, so that one killed early begins with them again."""
        if self.world.first:
            for leftover in self.folder.glob(".last.pt.*.part"):  # of a process killed while it wrote
                leftover.unlink()
            write_text(self.folder / "options.yaml", self.options_text)
        if found is None:
            self._save()
        self.saved_at = time.monotonic()

    def _steps(self) -> None:
        options, world = self.options, self.world
        asked = self.order.shares(self.step, self.total, world.rank, world.size, options.accumulate)
        shares = self.order.shares(self.step, self.total, world.rank, world.size, options.accumulate)
        decoded = stacks(self.source, asked, workers=options.workers, pinned=self.device.type == "cuda")
        self.method.train()
        bar = tqdm(total=self.total, initial=self.step, unit="step", desc=self.folder.name, disable=None if world.first else True)
        with worker_deaths(), contextlib.closing(decoded), bar:
            if self._validation_missed():
                self._validate()
            while self.step < self.total:
                settled = self._step(decoded, shares)
                bar.update(1)
                if settled:
                    bar.set_postfix_str(_listed(settled[-1].terms), refresh=False)
                if self._after(settled):
                    break
        self._log(self.watch.settle_all())
        if self.step < self.total:
            log.info("%s: asked to stop, saved at step %d of %d; the same command goes on", self.folder, self.step, self.total)
        self._save()

    def _step(self, decoded: Iterator[dict[str, Tensor]], shares: Iterator[list[tuple[int, int]]]) -> list[Step]:
        """One update of the weights; returns the steps whose numbers are now known."""
        began, options = time.perf_counter(), self.options
        torch.manual_seed(mixed_seed(self.seed, self.step, self.world.rank))
        set_lr(self.optimizer, lr_factor(options, self.step, self.order.steps_per_epoch))
        logged = (self.step + 1) % options.log_every == 0
        terms, indices, metrics = [], [], {}
        for part in range(options.accumulate):
            waiting = time.perf_counter()
            raw = next(decoded)
            self.waited += time.perf_counter() - waiting
            next(shares)
            indices += raw["index"].tolist()  # as the source numbers its samples, which need not be the order's slots
            batch = self.source.batch(stack_to(raw, self.device))
            if self.step == 0 and part == 0:
                self.board.images("train/img", batch, 0)
            last = part == options.accumulate - 1
            with contextlib.nullcontext() if last or self.world.size == 1 else self.parallel.no_sync():
                loss, own, metrics = self.parallel(batch, logged and last)
                (loss / options.accumulate).backward()
            terms.append(own)
        norm = self._update()
        settled = self.watch.push(self.step, torch.cat(terms, 1), norm, indices, self.stop.signal is not None, self._wants_save())
        self.step += 1
        self.seconds += time.perf_counter() - began
        if logged:
            self.board.scalars({f"train_{name}": float(value) for name, value in metrics.items()}, self.step)
        return settled

    def _update(self) -> Tensor:
        """Clip, step, average; returns the norm of the gradient before clipping."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.options.clip:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.options.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.method, self.step)
        return norm

    def _after(self, settled: list[Step]) -> bool:
        """Curves, checkpoints and validation that are due after a step; whether to stop. All processes decide alike."""
        options, per_epoch = self.options, self.order.steps_per_epoch
        kept = self._ends_unit(options.keep_every)
        if kept or self.step % per_epoch == 0 or any(step.save for step in settled):
            settled = settled + self.watch.settle_all()
        save = kept or any(step.save for step in settled)
        self._log(settled)
        if self.step % per_epoch == 0:
            self._log_epoch()  # before the checkpoint, which would keep this epoch's sums
        if save:
            self._save(*([self.folder / f"step_{self.step:07d}.pt"] if kept else []))
        stop = any(step.stop for step in settled)
        if self._validation_due() and not stop:
            self._validate()
        return stop

    def _validation_due(self) -> bool:
        every = self.options.validate_every
        due = self._ends_unit(every) if every else self.step % self.order.steps_per_epoch == 0
        return self.val_source is not None and self.step > 0 and (due or self.step == self.total)

    def _validation_missed(self) -> bool:
        """Whether the run was stopped between the last step's checkpoint and the end of the validation after it."""
        return self.options.keep_best is not None and self._validation_due() and self.validated < self.step

    def _ends_unit(self, every: int) -> bool:
        """Whether the step just done ends the last of each `every` epochs (or steps, as the run is counted)."""
        unit = 1 if self.options.epochs is None else self.order.steps_per_epoch
        return every > 0 and self.step % (every * unit) == 0

    def _wants_save(self) -> bool:
        options = self.options
        by_time = options.save_seconds and time.monotonic() - self.saved_at >= options.save_seconds
        return bool(options.save_every and (self.step + 1) % options.save_every == 0) or bool(by_time and self.world.first)

    def _save(self, *copies: Path) -> None:
        """last.pt, and the same again under the names of `copies`; every step so far must be settled."""
        if self.world.first:
            for path in (self.last, *copies):
                checkpoint.save(path, **self.identity, model=self.method.state_dict(), ema=self.ema.average if self.ema else None,
                                optimizer=self.optimizer.state_dict(), step=self.step, options=self.options_text, data=self.data,
                                options_hash=checkpoint.options_hash(self.options_text), seconds=self.seconds, waited=self.waited,
                                epoch_sums=self.watch.sums, epoch_count=self.watch.count, processes=self.world.size,
                                device=self.device.type, validated=self.validated, best=self.best)
        self.saved_at = time.monotonic()

    def _log(self, settled: list[Step]) -> None:
        for step in settled:
            done = step.step + 1
            if done % self.options.log_every == 0:
                elapsed = max(self.seconds - self.board_seconds, 1e-9)
                speed = (done - self.board_step) * self.options.batch / elapsed
                share = (self.waited - self.board_waited) / elapsed
                self.board_step, self.board_seconds, self.board_waited = done, self.seconds, self.waited
                self.board.scalars({**{f"train_{name}": value for name, value in step.terms.items()}, "grad_norm": step.grad_norm,
                                    "lr": self.optimizer.param_groups[0]["lr"], "speed/images_per_s": speed,
                                    "speed/data_wait_share": share}, done)

    def _log_epoch(self) -> None:
        means = self.watch.epoch_means()
        self.board.scalars({f"train/{name}": value for name, value in means.items()}, self.step)
        epoch = self.step // self.order.steps_per_epoch
        log.info("%s: epoch %d, step %d of %d, %s", self.folder.name, epoch, self.step, self.total, _listed(means))

    def _validate(self) -> None:
        with self.ema.applied(self.method) if self.ema else contextlib.nullcontext():
            found = validate(self.method, self.val_source, frames=self.options.validate_frames, workers=self.options.workers,
                             batch=max(self.options.batch // (self.world.size * self.options.accumulate), 1), device=self.device,
                             world=self.world, forward=self.objective.answer, stop=lambda: self.stop.signal is not None)
        if found is not None:
            self.validated = self.step
            self.board.scalars({f"val/{name}": value for name, value in found.items()}, self.step)
            log.info("%s: step %d, val %s", self.folder.name, self.step, _listed(found))
            self._keep_best(found)

    def _keep_best(self, found: dict[str, float]) -> None:
        """best.pt: these weights, where the validation just done gave the lowest number yet."""
        name = self.options.keep_best
        if name is None:
            return
        if name not in found:
            raise InputError(f"train.keep_best={name}: the validation gives no such number; it gives {', '.join(found)}")
        if found[name] < self.best:
            self.best = found[name]
            self._log(self.watch.settle_all())
            self._save(self.folder / "best.pt")

    def _result(self) -> TrainResult:
        spent = max(self.seconds, 1e-9)
        return TrainResult(self.step, self.total, self.seconds, self.waited / spent, self.step * self.options.batch / spent,
                           self.last, self.stop.signal if self.step < self.total else None)


def _listed(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
