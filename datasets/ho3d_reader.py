"""The reader of a prepared HO3D folder: splits `train` and `evaluation`, sequences and people by option.

Conventions of the labels (datasets/ho3d_frame.py has turned them): complete axis-angle poses, chain joints with HO3D's own
fingertips, OpenCV camera, metres. Training frames have all labels; evaluation frames the wrist, and joints and vertices where the
public json lists were there. Boxes: of the projected joints in training, the files' handBoundingBox in the evaluation.
"""
from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.cache import read_columns
from datasets.ho3d_cameras import recording_of
from datasets.ho3d_frame import EVALUATION
from datasets.ho3d_tree import people_of, published
from datasets.prepared import PreparedReader
from datasets.reader import Raw
from utils.errors import InputError

if TYPE_CHECKING:
    from datasets.ho3d import Options

OF_EVALUATION = ("joints", "has_joints", "joints_uv", "has_uv", "joint_valid", "root", "has_root")
MOMENTS = 10**9  # frame numbers of a recording


class Ho3d(PreparedReader):
    """A split of a prepared folder; `datasets.ho3d.open_reader` makes it and says what is raised."""

    title = "HO3D"
    version = 1
    options: Options
    pose_pca, pose_flat_mean, tips, joints_kind = False, True, "ho3d", "chain"
    joints_text = "chain joints, HO3D tips"

    def _open(self) -> None:
        super()._open()
        self.index |= read_columns(self.folder / "index", {"frame": ()})
        self.world_from_camera = read_columns(self.folder / "cameras", {"world_from_camera": (4, 4)})["world_from_camera"]
        self.verts = None
        if self.split == EVALUATION:  # no pose numbers there: what only they give is not provided
            self.labels = {name: self.labels[name] for name in OF_EVALUATION}
            if self.meta["verts"]:
                self.verts = read_columns(self.folder / "verts", {"verts": (778, 3)})["verts"]
        self.people = np.array(people_of(self.meta["groups"], self.options.people))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "world_from_camera": None, "verts": None}

    def _kept(self) -> np.ndarray | bool:
        wanted, known = self.options.sequences, self.meta["groups"]
        if wanted is None:
            return True
        if unknown := [name for name in wanted if not fnmatch.filter(known, name)]:
            raise InputError(f"dataset.sequences: there is no sequence {unknown[0]} in {self.folder}; there are "
                             f"{', '.join(known)}")
        chosen = [number for number, name in enumerate(known) if any(fnmatch.fnmatchcase(name, one) for one in wanted)]
        return np.isin(np.array(self.index["group"]), chosen)

    def _flag(self, name: str) -> np.ndarray:
        return super()._flag("has_joints") if name == "has_verts" and self.verts is not None else super()._flag(name)

    def read(self, index: int) -> Raw:
        raw, row = super().read(index), int(self.rows[index])
        raw["subject"] = np.int64(self.people[self.index["group"][row]])
        if self.verts is not None and "verts" in self.needs:
            raw |= {"verts": np.array(self.verts[self.index["official"][row]]), "has_verts": raw["has_joints"]}
        return raw

    def picture_name(self, index: int) -> str:
        return self.sample_name(index).partition("#")[0]

    @property
    def official(self) -> str | None:
        return f"ho3d_{self.options.version}" if self.split == EVALUATION else None

    @property
    def subject_names(self) -> dict[int, str]:
        """Person's number -> the sequences of this selection that show them."""
        names: dict[int, list[str]] = {}
        for group in np.unique(self.index["group"][self.rows]).tolist():
            names.setdefault(int(self.people[group]), []).append(self.meta["groups"][group])
        return {person: ", ".join(some) for person, some in sorted(names.items())}

    def protocol(self) -> dict[str, Any]:
        sequences = self.options.sequences
        found = super().protocol()
        found["crop"] = found["crop"].replace("box of the joints", "handBoundingBox") if self.official else found["crop"]
        if self.official and self.verts is None:
            found["no_labels"] = published(self.options.version)
        return {**found, **({"sequences": ", ".join(sequences)} if sequences is not None else {})}

    def columns(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """official_index (n) of the evaluation; where recordings are calibrated, world_from_camera (n,4,4), NaN where one is not,
        and instant (n), equal for the cameras that saw one moment."""
        found, rows = super().columns(indices), self.rows[np.asarray(indices, int)]
        group, sequences = self.index["group"][rows], self.meta["groups"]
        poses = self.world_from_camera
        if not np.isfinite(poses[self.index["group"][self.rows]]).any():
            return found
        names = [recording_of(name) if np.isfinite(pose).all() else name for name, pose in zip(sequences, poses)]
        recording = np.array([sorted(set(names)).index(name) for name in names])
        return {**found, "world_from_camera": np.array(poses[group], np.float32),
                "instant": recording[group] * MOMENTS + np.array(self.index["frame"][rows], np.int64)}
