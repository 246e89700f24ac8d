"""Demo: pictures or a video of hands -> overlay, mesh (PLY) and numbers (JSON), with a person's identity file where one is given.

Each hand is cropped as in training (utils/camera.py), left ones from the mirrored picture and mirrored back afterwards
(src/demo_hand.py). A method that predicts no root is drawn where 2D keypoints or its box say, and the JSON says so; as it says
which K was used (src/demo_camera.py). A picture that fails leaves nothing behind and does not stop the others; the demo ends by
naming the first of them and counting the rest. Videos, and folders with demo.track, are tracks of one hand per side:
src/demo_track.py.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from pydantic import Field
from tqdm import tqdm

from src.demo_camera import CameraSource
from src.demo_hand import Crop, Keypoints, View, evaluating, held, look, require_fit, shown, write_mesh
from src.demo_input import HandBox, Unfit, boxes_of, counted, first_of, list_pictures, read_boxes, read_picture
from src.demo_numbers import picture_numbers
from src.demo_plots import plot_names, plot_of_hand
from src.demo_refine import refined
from src.demo_track import TrackOptions, show_track
from src.demo_video import is_video
from src.identity import Identity, read_identity
from src.method import Method
from src.plots import write_panels
from utils.errors import InputError
from utils.files import write_bytes, write_json
from utils.hand import HandModel
from utils.render import overlay


class DemoOptions(TrackOptions):
    """What the demo shows and what it may assume (`demo:` of an option file)."""

    input: str = Field("", description="a picture, a folder of pictures, or a video")
    checkpoint: str | None = Field(None, description="checkpoint to show; null = the run's last")
    out: str = Field("", description="folder of the results; empty = out/<name>/demo")
    boxes: str | None = Field(None, description="boxes [left, top, width, height] of the hands, json; null = whole pictures")
    K: str | None = Field(None, description="camera matrix: .json or .npy, or a folder of them; null = from fov")
    fov: float | None = Field(None, gt=0, lt=180, description="degrees across the longer side; null = EXIF, else nominal")
    side: Literal["right", "left"] = Field("right", description="which hand it is, where the box does not say")
    identity: str | None = Field(None, description="identity file of the person shown (of `calibrate`): told to a network that "
                                                   "is told one, else its shape takes the place of the predicted one")
    keypoints: str | None = Field(None, description="folder of a trained run of 2D joints (pose2d), which then place the hand")
    alpha: float = Field(0.8, ge=0, le=1, description="opacity of the drawn mesh")
    panels: bool = Field(False, description="also write NNN_plot.jpg, five panels of each hand, with NNN_mesh.ply in place of "
                                            "NNN.ply; of a picture NNN_img.jpg or NNN.jpg")
    track: bool = Field(False, description="take a folder for the frames of one track, as a video is")


@dataclass(frozen=True)
class _Run:
    """What stays the same for all pictures."""

    view: View
    options: DemoOptions
    cameras: CameraSource
    boxes: dict[str, list[HandBox]] | list[HandBox] | None


def demo(method: Method, hand: HandModel, options: DemoOptions, folder: str | Path, crop: Crop, device: torch.device, *,
         checkpoint: str | None = None, keypoints: Keypoints | None = None) -> dict[str, Any]:
    """Show `options.input` in `folder`: <picture>.png, .ply (one per hand), .json; or of a track <name>.mp4, .json and .jsonl.
    With demo.panels the meshes are NNN_mesh.ply, beside NNN_plot.jpg (src/demo_plots.py).

    Returns {pictures, hands, folder, text}. method: with its weights loaded; hand: the right hand model it was built with; crop:
    the crop options it was trained with; checkpoint: its name, for the JSON; keypoints: a second network, for 2D joints. Raises
    InputError: no picture, a broken box, K or identity file, an identity or 2D joints missing where the method is told them, a
    method without a mesh; and, after all else is done, for pictures and frames that failed.
    """
    folder = Path(folder)
    if options.track and Path(options.input).is_file() and not is_video(options.input):
        raise InputError(f"demo.track: {options.input} is one picture; name a folder of frames or a video, or leave it out")
    source = Path(options.input)
    if options.input and folder.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise InputError(f"demo.out: {folder} is the folder of the pictures, and results would mix with them; name another")
    track = options.track or (is_video(source) and source.is_file())
    if track and options.panels:
        raise InputError("demo.panels: five-panel pictures are of pictures, and this is a track; leave demo.panels or demo.track "
                         "out")
    pictures = [] if track else list_pictures(options.input)
    cameras = CameraSource(options.K, options.fov)
    require_fit(method, keypoints, "demo")
    if pictures:
        cameras.require_some(pictures)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    view = View(method.to(device), hand, crop, device, options.side, _identity(method, hand, options), checkpoint, keypoints)
    with evaluating(method, keypoints and keypoints.method.to(device)):
        if track:
            return show_track(view, options, source, folder, cameras, boxes, options.identity, options.alpha)
        return _pictures(_Run(view, options, cameras, boxes), pictures, folder)


def _identity(method: Method, hand: HandModel, options: DemoOptions) -> Identity | None:
    """The person's identity; missing only where the method does not ask for one."""
    if options.identity is not None:
        return read_identity(options.identity, hand)
    if "identity" in method.needs:
        raise InputError("demo.identity: this model is told whose hand it sees; set demo.identity=<file written by "
                         "calibrate>, or use a model that predicts the shape")
    return None


def _pictures(run: _Run, pictures: list[Path], folder: Path) -> dict[str, Any]:
    hands, failed = 0, []
    names = _names(pictures)
    for path, name, short in tqdm(list(zip(pictures, names, plot_names(names))), desc="demo", unit="picture", disable=None):
        try:
            hands += _picture(run, path, folder, name, short)
        except Unfit:
            raise
        except InputError as error:
            failed.append(str(error))
    if failed:
        done = len(pictures) - len(failed)
        rest = f"; the other {f'{done} are' if done > 1 else 'is'} in {folder}" if done else ""
        raise InputError(f"{len(failed)} of {counted(len(pictures), 'picture')} could not be shown: {first_of(failed)}{rest}")
    return {"pictures": len(pictures), "hands": hands, "folder": str(folder),
            "text": f"{counted(len(pictures), 'picture')}, {counted(hands, 'hand')} -> {folder}"}


def _names(pictures: list[Path]) -> list[str]:
    """Names of the results: the pictures' stems, whole names where two share a stem."""
    stems = [path.stem for path in pictures]
    return [path.name if stems.count(path.stem) > 1 else path.stem for path in pictures]


def _picture(run: _Run, path: Path, folder: Path, name: str, short: str) -> int:
    """All hands of one picture; nothing is written before all are computed. Returns how many."""
    picture = read_picture(path)
    camera = run.cameras.camera(path, *picture.shape[:2])
    boxes = boxes_of(run.boxes, path)
    seen = [look(run.view, path, picture, camera.K, box) for box in ([None] if boxes is None else boxes)]
    seen = [held(run.view, one, path) if run.view.holds else one for one in seen]
    hands = [shown(run.view, refined(run.view, one) if run.options.refine else one) for one in seen]
    drawn = picture
    for one in sorted(hands, key=lambda h: -h.root[2]):  # far to near
        drawn = overlay(drawn, one.verts + one.root, one.faces, camera.K, alpha=run.options.alpha)
    ends = [""] if len(hands) == 1 else [f"_{number}" for number in range(len(hands))]
    names = [f"{short}_mesh{end}.ply" if run.options.panels else f"{name}{end}.ply" for end in ends]
    files = names if run.options.meshes in (True, None) else [None] * len(hands)
    plots = [f"{short}_plot{end}.jpg" if run.options.panels else None for end in ends]
    for one, file, plot in zip(hands, files, plots):
        if file is not None:
            write_mesh(folder / file, one)
        if plot is not None:
            write_panels(folder / plot, plot_of_hand(picture, camera, one))
    write_bytes(folder / f"{name}.png", cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
    numbers = picture_numbers(run.view, path, picture, camera, list(zip(hands, files)), run.options.identity)
    if run.options.panels:
        numbers["plots"] = plots
    write_json(folder / f"{name}.json", numbers)
    return len(hands)
