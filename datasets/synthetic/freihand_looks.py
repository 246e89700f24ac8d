"""FreiHAND's pictures of a hand: before a green screen, and the same hand pasted into other pictures in three colour treatments.

As in the original: `gs` is what the camera saw; `hom` has another background and the hand's colours drawn towards it; `sample`
and `auto` are the same composition recoloured. Evaluation pictures are plain photographs of a scene. The hand is drawn twice as
fine and averaged, which gives soft edges and the mask's coverage.
"""
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from datasets.synthetic.assemble import HAND
from datasets.synthetic.backdrop import BANK, pattern, sample_stage
from datasets.synthetic.backdrop import draw as draw_background
from datasets.synthetic.freihand_files import SIZE, VERSIONS
from datasets.synthetic.picture import Surface, add_noise, colours, eyes
from datasets.synthetic.scene import Lighting
from datasets.synthetic.shadow import cast
from utils.render import rasterise

FINER = 2  # pixels of the drawing per pixel of the picture, each way


@dataclass(frozen=True)
class Cutout:
    """A drawn person with what it holds. colour (h,w,3) float32 0..255, times cover · cover (h,w,1) of everything 0..1 · hand
    (h,w) cover of the hand alone, 0..1.
    """

    colour: np.ndarray
    cover: np.ndarray
    hand: np.ndarray


@dataclass(frozen=True)
class Sensor:
    """What a camera does: blur sigma (px), noise (standard deviation of 255 levels), JPEG quality."""

    blur: float
    noise: float
    quality: int


def cut_out(surface: Surface, verts: torch.Tensor, normals: torch.Tensor, camera_from_world: np.ndarray, K: np.ndarray,
            lighting: Lighting, gain: np.ndarray) -> list[Cutout]:
    """Drawn samples: verts, normals (n,v,3) float32 in the world, cameras (n,4,4), K (n,3,3), gain (n,3) of each camera."""
    count, side = len(verts), FINER * SIZE
    fine = np.array([[FINER, 0, (FINER - 1) / 2], [0, FINER, (FINER - 1) / 2], [0, 0, 1]])
    poses = torch.from_numpy(camera_from_world).float()
    seen = verts @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]
    fragments = rasterise(seen, surface.faces, torch.from_numpy(fine @ K).float(), side, side)
    step = torch.div(fragments.pixel, side * side, rounding_mode="floor")
    eye, strength = eyes(poses).index_select(0, step), torch.from_numpy(gain).float().index_select(0, step)
    shadows = cast(verts, surface.faces, lighting.direction[0])
    rgb = colours(fragments, surface, verts, normals, side * side, step, eye, strength, lighting, shadows)
    ends = torch.searchsorted(step, torch.arange(count + 1)).tolist()
    pixel, is_hand = fragments.pixel.numpy(), surface.labels[fragments.face.numpy()] == HAND
    found = []
    for i, (begin, end) in enumerate(zip(ends, ends[1:])):
        sheet = np.zeros((side * side, 3), np.uint8), np.zeros((side * side, 2), np.uint8)
        here = pixel[begin:end] - i * side * side
        sheet[0][here], sheet[1][here, 0], sheet[1][here, 1] = rgb[begin:end], 255, is_hand[begin:end] * 255
        colour, cover = (cv2.resize(s.reshape(side, side, -1).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
                         for s in sheet)
        found.append(Cutout(colour, cover[..., :1] / 255, cover[..., 1] / 255))
    return found


def frame_of_camera(uv: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(h,w) 1 inside the camera's picture, 0 beyond: now and then the crop reaches over an edge, never the joints uv (21,2)."""
    frame = np.ones((SIZE, SIZE), np.float32)
    if rng.uniform() >= share:
        return frame
    angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.04)
    out = np.array([np.cos(angle), np.sin(angle)])
    edge = (uv @ out).max() + rng.uniform(12, 45)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    return (x * out[0] + y * out[1] < edge).astype(np.float32)


def green_screen(seed: int, rng: np.random.Generator) -> np.ndarray:
    """(h,w,3) float32: green cloth, unevenly lit, now and then with the room beside it."""
    folds = cv2.resize(rng.normal(0, 1, (5, 5)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(*[np.linspace(-1, 1, SIZE, dtype=np.float32)] * 2)
    slope = rng.normal(0, 0.16, 2)
    light = 1 + slope[0] * x + slope[1] * y + 0.06 * folds - rng.uniform(0, 0.2) * (x * x + y * y)
    green = rng.uniform(85, 185) * np.array([rng.uniform(0.2, 0.75), 1.0, rng.uniform(0.15, 0.5)])
    image = light[..., None] * green
    if rng.uniform() < 0.35:
        angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.0)
        beside = np.clip((x * np.cos(angle) + y * np.sin(angle) - at) * 40, 0, 1)[..., None]
        room = cv2.GaussianBlur(_crop(seed, rng), (0, 0), rng.uniform(1, 5)).astype(np.float32) * rng.uniform(0.5, 1.1)
        image = image * (1 - beside) + (0.35 * room.mean(2, keepdims=True) + 0.65 * room) * beside
    return np.clip(image, 0, 255).astype(np.float32)


def scenery(seed: int, camera_from_world: np.ndarray, K: np.ndarray, lighting: Lighting, rng: np.random.Generator) -> np.ndarray:
    """(h,w,3) float32: a table in a room as this camera would see it, some pattern from near by, or a landscape."""
    kind = rng.choice(3, p=[0.45, 0.3, 0.25])
    if kind == 0:
        below = np.eye(4)
        below[2, 3] = -rng.uniform(0.06, 0.4)
        place = camera_from_world @ below
        image = draw_background(sample_stage(rng), seed, place, K, SIZE, SIZE, lighting.table, lighting.room).image
    elif kind == 1:
        image = cv2.GaussianBlur(_crop(seed, rng), (0, 0), rng.uniform(0.3, 2.5))
    else:
        image = _landscape(seed, rng)
    return image.astype(np.float32)


def _crop(seed: int, rng: np.random.Generator) -> np.ndarray:
    """A piece (h,w,3) uint8 of one of the patterns, turned over at random and tinted."""
    whole = pattern(seed, int(rng.integers(BANK)))
    side = int(rng.uniform(0.25, 1.0) * len(whole))
    left, up = rng.integers(0, len(whole) - side + 1, 2)
    image = cv2.resize(whole[up:up + side, left:left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    image = image[:, ::-1] if rng.uniform() < 0.5 else image
    return np.clip(image * rng.uniform(0.7, 1.15, 3), 0, 255).astype(np.uint8)


def _landscape(seed: int, rng: np.random.Generator) -> np.ndarray:
    """Sky, one to three ridges in front of each other."""
    y = np.linspace(0, 1, SIZE)[:, None]
    top, low = np.array([rng.uniform(90, 200), rng.uniform(130, 215), rng.uniform(180, 250)]), rng.uniform(190, 250, 3)
    image = np.repeat((top * (1 - y) + low * y)[:, None], SIZE, 1)
    for level in np.sort(rng.uniform(0.25, 0.85, rng.integers(1, 4))):
        ridge = cv2.resize(rng.normal(0, 0.05, (1, rng.integers(4, 9))).astype(np.float32), (SIZE, 1),
                           interpolation=cv2.INTER_CUBIC)[0]
        ground = _crop(seed, rng) * rng.uniform([0.35, 0.5, 0.25], [0.9, 1.1, 0.8])
        image = np.where((y > level + ridge)[..., None], ground, image)
    return np.clip(image, 0, 255)


def versions(count: int, cutout: Cutout, green: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The first `count` of gs, hom, sample, auto, (h,w,3) float32 0..255, sharp and without noise."""
    found = [paste(cutout, green)]
    if count > 1:
        soft = _soft(cutout, rng.uniform(0.6, 1.6))
        found.append(paste(_drawn_towards(soft, other, rng.uniform(0.15, 0.5)), other))
    for name in VERSIONS[2:count]:
        chroma, spread = (rng.uniform(0.8, 1.3), 8.0) if name == "sample" else (rng.uniform(0.45, 1.1), 13.0)
        found.append(_recoloured(found[1], chroma, rng.normal(0, spread, 2)))
    return found


def paste(cutout: Cutout, background: np.ndarray) -> np.ndarray:
    """The cutout over a background (h,w,3)."""
    return cutout.colour + (1 - cutout.cover) * background


def _soft(cutout: Cutout, sigma: float) -> Cutout:
    """With edges as an inexact segmentation leaves them."""
    cover = np.minimum(cutout.cover, cv2.GaussianBlur(cutout.cover, (0, 0), sigma)[..., None] * 1.15)
    return Cutout(cutout.colour * (cover / np.maximum(cutout.cover, 1e-3)), cover, cutout.hand)


def _drawn_towards(cutout: Cutout, background: np.ndarray, share: float) -> Cutout:
    """Its mean colour moved towards the background's, by factors per channel."""
    mean = cutout.colour.sum((0, 1)) / max(cutout.cover.sum(), 1.0)
    factor = np.clip(background.mean((0, 1)) / np.maximum(mean, 8), 0.5, 1.7)
    return Cutout(np.minimum(cutout.colour * (1 + share * (factor - 1)), 255 * cutout.cover).astype(np.float32), cutout.cover,
                  cutout.hand)


def _recoloured(image: np.ndarray, chroma: float, offset: np.ndarray) -> np.ndarray:
    """Chroma scaled and shifted (Cr, Cb, of 255 levels), luminance kept."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    red, blue = ((image[..., i] - luma) * chroma + o for i, o in ((0, offset[0]), (2, offset[1])))
    green = -(0.299 * red + 0.114 * blue) / 0.587
    return np.clip(luma[..., None] + np.stack([red, green, blue], -1), 0, 255).astype(np.float32)


def develop(image: np.ndarray, sensor: Sensor, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (h,w,3): lens blur, noise, black beyond the camera's frame (h,w)."""
    image = np.clip(cv2.GaussianBlur(image, (0, 0), max(sensor.blur, 0.2)) + 0.5, 0, 255).astype(np.uint8)
    return add_noise(image, sensor.noise, rng) * frame[..., None].astype(np.uint8)
