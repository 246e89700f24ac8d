"""The official evaluations of FreiHAND, HO3D v2 and v3, fed piece by piece (specs/datasets.md 2.1, 2.3, 2.4).

Everything is in the protocol's own frame, joint order and unit: metres, absolute in the camera, FreiHAND in OpenCV axes and T21,
HO3D in OpenGL axes and H21. `OfficialScores.values` has the names, order and units of scores.txt: means in centimetres, AUC and
F-scores as shares. `ours` stands apart: the same Procrustes means and AUCs with proper rotations only, where the official ones
accept reflections. Distances are kept (a median needs them all): 12 kB a sample; nothing else grows with the number of samples.
"""
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from utils import metrics
from utils.metrics import Measures

JOINTS, VERTS = 21, 778
LOW_M, HIGH_M = 0.0, 0.05
F_THRESHOLDS_M = {"5": 0.005, "15": 0.015}
CM = 100.0


class Protocol(NamedTuple):
    """What a dataset's evaluation asks for.

    count: entries of its evaluation list. order: of joints, T21 or H21 (utils/joints.py). frame: opencv or opengl.
    procrustes, scaled: names of the aligned joints in scores.txt; scaled is "" where there is no scale-translation alignment,
    whose length is that of the wrist to joint `reference`. labels: where the true labels are published.
    """

    name: str
    title: str
    count: int
    order: str
    frame: str
    procrustes: str
    scaled: str
    reference: int
    labels: str

    @property
    def axes(self) -> Float[np.ndarray, "3"]:
        """Signs between the OpenCV camera and this protocol's: points = axes * OpenCV points, and back."""
        return np.array([1.0, -1.0, -1.0] if self.frame == "opengl" else [1.0, 1.0, 1.0])

    @property
    def joint_sets(self) -> tuple[str, ...]:
        """Names of the joints' measures, in the order of scores.txt."""
        return tuple(name for name in ("xyz", self.procrustes, self.scaled) if name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of scores.txt, in its order."""
        means = [f"{key}_{kind}" for key in (*self.joint_sets, *MESH_SETS) for kind in ("mean3d", "auc3d")]
        return (*means, *(f"{kind}_{mm}" for mm in F_THRESHOLDS_M for kind in F_KINDS))


MESH_SETS = ("mesh", "mesh_al")
F_KINDS = ("f_score", "f_al_score")
_HO3D = "the HO3D evaluation labels are released with the local eval.py on the ho3d GitHub repository since November 2024"
PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("freihand", "FreiHAND", 3960, "T21", "opencv", "xyz_al", "", 0,
             "the FreiHAND evaluation labels are in FreiHAND_pub_v2_eval.zip on the dataset's project page since January 2022"),
    Protocol("ho3d_v2", "HO3D v2", 11524, "H21", "opengl", "xyz_procrustes_al", "xyz_scale_trans_al", 4, _HO3D),
    Protocol("ho3d_v3", "HO3D v3", 20137, "H21", "opengl", "xyz_procrustes_al", "xyz_scale_trans_al", 4, _HO3D),
)}


class Piece(NamedTuple):
    """Of some samples: distances (b,k) m by set, F (b,) by name, and sum and first-threshold counts of our own alignments."""

    distances: dict[str, Float[np.ndarray, "b k"]]
    f_scores: dict[str, Float[np.ndarray, "b"]]
    proper: dict[str, tuple[float, Int[np.ndarray, "t"], int]]


class OfficialScores(NamedTuple):
    """values: by the names of scores.txt (cm, shares). measures: of each set, metres. ours: proper alignments, cm and shares."""

    values: dict[str, float]
    measures: dict[str, Measures]
    ours: dict[str, float]
    n: int

    @property
    def text(self) -> str:
        """The text of scores.txt."""
        return "".join(f"{name}: {value:f}\n" for name, value in self.values.items())


class Official:
    """Collects predictions and truths in any pieces: `add(...)`, then `result()`; in threads `measure`, then `join` in order."""

    def __init__(self, protocol: Protocol):
        self.protocol = protocol
        self._pieces: list[Piece] = []

    def add(self, pred_xyz: Float[np.ndarray, "b 21 3"], true_xyz: Float[np.ndarray, "b 21 3"],
            pred_verts: Float[np.ndarray, "b v 3"] | None = None, true_verts: Float[np.ndarray, "b 778 3"] | None = None) -> None:
        """Some more samples, in the protocol's frame, order and metres; without vertices there is no line of the mesh.

        Another vertex count than the truth's is measured as the official programs do: see `_aligned_by_joints`.
        """
        self.join(self.measure(pred_xyz, true_xyz, pred_verts, true_verts))

    def measure(self, pred_xyz: np.ndarray, true_xyz: np.ndarray, pred_verts: np.ndarray | None = None,
                true_verts: np.ndarray | None = None) -> Piece:
        """The piece that `add` would join; touches nothing, so that threads may share it."""
        pred_xyz, true_xyz = np.asarray(pred_xyz, np.float64), np.asarray(true_xyz, np.float64)
        aligned, proper = _both_alignments(pred_xyz, true_xyz)
        found = {"xyz": pred_xyz, self.protocol.procrustes: aligned}
        if self.protocol.scaled:
            found[self.protocol.scaled] = metrics.scale_and_translation(pred_xyz, true_xyz, self.protocol.reference)
        out = Piece({key: metrics.distances(value, true_xyz) for key, value in found.items()}, {}, {})
        out.proper["xyz"] = _proper(proper, true_xyz, out.distances[self.protocol.procrustes])
        if pred_verts is not None and true_verts is not None:
            _measure_mesh(out, pred_xyz, true_xyz, np.asarray(pred_verts, np.float64), np.asarray(true_verts, np.float64))
        return out

    def join(self, piece: Piece) -> None:
        """Takes in a measured piece. Raises ValueError where it has other kinds of measures than those before."""
        if self._pieces and [list(part) for part in self._pieces[0]] != [list(part) for part in piece]:
            raise ValueError("all samples must have a mesh of the same kind, or none")
        self._pieces.append(piece)

    def result(self) -> OfficialScores:
        """The scores of all samples so far. Raises ValueError where there are none."""
        if not self._pieces or not (n := sum(len(piece.distances["xyz"]) for piece in self._pieces)):
            raise ValueError("there is no sample to score")
        first = self._pieces[0]
        found = {key: metrics.measures(np.concatenate([piece.distances[key] for piece in self._pieces]), LOW_M, HIGH_M)
                 for key in first.distances}
        values = {f"{key}_{kind}": value for key, measure in found.items()
                  for kind, value in (("mean3d", CM * measure.mean), ("auc3d", measure.auc))}
        for key in first.f_scores:
            values[key] = float(np.mean(np.concatenate([piece.f_scores[key] for piece in self._pieces])))
        if first.f_scores and "mesh" not in found:  # foreign vertices: the official programs print a failure of every mesh line
            values |= {f"{key}_{kind}": value for key in MESH_SETS for kind, value in (("mean3d", -1.0 * CM), ("auc3d", -1.0))}
        values = {name: values[name] for name in self.protocol.names if name in values}
        return OfficialScores(values, found, self._ours(), n)

    def _ours(self) -> dict[str, float]:
        """Mean (cm) and AUC after Procrustes with proper rotations."""
        out = {}
        for key in self._pieces[0].proper:
            sums, counts, points = zip(*(piece.proper[key] for piece in self._pieces))
            pck = np.cumsum(np.sum(counts, 0)[: metrics.STEPS]) / sum(points)
            thresholds = metrics.thresholds_of(LOW_M, HIGH_M)
            out[f"{key}_proper_al_mean3d"] = CM * sum(sums) / sum(points)
            out[f"{key}_proper_al_auc3d"] = float(np.trapezoid(pck, thresholds) / (HIGH_M - LOW_M))
        return out


def _both_alignments(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The official alignment; and the rows that it reflects, aligned by proper rotations (the other rows agree)."""
    found = metrics.similarity(pred, true, reflections=True)
    rows = np.flatnonzero(np.linalg.det(found.rotation) < 0)
    return found.aligned(pred), (rows, metrics.procrustes(pred[rows], true[rows], reflections=False))


def _proper(proper: tuple[np.ndarray, np.ndarray], true: np.ndarray, official: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Sum, first-threshold counts and number of the distances after the proper alignment."""
    rows, aligned = proper
    errors = official
    if len(rows):
        errors = official.copy()
        errors[rows] = metrics.distances(aligned, true[rows])
    index = metrics.first_threshold(errors, metrics.thresholds_of(LOW_M, HIGH_M))
    return float(errors.sum()), np.bincount(index.ravel(), minlength=metrics.STEPS + 1), errors.size


def _measure_mesh(out: Piece, pred_xyz: np.ndarray, true_xyz: np.ndarray, pred: np.ndarray, true: np.ndarray) -> None:
    """Adds distances and F-scores of vertices; of a foreign number of vertices F-scores only."""
    if pred.shape[1] == true.shape[1]:
        aligned, proper = _both_alignments(pred, true)
        out.distances["mesh"], out.distances["mesh_al"] = metrics.distances(pred, true), metrics.distances(aligned, true)
        out.proper["mesh"] = _proper(proper, true, out.distances["mesh_al"])
    else:
        aligned = _aligned_by_joints(pred, pred_xyz, true_xyz)
    for kind, points in zip(F_KINDS, (pred, aligned)):
        found = metrics.f_scores(points, true, tuple(F_THRESHOLDS_M.values()))
        for i, mm in enumerate(F_THRESHOLDS_M):
            out.f_scores[f"{kind}_{mm}"] = found[:, i, 0]


def _aligned_by_joints(verts: np.ndarray, pred_xyz: np.ndarray, true_xyz: np.ndarray) -> np.ndarray:
    """Vertices moved by the joints' alignment as the official programs do, who leave out the division by the prediction's norm.

    The scale is therefore wrong (a hand comes out far too small): only good for reproducing their numbers.
    """
    found = metrics.similarity(pred_xyz, true_xyz, reflections=True)
    middle = verts.mean(1, keepdims=True)
    turned = (verts - middle) @ (found.rotation * (found.trace * found.true_norm)).transpose(0, 2, 1)
    return turned + (found.true_mean - found.pred_mean) + middle
