"""Spiral convolutions and the mesh decoder against the original's stored modules, and against the plain way of doing it.

goldens/spiral_modules.npz: golden_modules.npz' arrays of SpiralConv, up-sampling and ISM block, whole; tables are toy_mesh.npz'.
"""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cmr_cases import toy_pyramid  # makes the goldens' folder importable
from fill import fill_module, uniform
from idhand_cases import GOLDENS
from torch import Tensor, nn

from src.spiral import MeshDecoder, RowSums, SpiralBlock, SpiralConv, select_levels, up_sample
from utils.errors import InputError
from utils.mesh import Pyramid

SIZES = (31, 17, 9, 6)
CHANNELS = (4, 8, 12)
FEATURES = 5


def random_pyramid(seed: int = 0, length: int = 9, sizes: tuple[int, ...] = SIZES) -> Pyramid:
    """Random tables of no mesh: repeated columns, zero weights, spirals that pass a vertex twice, vertices that none passes."""
    rng = np.random.RandomState(seed)
    fine = list(zip(sizes, sizes[1:]))
    columns = [rng.randint(0, c, (n, 3)) for n, c in fine]
    weights = [rng.uniform(-1, 2, (n, 3)).astype(np.float32) * (rng.uniform(size=(n, 3)) < 0.6) for n, _ in fine]
    for table in columns:
        table[::2, 1] = table[::2, 0]
    return Pyramid((), tuple(np.sort(rng.permutation(n)[:c]) for n, c in fine), tuple(columns), tuple(weights),
                   tuple(rng.randint(0, n - 1, (n, length)) for n, _ in fine))


def tables(pyramid: Pyramid, level: int) -> list[Tensor]:
    return [torch.from_numpy(part[level]) for part in (pyramid.spirals, pyramid.columns, pyramid.weights)]


def plain_block(block: SpiralBlock, x: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """The definition, step by step: up-sample, gather for each of the four convolutions, multiply."""
    x = up_sample(x, columns, weights)
    return F.relu(block.conv1(x) + torch.cat((block.conv(x), block.conv_2d3(x), block.conv_d3(x)), -1))


def plain_decoder(decoder: MeshDecoder, pyramid: Pyramid, latent: Tensor) -> list[Tensor]:
    """The definition of the decoder, vertices second."""
    x, meshes = decoder.start(latent).view(len(latent), decoder.coarsest, -1), []
    for level, block, head in zip(reversed(range(len(decoder.heads))), decoder.blocks, decoder.heads):
        _, columns, weights = tables(pyramid, level)
        x = plain_block(block, x, columns, weights)
        mesh = head(x)
        meshes.insert(0, (mesh + up_sample(meshes[0], columns, weights)) / 2 if meshes else mesh)
        x = torch.cat((x, meshes[0]), -1)
    return meshes


def seeded_decoder(pyramid: Pyramid, dtype: torch.dtype = torch.float64) -> MeshDecoder:
    """With biases that are not zero, as after training."""
    torch.manual_seed(0)
    decoder = MeshDecoder(FEATURES, CHANNELS, pyramid)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return decoder.to(dtype)


def latent_of(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, FEATURES, generator=torch.Generator().manual_seed(1)).to(dtype)


def off(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_golden_modules(dtype: torch.dtype):
    """SpiralConv with and without a batch, up-sampling and the ISM block against the original's outputs, on its weights."""
    pyramid, golden = toy_pyramid(), np.load(GOLDENS / "spiral_modules.npz")
    x = torch.from_numpy(uniform("input.spiral", (2, 98, 5), -1, 1, 0)).to(dtype)
    conv = SpiralConv(5, 7, torch.from_numpy(np.load(GOLDENS / "toy_mesh.npz")["spiral_L9_d1_3"].astype(np.int64)))
    block = SpiralBlock(5, 8, *tables(pyramid, 2), 98)
    for module in (conv, block):
        fill_module(module)
        module.to(dtype)
    _, columns, weights = tables(pyramid, 2)
    for name, ours in (("spiralconv_3d", conv(x)), ("spiralconv_2d", conv(x[0])), ("pool", up_sample(x, columns, weights)),
                       ("parallel_deblock", block(x))):
        assert ours.shape == golden[name].shape and ours.dtype == dtype
        assert off(ours, torch.from_numpy(golden[name]).to(dtype)) < 1e-6, name


@pytest.mark.parametrize("seed", range(4))
def test_row_sums_are_a_matrix(seed: int):
    """RowSums and its way back against the dense matrix of its entries and the transpose, in autograd too."""
    rng = np.random.RandomState(seed)
    columns, weights = torch.from_numpy(rng.randint(0, 5, (7, 3))), torch.from_numpy(rng.randn(7, 3) * (rng.rand(7, 3) < 0.7))
    dense = torch.zeros(7, 6, dtype=torch.float64)
    dense.index_put_((torch.arange(7)[:, None], columns), weights, accumulate=True)
    sums, x, grad = RowSums(columns, weights, 6), torch.randn(6, 4).double().requires_grad_(), torch.randn(7, 4).double()
    out = sums(x)
    assert torch.allclose(out, dense @ x, atol=1e-14)
    assert torch.allclose(torch.autograd.grad(out, x, grad)[0], dense.T @ grad, atol=1e-14)
    assert torch.allclose(up_sample(x, columns, weights), dense @ x, atol=1e-14)


@pytest.mark.parametrize("length", [3, 9, 10, 27])
@pytest.mark.parametrize("batch", [1, 3])
def test_decoder_is_its_definition(length: int, batch: int):
    """Meshes and all gradients against up-sampling, gathering and multiplying one after the other, on random topologies."""
    pyramid = random_pyramid(length, length)
    decoder, latent = seeded_decoder(pyramid), latent_of(batch).requires_grad_()
    ours, theirs = decoder(latent), plain_decoder(decoder, pyramid, latent)
    assert [tuple(mesh.shape) for mesh in ours] == [(batch, size, 3) for size in SIZES[:-1]]
    wanted = [latent, *decoder.parameters()]
    grads = [torch.autograd.grad(sum(mesh.sin().sum() for mesh in meshes), wanted) for meshes in (ours, theirs)]
    for one, other in zip((*ours, *grads[0]), (*theirs, *grads[1])):
        assert off(one, other) < 1e-12


def test_block_is_its_definition():
    """An ISM block alone, batch first, against the plain one, gradient of its input included."""
    spirals, columns, weights = tables(random_pyramid(5), 0)
    block = SpiralBlock(6, 8, spirals, columns, weights, SIZES[1]).double()
    x = torch.randn(2, SIZES[1], 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = block(x), plain_block(block, x, columns, weights)
    assert off(ours, theirs) < 1e-12
    assert off(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs))) < 1e-12


def test_gradients():
    """The hand-written ways back against finite differences, for the feature and every parameter."""
    decoder = MeshDecoder(3, (4, 4), random_pyramid(1, 4, (7, 5, 3))).double()
    names = [name for name, _ in decoder.named_parameters()]

    def run(latent: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.functional_call(decoder, dict(zip(names, parameters)), (latent,)))

    values = [torch.randn_like(p).requires_grad_() for p in decoder.parameters()]
    assert torch.autograd.gradcheck(run, (torch.randn(2, 3, dtype=torch.float64, requires_grad=True), *values))


def test_autocast():
    """Under bfloat16 autocast meshes stay float32 and, with their gradients, near those of float32."""
    decoder, latent = seeded_decoder(random_pyramid(), torch.float32), latent_of(4, torch.float32)
    whole = decoder(latent)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = decoder(latent)
    grads = [torch.autograd.grad(sum(mesh.square().sum() for mesh in meshes), list(decoder.parameters()))
             for meshes in (whole, narrow)]
    for one, other in zip((*narrow, *grads[1]), (*whole, *grads[0])):
        assert one.dtype == torch.float32
        assert 0 < off(one, other) < 0.05


def test_half_weights():
    """A decoder turned to bfloat16 as a whole runs, and makes about the meshes of float32."""
    decoder, latent = seeded_decoder(random_pyramid(), torch.float32), latent_of(2, torch.float32)
    whole, narrow = decoder(latent), copy.deepcopy(decoder).bfloat16()(latent.bfloat16())
    for one, other in zip(narrow, whole):
        assert one.dtype == torch.bfloat16 and off(one.float(), other) < 0.1


@torch.no_grad()
def test_rows_do_not_see_each_other():
    """A permuted batch gives permuted meshes, and a row of it alone its own."""
    decoder, latent = seeded_decoder(random_pyramid()), latent_of(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    for mesh, moved, alone in zip(decoder(latent), decoder(latent[order]), decoder(latent[2:3])):
        assert torch.allclose(moved, mesh[order], rtol=0, atol=1e-14)
        assert torch.allclose(alone, mesh[2:3], rtol=0, atol=1e-14)


def test_inference_and_copies():
    """Inference mode, a deep copy and a decoder built anew from the state dict make the same meshes, bit for bit."""
    pyramid = random_pyramid()
    decoder, latent = seeded_decoder(pyramid, torch.float32), latent_of(3, torch.float32)
    again = MeshDecoder(FEATURES, CHANNELS, pyramid)
    again.load_state_dict(decoder.state_dict())
    with torch.inference_mode():
        inferred = decoder(latent)
    for meshes in (inferred, copy.deepcopy(decoder)(latent), again(latent)):
        assert all(torch.equal(one, other) for one, other in zip(meshes, decoder(latent)))


def test_state_dict():
    """A checkpoint holds the layers' weights and biases, and no table; fresh ones are Xavier's and zero."""
    decoder = MeshDecoder(FEATURES, CHANNELS, random_pyramid())
    parts = [f"blocks.{n}.{part}.layer" for n in range(3) for part in ("conv", "conv_2d3", "conv_d3", "conv1")]
    layers = ["start", *parts, *(f"heads.{n}.layer" for n in range(3))]
    state = decoder.state_dict()
    assert set(state) == {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
    assert state["blocks.0.conv.layer.weight"].shape == (6, 9 * 12)
    assert state["blocks.1.conv_2d3.layer.weight"].shape == (2, 6 * 15)
    for name, value in state.items():
        if name.endswith("bias"):
            assert not value.any()
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.8 * bound < value.abs().max() <= bound, name


def test_levels():
    """Coarse true meshes are the vertices that decimation kept, by the toy mesh pyramid."""
    pyramid = toy_pyramid()
    verts = torch.from_numpy(np.load(GOLDENS / "toy_mesh.npz")["vertices_0"])[None]
    levels = MeshDecoder(FEATURES, (4, 4, 4, 4), pyramid).levels(verts)
    assert [mesh.shape[1] for mesh in levels] == [778, 389, 195, 98]
    assert torch.equal(levels[3], verts[:, pyramid.kept[0][pyramid.kept[1][pyramid.kept[2]]]])
    assert all(torch.equal(one, other) for one, other in zip(levels, select_levels(verts, [
        torch.from_numpy(kept) for kept in pyramid.kept[:3]])))


def test_too_many_levels():
    """Channels for more levels than the pyramid has are refused in one line that says how many it has."""
    with pytest.raises(InputError, match="4 levels .*has 3: give one per level"):
        MeshDecoder(FEATURES, (4, 4, 4, 4), random_pyramid())
