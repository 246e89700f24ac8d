"""The rest mesh as a linear function of the shape: distances in mm that a difference of shapes or a covariance means.

Wrists at the origin everywhere: where the hand is has nothing to do with whose it is.
"""
import numpy as np

from utils.hand import HandModel
from utils.joints import TIPS

MIDDLE_TIP = TIPS["manopth"][2]


def rest_mesh_basis(hand: HandModel) -> np.ndarray:
    """(10, 778, 3) metres: change of the wrist-relative rest mesh per unit of each coefficient (the mesh is affine in them)."""
    directions = hand.arrays.shapedirs.transpose(2, 0, 1)
    return directions - np.einsum("v,svc->sc", hand.arrays.J_regressor[0], directions)[:, None]


def rest_mesh_mm(basis: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Mean vertex distance in mm, (...), of two wrist-relative rest meshes whose shapes differ by `difference` (..., 10)."""
    flat = difference.reshape(-1, difference.shape[-1]).astype(np.float64)
    pieces = [np.linalg.norm(np.einsum("ns,svc->nvc", flat[i:i + 512], basis, optimize=True), axis=-1).mean(-1)
              for i in range(0, len(flat), 512)]
    return 1000 * np.concatenate(pieces).reshape(difference.shape[:-1])


def mesh_gram(basis: np.ndarray) -> np.ndarray:
    """(10,10) mm^2: trace(gram @ covariance) is the mean square over the vertices of the mesh's standard deviation."""
    return 1e6 * np.einsum("svc,tvc->st", basis, basis) / basis.shape[1]


def rest_mesh_spread_mm(basis: np.ndarray, shapes: np.ndarray, weight: np.ndarray) -> float:
    """Distance in mm of single images' rest meshes from their mean: root mean square over images (weighted) and vertices."""
    centred = shapes.astype(np.float64) - weight @ shapes.astype(np.float64)
    return float(np.sqrt(np.sum(mesh_gram(basis) * ((weight[:, None] * centred).T @ centred))))


def hand_size_mm(hand: HandModel, shapes: np.ndarray) -> np.ndarray:
    """(...) mm from wrist to the tip of the middle finger of flat hands of shapes (...,10), as the crow flies."""
    arrays = hand.arrays
    reach = arrays.v_template[MIDDLE_TIP] - arrays.J_regressor[0] @ arrays.v_template
    return 1000 * np.linalg.norm(reach + shapes.astype(np.float64) @ rest_mesh_basis(hand)[:, MIDDLE_TIP], axis=-1)
