"""The reader of a prepared folder of single pictures (datasets/cutting.py): a split and a subset are a selection of its rows.

A dataset subclasses it with its four conventions and names; what a split provides follows from the labels that its rows have. A
row without a label brings zeros and a flag. meta.json holds `splits` and `labels` (names of the label columns), perhaps `says`
(what protocol lines add). DexYCB, whose splits are by person, camera and recording, has a reader of its own.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.augment import AugmentOptions, CropOptions
from datasets.cache import Crops, read_columns
from datasets.cutting import LABELS, ROWS, SIDES
from datasets.hand_fit import hand_error_m
from datasets.prepare import read_meta, same_plan
from datasets.prepared_options import PreparedOptions
from datasets.reader import Hands, Picture, Raw, Reader
from datasets.stored import placed, read_stored, whole_picture
from utils.errors import InputError
from utils.predictions import index_hash

log = logging.getLogger(__name__)
HAND_ROWS = 16  # rows of each side whose joints are compared with the hand model's when a reader opens
BASE = frozenset({"image", "K", "crop_from_image", "mirrored", "index", "subject"})
PROVIDES = {  # flag of a row -> Batch fields
    "has_joints": {"joints", "root", "has_joints", "has_root"}, "has_root": {"root", "has_root"},
    "has_uv": {"joints_uv", "uv_confidence", "has_uv"}, "has_verts": {"verts", "has_verts"},
    "has_hand": {"rotations", "shape", "verts", "joints", "root", "chain_wrist", "has_rotations", "has_shape", "has_verts",
                 "has_joints", "has_root"},
    "has_mask": {"mask", "has_mask"},
}


class PreparedReader(Reader):
    """A split of a prepared folder. Subclasses set the conventions of datasets.reader.Reader and what follows.

    title: how messages call the dataset; also of prepare's Job, in small letters · version: of that Job · joints_text: what
    tables say the joints are · native: side of what is stored, where all rows have one · hand_tolerance_m: how far labelled
    joints may lie from the hand model's; None = not compared.
    """

    title: str
    version: int = 1
    joints_text: str
    native: int | None = None
    hand_tolerance_m: float | None = 0.002

    def __init__(self, options: PreparedOptions, crop: CropOptions, augment: AugmentOptions, hands: Hands, *, split: str,
                 train: bool, seed: int, needs: frozenset[str] | None = None):
        super().__init__(crop, augment, hands, train=train, seed=seed, needs=needs)
        self.options, self.split, self.folder = options, split, Path(options.prepared)
        self.meta = read_meta(self.folder, self.title.lower(), self.version)
        wanted = options.plan()
        held = dict(self.meta["plan"]) | ({"hands": "right"} if wanted["hands"] == "right" else {})
        same_plan(self.folder, held, wanted)
        self.crops, self.masks = (Crops(self.folder / f"{name}.lmdb") for name in ("crops", "masks"))
        self._open()
        self.rows = self._select()
        self.mirrors = bool(self.index["side"][self.rows].any())
        share = self._share()
        pixels = int(np.ceil(crop.pixels / share - 1e-9))
        if self.native and pixels > 0.8 * self.native:
            pixels = self.native
        self.read_pixels = self.meta["plan"]["pixels"] or options.read_pixels or pixels
        self.samples = max(1, int(self.read_pixels * share / crop.pixels + 0.5)) if crop.antialias else 1
        self.provides = self._provides()
        self.needs = self.provides if needs is None else needs
        self._require_hands()

    def _open(self) -> None:
        """Map the columns; labels that several pictures share lie apart (folder labels/)."""
        self.index = read_columns(self.folder / "index", {name: shape for name, (_, shape) in ROWS.items()})
        known = {name: LABELS[name][1] for name in self.meta["labels"]}
        self.apart = (self.folder / "labels").is_dir()
        self.labels = read_columns(self.folder / ("labels" if self.apart else "index"), known) if known else {}

    def _select(self) -> np.ndarray:
        splits = self.meta["splits"]
        if self.split not in splits:
            raise InputError(f"{self.title}: no split {self.split} in {self.folder}; there are {', '.join(splits)}")
        keep = np.array(self.index["split"]) == splits.index(self.split)
        if self.options.hands == "right":
            keep &= np.array(self.index["side"]) == SIDES.index("right")
        chosen = np.flatnonzero(keep & self._kept())[::self.options.every]
        frames = self.options.frames
        if frames is not None and frames < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, frames).round().astype(int)]
        if not len(chosen):
            raise InputError(f"{self.title} {self.split}: no picture is left in {self.folder}; see its counts.json and the "
                             "options of dataset that choose")
        return chosen

    def _share(self) -> float:
        """Side of a sample's crop over that of what is stored. InputError where the crop is wider."""
        stored, factor = self.meta["plan"]["factor"], self.crop.factor
        if factor > stored * (1 + 1e-9):
            raise InputError(f"crop.factor={factor} is wider than the stored crops ({stored} times the box, in "
                             f"{self.folder}); prepare with a larger dataset.stored.factor, into another dataset.prepared")
        return factor / stored

    def _kept(self) -> np.ndarray | bool:
        """Which rows of the whole index the dataset's own options choose."""
        return True

    def _flag(self, name: str) -> np.ndarray:
        """A flag of the chosen rows."""
        if name == "has_mask":
            return np.array(self.index[name])[self.rows]
        return np.array(self.labels[name])[self._label_rows(self.rows)] if name in self.labels else np.zeros(len(self.rows), bool)

    def _label_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self.index["label"])[rows] if self.apart else rows

    def _provides(self) -> frozenset[str]:
        """What some row of the split has; `identity`, which a method is told, only where every row has a shape."""
        flags = {name: self._flag(name) for name in PROVIDES}
        found = BASE.union(*(fields for name, fields in PROVIDES.items() if flags[name].any()))
        return found | {"identity"} if flags["has_hand"].all() else found

    def _require_hands(self) -> None:
        """The hand models are there, and those that the labels were made with."""
        for number, side in enumerate(SIDES if self.options.hands == "mirror_left" else SIDES[:1]):
            if side not in self.hands:
                raise InputError(f"dataset.hands={self.options.hands} needs a {side} hand model: set "
                                 f"hand_left=template/MANO_LEFT.pkl, or dataset.hands=right")
            some = self.rows[(self.index["side"][self.rows] == number) & self._flag("has_hand") & self._flag("has_joints")]
            if len(some) and self.hand_tolerance_m is not None:
                self._require_fit(side, some[np.unique(np.linspace(0, len(some) - 1, HAND_ROWS).round().astype(int))])
        if self.mirrors and "identity" in self.needs and not self.left_shape_holds():
            raise InputError("dataset.hands=mirror_left: this method is told the shape, and the left hand model is not the "
                             "right one's mirror image, so left hands have no shape to tell; use dataset.hands=right")

    def _require_fit(self, side: str, rows: np.ndarray) -> None:
        rows = self._label_rows(rows)
        label = {name: np.array(self.labels[name][rows]) for name in ("pose", "shape", "trans", "joints")}
        error = hand_error_m(self.hands[side], **label, pca=self.pose_pca, flat_mean=self.pose_flat_mean, tips=self.tips,
                             kind=self.joints_kind)
        if error > self.hand_tolerance_m:
            option = "hand" if side == "right" else "hand_left"
            name = self.hands[side].name
            raise InputError(f"{self.folder}: its labels were not made with the {side} hand model {name} (joints up to "
                             f"{1e3 * error:.0f} mm apart): set {option} to the file the labels were made with (the real "
                             f"{self.title}: template/MANO_{side.upper()}.pkl)")

    def __getstate__(self) -> dict[str, Any]:
        """For a spawned process, which maps the columns itself: a copied map would be a copy of the data."""
        return {**self.__dict__, "labels": None, "index": None, "_on": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    def sample_name(self, index: int) -> str:
        return bytes(self.index["name"][self.rows[index]]).decode()

    def picture_name(self, index: int) -> str:
        """The sample's picture, a path in the tree: its name, unless several samples share a picture."""
        return self.sample_name(index)

    def describe(self, index: int) -> str:
        return f"{self.title} {self.split} #{index} ({self.sample_name(index)})"

    def _stored(self, store: Crops, row: int, index: int, flags: int) -> np.ndarray:
        return read_stored(store, row, self.read_pixels, self.crop.antialias, lambda: self.describe(index), flags)

    def read(self, index: int) -> Raw:
        row = int(self.rows[index])
        one = {name: column[row] for name, column in self.index.items()}
        image = self._stored(self.crops, row, index, cv2.IMREAD_COLOR_RGB)
        raw = {"image": image, **placed(one["stored"], one["K"], self.read_pixels),
               "width": np.int64(one["size"][0]), "box": np.array(one["box"]), "mirrored": np.bool_(one["side"] == 1),
               "subject": np.int64(one["subject"])}
        if "masks" in self.meta["streams"] and "mask" in self.needs:
            known = bool(one["has_mask"])
            mask = self._stored(self.masks, row, index, cv2.IMREAD_GRAYSCALE) if known else np.zeros(image.shape[:2], np.uint8)
            raw |= {"mask": mask, "has_mask": np.bool_(known)}
        label = int(one["label"]) if self.apart else row
        return raw | {name: np.array(column[label]) for name, column in self.labels.items()
                      if name not in ("verts", "has_verts") or "verts" in self.needs}

    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """official_index (n), where the split has an official order."""
        official = np.array(self.index["official"])[self.rows]
        return {"official_index": official[np.asarray(indices, int)].astype(np.int64)} if (official >= 0).all() else {}

    def protocol(self) -> dict[str, Any]:
        plan, lefts = self.meta["plan"], int((self.index["side"][self.rows] == 1).sum())
        return {"dataset": self.title, "split": self.split, "root_joint": "wrist", "joints": self.joints_text,
                "joint_set": list(self.joint_set),
                "hands": f"{len(self) - lefts} right and {lefts} left hands (mirrored)" if lefts else "right hands",
                "crop": f"{self.crop.factor:g} x box of the joints, {self.crop.pixels} px",
                **({"official": self.official} if self.official else {}), **self.meta.get("says", {}),
                "rows": {"frames": len(self), "index_hash": index_hash(self.sample_name(i) for i in range(len(self)))},
                "stored": {name: plan[name] for name in ("factor", "pixels", "quality", "limit")}}

    @property
    def official(self) -> str | None:
        """The protocol of `score` that this split is for, if any."""
        return None

    def picture(self, index: int) -> Picture:
        """The whole picture where the dataset is at hand, else the stored crop; mirrored as the sample is."""
        width, height = (int(x) for x in self.index["size"][self.rows[index]])
        return whole_picture(self.read(index), Path(self.options.root) / self.picture_name(index), width, height, self.crop)
