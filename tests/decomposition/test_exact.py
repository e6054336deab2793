import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm.decomposition import REDUCTIONS
from tdsm.decomposition.definition import batched, loop
from tdsm.decomposition.exact import exact
from tdsm.decomposition.reduce import reduce_components
from tdsm.decomposition.solo import map_queries
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.tokenfield import TokenField
from tests.conftest import SMALL, small_field

FASTER = {"batched": batched, "exact": exact}

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
chunks = st.none() | st.integers(1, 16)


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
    weight = torch.randn(components.shape, dtype=torch.float64).to(components.dtype)
    found = torch.autograd.grad(components, sources, weight, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


@settings(max_examples=200)
@given(configs, shapes, chunks)
def test_values_and_gradients_are_the_loops_in_float64(config, shape, chunk):
    field, tokens, queries = problem(config, shape, torch.float64)
    expected = loop(field, tokens, queries)
    slopes = gradients(expected, field, tokens, queries)
    for strategy in FASTER.values():
        seen = strategy(field, tokens, queries, chunk)
        torch.testing.assert_close(seen, expected, rtol=1e-11, atol=1e-11)
        for mine, theirs in zip(gradients(seen, field, tokens, queries), slopes, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8 * max(1, float(theirs.abs().max())))


@pytest.mark.filterwarnings("ignore::tdsm.base.errors.SpaceWarning")
@settings(max_examples=200)
@given(
    configs.filter(lambda config: config["widths"] >= (3,) and config["mapping_dim"] > 1),
    shapes,
    chunks,
    st.sampled_from(list(REDUCTIONS)),
)
def test_float32_maps_and_gradients_err_no_more_than_the_loops(config, shape, chunk, reduction):
    """Largest error against the float64 loop: 2e-6 of the largest value, and four times what the float32 loop errs.

    Tokens are 3 wide or more, queries 4: the norm of fewer is a step, whose gradient is rounding.
    """

    def maps_and_gradients(strategy, dtype):
        torch.manual_seed(0)
        field, tokens, queries = problem(config, shape, torch.float32)
        field, inputs = field.to(dtype), [x.detach().to(dtype).requires_grad_() for x in (tokens, queries)]
        maps = map_queries(field, *inputs, reduction=reduction, strategy=strategy, chunk=chunk)
        return [maps.detach(), *gradients(maps, field, *inputs)]

    truth, plain = maps_and_gradients("loop", torch.float64), maps_and_gradients("loop", torch.float32)
    for seen, want, usual in zip(maps_and_gradients("exact", torch.float32), truth, plain, strict=True):
        assert seen.dtype == torch.float32
        allowed = 2e-6 * max(1, want.abs().max()) + 4 * (usual - want).abs().max()
        assert (seen - want).abs().max() <= allowed


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
    torch.testing.assert_close(
        exact(field, tokens, queries, chunk), exact(field, tokens, queries), rtol=1e-13, atol=1e-13
    )


@pytest.mark.filterwarnings("ignore::tdsm.base.errors.SpaceWarning")
@pytest.mark.parametrize("feedforward", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduced_directly_or_afterwards_is_the_same(reduction, feedforward):
    field = small_field(has_decoder_feedforward=feedforward)
    tokens, queries = torch.randn(2, 5, 14).double(), field.queries(torch.rand(6, 2))
    expected = reduce_components(loop(field, tokens, queries), reduction)
    seen = map_queries(field, tokens, queries, reduction=reduction, strategy="exact", chunk=3)
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


class Sine(TokenField):
    """A field of another form: its readout is no `Readout`."""

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_at_most_twice_what_the_loop_does(dtype):
    """Root of the mean squared error against the float64 loop of the same rounded weights, values and gradients."""
    config = {"num_axes": 2, "mapping_dim": 12, "widths": (20,), "channels": 3}

    def values_and_gradients(strategy, dtype_of_sums):
        torch.manual_seed(0)
        field, tokens, queries = problem(config, (2, 6, 50), dtype)
        field, inputs = field.to(dtype_of_sums), [x.detach().to(dtype_of_sums) for x in (tokens, queries)]
        components = strategy(field, *[x.requires_grad_() for x in inputs])
        return [components.detach(), *gradients(components, field, *inputs)[:2]]

    def errors(strategy):
        seen, truth = values_and_gradients(strategy, dtype), values_and_gradients(loop, torch.float64)
        assert all(x.dtype == dtype for x in seen)
        return [float((x - want).square().mean().sqrt()) for x, want in zip(seen, truth, strict=True)]

    for mine, plain in zip(errors(exact), errors(loop), strict=True):
        assert 0 < mine <= 2 * plain


class Held(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes kept for the backward pass, each storage once."""

    def __init__(self):
        self.storages = {}
        super().__init__(self.keep, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        return self

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self):
        return sum(self.storages.values())


def test_the_backward_pass_keeps_nothing_of_size_points_times_tokens_times_hidden():
    """64 tokens, 400 points, 64 hidden units: the loop keeps 13 MB and more, exact decoding only what it returns."""
    config = {"num_axes": 2, "widths": (14,), "feedforward_multiple": 4}
    held = {}
    for name, strategy in {"loop": loop, "exact": exact}.items():
        field, tokens, queries = problem(config, (1, 64, 400), torch.float32)
        with Held() as held[name]:
            strategy(field, tokens, queries)
    hidden = 64 * 400 * 2 * 64 * 4
    assert held["loop"].bytes > hidden
    assert held["exact"].bytes < hidden / 8
