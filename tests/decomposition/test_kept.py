"""What is kept between calls: never stale, whatever changes a weight and by whatever way; bounded; not in the way."""

import copy

import pytest
import torch

from tdsm.decomposition import component_images, decompose, separated
from tdsm.decomposition.definition import loop
from tdsm.decomposition.exact import exact
from tdsm.decomposition.kept import Kept
from tests.conftest import small_field


@pytest.fixture
def kept(monkeypatch):
    """Return an empty store, in use."""
    store = Kept(separated.KEPT_BYTES)
    monkeypatch.setattr(separated, "_prepared", store)
    return store


def in_place(field):
    with torch.no_grad():
        field.decoder_feedforward.hidden.weight.mul_(1.5)


def by_data(field):
    field.to_channels.weight.data += 1  # counted by no version


def by_numpy(field):
    field.decoder_feedforward.norm.bias.detach().numpy()[0] += 1  # seen by torch at all


def another_parameter(field):
    field.to_channels.weight = torch.nn.Parameter(torch.randn_like(field.to_channels.weight))


def another_state(field):
    field.load_state_dict({name: x + 0.1 for name, x in field.state_dict().items()})


def an_optimizer(field):
    field.decoder_feedforward.output.weight.grad = torch.ones_like(field.decoder_feedforward.output.weight)
    torch.optim.AdamW(field.parameters(), lr=0.1).step()


def another_dtype(field):
    field.to(torch.float32)


def back_and_forth(field):
    field.to(torch.bfloat16).to(torch.float64)


def another_fourier_matrix(field):
    field.fourier.matrix.mul_(1.1)


def another_eps(field):
    field.decoder_feedforward.norm.eps = 0.1


CHANGES = [in_place, by_data, by_numpy, another_parameter, another_state, an_optimizer, another_dtype, back_and_forth]
CHANGES += [another_fourier_matrix, another_eps]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("method", ["solo", "additive"])
def test_a_change_is_noticed(change, method, kept, field, tokens):
    def components(field, tokens):
        return decompose(field, tokens.to(field.to_channels.weight.dtype), (4, 5), method=method).components

    before = components(field, tokens)
    assert kept.nbytes
    change(field)
    after = components(field, tokens)
    assert not torch.equal(after.double(), before)
    fresh = copy.deepcopy(field)
    kept._entries = []
    assert torch.equal(components(fresh, tokens), after)


@torch.no_grad()
def test_the_same_grid_and_weights_are_prepared_once(kept, field, tokens, monkeypatch):
    prepared = []
    original = separated._prepare
    monkeypatch.setattr(separated, "_prepare", lambda *a: prepared.append(a) or original(*a))
    first = component_images(field, tokens, (4, 5))
    assert torch.equal(component_images(copy.deepcopy(field), tokens, (4, 5)), first)
    assert len(prepared) == 1
    component_images(field, tokens, (5, 4))
    assert len(prepared) == 2
    component_images(field, tokens, (4, 5))
    assert len(prepared) == 2


@torch.no_grad()
def test_autocast_neither_finds_nor_leaves_anything_else(kept):
    field, tokens = small_field(torch.float32), torch.randn(2, 5, 14)
    queries = field.queries(torch.rand(20, 2))
    plain = exact(field, tokens, queries)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(field, tokens, queries)
        kept._entries = []
        assert torch.equal(exact(field, tokens, queries), mixed)
    assert torch.equal(exact(field, tokens, queries), plain)


def test_gradients_flow_past_what_is_kept(kept, field, tokens):
    queries = field.queries(torch.rand(20, 2).double())
    with torch.inference_mode():
        exact(field, tokens, queries)
    assert kept.nbytes
    weight = field.decoder_feedforward.hidden.weight
    found = [torch.autograd.grad(way(field, tokens, queries).square().sum(), weight)[0] for way in (exact, loop)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    field.requires_grad_(False)
    tokens = tokens.requires_grad_()
    found = [torch.autograd.grad(way(field, tokens, queries).square().sum(), tokens)[0] for way in (exact, loop)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_memory_is_bounded_and_the_longest_unused_goes_first():
    kept, made = Kept(most_bytes=100), []

    def of(value, size=3):
        x = torch.full((size,), float(value))
        return kept("key", [x], lambda: made.append(value) or [x + 1])

    for value in (1, 2, 3, 4):  # 24 bytes each: four fit
        of(value)
    of(1)
    assert (made, kept.nbytes) == ([1, 2, 3, 4], 96)
    of(5)  # 2 was not used the longest
    of(1)
    assert (made, kept.nbytes) == ([1, 2, 3, 4, 5], 96)
    of(2)
    assert made == [1, 2, 3, 4, 5, 2]
    of(9, size=13)  # too large alone: returned, not kept
    assert kept.nbytes == 0


def test_what_only_looks_the_same_is_not_taken_for_it():
    kept = Kept(1000)
    x = torch.ones(4)
    found = [kept("a", [x], lambda: [torch.zeros(1)])]
    for key, inputs in (("b", [x]), ("a", [x.double()]), ("a", [x[None]]), ("a", [x, x]), ("a", [x / 0 * 0])):
        found.append(kept(key, inputs, lambda: [torch.zeros(1)]))
    assert len({id(one) for one in found}) == len(found)
