"""`run.py fit`: joints or vertices of hands in 3D -> pose, shape and position of the hand model (its parameters).

From a start in closed form (src/fit_start.py) the solver (src/solver.py) meets vertices, or joints where there are none: first a
sixth of the vertices, then all. The pose prior weighs little: it decides only what joints cannot tell, such as a bone's twist. A
left hand is fitted as its mirror image: its parameters are those of the mirrored right hand (equal shape, mirrored rotations),
which MANO's own left file is only after shapedirs=flip_x. Rows that are not finite are left out, and counted.
"""
import io
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from src.fit_input import Hands, read_hands
from src.fit_start import start_from_joints
from src.identity import read_identity
from src.solver import HandState, Observations, Solved, solve
from src.solver_data import SolverOptions
from utils.errors import InputError
from utils.files import write_bytes
from utils.hand import HandModel, mirror_axis_angle, mirror_points, mirror_rotations
from utils.joints import T21_FROM_H21
from utils.rotation import axis_angle_from_matrix
from utils.strict import Strict

log = logging.getLogger(__name__)
FORMAT = "hand-parameters-1"
_BIG_ERROR_MM = 10.0  # an error that no noise explains: another order of joints, another hand
_COARSE = {"tolerance": 1e-2}
_FINE = {"tolerance": 1e-2, "damping": 1e-5, "iterations": 5}
_EVERY = 6  # of the vertices, first


class FitSolver(SolverOptions):
    """The solver for exact 3D targets."""

    iterations: int = Field(60, ge=1, description="at most this many steps per hand")
    tolerance: float = Field(1e-4, ge=0, description="done when an accepted step lowers the objective by less than this share")
    pose_prior: float = Field(0.05, ge=0, description="weight of the Gaussian in the hand's pose space; 1 = its own")


class FitOptions(Strict):
    """What is fitted, and how (`fit:` of an option file, or fit.key=value)."""

    input: str = Field("", description=".npz, .npy, .json, .ply or a predictions file: joints (n,21,3) or verts (n,778,3)")
    out: str = Field("", description="folder of <stem of the input>.npz; empty = the run's own")
    units: Literal["m", "mm"] = Field("m", description="of the input")
    order: Literal["T21", "H21"] = Field("T21", description="of the input's joints (utils/joints.py)")
    tips: Literal["manopth", "smplx", "freihand", "ho3d", "handoccnet"] = Field("manopth", description="fingertips of the joints")
    side: Literal["right", "left"] = Field("right", description="of all hands in the input; a predictions file's are right")
    use: Literal["auto", "verts", "joints"] = Field("auto", description="what to fit where there is both; auto = the vertices")
    shape: Literal["each", "shared", "held", "zero"] = Field(
        "each", description="free for each hand; one for all rows (for each subject of a predictions file); held at that of "
                            "`identity`; or zero")
    identity: str | None = Field(None, description="identity file of shape=held")
    sigma_mm: float = Field(0.5, gt=0, description="standard deviation of a coordinate, against which shape and pose prior weigh")
    solver: FitSolver = FitSolver()


def fit(options: FitOptions, folder: str | Path, *, hand: HandModel, device: torch.device) -> str:
    """Write <folder>/<stem>.npz and return what to say of it. hand: the right one.

    The file, rows as in the input, metres, NaN where a row was left out: rotations (n,16,3,3) · pose (n,48): global axis-angle,
    then 45 finger numbers with the mean in them · pca (n,45) without it · shape (n,10) · trans (n,3): added to the model's
    vertices and joints · root (n,3) wrist · verts (n,778,3) · joints (n,21,3) T21 · error_mm (n) · converged (n) bool, texts
    hand, hand_sha256, side, format. Raises InputError: see read_hands; an identity without shape=held, or the reverse.
    """
    if not options.input:
        raise InputError("fit.input: no file named; `run.py fit input=hands.npz`: joints (n,21,3) or verts (n,778,3)")
    if (options.shape == "held") != (options.identity is not None):
        raise InputError(f"fit.shape={options.shape} and fit.identity={options.identity}: an identity file goes with held only")
    mirrored = options.side == "left"
    hands = read_hands(options.input, options.units, options.order, mirrored, options.use)
    shape = torch.zeros(10) if options.identity is None else torch.from_numpy(read_identity(options.identity, hand).shape)
    hand = hand.to(device).with_tips(options.tips)
    rows = np.nonzero(hands.finite)[0]
    solved = fit_hands(hand, hands, rows, options, shape)
    columns = _columns(hand, solved, hands, rows, mirrored)
    path = Path(folder) / f"{Path(options.input).stem}.npz"
    _write(path, columns | {"hand": np.array(hand.name), "hand_sha256": np.array(hand.sha256), "side": np.array(options.side),
                            "format": np.array(FORMAT)}, options.input)
    return _text(columns, hands, path)


def fit_hands(hand: HandModel, hands: Hands, rows: np.ndarray, options: FitOptions, shape: Tensor) -> Solved:
    """The chosen rows, fitted; shape (10): the one held, or a free one's first."""
    to = {"device": hand.weights.device, "dtype": hand.weights.dtype}
    verts, joints = (None if x is None else torch.from_numpy(x[rows]).to(**to) for x in (hands.verts, hands.joints))
    person = torch.from_numpy(np.unique(hands.subject[rows], return_inverse=True)[1])
    free = {"each": "each", "shared": "person"}.get(options.shape, "no")
    how = {"free_shape": free, "person": person.to(to["device"]) if free == "person" else None}
    shape, solver = shape.to(**to).expand(len(rows), 10), options.solver
    if verts is None:
        seen = Observations(points=joints, sigma_point_m=options.sigma_mm / 1000)
        return solve(hand, seen, start_from_joints(hand, joints, shape), solver, **how)
    near = torch.cat((hand.regress(verts), verts[:, hand.tips["manopth"]]), 1)[:, list(T21_FROM_H21)]  # chain joints, to some mm
    some = torch.zeros(verts.shape[:2], **to)
    some[:, ::_EVERY] = 1
    seen = Observations(verts=verts, vert_weight=some, sigma_vert_m=options.sigma_mm / 1000)
    first = solve(hand, seen, start_from_joints(hand, near, shape), solver.model_copy(update=_COARSE), **how)
    seen = Observations(verts=verts, sigma_vert_m=seen.sigma_vert_m)
    last = solve(hand, seen, first.state, solver.model_copy(update=_FINE), **how)
    last.converged.logical_and_(first.converged)
    return last


def _columns(hand: HandModel, solved: Solved, hands: Hands, rows: np.ndarray, mirrored: bool) -> dict[str, np.ndarray]:
    """The file's columns, in the input's rows and of its side."""
    state = solved.state
    verts, joints = (torch.cat(x) for x in zip(*(_placed(hand, state.rows(s)) for s in torch.arange(len(rows)).split(512))))
    trans = state.root - hand.shaped(state.shape).rest_joints[:, 0]
    pose = axis_angle_from_matrix(state.rotations).flatten(1)
    target, found = (hands.joints, joints) if hands.verts is None else (hands.verts, verts)
    error = 1000 * np.linalg.norm(found.double().cpu().numpy() - target[rows], axis=-1).mean(1)
    columns = {"rotations": state.rotations, "pose": pose, "shape": state.shape, "trans": trans, "root": state.root,
               "verts": verts, "joints": joints, "pca": hand.pca_from_axis_angle(pose[:, 3:]), "converged": solved.converged}
    if mirrored:
        points = {name: mirror_points(columns[name]) for name in ("trans", "root", "verts", "joints")}
        columns |= points | {"rotations": mirror_rotations(state.rotations), "pose": mirror_axis_angle(pose)}
    columns = {name: value.cpu().numpy() for name, value in columns.items()} | {"error_mm": error.astype(np.float32)}
    out = {}
    for name, value in columns.items():
        out[name] = np.full((len(hands.finite), *value.shape[1:]), False if value.dtype == bool else np.nan, value.dtype)
        out[name][rows] = value
    return out


def _placed(hand: HandModel, state: HandState) -> tuple[Tensor, Tensor]:
    """verts (n,778,3) and T21 joints (n,21,3) in the world."""
    posed = hand(state.rotations, state.shape)
    posed = posed.moved(state.root - posed.chain[:, 0])
    return posed.verts, hand.joints(posed)


def _write(path: Path, columns: dict[str, np.ndarray], source: str) -> None:
    if path.resolve() == Path(source).resolve():
        raise InputError(f"{path}: the result would replace the input; name another folder with fit.out")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    write_bytes(path, buffer.getvalue())


def _text(columns: dict[str, np.ndarray], hands: Hands, path: Path) -> str:
    n, fitted, converged = len(hands.finite), int(hands.finite.sum()), int(columns["converged"].sum())
    what = "joints" if hands.verts is None else "vertices"
    error = columns["error_mm"][hands.finite].astype(np.float64)
    parts = [f"{n} hands: {converged} fitted to their {what}"]
    if n > fitted:
        parts.append(f"{n - fitted} left out (not finite; first: row {int(np.argmin(hands.finite))})")
    if fitted > converged:
        parts.append(f"{fitted - converged} did not converge and keep their start")
    if np.median(error) > _BIG_ERROR_MM:
        log.warning("half of the hands are over %.0f mm off: is fit.order, fit.side or the hand another one?", _BIG_ERROR_MM)
    return f"{', '.join(parts)}; mean error {error.mean():.3f} mm, largest {error.max():.3f} mm -> {path}"
