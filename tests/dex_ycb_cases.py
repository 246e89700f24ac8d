"""Small DexYCB trees for the tests: formula hands (tests/goldens/toy_mano.py) and painted pictures, in the real layout."""
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from datasets.dex_ycb import SERIALS
from utils.hand import HandModel
from utils.mano_file import HandArrays

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from toy_mano import toy_mano

TUPLE = "!!python/tuple"


def toy_hand(side: str = "right", mirror: bool = False, salt: int = 0) -> HandModel:
    """The goldens' toy hand. `mirror`: its mirror image, which toy_hand("left") is not (both sides share their arrays)."""
    toy = toy_mano(salt)
    kept = {key: value for key, value in toy.items() if key not in ("f", "kintree_table")}
    hand = HandModel(HandArrays(**kept, f=toy["f"].astype(np.int64), name="toy", side="right" if mirror else side))
    return hand.mirrored() if mirror else hand


def write_tree(root: Path, hands: dict[str, HandModel], *, people: int = 10, sequences: int = 5, cameras: int = 2,
               frames: int = 2, width: int = 160, height: int = 120, seed: int = 0, lefts: bool = True) -> Path:
    """A tree of the real layout: right hands in even sequences, left ones in odd (if `lefts`); hands well inside the picture.

    K: focal lengths 1.0 and 1.01 widths, principal point off the middle. A disc is painted at every joint.
    """
    draw = np.random.default_rng(seed)
    K = {}
    for c in range(cameras):
        K[c] = np.array([[width * (1.0 + 0.01 * c), 0, width / 2 + 2], [0, width * 1.01, height / 2 - 3], [0, 0, 1]])
        dump(root / "calibration/intrinsics" / f"{SERIALS[c]}_{width}x{height}.yml",
             {"color": {"fx": float(K[c][0, 0]), "fy": float(K[c][1, 1]), "ppx": float(K[c][0, 2]), "ppy": float(K[c][1, 2])}})
    extrinsics = "".join(f"  '{SERIALS[c]}': {TUPLE} [1.0, 0.0, 0.0, 0.{c}, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]\n"
                         for c in range(cameras))
    put(root / "calibration/extrinsics_x/extrinsics.yml", f"extrinsics:\n{extrinsics}master: '{SERIALS[0]}'\n")
    for p in range(people):
        calib = f"20200101_000000_subject-{p + 1:02d}_right"
        betas = draw.uniform(-1, 1, 10)
        dump(root / "calibration" / f"mano_{calib}" / "mano.yml", {"betas": [float(b) for b in betas]})
        for q in range(sequences):
            folder = root / f"202007{p + 10}-subject-{p + 1:02d}" / f"202007{p + 10}_{q:06d}"
            side = "left" if lefts and q % 2 else "right"
            dump(folder / "meta.yml", {"serials": list(SERIALS[:cameras]), "num_frames": frames, "extrinsics": "x",
                                       "ycb_ids": [1], "ycb_grasp_ind": 0, "mano_sides": [side], "mano_calib": [calib]})
            poses = draw.uniform(-0.3, 0.3, (cameras, frames, 51)).astype(np.float32)
            poses[..., 48:] = np.array([-0.1, 0.0, 0.9]) + draw.uniform(-0.04, 0.04, (cameras, frames, 3))
            np.savez(folder / "pose.npz", pose_m=poses[0][:, None])
            joints = label_joints(hands[side], poses.reshape(-1, 51), betas).reshape(cameras, frames, 21, 3)
            for c in range(cameras):
                for f in range(frames):
                    uv = joints[c, f] @ K[c].T
                    uv = (uv[:, :2] / uv[:, 2:]).astype(np.float32)
                    write_frame(folder / SERIALS[c], f, poses[c, f], joints[c, f], uv, width, height)
    return root


def label_joints(hand: HandModel, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """DexYCB's joints (n,21,3) float32 of its pose_m (n,51)."""
    poses = torch.from_numpy(poses)
    posed = hand(hand.rotations_from_pose(poses[:, :48], pca=True, flat_mean=False),
                 torch.from_numpy(np.float32(betas)).expand(len(poses), 10)).moved(poses[:, 48:])
    return hand.joints(posed, "manopth", "chain").numpy()


def write_frame(folder: Path, frame: int, pose: np.ndarray, joints: np.ndarray, uv: np.ndarray, width: int,
                height: int) -> None:
    """Labels and picture of one frame."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"labels_{frame:06d}.npz", seg=np.zeros((height, width), np.uint8), pose_m=pose[None],
             joint_3d=joints[None], joint_2d=uv[None])
    image = np.full((height, width, 3), 40, np.uint8)
    image[..., 0] += np.linspace(0, 120, width).astype(np.uint8)  # blue grows to the right: a mirrored picture shows
    for u, v in uv:
        cv2.circle(image, (int(round(float(u) * 16)), int(round(float(v) * 16))), 2 * 16, (90, 220, 240), -1, cv2.LINE_AA, 4)
    cv2.imwrite(str(folder / f"color_{frame:06d}.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 95))


def dump(path: Path, value: object) -> None:
    put(path, yaml.safe_dump(value))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
