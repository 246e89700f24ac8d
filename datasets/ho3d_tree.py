"""HO3D's tree: its lists, the public evaluation labels, and who its sequences show (specs/datasets.md 1.3, 2.4).

train.txt and evaluation.txt name the annotated frames in canonical order; other files in the folders do not count. The labels of
the evaluation are two json lists in that order, published with the local eval.py since November 2024, which belong in the root.
A sequence's name begins with letters for person and setup. Each such stem counts as a person here, by the table PEOPLE, in either
split: whether two stems are one person the spec does not say, handBeta does (`people_notes`), and `dataset.people` joins them.
"""
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.cache import ColumnWriter
from datasets.ho3d_frame import EVALUATION, ORDER_M, SPLITS, UNPACK, Sample, Source, our_points
from datasets.tasks import spread
from utils.errors import InputError
from utils.files import require_file, require_folder
from utils.joints import TIPS
from utils.official_files import LABELS, open_lists
from utils.official_protocols import PROTOCOLS

# Stems of the real set; a stem's number is its place, from 1. Further stems get the next numbers, by name.
PEOPLE = ("ABF", "BB", "GPMF", "GSF", "MC", "MDF", "ND", "SB", "SM", "SMu", "SS", "ShSu", "SiBF", "SiS", "MPM", "AP")
XYZ, VERTS = "evaluation_xyz.json", "evaluation_verts.json"
SEGMENTATIONS = {"v2": "HO3D_v2_segmentations_rendered", "v3": "HO3D_v3_segmentations_rendered"}
LINES = {"train.txt": {"v2": 66034, "v3": 83325}, "evaluation.txt": {v: PROTOCOLS[f"ho3d_{v}"].count for v in ("v2", "v3")}}
SAME_BETA = 1e-4
TIPS_H21 = slice(16, 21)
SIGNS = ("train.txt", "evaluation.txt")  # one of these is in every copy of the dataset


@dataclass(frozen=True)
class Tree:
    """lines: (sequence, frame) of each split's list, in order · repeats: how often a line came before, per line · xyz (n,21,3) of
    evaluation.txt's lines, OpenGL, H21, or None · verts: the file of their vertices, or None · sequences: all names, sorted."""

    root: Path
    version: str
    lines: Mapping[str, Sequence[tuple[str, str]]]
    repeats: Mapping[str, Sequence[int]]
    xyz: np.ndarray | None
    verts: Path | None
    sequences: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.lines)

    @property
    def segmentation(self) -> str | None:
        """The version in the name of the folder of rendered segmentations: the tree's own, else the other; None: no folder."""
        for version in (self.version, *SEGMENTATIONS):
            if (self.root / SEGMENTATIONS[version]).is_dir():
                return version
        return None


def read_tree(root: str | Path, version: str) -> Tree:
    """The lists and public labels. InputError, one line: no such tree; a list that is missing, malformed, of another version."""
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    found = [split for split in SPLITS if (root / f"{split}.txt").is_file() or (root / split).is_dir()]
    if not found:
        raise InputError(f"{root}: expected train.txt, train/, evaluation.txt and evaluation/, found none of them; is "
                         "dataset.root HO3D's folder?")
    lines = {split: _lines(root / f"{split}.txt") for split in found}
    for split, some in lines.items():
        _require_version(root / f"{split}.txt", version, len(some))
    repeats = {}
    for split, some in lines.items():
        seen: Counter[tuple[str, str]] = Counter()
        repeats[split] = []
        for line in some:
            repeats[split].append(seen[line])
            seen[line] += 1
    sequences = tuple(sorted({sequence for some in lines.values() for sequence, _ in some}))
    xyz, verts = _public(root, lines.get(EVALUATION))
    return Tree(root, version, lines, repeats, xyz, verts, sequences)


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = require_file(path, f"the folder {path.stem} is there without it; {UNPACK}").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected lines <sequence>/<frame>, found a file that is no text; {UNPACK}") from error
    lines = []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        match = re.fullmatch(r"([\w-]+)/(\d{1,9})", line.strip(), re.ASCII)
        if not match:
            raise InputError(f"{path}: line {number}: expected <sequence>/<frame> such as ABF10/0000, found {line[:60]!r}; "
                             f"{UNPACK}")
        lines.append(match.groups())
    if not lines:
        raise InputError(f"{path}: expected lines <sequence>/<frame>, found an empty file; {UNPACK}")
    return lines


def _require_version(path: Path, version: str, found: int) -> None:
    other = {"v2": "v3", "v3": "v2"}[version]
    if found == LINES[path.name][other]:
        raise InputError(f"{path}: expected {LINES[path.name][version]} lines of HO3D {version}, found {found}, which is "
                         f"{other}'s number; set dataset.version={other}, or dataset.root")


def _public(root: Path, lines: Sequence | None) -> tuple[np.ndarray | None, Path | None]:
    """The evaluation's labels, where they are there."""
    xyz, verts = root / XYZ, root / VERTS
    if lines is None or not (xyz.exists() or verts.exists()):
        return None, None
    if not xyz.exists():
        raise InputError(f"{xyz}: expected it beside {VERTS}, found nothing; both are released with HO3D's eval.py: put both "
                         f"there, or take {VERTS} away to read the wrist alone")
    with open_lists(xyz, LABELS) as reader:
        values = reader.whole("joints", 21)
        reader.finish()
    _require_length(xyz, len(values), len(lines))
    return values.astype(np.float32), verts if verts.exists() else None


def _require_length(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise InputError(f"{path}: expected {wanted} entries, one for each line of evaluation.txt, found {found}; are both of "
                         "one version (v2: 11,524, v3: 20,137)?")


def write_verts(folder: Path, tree: Tree) -> None:
    """`folder`/verts.npy: float32 (n,778,3) of evaluation.txt's lines, OpenCV axes; read and written in pieces.

    Raises InputError: broken, of another number, or not the vertices of the joints' hands.
    """
    count, start = len(tree.xyz), 0
    with ColumnWriter(folder, count, {"verts": (np.float32, (778, 3))}) as writer, open_lists(tree.verts, LABELS) as reader:
        for verts in reader.entries("vertices", 778):
            there = slice(start, start + len(verts))
            start = there.stop
            if start > count:
                break
            off = np.linalg.norm(verts[:, TIPS["ho3d"]] - tree.xyz[there, TIPS_H21], axis=-1).max(1)
            if (wrong := np.flatnonzero(off > ORDER_M)).size:
                raise InputError(f"{tree.verts}: sample {there.start + wrong[0]} (counted from 0): expected the vertices of "
                                 f"{XYZ}'s hand, found fingertips {1e3 * off[wrong[0]]:.0f} mm off; are both of one version and "
                                 "order?")
            writer.append({"verts": our_points(verts)})
        if start <= count:
            reader.finish()
        _require_length(tree.verts, start, count)


def samples_of(tree: Tree, split: str, source: Source, limit: int | None, skip: bool) -> tuple[list[Sample], int]:
    """The lines of a split, at most `limit`, evenly spread; and how many lines were left out as their sequence is not on disk.

    Raises InputError for such a sequence unless `skip`.
    """
    groups, people = {name: i for i, name in enumerate(tree.sequences)}, people_of(tree.sequences)
    named = dict.fromkeys(sequence for sequence, _ in tree.lines[split])
    absent = [tree.root / split / name / kind for name in named for kind in ("rgb", "meta")
              if not (tree.root / split / name / kind).is_dir()]
    if absent and not skip:
        raise InputError(f"{absent[0]}: expected a folder, as {split}.txt names frames of {absent[0].parent.name}, found "
                         f"nothing; {UNPACK}, or set dataset.unreadable=skip")
    missing = {folder.parent.name for folder in absent}
    number, xyz = SPLITS.index(split), tree.xyz if split == EVALUATION else None
    places = [i for i, (sequence, _) in enumerate(tree.lines[split]) if sequence not in missing]
    samples = [Sample(source, number, sequence, frame, tree.repeats[split][i], i if split == EVALUATION else -1,
                      groups[sequence], people[groups[sequence]], None if xyz is None else xyz[i])
               for i in spread(places, limit) for sequence, frame in (tree.lines[split][i],)]
    return samples, len(tree.lines[split]) - len(places)


def stem_of(sequence: str) -> str:
    """ABF10 -> ABF: the letters that a name begins with, else the whole name."""
    return re.match(r"[A-Za-z]*", sequence)[0] or sequence


def people_of(sequences: Sequence[str], chosen: Mapping[str, int] | None = None) -> list[int]:
    """Number of each sequence's person. chosen: stem, or the beginning of a name with its stem, -> number; the longest one that
    fits wins, the table PEOPLE tells the others. InputError: one that fits no sequence."""
    stems = list(PEOPLE) + sorted({stem_of(name) for name in sequences} - set(PEOPLE))
    chosen = dict(chosen or {})
    fits = [[key for key in chosen if stem_of(key) == stem_of(name) and name.startswith(key)] for name in sequences]
    if unused := sorted(set(chosen) - {key for keys in fits for key in keys}):
        raise InputError(f"dataset.people: no sequence is of {unused[0]}; the stems are "
                         f"{', '.join(sorted(set(map(stem_of, sequences))))}")
    return [chosen[max(keys, key=len)] if keys else stems.index(stem_of(name)) + 1 for keys, name in zip(fits, sequences)]


def people_notes(sequences: Sequence[str], group: np.ndarray, shape: np.ndarray) -> Iterator[str]:
    """Lines where handBeta (n,10) of rows, whose sequences are `group` (n), speak against one stem = one person."""
    known: dict[str, list[tuple[str, np.ndarray]]] = {}
    for number in np.unique(group).tolist():
        for beta in np.unique(shape[group == number].round(5), axis=0):
            known.setdefault(stem_of(sequences[number]), []).append((sequences[number], beta))
    one = {}
    for stem, betas in known.items():
        off = np.array([np.abs(beta - betas[0][1]).max() for _, beta in betas])
        if off.max() <= SAME_BETA:
            one[stem] = betas[0][1]
            continue
        yield (f"{stem}: handBeta of {betas[0][0]} and {betas[int(np.argmax(off))][0]} differ by {off.max():.2g}, but "
               "calibration wants one shape per person: name them apart by dataset.people")
    while one:
        first = next(iter(one))
        same = [stem for stem in one if np.abs(one[stem] - one[first]).max() <= SAME_BETA]
        if len(same) > 1:
            joined = ", ".join(f"{stem}: {people_of([first])[0]}" for stem in same[1:])
            yield f"{', '.join(same)}: equal handBeta, so one person? join them by dataset.people={{{joined}}}"
        one = {stem: beta for stem, beta in one.items() if stem not in same}


def split_notes(tree: Tree) -> Iterator[str]:
    """What the tree has, a line for each fact."""
    for split in tree.splits:
        yield f"{split}: {len(tree.lines[split])} frames named by {split}.txt"
    if EVALUATION in tree.splits:
        protocol, count = PROTOCOLS[f"ho3d_{tree.version}"], len(tree.lines[EVALUATION])
        if count != protocol.count:
            yield f"evaluation: {count} of the official {protocol.count} lines: official scores will be of a part"
        if tree.xyz is None:
            yield f"evaluation: the wrist alone is labelled; {published(tree.version)}"
        else:
            yield f"evaluation: joints of {XYZ}" + (f", vertices of {VERTS}" if tree.verts else f"; no {VERTS}, so no vertices")


def published(version: str) -> str:
    """Where the evaluation's labels are to be had, and what to do with them."""
    return (f"{PROTOCOLS[f'ho3d_{version}'].labels}: put {XYZ} and {VERTS} into dataset.root, and prepare again, into another "
            "dataset.prepared")


def fingerprint_parts(tree: Tree) -> Iterator[object]:
    """What says that a tree is the same: lists and labels; of the vertices, whose file may have 1 GB, size and ends."""
    for split in SPLITS:
        yield repr(tree.lines.get(split))
    if tree.xyz is not None:
        yield tree.xyz
    if tree.verts:
        with open(tree.verts, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for at in (0, max(0, size - (1 << 16))):
                file.seek(at)
                yield file.read(1 << 16).hex()
        yield size
