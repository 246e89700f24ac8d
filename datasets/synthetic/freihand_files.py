"""FreiHAND v2's files: names, pictures' numbers, and its json lists (specs/datasets.md 1.2), written in pieces.

Picture of sample i in version k is i + k * samples: 0 green screen, 1 hom, 2 sample, 3 auto. Every json is a list with one entry
per sample. Numbers are float32, written as the shortest decimals that read back as the same float32.
"""
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import orjson

from utils.files import atomic_path

SIZE = 224
VERSIONS = ("gs", "hom", "sample", "auto")
TRAINING, EVALUATION = "training", "evaluation"


@dataclass(frozen=True)
class Labels:
    """Of n samples, all float32: K (n,3,3) px · mano (n,1,61) · scale (n) m · xyz (n,21,3) and verts (n,778,3) m, camera."""

    K: np.ndarray
    mano: np.ndarray
    scale: np.ndarray
    xyz: np.ndarray
    verts: np.ndarray

    def save(self, path: Path) -> None:
        """An npz of all fields, whole or absent."""
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        os.replace(temporary, path)


LISTS = tuple(f.name for f in fields(Labels))


def picture_path(root: Path, split: str, number: int) -> Path:
    """rgb of a picture's number."""
    return root / split / "rgb" / f"{number:08d}.jpg"


def mask_path(root: Path, split: str, sample: int) -> Path:
    """Mask of a sample; the real set has none for its evaluation."""
    return root / split / "mask" / f"{sample:08d}.jpg"


def list_path(root: Path, split: str, name: str) -> Path:
    """json list of one kind of label."""
    return root / f"{split}_{name}.json"


def mask_bytes(mask: np.ndarray) -> bytes:
    """A mask (h,w) uint8, 255 = hand, as JPEG of three equal channels: lossy, so readers threshold it."""
    return cv2.imencode(".jpg", cv2.merge([mask] * 3), (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes()


def write_list(path: Path, parts: Iterable[np.ndarray]) -> None:
    """One json list of the rows of all parts, as json.dump writes lists; a part at a time is in memory."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        comma = b"["
        for part in parts:
            text = orjson.dumps(np.ascontiguousarray(part), option=orjson.OPT_SERIALIZE_NUMPY)
            file.write(comma + text[1:-1].replace(b",", b", "))
            comma = b", "
        file.write(b"[]" if comma == b"[" else b"]")


def write_lists(root: Path, split: str, names: Sequence[str], shards: Sequence[Path]) -> None:
    """The json lists of a split from its saved labels, in order; lists that are there stay."""
    for name in names:
        path = list_path(root, split, name)
        if not path.is_file():
            write_list(path, (_field(shard, name) for shard in shards))


def _field(shard: Path, name: str) -> np.ndarray:
    with np.load(shard, allow_pickle=False) as file:
        return file[name]
