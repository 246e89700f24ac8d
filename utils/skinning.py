"""Linear blend skinning of many small meshes: verts = sum_j w_vj (R_j x_v + t_j).

Layout: coordinates before vertices, (n, 3, v), so that every inner loop runs over vertices. The blended transforms
(n, 12, v) are one matrix product, but writing them for a thousand hands costs more than all arithmetic; on the CPU they are
made in pieces that stay in the cache, and made again in the backward pass rather than kept. Small batches, GPUs and compiled
or second-order graphs take the plain formula. Both are tested to be equal.
"""
import torch
from torch import Tensor

_PIECE = 64  # hands per piece: 64 x 12 x 778 floats = 2.4 MB
_SMALL = 16  # up to here plain operations are faster than the loop


def skin(transforms: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """(n, 3, v) points moved by the blend of (n, 3, 4, j) transforms [R | t] with (j, v) weights."""
    blends = transforms.flatten(1, 2)
    if len(points) <= _SMALL or points.device.type != "cpu" or torch.compiler.is_compiling():
        return _plain(blends, points, weights)
    return _InPieces.apply(blends, points, weights)


def _plain(blends: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    blended = (blends @ weights).unflatten(1, (3, 4))
    return (blended[:, :, :3] * points.unsqueeze(1)).sum(2) + blended[:, :, 3]


class _InPieces(torch.autograd.Function):
    """The same by pieces. Its backward is differentiable in turn (plain operations when a graph is asked for)."""

    @staticmethod
    def forward(ctx, blends: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(blends, points, weights)
        out = points.new_empty(points.shape)
        for piece, blended in _pieces(blends, weights):
            target = out[piece].copy_(blended[:, :, 3])
            for k in range(3):
                target.addcmul_(blended[:, :, k], points[piece, k:k + 1])
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        blends, points, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            blended = (blends @ weights).unflatten(1, (3, 4))
            outer = torch.cat((grad.unsqueeze(2) * points.unsqueeze(1), grad.unsqueeze(2)), 2).flatten(1, 2)
            return outer @ weights.t(), (blended[:, :, :3] * grad.unsqueeze(2)).sum(1), None
        grad_blends, grad_points = blends.new_empty(blends.shape), points.new_empty(points.shape)
        for piece, blended in _pieces(blends, weights):
            g, x, target = grad[piece].contiguous(), points[piece], grad_points[piece]
            torch.mul(blended[:, 0, :3], g[:, :1], out=target)
            target.addcmul_(blended[:, 1, :3], g[:, 1:2]).addcmul_(blended[:, 2, :3], g[:, 2:])
            torch.mul(g.unsqueeze(2), x.unsqueeze(1), out=blended[:, :, :3])  # the buffer is free again
            blended[:, :, 3] = g
            torch.mm(blended.view(-1, blended.shape[-1]), weights.t(), out=grad_blends[piece].view(-1, weights.shape[0]))
        return grad_blends, grad_points, None


def _pieces(blends: Tensor, weights: Tensor):
    """Slices of the batch, each with its blended transforms (m, 3, 4, v) in one buffer that is used again."""
    n, v = len(blends), weights.shape[1]
    buffer = blends.new_empty(min(n, _PIECE), 12, v)
    for start in range(0, n, _PIECE):
        piece = slice(start, min(start + _PIECE, n))
        blended = buffer[:piece.stop - start]
        torch.mm(blends[piece].reshape(-1, blends.shape[2]), weights, out=blended.view(-1, v))
        yield piece, blended.unflatten(1, (3, 4))
