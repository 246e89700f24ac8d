"""Pinhole camera, crops, mirrors: the project's convention page (design.md section 5).

Frames     Camera axes are OpenCV's: x right, y down, z forward, metres. OpenGL data (HO3D) turn by diag(1,-1,-1) when read.
Pixels     The CENTRE of the top-left pixel is (0, 0); a picture of w pixels covers u in [-0.5, w - 0.5]. Scaling by s about the
           picture's corner therefore maps p to (p + 0.5) s - 0.5, and mirroring maps u to w - 1 - u.
Maps       `B_from_A` (3,3) acts on homogeneous pixels of A. One matrix acts on image, uv and K alike.
Crops      `crop_matrix` sends the square of side L about c to n x n pixels: c lands on (n-1)/2 in both axes.
Rotation   Turning a picture by t about any point is exactly a turn of the camera about its axis: 3D points and global rotations
           turn by R_z(t) (t > 0 is clockwise on the screen), and K_crop = A K R_z(-t), so that A (K x) = K_crop (R_z x) without
           approximation. With fx = fy that is one focal length and the principal point turned with the picture; with fx != fy
           small terms appear off the diagonal: project with the whole matrix. Methods that know one focal length only may take
           sqrt(det K[:2,:2]).
Mirrors    A left hand becomes a right one by x -> -x in 3D and by `mirror_matrix` on pixels; K_of_mirror keeps fx > 0.
"""
import torch
from jaxtyping import Float
from torch import Tensor

from utils.precision import full_precision
from utils.rotation import rotation_about_z


@full_precision
def project(points: Float[Tensor, "*#batch n 3"], K: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*#batch n 2"]:
    """Pixels of camera-frame points (metres). Points at or behind the camera (z <= 0) give meaningless pixels: mask them by z."""
    return transform_uv(K, points, homogeneous=True)


@full_precision
def unproject(uv: Float[Tensor, "*#batch n 2"], depth: Float[Tensor, "*#batch n"], K: Float[Tensor, "*#batch 3 3"],
              ) -> Float[Tensor, "*#batch n 3"]:
    """Camera-frame points (metres) whose pixels are `uv` and whose z is `depth`; any invertible K."""
    rays = torch.cat((uv, torch.ones_like(uv[..., :1])), -1) @ torch.linalg.inv(K).transpose(-1, -2)
    return rays * (depth.unsqueeze(-1) / rays[..., 2:])


@full_precision
def transform_uv(B_from_A: Float[Tensor, "*#batch 3 3"], uv: Tensor, homogeneous: bool = False) -> Float[Tensor, "*#batch n 2"]:
    """Pixels (..., n, 2), or homogeneous ones (..., n, 3), of A as pixels of B."""
    mapped = uv @ B_from_A[..., :, :uv.shape[-1]].transpose(-1, -2)
    if not homogeneous:
        mapped = mapped + B_from_A[..., :, 2].unsqueeze(-2)
    return mapped[..., :2] / mapped[..., 2:]


def scale_matrix(scale: Float[Tensor, "*#batch"]) -> Float[Tensor, "*#batch 3 3"]:
    """Resizing a picture by `scale` about its corner: p -> (p + 0.5) scale - 0.5."""
    shift = 0.5 * scale - 0.5
    return _similarity(scale, torch.zeros_like(scale), torch.stack((shift, shift), -1))


@full_precision
def crop_matrix(centre: Float[Tensor, "*#batch 2"], side: Float[Tensor, "*#batch"], pixels: int,
                angle: Float[Tensor, "*#batch"] | float = 0.0) -> Float[Tensor, "*#batch 3 3"]:
    """crop_from_image: the square of `side` image pixels about `centre`, turned by `angle` about it, as `pixels` x `pixels`.

    `centre` maps to ((pixels-1)/2, (pixels-1)/2). `side` must be positive. A positive angle turns the picture clockwise.
    """
    angle = torch.as_tensor(angle, dtype=centre.dtype, device=centre.device).expand(side.shape)
    scale = pixels / side
    a, b = scale * torch.cos(angle), scale * torch.sin(angle)
    x, y = centre.unbind(-1)
    middle = (pixels - 1) / 2
    return _similarity(a, b, torch.stack((middle - a * x + b * y, middle - b * x - a * y), -1))


@full_precision
def K_of_crop(K: Float[Tensor, "*#batch 3 3"], crop_from_image: Float[Tensor, "*#batch 3 3"],
              angle: Float[Tensor, "*#batch"] | float = 0.0) -> Float[Tensor, "*#batch 3 3"]:
    """Intrinsics of a crop whose 3D points have been turned by R_z(angle), `angle` as given to `crop_matrix`: A K R_z(-angle).

    Exact for any K: projecting the turned points gives the transformed pixels. Turn the 3D by `rotation_about_z(angle)`.
    """
    angle = torch.as_tensor(angle, dtype=K.dtype, device=K.device)
    return crop_from_image @ K @ rotation_about_z(-angle)


def mirror_matrix(width: Float[Tensor, "*#batch"] | int, like: Tensor | None = None) -> Float[Tensor, "*#batch 3 3"]:
    """Pixels of the picture of `width` pixels mirrored left to right: u -> width - 1 - u. Dtype and device as `like`."""
    like = torch.zeros(()) if like is None else like
    width = torch.as_tensor(width, dtype=like.dtype, device=like.device)
    zero, one = torch.zeros_like(width), torch.ones_like(width)
    return torch.stack((-one, zero, width - 1, zero, one, zero, zero, zero, one), -1).unflatten(-1, (3, 3))


@full_precision
def K_of_mirror(K: Float[Tensor, "*#batch 3 3"], width: Float[Tensor, "*#batch"] | int) -> Float[Tensor, "*#batch 3 3"]:
    """Intrinsics of the mirrored picture for points mirrored by x -> -x: fx stays positive, the principal point moves."""
    flip = K.new_tensor((-1.0, 1.0, 1.0))
    return mirror_matrix(width, K) @ K * flip


@full_precision
def invert_affine(B_from_A: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*#batch 3 3"]:
    """A_from_B of an affine map of pixels (last row 0,0,1), in closed form."""
    (a, b, u), (c, d, v) = (row.unbind(-1) for row in B_from_A[..., :2, :].unbind(-2))
    det = a * d - b * c
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    entries = (d / det, -b / det, (b * v - d * u) / det, -c / det, a / det, (c * u - a * v) / det, zero, zero, one)
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _similarity(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """[[a, -b, shift_x], [b, a, shift_y], [0, 0, 1]]."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack((a, -b, shift[..., 0], b, a, shift[..., 1], zero, zero, one), -1).unflatten(-1, (3, 3))
