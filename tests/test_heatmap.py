"""Heat maps: what is drawn against the original's stored maps, and what is read against what was drawn."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from idhand_cases import GOLDENS

from utils.heatmap import draw_gaussian, draw_published, draw_published_full, inside, read_argmax, read_subcell

CROP = 250  # pixels of the crop in the spec's figure of the original's bias


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "pose2d.npz") as stored:
        return {name: stored[name] for name in stored.files if name.startswith("uv.")}


def interior(count, pixels, margin, seed=0):
    """(1,count,2) places at least `margin` from the crop's edges."""
    return margin + (pixels - 1 - 2 * margin) * torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_published_maps(golden):
    """draw_published against the original's 21 maps: sums and a cut of the full size, and the halved maps whole."""
    uv = torch.from_numpy(golden["uv.uv"])[None].double()
    full = draw_published_full(uv, 224)[0]
    np.testing.assert_allclose(full.sum((1, 2)).numpy(), golden["uv.full_sum"], rtol=1e-12)
    np.testing.assert_allclose(full[3, 90:112, :16].numpy(), golden["uv.full_patch3"], atol=1e-12)
    half = draw_published(uv, 224)[0]
    np.testing.assert_allclose(half.numpy(), golden["uv.half"], atol=1e-6)
    assert half.max() < 0.97 and full.max() == 1 and (half[4] == 0).all()  # joint 4 is outside


def test_published_maps_at_the_borders():
    """CMR's own stamp, nine joints on and beyond the crop's edges, and what arg-max reads of them (golden_registration.npz)."""
    with np.load(GOLDENS / "registration.npz") as stored:
        uv = torch.from_numpy(stored["uv2map.in"])[None].double()
        stamp = draw_published_full(torch.full((1, 1, 2), 30.0).double(), 64)[0, 0, 24:37, 24:37]
        np.testing.assert_allclose(stamp.numpy(), stored["kernel13"], atol=1e-12)
        assert np.array_equal((1e4 * draw_published_full(uv, 224)[0]).round().numpy(), stored["uv2map.full_u8"])
        half = draw_published(uv, 224)
        np.testing.assert_allclose(half[0].amax((1, 2)).numpy(), stored["uv2map.half_max"], atol=1e-12)
        np.testing.assert_allclose(half[0].sum((1, 2)).numpy(), stored["uv2map.half_sum"], atol=1e-10)
        np.testing.assert_allclose(half[0, 2, 45:68, 45:68].numpy(), stored["uv2map.half_2"], atol=1e-12)
        found, peak = read_argmax(half, 224)
        np.testing.assert_array_equal(found[0].numpy(), stored["map2uv.uv"])
        np.testing.assert_allclose(peak[0].numpy(), stored["map2uv.conf"][:, 0], atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(pixels=st.sampled_from([32, 64, 96, 224]), ratio=st.sampled_from([1, 2, 4]), sigma=st.floats(0.8, 3.0),
       x=st.floats(0, 1), y=st.floats(0, 1))
def test_drawn_is_read_back(pixels, ratio, sigma, x, y):
    """read_subcell of draw_gaussian is the joint to 0.001 px anywhere in the crop, for any size of cell and sigma."""
    uv = (torch.tensor([[[x, y]]]).double() * pixels - 0.5).clamp(-0.49, pixels - 0.51)
    found, peak = read_subcell(draw_gaussian(uv, pixels, pixels // ratio, sigma).log(), pixels)
    assert (found - uv).abs().max() < 1e-3
    assert math.exp(-0.25 / sigma**2 - 1e-9) <= peak.item() <= 1  # the worst peak lies half a cell off in x and y


def test_no_bias_also_when_noisy():
    """Over 4000 joints, maps with noise of 0.02 are read with a mean error below 0.02 px, arg-max maps with half a cell's."""
    uv = interior(4000, 64, 6)
    drawn = draw_gaussian(uv, 64, 32, 1.5)
    noisy = (drawn + 0.02 * torch.rand(drawn.shape, generator=torch.Generator().manual_seed(1))).clamp(1e-6, 1)
    found, _ = read_subcell(noisy.log(), 64)
    assert (found - uv).mean((0, 1)).abs().max() < 0.02 and (found - uv).norm(dim=-1).mean() < 0.1
    found, _ = read_argmax(drawn, 64)
    assert torch.allclose((found - uv).mean((0, 1)), torch.full((2,), -0.5).double(), atol=0.05)


def test_published_pair_is_biased():
    """The original's perfect maps, read by its arg-max, lie (-1.1, -1.1) px off, rms 1.3, on a crop of 250 px (spec 6.4)."""
    uv = interior(1200, 224, 10)
    found, _ = read_argmax(draw_published(uv, 224), 224)
    off = (found - uv)[0] * CROP / 224
    assert torch.allclose(off.mean(0), torch.full((2,), -1.1).double(), atol=0.05)
    assert off.square().mean().sqrt().item() == pytest.approx(1.3, abs=0.1)


def test_published_maps_read_without_cell_bias():
    """read_subcell loses only the half pixel of the original's truncation, none of the cell's."""
    uv = interior(1200, 224, 12)
    off = read_subcell(draw_published(uv, 224).clamp(min=1e-12).log(), 224)[0] - uv
    assert torch.allclose(off.mean((0, 1)), torch.full((2,), -0.5).double(), atol=0.05)


def test_outside_is_empty():
    """A joint beyond the crop's outermost pixel edge has an empty map, one just within it does not."""
    uv = torch.tensor([[[-0.6, 5.0], [-0.4, 5.0], [5.0, 63.6], [5.0, 63.4]]])
    assert inside(uv, 64).tolist() == [[False, True, False, True]]
    assert (draw_gaussian(uv, 64, 32, 1.5).flatten(2).amax(2) > 0).tolist() == [[False, True, False, True]]


def test_flat_and_spiked_maps_are_finite():
    """Maps without a peak, or with one cell alone, are read as that cell's centre: finite and inside the crop."""
    flat = torch.full((1, 3, 32, 32), -30.0)
    flat[0, 1, 7, 9] = -0.1
    flat[0, 2] = -torch.inf
    found, peak = read_subcell(flat, 64)
    assert found.isfinite().all() and ((found >= -0.5) & (found <= 63.5)).all()
    assert torch.allclose(found[0, 1], torch.tensor([18.5, 14.5]), atol=1e-3) and peak[0, 1] > 0.9


def test_shift_moves_the_answer():
    """A map rolled by one cell is read one cell further, whatever its form (equivariance)."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(1, 8, 32, 32, generator=generator).double()
    values[:, :, 12, 14] += 1.0
    one, _ = read_subcell(values.log(), 64)
    other, _ = read_subcell(values.roll((1, 1), (2, 3)).log(), 64)
    assert torch.allclose(other - one, torch.full_like(one, 2.0), atol=1e-9)
