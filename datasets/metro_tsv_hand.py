"""The joints that METRO's files hold: MANO's regressor on the posed mesh, in the original's float32, operation by operation.

specs/idhandmesh.md 2.1 (regressed_joint_3d) and 11. The function is utils/hand.py's, and agrees with it to 1e-6 m; but files that
are compared byte for byte, or by row offsets, need every digit, and digits depend on the order of sums: each frame's correctives
are one matrix times one vector, the mesh goes through millimetres and back, the regressor is summed vertex by vertex.
(Digits of a matrix product are the processor's, too: elsewhere the last one may differ.) Nothing else should use this file.
"""
import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from utils.hand import HandModel
from utils.joints import PARENTS, T21_FROM_H21

MM = 1000.0


def regressed_joints(hand: HandModel, mano: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints (n,21,3) in the camera, metres, T21 with manopth's tips, and pose (n,48): axis-angles with the mean added. float32.

    mano (n,61) float32 of one person: global axis-angle 3, PCA 45, translation 3, shape 10 (that of the first row is used).
    """
    with _one_thread(), torch.no_grad():
        return _joints(hand, mano)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Products of matrices this small are slower shared out, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _joints(hand: HandModel, mano: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = hand.arrays
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean", "hands_components")
    template, shapes, poses, regressor, weights, mean, components = (
        torch.from_numpy(np.ascontiguousarray(getattr(a, name), np.float32)) for name in names)
    numbers = torch.from_numpy(mano)
    pose = torch.cat((numbers[:, :3], torch.cat([mean + row[None, 3:48] @ components for row in numbers])), 1)
    rest = (shapes @ numbers[0, 51:, None])[..., 0] + template
    skeleton = regressor @ rest
    rotations = _rotations(pose.view(-1, 3)).view(-1, 16, 3, 3)
    bends = (rotations[:, 1:] - torch.eye(3)).flatten(1)
    bent = torch.stack([rest + (poses @ row[:, None])[..., 0] for row in bends])
    transforms = _transforms(rotations, skeleton)
    verts = torch.stack([_skinned(*each, weights) for each in zip(transforms, bent)])
    verts = (verts + numbers[:, None, 48:51]) * MM / MM
    tips = verts[:, list(hand.tips["manopth"])]
    return torch.cat((_regressed(regressor, verts), tips), 1)[:, T21_FROM_H21].numpy(), pose.numpy()


def _rotations(turns: Tensor) -> Tensor:
    """Matrices (m,3,3) of axis-angles (m,3) by way of a unit quaternion; 1e-8 is inside the norm only."""
    angle = torch.linalg.vector_norm(turns + 1e-8, dim=1, keepdim=True)
    half = 0.5 * angle
    q = torch.cat((half.cos(), half.sin() * (turns / angle)), 1)
    w, x, y, z = (q / torch.linalg.vector_norm(q, dim=1, keepdim=True)).unbind(1)
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    return torch.stack((ww + xx - yy - zz, 2 * x * y - 2 * w * z, 2 * w * y + 2 * x * z,
                        2 * w * z + 2 * x * y, ww - xx + yy - zz, 2 * y * z - 2 * w * x,
                        2 * x * z - 2 * w * y, 2 * w * x + 2 * y * z, ww - xx - yy + zz), 1).view(-1, 3, 3)


def _transforms(rotations: Tensor, skeleton: Tensor) -> Tensor:
    """(n,16,4,4) from the rest hand to the posed one. rotations (n,16,3,3), skeleton (16,3)."""
    world: list[Tensor] = []
    for joint, parent in enumerate(PARENTS):
        local = torch.eye(4).repeat(len(rotations), 1, 1)
        local[:, :3, :3] = rotations[:, joint]
        local[:, :3, 3] = skeleton[joint] - skeleton[parent] if parent >= 0 else skeleton[joint]
        world.append(world[parent] @ local if parent >= 0 else local)
    placed = torch.stack(world, 1)
    rest = torch.cat((skeleton, torch.zeros(16, 1)), 1)
    placed[..., 3] -= (placed @ rest[..., None])[..., 0]
    return placed


def _skinned(transforms: Tensor, verts: Tensor, weights: Tensor) -> Tensor:
    """Vertices (778,3) moved by the transforms (16,4,4), blended by weights (778,16)."""
    blended = transforms.permute(1, 2, 0) @ weights.T
    whole = torch.cat((verts.T, torch.ones(1, len(verts))))
    return (blended * whole).sum(1)[:3].T


def _regressed(regressor: Tensor, verts: Tensor) -> Tensor:
    """(n,16,3): the regressor's sum over vertices in their order, product and sum rounded one by one."""
    joints = regressor[:, 0, None] * verts[:, None, 0]
    for vertex in range(1, verts.shape[1]):
        joints = joints + regressor[:, vertex, None] * verts[:, None, vertex]
    return joints
