"""Small synthetic HO3D trees for the tests, read by the rules of the spec, without our reader."""
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.synthetic.ho3d import Options, write
from datasets.synthetic.ho3d_files import DEPTH_UNIT_M, SEGMENTATION
from utils.hand import HandModel
from utils.joints import TIPS
from utils.safe_pickle import load_pickle

ROOT = Path(__file__).resolve().parent.parent
HAND = HandModel.load(ROOT / "template/free_hand_right.npz")
GL = np.array([1.0, -1, -1])
COMMON = dict(name="ho3d", people=3, width=160, height=120, frames=4, seconds=4.0, workers=1, seed=5, unannotated=0.3)
SMALL = {"v3": {**COMMON, "version": "v3", "cameras": 2}, "v2": {**COMMON, "version": "v2", "cameras": 1, "sequences": 2}}


class Tree:
    """A tree on disk: frames of the lists with split, meta and joints (21,3) H21, OpenGL."""

    def __init__(self, root: Path, version: str):
        self.root, self.version = root, version
        self.lines = {split: (root / f"{split}.txt").read_text().splitlines() for split in ("train", "evaluation")}
        self.xyz, self.verts = (np.array(json.loads((root / f"evaluation_{n}.json").read_text())) for n in ("xyz", "verts"))

    def meta(self, split: str, line: str) -> dict:
        return load_pickle(self.path(split, line, "meta", "pkl"), "")

    def path(self, split: str, line: str, kind: str, form: str) -> Path:
        sequence, frame = line.split("/")
        return self.root / split / sequence / kind / f"{frame}.{form}"

    def frames(self):
        """(split, line, meta, joints, verts) of every listed frame; the training vertices by the spec's formula."""
        for line in self.lines["train"]:
            meta = self.meta("train", line)
            yield "train", line, meta, meta["handJoints3D"].astype(np.float64), skinned(meta)[1]
        for i, line in enumerate(self.lines["evaluation"]):
            yield "evaluation", line, self.meta("evaluation", line), self.xyz[i], self.verts[i]

    def depth(self, split: str, line: str) -> np.ndarray:
        image = cv2.imread(str(self.path(split, line, "depth", "png")), cv2.IMREAD_UNCHANGED).astype(int)
        assert image.shape == (120, 160, 3)
        return (image[..., 2] + 256 * image[..., 1]) * DEPTH_UNIT_M

    def masks(self, line: str) -> tuple[np.ndarray, np.ndarray]:
        sequence, frame = line.split("/")
        colours, form = SEGMENTATION[self.version]
        folder = self.root / f"HO3D_{self.version}_segmentations_rendered" / "train" / sequence / "seg"
        image = cv2.imread(str(folder / f"{frame}.{form}"))[..., ::-1].astype(int)
        assert image.shape == (30, 40, 3)
        nearest = np.abs(image[:, :, None] - np.array([*colours, (0, 0, 0)])).sum(-1).argmin(-1)
        return nearest == 0, nearest == 1


def skinned(meta: dict) -> tuple[np.ndarray, np.ndarray]:
    """Joints (21,3) H21 and verts (778,3) as the spec has them: LBS(handPose, handBeta) + handTrans, chain and own fingertips."""
    model = HandModel(HAND.arrays, torch.float64)
    pose, shape, trans = (torch.from_numpy(meta[key]).double() for key in ("handPose", "handBeta", "handTrans"))
    posed = model(model.rotations_from_pose(pose, pca=False, flat_mean=True), shape)
    verts = posed.verts.numpy() + trans.numpy()
    return np.concatenate([posed.chain.numpy() + trans.numpy(), verts[list(TIPS["ho3d"])]]), verts


def pixels(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    image = (points * GL) @ K.T
    assert (image[..., 2] > 0).all()
    return image[..., :2] / image[..., 2:]


def make_trees(folder: Path) -> dict[str, Tree]:
    """One tree of each version in the folder."""
    made = {}
    for version, small in SMALL.items():
        root = folder / version
        done = write(Options(**small, out=str(root)), HAND)
        count = {"v3": 5, "v2": 6}[version]
        assert done == {"sequences": count, "written": count, "pictures": 4 * count}
        made[version] = Tree(root, version)
    return made


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


