from itertools import pairwise

import pytest
import torch

from tdsm.training import steps
from tdsm.training.steps import Order, warmup_cosine


@pytest.mark.parametrize("keeps_rest", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (12, 4), (5, 5), (7, 1)])
def test_an_epoch_takes_no_sample_twice_and_drops_less_than_a_batch(count, batch_size, keeps_rest):
    order = Order(count, batch_size, seed=0, keeps_rest=keeps_rest)
    orders = []
    for epoch in range(3):
        drawn = [order(epoch * order.per_epoch + i) for i in range(order.per_epoch)]
        assert {number for _, number in drawn} == {epoch}
        assert [len(taken) for taken, _ in drawn] == [order.size(i) for i in range(order.per_epoch)]
        taken = torch.cat([indices for indices, _ in drawn]).tolist()
        assert len(set(taken)) == len(taken) == (count if keeps_rest else count // batch_size * batch_size)
        assert set(taken) <= set(range(count))
        orders.append(taken)
    assert len({tuple(taken) for taken in orders}) == 3
    assert Order(count, batch_size, seed=1)(0)[0].tolist() != orders[0][:batch_size] or batch_size == 1


def test_a_step_does_not_depend_on_those_asked_for_before():
    order = Order(10, 4, seed=0)
    for step in (5, 0, 3, 2, 5):
        assert torch.equal(order(step)[0], Order(10, 4, seed=0)(step)[0])


def test_an_epoch_is_drawn_once(monkeypatch):
    drawn, whole = [], torch.randperm
    monkeypatch.setattr(steps.torch, "randperm", lambda *given, **options: drawn.append(1) or whole(*given, **options))
    order = Order(1000, 10, seed=0)
    for step in range(250):
        order(step)
    assert len(drawn) == 3


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [warmup_cosine(0.5, step, steps=100, warmup=10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert all(late < early for early, late in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)
    assert warmup_cosine(1.0, 0, steps=5, warmup=0) == 1.0
