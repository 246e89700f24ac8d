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
from utils.errors import line_for_user


def synth(options) -> None:
    from options.build import hands_of, module_of

    module, hands = module_of(options, "synth", "datasets.synthetic"), hands_of(options)
    done = module.write(options.synth, hands["right"], hands.get("left"))
    _say(f"{done['sequences']} sequences, {done['written']} of them now ({done['pictures']} pictures) -> {options.synth.out}")


def prepare(options) -> None:
    from options.build import hands_of, module_of

    _say(module_of(options, "dataset", "datasets").prepare(options.dataset, hands_of(options)))


def train(options) -> int:
    from options.build import hands_of, method_of, reader_of
    from options.load import dump
    from src.engine import train as run_training
    from utils.device import choose_device

    hands, method, device = hands_of(options), method_of(options), choose_device(options.device, options.threads)
    needs = method.needs | method.compares  # validation compares what the method predicts
    source = reader_of(options, hands, options.train.split, train=not options.train.overfit, needs=needs)
    val = reader_of(options, hands, options.train.val_split, needs=needs) if options.train.val_split else None
    method.joint_set = (val or source).joint_set
    result = run_training(method, source, options.train, loss_weights=options.loss, folder=options.folder,
                          options_text=dump(options), seed=options.seed, device=device, hand_info=hands["right"].info,
                          method_name=options.method.name, val_source=val)
    _say(f"{result.steps} of {result.total} steps, {result.seconds:.0f} s, {result.images_per_s:.0f} images/s, "
         f"{100 * result.data_wait_share:.1f} % of the time waiting for data -> {result.checkpoint}")
    return 128 + result.stopped_by if result.stopped_by else 0


def test(options) -> None:
    from options.build import hands_of, reader_of, trained
    from src.evaluate import evaluate
    from utils.device import choose_device

    device = choose_device(options.device, options.threads)
    hands, (method, checkpoint) = hands_of(options), trained(options, options.test.checkpoint)
    source = reader_of(options, hands, options.test.split)
    method.joint_set = source.joint_set
    meta = {"method": options.method.name, "run": options.name, "hand": hands["right"].info, "checkpoint": str(checkpoint)}
    _say(evaluate(method, source, options.test, options.folder / options.test.tag, hand=hands["right"], device=device, meta=meta))


def calibrate(options) -> None:
    from options.build import hands_of, keypoints_of, trained
    from src.calibrate import calibrate as run_calibration
    from utils.device import choose_device

    chosen, hand = options.calibrate, hands_of(options)["right"]
    folder = Path(chosen.out) if chosen.out else options.folder / "identities"
    if chosen.input:  # photographs: what the network makes of them comes first
        from src.photographs import predict_photographs

        (method, checkpoint), device = trained(options, chosen.checkpoint), choose_device(options.device, options.threads)
        chosen = predict_photographs(method, hand, chosen, folder, options.crop, device, checkpoint=str(checkpoint),
                                     keypoints=keypoints_of(chosen.keypoints, "calibrate"))
    _say(run_calibration(chosen, folder, hand=hand))


def refine(options) -> None:
    from options.build import hands_of
    from src.refine import refine as run_refinement
    from utils.device import choose_device

    device = choose_device(options.device, options.threads)
    _say(run_refinement(options.refine, options.folder / options.refine.tag, hand=hands_of(options)["right"], device=device,
                        run=options.name))


def fit(options) -> None:
    from options.build import hands_of
    from src.fit import fit as run_fit
    from utils.device import choose_device

    device = choose_device(options.device, options.threads)
    folder = Path(options.fit.out) if options.fit.out else options.folder
    _say(run_fit(options.fit, folder, hand=hands_of(options)["right"], device=device))


def demo(options) -> None:
    from options.build import hands_of, keypoints_of, trained
    from src.demo import demo as run_demo
    from utils.device import choose_device

    (method, checkpoint), device = trained(options, options.demo.checkpoint), choose_device(options.device, options.threads)
    folder = Path(options.demo.out) if options.demo.out else options.folder / "demo"
    done = run_demo(method, hands_of(options)["right"], options.demo, folder, options.crop, device, checkpoint=str(checkpoint),
                    keypoints=keypoints_of(options.demo.keypoints))
    _say(done["text"])


def report(options) -> None:
    from options.build import hands_of, reader_of
    from src.summary import gather, write_page, write_summary

    runs = gather(options.report)
    folder = Path(options.report.out) if options.report.out else options.folder
    _say(write_summary(options.report, folder, runs))
    hands = hands_of(options)
    source = reader_of(options, hands, options.test.split) if options.dataset else None
    write_page(options.report, folder, runs, hands["right"], source)
    _say(f"{folder / 'report.html'} written")


def export(args) -> None:
    if args.what == "metro_tsv":
        from datasets.metro_tsv import export as export_tsv
        from options.build import hands_of

        options = _options(args)
        _say(export_tsv(options.dataset, args.out, hands=hands_of(options)))
    else:
        from utils.official_export import export as export_submission

        _say(export_submission(args.what, Path(args.option_file), args.out, root=args.root))


def score(args) -> None:
    from importlib import import_module

    from options.arguments import PROTOCOLS

    _say(import_module(PROTOCOLS[args.protocol]).score(args.protocol, args.pred, args.truth, out=args.out, count=args.count,
                                                       unchecked=args.unchecked, split=args.split))


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

    return load(args.option_file, args.overrides, args.command)


def _say(text: object) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    logging.basicConfig(level=logging.WARNING if int(os.environ.get("RANK", 0)) else logging.INFO, format="%(message)s")
    try:
        if args.command in ("convert", "export", "score"):
            return globals()[args.command](args) or 0
        return globals()[args.command](_options(args)) or 0
    except Exception as error:
        if (line := line_for_user(error)) is None:
            raise
        print(f"run.py {args.command}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"run.py {args.command}: stopped; what was finished is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
