"""Files of the official evaluations for tests: the golden scenarios as json on disk, in each protocol's frame."""
import json
from pathlib import Path

import numpy as np
from eval_cases import golden_hands

from utils.official_protocols import PROTOCOLS

SCENARIOS = ("main", "mirror", "zeros", "nonmano")


def scenario(name: str, protocol: str) -> dict[str, np.ndarray]:
    """Truth and prediction of a golden scenario, in the frame of the protocol; the order of points means nothing in it."""
    hands = {key: value * PROTOCOLS[protocol].axes for key, value in golden_hands("main" if name == "nonmano" else name).items()}
    if name == "nonmano":
        hands["pred_verts"] = hands["pred_verts"][:, :500]
    return hands


def write_json(path: Path, value: object, **style: object) -> Path:
    """`value` (arrays as lists) as json, NaN and all, as json.dump writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, default=lambda array: array.tolist(), **style))
    return path


def write_truth(folder: Path, hands: dict[str, np.ndarray]) -> Path:
    """The evaluation labels; the folder."""
    write_json(folder / "evaluation_xyz.json", hands["true_xyz"])
    write_json(folder / "evaluation_verts.json", hands["true_verts"])
    return folder


def write_pred(path: Path, hands: dict[str, np.ndarray], **style: object) -> Path:
    """The prediction, [joints, vertices]."""
    return write_json(path, [hands["pred_xyz"], hands["pred_verts"]], **style)
