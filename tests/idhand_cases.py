"""What the tests of idhand and convert share: formula-made published checkpoints, the toy hand, small batches."""
import json
import sys
from pathlib import Path

import numpy as np
import torch

from src.idhand import SCALE_M, IdHand, Options
from utils.batch import Batch
from utils.hand import HandModel
from utils.mano_file import HandArrays

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS))
from fill import fill, uniform  # noqa: E402
from toy_mano import toy_mano  # noqa: E402

NETS = {"baseline": "idhand_baseline", "ours": "idhand_given", "conf": "idhand_conf"}
CONSTANT = ("th_", "j_regressor", "mano_layer.")


def toy_hand(dtype: torch.dtype = torch.float32) -> HandModel:
    """The toy MANO with its arrays rounded to float32, as the originals held them."""
    keys = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean", "hands_components")
    arrays = toy_mano()
    return HandModel(HandArrays(f=arrays["f"], name="toy", **{key: arrays[key].astype(np.float32) for key in keys}), dtype)


def published(net: str, salt: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of a published network: weights by formula, MANO's arrays (which must not be read) as NaN."""
    manifest = json.loads((GOLDENS / f"manifest_{net}.json").read_text())
    return {name: torch.full(shape, torch.nan) if name.startswith(CONSTANT) else torch.from_numpy(fill(name, shape, salt))
            for name, shape in manifest.items()}


def given(name: str, *shape: int, low: float = -1.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Formula input `input.<name>`; the same for every salt."""
    return torch.from_numpy(uniform(f"input.{name}", shape, low, high)).to(dtype)


def golden_batch(hand: HandModel, gt_mesh: torch.Tensor, dtype: torch.dtype) -> Batch:
    """The goldens' two samples; their truth stands at MANO's translation point, so the wrist is at J0(shape)."""
    shape = given("gt_shape", 2, 10, low=-2, high=2, dtype=dtype)
    pose = given("gt_pose", 2, 48, low=-0.5, high=0.5, dtype=dtype)
    return plain_batch((given("image", 2, 3, 224, 224, dtype=dtype) + 1) / 2, shape=shape, verts=gt_mesh.to(dtype) * SCALE_M,
                       root=hand.shaped(shape).rest_joints[:, 0], rotations=hand.rotations_from_pose(pose, True, False),
                       identity=given("shape", 2, 10, low=-2, high=2, dtype=dtype))


def plain_batch(image: torch.Tensor, **fields: torch.Tensor) -> Batch:
    """A batch of `image` with a plausible camera and whatever fields are given."""
    b, size = len(image), image.shape[-1]
    K = torch.tensor([[2.0 * size, 0, size / 2], [0, 2.0 * size, size / 2], [0, 0, 1]], dtype=image.dtype).repeat(b, 1, 1)
    return Batch(image=image, K=K, crop_from_image=torch.eye(3, dtype=image.dtype).repeat(b, 1, 1), index=torch.arange(b),
                 mirrored=torch.zeros(b, dtype=torch.bool), subject=torch.zeros(b, dtype=torch.long), **fields)


def random_batch(hand: HandModel, count: int = 4, pixels: int = 32, seed: int = 0) -> Batch:
    """Noise pictures with true hands of random shape, pose and place."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randn(count, 10, generator=generator)
    rotations = hand.rotations_from_pose(0.3 * torch.randn(count, 48, generator=generator), pca=True, flat_mean=False)
    trans = torch.tensor([0.0, 0.0, 0.7]) + 0.1 * torch.randn(count, 3, generator=generator)
    posed = hand(rotations, shape).moved(trans)
    return plain_batch(torch.rand(count, 3, pixels, pixels, generator=generator), shape=shape, identity=shape, verts=posed.verts,
                       rotations=rotations, root=posed.chain[:, 0], joints=hand.joints(posed))


def small(**changes) -> Options:
    """Options of a network that a test can train."""
    return Options(**{"backbone": "resnet18", "width": 0.25, "feature": "flat", "cells": 1, "hidden": (64, 32), **changes})


def small_method(hand: HandModel, seed: int = 0, **changes) -> IdHand:
    torch.manual_seed(seed)
    return IdHand(small(**changes), hand)
