"""Which device a process computes on."""
import os

import torch

from utils.errors import InputError


def choose_device(wanted: str, threads: int = 0) -> torch.device:
    """The device for `auto`, `cpu` or `cuda` (this process's own under torchrun); sets torch's CPU threads where not 0.

    Raises InputError where cuda is asked for and absent.
    """
    if threads:
        torch.set_num_threads(threads)
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise InputError("option device=cuda: torch sees no CUDA device; use device=auto or device=cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if found and wanted != "cpu" else torch.device("cpu")
