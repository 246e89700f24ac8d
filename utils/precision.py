"""Geometry stays in full precision: in bf16 a hand half a metre away is good to 2 mm, and its pixels to 2.

`full_precision` runs a function outside autocast and raises half-precision arguments to float32 (float64 stays).
"""
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Callable) -> Callable:
    """Decorator: no autocast inside, no float16 or bfloat16 on the way in."""

    @wraps(function)
    def run(*args, **kwargs):
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if any(x.dtype in _HALF for x in tensors):
            args = [_raised(x) for x in args]
            kwargs = {key: _raised(x) for key, x in kwargs.items()}
        device = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def _raised(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value
