import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.decomposition.definition import batched, loop
from tests import reference
from tests.conftest import small_field


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("feedforward", [True, False])
def test_loop_is_the_definition(residual, feedforward):
    field = small_field(has_query_residual=residual, has_decoder_feedforward=feedforward)
    tokens, coords = torch.randn(2, 5, 14, dtype=torch.float64), torch.rand(7, 2, dtype=torch.float64) * 2 - 1
    seen = loop(field, tokens, field.queries(coords)).detach()
    for one, components in zip(tokens, seen, strict=True):
        expected = reference.decompose(reference.arrays(field), field.config, one.numpy(), coords.numpy())
        np.testing.assert_allclose(components, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_definition(field, tokens):
    """Central differences of the NumPy reference along a random direction, which shares no code with autograd."""
    coords = torch.rand(6, 2, dtype=torch.float64)
    state, config = reference.arrays(field), field.config
    tokens = tokens[:1].requires_grad_()
    weight = torch.randn(1, 5, 6, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weight * loop(field, tokens, field.queries(coords))).sum(), tokens)
    step = torch.randn_like(tokens)

    def at(t):
        moved = (tokens + t * step)[0].detach().numpy()
        return (weight[0].numpy() * reference.decompose(state, config, moved, coords.numpy())).sum()

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert float((grad * step).sum()) == pytest.approx(slope, rel=1e-7)


def test_a_token_alone_is_the_reconstruction(field, tokens):
    queries = field.queries(torch.rand(6, 2))
    alone = tokens[:, 2:3]
    whole = field.readout(queries, field.attend(queries, alone))
    assert torch.equal(loop(field, alone, queries)[:, 0], whole)


@given(images=st.integers(0, 3), count=st.integers(1, 6), points=st.integers(1, 7), chunk=st.integers(1, 20))
def test_batched_is_loop_whatever_the_chunk(images, count, points, chunk):
    field = small_field()
    tokens, queries = torch.randn(images, count, 14).double(), field.queries(torch.rand(points, 2))
    expected = loop(field, tokens, queries)
    assert expected.shape == (images, count, points, 3)
    torch.testing.assert_close(batched(field, tokens, queries, chunk), expected, rtol=1e-12, atol=1e-12)
