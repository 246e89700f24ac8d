"""Is a file of predicted hands what an official evaluation asks for? Refuses the usual mistakes, each with cause and remedy.

The rules (utils/plausible.py, utils/plausible_order.py) compare the file with the truth and speak up only where one mistake,
undone, explains the file far better than the file as it is; a bad prediction is scored, not refused. One mistake often hides
another: each is undone before the next rule looks, so that one line names them all. `score --unchecked` skips all of it.
"""
import os
from collections.abc import Callable
from typing import Protocol as Structure

import numpy as np
from jaxtyping import Float

from utils import plausible
from utils.errors import InputError
from utils.plausible import FULL, Case, Fault, centred, error, hand_like, rows_of, shape_right, size
from utils.plausible_order import gather, joint_order, place_in, sample_order

ANYWAY = "--unchecked scores the file as it is"
FEWEST = 5  # samples, below which a hand may lie turned or mirrored by chance
NOTHING_M = 1e-6  # a hand smaller than this is a point: the all-zero prediction is a published check


class Asked(Structure):
    """What is read of a protocol: utils.official_protocols.Protocol, or anything alike."""

    title: str
    order: str
    frame: str


def check_joints(pred: Float[np.ndarray, "n 21 3"], true: Float[np.ndarray, "n 21 3"], protocol: Asked,
                 path: str | os.PathLike, *, unit: str = "m", absolute: bool = True) -> list[str]:
    """Refuses joints in another unit, root-relative, on other axes, in another order, or of other samples.

    pred, true: metres, in the protocol's frame and order, all finite. unit: the file's own (m, mm), for the words only.
    absolute: False lets root-relative files pass. Returns what must be said of a file that is scored: that its hands are mirror
    images, which the official alignment accepts. Raises InputError: one line with every mistake found, cause and remedy.
    """
    case = Case(np.asarray(pred, np.float64), np.asarray(true, np.float64), protocol.frame, unit, protocol.order)
    if not len(pred) or size(case.pred) < NOTHING_M:
        return []
    some = rows_of(len(pred))
    few = case._replace(pred=case.pred[some], true=case.true[some])
    if not absolute and plausible.root_at_origin(few) is not None:
        few = few._replace(pred=plausible.placed(few))
    rules = [plausible.unit, *([plausible.wrist_relative] if absolute else []), plausible.axes, joint_order]
    hands = len(some) >= FEWEST and hand_like(few.true[:, gather("T21", protocol.order)])
    found = _found(few, rules + [plausible.turned] * hands) or _found(case, [sample_order])
    _refuse(found, f"joints in {FULL[unit]}, {'absolute ' if absolute else ''}in the camera, its axes "
                   f"{plausible.AXES[protocol.frame]}, order {protocol.order}", protocol, path)
    return [f"the joints look like {line}" for line in _found(few, [plausible.mirrored] * hands)]


def check_labels(true: Float[np.ndarray, "n 21 3"], protocol: Asked, path: str | os.PathLike) -> None:
    """Refuses labels that are not this protocol's: hands behind its camera, or bones of another joint order."""
    front = 1.0 if protocol.frame == "opencv" else -1.0
    some = np.asarray(true, np.float64)[rows_of(len(true))]
    other = next(name for name in ("T21", "H21") if name != protocol.order)
    behind = np.mean(front * some[..., 2].mean(1) < 0) > plausible.MOST
    mixed_up = not hand_like(some[:, gather("T21", protocol.order)]) and hand_like(some[:, gather("T21", other)])
    if len(some) and (behind or mixed_up):
        why = "hands behind the camera" if behind else f"bones of the order {other}"
        raise InputError(f"{path}: expected {protocol.title}'s labels (axes {plausible.AXES[protocol.frame]}, order "
                         f"{protocol.order}), found {why}: are they another dataset's? score by that one's protocol ({ANYWAY})")


def check_part(pred: Float[np.ndarray, "n 21 3"], every: Float[np.ndarray, "m 21 3"], protocol: Asked,
               path: str | os.PathLike) -> None:
    """Refuses a part of the list that is not its beginning; every: the labels of all."""
    if start := place_in(np.asarray(pred, np.float64), np.asarray(every, np.float64)):
        raise InputError(f"{path}: {protocol.title}: expected the first {len(pred):,} samples of the list (--count), found those "
                         f"from {start:,} on, counted from 0; predict from the beginning, or cut the labels to the same samples "
                         f"({ANYWAY})")


def check_verts(pred_verts: Float[np.ndarray, "m v 3"], pred_xyz: Float[np.ndarray, "m 21 3"],
                true_verts: Float[np.ndarray, "m v 3"], protocol: Asked, path: str | os.PathLike) -> list[str]:
    """Refuses vertices of another unit, frame or place than the joints of the same samples, which passed `check_joints`.

    All metres in the protocol's frame, finite; an all-zero mesh (a method without one) passes. Returns what must be said, as
    check_joints. Raises InputError: one line.
    """
    if not len(pred_verts) or size(pred_verts) < NOTHING_M:
        flat = len(pred_verts) and size(np.asarray(pred_xyz)) > NOTHING_M
        return ["the vertices are all one point: the mesh numbers say nothing"] if flat else []
    some = rows_of(len(pred_verts), 200)
    joints = np.asarray(pred_xyz, np.float64)[some]
    case = Case(np.asarray(pred_verts, np.float64)[some], np.asarray(true_verts, np.float64)[some], protocol.frame, "m", "")
    rules: list[Callable[[Case], Fault | None]] = [plausible.unit, plausible.axes]
    if size(joints) > NOTHING_M:
        rules.append(lambda now: _place(now, joints))
    hands = len(some) >= FEWEST and hand_like(joints[:, gather("T21", protocol.order)])
    rules += [plausible.turned] * hands
    found = [f"{line}; the joints of this file are right" for line in _found(case, rules)[:1]]
    _refuse(found, f"vertices in {FULL['m']}, absolute in the camera, its axes {plausible.AXES[protocol.frame]}", protocol, path)
    return [f"the vertices look like {line}" for line in _found(case, [plausible.mirrored] * hands)]


def _found(case: Case, rules: list[Callable[[Case], Fault | None]]) -> list[str]:
    """What the rules find, each after the faults before it were undone."""
    lines = []
    for rule in rules:
        fault = rule(case)
        if fault is not None:
            lines.append(fault.found)
            case = case._replace(pred=fault.undone)
    return lines


def _place(case: Case, joints: np.ndarray) -> Fault | None:
    """A mesh at the camera's centre whose joints are elsewhere: it is root-relative, and they are not."""
    middle, wanted = case.pred.mean(1), joints.mean(1)
    apart = np.linalg.norm(middle - wanted, axis=1)
    astray = (apart > 0.15) & (np.linalg.norm(middle, axis=1) < 0.5 * np.linalg.norm(wanted, axis=1))
    undone = centred(case.pred) + wanted[:, None]
    if astray.mean() < plausible.MOST or error(undone, case.true) > 0.4 * error(case.pred, case.true) or not shape_right(case):
        return None
    return Fault(f"vertices {np.median(apart):.2f} m away from the joints, at the camera's centre (root-relative, the root's "
                 "position added to the joints only?): add it to every vertex, too", undone)


def _refuse(found: list[str], wanted: str, protocol: Asked, path: str | os.PathLike) -> None:
    if found:
        raise InputError(f"{path}: {protocol.title} expects {wanted}; found {'; and '.join(found)} ({ANYWAY})")
