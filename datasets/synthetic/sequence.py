"""One synthetic recording from (seed, person, number): motion, labels, pictures, files. This is what a worker process runs.

Everything random follows from (seed, person, number), so the bytes do not depend on which process writes them, or when.
Labels: pose coefficients are rounded to float32 first, then posed in float64, so what a reader rebuilds is what was drawn.
"""
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.synthetic import dexycb_files as dexycb
from datasets.synthetic import motion, things
from datasets.synthetic.anatomy import Anatomy, axis_angle_from_angles, grasp_pose
from datasets.synthetic.assemble import assemble
from datasets.synthetic.backdrop import Background, sample_stage
from datasets.synthetic.backdrop import draw as draw_background
from datasets.synthetic.motion import Clip, Wish, plan
from datasets.synthetic.people import Person, Side
from datasets.synthetic.picture import draw, sample_sensor
from datasets.synthetic.scene import Lighting, Rig, sample_lighting
from utils.joints import T21_FROM_H21
from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle, quaternion_from_matrix

GAP_M = 0.003  # the lowest point stays this far above the table


@dataclass(frozen=True)
class Studio:
    """What all sequences share: seed, picture size, people, rigs (one per person), hands, how sequences are, camera quality."""

    seed: int
    width: int
    height: int
    people: tuple[Person, ...]
    rigs: tuple[Rig, ...]
    right: Side
    left: Side | None
    wish: Wish
    left_share: float
    sequences: int
    noise: tuple[float, float]
    blur: tuple[float, float]
    quality: tuple[int, int]
    depth: bool


@dataclass(frozen=True)
class Labels:
    """Of t frames in the table frame: root (t,3,3), trans (t,3), pca (t,45), joints (t,21,3), verts (t,778,3)."""

    root: np.ndarray
    trans: np.ndarray
    pca: np.ndarray
    joints: np.ndarray
    verts: np.ndarray


def write_sequence(studio: Studio, subject: int, index: int, folder: Path, scratch: Path) -> int:
    """Write a recording to `scratch`, then move it to `folder`. Returns the number of pictures."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shutil.rmtree(scratch, ignore_errors=True)
    rng = np.random.default_rng([studio.seed, 1000 + subject, index])
    person, rig = studio.people[subject], studio.rigs[subject]
    side = studio.left if studio.left and rng.uniform() < studio.left_share else studio.right
    hand = side.anatomy(person.shape)
    number = things.IDS[index * len(things.IDS) // studio.sequences]  # as in the original: five takes of each
    clip = plan(studio.wish, hand, lambda place, i: closing_on(side, person, hand, place, i), rig.seat, number, rng)
    labels = label_clip(side, person, hand, clip)
    count = len(rig.K)
    for serial in dexycb.SERIALS[:count]:
        (scratch / serial).mkdir(parents=True)
    surface, verts, normals = assemble(studio.seed, side, person, hand, clip, labels.verts, rng)
    lighting, sensor = sample_lighting(rng), sample_sensor(count, studio.noise, studio.blur, studio.width, rng)
    empty = backgrounds(studio.seed, rig, studio.height, studio.width, lighting, sensor.gain, rng)
    quality = rng.integers(studio.quality[0], studio.quality[1] + 1, (len(clip.present), count))
    views = [_view(side, hand, clip, labels, rig.camera_from_table[c], rig.K[c]) for c in range(count)]
    for t, c, picture in draw(surface, verts, normals, clip.present, rig, empty, lighting, sensor, rng):
        place = scratch / dexycb.SERIALS[c]
        content = {"seg": picture.seg, **{key: value[t] for key, value in views[c].items()}}
        (place / f"labels_{t:06d}.npz").write_bytes(dexycb.npz_bytes(content))
        (place / f"color_{t:06d}.jpg").write_bytes(dexycb.jpeg_bytes(picture.image, int(quality[t, c])))
        if studio.depth:
            (place / f"aligned_depth_to_color_{t:06d}.png").write_bytes(dexycb.depth_png_bytes(picture.depth))
    (scratch / "pose.npz").write_bytes(dexycb.npz_bytes(_world(hand, clip, labels, rig.camera_from_table[master(count)])))
    text = dexycb.meta_yml(subject, count, len(clip.present), clip.ids, clip.grasped, side.model.side)
    (scratch / "meta.yml").write_text(text, encoding="utf-8")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch.rename(folder)
    return count * len(clip.present)


def master(cameras: int) -> int:
    """Index of the camera whose frame is the world."""
    return min(2, cameras - 1)


def _rotations(side: Side, root: np.ndarray, pca: np.ndarray) -> torch.Tensor:
    """(t,16,3,3) from the global rotation and the 45 coefficients."""
    fingers = matrix_from_axis_angle(side.model.axis_angle_from_pca(torch.from_numpy(pca)).unflatten(-1, (15, 3)))
    return torch.cat([torch.from_numpy(root)[:, None], fingers], 1)


def label_clip(side: Side, person: Person, hand: Anatomy, clip: Clip) -> Labels:
    """Pose the hand in the table frame; lift it, and what it holds, where it would reach into the table (clip is changed)."""
    fingers = torch.from_numpy(axis_angle_from_angles(clip.angles, hand.axes)).flatten(1)
    pca = side.model.pca_from_axis_angle(fingers).numpy().astype(np.float32).astype(np.float64)
    posed = side.model.shaped(torch.from_numpy(person.shape)).posed(_rotations(side, clip.turn, pca))
    posed = posed.moved(torch.from_numpy(clip.wrist - hand.joints[0]))
    low = posed.verts[..., 2].amin(1).numpy()
    thing = things.mesh(clip.ids[clip.grasped]).verts
    low_thing = (thing @ clip.places[:, clip.grasped, 2, :3].T).min(0) + clip.places[:, clip.grasped, 2, 3]
    lift = np.maximum(0, GAP_M - np.where(clip.held, np.minimum(low, low_thing), low))
    clip.wrist[:, 2] += lift
    clip.places[:, clip.grasped, 2, 3] += lift * clip.held
    up = np.stack([0 * lift, 0 * lift, lift], 1)
    posed = posed.moved(torch.from_numpy(up))
    joints = np.concatenate([posed.chain.numpy(), posed.verts[:, side.tips].numpy()], 1)[:, T21_FROM_H21]
    return Labels(clip.turn, clip.wrist - hand.joints[0], pca, joints, posed.verts.numpy())


def _moved(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _pose_m(hand: Anatomy, labels: Labels, present: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(t,1,51) float32: axis-angle, coefficients, translation after the rigid map; the hand turns about its rest wrist."""
    turn = axis_angle_from_matrix(torch.from_numpy(pose[:3, :3] @ labels.root)).numpy()
    trans = _moved(pose, labels.trans + hand.joints[0]) - hand.joints[0]
    values = np.concatenate([turn, labels.pca, trans], 1) * present[:, None]
    return values.astype(np.float32)[:, None]


def _view(side: Side, hand: Anatomy, clip: Clip, labels: Labels, pose: np.ndarray, K: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of one camera over the frames: pose_y (t,n,3,4), pose_m (t,1,51), joint_3d (t,1,21,3), joint_2d (t,1,21,2)."""
    joints = _moved(pose, labels.joints).astype(np.float32)
    image = joints.astype(np.float64) @ K.T
    uv = (image[..., :2] / image[..., 2:]).astype(np.float32)
    absent = ~clip.present
    joints[absent], uv[absent] = -1, -1
    return {"pose_y": (pose @ clip.places)[:, :, :3].astype(np.float32), "pose_m": _pose_m(hand, labels, clip.present, pose),
            "joint_3d": joints[:, None], "joint_2d": uv[:, None]}


def _world(hand: Anatomy, clip: Clip, labels: Labels, world_from_table: np.ndarray) -> dict[str, np.ndarray]:
    """pose.npz: pose_m (t,1,51), pose_y (t,n,7) quaternion xyzw and translation, in the master camera's frame."""
    places = world_from_table @ clip.places
    wxyz = quaternion_from_matrix(torch.from_numpy(places[..., :3, :3])).numpy()
    pose_y = np.concatenate([wxyz[..., 1:], wxyz[..., :1], places[..., :3, 3]], -1).astype(np.float32)
    return {"pose_m": _pose_m(hand, labels, clip.present, world_from_table), "pose_y": pose_y}


def closing_on(side: Side, person: Person, hand: Anatomy, place: np.ndarray, number: int) -> np.ndarray:
    """How far each finger (5, thumb first) closes until its skin touches the thing at `place` (4,4), hand frame at the wrist."""
    levels = np.linspace(0, 1, 21)
    angles = grasp_pose(np.repeat(levels[:, None], 5, 1))
    fingers = torch.from_numpy(axis_angle_from_angles(angles, hand.axes)).flatten(1)
    root = np.tile(np.eye(3), (len(levels), 1, 1))
    pca = side.model.pca_from_axis_angle(fingers).numpy()
    posed = side.model.shaped(torch.from_numpy(person.shape)).posed(_rotations(side, root, pca))
    verts = posed.verts.numpy() - hand.joints[0]
    local = (verts - place[:3, 3]) @ place[:3, :3]
    depth = things.distance(number, local.reshape(-1, 3)).reshape(len(levels), -1)
    owner = side.model.weights.numpy().argmax(1)
    closing = np.zeros(5)
    for finger, joints in enumerate(((13, 14, 15), (1, 2, 3), (4, 5, 6), (10, 11, 12), (7, 8, 9))):
        free = depth[:, np.isin(owner, joints[1:])].min(1) > motion.TOUCH_M
        blocked = np.flatnonzero(~free)
        closing[finger] = levels[max(0, blocked[0] - 1)] if len(blocked) else 0.8
    return closing


def backgrounds(seed: int, rig: Rig, height: int, width: int, lighting: Lighting, gain: np.ndarray, rng: np.random.Generator,
                ) -> list[Background]:
    """The empty scene as each camera of the rig sees it; gain (c,3) of the cameras."""
    stage = sample_stage(rng)
    return [draw_background(stage, seed, rig.camera_from_table[c], rig.K[c], height, width, lighting.table * gain[c],
                            lighting.room * gain[c]) for c in range(len(rig.K))]
