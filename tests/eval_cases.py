"""Cases shared by the tests of evaluation: the golden recipe, a toy hand, and a predictions file of random poses of it."""
import sys
from pathlib import Path

import numpy as np
import torch

from utils.camera import project
from utils.hand import HandModel
from utils.mano_file import HandArrays
from utils.metrics import Measures
from utils.predictions import PredictionsWriter
from utils.protocols import dexycb_hpe, lines_of, read_dexycb_text
from utils.rotation import matrix_from_axis_angle

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS))
from fill import uniform  # noqa: E402
from toy_mano import toy_mano  # noqa: E402

CENTRE = np.array([0.0, 0.0, 0.6])


def golden_hands(scenario: str) -> dict[str, np.ndarray]:
    """Truth and prediction of the golden recipe of scenario main, mirror or zeros: xyz (50,21,3), verts (50,778,3), metres."""
    box = {"xyz": 21, "verts": 778}
    true = {key: uniform(f"eval.gt.{key}", (50, k, 3), -0.1, 0.1).astype(float) + CENTRE for key, k in box.items()}
    if scenario == "mirror":
        return {**{f"true_{k}": v for k, v in true.items()}, **{f"pred_{k}": v * [-1, 1, 1] for k, v in true.items()}}
    if scenario == "zeros":
        return {**{f"true_{k}": v for k, v in true.items()}, **{f"pred_{k}": 0 * v for k, v in true.items()}}
    turn = rodrigues(uniform("eval.pred.rot", (50, 3), -0.25, 0.25).astype(float))
    scale = uniform("eval.pred.scale", (50,), 0.9, 1.1).astype(float)[:, None, None]
    move = uniform("eval.pred.trans", (50, 3), -0.02, 0.02).astype(float)[:, None]
    reach = {"xyz": 0.01, "verts": 0.004}
    pred = {}
    for key, value in true.items():
        noise = uniform(f"eval.pred.noise.{key}", value.shape, -reach[key], reach[key]).astype(float)
        pred[key] = scale * (value - CENTRE) @ turn.transpose(0, 2, 1) + CENTRE + move + noise
    return {**{f"true_{k}": v for k, v in true.items()}, **{f"pred_{k}": v for k, v in pred.items()}}


def rodrigues(axis_angle: np.ndarray) -> np.ndarray:
    """Exact rotation matrices (n,3,3) of axis-angle vectors (n,3)."""
    angle = np.linalg.norm(axis_angle, axis=1)[:, None, None]
    x, y, z = (axis_angle / angle[:, 0]).T
    skew = np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], 1).reshape(-1, 3, 3)
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def golden_numbers() -> dict[str, np.ndarray]:
    """Outputs of the official programs, as computed by them (thresholds, texts and the non-MANO scenario left out)."""
    with np.load(GOLDENS / "eval.npz") as file:
        return {key: file[key] for key in file.files}


def toy_hand(salt: int = 0, name: str = "toy") -> HandModel:
    """A toy hand of MANO's sizes, float64."""
    arrays = {key: value for key, value in toy_mano(salt).items() if key != "kintree_table"}
    return HandModel(HandArrays(**arrays, name=name), dtype=torch.float64)


def write_file(path: Path, hand: HandModel, rows: int = 12, seed: int = 0, told: bool = False, root: bool = True,
               unlabelled: int = 0, perfect: bool = False, note: str = "toy", uv: str = "", rotations: bool = False,
               meta: dict | None = None) -> dict[str, np.ndarray]:
    """A predictions file of random poses of the toy hand; the columns written.

    uv: `too` adds the true 2D joints and predicted ones half a pixel off, with K and crop; `alone` leaves the mesh out.
    rotations: adds pred_rotations.
    """
    rng = torch.Generator().manual_seed(seed)
    shape = torch.randn(rows, 10, generator=rng, dtype=torch.float64)
    pose = torch.randn(rows, 16, 3, generator=rng, dtype=torch.float64) * 0.3
    amount = 0.0 if perfect else 1.0
    used = shape + amount * 0.3 * torch.randn(rows, 10, generator=rng, dtype=torch.float64)
    true = hand(matrix_from_axis_angle(pose), shape)
    answer = matrix_from_axis_angle(pose + amount * 0.1 * torch.randn(rows, 16, 3, generator=rng, dtype=torch.float64))
    pred = hand(answer, used)
    place = torch.tensor([0.05, -0.02, 0.7], dtype=torch.float64)
    true_joints, pred_joints = hand.joints(true), hand.joints(pred)
    columns = {
        "pred_verts": pred.verts - pred_joints[:, :1], "pred_joints": pred_joints - pred_joints[:, :1],
        "true_verts": true.verts - true_joints[:, :1] + place, "true_joints": true_joints - true_joints[:, :1] + place,
        "true_root": place.expand(rows, 3), "true_shape": shape, "subject": torch.arange(rows) % 3, "index": torch.arange(rows),
        "mirrored": torch.arange(rows) % 2 == 1, "identity" if told else "pred_shape": used,
        "official_index": 7 * torch.arange(rows).flip(0)}
    if root:
        columns["pred_root"] = place + torch.tensor([0.0, 0.003, 0.004], dtype=torch.float64).expand(rows, 3)
    if rotations:
        columns["pred_rotations"] = answer
    if uv:
        columns |= _uv_columns(columns["true_joints"], 0.5 * amount)
    if uv == "alone":
        for key in {"pred_verts", "pred_joints", "pred_root", "pred_shape"} & columns.keys():
            del columns[key]
    arrays = {key: value.numpy().copy() for key, value in columns.items()}
    for key in ("true_verts", "true_joints", *(("true_joints_uv",) if uv else ())):
        arrays[key][:unlabelled] = np.nan
    meta = {"method": "toy", "run": note, "hand": {"name": hand.name, "sha256": hand.sha256},
            "told": "truth" if told else "nothing", "dataset": {"dataset": "dex_ycb", "split": "s1/test"}, **(meta or {})}
    with PredictionsWriter(path, meta) as writer:
        for start in range(0, rows, 5):
            piece = {key: value[start : start + 5] for key, value in arrays.items()}
            writer.append(name=[f"s/{i:03d}" for i in range(start, min(start + 5, rows))], **piece)
    return arrays


def _uv_columns(joints: torch.Tensor, off_px: float) -> dict[str, torch.Tensor]:
    """2D joints of the whole picture, predicted ones off by off_px to the right; K and crop_from_image of a crop of scale 2."""
    rows = len(joints)
    K = torch.tensor([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]], dtype=torch.float64).expand(rows, 3, 3)
    crop = torch.tensor([[2.0, 0, -200], [0, 2.0, -100], [0, 0, 1]], dtype=torch.float64).expand(rows, 3, 3)
    uv = project(joints, K)
    return {"K": crop @ K, "crop_from_image": crop, "true_joints_uv": uv, "pred_joints_uv": uv + torch.tensor([off_px, 0.0])}


def text_scores(path: Path, true_number: np.ndarray, true_mm: np.ndarray) -> dict[str, Measures]:
    """DexYCB's official numbers of a result file that has every one of these images."""
    numbers, joints = read_dexycb_text(path)
    place, missing = lines_of(numbers, true_number)
    assert not missing.any()
    return dexycb_hpe(joints[place], true_mm)
