"""Blend shapes and linear blend skinning of many small meshes: verts = sum_j w_vj (R_j x_v + t_j), x = coefficients . basis.

Layout: coordinates before vertices, (n, 3, v), so that every inner loop runs over vertices. All is matrix products, but for
a thousand hands writing the intermediate arrays (x, and twelve numbers of blended transform per vertex) costs more than the
arithmetic. On the CPU the batch is therefore worked off in pieces that stay in the cache, and the backward pass blends the
transforms again rather than reading them back. Small batches, GPUs, compiled and second-order graphs take the plain formula;
the tests hold the two equal.
"""
from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 64  # hands per piece: 64 x 12 x 778 floats = 2.4 MB
_SMALL = 8  # up to here plain operations are faster than the loop


def deform(coefficients: Tensor, basis: Tensor, transforms: Tensor, weights: Tensor) -> Tensor:
    """Vertices (n, v, 3).

    coefficients (n, k) of the basis (k, 3 v), coordinates first · transforms (n, 3, 4, j) = [R | t] · weights (j, v).
    """
    blends = transforms.flatten(1, 2)
    if len(coefficients) <= _SMALL or coefficients.device.type != "cpu" or torch.compiler.is_compiling():
        return _plain(coefficients, basis, blends, weights)
    return _InPieces.apply(coefficients, basis, blends, weights)


def _plain(coefficients: Tensor, basis: Tensor, blends: Tensor, weights: Tensor) -> Tensor:
    points = (coefficients @ basis).unflatten(1, (1, 3, -1))
    blended = (blends @ weights).unflatten(1, (3, 4))
    moved = (blended[:, :, :3] * points).sum(2) + blended[:, :, 3]
    return moved.transpose(1, 2).contiguous()


class _InPieces(torch.autograd.Function):
    """The same by pieces; basis and weights are constants. Second order: plain operations where backward makes a graph."""

    @staticmethod
    def forward(ctx, coefficients: Tensor, basis: Tensor, blends: Tensor, weights: Tensor) -> Tensor:
        n, v = len(coefficients), weights.shape[1]
        keep = any(ctx.needs_input_grad)
        out = coefficients.new_empty(n, v, 3)
        points = coefficients.new_empty(n if keep else _PIECE, 3 * v)
        moved = coefficients.new_empty(_PIECE, 3, v)
        for piece, blended in _pieces(blends, weights):
            size = len(blended)
            x = points[piece] if keep else points[:size]
            x = torch.mm(coefficients[piece], basis, out=x).view(size, 3, v)
            target = torch.addcmul(blended[:, :, 3], blended[:, :, 0], x[:, :1], out=moved[:size])
            target.addcmul_(blended[:, :, 1], x[:, 1:2]).addcmul_(blended[:, :, 2], x[:, 2:])
            out[piece].copy_(target.transpose(1, 2))
        ctx.save_for_backward(coefficients, basis, blends, weights, points if keep else None)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        coefficients, basis, blends, weights, points = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.enable_grad():
                out = _plain(coefficients, basis, blends, weights)
                needed = [x for x in (coefficients, blends) if x.requires_grad]
                found = iter(torch.autograd.grad(out, needed, grad, create_graph=True))
            return tuple(next(found) if x.requires_grad else None for x in (coefficients, basis, blends, weights))
        v = weights.shape[1]
        grad_coefficients, grad_blends = coefficients.new_empty(coefficients.shape), blends.new_empty(blends.shape)
        flipped, grad_points = grad.new_empty(_PIECE, 3, v), grad.new_empty(_PIECE, 3, v)
        for piece, blended in _pieces(blends, weights):
            size = len(blended)
            g = flipped[:size].copy_(grad[piece].transpose(1, 2))
            target = torch.mul(blended[:, 0, :3], g[:, :1], out=grad_points[:size])
            target.addcmul_(blended[:, 1, :3], g[:, 1:2]).addcmul_(blended[:, 2, :3], g[:, 2:])
            torch.mm(target.flatten(1), basis.t(), out=grad_coefficients[piece])
            torch.mul(g.unsqueeze(2), points[piece].view(size, 1, 3, v), out=blended[:, :, :3])  # the buffer is free again
            blended[:, :, 3] = g
            torch.mm(blended.view(-1, v), weights.t(), out=grad_blends[piece].view(-1, len(weights)))
        return grad_coefficients, None, grad_blends, None


def _pieces(blends: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the batch, each with its blended transforms (m, 3, 4, v) in one buffer that is used again."""
    n, v = len(blends), weights.shape[1]
    buffer = blends.new_empty(min(n, _PIECE), 12, v)
    for start in range(0, n, _PIECE):
        piece = slice(start, min(start + _PIECE, n))
        blended = buffer[:piece.stop - start]
        torch.mm(blends[piece].reshape(-1, blends.shape[2]), weights, out=blended.view(-1, v))
        yield piece, blended.unflatten(1, (3, 4))
