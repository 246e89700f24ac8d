"""The reader of a prepared DexYCB folder: a setup, a split and a subset are a selection of its rows.

Conventions of the labels: 45 PCA coefficients about the mean pose, camera frame, metres; joints are chain joints with manopth's
fingertips. A subject's number is that of its folder (20200928-subject-07 is 7), or its rank from 1.
Seed: Kong et al. (ECCV 2022) take the shape from a file by subject and train on joints regressed from the mesh; here the shape
is the frame's own (one per subject as well) and `joints` are the dataset's: a method may regress its own from `verts`.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.augment import AugmentOptions, CropOptions
from datasets.cache import Crops, read_columns
from datasets.dex_ycb_frames import BREAKS, COLUMNS
from datasets.dex_ycb_prepare import TITLE, VERSION
from datasets.dex_ycb_splits import select
from datasets.dex_ycb_tree import SIDES
from datasets.hand_fit import HAND_TOLERANCE_M, hand_error_m
from datasets.prepare import read_meta, same_plan
from datasets.reader import Hands, Picture, Raw, Reader
from datasets.stored import placed, read_stored, whole_picture
from utils.errors import InputError
from utils.predictions import index_hash

if TYPE_CHECKING:
    from datasets.dex_ycb import Options

log = logging.getLogger(__name__)
PLACE = ("subject", "sequence", "camera", "frame")
HAND_ROWS = 16  # frames of each side whose joints are compared with the hand model's when a reader opens
MIRROR = np.array([-1.0, 1.0, 1.0, 1.0])
CONVENTION = {"pca": True, "flat_mean": False, "tips": "manopth", "kind": "chain"}


class DexYcb(Reader):
    """A split of a prepared folder; `datasets.dex_ycb.open_reader` makes it and says what is raised."""

    pose_pca, pose_flat_mean, tips, joints_kind = CONVENTION.values()

    def __init__(self, options: Options, crop: CropOptions, augment: AugmentOptions, hands: Hands, *, split: str, train: bool,
                 seed: int, needs: frozenset[str] | None = None):
        super().__init__(crop, augment, hands, train=train, seed=seed, needs=needs)
        self.options, self.split, self.folder = options, split, Path(options.prepared)
        self.meta = _read_meta(self.folder, options)
        self.crops, self.masks = (Crops(self.folder / f"{name}.lmdb") for name in ("crops", "masks"))
        if options.masks:
            self.provides = self.provides | {"mask", "has_mask"}
            self.needs = self.provides if needs is None else needs
        self.labels = _read_labels(self.folder)
        if len(self.labels["frame"]) != self.meta["rows"]:
            raise InputError(f"{self.folder}/index: expected {self.meta['rows']} rows, found {len(self.labels['frame'])}; "
                             "remove the folder and prepare again")
        self.rows, self.official_index = self._select()
        self.places = np.stack([self.labels[name][self.rows].astype(np.int32) for name in PLACE], 1)
        self.poses = _read_poses(self.folder, self.places)
        self.mirrors = bool(self.labels["side"][self.rows].any())
        stored = self.meta["plan"]
        share = crop.factor / stored["factor"]
        self.read_pixels = stored["pixels"] or options.read_pixels or int(np.ceil(crop.pixels / share - 1e-9))
        self.samples = max(1, int(self.read_pixels * share / crop.pixels + 0.5)) if crop.antialias else 1
        self._require_room(stored["factor"])
        for number, side in enumerate(sides(options.hands, hands)):
            self._require_hand(number, side)
        if self.mirrors and needs is not None and "identity" in needs and not self.left_shape_holds():
            raise InputError("dataset.hands=mirror_left: this method is told the shape, and the left hand model is not the "
                             "right one's mirror image, so left hands have no shape to tell; use dataset.hands=right")

    def _select(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the prepared folder in official order, and the official image number of each."""
        o, labels = self.options, self.labels
        keys = {name: np.array(labels[name]) for name in PLACE}
        rows, number = select(o.setup, self.split, np.array(self.meta["num_frames"]), len(self.meta["serials"]), **keys)
        keep = np.ones(len(rows), bool)
        if o.hands == "right":
            keep &= labels["side"][rows] == SIDES.index("right")
        if o.in_image:
            keep &= labels["inside"][rows]
        if o.sequences is not None:
            keep &= self._in_sequences(keys["subject"][rows], keys["sequence"][rows])
        chosen = np.flatnonzero(keep)[::o.every]
        if o.frames is not None and o.frames < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, o.frames).round().astype(int)]
        if not len(chosen):
            raise InputError(f"DexYCB {o.setup}/{self.split}: no frame is left in {self.folder}; see its counts.json, and "
                             "dataset.hands, dataset.in_image and dataset.sequences")
        return rows[chosen], number[chosen]

    def _in_sequences(self, subject: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        """Which rows lie in the sequences that the option names; even and odd count among a person's sequences of one side."""
        wanted, side_of = self.options.sequences, np.array(self.meta["sides"])
        if wanted in ("even", "odd"):
            rank = sum((np.cumsum(side_of == side, axis=1) - 1) * (side_of == side) for side in range(len(SIDES)))
            return rank[subject, sequence] % 2 == (wanted == "odd")
        chosen = np.zeros(side_of.shape, bool)
        people = list(zip(self.meta["people"], self.meta["sequences"]))
        for name in wanted:
            hit = np.array([[name in (sequence, f"{person}/{sequence}") for sequence in line] for person, line in people])
            if not hit.any():
                raise InputError(f"dataset.sequences: there is no sequence {name}; names are like {people[-1][1][0]}")
            chosen |= hit
        return chosen[subject, sequence]

    def _require_room(self, stored: float) -> None:
        """The crop must lie in what is stored; that augmentation takes black from beyond is said."""
        if self.crop.factor > stored * (1 + 1e-9):
            raise InputError(f"crop.factor={self.crop.factor} is wider than the stored crops ({stored} times the box, in "
                             f"{self.folder}); prepare with a larger dataset.stored.factor, into another dataset.prepared")
        if self.train:
            a = self.augment
            turn = np.radians(min(a.rotate, 45.0))
            reach = self.crop.factor * (1 + a.scale) * (np.cos(turn) + np.sin(turn) + 2 * a.shift)
            if reach > stored * 1.001:
                log.info("augmentation reaches %.2f times the box, the stored crops %.2f: beyond is black", reach, stored)

    def _require_hand(self, number: int, side: str) -> None:
        rows = self.rows[self.labels["side"][self.rows] == number]
        if len(rows):
            rows = np.unique(rows[np.linspace(0, len(rows) - 1, HAND_ROWS).round().astype(int)])
            require_fit(self.hands, side, self.labels["mano"][rows], self.labels["joint_3d"][rows], str(self.folder))

    def __getstate__(self) -> dict[str, Any]:
        """For a spawned process, which maps the columns itself: a copied map would be a copy of the data."""
        return {**self.__dict__, "labels": None, "_on": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.labels = _read_labels(self.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Raw:
        row = int(self.rows[index])
        label = {name: column[row] for name, column in self.labels.items() if name != "world"}
        mano = label["mano"]
        image = self._stored(self.crops, row, index, cv2.IMREAD_COLOR_RGB)
        raw = {"image": image, **placed(label["stored"], label["K"], self.read_pixels),
                "width": np.int64(self.options.width), "box": np.array(label["box"]), "mirrored": np.bool_(label["side"] == 1),
                "subject": np.int64(label["subject"] + 1), "pose": np.array(mano[:48]), "trans": np.array(mano[48:51]),
                "shape": np.array(mano[51:]), "joints": np.array(label["joint_3d"]), "joints_uv": np.array(label["joint_2d"])}
        if self.options.masks and "mask" in self.needs:
            known = self.masks.has(row)
            mask = self._stored(self.masks, row, index, cv2.IMREAD_GRAYSCALE) if known else np.zeros(image.shape[:2], np.uint8)
            raw |= {"mask": mask, "has_mask": np.bool_(known)}
        return raw

    def _stored(self, store: Crops, row: int, index: int, flags: int) -> np.ndarray:
        return read_stored(store, row, self.read_pixels, self.crop.antialias, lambda: self.describe(index), flags)

    def sample_name(self, index: int) -> str:
        """Path of the picture below the root."""
        subject, sequence, camera, frame = self.places[index].tolist()
        return (f"{self.meta['people'][subject]}/{self.meta['sequences'][subject][sequence]}/{self.meta['serials'][camera]}/"
                f"color_{frame:06d}.jpg")

    def describe(self, index: int) -> str:
        number = self.official_index[index]
        return f"DexYCB {self.options.setup}/{self.split} #{number if number >= 0 else index} ({self.sample_name(index)})"

    @property
    def subject_names(self) -> dict[int, str]:
        """Subject number -> folder name, of the people in this selection."""
        return {int(s) + 1: self.meta["people"][s] for s in np.unique(self.labels["subject"][self.rows])}

    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """official_index (n), where the split has an official order; where the tree has extrinsics, world_from_camera (n,4,4),
        M T M with M = diag(-1,1,1,1) for mirrored rows, and instant (n), equal for the cameras that saw one moment."""
        rows = np.asarray(indices, int)
        found = {"official_index": self.official_index[rows]} if (self.official_index >= 0).all() else {}
        if self.poses is None:
            return found
        subject, sequence, camera, frame = self.places[rows].T
        world_from_camera = np.zeros((len(rows), 4, 4))
        world_from_camera[:, :3], world_from_camera[:, 3, 3] = self.poses[subject, sequence, camera], 1
        lefts = self.labels["side"][self.rows[rows]] == SIDES.index("left")
        world_from_camera[lefts] *= MIRROR[:, None] * MIRROR
        lengths = np.array(self.meta["num_frames"], np.int64)
        first = lengths.cumsum().reshape(lengths.shape) - lengths  # of a sequence, with all moments of the tree end to end
        return {**found, "world_from_camera": world_from_camera.astype(np.float32), "instant": first[subject, sequence] + frame}

    def protocol(self) -> dict[str, Any]:
        o, stored = self.options, self.meta["plan"]
        lefts = int(self.labels["side"][self.rows].sum())
        known: dict[str, Any] = {
            "dataset": "DexYCB", "official": "dex_ycb", "split": f"{o.setup}/{self.split}", "root_joint": "wrist",
            "joints": "chain joints, manopth tips",
            "hands": "right hands" if o.hands == "right" else f"{len(self) - lefts} right and {lefts} left hands (mirrored)",
            "crop": f"{self.crop.factor:g} x box of the joints, {self.crop.pixels} px",
            "kept": "all joints in the picture" if o.in_image else "every frame with a hand",
            "rows": {"frames": len(self), "index_hash": index_hash(self.sample_name(i) for i in range(len(self)))},
            "stored": {name: stored[name] for name in ("factor", "pixels", "quality", "stride", "limit")}}
        if o.sequences is not None:
            known["sequences"] = o.sequences if isinstance(o.sequences, str) else ", ".join(o.sequences)
        return known

    def picture(self, index: int) -> Picture:
        """The whole picture where the dataset is at hand, else the stored crop; mirrored as the sample is."""
        o = self.options
        return whole_picture(self.read(index), Path(o.root) / self.sample_name(index), o.width, o.height, self.crop)


def sides(which: str, hands: Hands) -> list[str]:
    """The sides that `dataset.hands` reads; InputError where a side's hand model is missing or is another side's."""
    wanted = ["right"] if which == "right" else list(SIDES)
    for side in wanted:
        if side not in hands:
            raise InputError(f"dataset.hands={which} needs a {side} hand model: set hand_left=template/MANO_LEFT.pkl, or "
                             "dataset.hands=right")
        if hands[side].side != side:
            raise InputError(f"the {side} hand model {hands[side].name} is a {hands[side].side} hand; "
                             "mend the options hand and hand_left")
    return wanted


def require_fit(hands: Hands, side: str, mano: np.ndarray, joints: np.ndarray, where: str) -> None:
    """InputError where the labels' joints are not those that the hand model makes of their 61 numbers."""
    error = hand_error_m(hands[side], mano[:, :48], mano[:, 51:], mano[:, 48:51], joints, **CONVENTION)
    if not error <= HAND_TOLERANCE_M:
        option = "hand" if side == "right" else "hand_left"
        raise InputError(f"{where}: the labels' {side} hands are not those of the hand model {hands[side].name} (joints up to "
                         f"{1e3 * error:.0f} mm apart): set {option} to the file the labels were made with (the real DexYCB: "
                         f"template/MANO_{side.upper()}.pkl)")


def _read_poses(folder: Path, places: np.ndarray) -> np.ndarray | None:
    """(people, sequences, cameras, 3, 4) camera to world, NaN where unknown; None where no row (n,4 places) has one."""
    path = folder / "cameras.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            poses = file["world_from_camera"]
    except FileNotFoundError:
        return None
    except BREAKS as error:
        raise InputError(f"{path}: expected an npz with world_from_camera, found a file that breaks; remove the folder and "
                         "prepare again") from error
    if poses.ndim != 5 or poses.shape[3:] != (3, 4) or (places[:, :3].max(0) >= poses.shape[:3]).any():
        raise InputError(f"{path}: expected world_from_camera (people, sequences, cameras, 3, 4), found {poses.shape}; remove "
                         "the folder and prepare again")
    return poses if np.isfinite(poses[tuple(places[:, :3].T)]).all((1, 2)).any() else None


def _read_labels(folder: Path) -> dict[str, np.ndarray]:
    return read_columns(folder / "index", {name: shape for name, (_, shape) in COLUMNS.items()})


def _read_meta(folder: Path, options: Options) -> dict[str, Any]:
    meta = read_meta(folder, TITLE, VERSION)
    # Fewer frames may be read than were prepared, never more.
    plan, wanted = dict(meta["plan"]), options.plan()
    if wanted.hands == "right":
        plan["hands"] = "right"
    if wanted.in_image:
        plan["in_image"] = True
    same_plan(folder, plan, wanted.stored())
    return meta
