"""RHD, rendered hands (Zimmermann and Brox, ICCV 2017; specs/datasets.md 1.5): its options, `prepare`, and `open_reader`.

Splits `training` and `evaluation`; of each picture the hand with more pixels in the mask. Labels are 3D and 2D joints and the
hand's mask; there is no mesh, so a method that learns one is refused. Joints are those of rendered characters' skeletons, not
MANO's: no person, no shape. Every 2D joint is known, also a hidden one: `visible` leaves out hands that show too few.
"""
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from datasets.augment import AugmentOptions, CropOptions
from datasets.cutting import LABELS, columns_of, cut_task
from datasets.prepare import Job, fingerprint
from datasets.prepare import prepare as run_job
from datasets.prepare_summary import Prepared
from datasets.prepared import PreparedReader
from datasets.prepared_options import PreparedOptions
from datasets.reader import Hands
from datasets.rhd_tree import SPLITS, annotation_files, load, read_annotations, samples_of
from datasets.tasks import pieces, spread
from utils.files import sha256

COLUMNS = columns_of("joints", "joints_uv")


class Options(PreparedOptions):
    """`dataset:` of an option file."""

    signs: ClassVar[tuple[str, ...]] = ("training", "evaluation")  # one of these is in every copy of the dataset
    name: Literal["rhd"] = "rhd"
    root: str = Field("data/rhd", description="folder of the dataset (RHD_published_v2)")
    prepared: str = Field("out/prepared/rhd", description="folder that prepare writes and the reader reads")
    visible: int = Field(0, ge=0, le=21, description="leave out hands with fewer visible joints than this")

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "visible": self.visible}


class Rhd(PreparedReader):
    """A split of a prepared folder. Of a hand model, joints regressed from its mesh are compared: the nearest that there is."""

    title = "RHD"
    pose_pca, pose_flat_mean, tips, joints_kind = False, False, "manopth", "regressed"
    joints_text = "of the rendered characters' skeletons, not MANO's"
    hand_tolerance_m = None

    def _require_hands(self) -> None:
        """No label is a hand model's, so none is asked for."""


def prepare(options: Options, hands: Hands, workers: int | None = None) -> Prepared:
    """Index the tree and cut its crops once; goes on where a killed run stopped. No hand model is used.

    Raises InputError: a missing or broken file (unless dataset.unreadable=skip), another plan's folder, a full disk.
    """
    files = annotation_files(options.root)
    digest, tasks, splits = fingerprint(*map(sha256, files.values())), [], []
    for split, path in files.items():
        samples = samples_of(Path(options.root), split, read_annotations(path), options.hands, options.visible,
                             options.stored.factor)
        tasks += pieces(spread(samples, options.limit), load, COLUMNS, options, split, masks=True, digest=digest)
        splits.append(f"{split}: {len(samples)} pictures")
    job = Job(title="rhd", version=Rhd.version, root=Path(options.root), plan=options.plan(), tasks=tasks, cut=cut_task,
              columns=COLUMNS, fingerprint=digest, streams=("crops", "masks"), unit="part",
              about={"notes": splits}, hint="see dataset.hands and dataset.visible",
              meta={"splits": list(SPLITS), "labels": [name for name in COLUMNS if name in LABELS]})
    return Prepared(Path(options.prepared), run_job(job, options.prepared, options.workers if workers is None else workers))


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> Rhd:
    """Open a split, training or evaluation. `train` switches augmentation on; needs: Batch fields to compute (None = all).

    Raises InputError: not prepared, prepared by other options, an empty split, stored crops too narrow.
    """
    return Rhd(options, crop, augment, hands, split=split, train=train, seed=seed, needs=needs)
