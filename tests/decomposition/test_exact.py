import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm.decomposition.definition import batched, loop
from tdsm.decomposition.exact import collapsed, exact
from tdsm.decomposition.solo import map_queries
from tdsm.field import FieldConfig, NeuralField
from tdsm.reduce import REDUCTIONS, reduce_components
from tdsm.tokenfield import TokenField
from tests.conftest import SMALL, small_field

FASTER = {"batched": batched, "collapsed": collapsed, "exact": exact}

configs = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 4),
        "num_axes": st.integers(1, 3),
        "mapping_dim": st.integers(1, 9),
        "widths": st.tuples(st.integers(1, 12)),
        "cross_heads": st.integers(1, 3),
        "cross_head_dim": st.integers(1, 6),
        "feedforward_multiple": st.integers(1, 3),
        "has_query_residual": st.booleans(),
        "has_decoder_feedforward": st.booleans(),
    }
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7))


def problem(config, shape, dtype):
    """A field, tokens and query features; all require gradients."""
    images, tokens, points = shape
    field = small_field(dtype, processor_depth=0, num_latents=1, **config)
    coords = torch.rand(points, config["num_axes"]) * 2 - 1
    z = torch.randn(images, tokens, config["widths"][-1], dtype=dtype, requires_grad=True)
    return field, z, field.queries(coords).detach().to(dtype).requires_grad_()


def gradients(components, field, *inputs):
    """Gradients to the inputs and every decoder weight, zero where nothing flows."""
    decoder = [parameter for name, parameter in field.named_parameters() if not name.startswith("encoder.")]
    torch.manual_seed(1)
    sources = [*inputs, *decoder]
    found = torch.autograd.grad((components * torch.randn_like(components)).sum(), sources, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


@settings(max_examples=200)
@given(configs, shapes)
def test_values_and_gradients_are_the_loops_in_float64(config, shape):
    field, tokens, queries = problem(config, shape, torch.float64)
    expected = loop(field, tokens, queries)
    slopes = gradients(expected, field, tokens, queries)
    for strategy in FASTER.values():
        seen = strategy(field, tokens, queries)
        torch.testing.assert_close(seen, expected, rtol=1e-11, atol=1e-11)
        for mine, theirs in zip(gradients(seen, field, tokens, queries), slopes, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8 * max(1, float(theirs.abs().max())))


@pytest.mark.parametrize("name", FASTER)
def test_float32_is_as_close_as_float32_is(name):
    field, tokens, queries = problem({"num_axes": 2, "widths": (14,)}, (2, 5, 50), torch.float32)
    seen = FASTER[name](field, tokens, queries)
    assert seen.dtype == torch.float32
    truth = loop(field.double(), tokens.double(), queries.double())
    assert (seen - truth).abs().max() <= 2e-6 * truth.abs().max()


@given(chunk=st.integers(1, 40))
def test_chunks_never_change_results(chunk):
    field = small_field()
    tokens, queries = torch.randn(3, 5, 14).double(), field.queries(torch.rand(6, 2))
    for strategy in (collapsed, exact):
        torch.testing.assert_close(
            strategy(field, tokens, queries, chunk), strategy(field, tokens, queries), rtol=1e-13, atol=1e-13
        )


@pytest.mark.filterwarnings("ignore::tdsm.errors.SpaceWarning")
@pytest.mark.parametrize("feedforward", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduced_directly_or_afterwards_is_the_same(reduction, feedforward):
    field = small_field(has_decoder_feedforward=feedforward)
    tokens, queries = torch.randn(2, 5, 14).double(), field.queries(torch.rand(6, 2))
    expected = reduce_components(loop(field, tokens, queries), reduction)
    seen = map_queries(field, tokens, queries, reduction=reduction, strategy="exact", chunk=3)
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


class Sine(TokenField):
    """A field of another form: its readout is no `GatedReadout`."""

    has_query_residual, has_nonlinear_readout = True, True

    def queries(self, coords):
        return coords

    def attend(self, queries, tokens):
        weights = (queries @ tokens.transpose(1, 2)).softmax(-1)
        return weights @ tokens

    def attend_one(self, tokens):
        return tokens

    def readout(self, queries, attended):
        return torch.sin(3 * (queries + attended))


def test_any_token_field_is_decomposed():
    field, tokens, queries = Sine(), torch.randn(2, 4, 2), torch.rand(6, 2)
    expected = loop(field, tokens, queries)
    for strategy in FASTER.values():
        torch.testing.assert_close(strategy(field, tokens, queries), expected)


def test_query_and_key_weights_play_no_part():
    field = NeuralField(FieldConfig(**SMALL))
    tokens, queries = torch.randn(2, 5, 14), field.queries(torch.rand(6, 2))
    before = loop(field, tokens, queries)
    with torch.no_grad():
        field.decoder_attention.to_q.weight.normal_()
        field.decoder_attention.to_kv.weight.chunk(2)[0].normal_()
    torch.testing.assert_close(loop(field, tokens, queries), before)
    assert not torch.allclose(field.attend(queries, tokens), field.attend(queries, tokens[:, :1]))
