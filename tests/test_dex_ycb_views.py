"""DexYCB's columns of several views: where each row's camera stood, and which rows saw one moment."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options, open_reader, prepare
from datasets.synthetic import dexycb
from utils.errors import InputError
from utils.hand import HandModel

ROOT = Path(__file__).resolve().parent.parent
HANDS = {side: HandModel.load(ROOT / f"template/free_hand_{side}.npz") for side in ("right", "left")}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """One synthetic person, four recordings of right and left hands, three cameras, two moments each."""
    root = tmp_path_factory.mktemp("views")
    dexycb.write(dexycb.Options(name="dexycb", out=str(root / "tree"), people=1, sizes_mm=(180.0,), sequences=4, frames=2,
                                cameras=3, width=64, height=48, no_hand=0.0, leaving=0.0, grasps=0.0, idle=(0, 0), left=0.5,
                                workers=1, seed=5, depth=False), HANDS["right"], HANDS["left"])
    chosen = Options(root=str(root / "tree"), prepared=str(root / "prepared"), width=64, height=48, hands="mirror_left",
                     setup="s0", in_image=False, workers=1)
    prepare(chosen, HANDS)
    return chosen


def opened(options: Options, **changes):
    return open_reader(options.model_copy(update=changes), CropOptions(pixels=32), AugmentOptions(), split="train", train=False,
                       seed=0, hands=HANDS)


def test_cameras_that_saw_one_moment_agree_on_the_world(options: Options):
    """Every row's labelled joints, taken to the (mirrored) world, are the same for all rows of one instant, and for no others."""
    reader = opened(options)
    batch = reader.batch(default_collate([reader[(0, i)] for i in range(len(reader))]))
    columns = reader.columns(range(len(reader)))
    assert 0 < int(batch.mirrored.sum()) < len(reader) == 24
    pose = columns["world_from_camera"]
    assert pose.dtype == np.float32 and np.allclose(np.linalg.det(pose), 1, atol=1e-5)
    world = batch.joints.numpy() @ pose[:, :3, :3].transpose(0, 2, 1) + pose[:, None, :3, 3]
    instants, counts = np.unique(columns["instant"], return_counts=True)
    assert len(instants) == 8 and (counts == 3).all()
    middle = np.stack([world[columns["instant"] == instant].mean(0) for instant in instants])
    assert np.abs(world - middle[np.searchsorted(instants, columns["instant"])]).max() < 2e-5
    assert min(np.abs(a - b).max() for i, a in enumerate(middle) for b in middle[:i]) > 1e-3
    moments = {name.rsplit("/", 2)[0] + name[-10:] for name in map(reader.sample_name, range(len(reader)))}
    assert len(moments) == 8


def test_columns_do_not_depend_on_the_selection(options: Options):
    """A subset's rows carry the same instants and cameras as in the whole split."""
    whole, part = opened(options), opened(options, every=5)
    rows = [[whole.sample_name(i) for i in range(len(whole))].index(part.sample_name(k)) for k in range(len(part))]
    for name, value in part.columns(range(len(part))).items():
        assert np.array_equal(value, whole.columns(rows)[name])


def test_trees_without_extrinsics(options: Options, tmp_path: Path):
    """No file, or none but unknown cameras: no such columns; one unknown camera: NaN in its rows; a broken file: one line."""
    shutil.copytree(options.prepared, tmp_path / "prepared")
    here, path = options.model_copy(update={"prepared": str(tmp_path / "prepared")}), tmp_path / "prepared" / "cameras.npz"
    with np.load(path) as file:
        poses, K = file["world_from_camera"], file["K"]
    path.unlink()
    assert set(opened(here).columns([0, 1])) == {"official_index"}
    np.savez(path, world_from_camera=np.full_like(poses, np.nan), K=K)
    assert set(opened(here).columns([0, 1])) == {"official_index"}
    poses[:, :, 1] = np.nan
    np.savez(path, world_from_camera=poses, K=K)
    reader = opened(here)
    unknown = np.isnan(reader.columns(range(len(reader)))["world_from_camera"][:, :3]).any((1, 2))
    assert np.array_equal(unknown, reader.places[:, 2] == 1)
    np.savez(path, world_from_camera=poses[..., :2, :])
    with pytest.raises(InputError, match=r"cameras\.npz: expected world_from_camera \(people, sequences, cameras, 3, 4\), found"):
        opened(here)
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match=r"cameras\.npz: expected an npz with world_from_camera, found a file that breaks"):
        opened(here)
