"""FreiHAND's labels for a prepared folder: MANO's numbers placed in the camera, vertices streamed, each sample once.

`mano` places the hand by joint 9 (specs/datasets.md 1.2): root = ((u - cx) / s, (v - cy) / s, f / s), f the mean focal length,
and joint 9 is FreiHAND's own, regressed from the posed mesh. Here that becomes MANO's translation. An entry whose joints are not
those of xyz counts as missing; where most are not, the labels belong to another hand model and are refused.
"""
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.cache import ColumnWriter
from datasets.cutting import ROWS, columns_of
from datasets.freihand_tree import PUBLISHED, UNPACK, Lists, require_length
from utils.errors import InputError
from utils.hand import HandModel, Posed
from utils.official_files import LABELS, open_lists

TIPS_NAME, JOINTS_KIND = "freihand", "regressed"
TOLERANCE_M = 0.008  # v2's annotations lie up to 6 mm off the hand they were converted to
ROOT = 9
CHUNK = 512
Rows = dict[str, np.ndarray]


def label_columns(splits: Sequence[Lists]) -> dict:
    """The columns of labels/ for these splits; none where no split has labels."""
    if all(lists.xyz is None for lists in splits):
        return {}
    named = ["joints", "joints_uv"]
    named += ["pose"] if any(lists.mano is not None for lists in splits) else []
    named += ["verts"] if any(lists.verts is not None for lists in splits) else []
    return {name: column for name, column in columns_of(*named).items() if name not in ROWS}


def first_rows(splits: Sequence[Lists]) -> list[int]:
    """Where in labels/ a split's samples begin, and at last the number of rows; a split without labels has one row of zeros."""
    return np.cumsum([0] + [1 if lists.xyz is None else len(lists) for lists in splits]).tolist()


def vertices_of(lists: Lists) -> str:
    """Where a split's vertices come from, in words."""
    if lists.verts is not None:
        return lists.verts.name
    return "none" if lists.mano is None else f"the hand model, from {lists.split}_mano.json"


def notes_of(lists: Lists) -> str:
    """The line of a preparation that says what a split's labels are."""
    if lists.xyz is None:
        return f"{lists.split}: pictures and K only, whole pictures as boxes (no {lists.split}_xyz.json); {PUBLISHED}"
    return f"{lists.split}: {len(lists)} samples, vertices from {vertices_of(lists)}"


def write_labels(folder: Path, splits: Sequence[Lists], hand: HandModel, notes: list[str]) -> None:
    """`folder`/labels: the columns of label_columns, samples in order. Adds to `notes` how many entries count as missing.

    Raises InputError: labels of another hand model, vertices that are not those of the joints, broken or of another number.
    """
    columns = label_columns(splits)
    if not columns:
        return
    hand = HandModel(hand.arrays, torch.float64)
    with ColumnWriter(folder / "labels", first_rows(splits)[-1], columns) as writer:
        for lists in splits:
            if lists.xyz is None:
                writer.append(_zeros(columns, 1))
                continue
            known = np.ones(len(lists), bool)
            split = {"joints": lists.xyz, "joints_uv": np.nan_to_num(lists.uv), "has_joints": known, "has_uv": known,
                     "joint_valid": np.ones((len(lists), 21), bool)}
            split |= placed_hands(lists, hand, notes) if lists.mano is not None else {}
            for rows, verts in _pieces(lists, hand, notes):
                writer.append({**_zeros(columns, rows.stop - rows.start), **{k: v[rows] for k, v in split.items()}, **verts})


def placed_hands(lists: Lists, hand: HandModel, notes: list[str]) -> Rows:
    """pose (n,48), shape (n,10), trans (n,3) m and has_hand (n) of a split's `mano`; zeros where it is not the joints'."""
    pose, shape, (u, v, s) = lists.mano[:, :48], lists.mano[:, 48:58], lists.mano[:, 58:].T
    focal = (lists.K[:, 0, 0] + lists.K[:, 1, 1]) / 2
    root = np.stack([(u - lists.K[:, 0, 2]) / s, (v - lists.K[:, 1, 2]) / s, focal / s], 1)
    trans, error = np.empty((len(lists), 3)), np.empty(len(lists))
    for start in range(0, len(lists), CHUNK):
        rows = slice(start, start + CHUNK)
        with torch.inference_mode():
            rotations = hand.rotations_from_pose(torch.from_numpy(pose[rows]), pca=False, flat_mean=False)
            posed = hand(rotations, torch.from_numpy(shape[rows]))
            joints = hand.joints(posed, TIPS_NAME, JOINTS_KIND).numpy()
        trans[rows] = root[rows] - joints[:, ROOT]
        error[rows] = np.linalg.norm(joints + trans[rows, None] - lists.xyz[rows], axis=-1).max(1)
    if np.median(error) > TOLERANCE_M:
        raise InputError(f"{lists.root / lists.split}_mano.json: the labels were not made with the hand model {hand.name} ("
                         f"joints {1e3 * np.median(error):.0f} mm from {lists.split}_xyz.json's in the median): set hand to the "
                         "file they were made with (the real FreiHAND: template/MANO_RIGHT.pkl)")
    known = error <= TOLERANCE_M
    _note(notes, lists, "mano", known)
    found = {"pose": pose, "shape": shape, "trans": trans}
    return {"has_hand": known, **{name: np.where(known[:, None], values, 0) for name, values in found.items()}}


def _pieces(lists: Lists, hand: HandModel, notes: list[str]) -> Iterator[tuple[slice, Rows]]:
    """Rows of a split in order, with verts (b,778,3) m and has_verts where it has a file of them."""
    if lists.verts is None:
        for start in range(0, len(lists), CHUNK):
            yield slice(start, min(start + CHUNK, len(lists))), {}
        return
    start, errors, K = 0, [np.empty(0)], f"{lists.split}_K.json"
    with open_lists(lists.verts, LABELS) as reader:
        for verts in reader.entries("vertices", 778):
            rows = slice(start, start + len(verts))
            start = rows.stop
            if start > len(lists):
                raise InputError(f"{lists.verts}: expected {len(lists)} entries, as {K} has, found more: are they of one "
                                 f"release? {UNPACK}")
            errors.append(_verts_error(verts, lists.xyz[rows], hand))
            yield rows, {"verts": verts, "has_verts": errors[-1] <= TOLERANCE_M}
        reader.finish()
    require_length(lists.verts, start, len(lists), lists.root / K)
    error = np.concatenate(errors)
    if np.median(error) > TOLERANCE_M:
        raise InputError(f"{lists.verts}: expected the vertices of {lists.split}_xyz.json's hands, found others (joints "
                         f"{1e3 * np.median(error):.0f} mm apart in the median): are they of one release? {UNPACK}")
    _note(notes, lists, "verts", error <= TOLERANCE_M)


def _verts_error(verts: np.ndarray, xyz: np.ndarray, hand: HandModel) -> np.ndarray:
    """(b) largest distance (m) between FreiHAND's joints of vertices (b,778,3) and the labelled ones."""
    verts = torch.from_numpy(np.ascontiguousarray(verts))
    joints = hand.joints(Posed(verts, verts[:, :16]), TIPS_NAME, JOINTS_KIND).numpy()  # of the mesh: no chain in them
    return np.linalg.norm(joints - xyz, axis=-1).max(1)


def _note(notes: list[str], lists: Lists, name: str, known: np.ndarray) -> None:
    if not known.all():
        notes.append(f"{lists.split}: {(~known).sum()} of {len(known)} entries of {lists.split}_{name}.json lie more than "
                     f"{1e3 * TOLERANCE_M:g} mm from {lists.split}_xyz.json and count as missing")


def _zeros(columns: dict, count: int) -> Rows:
    return {name: np.zeros((count, *shape), dtype) for name, (dtype, shape) in columns.items()}
