"""Batched triangle rasteriser in plain torch (CPU and GPU): faces, barycentrics and depth per pixel; shading from them.

Every face is cut into small square tiles; 1/z and the barycentrics are affine over a tile, and the z-buffer is one
scatter-maximum of (1/z, fragment) pairs: no loop over faces, no OpenGL, no compiled extension (design note, section 7).
Convention: OpenCV camera (x right, y down, z forward), metres, centre of the top-left pixel at (0, 0). Faces are
counter-clockwise seen from outside; with y down a face that looks at the camera then has a *negative* signed area in the
picture (the wrong cull draws a plausible inside-out hand). Faces that reach behind the camera are left out, not clipped.
"""
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

HAND_RGB = (0.62, 0.72, 0.90)  # overlays: pale blue, which is not a skin tone
NEAR_M = 1e-3  # a face with a vertex nearer than this is not drawn
EDGE = 2e-6    # slack of the inside test, so that a pixel centre on a shared edge is never missed by both faces


class Fragments(NamedTuple):
    """The n covered pixels of a batch of pictures, in the order of `pixel`.

    pixel (n,) index into the flattened (b, height, width) · face (n,) · bary (n,3) perspective-correct, sum 1 ·
    depth (n,) metres along z.
    """

    pixel: Tensor
    face: Tensor
    bary: Tensor
    depth: Tensor


class Buffers(NamedTuple):
    """Dense pictures: face (b,h,w) long, -1 = none · bary (b,h,w,3) · depth (b,h,w) metres along z; 0 where no face."""

    face: Tensor
    bary: Tensor
    depth: Tensor


def rasterise(
    verts: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    K: Float[Tensor, "*b 3 3"],
    height: int,
    width: int,
    cull: Literal["back", "front", "none"] = "back",
) -> Fragments:
    """Nearest face of every covered pixel.

    verts in the camera frame, metres; K one (3,3) for all pictures or (b,3,3). Not differentiable. `cull` names the faces
    that are not drawn. The answer does not depend on the order of the work: ties go to the later face.
    """
    with torch.no_grad():
        tiles = _tiles(verts, faces, K, height, width, cull)
        return _resolve(*_fragments(*tiles, height, width), len(verts) * height * width)


def render(
    verts: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    K: Float[Tensor, "*b 3 3"],
    height: int,
    width: int,
    cull: Literal["back", "front", "none"] = "back",
) -> Buffers:
    """`rasterise` as dense pictures (b, height, width)."""
    return dense(rasterise(verts, faces, K, height, width, cull), len(verts), height, width)


def dense(fragments: Fragments, batch: int, height: int, width: int) -> Buffers:
    """Scatter the fragments of `batch` pictures into dense buffers."""
    size = batch * height * width
    face = fragments.face.new_full((size,), -1).index_copy_(0, fragments.pixel, fragments.face)
    bary = fragments.bary.new_zeros(size, 3).index_copy_(0, fragments.pixel, fragments.bary)
    depth = fragments.depth.new_zeros(size).index_copy_(0, fragments.pixel, fragments.depth)
    return Buffers(face.view(batch, height, width), bary.view(batch, height, width, 3), depth.view(batch, height, width))


def interpolate(
    buffers: Buffers, faces: Int[Tensor, "f 3"], attributes: Float[Tensor, "b v c"]
) -> Float[Tensor, "b h w c"]:
    """Vertex attributes at every pixel, perspective-correct; 0 where no face. Differentiable in the attributes."""
    batch = torch.arange(len(attributes), device=faces.device)[:, None, None, None]
    corners = attributes[batch, faces[buffers.face.clamp(min=0)]]  # (b,h,w,3,c)
    return (corners * buffers.bary[..., None]).sum(-2)


def interpolate_fragments(
    fragments: Fragments, faces: Int[Tensor, "f 3"], attributes: Float[Tensor, "b v c"], pixels: int
) -> Float[Tensor, "n c"]:
    """Vertex attributes at the fragments only; `pixels` = height * width of one picture."""
    count = attributes.shape[1]
    corners = faces.index_select(0, fragments.face) + torch.div(fragments.pixel, pixels, rounding_mode="floor")[:, None] * count
    table = attributes.reshape(-1, attributes.shape[-1])
    values = table.index_select(0, corners.view(-1)).view(-1, 3, table.shape[1])
    return torch.bmm(fragments.bary[:, None], values)[:, 0]


def vertex_normals(verts: Float[Tensor, "*b v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*b v 3"]:
    """Unit normals, outward, the area-weighted mean of the faces around each vertex."""
    a, b, c = (verts.index_select(-2, faces[:, i]) for i in range(3))
    face_normals = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(verts)
    for i in range(3):
        normals = normals.index_add(-2, faces[:, i], face_normals)
    return torch.nn.functional.normalize(normals, dim=-1, eps=1e-20)


class Lights(NamedTuple):
    """l distant lights and the light from everywhere. direction (l,3) unit, towards the light, in the frame of the normals ·
    colour (l,3) · sky (3) and ground (3): ambient light of normals along `up` and against it · up (3) unit.
    """

    direction: Tensor
    colour: Tensor
    sky: Tensor
    ground: Tensor
    up: Tensor


def studio_lights(like: Tensor) -> Lights:
    """Key, fill and rim light in the camera frame, for overlays."""
    direction = torch.nn.functional.normalize(like.new_tensor([[-0.5, -0.8, -1.0], [0.9, 0.1, -0.6], [0.2, -0.9, 0.7]]), dim=1)
    colour = like.new_tensor([[0.62] * 3, [0.22] * 3, [0.25] * 3])
    return Lights(direction, colour, like.new_tensor([0.36] * 3), like.new_tensor([0.22] * 3), like.new_tensor([0.0, -1.0, 0.0]))


def shade(
    colour: Float[Tensor, "*n 3"],
    normals: Float[Tensor, "*n 3"],
    towards_eye: Float[Tensor, "*n 3"],
    lights: Lights,
    gloss: float | Tensor = 0.0,
    shininess: float = 24.0,
) -> Float[Tensor, "*n 3"]:
    """Light that leaves each point: Lambert plus hemisphere ambient plus Blinn's highlight of strength `gloss`.

    colour in linear [0,1]; normals and towards_eye need not have unit length; the result may exceed 1.
    """
    n = torch.nn.functional.normalize(normals, dim=-1)
    sky_share = ((n @ lights.up) * 0.5 + 0.5)[..., None]
    diffuse = lights.ground + (lights.sky - lights.ground) * sky_share
    diffuse = diffuse + (n @ lights.direction.T).clamp(min=0) @ lights.colour
    light = colour * diffuse
    if isinstance(gloss, Tensor) or gloss > 0:
        eye = torch.nn.functional.normalize(towards_eye, dim=-1)
        half = torch.nn.functional.normalize(eye[..., None, :] + lights.direction, dim=-1)
        highlight = (half * n[..., None, :]).sum(-1).clamp(min=0).pow(shininess)
        light = light + gloss * (highlight @ lights.colour)
    return light


def silhouette(buffers: Buffers) -> Tensor:
    """(b,h,w) bool: where a face is."""
    return buffers.face >= 0


def overlay(
    image: np.ndarray,
    verts: Float[Tensor, "v 3"] | np.ndarray,
    faces: Int[Tensor, "f 3"] | np.ndarray,
    K: Float[Tensor, "3 3"] | np.ndarray,
    colour: tuple[float, float, float] | np.ndarray = HAND_RGB,
    alpha: float = 1.0,
    supersample: int = 2,
) -> np.ndarray:
    """Picture with the shaded mesh drawn over it, smooth at its edges.

    image (h,w,3) uint8 (RGB); verts (v,3) metres, camera frame; K (3,3) of the image; colour one RGB in [0,1] or (v,3).
    A mesh outside the picture, or behind the camera, leaves it unchanged.
    """
    height, width = image.shape[:2]
    verts, K = (torch.as_tensor(a).detach().cpu().float() for a in (verts, K))
    faces = torch.as_tensor(faces).cpu().long()
    window = _window(verts, K, height, width)
    if window is None:
        return image.copy()
    x, y, w, h = window
    s = supersample
    # Window, then the half-pixel rule: (p - origin + 0.5) * s - 0.5.
    zoom = torch.tensor([[s, 0, (0.5 - x) * s - 0.5], [0, s, (0.5 - y) * s - 0.5], [0, 0, 1.0]])
    buffers = render(verts[None], faces, zoom @ K, h * s, w * s)
    rgb = torch.as_tensor(colour, dtype=torch.float32).expand(len(verts), 3)
    attributes = torch.cat([rgb, vertex_normals(verts, faces), -verts], -1)[None]
    colour_map, normals, eye = interpolate(buffers, faces, attributes)[0].split(3, -1)
    mask = silhouette(buffers)[0, ..., None].float()
    lit = shade(colour_map, normals, eye, studio_lights(verts), gloss=0.15).clamp(0, 1) * mask
    lit, cover = (t.view(h, s, w, s, -1).mean((1, 3)) * alpha for t in (lit, mask))
    result = image.copy()
    part = torch.from_numpy(result[y:y + h, x:x + w].astype(np.float32))
    result[y:y + h, x:x + w] = (part * (1 - cover) + 255 * lit).round().clamp(0, 255).byte().numpy()
    return result


def _window(verts: Tensor, K: Tensor, height: int, width: int) -> tuple[int, int, int, int] | None:
    """x, y, width, height of the part of the picture that the mesh can touch, or None."""
    image = verts @ K.T
    front = image[:, 2] > NEAR_M
    if not front.any():
        return None
    uv = image[front, :2] / image[front, 2:]
    if not torch.isfinite(uv).all():
        return None
    low = uv.amin(0).floor().clamp(min=0)
    high = torch.minimum(uv.amax(0).ceil(), uv.new_tensor([width - 1, height - 1]))
    if (low > high).any():
        return None
    (x, y), (w, h) = low.int().tolist(), (high - low + 1).int().tolist()
    return x, y, w, h


def _tiles(verts: Tensor, faces: Tensor, K: Tensor, height: int, width: int, cull: str):
    """t tiles over the m faces to draw (a face of one picture is an instance).

    Returns size of a tile, owner (t) instance, origin (t,2) pixel; then per instance last (m,2) pixel of its box, anchor (m,2)
    its vertex 0, gradient (m,2,2) of w1 and w2, depths (m,3) 1/z of its vertices, picture (m), face (m).
    """
    image = verts @ K.transpose(-1, -2)
    z = image[..., 2]
    inverse = 1 / z.clamp(min=NEAR_M)
    uv = image[..., :2] * inverse[..., None]
    corners = uv[:, faces]  # (b,f,3,2)
    depths = inverse[:, faces]
    low, high = corners.amin(2), corners.amax(2)
    e1, e2 = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    area = e1[..., 0] * e2[..., 1] - e1[..., 1] * e2[..., 0]
    first = low.ceil().clamp(min=0)
    last = torch.minimum(high.floor(), high.new_tensor([width - 1, height - 1]))
    keep = (first <= last).all(-1) & (z[:, faces] > NEAR_M).all(-1)
    keep &= {"back": area < 0, "front": area > 0, "none": area != 0}[cull]
    picture, face = keep.nonzero(as_tuple=True)

    pick = (picture, face)
    first, last, area = first[pick], last[pick], area[pick]
    e1, e2, anchor, depths = e1[pick], e2[pick], corners[pick][:, 0], depths[pick]
    # w1 and w2 are the barycentrics of vertices 1 and 2 in the picture plane, affine in the offset from vertex 0.
    slope1, slope2 = torch.stack([e2[:, 1], -e2[:, 0]], -1), torch.stack([-e1[:, 1], e1[:, 0]], -1)
    gradient = torch.stack([slope1, slope2], 1) / area[:, None, None]
    extent = last - first + 1
    size = _tile_size(extent)
    across = ((extent + (size - 1)) / size).floor().long()
    count = across[:, 0] * across[:, 1]
    owner = torch.repeat_interleave(torch.arange(len(face), device=face.device), count)
    rank = torch.arange(len(owner), device=face.device) - (count.cumsum(0) - count)[owner]
    row = torch.div(rank, across[owner, 0], rounding_mode="floor")
    column = rank - row * across[owner, 0]
    origin = first[owner] + torch.stack([column, row], -1) * size
    return size, owner, origin, last, anchor, gradient, depths, picture, face


def _tile_size(extent: Tensor) -> int:
    """Side of the tiles: about the bounding box of the usual face, so that few tested pixels are wasted."""
    if not len(extent):
        return 4
    return int(extent.amax(1).clamp(max=12).mean().add(0.5).clamp(3, 8))


def _fragments(size, owner, origin, last, anchor, gradient, depths, picture, face, height, width):
    """Pixels of the tiles that lie inside their face: pixel, face, barycentrics (in the picture), 1/z."""
    step = torch.arange(size, device=origin.device, dtype=origin.dtype)
    start, room = gradient.index_select(0, owner), last.index_select(0, owner) - origin
    offset = origin - anchor.index_select(0, owner)
    gx, gy = start[..., 0, None], start[..., 1, None]  # (t,2,1): slopes of w1 and w2 along x and y
    along = (gx[..., 0] * offset[:, :1] + gy[..., 0] * offset[:, 1:])[..., None] + gx * step  # (t,2,size)
    w = along[:, :, None, :] + (gy * step)[..., None]  # (t,2,size,size)
    w1, w2 = w[:, 0], w[:, 1]
    inside = (torch.minimum(w1, w2) >= -EDGE) & (w1 + w2 <= 1 + EDGE)
    inside &= ((step <= room[:, 1:])[:, :, None]) & (step <= room[:, :1])[:, None, :]
    found = inside.view(-1).nonzero()[:, 0]
    tile = torch.div(found, size * size, rounding_mode="floor")
    cell = found - tile * (size * size)
    w12 = w.view(-1)[(found + tile * (size * size))[:, None] + cell.new_tensor([0, size * size])]
    instance = owner.index_select(0, tile)
    corner = (origin[:, 1] * width + origin[:, 0]).long() + picture.index_select(0, owner) * (height * width)
    row = torch.div(cell, size, rounding_mode="floor")
    pixel = corner.index_select(0, tile) + row * (width - size) + cell
    bary = torch.cat([1 - w12.sum(1, keepdim=True), w12], 1)
    weighted = bary * depths.index_select(0, instance)  # shares of 1/z: perspective-correct once divided by their sum
    return pixel, face.index_select(0, instance), weighted


def _resolve(pixel: Tensor, face: Tensor, weighted: Tensor, size: int) -> Fragments:
    """Keep the nearest fragment of every pixel: one scatter-maximum of the float's bits above the fragment's number."""
    inverse = weighted.sum(1)
    # Positive floats order like their bit patterns; the low half makes the winner unique.
    rank = (inverse.float().view(torch.int32).long() << 32) | torch.arange(len(pixel), device=pixel.device)
    buffer = rank.new_full((size,), -1).scatter_reduce_(0, pixel, rank, "amax")
    covered = (buffer >= 0).nonzero()[:, 0]
    winner = buffer[covered] & 0xFFFFFFFF
    inverse = inverse.index_select(0, winner)
    bary = weighted.index_select(0, winner) / inverse[:, None]
    return Fragments(covered, face.index_select(0, winner), bary, 1 / inverse)
