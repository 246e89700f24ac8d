"""Spiral convolutions, and the decoder that climbs a mesh pyramid with them, from 49 vertices to 778, a mesh at every level.

SpiralNet++ (Gong et al., ICCVW 2019) and the ISM decoder of CMR (Chen et al., CVPR 2021; specs/cmr_boukhayma_metro.md 2.1,
2.3 item 5). Meshes are in the network's units (0.2 m), relative to the wrist. Tables and up-sampling weights belong to the
pyramid, not to a checkpoint: they are buffers outside the state dict.

Up-sampling and gathering are linear, and so is the map of each spiral position: they commute. Seed: up-samples, gathers
(b,v,L*channels) once for each of a block's four convolutions, multiplies. Here a block multiplies the coarse vertices by the
maps of all positions, half the products, and sparse sums up-sample and gather what comes out; nothing of size L*channels is
kept for the way back. Inside the decoder vertices lead, (v,b,channels), so that the sums run over long rows.
"""
from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from utils.errors import InputError
from utils.mesh import Pyramid


class SpiralConv(nn.Module):
    """One linear map of the features along each vertex's spiral, spiral position major: (...,v,channels) -> (...,n,out).

    spirals (n,L): the vertices of each spiral, the vertex itself first.
    """

    def __init__(self, channels: int, out: int, spirals: Tensor):
        super().__init__()
        self.register_buffer("spirals", spirals.long(), persistent=False)
        self.layer = nn.Linear(spirals.shape[1] * channels, out)
        nn.init.xavier_uniform_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        gathered = x.index_select(-2, self.spirals.flatten())
        return self.layer(gathered.unflatten(-2, self.spirals.shape).flatten(-2))


def up_sample(x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Coarse to fine: vertex r is the weighted sum of the coarse vertices columns[r]; (...,c,channels) -> (...,n,channels)."""
    corners = x.index_select(-2, columns.flatten()).unflatten(-2, columns.shape)
    return (corners * weights.to(x.dtype)[..., None]).sum(-2)


class RowSums(nn.Module):
    """A fixed sparse matrix (n,m): (m,k) -> (n,k), row i the sum over j of weights[i,j] times row columns[i,j].

    Sums run in the weights' precision. Repeated columns add up; zero weights are dropped (half the vertices of a fine mesh are
    vertices of the coarse one: one weight of theirs is not zero). The transpose is stored too, so that the way back sums, and
    never scatters. Both ways are torch's embedding_bag, which a CPU runs three times as fast as torch's sparse matrices.
    """

    def __init__(self, columns: Tensor, weights: Tensor, m: int):
        super().__init__()
        n = len(columns)
        rows, place = weights.nonzero(as_tuple=True)
        columns, weights = columns[rows, place], weights[rows, place]
        for way, into, out_of, count in (("there", rows, columns, n), ("back", columns, rows, m)):
            order = into.argsort(stable=True)
            starts = torch.cat((into.new_zeros(1), into.bincount(minlength=count).cumsum(0)))
            for what, part in (("rows", out_of[order].int()), ("starts", starts.int()), ("weights", weights[order])):
                self.register_buffer(f"{way}_{what}", part, persistent=False)

    def there(self, x: Tensor) -> Tensor:
        """(m,k) -> (n,k), outside autograd."""
        return _sum_bags(x, self.there_rows, self.there_starts, self.there_weights)

    def back(self, x: Tensor) -> Tensor:
        """The transpose, (n,k) -> (m,k), outside autograd."""
        return _sum_bags(x, self.back_rows, self.back_starts, self.back_weights)

    def forward(self, x: Tensor) -> Tensor:
        return _RowSums.apply(x, self)


def _sum_bags(x: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows, x.to(weights.dtype), starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _RowSums(torch.autograd.Function):
    """RowSums with its stored transpose as the way back."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, sums: RowSums) -> Tensor:
        ctx.sums, ctx.dtype = sums, x.dtype
        return sums.there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.sums.back(grad).to(ctx.dtype), None


class _Climb(torch.autograd.Function):
    """Features x (c,b,channels) times the matrices (w,l,channels) of l spiral positions, summed by RowSums (n,l*c): (n,b,w).

    Several of them, of falling width w, each on its RowSums: their sums add up in the first w outputs. Neither the products nor
    the gathered features are kept for the way back.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, sums: Sequence[RowSums], *matrices: Tensor) -> Tensor:
        ctx.sums = sums
        ctx.save_for_backward(x, *matrices)
        c, b, _ = x.shape
        flat, out = x.flatten(0, 1), None
        for rows, matrix in zip(sums, matrices):
            w, l, _ = matrix.shape
            products = torch.bmm(flat.expand(l, -1, -1), matrix.permute(1, 2, 0))
            part = rows.there(products.view(l * c, b * w)).view(-1, b, w)
            if out is None:
                out = part
            else:
                out[..., :w] += part
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *matrices = ctx.saved_tensors
        c, b, _ = x.shape
        flat = x.flatten(0, 1)
        grad_x, grad_matrices = torch.zeros_like(flat), []
        for rows, matrix in zip(ctx.sums, matrices):
            w, l, _ = matrix.shape
            products = rows.back(grad[..., :w].reshape(-1, b * w)).view(l, c * b, w).to(x.dtype)
            grad_matrices.append(torch.bmm(products.transpose(1, 2), flat.expand(l, -1, -1)).transpose(0, 1))
            for place in range(l):  # one bmm would store l gradients of x only to add them up
                grad_x.addmm_(products[place], matrix[:, place])
        return grad_x.view_as(x), None, *grad_matrices


class SpiralBlock(nn.Module):
    """CMR's inception spiral module: up-sampling, then spirals of four lengths side by side, (b,c,channels) -> (b,n,out).

    spirals (n,L), columns and weights (n,3) as in Pyramid, coarse = c; out must be a multiple of four. Parts: conv on whole
    spirals (half the outputs), conv_2d3 and conv_d3 on two thirds and one (a quarter each), conv1 on the vertex itself (all).
    """

    def __init__(self, channels: int, out: int, spirals: Tensor, columns: Tensor, weights: Tensor, coarse: int):
        super().__init__()
        self.third = spirals.shape[1] // 3
        self.conv = SpiralConv(channels, out // 2, spirals)
        self.conv_2d3 = SpiralConv(channels, out // 4, spirals[:, : 2 * self.third])
        self.conv_d3 = SpiralConv(channels, out // 4, spirals[:, : self.third])
        self.conv1 = SpiralConv(channels, out, spirals[:, :1])
        self.up = RowSums(columns, weights, coarse)
        self.gathers = nn.ModuleList()  # for each third of the spiral; of products, row place * coarse + vertex
        for part in spirals.split(self.third, 1):
            places = coarse * torch.arange(part.shape[1])[:, None]
            self.gathers.append(RowSums((columns[part] + places).flatten(1), weights[part].flatten(1), coarse * part.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.climb(x.transpose(0, 1)).transpose(0, 1)

    def climb(self, x: Tensor) -> Tensor:
        """forward with vertices leading, (c,b,channels) -> (n,b,out)."""
        own, layers = self.conv1.layer, [conv.layer for conv in (self.conv, self.conv_2d3, self.conv_d3)]
        thirds = zip_longest(*(layer.weight.unflatten(1, (-1, x.shape[-1])).split(self.third, 1) for layer in layers))
        matrices = [torch.cat([part for part in third if part is not None]) for third in thirds]
        matrices[0][:, 0] += own.weight  # conv1 adds to every output, as the first place of the spiral does
        if torch.is_autocast_enabled(x.device.type):
            x, *matrices = (tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in (x, *matrices))
        bias = torch.cat([layer.bias for layer in layers]) + own.bias
        return F.relu(_Climb.apply(x, self.gathers, *matrices) + bias)


class MeshDecoder(nn.Module):
    """Feature vector (b,features) -> meshes of levels 0, 1, .. (finest first): (b,778,3), (b,389,3), (b,195,3), (b,98,3).

    channels: of each level, finest first; the vertices below the coarsest mesh start with the last of them. Parts: start, and
    from coarse to fine the blocks and heads. Each block sees the features of the block before beside its mesh.
    """

    def __init__(self, features: int, channels: Sequence[int], pyramid: Pyramid):
        super().__init__()
        if len(channels) > len(pyramid.spirals):
            raise InputError(f"mesh decoder: channels for {len(channels)} levels {tuple(channels)}, but the mesh pyramid has "
                             f"{len(pyramid.spirals)}: give one per level")
        sizes = [len(spirals) for spirals in pyramid.spirals] + [len(pyramid.kept[-1])]
        self.coarsest, width = sizes[len(channels)], channels[-1]
        self.start = nn.Linear(features, self.coarsest * width)
        nn.init.xavier_uniform_(self.start.weight)
        nn.init.zeros_(self.start.bias)
        self.blocks, self.heads, self.gathers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels))):
            spirals, columns, weights = (torch.as_tensor(part[level]) for part in
                                         (pyramid.spirals, pyramid.columns, pyramid.weights))
            self.blocks.append(SpiralBlock(width, channels[level], spirals, columns, weights, sizes[level + 1]))
            self.heads.append(SpiralConv(channels[level], 3, spirals))
            self.gathers.append(_gather_of_products(spirals, 3))
            width = channels[level] + 3
        for level in range(len(channels) - 1):
            self.register_buffer(f"kept{level}", torch.as_tensor(pyramid.kept[level]), persistent=False)

    def forward(self, latent: Tensor) -> list[Tensor]:
        x = self.start(latent).unflatten(1, (self.coarsest, -1)).transpose(0, 1)
        meshes: list[Tensor] = []
        for block, head, gather in zip(self.blocks, self.heads, self.gathers):
            x = block.climb(x)
            mesh = _multiply_first(head.layer, x, gather)
            if meshes:
                mesh = (mesh + block.up(meshes[0].flatten(1)).view_as(mesh)) / 2
            meshes.insert(0, mesh)
            x = torch.cat((x, mesh), -1)
        return [mesh.transpose(0, 1).contiguous() for mesh in meshes]

    def levels(self, verts: Tensor) -> list[Tensor]:
        """What the meshes of forward should be: the vertices of (b,778,3) that each level keeps, finest first."""
        return select_levels(verts, [getattr(self, f"kept{level}") for level in range(len(self.heads) - 1)])


def _multiply_first(layer: nn.Linear, x: Tensor, gather: RowSums) -> Tensor:
    """SpiralConv with vertices leading, (v,b,channels) -> (n,b,out): for few outputs the products are less to gather than x.

    Outside autocast: what comes out are coordinates.
    """
    with torch.autocast(x.device.type, enabled=False):
        products = layer.weight.view(-1, x.shape[-1]) @ x.flatten(0, 1).T  # (out*L, v*b), the order of the weight's rows
    out = gather(products.view(-1, x.shape[1]))
    return out.view(layer.out_features, -1, x.shape[1]).permute(1, 2, 0) + layer.bias


def _gather_of_products(spirals: Tensor, out: int) -> RowSums:
    """Sums along spirals (v,L) of products in rows (o*L + place)*v + vertex, into rows o*v + vertex."""
    v, length = spirals.shape
    rows = (v * torch.arange(out * length).view(out, 1, length) + spirals).flatten(0, 1)
    return RowSums(rows, torch.ones(rows.shape), out * length * v)


def select_levels(verts: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
    """A mesh (...,v,3) at each level of its pyramid, finest first: itself, then what every level keeps of the one before."""
    meshes = [verts]
    for rows in kept:
        meshes.append(meshes[-1].index_select(-2, rows))
    return meshes
