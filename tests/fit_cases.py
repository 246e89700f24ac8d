"""Predictions files for the joint fits: people of the free hand, seen by a ring of cameras, with keypoints of known error."""
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.camera import project
from utils.hand import HandModel
from utils.predictions import PredictionsWriter
from utils.render import render
from utils.rotation import matrix_from_axis_angle

HAND = HandModel.load(Path(__file__).resolve().parent.parent / "template/free_hand_right.npz")
WIDTH, HEIGHT = 320, 240
K = np.array([[310.0, 0, 159], [0, 312, 118], [0, 0, 1]])


def write_case(path: Path, shapes: np.ndarray, *, moments: int = 2, cameras: int = 4, px: float = 0.0, mirrored: bool = False,
               depth_root: Path | None = None, seed: int = 0, without: tuple[str, ...] = (), turn: float = 0.1,
               columns: dict | None = None) -> dict[str, np.ndarray]:
    """Write people (p,10) x moments x cameras rows to `path`; returns what was written.

    px: standard deviation of the keypoints · turn: of the predicted rotations about the true ones, rad · depth_root: write depth
    pictures there · without: columns left out · columns: others, in place of ours.
    """
    draw = np.random.default_rng(seed)
    hand = HandModel(HAND.arrays, torch.float64)
    poses = _ring(cameras)
    rows: dict[str, list] = {}
    for subject, shape in enumerate(shapes, 1):
        for moment in range(moments):
            pca = torch.from_numpy(draw.normal(0, 0.5, 45)) * torch.from_numpy(HAND.arrays.extras["pose_std"])
            fingers = matrix_from_axis_angle(hand.axis_angle_from_pca(pca).unflatten(-1, (15, 3)))
            globe = matrix_from_axis_angle(torch.from_numpy(draw.normal(0, 0.4, 3)))
            for camera, pose in enumerate(poses):
                back = torch.from_numpy(np.linalg.inv(pose))
                rotations = torch.cat(((back[:3, :3] @ globe)[None], fingers))
                posed = hand(rotations, torch.from_numpy(shape))
                joints = hand.joints(posed)
                middle = joints[[0, 9]].mean(0)
                place = back[:3, :3] @ torch.tensor([0.01 * moment, 0.02, 0.0], dtype=torch.float64) + back[:3, 3]
                joints, verts = joints - middle + place, posed.verts - middle + place
                uv = project(joints, torch.from_numpy(K)).numpy() + draw.normal(0, px, (21, 2)) * (px > 0)
                name = f"subject-{subject:02d}/take-{moment}/cam-{camera}/color_{moment:06d}.jpg"
                off = matrix_from_axis_angle(torch.from_numpy(draw.normal(0, turn, (16, 3))))
                row = {"name": name, "subject": subject, "index": len(rows.get("name", ())), "mirrored": mirrored, "K": K,
                       "crop_from_image": np.eye(3), "pred_joints_uv": uv, "pred_rotations": (off @ rotations).numpy(),
                       "pred_shape": 0.4 * shape, "true_shape": shape, "true_root": joints[0].numpy(), "world_from_camera": pose,
                       "instant": (subject - 1) * moments + moment, "pred_uv_confidence": np.ones(21)}
                for key, value in row.items():
                    rows.setdefault(key, []).append(value)
                if depth_root is not None:
                    write_depth(depth_root / name.replace("color_", "aligned_depth_to_color_").replace(".jpg", ".png"), verts,
                                mirrored)
    made = {key: np.array(value) for key, value in rows.items()} | (columns or {})
    with PredictionsWriter(path, {"method": "case", "hand": HAND.info, "dataset": {}}) as writer:
        writer.append(**{key: value for key, value in made.items() if key not in without})
    return made


def _ring(cameras: int) -> np.ndarray:
    """world_from_camera of cameras that look at the origin from 0.6 m."""
    poses = []
    for angle in np.linspace(-0.7, 0.7, cameras) if cameras > 1 else [0.0]:
        turn = matrix_from_axis_angle(torch.tensor([0.2, angle, 0.1])).numpy()
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, turn @ [0, 0, -0.6]
        poses.append(pose)
    return np.stack(poses)


def write_depth(path: Path, verts: torch.Tensor, mirrored: bool = False, wall_m: float = 1.2) -> None:
    """The mesh (778,3) before a wall as a 16-bit picture; as the camera of a left hand saw it where mirrored."""
    drawn = render(verts[None].float(), HAND.faces, torch.from_numpy(K[None]).float(), HEIGHT, WIDTH).depth[0].numpy()
    picture = np.where(drawn > 0, 1000 * drawn, 1000 * wall_m).round().astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[:, ::-1] if mirrored else picture)
