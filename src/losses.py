"""Losses that several methods share, each per sample: (b,...) -> (b), so that the engine can weigh, average and name rows.

Mesh terms as CMR's and, after it, Kong et al.'s (ECCV 2022, specs/idhandmesh.md section 4); the caller chooses the unit of
length. A term over pairs of samples is spread over the rows so that its mean over the batch is the mean over the pairs.
Rows that a dataset did not label hold finite numbers (zeros) and are silenced by `labelled`.
"""
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def labelled(term: Float[Tensor, "b"], has: Bool[Tensor, "b"] | None) -> Float[Tensor, "b"]:
    """`term` with the rows that carry no label at zero (has None: every row is labelled)."""
    return term if has is None else torch.where(has, term, torch.zeros_like(term))


def mean_abs(pred: Float[Tensor, "b ..."], true: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean absolute difference of everything in a row."""
    return (pred - true).abs().flatten(1).mean(1)


def face_edges(verts: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "b 3 f 3"]:
    """The edges v1 - v0, v2 - v0, v2 - v1 of each face, in that order on axis 1."""
    corner = verts.index_select(1, faces.t().reshape(-1)).unflatten(1, (3, -1))
    return torch.stack((corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], corner[:, 2] - corner[:, 1]), 1)


def edge_loss(pred: Float[Tensor, "b 3 f 3"], true: Float[Tensor, "b 3 f 3"]) -> Float[Tensor, "b"]:
    """Mean difference of the lengths of the faces' edges (an edge of two faces counts twice); takes `face_edges`."""
    return (length(pred) - length(true)).abs().flatten(1).mean(1)


def normal_loss(pred: Float[Tensor, "b 3 f 3"], true: Float[Tensor, "b 3 f 3"]) -> Float[Tensor, "b"]:
    """Mean |cosine| between the predicted edges and the true face's normal, in [0, 1]; takes `face_edges`."""
    first, second = F.normalize(true[:, 0], dim=-1), F.normalize(true[:, 1], dim=-1)
    normal = F.normalize(torch.linalg.cross(first, second), dim=-1)
    return (F.normalize(pred, dim=-1) * normal[:, None]).sum(-1).abs().flatten(1).mean(1)


def length(x: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """Euclidean norm with a zero gradient at the origin, where the plain square root's is not finite."""
    square = x.square().sum(-1)
    some = square > 0
    return torch.where(some, torch.where(some, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square))


def _pairs(confidence: Tensor, error: Tensor, has: Tensor | None) -> tuple[Tensor, Tensor]:
    """Signed agreement -> (b,b): (c_i - c_j) sign(e_j - e_i), symmetric; and which entries are pairs of labelled samples."""
    agreement = (confidence[:, None] - confidence) * torch.sign(error - error[:, None])
    pair = ~torch.eye(len(error), dtype=torch.bool, device=error.device)
    return agreement, pair if has is None else pair & has & has[:, None]


def ranking_loss(confidence: Float[Tensor, "b"], error: Float[Tensor, "b"], margin: float = 1.0,
                 has: Bool[Tensor, "b"] | None = None) -> Float[Tensor, "b"]:
    """Margin ranking over all unordered pairs: the sample of the smaller error should be the more confident by `margin`.

    A tie in error costs the constant `margin`, as in the original. One sample has no pair: zero. No gradient to `error`.
    """
    agreement, pair = _pairs(confidence, error.detach(), has)
    rows = (F.relu(margin - agreement) * pair).sum(1)
    return rows * (len(rows) / pair.sum().clamp(min=1))


def rank_accuracy(confidence: Float[Tensor, "b"], error: Float[Tensor, "b"],
                  has: Bool[Tensor, "b"] | None = None) -> Float[Tensor, ""]:
    """Share of pairs ranked strictly right (spec 1.2; ties count as wrong); 0 where there is no pair."""
    agreement, pair = _pairs(confidence, error, has)
    return ((agreement > 0) & pair).sum() / pair.sum().clamp(min=1)
