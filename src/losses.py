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


def both(has: Bool[Tensor, "b"] | None, other: Bool[Tensor, "b"] | None) -> Bool[Tensor, "b"] | None:
    """The rows that carry two labels (None: every row carries it)."""
    if has is None or other is None:
        return other if has is None else has
    return has & other


def mean_known(values: Float[Tensor, "b n"], confidence: Float[Tensor, "b n"] | None) -> Float[Tensor, "b"]:
    """Mean over the points that are known (confidence above zero; None: all), zero where none is."""
    if confidence is None:
        return values.mean(1)
    known = confidence > 0
    return torch.where(known, values, torch.zeros_like(values)).sum(1) / known.sum(1).clamp_min(1)


def mean_abs(pred: Float[Tensor, "b ..."], true: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean absolute difference of everything in a row."""
    return (pred - true).abs().flatten(1).mean(1)


def surface_losses(pred: Float[Tensor, "b v 3"], true: Float[Tensor, "b v 3"],
                   faces: Int[Tensor, "f 3"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """(normal, edge). normal: mean |cosine| between the three predicted edges of a face and the true face's normal, in [0, 1].
    edge: mean difference of the lengths of the faces' edges, in the unit of the meshes; an edge of two faces counts twice."""
    pred_edges, true_edges = _edges(pred, faces), _edges(true, faces)
    pred_length, true_length = length(pred_edges), length(true_edges)
    normal = torch.linalg.cross(true_edges[:, :, 0], true_edges[:, :, 1], dim=1)
    normal = normal / length(normal)[:, None]
    cosine = (pred_edges * normal[:, :, None]).sum(1).abs() / pred_length
    return cosine.flatten(1).mean(1), (pred_length - true_length).abs().flatten(1).mean(1)


def _edges(verts: Tensor, faces: Tensor) -> Tensor:
    """(b,3 coordinates,3 edges,f): v1 - v0, v2 - v0, v2 - v1 of each face. Coordinates come first: sums over them stay cheap."""
    corners = verts.transpose(1, 2).contiguous().index_select(2, faces.t().reshape(-1)).unflatten(2, (3, -1))
    v0, v1, v2 = corners.unbind(2)
    return torch.stack((v1 - v0, v2 - v0, v2 - v1), 2)


def length(x: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b ..."]:
    """Euclidean norm over axis 1; the tiny term makes the gradient at the origin zero in place of NaN."""
    return (x.square().sum(1) + 1e-24).sqrt()


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
