"""How numbers are computed: bfloat16 where it is asked for, float32 where it matters, the same kernels every time."""
import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor


def autocast_type(amp: Literal["off", "bf16", "auto"], device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in, or None for full precision. auto: bfloat16 where the device has instructions for it."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if amp == "auto":
        # oneDNN's own answer (AVX512-BF16 or AMX); elsewhere bfloat16 is emulated and slower than float32.
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    return torch.bfloat16 if amp == "bf16" else None


def in_float32(value: Any) -> Any:
    """A method's output (nested tuples, lists, dicts) with its half-precision tensors in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(in_float32, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(in_float32, value))
    if isinstance(value, dict):
        return {key: in_float32(inner) for key, inner in value.items()}
    return value


@contextlib.contextmanager
def reproducible(on: bool) -> Iterator[None]:
    """Kernels that give the same bits every time, for the length of the block; torch warns of those it has no such version of."""
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark = filled, benchmark
