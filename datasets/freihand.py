"""FreiHAND v2 (Zimmermann et al., ICCV 2019; specs/datasets.md 1.2, 2.3): its options, `prepare`, and the reader.

Right hands only. Joints are FreiHAND's own: regressed from the posed mesh, tips 744, 320, 443, 555, 672; frame as ours. A
training sample has up to four pictures (versions of background and colour) with the same labels. The evaluation's labels were
published in 2022; without them it is pictures and K. The dataset has no validation part: `val_every` takes one from the training
samples, all versions of a sample on one side. Split and versions are chosen when reading; one prepared folder serves them all.
"""
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from datasets.augment import AugmentOptions, CropOptions, published_map
from datasets.cache import read_columns
from datasets.cutting import Cut, columns_of, cut_task
from datasets.freihand_labels import (
    JOINTS_KIND,
    TIPS_NAME,
    TOLERANCE_M,
    first_rows,
    label_columns,
    notes_of,
    vertices_of,
    write_labels,
)
from datasets.freihand_tree import (
    EVALUATION,
    PUBLISHED,
    SIGNS,
    SIZE,
    TRAINING,
    VERSIONS,
    WHOLE,
    Lists,
    Sample,
    Source,
    load,
    read_tree,
)
from datasets.mask_box import EVALUATION_SIDE, HULL
from datasets.prepare import Columns, Job, fingerprint
from datasets.prepare import prepare as prepare_job
from datasets.prepare_summary import Prepared
from datasets.prepared import BASE, PreparedReader
from datasets.prepared_options import PreparedOptions
from datasets.reader import Hands, Raw
from datasets.tasks import pieces, spread
from utils.errors import InputError

log = logging.getLogger(__name__)
SMALL = 0.2  # of the masks' boxes, by size: whole pictures are read as large as these need
HULL_COLUMN = {"hull": (np.int16, (HULL, 2))}  # of the index where crops are cut around masks


class Options(PreparedOptions):
    """`dataset:` of an option file, for prepare (down to `workers`, box, masks) and for reading."""

    signs: ClassVar[tuple[str, ...]] = SIGNS
    name: Literal["freihand"] = "freihand"
    root: str = Field("data/freihand", description="folder with training_K.json, training/ and so on")
    prepared: str = Field("out/prepared/freihand", description="folder that prepare writes and the reader reads")
    hands: Literal["right"] = Field("right", description="FreiHAND has right hands only")
    box: Literal["joints", "picture", "mask"] = Field(
        "joints", description="what crops are cut around: the box of the true joints; the whole picture, which needs no label; "
                              "or, as CMR, that of a training picture's mask, and for the evaluation the middle: 130 pixels at "
                              "crop.factor=1.3. With mask, pictures are stored whole, whatever dataset.stored.factor says")
    masks: bool = Field(True, description="store the training pictures' masks too")

    versions: tuple[Literal["gs", "hom", "sample", "auto"], ...] = Field(
        VERSIONS, min_length=1, description="read these versions of the training pictures: green screen, and three recoloured")
    crop_rule: Literal["exact", "published"] = Field(
        "exact", description="published: the evaluation's crops (box=mask) are resampled as CMR's own evaluation does, up to a "
                             "pixel off their K, for weights that were trained so; exact: image, pixels and K agree")
    evaluation_side: float = Field(EVALUATION_SIDE, gt=0, le=SIZE, description="box=mask: side of the box about the evaluation "
                                   "pictures' middle, pixels; 100 is CMR's for FreiHAND, where hands are about that large")
    val_every: int | None = Field(None, ge=2, description="split val is every k-th training sample, train is the others")

    def plan(self) -> dict[str, Any]:
        """The part that a prepared folder depends on."""
        plan = {"box": self.box, **super().plan(), "masks": self.masks}  # a refusal names the first that differs
        if self.box == "mask":  # whole pictures, unless resized the files' own bytes
            plan |= {"factor": None, "quality": self.stored.quality if self.stored.pixels else None}
        return plan


class FreiHand(PreparedReader):
    """A split of a prepared FreiHAND: training, evaluation, or by dataset.val_every train and val."""

    pose_pca, pose_flat_mean = False, False
    tips, joints_kind = TIPS_NAME, JOINTS_KIND
    title, hand_tolerance_m = "FreiHAND", TOLERANCE_M
    joints_text = "FreiHAND's: regressed from the posed mesh, tips 744 320 443 555 672"

    def __init__(self, options: Options, crop: CropOptions, augment: AugmentOptions, hands: Hands, *, split: str, train: bool,
                 seed: int, needs: frozenset[str] | None = None):
        self.part = split if split in ("train", "val") else None
        if self.part and options.val_every is None:
            raise InputError(f"FreiHAND has no split {split} of its own: take training or evaluation, or set "
                             "dataset.val_every=10 for a tenth of the training samples as val and the others as train")
        self.native = SIZE if options.box == "mask" else None
        self.published = options.crop_rule == "published" and split == EVALUATION
        if options.crop_rule == "published" and options.box != "mask":
            raise InputError(f"dataset.crop_rule=published is CMR's crop of the evaluation: expected dataset.box=mask with it, "
                             f"found {options.box}; set dataset.box=mask and prepare, or dataset.crop_rule=exact")
        super().__init__(options, crop, augment, hands, split=TRAINING if self.part else split, train=train, seed=seed,
                         needs=needs)
        self.split = split
        if self.published:  # bilinear from the picture itself
            self.read_pixels, self.samples = self.meta["plan"]["pixels"] or SIZE, 1
        if self.unlabelled:
            if needs is not None and (lacking := needs - self.provides - BASE):
                raise InputError(f"{self.folder}: FreiHAND's evaluation has no {', '.join(sorted(lacking))} here; {PUBLISHED}")
            log.warning("FreiHAND's evaluation: pictures and K alone, nothing to score against; %s", PUBLISHED)

    @property
    def unlabelled(self) -> bool:
        """Whether this split is pictures and K alone."""
        return self.meta["vertices"][self._stored_split] is None

    @property
    def official(self) -> str | None:
        return "freihand" if self.split == EVALUATION else None

    @property
    def middle(self) -> np.ndarray | None:
        """Box (3) that all pictures of the evaluation share where crops are cut around masks, which it has none of."""
        if self.options.box != "mask" or self._stored_split != EVALUATION:
            return None
        return np.array([*WHOLE[:2], self.options.evaluation_side])

    @property
    def _stored_split(self) -> str:
        return TRAINING if self.part else self.split

    def _open(self) -> None:
        super()._open()
        if self.options.box == "mask":
            self.index |= read_columns(self.folder / "index", {name: shape for name, (_, shape) in HULL_COLUMN.items()})
        if self._stored_split not in self.meta["splits"]:
            return  # refused next, by name
        if self.unlabelled:
            self.labels = {}
        elif not self.meta["has_verts_file"][self._stored_split]:
            for name in ("verts", "has_verts"):  # of the other split: here they are the hand model's
                self.labels.pop(name, None)

    def _kept(self) -> np.ndarray | bool:
        if self._stored_split == EVALUATION:
            return True
        wanted, there = self.options.versions, self.meta["versions"]
        if not set(wanted) & set(there):
            raise InputError(f"dataset.versions: expected some of {', '.join(there)}, which {self.folder} holds, found "
                             f"{', '.join(wanted)}")
        keep = np.isin(self.index["group"], [VERSIONS.index(name) for name in wanted])
        if self.part:
            keep &= (np.array(self.index["label"]) % self.options.val_every == 0) == (self.part == "val")
        return keep

    def _share(self) -> float:
        if self.options.box != "mask":
            return super()._share()
        side = float(np.quantile(self.index["box"][self.rows, 2], SMALL)) if self.middle is None else self.middle[2]
        return self.crop.factor * side / SIZE

    def _place(self, raw: dict[str, Tensor], *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        crop_from_image, crop_from_picture, K, angle = super()._place(raw, *args)
        if self.published:
            crop_from_picture = published_map(raw["box"].double(), self.crop)
        return crop_from_image, crop_from_picture, K, angle

    def read(self, index: int) -> Raw:
        raw = super().read(index)
        if self.middle is not None:
            raw["box"] = self.middle.astype(raw["box"].dtype)
        if self.train and "hull" in self.index:
            raw["hull"] = np.array(self.index["hull"][self.rows[index]])
        return raw

    def protocol(self) -> dict[str, Any]:
        says = super().protocol()
        says["vertices"] = self.meta["vertices"][self._stored_split] or "none"
        if self.unlabelled:
            says["no_labels"] = PUBLISHED
        if self.options.box == "mask":
            says["crop"] = f"{self.crop.factor:g} x box of the mask, {self.crop.pixels} px"
            if self._stored_split == EVALUATION:
                says["crop_rule"] = self.options.crop_rule
                side = self.crop.factor * self.options.evaluation_side
                says["crop"] = f"{side:g} px in the picture's middle, {self.crop.pixels} px"
        elif self.unlabelled or self.options.box == "picture":
            says["crop"] = f"{self.crop.factor:g} x the whole picture, {self.crop.pixels} px"
        if self._stored_split == TRAINING:
            says["versions"] = ", ".join(name for name in self.options.versions if name in self.meta["versions"])
        if self.part:
            says["part"] = f"{self.part}: val is every k-th training sample, k = {self.options.val_every}"
        return says


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> FreiHand:
    """Open a split: training or evaluation; with dataset.val_every also train and val. `train` switches augmentation on.

    needs: Batch fields to compute (None = all). Raises InputError: not prepared, prepared by other options, an unknown or empty
    split, stored crops too narrow, another hand model, labels that the evaluation lacks.
    """
    return FreiHand(options, crop, augment, hands, split=split, train=train, seed=seed, needs=needs)


def prepare(options: Options, hands: Hands, workers: int | None = None) -> Prepared:
    """Index the tree and cut its crops once; goes on where a killed run stopped.

    Raises InputError: a list or picture that is missing or broken, labels of another hand model, and as datasets.prepare does.
    """
    splits, folder = read_tree(options.root), Path(options.prepared)
    columns, mark = label_columns(splits), fingerprint(*(lists.fingerprint for lists in splits))
    notes = [notes_of(lists) for lists in splits] + [f"{lists.split}: versions {', '.join(lists.versions)}" for lists in splits
                                                     if lists.split == TRAINING]
    counts = prepare_job(Job(
        title=FreiHand.title.lower(), version=FreiHand.version, root=Path(options.root), plan=options.plan(), cut=cut_task,
        columns=_columns(options), tasks=list(_tasks(options, splits)), fingerprint=mark,
        streams=("crops", "masks") if options.masks else ("crops",), unit="part", about={"notes": notes},
        meta={"splits": [lists.split for lists in splits], "labels": list(columns), "versions": _versions(splits),
              "vertices": {lists.split: None if lists.xyz is None else vertices_of(lists) for lists in splits},
              "has_verts_file": {lists.split: lists.verts is not None for lists in splits}},
        hint="are pictures and lists of one release?", check=lambda: write_labels(folder, splits, hands["right"], notes)),
        folder, options.workers if workers is None else workers)
    return Prepared(folder, counts)


def _versions(splits: list[Lists]) -> list[str]:
    return [name for lists in splits if lists.split == TRAINING for name in lists.versions]


def _columns(options: Options) -> Columns:
    return columns_of() | (HULL_COLUMN if options.box == "mask" else {})


def _tasks(options: Options, splits: list[Lists]) -> Iterator[Cut]:
    """Pictures in the order of splits and their numbers."""
    source = Source(Path(options.root), tuple(lists.split for lists in splits), options.box, options.stored.factor, options.masks)
    for lists, first in zip(splits, first_rows(splits)):
        K = list(np.stack([lists.K[:, 0, 0], lists.K[:, 1, 1], lists.K[:, 0, 2], lists.K[:, 1, 2]], 1))
        uv = [None] * len(lists) if lists.xyz is None else list(lists.uv)
        samples = []
        for number in lists.numbers.tolist():
            version, sample = divmod(number, len(lists))
            label = first if lists.xyz is None else first + sample
            samples.append(Sample(source, lists.split, number, sample, version, label, K[sample], uv[sample]))
        yield from pieces(spread(samples, options.limit), load, _columns(options), options, lists.split, masks=options.masks,
                          digest=lists.fingerprint)
