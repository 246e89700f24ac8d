"""The camera of a picture: from a file, a stated field of view, the picture's EXIF, or nominal, in this order; and which it was.

K is that of the picture as shown; one of another size is refused where that shows. A nominal camera draws rightly over the
picture, but distance and, with a network that judges size by the zoom, the size of the hand mean nothing with it: `Camera.metric`
says so.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.demo_input import names_of
from src.exif import exif_focal
from src.identity import number_array
from utils.errors import InputError
from utils.files import read_json, require_file

KINDS = (".npy", ".json")

LEAST_FOCAL = 0.1  # of the longer side: under it, 157 degrees are seen


class Camera(NamedTuple):
    """K (3,3) float64 of the full picture, where it came from in words, and whether lengths follow from it (not nominal)."""

    K: np.ndarray
    source: str
    metric: bool


class _Sized(NamedTuple):
    """A matrix as read, and the size [width, height] of the pictures that it says it is for."""

    K: object
    size: object


class CameraSource:
    """Where camera matrices come from: one file for all or one matrix per picture, a stated field of view, EXIF, or nominal.

    section: the options that the messages speak of. Raises InputError: a broken file, two sources stated.
    """

    def __init__(self, K: str | None, fov: float | None, section: str = "demo"):
        if K is not None and fov is not None:
            raise InputError(f"{section}.K and {section}.fov are both given; a camera matrix says the field of view already: "
                             "leave one out")
        self.path, self.fov, self.section = None if K is None else Path(K), fov, section
        self.table: object = None
        if self.path is not None and not self.path.is_dir():
            self.table = _read_K_file(self.path, section)

    def camera(self, picture: Path, height: int, width: int) -> Camera:
        """The camera of one picture of this size; `picture` names it (a file that may hold EXIF, or a frame of a video)."""
        if self.path is None:
            return self._without_file(picture, height, width)
        if self.path.is_dir():
            file = self._beside(picture)
            value = _read_K_file(file, self.section)
        else:
            file, value = self.path, self.table
        if isinstance(value, dict) and "K" not in value:
            known = [name for name in names_of(picture) if name in value]
            if not known:
                raise InputError(f"{file}: no camera matrix of {picture.name!r}; it has {', '.join(sorted(value)[:3])}; add it")
            value = value[known[0]]
        if isinstance(value, dict) and "K" in value:
            value = _Sized(value["K"], value.get("size"))
        K = _checked_K(file, value.K if isinstance(value, _Sized) else value)
        _require_fit(file, K, value.size if isinstance(value, _Sized) else None, picture, height, width)
        return Camera(K, f"file {file}", True)

    def require_some(self, pictures: Sequence[Path]) -> None:
        """InputError where K is a folder that has no matrix for any of these pictures."""
        if self.path is None or not self.path.is_dir() or any(file.is_file() for one in pictures for file in self._files(one)):
            return
        count, first = len(pictures), pictures[0].name
        usual = " or ".join(file.name for file in self._files(pictures[0])[-2:])
        whose = f"{first} (expected {usual})" if count == 1 else f"{count} of {count} pictures (first: {first}; expected {usual})"
        raise InputError(f"{self.section}.K={self.path}: no camera matrix for {whose}; leave {self.section}.K out "
                         f"({self.section}.K=null) for a nominal camera, or give {self.section}.fov")

    def _without_file(self, picture: Path, height: int, width: int) -> Camera:
        """Square pixels, the principal point in the middle."""
        longer = max(height, width)
        focal, words, metric = float(longer), "nominal: focal length = longer side of the picture", True
        if self.fov is not None:
            focal = longer / 2 / np.tan(np.radians(self.fov) / 2)
            words = f"stated field of view: {self.fov:g} degrees across the longer side"
        else:
            found = exif_focal(picture, height, width) if picture.is_file() else None
            if found and found.pixels:
                focal, words = found.pixels, f"EXIF: {found.words}"
            else:
                metric, words = False, f"{words} ({found.words if found else 'a video says nothing of its lens'})"
        return Camera(np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]]), words, metric)

    def _beside(self, picture: Path) -> Path:
        files = self._files(picture)
        for file in files:
            if file.is_file():
                return file
        raise InputError(f"{self.path}: no camera matrix for {picture.name}; expected one of {', '.join(f.name for f in files)}")

    def _files(self, picture: Path) -> list[Path]:
        """What a picture's matrix may be called, each once; last the usual names."""
        stems = dict.fromkeys([picture.stem, f"{picture.stem}_K", f"{picture.stem.removesuffix('_img')}_K"])
        return [self.path / (stem + suffix) for stem in stems for suffix in KINDS]


def _read_K_file(path: Path, section: str) -> object:
    """A .npy array, or the json value: a matrix, {"K": matrix, "size": [width, height]}, size optional, or {"a.jpg": these}."""
    require_file(path, f"{section}.K: name a .json or .npy file with a 3 x 3 camera matrix, or a folder of them")
    if path.suffix.lower() not in KINDS:
        raise InputError(f"{section}.K: expected {' or '.join(KINDS)}, found {path}; save K as one of them")
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path}: expected an array of numpy, found a file that breaks ({error}); save K again") from error
    return read_json(path, "write K as a 3 x 3 list")


def _checked_K(path: Path, value: object) -> np.ndarray:
    K = number_array(value)
    if K is None or K.shape != (3, 3) or K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or not np.array_equal(K[2], (0, 0, 1)):
        found = str(value.tolist() if isinstance(value, np.ndarray) else value)[:90]
        raise InputError(f"{path}: expected a camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels with fx, fy > 0, "
                         f"found {found}; save K again")
    return K


def _require_fit(file: Path, K: np.ndarray, size: object, picture: Path, height: int, width: int) -> None:
    """InputError where K is of pictures of another size: the size that its file states, else a tiny focal length (in other units
    than pixels, say) or a principal point outside."""
    if size is not None:
        if size != [width, height]:
            raise InputError(f"{file}: a camera matrix of pictures of size {str(size)[:40]}, but {picture.name} has {width} x "
                             f"{height}: scale K to this picture")
        return
    if min(K[0, 0], K[1, 1]) < LEAST_FOCAL * max(height, width):
        raise InputError(f"{file}: expected focal lengths in pixels of {picture.name} ({width} x {height}), found {K[0, 0]:g}, "
                         f"{K[1, 1]:g}: in other units, or of a smaller picture? Scale K to this picture")
    x, y = K[:2, 2]
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        raise InputError(f"{file}: expected a principal point in {picture.name} ({width} x {height} pixels), found ({x:.1f}, "
                         f"{y:.1f}): a K of another image size? Scale it to this picture; if it is right (a crop's), say so: "
                         f'{{"K": ..., "size": [{width}, {height}]}} in a .json')
