"""`run.py export freihand|ho3d_v2|ho3d_v3|dex_ycb`: a predictions file -> the file that a dataset's official evaluation reads.

FreiHAND and HO3D (specs/datasets.md 2.3, 2.4): json, [xyz_list, verts_list] in metres, in the protocol's own order of samples and
joints and its own axes; where --out ends in .zip, a zip that holds it as pred.json (as `zip -j pred.zip pred.json`). Both lists
are written as the rows are read, joints first, then vertices, so that memory does not grow with the number of samples. Numbers
are the shortest decimals that read back as the same float32. DexYCB (2.2): text, millimetres with 4 decimals.
Nothing is written unless everything is: the file appears whole or not at all.
"""
import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from utils.camera_scores import stand_ins
from utils.errors import InputError
from utils.files import atomic_path
from utils.official_predictions import PARTS, PLACE, Root, official_chunks, official_of, require_whole
from utils.official_protocols import PROTOCOLS, Protocol
from utils.predictions import Predictions, read_predictions
from utils.protocols import write_dexycb_text

WHAT = (*PROTOCOLS, "dex_ycb")
MEMBER = "pred.json"
TITLES = {**{name: protocol.title for name, protocol in PROTOCOLS.items()}, "dex_ycb": "DexYCB"}
DEFLATE_LEVEL = 1  # digits shrink by half whatever the level; level 6, zip's own, takes six times as long for a tenth less


def export(what: str, file: Path, out: Path, *, root: str = "pred") -> str:
    """Write the official file of the predictions `file` to `out`; the answer says what was written and what to do next.

    root: pred, the predicted wrist, or true, the label's (the usual practice on HO3D). Raises InputError: not a predictions file,
    one of another dataset or of a training split, samples missing or repeated, no mesh, no wrist, a number that is not finite.
    """
    file, out = Path(file), Path(out)
    _check_names(what, file, out, root)
    predictions = read_predictions(file)
    _require_dataset(predictions, what)
    if what == "dex_ycb":
        return _dexycb(predictions, out)
    protocol = PROTOCOLS[what]
    if "pred_verts" not in predictions:
        raise InputError(f"{file}: holds joints in the picture alone, but {protocol.title} asks for joints and vertices in 3D; "
                         "export the predictions of a method that predicts a mesh")
    require_whole(predictions)
    if len(predictions) > protocol.count:
        raise InputError(f"{file}: expected at most the {protocol.count:,} samples of {protocol.title}'s evaluation list, found "
                         f"{len(predictions):,}; predict the official evaluation split")
    with atomic_path(out) as temporary, _opened(temporary, out) as target:
        for piece in _json(predictions, protocol, root):
            target.write(piece)
    return _answer(predictions, protocol, out, root)


def _check_names(what: str, file: Path, out: Path, root: str) -> None:
    """InputError for a word or a name of a file that cannot be meant."""
    if what not in WHAT:
        raise InputError(f"export: expected one of {', '.join(WHAT)}, found {what}")
    if root not in ("pred", "true"):
        raise InputError(f"--root: expected pred or true, found {root}")
    endings = (".txt",) if what == "dex_ycb" else (".json", ".zip")
    if out.suffix.lower() not in endings:
        raise InputError(f"--out {out}: expected a name that ends in {' or '.join(endings)}, which is what {TITLES[what]}'s "
                         "evaluation reads; name one")
    if out.is_dir() or out.resolve() == file.resolve():
        raise InputError(f"--out {out}: this is {'a folder' if out.is_dir() else 'the predictions file itself'}; name a new file")
    if what == "dex_ycb" and root == "true":
        raise InputError("--root true: DexYCB's absolute numbers are of the predicted wrist, and its others need none; leave "
                         "--root out")


def _require_dataset(predictions: Predictions, what: str) -> None:
    """InputError where the frames are not those of this evaluation."""
    told = predictions.meta.get("dataset") or {}
    found = official_of(predictions)
    if found is None:
        split = " ".join(str(told[key]) for key in ("name", "dataset", "split") if told.get(key)) or "a split"
        raise InputError(f"{predictions.path}: its frames ({split}) have no place in an official list (no column "
                         f"official_index); predict the evaluation split of {TITLES[what]} (test.split)")
    if found != what:
        raise InputError(f"{predictions.path}: expected predictions of {TITLES[what]}'s evaluation, found those of "
                         f"{TITLES.get(found, found)}; export them as {found}, or predict {TITLES[what]}'s evaluation split")


@contextlib.contextmanager
def _opened(temporary: Path, out: Path) -> Iterator[IO[bytes]]:
    """The json to write to: the file itself, or the one member of a zip."""
    if out.suffix.lower() != ".zip":
        with open(temporary, "wb", buffering=1 << 20) as file:
            yield file
        return
    with (zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=DEFLATE_LEVEL) as archive,
          archive.open(MEMBER, "w", force_zip64=True) as member):  # of 1980: same predictions, same bytes
        yield member


def _json(predictions: Predictions, protocol: Protocol, root: Root) -> Iterator[bytes]:
    """The text, a chunk at a time."""
    for i, part in enumerate(PARTS):
        opening = b",[" if i else b"[["
        for chunk in official_chunks(predictions, protocol.name, root=root, parts=(part,)):
            text = orjson.dumps(chunk[f"pred_{part}"], option=orjson.OPT_SERIALIZE_NUMPY)
            yield opening + memoryview(text)[1:-1]  # without the brackets of the chunk
            opening = b","
        yield b"]"
    yield b"]"


def _answer(predictions: Predictions, protocol: Protocol, out: Path, root: Root) -> str:
    """What was written, by which protocol, and what to do next."""
    n, count = len(predictions), protocol.count
    held = f"{MEMBER} in it" if out.suffix.lower() == ".zip" else "json"
    wrist = f"the wrist is the predicted one{_lost(predictions)}"
    if root == "true":
        wrist = "the wrist is the TRUE one (--root true): " + (
            "usual on HO3D, whose evaluation set gives it; say so beside the numbers" if protocol.frame == "opengl" else
            f"{protocol.title}'s evaluation does not give it, so that only the aligned numbers compare with others'")
    part = "" if n == count else f" --count {n}"
    lines = [f"{out} written ({held}, {_size(out)}): {n:,} of the {count:,} samples of {protocol.title}'s evaluation; {wrist}",
             f"absolute camera coordinates in metres, axes {protocol.frame}, joints {protocol.order}, 778 vertices",
             f"next: python run.py score {protocol.name} --pred {out} --truth <folder of evaluation_xyz.json and "
             f"evaluation_verts.json>{part}"]
    return "\n".join(lines)


def _dexycb(predictions: Predictions, out: Path) -> str:
    """DexYCB's text, and the same answer about it."""
    if "pred_joints" not in predictions:
        raise InputError(f"{predictions.path}: holds joints in the picture alone, but DexYCB asks for joints in 3D; export the "
                         "predictions of a method that predicts them")
    written = write_dexycb_text(predictions, out)
    split = (predictions.meta.get("dataset") or {}).get("split", "<setup>/<split>")
    lines = [f"{out} written (text, {_size(out)}): {written.lines:,} images of DexYCB {split}, millimetres, T21"]
    if lost := _lost(predictions):
        lines.append(f"the wrist is the predicted one{lost}")
    if written.note:
        lines.append(f"{written.note}; {PLACE.split(',')[0]} for the absolute ones")
    lines.append(f"next: python run.py score dex_ycb --pred {out} --truth <DexYCB's folder> --split {split}")
    return "\n".join(lines)


def _lost(predictions: Predictions) -> str:
    """How many of the predicted wrists stand on nothing, where some do."""
    count = stand_ins(predictions.meta)
    return f" ({count:,} of {len(predictions):,} are stand-ins)" if count else ""


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
