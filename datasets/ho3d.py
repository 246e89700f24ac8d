"""HO3D v2 and v3 (Hampali et al., CVPR 2020; specs/datasets.md 1.3, 2.4): options, `prepare` and `open_reader`.

Right hands with things, 640x480; splits `train` and `evaluation` as train.txt and evaluation.txt list them, in that order. What
the set has in OpenGL axes, H21 and its own pose is turned into ours at the door (datasets/ho3d_frame.py), which needs the hand
model that the labels were made with: MANO's translation turns about the rest wrist.
"""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from datasets.augment import AugmentOptions, CropOptions
from datasets.cache import ColumnWriter, read_columns
from datasets.cutting import LABELS, columns_of, cut_task
from datasets.hand_fit import HAND_TOLERANCE_M, hand_error_m
from datasets.ho3d_cameras import poses, read_calibration, recording_of
from datasets.ho3d_frame import COLOURS, TRAIN, Sample, Source, load, read_segmentation, segmentation_of
from datasets.ho3d_reader import Ho3d
from datasets.ho3d_tree import (
    PEOPLE,
    SEGMENTATIONS,
    SIGNS,
    Tree,
    fingerprint_parts,
    people_notes,
    read_tree,
    samples_of,
    split_notes,
    stem_of,
    write_verts,
)
from datasets.pictures import Broken, Excluded
from datasets.prepare import Job, fingerprint
from datasets.prepare import prepare as prepare_job
from datasets.prepare_summary import Prepared
from datasets.prepared_options import PreparedOptions
from datasets.reader import Hands
from datasets.tasks import pieces, spread
from utils.errors import InputError
from utils.hand import HandModel

COLUMNS = {**columns_of("joints", "joints_uv", "pose", "root"), "frame": (np.int32, ())}
ENOUGH = 8  # frames that are looked at before the work


class Options(PreparedOptions):
    """`dataset:` of an option file, for prepare (down to `workers`) and for reading."""

    signs: ClassVar[tuple[str, ...]] = SIGNS
    name: Literal["ho3d"] = "ho3d"
    root: str = Field("data/ho3d", description="folder of the dataset: train, evaluation, train.txt, evaluation.txt")
    prepared: str = Field("out/prepared/ho3d", description="folder that prepare writes and the reader reads")
    version: Literal["v2", "v3"] = Field("v3", description="of the dataset: names its official evaluation")
    hands: Literal["right"] = Field("right", description="HO3D has right hands alone")
    width: int = Field(640, ge=16, description="width of the pictures, pixels")
    height: int = Field(480, ge=16, description="height of the pictures, pixels")
    masks: bool = Field(True, description="store the hand's mask where the tree has rendered segmentations")

    sequences: tuple[str, ...] | None = Field(None, min_length=1, description="read only these, e.g. [SB10, AP1?]; null = all")
    people: dict[str, int] | None = Field(
        None, description="who is whom: stem or beginning of a sequence's name -> number of the person; null = each stem is one, "
                          f"by place in {', '.join(PEOPLE)}, others after them")

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "version": self.version, "width": self.width, "height": self.height, "masks": self.masks}


def prepare(options: Options, hands: Hands, workers: int | None = None) -> Prepared:
    """Index the tree and cut its crops once; goes on where a killed run stopped.

    Raises InputError: a wrong tree or list, labels of another hand model, a broken file (unless unreadable=skip), and as
    datasets.prepare.prepare does.
    """
    tree, hand, folder = read_tree(options.root, options.version), hands["right"], Path(options.prepared)
    coloured = tree.segmentation if options.masks else None
    source = _source(options, hand, coloured)
    skip, samples, missing = options.unreadable == "skip", {}, 0
    for split in tree.splits:
        samples[split], left = samples_of(tree, split, source, options.limit, skip)
        missing += left
    notes = [*split_notes(tree)]
    notes += [f"masks of {SEGMENTATIONS[coloured]}"] if coloured else []
    tasks = [task for split in tree.splits
             for task in pieces(samples[split], load, COLUMNS, options, split, masks=coloured is not None)]

    def check() -> None:
        _require_fit(samples.get(TRAIN, []), hand, tree.root)
        for recording in {recording_of(name) for name in tree.sequences}:
            read_calibration(tree.root, recording)  # a broken one is found before the work
        if coloured:
            _require_colours(samples.get(TRAIN, []))
        if tree.verts and not (folder / "verts" / "verts.npy").exists():
            write_verts(folder / "verts", tree)

    counts = prepare_job(Job(
        title="ho3d", version=Ho3d.version, root=tree.root, plan=options.plan(), tasks=tasks, cut=cut_task, columns=COLUMNS,
        fingerprint=fingerprint(*fingerprint_parts(tree)), streams=("crops", "masks") if coloured else ("crops",), unit="part",
        left_out=Counter({"sequence missing": missing} if missing else {}), meta=_meta(tree),
        about={"people": sorted({stem_of(name) for name in tree.sequences}), "sequences": len(tree.sequences), "notes": notes},
        check=check, finish=lambda target: _finish(target, tree, notes)),
        folder, options.workers if workers is None else workers)
    return Prepared(folder, counts)


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> Ho3d:
    """Open a split: train or evaluation. `train` switches augmentation on; needs: Batch fields to compute (None = all).

    Raises InputError: not prepared, prepared by other options, an empty split, stored crops too narrow, another hand model.
    """
    return Ho3d(options, crop, augment, hands, split=split, train=train, seed=seed, needs=needs)


def _source(options: Options, hand: HandModel, coloured: str | None) -> Source:
    arrays, wrist = hand.arrays, hand.arrays.J_regressor[0]
    return Source(str(options.root), options.width, options.height, options.stored.factor, wrist @ arrays.v_template,
                  np.einsum("v,vck->ck", wrist, arrays.shapedirs), SEGMENTATIONS.get(coloured, ""), coloured or "")


def _meta(tree: Tree) -> dict[str, Any]:
    return {"splits": list(tree.splits), "labels": [name for name in COLUMNS if name in LABELS], "groups": list(tree.sequences),
            "verts": tree.verts is not None, "says": {"version": tree.version}}


def _finish(folder: Path, tree: Tree, notes: list[str]) -> None:
    """Cameras of the sequences; and, added to the notes (which counts.json holds), what the labels say of them and of people."""
    shapes = {"group": (), "frame": (), "root": (3,), "shape": (10,), "has_hand": ()}
    rows = {name: np.array(column) for name, column in read_columns(folder / "index", shapes).items()}
    found = poses(tree.root, list(tree.sequences), rows["group"], rows["frame"], rows["root"].astype(np.float64), notes)
    with ColumnWriter(folder / "cameras", len(found), {"world_from_camera": (np.float64, (4, 4))}) as writer:
        writer.append({"world_from_camera": found})
    known = np.isfinite(found).all((1, 2)).sum()
    if known:
        notes.append(f"{known} of {len(found)} sequences have calibrated cameras")
    notes += people_notes(tree.sequences, rows["group"][rows["has_hand"]], rows["shape"][rows["has_hand"]])


def _some(samples: Sequence[Sample]) -> list[tuple[Sample, dict[str, Any]]]:
    """A few frames with their labels; what is wrong with others is left for the work to report."""
    found, picked = [], spread(samples, 4 * ENOUGH)
    for sample in (sample for start in range(4) for sample in picked[start::4]):  # the first ones from the whole list, too
        try:
            found.append((sample, load(sample).row))
        except (Excluded, Broken):
            continue
        if len(found) == ENOUGH:
            break
    return found


def _require_fit(samples: Sequence[Sample], hand: HandModel, root: Path) -> None:
    """InputError where the labels' joints are not those that the hand model makes of their numbers."""
    rows = [row for _, row in _some(samples)]
    if not rows:
        return
    label = {key: np.stack([np.float32(row[key]) for row in rows]) for key in ("pose", "shape", "trans", "joints")}
    error = hand_error_m(hand, **label, pca=False, flat_mean=True, tips=Ho3d.tips, kind=Ho3d.joints_kind)
    if not error <= HAND_TOLERANCE_M:
        raise InputError(f"{root}: the labels' hands are not those of the hand model {hand.name} (joints up to "
                         f"{1e3 * error:.0f} mm apart): set hand to the file the labels were made with (the real HO3D: "
                         "template/MANO_RIGHT.pkl)")


def _require_colours(samples: Sequence[Sample]) -> None:
    """InputError where the labels' joints lie on what is read as the thing, not on what is read as the hand (a big thing before
    the hand may well hide most joints)."""
    on = np.zeros(2)
    for sample, row in _some(samples):
        path = segmentation_of(sample)
        if path is None:
            continue
        masks = np.stack(read_segmentation(path, sample.source.colours))
        at = ((row["joints_uv"] + 0.5) / (sample.source.width, sample.source.height) * masks.shape[:0:-1]).astype(int)
        inside = ((at >= 0) & (at < masks.shape[:0:-1])).all(1)
        on += masks[:, at[inside, 1], at[inside, 0]].sum(1)
    if on[1] > 3 * on[0]:
        source = samples[0].source
        raise InputError(f"{Path(source.root) / source.segmentation}: expected joints on the hand's colour "
                         f"{COLOURS[source.colours][0]}, found {on[1]:.0f} on the thing's and {on[0]:.0f} on the hand's: other "
                         "colours than we know; set dataset.masks=false")
