from itertools import combinations, pairwise
from math import comb

import pytest
import torch

from tdsm.base.randomness import generator
from tdsm.decomposition import decompose
from tdsm.tokenfield.coords import grid
from tests.conftest import small_field

SIZE = (3, 2)
COUNT = 6


def enumerate_shapley(field, tokens):
    """Sum over all subsets, the decoder run again for each: Σ_S |S|! (K − |S| − 1)! / K! · [v(S ∪ k) − v(S)]."""
    count = tokens.shape[1]
    queries = field.queries(grid(SIZE))
    nothing = field.decoder_attention.to_out.bias.expand(len(tokens), len(queries), -1)
    value = {(): field.readout(queries, nothing).unflatten(1, SIZE)}
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            value[subset] = field.decode(tokens[:, list(subset)], SIZE)
    components = []
    for k in range(count):
        others = [subset for subset in value if k not in subset]
        gains = [(value[tuple(sorted((*s, k)))] - value[s]) / (count * comb(count - 1, len(s))) for s in others]
        components.append(sum(gains))
    return torch.stack(components, dim=1)


@pytest.fixture
def six():
    field = small_field(num_latents=COUNT).requires_grad_(False)
    return field, 2 * torch.randn(2, COUNT, 14, dtype=torch.float64)


def test_the_enumeration_is_complete(six):
    field, tokens = six
    parts = decompose(field, tokens, SIZE, method="shapley", permutations=4)
    torch.testing.assert_close(enumerate_shapley(field, tokens).sum(1), parts.reconstruction - parts.base)


def test_samples_lie_within_three_standard_errors_of_the_enumeration(six):
    field, tokens = six
    exact = enumerate_shapley(field, tokens)
    parts = decompose(field, tokens, SIZE, method="shapley", permutations=1000)
    deviation = (parts.components - exact) / parts.standard_error
    assert (deviation.abs() <= 3).double().mean() > 0.98
    assert 0.7 < deviation.square().mean().sqrt() < 1.3, "the standard error is too large or too small"


def arrivals(field, tokens, order):
    """Return what each token changed when it arrived, the decoder run again for every prefix of the order."""
    queries = field.queries(grid(SIZE))
    nothing = field.decoder_attention.to_out.bias.expand(len(tokens), len(queries), -1)
    values = [field.readout(queries, nothing).unflatten(1, SIZE)]
    values += [field.decode(tokens[:, order[: n + 1]], SIZE) for n in range(len(order))]
    gains = torch.stack([after - before for before, after in pairwise(values)], dim=1)
    return gains[:, order.argsort()]


@pytest.mark.parametrize("pairs", [2, 3])
def test_the_standard_error_is_that_of_the_mean_over_pairs(six, pairs):
    """s / √n of the n pairs' own means, s with n − 1 below the root: it matters where pairs are few."""
    field, tokens = six
    draw = generator(0, "shapley")
    orders = [torch.randperm(COUNT, generator=draw) for _ in range(pairs)]
    means = [(arrivals(field, tokens, order) + arrivals(field, tokens, order.flip(0))) / 2 for order in orders]
    parts = decompose(field, tokens, SIZE, method="shapley", permutations=2 * pairs)
    torch.testing.assert_close(parts.components, torch.stack(means).mean(dim=0))
    torch.testing.assert_close(parts.standard_error, torch.stack(means).std(dim=0, correction=1) / pairs**0.5)


def test_every_order_adds_up(six):
    field, tokens = six
    assert decompose(field, tokens, SIZE, method="shapley", permutations=4).completeness_error.max() < 1e-12


def test_the_error_falls_with_the_root_of_the_orders(six):
    field, tokens = six
    few, many = (
        decompose(field, tokens, SIZE, method="shapley", permutations=n).standard_error.square().mean().sqrt()
        for n in (100, 1600)
    )
    assert 3 < few / many < 5.3


def test_two_tokens_need_no_luck(field, tokens):
    """Two orders are all there are, and each is taken with its reverse."""
    tokens = tokens[:, :2]
    parts = decompose(field, tokens, SIZE, method="shapley", permutations=4)
    torch.testing.assert_close(parts.components, enumerate_shapley(field, tokens))
    torch.testing.assert_close(parts.standard_error, torch.zeros_like(parts.standard_error))


def test_a_linear_attention_gives_the_same_as_a_weighted_average_of_values():
    """With equal weights and a linear readout, averaging over orders has a closed form for two tokens."""
    field = small_field(has_decoder_feedforward=False)
    with torch.no_grad():
        field.decoder_attention.to_q.weight.zero_()
    tokens = torch.randn(1, 2, 14, dtype=torch.float64)
    parts = decompose(field, tokens, SIZE, method="shapley", permutations=4)
    value = field.attend_one(tokens) - field.decoder_attention.to_out.bias
    sent = value @ field.to_channels.weight.T
    expected = torch.stack([sent[:, 0] * 0.75 - sent[:, 1] * 0.25, sent[:, 1] * 0.75 - sent[:, 0] * 0.25], 1)
    torch.testing.assert_close(parts.components, expected[:, :, None, None].expand_as(parts.components))


def test_seeds_choose_the_orders(field, tokens):
    first, again, other = (
        decompose(field, tokens, SIZE, method="shapley", permutations=4, seed=seed).components for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
