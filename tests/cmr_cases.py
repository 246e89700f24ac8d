"""What the tests of cmr share: formula-made published checkpoints, the goldens' pyramids, small networks, synthetic hands."""
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from idhand_cases import GOLDENS, fill, plain_batch  # it also makes the goldens' folder importable

from src.cmr import Cmr, Options
from utils.batch import Batch
from utils.camera import project
from utils.hand import HandModel
from utils.heatmap import draw_gaussian
from utils.mesh import Pyramid
from utils.pyramid import PyramidOptions, pyramid_of
from utils.render import render

from fill import _rng  # isort: skip

SIZES = (778, 389, 195, 98, 49)
UNUSED = "backbone2.fc."
FREE_HAND = Path(__file__).parent.parent / "template" / "free_hand_right.npz"


def manifest(net: str) -> dict[str, list[int]]:
    """Names and sizes of a published network's tensors."""
    return json.loads((GOLDENS / f"manifest_{net}.json").read_text())


def published(net: str, salt: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of a published network, weights by formula; what is stored and never used is NaN."""
    return {name: torch.full(shape, torch.nan) if name.startswith(UNUSED) else torch.from_numpy(fill(name, shape, salt))
            for name, shape in manifest(net).items()}


def hollow(net: str) -> dict[str, torch.Tensor]:
    """The same names and sizes, each tensor one number spread out, so that the file of it is small."""
    return {name: torch.zeros(1).expand(shape) if shape else torch.zeros(()) for name, shape in manifest(net).items()}


def toy_pyramid() -> Pyramid:
    """The goldens' toy mesh pyramid, as the original made it."""
    with np.load(GOLDENS / "toy_mesh.npz") as stored:
        faces, kept, spirals = ([stored[f"{name}_{level}"].astype(np.int64) for level in range(first, first + count)]
                                for name, first, count in (("face", 0, 5), ("down_keep", 0, 4), ("spiral_L27_d1", 0, 4)))
        columns, weights = [], []
        for level, fine in enumerate(SIZES[:-1]):
            order = np.argsort(stored[f"up_row_{level}"], kind="stable")
            columns.append(stored[f"up_col_{level}"][order].astype(np.int64).reshape(fine, 3))
            weights.append(stored[f"up_val_{level}"][order].reshape(fine, 3))
    return Pyramid(tuple(faces), tuple(kept), tuple(columns), tuple(weights), tuple(spirals))


def formula_pyramid() -> Pyramid:
    """The topology of the DexYCB variant's golden: random tables by formula, no mesh's (spiral and up-sampling tables alone)."""
    spirals, columns, weights = [], [], []
    for level, (fine, coarse) in enumerate(zip(SIZES, SIZES[1:])):
        spirals.append(_rng(f"toy_topology.spiral.{level}", 0).randint(0, fine, (fine, 27)))
        rng = _rng(f"toy_topology.up.{level}", 0)
        columns.append(rng.randint(0, coarse, (fine, 3)))
        values = rng.uniform(0, 1, (fine, 3)).astype(np.float32)
        weights.append(values / values.sum(1, keepdims=True))
    kept = tuple(np.arange(count) for count in SIZES[1:])
    return Pyramid((), kept, tuple(columns), tuple(weights), tuple(spirals))


@cache
def free_hand() -> HandModel:
    return HandModel.load(FREE_HAND)


_FREE: dict[str, Pyramid] = {}


def free_pyramid(folder: Path) -> Pyramid:
    """The free hand's pyramid, made once for all tests of a file."""
    if not _FREE:
        _FREE["pyramid"] = pyramid_of(free_hand(), PyramidOptions(up_weights="barycentric"), folder)
    return _FREE["pyramid"]


def small(pyramid: Pyramid, seed: int = 0, hand: HandModel | None = None, **changes) -> Cmr:
    """A network that a test can train."""
    torch.manual_seed(seed)
    options = Options(**{"width": 0.125, "channels": (8, 8, 16, 16), "up_weights": "barycentric", **changes})
    return Cmr(options, hand or free_hand(), pyramid)


def hands(count: int = 4, pixels: int = 64, seed: int = 0) -> Batch:
    """Free hands of random shape, pose and place with their masks; pictures of three fingertips and the silhouette."""
    hand, generator = free_hand(), torch.Generator().manual_seed(seed)
    shape = torch.randn(count, 10, generator=generator)
    rotations = hand.rotations_from_pose(torch.cat((0.5 * torch.randn(count, 3, generator=generator),
                                                    torch.randn(count, 45, generator=generator)), 1), pca=True, flat_mean=False)
    posed = hand(rotations, shape)
    middle = (posed.verts.amin(1) + posed.verts.amax(1)) / 2
    place = torch.tensor([0.0, 0.0, 0.6]) + 0.02 * torch.randn(count, 3, generator=generator)
    posed = posed.moved(place - middle)
    joints = hand.joints(posed)
    K = torch.tensor([[2.0 * pixels, 0, pixels / 2], [0, 2.0 * pixels, pixels / 2], [0, 0, 1]]).repeat(count, 1, 1)
    uv = project(joints, K)
    mask = (render(posed.verts, hand.faces, K, pixels, pixels).face >= 0).float()
    drawn = draw_gaussian(uv, pixels, pixels, 2.0)
    yes = torch.ones(count, dtype=torch.bool)
    return plain_batch(torch.stack((drawn.amax(1), drawn[:, 4], mask), 1), shape=shape, rotations=rotations, verts=posed.verts,
                       joints=joints, root=joints[:, 0], chain_wrist=joints[:, 0], joints_uv=uv, mask=mask,
                       uv_confidence=torch.ones(count, 21), has_verts=yes, has_root=yes, has_uv=yes, has_mask=yes,
                       has_rotations=yes, has_joints=yes, has_shape=yes)
