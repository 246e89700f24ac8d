"""Crop and augmentation on the device, whole batches at once: one resampling, one pass of colour.

Geometry is chosen here as numbers (angle, scale, shift) and applied by maps of utils/camera.py, so that image, K, pixels and 3D
move together (datasets/reader.py). Every random number comes in as `random` (b, RANDOM) in [0, 1), drawn per sample from (seed,
epoch, index): the same sample looks the same in any batch, on any number of processes.
CMR's crop of a training picture (specs/cmr_boukhayma_metro.md 3.3) is `jitter: inside`. Seed: its angles and corners are whole
numbers, it turns about pixel (112, 112) whatever the principal point, and its picture, pixels and K are up to a pixel apart.
Colour is that of Kong et al.'s training (specs/idhandmesh.md 2.3). Seed: theirs acts on the crop before it is resized and is
never clipped; here it acts on the network's crop and ends in [0, 1]. Seed: theirs flips a coin for contrast before or after the
HSV block; scaling leaves hue and saturation as they are, so both orders are one result and there is no coin here. Seed: theirs
draws from a generator that all workers share.
"""
import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from utils.strict import Strict

RANDOM = 20  # uniform numbers that a sample needs; columns are named below
_ANGLE, _SCALE, _SHIFT = 0, 1, slice(2, 4)
_COINS, _COLOUR, _ERASE, _NOISE = slice(4, 8), slice(8, 12), slice(12, 18), slice(18, 20)
SPREAD = 3.0  # CMR's pos_aug: standard deviation before values beyond 1 are redrawn, which leaves them nearly uniform
ERASED_SHARE, ERASED_ASPECT = (0.02, 0.2), 2.0  # of the crop's area; width to height within 1/2 .. 2
LUMA = (0.299, 0.587, 0.114)
_NOISE_SPARE = 1 << 16


class CropOptions(Strict):
    """The picture a network sees: a square of side `factor` times the hand's box, resampled to `pixels`."""

    pixels: int = Field(224, ge=16, le=1024, description="side of the network's input")
    factor: float = Field(2.0, gt=0.5, le=8, description="side of the crop / longer side of the box of the joints")
    antialias: bool = Field(True, description="average n x n samples per pixel where the crop shrinks about n times; "
                                              "off: bilinear, as the original")


class AugmentOptions(Strict):
    """Random changes of training samples; all off by default.

    Kong et al.'s training is colour only: brightness 32, contrast 0.5, saturation 0.5, hue 18, colour hsv, probability 0.5.
    """

    rotate: float = Field(0.0, ge=0, le=180, description="in-plane rotation, uniform within ± degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="crop side times exp(u), u uniform within ± log(1 + scale)")
    shift: float = Field(0.0, ge=0, le=1, description="shift of the crop, uniform within ± this share of its side, x and y apart")
    jitter: Literal["share", "inside"] = Field("share", description="inside, as CMR: crop side times 1 + scale a, shifted by "
                                               "shift s of the room around the box, so the box never leaves the crop; a and s "
                                               "normal of deviation 3 within ± 1; its own: scale 0.1538 (0.2 of 1.3), shift 1")
    probability: float = Field(0.5, ge=0, le=1, description="chance of each of the four colour changes")
    brightness: float = Field(0.0, ge=0, le=255, description="added, uniform within ± of 255")
    contrast: float = Field(0.0, ge=0, lt=1, description="factor on the values, uniform in 1 ± contrast")
    saturation: float = Field(0.0, ge=0, lt=1, description="factor on the saturation, uniform in 1 ± saturation")
    hue: float = Field(0.0, ge=0, le=180, description="added to the hue, uniform within ± degrees")
    colour: Literal["hsv", "linear"] = Field("hsv", description="hsv: saturation and hue as the original; linear: about "
                                                                "luma and the grey axis, one matrix, far faster")
    erase: float = Field(0.0, ge=0, le=1, description="chance of one grey rectangle of 2 to 20 % of the crop")
    noise: float = Field(0.0, ge=0, le=255, description="largest standard deviation of added noise, of 255")

    @property
    def moves(self) -> bool:
        """Whether the crop's place is random."""
        return bool(self.rotate or self.scale or self.shift)

    @property
    def active(self) -> bool:
        """Whether anything is random."""
        return bool(self.moves or self.brightness or self.contrast or self.saturation or self.hue or self.erase or self.noise)


class Placement(NamedTuple):
    """Where a crop lies: angle (b) rad · scale (b) on the crop's side · shift (b,2) in sides of the crop, or (jitter inside) in
    what a box may move each way in its crop, along the turned crop's axes."""

    angle: Tensor
    scale: Tensor
    shift: Tensor


class Colour(NamedTuple):
    """Change of colours, all (b): brightness added to values in [0,1] · contrast and saturation factors · hue in degrees."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


def placement(random: Float[Tensor, "b r"], options: AugmentOptions) -> Placement:
    """The crop's random place, float64 (the maps made from it are)."""
    both = 2 * random[:, :4].double() - 1
    if options.jitter == "inside":
        normal = cut_normal(both[:, 1:])
        return Placement(both[:, _ANGLE] * (options.rotate * torch.pi / 180), 1 + options.scale * normal[:, 0],
                         normal[:, 1:] * options.shift)
    grow = torch.log1p(torch.tensor(options.scale, dtype=torch.float64))
    return Placement(both[:, _ANGLE] * (options.rotate * torch.pi / 180), torch.exp(both[:, _SCALE] * grow.item()),
                     both[:, _SHIFT] * options.shift)


def cut_normal(uniform: Tensor) -> Tensor:
    """Numbers uniform in [-1, 1) as normal ones of deviation SPREAD that are redrawn until within ± 1 (inverse distribution)."""
    return (SPREAD * 2**0.5) * torch.erfinv(uniform * math.erf(1 / (SPREAD * 2**0.5)))


def crop_square(box: Float[Tensor, "b 3"], hull: Float[Tensor, "b n 2"] | None, factor: float, place: Placement,
                options: AugmentOptions) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b"]]:
    """Centre and side of the randomly placed crop, pixels of the picture; it lies turned by place.angle.

    box: centre and side · hull: pixels whose turned box is the hand's, in place of the upright one · factor: crop.factor.
    """
    centre, size = (box[:, :2], box[:, 2:]) if hull is None else turned_box(hull, place.angle)
    side = size.amax(1) * factor * place.scale
    if options.jitter == "share":
        return centre + place.shift * side[:, None], side
    room = ((side[:, None] - size) / 2).clamp(min=0)
    return centre + _turned(place.shift * room, -place.angle), side


def published_map(box: Float[Tensor, "b 3"], crop: CropOptions) -> Float[Tensor, "b 3 3"]:
    """crop_from_image as CMR resamples its pictures: the first pixel of the square to the crop's first, the last (which lies
    beside the square) to its last. Their K is that of `crop_matrix`; the two are up to a pixel apart."""
    half = box[:, 2:] * (crop.factor / 2)
    low, high = (box[:, :2] + 0.5 - half).trunc(), (box[:, :2] + 0.5 + half).trunc()  # the original's centre is x + w / 2
    scale = (crop.pixels - 1) / (high - low)[:, :1]
    zero, one = torch.zeros_like(scale[:, 0]), torch.ones_like(scale[:, 0])
    (x, y), scale = (-low * scale).unbind(1), scale[:, 0]
    return torch.stack((scale, zero, x, zero, scale, y, zero, zero, one), -1).unflatten(-1, (3, 3))


def turned_box(hull: Float[Tensor, "b n 2"], angle: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
    """Box of points after a turn of the picture by `angle` (clockwise): its centre in the picture before, and its width and
    height after, to the outer edges of the pixels that the points are."""
    turned = _turned(hull, angle[:, None])
    low, high = turned.amin(1), turned.amax(1)
    return _turned((low + high) / 2, -angle), high - low + 1


def _turned(points: Float[Tensor, "... 2"], angle: Tensor) -> Tensor:
    (x, y), cos, sin = points.unbind(-1), torch.cos(angle), torch.sin(angle)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1)


def colour(random: Float[Tensor, "b r"], options: AugmentOptions) -> Colour:
    """The random change of colours; a change whose coin fell on no is the identity."""
    both = (2 * random[:, _COLOUR] - 1) * (random[:, _COINS] < options.probability)
    most = both.new_tensor([options.brightness / 255, options.contrast, options.saturation, options.hue])
    brightness, contrast, saturation, hue = (both * most).unbind(1)
    return Colour(brightness, 1 + contrast, 1 + saturation, hue)


def resample(stored: UInt8[Tensor, "b s s c"], stored_from_crop: Float[Tensor, "b 3 3"], pixels: int, samples: int = 1,
             mask: UInt8[Tensor, "b s s"] | None = None) -> Float[Tensor, "b k p p"]:
    """Crops of `pixels` x `pixels`, values 0..255, read bilinearly from stored crops through an affine map of pixel centres.

    samples: n x n samples are averaged per pixel, which is what a crop n times smaller than its source needs. Outside is black.
    mask: one channel more, the last.
    """
    size = stored.shape[1]
    # Centres of the samples in crop pixels, then in stored pixels, then in grid_sample's units: -1 and 1 are the picture's edges.
    line = (torch.arange(pixels * samples, device=stored.device, dtype=torch.float32) + 0.5) / samples - 0.5
    affine = (stored_from_crop[:, :2] * (2 / size)).float()
    shift = affine[:, :, 2] + (1 / size - 1)
    along, down = (affine[:, None, :, i] * line[:, None] for i in (0, 1))
    grid = along[:, None] + (down + shift[:, None])[:, :, None]
    layers = stored.permute(0, 3, 1, 2).contiguous()
    source = (layers if mask is None else torch.cat((layers, mask[:, None]), 1)).float()
    image = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Black beyond the picture's edge, but not a shade darker within its outermost half pixel (which padding with zeros would be).
    inside = grid.abs_() <= 1 + 1e-5
    image *= (inside[..., 0] & inside[..., 1]).unsqueeze(1)
    return F.avg_pool2d(image, samples) if samples > 1 else image


def recolour(image: Float[Tensor, "b 3 h w"], change: Colour) -> Float[Tensor, "b 3 h w"]:
    """The original's colour change of values in [0, 1]: brightness, contrast, then saturation and hue in HSV. Not clipped."""
    image = (image + change.brightness[:, None, None, None]) * change.contrast[:, None, None, None]
    if image.is_cuda:  # all rows: choosing some would wait for the device
        return _turn_hsv(image, change.saturation, change.hue)
    rows = torch.nonzero((change.saturation != 1) | (change.hue != 0)).flatten()
    return image.index_copy(0, rows, _turn_hsv(image[rows], change.saturation[rows], change.hue[rows]))


def _turn_hsv(image: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Saturation times a factor, hue plus degrees, in HSV (hexcone), without going through clipped values."""
    r, g, b = image.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    spread = value - torch.minimum(torch.minimum(r, g), b)
    per = 1 / (spread + 1e-9)
    sextant = torch.where(value == r, (g - b) * per, torch.where(value == g, (b - r) * per + 2, (r - g) * per + 4))
    sextant = sextant + (hue / 60)[:, None, None]
    # A value below 0 (brightness took it there) has a saturation of the other sign in the original's formula: spread / |value|.
    spread = spread * saturation[:, None, None] * torch.where(value < 0, -1.0, 1.0)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(sextant + offset, 6.0)
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def recolour_linear(image: Float[Tensor, "b 3 h w"], change: Colour) -> Float[Tensor, "b 3 h w"]:
    """The same four changes as one matrix: saturation about the luma, hue as a turn about the grey axis. Not clipped."""
    matrix, offset = linear_colour(change)
    return torch.baddbmm(offset[:, :, None], matrix, image.flatten(2)).view_as(image)


def linear_colour(change: Colour) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """Matrix and offset of `recolour_linear`."""
    angle, luma = torch.deg2rad(change.hue), change.hue.new_tensor(LUMA)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    grey = torch.full((3, 3), 1 / 3, device=luma.device, dtype=luma.dtype)
    one = torch.eye(3, device=luma.device, dtype=luma.dtype)
    cross = luma.new_tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3 ** 0.5
    turn = cos * one + (1 - cos) * grey + sin * cross
    saturation = change.saturation[:, None, None]
    matrix = (saturation * one + (1 - saturation) * luma.expand(3, 3)) @ turn * change.contrast[:, None, None]
    return matrix, matrix.sum(2) * change.brightness[:, None]


def erase(image: Float[Tensor, "b 3 h w"], random: Float[Tensor, "b r"], probability: float) -> Float[Tensor, "b 3 h w"]:
    """A rectangle of one grey over some samples: 2 to 20 % of the crop, anywhere."""
    coin, share, aspect, x, y, grey = random[:, _ERASE].unbind(1)
    area = ERASED_SHARE[0] + share * (ERASED_SHARE[1] - ERASED_SHARE[0])
    ratio = ERASED_ASPECT ** (2 * aspect - 1)
    half_width, half_height = (area * ratio).sqrt() / 2, (area / ratio).sqrt() / 2
    across, down = ((torch.arange(n, device=image.device) + 0.5) / n for n in (image.shape[3], image.shape[2]))
    inside = ((across - x[:, None]).abs() < half_width[:, None])[:, None, None, :] & \
             ((down - y[:, None]).abs() < half_height[:, None])[:, None, :, None]
    return torch.where(inside & (coin < probability)[:, None, None, None], grey[:, None, None, None], image)


def add_noise(image: Float[Tensor, "b 3 h w"], random: Float[Tensor, "b r"], most: float) -> Float[Tensor, "b 3 h w"]:
    """Normal noise, standard deviation up to `most` of 255; each sample reads its own stretch of one fixed sequence."""
    strength, offset = random[:, _NOISE].unbind(1)
    count = image[0].numel()
    normal = _normal(count + _NOISE_SPARE, image.device).unfold(0, count, 1)
    return image + (strength * (most / 255))[:, None, None, None] * normal[(offset * _NOISE_SPARE).long()].view_as(image)


@lru_cache(maxsize=4)
def _normal(count: int, device: torch.device) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).to(device)


def augment_colours(image: Float[Tensor, "b 3 h w"], random: Float[Tensor, "b r"],
                    options: AugmentOptions) -> Float[Tensor, "b 3 h w"]:
    """Everything that changes values and not places, in the order colour, erase, noise; values in [0, 1], clipped at the end."""
    if options.brightness or options.contrast or options.saturation or options.hue:
        image = {"hsv": recolour, "linear": recolour_linear}[options.colour](image, colour(random, options))
    if options.erase:
        image = erase(image, random, options.erase)
    if options.noise:
        image = add_noise(image, random, options.noise)
    return image.clamp(0, 1)
