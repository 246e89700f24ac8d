"""Five-panel pictures and meshes of frames: `NNN_plot.jpg` and `NNN_mesh.ply`, of the demo and of `test.plots`.

The picture is utils/panels.py's; here is what goes into it: the crop that the network saw, its answer, and the hand's place,
which is the method's own, or follows from 2D joints, or, where nobody predicts it, is drawn and said to be a stand-in. Left
hands, which methods see mirrored, are shown as they were. `test` draws on a thread beside the network.
"""
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np
import torch

from src.demo_geometry import place_by_box
from src.root import solve_root
from utils.batch import ROOT_BY, Batch, Prediction
from utils.camera import K_of_mirror, transform_uv
from utils.errors import InputError
from utils.files import write_bytes
from utils.hand import HandModel
from utils.mesh_files import write_ply
from utils.panels import Notes, five_panels

JPEG_QUALITY = 92
FOLDER, PLOT, MESH = "plots", "_plot.jpg", "_mesh.ply"
MIRROR = np.array([-1.0, 1.0, 1.0])
THREADS = 1  # more wait for each other: half of the drawing is numpy's and Python's
WAITING = 32  # pictures that may wait for it: bounds the memory
STAND_IN = 0.6  # share of the crop that a hand of unknown place is drawn across
AXES = "metres, camera axes x right y down z forward"

# rows, mirrored (b) -> uv (b,21,2) of the whole pictures (mirrored first where the row is), confidence (b,21)
UvOf = Callable[[list[int], np.ndarray], tuple[np.ndarray, np.ndarray]]


class Plot(NamedTuple):
    """What `five_panels` is given; `place` in words, for the mesh file."""

    picture: np.ndarray
    mask: np.ndarray | None
    uv: np.ndarray | None
    verts: np.ndarray
    joints: np.ndarray
    faces: np.ndarray
    K: np.ndarray
    absolute: bool = True
    notes: Notes = Notes()
    side: str = "right"
    place: str = "predicted"

    def mirrored(self) -> Self:
        """The same of the picture mirrored left to right: how a left hand looked before it was made a right one."""
        width = self.picture.shape[1]
        return self._replace(
            picture=np.ascontiguousarray(self.picture[:, ::-1]), mask=None if self.mask is None else self.mask[:, ::-1],
            uv=None if self.uv is None else self.uv * [-1, 1] + [width - 1, 0], verts=self.verts * MIRROR,
            joints=self.joints * MIRROR, faces=self.faces[:, ::-1], K=K_of_mirror(torch.from_numpy(self.K), width).numpy(),
            side="left" if self.side == "right" else "right")


def write_panels(path: Path, plot: Plot) -> None:
    """The five panels as a JPEG."""
    panels = five_panels(*plot[:7], absolute=plot.absolute, notes=plot.notes)
    done, data = cv2.imencode(".jpg", panels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"a picture of shape {panels.shape} could not be encoded")
    write_bytes(path, data.tobytes())


def write_both(folder: Path, name: str, plot: Plot) -> None:
    """<name>_plot.jpg and <name>_mesh.ply."""
    write_panels(folder / f"{name}{PLOT}", plot)
    write_ply(folder / f"{name}{MESH}", plot.verts, plot.faces, comment=f"{plot.side} hand, {AXES}, root {plot.place}")


class Plots(contextlib.AbstractContextManager):
    """Draws chosen rows of a test as they are predicted; at the end of the block all are on disk."""

    def __init__(self, folder: str | Path, rows: Iterable[int], hand: HandModel, uv_of: UvOf | None = None):
        """folder: of the files, emptied of those of an earlier test · rows: of the reader, whose numbers name the files · hand:
        the right hand · uv_of: 2D joints from elsewhere, for methods that predict none."""
        self.folder, self.rows, self.uv_of = Path(folder), frozenset(rows), uv_of
        self.faces = hand.faces.cpu().numpy()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="plots")
        self._running: deque[Future] = deque()

    def __enter__(self) -> Self:
        for pattern in (f"*{PLOT}", f"*{MESH}"):
            for stale in self.folder.glob(pattern):
                stale.unlink()
        return self

    def add(self, samples: Batch, answer: Prediction) -> None:
        """Take the chosen rows out of a batch, with its finite answer. InputError: an answer without a mesh."""
        if answer.verts is None:
            raise InputError("test.plots: this method predicts no mesh to show in five panels; leave test.plots out")
        for i, row in enumerate(samples.index.tolist()):
            if row in self.rows:
                while len(self._running) >= WAITING:
                    self._running.popleft().result()
                plot = plot_of(samples.rows(slice(i, i + 1)), _row(answer, i), self.faces, self.uv_of)
                self._running.append(self._pool.submit(write_both, self.folder, f"{row:05d}", plot))

    def finish(self) -> None:
        """Wait until all that was added is on disk."""
        while self._running:
            self._running.popleft().result()

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _row(answer: Prediction, i: int) -> Prediction:
    return Prediction(*(None if part is None else part[i:i + 1].detach().float().cpu() for part in answer))


def plot_of(sample: Batch, answer: Prediction, faces: np.ndarray, uv_of: UvOf | None = None) -> Plot:
    """One frame (a batch of one) and its answer, as it was before a left hand was mirrored."""
    picture = (255 * sample.image[0]).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    K = sample.K[0].double().cpu()
    uv, weight = answer.joints_uv, answer.uv_confidence
    if uv is None and uv_of is not None:
        found, sure = uv_of(sample.index.tolist(), sample.mirrored.cpu().numpy())
        uv = transform_uv(sample.crop_from_image.double().cpu(), torch.from_numpy(np.asarray(found, np.float64)))
        weight = torch.from_numpy(np.asarray(sure, np.float64))
    root, absolute, place = _place(sample, answer, uv, weight, K)
    plot = Plot(picture, None if answer.mask is None else answer.mask[0].numpy(), None if uv is None else uv[0].double().numpy(),
                answer.verts[0].double().numpy() + root, answer.joints[0].double().numpy() + root, faces, K.numpy(), absolute,
                Notes("" if absolute else place), place=place)
    return plot.mirrored() if bool(sample.mirrored[0]) else plot


def _place(sample: Batch, answer: Prediction, uv: torch.Tensor | None, weight: torch.Tensor | None,
           K: torch.Tensor) -> tuple[np.ndarray, bool, str]:
    """Root (3), whether it was found (not lent), and from what."""
    by = None if answer.root_by is None else int(answer.root_by[0])
    if answer.root is not None and by != 0:  # 0: it is itself a stand-in
        return answer.root[0].double().numpy(), True, "predicted" + (f": {ROOT_BY[by]}" if by else "")
    if uv is not None:
        fit = solve_root(answer.joints.double(), uv.double(), K[None], torch.ones(1, 21) if weight is None else weight)
        if fit.valid[0]:
            return fit.root[0].numpy(), True, "from 2D keypoints and K"
    if sample.root is not None and (sample.has_root is None or bool(sample.has_root[0])) and torch.isfinite(sample.root[0]).all():
        return sample.root[0].double().cpu().numpy(), False, "placed at the true wrist"
    pixels = sample.image.shape[-1]
    middle = np.full(2, (pixels - 1) / 2)
    where = f"{int(sample.index[0]):05d}{PLOT}"
    return (place_by_box(answer.joints[0].double().numpy(), K.numpy(), middle, STAND_IN * pixels, where), False,
            "placed in mid-crop")
