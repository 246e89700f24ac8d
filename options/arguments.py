"""The command line: what the commands are called, and what each takes. Imports nothing heavy, so that --help answers at once."""
import argparse
import sys
from pathlib import Path

COMMANDS = {
    "synth": "write a synthetic dataset in a real dataset's on-disk layout",
    "prepare": "index a dataset, cut its crops once, report counts and why each frame was left out",
    "train": "train; resumes by itself where the run folder holds an unfinished run of the same options",
    "test": "predict a split -> one predictions file; score it; write scores.json and report.html",
    "calibrate": "predictions of a subject's images, photographs, or a ruler's numbers -> that subject's identity file",
    "refine": "fit predictions to 2D keypoints, with the shape held -> predictions and their scores",
    "fit": "joints or vertices in 3D -> pose, shape and position of the hand model",
    "demo": "image, folder or video -> overlay, mesh (PLY), numbers (JSON); with an identity file if given",
    "report": "one page, one table and summary.json from the scores of several tests",
    "export": "a dataset as METRO reads it (metro_tsv)",
    "convert": "a published checkpoint, or MANO's pickle, -> this project's files",
    "check": "is everything in place? versions, device, hand model, dataset files; each miss with its remedy",
}
FILE_OPTIONAL = ("calibrate", "refine", "fit", "demo", "check")  # key=value alone will do


class Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong command line."""

    def error(self, message: str):
        sys.stderr.write(f"{self.prog}: {message}; see python run.py --help\n")
        raise SystemExit(2)


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; wrong ones end with exit code 2 by argparse itself."""
    parser = Parser(prog="run.py", description="Train, evaluate and personalise 3D hand mesh estimators.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "convert":
            command.add_argument("what", help="mano, idhand_baseline, idhand_given, idhand_conf or pose2d")
            command.add_argument("file", type=Path)
            command.add_argument("--out", type=Path, required=True)
            command.add_argument("--shapedirs", default="as_is", choices=("as_is", "flip_x", "negate"),
                                 help="mano only: what to do to the left hand's shape directions")
            continue
        if name == "export":
            command.add_argument("what", choices=("metro_tsv",))
            command.add_argument("--out", type=Path, required=True, help="folder of the files")
        command.add_argument("option_file", nargs="?" if name in FILE_OPTIONAL else None, help="options/*.yaml")
        command.add_argument("overrides", nargs="*", default=[], metavar="key=value",
                             help="e.g. train.lr=3e-4 method.backbone=resnet50")
    found, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and found.command == "convert"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse ends a list of words where an option such as --out stands in it
        found.overrides = [*found.overrides, *rest]
    first = getattr(found, "option_file", None) or ""
    if "=" in first and not Path(first).is_file():
        if found.command not in FILE_OPTIONAL:
            parser.error(f"{found.command}: expected an option file before {first}")
        found.overrides, found.option_file = [first, *found.overrides], None
    return found
