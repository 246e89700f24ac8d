"""HO3D v3's calibration: where the cameras of a recording stand (specs/datasets.md 1.3).

    calibration/<recording>/calibration/cam_orders.txt           camera numbers, in the order of the files below
                                        trans_<i>.txt            4x4: points of the i-th camera -> the common frame
                                        cam_<i>_intrinsics.txt   "fx: ..., fy: ..., ppx: ..., ppy: ..."
A sequence is its recording's name and one digit, the camera's: ABF10 is camera 0 of ABF1. The spec does not say in which axes
trans_<i> is; the labels do: only in the right ones do the cameras see one wrist in one place (`poses`).
"""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.files import require_file

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
AGREE_M = 0.010  # between the places where two cameras' labels put a wrist
UNPACK = "unpack the archive again, or take the folder calibration out of dataset.root to do without"
Poses = dict[str, np.ndarray]


class Camera(NamedTuple):
    """common_from_camera (4,4), as the file has it, m · K (3,3) px."""

    common_from_camera: np.ndarray
    K: np.ndarray


def recording_of(sequence: str) -> str:
    """ABF10 -> ABF1: what the sequences of one recording share."""
    return sequence[:-1]


def read_calibration(root: str | Path, recording: str) -> dict[str, Camera]:
    """Camera digit -> calibration; empty where the recording has none. InputError: a broken or missing file."""
    folder = Path(root) / "calibration" / recording / "calibration"
    if not folder.is_dir():
        return {}
    order = re.findall(r"\w+", _text(folder / "cam_orders.txt"))
    if not order or len(set(order)) < len(order):
        raise InputError(f"{folder / 'cam_orders.txt'}: expected the cameras' numbers, each once, found {order}; {UNPACK}")
    return {camera: Camera(_pose(folder / f"trans_{i}.txt"), _intrinsics(folder / f"cam_{i}_intrinsics.txt"))
            for i, camera in enumerate(order)}


def _text(path: Path) -> str:
    try:
        return require_file(path, UNPACK).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a text file, found other bytes; {UNPACK}") from error


def _pose(path: Path) -> np.ndarray:
    values = _text(path).replace(",", " ").split()
    try:
        pose = np.array([float(value) for value in values]).reshape(4, 4)
        good = np.isfinite(pose).all() and (pose[3] == (0, 0, 0, 1)).all() and \
            np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-3) and np.linalg.det(pose[:3, :3]) > 0
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{path}: expected 4x4 numbers, a rotation and a translation, found {' '.join(values[:4]) or 'nothing'} "
                         f"({len(values)} values); {UNPACK}")
    return pose


def _intrinsics(path: Path) -> np.ndarray:
    text = _text(path)
    found = dict(re.findall(r"\b(fx|fy|ppx|ppy):\s*([-+.\deE]+)", text))
    try:
        fx, fy, cx, cy = (float(found[key]) for key in ("fx", "fy", "ppx", "ppy"))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: expected fx, fy, ppx and ppy, found {text.strip()[:60]!r}; {UNPACK}") from error
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def poses(root: str | Path, sequences: list[str], group: np.ndarray, frame: np.ndarray, wrist: np.ndarray,
          notes: list[str]) -> np.ndarray:
    """world_from_camera (sequences,4,4) in OpenCV axes, NaN where it is not known; of rows (n): group = number of the sequence,
    frame, wrist (n,3) in the camera, OpenCV, m. Adds to `notes` which calibrations are not used and why."""
    found = np.full((len(sequences), 4, 4), np.nan)
    members: dict[str, list[int]] = {}
    for number, sequence in enumerate(sequences):
        members.setdefault(recording_of(sequence), []).append(number)
    for recording, numbers in members.items():
        cameras = read_calibration(root, recording)
        numbers = [n for n in numbers if sequences[n][-1] in cameras]
        if not numbers:
            continue
        as_read = np.stack([cameras[sequences[n][-1]].common_from_camera for n in numbers])
        seen = [{int(f): wrist[row] for row, f in zip(np.flatnonzero(group == n), frame[group == n])} for n in numbers]
        offs = {axes: apart(pose, seen) for axes, pose in (("OpenCV", as_read), ("OpenGL", OPENGL @ as_read @ OPENGL))}
        best = min(offs, key=offs.get)
        if offs[best] <= AGREE_M:
            found[numbers] = as_read if best == "OpenCV" else OPENGL @ as_read @ OPENGL
        elif np.isfinite(offs[best]):
            notes.append(f"calibration/{recording} is not used: its cameras see the wrist {1e3 * offs[best]:.0f} mm apart")
    return found


def apart(pose: np.ndarray, seen: list[dict[int, np.ndarray]]) -> float:
    """Median over moments of how far apart cameras (c,4,4) put what they saw at a moment, m; infinite where no two saw one."""
    moments: dict[int, list[np.ndarray]] = {}
    for camera, points in zip(pose, seen):
        for moment, point in points.items():
            moments.setdefault(moment, []).append(camera[:3, :3] @ point + camera[:3, 3])
    gaps = [np.ptp(np.stack(points), axis=0).max() for points in moments.values() if len(points) > 1]
    return float(np.median(gaps)) if gaps else np.inf
