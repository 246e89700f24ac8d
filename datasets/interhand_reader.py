"""The reader of a prepared InterHand2.6M folder, and what `prepare` asks of the hand models that the fits are of.

Fits are axis-angle numbers relative to the pose mean. Joints are annotated, not MANO's: the nearest that a hand model has are
those regressed from its mesh with tips 745, 317, 444 (left 445), 556, 673, the authors' own choice up to the middle finger's.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.cache import read_columns
from datasets.interhand_hand import Hand, Rest, fit_in_camera, in_camera
from datasets.interhand_tree import FIRST
from datasets.prepared import PreparedReader
from datasets.reader import Hands
from utils.errors import InputError
from utils.hand import HandModel
from utils.joints import T21_FROM_INTERHAND

if TYPE_CHECKING:
    from datasets.interhand import Options

CONVENTION = {"pca": False, "flat_mean": False, "tips": "manopth", "kind": "regressed"}
COMPARED = 64  # fits of each side that are compared with the annotated joints
FAR_M = 0.03  # median distance of joints; real fits are off by some millimetres


class InterHand(PreparedReader):
    """A split of a prepared folder, one row per hand; `datasets.interhand.open_reader` makes it."""

    title = "InterHand"
    pose_pca, pose_flat_mean, tips, joints_kind = CONVENTION.values()
    joints_text = "annotated (triangulated), not MANO's; the fitted meshes lie some mm off them"
    hand_tolerance_m = None  # prepare compares them, in the median

    def _kept(self) -> np.ndarray | bool:
        if self.options.hand_type == "all":
            return True
        interacting = np.array(read_columns(self.folder / "index", {"interacting": ()})["interacting"])
        return interacting if self.options.hand_type == "interacting" else ~interacting

    def picture_name(self, index: int) -> str:
        return self.sample_name(index).split("#")[0]

    def _require_hands(self) -> None:
        if not self.options.fits:
            return
        super()._require_hands()
        for side, sha256 in self.meta["plan"]["hand_models"].items():
            if side in self.hands and self.hands[side].sha256 != sha256:
                raise InputError(f"{self.folder}: prepared with another {side} hand model than {self.hands[side].name}: set "
                                 f"{'hand' if side == 'right' else 'hand_left'} back, or prepare again into another "
                                 "dataset.prepared")


def require_hand(hands: Hands, side: str, options: Options) -> HandModel:
    """The model of a side's fits, or InputError."""
    if side not in hands:
        raise InputError(f"dataset.hands={options.hands} needs a {side} hand model for the MANO fits: set "
                         "hand_left=template/MANO_LEFT.pkl, or dataset.hands=right, or dataset.fits=false")
    return hands[side]


def rest_of(hand: HandModel) -> Rest:
    """Where the wrist rests, by shape."""
    a, wrist = hand.arrays, hand.arrays.J_regressor[0]
    return Rest(wrist @ a.v_template, np.einsum("v,vcs->sc", wrist, a.shapedirs))


def require_near(hands: Mapping[str, HandModel], samples: Sequence[Hand]) -> list[str]:
    """How far the fits' joints lie from the annotated ones, a line per side; InputError where it is farther than fits can be."""
    lines = []
    for side, hand in hands.items():
        some = [one for one in samples if one.side == side and side in one.seen.frame.fits and one.seen.known[_rows(side)].all()]
        if not some:
            continue
        some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, COMPARED).round().astype(int))]
        off = np.median(_distances(hand, some))
        if off > FAR_M:
            option = "hand" if side == "right" else "hand_left"
            raise InputError(f"{some[0].root}: the {side} hands' MANO fits lie {1e3 * off:.0f} mm from the annotated joints "
                             f"(median of {len(some)}), with the hand model {hand.name}: set {option} to "
                             f"template/MANO_{side.upper()}.pkl and dataset.left_shapedirs to flip_x, or dataset.fits=false")
        lines.append(f"{side} hands: MANO fits {1e3 * off:.1f} mm from the annotated joints (median of {len(some)} hands)")
    return lines


def _distances(hand: HandModel, some: Sequence[Hand]) -> np.ndarray:
    """(n,21) metres between the joints of fits and the annotated ones, in the camera."""
    fits = [one.seen.frame.fits[one.side] for one in some]
    placed = [fit_in_camera(fit, one.seen.camera, one.rest) for fit, one in zip(fits, some)]
    pose, shape, trans = (torch.from_numpy(np.array(x)).to(hand.weights) for x in
                          ([p for p, _ in placed], [fit.shape for fit in fits], [t for _, t in placed]))
    with torch.no_grad():
        rotations = hand.rotations_from_pose(pose, pca=CONVENTION["pca"], flat_mean=CONVENTION["flat_mean"])
        joints = hand.joints(hand(rotations, shape).moved(trans), CONVENTION["tips"], CONVENTION["kind"]).cpu().numpy()
    true = np.array([in_camera(one.seen.frame.world[_rows(one.side)][list(T21_FROM_INTERHAND)], one.seen.camera) for one in some])
    return np.linalg.norm(joints - true, axis=-1)


def _rows(side: str) -> slice:
    return slice(FIRST[side], FIRST[side] + 21)
