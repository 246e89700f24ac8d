"""FreiHAND as CMR prepares it, against the original's outputs (goldens: cmr_data.npz, every 7th pixel and 48th vertex of them).

The evaluation's crop is the original's by option (`crop_rule: published`), its K always. Training crops are the spec's formulas
(tests/cmr_data_cases.py, checked here against the original), corrected: ours and theirs differ by the corners they truncate.
"""
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from cmr_data_cases import SIZE, original_colour, original_crop
from freihand_cases import free_hand, read_list, write_list, write_tree
from torch.utils.data import default_collate

from datasets.augment import (
    SPREAD,
    AugmentOptions,
    Colour,
    CropOptions,
    Placement,
    crop_square,
    published_map,
    recolour,
    resample,
)
from datasets.freihand import Options, open_reader, prepare
from datasets.mask_box import hull_of
from src.cmr import Cmr
from utils.camera import K_of_crop, crop_matrix, invert_affine, project, transform_uv
from utils.rotation import rotation_about_z

GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "cmr_data.npz"))
CMR = AugmentOptions(rotate=90, scale=0.2 / 1.3, shift=1.0, jitter="inside")
DRAWS = {"train0": (0, 0.0, (0.0, 0.0)), "train1": (37, 0.4, (-0.3, 0.6))}
CROP = CropOptions(pixels=SIZE, factor=1.3)


def original(angle: float, amplify: float, shift: tuple[float, float]):
    """The reference's crop of the golden sample."""
    return original_crop(*(GOLDEN[name] for name in ("img", "mask", "K", "uv", "xyz", "v0")), angle, amplify, shift)


def ours(angle: float, amplify: float, shift: tuple[float, float]) -> SimpleNamespace:
    """Our crop of the golden sample for the same draws, by what the reader uses."""
    turn = torch.tensor([-np.radians(angle)])  # OpenCV's angles are against the clock
    place = Placement(turn, 1 + torch.tensor([CMR.scale * amplify]).double(), torch.tensor([shift]).double())
    hull = torch.from_numpy(hull_of(GOLDEN["mask"])).double()[None]
    centre, side = crop_square(torch.zeros(1, 3).double(), hull, CROP.factor, place, CMR)
    crop = crop_matrix(centre, side, SIZE, turn)
    known = {name: torch.from_numpy(GOLDEN[name])[None] for name in ("img", "mask", "K", "uv", "xyz")}
    xyz = known["xyz"] @ rotation_about_z(turn).transpose(1, 2)
    image, mask = (resample(x, invert_affine(crop), SIZE)[0] for x in (known["img"], 255 * known["mask"][..., None]))
    return SimpleNamespace(image=image, mask=mask[0] > 127.5, K=K_of_crop(known["K"], crop, turn), xyz=xyz[0].numpy(),
                           uv=transform_uv(crop, known["uv"])[0].numpy(), scale=SIZE / float(side))


def test_published_evaluation_crop_golden():
    """`published`: the original's evaluation picture within rounding to bytes (0.51 of 255), from the whole picture."""
    box = torch.tensor([[111.5, 111.5, 100]]).double()
    found = resample(torch.from_numpy(GOLDEN["img"])[None], invert_affine(published_map(box, CROP)), SIZE)[0]
    assert np.abs(found.permute(1, 2, 0).numpy()[::7, ::7] - GOLDEN["eval.img"]).max() < 0.51
    exact = K_of_crop(torch.from_numpy(GOLDEN["K"])[None], crop_matrix(box[:, :2], 1.3 * box[:, 2], SIZE))
    np.testing.assert_allclose(exact[0], GOLDEN["eval.K"], atol=1e-9)


def test_evaluation_by_the_reader(tmp_path: Path):
    """The reader with the golden's picture and K in a tree: the published crop within JPEG's loss, the same K by either rule."""
    write_tree(tmp_path / "tree", free_hand(), 0, 2, public=("K",))
    picture = tmp_path / "tree" / "evaluation" / "rgb" / "00000001.jpg"
    cv2.imwrite(str(picture), GOLDEN["img"][..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 100))
    file = tmp_path / "tree" / "evaluation_K.json"
    write_list(file, np.stack([read_list(file)[0], GOLDEN["K"]]))
    options = Options(root=str(tmp_path / "tree"), prepared=str(tmp_path / "prepared"), box="mask", workers=1)
    prepare(options, {"right": free_hand()})
    stored = cv2.imread(str(picture))[..., ::-1]
    for rule in ("published", "exact"):
        reader = open_reader(options.model_copy(update={"crop_rule": rule}), CROP, AugmentOptions(), split="evaluation",
                             train=False, seed=0, hands={"right": free_hand()})
        batch = reader.batch(default_collate([reader[(0, 1)]]))
        np.testing.assert_allclose(batch.K[0], GOLDEN["eval.K"], atol=1e-4)
        found = batch.image[0].permute(1, 2, 0).numpy() * 255
        theirs = cv2.warpAffine(stored, 223 / 130 * np.array([[1, 0, -47.0], [0, 1, -47]]), (SIZE, SIZE))
        assert (np.abs(found - theirs).max() < 2.5) == (rule == "published")
        assert (np.abs(found[::7, ::7] - GOLDEN["eval.img"]).mean() < 1.5) == (rule == "published")
        assert reader.protocol()["crop_rule"] == rule


@pytest.mark.parametrize("name", DRAWS)
def test_reference_is_the_original(name: str):
    """The spec's formulas give the original's training samples: numbers exactly, pictures within OpenCV's rounding."""
    found = original(*DRAWS[name])
    for mine, theirs in ((found.K, "K"), (found.uv, "uv"), (found.xyz, "xyz"), (found.verts, "v0")):
        np.testing.assert_allclose(mine, GOLDEN[f"{name}.{theirs}"], atol=1e-9)
    assert np.abs(found.image[::7, ::7].astype(int) - GOLDEN[f"{name}.img"]).max() <= 2
    assert (found.mask != GOLDEN[f"{name}.mask"]).mean() < 1e-3


def test_training_crop_against_the_original():
    """For the same draws our crop, turned about any point, shows what the original's does: joints within 1.5 px of the picture
    (their corners are whole pixels: 1; half pixels: 0.5), masks but for their rims, 3D exactly; ours is one geometry."""
    draw = np.random.default_rng(0)
    cases = list(DRAWS.values()) + [(int(draw.integers(-90, 90)), draw.uniform(-1, 1), tuple(draw.uniform(-1, 1, 2)))
                                    for _ in range(12)]
    errors = []
    for case in cases:
        theirs, mine = original(*case), ours(*case)
        np.testing.assert_allclose(mine.xyz, theirs.xyz, atol=1e-12)
        errors.append(np.abs(mine.uv - theirs.uv).max() / mine.scale)
        assert (mine.mask.numpy() != theirs.mask).mean() < 0.025
        np.testing.assert_allclose(project(torch.from_numpy(mine.xyz)[None], mine.K)[0], mine.uv, atol=1e-6)
        assert float(abs(mine.K[0, 0, 0] / theirs.K[0, 0] - 1)) < 0.02  # the box of a turned bitmap has whole pixels
    assert max(errors) < 1.5 and max(errors[:2]) < 0.7


def test_picture_and_pixels_of_ours_agree():
    """The golden's picture under our crop has, at each joint, the colour that the whole picture has there; theirs is beside."""
    crop, whole = ours(*DRAWS["train1"]), GOLDEN["img"].astype(np.float32)
    theirs = original(*DRAWS["train1"])

    def at(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
        return cv2.remap(image, uv[:, None].astype(np.float32), None, cv2.INTER_LINEAR)[:, 0]

    wanted = at(whole, GOLDEN["uv"])
    mine = np.abs(at(crop.image.permute(1, 2, 0).numpy(), crop.uv) - wanted).mean()
    assert mine < 1.5 and np.abs(at(theirs.image.astype(np.float32), theirs.uv) - wanted).mean() > 1.5 * mine


@pytest.mark.parametrize("seed", range(5))
def test_colour_golden(seed: int):
    """The device's colour change, given the original's draws, is the original's picture (of 255) within 1e-3, both orders."""
    brightness, *factors = original_colour(seed)
    change = Colour(*(torch.tensor([x], dtype=torch.float64) for x in (brightness / 255, *factors)))
    image = torch.from_numpy(GOLDEN["img"][:16, :16]).permute(2, 0, 1)[None].double() / 255
    np.testing.assert_allclose(recolour(image, change)[0].permute(1, 2, 0) * 255, GOLDEN[f"color.seed{seed}"], atol=1e-3)


def test_redrawing_is_the_original_s():
    """Normal draws of deviation SPREAD, redrawn until within 1, are the original's draws, whose distribution ours are of."""
    draw, found = np.random.RandomState(5), []
    while len(found) < 8:
        value = draw.normal(0, SPREAD)
        found += [value] if abs(value) <= 1 else []
    np.testing.assert_allclose(found, GOLDEN["gauss_rand.seed5.scale3"], atol=1e-12)


def test_half_mask_golden():
    """The silhouette's target at half size: CMR's mask term is 0 for logits of the original's half mask, and for no other."""
    method = SimpleNamespace(options=SimpleNamespace(target="published"))
    batch = SimpleNamespace(mask=torch.from_numpy(GOLDEN["train1.mask"])[None].float(), has_mask=torch.tensor([True]))
    half = torch.from_numpy(GOLDEN["half_mask"]).float()
    for shown, zero in ((half, True), (half.roll(1, 0), False)):
        out = SimpleNamespace(logits=[(100 * (2 * shown - 1))[None, None]])
        assert (float(Cmr._mask_term(method, out, batch)) < 1e-6) == zero
