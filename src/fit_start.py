"""A start for fitting the hand model to 21 joints in 3D, in closed form: no pose is guessed, none is searched.

The palm (wrist and four knuckles) gives the global rotation by Kabsch's algorithm; then every bone, from the palm outwards, turns
the shortest way from where its parent would carry it to where it was seen, without twist, of which joints say little. The shape
is the one given; its size may be off: only directions are used.
"""
import torch
from torch import Tensor

from src.solver_data import HandState
from utils.hand import HandModel
from utils.joints import T21_FROM_H21, T21_PARENTS

_PALM = (0, 5, 9, 13, 17)  # T21: the thumb's first joint moves
_SMALL = 1e-9  # metres: a bone that short has no direction


def start_from_joints(hand: HandModel, joints: Tensor, shape: Tensor) -> HandState:
    """Rotations and root of a hand of `shape` (n,10) for T21 joints (n,21,3), metres, with hand.tips["manopth"] as fingertips."""
    shaped = hand.shaped(shape)
    rest = torch.cat((shaped.rest_joints, shaped.rest_verts[:, hand.tips["manopth"]]), 1)[:, list(T21_FROM_H21)]
    world: dict[int, Tensor] = {0: kabsch(rest[:, _PALM], joints[:, _PALM])}
    local = {0: world[0]}
    for tip in range(4, 21, 4):
        for joint in range(tip - 3, tip):
            parent = world[T21_PARENTS[joint]]
            carried = (parent @ (rest[:, joint + 1] - rest[:, joint]).unsqueeze(2)).squeeze(2)
            turn = shortest_turn(carried, joints[:, joint + 1] - joints[:, joint])
            world[joint] = turn @ parent
            local[joint] = parent.transpose(1, 2) @ world[joint]
    rotations = torch.stack([local[joint] for joint in _M16], 1)
    return HandState(rotations, joints[:, 0], shape)


_M16 = [T21_FROM_H21.index(joint) for joint in range(16)]  # T21 numbers of the chain's joints


def kabsch(source: Tensor, target: Tensor) -> Tensor:
    """Rotation (n,3,3) that best turns the points `source` (n,k,3) into `target`, their means aside (Kabsch 1976)."""
    source, target = (x - x.mean(1, keepdim=True) for x in (source, target))
    left, _, right = torch.linalg.svd(target.transpose(1, 2) @ source)
    sign = torch.ones_like(left[:, 0])
    sign[:, 2] = torch.linalg.det(left @ right).sign()
    return (left * sign.unsqueeze(1)) @ right


def shortest_turn(source: Tensor, target: Tensor) -> Tensor:
    """Rotation (n,3,3) of least angle that turns directions `source` (n,3) into `target`; the identity for no length."""
    length = source.norm(dim=1, keepdim=True) * target.norm(dim=1, keepdim=True)
    known = length > _SMALL**2
    axis = torch.linalg.cross(source, target) / torch.where(known, length, 1.0)
    cosine = (source * target).sum(1, keepdim=True) / torch.where(known, length, 1.0)
    opposite = cosine < -0.999  # the axis of a half turn is any across
    skew = torch.stack([torch.linalg.cross(axis, e.expand_as(axis)) for e in torch.eye(3).to(axis)], 2)
    turn = torch.eye(3).to(axis) + skew + skew @ skew / (1 + torch.where(opposite, 0.0, cosine)).unsqueeze(2)
    across = torch.linalg.cross(source, torch.nn.functional.one_hot(source.abs().argmin(1), 3).to(source))
    across = across / across.norm(dim=1, keepdim=True).clamp_min(_SMALL)
    half = 2 * across.unsqueeze(2) * across.unsqueeze(1) - torch.eye(3).to(axis)
    turn = torch.where(opposite.unsqueeze(2), half, turn)
    return torch.where(known.unsqueeze(2), turn, torch.eye(3).to(axis))
