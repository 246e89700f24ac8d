"""Demo on a video, or a folder of frames: one hand per side, followed, smoothed and drawn; its jitter with and without.

Each frame is seen by itself (src/demo_hand.py). With an identity the shape is the same in all frames; rotations, root and a shape
that is not held go through a One-Euro filter (src/one_euro.py). One pass, memory for the joints only. Frames that fail (cannot be
read, no box, two hands of one side) are drawn without a hand, counted and named at the end; the filter bridges them.
"""
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from src.demo_camera import CameraSource
from src.demo_geometry import NEAREST_M
from src.demo_hand import PREDICTED, Seen, ShownHand, View, held, look, posed, shown, write_mesh
from src.demo_input import NAMED, HandBox, Unfit, boxes_of, counted, first_of, names_of
from src.demo_numbers import AXES, hand_numbers, models
from src.demo_refine import refined
from src.demo_video import Frame, Frames, VideoOut, video_out
from src.jitter import bone_lengths_mm, hand_lengths_mm, jitter, spread_mm
from src.one_euro import POINT_UNIT_M, OneEuro, OneEuroOptions
from utils.errors import InputError
from utils.files import atomic_path, write_json
from utils.render import overlay
from utils.strict import Strict

log = logging.getLogger(__name__)
Boxes = Mapping[str, list[HandBox]] | list[HandBox] | None


class SmoothOptions(OneEuroOptions):
    """The filter of rotations and bearing; of the distance, which one picture knows far less well, cut-off and beta are lower."""

    depth: float = Field(0.3, gt=0, le=1, description="factor on min_cutoff and beta for the distance to the camera")


class TrackOptions(Strict):
    """How hands are fitted, and the frames of a track become one motion (part of `demo:` of an option file)."""

    smooth: Literal["none", "one_euro"] = Field("one_euro", description="tracks: filter over time, after each frame alone")
    one_euro: SmoothOptions = SmoothOptions()
    fps: float | None = Field(None, gt=0, le=1000, description="frames per second; null = the video's own, 30 for a folder")
    refine: bool = Field(False, description="fit pose and place to the 2D keypoints, with the shape as it is")
    meshes: bool | None = Field(None, description="write PLYs; null = for pictures, not for the frames of a track")


class Smoother:
    """One hand over time: rotations on the manifold, the root by bearing and distance, a shape that is not held as a constant.

    A picture shows where a hand is across the ray to a millimetre, and along it to centimetres: filtered as one point, the noise
    of the distance would pass for speed, or the overlay would lag.
    """

    def __init__(self, view: View, options: SmoothOptions):
        self.view = view
        self._rotations = OneEuro(options, "rotations")
        self._bearing = OneEuro(options, "points")
        along = {"min_cutoff": options.min_cutoff * options.depth, "beta": options.beta * options.depth}
        self._depth = OneEuro(options.model_copy(update=along), "points", POINT_UNIT_M)
        self._mesh = OneEuro(options, "points", POINT_UNIT_M)
        # A person's shape is constant: whatever moves it is error, at any speed.
        self._shape = OneEuro(options.model_copy(update={"beta": 0.0}))

    def __call__(self, seen: Seen, seconds: float) -> Seen:
        """The filtered hand, `seconds` after the one before."""
        root = self._root(seen.root, seconds)
        if seen.rotations is None or seen.shape is None:  # a mesh without parameters: its points, about the wrist
            points = self._mesh(torch.cat((seen.verts, seen.joints)), seconds)
            return seen._replace(root=root, verts=points[:len(seen.verts)], joints=points[len(seen.verts):])
        shape = self._shape(seen.shape[None], seconds)[0] if seen.shape_source == PREDICTED else seen.shape
        return posed(self.view, seen, self._rotations(seen.rotations, seconds), shape)._replace(root=root)

    def _root(self, root: torch.Tensor, seconds: float) -> torch.Tensor:
        """(3) the filtered root of this one (3)."""
        depth = self._depth(root[2:, None], seconds)[0]
        near = root[2].clamp_min(NEAREST_M)
        self._bearing.unit = POINT_UNIT_M / float(near)  # speeds across the ray count in metres, too
        return torch.cat((self._bearing((root[:2] / near)[None], seconds)[0] * depth, depth))


class _Follower:
    """One side's hand through the track: what is shown, and the joints and sizes with and without identity and filter."""

    def __init__(self, view: View, options: TrackOptions, fps: float):
        self.view, self.options, self.fps = view, options, fps
        self._smoothers = {kind: Smoother(view, options.one_euro) for kind in ("own shape", "identity's shape")}
        self._before: int | None = None
        self.frames: list[int] = []
        self.joints: dict[tuple[str, str], list[np.ndarray]] = {}
        self.shapes: dict[tuple[str, str], list[np.ndarray]] = {}

    def step(self, number: int, own: Seen, where: Path) -> Seen:
        """The hand to show in this frame, from the method's own answer."""
        seconds = (number - self._before) / self.fps if self._before is not None else 1.0
        kinds = {"identity's shape" if self.view.told else "own shape": own}
        if self.view.holds:
            kinds["identity's shape"] = held(self.view, own, where)
        for kind, seen in kinds.items():
            if self.options.refine:
                seen = refined(self.view, seen)
            self._note(kind, "unfiltered", seen)
            if self.options.smooth == "one_euro":
                seen = self._smoothers[kind](seen, seconds)
                self._note(kind, "filtered", seen)
        self.frames.append(number)
        self._before = number
        return seen

    def _note(self, kind: str, how: str, seen: Seen) -> None:
        self.joints.setdefault((kind, how), []).append(seen.absolute)
        if seen.shape is not None:
            self.shapes.setdefault((kind, how), []).append(seen.shape.numpy())

    def report(self) -> dict[str, Any]:
        """Jitter of the camera-space joints and spread of the hand's length, by shape and filter."""
        found: dict[str, Any] = {}
        for (kind, how), joints in self.joints.items():
            shapes = self.shapes.get((kind, how))
            lengths = bone_lengths_mm(np.stack(joints)) if shapes is None else hand_lengths_mm(self.view.hand, np.stack(shapes))
            found.setdefault(kind, {})[how] = {"jitter": jitter(np.stack(joints), np.array(self.frames), self.fps),
                                               "hand_length": spread_mm(lengths)}
        return {"frames": len(self.frames), "tracks": found}


class _Track:
    """The state of one track while its frames go by."""

    def __init__(self, view: View, options: TrackOptions, cameras: CameraSource, boxes: Boxes, fps: float, folder: Path,
                 name: str):
        self.view, self.options, self.cameras, self.boxes, self.fps = view, options, cameras, boxes, fps
        self.folder, self.name = folder, name
        self.followers: dict[str, _Follower] = {}
        self.failed: list[str] = []
        self.empty = self.pictures = self.hands = 0
        self.sources: Counter[str] = Counter()
        self.named: set[str] = set()
        self.size: list[int] | None = None

    def frame(self, frame: Frame, out: VideoOut, lines: IO[str], alpha: float) -> None:
        """One frame into the video and the table; a fault is noted, and the frame shown without a hand."""
        self.named.update(names_of(frame.path))
        picture, row = frame.picture, {"frame": frame.number, "name": frame.path.name, "hands": [], "fault": frame.fault}
        try:
            if picture is None:
                raise InputError(frame.fault)
            if fault := out.fits(picture):
                picture = None
                raise InputError(f"{frame.path}: {fault}")
            camera, hands = self._hands(frame)
            for one in sorted(hands, key=lambda h: -h.root[2]):
                picture = overlay(picture, one.verts + one.root, one.faces, camera.K, alpha=alpha)
            row |= {"K": camera.K.tolist(), "K_source": camera.source, "hands": self._written(frame, hands)}
            self.sources[camera.source] += 1
            self.size = self.size or [picture.shape[1], picture.shape[0]]
            self.pictures, self.hands, self.empty = self.pictures + 1, self.hands + len(hands), self.empty + (not hands)
        except Unfit:
            raise
        except InputError as error:
            row["fault"] = str(error)
            self.failed.append(str(error))
        out.write(picture)
        lines.write(json.dumps(row, allow_nan=False) + "\n")

    def _hands(self, frame: Frame):
        camera = self.cameras.camera(frame.path, *frame.picture.shape[:2])
        boxes = boxes_of(self.boxes, frame.path)
        found = [None] if boxes is None else boxes
        sides = [(box.side if box else None) or self.view.side for box in found]
        if len(set(sides)) < len(sides):
            raise InputError(f"{frame.path}: {len(sides)} hands, {' and '.join(sides)}: a track follows one hand per side; say "
                             "the side of each box, or leave one out")
        answers = [look(self.view, frame.path, frame.picture, camera.K, box) for box in found]
        hands = []
        for own in answers:
            follower = self.followers.setdefault(own.side, _Follower(self.view, self.options, self.fps))
            hands.append(shown(self.view, follower.step(frame.number, own, frame.path)))
        return camera, hands

    def _written(self, frame: Frame, hands: list[ShownHand]) -> list[dict[str, Any]]:
        """The hands in numbers, and their meshes where asked for."""
        rows = []
        for one in hands:
            file = f"{self.name}/{frame.path.stem}_{one.seen.side}.ply" if self.options.meshes else None
            if file:
                write_mesh(self.folder / file, one)
            rows.append(hand_numbers(one, file))
        return rows


def show_track(view: View, options: TrackOptions, source: Path, folder: Path, cameras: CameraSource, boxes: Boxes,
               identity_file: str | None, alpha: float) -> dict[str, Any]:
    """Write <name>.mp4 (overlay), .jsonl (one line per frame) and .json (what it stands on; jitter) to `folder`.

    source: a video, or a folder whose pictures are the frames. Returns {pictures, hands, folder, text}. Raises InputError:
    nothing could be shown; and, after all else is written, frames that failed or a video that ended early.
    """
    frames = Frames(source, options.fps)
    name = source.stem if source.is_file() else source.resolve().name
    track = _Track(view, options, cameras, boxes, frames.rate.fps, folder, name)
    with video_out(folder / f"{name}.mp4", frames.rate.fps) as out, atomic_path(folder / f"{name}.jsonl") as table:
        with open(table, "w", encoding="utf-8") as lines:
            for frame in tqdm(frames, desc="demo", unit="frame", total=frames.announced, disable=None):
                track.frame(frame, out, lines, alpha)
        if not track.hands:
            reason = f": {track.failed[0]}" if track.failed else "; the box file says that there is none"
            raise InputError(f"{source}: no frame with a hand that could be shown ({len(track.failed)} failed){reason}")
    hands = {side: follower.report() for side, follower in track.followers.items()}
    write_json(folder / f"{name}.json", {
        "track": str(source), "frames": _counts(track, frames), "fps": frames.rate.fps, "fps_source": frames.rate.source,
        "size": track.size, "frame": AXES, "K_sources": dict(track.sources), "video": f"{name}.mp4", "table": f"{name}.jsonl",
        "smooth": options.smooth, "one_euro": options.one_euro.model_dump() if options.smooth == "one_euro" else None,
        "hands": hands, **models(view, identity_file)})
    text = "\n".join([f"{counted(track.pictures, 'frame')}, {counted(track.hands, 'hand')} -> {folder}",
                      *(_line(side, hands[side]) for side in hands)])
    if isinstance(boxes, Mapping) and (unused := sorted(set(boxes) - track.named)):
        log.warning("%d entries of the box file name no frame of %s (first: %s)", len(unused), source, unused[0])
    faults = _faults(track, frames)
    if faults:
        log.info("%s", text)
        raise InputError(f"{faults}; the other {track.pictures} frames are in {folder}")
    return {"pictures": track.pictures, "hands": track.hands, "folder": str(folder), "text": text}


def _counts(track: _Track, frames: Frames) -> dict[str, Any]:
    return {"announced": frames.announced, "read": frames.read, "shown": track.pictures, "without_hand": track.empty,
            "failed": len(track.failed), "faults": track.failed[:NAMED], "cut_short": frames.cut_short}


def _faults(track: _Track, frames: Frames) -> str:
    """One line on what went wrong, empty where nothing did."""
    told = [frames.cut_short] if frames.cut_short else []
    if track.failed:
        told.append(f"{counted(len(track.failed), 'frame')} could not be shown: {first_of(track.failed)}")
    return "; ".join(told)


def _line(side: str, report: dict[str, Any]) -> str:
    """Jitter and size of one hand's track, in words."""
    parts = []
    for kind, hows in report["tracks"].items():
        for how, found in hows.items():
            shaken, length = found["jitter"], found["hand_length"]
            size = "too short to tell" if shaken["mm_per_frame2"] is None else (
                f"{shaken['mm_per_frame2']:.2f} mm/frame2 ({shaken['m_per_s2']:.1f} m/s2)")
            parts.append(f"  {kind}, {how}: jitter {size}, hand length {length['mean_mm']:.1f} mm, sd {length['sd_mm']:.2f} mm")
    return "\n".join([f"{side} hand, {counted(report['frames'], 'frame')}:", *parts])
