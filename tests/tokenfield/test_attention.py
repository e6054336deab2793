import numpy as np
import pytest
import torch

from tdsm.tokenfield.attention import Attention, FeedForward
from tests import reference


def randomised(module):
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def named(module):
    return {f"block.{name}": array for name, array in reference.arrays(module).items()}


@pytest.fixture
def cross():
    return randomised(Attention(query_dim=6, context_dim=10, heads=3, head_dim=4))


@pytest.fixture
def queries():
    return torch.randn(7, 6, dtype=torch.float64)


@pytest.fixture
def context():
    return torch.randn(2, 5, 10, dtype=torch.float64)


def test_cross_attention_follows_its_equation(cross, queries, context):
    for one, seen in zip(context, cross(queries, context), strict=True):
        expected = reference.attention(queries.numpy(), one.numpy(), named(cross), "block", heads=3)
        np.testing.assert_allclose(seen.detach(), expected, rtol=1e-12, atol=1e-12)


def test_self_attention_follows_its_equation(queries):
    block = randomised(Attention(query_dim=6, context_dim=None, heads=3, head_dim=4))
    expected = reference.attention(queries.numpy(), None, named(block), "block", heads=3)
    np.testing.assert_allclose(block(queries[None])[0].detach(), expected, rtol=1e-12, atol=1e-12)


def test_queries_of_all_images_or_shared_by_them_are_the_same(cross, queries, context):
    torch.testing.assert_close(cross(queries, context), cross(queries.expand(2, -1, -1), context))


def test_the_order_of_the_context_is_not_seen(cross, queries, context):
    torch.testing.assert_close(cross(queries, context[:, torch.randperm(5)]), cross(queries, context))


def test_alone_is_attention_to_a_single_key(cross, queries, context):
    for k in range(5):
        whole = cross(queries, context[:, k : k + 1])
        torch.testing.assert_close(cross.alone(context)[:, k, None].expand_as(whole), whole, rtol=1e-12, atol=1e-12)


def test_heads_add_up_to_the_whole(cross, queries, context):
    heads = cross.token_heads(context)
    weights = heads.weights(cross.query_heads(queries))
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    together = heads.bias + torch.einsum("bhnk,bhkd,hdw->bnw", weights, heads.values, heads.output)
    torch.testing.assert_close(together, cross(queries, context), rtol=1e-12, atol=1e-12)


def test_feedforward_follows_its_equation():
    block, x = randomised(FeedForward(width=6, multiple=2)), torch.randn(4, 6, dtype=torch.float64)
    expected = reference.feedforward(x.numpy(), named(block), "block")
    np.testing.assert_allclose(block(x).detach(), expected, rtol=1e-12, atol=1e-12)
