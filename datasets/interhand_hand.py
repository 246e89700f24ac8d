"""One hand of an InterHand2.6M picture: its joints and its MANO fit, from the world into the camera (specs/datasets.md 1.1, 1.4).

x_cam = R (x_world - place), millimetres to metres. A fit turns about its rest wrist J0(shape), so R' = R R_fit and
trans' = R (J0 + trans - place) - J0; J0 is linear in the shape. A fit is used where the hand's wrist is annotated: the official
evaluation takes no other hand for known. No torch in here: worker processes load it.
"""
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datasets.cutting import SIDES, Loaded
from datasets.interhand_tree import AGAIN, FIRST, Camera, Fit, Seen
from datasets.pictures import Broken, Excluded, box_of, require_seen
from utils.joints import T21_FROM_INTERHAND

NEAREST_M = 0.05  # a joint nearer to the camera than this, or behind it, is an error of the files


class Rest(NamedTuple):
    """Where a hand model's wrist rests, metres: J0(shape) = mean (3) + shape @ dirs (10,3)."""

    mean: np.ndarray
    dirs: np.ndarray


class Hand(NamedTuple):
    """One hand of a picture before it is looked at. split, group: numbers in meta.json · rest: of the hand model of the fits,
    None where fits are not used · least: how many joints must be known · factor: side of the stored crop over the box's."""

    root: Path
    seen: Seen
    side: str
    split: int
    group: int
    rest: Rest | None
    least: int
    factor: float


def in_camera(points: np.ndarray, camera: Camera) -> np.ndarray:
    """(n,3) metres, OpenCV camera, of points (n,3) in the world, millimetres."""
    return (points - camera.place) @ camera.R.T / 1000


def fit_in_camera(fit: Fit, camera: Camera, rest: Rest) -> tuple[np.ndarray, np.ndarray]:
    """pose (48) and trans (3) metres in the camera."""
    turned = camera.R @ cv2.Rodrigues(fit.pose[:3])[0]
    wrist = rest.mean + fit.shape @ rest.dirs
    return np.concatenate([cv2.Rodrigues(turned)[0].ravel(), fit.pose[3:]]), \
        camera.R @ (wrist + fit.trans - camera.place / 1000) - wrist


def load(hand: Hand) -> Loaded:
    """The hand's labels. Raises Broken, and Excluded: too few known joints, outside the picture."""
    seen, rows = hand.seen, slice(FIRST[hand.side], FIRST[hand.side] + 21)
    path, (width, height) = hand.root / seen.name, seen.size
    known = seen.known[rows][list(T21_FROM_INTERHAND)]
    if known.sum() < hand.least:
        raise Excluded("no known joint" if not known.any() else "fewer known joints than dataset.known")
    joints = in_camera(seen.frame.world[rows][list(T21_FROM_INTERHAND)], seen.camera)
    if (joints[known, 2] < NEAREST_M).any():
        raise Broken("joints behind the camera", f"{path}: expected known joints in front of the camera, found one at "
                                                 f"{joints[known, 2].min():.2f} m; {AGAIN}")
    uv = np.zeros((21, 2))
    uv[known] = joints[known, :2] / joints[known, 2:] * seen.camera.focal + seen.camera.centre
    joints[~known] = 0  # the files have ones
    box = box_of(uv[known])
    require_seen(box, uv[known].min(0), uv[known].max(0), width, height, hand.factor, path)
    both = seen.kind == "interacting"
    row = {"name": f"{seen.name}#{hand.side}" if both else seen.name, "split": hand.split, "side": SIDES.index(hand.side),
           "group": hand.group, "subject": seen.subject, "interacting": both, "K": [*seen.camera.focal, *seen.camera.centre],
           "box": box, "joints": joints, "has_joints": known.all(), "joints_uv": uv, "has_uv": True, "joint_valid": known,
           "root": joints[0], "has_root": known[0], **_fit(hand, known[0])}
    return Loaded(row, path, None, seen.size)


def _fit(hand: Hand, wrist_known: bool) -> dict[str, np.ndarray | bool]:
    fit = hand.seen.frame.fits.get(hand.side)
    if fit is None or hand.rest is None or not wrist_known:
        return {"pose": np.zeros(48), "shape": np.zeros(10), "trans": np.zeros(3), "has_hand": False}
    pose, trans = fit_in_camera(fit, hand.seen.camera, hand.rest)
    return {"pose": pose, "shape": fit.shape, "trans": trans, "has_hand": True}
