"""Small InterHand2.6M trees for the tests: free hands as MANO fits in the world, joints of their meshes, cameras by formula."""
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.interhand_reader import CONVENTION
from utils.hand import HandModel
from utils.joints import T21_FROM_INTERHAND

TEMPLATE = Path(__file__).resolve().parent.parent / "template"
HANDS = {side: HandModel.load(TEMPLATE / f"free_hand_{side}.npz", "flip_x" if side == "left" else "as_is").double()
         for side in ("right", "left")}
INTERHAND_FROM_T21 = np.argsort(T21_FROM_INTERHAND)
CAPTURE, SUBJECT, SEQUENCE = 3, 7, "0390_dh_touchROM"
KINDS = "interacting", "right", "left", "interacting"  # of frame 10, 20, 30, 40
CAMERAS = {"400026": (512, 334), "410028": (334, 512)}  # one lies on its side: width and height
NO_FIT = {(20, "right"): None, (40, "left"): "absent"}  # null, and no entry


def camera(name: str) -> dict[str, np.ndarray]:
    """R, place (mm) and so on: about a metre from the origin, turned by another angle each."""
    turn = 0.3 if name == "400026" else -2.2
    R = cv2.Rodrigues(np.array([0.2 * turn, turn, 0.4]))[0]
    width, height = CAMERAS[name]
    return {"camrot": R, "campos": R.T @ np.array([30.0, -20.0, -1100.0]), "focal": np.array([1270.0, 1275.0]) / 1.6,
            "princpt": np.array([width / 2 + 3, height / 2 - 4])}


def fit(frame: int, side: str) -> dict[str, np.ndarray]:
    """pose (48), shape (10), trans (3) in the world: right hands on the one side of the origin, left ones on the other."""
    draw = np.random.default_rng([frame, side == "left"])
    pose = draw.uniform(-0.3, 0.3, 48)
    pose[:3] = draw.uniform(-1, 1, 3)
    return {"pose": pose, "shape": draw.uniform(-1, 1, 10),
            "trans": np.array([0.07 if side == "right" else -0.07, 0, 0]) + draw.uniform(-0.02, 0.02, 3)}


def mesh(frame: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (778,3) and T21 joints (21,3) of a fit in the world, metres."""
    hand, numbers = HANDS[side], {key: torch.from_numpy(value)[None] for key, value in fit(frame, side).items()}
    posed = hand(hand.rotations_from_pose(numbers["pose"], pca=False, flat_mean=False), numbers["shape"]).moved(numbers["trans"])
    return posed.verts[0].numpy(), hand.joints(posed, CONVENTION["tips"], CONVENTION["kind"])[0].numpy()


def seen(points: np.ndarray, name: str) -> np.ndarray:
    """Points (n,3) of the world, metres, in a camera, metres."""
    found = camera(name)
    return (points - found["campos"] / 1000) @ found["camrot"].T


def known(frame: int) -> np.ndarray:
    """(42) which joints are annotated: those of the frame's hands; of frame 40's left hand not the thumb's tip, of frame 30's
    not the wrist."""
    kind = KINDS[frame // 10 - 1]
    flags = np.repeat([kind in ("right", "interacting"), kind in ("left", "interacting")], 21)
    if frame == 40:
        flags[21] = False
    if frame == 30:
        flags[41] = False
    return flags


def world(frame: int) -> np.ndarray:
    """(42,3) mm as joint_3d.json has it: ones where a joint is not annotated."""
    points = np.concatenate([1000 * mesh(frame, side)[1][INTERHAND_FROM_T21] for side in ("right", "left")])
    return np.where(known(frame)[:, None], points, 1.0)


def write_tree(root: Path, splits: tuple[str, ...] = ("train", "val", "test"), oldest: bool = False, fits: bool = True) -> Path:
    """Four frames, two cameras, of each split. oldest: joint_3d.json with bare lists. fits: with MANO_NeuralAnnot.json."""
    for split in splits:
        write_split(root, split, oldest, fits)
    return root


def write_split(root: Path, split: str, oldest: bool, fits: bool) -> None:
    images, annotations, joints, mano = [], [], {}, {}
    for number, (frame, name) in enumerate((frame, name) for frame in (10, 20, 30, 40) for name in CAMERAS):
        width, height = CAMERAS[name]
        inner = f"Capture{CAPTURE}/{SEQUENCE}/cam{name}/image{frame}.jpg"
        images.append({"id": 100 + number, "file_name": inner, "width": width, "height": height, "capture": CAPTURE,
                       "subject": SUBJECT, "seq_name": SEQUENCE, "camera": name, "frame_idx": frame})
        annotations.append({"id": 100 + number, "image_id": 100 + number, "bbox": [1.0, 2.0, 3.0, 4.0],
                            "joint_valid": [[int(flag)] for flag in known(frame)], "hand_type": KINDS[frame // 10 - 1],
                            "hand_type_valid": 1})
        paint(root / "images" / split / inner, frame, name)
        value = {"world_coord": world(frame).tolist(), "joint_valid": [[int(flag)] for flag in known(frame)],
                 "hand_type": KINDS[frame // 10 - 1], "hand_type_valid": True}
        joints[str(frame)] = value["world_coord"] if oldest else value
        mano[str(frame)] = {side: {key: x.tolist() for key, x in fit(frame, side).items()} for side in ("right", "left")
                            if KINDS[frame // 10 - 1] in (side, "interacting")}
        for (where, side), how in NO_FIT.items():
            if where == frame and how is None:
                mano[str(frame)][side] = None
            elif where == frame:
                del mano[str(frame)][side]
    cameras = {key: {name: camera(name)[key].tolist() for name in CAMERAS} for key in camera("400026")}
    contents = {"data": {"images": images, "annotations": annotations}, "camera": {str(CAPTURE): cameras},
                "joint_3d": {str(CAPTURE): joints}} | ({"MANO_NeuralAnnot": {str(CAPTURE): mano}} if fits else {})
    for what, content in contents.items():
        path = root / "annotations" / split / f"InterHand2.6M_{split}_{what}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def paint(path: Path, frame: int, name: str) -> None:
    """Discs at the annotated joints; blue grows to the right."""
    width, height = CAMERAS[name]
    image = np.full((height, width, 3), 40, np.uint8)
    image[..., 0] += np.linspace(0, 120, width).astype(np.uint8)
    found, points = camera(name), seen(world(frame)[known(frame)] / 1000, name)
    for u, v in points[:, :2] / points[:, 2:] * found["focal"] + found["princpt"]:
        cv2.circle(image, (int(round(u * 16)), int(round(v * 16))), 3 * 16, (90, 220, 240), -1, cv2.LINE_AA, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, (cv2.IMWRITE_JPEG_QUALITY, 95))


def link_samples(samples: Path, root: Path, split: str = "test") -> Path:
    """The real samples in the official layout: annotations and pictures as links."""
    folder = root / "annotations" / split
    folder.mkdir(parents=True)
    for what in ("data", "camera", "joint_3d"):
        (folder / f"InterHand2.6M_{split}_{what}.json").symlink_to((samples / f"test_interhand2.6m_{what}.json").resolve())
    for image in json.loads((samples / "test_interhand2.6m_data.json").read_text())["images"]:
        path = root / f"images/{split}/Capture{image['capture']}/{image['seq_name']}/cam{image['camera']}" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((samples / image["file_name"]).resolve())
    return root
