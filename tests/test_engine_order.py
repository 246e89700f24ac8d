"""Order of samples and learning rate: arithmetic in the step, against torch's own schedules."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.engine import TrainOptions
from src.order import Order, mixed_seed
from src.schedule import lr_factor

QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(count=st.integers(1, 60), share=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(count, share, seed):
    """The steps of an epoch ask for distinct samples, all but less than a batch of them; two epochs differ in order."""
    order = Order(count, min(share, count), seed)
    steps = order.steps_per_epoch
    for epoch in (0, 3):
        keys = [key for step in range(epoch * steps, (epoch + 1) * steps) for key in order.keys(step)]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == len(keys) > count - order.batch and all(0 <= i < count for _, i in keys)


@QUICK
@given(st.lists(st.integers(0, 200), min_size=1, max_size=8), st.integers(0, 100))
def test_order_has_no_memory(steps, seed):
    """A step's samples are the same from a fresh object and after any other steps."""
    used = Order(20, 4, seed)
    for step in steps:
        assert used.keys(step) == Order(20, 4, seed).keys(step)


@pytest.mark.parametrize("processes, parts", [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_shares_make_up_the_batch(processes, parts):
    """Over processes and parts, the shares of a step are its batch, each sample once, for every step asked."""
    order = Order(50, 8, 1)
    shares = [list(order.shares(3, 9, rank, processes, parts)) for rank in range(processes)]
    for n, step in enumerate(range(3, 9)):
        mine = [key for part in range(parts) for rank in range(processes) for key in shares[rank][n * parts + part]]
        assert mine == order.keys(step)


def test_orders_of_other_seeds_differ():
    """Seed and epoch both decide the order."""
    firsts = {tuple(i for _, i in Order(100, 100, seed).keys(epoch)) for seed in range(5) for epoch in range(5)}
    assert len(firsts) == 25
    assert len({mixed_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64


def torch_rates(schedule, optimizer, units):
    rates = []
    for _ in range(units):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def optimizer(lr=1e-4):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_multistep_is_torchs():
    """The published schedule (16 epochs, milestones 5 and 10) by epoch, and one by step, against MultiStepLR."""
    by_epoch = TrainOptions(epochs=16, schedule="multistep", milestones=[5, 10])
    sgd = optimizer()
    expected = torch_rates(torch.optim.lr_scheduler.MultiStepLR(sgd, [5, 10], 0.1), sgd, 16)
    assert [1e-4 * lr_factor(by_epoch, step, 7) for step in range(16 * 7)] == pytest.approx(
        [rate for rate in expected for _ in range(7)], rel=1e-12)
    assert expected[4] == 1e-4 and expected[5] == pytest.approx(1e-5) and expected[15] == pytest.approx(1e-6)
    by_step = TrainOptions(steps=40, schedule="multistep", milestones=[3, 20], gamma=0.5)
    sgd = optimizer(1.0)
    assert [lr_factor(by_step, step, 7) for step in range(40)] == pytest.approx(
        torch_rates(torch.optim.lr_scheduler.MultiStepLR(sgd, [3, 20], 0.5), sgd, 40))


@pytest.mark.parametrize("per, unit", [("epoch", 5), ("step", 1)])
def test_cosine_is_torchs(per, unit):
    """Cosine by epoch (as SAR's) and by step against CosineAnnealingLR."""
    options = TrainOptions(epochs=10, schedule="cosine", lr_per=per, lr_end=0.1)
    sgd = optimizer(1.0)
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 50 // unit, eta_min=0.1), sgd, 50 // unit)
    assert [lr_factor(options, step, 5) for step in range(50)] == pytest.approx(
        [rate for rate in expected for _ in range(unit)], abs=1e-12)


def test_warm_up_then_cosine():
    """A straight rise to lr, then a fall that begins there and ends at lr_end after the last step."""
    options = TrainOptions(steps=100, schedule="cosine", warmup=10, lr_end=0.02)
    factors = [lr_factor(options, step, 7) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1 and all(a > b for a, b in zip(factors[10:], factors[11:]))
    assert factors[100] == pytest.approx(0.02)


def test_constant_with_warm_up():
    """constant: 1 after the warm-up."""
    options = TrainOptions(steps=9, warmup=4)
    assert [lr_factor(options, step, 3) for step in range(9)] == [0.25, 0.5, 0.75] + [1] * 6
