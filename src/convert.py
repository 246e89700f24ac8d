"""Published checkpoints -> this project's checkpoints; which ones, and how their tensors are called, is in src/published.py.

Strict: every tensor is used, or belongs to the short list of what is left out, and why; the sizes are compared with the network
that the file's own names describe.
"""
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.checkpoint import FORMAT, UNREADABLE, count_of, holds_run, save_weights
from src.published import TABLE, Published
from utils.errors import InputError
from utils.files import require_file
from utils.strict import Strict

log = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # of a batch norm; read by nothing that this project runs


def convert(what: str, file: str | Path, out: str | Path) -> None:
    """Write the published checkpoint `file` to `out` as a checkpoint of its method, with the options it needs and no hand model.

    what: a name in src/published.py: TABLE. Raises InputError, with nothing written, where `file` is not that network, and where
    `out` is a run trained here.
    """
    if what not in TABLE:
        raise InputError(f"convert {what}: no such conversion; there are mano, {', '.join(TABLE)}")
    if holds_run(out):
        raise InputError(f"{out}: holds a trained run; choose another --out, or delete the folder")
    known = TABLE[what]
    theirs = _tensors(file, known)
    _check_which(what, theirs, file)
    options = options_of(what, theirs)
    state = _renamed(known, theirs, file)
    _check_fit(what, state, options, file)
    told = options.model_dump(mode="json", exclude=set(known.free))
    save_weights(out, known.method, state, method_options=told, converted_from=Path(file).name)
    left = [name for name in theirs if not known.ours(name)]
    reasons = "; ".join(sorted({known.why_left_out(name) for name in left}))
    log.info("%s: %d tensors used, %d left out%s", file, len(theirs) - len(left), len(left), f" ({reasons})" if left else "")


def options_of(what: str, theirs: Mapping[str, Tensor]) -> Strict:
    """Options of the network whose published names are given; what its file does not say is assumed as released."""
    return TABLE[what].options(theirs)


def _tensors(file: str | Path, known: Published) -> dict[str, Tensor]:
    """The model's tensors by published name, without the prefix that a parallel wrapper leaves."""
    remedy = f"pass a checkpoint of {known.release}"
    require_file(file, remedy)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise InputError(f"{file}: expected a torch checkpoint, found a file that is truncated or something else "
                         f"({type(error).__name__}); {remedy}") from error
    if isinstance(found, dict) and found.get("format") == FORMAT:
        raise InputError(f"{file}: this is a checkpoint of this project already; no conversion is needed")
    state = found.get("model_state_dict", found) if isinstance(found, dict) else None
    if (not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state)
            or not all(isinstance(value, Tensor) for value in state.values())):
        has = _some(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{file}: expected a checkpoint with model_state_dict, or a bare state dict; found {has}; "
                         f"{remedy}")
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    if twice := len(state) - len(bare):
        raise InputError(f"{file}: {_counted(twice, 'are')} there twice, with and without module.; {remedy}")
    return bare


def _check_which(what: str, theirs: Mapping[str, Tensor], file: str | Path) -> None:
    """Tell which of the networks this is before comparing name by name: a few prefixes say it."""
    known = TABLE[what]
    found = next((name for name, other in TABLE.items() if other.is_of(theirs)), None)
    if found is None:
        raise InputError(f"{file}: expected a checkpoint of {what} {_lacking(known, theirs)}, found {_some(theirs)}; "
                         f"pass a checkpoint of {known.release}")
    if found != what:
        telling = [f"{prefix}*" for prefix in TABLE[found].has] + [f"no {prefix}*" for prefix in TABLE[found].lacks]
        telling += [f"{name} of {count} rows" for name, count in TABLE[found].rows.items()]
        raise InputError(f"{file}: expected {what}, found {found} (it has {', '.join(telling)}); run convert {found} on it")


def _lacking(known: Published, theirs: Mapping[str, Tensor]) -> str:
    """By what tensors of a network that is none of TABLE's are told from the known one: all its prefixes where none is there."""
    missing = [prefix for prefix in known.has if not any(name.startswith(prefix) for name in theirs)]
    if len(missing) == len(known.has):
        return "with " + " and ".join(f"{prefix}*" for prefix in missing)
    if missing:
        return f"({' and '.join(f'{prefix}*' for prefix in missing)} {'is' if len(missing) == 1 else 'are'} missing)"
    foreign = [f"without {prefix}*" for prefix in known.lacks if any(name.startswith(prefix) for name in theirs)]
    return " and ".join(foreign) or "with " + " and ".join(f"{name} of {count} rows" for name, count in known.rows.items())


def _renamed(known: Published, theirs: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """State dict in our names; refuses a name that is neither used nor known to be left out.

    Batch norms of torch before 0.4.1, of Boukhayma's time, did not count their batches: where no counter is stored, all are 0.
    """
    unknown = [name for name in theirs if not known.ours(name) and not known.why_left_out(name)]
    if unknown:
        raise InputError(f"{file}: {_counted(len(unknown), 'belong')} to no part of the network: {_some(unknown)}; "
                         f"pass a checkpoint of {known.release}")
    state = {ours: value for name, value in theirs.items() if (ours := known.ours(name))}
    if not any(name.endswith(COUNTER) for name in theirs):
        norms = [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]
        state |= {norm + COUNTER: torch.zeros((), dtype=torch.int64) for norm in norms}
    return state


def _check_fit(what: str, state: Mapping[str, Tensor], options: Strict, file: str | Path) -> None:
    with torch.device("meta"):
        expected = nn.ModuleDict(TABLE[what].networks(options)).state_dict()
    remedy = "the file is cut, or another network's: fetch it again, or pass the right one"
    if missing := set(expected) - set(state):
        raise InputError(f"{file}: {_counted(len(missing), 'are', f' of {what}')} missing: {_some(missing)}; {remedy}")
    if surplus := set(state) - set(expected):
        raise InputError(f"{file}: {_counted(len(surplus), 'have')} no place in {what}: {_some(surplus)}; {remedy}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise InputError(f"{file}: {name} should be of size {tuple(expected[name].shape)}, found {tuple(value.shape)}; "
                             f"{remedy}")
        if value.layout != torch.strided or expected[name].is_floating_point() and not value.is_floating_point():
            raise InputError(f"{file}: {name} should be real numbers, found {value.dtype}, {value.layout}; {remedy}")


def _counted(count: int, verb: str, of: str = "") -> str:
    """"1 tensor is", "2 tensors of cmr_sg are"."""
    verb = {"are": "is", "have": "has", "belong": "belongs"}[verb] if count == 1 else verb
    return f"{count_of(count, 'tensor')}{of} {verb}"


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
