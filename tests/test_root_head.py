"""The wrist's position from a feature and the hand's own size: what must hold whatever the weights are."""
from dataclasses import replace

import pytest
import torch
from idhand_cases import random_batch, small_method

from src.root_head import angular_size, hand_length, root_loss, root_of
from utils.camera import K_of_crop, crop_matrix, project
from utils.hand import HandModel


@pytest.fixture(scope="module")
def hand():
    return HandModel.load("template/free_hand_right.npz")


def right_answer(hand, batch):
    """The head's answer that gives the true position with the true shape, from the definition of its three numbers."""
    place = (project(batch.root[:, None], batch.K)[:, 0] + 0.5) * (2 / batch.image.shape[-1]) - 1
    ratio = torch.log(batch.root[:, 2] * angular_size(batch) / hand_length(hand, batch.shape))
    return torch.cat((place, ratio[:, None]), 1)


def test_right_answer_gives_the_true_root(hand):
    """The answer built from the truth decodes to the true root and costs nothing."""
    batch = random_batch(hand)
    answer = right_answer(hand, batch)
    torch.testing.assert_close(root_of(answer, batch.shape, hand, batch), batch.root, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(root_loss(answer, hand, batch), torch.zeros(4), atol=1e-5, rtol=0)


def test_depth_goes_with_the_length_of_the_hand(hand):
    """Under another shape the wrist stays on its ray, and its depth changes as the flat hand's length."""
    batch = random_batch(hand)
    answer, other = right_answer(hand, batch), batch.shape + 1
    moved = root_of(answer, other, hand, batch)
    factor = hand_length(hand, other) / hand_length(hand, batch.shape)
    torch.testing.assert_close(moved, batch.root * factor[:, None], atol=1e-6, rtol=1e-5)


def test_zoom_is_compensated(hand):
    """A crop twice as wide of the same picture, with the answer that means the same, gives the same position."""
    batch = random_batch(hand)
    size = batch.image.shape[-1]
    crop = crop_matrix(torch.tensor([[14.0, 17.0]]).expand(4, 2), torch.full((4,), 2.0 * size), size)
    wide = replace(batch, K=K_of_crop(batch.K, crop))
    torch.testing.assert_close(angular_size(wide), 2 * angular_size(batch))
    torch.testing.assert_close(root_of(right_answer(hand, wide), batch.shape, hand, wide), batch.root, atol=1e-6, rtol=1e-5)


def test_learns_one_batch(hand):
    """On four samples the term falls below a tenth, and the decoded position, under the shape told, follows within 50 mm."""
    batch = random_batch(hand)
    method = small_method(hand, shape="given", root_head=True)
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    terms = []
    for _ in range(150):
        terms.append(method.losses(method(batch), batch)["root"].mean())
        optimizer.zero_grad()
        terms[-1].backward()
        optimizer.step()
    assert terms[-1] < terms[0] / 10
    answer = method.decode(method(batch), batch)
    assert (answer.root - batch.root).norm(dim=-1).max() < 0.05
