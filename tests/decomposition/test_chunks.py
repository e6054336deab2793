"""Chunks never change results; when memory runs out they are halved and the work goes on where it stopped."""

import weakref

import pytest
import torch

from tdsm.base.errors import ResourceError
from tdsm.decomposition import STRATEGIES, chunks, component_images, pooled_map, spatial_map
from tdsm.decomposition.chunks import in_chunks, is_out_of_memory
from tests.conftest import small_field


class Work:
    """Doubles rows, and runs out of memory on more than `room` of them; remembers what it did."""

    def __init__(self, room, words="CUDA out of memory"):
        self.room, self.words = room, words
        self.done, self.sizes, self.failed = [], [], []

    def __call__(self, rows):
        if len(rows) > self.room:
            self.failed.append(len(rows))
            raise RuntimeError(self.words)
        self.done += rows.flatten().tolist()
        self.sizes.append(len(rows))
        return 2 * rows


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("room", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 11, 1000])
def test_memory_that_runs_out_changes_no_result(chunk, room, has_gradient):
    rows, work = torch.arange(11.0)[:, None].requires_grad_(has_gradient), Work(room)
    result = in_chunks(work, rows, chunk)
    assert torch.equal(result, 2 * rows)
    assert work.done == list(range(11)), "a row was left out or done twice"
    assert work.failed == sorted(work.failed, reverse=True)
    if has_gradient:
        result.sum().backward()
        assert torch.equal(rows.grad, torch.full((11, 1), 2.0))


def test_the_work_goes_on_where_it_stopped():
    work = Work(room=8)

    def shrinking(rows):
        work.room = 8 if not work.done else 2
        return work(rows)

    in_chunks(shrinking, torch.arange(16.0), chunk=8)
    assert work.sizes == [8, 2, 2, 2, 2]
    assert work.failed == [8, 4]
    assert work.done == list(range(16))


def test_a_row_that_does_not_fit_is_an_error_that_says_so():
    with pytest.raises(ResourceError, match=r"a single token does not fit in memory \(CUDA out of memory\)\. Use"):
        in_chunks(Work(room=0), torch.arange(5.0), chunk=4)


def test_other_errors_are_passed_on_at_once():
    work = Work(room=1, words="shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_chunks(work, torch.arange(5.0), chunk=4)
    assert work.failed == [4]


def test_a_true_failure_to_allocate_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_no_rows_give_no_rows():
    assert in_chunks(lambda rows: rows.expand(-1, 3), torch.zeros(0, 1), chunk=4).shape == (0, 3)


def test_without_gradients_one_part_exists_beside_the_result():
    parts, alive = [], []

    def work(rows):
        alive.append(sum(part() is not None for part in parts))
        part = rows.expand(-1, 999) + 0
        parts.append(weakref.ref(part))
        return part

    in_chunks(work, torch.zeros(20, 1), chunk=2)
    assert len(alive) == 10
    assert max(alive) <= 1


@pytest.mark.parametrize("room", [1, 3, 7])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "loop"])
def test_decoding_survives_memory_that_runs_out(field, tokens, strategy, room, monkeypatch):
    """The same through the public calls: an allocation that fails when more than `room` tokens are decoded at once."""
    want = component_images(field, tokens, (4, 4), strategy=strategy)
    want_pooled = pooled_map(field, tokens, (4, 4), cells=2)
    tight = tight_chunks(room)
    for module in ("definition", "separated", "exact"):
        monkeypatch.setattr(f"tdsm.decomposition.{module}.in_chunks", tight)
    torch.testing.assert_close(component_images(field, tokens, (4, 4), strategy=strategy), want, rtol=0, atol=1e-13)
    torch.testing.assert_close(pooled_map(field, tokens, (4, 4), cells=2), want_pooled, rtol=0, atol=1e-13)
    assert tight.failures > 0


def tight_chunks(room):
    """`in_chunks` on a machine that has room for so many rows."""

    def tight(work, rows, chunk):
        def limited(part):
            if len(part) > room:
                tight.failures += 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return work(part)

        return chunks.in_chunks(limited, rows, chunk)

    tight.failures = 0
    return tight


@pytest.mark.parametrize("reduction", ["mean", "rgb", "l2"])
def test_gradients_survive_it_too(reduction, monkeypatch):
    field = small_field()
    tokens = torch.randn(2, 5, 14).double().requires_grad_()

    def gradient():
        maps = spatial_map(field, tokens, (3, 4), reduction=reduction)
        return torch.autograd.grad(maps.square().sum(), [tokens, *field.decoder_feedforward.parameters()])

    want = gradient()
    monkeypatch.setattr("tdsm.decomposition.separated.in_chunks", tight_chunks(3))
    for got, expected in zip(gradient(), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
