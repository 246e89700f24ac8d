"""datasets/dex_ycb_reader.py: which frames a split and a subset hold, what is said of them, and what is refused."""
import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dex_ycb_cases import SERIALS, toy_hand, write_tree
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options, open_reader, prepare
from utils.camera import transform_uv
from utils.errors import InputError

HANDS = {"right": toy_hand(), "left": toy_hand(mirror=True)}
CROP = CropOptions(pixels=64, factor=1.5)
SEQUENCES, CAMERAS, FRAMES = 5, 2, 3


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Ten people x 5 sequences (3 right, 2 left) x 2 cameras x 3 frames, all of them kept."""
    root = tmp_path_factory.mktemp("dex_ycb")
    write_tree(root / "tree", HANDS, sequences=SEQUENCES, cameras=CAMERAS, frames=FRAMES)
    chosen = Options(root=str(root / "tree"), prepared=str(root / "prepared"), width=160, height=120, hands="mirror_left",
                     in_image=False, workers=1)
    assert prepare(chosen, HANDS).counts["kept"] == 10 * SEQUENCES * CAMERAS * FRAMES
    return chosen


def opened(options: Options, split: str = "test", crop: CropOptions = CROP, models=HANDS, train: bool = False,
           augment: AugmentOptions = AugmentOptions(), **changes):
    return open_reader(options.model_copy(update=changes), crop, augment, split=split, train=train, seed=0, hands=models)


def test_split_and_hands(options: Options):
    """s1: people 1-6 and 10, 7, 8 and 9; right hands alone are three sequences in five; numbers count the left ones too."""
    people = {split: set(opened(options, split).subject_names) for split in ("train", "val", "test", "train+val")}
    assert people == {"train": {1, 2, 3, 4, 5, 6, 10}, "val": {7}, "test": {8, 9}, "train+val": {1, 2, 3, 4, 5, 6, 7, 10}}
    both, right = opened(options), opened(options, hands="right")
    assert len(both) == 2 * SEQUENCES * CAMERAS * FRAMES and len(right) == 2 * 3 * CAMERAS * FRAMES
    numbers = right.columns(range(len(right)))["official_index"].reshape(2, 3, CAMERAS * FRAMES)
    assert np.array_equal(numbers[:, :, 0], [[0, 12, 24], [30, 42, 54]]) and (np.diff(numbers, axis=2) == 1).all()
    assert "official_index" not in opened(options, "train+val").columns([0])


def test_names_and_subjects(options: Options):
    """A sample's name is its picture's path; its Batch carries the person's number and row."""
    reader = opened(options)
    assert reader.sample_name(7) == f"20200717-subject-08/20200717_000001/{SERIALS[0]}/color_000001.jpg"
    assert all((Path(options.root) / reader.sample_name(i)).is_file() for i in range(len(reader)))
    assert len({reader.sample_name(i) for i in range(len(reader))}) == len(reader)
    batch = reader.batch(default_collate([reader[(0, i)] for i in (0, 59)]))
    assert batch.subject.tolist() == [8, 9] and batch.index.tolist() == [0, 59]
    assert reader.describe(7) == f"DexYCB s1/test #7 ({reader.sample_name(7)})"


def test_even_and_odd_sequences(options: Options):
    """Even and odd split each person's sequences of each side, so that both have both; together they are everything."""
    names = {}
    for half in ("even", "odd"):
        reader = opened(options, sequences=half)
        names[half] = {reader.sample_name(i) for i in range(len(reader))}
        sides = reader.labels["side"][reader.rows]
        assert 0 < sides.sum() < len(sides) and set(reader.subject_names) == {8, 9}
        assert reader.protocol()["sequences"] == half
    whole = opened(options)
    assert names["even"] | names["odd"] == {whole.sample_name(i) for i in range(len(whole))} and not names["even"] & names["odd"]


def test_named_sequences(options: Options):
    """Sequences by name, alone or with the person's folder; a name that is not there is refused."""
    reader = opened(options, sequences=("20200717_000001", "20200718-subject-09/20200718_000000"))
    assert {name.split("/")[1] for name in map(reader.sample_name, range(len(reader)))} == {"20200717_000001", "20200718_000000"}
    with pytest.raises(InputError, match="dataset.sequences: there is no sequence 2020_1; names are like 20200719_000000"):
        opened(options, sequences=("2020_1",))


def test_every_and_frames(options: Options):
    """Every k-th frame, and at most n of them, evenly spread from the first to the last."""
    whole = opened(options)
    third = opened(options, every=3)
    assert [third.sample_name(i) for i in range(len(third))] == [whole.sample_name(i) for i in range(0, 60, 3)]
    seven = opened(options, frames=7)
    assert [whole.official_index.tolist().index(n) for n in seven.official_index] == [0, 10, 20, 30, 39, 49, 59]
    assert len(opened(options, frames=1000)) == 60


def test_protocol(options: Options):
    """What is said of the frames: split, hands, crop, a hash that follows the frames and not the crop."""
    said = opened(options).protocol()
    assert said["split"] == "s1/test" and said["hands"] == "36 right and 24 left hands (mirrored)"
    assert said["crop"] == "1.5 x box of the joints, 64 px" and said["rows"]["frames"] == 60
    hashes = [opened(options, crop=crop, **more).protocol()["rows"]["index_hash"] for crop, more in (
        (CROP, {}), (CropOptions(pixels=32), {}), (CROP, {"every": 2}))]
    assert hashes[0] == hashes[1] == said["rows"]["index_hash"] != hashes[2]


@pytest.mark.parametrize("at_hand", [True, False])
def test_pictures_to_draw_on(options: Options, tmp_path: Path, at_hand: bool):
    """The whole picture, or without the dataset the stored crop: its K projects the batch's joints onto the painted discs."""
    reader = opened(options, root=options.root if at_hand else str(tmp_path))
    for index in (0, 7):  # right, left
        picture = reader.picture(index)
        batch = reader.batch(default_collate([reader[(0, index)]]))
        points = batch.joints[0].numpy() @ picture.K.T
        uv = points[:, :2] / points[:, 2:]
        values = picture.image[uv[:, 1].round().astype(int), uv[:, 0].round().astype(int)]
        assert np.abs(values.astype(int) - (240, 220, 90))[:, :2].max() < 40
        mapped = transform_uv(torch.from_numpy(picture.crop_from_image), torch.from_numpy(uv).float())
        torch.testing.assert_close(mapped, batch.joints_uv[0], atol=2e-3, rtol=0)
        assert picture.image.shape == ((120, 160, 3) if at_hand else (reader.read_pixels, reader.read_pixels, 3))


def test_reading_size(options: Options):
    """Native-size crops are read so that the network's crop is at scale 1; shrinking twice takes 2 x 2 samples, by option."""
    assert opened(options).read_pixels == 86 and opened(options).samples == 1  # 64 px of 1.5 boxes, 2 boxes stored
    assert opened(options, read_pixels=171).samples == 2
    assert opened(options, crop=CropOptions(pixels=64, factor=1.5, antialias=False), read_pixels=171).samples == 1


def test_what_augmentation_lacks_is_said(options: Options, caplog: pytest.LogCaptureFixture):
    """A crop that augmentation can push beyond what is stored is said once; one that fits is not."""
    caplog.set_level("INFO")
    opened(options, train=True, augment=AugmentOptions(scale=0.2))
    assert not caplog.records
    opened(options, train=True, augment=AugmentOptions(rotate=30))
    assert "augmentation reaches 2.05 times the box, the stored crops 2.00" in caplog.text


def test_copies_of_a_reader_read(options: Options):
    """A copied reader (a spawned worker gets one: copying and pickling take the same way) reads the same sample."""
    reader = opened(options)
    first = reader[(0, 3)]
    assert reader.__getstate__()["labels"] is None
    again = copy.deepcopy(reader)[(0, 3)]
    assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("changes,line", [
    ({"prepared": "nowhere"}, r"nowhere/meta\.json: expected a file, found nothing; run `run.py prepare"),
    ({"stride": 2}, r"prepared with dataset\.stride=1, the options say 2; name another folder by dataset\.prepared"),
    ({"width": 320}, r"prepared with dataset\.width=160, the options say 320"),
    ({"setup": "s2"}, r"DexYCB s2/test is empty: it takes .*cameras \[\] \(counted from 0\)"),
    ({"sequences": ()}, r"DexYCB s1/test: no frame is left"),
])
def test_refusals(options: Options, changes: dict, line: str):
    """Not prepared, prepared otherwise, an empty split, an empty subset: one line each."""
    with pytest.raises(InputError, match=line):
        opened(options, **changes)


def test_more_than_was_prepared_is_refused(options: Options, tmp_path: Path):
    """A folder of right hands inside the picture serves neither left hands nor frames with joints outside."""
    narrow = options.model_copy(update={"hands": "right", "in_image": True, "prepared": str(tmp_path)})
    prepare(narrow, HANDS)
    assert len(opened(narrow)) == 36
    for changes in ({"hands": "mirror_left"}, {"in_image": False}):
        with pytest.raises(InputError, match="prepared with dataset"):
            opened(narrow, **changes)


def test_crop_must_lie_in_what_is_stored(options: Options):
    """A crop wider than the stored one is refused with both numbers."""
    with pytest.raises(InputError, match=r"crop\.factor=2\.5 is wider than the stored crops \(2\.0 times the box"):
        opened(options, crop=CropOptions(factor=2.5))


@pytest.mark.parametrize("side,option", [("right", "hand"), ("left", "hand_left")])
def test_another_hand_model_is_refused(options: Options, side: str, option: str):
    """Labels made with one hand and a reader opened with another: refused, with the distance and the option."""
    other = toy_hand("right", mirror=side == "left", salt=1)
    line = rf"the labels' {side} hands are not those of the hand model toy .*mm apart\): set {option} to"
    with pytest.raises(InputError, match=line):
        opened(options, models={**HANDS, side: other})


def test_a_missing_or_swapped_left_model_is_refused(options: Options):
    """mirror_left needs a left hand model, and one that is a left hand."""
    with pytest.raises(InputError, match="dataset.hands=mirror_left needs a left hand model: set hand_left"):
        opened(options, models={"right": HANDS["right"]})
    with pytest.raises(InputError, match="the left hand model toy is a right hand"):
        opened(options, models={"right": HANDS["right"], "left": HANDS["right"]})


@pytest.mark.parametrize("damage,line", [
    (lambda p: (p / "crops.lmdb").unlink(), r"crops\.lmdb: expected the crops that prepare wrote"),
    (lambda p: (p / "crops.lmdb").write_bytes(b"x" * 9000), r"crops\.lmdb: expected the crops that prepare wrote"),
    (lambda p: (p / "index" / "mano.npy").unlink(), r"mano\.npy: expected a column that prepare wrote"),
    (lambda p: (p / "index" / "mano.npy").write_bytes(b"x" * 100), r"mano\.npy: expected a column that prepare wrote"),
    (lambda p: np.save(p / "index" / "mano.npy", np.zeros((7, 61))), r"mano\.npy: expected an array \(300, 61\), found"),
    (lambda p: (p / "meta.json").write_text("{"), r"meta\.json: expected json, found a file that breaks"),
    (lambda p: (p / "meta.json").write_text("{}"), r"meta\.json: expected dex_ycb-prepared, version 1"),
])
def test_a_damaged_folder_is_named(options: Options, tmp_path: Path, damage, line: str):
    """A missing or broken file of the prepared folder: one line with its path."""
    folder = tmp_path / "prepared"
    shutil.copytree(options.prepared, folder)
    damage(folder)
    with pytest.raises(InputError, match=line) as caught:
        opened(options, prepared=str(folder))[(0, 0)]
    assert re.search(r"prepare", str(caught.value)) and "\n" not in str(caught.value)
