"""src/cost.py: parameters, speed and training as a test notes them."""
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from src import checkpoint
from src.cost import LEAST, REPEATS, parameters_of, speed_of, training_of
from utils.errors import InputError

CPU = torch.device("cpu")


def save(path: Path, steps: int, batch: int, init: str | None, **train) -> str:
    """A run's checkpoint without weights; its path."""
    text = f"name: x\nloss: {{verts: 1}}\ntrain: {{batch: {batch}, init: {init or 'null'}, workers: 3}}\n"
    checkpoint.save(path, method_name="toy", hand_info=None, model={}, step=steps, options=text, seconds=1.234, device="cpu",
                    data='{"dataset": "toy"}')
    return str(path)


def test_parameters_are_all_but_buffers():
    """A layer of 3 x 2 weights and 2 biases, frozen, with a buffer beside it: 8."""
    layer = nn.Linear(3, 2).requires_grad_(False)
    layer.register_buffer("table", torch.zeros(100))
    assert parameters_of(layer) == 8


def test_speed_is_the_median_by_the_clock(monkeypatch):
    """Batches of 10 that take 10 ms but for one of 120: at most 1,000 images per second, above a mean's; on what is told."""
    pauses = iter([0.12] + [0.01] * REPEATS)
    found = speed_of(lambda: time.sleep(next(pauses)), 10, CPU, torch.bfloat16)
    assert found["repeats"] == REPEATS and 10 / 0.025 < found["images_per_s"] <= 1000
    assert (found["batch"], found["precision"], found["threads"]) == (10, "bfloat16", torch.get_num_threads()) and found["device"]
    monkeypatch.setattr("src.cost.SECONDS", 0.02)
    pauses = iter([0.03] * LEAST)
    assert speed_of(lambda: time.sleep(next(pauses)), 1, CPU, None)["repeats"] == LEAST


def test_training_is_followed_to_its_beginning(tmp_path):
    """Two runs before this one count; a file that is gone, or a loop, ends the chain as unknown."""
    first = save(tmp_path / "first.pt", 5, 4, str(tmp_path / "gone.pt"))
    second = save(tmp_path / "second.pt", 3, 2, first)
    found = training_of(save(tmp_path / "third.pt", 7, 10, second))
    assert (found["steps"], found["batch"], found["images"], found["seconds"]) == (7, 10, 70, 1.2)
    assert found["before"] == [{"file": second, "images": 6}, {"file": first, "images": 20},
                               {"file": str(tmp_path / "gone.pt"), "images": None}]
    assert found["data"] == {"dataset": "toy"} and found["options"]["loss.verts"] == 1 and "train.workers" not in found["options"]
    own = str(tmp_path / "own.pt")
    assert training_of(save(tmp_path / "own.pt", 7, 10, own))["before"] == [{"file": own, "images": None}]


def test_weights_alone_have_no_training(tmp_path):
    """Converted weights give None, and as the start of a run an unknown number of images; no file is refused."""
    weights = tmp_path / "weights.pt"
    checkpoint.save_weights(weights, "toy", {})
    assert training_of(weights) is None
    assert training_of(save(tmp_path / "run.pt", 1, 1, str(weights)))["before"] == [{"file": str(weights), "images": None}]
    with pytest.raises(InputError, match="train first"):
        training_of(tmp_path / "none.pt")
