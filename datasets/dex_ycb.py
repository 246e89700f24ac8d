"""DexYCB (Chao et al., CVPR 2021; specs/datasets.md 1.1): its options, `prepare`, and `open_reader`.

Left hands were annotated with MANO_LEFT's unmended shape directions (`left_shapedirs: as_is`); they are left out or mirrored, by
option. Setups, splits and subsets are chosen when reading: one prepared folder serves them all.
Seed: Kong et al. (ECCV 2022) drop left hands and frames with a joint outside the picture; so do the defaults here.
"""
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb_frames import Plan, read_frame
from datasets.dex_ycb_prepare import prepare_tree
from datasets.dex_ycb_reader import DexYcb, require_fit, sides
from datasets.dex_ycb_tree import SIDES, Tree
from datasets.pictures import Broken, Excluded
from datasets.prepare_summary import Prepared
from datasets.prepared_options import StoredOptions
from datasets.reader import Hands
from utils.strict import Strict

SERIALS = ("836212060125", "839512060362", "840412060917", "841412060263",
           "932122060857", "932122060861", "932122061900", "932122062010")


class Options(Strict):
    """`dataset:` of an option file, for prepare (down to `workers`) and for reading."""

    signs: ClassVar[tuple[str, ...]] = ("calibration",)  # one of these is in every copy of the dataset
    name: Literal["dex_ycb"] = "dex_ycb"
    root: str = Field("data/dex_ycb", description="folder of the dataset (DEX_YCB_DIR)")
    prepared: str = Field("out/prepared/dex_ycb", description="folder that prepare writes and the reader reads")
    hands: Literal["right", "mirror_left"] = Field("right", description="right hands only, or both with the left mirrored")
    in_image: bool = Field(True, description="only frames whose 21 joints all lie in the picture")
    left_shapedirs: Literal["as_is", "flip_x", "negate"] = Field("as_is", description="how MANO_LEFT is read; DexYCB: as it is")
    width: int = Field(640, ge=16, description="width of the pictures, pixels")
    height: int = Field(480, ge=16, description="height of the pictures, pixels")
    serials: tuple[str, ...] = Field(SERIALS, min_length=1, description="cameras in index order")
    stored: StoredOptions = StoredOptions()
    stride: int = Field(1, ge=1, description="prepare every k-th frame of a sequence")
    limit: int | None = Field(None, ge=1, description="prepare at most this many frames per camera of a sequence")
    masks: bool = Field(False, description="store too where one sees the hand (seg of the labels), for silhouettes")
    unreadable: Literal["stop", "skip"] = Field("stop", description="a broken file: stop with its name, or count it and go on")
    workers: int = Field(0, ge=0, description="processes of prepare; 0 = one per core")

    setup: Literal["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s9", "s10", "s11", "population"] = "s1"
    sequences: Literal["even", "odd"] | tuple[str, ...] | None = Field(
        None, description="read only these: every other sequence of each person and side, or names; null = all")
    every: int = Field(1, ge=1, description="read every k-th frame of the split")
    frames: int | None = Field(None, ge=1, description="read at most this many, evenly spread over the split")
    read_pixels: int | None = Field(None, ge=16, le=1024, description="native-size crops are read at this; null = as crop needs")

    def plan(self) -> Plan:
        """The part that a prepared folder depends on."""
        return Plan(self.hands, self.in_image, self.width, self.height, self.serials, self.stored.factor, self.stored.pixels,
                    self.stored.quality, self.stride, self.limit, self.unreadable, self.masks)


def prepare(options: Options, hands: Hands, workers: int | None = None) -> Prepared:
    """Index the tree and cut its crops once; goes on where a killed run stopped. Raises InputError, see prepare_tree."""
    used = sides(options.hands, hands)

    def check(tree: Tree, plan: Plan) -> None:
        for side in used:
            mano, joints = _first_frames(tree, plan, side)
            if len(mano):
                require_fit(hands, side, mano, joints, str(tree.root))

    counts = prepare_tree(options.root, options.prepared, options.plan(), options.workers if workers is None else workers, check)
    return Prepared(Path(options.prepared), counts)


def open_reader(options: Options, crop: CropOptions, augment: AugmentOptions, *, split: str, train: bool, seed: int, hands: Hands,
                needs: frozenset[str] | None = None) -> DexYcb:
    """Open a split: train, val, test or train+val of options.setup. `train` switches augmentation on.

    hands: side -> model, the left one only for hands=mirror_left. needs: Batch fields to compute (None = all).
    Raises InputError: not prepared, prepared by other options, an empty split, stored crops too narrow, another hand model.
    """
    return DexYcb(options, crop, augment, hands, split=split, train=train, seed=seed, needs=needs)


def _first_frames(tree: Tree, plan: Plan, side: str, enough: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The 61 numbers and joints of a few frames of one side. Broken files are left for the work to report."""
    mano: list[np.ndarray] = []
    joints: list[np.ndarray] = []
    for s in tree.sequences:
        camera = s.cameras[0]
        for frame in plan.frames(s.num_frames)[::8] if SIDES[s.side] == side else ():
            try:
                row = read_frame(tree.root / s.folder / plan.serials[camera] / f"color_{frame:06d}.jpg", tree.K[camera], plan)
            except (Excluded, Broken):
                continue
            mano.append(np.concatenate([row["pose_m"], np.float32(s.betas)]))
            joints.append(row["joint_3d"])
            break
        if len(mano) == enough:
            break
    return np.array(mano), np.array(joints)
