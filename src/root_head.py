"""Where the wrist is in the camera, predicted from an image feature and the hand's own size.

depth = length(shape) / (angular size of the crop) * exp(ratio): the crop's angular size is known, the length of the hand follows
from its shape (predicted, or told), and what a network must see is only the ratio that pose and crop make between the two. So the
same head gives a metric position under every identity. After the depth factor of RootNet (Moon et al., ICCV 2019), whose
size is a constant; here it is the person's.
"""
import torch
from torch import Tensor, nn

from utils.batch import Batch
from utils.camera import project, unproject
from utils.hand import HandModel
from utils.precision import full_precision

MIDDLE_TIP = 2  # of the five tips


class RootHead(nn.Module):
    """(b,f) feature -> (b,3): the wrist's place in the crop, (-1, 1) from edge to edge, and the logarithm of the ratio."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, feature: Tensor) -> Tensor:
        return self.layers(feature)


@full_precision
def hand_length(hand: HandModel, shape: Tensor) -> Tensor:
    """(b) metres from the wrist joint to the middle fingertip of the flat hand."""
    rest = hand.shaped(shape)
    return (rest.rest_verts[..., hand.tips["manopth"][MIDDLE_TIP], :] - rest.rest_joints[..., 0, :]).norm(dim=-1)


@full_precision
def root_of(answer: Tensor, shape: Tensor, hand: HandModel, batch: Batch) -> Tensor:
    """(b,3) wrist in the camera, metres, of a RootHead's answer (b,3) for hands of `shape` (b,10)."""
    pixels = batch.image.shape[-1]
    uv = (answer[:, :2] + 1) * (pixels / 2) - 0.5
    depth = hand_length(hand, shape) / angular_size(batch) * torch.exp(answer[:, 2])
    return unproject(uv[:, None], depth[:, None], batch.K)[:, 0]


@full_precision
def root_loss(answer: Tensor, hand: HandModel, batch: Batch) -> Tensor:
    """(b) mean absolute error of the wrist's place, in half crops, and of log(depth) for a hand of the true shape."""
    pixels = batch.image.shape[-1]
    place = (project(batch.root[:, None], batch.K)[:, 0] + 0.5) * (2 / pixels) - 1
    ratio = torch.log(batch.root[:, 2] * angular_size(batch) / hand_length(hand, batch.shape))
    return (answer[:, :2] - place).abs().mean(1) + (answer[:, 2] - ratio).abs()


def angular_size(batch: Batch) -> Tensor:
    """(b) side of the crop over the focal length."""
    return batch.image.shape[-1] / torch.linalg.det(batch.K[:, :2, :2]).sqrt()
