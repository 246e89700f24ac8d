"""Cases of the official files: predictions files of the free hand in random poses, shuffled official order, and public labels."""
from pathlib import Path

import numpy as np
import orjson
import torch

from utils.hand import HandModel
from utils.joints import H21_FROM_T21
from utils.predictions import PredictionsWriter
from utils.rotation import matrix_from_axis_angle

HAND = HandModel.load(Path(__file__).resolve().parent.parent / "template/free_hand_right.npz")
DATASET = {"freihand": "FreiHAND", "ho3d_v2": "HO3D", "ho3d_v3": "HO3D", "dex_ycb": "DexYCB"}


def random_columns(rows: int = 40, seed: int = 0, lefts: bool = False) -> dict[str, np.ndarray]:
    """Columns of a predictions file: true hands at 0.4 to 0.8 m, predicted ones near them; float32."""
    rng = torch.Generator().manual_seed(seed)
    pose, shape = 0.3 * torch.randn(rows, 16, 3, generator=rng), torch.randn(rows, 10, generator=rng)
    with torch.no_grad():
        true = HAND(matrix_from_axis_angle(pose), shape)
        pred = HAND(matrix_from_axis_angle(pose + 0.1 * torch.randn(rows, 16, 3, generator=rng)), shape + 0.3)
        joints, true_joints = HAND.joints(pred), HAND.joints(true)
    wrist = torch.tensor([0.1, 0.1, 0.2]) * (2 * torch.rand(rows, 3, generator=rng) - 1) + torch.tensor([0, 0, 0.6])
    columns = {
        "pred_verts": pred.verts - joints[:, :1], "pred_joints": joints - joints[:, :1],
        "pred_root": wrist + 0.01 * torch.randn(rows, 3, generator=rng),
        "true_verts": true.verts - true_joints[:, :1] + wrist[:, None],
        "true_joints": true_joints - true_joints[:, :1] + wrist[:, None], "true_root": wrist,
        "official_index": torch.randperm(rows, generator=rng), "subject": torch.arange(rows) % 3, "index": torch.arange(rows),
        "mirrored": torch.arange(rows) % 3 == 0 if lefts else torch.zeros(rows, dtype=torch.bool)}
    return {key: value.numpy().copy() for key, value in columns.items()}


def write_predictions(path: Path, official: str | None, columns: dict[str, np.ndarray], **more) -> Path:
    """A predictions file of these columns, whose dataset has this official evaluation (None: an old file that does not say)."""
    dataset = {"dataset": DATASET.get(official, "DexYCB"), "split": "s0/test" if official in ("dex_ycb", None) else "evaluation"}
    meta = {"method": "toy", "run": "toy", "hand": HAND.info, "told": "nothing",
            "dataset": dataset | ({"official": official} if official else {}), **more}
    with PredictionsWriter(path, meta) as writer:
        writer.append(name=[f"s/{i:03d}" for i in range(len(columns["subject"]))], **columns)
    return path


def official_points(columns: dict[str, np.ndarray], what: str, side: str, root: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Joints and vertices of the `pred` or `true` hands as evaluation `what` wants them, row by row; float32."""
    rows = np.argsort(columns["official_index"])
    out = []
    for part in ("joints", "verts"):
        found = []
        for row in rows:
            points = columns[f"{side}_{part}"][row] + (columns[f"{root}_root"][row] if root else np.float32(0))
            if columns["mirrored"][row]:
                points = points * np.float32([-1, 1, 1])
            if what.startswith("ho3d"):
                points = points * np.float32([1, -1, -1])
                points = points[list(H21_FROM_T21)] if part == "joints" else points
            found.append(points)
        out.append(np.stack(found))
    return out[0], out[1]


def write_truth(folder: Path, columns: dict[str, np.ndarray], what: str) -> Path:
    """The evaluation's public labels, evaluation_xyz.json and evaluation_verts.json, from the file's own true hands."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, points in zip(("xyz", "verts"), official_points(columns, what, "true", None)):
        text = orjson.dumps(np.ascontiguousarray(points, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)  # float32, as labels are
        (folder / f"evaluation_{name}.json").write_bytes(text)
    return folder
