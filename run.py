#!/usr/bin/env python3
"""The only entry: python run.py <command> <option file> [key=value ...].

The one place where a method (src/) and a dataset (datasets/) are joined. Heavy imports happen inside the commands, so
that --help answers at once. Exit codes: 0 done, 2 wrong input (one line on stderr), 1 our bug (a traceback).
"""
import logging
import os
import sys
from pathlib import Path

from options.arguments import arguments
from utils.errors import REFUSED, InputError


def synth(options) -> None:
    module = _section(options, "synth", "datasets.synthetic")
    hands = _hands(options)
    done = module.write(options.synth, hands["right"], hands.get("left"))
    _say(f"{done['sequences']} sequences, {done['written']} of them now ({done['pictures']} pictures) -> {options.synth.out}")


def prepare(options) -> None:
    _say(_section(options, "dataset", "datasets").prepare(options.dataset, _hands(options)))


def train(options) -> int:
    from options.load import dump
    from src.engine import train as run_training
    from utils.device import choose_device

    hands, method, device = _hands(options), _method(options), choose_device(options.device, options.threads)
    needs = method.needs | {"joints", "verts", "root"}  # validation compares joints and vertices
    source = _reader(options, hands, options.train.split, train=not options.train.overfit, needs=needs)
    val = _reader(options, hands, options.train.val_split, needs=needs) if options.train.val_split else None
    result = run_training(method, source, options.train, loss_weights=options.loss, folder=options.folder,
                          options_text=dump(options), seed=options.seed, device=device, hand_info=hands["right"].info,
                          method_name=options.method.name, val_source=val)
    _say(f"{result.steps} of {result.total} steps, {result.seconds:.0f} s, {result.images_per_s:.0f} images/s, "
         f"{100 * result.data_wait_share:.1f} % of the time waiting for data -> {result.checkpoint}")
    return 128 + result.stopped_by if result.stopped_by else 0


def test(options) -> None:
    from src.evaluate import evaluate
    from utils.device import choose_device

    device = choose_device(options.device, options.threads)
    hands, (method, checkpoint) = _hands(options), _trained(options, options.test.checkpoint)
    source = _reader(options, hands, options.test.split)
    meta = {"method": options.method.name, "run": options.name, "hand": hands["right"].info, "checkpoint": str(checkpoint)}
    _say(evaluate(method, source, options.test, options.folder / options.test.tag, hand=hands["right"], device=device, meta=meta))


def calibrate(options) -> None:
    from src.calibrate import calibrate as run_calibration

    chosen = options.calibrate
    if not chosen.predictions:
        raise InputError("calibrate.predictions: expected the predictions file of the images that calibrate, "
                         "found none; `run.py test` writes it")
    folder = Path(chosen.out) if chosen.out else options.folder / "identities"
    summary = run_calibration(chosen.predictions, chosen, folder, hand=_hands(options)["right"], scored_predictions=chosen.scored)
    for person in summary["people"]:
        error = person["mesh_error_mm"]
        _say(f"person {person['subject']}: {person['images_used']} of {person['images_available']} images "
             f"-> {folder / person['file']}"
             + ("" if error is None else f", rest mesh {error:.1f} mm from the truth"))


def demo(options) -> None:
    from src.demo import demo as run_demo
    from utils.device import choose_device

    (method, checkpoint), device = _trained(options, options.demo.checkpoint), choose_device(options.device, options.threads)
    folder = Path(options.demo.out) if options.demo.out else options.folder / "demo"
    done = run_demo(method, _hands(options)["right"], options.demo, folder, options.crop, device, checkpoint=str(checkpoint))
    _say(f"{done['pictures']} pictures, {done['hands']} hands -> {folder}")


def report(options) -> None:
    from src.summary import gather, write_page, write_summary

    runs = gather(options.report)
    folder = Path(options.report.out) if options.report.out else options.folder
    _say(write_summary(options.report, folder, runs))
    hands = _hands(options)
    source = _reader(options, hands, options.test.split) if options.dataset else None
    write_page(options.report, folder, runs, hands["right"], source)
    _say(f"{folder / 'report.html'} written")


def check(options) -> int:
    from src.check import check as run_check

    text, good = run_check(options)
    _say(text)
    return 0 if good else 2


def convert(args) -> None:
    if args.what == "mano":
        from utils.mano_file import convert_mano

        convert_mano(args.file, args.out, args.shapedirs)
    else:
        from src.convert import convert as convert_checkpoint

        convert_checkpoint(args.what, args.file, args.out)
    _say(f"{args.out} written")


def _options(args):
    from options.load import load
    from options.schema import Options

    return load(args.option_file, args.overrides) if args.option_file else Options()


def _hands(options) -> dict:
    """The hand model of each side; the left one is the right one's sibling file unless the options name it."""
    from utils.hand import HandModel, left_sibling

    left = Path(options.hand_left) if options.hand_left else left_sibling(options.hand)
    hands = {"right": HandModel.load(options.hand)}
    if options.hand_left or (left.is_file() and left != Path(options.hand)):
        hands["left"] = HandModel.load(left, getattr(options.dataset, "left_shapedirs", "as_is"))
    for side, hand in hands.items():
        if hand.side != side:
            raise InputError(f"{hand.name} is a {hand.side} hand, not a {side} one; mend the options hand and hand_left")
    return hands


def _method(options):
    import torch

    torch.manual_seed(options.seed)  # the first weights belong to the run: the same options start from the same ones
    return _section(options, "method", "src").build(options.method, _hands(options)["right"])


def _trained(options, checkpoint: str | None):
    """The method with its weights, and where they came from: the option's checkpoint, or the run's last."""
    from src.checkpoint import load_weights, require_same_crop, require_same_method

    method = _method(options)
    path = Path(checkpoint) if checkpoint else options.folder / "last.pt"
    found = load_weights(method, path, method_name=options.method.name, hand_info=method.hand.info)
    require_same_method(found, path, options.method.model_dump(mode="json"), method.training_only)
    require_same_crop(found, path, options.crop.model_dump(mode="json"))
    return method, path


def _reader(options, hands: dict, split: str, train: bool = False, needs: frozenset[str] | None = None):
    """A split of the dataset. needs: the labels that somebody reads; None = all of them."""
    module = _section(options, "dataset", "datasets")
    return module.open_reader(options.dataset, options.crop, options.augment, split=split, train=train, seed=options.seed,
                              hands=hands, needs=needs)


def _section(options, section: str, package: str):
    """The module that `section: {name: ...}` names."""
    import importlib

    chosen = getattr(options, section)
    if chosen is None:
        raise InputError(f"this command needs a `{section}:` section in the option file; see options/ for examples")
    return importlib.import_module(f"{package}.{chosen.name}")


def _say(text: object) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    logging.basicConfig(level=logging.WARNING if int(os.environ.get("RANK", 0)) else logging.INFO, format="%(message)s")
    try:
        if args.command == "convert":
            convert(args)
        else:
            return globals()[args.command](_options(args)) or 0
    except InputError as error:
        print(f"run.py {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"run.py {args.command}: {error.filename2 or error.filename or 'the output folder'}: {error.strerror}; what was "
              "finished is kept: make room there or choose another place for the output, and run again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"run.py {args.command}: stopped; what was finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
