"""The rasteriser against mathematics: planes, barycentrics, hulls, occlusion, orientation, the camera's convention."""
import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from utils import render as R

H, W = 96, 128
K = torch.tensor([[150.0, 0, 63.2], [0, 152.0, 47.6], [0, 0, 1]])
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def cube(side: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """A cube about the origin, faces counter-clockwise seen from outside."""
    verts = torch.tensor([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], dtype=torch.float32) * side / 2
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    return verts, torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def ball(radius: float = 0.1, rings: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed sphere, faces counter-clockwise seen from outside (taken from its convex hull)."""
    polar, turn = torch.linspace(0, math.pi, rings + 1)[1:-1, None], torch.arange(2 * rings) * math.pi / rings
    points = torch.stack([polar.sin() * turn.cos(), polar.sin() * turn.sin(), polar.cos().expand(-1, 2 * rings)], -1)
    verts = torch.cat([points.reshape(-1, 3), torch.tensor([[0, 0, 1.0], [0, 0, -1.0]])]) * radius
    faces = torch.from_numpy(ConvexHull(verts.double().numpy()).simplices.astype(np.int64))
    a, b, c = (verts[faces[:, i]] for i in range(3))
    inward = (torch.linalg.cross(b - a, c - a) * (a + b + c)).sum(-1) < 0
    faces[inward] = faces[inward].flip(-1)
    return verts, faces


def turned(verts: torch.Tensor, seed: int = 0, centre: tuple = (0.0, 0.0, 0.5)) -> torch.Tensor:
    """The points after a random rotation, placed before the camera."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return verts @ (q * torch.linalg.det(q)).float() + torch.tensor(centre)


def projected(verts: torch.Tensor) -> torch.Tensor:
    image = verts @ K.T
    return image[..., :2] / image[..., 2:]


@pytest.mark.parametrize("device", DEVICES)
def test_depth_of_a_slanted_triangle_is_the_ray_plane_intersection(device):
    """Depth of every covered pixel against the analytic intersection of its ray with the triangle's plane."""
    verts = torch.tensor([[-0.12, -0.1, 0.4], [0.02, 0.11, 0.6], [0.16, -0.06, 0.9]])
    faces = torch.tensor([[0, 1, 2]])
    buffers = R.render(verts[None].to(device), faces.to(device), K.to(device), H, W, cull="none")
    face, depth = buffers.face[0].cpu(), buffers.depth[0].cpu()
    normal = torch.linalg.cross(verts[1] - verts[0], verts[2] - verts[0]).double()
    rows, columns = (face >= 0).nonzero(as_tuple=True)
    rays = torch.stack([columns, rows, torch.ones_like(rows)], -1).double() @ torch.linalg.inv(K.double()).T
    expected = (normal @ verts[0].double()) / (rays @ normal)
    assert len(rows) > 500
    torch.testing.assert_close(depth[rows, columns].double(), expected, atol=2e-5, rtol=0)
    assert (depth[face < 0] == 0).all()


def test_coverage_is_every_pixel_centre_inside_the_triangle():
    """The covered pixels against a point-in-triangle test on the integer pixel centres (also pins the pixel convention)."""
    verts = torch.tensor([[-0.1, -0.08, 0.5], [0.03, 0.12, 0.5], [0.14, -0.05, 0.5]])
    face = R.render(verts[None], torch.tensor([[0, 1, 2]]), K, H, W, cull="none").face[0]
    uv = projected(verts).double()
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    p = torch.stack([x, y], -1).double()
    sides = [torch.linalg.det(torch.stack([(uv[(i + 1) % 3] - uv[i]).expand_as(p), p - uv[i]], -1)) for i in range(3)]
    inside = (torch.stack(sides) <= 0).all(0) | (torch.stack(sides) >= 0).all(0)
    clear = torch.stack(sides).abs().amin(0) > 0.5  # about a hundredth of a pixel from every edge
    assert torch.equal((face >= 0)[clear], inside[clear]) and inside[clear].sum() > 1900


def test_barycentrics_are_perspective_correct():
    """Interpolated vertex positions reproduce each pixel's own coordinates, and its depth, on a strongly slanted mesh."""
    verts, faces = ball()
    verts = turned(verts, 3, (0.02, -0.01, 0.25))[None]
    buffers = R.render(verts, faces, K, H, W)
    points = R.interpolate(buffers, faces, verts)
    hit = R.silhouette(buffers)[0].nonzero()
    uv = projected(points[0][hit[:, 0], hit[:, 1]])
    torch.testing.assert_close(uv, hit.flip(-1).float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(points[..., 2], buffers.depth, atol=1e-6, rtol=0)
    assert torch.allclose(buffers.bary.sum(-1), (buffers.face >= 0).float(), atol=1e-5)


def test_fragments_agree_with_the_dense_buffers():
    """Sparse interpolation against dense interpolation, three pictures with their own K and pose."""
    verts, faces = ball(rings=10)
    verts = torch.stack([turned(verts, i, (0.05 * i, 0.0, 0.5 + 0.1 * i)) for i in range(3)])
    cameras = torch.stack([K, K * torch.tensor([[1.1], [1.1], [1.0]]), K])
    values = torch.randn(3, verts.shape[1], 5, generator=torch.Generator().manual_seed(0))
    fragments = R.rasterise(verts, faces, cameras, H, W)
    flat = torch.zeros(3 * H * W, 5)
    flat[fragments.pixel] = R.interpolate_fragments(fragments, faces, values, H * W)
    torch.testing.assert_close(flat.view(3, H, W, 5), R.interpolate(R.render(verts, faces, cameras, H, W), faces, values))


@pytest.mark.parametrize("make", [cube, ball])
@pytest.mark.parametrize("seed", range(4))
def test_silhouette_of_a_convex_mesh_is_its_projected_hull(make, seed):
    """Covered area against the area of the convex hull of the projected vertices; both facings cover the same pixels."""
    verts, faces = make()
    verts = turned(verts, seed)
    front = R.silhouette(R.render(verts[None], faces, K, H, W))
    hull = ConvexHull(projected(verts).double().numpy())
    assert abs(front.sum().item() - hull.volume) < 0.75 * hull.area / 2  # `volume` is the area, `area` the perimeter
    back = R.silhouette(R.render(verts[None], faces, K, H, W, cull="front"))
    assert (front ^ back).sum() <= 4


def test_back_faces_are_culled_the_right_way_round():
    """An outward mesh shows its near side with back faces culled, its far side with front faces culled."""
    verts, faces = ball()
    verts = (verts + torch.tensor([0, 0, 0.5]))[None]
    middle = (round(K[1, 2].item()), round(K[0, 2].item()))
    assert R.render(verts, faces, K, H, W).depth[0][middle] == pytest.approx(0.4, abs=2e-3)
    assert R.render(verts, faces, K, H, W, cull="front").depth[0][middle] == pytest.approx(0.6, abs=2e-3)
    assert torch.equal(R.render(verts, faces, K, H, W).depth, R.render(verts, faces, K, H, W, cull="none").depth)


def test_nearest_face_wins_whatever_the_order_of_the_faces():
    """Two cubes, one behind the other: the visible label and depth do not depend on the order of the list."""
    verts, faces = cube()
    both = torch.cat([turned(verts, 1, (0.0, 0.0, 0.5)), turned(verts * 1.5, 2, (0.02, 0.01, 0.8))])[None]
    joined = torch.cat([faces, faces + len(verts)])
    order = torch.randperm(len(joined), generator=torch.Generator().manual_seed(0))
    one, two = R.render(both, joined, K, H, W), R.render(both, joined[order], K, H, W)
    torch.testing.assert_close(one.depth, two.depth, atol=1e-6, rtol=0)
    hit = one.face >= 0
    assert ((one.face[hit] < len(faces)) != (order[two.face[hit]] < len(faces))).sum() == 0
    near = R.silhouette(R.render(both[:, :len(verts)], faces, K, H, W))
    assert (one.face[near] < len(faces)).all()


def test_clipping_by_the_picture_and_the_camera():
    """Meshes outside the picture or behind the camera draw nothing; one across the border is the same as in a larger picture."""
    verts, faces = ball(rings=8)
    for centre in ((5.0, 0, 0.5), (0, -5.0, 0.5), (0, 0, -0.5), (0, 0, 0.0)):
        assert (R.render(turned(verts, 0, centre)[None], faces, K, H, W).face == -1).all()
    across = turned(verts, 0, (-0.2, 0.15, 0.5))[None]
    small = R.render(across, faces, K, H, W)
    large = R.render(across, faces, K + torch.tensor([[0, 0, 40.0], [0, 0, 40.0], [0, 0, 0]]), H + 80, W + 80)
    assert 0 < R.silhouette(small).sum() < R.silhouette(large).sum()
    assert (small.face != large.face[:, 40:-40, 40:-40]).float().mean() < 1e-3


def test_no_holes_between_large_and_small_faces():
    """A closed wall of many small and two large faces covers its outline without a missing pixel."""
    n, side = 30, torch.linspace(-0.1, 0.1, 30)
    wall = torch.cartesian_prod(side, side, torch.tensor([0.5]))
    large = torch.tensor([[0.1, -0.1, 0.5], [0.3, -0.1, 0.5], [0.1, 0.1, 0.5], [0.3, 0.1, 0.5]])
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1].flatten(), index[1:, :-1].flatten(), index[:-1, 1:].flatten(), index[1:, 1:].flatten()
    two = torch.tensor([[0, 1, 2], [1, 3, 2]]) + n * n
    verts, faces = torch.cat([wall, large]), torch.cat([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1), two])
    mask = R.silhouette(R.render(verts[None], faces, K, H, W, cull="none"))[0]
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    assert mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()


def test_normals_of_a_sphere_are_radial_and_light_comes_from_its_side():
    """vertex_normals against the radius; a light from the left makes the left half of the picture the brighter one."""
    verts, faces = ball()
    normals = R.vertex_normals(verts, faces)
    torch.testing.assert_close(normals, verts / 0.1, atol=5e-2, rtol=0)
    placed = (verts + torch.tensor([0, 0, 0.5]))[None]
    n = R.interpolate(R.render(placed, faces, K, H, W), faces, normals[None])[0]
    black = torch.zeros(3)
    lights = R.Lights(torch.tensor([[-1.0, 0, 0]]), torch.ones(1, 3), black, black, torch.tensor([0, -1.0, 0]))
    lit = R.shade(torch.ones_like(n), n, -n, lights)[..., 0]
    assert lit[:, :60].sum() > 100 * lit[:, 67:].sum()


def test_overlay_lies_on_the_silhouette_and_touches_nothing_else():
    """overlay against render of the same mesh: pixels far from the mesh unchanged, those inside it changed; off-screen: no-op."""
    verts, faces = ball()
    verts = turned(verts, 0, (-0.1, 0.05, 0.5))
    image = np.full((H, W, 3), 7, np.uint8)
    drawn = R.overlay(image, verts, faces.numpy(), K.numpy())
    mask = R.silhouette(R.render(verts[None], faces, K, H, W))[0].numpy()
    grown = np.pad(mask, 1)
    near = np.stack([grown[y:y + H, x:x + W] for y in range(3) for x in range(3)])
    changed = (drawn != 7).any(-1)
    assert changed[near.all(0)].all() and not changed[~near.any(0)].any()
    assert (image == 7).all()
    assert (R.overlay(image, verts + 9, faces, K) == image).all() and (R.overlay(image, -verts, faces, K) == image).all()
    assert (R.overlay(image, verts, faces, K, alpha=0.0) == image).all()
