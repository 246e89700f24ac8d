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
    "score": "score a submission file by its dataset's official protocol; refuses a malformed one with the reason",
    "report": "one page, one table and summary.json from the scores of several tests",
    "export": "a predictions file -> a submission (freihand, ho3d_v2, ho3d_v3, dex_ycb); a dataset as METRO reads it (metro_tsv)",
    "convert": "a published checkpoint, or MANO's pickle, -> this project's files",
    "check": "is everything in place? versions, device, hand model, dataset files; each miss with its remedy",
}
PROTOCOLS = {"freihand": "utils.official_score", "ho3d_v2": "utils.official_score", "ho3d_v3": "utils.official_score",
             "dex_ycb": "datasets.dex_ycb_score"}  # protocol -> the module that scores by it
FILE_OPTIONAL = ("calibrate", "refine", "fit", "demo", "check")  # key=value alone will do


class Parser(argparse.ArgumentParser):
    """argparse with one line for a wrong command line."""

    def error(self, message: str):
        sys.stderr.write(f"{self.prog}: {message}; see python run.py --help\n")
        raise SystemExit(2)


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", help="mano, idhand_baseline, idhand_given, idhand_conf, pose2d, cmr_sg, cmr_pg, "
                                        "cmr_g, cmr_pg_dexycb, boukhayma or boukhayma_dexycb")
    command.add_argument("file", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--shapedirs", default="as_is", choices=("as_is", "flip_x", "negate"),
                         help="mano only: what to do to the left hand's shape directions")


def _score(command: argparse.ArgumentParser) -> None:
    command.add_argument("protocol", choices=PROTOCOLS)
    command.add_argument("--pred", type=Path, required=True, help="submission: .json or .zip; DexYCB: .txt, 2D .json")
    command.add_argument("--truth", type=Path, required=True, help="folder with the evaluation labels; DexYCB: the dataset")
    command.add_argument("--out", type=Path, help="folder for scores.txt and scores.json; without it they are printed only")
    command.add_argument("--count", type=int, help="a partial file: exactly this many samples, which the output says")
    command.add_argument("--unchecked", action="store_true", help="score an implausible file as the official program would")
    command.add_argument("--split", help="DexYCB only: setup and split, s0/test by default")


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=("metro_tsv", *PROTOCOLS))
    command.add_argument("--out", type=Path, required=True, help="the file (pred.json, pred.zip, .txt); metro_tsv: a folder")
    command.add_argument("--root", default="pred", choices=("pred", "true"),
                         help="where the wrist is: as predicted, or as labelled (what HO3D's evaluation set tells)")


WITHOUT_OPTIONS = {"convert": _convert, "score": _score}


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; wrong ones end with exit code 2 by argparse itself."""
    parser = Parser(prog="run.py", description="Train, evaluate and personalise 3D hand mesh estimators.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in WITHOUT_OPTIONS:
            WITHOUT_OPTIONS[name](command)
            continue
        if name == "export":
            _export(command)
        command.add_argument("option_file", nargs="?" if name in FILE_OPTIONAL else None,
                             help="options/*.yaml" + ("; a submission: the predictions file" if name == "export" else ""))
        command.add_argument("overrides", nargs="*", default=[], metavar="key=value",
                             help="e.g. train.lr=3e-4 method.backbone=resnet50")
    found, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and found.command in WITHOUT_OPTIONS):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse ends a list of words where an option such as --out stands in it
        found.overrides = [*found.overrides, *rest]
    if found.command == "export" and found.what in PROTOCOLS and found.overrides:
        parser.error(f"export {found.what}: expected the predictions file alone, found {' '.join(found.overrides)}, too")
    if found.command == "score":
        if found.split and found.protocol != "dex_ycb":
            parser.error(f"score {found.protocol}: --split is for dex_ycb, {found.protocol} has one evaluation list")
        found.split = found.split or "s0/test"
    first = getattr(found, "option_file", None) or ""
    if "=" in first and not Path(first).is_file():
        if found.command not in FILE_OPTIONAL:
            parser.error(f"{found.command}: expected an option file before {first}")
        found.overrides, found.option_file = [first, *found.overrides], None
    return found
