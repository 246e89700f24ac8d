"""Errors of predicted hands, one value per sample: distances, alignments, PCK and AUC, F-scores (specs/datasets.md 2.1).

Everything is float64, vectorised over samples, and unit-free: what goes in in millimetres comes out in millimetres. Averages are
taken over samples, never over batches. Two Procrustes alignments circulate and differ: the official evaluations of FreiHAND, HO3D
and DexYCB accept a *reflection* as rotation (`reflections=True`), most papers' code does not. The headline PA numbers here are
without reflection; the official protocols (utils/protocols.py) use the other one. AUC is the area under the PCK curve over 100
thresholds from 0 to 50 mm, both ends included; a perfect *aligned* prediction scores 0.99495, since the 1e-8 of the alignment
leaves an error above zero. F-scores are point to point, with a strict threshold. Where an error lies on a threshold (0, or labels
in whole millimetres) its last bit counts, so sums, divisions and products stand in the official programs' order.
"""
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

STEPS = 100
NORM_FLOOR = 1e-8  # added to both norms by the official alignment; kept, since it is visible in AUC and PCK(0)


class Measures(NamedTuple):
    """What the official programs print of one set of distances; mean and median in the distances' unit."""

    mean: float
    median: float
    auc: float
    pck: np.ndarray
    thresholds: np.ndarray


def distances(pred: Float[np.ndarray, "n k 3"], true: Float[np.ndarray, "n k 3"]) -> Float[np.ndarray, "n k"]:
    """Euclidean distance of every point to its counterpart."""
    return _lengths(pred - true)


def _lengths(vectors: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s"]:
    """x x + y y + z z in this order, each step rounded: einsum and norm may fuse or reorder them."""
    with np.errstate(over="ignore"):  # infinite, which is refused by those who ask
        squares = vectors * vectors
        total = squares[..., 0] + squares[..., 1]
        total += squares[..., 2]
    return np.sqrt(total, out=total)


class Similarity(NamedTuple):
    """The parts of an alignment of n point sets: rotation (n,3,3), the rest (n,1,1), means (n,1,3)."""

    rotation: np.ndarray
    trace: np.ndarray
    true_norm: np.ndarray
    pred_norm: np.ndarray
    true_mean: np.ndarray
    pred_mean: np.ndarray

    def aligned(self, pred: Float[np.ndarray, "n k 3"]) -> Float[np.ndarray, "n k 3"]:
        """The points that it was found for, on the truth."""
        turned = (pred - self.pred_mean) / self.pred_norm @ self.rotation.transpose(0, 2, 1)
        return turned * self.trace * self.true_norm + self.true_mean


def similarity(pred: Float[np.ndarray, "n k 3"], true: Float[np.ndarray, "n k 3"], reflections: bool) -> Similarity:
    """Each sample's map of the official `align_w_scale`: aligned = (pred - mean) / pred_norm R^T trace true_norm + true mean.

    With `reflections` a mirrored hand fits perfectly, as in the official evaluations; without, the rotation is proper.
    """
    true_mean, pred_mean = true.mean(1, keepdims=True), pred.mean(1, keepdims=True)
    true_c, pred_c = true - true_mean, pred - pred_mean
    true_norm = np.sqrt(np.einsum("nkc,nkc->n", true_c, true_c))[:, None, None] + NORM_FLOOR
    pred_norm = np.sqrt(np.einsum("nkc,nkc->n", pred_c, pred_c))[:, None, None] + NORM_FLOOR
    u, s, vt = np.linalg.svd((true_c / true_norm).transpose(0, 2, 1) @ (pred_c / pred_norm))
    if not reflections:
        sign = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)
        u[:, :, 2] *= sign[:, None]
        s[:, 2] *= sign
    return Similarity(u @ vt, s.sum(1)[:, None, None], true_norm, pred_norm, true_mean, pred_mean)


def procrustes(
    pred: Float[np.ndarray, "n k 3"], true: Float[np.ndarray, "n k 3"], reflections: bool
) -> Float[np.ndarray, "n k 3"]:
    """`pred` moved, turned and scaled onto `true`, each sample by itself; `reflections` as in `similarity`."""
    return similarity(pred, true, reflections).aligned(pred)


def scale_and_translation(
    pred: Float[np.ndarray, "n k 3"], true: Float[np.ndarray, "n k 3"], reference: int, root: int = 0
) -> Float[np.ndarray, "n k 3"]:
    """`pred` scaled so that root to `reference` is as long as the truth's, then moved root on root (HO3D's second alignment).

    A prediction of length zero is not divided by it, and so comes out as many times smaller as the truth's length in metres.
    """
    length = _lengths(pred[:, reference] - pred[:, root])[:, None, None]
    wanted = _lengths(true[:, reference] - true[:, root])[:, None, None]
    scaled = pred / np.where(length > 0, length, 1.0) * wanted
    return scaled - scaled[:, root : root + 1] + true[:, root : root + 1]


def thresholds_of(low: float, high: float, steps: int = STEPS) -> Float[np.ndarray, "steps"]:
    """The thresholds of a PCK curve, both ends included."""
    return np.linspace(low, high, steps)


def first_threshold(values: Float[np.ndarray, "*s"], thresholds: Float[np.ndarray, "t"]) -> Int[np.ndarray, "*s"]:
    """Index of the first threshold that is >= value (t where there is none): value <= thresholds[i] exactly for i >= it."""
    return np.searchsorted(thresholds, values, side="left")


def pck_from_index(index: Int[np.ndarray, "*s"], steps: int) -> Float[np.ndarray, "steps"]:
    """Share of values within each threshold, from `first_threshold`."""
    return np.cumsum(np.bincount(index.ravel(), minlength=steps + 1)[:steps]) / index.size


def auc_from_index(index: Int[np.ndarray, "n k"], steps: int) -> Float[np.ndarray, "n"]:
    """Each sample's share of the area under the PCK curve (trapezoid rule, uniform thresholds); its mean is the set's AUC.

    PCK is linear in samples, so the area is a per-sample metric and can be bootstrapped like any other.
    """
    area = (steps - 1 - np.arange(steps + 1) + 0.5) / (steps - 1)
    area[0], area[steps] = 1.0, 0.0
    return area[index].mean(1)


def measures(errors: Float[np.ndarray, "n k"], low: float, high: float, steps: int = STEPS) -> Measures:
    """Mean over points of mean and median over samples, AUC and PCK, as the official `EvalUtil` gives them."""
    thresholds = thresholds_of(low, high, steps)
    pck = pck_from_index(first_threshold(errors, thresholds), steps)
    auc = float(np.trapezoid(pck, thresholds) / (high - low))
    return Measures(float(errors.mean()), float(np.median(errors, axis=0).mean()), auc, pck, thresholds)


def f_scores(
    pred: Float[np.ndarray, "n p 3"], true: Float[np.ndarray, "n q 3"], thresholds: tuple[float, ...]
) -> Float[np.ndarray, "n t 3"]:
    """(F, precision, recall) at each threshold: shares of points whose nearest point of the other set is closer than it.

    Precision here is the truth's share, recall the prediction's, as in the official programs (F does not care). Every pair of
    points is looked at by one small float32 matrix product; the few whose answer rounding could change are decided in float64.
    """
    centre = true.mean(1, keepdims=True)
    a, b = (pred - centre).astype(np.float32), (true - centre).astype(np.float32)
    a_squared, b_squared = np.einsum("nkc,nkc->nk", a, a), np.einsum("nkc,nkc->nk", b, b)
    to_pred, to_true = _nearest_squared(a, b, a_squared, b_squared)
    reach = np.sqrt(a_squared.max(1)) + np.sqrt(b_squared.max(1))
    slack = (2**-21) * reach[:, None].astype(np.float64) ** 2  # 8 unit roundoffs of the largest product
    out = np.zeros((len(pred), len(thresholds), 3))
    for i, threshold in enumerate(thresholds):
        precision = _within(to_pred, slack, true, pred, threshold).mean(1)
        recall = _within(to_true, slack, pred, true, threshold).mean(1)
        total = precision + recall
        out[:, i, 0] = 2 * precision * recall / np.where(total > 0, total, 1.0)
        out[:, i, 1], out[:, i, 2] = precision, recall
    return out


def _nearest_squared(
    a: np.ndarray, b: np.ndarray, a_squared: np.ndarray, b_squared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of each b to its nearest a, (n,q), and of each a to its nearest b, (n,p); float32."""
    n, p, q = len(a), a.shape[1], b.shape[1]
    left, right = np.ones((n, p, 5), np.float32), np.ones((n, 5, q), np.float32)
    left[:, :, :3], left[:, :, 3] = a, a_squared
    right[:, :3], right[:, 4] = -2 * b.transpose(0, 2, 1), b_squared
    left_t, right_t = torch.from_numpy(left), torch.from_numpy(right)
    table = torch.empty(p, q)  # one table, reused: it stays in the cache
    view = table.numpy()
    to_a, to_b = np.empty((n, q), np.float32), np.empty((n, p), np.float32)
    for i in range(n):
        torch.mm(left_t[i], right_t[i], out=table)
        view.min(0, out=to_a[i])
        view.min(1, out=to_b[i])
    return to_a, to_b


def _within(squared: np.ndarray, slack: np.ndarray, points: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """(n,k) whether each point's nearest other is closer than threshold, from float32 squares known to within `slack`."""
    hit = squared < threshold**2
    sample, point = np.nonzero(np.abs(squared - threshold**2) <= slack)
    for start in range(0, len(sample), 256):
        rows, columns = sample[start : start + 256], point[start : start + 256]
        difference = others[rows] - points[rows, columns][:, None]
        hit[rows, columns] = np.sqrt((difference**2).sum(2)).min(1) < threshold
    return hit
