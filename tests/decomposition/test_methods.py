import re
import warnings
from dataclasses import replace

import pytest
import torch

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition import DECOMPOSITIONS, REDUCTIONS, decompose, methods_for
from tdsm.decomposition.measures import completeness_error
from tdsm.decomposition.methods import default_chunk
from tdsm.decomposition.reduce import reduce_components
from tdsm.decomposition.solo import component_images
from tdsm.tokenfield.coords import grid
from tests.conftest import small_field

SIZE = (5, 4)
METHODS = list(DECOMPOSITIONS)
FEW = {"additive": {"points": 8}, "shapley": {"permutations": 4}}  # options that leave the tests quick


def run(field, tokens, method, **options):
    options = {"size": SIZE} | FEW.get(method, {}) | options
    if "coords" in options:
        del options["size"]
    return decompose(field, tokens, method=method, **options)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def field(request):
    """A field that the method under test suits: one with masks for `mixture`."""
    tried = request.getfixturevalue("method") if "method" in request.fixturenames else "solo"
    return small_field(has_masks=tried == "mixture")


def test_shapes_are_one(field, tokens, method):
    parts = run(field, tokens, method)
    assert parts.method == method
    assert parts.indices == [0, 1, 2, 3, 4]
    assert parts.components.shape == (2, 5, *SIZE, 3)
    assert parts.base.shape == parts.reconstruction.shape == (2, *SIZE, 3)
    assert parts.completeness_error.shape == (2,)
    assert (parts.standard_error is not None) == (method == "shapley")
    assert parts.options == DECOMPOSITIONS[method].options(**FEW.get(method, {}))


def test_the_reconstruction_is_the_fields(field, tokens, method):
    torch.testing.assert_close(run(field, tokens, method).reconstruction, field.decode(tokens, SIZE))


def test_the_completeness_error_is_that_of_all_components(field, tokens, method):
    parts = run(field, tokens, method)
    expected = completeness_error(parts.components, parts.base, parts.reconstruction)
    torch.testing.assert_close(parts.completeness_error, expected, rtol=1e-9, atol=1e-12)
    assert (parts.completeness_error.max() < 1e-3) == DECOMPOSITIONS[method].adds_up


def test_a_selection_takes_components_and_keeps_the_error(field, tokens, method):
    everything, some = run(field, tokens, method), run(field, tokens, method, selection=[3, 0])
    assert some.indices == [3, 0]
    torch.testing.assert_close(some.components, everything.components[:, [3, 0]])
    torch.testing.assert_close(some.completeness_error, everything.completeness_error, rtol=1e-9, atol=1e-12)
    if method == "shapley":
        torch.testing.assert_close(some.standard_error, everything.standard_error[:, [3, 0]])


@pytest.mark.parametrize("chunk", [1, 7, 20, 39, 1000])
def test_chunks_change_nothing(field, tokens, method, chunk):
    whole, parts = run(field, tokens, method), run(field, tokens, method, chunk=chunk)
    for name in ("components", "base", "reconstruction", "completeness_error", "standard_error"):
        expected = getattr(whole, name)
        if expected is not None:
            torch.testing.assert_close(getattr(parts, name), expected, rtol=1e-9, atol=1e-11)


def test_permuting_tokens_permutes_components(field, tokens, method):
    order = [2, 4, 0, 1, 3]
    many = {"permutations": 200} if method == "shapley" else {}
    parts = run(field, tokens, method, **many)
    permuted = run(field, tokens[:, order], method, **many)
    if method == "shapley":  # other orders are drawn
        spread = (parts.standard_error[:, order].square() + permuted.standard_error.square()).sqrt()
        deviation = (permuted.components - parts.components[:, order]) / spread
        assert deviation.square().mean().sqrt() < 1.5
    else:
        torch.testing.assert_close(permuted.components, parts.components[:, order])


def test_equal_tokens_get_equal_components(field, tokens, method):
    tokens = tokens.clone()
    tokens[:, 3] = tokens[:, 1]
    many = {"permutations": 200} if method == "shapley" else {}
    parts = run(field, tokens, method, **many)
    difference = parts.components[:, 3] - parts.components[:, 1]
    if method == "shapley":
        spread = parts.standard_error[:, [1, 3]].square().sum(1).sqrt()
        assert (difference / spread).square().mean().sqrt() < 1.5
    else:
        torch.testing.assert_close(difference, torch.zeros_like(difference))


def test_images_do_not_see_each_other(field, tokens, method):
    together, alone = run(field, tokens, method), run(field, tokens[1:], method)
    torch.testing.assert_close(together.components[1:], alone.components)


def test_any_coordinates(field, tokens, method):
    whole = run(field, tokens, method)
    some = run(field, tokens, method, coords=grid(SIZE)[[7, 2, 11]])
    torch.testing.assert_close(some.components, whole.components.flatten(2, 3)[:, :, [7, 2, 11]])
    assert some.reconstruction.shape == (2, 3, 3)


@pytest.mark.parametrize(("num_axes", "size"), [(1, (6,)), (3, (2, 3, 2))], ids=["audio", "volume"])
def test_any_number_of_axes(method, num_axes, size):
    field = small_field(num_axes=num_axes, channels=2, has_masks=method == "mixture")
    parts = decompose(field, torch.randn(2, 5, 14).double(), size, method=method, **FEW.get(method, {}))
    assert parts.components.shape == (2, 5, *size, 2)


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_reductions_take_all_of_them(field, tokens, method, reduction):
    maps = reduce_components(run(field, tokens, method).components, reduction)
    assert maps.shape == (2, *SIZE, 15 if reduction == "rgb" else 5)


def test_gradients_reach_the_tokens(field, tokens, method):
    tokens = tokens.clone().requires_grad_()
    run(field, tokens, method).components.square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.abs().sum() > 0


def test_nothing_is_tracked_under_no_grad(field, tokens, method):
    with torch.no_grad():
        assert not run(field, tokens, method).components.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fields_dtype_is_kept(field, tokens, method, dtype):
    exact = run(field, tokens, method).components
    parts = run(field.to(dtype), tokens.to(dtype), method)
    assert parts.components.dtype == parts.reconstruction.dtype == dtype
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    assert (parts.components.double() - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize("changes", [{"has_query_residual": False}, {"has_decoder_feedforward": False}], ids=str)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "mixture"])
def test_only_solo_is_warned_of_missing_space(tokens, method, changes):
    field = small_field(**changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = run(field, tokens, method, **({"points": 64} if method == "additive" else {}))
    assert [w.category for w in caught] == ([SpaceWarning] if method == "solo" else [])
    assert parts.components.shape == (2, 5, *SIZE, 3)


def test_solo_is_the_component_images(field, tokens):
    parts = run(field, tokens, "solo")
    torch.testing.assert_close(parts.components, component_images(field, tokens, SIZE, strategy="loop"))


def test_the_base_is_the_readout_of_no_token(field, tokens):
    queries = field.queries(grid(SIZE))
    expected = field.readout(queries, field.decoder_attention.to_out.bias.expand(20, -1)).unflatten(0, SIZE)
    for method in methods_for(field):
        base = run(field, tokens, method).base
        torch.testing.assert_close(base, torch.zeros_like(base) if method == "attention" else expected.expand_as(base))


def test_attention_weights_sum_to_one_head_by_head(field, tokens):
    heads = [run(field, tokens, "attention", head=head).components for head in (0, 1)]
    for maps in heads:
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
    assert not torch.allclose(*heads)
    torch.testing.assert_close(run(field, tokens, "attention").components, (heads[0] + heads[1]) / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "solo decoding"}, "unknown method"),
        ({"method": "mixture"}, "one attention to all its tokens.*expected one of solo, additive"),
        ({"method": "additive", "points": 0}, "points is 0"),
        ({"method": "additive", "points": 65}, "points is 65"),
        ({"method": "additive", "tolerance": 0.0}, "tolerance"),
        ({"method": "additive", "tolerance": float("nan")}, "tolerance"),
        ({"method": "shapley", "tolerance": 1e-3}, "no option 'tolerance', which is one of 'additive'; it has perm"),
        ({"method": "additive", "pionts": 3}, "no option 'pionts', perhaps you meant 'points'; it has points, tol"),
        ({"points": 3}, "'solo' has no option 'points'.*; it has none"),
        ({"method": "additve"}, "perhaps you meant 'additive'"),
        ({"method": "shapley", "permutations": 2}, "permutations is 2"),
        ({"method": "shapley", "permutations": 5}, "even"),
        ({"method": "attention", "head": 2}, "0 to 1"),
        ({"chunk": 0}, "chunk is 0"),
        ({"selection": [9]}, "selection"),
        ({"size": None}, "neither"),
        ({"coords": grid(SIZE)}, "both"),
        ({"size": (5,)}, "axes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(field, tokens, options, words):
    with pytest.raises(UsageError, match=words):
        decompose(field, tokens, **{"size": SIZE} | options)


@pytest.mark.parametrize("shape", [(0, 5, 14), (2, 0, 14)], ids=str)
def test_no_tokens_are_refused(field, shape):
    with pytest.raises(UsageError, match="none of them 0"):
        decompose(field, torch.zeros(shape).double(), SIZE)


def test_the_table_of_the_docstring_is_the_registry():
    rows = re.findall(r"^\s+\| (`\w+` \| .*) \|$", decompose.__doc__, re.MULTILINE)
    assert rows == [f"`{n}` | {m.question} | {'yes' if m.adds_up else 'no'}" for n, m in DECOMPOSITIONS.items()]


def test_a_method_that_holds_every_token_gets_smaller_blocks(field):
    queries, method = field.queries(grid(SIZE)), DECOMPOSITIONS["leave_one_out"]
    few = default_chunk(method, 200, queries)
    assert few < default_chunk(replace(method, holds_every_token=False), 200, queries) / 8
    assert few == 64 * 2**20 // ((16 * 200 + 8 * 16 * 200) * 8)
    elsewhere = torch.empty_like(queries, device="meta")  # a device that is no CPU
    assert default_chunk(method, 200, elsewhere) == 2**30 // ((16 * 200 + 8 * 16 * 200) * 8)
