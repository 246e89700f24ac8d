"""Checkpoints: written whole or not at all, read without running code, refused with the reason where they do not fit.

A file of torch.save with `format`, `version`, `method` (name), `hand` ({name, sha256}, or None where the weights know no hand),
`model` (state dict; the hand model's arrays are never in it), and for a training run also `ema`, `optimizer`, `step`, `options`
(the resolved yaml), `data` (the split's protocol) and the loop's sums. Loaded with weights_only=True.
"""
import hashlib
import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import require_file, write_bytes

FORMAT, VERSION = "hand mesh checkpoint", 1
HandInfo = dict[str, str] | None
# What torch raises at a file that it cannot read; its words go on for lines, coloured ones among them.
UNREADABLE = (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError, LookupError,
              AttributeError, TypeError, AssertionError)

# What may differ when a run is resumed: none of it reaches the weights.
FREE = ("name", "out", "test", "calibrate", "demo", "refine", "report", "synth", "dataset.root", "dataset.workers",
        "dataset.unreadable", "dataset.evaluation_side") + tuple(f"train.{key}" for key in (
    "workers", "save_every", "save_seconds", "keep_every", "val_split", "validate_every", "validate_frames", "keep_best",
    "log_every"))


def save(path: str | Path, *, method_name: str, hand_info: HandInfo, model: Mapping[str, Tensor], **rest: Any) -> None:
    """Write a checkpoint. Raises InputError where the disk refuses it; an older file at `path` is then untouched."""
    head = {"format": FORMAT, "version": VERSION, "method": method_name, "hand": hand_info}
    data = io.BytesIO()  # torch's own writer reports a full disk as an internal error
    torch.save({**head, "model": dict(model), **rest}, data)
    try:
        write_bytes(path, data.getbuffer())
    except OSError as error:
        raise InputError(f"{path}: the checkpoint could not be written ({error.strerror or error}); make room and run again; "
                         "files written before are whole") from error


def save_weights(path: str | Path, method_name: str, state: Mapping[str, Tensor], *, hand_info: HandInfo = None,
                 **notes: Any) -> None:
    """Write weights alone, e.g. converted ones; `notes` are plain values kept beside them."""
    save(path, method_name=method_name, hand_info=hand_info, model={k: v.detach().cpu() for k, v in state.items()}, **notes)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The checkpoint at `path`. Raises InputError: absent, broken, something else, or of another version."""
    path = require_file(path, "train first, convert a published one (run.py convert), or name another checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        with warnings.catch_warnings(action="ignore"):  # torch has remarks on files that are refused below
            found = torch.load(path, map_location=device, weights_only=True)
    except UNREADABLE as error:
        reason = f": {error}" if isinstance(error, zipfile.BadZipFile) else ""
        raise InputError(f"{path}: expected a checkpoint of this project, found one that is truncated, damaged or something else "
                         f"({type(error).__name__}{reason}); copy it again, or convert it (run.py convert)") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("model"), dict):
        what = f"keys {sorted(map(str, found))[:6]}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InputError(f"{path}: expected a checkpoint of this project, found a torch file with {what}; "
                         "published checkpoints are read by run.py convert")
    if found.get("version") != VERSION:
        raise InputError(f"{path}: expected checkpoint version {VERSION}, found {found.get('version')}; "
                         "use the project's version that wrote it, or train again")
    return found


def holds_run(path: str | Path) -> bool:
    """Whether there is a training run's checkpoint at `path`, not weights alone or something else; no weight is read."""
    try:
        found = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except UNREADABLE:
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT and "optimizer" in found


def load_weights(method: nn.Module, path: str | Path, *, method_name: str, hand_info: HandInfo, allow_missing: Sequence[str] = (),
                 allow_unused: Sequence[str] = (), averaged: bool = True, method_options: Mapping[str, Any] | None = None,
                 training_only: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Put the weights of the checkpoint at `path` into `method`; returns the rest of the checkpoint.

    method_options: those that the weights must have been trained with, `training_only` aside (require_same_method); without them
    the weights are train.init's, a start for training under any. averaged: take the running average where the run kept one.
    allow_missing: name prefixes of weights that may keep the value they have. allow_unused: name prefixes of weights in the file
    that are left out. Raises InputError as `load`, and for another method, other options of it, another hand model, weights too
    many, too few or of another size.
    """
    found = load(path)
    require_fitting(found, path, method_name, hand_info)
    if method_options is not None:  # before the weights, whose sizes only follow from them
        require_same_method(found, path, method_options, training_only)
    state = found.pop("model")
    average = found.pop("ema", None)
    fill(method, average if averaged and average is not None else state, path, allow_missing, allow_unused,
         initial=method_options is None)
    return {key: value for key, value in found.items() if key != "optimizer"}


def require_fitting(found: Mapping[str, Any], path: str | Path, method_name: str, hand_info: HandInfo) -> None:
    """Refuse a checkpoint of another method or trained with another hand model."""
    if found["method"] != method_name:
        raise InputError(f"{path}: expected a checkpoint of method {method_name}, found one of {found['method']}; "
                         "use the option file it was trained with")
    theirs = found.get("hand")
    if theirs and hand_info and theirs["sha256"] != hand_info["sha256"]:
        raise InputError(f"{path}: trained with hand model {_hand(theirs)}, found {_hand(hand_info)}; set hand= to the file it "
                         "was trained with")


def require_same_method(found: Mapping[str, Any], path: str | Path, options: Mapping[str, Any],
                        training_only: frozenset[str]) -> None:
    """Refuse weights that fit but were trained with other options of their method, and so mean something else.

    found: a checkpoint, or what load_weights returns of it; without options it passes. training_only: options that are no part of
    the trained network.
    """
    theirs = found.get("method_options") or _section(found.get("options"), "method")
    differ = [key for key, value in options.items() if key in theirs and key not in training_only and theirs[key] != value]
    if differ:
        listed = ", ".join(f"method.{key} = {theirs[key]!r} there and {options[key]!r} now" for key in differ[:3])
        raise InputError(f"{path}: trained with other options of the method ({listed}); use the option file it was trained with")


def require_same_crop(found: Mapping[str, Any], path: str | Path, crop: Mapping[str, Any]) -> None:
    """Refuse to show a network other crops than it was trained on; a checkpoint without options passes."""
    for key, value in _section(found.get("options"), "crop").items():
        if key in crop and crop[key] != value:
            raise InputError(f"{path}: trained with crop.{key} = {value}, found {crop[key]}; use the option file it was "
                             "trained with")


def _section(options_text: Any, name: str) -> dict[str, Any]:
    tree = yaml.safe_load(options_text) if isinstance(options_text, str) else None
    section = tree.get(name) if isinstance(tree, dict) else None
    return section if isinstance(section, dict) else {}


def _hand(info: Mapping[str, str]) -> str:
    return f"{info['name']} ({info['sha256'][:12]})"


def fill(method: nn.Module, state: Mapping[str, Tensor], path: str | Path, allow_missing: Sequence[str] = (),
         allow_unused: Sequence[str] = (), initial: bool = False) -> None:
    """Copy `state` into `method`; every weight must be found and used, prefixes allowed aside.

    initial: the weights are those of train.init, whose options may allow prefixes.
    """
    own = method.state_dict()
    for option, prefixes, names in (("init_missing", allow_missing, own), ("init_unused", allow_unused, state)):
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in names):
                raise InputError(f"{option}: no weight begins with {prefix!r}; they begin with {_starts(names)}")
    state = {name: value for name, value in state.items() if not name.startswith(tuple(allow_unused))}
    missing = [name for name in own if name not in state and not name.startswith(tuple(allow_missing))]
    unused = [name for name in state if name not in own]
    sizes = [f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}" for name, value in state.items()
             if name in own and value.shape != own[name].shape]
    faults = [f"{count_of(len(names), 'weight')} {what} ({', '.join(names[:4])}{' ...' if len(names) > 4 else ''})"
              for names, what in ((missing, "missing"), (unused, "the method has not"), (sizes, "of another size")) if names]
    if faults:
        hint = ", or allow name prefixes by train.init_missing and train.init_unused" if initial else ""
        raise InputError(f"{path}: does not fit the method: {'; '.join(faults)}; use the method options it was trained with"
                         f"{hint}")
    method.load_state_dict(state, strict=False)


def count_of(count: int, noun: str) -> str:
    """"1 weight", "2 weights"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _starts(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in names}))


def deciding(options_text: str) -> dict[str, Any]:
    """The options that decide the weights, flat: "train.lr" -> value."""
    every = _flat(yaml.safe_load(options_text))
    return {path: value for path, value in every.items() if not any(path == free or path.startswith(f"{free}.") for free in FREE)}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} as {"train.lr": 1}."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first three keys in which two flat mappings differ, with both values, and how many more there are."""
    differ = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
    listed = ", ".join(f"{key} = {theirs.get(key)!r} then and {ours.get(key)!r} now" for key in differ[:3])
    return listed + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")


def options_hash(options_text: str) -> str:
    """Hex digest of the options that decide the weights."""
    return hashlib.sha256(json.dumps(deciding(options_text), sort_keys=True, default=str).encode()).hexdigest()


def require_same_run(found: Mapping[str, Any], path: Path, options_text: str, data: str) -> None:
    """Refuse to go on with a run that was started with other options or on other data, or with what is no run."""
    if "optimizer" not in found:
        raise InputError(f"{path}: expected a training run's checkpoint, found weights alone; give this run another name= and "
                         f"start from them by train.init={path}")
    if found.get("options_hash") != options_hash(options_text):
        listed = _differences(deciding(found["options"]), deciding(options_text))
        raise InputError(f"{path.parent}: holds a run of other options ({listed}); give this run another name=, or delete "
                         "the folder")
    if found.get("data") != data:
        theirs, ours = (_flat(_by_number(json.loads(text))) for text in (found.get("data") or "{}", data))
        raise InputError(f"{path.parent}: the training data changed since this run began ({_differences(theirs, ours)}); give "
                         "this run another name=, or delete the folder")


def _by_number(value: Any) -> Any:
    """Lists as {"0": ..., "1": ...}, so that a difference is named to the item."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    return {key: _by_number(inner) for key, inner in value.items()} if isinstance(value, dict) else value
