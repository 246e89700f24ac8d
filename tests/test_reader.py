"""datasets/reader.py: after any random turn, scale, shift and mirror, image, K, pixels, joints and hand are one geometry."""
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from dex_ycb_cases import toy_hand, write_tree
from torch.utils.data import DataLoader, default_collate

from datasets.augment import AugmentOptions, CropOptions
from datasets.dex_ycb import Options, open_reader, prepare
from datasets.reader import random_numbers
from utils.batch import Batch
from utils.camera import mirror_matrix, project, transform_uv
from utils.errors import InputError
from utils.rotation import rotation_about_z

HANDS = {"right": toy_hand(), "left": toy_hand(mirror=True)}
STRONG = AugmentOptions(rotate=180, scale=0.4, shift=0.2)
OFF = AugmentOptions()
CROP = CropOptions(pixels=64, factor=1.3)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Ten people, both sides, prepared once with room for every augmentation."""
    root = tmp_path_factory.mktemp("dex_ycb")
    write_tree(root / "tree", HANDS)
    chosen = Options(root=str(root / "tree"), prepared=str(root / "prepared"), width=160, height=120, hands="mirror_left",
                     setup="s0", in_image=False, workers=1, stored={"factor": 4.5, "pixels": 200})
    prepare(chosen, HANDS)
    return chosen


def stack(reader, epoch: int = 0, rows: int | None = None) -> dict[str, torch.Tensor]:
    return default_collate([reader[(epoch, i)] for i in range(rows or len(reader))])


def opened(options: Options, augment: AugmentOptions = OFF, crop: CropOptions = CROP, hands=HANDS, train: bool = True, **more):
    return open_reader(options, crop, augment, split="train", train=train, seed=3, hands=hands, **more)


def colours_at(image: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """(b,3,n) values of the image at pixels uv (b,n,2), bilinear."""
    grid = (uv + 0.5) * 2 / image.shape[-1] - 1
    return torch.nn.functional.grid_sample(image, grid[:, None], align_corners=False)[:, :, 0]


@pytest.mark.parametrize("augment", [OFF, AugmentOptions(rotate=180), AugmentOptions(scale=0.4), AugmentOptions(shift=0.2),
                                     STRONG])
def test_pixels_are_projected_joints(options: Options, augment: AugmentOptions):
    """joints_uv = K * joints to a thousandth of a pixel on every sample, right and left, under each and all random moves."""
    reader = opened(options, augment)
    batch = reader.batch(stack(reader, epoch=1))
    assert batch.mirrored.any() and not batch.mirrored.all()
    torch.testing.assert_close(project(batch.joints, batch.K), batch.joints_uv, atol=1e-3, rtol=0)


def test_painted_discs_follow_their_joints(options: Options):
    """The discs painted at the joints of the whole pictures are found at joints_uv of every turned, scaled, shifted crop."""
    reader = opened(options, STRONG, CropOptions(pixels=128, factor=1.3))
    batch = reader.batch(stack(reader))
    inside = ((batch.joints_uv > 1) & (batch.joints_uv < 126)).all(-1)
    values = colours_at(batch.image, batch.joints_uv).transpose(1, 2)[inside]
    assert inside.double().mean() > 0.7
    disc = torch.tensor([240, 220, 90]) / 255
    assert (values - disc).abs().amax(1).lt(0.25).double().mean() > 0.99
    away = colours_at(batch.image, batch.joints_uv + 16 * torch.tensor([1.0, 0.0])).transpose(1, 2)[inside]
    assert (away - disc).abs().amax(1).lt(0.25).double().mean() < 0.5


def test_rotations_and_shape_give_the_vertices(options: Options):
    """The right hand model, posed by the batch's rotations and shape and set on its wrist, is the batch's vertices and joints."""
    reader = opened(options, STRONG)
    batch = reader.batch(stack(reader))
    shaped = HANDS["right"].shaped(batch.shape)
    posed = shaped.posed(batch.rotations).moved(batch.root - shaped.rest_joints[:, 0])
    torch.testing.assert_close(posed.verts, batch.verts, atol=2e-6, rtol=0)
    torch.testing.assert_close(HANDS["right"].joints(posed, "manopth", "chain"), batch.joints, atol=2e-6, rtol=0)


def test_turning_turns_everything_by_one_angle(options: Options):
    """Against the plain crop of the same samples: joints, vertices and global rotations turned by one R_z, fingers untouched."""
    reader, plain = opened(options, AugmentOptions(rotate=90)), opened(options, OFF)
    a, b = reader.batch(stack(reader)), plain.batch(stack(plain))
    angle = (2 * torch.stack([torch.from_numpy(random_numbers(3, 0, i)) for i in range(len(a))])[:, 0] - 1) * torch.pi / 2
    turn = rotation_about_z(angle)
    torch.testing.assert_close(a.verts, b.verts @ turn.transpose(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(a.rotations[:, 0], turn @ b.rotations[:, 0], atol=1e-6, rtol=0)
    assert torch.equal(a.rotations[:, 1:], b.rotations[:, 1:])
    middle = torch.full((2,), 31.5)
    torch.testing.assert_close(a.joints_uv - middle, (b.joints_uv - middle) @ turn[:, :2, :2].transpose(1, 2), atol=1e-3, rtol=0)


def test_test_time_crop_is_the_plain_crop(options: Options):
    """train=False and a training set with every option off give the same bits; the crop is square about the box's centre."""
    reader, plain = opened(options, STRONG, train=False), opened(options, OFF)
    a, b = reader.batch(stack(reader)), plain.batch(stack(plain))
    for field in fields(Batch):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert (one is None and other is None) or torch.equal(one, other), field.name
    low, high = a.joints_uv.amin(1), a.joints_uv.amax(1)
    torch.testing.assert_close((low + high) / 2, torch.full_like(low, 31.5), atol=1e-3, rtol=0)
    torch.testing.assert_close((high - low).amax(1), torch.full((len(a),), 64 / 1.3), atol=1e-3, rtol=0)


def test_crop_from_image_maps_labels(options: Options):
    """crop_from_image takes the (mirrored, where it is) picture's pixels to the crop's, and K of the picture to K of the crop."""
    reader = opened(options, AugmentOptions(scale=0.3, shift=0.1))
    raw = stack(reader)
    batch = reader.batch(raw)
    flip = torch.where(raw["mirrored"][:, None, None], mirror_matrix(160), torch.eye(3))
    torch.testing.assert_close(transform_uv(batch.crop_from_image @ flip, raw["joints_uv"]), batch.joints_uv, atol=1e-3, rtol=0)
    right = ~raw["mirrored"]
    torch.testing.assert_close((batch.crop_from_image @ raw["K"])[right], batch.K[right], atol=1e-3, rtol=0)


def test_left_hands_are_mirrored(options: Options):
    """In a mirrored sample the picture's blue grows to the left and x of the joints has changed its sign."""
    reader = opened(options)
    raw = stack(reader)
    batch = reader.batch(raw)
    slope = batch.image[:, 2, :, 40:].mean((1, 2)) - batch.image[:, 2, :, :24].mean((1, 2))
    assert (slope[batch.mirrored] < 0).all() and (slope[~batch.mirrored] > 0).all()
    flip = torch.tensor([-1.0, 1, 1])
    assert torch.equal(batch.joints[batch.mirrored], raw["joints"][batch.mirrored] * flip)
    assert batch.has_shape.all()


def test_a_left_shape_that_is_no_mirror_image_is_not_a_label(options: Options, tmp_path: Path):
    """With a left model of its own kind vertices still fit the labelled joints, and has_shape is off for left hands alone."""
    hands = {"right": toy_hand(), "left": toy_hand("left")}
    write_tree(tmp_path / "tree", hands, people=3)
    own = options.model_copy(update={"root": str(tmp_path / "tree"), "prepared": str(tmp_path / "prepared")})
    prepare(own, hands)
    reader = opened(own, STRONG, hands=hands)
    batch = reader.batch(stack(reader))
    assert torch.equal(batch.has_shape, ~batch.mirrored) and batch.mirrored.any()
    tips = hands["left"].tips["manopth"]
    verts, joints = batch.verts[batch.mirrored], batch.joints[batch.mirrored]
    torch.testing.assert_close(verts[:, tips], joints[:, [4, 8, 12, 16, 20]], atol=2e-6, rtol=0)


def test_numbers_follow_from_seed_epoch_and_index():
    """Random numbers are a function of (seed, epoch, index): repeatable, distinct in each argument, uniform."""
    assert np.array_equal(random_numbers(1, 2, 3), random_numbers(1, 2, 3))
    drawn = [random_numbers(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({x.tobytes() for x in drawn}) == 4
    many = np.concatenate([random_numbers(0, 5, i) for i in range(2000)])
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.01 and abs(many.var() - 1 / 12) < 0.005


def test_samples_do_not_depend_on_workers_or_company(options: Options):
    """The same sample out of two worker processes, in another batch, is the same to the bit; another epoch is another sample."""
    colours = {"brightness": 32, "contrast": 0.5, "saturation": 0.5, "hue": 18, "erase": 0.5, "noise": 5.0}
    augment = STRONG.model_copy(update=colours)
    reader = opened(options, augment)
    keys = [(4, i) for i in range(16)]
    one = reader.batch(default_collate([reader[key] for key in keys]))
    for at, raw in enumerate(DataLoader(reader, 8, sampler=keys, num_workers=2)):
        torch.testing.assert_close(reader.batch(raw).image, one.image[8 * at:8 * at + 8])
    other = reader.batch(default_collate([reader[(5, i)] for i in range(16)]))
    assert (other.image - one.image).abs().mean() > 0.02


def test_only_what_is_needed_is_computed(options: Options):
    """needs without vertices leaves the hand model out; joints and pixels are there all the same."""
    reader = opened(options, needs=frozenset({"joints", "joints_uv"}))
    batch = reader.batch(stack(reader))
    assert batch.verts is None and batch.rotations is None and batch.joints is not None and batch.has_uv.all()


def test_provides_is_what_comes(options: Options):
    """Every field that the reader says it provides is in its batches, and no other."""
    reader = opened(options)
    batch = reader.batch(stack(reader, rows=4))
    assert {f.name for f in fields(Batch) if getattr(batch, f.name) is not None} == reader.provides


@pytest.mark.parametrize("name,bend,line", [
    ("joints_uv", lambda x: x + 3.1, "joint_2d off by 3.1 px from K*joint_3d"),
    ("joints", lambda x: x * np.nan, "joints is not finite"), ("K", lambda x: x + np.inf, "K is not finite"),
    ("pose", lambda x: x[:3], "expected pose"),
    ("image", lambda x: x[:3], "expected a square RGB picture")])
def test_broken_samples_are_named(options: Options, monkeypatch: pytest.MonkeyPatch, name: str, bend, line: str):
    """A sample that breaks the contract stops the first epoch with its split, number and file in the line."""
    reader = opened(options)
    whole = reader.read(7)
    monkeypatch.setattr(reader, "read", lambda index: {**whole, name: bend(whole[name])})
    with pytest.raises(InputError, match=r"DexYCB s0/train #7 \(20200710-subject-01/.*/color_00000\d\.jpg\): ") as caught:
        reader[(0, 7)]
    assert line in str(caught.value)


def test_stored_at_native_size_is_the_same_geometry(options: Options, tmp_path: Path):
    """Crops kept at native size and resized by the workers show the discs where crops stored at 200 pixels do."""
    stored = options.stored.model_copy(update={"pixels": None})
    native = options.model_copy(update={"stored": stored, "prepared": str(tmp_path / "native")})
    prepare(native, HANDS)
    a, b = (r.batch(stack(r)) for r in (opened(options), opened(native)))
    assert torch.equal(a.joints_uv, b.joints_uv) and torch.equal(a.K, b.K)
    assert (a.image - b.image).abs().mean() < 0.01
    shifted = torch.roll(b.image, 1, -1)
    assert (a.image - shifted).abs().mean() > 2 * (a.image - b.image).abs().mean()
