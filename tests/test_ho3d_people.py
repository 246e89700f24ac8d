"""HO3D's people and cameras: whom a sequence shows, and where its camera stood (datasets/ho3d_tree.py, ho3d_cameras.py)."""
from pathlib import Path

import numpy as np
import pytest
import torch
from ho3d_cases import FRAMES, HAND, ORDER, K, Made, options, write_calibration, write_tree

from datasets.augment import AugmentOptions, CropOptions
from datasets.ho3d import open_reader, prepare
from datasets.ho3d_cameras import read_calibration
from datasets.ho3d_reader import Ho3d
from datasets.ho3d_tree import PEOPLE, people_notes, people_of, stem_of
from utils.batch import Batch
from utils.errors import InputError

HANDS = {"right": HAND}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    tree = write_tree(tmp_path_factory.mktemp("ho3d") / "tree")
    prepare(options(tree), HANDS)
    return tree


def opened(made: Made, split: str, **changes) -> Ho3d:
    return open_reader(options(made, **changes), CropOptions(pixels=64, factor=1.5), AugmentOptions(), split=split, train=False,
                       seed=3, hands=HANDS)


def all_of(reader: Ho3d) -> Batch:
    return reader.batch(torch.utils.data.default_collate([reader[(0, i)] for i in range(len(reader))]))


def far(a: object, b: object) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def test_people_are_stems(made: Made):
    """Letters of a sequence's name are one person in both splits, by the table; `people` joins and divides."""
    assert stem_of("SMu40") == "SMu" and people_of(["SMu40", "SM1", "ABF10"]) == [10, 9, 1]
    assert people_of(["Zed1", "SB10", "Abe2"]) == [len(PEOPLE) + 2, 8, len(PEOPLE) + 1]
    assert people_of(["SM1", "SMu40", "SMu41"], {"SM": 3, "SMu4": 5, "SMu41": 6}) == [3, 5, 6]
    train, test = opened(made, "train"), opened(made, "evaluation")
    assert train.subject_names == {1: "ABF10", 8: "SB10, SB12"} and test.subject_names == {8: "SB11", 16: "AP10"}
    assert set(all_of(test).subject.tolist()) == {8, 16}
    joined = opened(made, "evaluation", people={"AP": 1})
    assert joined.subject_names == {1: "AP10", 8: "SB11"} and set(all_of(joined).subject.tolist()) == {1, 8}
    with pytest.raises(InputError, match="dataset.people: no sequence is of XY; the stems are ABF, AP, SB"):
        opened(made, "evaluation", people={"XY": 1})


def test_people_notes(tmp_path: Path):
    """Preparation says where one stem has two shapes and where two stems have one; else it says nothing."""
    tree = write_tree(tmp_path / "tree")
    assert "handBeta" not in str(prepare(options(tree), HANDS))
    shapes = np.array([[0.0] * 10, [0.5] * 10, [0.25] * 10, [0.25] * 10])
    lines = list(people_notes(("SB10", "SB12", "MC1", "MDF10"), np.arange(4), shapes))
    assert lines == ["SB: handBeta of SB10 and SB12 differ by 0.5, but calibration wants one shape per person: name them apart "
                     "by dataset.people",
                     "MC, MDF: equal handBeta, so one person? join them by dataset.people={MDF: 5}"]


def test_sequences_option(made: Made):
    """Only the named sequences, or those that fit a pattern, are read; an unknown one is refused by name."""
    reader = opened(made, "train", sequences=("SB12",))
    assert len(reader) == FRAMES and reader.protocol()["sequences"] == "SB12"
    assert opened(made, "train", sequences=("SB1?", "ABF10")).subject_names == {1: "ABF10", 8: "SB10, SB12"}
    with pytest.raises(InputError, match="there is no sequence SB99 .* there are ABF10, AP10, SB10, SB11, SB12"):
        opened(made, "train", sequences=("SB99",))


@pytest.mark.parametrize("gl", [False, True])
def test_calibrated_cameras_see_one_wrist(tmp_path: Path, gl: bool):
    """World points of SB1's cameras agree at each moment, whichever axes the files are in; other sequences have no camera."""
    tree = write_tree(tmp_path / "tree", gl_calibration=gl)
    assert "3 of 5 sequences have calibrated cameras" in str(prepare(options(tree), HANDS))
    reader = opened(tree, "train")
    columns, batch = reader.columns(range(len(reader))), all_of(reader)
    pose, moments = columns["world_from_camera"], columns["instant"]
    world = np.einsum("nij,nkj->nki", pose[:, :3, :3], batch.joints.numpy()) + pose[:, None, :3, 3]
    assert np.array_equal(moments[:FRAMES], moments[FRAMES:2 * FRAMES]) and len(set(moments.tolist())) == 2 * FRAMES
    assert far(world[:FRAMES], world[FRAMES:2 * FRAMES]) < 1e-5
    assert np.isnan(pose[2 * FRAMES:]).all() and (moments >= 0).all()


def test_wrong_calibration_is_not_used(tmp_path: Path):
    """Cameras whose labels disagree are left out, and preparation says by how much."""
    tree = write_tree(tmp_path / "tree", calibration=False)
    write_calibration(tree, off_m=0.05)
    assert "calibration/SB1 is not used: its cameras see the wrist" in str(prepare(options(tree), HANDS))
    assert "instant" not in opened(tree, "train").columns([0])


def test_calibration_files(made: Made):
    """Position i of cam_orders.txt is whose trans_<i>.txt and intrinsics are read; a recording without a folder has none."""
    cameras = read_calibration(made.root, "SB1")
    assert list(cameras) == [str(c) for c in ORDER] and far(cameras[str(ORDER[0])].common_from_camera, np.eye(4)) < 1e-9
    wanted = made.camera_from_world[ORDER[0]] @ np.linalg.inv(made.camera_from_world[1])
    assert far(cameras["1"].common_from_camera, wanted) < 1e-9 and far(cameras["1"].K, K) == 0
    assert read_calibration(made.root, "AP1") == {}
