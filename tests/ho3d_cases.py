"""Small HO3D trees for the tests: the free hand before a ring of cameras, Python 2's pickles, painted pictures, the real layout.

Everything is made in HO3D's own terms (OpenGL axes, H21, verts = LBS(handPose, handBeta) + handTrans), by the hand model alone.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from toy_pickle import dumps

from datasets.ho3d import Options
from utils.hand import HandModel
from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle

HAND = HandModel.load(Path(__file__).resolve().parent.parent / "template/free_hand_right.npz")
HAND64 = HandModel(HAND.arrays, torch.float64)
WIDTH, HEIGHT, FRAMES = 160, 120, 4
K = np.array([[150.0, 0, 82], [0, 152.0, 57], [0, 0, 1]])
GL = np.diag([1.0, -1, -1])
SEQUENCES = {"train": ("SB10", "SB12", "ABF10"), "evaluation": ("SB11", "AP10")}
ORDER = (2, 0, 1)  # cam_orders.txt
COLOURS = {"v2": ((255, 0, 0), (0, 0, 255)), "v3": ((0, 0, 255), (0, 255, 0))}  # RGB of hand and thing


@dataclass
class Made:
    """A tree and what it says: frames["SB10/0000"] = the pickle's content with "verts"; lists as written."""

    root: Path
    version: str
    frames: dict[str, dict] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    camera_from_world: list[np.ndarray] = field(default_factory=list)

    def meta(self, line: str) -> Path:
        sequence, frame = line.split("/")
        return self.root / self.split_of(sequence) / sequence / "meta" / f"{frame}.pkl"

    def rgb(self, line: str) -> Path:
        sequence, frame = line.split("/")
        form = "png" if self.version == "v2" else "jpg"
        return self.root / self.split_of(sequence) / sequence / "rgb" / f"{frame}.{form}"

    @staticmethod
    def split_of(sequence: str) -> str:
        return "train" if sequence in SEQUENCES["train"] else "evaluation"

    def change(self, line: str, **values: object) -> None:
        """Rewrite a pickle with other values."""
        self.meta(line).write_bytes(dumps({**_content(self, line), **values}))

    def write_lists(self) -> None:
        for split, lines in self.lists.items():
            (self.root / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))

    def write_public(self, xyz: bool = True, verts: bool = True) -> None:
        """The evaluation's labels in the order of its list."""
        lines = self.lists["evaluation"]
        for name, key, wanted in (("xyz", "joints", xyz), ("verts", "verts", verts)):
            if wanted:
                values = [self.frames[line][key].tolist() for line in lines]
                (self.root / f"evaluation_{name}.json").write_text(json.dumps(values))


def options(made: Made, **changes: object) -> Options:
    return Options(**{"root": str(made.root), "prepared": str(made.root.parent / "prepared"), "version": made.version,
                      "width": WIDTH, "height": HEIGHT, "workers": 1, **changes})


def write_tree(root: Path, version: str = "v3", *, public: bool = True, masks: bool = True, calibration: bool = True,
               gl_calibration: bool = False, seed: int = 0) -> Made:
    """Three training and two evaluation sequences of FRAMES frames; SB10, SB11, SB12 are three cameras of one recording."""
    draw = np.random.default_rng(seed)
    made = Made(root, version, camera_from_world=[_camera(draw, c) for c in range(3)])
    betas = {stem: draw.uniform(-1, 1, 10).astype(np.float32) for stem in ("SB", "ABF", "AP")}
    for split, sequences in SEQUENCES.items():
        for sequence in sequences:
            stem, camera = sequence[:-2], int(sequence[-1])
            poses = np.random.default_rng([seed, ord(stem[0]), len(stem)])  # cameras of one recording see one hand
            for frame in range(FRAMES):
                line = f"{sequence}/{frame:04d}"
                made.frames[line] = _frame(poses, betas[stem], made.camera_from_world[camera])
                _write_frame(made, line, masks and split == "train")
        made.lists[split] = [f"{sequence}/{frame:04d}" for sequence in sequences for frame in range(FRAMES)]
    made.write_lists()
    if public:
        made.write_public()
    if calibration:
        write_calibration(made, gl_calibration)
    return made


def _camera(draw: np.random.Generator, number: int) -> np.ndarray:
    """(4,4): cameras on an arc around the origin, looking at it."""
    pose = np.eye(4)
    pose[:3, :3] = matrix_from_axis_angle(torch.tensor([0.3, 0.5 * number - 0.4, 0.1])).double().numpy()
    pose[:3, 3] = [0.01 * number, -0.02, 0.55 + 0.05 * number]
    return pose


def _frame(draw: np.random.Generator, beta: np.ndarray, camera_from_world: np.ndarray) -> dict:
    """One hand of the world as HO3D tells it of a camera."""
    world = matrix_from_axis_angle(torch.from_numpy(draw.uniform(-1.5, 1.5, 3))).numpy()
    fingers, wrist_world = draw.uniform(-0.3, 0.3, 45), draw.uniform(-0.03, 0.03, 3)
    pose = np.concatenate([axis_angle_from_matrix(torch.from_numpy(GL @ camera_from_world[:3, :3] @ world)).numpy(), fingers])
    wrist = GL @ (camera_from_world[:3, :3] @ wrist_world + camera_from_world[:3, 3])
    rest = HAND64.shaped(torch.from_numpy(beta).double()).rest_joints[0].numpy()
    pose, trans = pose.astype(np.float32), (wrist - rest).astype(np.float32)
    joints, verts = skinned(pose, trans, beta)
    return {"handPose": pose, "handTrans": trans, "handBeta": beta, "joints": joints.astype(np.float32),
            "verts": verts.astype(np.float32)}


def skinned(pose: np.ndarray, trans: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """handJoints3D (21,3) H21 and vertices (778,3) as the spec defines them, float64."""
    pose, trans, beta = (torch.from_numpy(np.asarray(x)).double() for x in (pose, trans, beta))
    posed = HAND64(HAND64.rotations_from_pose(pose, pca=False, flat_mean=True), beta).moved(trans)
    return HAND64.joints(posed, "ho3d", "chain", "H21").numpy(), posed.verts.numpy()


def pixels(points: np.ndarray) -> np.ndarray:
    image = points @ GL @ K.T
    return image[..., :2] / image[..., 2:]


def _content(made: Made, line: str) -> dict:
    frame = made.frames[line]
    known = {"objTrans": np.zeros(3, np.float32), "objName": "021_bleach_cleanser", "camMat": K}
    if made.split_of(line.split("/")[0]) == "evaluation":
        uv = pixels(frame["verts"])
        return {**known, "handJoints3D": frame["joints"][0], "handBoundingBox": [*map(int, uv.min(0)), *map(int, uv.max(0) + 1)]}
    return {**known, "handJoints3D": frame["joints"], **{key: frame[key] for key in ("handPose", "handTrans", "handBeta")},
            "handVertContact": np.zeros(778, bool), "handVertDist": np.ones(778, np.float32), "camIDList": ["0", "1", "2"]}


def _write_frame(made: Made, line: str, mask: bool) -> None:
    frame = made.frames[line]
    meta, rgb = made.meta(line), made.rgb(line)
    for path in (meta, rgb):
        path.parent.mkdir(parents=True, exist_ok=True)
    meta.write_bytes(dumps(_content(made, line)))
    image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    image[..., 0] += np.linspace(0, 120, WIDTH).astype(np.uint8)
    for u, v in pixels(frame["joints"]):
        cv2.circle(image, (int(round(float(u) * 16)), int(round(float(v) * 16))), 2 * 16, (90, 220, 240), -1, cv2.LINE_AA, 4)
    cv2.imwrite(str(rgb), image)
    if mask:
        sequence, number = line.split("/")
        folder = made.root / f"HO3D_{made.version}_segmentations_rendered" / "train" / sequence / "seg"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), segmentation(frame, made.version))


def hand_quarter(frame: dict) -> np.ndarray:
    """(h/4,w/4) bool: discs about the joints."""
    mask = np.zeros((HEIGHT // 4, WIDTH // 4), np.uint8)
    for u, v in pixels(frame["joints"]):
        cv2.circle(mask, (int((u + 0.5) / 4), int((v + 0.5) / 4)), 1, 1, -1)
    return mask > 0


def segmentation(frame: dict, version: str) -> np.ndarray:
    """BGR at a quarter: the hand, and a thing in the corner."""
    image = np.zeros((HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    image[:4, :4] = COLOURS[version][1][::-1]
    image[hand_quarter(frame)] = COLOURS[version][0][::-1]
    return image


def write_calibration(made: Made, gl: bool = False, off_m: float = 0.0) -> None:
    """Of recording SB1; the common frame is that of the first camera in ORDER. gl: as if the files were in OpenGL axes."""
    folder = made.root / "calibration" / "SB1" / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cam_orders.txt").write_text(",".join(map(str, ORDER)) + "\n")
    (folder / "cam_0_depth_scale.txt").write_text("0.00012498664727900177\n")
    for i, camera in enumerate(ORDER):
        common = made.camera_from_world[ORDER[0]] @ np.linalg.inv(made.camera_from_world[camera])
        common[0, 3] += off_m * i
        if gl:
            flip = np.diag([1.0, -1, -1, 1])
            common = flip @ common @ flip
        (folder / f"trans_{i}.txt").write_text("\n".join(" ".join(f"{x:.10f}" for x in row) for row in common) + "\n")
        (folder / f"cam_{i}_intrinsics.txt").write_text("fx: 150.0, fy: 152.0, ppx: 82.0, ppy: 57.0\n")
