"""InterHand2.6M (Moon et al., ECCV 2020; specs/datasets.md 1.4): its options, `prepare`, and `open_reader`.

Splits train, val, test. A row is a hand: a picture of interacting hands gives two, named `<picture>#right` and `<picture>#left`,
each about its own joints' box. Joints are annotated (triangulated from many views), not MANO's; where a joint is not known, the
row has no 3D joints and the known 2D ones. MANO fits (NeuralAnnot), where there are, give pose, shape and mesh; they were fitted
with the left hand's shape directions mended (`left_shapedirs: flip_x`), and lie some millimetres off the joints, a few by
centimetres. hand_type_valid concerns handedness alone and is not used. The official evaluation is not part of this.
"""
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from datasets.augment import AugmentOptions, CropOptions
from datasets.cutting import LABELS, SIDES, columns_of, cut_task
from datasets.interhand_hand import Hand, Rest, load
from datasets.interhand_reader import InterHand, require_hand, require_near, rest_of
from datasets.interhand_tree import SPLITS, annotation_files, annotation_folders, read_split
from datasets.prepare import Job, fingerprint
from datasets.prepare import prepare as run_job
from datasets.prepare_summary import Prepared
from datasets.prepared_options import PreparedOptions
from datasets.reader import Hands
from datasets.tasks import pieces, spread
from utils.files import sha256

COLUMNS = {**columns_of("joints", "joints_uv", "root", "pose"), "interacting": (np.bool_, ())}


class Options(PreparedOptions):
    """`dataset:` of an option file."""

    signs: ClassVar[tuple[str, ...]] = ("annotations", "images")  # one of these is in every copy of the dataset
    name: Literal["interhand"] = "interhand"
    root: str = Field("data/interhand", description="folder of the dataset, with images and annotations")
    prepared: str = Field("out/prepared/interhand", description="folder that prepare writes and the reader reads")
    left_shapedirs: Literal["as_is", "flip_x", "negate"] = Field(
        "flip_x", description="how MANO_LEFT is read; InterHand2.6M's fits: x negated")
    fits: bool = Field(True, description="use the MANO fits where there are; false = joints alone, no hand model needed")
    known: int = Field(11, ge=2, le=21, description="leave out hands with fewer known joints: what their box is made of")
    hand_type: Literal["single", "interacting", "all"] = Field("all", description="read only hands of such pictures")

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "fits": self.fits, "known": self.known} | (
            {"left_shapedirs": self.left_shapedirs} if self.hands == "mirror_left" else {})


def prepare(options: Options, hands: Hands, workers: int | None = None) -> Prepared:
    """Index the tree and cut its crops once; goes on where a killed run stopped.

    Raises InputError: a missing or broken file (pictures: unless dataset.unreadable=skip), fits that lie far from the annotated
    joints (another hand model, or units), no model of a side's fits, another plan's folder, a full disk.
    """
    folders, tasks, samples, left_out, notes = annotation_folders(options.root), [], [], Counter(), []
    files = [path for split, folder in folders.items() for path in annotation_files(folder, split)]
    digest = fingerprint(*map(sha256, files))
    used = {side: require_hand(hands, side, options) for side in _sides(options)} if options.fits else {}
    rests, groups = {side: rest_of(hand) for side, hand in used.items()}, {}
    for split, folder in folders.items():
        pictures, missing = read_split(folder, split)
        notes.append(f"{split}: {len(pictures)} pictures")
        pictures = spread(pictures, options.limit)
        found = _hands_of(options, split, pictures, rests, groups)
        left_out += missing
        left_out["left hand"] += sum(len(seen.sides()) for seen in pictures) - len(found)
        tasks += pieces(found, load, COLUMNS, options, split, digest=digest)
        samples += found
    notes += require_near(used, samples)
    job = Job(title="interhand", version=InterHand.version, root=Path(options.root), tasks=tasks, cut=cut_task, columns=COLUMNS,
              plan=options.plan() | {"hand_models": {side: hand.sha256 for side, hand in used.items()}},
              fingerprint=digest, unit="part", left_out=left_out,
              about={"people": sorted({hand.seen.subject for hand in samples}), "sequences": len(groups), "notes": notes},
              hint="see dataset.hands and dataset.known",
              meta={"splits": list(SPLITS), "labels": [name for name in COLUMNS if name in LABELS], "groups": list(groups)})
    return Prepared(Path(options.prepared), run_job(job, options.prepared, options.workers if workers is None else workers))


def _sides(options: Options) -> tuple[str, ...]:
    return SIDES if options.hands == "mirror_left" else SIDES[:1]


def _hands_of(options: Options, split: str, pictures: list, rests: Mapping[str, Rest], groups: dict[str, int]) -> list[Hand]:
    """The hands of some pictures, picture by picture; gives every new recording a number in `groups`."""
    return [Hand(Path(options.root), seen, side, SPLITS.index(split), groups.setdefault(seen.recording, len(groups)),
                 rests.get(side), options.known, options.stored.factor)
            for seen in pictures for side in seen.sides() if side in _sides(options)]


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> InterHand:
    """Open a split: train, val or test. `train` switches augmentation on; needs: Batch fields to compute (None = all).

    Raises InputError: not prepared, or by other options, or with another hand model; an empty split; stored crops too narrow.
    """
    return InterHand(options, crop, augment, hands, split=split, train=train, seed=seed, needs=needs)
