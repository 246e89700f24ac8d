"""The demo's JSON: what was seen in a picture or frame, in numbers, and what they stand on: K, shape, root, identity, models."""
from pathlib import Path
from typing import Any

import numpy as np

from src.demo_camera import Camera
from src.demo_hand import ShownHand, View
from utils.joints import T21_NAMES

AXES = "camera axes x right, y down, z forward; metres; joints relative to the wrist, which lies at root"


def picture_numbers(view: View, path: Path, picture: np.ndarray, camera: Camera, hands: list[tuple[ShownHand, str | None]],
                    identity_file: str | None) -> dict[str, Any]:
    """Content of the JSON of one picture; hands with the names of their mesh files."""
    return {"picture": str(path), "size": [picture.shape[1], picture.shape[0]], "frame": AXES,
            "K": camera.K.tolist(), "K_source": camera.source,
            "hands": [hand_numbers(shown, file) for shown, file in hands], **models(view, identity_file)}


def hand_numbers(shown: ShownHand, file: str | None) -> dict[str, Any]:
    """One hand, on the picture's own side."""
    seen = shown.seen
    return {
        "side": seen.side, "mesh": file, "verts": len(shown.verts), "faces": len(shown.faces),
        "box": "whole picture" if seen.box is None else list(seen.box[:4]),
        "crop_from_image": seen.cut.crop_from_image.tolist(), "mirrored_before_crop": seen.cut.mirrored,
        "root": shown.root.tolist(), "root_source": seen.root_source,
        "joints": dict(zip(T21_NAMES, shown.joints.tolist())),
        "rotations": None if shown.rotations is None else shown.rotations.tolist(),
        "shape": None if seen.shape is None else seen.shape.tolist(), "shape_source": seen.shape_source,
        "pose_source": seen.pose_source, "confidence": seen.confidence}


def models(view: View, identity_file: str | None) -> dict[str, Any]:
    """Checkpoint, identity, hand model and crop: the same for all pictures."""
    person = view.identity
    return {"checkpoint": view.checkpoint,
            "identity": person and {"file": identity_file, "subject": person.subject, "method": person.method, "n": person.n,
                                    "shape": person.shape.tolist(), "used": "told to the network" if view.told else "held"},
            "hand_model": view.hand.info, "crop": {"factor": view.crop.factor, "pixels": view.crop.pixels}}
