"""DexYCB's masks (`dataset.masks`, seg of the labels): one geometry with the crop, mirrored hands too; with and without them."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dex_ycb_cases import toy_hand, write_tree
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options, open_reader, prepare
from utils.batch import Batch
from utils.errors import InputError

HANDS = {"right": toy_hand(), "left": toy_hand(mirror=True)}
WIDTH, HEIGHT = 160, 120
STILL, MOVES = AugmentOptions(), AugmentOptions(rotate=90, scale=0.15, shift=0.05)


def paint(path: Path, change=None) -> None:
    """Give a labels file a seg: the hull of the joints is hand, a strip above an object; or change(seg)."""
    with np.load(path) as file:
        labels = dict(file)
    if change is None:
        labels["seg"][:20] = 3
        hull = cv2.convexHull(labels["joint_2d"][0].round().astype(np.int32))
        cv2.fillConvexPoly(labels["seg"], hull, 255)
    else:
        labels["seg"] = change(labels["seg"])
    np.savez(path, **labels)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Ten people x right and left x 2 cameras x a frame; one test frame shows no hand."""
    root = tmp_path_factory.mktemp("dex_ycb")
    write_tree(root / "tree", HANDS, sequences=2, frames=1)
    for path in (root / "tree").rglob("labels_*.npz"):
        paint(path)
    chosen = Options(root=str(root / "tree"), prepared=str(root / "prepared"), width=WIDTH, height=HEIGHT, hands="mirror_left",
                     in_image=False, workers=1, masks=True, stored={"factor": 3.0})
    paint(labels_of(chosen, 0), np.zeros_like)
    assert prepare(chosen, HANDS).counts["kept"] == 40
    return chosen


def labels_of(options: Options, person: int) -> Path:
    """The first labels file of the test split's person 0 or 1."""
    return sorted(Path(options.root).glob(f"*-subject-{8 + person:02d}/*/*/labels_*.npz"))[0]


def opened(options: Options, augment: AugmentOptions = STILL, needs: frozenset[str] | None = None, **changes):
    return open_reader(options.model_copy(update=changes), CropOptions(pixels=64, factor=1.6), augment, split="test", seed=0,
                       train=augment.active, hands=HANDS, needs=needs)


def whole(reader) -> Batch:
    return reader.batch(default_collate([reader[(0, i)] for i in range(len(reader))]))


@pytest.mark.parametrize("augment", [STILL, MOVES], ids=["still", "moved"])
def test_masks_follow_the_crop(options: Options, augment: AugmentOptions):
    """The Batch's mask is OpenCV's map of seg == 255 by crop_from_image, mirrored for left hands; an empty one counts as none."""
    reader = opened(options, augment)
    batch = whole(reader)
    assert batch.has_mask.tolist() == [False] + [True] * 7 and not batch.mask[0].any() and batch.mirrored.sum() == 4
    for i in range(1, len(reader)):
        picture = Path(options.root) / reader.sample_name(i)
        seg = np.load(picture.with_name(picture.name.replace("color_", "labels_").replace(".jpg", ".npz")))["seg"]
        seen = np.where(seg == 255, 255, 0).astype(np.uint8)[:, ::-1 if batch.mirrored[i] else 1]
        wanted = cv2.warpAffine(np.ascontiguousarray(seen), batch.crop_from_image[i, :2].double().numpy(), (64, 64)) > 127
        assert (wanted != batch.mask[i].numpy()).mean() < 0.02 and 0.05 < wanted.mean() < 0.9
        uv = batch.joints_uv[i].round().long().clamp(0, 63)
        assert (torch.nn.functional.max_pool2d(batch.mask[i][None], 3, 1, 1)[0][uv[:, 1], uv[:, 0]] == 1).all()


def test_masks_are_optional(options: Options, tmp_path: Path):
    """Folders without masks are the same but for them; one with masks is read without; to ask for them is refused."""
    bare = options.model_copy(update={"masks": False, "prepared": str(tmp_path)})
    prepare(bare, HANDS)
    assert "masks" not in (tmp_path / "plan.json").read_text() and not (tmp_path / "masks.lmdb").exists()
    for reader in (opened(bare), opened(options, masks=False), opened(options, needs=frozenset({"image", "joints"}))):
        assert whole(reader).mask is None and torch.equal(whole(reader).joints, whole(opened(options)).joints)
    assert "mask" in opened(options).provides and "mask" not in opened(bare).provides
    assert "everything was there already" in str(prepare(options.model_copy(update={"masks": False}), HANDS))
    for refused in (lambda: opened(bare, masks=True), lambda: prepare(bare.model_copy(update={"masks": True}), HANDS)):
        with pytest.raises(InputError, match=r"prepared without dataset\.masks, the options say True; name another folder by"):
            refused()


@pytest.mark.parametrize("change,text", [
    (lambda seg: seg[:60], r"expected seg \(120, 160\) uint8, found \(60, 160\) uint8; unpack it again, or set dataset\.masks=f"),
    (lambda seg: seg.astype(np.float32), r"expected seg \(120, 160\) uint8, found \(120, 160\) float32; unpack it again, or")])
def test_broken_masks(options: Options, tmp_path: Path, change, text: str):
    """A seg of another size or kind stops prepare with its file's name, or drops the frame, counted."""
    write_tree(tmp_path / "tree", HANDS, people=10, sequences=1, cameras=1, frames=1)
    broken = options.model_copy(update={"root": str(tmp_path / "tree"), "prepared": str(tmp_path / "a")})
    paint(labels_of(broken, 1), change)
    with pytest.raises(InputError, match=rf"subject-09/.*labels_000000\.npz: {text}"):
        prepare(broken, HANDS)
    skipping = broken.model_copy(update={"prepared": str(tmp_path / "b"), "unreadable": "skip"})
    done = prepare(skipping, HANDS)
    assert done.counts["kept"] == 9 and done.counts["excluded"]["labels broken"] == 1


def test_without_seg(options: Options, tmp_path: Path):
    """Labels files without seg are prepared as before; with masks=true they are refused by name."""
    write_tree(tmp_path / "tree", HANDS, people=10, sequences=1, cameras=1, frames=1)
    bare = options.model_copy(update={"root": str(tmp_path / "tree"), "prepared": str(tmp_path / "a"), "masks": False})
    for path in (tmp_path / "tree").rglob("labels_*.npz"):
        with np.load(path) as file:
            labels = {name: file[name] for name in file if name != "seg"}
        np.savez(path, **labels)
    assert prepare(bare, HANDS).counts["kept"] == 10
    with pytest.raises(InputError, match=r"labels_000000\.npz: expected an npz with seg, found a file that breaks .*seg"):
        prepare(bare.model_copy(update={"masks": True, "prepared": str(tmp_path / "b")}), HANDS)
