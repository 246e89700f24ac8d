"""What tests of the hand share: the toy model of tests/goldens/toy_mano.py, random inputs, the largest difference."""
import sys
from pathlib import Path

import numpy as np
import torch

from utils.hand import HandModel
from utils.mano_file import SHAPES, HandArrays
from utils.rotation import matrix_from_axis_angle

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from toy_mano import toy_mano

F64 = torch.float64


def toy(dtype: torch.dtype = torch.float32, **changes) -> HandModel:
    arrays = toy_mano(0)
    return HandModel(HandArrays(**{**{key: arrays[key] for key in SHAPES}, "name": "toy_right", **changes}), dtype)


def random_inputs(*lead: int, seed: int = 0, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (lead,16,3,3) and shape (lead,10)."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*lead, 16, 3, generator=generator, dtype=F64)
    return matrix_from_axis_angle(0.7 * vectors).to(dtype), torch.randn(*lead, 10, generator=generator, dtype=F64).to(dtype)


def error(ours: torch.Tensor, golden: np.ndarray) -> float:
    return float(np.abs(ours.double().numpy() - golden).max())
