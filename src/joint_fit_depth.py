"""The depth cue: the person's pictures with aligned depth, one by one until enough of them show a hand, then all together.

Keypoints give a first pose, the depth picture the place: the whole hand is moved along its rays to where the surface is, as a
wrong size puts it centimetres off. Then the mesh is fitted to the surface (src/joint_fit_dense.py). A picture in which less than
`surface_least` of the fitted mesh lies on the seen surface hides the hand behind something, or was fitted to something else: it
does not count, and the person's next picture is tried.
"""
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from src.calibrate_options import CalibrateOptions
from src.joint_fit_data import Frames, frames_of, observe, picture_start
from src.joint_fit_dense import DepthPicture, SurfaceFit, SurfaceFitted
from src.solver import HandState, Observations, solve
from utils.depth import read_depth
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import Predictions

log = logging.getLogger(__name__)
ROOM = 0.6  # share of the keypoints' box that is kept around it
TRIES = 3  # pictures that are tried for each one wanted, and ...
MORE_TRIES = 9
MOVES = 2  # times that the hand is moved to the surface: once near, another part of it is drawn


@dataclass
class Person:
    """What a person's pictures gave so far: `order` the rows left to try, how many were tried, and of those that count the names,
    pictures, keypoints and fits."""

    order: list[int]
    tried: int = 0
    names: list[str] = field(default_factory=list)
    pictures: list[DepthPicture] = field(default_factory=list)
    seen: list[Observations] = field(default_factory=list)
    fits: list[SurfaceFitted] = field(default_factory=list)


def fit_depth(predictions: Predictions, orders: Mapping[int, np.ndarray], options: CalibrateOptions, hand: HandModel,
              ) -> dict[int, tuple[SurfaceFitted, Person]]:
    """Subject -> fit of the first options.n pictures that show a hand; subjects without any are left out.

    orders: rows of the file. Raises InputError: a depth picture is missing, broken or of another size than the colour picture.
    """
    hand = hand.in_float64()
    fit, prior = SurfaceFit(hand, options.fit), (torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64))
    people = {subject: Person(order.tolist()) for subject, order in orders.items()}
    while wave := [(p, p.order.pop(0)) for p in people.values() for _ in range(_wanted(p, options.n))]:
        frames = frames_of(predictions, np.array([row for _, row in wave]), options.keypoints, options.fit)
        state, good = picture_start(hand, frames, torch.from_numpy(frames.shapes))
        seen = observe(frames, [[i] for i in range(len(frames))])
        state = solve(hand, seen, state, options.fit.solver).state
        for i, (person, _) in enumerate(wave):
            person.tried += 1
            if not good[i]:
                continue
            picture = open_picture(options.depth_root, frames, i)
            found = fit.fit([picture], seen.rows(slice(i, i + 1)), _moved(fit, picture, state.rows(slice(i, i + 1))), *prior)
            if found.explained[0] >= options.fit.surface_least:
                person.names.append(str(frames.names[i]))
                person.pictures.append(picture)
                person.seen.append(seen.rows(slice(i, i + 1)))
                person.fits.append(found)
    return {subject: (_together(fit, p, *prior), p) for subject, p in people.items() if p.fits}


def _wanted(person: Person, n: int) -> int:
    """How many of the person's pictures are tried next."""
    return max(0, min(n - len(person.fits), len(person.order), TRIES * n + MORE_TRIES - person.tried))


def _together(fit: SurfaceFit, person: Person, mean: torch.Tensor, covariance: torch.Tensor) -> SurfaceFitted:
    if len(person.fits) == 1:
        return person.fits[0]
    shape = torch.stack([found.shape for found in person.fits]).mean(0)
    states = [found.state for found in person.fits]
    state = HandState(*(torch.cat([getattr(s, name) for s in states]) for name in ("rotations", "root")),
                      shape.expand(len(states), 10))
    seen = replace(person.seen[0], **{name: torch.cat([getattr(one, name) for one in person.seen])
                                      for name in ("uv", "uv_weight", "K")})
    return fit.fit(person.pictures, seen, state, mean, covariance)


def _moved(fit: SurfaceFit, picture: DepthPicture, state: HandState) -> HandState:
    """The hand where the picture has a surface, along its rays."""
    posed = fit.hand(state.rotations, state.shape)
    verts = posed.verts[0] - fit.hand.joints(posed)[0, :1]
    root = state.root
    for _ in range(MOVES):
        placed = verts + root
        root = root * (1 + fit.surface.gap(picture.depth, placed, picture.K) / float(placed[:, 2].mean()))
    return replace(state, root=root)


def depth_path(root: str, name: str) -> Path:
    """The depth picture beside a colour picture."""
    path = Path(root) / name
    if not path.name.startswith("color_"):
        raise InputError(f"calibrate.method=depth: {name}: expected a frame named like .../color_000000.jpg (DexYCB), whose "
                         "depth is aligned_depth_to_color_000000.png beside it; depth needs DexYCB's names")
    return path.with_name(path.name.replace("color_", "aligned_depth_to_color_", 1)).with_suffix(".png")


def open_picture(root: str, frames: Frames, row: int) -> DepthPicture:
    """A frame's depth, cut to its keypoints' surroundings."""
    path = depth_path(root, str(frames.names[row]))
    depth = read_depth(path, bool(frames.mirrored[row])).double()
    seen = frames.uv[row][frames.weight[row] > 0]
    low, high = seen.min(0), seen.max(0)
    room = ROOM * max(high - low)
    left, top = np.maximum(np.floor(low - room), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + room) + 1, depth.shape[::-1]).astype(int)
    if right - left < 2 or bottom - top < 2:
        raise InputError(f"{path}: the hand's keypoints lie outside of its {depth.shape[1]}x{depth.shape[0]} pixels; expected a "
                         "depth picture registered to the colour picture, and of its size")
    K = frames.K[row].copy()
    K[:2] -= np.array([[left], [top]]) * K[2]
    return DepthPicture(depth[top:bottom, left:right].contiguous(), torch.from_numpy(K))
