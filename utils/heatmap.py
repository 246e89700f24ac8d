"""Heat maps of joints: drawn as targets, read as pixels (specs/idhandmesh.md 2.3.4, 6.1, 6.4).

A map of h x w cells covers a crop of `pixels` x `pixels`; centres follow the half-pixel rule, cell = (uv + 0.5) w / pixels - 0.5.
`draw_gaussian` and `read_subcell` keep to it: drawing, then reading, gives the joint back. `draw_published` and `read_argmax` are
the original's pair, which loses 1 pixel of 224 up and to the left on average: one half where a joint is truncated to a pixel, one
half where a cell is read as its first pixel.
"""
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW, SIGMA_PX = 6, 3.5  # the original's stamp: 13 x 13 pixels of the crop
FLOOR, DROP = -1e4, -40.0  # least logarithm of a map's cell, and least below its peak
RADIUS = 2  # cells about the peak that `read_subcell` fits


def inside(uv: Float[Tensor, "b j 2"], pixels: int) -> Tensor:
    """(b,j) bool: within the crop's area, to the outer edge of its pixels."""
    return ((uv >= -0.5) & (uv <= pixels - 0.5)).all(-1)


def draw_gaussian(uv: Float[Tensor, "b j 2"], pixels: int, cells: int, sigma: float) -> Float[Tensor, "b j c c"]:
    """Gaussians of peak 1 at the joints' exact places, `sigma` cells wide; a joint outside the crop has an empty map."""
    line = torch.arange(cells, device=uv.device, dtype=uv.dtype)
    place = (uv + 0.5) * (cells / pixels) - 0.5
    across, down = (torch.exp(-(line - place[..., i:i + 1]).square() / (2 * sigma**2)) for i in (0, 1))
    across = across * inside(uv, pixels)[..., None]
    return down[..., :, None] * across[..., None, :]


def draw_published(uv: Float[Tensor, "b j 2"], pixels: int) -> Float[Tensor, "b j c c"]:
    """The original's maps at half the crop's size: a 13 x 13 stamp at the truncated joint, then halved, so its peak is below 1.

    A joint is drawn where both coordinates are within 0..pixels, so on the bottom and right edges from just outside.
    """
    return F.avg_pool2d(draw_published_full(uv, pixels), 2)  # bilinear halving is the mean of 2 x 2


def draw_published_full(uv: Float[Tensor, "b j 2"], pixels: int) -> Float[Tensor, "b j p p"]:
    """`draw_published` before it is halved."""
    line = torch.arange(pixels, device=uv.device, dtype=uv.dtype)
    drawn = ((uv >= 0) & (uv <= pixels)).all(-1)
    off = line - uv.trunc()[..., None]  # Seed: the joint is truncated to a pixel
    stamp = torch.exp(-off.square() / (2 * SIGMA_PX**2)) * (off.abs() <= WINDOW) * drawn[..., None, None]
    return stamp[..., 1, :, None] * stamp[..., 0, None, :]


def read_argmax(maps: Float[Tensor, "b j c c"], pixels: int) -> tuple[Float[Tensor, "b j 2"], Float[Tensor, "b j"]]:
    """(pixels of the crop, value of the peak). Seed: cell * pixels / cells, the cell's first pixel and not its middle."""
    cell, peak = _peak(maps)
    return cell.to(maps.dtype) * (pixels / maps.shape[-1]), peak


def read_subcell(log_maps: Float[Tensor, "b j c c"], pixels: int) -> tuple[Float[Tensor, "b j 2"], Float[Tensor, "b j"]]:
    """(pixels of the crop, value of the peak) of maps given by their logarithms: the centre of a Gaussian fitted about the peak.

    A weighted least-squares fit of k + b.x + a |x|^2 to the logarithms in a window of 5 x 5 cells, weights the squared values
    (Guo, IEEE Signal Processing Magazine 2011): exact on a Gaussian of any width, also where the window is cut by the border.
    """
    cells = log_maps.shape[-1]
    log_maps = log_maps.clamp(min=FLOOR)
    cell, peak = _peak(log_maps)
    steps = torch.arange(-RADIUS, RADIUS + 1, device=log_maps.device)
    dx, dy = (d.reshape(-1) for d in torch.meshgrid(steps, steps, indexing="xy"))
    x, y = cell[..., 0:1] + dx, cell[..., 1:2] + dy  # (b,j,25)
    known = (x >= 0) & (x < cells) & (y >= 0) & (y < cells)
    values = log_maps.flatten(2).gather(2, y.clamp(0, cells - 1) * cells + x.clamp(0, cells - 1)).double() - peak[..., None]
    values = values.clamp(min=DROP)
    weights = torch.exp(2 * values) * known
    dx, dy = dx.double(), dy.double()
    terms = torch.stack((torch.ones_like(dx), dx, dy, dx.square() + dy.square()), -1)  # (25,4)
    normal = torch.einsum("bjn,nk,nl->bjkl", weights, terms, terms)
    ridge = 1e-9 * torch.eye(4, dtype=normal.dtype, device=normal.device)  # a lone cell: nothing else weighs anything
    found = torch.linalg.solve(normal + ridge, torch.einsum("bjn,nk,bjn->bjk", weights, terms, values))
    curve = found[..., 3:4]
    offset = torch.where(curve < -1e-6, -found[..., 1:3] / (2 * curve.clamp(max=-1e-6)), 0.0).clamp(-RADIUS, RADIUS)
    place = cell + offset
    return (((place + 0.5) * (pixels / cells)) - 0.5).to(log_maps.dtype), peak.exp()


def _peak(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(b,j,2) column and row of the largest cell (the first where several are) and (b,j) its value."""
    peak, flat = maps.flatten(2).max(2)
    return torch.stack((flat % maps.shape[-1], flat // maps.shape[-1]), -1), peak
