"""The synthetic DexYCB tree: read by the official rules, its labels against each other, the mesh and the pictures; reruns."""
import errno
import os
import shutil
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from datasets.synthetic import dexycb, motion, things
from datasets.synthetic.anatomy import LIMITS, POSES, axis_angle_from_angles, clipped, grasp_pose, pose, sample_pose
from datasets.synthetic.dexycb import Options, make_studio, write
from datasets.synthetic.dexycb_files import SERIALS, SUBJECTS, sequence_name
from datasets.synthetic.people import Side
from datasets.synthetic.sequence import closing_on, label_clip
from utils.errors import InputError
from utils.hand import HandModel
from utils.render import render
from utils.rotation import geodesic, matrix_from_axis_angle

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(name="dexycb", people=2, sizes_mm=(152.0, 201.0), sequences=2, frames=3, width=160, height=120, no_hand=0.2,
             leaving=0.0, grasps=1.0, idle=(1, 1), workers=1, seed=3)


class TupleLoader(yaml.SafeLoader):
    """Safe yaml that knows `!!python/tuple`, which the toolkit reads by yaml.FullLoader."""


TupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


@pytest.fixture(scope="module")
def hands() -> dict[str, HandModel]:
    return {side: HandModel.load(ROOT / f"template/free_hand_{side}.npz") for side in ("right", "left")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, hands) -> Path:
    root = tmp_path_factory.mktemp("synth") / "dex"
    done = write(Options(**SMALL, out=str(root)), hands["right"], hands["left"])
    assert done == {"sequences": 4, "written": 4, "pictures": 96}
    return root


def read(path: Path, loader: type = yaml.SafeLoader) -> dict:
    return yaml.load(path.read_text(), Loader=loader)  # noqa: S506  both loaders are safe


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def sequences(root: Path) -> list[Path]:
    return sorted(p.parent for p in root.glob("*/*/meta.yml"))


def calibration(root: Path, folder: Path) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """meta, K (8,3,3), world_from_camera (8,3,4), betas (10), found as the toolkit finds them."""
    meta = read(folder / "meta.yml")
    K = np.zeros((8, 3, 3))
    for i, serial in enumerate(meta["serials"]):
        color = read(root / "calibration/intrinsics" / f"{serial}_160x120.yml")["color"]
        K[i] = [[color["fx"], 0, color["ppx"]], [0, color["fy"], color["ppy"]], [0, 0, 1]]
    extrinsics = read(root / "calibration" / f"extrinsics_{meta['extrinsics']}" / "extrinsics.yml", TupleLoader)
    poses = np.array([extrinsics["extrinsics"][serial] for serial in meta["serials"]]).reshape(-1, 3, 4)
    betas = read(root / "calibration" / f"mano_{meta['mano_calib'][0]}" / "mano.yml")["betas"]
    return meta, K, poses, np.array(betas)


def posed(hand: HandModel, pose_m: np.ndarray, betas: np.ndarray):
    """verts (n,778,3), joints (n,21,3) of labels (n,51), as DexYCB's toolkit poses MANO."""
    model = HandModel(hand.arrays, torch.float64)
    m = torch.from_numpy(pose_m).double()
    result = model(model.rotations_from_pose(m[:, :48], pca=True, flat_mean=False), torch.from_numpy(betas).expand(len(m), 10))
    result = result.moved(m[:, 48:])
    return result.verts.numpy(), model.joints(result).numpy()


def test_tree_reads_by_the_rules_of_the_official_toolkit(tree):
    """Names, types, shapes, dtypes and marks of every file against specs/datasets.md 1.1."""
    assert sorted(p.name for p in tree.iterdir()) == [*SUBJECTS[:2], "calibration", "synthetic.json"]
    for folder in sequences(tree):
        datetime.strptime(folder.name, "%Y%m%d_%H%M%S")
        meta, _, poses, betas = calibration(tree, folder)
        assert meta["serials"] == list(SERIALS) and meta["num_frames"] == 3 and meta["mano_sides"][0] in ("right", "left")
        assert isinstance(meta["extrinsics"], str) and meta["mano_calib"][0].endswith("_right")
        assert 0 <= meta["ycb_grasp_ind"] < len(meta["ycb_ids"]) and set(meta["ycb_ids"]) <= set(things.IDS)
        assert betas.shape == (10,) and betas.dtype == np.float64
        raw = (tree / "calibration" / f"extrinsics_{meta['extrinsics']}" / "extrinsics.yml").read_text()
        assert raw.count("!!python/tuple") == 9
        extrinsics = read(tree / "calibration" / f"extrinsics_{meta['extrinsics']}" / "extrinsics.yml", TupleLoader)
        assert isinstance(extrinsics["master"], str) and all(isinstance(v, tuple) for v in extrinsics["extrinsics"].values())
        np.testing.assert_allclose(poses[SERIALS.index(extrinsics["master"])], np.eye(4)[:3], atol=1e-9)
        assert sorted(p.name for p in folder.iterdir()) == sorted([*SERIALS, "meta.yml", "pose.npz"])
        for serial in SERIALS:
            assert len(list((folder / serial).iterdir())) == 9
            for frame in range(3):
                with np.load(folder / serial / f"labels_{frame:06d}.npz") as label:
                    shapes = {k: (v.shape, v.dtype.name) for k, v in label.items()}
                n = len(meta["ycb_ids"])
                assert shapes == {"seg": ((120, 160), "uint8"), "pose_y": ((n, 3, 4), "float32"), "pose_m": ((1, 51), "float32"),
                                  "joint_3d": ((1, 21, 3), "float32"), "joint_2d": ((1, 21, 2), "float32")}
                image = cv2.imread(str(folder / serial / f"color_{frame:06d}.jpg"))
                depth = cv2.imread(str(folder / serial / f"aligned_depth_to_color_{frame:06d}.png"), cv2.IMREAD_ANYDEPTH)
                assert image.shape == (120, 160, 3) and depth.shape == (120, 160) and depth.dtype == np.uint16


def test_labels_agree_with_each_other_in_every_camera(tree, hands):
    """pose_m posed by the hand model gives joint_3d, which projects to joint_2d; the wrist is J0 + trans; marks of no hand."""
    seen = 0
    for folder in sequences(tree):
        meta, K, _, betas = calibration(tree, folder)
        hand = hands[meta["mano_sides"][0]]
        rest = HandModel(hand.arrays, torch.float64).shaped(torch.from_numpy(betas)).rest_joints[0].numpy()
        for camera, serial in enumerate(SERIALS):
            for frame in range(3):
                label = np.load(folder / serial / f"labels_{frame:06d}.npz")
                if not label["pose_m"].any():
                    assert (label["joint_3d"] == -1).all() and (label["joint_2d"] == -1).all() and (label["seg"] != 255).all()
                    continue
                seen += 1
                joints = label["joint_3d"][0].astype(np.float64)
                image = joints @ K[camera].T
                np.testing.assert_allclose(label["joint_2d"][0], image[:, :2] / image[:, 2:], atol=0.01)
                np.testing.assert_allclose(joints, posed(hand, label["pose_m"], betas)[1][0], atol=1e-6)
                np.testing.assert_allclose(joints[0], rest + label["pose_m"][0, 48:], atol=1e-7)
    assert seen >= 48


def test_cameras_agree_on_the_world_and_with_pose_npz(tree, hands):
    """joint_3d of all 8 cameras through the extrinsics: one set of points, within 1e-5 m, that of pose.npz; things likewise."""
    for folder in sequences(tree):
        meta, _, poses, betas = calibration(tree, folder)
        world = np.load(folder / "pose.npz")
        assert world["pose_m"].shape == (3, 1, 51) and world["pose_y"].shape == (3, len(meta["ycb_ids"]), 7)
        joints = posed(hands[meta["mano_sides"][0]], world["pose_m"][:, 0], betas)[1]
        for frame in range(3):
            for camera, serial in enumerate(SERIALS):
                label = np.load(folder / serial / f"labels_{frame:06d}.npz")
                turn, shift = poses[camera, :, :3], poses[camera, :, 3]
                np.testing.assert_allclose(label["pose_y"][:, :, 3] @ turn.T + shift, world["pose_y"][frame, :, 4:], atol=1e-5)
                if world["pose_m"][frame].any():
                    np.testing.assert_allclose(label["joint_3d"][0] @ turn.T + shift, joints[frame], atol=1e-5)
                else:
                    assert not label["pose_m"].any()


def test_pictures_show_the_labelled_mesh(tree, hands):
    """seg and depth against a fresh rendering of the labelled hand and things in each camera."""
    shown = 0
    for folder in sequences(tree):
        meta, K, _, betas = calibration(tree, folder)
        hand = hands[meta["mano_sides"][0]]
        for camera, serial in enumerate(SERIALS):
            label = np.load(folder / serial / "labels_000002.npz")
            depth = cv2.imread(str(folder / serial / "aligned_depth_to_color_000002.png"), cv2.IMREAD_ANYDEPTH) / 1000
            meshes = [(255, posed(hand, label["pose_m"], betas)[0][0], hand.faces)]
            for number, place in zip(meta["ycb_ids"], label["pose_y"]):
                mesh = things.mesh(number)
                meshes.append((number, mesh.verts @ place[:, :3].T + place[:, 3], torch.from_numpy(mesh.faces)))
            for number, verts, faces in meshes:
                verts, camera_K = torch.from_numpy(verts).float()[None], torch.from_numpy(K[camera]).float()
                drawn = render(verts, faces, camera_K, 120, 160).depth[0].numpy()
                mine = label["seg"] == number
                assert (mine & (drawn == 0)).sum() <= 0.02 * mine.sum() + 1
                both = mine & (drawn > 0)
                assert np.abs(depth - drawn)[both].max(initial=0) < 0.0015
                hidden = (drawn > 0) & ~mine
                assert (depth[hidden] < drawn[hidden] + 0.0015).mean() > 0.97 if hidden.sum() > 30 else True
            shown += (label["seg"] == 255).sum()
            other = ~np.isin(label["seg"], [255, *meta["ycb_ids"]])
            assert (label["seg"][other] == 0).all()
    assert shown > 32 * 50


def test_people_have_the_sizes_asked_for(tree, hands):
    """Wrist to middle fingertip of the flat hand of each mano.yml, mm."""
    sizes = {}
    for folder in sequences(tree):
        _, _, _, betas = calibration(tree, folder)
        sizes[folder.parent.name] = Side(HandModel(hands["right"].arrays, torch.float64)).size_mm(betas)
    assert list(sizes.values()) == pytest.approx([152.0, 201.0], abs=0.01)


def test_same_seed_same_bytes_whatever_the_workers(tree, tmp_path, hands):
    """Two worker processes against one: every file of the tree, byte for byte; another seed gives other pictures."""
    write(Options(**SMALL | {"workers": 2}, out=str(tmp_path / "b")), hands["right"], hands["left"])
    assert files(tmp_path / "b") == files(tree)
    write(Options(**SMALL | {"seed": 4, "people": 1, "sequences": 1}, out=str(tmp_path / "c")), hands["right"], hands["left"])
    name = f"{SUBJECTS[0]}/{sequence_name(0, 0)}/{SERIALS[0]}/color_000002.jpg"
    assert files(tmp_path / "c")[name] != files(tree)[name]


def test_a_stopped_run_goes_on(tree, tmp_path, hands):
    """Recordings lost or half written are written again to the same bytes; finished ones are not touched."""
    root = tmp_path / "again"
    shutil.copytree(tree, root)
    expected, (first, second, *_) = files(tree), sequences(root)
    shutil.rmtree(first)
    (root / ".part" / "0-0" / SERIALS[0]).mkdir(parents=True)
    before = (second / "meta.yml").stat().st_mtime_ns
    assert write(Options(**SMALL, out=str(root)), hands["right"], hands["left"])["written"] == 1
    assert files(root) == expected and (second / "meta.yml").stat().st_mtime_ns == before
    assert write(Options(**SMALL, out=str(root)), hands["right"], hands["left"])["written"] == 0


def test_refuses_folders_that_are_not_its_own(tree, tmp_path, hands):
    """Something else's folder, a file, a set of other options, a damaged marker: one line each, nothing written."""
    real = tmp_path / "real"
    (real / SUBJECTS[0]).mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tree / "synthetic.json", other)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "synthetic.json").write_text("{")
    cases = ((real, {}, "no synthetic.json"), (tmp_path / "file", {}, "found a file"), (broken, {}, "expected json"),
             (other, {"frames": 4}, "frames: 3 there, 4 now"))
    for root, change, words in cases:
        before = files(tmp_path)
        with pytest.raises(InputError, match=words) as caught:
            write(Options(**SMALL | change, out=str(root)), hands["right"], hands["left"])
        assert "\n" not in str(caught.value) and str(root) in str(caught.value) and files(tmp_path) == before


def test_wrong_wishes_are_refused(tmp_path, hands):
    """Sizes the hand model cannot have, left hands without a left model, too few sizes, ranges upside down."""
    with pytest.raises(InputError, match=r"synth.sizes_mm: a hand of 30 mm"):
        write(Options(**SMALL | {"sizes_mm": (30.0, 200.0)}, out=str(tmp_path / "a")), hands["right"], hands["left"])
    with pytest.raises(InputError, match="synth.left"):
        write(Options(**SMALL, out=str(tmp_path / "a")), hands["right"], None)
    assert not (tmp_path / "a").exists()
    for change in ({"sizes_mm": (180.0,)}, {"distance_m": (0.9, 0.6)}, {"quality": (0, 50)}, {"people": 11}, {"fingers": 5}):
        with pytest.raises(ValueError):
            Options(**SMALL | change)


def test_disk_full_is_one_line_and_keeps_what_is_done(tmp_path, hands, monkeypatch):
    """ENOSPC in the third recording: InputError, two recordings kept, and the same command goes on."""
    real, count = dexycb.write_sequence, [0]

    def fails(*args):
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    options = Options(**SMALL | {"frames": 1, "cameras": 1}, out=str(tmp_path / "a"))
    monkeypatch.setattr(dexycb, "write_sequence", fails)
    with pytest.raises(InputError, match="disk full after 2 of 4 sequences"):
        write(options, hands["right"], hands["left"])
    monkeypatch.setattr(dexycb, "write_sequence", real)
    assert write(options, hands["right"], hands["left"])["written"] == 2


def killed(*_: object) -> int:
    """A worker process that the system kills."""
    os.kill(os.getpid(), 9)
    return 0


def test_a_killed_worker_is_one_line(tmp_path, hands, monkeypatch):
    """SIGKILL in a worker process: InputError that says how to go on, and no half-written recording."""
    monkeypatch.setattr(dexycb, "_task", killed)
    with pytest.raises(InputError, match="worker process ended .* run the same command"):
        write(Options(**SMALL | {"workers": 2}, out=str(tmp_path / "a")), hands["right"], hands["left"])
    assert not sequences(tmp_path / "a")


def test_names_of_recordings_are_dates_in_order():
    """1500 names: valid times of day, rising as text, as the toolkit sorts them."""
    names = [sequence_name(3, i) for i in range(1500)]
    assert names == sorted(set(names))
    assert all(datetime.strptime(n, "%Y%m%d_%H%M%S").year == 2020 for n in names)


@pytest.fixture(scope="module")
def studio(hands):
    options = Options(**SMALL | {"frames": 72, "no_hand": 0.1, "leaving": 0.3})
    return make_studio(options, hands["right"].arrays, hands["left"].arrays)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("take", range(10))
def test_motion_is_smooth_above_the_table_and_its_grasps_touch(studio, side, take):
    """At 30 frames/s: bounded speed of joints and fingers, nothing below the table; held things are touched, not pierced."""
    rng = np.random.default_rng([take, 5])
    chosen, person, rig = getattr(studio, side), studio.people[take % 2], studio.rigs[take % 2]
    hand, number = chosen.anatomy(person.shape), things.IDS[2 * take + (side == "left")]
    clip = motion.plan(studio.wish, hand, lambda place, i: closing_on(chosen, person, hand, place, i), rig.seat, number, rng)
    labels = label_clip(chosen, person, hand, clip)
    shown = np.flatnonzero(clip.present)
    assert len(shown) and (np.diff(shown) == 1).all() and shown[-1] == 71  # absent frames come first
    joints = labels.joints[shown]
    assert np.abs(np.diff(joints, axis=0)).max() < 0.14  # 4 m/s
    fingers = matrix_from_axis_angle(torch.from_numpy(axis_angle_from_angles(clip.angles[shown], hand.axes)))
    assert geodesic(fingers[1:], fingers[:-1]).max() < 0.45
    assert (clip.angles >= LIMITS[..., 0] - 1e-9).all() and (clip.angles <= LIMITS[..., 1] + 1e-9).all()
    assert labels.verts[..., 2].min() > 0.0025
    held = clip.held & clip.present
    if not held.any():
        return
    place = clip.places[held][-1, clip.grasped]
    local = (labels.verts[held][-1] - place[:3, 3]) @ place[:3, :3]
    gap = things.distance(number, local)
    assert -0.012 < gap.min() < 0.005
    moved = np.diff(clip.places[held][:, clip.grasped, :3, 3], axis=0)
    assert np.abs(moved).max(initial=0) < 0.14


def test_named_and_random_poses_stay_within_the_limits():
    """Every named pose, 200 random ones and grasps from open to closed against the joint limits."""
    rng = np.random.default_rng(0)
    every = np.stack([clipped(pose(n)) for n in POSES] + [sample_pose(rng) for _ in range(200)])
    every = np.concatenate([every, grasp_pose(np.repeat(np.linspace(0, 1, 9)[:, None], 5, 1))])
    assert (every >= LIMITS[..., 0] - 1e-9).all() and (every <= LIMITS[..., 1] + 1e-9).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_bending_moves_fingertips_towards_the_palm(hands, side):
    """+bend brings every fingertip to the palm side, +spread of the index finger to the thumb's side, right and left alike."""
    model = HandModel(hands[side].arrays, torch.float64)
    hand = Side(model).anatomy(np.zeros(10))
    assert abs(hand.palm @ hand.forward) < 1e-9 and abs(hand.palm @ hand.side) < 1e-9
    for row, axis, expected in [(r, 0, hand.palm) for r in (0, 3, 6, 9)] + [(0, 1, hand.side)]:
        angles = np.zeros((1, 15, 3))
        angles[0, row, axis] = 0.3
        turn = matrix_from_axis_angle(torch.from_numpy(axis_angle_from_angles(angles, hand.axes)))
        rotations = torch.cat([torch.eye(3).double().expand(1, 1, 3, 3), turn], 1)
        moved = model(rotations, torch.zeros(1, 10).double()).verts[0, model.tips["manopth"]].numpy() - hand.tips
        finger = {0: 1, 3: 2, 6: 4, 9: 3}[row]
        assert moved[finger] @ expected > 0.008 and np.abs(np.delete(moved, finger, 0)).max() < 0.004


@pytest.mark.parametrize("number", things.IDS)
def test_things_are_closed_outward_meshes_with_a_fitting_distance(number):
    """Volume of the mesh against the formula (so it is closed and outward), distance 0 on its vertices, negative inside."""
    mesh, (kind, size) = things.mesh(number), things.SIZES[number]
    a, b, c = (mesh.verts[mesh.faces[:, k]] for k in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert volume == pytest.approx({"box": 1, "cylinder": np.pi / 4, "ellipsoid": np.pi / 6}[kind] * np.prod(size), rel=0.06)
    assert ((np.cross(b - a, c - a) * mesh.normals[mesh.faces].mean(1)).sum(1) > 0).all()
    assert np.abs(things.distance(number, mesh.verts)).max() < 1e-6
    assert things.distance(number, np.zeros((1, 3)))[0] < 0 < things.distance(number, np.array([[0, 0, 1.0]]))[0]


@pytest.mark.parametrize("file", ["synth_dexycb.yaml", "quickstart_synth.yaml"])
def test_option_files_are_valid_and_hold_the_test_people_inside_the_spread(file):
    """Both option files against Options; people 7 and 8 (s1 test) and 6 (val) lie inside the sizes of the training people."""
    content = yaml.safe_load((ROOT / "options" / file).read_text())["synth"]
    options = Options(**content)
    train = [options.sizes_mm[i] for i in (0, 1, 2, 3, 4, 5, 9)]
    assert all(min(train) < options.sizes_mm[i] < max(train) for i in (6, 7, 8))
