from itertools import pairwise

import pytest
import torch

from tdsm.base.errors import CompletenessWarning
from tdsm.decomposition import decompose
from tdsm.decomposition.additive import _folded, contract
from tdsm.decomposition.path_gradient import by_autograd, by_separation, gauss_legendre
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.tokenfield.coords import grid
from tests.conftest import small_field

SIZE = (5, 4)


def blobs(count, side, generator):
    """Images of three soft coloured spots."""
    middle = torch.rand(count, 1, 3, 2, generator=generator) * 1.6 - 0.8
    colour = torch.rand(count, 3, 3, generator=generator) * 2 - 1
    distance = (grid((side, side))[None, :, None] - middle).square().sum(-1)
    return torch.einsum("npk,nkc->ncp", (-8 * distance).exp(), colour).clamp(-1, 1).unflatten(2, (side, side))


@pytest.fixture(scope="module")
def trained():
    """A field trained for 150 steps, and the tokens of images it has not seen."""
    torch.manual_seed(0)
    heads = {"cross_heads": 2, "cross_head_dim": 16, "self_heads": 2, "self_head_dim": 16}
    sizes = {"widths": (24, 32), "num_latents": 16, "mapping_dim": 16, "fourier_scale": 3.0, "processor_depth": 1}
    field = NeuralField(FieldConfig(feedforward_multiple=2, **heads, **sizes))
    optimizer = torch.optim.Adam(field.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        images = blobs(16, 12, generator)
        loss = (field.decode(field.encode(images), (12, 12)).movedim(-1, 1) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * images.var(), "the field has learnt nothing"
    field = field.eval().requires_grad_(False)
    return field, field.encode(blobs(4, 12, generator))


def additive(field, tokens, points=3, size=SIZE, **options):
    return decompose(field, tokens, size, method="additive", points=points, **options)


@pytest.mark.parametrize(("points", "bound"), [(3, 1e-3), (8, 1e-6)])
def test_a_trained_field_is_complete(trained, points, bound):
    field, tokens = trained
    assert additive(field, tokens, points, (24, 24)).completeness_error.max() <= bound


def test_the_error_falls_with_every_point(trained):
    field, tokens = trained[0].double(), trained[1].double()
    errors = [additive(field, tokens, points).completeness_error.max() for points in (1, 2, 3, 5, 8)]
    field.float()
    assert all(after < before / 5 for before, after in pairwise(errors))
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_a_tolerance_chooses_the_points(trained, tolerance):
    field, tokens = trained
    parts = additive(field, tokens, 1, tolerance=tolerance)
    assert parts.completeness_error.max() <= tolerance
    fewer = parts.options.points // 2
    assert fewer == 0 or additive(field, tokens, fewer).completeness_error.max() > tolerance


def test_a_tolerance_below_rounding_is_said_to_be_missed(trained):
    field, tokens = trained
    with pytest.warns(CompletenessWarning, match="64 quadrature points"):
        parts = additive(field, tokens, 1, tolerance=1e-12)
    assert parts.options.points == 64
    assert parts.completeness_error.max() < 1e-5


@pytest.mark.parametrize("points", [1, 2, 4])
def test_the_separated_gradient_is_that_of_autograd(field, tokens, points):
    queries = field.queries(grid(SIZE).double())
    start, step = torch.randn(16, dtype=torch.float64), torch.randn(2, 20, 16, dtype=torch.float64)
    expected = by_autograd(field, queries, start, step, points)
    actual = by_separation(field.separable_readout(), queries, start, step, points)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_blocks_of_hidden_units_do_not_change_the_gradient(field, monkeypatch):
    queries = field.queries(grid(SIZE).double())
    arguments = field.separable_readout(), queries, torch.randn(16).double(), torch.randn(2, 20, 16).double(), 3
    whole = by_separation(*arguments)
    monkeypatch.setattr("tdsm.decomposition.path_gradient._block_units", lambda device: 2 * 7 * 64)
    torch.testing.assert_close(by_separation(*arguments), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{"has_decoder_feedforward": False}, {"has_query_residual": False}], ids=str)
def test_decoders_without_the_gated_form_are_complete_too(tokens, changes):
    field = small_field(**changes)
    assert additive(field, tokens, 64).completeness_error.max() < 1e-6


def test_one_point_is_exact_for_a_linear_readout(tokens):
    assert additive(small_field(has_decoder_feedforward=False), tokens, 1).completeness_error.max() < 1e-12


def test_a_linear_readout_gives_its_matrix_times_what_each_token_sent(tokens):
    field = small_field(has_decoder_feedforward=False)
    weights, values, _ = field.attention_parts(field.queries(grid(SIZE)), tokens)
    expected = torch.einsum("bhnk,bhkd,cd->bknc", weights, values, field.to_channels.weight)
    torch.testing.assert_close(additive(field, tokens, 1).components.flatten(2, 3), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("value_dim", [3, 4])
def test_the_contraction_is_the_sum_it_says(value_dim):
    gradient, weights = torch.randn(2, 7, 3, 4).double(), torch.rand(2, 5, 7, 6).double()
    values = torch.randn(2, 5, 6, value_dim).double()
    output = torch.randn(5, 3, 4).double() if value_dim == 3 else None
    sent = values if output is None else values @ output
    expected = torch.einsum("bhnk,bhkd,bncd->bknc", weights, sent, gradient)
    torch.testing.assert_close(contract(gradient, weights, values, output), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{"cross_head_dim": 2}, {"cross_head_dim": 40}], ids=["apart", "folded"])
def test_the_output_projection_may_be_folded_or_not(tokens, changes, monkeypatch):
    field = small_field(**changes)
    _, output = _folded(field.token_heads(tokens))
    assert (output is None) == (changes["cross_head_dim"] == 40)
    components = additive(field, tokens).components
    heads = field.token_heads(tokens)
    other = (heads.values @ heads.output, None) if output is not None else (heads.values, heads.output)
    monkeypatch.setattr("tdsm.decomposition.additive._folded", lambda heads: other)
    torch.testing.assert_close(additive(field, tokens).components, components, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("has_query_residual", [True, False], ids=["separated", "autograd"])
def test_it_works_where_gradients_are_off(tokens, mode, has_query_residual):
    field = small_field(has_query_residual=has_query_residual)
    expected = additive(field, tokens).components
    with mode():
        parts = additive(field, tokens.clone())
        torch.testing.assert_close(parts.components, expected.detach())
    assert not parts.components.requires_grad


def test_a_frozen_field_and_frozen_tokens_leave_no_graph(tokens):
    field = small_field(has_query_residual=False).requires_grad_(False)
    assert not additive(field, tokens).components.requires_grad


@pytest.mark.parametrize("has_query_residual", [True, False], ids=["separated", "autograd"])
def test_gradients(tokens, has_query_residual):
    field = small_field(has_query_residual=has_query_residual, num_latents=3)
    tokens = tokens[:1, :3].clone().requires_grad_()
    weight = field.decoder_feedforward.hidden.weight

    def run(tokens, weight_change):
        return torch.func.functional_call(
            _Additive(field), {"field.decoder_feedforward.hidden.weight": weight + weight_change}, (tokens,)
        )

    change = torch.zeros_like(weight, requires_grad=True)
    assert torch.autograd.gradcheck(run, (tokens, change), fast_mode=True)


class _Additive(torch.nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, tokens):
        return additive(self.field, tokens, 2, (2, 2)).components


def test_bfloat16_sums_in_float32(field, tokens):
    exact = additive(field, tokens, 8).components
    rounded = additive(field.to(torch.bfloat16), tokens.to(torch.bfloat16), 8).components
    assert rounded.dtype == torch.bfloat16
    assert (rounded.double() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("points", [1, 3, 8, 13, 16, 23, 64])
def test_quadrature_is_exact_for_polynomials(points):
    rule = gauss_legendre(points)
    assert len(rule) == points
    for degree in range(2 * min(points, 8)):
        integral = sum(weight * t**degree for t, weight in rule)
        assert integral == pytest.approx(1 / (degree + 1), rel=1e-12)


def test_a_norm_that_starts_from_nothing_is_integrated_too(tokens):
    """Without query residual and bias the path starts at zero, where the norm is steepest."""
    field = small_field(has_query_residual=False)
    with torch.no_grad():
        field.decoder_attention.to_out.bias.zero_()
    assert additive(field, tokens, 3).completeness_error.max() > 1e-2, "the case is not hard"
    assert additive(field, tokens, 64).completeness_error.max() < 1e-6
