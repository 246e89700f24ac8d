"""What a joint fit looks at: keypoints, cameras and first poses of chosen rows of a predictions file, singly or moment by moment.

Keypoints are of another network as a rule (pose2d), so they may come from a file of their own; frames are matched by name, which
leaves crops and row orders free. Everything is of the whole picture, mirrored where the row is. A moment is all chosen rows of
one `instant`: the cameras of a calibrated rig that saw one pose.
"""
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from src.joint_fit_options import FitOptions
from src.root import fault_line, solve_root
from src.solver_data import HandState, Observations
from utils.camera import project
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions, read_predictions

log = logging.getLogger(__name__)
ANGLE = 0.05  # rad: rays to one keypoint that differ by less do not say where it is


@dataclass(frozen=True)
class Frames:
    """n rows. names (n) · uv (n,21,2) px, weight (n,21) over the square of sigma_px (n), K (n,3,3), all of the whole picture ·
    rotations (n,16,3,3) and shapes (n,10) that a network predicted (zeros where it predicts no shape) · mirrored (n) ·
    world_from_camera (n,4,4) and instant (n) where the file has them."""

    names: np.ndarray
    uv: np.ndarray
    weight: np.ndarray
    sigma_px: np.ndarray
    K: np.ndarray
    rotations: np.ndarray
    shapes: np.ndarray
    mirrored: np.ndarray
    world_from_camera: np.ndarray | None = None
    instant: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, which: np.ndarray) -> Self:
        """The chosen rows."""
        return replace(self, **{f.name: v[which] for f in fields(self) if (v := getattr(self, f.name)) is not None})


def keypoints_of(predictions: Predictions, keypoints: str | None) -> tuple[Predictions, dict[str, int] | None]:
    """The file that has the keypoints, and where in it each name is (None: the same rows)."""
    if not keypoints:
        if "pred_joints_uv" not in predictions:
            raise InputError(f"{predictions.path}: no 2D keypoints (pred_joints_uv) to fit to; name a file of a 2D network's "
                             "predictions of the same frames by calibrate.keypoints")
        return predictions, None
    file = read_predictions(keypoints)
    file.require("pred_joints_uv")
    return file, {name: row for row, name in enumerate(file["name"].tolist())}


def frames_of(predictions: Predictions, rows: np.ndarray, keypoints: str | None, fit: FitOptions) -> Frames:
    """The chosen rows of a predictions file. Raises InputError: no keypoints, no poses to start from, frames that the keypoints'
    file lacks, K that cannot be inverted."""
    predictions.require("pred_rotations", "K", "crop_from_image")
    source, places = keypoints_of(predictions, keypoints)
    names = np.asarray(predictions["name"])[rows]
    theirs = rows
    if places is not None:
        if missing := [name for name in names.tolist() if name not in places]:
            raise InputError(f"{source.path}: calibrate.keypoints has no row of {missing[0]} and {len(missing) - 1} others of "
                             f"the {len(names)} frames chosen from {predictions.path}; predict keypoints of the same split")
        theirs = np.array([places[name] for name in names.tolist()])
    mirrored = np.asarray(predictions["mirrored"])[rows]
    if (other := np.asarray(source["mirrored"])[theirs] != mirrored).any():
        raise InputError(f"{source.path}: {names[other][0]} is mirrored differently than in {predictions.path}; predict both "
                         "with the same dataset.hands")
    uv = np.asarray(source["pred_joints_uv"][theirs], np.float64)
    confidence = source.get("pred_uv_confidence")
    weight = np.ones(uv.shape[:2]) if confidence is None else np.asarray(confidence[theirs], np.float64)
    weight = np.where(np.isfinite(uv).all(-1) & np.isfinite(weight), weight.clip(0), 0) ** fit.confidence_power
    crop = np.asarray(source["crop_from_image"][theirs], np.float64)
    pixel = 1 / np.sqrt(np.maximum(np.abs(np.linalg.det(crop[:, :2, :2])), 1e-12))  # of their crop, in pixels of the picture
    if (empty := (weight > 0).sum(1) < 4).all():
        raise InputError(f"{source.path}: none of the {len(empty)} chosen frames has four keypoints of positive confidence; "
                         "predict again with a sound checkpoint")
    pose, instant = predictions.get("world_from_camera"), predictions.get("instant")
    shapes = predictions.get("pred_shape")
    return Frames(
        names, uv, weight, fit.keypoint_px * pixel, _K_whole(predictions, rows, names),
        np.asarray(predictions["pred_rotations"][rows], np.float64),
        np.zeros((len(rows), 10)) if shapes is None else np.asarray(shapes[rows], np.float64), mirrored,
        None if pose is None else np.asarray(pose[rows], np.float64), None if instant is None else np.asarray(instant)[rows])


def _K_whole(predictions: Predictions, rows: np.ndarray, names: np.ndarray) -> np.ndarray:
    K, crop = (np.asarray(predictions[key][rows], np.float64) for key in ("K", "crop_from_image"))
    for matrix in (K, crop):
        good = np.isfinite(matrix).all((1, 2))
        good[good] &= np.abs(np.linalg.det(matrix[good])) > 1e-12
        if not good.all():
            raise InputError(f"{predictions.path}: K or crop_from_image of {names[~good][0]} cannot be inverted ({(~good).sum()} "
                             "such rows); predict again with a sound camera")
    return np.linalg.inv(crop) @ K


def moments_of(frames: Frames, order: Sequence[int], cameras: int) -> list[list[int]]:
    """Rows of every moment that at least two cameras saw, in the order given, at most `cameras` of each."""
    groups: dict[int, list[int]] = {}
    for row in order:
        known = np.isfinite(frames.world_from_camera[row]).all() and (frames.weight[row] > 0).sum() >= 4
        if known and len(group := groups.setdefault(int(frames.instant[row]), [])) < cameras:
            group.append(int(row))
    return [group for group in groups.values() if len(group) > 1]


def observe(frames: Frames, groups: Sequence[Sequence[int]]) -> Observations:
    """One frame of the solver per group of rows; cameras beyond a group's own have weight 0."""
    sigma_px = float(np.median(frames.sigma_px))
    views = max(map(len, groups))
    index = np.array([[*group, *[group[0]] * (views - len(group))] for group in groups])
    weight = frames.weight[index] * (sigma_px / frames.sigma_px[index])[..., None] ** 2
    weight[np.arange(views)[None] >= np.array([len(group) for group in groups])[:, None]] = 0
    several = views > 1
    camera = torch.from_numpy(np.linalg.inv(frames.world_from_camera[index])[..., :3, :]) if several else None
    return Observations(uv=torch.from_numpy(frames.uv[index]), uv_weight=torch.from_numpy(weight),
                        K=torch.from_numpy(frames.K[index]), camera_from_world=camera, sigma_px=sigma_px)


def picture_start(hand: HandModel, frames: Frames, shapes: Tensor) -> tuple[HandState, np.ndarray]:
    """First pose of every picture in its camera, as the network predicted it, its place by the keypoints, and which (n) have one.
    shapes (n,10)."""
    rotations = torch.from_numpy(frames.rotations).to(hand.weights)
    joints = hand.joints(hand(rotations, shapes))
    found = solve_root(joints - joints[:, :1], *(torch.from_numpy(x) for x in (frames.uv, frames.K, frames.weight)))
    if line := fault_line(found.fault):
        log.warning("calibrate: %s", line)
    good = found.valid & torch.isfinite(rotations).flatten(1).all(1)
    return HandState(rotations, found.root, shapes), good.numpy()


def misfit(hand: HandModel, seen: Observations, state: HandState) -> np.ndarray:
    """(n) median distance of the measured keypoints from a fitted hand, each in its own standard deviations."""
    joints = hand.joints(hand(state.rotations, state.shape))
    joints = (joints - joints[:, :1] + state.root[:, None])[:, None]
    if seen.camera_from_world is not None:
        joints = joints @ seen.camera_from_world[..., :3].transpose(-1, -2) + seen.camera_from_world[..., None, :, 3]
    far = torch.linalg.vector_norm(project(joints, seen.K) - seen.uv, dim=-1) * seen.uv_weight.sqrt() / seen.sigma_px
    far = torch.where(joints[..., 2] > 0, far, torch.inf)
    return torch.where(seen.uv_weight > 0, far, torch.nan).flatten(1).nanmedian(1).values.numpy()


def world_start(hand: HandModel, frames: Frames, groups: Sequence[Sequence[int]], shapes: Tensor) -> HandState:
    """First pose of every moment in the world: its wrist by rays, and of its cameras' predicted poses the one whose joints lie
    nearest to the triangulated ones. shapes (moments,10)."""
    rotations, roots = [], []
    for group, shape in zip(groups, shapes):
        pose = frames.world_from_camera[group]
        points, known = triangulate(frames.uv[group], frames.weight[group], frames.K[group], pose)
        turned = torch.from_numpy(frames.rotations[group]).clone()
        turned[:, 0] = torch.from_numpy(pose[:, :3, :3]) @ turned[:, 0]
        turned = turned.to(hand.weights)
        joints = hand.joints(hand(turned, shape.expand(len(group), 10))).double().numpy()
        # The wrist itself may not be known: the joints' common offset is as good.
        offsets = np.median((points - joints)[:, known], axis=1) if known.any() else np.full((len(group), 3), np.nan)
        apart = np.linalg.norm(points - joints - offsets[:, None], axis=-1)
        best = int(np.argmin(np.median(apart[:, known], axis=1))) if known.any() else 0
        rotations.append(turned[best])
        roots.append(torch.from_numpy(joints[best, 0] + offsets[best]))
    return HandState(torch.stack(rotations), torch.stack(roots).to(hand.weights), shapes.to(hand.weights))


def triangulate(uv: np.ndarray, weight: np.ndarray, K: np.ndarray, world_from_camera: np.ndarray,
                ) -> tuple[np.ndarray, np.ndarray]:
    """Points (k,3) nearest to the rays of v cameras, and which are known (k): rays that are parallel leave theirs open.

    uv (v,k,2) px · weight (v,k), 0 = not seen · K (v,3,3) · world_from_camera (v,4,4).
    """
    rays = np.concatenate((uv, np.ones_like(uv[..., :1])), -1) @ np.linalg.inv(K).swapaxes(1, 2)
    rays = np.where(weight[..., None] > 0, rays, 1.0) @ world_from_camera[:, :3, :3].swapaxes(1, 2)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    across = (np.eye(3) - rays[..., None] * rays[..., None, :]) * weight[..., None, None]
    normal = across.sum(0)
    right = np.einsum("vkij,vj->ki", across, world_from_camera[:, :3, 3])
    total = np.maximum(weight.sum(0), 1e-12)
    known = np.linalg.eigvalsh(normal)[:, 0] > np.sin(ANGLE / 2)**2 * total
    normal[~known] = np.eye(3)
    return np.linalg.solve(normal, right[..., None])[..., 0], known
