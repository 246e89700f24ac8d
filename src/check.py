"""`run.py check`: versions, device, hand model, dataset, checkpoints; every miss with its remedy."""
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import require_dataset
from utils.hand import HandModel, left_sibling

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
PYTHONS = ((3, 11), (3, 12))
TORCH = ((2, 11), (2, 14))  # oldest and newest that the project is written for


def check(options: Any) -> tuple[str, bool]:
    """(report, whether all is in place) for an options object (options/schema.py: Options)."""
    lines, good = [], True
    for name, look in _looks(options):
        try:
            lines.append(f"ok       {name}: {look()}")
        except InputError as error:
            good = False
            lines.append(f"MISSING  {name}: {error}")
    return "\n".join(lines), good


def _looks(options: Any) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "device", lambda: _device(options.device)
    yield "right hand", lambda: _hand(options.hand)
    if options.dataset is not None:
        if getattr(options.dataset, "hands", "right") != "right" or options.hand_left:
            yield "left hand", lambda: _hand(options.hand_left or left_sibling(options.hand))
        for one in _datasets(options.dataset):
            yield f"dataset {one.name}", lambda one=one: str(require_dataset(one.root, one.name, one.signs))
            yield f"prepared {one.name}", lambda one=one: _prepared(one.prepared)
    if options.method is not None:
        if options.train.init:
            yield "train.init", lambda: _file(options.train.init, "train the run it comes from first")
        yield "output", lambda: _writable(Path(options.out))


def _datasets(dataset: Any) -> list[Any]:
    """The dataset itself, or those that a mixture is made of, each once."""
    if dataset.name != "mixed":
        return [dataset]
    found = [part.dataset for part in dataset.train] + [dataset.test] * (dataset.test is not None)
    return list({one.prepared: one for one in found}.values())


def _python() -> str:
    found = sys.version_info[:2]
    if found not in PYTHONS:
        raise InputError(f"expected Python 3.11 or 3.12, found {found[0]}.{found[1]}; install one and run scripts/setup.sh again")
    return sys.version.split()[0]


def _packages() -> str:
    """Everything in requirements.txt is installed; other versions than the pinned ones are named, not refused."""
    other = []
    for line in REQUIREMENTS.read_text().splitlines():
        name, _, pinned = line.split("#")[0].strip().partition("==")
        if not name:
            continue
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(f"{name} is not installed; run scripts/setup.sh") from error
        if found.split("+")[0] != pinned:
            other.append(f"{name} {found} instead of {pinned}")
    torch = tuple(int(n) for n in importlib.metadata.version("torch").split(".")[:2])
    if not TORCH[0] <= torch <= TORCH[1]:
        raise InputError(f"expected torch {TORCH[0][0]}.{TORCH[0][1]} to {TORCH[1][0]}.{TORCH[1][1]}, found "
                         f"{importlib.metadata.version('torch')}; run scripts/setup.sh")
    return "as pinned" if not other else "; ".join(other)


def _device(wanted: str) -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if wanted == "cuda":
        raise InputError("option device=cuda, but torch sees no CUDA device; use device=auto or device=cpu")
    return f"CPU, {torch.get_num_threads()} threads, bf16 {'yes' if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 'no'}"


def _hand(path: str | Path) -> str:
    hand = HandModel.load(path)
    return f"{path} ({hand.name}, sha256 {hand.sha256[:12]})"


def _prepared(path: str) -> str:
    if not (Path(path) / "counts.json").is_file():
        raise InputError(f"{path} is not prepared; run `run.py prepare` with this option file")
    return path


def _file(path: str, remedy: str) -> str:
    if not Path(path).is_file():
        raise InputError(f"{path} is not there; {remedy}")
    return path


def _writable(folder: Path) -> str:
    import shutil

    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    if free < 1:
        raise InputError(f"{folder}: {free:.1f} GB free; make room or choose another out=")
    return f"{folder}, {free:.0f} GB free"
