"""Rotations, forward kinematics and skinning in plain numpy for the build of the free hand (build time only).

Conventions: MANO's 16 joints (M16: wrist, index, middle, little, ring, thumb; parents below), rotations act on column
vectors, every rotation is given in the axes of the flat rest pose (MANO's convention). Units: metres and radians.
"""
import numpy as np

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
FINGERS = {"index": (1, 2, 3), "middle": (4, 5, 6), "little": (7, 8, 9), "ring": (10, 11, 12), "thumb": (13, 14, 15)}


def unit(a: np.ndarray) -> np.ndarray:
    """Scale the vectors in the last axis to length one."""
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12)


def rodrigues(axis_angle: np.ndarray) -> np.ndarray:
    """Axis-angle (..., 3) in rad to rotation matrices (..., 3, 3)."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    k = axis_angle / np.maximum(angle[..., 0], 1e-12)
    zero = np.zeros_like(k[..., 0])
    cross = np.stack([zero, -k[..., 2], k[..., 1], k[..., 2], zero, -k[..., 0], -k[..., 1], k[..., 0], zero], -1)
    cross = cross.reshape(*k.shape[:-1], 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def log_rotation(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) to axis-angle (..., 3); for angles below pi."""
    w = np.stack([rotation[..., 2, 1] - rotation[..., 1, 2], rotation[..., 0, 2] - rotation[..., 2, 0],
                  rotation[..., 1, 0] - rotation[..., 0, 1]], -1) / 2
    sine = np.linalg.norm(w, axis=-1)
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
    angle = np.arctan2(sine, cosine)
    return w * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 1.0)[..., None]


def chain(rotations: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forward kinematics.

    rotations (b,16,3,3) local, joints (b,16,3) or (16,3) at rest. Returns the global rotations (b,16,3,3), the moved joints
    (b,16,3) and the offsets (b,16,3) so that a point p rigid with joint i goes to R_i p + offset_i.
    """
    joints = np.broadcast_to(joints, (len(rotations), 16, 3))
    world, where = np.empty_like(rotations), np.empty_like(joints)
    for i, parent in enumerate(PARENTS):
        if parent < 0:
            world[:, i], where[:, i] = rotations[:, i], joints[:, i]
        else:
            world[:, i] = world[:, parent] @ rotations[:, i]
            step = (joints[:, i] - joints[:, parent])[..., None]
            where[:, i] = where[:, parent] + (world[:, parent] @ step)[..., 0]
    return world, where, where - (world @ joints[..., None])[..., 0]


def linear_blend(verts: np.ndarray, weights: np.ndarray, world: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Linear blend skinning: verts (v,3) or (b,v,3), weights (v,16), world (b,16,3,3), offset (b,16,3) -> (b,v,3)."""
    mixed = np.einsum("vj,bjxy->bvxy", weights, world)
    verts = np.broadcast_to(verts, (len(world), *verts.shape[-2:]))
    return np.einsum("bvxy,bvy->bvx", mixed, verts) + np.einsum("vj,bjx->bvx", weights, offset)


def quaternions(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (...,3,3) to unit quaternions (...,4), scalar first, scalar part >= 0."""
    axis_angle = log_rotation(rotation)
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * unit(axis_angle)], -1)


def from_quaternions(q: np.ndarray) -> np.ndarray:
    """Unit quaternions (...,4), scalar first, to rotation matrices (...,3,3)."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), 2 * (x * y + z * w), 1 - 2 * (x * x + z * z),
            2 * (y * z - x * w), 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def blended_rotations(weights: np.ndarray, world: np.ndarray) -> np.ndarray:
    """Normalised quaternion blend of the joints' global rotations: (v,16), (b,16,3,3) -> (b,v,3,3)."""
    q = quaternions(world)
    main = q[:, np.argmax(weights, 1)]
    sign = np.where(np.einsum("bjq,bvq->bvj", q, main) < 0, -1.0, 1.0)
    return from_quaternions(unit(np.einsum("vj,bvj,bjq->bvq", weights, sign, q)))


def centre_skinning(verts: np.ndarray, weights: np.ndarray, centres: np.ndarray, world: np.ndarray,
                    offset: np.ndarray) -> np.ndarray:
    """Skinning about optimised centres of rotation (Le and Hodgins, SIGGRAPH 2016): quaternion-blended rotation about a
    centre (v,3) per vertex that itself moves by linear blending; neither LBS's collapse nor the bulge of dual quaternions."""
    turn = blended_rotations(weights, world)
    moved = linear_blend(centres, weights, world, offset)
    return moved + np.einsum("bvxy,bvy->bvx", turn, np.broadcast_to(verts - centres, moved.shape))


def centre_matrix(verts: np.ndarray, faces: np.ndarray, weights: np.ndarray, sigma: float = 0.1) -> np.ndarray:
    """Matrix (v,v), rows sum to one, that gives the centres of rotation of a hand: centres = matrix @ verts (same paper).

    Row i averages the surface weighted by how alike the skinning weights are; a vertex of one joint only is its own centre.
    """
    face_weights = weights[faces].mean(1)
    corner = verts[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2
    alike = np.zeros((len(verts), len(faces)))
    for j in range(16):
        for k in range(j + 1, 16):
            rows, cols = np.where(weights[:, j] * weights[:, k] > 0)[0], np.where(face_weights[:, j] * face_weights[:, k] > 0)[0]
            here, there = np.ix_(rows, [j, k]), np.ix_(cols, [j, k])
            a, b = weights[here], face_weights[there]
            gap = a[:, :1] * b[:, 1] - a[:, 1:] * b[:, 0]
            alike[np.ix_(rows, cols)] += 2 * a.prod(1)[:, None] * b.prod(1) * np.exp(-gap ** 2 / sigma ** 2)
    alike *= area
    mass = alike.sum(1)
    single = mass < 1e-12
    spread = np.zeros((len(faces), len(verts)))
    np.put_along_axis(spread, faces, 1 / 3, axis=1)
    matrix = (alike / np.where(single, 1, mass)[:, None]) @ spread
    matrix[single] = np.eye(len(verts))[single]
    return matrix
