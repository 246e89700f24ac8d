"""The objects that an option file names: hand models, method, its trained weights, a split of the dataset.

Together with run.py the one place where a method (src/) and a dataset (datasets/) are joined.
"""
import importlib
import logging
from pathlib import Path
from types import ModuleType

import torch

from datasets.reader import Reader
from options.load import load
from options.schema import Options
from src.checkpoint import load_weights, require_same_crop
from src.demo_hand import Keypoints
from src.method import Method
from utils.errors import InputError
from utils.hand import HandModel, left_sibling

log = logging.getLogger(__name__)


def hands_of(options: Options) -> dict[str, HandModel]:
    """The hand model of each side; the left one is the right one's sibling file unless the options name it."""
    left = Path(options.hand_left) if options.hand_left else left_sibling(options.hand)
    hands = {"right": HandModel.load(options.hand)}
    if options.hand_left or (left.is_file() and left != Path(options.hand)):
        hands["left"] = HandModel.load(left, getattr(options.dataset, "left_shapedirs", "as_is"))
    for side, hand in hands.items():
        if hand.side != side:
            raise InputError(f"{hand.name} is a {hand.side} hand, not a {side} one; mend the options hand and hand_left")
    return hands


def method_of(options: Options) -> Method:
    """The method, with first weights that belong to the run: the same options start from the same ones."""
    torch.manual_seed(options.seed)
    return module_of(options, "method", "src").build(options.method, hands_of(options)["right"])


def trained(options: Options, checkpoint: str | None) -> tuple[Method, Path]:
    """The method with its weights, and where they came from: the option's checkpoint, or the run's last."""
    method = method_of(options)
    path = Path(checkpoint) if checkpoint else options.folder / "last.pt"
    found = load_weights(method, path, method_name=options.method.name, hand_info=method.hand.info,
                         method_options=options.method.model_dump(mode="json"), training_only=method.training_only)
    require_same_crop(found, path, options.crop.model_dump(mode="json"))
    if found.get("converted_from") and method.misfit:
        log.warning("%s, converted from %s: %s (hand=%s), so its meshes will be no hands", path, found["converted_from"],
                    method.misfit, options.hand)
    return method, path


def keypoints_of(folder: str | None, section: str = "demo") -> Keypoints | None:
    """The network for 2D joints of a run's folder (options.yaml and last.pt), and the crop it was trained with."""
    if folder is None:
        return None
    if not all((Path(folder) / name).is_file() for name in ("options.yaml", "last.pt")):
        raise InputError(f"{section}.keypoints: no run in {folder} (options.yaml and last.pt)")
    options = load(Path(folder) / "options.yaml")
    return Keypoints(trained(options, str(Path(folder) / "last.pt"))[0], options.crop)


def reader_of(options: Options, hands: dict[str, HandModel], split: str, train: bool = False,
              needs: frozenset[str] | None = None) -> Reader:
    """A split of the dataset. needs: the labels that somebody reads; None = all of them."""
    return module_of(options, "dataset", "datasets").open_reader(
        options.dataset, options.crop, options.augment, split=split, train=train, seed=options.seed, hands=hands, needs=needs)


def module_of(options: Options, section: str, package: str) -> ModuleType:
    """The module that `section: {name: ...}` names. InputError where the option file has no such section."""
    chosen = getattr(options, section)
    if chosen is None:
        raise InputError(f"this command needs a `{section}:` section in the option file; see options/ for examples")
    return importlib.import_module(f"{package}.{chosen.name}")
