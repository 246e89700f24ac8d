"""datasets/augment.py: goldens of the original's colours and resizing, OpenCV, and what a random change must leave alone."""
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.augment import (
    RANDOM,
    AugmentOptions,
    Colour,
    add_noise,
    augment_colours,
    colour,
    erase,
    placement,
    recolour,
    recolour_linear,
    resample,
)

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
from fill import uniform

GOLDEN = np.load(Path(__file__).parent / "goldens" / "crop.npz")
CROP = uniform("input.crop", (173, 173, 3), 0, 256).astype(np.uint8)
FAITHFUL = AugmentOptions(brightness=32, contrast=0.5, saturation=0.5, hue=18)


def scaling(scale: float) -> torch.Tensor:
    """stored_from_crop of a plain resize: pixel centres p -> (p + 0.5) scale - 0.5."""
    return torch.tensor([[[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]]])


def stored(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image))[None]


def test_resize_is_the_originals():
    """A plain resize 173 -> 224 against the original's network input (every eighth pixel; it rounds to bytes)."""
    image = resample(stored(CROP), scaling(173 / 224), 224)[0].numpy() / 127.5 - 1
    assert np.abs(image[:, ::8, ::8] - GOLDEN["img.base"]).max() < 2 / 255


@pytest.mark.parametrize("seed", range(6))
def test_colours_are_the_originals(seed: int):
    """The colour change against the original's, fed with what NumPy's generator drew for it (unclipped, every 16th pixel)."""
    np.random.seed(seed)
    draw = np.random
    brightness = draw.uniform(-32, 32) if draw.randint(2) else 0.0
    first, contrast = draw.randint(2), 1.0
    if first and draw.randint(2):
        contrast = draw.uniform(0.5, 1.5)
    saturation = draw.uniform(0.5, 1.5) if draw.randint(2) else 1.0
    hue = draw.uniform(-18, 18) if draw.randint(2) else 0.0
    if not first and draw.randint(2):
        contrast = draw.uniform(0.5, 1.5)
    change = Colour(*(torch.tensor([x], dtype=torch.float32) for x in (brightness / 255, contrast, saturation, hue)))
    changed = recolour(stored(CROP).permute(0, 3, 1, 2) / 255, change)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(changed[::16, ::16] - GOLDEN[f"img.aug_seed{seed}"]).max() < 1e-3


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 1.5), st.floats(-180, 180), st.integers(0, 10**6))
def test_hsv_is_opencvs(saturation: float, hue: float, seed: int):
    """Saturation and hue of random pictures (greys and pure colours among them) against OpenCV's float HSV."""
    draw = np.random.default_rng(seed)
    image = draw.uniform(0, 1, (8, 8, 3)).astype(np.float32)
    image[0] = image[0, :, :1]
    image[1] = draw.integers(0, 2, (8, 3))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + hue) % 360
    hsv[..., 1] *= saturation
    change = Colour(*(torch.tensor([x], dtype=torch.float32) for x in (0, 1, saturation, hue)))
    changed = recolour(stored(image).permute(0, 3, 1, 2), change)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(changed, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), atol=2e-4)


def test_contrast_before_or_after_hsv_is_one():
    """Scaling values commutes with the HSV block, so that the original's coin between both orders decides nothing."""
    image = torch.rand(1, 3, 16, 16)
    one, half = torch.ones(1), torch.tensor([0.5])
    block = Colour(0 * one, one, 1.4 * one, 30 * one)
    torch.testing.assert_close(recolour(half * image, block), half * recolour(image, block))


def test_linear_colours():
    """The matrix form: brightness and contrast as in HSV; saturation and hue leave greys alone; hue keeps the mean of a pixel."""
    image, one = torch.rand(2, 3, 5, 5), torch.ones(2)
    plain = Colour(0.1 * one, 1.3 * one, one, 0 * one)
    torch.testing.assert_close(recolour_linear(image, plain), recolour(image, plain))
    grey = image[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recolour_linear(grey, Colour(0 * one, one, 0.4 * one, 77 * one)), grey.contiguous())
    turned = recolour_linear(image, Colour(0 * one, one, one, 40 * one))
    torch.testing.assert_close(turned.mean(1), image.mean(1))
    torch.testing.assert_close(turned.square().sum(1), image.square().sum(1))


def test_hue_turns_the_same_way_in_both():
    """Red turned by 120 degrees is green, in HSV and in the matrix form."""
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    one = torch.ones(1)
    for change in (recolour, recolour_linear):
        turned = change(red, Colour(0 * one, one, one, 120 * one))
        torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_identity_resample_is_the_picture():
    """The identity map returns the stored values themselves, bit for bit in bytes."""
    assert torch.equal(resample(stored(CROP), scaling(1.0), 173)[0].permute(1, 2, 0).round().byte(), stored(CROP)[0])


def test_whole_pixel_shift_is_black_beyond():
    """A crop three pixels to the left and up of the picture: moved values, and exactly three rows and columns of black."""
    moved = torch.eye(3)[None].clone()
    moved[0, :2, 2] = -3
    crop = resample(stored(CROP), moved, 100)[0].permute(1, 2, 0).numpy()
    assert (crop[:3] == 0).all() and (crop[:, :3] == 0).all()
    np.testing.assert_allclose(crop[3:, 3:], CROP[:97, :97], atol=0.02)


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0])
def test_turned_crop_is_opencvs(angle: float):
    """A turned, scaled crop of a smooth picture against cv2.warpAffine (5-bit weights), inside the picture."""
    smooth = cv2.GaussianBlur(CROP, (0, 0), 4)
    a, b = 1.2 * np.cos(angle), 1.2 * np.sin(angle)
    A = np.array([[a, -b, 86 - 31.5 * (a - b)], [b, a, 86 - 31.5 * (a + b)], [0, 0, 1]])
    mine = resample(stored(smooth), torch.from_numpy(A)[None], 64)[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(smooth, A[:2], (64, 64), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    assert np.abs(mine - theirs).max() < 1.5


def test_samples_average_areas():
    """With n x n samples a crop shrunk exactly twice is the mean of 2 x 2 pixels, and a shrunk chessboard is grey."""
    even = CROP[:172, :172]
    mean = even.reshape(86, 2, 86, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resample(stored(even), scaling(2.0), 86, 2)[0].permute(1, 2, 0).numpy(), mean, atol=0.02)
    board = np.repeat((np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    assert resample(stored(board), scaling(3.0), 32, 3).std() < 20 < resample(stored(board), scaling(3.0), 32, 1).std()


def test_options_off_change_nothing():
    """All options off: no turn, scale, shift or colour; the values come back bit for bit."""
    random, off = torch.rand(4, RANDOM), AugmentOptions()
    place = placement(random, off)
    assert (place.angle == 0).all() and (place.scale == 1).all() and (place.shift == 0).all() and not off.active
    image = torch.rand(4, 3, 8, 8)
    assert torch.equal(augment_colours(image, random, off), image)


def test_places_and_colours_fill_their_ranges():
    """50,000 draws stay within the options' ranges and reach them; each colour coin falls on no half of the time."""
    random = torch.from_numpy(np.random.default_rng(0).random((50000, RANDOM), dtype=np.float32))
    options = AugmentOptions(rotate=30, scale=0.2, shift=0.1, brightness=32, contrast=0.5, saturation=0.4, hue=18)
    place, change = placement(random, options), colour(random, options)
    log = place.scale.log() / np.log(1.2)
    ranges = [(place.angle.rad2deg(), 30), (log, 1), (place.shift, 0.1), (change.brightness * 255, 32),
              (change.contrast - 1, 0.5), (change.saturation - 1, 0.4), (change.hue, 18)]
    for values, most in ranges:
        assert values.abs().max() <= most * (1 + 1e-6) and values.max() > 0.99 * most and values.min() < -0.99 * most
        assert abs(float(values.double().mean())) < 0.02 * most
    for values, _ in ranges[3:]:
        assert abs(float((values == 0).double().mean()) - 0.5) < 0.01


def test_a_sample_does_not_depend_on_its_batch():
    """Every colour operation gives a sample alone what it gives it among others."""
    options = AugmentOptions(brightness=32, contrast=0.5, saturation=0.5, hue=18, erase=0.5, noise=8)
    image, random = torch.rand(7, 3, 12, 12), torch.rand(7, RANDOM)
    together = augment_colours(image, random, options)
    for i in range(7):
        torch.testing.assert_close(augment_colours(image[i:i + 1], random[i:i + 1], options), together[i:i + 1])


def test_values_end_in_0_1():
    """Seed: the original left 0..255; here the strongest changes end clipped, in hsv and linear alike."""
    for form in ("hsv", "linear"):
        options = FAITHFUL.model_copy(update={"brightness": 255, "probability": 1.0, "colour": form, "noise": 60.0})
        image = augment_colours(torch.rand(32, 3, 8, 8), torch.rand(32, RANDOM), options)
        assert image.min() == 0 and image.max() == 1


def test_erase():
    """A coin's share of samples gets one grey rectangle of 2 to 20 % (less where it leaves the crop); the rest is untouched."""
    random = torch.from_numpy(np.random.default_rng(1).random((2000, RANDOM), np.float32))
    image = torch.full((2000, 3, 40, 40), -1.0)
    erased = erase(image, random, 0.3)
    changed = (erased != image).all(1)
    share = changed.flatten(1).double().mean(1)
    assert abs(float((share > 0).double().mean()) - 0.3) < 0.04 and share.max() <= 0.22
    assert (erased[:, 0] == erased[:, 1]).all()
    assert torch.equal((random[:, 12] < 0.3), share > 0)


def test_noise():
    """Standard deviation uniform up to the option's, mean zero, and other noise for other samples."""
    random = torch.from_numpy(np.random.default_rng(2).random((500, RANDOM), np.float32))
    noise = add_noise(torch.zeros(500, 3, 16, 16), random, 25.5).flatten(1)
    np.testing.assert_allclose(noise.std(1), random[:, 18] * 0.1, rtol=0.15, atol=1e-6)
    assert abs(float(noise.mean())) < 1e-3
    assert float(torch.corrcoef(noise[:2])[0, 1].abs()) < 0.2
