"""Published checkpoints of the identity-aware models -> this project's checkpoints (specs/idhandmesh.md sections 3, 8.3, 10).

`idhand_baseline`, `idhand_given` and `idhand_conf` are the three networks of the ECCV 2022 release. Their files are a dict with
`model_state_dict` (or a bare state dict) in which MANO's own arrays are stored too. Strict: every tensor is used, or belongs to
the short list below of what is left out, and why; the sizes are compared with the network that the file's names describe.
"""
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.checkpoint import save_weights
from src.idhand import CONF_HIDDEN, Options, networks
from utils.errors import InputError
from utils.files import require_file

log = logging.getLogger(__name__)

LEFT_OUT = {  # pattern of a published name -> why it is not in ours
    r"mano_layer\..*": "MANO's own arrays: the hand comes from the user's hand file",
    r"th_selected_comps|th_hands_mean": "MANO's own arrays: the hand comes from the user's hand file",
    r"j_regressor": "never read in any forward",
}
OURS = {"feature_extractor.": "backbone.", "pose_6d_extractor.": "pose_heads.", "shape_extractor.": "shape_head.",
        "conf_branch.": "conf_branch."}
BASELINE = {"shape": "predicted", "start_pose": "degenerate", "pose_update": "add"}
ARMS = {"idhand_baseline": BASELINE, "idhand_given": {"shape": "given", "start_pose": "identity", "pose_update": "multiply"},
        "idhand_conf": BASELINE}  # the release's own settings, which its files do not store


def convert(what: str, file: str | Path, out: str | Path) -> None:
    """Write the published checkpoint `file` to `out` as a checkpoint of `idhand`, with the options it needs and no hand model.

    what: idhand_baseline, idhand_given or idhand_conf. Raises InputError, with nothing written, where `file` is not that network.
    """
    if what not in ARMS:
        raise InputError(f"convert {what}: no such conversion; there are mano, {', '.join(ARMS)}")
    theirs = _tensors(file)
    _check_arm(what, theirs, file)
    options = options_of(what, theirs)
    state = _renamed(theirs, file)
    _check_fit(what, state, options, file)
    save_weights(out, "idhand", state, method_options=options.model_dump(mode="json"), converted_from=Path(file).name)
    left = [name for name in theirs if not _ours(name)]
    reasons = "; ".join(sorted({_why(name) for name in left}))
    log.info("%s: %d tensors used, %d left out (%s)", file, len(state), len(left), reasons)


def options_of(what: str, theirs: Mapping[str, Tensor]) -> Options:
    """Options of the network whose published names are given: depth, iterations and confidence layers are read off.

    The rest is not stored, hence assumed as released: `multiply` in the identity-aware model, no sigmoid on the confidence.
    """
    linears = _layers("conf_branch.", theirs)
    conf = {len(hidden) + 1: kind for kind, hidden in CONF_HIDDEN.items()}.get(len(linears), 0)
    if "feature_extractor.layer1.0.conv3.weight" in theirs:
        depth = "resnet50"
    else:
        depth = "resnet34" if "feature_extractor.layer3.5.conv1.weight" in theirs else "resnet18"
    return Options(**ARMS[what], backbone=depth, feature="logits1000", iterations=len(_heads(theirs)), conf_branch=conf,
                   conf_drop_out=linears == [1], train_only_conf=bool(conf))


def _tensors(file: str | Path) -> dict[str, Tensor]:
    """The model's tensors by published name, without the prefix that a parallel wrapper leaves."""
    remedy = "pass a checkpoint of the ECCV 2022 release, e.g. checkpoint_last.pt"
    require_file(file, remedy)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: expected a torch checkpoint, found a file that is truncated or something else "
                         f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); {remedy}") from error
    state = found.get("model_state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        has = _some(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{file}: expected a checkpoint with model_state_dict, or a bare state dict; found {has}; "
                         f"{remedy}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _check_arm(what: str, theirs: Mapping[str, Tensor], file: str | Path) -> None:
    """The three networks differ by two groups of names: tell which one this is before comparing name by name."""
    parts = {prefix for name in theirs for prefix in OURS if name.startswith(prefix)}
    if "pose_6d_extractor." not in parts:
        raise InputError(f"{file}: expected a checkpoint of {what} with pose_6d_extractor.*, found {_some(theirs)}; "
                         "pass a checkpoint of the ECCV 2022 release")
    telling = sorted(parts & {"shape_extractor.", "conf_branch."})
    found = "idhand_conf" if "conf_branch." in parts else "idhand_baseline" if telling else "idhand_given"
    if found != what:
        has = " and ".join(f"{prefix}*" for prefix in telling) or "neither shape_extractor.* nor conf_branch.*"
        raise InputError(f"{file}: expected {what}, found {found} (it has {has}); run convert {found} on it")


def _renamed(theirs: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """State dict in our names; refuses a name that is neither used nor known to be left out."""
    unknown = [name for name in theirs if not _ours(name) and not _why(name)]
    if unknown:
        raise InputError(f"{file}: {len(unknown)} tensors belong to no part of the network: {_some(unknown)}; "
                         "pass a checkpoint of the ECCV 2022 release")
    return {_ours(name): value for name, value in theirs.items() if _ours(name)}


def _ours(name: str) -> str | None:
    """Our name. Ours counts linear layers; theirs counts ReLU and drop-out too (heads: 0, 3, 6, 9; branch: 0, 2, 4)."""
    for prefix, ours in OURS.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if prefix == "feature_extractor.":
                return ours + rest
            *head, layer, kind = rest.split(".")
            step = 2 if prefix == "conf_branch." else 3
            return ours + ".".join((*head, str(int(layer) // step) if layer.isdigit() else layer, kind))
    return None


def _why(name: str) -> str | None:
    return next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)


def _check_fit(what: str, state: Mapping[str, Tensor], options: Options, file: str | Path) -> None:
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in nn.ModuleDict(networks(options)).state_dict().items()}
    remedy = "the file is cut, or another network's: fetch it again, or pass the right one"
    if missing := set(expected) - set(state):
        raise InputError(f"{file}: {len(missing)} tensors of {what} are missing: {_some(missing)}; {remedy}")
    if surplus := set(state) - set(expected):
        raise InputError(f"{file}: {len(surplus)} tensors have no place in {what}: {_some(surplus)}; {remedy}")
    for name, value in state.items():
        if tuple(value.shape) != expected[name]:
            raise InputError(f"{file}: {name} should be of size {expected[name]}, found {tuple(value.shape)}; {remedy}")


def _layers(prefix: str, theirs: Mapping[str, Tensor]) -> list[int]:
    return sorted({int(m[1]) for name in theirs if (m := re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", name))})


def _heads(theirs: Mapping[str, Tensor]) -> set[str]:
    return {name.split(".")[1] for name in theirs if name.startswith("pose_6d_extractor.")}


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
