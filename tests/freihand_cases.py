"""Small FreiHAND trees for the tests: the free hand in random poses, its silhouette painted, in the real layout."""
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.hand import HandModel

ROOT = Path(__file__).resolve().parent.parent
FREE_HAND = ROOT / "template" / "free_hand_right.npz"
SIZE, VERSIONS = 224, 4
BACKGROUNDS = ((40, 160, 40), (120, 60, 30), (60, 60, 60), (30, 90, 150))  # BGR of gs, hom, sample, auto


def free_hand() -> HandModel:
    return HandModel.load(FREE_HAND)


def sample_lists(hand: HandModel, count: int, seed: int) -> dict[str, np.ndarray]:
    """K, mano, xyz, verts and scale of `count` samples: mano's root is joint 9 of the posed mesh, everything float64."""
    draw = np.random.default_rng(seed)
    hand = HandModel(hand.arrays, torch.float64)
    K = np.tile(np.eye(3), (count, 1, 1))
    K[:, 0, 0] = draw.uniform(380, 480, count)
    K[:, 1, 1], K[:, :2, 2] = K[:, 0, 0] * draw.uniform(0.998, 1.002, count), SIZE / 2
    mano = np.zeros((count, 61))
    mano[:, :48] = draw.uniform(-0.4, 0.4, (count, 48))
    mano[:, :3] = draw.uniform(-1.5, 1.5, (count, 3))
    mano[:, 48:58] = draw.uniform(-1, 1, (count, 10))
    focal = (K[:, 0, 0] + K[:, 1, 1]) / 2
    mano[:, 58:60] = SIZE / 2 + draw.uniform(-8, 8, (count, 2))
    mano[:, 60] = focal / draw.uniform(0.62, 0.8, count)
    pose, shape = torch.from_numpy(mano[:, :48]), torch.from_numpy(mano[:, 48:58])
    posed = hand(hand.rotations_from_pose(pose, pca=False, flat_mean=False), shape)
    joints = hand.joints(posed, "freihand", "regressed").numpy()
    root = np.stack([(mano[:, 58] - K[:, 0, 2]) / mano[:, 60], (mano[:, 59] - K[:, 1, 2]) / mano[:, 60], focal / mano[:, 60]], 1)
    shift = (root - joints[:, 9])[:, None]
    xyz, verts = joints + shift, posed.verts.numpy() + shift
    return {"K": K, "mano": mano[:, None], "xyz": xyz, "verts": verts, "scale": np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=1)}


def write_tree(root: Path, hand: HandModel, samples: int = 6, evaluation: int = 4, *, versions: int = VERSIONS,
               training: tuple[str, ...] = ("K", "mano", "xyz", "verts", "scale"),
               public: tuple[str, ...] = ("K", "mano", "xyz", "verts", "scale")) -> Path:
    """A tree with the lists named; masks and pictures show the hand's silhouette, grey on the version's colour."""
    root.mkdir(parents=True, exist_ok=True)
    for split, count, names in (("training", samples, training), ("evaluation", evaluation, public)):
        if not count:
            continue
        lists = sample_lists(hand, count, seed=count + (split == "evaluation"))
        for name in names:
            write_list(root / f"{split}_{name}.json", lists[name])
        (root / split / "rgb").mkdir(parents=True)
        if split == "training":
            (root / split / "mask").mkdir()
        for i in range(count):
            points = lists["verts"][i] @ lists["K"][i].T
            mask = silhouette(points[:, :2] / points[:, 2:], hand.faces.numpy())
            if split == "training":
                cv2.imwrite(str(root / split / "mask" / f"{i:08d}.jpg"), mask)
            for k in range(versions if split == "training" else 1):
                image = np.empty((SIZE, SIZE, 3), np.uint8)
                image[:] = BACKGROUNDS[k]
                image[mask > 127] = (150, 170, 200)
                cv2.imwrite(str(root / split / "rgb" / f"{i + k * count:08d}.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 95))
    return root


def silhouette(uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(224,224) uint8, 255 where a triangle lies, a pixel wide at least."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for triangle in np.round(uv[faces] * 16).astype(np.int32):
        cv2.fillConvexPoly(mask, triangle, 255, cv2.LINE_8, 4)
    return mask


def write_list(path: Path, values: np.ndarray | list) -> None:
    path.write_text(json.dumps(np.asarray(values).tolist() if isinstance(values, np.ndarray) else values))


def read_list(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text()))
