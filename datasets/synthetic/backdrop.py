"""What lies behind the hand: a table with a pattern, and whatever room there is beyond it. Pictures and depth, per camera.

Patterns come from a small bank made once per process from the seed (wood, cloth, checks, stone, speckle, clutter), then turned,
shifted, tinted and lit anew for every sequence.
"""
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

BANK = 18
_SIDE, _METRES = 768, 1.2  # texels and metres of one pattern, which repeats mirrored


@dataclass(frozen=True)
class Stage:
    """One sequence's surroundings. table: number of the pattern; its turn (rad), shift (share), tint (3); half size (2), m ·
    room: number of the pattern; crop (share), blur, brightness; far: its distance from the camera, m.
    """

    table: int
    turn: float
    shift: np.ndarray
    tint: np.ndarray
    half: np.ndarray
    room: int
    crop: float
    blur: float
    bright: float
    far: float


@dataclass(frozen=True)
class Background:
    """One camera's empty scene: image (h,w,3) uint8 RGB · depth (h,w) uint16 mm · table (h,w) bool: where the table is."""

    image: np.ndarray
    depth: np.ndarray
    table: np.ndarray


def sample_stage(rng: np.random.Generator) -> Stage:
    """Surroundings at random."""
    return Stage(int(rng.integers(BANK)), rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1, 2), rng.uniform(0.86, 1.06, 3),
                 rng.uniform([0.45, 0.40], [0.95, 0.75]), int(rng.integers(BANK)), rng.uniform(0.3, 1.0), rng.uniform(0.5, 5.0),
                 rng.uniform(0.25, 1.0), rng.uniform(1.3, 3.0))


@lru_cache(maxsize=BANK)
def pattern(seed: int, number: int) -> np.ndarray:
    """One pattern of the bank, (768,768,3) uint8 RGB."""
    rng = np.random.default_rng([seed, 77, number])
    make = (_wood, _cloth, _checks, _stone, _speckle, _clutter)[number % 6]
    image = make(rng) + 6 * _field(rng, 6, 6)[..., None]
    return np.clip(image + rng.normal(0, 2.5, (_SIDE, _SIDE, 1)), 0, 255).astype(np.uint8)


def _field(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth random field (768,768), unit variance, of so many cells."""
    return cv2.resize(rng.normal(0, 1, (rows, columns)).astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)


def _two(rng: np.random.Generator, share: np.ndarray, apart: float = 60) -> np.ndarray:
    """Two random colours mixed by `share` (768,768)."""
    first = np.clip(rng.uniform(40, 225) + rng.normal(0, 18, 3), 15, 245)
    second = np.clip(first + rng.normal(0, 1, 3) * 12 + rng.choice([-1, 1]) * rng.uniform(0.3, 1) * apart, 10, 250)
    return first + (second - first) * share[..., None].astype(np.float32)


def _wood(rng: np.random.Generator) -> np.ndarray:
    y = np.linspace(0, rng.uniform(10, 40), _SIDE)[:, None]
    rings = np.sin(y + 2.2 * _field(rng, 8, 3) + 0.8 * _field(rng, 40, 4))
    grain = _field(rng, 384, 6)
    base = rng.uniform(90, 205) * np.array([1.0, rng.uniform(0.68, 0.85), rng.uniform(0.42, 0.7)])
    planks = 1 - 0.25 * (np.arange(_SIDE) % rng.integers(90, 260) < 3)[:, None]
    return base * ((1 + 0.10 * rings + 0.05 * grain) * planks)[..., None]


def _cloth(rng: np.random.Generator) -> np.ndarray:
    x = np.arange(_SIDE)
    weave = 0.5 + 0.25 * (np.sin(x * rng.uniform(0.6, 1.6))[:, None] + np.sin(x * rng.uniform(0.6, 1.6))[None])
    return _two(rng, np.clip(0.4 * weave + 0.15 * _field(rng, 5, 5), -0.5, 1.5), 45)


def _checks(rng: np.random.Generator) -> np.ndarray:
    x, step = np.arange(_SIDE), int(rng.integers(14, 90))
    rows, columns = (x // step % 2)[:, None], (x // int(step * rng.uniform(0.7, 1.4)) % 2)[None]
    share = [rows ^ columns, 0.5 * (rows + columns), rows + 0 * columns][rng.integers(3)]
    return _two(rng, share + 0.06 * _field(rng, 30, 30), 90)


def _stone(rng: np.random.Generator) -> np.ndarray:
    field = sum(_field(rng, n, n) / k for k, n in ((1, 5), (1.6, 11), (2.5, 24), (4, 60), (7, 160)))
    veins = np.exp(-(np.abs(field) / 0.18) ** 1.5)
    return _two(rng, 0.3 * field + 0.6 * veins * rng.choice([0, 1]), 50)


def _speckle(rng: np.random.Generator) -> np.ndarray:
    field = _field(rng, 384, 384) * 0.7 + _field(rng, 150, 150) * 0.5
    return _two(rng, np.where(field > rng.uniform(0.2, 1.2), 1.0, 0.12 * field), 70)


def _clutter(rng: np.random.Generator) -> np.ndarray:
    image = _two(rng, _field(rng, 4, 4), 40)
    for _ in range(rng.integers(12, 45)):
        colour = tuple(float(c) for c in rng.uniform(10, 245, 3))
        x, y, a, b = (int(v) for v in (*rng.integers(0, _SIDE, 2), *rng.integers(12, 150, 2)))
        if rng.uniform() < 0.6:
            corners = cv2.boxPoints(((x, y), (a, b), float(rng.uniform(0, 90)))).astype(np.int32)
            image = cv2.fillConvexPoly(np.ascontiguousarray(image, np.float32), corners, colour)
        else:
            turn = float(rng.uniform(0, 180))
            image = cv2.ellipse(np.ascontiguousarray(image, np.float32), (x, y), (a // 2, b // 2), turn, 0, 360, colour, -1)
    return image


def draw(stage: Stage, seed: int, camera_from_table: np.ndarray, K: np.ndarray, height: int, width: int, light: np.ndarray,
         room_light: np.ndarray) -> Background:
    """The empty scene of one camera. light (3): what a white table sends, room_light (3) likewise, linear, exposure included."""
    x, y, scale = _plane(camera_from_table, K, height, width)
    c, s = (float(f(stage.turn)) * _SIDE / _METRES for f in (np.cos, np.sin))
    u, v = c * x - s * y + float(stage.shift[0]) * _SIDE, s * x + c * y + float(stage.shift[1]) * _SIDE
    top = cv2.remap(pattern(seed, stage.table), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    top = cv2.LUT(top, _response(light * np.power(stage.tint, 2.2)))
    back = pattern(seed, stage.room)
    side = int(stage.crop * _SIDE)
    left, up = (int(t * (_SIDE - side)) for t in np.abs(stage.shift))
    back = cv2.resize(back[up:up + side, left:left + side], (width, height))  # blurred next
    back = cv2.LUT(cv2.GaussianBlur(back, (0, 0), stage.blur * width / 640), _response(room_light * stage.bright))
    table = (scale > 0) & (np.abs(x) < stage.half[0]) & (np.abs(y) < stage.half[1])
    image = np.where(table[..., None], top, back)
    depth = np.where(table, 1000 / np.where(table, scale, 1), stage.far * 1000)
    return Background(image, np.clip(depth + 0.5, 0, 65535).astype(np.uint16), table)


def _plane(camera_from_table: np.ndarray, K: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each pixel's ray meets the table top: x, y in metres and 1/depth (not positive = it does not), float32 (h,w)."""
    matrix = np.linalg.inv(K @ camera_from_table[:3][:, [0, 1, 3]])  # pixels to (x, y, 1) / depth
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x, y, scale = ((m[0] * columns + (m[1] * rows + m[2])).astype(np.float32) for m in matrix)
    safe = np.where(scale > 1e-3, scale, 1e-3)
    return x / safe, y / safe, scale


def _response(light: np.ndarray) -> np.ndarray:
    """Table (1,256,3) that lights a picture: sRGB in, linear times light, sRGB out."""
    levels = np.linspace(0, 1, 256)[:, None]
    return np.clip(255 * levels * np.power(np.maximum(light, 0), 1 / 2.2) + 0.5, 0, 255).astype(np.uint8)[None]
