"""Spiral convolutions, and the decoder that climbs a mesh pyramid with them, from 49 vertices to 778, a mesh at every level.

SpiralNet++ (Gong et al., ICCVW 2019) and the ISM decoder of CMR (Chen et al., CVPR 2021; specs/cmr_boukhayma_metro.md 2.1,
2.3 item 5). Meshes are in the network's units (0.2 m), relative to the wrist. Tables and up-sampling weights belong to the
pyramid, not to a checkpoint: they are buffers outside the state dict.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """Coarse to fine: vertex r is the weighted sum of the coarse vertices columns[r]; (b,c,channels) -> (b,n,channels)."""
    corners = x.index_select(-2, columns.flatten()).unflatten(-2, columns.shape)
    return (corners * weights.to(x.dtype)[..., None]).sum(-2)


class SpiralBlock(nn.Module):
    """CMR's inception spiral module: up-sampling, then spirals of four lengths side by side, (b,c,channels) -> (b,n,out).

    spirals (n,L), columns and weights (n,3) as in Pyramid; out must be a multiple of four.
    """

    def __init__(self, channels: int, out: int, spirals: Tensor, columns: Tensor, weights: Tensor):
        super().__init__()
        self.register_buffer("columns", columns.long(), persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        third = spirals.shape[1] // 3
        self.conv = SpiralConv(channels, out // 2, spirals)
        self.conv_2d3 = SpiralConv(channels, out // 4, spirals[:, : 2 * third])
        self.conv_d3 = SpiralConv(channels, out // 4, spirals[:, :third])
        self.conv1 = SpiralConv(channels, out, spirals[:, :1])

    def forward(self, x: Tensor) -> Tensor:
        x = up_sample(x, self.columns, self.weights)
        return F.relu(self.conv1(x) + torch.cat((self.conv(x), self.conv_2d3(x), self.conv_d3(x)), -1))


class MeshDecoder(nn.Module):
    """Feature vector (b,features) -> meshes of levels 0, 1, .. (finest first): (b,778,3), (b,389,3), (b,195,3), (b,98,3).

    channels: of the levels, finest first; the coarsest level starts with the last of them. Parts: start, and from coarse to
    fine the blocks and heads. Each block sees the previous block's features beside the previous mesh.
    """

    def __init__(self, features: int, channels: Sequence[int], pyramid: Pyramid):
        super().__init__()
        count = len(channels)
        self.coarsest = len(pyramid.kept[count - 1])
        self.start = nn.Linear(features, self.coarsest * channels[-1])
        nn.init.xavier_uniform_(self.start.weight)
        nn.init.zeros_(self.start.bias)
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        width = channels[-1]
        for level in reversed(range(count)):
            spirals, columns, weights = (torch.as_tensor(part[level]) for part in
                                         (pyramid.spirals, pyramid.columns, pyramid.weights))
            self.blocks.append(SpiralBlock(width, channels[level], spirals, columns, weights))
            self.heads.append(SpiralConv(channels[level], 3, spirals))
            width = channels[level] + 3
        for level in range(count - 1):
            self.register_buffer(f"kept{level}", torch.as_tensor(pyramid.kept[level]), persistent=False)

    def forward(self, latent: Tensor) -> list[Tensor]:
        x = self.start(latent).unflatten(-1, (self.coarsest, -1))
        meshes: list[Tensor] = []
        for block, head in zip(self.blocks, self.heads):
            x = block(x)
            mesh = head(x)
            if meshes:
                mesh = (mesh + up_sample(meshes[0], block.columns, block.weights)) / 2
            meshes.insert(0, mesh)
            x = torch.cat((x, mesh), -1)
        return meshes

    def levels(self, verts: Tensor) -> list[Tensor]:
        """What the meshes of forward should be: the vertices that each level keeps of (b,778,3), finest first."""
        return select_levels(verts, [getattr(self, f"kept{level}") for level in range(len(self.heads) - 1)])


def select_levels(verts: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
    """A mesh (...,v,3) at each level of its pyramid, finest first: itself, then what every level keeps of the one before."""
    meshes = [verts]
    for rows in kept:
        meshes.append(meshes[-1].index_select(-2, rows))
    return meshes
