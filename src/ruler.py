"""The ruler: lengths that a user measures on a flat hand -> posterior of the hand model's shape; no picture, no dataset.

The prior over the ten coefficients is the unit Gaussian (or a given one); each measured length has a Gaussian error. Lengths are
not linear in the shape, so they are linearised again and again about the mode (Gauss-Newton), and the covariance is the one there
(Laplace). What each name means, on a hand and on the model's flat hand, is in MEASURES; lengths run straight through the air, as
callipers or a ruler held beside the hand show them, not along the skin. The definitions name joints and sections of the mesh, no
vertices, so they hold for MANO as for the free hand. The model's wrist joint is taken to lie at the wrist's crease next to the
palm; people find that crease to some millimetres only, which belongs into the stated error.
"""
import difflib
import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import gammaincc
from torch import Tensor

from src.calibration_estimate import Estimate
from utils.errors import InputError
from utils.hand import HandModel, Posed
from utils.joints import T21_NAMES

MEASURES = {
    "wrist_to_middle_tip": "palm up: from the wrist's crease next to the palm to the end of the middle finger (wrist joint to "
                           "the furthest skin of the finger)",
    "palm_width": "across the four knuckles, from the thumb's side of the index knuckle to the outer side of the little "
                  "finger's, thumb spread away (section through both knuckles, across the palm)",
    "wrist_width": "across the wrist at the crease next to the palm (section through the wrist joint)",
    "thumb_length": "back of the hand: from the thumb's middle knuckle, where it leaves the palm, to its end (joint thumb_mcp)",
    "index_length": "back of the hand: from the middle of the index finger's knuckle to its end (joint index_mcp)",
    "middle_finger_length": "back of the hand: from the middle of the middle finger's knuckle to its end (joint middle_mcp)",
    "ring_length": "back of the hand: from the middle of the ring finger's knuckle to its end (joint ring_mcp)",
    "little_length": "back of the hand: from the middle of the little finger's knuckle to its end (joint little_mcp)",
}
UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
REACH = 5.0  # standard deviations of the prior along a measure that count as within the hand model's reach
ROUNDS = 30  # of linearisation, at most
UNLIKELY = 1e-4  # share of people whose measurements fit together as badly or worse, below which a warning is given
_LENGTH = re.compile(r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]*)$")
_PLACES = {"wrist_to_middle_tip": ("wrist", "middle"), "middle_finger_length": ("middle_mcp", "middle"),
           **{f"{finger}_length": (f"{finger}_mcp", finger) for finger in ("thumb", "index", "ring", "little")}}
_FINGERS = {"index": (1, 2, 3), "middle": (4, 5, 6), "little": (7, 8, 9), "ring": (10, 11, 12), "thumb": (13, 14, 15)}  # M16


@dataclass(frozen=True)
class Measured:
    """One length: a name of MEASURES, millimetres, and their standard deviation."""

    name: str
    mm: float
    sd_mm: float


def parse_measured(text: str, sd_mm: float) -> list[Measured]:
    """"palm_width:84mm,wrist_to_middle_tip:19cm+-2mm" -> measurements; `sd_mm` is the error where none is stated.

    Raises InputError: a measure that is unknown or given twice, no number, no unit, a length or an error that is not positive.
    """
    found: dict[str, Measured] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, colon, value = (part.strip() for part in item.partition(":"))
        if name not in MEASURES:
            near = difflib.get_close_matches(name, MEASURES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MEASURES)}"
            raise InputError(f"calibrate.measured: {name!r}: there is no such measure; {hint}")
        if name in found:
            raise InputError(f"calibrate.measured: {name} is given twice; give the mean of repeated measurements, with its error")
        if not colon:
            raise InputError(f"calibrate.measured: {name}: expected a length, e.g. {name}:84mm, found none")
        length, *error = re.split(r"\+-|\+/-|±", value)
        if len(error) > 1:
            raise InputError(f"calibrate.measured: {name}: expected one error, e.g. {name}:84mm+-2mm, found {len(error)}")
        found[name] = Measured(name, _millimetres(name, length), _millimetres(name, error[0]) if error else sd_mm)
    if not found:
        raise InputError("calibrate.measured: expected e.g. wrist_to_middle_tip:190mm,palm_width:84mm, found nothing; there are "
                         f"{', '.join(MEASURES)}")
    return list(found.values())


def _millimetres(name: str, text: str) -> float:
    match = _LENGTH.match(text.strip())
    try:
        number = float(match.group(1)) if match else None
    except ValueError:
        number = None
    if number is None:
        raise InputError(f"calibrate.measured: {name}: expected a length such as 84mm, found {text.strip()!r}")
    if match.group(2) not in UNITS_MM:
        raise InputError(f"calibrate.measured: {name}:{text.strip()}: expected a unit, one of {', '.join(UNITS_MM)}, found "
                         f"{match.group(2) or 'none'}")
    if number * UNITS_MM[match.group(2)] <= 0 or not np.isfinite(number):
        raise InputError(f"calibrate.measured: {name}:{text.strip()}: expected a length above 0")
    return number * UNITS_MM[match.group(2)]


class Ruler:
    """Measures the flat hand of a hand model."""

    def __init__(self, hand: HandModel):
        self.hand = HandModel(hand.arrays, torch.float64)
        self._owner = self.hand.weights.argmax(1)
        faces = self.hand.faces
        edges = torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
        edges = torch.unique(edges.sort(1).values, dim=0)
        thumb = torch.isin(self._owner, torch.tensor(_FINGERS["thumb"]))
        self._edges = edges[~thumb[edges].any(1)]

    def of(self, shape: Tensor, names: list[str]) -> Tensor:
        """(k) mm of the hand with this shape (10,) float64; differentiable."""
        shaped = self.hand.shaped(shape)
        flat = Posed(shaped.rest_verts, shaped.rest_joints)
        joints = self.hand.joints(flat)
        return 1000 * torch.stack([self._one(name, flat.verts, joints) for name in names])

    def _one(self, name: str, verts: Tensor, joints: Tensor) -> Tensor:
        place = dict(zip(T21_NAMES, joints))
        if name in _PLACES:
            start, finger = place[_PLACES[name][0]], _PLACES[name][1]
            axis = torch.nn.functional.normalize(place[f"{finger}_tip"] - start, dim=0)
            own = torch.isin(self._owner, torch.tensor(_FINGERS[finger]))
            return ((verts[own] - start) @ axis).amax()
        across = place["index_mcp"] - place["little_mcp"]
        if name == "palm_width":
            middle = (place["index_mcp"] + place["little_mcp"]) / 2
        else:
            middle = place["wrist"]
        along = place["middle_mcp"] - place["wrist"]
        normal = torch.linalg.cross(across, along)
        if name == "wrist_width":
            across = torch.linalg.cross(along, normal)
        return self._breadth(verts, middle, torch.linalg.cross(normal, across), torch.nn.functional.normalize(across, dim=0))

    def _breadth(self, verts: Tensor, point: Tensor, normal: Tensor, across: Tensor) -> Tensor:
        """Extent along `across` of the mesh's section by the plane through `point`, the thumb left out."""
        height = (verts - point) @ normal
        a, b = self._edges.unbind(1)
        cut = (height[a] > 0) != (height[b] > 0)
        a, b = a[cut], b[cut]
        share = (height[a] / (height[a] - height[b])).unsqueeze(1)
        places = (verts[a] * (1 - share) + verts[b] * share) @ across
        return places.amax() - places.amin()


@dataclass(frozen=True)
class Posterior:
    """Gaussian over the ten coefficients; fit_mm: the mean's lengths, misfit: chi-squared of the measurements before they were
    used, with as many degrees of freedom as there are measurements."""

    mean: np.ndarray
    covariance: np.ndarray
    fit_mm: np.ndarray
    misfit: float


def given(hand: HandModel, measured: list[Measured], mean: np.ndarray | None = None, covariance: np.ndarray | None = None,
          ) -> Posterior:
    """The shape's Gaussian (mean (10), covariance (10,10); None = the unit Gaussian) given the measurements.

    Raises InputError where a length is beyond what the hand model can be.
    """
    ruler, names = Ruler(hand), [m.name for m in measured]
    value, sd = (np.array([getattr(m, key) for m in measured]) for key in ("mm", "sd_mm"))
    mean = np.zeros(10) if mean is None else np.asarray(mean, np.float64)
    prior = np.eye(10) if covariance is None else np.asarray(covariance, np.float64)
    _require_reach(ruler, measured)
    shape, information = mean, np.linalg.inv(prior)
    for _ in range(ROUNDS):
        fit, slope = _linear(ruler, shape, names)
        precision = information + slope.T @ (slope / sd[:, None]**2)
        after = mean + np.linalg.solve(precision, slope.T @ ((value - fit + slope @ (shape - mean)) / sd**2))
        step, shape = np.abs(after - shape).max(), after
        if step < 1e-7:
            break
    fit, slope = _linear(ruler, shape, names)
    covariance = np.linalg.inv(information + slope.T @ (slope / sd[:, None]**2))
    surprise = value - fit + slope @ (shape - mean)
    misfit = surprise @ np.linalg.solve(slope @ prior @ slope.T + np.diag(sd**2), surprise)
    return Posterior(shape, (covariance + covariance.T) / 2, fit, float(misfit))


def _linear(ruler: Ruler, shape: np.ndarray, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The lengths (k) and their slopes (k,10) at a shape, mm."""
    point = torch.from_numpy(shape).requires_grad_()
    lengths = ruler.of(point, names)
    slopes = [torch.autograd.grad(length, point, retain_graph=True)[0] for length in lengths]
    return lengths.detach().numpy(), torch.stack(slopes).numpy()


def _require_reach(ruler: Ruler, measured: list[Measured]) -> None:
    _, slopes = _linear(ruler, np.zeros(10), [m.name for m in measured])
    for m, slope in zip(measured, slopes):
        furthest = REACH * slope / np.linalg.norm(slope)
        with torch.no_grad():
            low, high = (float(ruler.of(torch.from_numpy(sign * furthest), [m.name])) for sign in (-1, 1))
        if not low <= m.mm <= high:
            raise InputError(f"calibrate.measured: {m.name}:{m.mm:g}mm is out of reach of the hand model {ruler.hand.name}, "
                             f"whose hands have {low:.0f} to {high:.0f} mm; {m.name} is measured so: {MEASURES[m.name]}")


def condition(estimate: Estimate, text: str, hand: HandModel, sd_mm: float = 2.0) -> Estimate:
    """An estimate with a covariance (the prior alone, or what images say) given the lengths of calibrate.measured as well."""
    measured = parse_measured(text, sd_mm)
    found = given(hand, measured, estimate.shape, estimate.covariance)
    slope = _linear(Ruler(hand), found.mean, [m.name for m in measured])[1] / np.array([m.sd_mm for m in measured])[:, None]
    at = estimate.covariance_at

    def covariance_at(factor: float) -> np.ndarray:
        """The ruler's information stays the same however many images there are."""
        after = at(factor)
        across = after @ slope.T
        return after - across @ np.linalg.solve(np.eye(len(slope)) + slope @ across, across.T)

    said = _misfit_line(measured, found)
    lengths = [{"name": m.name, "mm": m.mm, "sd_mm": m.sd_mm, "fit_mm": round(float(fit), 3)}
               for m, fit in zip(measured, found.fit_mm)]
    return replace(
        estimate, shape=found.mean, covariance=found.covariance, cue="ruler" if estimate.n == 0 else f"ruler; {estimate.cue}",
        covariance_at=None if at is None else covariance_at, settings={**estimate.settings, "lengths": lengths},
        warnings=(*estimate.warnings, said) if said else estimate.warnings)


def _misfit_line(measured: list[Measured], found: Posterior) -> str:
    """A warning where hardly any person of the model has such lengths together; else empty."""
    if gammaincc(len(measured) / 2, found.misfit / 2) >= UNLIKELY:
        return ""
    lines = ", ".join(f"{m.name} {m.mm:.0f} mm (nearest: {fit:.0f})" for m, fit in zip(measured, found.fit_mm))
    return f"the measured lengths fit together, or to the images, badly; measure again: {lines}"
