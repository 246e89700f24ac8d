"""utils/depth.py: depth pictures read, and the planes that vertices should move to, on rendered hands."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fit_cases import HAND, HEIGHT, WIDTH, K, write_depth

from utils.depth import DepthSurface, read_depth
from utils.errors import InputError
from utils.hand import HandModel

MODEL = HandModel(HAND.arrays, torch.float64)
CAMERA = torch.from_numpy(K)
SURFACE = DepthSurface(MODEL, 0.0015, 1.0)


def hand_at(x: float = 0.0, y: float = 0.0, z: float = 0.6) -> torch.Tensor:
    """The flat hand (778,3), palm or back to the camera."""
    verts = MODEL.rest_verts(torch.zeros(10, dtype=torch.float64))
    verts = (verts - verts.mean(0))[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    return verts + torch.tensor([x, y, z], dtype=torch.float64)


def picture(tmp_path: Path, verts: torch.Tensor, mirrored: bool = False) -> torch.Tensor:
    write_depth(tmp_path / "d.png", verts, mirrored)
    return read_depth(tmp_path / "d.png", mirrored).double()


def test_reading(tmp_path: Path):
    """Millimetres come back as metres, and mirrored as asked."""
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    cv2.imwrite(str(tmp_path / "d.png"), values)
    assert np.allclose(read_depth(tmp_path / "d.png").numpy(), values / 1000)
    assert np.allclose(read_depth(tmp_path / "d.png", mirrored=True).numpy(), values[:, ::-1] / 1000)


@pytest.mark.parametrize(("content", "line"), [
    (None, "expected a depth picture, found nothing to read"),
    (b"", "expected a PNG of depths, found a file that cannot be decoded"),
    (b"\x89PNG broken", "expected a PNG of depths, found a file that cannot be decoded"),
    (np.zeros((4, 4, 3), np.uint8), r"expected one channel of 16-bit millimetres, found \(4, 4, 3\) uint8"),
    (np.zeros((4, 4), np.uint8), r"expected one channel of 16-bit millimetres, found \(4, 4\) uint8"),
])
def test_refused_pictures(tmp_path: Path, content, line: str):
    """Missing, broken, and a colour picture in place of depth: one line that names the file."""
    path = tmp_path / "aligned.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        cv2.imwrite(str(path), content)
    with pytest.raises(InputError, match=f"aligned.png: {line}") as caught:
        read_depth(path)
    assert "\n" not in str(caught.value)


def test_a_fitted_mesh_stays(tmp_path: Path):
    """A mesh where the picture has it: explained whole, no gap, and planes through the vertices themselves."""
    verts = hand_at()
    depth = picture(tmp_path, verts)
    assert SURFACE.explained(depth, verts, CAMERA) > 0.99 and abs(SURFACE.gap(depth, verts, CAMERA)) < 0.001
    planes, weight = SURFACE.planes(depth, verts, CAMERA, rough=False)
    used = weight > 0
    off = ((planes[:, :3] * verts).sum(1) - planes[:, 3])[used]
    assert used.sum() > 250 and off.abs().mean() < 0.0006 and off.mean().abs() < 0.0003
    assert (planes[used, :3].norm(dim=1) - 1).abs().max() < 0.1


@pytest.mark.parametrize(("move", "axis"), [((0.004, 0, 0), 0), ((0, -0.004, 0), 1), ((0, 0, 0.005), 2)])
def test_planes_point_to_a_moved_hand(tmp_path: Path, move: tuple[float, ...], axis: int):
    """The translation that brings a displaced mesh nearest to its planes is the displacement, along and across the view."""
    verts = hand_at()
    depth = picture(tmp_path, verts + torch.tensor(move, dtype=torch.float64))
    start, moved = verts, torch.zeros(3, dtype=torch.float64)
    for count in range(6):
        planes, weight = SURFACE.planes(depth, start + moved, CAMERA, rough=count < 2)
        root = weight.sqrt()[:, None]
        right = planes[:, 3] - (planes[:, :3] * (start + moved)).sum(1)
        moved = moved + torch.linalg.lstsq(planes[:, :3] * root, right[:, None] * root).solution[:, 0]
    assert torch.allclose(moved, torch.tensor(move, dtype=torch.float64), atol=7e-4)
    assert abs(float(moved[axis])) > 0.003


def test_gap_finds_a_hand_that_is_far_off(tmp_path: Path):
    """A mesh 4 cm too near, of the right outlines, is told so; a box that hides a third of the hand changes that little, and is
    not explained."""
    verts = hand_at()
    depth = picture(tmp_path, verts)
    near = verts * (0.56 / 0.6)
    assert SURFACE.gap(depth, near, CAMERA) == pytest.approx(0.04, abs=0.004)
    depth[:, :int(0.45 * WIDTH)] = 0.4
    assert SURFACE.gap(depth, near, CAMERA) == pytest.approx(0.04, abs=0.005)
    assert 0.3 < SURFACE.explained(depth, verts, CAMERA) < 0.85


def test_nothing_seen(tmp_path: Path):
    """No depth at all, a mesh behind the camera, or beside the picture: no planes, no gap, nothing explained."""
    empty = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    wall = torch.full((HEIGHT, WIDTH), 0.6, dtype=torch.float64)
    for depth, verts in ((empty, hand_at()), (wall, hand_at(z=-0.6)), (wall, hand_at(x=2.0))):
        assert not SURFACE.planes(depth, verts, CAMERA, rough=True)[1].any()
        assert SURFACE.gap(depth, verts, CAMERA) == 0 and SURFACE.explained(depth, verts, CAMERA) == 0
