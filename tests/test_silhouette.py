"""The outline of a mask and its 24 extents (src/silhouette.py): against the original's numbers, and masks without an outline."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.silhouette import ANGLES, contours_of_masks, enlarged, extents, extents_of_masks
from utils.contour import largest_contour

# golden_registration.npz: the mesh, the joints its regressor gives (T21), every case, the heat maps; mask_true as bits.
GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "registration.npz"))
SIZE = 224


def disc(cells: int, x: float, y: float, radius: float) -> torch.Tensor:
    line = torch.arange(cells, dtype=torch.float32)
    return ((line - x).square()[None] + (line - y).square()[:, None] < radius**2).float()


def golden_mask() -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(GOLDEN["mask_true"])).view(1, SIZE, SIZE).float()


def test_golden_extents():
    """Extents of the golden's points against the original's 6 x 4 numbers, read along the rows."""
    found = extents(torch.from_numpy(GOLDEN["find_1Dproj.in"]).double())
    np.testing.assert_allclose(found.numpy(), GOLDEN["find_1Dproj.out"].ravel(), atol=1e-12)


def test_golden_contour():
    """The contour of the golden's mask is the original's polygon, point for point, and its extents are the polygon's."""
    (found,) = contours_of_masks(golden_mask(), SIZE)
    np.testing.assert_array_equal(found, GOLDEN["noise_poly.poly"][0])
    values, has = extents_of_masks(golden_mask(), SIZE)
    assert has.tolist() == [True] and values.dtype == torch.float64
    np.testing.assert_allclose(values[0].numpy(), extents(torch.from_numpy(found).double()).numpy(), atol=1e-12)


def test_batch_is_rows():
    """Extents of a batch with empty masks in it against those of each mask alone."""
    masks = torch.stack([disc(112, 40, 60, 12), torch.zeros(112, 112), disc(112, 80, 30, 25), torch.zeros(112, 112)])
    values, has = extents_of_masks(masks, SIZE)
    assert has.tolist() == [True, False, True, False] and (values[~has] == 0).all()
    for mask, row in zip(masks, values):
        assert torch.equal(extents_of_masks(mask[None], SIZE)[0][0], row)


def test_disc():
    """All extents of a disc lie its radius from its centre, to a cell of the map, in pixels of the crop."""
    values, _ = extents_of_masks(disc(112, 50, 60, 20)[None], SIZE)
    middle = torch.tensor([100.5, 120.5]).double()  # cell 50 covers pixels 100 and 101
    angles = torch.tensor(ANGLES).double().deg2rad()
    along = middle[0] * angles.cos() + middle[1] * angles.sin()
    low, high = values[0].view(12, 2).unbind(1)
    assert ((along - low - 40).abs() < 1.6).all() and ((high - along - 40).abs() < 1.6).all()


def test_largest_outline():
    """Of two discs, one with a hole, the larger outer contour alone counts: extents with and without the other are equal."""
    large, small = disc(112, 70, 60, 20) - disc(112, 70, 60, 8), disc(112, 15, 15, 6)
    both, has = extents_of_masks(torch.stack((large + small, large, disc(112, 70, 60, 20))), SIZE)
    assert has.all() and torch.equal(both[0], both[1]) and torch.equal(both[0], both[2])


def test_nothing_to_outline():
    """No contour of an empty mask, one below the threshold, a pixel, a line, or numbers that are none; and no rows at all."""
    line = torch.zeros(224, 224)
    line[100, 20:60] = 1
    pixel = torch.zeros(224, 224)
    pixel[5, 5] = 1
    masks = torch.stack((torch.zeros(224, 224), torch.full((224, 224), 0.3), pixel, line, torch.full((224, 224), torch.nan)))
    assert not extents_of_masks(masks, SIZE)[1].any()
    values, has = extents_of_masks(torch.zeros(0, 112, 112), SIZE)
    assert values.shape == (0, 24) and has.shape == (0,)


def test_threshold():
    """Probabilities of 0.2 are outside by default and inside at a threshold of 0.1."""
    mask = 0.2 * disc(112, 50, 50, 20)[None]
    assert not extents_of_masks(mask, SIZE)[1].any() and extents_of_masks(mask, SIZE, threshold=0.1)[1].all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), cells=st.sampled_from([14, 56, 100, 112]))
def test_enlarged(seed, cells):
    """Enlarging is bilinear interpolation of zeros and ones by the half-pixel rule, cut at one half; doubling, the original's."""
    probability = torch.rand(1, cells, cells, generator=torch.Generator().manual_seed(seed))
    drawn = probability > 0.3
    smooth = torch.nn.functional.interpolate(drawn.double()[:, None], size=SIZE, mode="bilinear")[:, 0]
    found = enlarged(probability, SIZE)
    sure = (smooth - 0.5).abs() > 0.005  # of 255 levels
    assert torch.equal(found[sure], (smooth >= 0.5)[sure]) and sure.float().mean() > 0.8
    if cells == 112:
        assert np.array_equal(found[0].numpy(), cv2.resize(drawn[0].numpy().astype(np.uint8), (SIZE, SIZE)))


def test_extents_have_a_gradient():
    """The gradient of an extent falls on its outermost point alone, along the axis."""
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    extents(points)[1].backward()  # the greatest x
    assert points.grad.nonzero().tolist() == [[int(points[:, 0].argmax()), 0]]


def test_contour_is_points():
    """A filled rectangle's outline is its four corners, (x, y)."""
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 10:25] = 1
    assert sorted(map(tuple, largest_contour(mask).tolist())) == pytest.approx([(10, 4), (10, 8), (24, 4), (24, 8)])
