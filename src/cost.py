"""What a method costs, for tables beside its errors: parameters, images per second, and the training behind a checkpoint.

The speed is that of the network and of `decode`, by the clock and with the device waited for; reading and writing are left out,
and nothing else runs in the process meanwhile: a decoding thread would slow a quick method more than a slow one. It means
something beside other speeds of the same device, threads, batch and precision, which are told with it.
"""
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from src import checkpoint
from utils.errors import InputError

LEAST, REPEATS, SECONDS = 3, 7, 2.0  # of a speed: so often, or so long


def parameters_of(method: nn.Module) -> int:
    """How many numbers training could change, frozen ones too; the hand model's arrays are none of them."""
    return sum(parameter.numel() for parameter in method.parameters())


def speed_of(answer: Callable[[], Any], images: int, device: torch.device, narrow: torch.dtype | None) -> dict[str, Any]:
    """Images per second of `answer`, which computes one batch of `images` and did so before (no warm-up here): the median of
    REPEATS runs, fewer where they take long.

    narrow: what autocast computes in, None = float32.
    """
    seconds: list[float] = []
    while len(seconds) < REPEATS and (len(seconds) < LEAST or sum(seconds) < SECONDS):
        _wait(device)
        began = time.perf_counter()
        answer()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return {"images_per_s": images / max(statistics.median(seconds), 1e-9), "repeats": len(seconds), "batch": images,
            "device": _name(device), "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "precision": str(narrow or torch.float32).removeprefix("torch.")}


def training_of(path: str | Path) -> dict[str, Any] | None:
    """What the checkpoint at `path` says of its training, None where it is no training run's (converted weights).

    steps · batch · images (steps x batch) · seconds in the loop · options that decide the weights, flat · data: the split's
    protocol · before: the runs that it started from, the nearest first, each {file, images or None where unknown}.
    """
    found = checkpoint.load(path)
    if "step" not in found or "options" not in found:
        return None
    options = checkpoint.deciding(found["options"])
    batch, init = options["train.batch"], options.get("train.init")
    return {"steps": found["step"], "batch": batch, "images": found["step"] * batch, "before": _before(init, {str(path)}),
            "seconds": round(found["seconds"], 1), "device": found["device"], "options": options,
            "data": json.loads(found["data"])}


def _before(init: str | None, seen: set[str]) -> list[dict[str, Any]]:
    """The chain of train.init; it ends at a file that is gone, is no run's, or was met before."""
    if not init:
        return []
    entry: dict[str, Any] = {"file": init, "images": None}
    if init in seen or not Path(init).is_file():
        return [entry]
    try:
        found = checkpoint.load(init)
    except InputError:  # overwritten by something else: what was it then is not known
        return [entry]
    if "step" not in found or "options" not in found:
        return [entry]
    train = yaml.safe_load(found["options"])["train"]
    return [entry | {"images": found["step"] * train["batch"]}, *_before(train.get("init"), seen | {init})]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    """The device as a reader knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(errors="replace").splitlines() if about.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
