"""Where a root-relative mesh stands in the camera: adaptive 2D-1D registration (Chen et al., CMR, CVPR 2021; spec cmr 4).

Two answers: one from the 2D joints ("2D"), one from the silhouette's extents along twelve axes ("1D"). Where they agree to 2 cm
the first stands, where they differ by more than 6 cm the second, between them a linear blend. `faithful` solves both by SciPy's
SLSQP, hand by hand, as the original; `fast` minimises the same energies for a whole batch (src/register_fast.py), lower.
Frame: the camera of the crop's K, metres, x right, y down, z forward; pixels of the crop, centre of the top-left one at (0, 0).
residual: `algebraic`, the original's [K(x+t)] - u z in pixel-metres, draws the hand to the camera where keypoints are gross
outliers; `pixel` is the distance in the picture.
Seed: the original blends the silhouette's answer with the start (0, 0, 0.6) where no 2D joint counts; `fast` takes the
silhouette's alone. Keypoints that are not numbers crash the original; here such a row is not ok.
"""
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from src import register_faithful, register_fast
from utils.precision import full_precision
from utils.strict import Strict

NEAR_M, FAR_M = 0.02, 0.06  # between the two answers: the 2D one alone stands, the silhouette's alone stands
NONE, KEYPOINTS, SILHOUETTE, BLEND = range(4)  # Registration.source


class RegisterOptions(Strict):
    """solver: fast (batched) | faithful (SLSQP, about 10 ms a hand) | none. residual: of the 2D joints, algebraic (the original)
    | pixel. depth_bounds: metres, of the root. min_confidence: keypoints must exceed it to count. mask_threshold: probability
    of a mask's pixels. use_silhouette: false takes the 2D joints alone."""

    solver: Literal["fast", "faithful", "none"] = "fast"
    residual: Literal["algebraic", "pixel"] = "algebraic"
    depth_bounds: tuple[float, float] = (0.3, 2.0)
    min_confidence: float = Field(0.1, ge=0, lt=1)
    mask_threshold: float = Field(0.3, ge=0, lt=1)
    use_silhouette: bool = True

    @model_validator(mode="after")
    def check(self) -> "RegisterOptions":
        near, far = self.depth_bounds
        if not 0 < near < far < float("inf"):
            raise ValueError(f"depth_bounds: expected 0 < nearest < farthest, in metres, found {near}, {far}")
        return self


class Registration(NamedTuple):
    """translation (b,3) metres, to be added to verts and joints · ok (b) the 2D joints gave an answer · source (b) long: 0 none
    (the translation is the start, nothing was seen), 1 2D joints, 2 silhouette, 3 blend · distance (b) metres between the two
    answers, NaN where there are not two."""

    translation: Float[Tensor, "b 3"]
    ok: Bool[Tensor, "b"]
    source: Int[Tensor, "b"]
    distance: Float[Tensor, "b"]

    @property
    def by(self) -> Int[Tensor, "b"]:
        """The source as a number of utils.batch.ROOT_BY, which also tells where one of the two answers was missing."""
        alone = torch.where(self.source == KEYPOINTS, 4, torch.where(self.source == NONE, 0, 5))
        return torch.where(self.distance.isnan(), alone, self.source)


@torch.no_grad()
@full_precision
def register(
    verts: Float[Tensor, "b 778 3"], joints: Float[Tensor, "b 21 3"], uv: Float[Tensor, "b 21 2"],
    confidence: Float[Tensor, "b 21"] | None, K: Float[Tensor, "b 3 3"], size: int, extents: Float[Tensor, "b 24"] | None = None,
    has_extents: Bool[Tensor, "b"] | None = None, options: RegisterOptions | None = None,
) -> Registration:
    """Translation of root-relative verts and joints (metres, T21) whose joints are seen at `uv` in a crop of `size` pixels.

    extents: of the silhouette, pixels (`silhouette.extents_of_masks`); rows without (has_extents false, or numbers that are not
    finite) are placed by their 2D joints alone. confidence None: every keypoint counts. Rows whose geometry or counting keypoints
    are not finite, or without a counting keypoint, are not ok, and stop no other row. No row depends on the others of its batch.
    """
    options = options or RegisterOptions()
    kind = verts.dtype
    solver: ModuleType = register_faithful if options.solver == "faithful" else register_fast
    verts, joints, uv, K = (value.double() for value in (verts, joints, uv, K))
    near, far = options.depth_bounds
    start = verts.new_tensor((0.0, 0.0, min(max(register_fast.START_DEPTH_M, near), far))).expand(len(verts), 3)
    whole = _finite(verts) & _finite(joints) & _finite(K)
    used = _counting(uv, confidence, options.min_confidence) & whole[:, None]
    outlined = torch.zeros_like(whole)
    if extents is not None and options.use_silhouette:
        outlined = whole & _finite(extents) & (True if has_extents is None else has_extents)
    if options.solver == "none":
        used, outlined = torch.zeros_like(used), torch.zeros_like(outlined)
    first, ok, second, solved = start.clone(), torch.zeros_like(whole), start.clone(), torch.zeros_like(whole)
    rows = used.any(1).nonzero()[:, 0]
    if len(rows):
        first[rows], ok[rows] = solver.by_keypoints(
            *_of(rows, joints, torch.where(used[..., None], uv, 0.0), used, K, start), options.depth_bounds, options.residual)
    rows = outlined.nonzero()[:, 0]
    if len(rows):
        second[rows], solved[rows] = solver.by_extents(*_of(rows, verts, extents.double(), K, start), options.depth_bounds, size)
    first[:, 2], second[:, 2] = first[:, 2].clamp(near, far), second[:, 2].clamp(near, far)  # to the last bit
    return _blend(first, used.any(1), ok, second, solved, options.solver == "faithful", kind)


def _blend(first: Tensor, seen: Tensor, ok: Tensor, second: Tensor, solved: Tensor, faithful: bool, kind: torch.dtype,
           ) -> Registration:
    """first, second: the two answers; seen, solved: whether they are; ok: whether the first converged."""
    distance = (first - second).norm(dim=-1)
    share = ((distance - NEAR_M) / (FAR_M - NEAR_M)).clamp(0, 1)
    if not faithful:
        share = torch.where(seen, share, 1.0)
    share = torch.where(solved, share, 0.0)
    translation = torch.where(share[:, None] == 1, second, first + share[:, None] * (second - first))
    source = torch.full_like(share, BLEND, dtype=torch.long)
    source = torch.where(share == 1, SILHOUETTE, torch.where(share > 0, source, torch.where(
        seen, KEYPOINTS, torch.where(solved, BLEND, NONE))))  # the original's start may happen to agree with the silhouette
    return Registration(translation.to(kind), ok, source, torch.where(seen & solved, distance, torch.nan).to(kind))


def _finite(values: Tensor) -> Tensor:
    """(b) whether all of a row's numbers are: their sum tells, several times faster."""
    return torch.isfinite(values.flatten(1).sum(1))


def _of(rows: Tensor, *values: Tensor) -> list[Tensor]:
    return [value if len(rows) == len(value) else value[rows] for value in values]


def _counting(uv: Tensor, confidence: Tensor | None, least: float) -> Tensor:
    """(b,21) keypoints that count: none of a row one of whose confident keypoints is not a place."""
    used = torch.ones_like(uv[..., 0], dtype=torch.bool) if confidence is None else confidence > least
    placed = torch.isfinite(uv).all(-1)
    return used & (placed | ~used).all(1, keepdim=True)
