"""One synthetic HO3D recording from (seed, person, number): a hand takes a thing, and what each camera sees and knows of it.

Labels are in each camera's OpenGL axes (x right, y up, z backwards), metres, joints in H21 with HO3D's own fingertips. Parameters
are rounded to float32 first and then posed in float64, so that LBS(handPose, handBeta) + handTrans is what the labels say.
`direct` alone, without drawing, gives the labels again: the lists and public evaluation labels are made of it.
"""
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from datasets.synthetic import ho3d_files as ho3d
from datasets.synthetic import things
from datasets.synthetic.assemble import HAND, assemble
from datasets.synthetic.ho3d_files import Recording
from datasets.synthetic.motion import Clip, Wish, plan
from datasets.synthetic.people import Person, Side
from datasets.synthetic.picture import Picture, draw, sample_sensor
from datasets.synthetic.scene import Rig, sample_intrinsics, sample_lighting, sample_rig
from datasets.synthetic.sequence import Labels, backgrounds, closing_on, label_clip
from utils.files import write_bytes
from utils.joints import reorder
from utils.rotation import axis_angle_from_matrix

OPENGL = np.diag([1.0, -1, -1, 1])  # from OpenCV axes, and back
CONTACT_M = 0.004
SEEN = 15  # joints in the picture: frames with fewer are left without annotation
MANUAL, MANUAL_M = 5, 0.0015  # fingertips marked "by hand": frames of a recording, and how exactly
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
_OBJECT_KEYS = ("objTrans", "objRot", "objCorners3D", "objCorners3DRest", "objName", "objLabel", "camMat")
_KEYS = {
    "train": (*_OBJECT_KEYS, "handPose", "handTrans", "handBeta", "handJoints3D", "camIDList", "handVertContact", "handVertDist",
              "handVertIntersec", "handVertObjSurfProj"),
    "evaluation": (*_OBJECT_KEYS, "handJoints3D", "handBoundingBox"),
}


@dataclass(frozen=True)
class Studio:
    """What all recordings share. K (3,3) of every camera, or None: drawn for each."""

    version: str
    seed: int
    width: int
    height: int
    K: np.ndarray | None
    focal: float
    distance_m: tuple[float, float]
    elevation_deg: tuple[float, float]
    people: tuple[Person, ...]
    side: Side
    wish: Wish
    unannotated: float
    noise: tuple[float, float]
    blur: tuple[float, float]
    quality: tuple[int, int]
    depth: bool


@dataclass(frozen=True)
class View:
    """One camera's labels over t frames, OpenGL axes, float32: pose (t,48), trans (t,3), joints (t,21,3) H21, verts (t,778,3) ·
    box (t,4) whole pixels · annotated (t).
    """

    pose: np.ndarray
    trans: np.ndarray
    joints: np.ndarray
    verts: np.ndarray
    box: np.ndarray
    annotated: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A recording before it is drawn; rng goes on to draw it."""

    recording: Recording
    person: Person
    rig: Rig
    clip: Clip
    labels: Labels
    views: list[View]
    rng: np.random.Generator

    @property
    def number(self) -> int:
        """YCB id of the thing in the hand."""
        return self.clip.ids[self.clip.grasped]


def direct(studio: Studio, recording: Recording) -> Scene:
    """Make up a recording: the same for the same options, in whatever process."""
    rng = np.random.default_rng([studio.seed, 4000 + recording.person, recording.number])
    person = studio.people[recording.person]
    hand = studio.side.anatomy(person.shape)
    K = np.repeat(studio.K[None], recording.cameras, 0) if studio.K is not None else sample_intrinsics(
        recording.cameras, studio.focal, studio.width, studio.height, rng)
    rig = sample_rig(K, studio.distance_m, studio.elevation_deg, rng)
    number = int(rng.choice(list(ho3d.THINGS)))
    clip = plan(studio.wish, hand, lambda place, i: closing_on(studio.side, person, hand, place, i), rig.seat, number, rng)
    labels = label_clip(studio.side, person, hand, clip)
    known = rng.uniform(size=len(clip.present)) >= studio.unannotated
    views = [_view(studio, person, hand.joints[0], labels, rig.camera_from_table[c], rig.K[c], known) for c in range(len(rig.K))]
    return Scene(recording, person, rig, clip, labels, views, rng)


def _moved(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _view(studio: Studio, person: Person, rest_wrist: np.ndarray, labels: Labels, camera_from_table: np.ndarray, K: np.ndarray,
          known: np.ndarray) -> View:
    model, opengl_from_table = studio.side.model, OPENGL @ camera_from_table
    turn = axis_angle_from_matrix(torch.from_numpy(opengl_from_table[:3, :3] @ labels.root))
    pose = torch.cat([turn, model.axis_angle_from_pca(torch.from_numpy(labels.pca))], 1).float()
    wrist = _moved(opengl_from_table, labels.trans + rest_wrist)
    trans = torch.from_numpy(wrist - rest_wrist).float()  # MANO's own: the hand turns about its rest wrist
    shape = torch.from_numpy(person.shape).float().double()
    posed = model.shaped(shape).posed(model.rotations_from_pose(pose.double(), pca=False, flat_mean=True)).moved(trans.double())
    joints = reorder(model.joints(posed, tips="ho3d"), "H21", of="T21").numpy()
    size = np.array([studio.width, studio.height])
    uv = project(joints, K)
    seen = ((uv >= 0) & (uv <= size - 1)).all(-1).sum(1) >= SEEN
    outline = project(posed.verts.numpy(), K)
    box = np.concatenate([np.floor(outline.min(1)), np.ceil(outline.max(1))], 1)
    box = np.clip(box, 0, np.tile(size - 1, 2)).astype(int)
    return View(pose.numpy(), trans.numpy(), joints.astype(np.float32), posed.verts.numpy().astype(np.float32), box, known & seen)


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels (...,2) of points (...,3) in OpenGL axes."""
    image = (points * OPENGL.diagonal()[:3]) @ K.T
    return image[..., :2] / image[..., 2:]


def surface_points(number: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points (n,3) on the surface of a thing next to points (n,3) of its frame, and which of these (n) are inside it."""
    inside = things.distance(number, points) < 0
    step, near = 1e-5, points
    for _ in range(8):  # Newton's, along the distance's slope: it is exact for flat sides, of first order on ellipses
        value = things.distance(number, near)
        slope = np.stack([things.distance(number, near + d) - things.distance(number, near - d) for d in step * np.eye(3)], 1)
        slope /= 2 * step
        near = near - slope * (value / np.maximum((slope * slope).sum(1), 0.2))[:, None]
    return near, inside


def _meta(scene: Scene, camera: int, t: int) -> dict[str, Any]:
    """What the meta pickle of a frame holds; all None where the frame has no annotation."""
    recording, view = scene.recording, scene.views[camera]
    keys = _KEYS[recording.splits[camera]]
    if not view.annotated[t]:
        return dict.fromkeys(keys)
    place = OPENGL @ scene.rig.camera_from_table[camera] @ scene.clip.places[t, scene.clip.grasped]
    rest = _CORNERS * things.SIZES[scene.number][1]
    turn = axis_angle_from_matrix(torch.from_numpy(place[:3, :3])).numpy()
    values = {"objTrans": place[:3, 3], "objRot": turn[:, None], "objCorners3D": _moved(place, rest), "objCorners3DRest": rest}
    values = {key: value.astype(np.float32) for key, value in values.items()}
    values |= {"objName": ho3d.THINGS[scene.number], "objLabel": scene.number, "camMat": scene.rig.K[camera]}
    if recording.splits[camera] == "evaluation":
        values |= {"handJoints3D": view.joints[t, 0], "handBoundingBox": view.box[t].tolist()}
    else:
        values |= {"handPose": view.pose[t], "handTrans": view.trans[t], "handBeta": scene.person.shape.astype(np.float32),
                   "handJoints3D": view.joints[t], "camIDList": [str(c) for c in range(recording.cameras)],
                   **_contact(scene, place, view.verts[t])}
    return {key: values[key] for key in keys}


def _contact(scene: Scene, place: np.ndarray, verts: np.ndarray) -> dict[str, np.ndarray]:
    """Where each vertex meets the thing; projections in the camera's frame."""
    near, inside = surface_points(scene.number, (verts - place[:3, 3]) @ place[:3, :3])
    near = _moved(place, near)
    distance = np.linalg.norm(verts - near, axis=1)
    return {"handVertContact": distance < CONTACT_M, "handVertDist": distance.astype(np.float32), "handVertIntersec": inside,
            "handVertObjSurfProj": near.astype(np.float32)}


def outputs(version: str, recording: Recording) -> list[str]:
    """The folders that a recording makes, in the order in which they are put in their place."""
    pairs = list(zip(recording.splits, recording.sequences))
    calibrated = [f"calibration/{recording.stem}"] if recording.cameras > 1 else []
    rendered = [f"{_rendered(version)}/{split}/{name}" for split, name in pairs if split == "train"]
    return [*calibrated, *rendered, *(f"{split}/{name}" for split, name in pairs)]


def _rendered(version: str) -> str:
    return f"HO3D_{version}_segmentations_rendered"


def write_recording(studio: Studio, recording: Recording, root: Path) -> int:
    """Write a recording beside its place, then move it there. Returns the number of pictures."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scratch = root / ".part" / recording.stem
    shutil.rmtree(scratch, ignore_errors=True)
    scene = direct(studio, recording)
    rng, rig, clip, count = scene.rng, scene.rig, scene.clip, recording.cameras
    hand = studio.side.anatomy(scene.person.shape)
    surface, verts, normals = assemble(studio.seed, studio.side, scene.person, hand, clip, scene.labels.verts, rng)
    lighting, sensor = sample_lighting(rng), sample_sensor(count, studio.noise, studio.blur, studio.width, rng)
    empty = backgrounds(studio.seed, rig, studio.height, studio.width, lighting, sensor.gain, rng)
    quality = rng.integers(studio.quality[0], studio.quality[1] + 1, (len(clip.present), count))
    for folder in outputs(studio.version, recording):
        for kind in {"calibration": ("calibration",), _rendered(studio.version): ("seg",)}.get(
                folder.split("/")[0], ("rgb", "meta", "depth") if studio.depth else ("rgb", "meta")):
            (scratch / folder / kind).mkdir(parents=True)
    _write_calibration(studio, scene, scratch)
    for t, c, picture in draw(surface, verts, normals, clip.present, rig, empty, lighting, sensor, rng):
        _write_frame(studio, scene, c, t, picture, int(quality[t, c]), scratch)
    _write_manual(scene, root)
    for folder in outputs(studio.version, recording):
        if not (root / folder).is_dir():
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            (scratch / folder).rename(root / folder)
    shutil.rmtree(scratch)
    return count * len(clip.present)


def _write_frame(studio: Studio, scene: Scene, camera: int, t: int, picture: Picture, quality: int, scratch: Path) -> None:
    split, name = scene.recording.splits[camera], scene.recording.sequences[camera]
    folder, form = scratch / split / name, ho3d.PICTURES[studio.version]
    (folder / "rgb" / f"{t:04d}.{form}").write_bytes(ho3d.picture_bytes(picture.image, form, quality))
    (folder / "meta" / f"{t:04d}.pkl").write_bytes(ho3d.pickle_bytes(_meta(scene, camera, t)))
    if studio.depth:
        (folder / "depth" / f"{t:04d}.png").write_bytes(ho3d.depth_png_bytes(picture.depth))
    if split == "train" and scene.views[camera].annotated[t]:  # the original's are rendered from the annotation
        path = scratch / _rendered(studio.version) / split / name / "seg" / f"{t:04d}.{ho3d.SEGMENTATION[studio.version][1]}"
        path.write_bytes(ho3d.segmentation_bytes(picture.seg == HAND, picture.seg == scene.number, studio.version))


def _write_calibration(studio: Studio, scene: Scene, scratch: Path) -> None:
    """Of recordings by several cameras: where the cameras are, in an order that is not that of their digits."""
    if scene.recording.cameras == 1:
        return
    folder, order = scratch / "calibration" / scene.recording.stem / "calibration", scene.rng.permutation(scene.recording.cameras)
    texts = ho3d.calibration(scene.rig.K, scene.rig.camera_from_table, order, studio.width, studio.height)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_manual(scene: Scene, root: Path) -> None:
    """Fingertips (5,3), little to thumb, as if marked by hand in the second camera of a few frames."""
    if scene.recording.cameras == 1:
        return
    view = scene.views[1]
    known = np.flatnonzero(view.annotated)
    for t in known[::max(1, len(known) // MANUAL)][:MANUAL]:
        content = io.BytesIO()
        np.save(content, view.joints[t, [20, 19, 18, 17, 16]] + scene.rng.normal(0, MANUAL_M, (5, 3)))
        write_bytes(root / "manual_annotations" / f"{scene.recording.stem}_{t:04d}.npy", content.getvalue())
