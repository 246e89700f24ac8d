"""One-Euro filter (Casiez et al., CHI 2012, algorithm 1): a low-pass whose cut-off rises with speed. For points and rotations.

Still hands are smoothed hard, moving ones lag little: cutoff = min_cutoff + beta |filtered speed|, alpha = 1 / (1 + 1 / (2 pi
cutoff dt)). Points are filtered by the norm of their speed and rotations on the manifold (a step of alpha along the geodesic), so
that filtering a turned track is turning the filtered one.
Seed: the paper filters every coordinate by itself; then the result depends on the axes. Speeds count in `unit`s per second, so
that one beta serves both: rad/s for rotations, and for points in steps of 0.1 m (a finger's length: the fingertip's way per rad).
"""
import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from utils.rotation import axis_angle_from_matrix, matrix_from_axis_angle, matrix_from_quaternion, quaternion_from_matrix
from utils.strict import Strict

POINT_UNIT_M = 0.1


class OneEuroOptions(Strict):
    """How hard a still hand is smoothed, and how soon a moving one no longer is."""

    min_cutoff: float = Field(1.5, gt=0, description="Hz, cut-off of a hand at rest: lower is smoother and lags more")
    beta: float = Field(0.5, ge=0, description="Hz per rad/s (rotations) or per 0.1 m/s (position): higher lags less in motion")
    d_cutoff: float = Field(1.0, gt=0, description="Hz, cut-off of the speed that decides")


class OneEuro:
    """Filter of k signals at once: call it with each value and the seconds since the one before.

    points: values (k,d), any unit, `unit` of it counting as speed 1 per second · rotations: values (k,3,3).
    Values come back as float64. The first value comes back as it is, and so does a constant one.
    """

    def __init__(self, options: OneEuroOptions, kind: str = "points", unit: float = 1.0):
        self.options, self.unit = options, unit
        self._clean, self._difference, self._moved = KINDS[kind]
        self._value: Tensor | None = None
        self._speed: Tensor | None = None

    def __call__(self, value: Tensor, seconds: float) -> Tensor:
        """The filtered value (k,...); `seconds` > 0 since the last call, of no effect at the first."""
        value = self._clean(value.detach().double())
        if self._value is None:
            self._value = value
            return value
        if not seconds > 0:
            raise ValueError(f"seconds since the last value: expected above 0, found {seconds}")
        step = self._difference(self._value, value)
        speed = step / (seconds * self.unit)
        if self._speed is None:
            self._speed = torch.zeros_like(speed)
        self._speed = self._speed + _alpha(speed.new_tensor(self.options.d_cutoff), seconds) * (speed - self._speed)
        cutoff = self.options.min_cutoff + self.options.beta * torch.linalg.vector_norm(self._speed, dim=-1, keepdim=True)
        self._value = self._moved(self._value, _alpha(cutoff, seconds) * step)
        return self._value


def _alpha(cutoff: Tensor, seconds: float) -> Tensor:
    """Share of the new value in the low-pass of this cut-off, Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


def _orthonormal(rotations: Tensor) -> Tensor:
    """The rotations without the rounding of float32, which would grow over a long track."""
    return matrix_from_quaternion(quaternion_from_matrix(rotations))


Kind = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
KINDS: dict[str, Kind] = {  # clean value · tangent (k,d) from a to b · a moved along a tangent
    "points": (lambda value: value, lambda a, b: b - a, lambda a, step: a + step),
    "rotations": (_orthonormal, lambda a, b: axis_angle_from_matrix(a.transpose(-1, -2) @ b),
                  lambda a, step: _orthonormal(a @ matrix_from_axis_angle(step))),
}
