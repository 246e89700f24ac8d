"""Frames in and out: videos and folders read as one stream of frames, and an overlay video that is whole or absent.

A video's frames are upright (its turn mark is obeyed) and are named by their number from 0: `000012` (also `12`) in files of
boxes and camera matrices. A video that ends before its announced length gives the frames it has; `Frames.cut_short` says so.
"""
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.demo_input import list_pictures, read_picture
from utils.errors import InputError
from utils.files import atomic_path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what a broken video is said to be is said here, in one line
import cv2  # reads the level when it first opens a video

VIDEOS = (".mp4", ".avi", ".mov", ".m4v", ".mkv", ".webm")
NOMINAL_FPS = 30.0
SLACK = 2  # frames; containers with edit lists announce a few that players never show


class Frame(NamedTuple):
    """number from 0 · path: its file, or <video>/<number> · picture (h,w,3) uint8 RGB, or None with the fault in words."""

    number: int
    path: Path
    picture: np.ndarray | None
    fault: str | None = None


class Rate(NamedTuple):
    """Frames per second, and where that came from."""

    fps: float
    source: str


def is_video(source: str | Path) -> bool:
    """Whether this is a video by its name."""
    return Path(source).suffix.lower() in VIDEOS


class Frames:
    """The frames of a video or of a folder of pictures (in the order of the numbers in their names), each read once.

    fps: stated, in place of what the container says. Iterate once; afterwards `read` counts the frames and `cut_short` is a line
    where a video ended early, else None. Raises InputError: no such input, a video that cannot be opened or has no frame.
    """

    def __init__(self, source: str | Path, fps: float | None = None, section: str = "demo"):
        self.source, self.read, self.cut_short = Path(source), 0, None
        self._pictures: list[Path] | None = None
        contained = 0.0
        if is_video(source) and self.source.is_file():
            self._video = _opened(self.source)
            if not self._video.isOpened():
                raise InputError(f"{source}: expected a video ({', '.join(VIDEOS)}), found {self.source.stat().st_size} bytes "
                                 "that cannot be opened as one (cut short, or another format); copy or convert it again")
            self.announced = max(0, int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)))
            contained = self._video.get(cv2.CAP_PROP_FPS)
        else:
            self._pictures = sorted(list_pictures(source, section), key=_natural)
            self.announced = len(self._pictures)
        self.rate = _rate(fps, contained, self._pictures is not None)

    def __iter__(self) -> Iterator[Frame]:
        return self._from_folder() if self._pictures is not None else self._from_video()

    def _from_folder(self) -> Iterator[Frame]:
        for number, path in enumerate(self._pictures):
            try:
                picture, fault = read_picture(path), None
            except InputError as error:
                picture, fault = None, str(error)
            self.read += picture is not None
            yield Frame(number, path, picture, fault)

    def _from_video(self) -> Iterator[Frame]:
        good, picture = self._video.read()
        while good:
            number, self.read = self.read, self.read + 1
            yield Frame(number, Path(self.source.name) / f"{number:06d}", cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            good, picture = self._video.read()
        self._video.release()
        if not self.read:
            raise InputError(f"{self.source}: a video without a frame that can be read; copy or convert it again")
        if self.read < self.announced - SLACK:
            self.cut_short = (f"{self.source}: the video ends after {self.read} of the {self.announced} frames that it announces"
                              "; what was read is kept; copy it again for the rest")


def _opened(path: Path) -> cv2.VideoCapture:
    """The video, opened or not, without OpenCV's own words on stderr."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _rate(stated: float | None, contained: float, folder: bool) -> Rate:
    if stated is not None:
        return Rate(stated, "stated")
    if np.isfinite(contained) and 0 < contained <= 1000:
        return Rate(float(contained), "the video")
    return Rate(NOMINAL_FPS, f"nominal: {'a folder' if folder else 'this video'} says none")


def _natural(path: Path) -> list[tuple[bool, int | str]]:
    """Key that puts 2.png before 10.png."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", path.name) if part]


@contextlib.contextmanager
def video_out(path: str | Path, fps: float) -> Iterator["VideoOut"]:
    """An mp4 (mp4v) to write frames to, beside its place until the block ends well; nothing is left where it does not."""
    with atomic_path(path, suffix=".part.mp4") as temporary:
        out = VideoOut(temporary, fps, path)
        try:
            yield out
        finally:
            out.release()
        if not temporary.stat().st_size:
            raise InputError(f"{path}: the video could not be written; free space there, or choose another demo.out")


class VideoOut:
    """Frames of one size: the first picture sets it, frames before it are black, a last odd row or column is cut off."""

    def __init__(self, temporary: Path, fps: float, path: str | Path):
        self._temporary, self._fps, self._path = temporary, fps, path
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._early = 0  # frames before the first picture

    def fits(self, picture: np.ndarray) -> str | None:
        """None, or in words why this picture cannot be a frame of the video."""
        size = picture.shape[1], picture.shape[0]
        if self._writer is None or size == self._size:
            return None
        return f"{size[0]}x{size[1]} pixels, but the track began with {self._size[0]}x{self._size[1]}"

    def write(self, picture: np.ndarray | None) -> None:
        """One frame (h,w,3) uint8 RGB; None is a black one."""
        if picture is None and self._writer is None:
            self._early += 1
            return
        if self._writer is None:
            self._open(picture)
        width, height = self._even
        black = picture is None
        self._writer.write(self._black() if black else np.ascontiguousarray(picture[:height, :width, ::-1]))

    def release(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.release()

    def _open(self, picture: np.ndarray) -> None:
        self._size = picture.shape[1], picture.shape[0]
        self._even = tuple(max(2, side - side % 2) for side in self._size)
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, code, self._fps, self._even)
        if not self._writer.isOpened():
            raise InputError(f"{self._path}: no mp4 of {self._even[0]}x{self._even[1]} pixels at {self._fps:g} frames per second "
                             "can be written here; choose another demo.fps, or show the frames as pictures (demo.track=false)")
        for _ in range(self._early):
            self._writer.write(self._black())

    def _black(self) -> np.ndarray:
        return np.zeros((self._even[1], self._even[0], 3), np.uint8)
