"""DexYCB preparation and reader against the original's crop script and dataset class (tests/goldens/crop.npz, make_tree.py).

The tree is formula-made: one person, 8 cameras x 2 frames of a right hand, one without a hand, and a left sequence: 15 records.
Where ours differs on purpose (`Seed:`), the test says by what.
"""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dex_ycb_cases import toy_hand
from make_tree import main as make_tree
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions, resample
from datasets.dex_ycb import Options, open_reader, prepare
from datasets.pictures import decode
from utils.camera import project

GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "crop.npz"))
HANDS = {"right": toy_hand()}
SCALE_M = 0.2  # metres per unit of the original's network space
FAITHFUL = CropOptions(pixels=224, factor=2.0, antialias=False)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory):
    """The 15 records through prepare (native size, JPEG quality of the original) and the reader, s1/val."""
    root = tmp_path_factory.mktemp("golden")
    make_tree(str(root / "tree"))
    options = Options(root=str(root / "tree"), prepared=str(root / "prepared"), stored={"quality": 75}, workers=1)
    counts = prepare(options, HANDS).counts
    assert counts["kept"] == 15 and counts["excluded"] == {"left hand": 16, "no hand": 1}
    return open_reader(options, FAITHFUL, AugmentOptions(), split="val", train=False, seed=0, hands=HANDS)


@pytest.fixture(scope="module")
def batch(reader):
    return reader.batch(default_collate([reader[(0, i)] for i in range(len(reader))]))


def test_records(reader):
    """The same frames in the same order, with their official numbers (the left sequence comes after)."""
    assert [reader.sample_name(i) for i in range(15)] == [path[len("../../data/dex_ycb/"):] for path in GOLDEN["crop.orig_paths"]]
    assert reader.columns(range(15))["official_index"].tolist() == list(range(15))


def test_labels(reader):
    """61 numbers in the camera and in the world bit for bit; the tree's joints (recomputed by its formula) to rounding."""
    rows = reader.rows
    assert np.array_equal(reader.labels["mano"][rows], GOLDEN["crop.mano_params"])
    assert np.array_equal(reader.labels["world"][rows], GOLDEN["crop.world_mano_params"][:, :51])
    np.testing.assert_allclose(reader.labels["joint_3d"][rows], GOLDEN["crop.joint_3d"], atol=5e-7)
    np.testing.assert_allclose(reader.labels["joint_2d"][rows], GOLDEN["crop.orig_joint_2d"], atol=2e-4)


def test_boxes(reader):
    """The box times the factor is the original's crop_bbox."""
    box = reader.labels["box"][reader.rows].astype(np.float64)
    corners = np.concatenate([box[:, :2] - box[:, 2:], box[:, :2] + box[:, 2:]], 1)  # factor 2: half a side is the box's side
    np.testing.assert_allclose(corners, GOLDEN["crop.crop_bbox"], atol=1e-4)


def test_cropped_pixels(reader, batch):
    """joints_uv against the original's cropped joints at the crop's own scale, from the corner of the crop.

    Seed: the original scales by 224 / rounded height; here by the exact side, and a pixel's centre is half a pixel from its edge.
    """
    side = 2 * reader.labels["box"][reader.rows, 2][:, None, None]
    from_corner = (batch.joints_uv.numpy() + 0.5) * side / 224
    np.testing.assert_allclose(from_corner, GOLDEN["crop.cropped_joint_2d"], atol=1e-3)
    theirs = GOLDEN["dataset.uv_point"]
    np.testing.assert_allclose((batch.joints_uv[0].numpy() + 0.5) * side[0] / 265, theirs, atol=2e-3)
    assert np.abs(GOLDEN["crop.crop_size_wh"] - side[:, 0]).max() < 1.0


def test_hand(batch):
    """Joints regressed from our vertices, their pixels in the crop, the mesh about MANO's translation point."""
    regressed = HANDS["right"].regress(batch.verts)
    tips = batch.verts[:, HANDS["right"].tips["manopth"]]
    order = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    joints = torch.cat((regressed, tips), 1)[:, order]
    np.testing.assert_allclose(joints, GOLDEN["crop.regressed_joint_3d"], atol=1e-6)
    side = torch.from_numpy(GOLDEN["crop.crop_bbox"][:, 2] - GOLDEN["crop.crop_bbox"][:, 0])[:, None, None]
    projected = (project(joints, batch.K) + 0.5) * side / 224
    np.testing.assert_allclose(projected, GOLDEN["crop.cropped_projected_joint_2d"], atol=2e-3)
    trans = torch.from_numpy(GOLDEN["dataset.mano_translation"])
    np.testing.assert_allclose(((batch.verts[0] - trans) / SCALE_M)[::6], GOLDEN["dataset.mesh_gt"], atol=5e-6)
    np.testing.assert_allclose((joints[0] - joints[0, 0]) / SCALE_M, GOLDEN["dataset.xyz_gt"], atol=5e-6)
    np.testing.assert_allclose(joints[0, 0], GOLDEN["dataset.xyz_root"], atol=1e-6)
    np.testing.assert_allclose((batch.joints[0] - trans) / SCALE_M, GOLDEN["dataset.xyz_gt_provided"], atol=5e-6)


def test_shape_and_pose(reader, batch):
    """The person's shape and the 48 pose numbers as the dataset class hands them out."""
    np.testing.assert_allclose(batch.shape[0], GOLDEN["dataset.shape_params"], atol=1e-7)
    np.testing.assert_allclose(GOLDEN["crop.unique_shape_7"], batch.shape[0], atol=1e-6)
    assert np.array_equal(reader.read(0)["pose"], GOLDEN["dataset.pose_params"])
    assert batch.subject.unique().tolist() == [7] and reader.subject_names == {7: "20200928-subject-07"}


def test_network_input(reader):
    """The original's very crop (edges rounded one by one: 266x265), through our decoder and our resampling, is its network input.

    Seed: our own crop is square and starts where the labels say, so on this noise picture it cannot be compared value by value.
    """
    image = decode(Path(reader.options.root) / reader.sample_name(0), 640, 480)
    left, top, right, bottom = GOLDEN["crop.crop_bbox"][0].round().astype(int)
    jpeg = cv2.imencode(".jpg", image[top:bottom, left:right], (cv2.IMWRITE_JPEG_QUALITY, 75))[1]
    crop = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    height, width = crop.shape[:2]
    assert (width, height) == tuple(GOLDEN["crop.crop_size_wh"][0])
    square = np.zeros((width, width, 3), np.uint8)
    square[:height] = crop
    x, y = width / 224, height / 224
    stretch = torch.tensor([[[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]]])
    mine = resample(torch.from_numpy(square)[None], stretch, 224)[0].numpy() / 127.5 - 1
    assert np.abs(mine[:, ::8, ::8] - GOLDEN["dataset.img"]).max() < 0.03


def test_stored_crop_is_cut_where_it_says(reader):
    """Every stored crop is the picture's pixels from (left, top), to JPEG's accuracy on noise blurred to what JPEG keeps."""
    row = reader.rows[3]
    left, top, side = reader.labels["stored"][row]
    picture = decode(Path(reader.options.root) / reader.sample_name(3), 640, 480)
    crop = cv2.imdecode(reader.crops[row], cv2.IMREAD_COLOR)
    assert crop.shape == (side, side, 3)
    places = [picture[top + d:top + d + side, left:left + side] for d in (0, 1)]
    apart = [np.abs(cv2.blur(crop, (9, 9)).astype(int) - cv2.blur(place, (9, 9))).mean() for place in places]
    assert apart[0] < 2.5 < apart[1]
