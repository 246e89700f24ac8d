"""Pictures of a posed scene by the shared renderer: colour, depth, segmentation, for every camera of every time step.

Shading is done in the table frame and in linear light, on covered pixels only: atlas colour, a key light with a shadow map, other
lights, sky. The empty table is drawn once per camera and sequence; shadows fall on it by a homography of the same shadow map.
Then the camera: exposure, lens and motion blur, sensor noise.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from datasets.synthetic.backdrop import Background
from datasets.synthetic.scene import Lighting, Rig
from datasets.synthetic.shadow import Shadows, cast
from datasets.synthetic.surface import look_up
from utils.render import Fragments, Lights, interpolate_fragments, rasterise, shade

TOGETHER = 16  # pictures rendered in one call
LEVELS = 4096
_TO_SRGB = torch.from_numpy((255 * np.power(np.linspace(0, 1, LEVELS), 1 / 2.2) + 0.5).astype(np.uint8))
_NOISE_STEP, _NOISE_MARGIN = 0.5, 48


@dataclass(frozen=True)
class Surface:
    """A sequence's triangles: faces (f,3), labels (f) of the segmentation, atlas (f * SIDE * SIDE, 3) linear, gloss (f,1).
    The first `person` faces are hand and arm, absent in frames without a hand.
    """

    faces: torch.Tensor
    labels: np.ndarray
    atlas: torch.Tensor
    gloss: torch.Tensor
    person: int

    def without_person(self) -> "Surface":
        """The things alone."""
        n, texels = self.person, len(self.atlas) // len(self.faces)
        return Surface(self.faces[n:], self.labels[n:], self.atlas[n * texels:], self.gloss[n:], 0)


@dataclass(frozen=True)
class Sensor:
    """What c cameras do to a picture. gain (c,3) · blur (c) sigma, pixels · noise (c) standard deviation, of 255 levels ·
    smear (c,2) motion blur along x and y, pixels.
    """

    gain: np.ndarray
    blur: np.ndarray
    noise: np.ndarray
    smear: np.ndarray


@dataclass(frozen=True)
class Picture:
    """image (h,w,3) uint8 RGB · depth (h,w) uint16 mm · seg (h,w) uint8: 0 background and forearm, YCB id, 255 hand."""

    image: np.ndarray
    depth: np.ndarray
    seg: np.ndarray


def sample_sensor(count: int, noise: tuple[float, float], blur: tuple[float, float], width: int,
                  rng: np.random.Generator) -> Sensor:
    """Cameras at random; blur and smear in pixels of a picture 640 wide."""
    gain = rng.uniform(0.8, 1.2, (count, 1)) * (1 + rng.normal(0, 0.04, (count, 3)))
    smear = rng.normal(0, 2.5, (count, 2)) * (rng.uniform(size=(count, 1)) < 0.2)
    return Sensor(gain, rng.uniform(*blur, count) * width / 640, rng.uniform(*noise, count), smear * width / 640)


def draw(surface: Surface, verts: torch.Tensor, normals: torch.Tensor, present: np.ndarray, rig: Rig,
         backgrounds: list[Background], lighting: Lighting, sensor: Sensor,
         rng: np.random.Generator) -> Iterator[tuple[int, int, Picture]]:
    """Yield (time step, camera, picture) of all; verts and normals (t,v,3) float32 in the table frame."""
    things_alone = surface.without_person()
    start, step = 0, max(1, TOGETHER // len(rig.K))
    while start < len(present):
        end = start + 1
        while end < min(start + step, len(present)) and present[end] == present[start]:
            end += 1
        visible = surface if present[start] else things_alone
        yield from _draw(start, visible, verts[start:end], normals[start:end], rig, backgrounds, lighting, sensor, rng)
        start = end


def _draw(start: int, surface: Surface, verts: torch.Tensor, normals: torch.Tensor, rig: Rig, backgrounds: list[Background],
          lighting: Lighting, sensor: Sensor, rng: np.random.Generator) -> Iterator[tuple[int, int, Picture]]:
    height, width = backgrounds[0].depth.shape
    steps, cameras = len(verts), len(rig.K)
    poses, K = (torch.from_numpy(a).float() for a in (rig.camera_from_table, rig.K))
    seen = (verts[:, None] @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]).flatten(0, 1)
    fragments = rasterise(seen, surface.faces, K.repeat(steps, 1, 1), height, width)
    shadows = cast(verts, surface.faces, lighting.direction[0])
    picture = torch.div(fragments.pixel, height * width, rounding_mode="floor")
    camera, step = picture % cameras, torch.div(picture, cameras, rounding_mode="floor")
    gain = torch.from_numpy(sensor.gain).float().index_select(0, camera)
    eye = eyes(poses).index_select(0, camera)
    colour = colours(fragments, surface, verts, normals, height * width * cameras, step, eye, gain, lighting, shadows)
    ends = torch.searchsorted(fragments.pixel, torch.arange(1, steps * cameras + 1) * (height * width)).tolist()
    pixel, millimetres = fragments.pixel.numpy(), (fragments.depth * 1000 + 0.5).numpy()
    labels = surface.labels[fragments.face.numpy()]
    begin = 0
    for i, end in enumerate(ends):
        t, c = divmod(i, cameras)
        image = shadows.darken(t, backgrounds[c], rig.camera_from_table[c], rig.K[c], lighting.key_share)
        depth, seg = backgrounds[c].depth.copy(), np.zeros((height, width), np.uint8)
        here = pixel[begin:end] - i * height * width
        image.reshape(-1, 3)[here] = colour[begin:end]
        depth.reshape(-1)[here] = millimetres[begin:end]
        seg.reshape(-1)[here] = labels[begin:end]
        yield start + t, c, Picture(expose(image, sensor, c, rng), depth, seg)
        begin = end


def eyes(poses: torch.Tensor) -> torch.Tensor:
    """Centres (c,3) in the table frame of cameras with poses (c,4,4), camera from table."""
    return -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:])[..., 0]


def colours(fragments: Fragments, surface: Surface, verts: torch.Tensor, normals: torch.Tensor, pixels: int, step: torch.Tensor,
            eye: torch.Tensor, gain: torch.Tensor, lighting: Lighting, shadows: Shadows) -> np.ndarray:
    """sRGB uint8 (n,3) of n fragments. pixels: of all pictures of one row of verts and normals (t,v,3) · step (n) in 0..t-1,
    rising · eye (n,3): the camera's centre, frame of verts · gain (n,3) of the camera.
    """
    both = interpolate_fragments(fragments, surface.faces, torch.cat([verts, normals], -1), pixels)
    points, normal = both[:, :3], both[:, 3:]
    eye = eye - points
    base = look_up(surface.atlas, fragments)
    gloss = surface.gloss.index_select(0, fragments.face)
    direction, light = (torch.from_numpy(a).float() for a in (lighting.direction, lighting.colour))
    sky, ground = (torch.from_numpy(np.asarray(a)).float() for a in (lighting.sky, lighting.ground))
    up, none = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3)
    key = shade(base, normal, eye, Lights(direction[:1], light[:1], none, none, up), gloss, 30.0)
    rest = shade(base, normal, eye, Lights(direction[1:], light[1:], sky, ground, up))
    lit = key * shadows.visible(step, points)[:, None] + rest
    lit = lit * (gain * lighting.exposure)
    return _TO_SRGB[(lit * LEVELS).long().clamp_(0, LEVELS - 1)].numpy()


def expose(image: np.ndarray, sensor: Sensor, camera: int, rng: np.random.Generator) -> np.ndarray:
    """Lens and motion blur, then noise."""
    dx, dy = sensor.smear[camera]
    if (length := np.hypot(dx, dy)) > 1:
        image = cv2.filter2D(image, -1, _line(dx, dy, length))
    image = cv2.GaussianBlur(image, (0, 0), max(sensor.blur[camera], 0.3))
    return add_noise(image, sensor.noise[camera], rng)


def add_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Sensor noise of about this standard deviation (of 255 levels) on a uint8 picture."""
    level = round(deviation / _NOISE_STEP)
    x, y = rng.integers(0, _NOISE_MARGIN, 2)
    if level == 0:
        return image
    bank = _noise(level, *image.shape[:2])
    return cv2.add(image, bank[y:y + image.shape[0], x:x + image.shape[1]], dtype=cv2.CV_8U)


def _line(dx: float, dy: float, length: float) -> np.ndarray:
    """Motion blur kernel along (dx, dy)."""
    size = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    for s in np.linspace(-0.5, 0.5, 4 * size):
        kernel[round(size // 2 + dy * s), round(size // 2 + dx * s)] += 1
    return kernel / kernel.sum()


@lru_cache(maxsize=16)
def _noise(level: int, height: int, width: int) -> np.ndarray:
    """Sensor noise a little larger than the picture, int16 (h,w,3): grey more than colour, neighbours alike."""
    rng = np.random.default_rng([level, height, width])
    shape = (height + _NOISE_MARGIN, width + _NOISE_MARGIN)
    noise = 0.85 * rng.standard_normal((*shape, 1), np.float32) + 0.53 * rng.standard_normal((*shape, 3), np.float32)
    noise = cv2.GaussianBlur(noise, (3, 3), 0.5)
    return np.rint(noise * (level * _NOISE_STEP / noise.std())).astype(np.int16)
