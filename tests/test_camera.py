"""Camera: crops, mirrors and K move together; the half-pixel rule is OpenCV's."""
import cv2
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import camera
from utils.rotation import rotation_about_z

coordinate = st.floats(-200, 900)
sides = st.floats(5, 900)
angles = st.floats(-4, 4)


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def points(count: int = 30) -> torch.Tensor:
    """Points in front of the camera, metres."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) * 0.3 + tensor(-0.15, -0.15, 0.4)


def intrinsics(fx: float, fy: float) -> torch.Tensor:
    return torch.stack((tensor(fx, 0, 313.2), tensor(0, fy, 246.7), tensor(0, 0, 1)))


@given(coordinate, coordinate, sides, st.integers(8, 300), angles, st.floats(300, 900), st.floats(0.5, 2))
def test_K_of_crop_is_exact(x, y, side, pixels, angle, fx, ratio):
    """Turned points through the crop's K = the picture's pixels through the crop's matrix, to 1e-9, also with fx != fy."""
    K, angle = intrinsics(fx, fx * ratio), tensor(angle)[0]
    crop = camera.crop_matrix(tensor(x, y), tensor(side)[0], pixels, angle)
    turned = points() @ rotation_about_z(angle).T
    direct = camera.transform_uv(crop, camera.project(points(), K))
    through = camera.project(turned, camera.K_of_crop(K, crop, angle))
    assert torch.allclose(through, direct, atol=1e-9 * max(1, direct.abs().max().item()), rtol=0)


@given(coordinate, coordinate, sides, angles)
def test_turned_K_keeps_its_form_for_square_pixels(x, y, side, angle):
    """fx = fy: K of a turned crop is upper triangular, one focal length scaled by the crop, principal point carried along."""
    K, angle = intrinsics(600, 600), tensor(angle)[0]
    crop = camera.crop_matrix(tensor(x, y), tensor(side)[0], 128, angle)
    cropped = camera.K_of_crop(K, crop, angle)
    focal = 600 * 128 / side
    assert torch.allclose(cropped[:2, :2], focal * torch.eye(2, dtype=torch.float64), atol=1e-9 * focal)
    assert torch.allclose(cropped[:2, 2], camera.transform_uv(crop, K[None, :2, 2])[0], atol=1e-6)
    assert torch.equal(cropped[2], tensor(0, 0, 1))


@given(coordinate, coordinate, sides, st.integers(2, 300), angles)
def test_crop_places_its_square(x, y, side, pixels, angle):
    """The centre lands on (n-1)/2, the square's corners on -0.5 and n-0.5, and the inverse leads back."""
    crop = camera.crop_matrix(tensor(x, y), tensor(side)[0], pixels, tensor(angle)[0])
    assert torch.allclose(camera.transform_uv(crop, tensor(x, y)[None]), torch.full((1, 2), (pixels - 1) / 2).double(), atol=1e-7)
    spread = rotation_about_z(tensor(-angle)[0])[:2, :2] @ tensor(-side / 2, -side / 2)  # the turn brings it to the corner
    assert torch.allclose(camera.transform_uv(crop, (tensor(x, y) + spread)[None]), tensor(-0.5, -0.5), atol=1e-7)
    assert torch.allclose(camera.invert_affine(crop) @ crop, torch.eye(3).double(), atol=1e-7)
    assert torch.allclose(camera.invert_affine(crop), torch.linalg.inv(crop), atol=1e-6)


@given(sides, st.integers(8, 200), st.integers(8, 200))
def test_crops_compose(side, first, second):
    """Cutting at one size and resizing to another is cutting at the other: scale_matrix o crop = crop, no half pixel lost."""
    centre, side = tensor(100.3, 42.8), tensor(side)[0]
    both = camera.scale_matrix(tensor(second / first)[0]) @ camera.crop_matrix(centre, side, first)
    assert torch.allclose(both, camera.crop_matrix(centre, side, second), atol=1e-8)


def test_half_pixel_rule_is_opencvs():
    """A ramp resized by OpenCV shows, at each pixel, the coordinate that scale_matrix's inverse gives."""
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    for size in (32, 48, 128):
        small = cv2.resize(ramp, (size, size), interpolation=cv2.INTER_LINEAR)[0]
        back = camera.invert_affine(camera.scale_matrix(tensor(size / 64)[0]))
        u = camera.transform_uv(back, torch.stack((torch.arange(size).double(), torch.zeros(size).double()), -1))[:, 0].numpy()
        inner = slice(2, size - 2)
        assert np.allclose(small[inner], u[inner], atol=1e-3)


def test_crop_matrix_moves_a_dot_with_the_picture():
    """A dot drawn in a picture is found, after OpenCV's warp by the crop matrix, where transform_uv says (clockwise turn)."""
    image = np.zeros((200, 300), np.float32)
    cv2.circle(image, (180, 70), 3, 1.0, -1)
    crop = camera.crop_matrix(tensor(160, 90), tensor(80)[0], 120, tensor(0.5)[0])
    warped = cv2.warpAffine(image, crop[:2].numpy(), (120, 120), flags=cv2.INTER_LINEAR)
    v, u = np.mgrid[:120, :120]
    found = np.array([(warped * u).sum(), (warped * v).sum()]) / warped.sum()
    assert np.abs(found - camera.transform_uv(crop, tensor(180, 70)[None])[0].numpy()).max() < 0.1
    right_of_centre = camera.transform_uv(crop, tensor(180, 90)[None])[0]
    assert right_of_centre[1] > 59.5  # clockwise on the screen: what was to the right moves down


@given(st.integers(2, 2000))
def test_mirror(width):
    """Mirrored points through the mirrored K = mirrored pixels; fx stays positive; mirroring twice changes nothing."""
    K = intrinsics(610, 615)
    mirror = camera.mirror_matrix(width, K)
    mirrored = camera.K_of_mirror(K, width)
    uv = camera.project(points() * tensor(-1, 1, 1), mirrored)
    assert torch.allclose(uv, camera.transform_uv(mirror, camera.project(points(), K)), atol=1e-9)
    assert torch.allclose(uv[:, 0], width - 1 - camera.project(points(), K)[:, 0], atol=1e-9)
    assert mirrored[0, 0] == K[0, 0] and torch.equal(mirror @ mirror, torch.eye(3).double())
    assert torch.allclose(camera.K_of_mirror(mirrored, width), K)


def test_unproject_inverts_project():
    """Pixels and depth lead back to the points, also through a K with terms off the diagonal."""
    K = camera.K_of_crop(intrinsics(600, 700), camera.crop_matrix(tensor(300, 200), tensor(200)[0], 64, 0.3), 0.3)
    x = points()
    assert torch.allclose(camera.unproject(camera.project(x, K), x[:, 2], K), x, atol=1e-12)


def test_batches_and_gradients():
    """Leading axes broadcast row by row; projection and crop differentiate correctly."""
    K = torch.stack([intrinsics(600, 600), intrinsics(500, 520)])
    x = torch.stack([points(5), points(5) + 0.1])
    uv = camera.project(x, K)
    assert torch.equal(uv[1], camera.project(x[1], K[1])) and uv.shape == (2, 5, 2)
    angle = tensor(0.1, -0.4)
    crops = camera.crop_matrix(tensor(100, 80).expand(2, 2), tensor(50, 60), 32, angle)
    assert torch.allclose(crops[1], camera.crop_matrix(tensor(100, 80), tensor(60)[0], 32, angle[1]))
    assert torch.autograd.gradcheck(lambda p, a: camera.project(p, camera.K_of_crop(K, crops, a)),
                                    (x.requires_grad_(), angle.requires_grad_()))


def test_autocast_leaves_pixels_alone():
    """Inside bf16 autocast projection is digit for digit the same (in bf16 pixels would be off by several)."""
    x, K = points().float(), intrinsics(600, 600).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = camera.project(x, K)
    assert torch.equal(inside, camera.project(x, K))
