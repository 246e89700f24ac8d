"""Scoring 10,000 predictions, everything included: file opening, all metrics, intervals. At most 5 s in 2 threads."""
import sys
import time

import numpy as np
import pytest
import torch

from utils.hand import HandModel
from utils.metrics import f_scores
from utils.predictions import PredictionsWriter, read_predictions
from utils.rotation import matrix_from_axis_angle
from utils.score import score

ROWS, LIMIT_S = 10_000, 5.0


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """A file of 10,000 free hands in random poses with errors of a usual size (MPVPE near 20 mm, aligned 7 mm)."""
    hand = HandModel.load("template/free_hand_right.npz")
    path = tmp_path_factory.mktemp("speed") / "predictions.npz"
    rng = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    with PredictionsWriter(path, {"hand": {"name": hand.name, "sha256": hand.sha256}}) as writer, torch.no_grad():
        for start in range(0, ROWS, 1000):
            shape, pose, root = noise(1000, 10), 0.25 * noise(1000, 16, 3), torch.tensor([0.0, 0.0, 0.7])
            true = hand(matrix_from_axis_angle(pose), shape)
            used = shape + 0.5 * noise(1000, 10)
            pred = hand(matrix_from_axis_angle(pose + 0.15 * noise(1000, 16, 3)), used)
            true_joints, pred_joints = hand.joints(true), hand.joints(pred)
            columns = {
                "pred_verts": pred.verts - pred_joints[:, :1], "pred_joints": pred_joints - pred_joints[:, :1],
                "pred_shape": used, "pred_root": root + 0.02 * noise(1000, 3),
                "true_verts": true.verts - true_joints[:, :1] + root,
                "true_joints": true_joints - true_joints[:, :1] + root, "true_root": root.expand(1000, 3), "true_shape": shape,
                "subject": torch.arange(start, start + 1000) * 8 // ROWS, "index": torch.arange(start, start + 1000),
                "mirrored": torch.zeros(1000, dtype=torch.bool)}
            writer.append(name=[f"{i:06d}" for i in range(start, start + 1000)], **{k: v.numpy() for k, v in columns.items()})
    return path, hand


def test_scores_of_ten_thousand(predictions, benchmark):
    """All metrics of 10,000 predictions with 2,000 bootstrap draws, in 2 threads."""
    path, hand = predictions
    result = benchmark.pedantic(lambda: score(read_predictions(path), hand, threads=2), rounds=3, warmup_rounds=1)
    assert result.summary["metrics"]["pa_f15"]["n"] == ROWS
    seconds = benchmark.stats.stats.min
    sys.stdout.write(f"\nscoring {ROWS} predictions: {seconds:.2f} s (wanted: at most {LIMIT_S} s on two cores)\n")


def test_f_scores_against_tree_search(predictions):
    """The matrix-product F-score against k-d trees, one thread: the ratio, and equal answers."""
    from scipy.spatial import cKDTree

    found = read_predictions(predictions[0])
    rows = slice(0, 500)
    pred = 1e3 * np.asarray(found["pred_verts"][rows], float)
    true = 1e3 * (np.asarray(found["true_verts"][rows], float) - np.asarray(found["true_root"][rows], float)[:, None])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    ours = f_scores(pred, true, (5.0, 15.0))
    middle = time.perf_counter()
    for row in range(len(pred)):
        to_pred, to_true = cKDTree(pred[row]).query(true[row])[0], cKDTree(true[row]).query(pred[row])[0]
        for i, threshold in enumerate((5.0, 15.0)):
            assert ours[row, i, 1] == (to_pred < threshold).mean() and ours[row, i, 2] == (to_true < threshold).mean()
    end = time.perf_counter()
    torch.set_num_threads(threads)
    ratio = (end - middle) / (middle - start)
    sys.stdout.write(f"\nF-scores: {1e3 * (middle - start) / len(pred):.2f} ms a sample, {ratio:.1f} times k-d trees' speed\n")
