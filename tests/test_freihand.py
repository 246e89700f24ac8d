"""datasets/freihand.py: the labels come back from a tree through prepare and reader as one geometry; splits, versions, masks."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from freihand_cases import BACKGROUNDS, ROOT, SIZE, free_hand, read_list, sample_lists, write_list, write_tree
from torch.utils.data import default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.cache import Crops, read_columns
from datasets.cutting import ROWS
from datasets.freihand import Options, open_reader, prepare
from datasets.freihand_tree import read_tree
from datasets.synthetic import freihand as synthetic
from utils.batch import Batch
from utils.camera import invert_affine, project, transform_uv
from utils.errors import InputError
from utils.predictions import PredictionsWriter, read_predictions

HANDS = {"right": free_hand()}
SAMPLES, EVALUATION = 6, 4
CROP = CropOptions(pixels=96, factor=1.5)
MOVES = AugmentOptions(rotate=40, scale=0.15, shift=0.06)
SPOTS = ROOT.parent / "shared" / "samples" / "freihand"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training samples in four versions, four evaluation ones with the public labels."""
    return write_tree(tmp_path_factory.mktemp("freihand") / "tree", HANDS["right"], SAMPLES, EVALUATION)


@pytest.fixture(scope="module")
def options(tree: Path) -> Options:
    chosen = Options(root=str(tree), prepared=str(tree.parent / "prepared"), workers=1)
    assert prepare(chosen, HANDS).counts["kept"] == 4 * SAMPLES + EVALUATION
    return chosen


def changed(options: Options, **changes) -> Options:
    return options.model_copy(update=changes)


def without(tree: Path, folder: Path, *names: str) -> Path:
    """A copy of a tree that lacks some lists."""
    shutil.copytree(tree, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def opened(options: Options, split: str = "training", crop: CropOptions = CROP, augment: AugmentOptions = AugmentOptions(),
           train: bool = False, needs: frozenset[str] | None = None, **changes):
    return open_reader(changed(options, **changes), crop, augment, split=split, train=train, seed=3, hands=HANDS,
                       needs=needs)


def whole(reader, epoch: int = 0) -> Batch:
    """All samples of a reader in one Batch."""
    return reader.batch(default_collate([reader[(epoch, i)] for i in range(len(reader))]))


def numbers(reader) -> list[int]:
    """Pictures' numbers, from their names."""
    return [int(Path(reader.sample_name(i)).stem) for i in range(len(reader))]


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_labels_come_back(tree: Path, options: Options, split: str):
    """Joints, vertices, K, shape and rotations of every row are the json lists' entries within float32, for all versions."""
    reader = opened(options, split)
    batch, lists = whole(reader), {name: read_list(tree / f"{split}_{name}.json") for name in ("K", "xyz", "verts", "mano")}
    count = len(lists["K"])
    assert numbers(reader) == list(range(len(reader))) and len(reader) == count * (4 if split == "training" else 1)
    which = np.array(numbers(reader)) % count
    for found, wanted in ((batch.joints, lists["xyz"]), (batch.verts, lists["verts"]), (batch.shape, lists["mano"][:, 0, 48:58])):
        assert np.array_equal(found.numpy(), wanted[which].astype(np.float32))
    pose = torch.from_numpy(lists["mano"][which, 0, :48].astype(np.float32))
    assert torch.equal(batch.rotations, HANDS["right"].rotations_from_pose(pose, pca=False, flat_mean=False))
    K = torch.linalg.inv(batch.crop_from_image.double()) @ batch.K.double()
    np.testing.assert_allclose(K, lists["K"][which], atol=1e-3)
    for flag in (batch.has_joints, batch.has_verts, batch.has_shape, batch.has_uv, batch.has_root):
        assert flag.all()
    assert torch.equal(batch.root, batch.joints[:, 0]) and (batch.uv_confidence == 1).all()


def test_placed_by_joint_9(tree: Path, options: Options):
    """The stored translation puts the hand model's own vertices on the list's, from uv and scale of mano alone."""
    reader = opened(options)
    label = {name: torch.from_numpy(np.array(reader.labels[name][:SAMPLES])) for name in ("pose", "shape", "trans")}
    hand = HANDS["right"]
    posed = hand(hand.rotations_from_pose(label["pose"], pca=False, flat_mean=False), label["shape"]).moved(label["trans"])
    assert np.abs(posed.verts.numpy() - read_list(tree / "training_verts.json")).max() < 1e-6
    joint = hand.joints(posed, "freihand", "regressed")[:, 9].double()
    mano, K = (torch.from_numpy(read_list(tree / f"training_{name}.json")) for name in ("mano", "K"))
    torch.testing.assert_close(joint[:, 2], (K[:, 0, 0] + K[:, 1, 1]) / 2 / mano[:, 0, 60], atol=1e-6, rtol=0)
    torch.testing.assert_close(project(joint[:, None], K)[:, 0], mano[:, 0, 58:60], atol=0.05, rtol=0)  # one focal length


def test_vertices_from_either(tree: Path, options: Options, tmp_path: Path):
    """Without training_verts.json the reader's vertices come from mano: the same within 1e-5 m, and both say which they are."""
    lacking = without(tree, tmp_path / "tree", "training_verts.json", "evaluation_verts.json")
    other = changed(options, root=str(lacking), prepared=str(tmp_path / "prepared"))
    done = prepare(other, HANDS)
    assert "training: 6 samples, vertices from the hand model, from training_mano.json" in str(done)
    assert not (tmp_path / "prepared" / "labels" / "verts.npy").exists()
    listed, made = opened(options), opened(other)
    assert (whole(listed).verts - whole(made).verts).norm(dim=-1).max() < 1e-5
    assert listed.protocol()["vertices"] == "training_verts.json"
    assert made.protocol()["vertices"] == "the hand model, from training_mano.json"


def test_one_split_lacks_vertices(tree: Path, options: Options, tmp_path: Path):
    """training_verts.json alone missing: training's vertices are the hand model's, not the evaluation's zeros."""
    lacking = without(tree, tmp_path / "tree", "training_verts.json")
    other = changed(options, root=str(lacking), prepared=str(tmp_path / "prepared"))
    prepare(other, HANDS)
    for split in ("training", "evaluation"):
        batch, wanted = whole(opened(other, split)), whole(opened(options, split))
        assert batch.has_verts.all() and (batch.verts - wanted.verts).norm(dim=-1).max() < 1e-5


@pytest.mark.parametrize("split,augment", [("training", None), ("training", MOVES), ("evaluation", None)])
def test_one_geometry(options: Options, split: str, augment: AugmentOptions | None):
    """K times joints is joints_uv within 0.01 px, still or turned, scaled and shifted; the hand model's vertices turn along."""
    reader = opened(options, split, augment=augment or AugmentOptions(), train=augment is not None)
    for epoch in range(3 if augment else 1):
        batch = whole(reader, epoch)
        assert (project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1).max() < 0.01
        posed = HANDS["right"](batch.rotations, batch.shape)
        verts = posed.verts - posed.verts.mean(1, keepdim=True) + batch.verts.mean(1, keepdim=True)
        assert (verts - batch.verts).norm(dim=-1).max() < 1e-5
        assert (HANDS["right"].regress(batch.verts)[:, 0] - batch.root).norm(dim=-1).max() < 1e-5


@pytest.mark.parametrize("augment", [AugmentOptions(), MOVES], ids=["still", "moved"])
@pytest.mark.parametrize("pixels", [None, 64], ids=["native", "resized"])
def test_masks_follow_the_crop(options: Options, tmp_path: Path, augment: AugmentOptions, pixels: int | None):
    """The mask of a Batch covers the joints and the painted hand, in all versions, and nothing of the background."""
    chosen = changed(options, prepared=str(tmp_path), stored=options.stored.model_copy(update={"pixels": pixels}))
    prepare(chosen, HANDS)
    reader = opened(chosen, augment=augment, train=augment.active)
    batch = whole(reader, 1)
    assert batch.mask.shape == (4 * SAMPLES, 96, 96) and batch.has_mask.all() and set(batch.mask.unique().tolist()) == {0, 1}
    uv = batch.joints_uv.round().long()
    inside = ((uv >= 0) & (uv < 96)).all(-1)
    uv = uv.clamp(0, 95)
    grown = torch.nn.functional.max_pool2d(batch.mask[:, None], 5, 1, 2)[:, 0]  # a joint may lie at a thin finger's edge
    rows = torch.arange(len(uv))[:, None].expand_as(inside)
    assert inside.float().mean() > 0.9 and (grown[rows, uv[..., 1], uv[..., 0]] == 1)[inside].all()
    image = batch.image.permute(0, 2, 3, 1) * 255
    hand = (image - torch.tensor([200.0, 170.0, 150.0])).abs().amax(-1) < 25
    assert (hand == (batch.mask == 1)).float().mean() > (0.95 if pixels else 0.97)  # edges are soft
    number = torch.tensor(numbers(reader)) // SAMPLES
    colours = torch.tensor(BACKGROUNDS, dtype=torch.float).flip(-1)[number]
    outside = 1 - torch.nn.functional.max_pool2d(batch.mask[:, None], 9, 1, 4)[:, 0]
    seen = (image.amax(-1) > 20) & (outside == 1)  # not the black beyond the picture
    assert ((image - colours[:, None, None]).abs().amax(-1) < 40)[seen].float().mean() > 0.97


def test_masks_are_optional(tree: Path, options: Options, tmp_path: Path):
    """masks=false reads no mask file; then no mask is provided. The evaluation has none."""
    bare = changed(options, root=str(tmp_path / "tree"), prepared=str(tmp_path / "prepared"), masks=False)
    shutil.rmtree(without(tree, tmp_path / "tree") / "training" / "mask")
    assert prepare(bare, HANDS).counts["kept"] == 4 * SAMPLES + EVALUATION
    assert "mask" not in opened(bare).provides and "mask" in opened(options).provides
    evaluation = opened(options, "evaluation", needs=frozenset({"image", "mask"}))
    assert "mask" not in evaluation.provides and not whole(evaluation).has_mask.any()
    assert opened(options, needs=frozenset({"image"}))[(0, 0)].keys().isdisjoint({"mask", "verts"})


def test_splits_and_versions(options: Options):
    """val is every k-th sample in all its versions, train the others; versions are pictures i + N * version."""
    assert numbers(opened(options, "val", val_every=3)) == [i + 6 * k for k in range(4) for i in (0, 3)]
    assert numbers(opened(options, "train", val_every=3)) == [i + 6 * k for k in range(4) for i in (1, 2, 4, 5)]
    assert numbers(opened(options, versions=("hom", "auto"))) == [*range(6, 12), *range(18, 24)]
    assert numbers(opened(options, "val", val_every=2, versions=("gs",))) == [0, 2, 4]
    reader = opened(options, "train", val_every=2, versions=("sample",))
    assert reader.protocol()["versions"] == "sample"
    assert reader.protocol()["part"] == "train: val is every k-th training sample, k = 2"
    assert reader.protocol()["split"] == "train" and reader.official is None
    for split in ("train", "val"):
        with pytest.raises(InputError, match=rf"FreiHAND has no split {split} of its own: take training or evaluation, or se"):
            opened(options, split)
    with pytest.raises(InputError, match="FreiHAND: no split test in .*; there are training, evaluation"):
        opened(options, "test")


def test_fewer_versions(tmp_path: Path):
    """A tree with the first version alone is complete; asking for others only is refused with what there is."""
    write_tree(tmp_path / "tree", HANDS["right"], 3, 0, versions=1)
    chosen = Options(root=str(tmp_path / "tree"), prepared=str(tmp_path / "prepared"), workers=1)
    done = prepare(chosen, HANDS)
    assert done.counts["kept"] == 3 and "training: versions gs" in str(done) and len(opened(chosen)) == 3
    assert opened(chosen).protocol()["versions"] == "gs"
    with pytest.raises(InputError, match=r"dataset\.versions: expected some of gs, which .* holds, found auto"):
        opened(chosen, versions=("auto",))
    with pytest.raises(InputError, match="FreiHAND: no split evaluation in .*; there are training"):
        opened(chosen, "evaluation")


def test_official_rows(options: Options):
    """The evaluation is FreiHAND's official list: its rows carry their number, also of a choice; training has none."""
    reader = opened(options, "evaluation", every=2)
    assert reader.columns(range(2))["official_index"].tolist() == [0, 2] and reader.protocol()["official"] == "freihand"
    assert opened(options).columns([0]) == {} and "official" not in opened(options).protocol()
    assert reader.joint_set.tips == "freihand" and reader.joint_set.kind == "regressed"


def test_evaluation_without_labels(tree: Path, options: Options, tmp_path: Path):
    """Pictures and K alone: whole pictures as boxes, no label provided, and who needs one is told where they are published."""
    names = [f"evaluation_{name}.json" for name in ("xyz", "verts", "mano", "scale")]
    bare = changed(options, root=str(without(tree, tmp_path / "tree", *names)), prepared=str(tmp_path / "prepared"))
    done = prepare(bare, HANDS)
    assert "evaluation: pictures and K only" in str(done) and "FreiHAND_pub_v2_eval.zip" in str(done)
    reader = opened(bare, "evaluation", crop=CropOptions(pixels=SIZE, factor=1.0))
    batch = whole(reader)
    assert reader.provides == {"image", "K", "crop_from_image", "mirrored", "index", "subject"}
    torch.testing.assert_close(batch.K.double(), torch.from_numpy(read_list(tree / "evaluation_K.json")), rtol=0, atol=1e-4)
    for i in range(EVALUATION):
        picture = cv2.imread(str(tree / reader.sample_name(i)))[..., ::-1].astype(np.float32)
        assert np.abs(batch.image[i].permute(1, 2, 0).numpy() * 255 - picture).mean() < 3
    with pytest.raises(InputError, match=r"evaluation has no joints, verts here; its labels are in FreiHAND_pub_v2_eval\.zip"):
        opened(bare, "evaluation", needs=frozenset({"image", "joints", "verts"}))
    assert whole(opened(bare)).joints.equal(whole(opened(options)).joints)
    path = tmp_path / "predictions.npz"
    with PredictionsWriter(path, {"dataset": reader.protocol()}) as writer:
        writer.append(name=["a"], subject=np.zeros(1, int), index=np.zeros(1, int), mirrored=np.zeros(1, bool),
                      pred_joints=np.zeros((1, 21, 3)), pred_verts=np.zeros((1, 778, 3)))
    with pytest.raises(InputError, match=r"no column true_joints.* no such labels: its labels are in FreiHAND_pub_v2_eval\.zip"):
        read_predictions(path).require("true_joints")


@pytest.mark.parametrize("labelled", [True, False])
def test_evaluation_alone(tree: Path, options: Options, tmp_path: Path, labelled: bool):
    """A tree of the evaluation alone, with its labels or without any in the folder; the training is refused by name."""
    for path in tree.glob("evaluation*" if labelled else "evaluation_K.json"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    shutil.copytree(tree / "evaluation", tmp_path / "evaluation", dirs_exist_ok=True)
    alone = changed(options, root=str(tmp_path), prepared=str(tmp_path / "prepared"), val_every=2)
    assert prepare(alone, HANDS).counts["kept"] == EVALUATION
    batch = whole(opened(alone, "evaluation"))
    assert batch.joints.equal(whole(opened(options, "evaluation")).joints) if labelled else batch.joints is None
    for split in ("training", "val"):
        with pytest.raises(InputError, match="FreiHAND: no split training in .*; there are evaluation"):
            opened(alone, split)


def test_whole_pictures(options: Options, tmp_path: Path):
    """box=picture cuts every picture whole, whatever its joints: the crop is the picture, with its K and pixels."""
    whole_options = changed(options, prepared=str(tmp_path), box="picture")
    prepare(whole_options, HANDS)
    reader = opened(whole_options, crop=CropOptions(pixels=SIZE, factor=1.0))
    batch = whole(reader)
    torch.testing.assert_close(batch.crop_from_image, torch.eye(3).expand(len(reader), 3, 3), rtol=0, atol=1e-5)
    assert reader.protocol()["crop"] == "1 x the whole picture, 224 px"
    with pytest.raises(InputError, match=r"prepared with dataset\.box=joints, the options say picture"):
        opened(options, box="picture")


def test_limit(tree: Path, options: Options, tmp_path: Path):
    """limit: at most so many pictures of each split, evenly spread; their labels stay theirs."""
    few = changed(options, prepared=str(tmp_path), limit=3)
    assert prepare(few, HANDS).counts["kept"] == 6
    reader = opened(few)
    assert numbers(reader) == [0, 8, 16]
    wanted = read_list(tree / "training_xyz.json")[[0, 2, 4]].astype(np.float32)
    assert np.array_equal(whole(reader).joints.numpy(), wanted)


def test_processes_and_interruptions_change_nothing(tree: Path, options: Options, tmp_path: Path):
    """Two processes, stopped by a broken picture and run again when it is mended: the same folder as one undisturbed run's."""
    def content(folder: Path) -> tuple[dict[str, bytes], list[bytes], list[bytes]]:
        shapes = {name: shape for name, (_, shape) in ROWS.items()}
        columns = {name: column.tobytes() for name, column in read_columns(folder / "index", shapes).items()}
        columns |= {path.name: path.read_bytes() for path in (folder / "labels").iterdir()}
        return columns, *([crops[i].tobytes() for i in range(28)] for crops in (
            Crops(folder / f"{stream}.lmdb") for stream in ("crops", "masks")))

    last = tree / "evaluation" / "rgb" / "00000003.jpg"
    picture = last.read_bytes()
    last.write_bytes(picture[:-90])
    again = changed(options, prepared=str(tmp_path))
    try:
        with pytest.raises(InputError, match=r"00000003\.jpg: expected a whole JPEG, found one cut off"):
            prepare(again, HANDS, workers=2)
    finally:
        last.write_bytes(picture)
    assert prepare(again, HANDS, workers=2).counts["frames_now"] == EVALUATION
    assert content(tmp_path) == content(Path(options.prepared))
    assert "everything was there already" in str(prepare(again, HANDS))


def test_entries_that_are_not_their_joints(tree: Path, options: Options, tmp_path: Path):
    """A mano entry or mesh that is not its joints' counts as missing, is said, and the row keeps the rest of its labels."""
    bent = without(tree, tmp_path / "tree")
    mano, verts = (read_list(bent / f"training_{name}.json") for name in ("mano", "verts"))
    mano[2, 0, 5] += 1.5
    verts[4] += 0.02
    write_list(bent / "training_mano.json", mano)
    write_list(bent / "training_verts.json", verts)
    chosen = changed(options, root=str(bent), prepared=str(tmp_path / "prepared"))
    text = str(prepare(chosen, HANDS))
    assert "training: 1 of 6 entries of training_mano.json lie more than 8 mm from training_xyz.json and count as missing" in text
    assert "1 of 6 entries of training_verts.json" in text
    batch = whole(opened(chosen, versions=("gs",)))
    assert batch.has_shape.tolist() == [True, True, False, True, True, True]
    assert batch.has_verts.tolist() == [True, True, True, True, False, True] and batch.has_joints.all()
    assert torch.equal(batch.has_rotations, batch.has_shape)  # a mesh without pose numbers trains neither pose nor mesh
    assert "identity" not in opened(chosen).provides and "identity" in opened(options).provides


def test_another_hand_model_is_refused(options: Options, tree: Path, tmp_path: Path):
    """Labels of another hand: refused before any picture is cut, and when a prepared folder is read; the option is named."""
    arrays = HANDS["right"].arrays
    other = {"right": type(HANDS["right"])(replace(arrays, v_template=1.3 * arrays.v_template, name="larger"))}
    with pytest.raises(InputError, match=r"training_mano\.json: the labels were not made with the hand model larger .* set hand"):
        prepare(changed(options, prepared=str(tmp_path)), other)
    assert not list(tmp_path.glob("shards/*"))
    with pytest.raises(InputError, match="its labels were not made with the right hand model larger"):
        open_reader(options, CROP, AugmentOptions(), split="training", train=False, seed=0, hands=other)


def test_synthetic_tree(tmp_path: Path):
    """What `synth freihand` writes goes through: labels of its lists, K times joints on joints_uv, masks over the joints."""
    drawn = synthetic.Options(name="freihand", out=str(tmp_path / "tree"), train=4, evaluation=3, people=2, evaluation_people=1,
                              versions=2, workers=1)
    synthetic.write(drawn, HANDS["right"], None)
    chosen = Options(root=drawn.out, prepared=str(tmp_path / "prepared"), workers=1)
    assert prepare(chosen, HANDS).counts["kept"] == 4 * 2 + 3
    for split, repeats in (("training", 2), ("evaluation", 1)):
        batch = whole(opened(chosen, split))
        xyz = np.tile(read_list(tmp_path / "tree" / f"{split}_xyz.json").astype(np.float32), (repeats, 1, 1))
        assert np.array_equal(batch.joints.numpy(), xyz)
        assert (project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1).max() < 0.01
    batch = whole(opened(chosen))
    uv = batch.joints_uv.round().long().clamp(0, 95)
    grown = torch.nn.functional.max_pool2d(batch.mask[:, None], 7, 1, 3)[:, 0]
    assert (grown[torch.arange(8)[:, None], uv[..., 1], uv[..., 0]] == 1).float().mean() > 0.95


def test_compact_and_indented_json_read_alike(tree: Path, tmp_path: Path):
    """Lists with other whitespace and other ways to write numbers are the same lists."""
    bent = without(tree, tmp_path / "tree")
    for name in ("K", "xyz", "mano"):
        path = bent / f"training_{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1 if name == "mano" else None, separators=(",", ":")))
    first, second = (read_tree(root)[0] for root in (tree, bent))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("K", "xyz", "mano"))


@pytest.mark.skipif(not SPOTS.is_dir(), reason="the real samples are not at hand")
def test_real_pictures(tmp_path: Path):
    """Real pictures: their 2D labels, as joints at one depth, stay on the same picture content through our crop."""
    found = json.loads((SPOTS / "test_freihand.json").read_text())
    names = {image["id"]: image["file_name"] for image in found["images"]}
    uv = np.array([a["keypoints"] for a in found["annotations"]]).reshape(-1, 21, 3)[..., :2]
    pictures = [names[a["image_id"]] for a in found["annotations"]]
    K = sample_lists(HANDS["right"], len(uv), 0)["K"]
    xyz = np.concatenate([(uv - K[:, None, [0, 1], 2]) / K[:, None, [0, 1], [0, 1]], np.ones((*uv.shape[:2], 1))], -1) * 0.7
    (tmp_path / "tree" / "evaluation" / "rgb").mkdir(parents=True)
    for i, name in enumerate(pictures):
        shutil.copy(SPOTS / name, tmp_path / "tree" / "evaluation" / "rgb" / f"{i:08d}.jpg")
    write_list(tmp_path / "tree" / "evaluation_K.json", K)
    write_list(tmp_path / "tree" / "evaluation_xyz.json", xyz)
    chosen = Options(root=str(tmp_path / "tree"), prepared=str(tmp_path / "prepared"), workers=1)
    prepare(chosen, HANDS)
    batch = whole(opened(chosen, "evaluation", crop=CropOptions(pixels=256, factor=1.6)))
    back = transform_uv(invert_affine(batch.crop_from_image.double()), batch.joints_uv.double())
    np.testing.assert_allclose(back, uv, atol=1e-3)
    for i, name in enumerate(pictures):
        picture = cv2.imread(str(SPOTS / name))[..., ::-1].astype(np.float32)
        crop = batch.image[i].permute(1, 2, 0).numpy() * 255
        scale = float(batch.crop_from_image[i, 0, 0])
        there, here = (cv2.remap(cv2.GaussianBlur(image, (0, 0), sigma), points[:, None].astype(np.float32), None,
                                 cv2.INTER_LINEAR) for image, sigma, points in (
            (picture, 1.5, uv[i]), (crop, 1.5 * scale, batch.joints_uv[i].numpy())))
        assert np.abs(there - here).mean() < 4
        if int(Path(name).stem) < 32_560:  # green screen: keypoints are on skin or what the hand holds, the screen is greener
            edge = np.concatenate([picture[:8].reshape(-1, 3), picture[-8:].reshape(-1, 3)])
            green = [np.median(x[..., 1] - x[..., [0, 2]].max(-1)) for x in (here, edge)]
            assert green[0] < green[1] - 10
