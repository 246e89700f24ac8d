"""Were labels made with this hand model? Their joints against those that it makes of their own pose numbers."""
import numpy as np
import torch

from utils.hand import HandModel

HAND_TOLERANCE_M = 0.002  # between labelled joints and those of the hand model


def hand_error_m(hand: HandModel, pose: np.ndarray, shape: np.ndarray, trans: np.ndarray, joints: np.ndarray, *, pca: bool,
                 flat_mean: bool, tips: str, kind: str) -> float:
    """Largest distance (m) between labelled joints (n,21,3) and those that `hand` makes of the labels' own pose numbers."""
    to = {"dtype": hand.weights.dtype, "device": hand.weights.device}
    pose, shape, trans, joints = (torch.from_numpy(np.array(x)).to(**to) for x in (pose, shape, trans, joints))
    with torch.no_grad():
        posed = hand(hand.rotations_from_pose(pose, pca=pca, flat_mean=flat_mean), shape).moved(trans)
        return float(torch.linalg.vector_norm(hand.joints(posed, tips, kind) - joints, dim=-1).max())
