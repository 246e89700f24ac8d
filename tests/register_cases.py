"""What tests of the registration share: free hands in a crop of 224 pixels, their noisy joints, maps' readings and masks."""
from typing import NamedTuple

import torch
from solver_cases import free_hand, scene
from torch import Tensor

from utils.camera import K_of_crop, crop_matrix, project
from utils.render import render

SIZE = 224


class Crops(NamedTuple):
    """verts (n,778,3), joints (n,21,3) wrist-relative metres · true (n,3) the wrist · uv (n,21,2), K (n,3,3) of the crop ·
    mask (n,112,112) of 0 and 1. float64."""

    verts: Tensor
    joints: Tensor
    true: Tensor
    uv: Tensor
    K: Tensor
    mask: Tensor


def crops(n: int, seed: int = 0, noise_px: float = 2.0, masks: bool = True, margin: float = 1.3) -> Crops:
    """n hands about 0.7 m away; crops about their joints, `margin` times as large; the mask is drawn at half size."""
    case = scene(n, seed, noise_px=0.0, dtype=torch.float64)
    K = case.seen.K[:, 0]
    uv = project(case.joints, K)
    low, high = uv.amin(1), uv.amax(1)
    matrix = crop_matrix((low + high) / 2, margin * (high - low).amax(1), SIZE)
    K = K_of_crop(K, matrix)
    noise = torch.randn(n, 21, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    seen = project(case.joints, K) + noise_px * noise
    true = case.joints[:, 0]
    mask = torch.zeros(n, SIZE // 2, SIZE // 2, dtype=torch.float64)
    if masks:
        half = torch.tensor([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]], dtype=torch.float64)  # (p + 0.5) / 2 - 0.5
        faces = free_hand(torch.float64).faces
        for i in range(0, n, 32):
            drawn = render(case.verts[i:i + 32], faces, half @ K[i:i + 32], SIZE // 2, SIZE // 2, cull="none")
            mask[i:i + 32] = (drawn.face >= 0).double()
    return Crops(case.verts - true[:, None], case.joints - true[:, None], true, seen, K, mask)

