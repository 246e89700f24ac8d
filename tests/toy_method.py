"""A tiny method and a tiny source that keep the contracts, for tests of the engine; run as a program it trains them.

    python -m tests.toy_method FOLDER '{"steps": 20, ...}' [seed=0 bn=true dropout=0.1 kill_at=7 ...]

Program and tests agree on every number: `source()` and `method()` follow from their arguments alone.
"""
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from src.engine import TrainOptions, TrainResult, train
from src.method import Method
from utils.batch import Batch, Prediction
from utils.errors import InputError

HAND = {"name": "toy", "sha256": "0" * 64}


class ToySource:
    """`count` samples of noise pictures whose joints are a fixed function of the picture; noise differs by epoch."""

    provides = frozenset({"joints", "joints_uv"})

    def __init__(self, count: int = 24, seed: int = 0, broken: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()):
        self.count, self.seed, self.broken, self.unreadable = count, seed, broken, unreadable
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, index = key
        self.asked.append(key)
        if index in self.unreadable:
            raise InputError(f"picture {index}: expected a JPEG, found nothing")
        image = np.random.default_rng((self.seed, index)).random((3, 8, 8), dtype=np.float32)
        joints = np.outer(np.linspace(0, 1, 21), image.mean((1, 2))).astype(np.float32)
        if index in self.broken:
            joints[3] = np.nan
        noise = np.random.default_rng((self.seed, epoch, index)).normal(0, 0.05, image.shape).astype(np.float32)
        return {"image": image + noise, "joints": joints, "index": np.int64(index)}

    def batch(self, raw: dict[str, torch.Tensor]) -> Batch:
        n, device = len(raw["image"]), raw["image"].device
        eye = torch.eye(3, device=device).expand(n, 3, 3)
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        uv = torch.arange(42.0, device=device).view(21, 2).expand(n, 21, 2)
        return Batch(raw["image"], eye, eye, zeros.bool(), raw["index"], zeros, joints=raw["joints"], joints_uv=uv)

    def sample_name(self, index: int) -> str:
        return f"toy/{index:03d}"

    def protocol(self) -> dict:
        return {"split": "toy", "frames": self.count, "seed": self.seed}

    def columns(self, indices) -> dict[str, np.ndarray]:
        return {"index": np.asarray(indices)}


class ToyMethod(Method):
    """Convolution, optional batch-norm and drop-out, linear. kill_at: the process dies in the forward of that call."""

    needs = frozenset({"joints"})
    loss_names = ("joints", "size")

    def __init__(self, bn: bool = False, dropout: float = 0.0, kill_at: int = -1, term_at: int = -1, slow: float = 0.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if bn else nn.Identity()
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(4 * 36, 63)
        self.unused = nn.Parameter(torch.ones(2))
        self.calls, self.kill_at, self.term_at, self.slow = 0, kill_at, term_at, slow
        self.started = 0

    def start_weights(self) -> None:
        self.started += 1

    def forward(self, batch: Batch) -> torch.Tensor:
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.term_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.calls += 1
        time.sleep(self.slow)
        feature = torch.tanh(self.norm(self.conv(batch.image)))
        return self.head(self.dropout(feature.flatten(1))).view(-1, 21, 3)

    def losses(self, out: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"joints": (out - batch.joints).abs().mean((1, 2)), "size": out.square().mean((1, 2))}

    def decode(self, out: torch.Tensor, batch: Batch) -> Prediction:
        joints = out - out[:, :1]
        return Prediction(verts=joints, joints=joints)

    def metrics(self, out: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"largest": out.abs().max()}

    def parameter_groups(self) -> list[dict]:
        return [{"params": [p for name, p in self.named_parameters() if name != "unused"]}]


def method(seed: int = 0, **options) -> ToyMethod:
    """A ToyMethod whose random weights follow from the seed."""
    torch.manual_seed(seed)
    return ToyMethod(**options)


def options_text(options: TrainOptions, seed: int = 0) -> str:
    """What options.load.dump would write, as far as the engine looks."""
    return yaml.safe_dump({"name": "toy", "seed": seed, "train": options.model_dump(mode="json")})


def run(folder: Path, model: ToyMethod, data: ToySource, seed: int = 0, weights: dict | None = None, val: ToySource | None = None,
        device: str = "cpu", **options) -> TrainResult:
    """Train the toy on the CPU with the given train options."""
    checked = TrainOptions(**{"batch": 8, **options})
    return train(model, data, checked, loss_weights={"joints": 1.0, "size": 0.01} if weights is None else weights,
                 folder=folder, options_text=options_text(checked, seed), seed=seed, device=torch.device(device),
                 hand_info=HAND, method_name="toy", val_source=val)


def weights_hash(path: Path) -> str:
    """Digest of every tensor of a checkpoint's model, average and optimiser."""
    found = torch.load(path, weights_only=True)
    digest = hashlib.sha256()
    moments = [value for state in found["optimizer"]["state"].values() for value in state.values()]
    for value in [*found["model"].values(), *(found["ema"] or {}).values(), *moments]:
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def curves(folder: Path, tag: str) -> dict[int, float]:
    """{step: value} of a TensorBoard curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow, and not for the program

    events = EventAccumulator(str(folder / "board")).Reload()
    return {point.step: point.value for point in events.Scalars(tag)}


def main(folder: str, options: str, *pairs: str) -> None:
    """Train in `folder`; write what came of it to FOLDER/result.json."""
    torch.set_num_threads(1)
    chosen = {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in pairs)}
    seed, device = chosen.pop("seed", 0), chosen.pop("device", "cpu")
    data = ToySource(**{key: tuple(value) if isinstance(value, list) else value for key, value in (
        (key, chosen.pop(key)) for key in ("count", "broken") if key in chosen)})
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        result = run(Path(folder), method(seed, **chosen), data, seed, device=device, **json.loads(options))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    if int(os.environ.get("RANK", 0)) == 0:
        Path(folder, "result.json").write_text(json.dumps({**result._asdict(), "checkpoint": str(result.checkpoint)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
