"""Small RHD trees for the tests: both free hands posed by formula, masks and depth painted round joints, Python-2 pickles."""
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.rhd_tree import DEPTH_M, FIRST, MASK_IDS, SIZE
from utils.hand import HandModel
from utils.joints import T21_FROM_RHD

TEMPLATE = Path(__file__).resolve().parent.parent / "template"
HANDS = {side: HandModel.load(TEMPLATE / f"free_hand_{side}.npz") for side in ("right", "left")}
RHD_FROM_T21 = np.argsort(T21_FROM_RHD)
LARGER = "right", "left", "right", "right"  # the hand with more mask pixels, by the picture's number modulo 4


def hand_joints(side: str, salt: int) -> np.ndarray:
    """(21,3) T21 joints of a free hand half a metre before the camera, the right one on the right; another pose for each salt."""
    draw = np.random.default_rng([salt, side == "left"])
    pose = torch.from_numpy(draw.uniform(-0.25, 0.25, (1, 48)).astype(np.float32))
    hand = HANDS[side]
    posed = hand(hand.rotations_from_pose(pose, pca=False, flat_mean=False), torch.zeros(1, 10))
    joints = hand.joints(posed)[0].numpy().astype(np.float64)
    return joints - joints.mean(0) + (0.11 if side == "right" else -0.11, 0.02, 0.5 + draw.uniform(0, 0.1))


def annotation(number: int) -> dict[str, np.ndarray]:
    """One entry as the pickles have it: left hand first, fingers from tip to base."""
    K = np.array([[300.0 + number, 0, 160], [0, 300.0 + number, 160], [0, 0, 1]])
    xyz = np.concatenate([hand_joints(side, number)[RHD_FROM_T21] for side in ("left", "right")])
    seen = xyz @ K.T
    visible = (np.arange(42) % 3 == 0) == (number == 1)  # 7 of 21, 14 in the others
    return {"xyz": xyz.astype(np.float32), "uv_vis": np.c_[seen[:, :2] / seen[:, 2:], visible], "K": K}


def write_tree(root: Path, training: int = 4, evaluation: int = 2) -> Path:
    """training and evaluation pictures of the real layout. Discs of radius 5 (the larger hand) or 2 round the joints."""
    for split, count in (("training", training), ("evaluation", evaluation)):
        entries = {number: annotation(number) for number in range(count)}
        for number, entry in entries.items():
            write_picture(root / split, number, entry, LARGER[number % 4])
        write_pickle(root / split / f"anno_{split}.pickle", entries)
    return root


def write_pickle(path: Path, entries: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(entries, protocol=2))


def write_picture(folder: Path, number: int, entry: dict[str, np.ndarray], larger: str) -> None:
    """color, mask and depth of one picture; the picture's blue grows to the right."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[..., 0] += np.linspace(0, 120, SIZE).astype(np.uint8)
    mask = np.ones((SIZE, SIZE), np.uint8)
    for side, first in FIRST.items():
        for joint, (u, v) in enumerate(entry["uv_vis"][first:first + 21, :2]):
            place = int(round(float(u) * 16)), int(round(float(v) * 16))
            cv2.circle(mask, place, (5 if side == larger else 2) * 16, MASK_IDS[side][0] + joint % 16, -1, shift=4)
            cv2.circle(image, place, 2 * 16, (90, 220, 240), -1, cv2.LINE_AA, 4)
    for kind, picture in (("color", image), ("mask", mask), ("depth", depth_picture(mask))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / kind / f"{number:05d}.png"), picture)


def depth_of(mask: np.ndarray) -> np.ndarray:
    """(h,w) metres: a slope to the right, 4 m behind, half a metre at hands."""
    slope = np.broadcast_to(np.linspace(0, 0.9, mask.shape[1]), mask.shape)
    return np.where(mask > 1, 0.5, 4.0) + slope


def depth_picture(mask: np.ndarray) -> np.ndarray:
    """(h,w,3) BGR as RHD has it: red = high byte, green = low byte."""
    steps = np.round(depth_of(mask) / DEPTH_M * 65535).astype(np.int64)
    return np.stack((np.zeros_like(steps), steps % 256, steps // 256), -1).astype(np.uint8)
