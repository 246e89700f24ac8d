"""The `train:` section of an option file (what each number means; src/engine.py does the work).

A run is counted in epochs or in steps, and `milestones`, `validate_every` and `keep_every` count in the same unit.
A step is one update of the weights; `batch` is the number of samples behind it, over all processes and accumulated parts.
"""
from typing import Literal, Self

from pydantic import Field, model_validator

from utils.strict import Strict


class TrainOptions(Strict):
    """How a method is trained. The defaults are plain Adam at a constant rate, full precision, reproducible."""

    split: str = Field("train", description="split of the dataset to train on")
    batch: int = Field(32, ge=1, description="samples per step, over all processes and accumulated parts")
    epochs: int | None = Field(None, ge=1, description="length of the run in epochs; an incomplete last batch is dropped")
    steps: int | None = Field(None, ge=1, description="length of the run in steps, instead of epochs")

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["constant", "multistep", "cosine"] = "constant"
    milestones: list[int] = Field(default_factory=list, description="multistep: epochs (or steps) at which lr falls")
    gamma: float = Field(0.1, gt=0, allow_inf_nan=False, description="multistep: factor on lr at each milestone")
    warmup: int = Field(0, ge=0, description="steps of linear rise from lr/warmup to lr; cosine falls after it")
    lr_end: float = Field(0.0, ge=0, le=1, description="cosine: last lr as a share of lr")
    lr_per: Literal["step", "epoch"] = Field("step", description="cosine: how often lr changes")

    clip: float = Field(0.0, ge=0, allow_inf_nan=False, description="largest norm of the gradient; 0 = not clipped")
    accumulate: int = Field(1, ge=1, description="parts a step's batch is computed in, to save memory")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the running average of the weights; 0 = none")
    amp: Literal["off", "bf16", "auto"] = Field("off", description="bfloat16 autocast; auto = where the device computes in it")
    channels_last: bool = Field(True, description="memory layout of images and convolutions")
    compile: bool = Field(False, description="torch.compile the method")
    deterministic: bool = Field(True, description="reproducible kernels: without them resume is not bit-equal on a GPU")
    sync_norm: bool = Field(True, description="several processes: batch-norm over the whole batch, not each process's share")
    unused_parameters: bool = Field(False, description="several processes: some trained parameters may get no gradient")

    workers: int = Field(0, ge=0, description="processes that decode; 0 = a thread beside the loop (best on few cores)")
    init: str | None = Field(None, description="checkpoint whose weights the run starts from")
    init_missing: list[str] = Field(default_factory=list, description="name prefixes of weights that `init` need not have")
    init_unused: list[str] = Field(default_factory=list, description="name prefixes of weights in `init` to leave out")
    overfit: bool = Field(False, description="train on one batch, without augmentation: does the method learn at all?")

    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 = by time only")
    save_seconds: float = Field(120.0, ge=0, description="seconds between checkpoints; 0 = by steps only")
    keep_every: int = Field(0, ge=0, description="epochs (or steps) between checkpoints that are kept for good; 0 = none")
    val_split: str | None = Field(None, description="split to validate on; null = no validation")
    validate_every: int = Field(0, ge=0, description="epochs (or steps) between validations; 0 = one at the end of each epoch")
    validate_frames: int = Field(0, ge=0, description="frames of a validation, evenly spread; 0 = all")
    keep_best: str | None = Field(None, description="number of the validations, e.g. joints_uv_px or mpjpe_mm, at whose lowest "
                                                    "the weights are kept as best.pt; null = none")
    log_every: int = Field(10, ge=1, description="steps between points in TensorBoard")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs = {self.epochs} and steps = {self.steps}: give one and set the other to null")
        if self.milestones and self.schedule != "multistep":
            raise ValueError(f"milestones = {self.milestones} belong to schedule multistep, not {self.schedule}; set them to []")
        if self.schedule == "multistep" and (not self.milestones or self.milestones != sorted(set(self.milestones))):
            raise ValueError(f"milestones = {self.milestones}: schedule multistep needs rising numbers, e.g. [5, 10]")
        if any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones = {self.milestones}: expected numbers of 1 and above")
        if self.lr_per == "epoch" and self.steps is not None:
            raise ValueError("lr_per: epoch needs a run counted in epochs, found steps")
        if self.batch % self.accumulate:
            raise ValueError(f"batch = {self.batch} cannot be computed in accumulate = {self.accumulate} equal parts")
        if self.save_every == 0 and self.save_seconds == 0:
            raise ValueError("save_every and save_seconds are both 0: give one, or a killed run starts from nothing")
        return self
