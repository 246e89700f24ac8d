"""Cameras around the table and lights above it.

Table frame: origin in the middle of the table top, z up, metres. Cameras stand on all sides but the person's, look at a point a
little above the table, and are calibrated exactly. Lights: one key light that casts shadows, fill lights, a sky and a ground.
"""
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.anatomy import unit
from datasets.synthetic.motion import CENTRE

GAP = 1.9  # radians about the person's seat without a camera: the arm would hide the hand


@dataclass(frozen=True)
class Rig:
    """c cameras: camera_from_table (c,4,4), K (c,3,3) pixels; seat: azimuth of the person."""

    camera_from_table: np.ndarray
    K: np.ndarray
    seat: float


@dataclass(frozen=True)
class Lighting:
    """direction (l,3) unit towards each light, table frame; colour (l,3); sky, ground (3): linear RGB; the first light casts
    shadows. exposure: factor that makes a white table send about 1. room (3): brightness of the room behind.
    """

    direction: np.ndarray
    colour: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    exposure: float
    room: np.ndarray

    @property
    def table(self) -> np.ndarray:
        """What a white table sends, exposure included (3)."""
        return (self.sky + (np.maximum(self.direction[:, 2:], 0) * self.colour).sum(0)) * self.exposure

    @property
    def key_share(self) -> np.ndarray:
        """Share of it that the key light gives (3)."""
        return self.direction[0, 2] * self.colour[0] * self.exposure / self.table


def sample_intrinsics(count: int, focal: float, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """K (count,3,3) of real-looking cameras: focal lengths about `focal` * width, centres a few pixels off the middle."""
    K = np.zeros((count, 3, 3))
    K[:, 0, 0] = focal * width * rng.uniform(0.99, 1.01, count)
    K[:, 1, 1] = K[:, 0, 0] * rng.uniform(0.9995, 1.0005, count)
    K[:, 0, 2] = (width - 1) / 2 + rng.uniform(-0.012, 0.012, count) * width
    K[:, 1, 2] = (height - 1) / 2 + rng.uniform(-0.012, 0.012, count) * width
    K[:, 2, 2] = 1
    return np.round(K, 4)


def sample_rig(K: np.ndarray, distance: tuple[float, float], elevation_deg: tuple[float, float], rng: np.random.Generator) -> Rig:
    """Cameras on the sides that the person leaves free."""
    count, seat = len(K), rng.uniform(0, 2 * np.pi)
    slots = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    azimuth = seat + GAP / 2 + rng.permutation(slots) * (2 * np.pi - GAP)
    elevation = np.radians(rng.uniform(*elevation_deg, count))
    away = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
    target = CENTRE + rng.normal(0, 0.02, (count, 3))
    place = target + away * rng.uniform(*distance, count)[:, None]
    down = np.array([0, 0, -1.0]) + rng.normal(0, 0.07, (count, 3))  # held a little askew
    z = unit(target - place)
    x = unit(np.cross(down, z))
    rows = np.stack([x, np.cross(z, x), z], 1)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rows, -(rows @ place[..., None])[..., 0]
    return Rig(poses, K, seat)


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """Lights at random: from a bright overcast room to one hard lamp."""
    count = 1 + rng.integers(1, 4)
    azimuth, elevation = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.2, 1.3, count)
    elevation[0] = rng.uniform(0.65, 1.4)
    direction = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
    power = np.concatenate([[rng.uniform(0.35, 1.0)], rng.uniform(0.05, 0.35, count - 1)])
    warmth = rng.normal(0, 0.10, (count, 1)) * np.array([1.0, 0.0, -1.0])
    sky = rng.uniform(0.15, 0.5) * (1 + rng.normal(0, 0.05) * np.array([1.0, 0.0, -1.0]))
    light = Lighting(direction, power[:, None] * (1 + warmth), sky, sky * rng.uniform(0.35, 0.75), 1.0, np.zeros(3))
    exposure = rng.uniform(0.75, 1.15) / light.table.mean()
    return Lighting(direction, light.colour, sky, light.ground, exposure, sky * exposure * rng.uniform(0.5, 1.6))
