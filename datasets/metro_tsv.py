"""`export metro_tsv`: a DexYCB tree -> the TSV files that METRO reads (Lin et al., CVPR 2021; specs/idhandmesh.md 7.3).

For each split {split}.img, .hw, .label and .linelist.tsv, and a .lineidx (where each row begins) for each. The crop is that of
Kong et al.: twice the longer side of the joints' box, at its native size. Right hands, frames with all joints in the picture.
3D joints are regressed from the posed mesh, metres, less MANO's translation; 2D joints are pixels of the crop.
Reads the tree itself, not a prepared folder, and writes row by row: memory does not grow with the dataset.
Seed: the original held every row of a split in memory, and wrote the three splits of s1 only.
"""
import base64
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from tqdm import tqdm

from datasets.dex_ycb import Options
from datasets.dex_ycb_frames import Plan, read_frame
from datasets.dex_ycb_reader import require_fit
from datasets.dex_ycb_splits import select
from datasets.dex_ycb_tree import SIDES, Sequence, Tree, scan
from datasets.metro_tsv_hand import regressed_joints
from datasets.pictures import Broken, Excluded, decode
from datasets.reader import Hands
from utils.errors import InputError
from utils.files import atomic_path
from utils.strict import Strict

log = logging.getLogger(__name__)
SPLITS, KINDS = ("train", "val", "test"), ("img", "hw", "label", "linelist")
FACTOR, FOLDER = 2, "cropped_hand_size_2"  # side of the crop / longer side of the box; first word of every key
STORED_QUALITY = 75  # PIL's default, with which the original stored its crops
UNITS_PER_SCALE = 200  # pixels; METRO's `scale` is the crop's side in these
Recording = tuple[Sequence, list[tuple[int, int]]]  # and its frames: (camera, frame)
NOT_HERE = ("sequences", "every", "frames")  # options that choose among prepared rows


def export(options: Strict | None, out_folder: str | Path, *, hands: Hands) -> str:
    """Write train, val and test of options.setup into `out_folder`; returns the lines to print.

    A split of which the tree has nothing is left out and named. The files of a split appear together, whole.
    Raises InputError: not a DexYCB tree, left hands or a choice of rows asked for, another hand model than the labels', a folder
    of other files, a broken file of the tree (options.unreadable=stop), nothing to export.
    """
    options = _require_options(options)
    plan = replace(options.plan(), hands="right")
    tree, folder = scan(options.root, plan.serials, plan.width, plan.height), Path(out_folder)
    chosen, said = {}, {}
    for split in SPLITS:
        try:
            chosen[split] = _choose(tree, plan, options.setup, split)
        except InputError as empty:
            said[split] = f"{split} left out: {empty}"
    _require_ours(folder, [name for split in chosen for name in _names(split)])
    rows = 0
    for split, recordings in chosen.items():
        writer = _Split(tree, plan, hands, folder, split)
        writer.write(recordings)
        rows, said[split] = rows + writer.rows, str(writer)
    lines = [said[split] for split in SPLITS]
    if not rows:
        raise InputError(f"{options.root}: nothing to export ({'; '.join(lines)})")
    return "\n".join(lines)


def _require_options(options: Strict | None) -> Options:
    if not isinstance(options, Options):
        found = "none" if options is None else f"name: {getattr(options, 'name', '?')}"
        raise InputError(f"metro_tsv: expected a `dataset:` section with name: dex_ycb, found {found}; name such an option file")
    if options.hands != "right":
        raise InputError(f"dataset.hands={options.hands}: METRO's files hold right hands as the pictures show them; export with "
                         "dataset.hands=right")
    given = [name for name in NOT_HERE if getattr(options, name) != Options.model_fields[name].default]
    if given:
        raise InputError(f"dataset.{given[0]}={getattr(options, given[0])}: export writes whole splits; leave it out "
                         "(dataset.stride and dataset.limit choose frames here)")
    return options


def _require_ours(folder: Path, names: list[str]) -> None:
    """An earlier export into the same folder is replaced; anything else in it is not ours to mix with."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder or nothing, found a file; name another by --out")
    others = sorted({path.name for path in folder.iterdir()} - set(names)) if folder.is_dir() else []
    left = {name for name in others if name.startswith(".") and name.endswith(".part")}  # of a killed run
    if others := [name for name in others if name not in left]:
        raise InputError(f"{folder}: expected a new folder or this export's own files, found others ({', '.join(others[:3])}); "
                         "name another by --out")
    for name in left:
        (folder / name).unlink()


def _names(split: str) -> list[str]:
    return [f"{split}.{kind}.{ending}" for kind in KINDS for ending in ("tsv", "lineidx")]


def _choose(tree: Tree, plan: Plan, setup: str, split: str) -> list[Recording]:
    """The right-handed recordings of a split in official order, each with its (camera, frame). InputError where there is none."""
    sequences = [s for s in tree.sequences if SIDES[s.side] == "right"]
    rows = [(n, s.subject, s.index, camera, frame) for n, s in enumerate(sequences) for camera in s.cameras
            for frame in plan.frames(s.num_frames)]
    owner, *place = np.array(rows, np.int64).reshape(-1, 5).T
    keys = dict(zip(("subject", "sequence", "camera", "frame"), place))
    taken, _ = select(setup, split, tree.num_frames(), len(tree.serials), **keys)
    bounds = np.searchsorted(owner[taken], np.arange(len(sequences) + 1))
    pairs = np.stack((keys["camera"], keys["frame"]), 1)[taken]
    return [(s, list(map(tuple, pairs[a:b].tolist()))) for s, a, b in zip(sequences, bounds, bounds[1:]) if a < b]


class _Nothing(Exception):
    """No row: the files are not put in place."""


class _Split:
    """Writes the files of one split. str() says what came of it."""

    def __init__(self, tree: Tree, plan: Plan, hands: Hands, folder: Path, split: str):
        self.tree, self.plan, self.hands, self.folder, self.split = tree, plan, hands, folder, split
        self.rows, self.counts, self.fits = 0, Counter(), False

    def __str__(self) -> str:
        left = ", ".join(f"{count} {why}" for why, count in sorted(self.counts.items()))
        if not self.rows:
            return f"{self.split} left out: no frame is left of it ({left})"
        return f"{self.split}: {self.rows} rows -> {self.folder / self.split}.*.tsv{left and f'; left out: {left}'}"

    def write(self, recordings: list[Recording]) -> None:
        """Every kept frame of the recordings, each file beside its place until all are whole."""
        names = _names(self.split)
        try:
            with ExitStack() as whole:
                paths = [whole.enter_context(atomic_path(self.folder / name)) for name in names]
                with ExitStack() as opened:
                    files = [opened.enter_context(open(path, "w", encoding="ascii", newline="\n")) for path in paths]
                    self._write(recordings, dict(zip(names, files)))
                if not self.rows:
                    raise _Nothing
        except _Nothing:
            for name in names:  # of an earlier export
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, recordings: list[Recording], files: dict[str, TextIO]) -> None:
        starts = dict.fromkeys(KINDS, 0)
        with tqdm(recordings, desc=f"export {self.split}", unit="sequence", disable=None) as bar:
            for sequence, frames in bar:
                for columns in self._rows(sequence, frames):
                    for kind, text in columns.items():
                        files[f"{self.split}.{kind}.lineidx"].write(f"{starts[kind]}\n")
                        starts[kind] += files[f"{self.split}.{kind}.tsv"].write(text + "\n")
                    self.rows += 1
                bar.set_postfix(rows=self.rows)

    def _rows(self, s: Sequence, frames: list[tuple[int, int]]) -> Iterator[dict[str, str]]:
        """The columns of each kept frame of a recording: the hands of all of them first, then picture by picture."""
        found = list(self._labels(s, frames))
        if not found:
            return
        mano = np.stack([np.concatenate([label["pose_m"], np.float32(s.betas)]) for _, label in found])
        if not self.fits:  # all recordings are of one hand model: the first tells
            labelled = np.stack([label["joint_3d"] for _, label in found[:8]])
            require_fit(self.hands, "right", mano[:8], labelled, str(self.tree.root))
            self.fits = True
        joints, pose = regressed_joints(self.hands["right"], mano)
        joints = joints - mano[:, None, 48:51]
        for n, (name, label) in enumerate(found):
            box = crop_box(label["joint_2d"])
            try:
                crop = cut(decode(self.tree.root / name, self.plan.width, self.plan.height), box)
            except Broken as broken:
                self._broken(broken)
                continue
            key = f"{FOLDER}/{name}"
            yield {"img": f"{key}\t{encode(crop)}", "hw": f"{key}\t{hw_column(crop.shape)}",
                   "label": f"{key}\t{label_column(crop.shape, label['joint_2d'] - box[:2], joints[n], pose[n], s.betas)}",
                   "linelist": str(self.rows)}

    def _labels(self, s: Sequence, frames: list[tuple[int, int]]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Name of the picture and labels of the frames that the filter keeps."""
        for camera, frame in frames:
            name = f"{s.folder}/{self.plan.serials[camera]}/color_{frame:06d}.jpg"
            try:
                yield name, read_frame(self.tree.root / name, self.tree.K[camera], self.plan)
            except Excluded as why:
                self.counts[str(why)] += 1
            except Broken as broken:
                self._broken(broken)

    def _broken(self, broken: Broken) -> None:
        if self.plan.unreadable == "stop":
            raise InputError(str(broken)) from broken
        log.warning("%s", broken)
        self.counts[broken.reason] += 1


def crop_box(uv: np.ndarray) -> np.ndarray:
    """(4) left, top, right, bottom of the crop around joint_2d (21,2), in float32 pixels, as the original has it."""
    low, high = uv.min(0), uv.max(0)
    centre, half = (low + high) / 2, np.float32(FACTOR) * (high - low).max() / 2
    return np.concatenate((centre - half, centre + half))


def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The crop (h,w,3), black outside the picture.

    Seed: as there, each edge is rounded by itself, so h and w may differ by one, and the labels keep the unrounded corner.
    """
    left, top, right, bottom = (round(float(edge)) for edge in box)
    height, width = image.shape[:2]
    inner = image[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
    x, y = min(max(left, 0), width) - left, min(max(top, 0), height) - top
    return cv2.copyMakeBorder(inner, y, bottom - top - y - inner.shape[0], x, right - left - x - inner.shape[1],
                              cv2.BORDER_CONSTANT, value=0)


def encode(crop: np.ndarray) -> str:
    """The crop as base64 of a JPEG.

    Seed: the original stored its crops as JPEG and encoded what it decoded again, so its pictures lose twice; so do ours.
    """
    stored = cv2.imencode(".jpg", crop, (cv2.IMWRITE_JPEG_QUALITY, STORED_QUALITY))[1]
    return base64.b64encode(cv2.imencode(".jpg", cv2.imdecode(stored, cv2.IMREAD_COLOR))[1]).decode("ascii")


def hw_column(size: tuple[int, ...]) -> str:
    """The crop's height and width as json."""
    return json.dumps([{"height": size[0], "width": size[1]}])


def label_column(size: tuple[int, ...], uv: np.ndarray, joints: np.ndarray, pose: np.ndarray, betas: tuple[float, ...]) -> str:
    """A row's labels as json. size (h,w) of the crop · uv (21,2) in it · joints (21,3) m · pose (48) axis-angles · betas (10)."""
    height, width = size[:2]

    def known(values: np.ndarray) -> list[list[float]]:
        return [[*value, 1.0] for value in values.tolist()]

    return json.dumps([{
        "center": [height / 2, width / 2],  # Seed: METRO expects x, y; kept as the original wrote it (they differ by 1/2 at most)
        "scale": max(height, width) / UNITS_PER_SCALE, "2d_joints": known(uv), "has_2d_joints": 1, "3d_joints": [known(joints)],
        "has_3d_joints": 1, "pose": pose.tolist(), "betas": list(betas), "has_smpl": 1}])
