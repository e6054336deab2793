import warnings

import pytest
import torch

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition import REDUCTIONS, STRATEGIES, component_images, map_queries, missing_space, spatial_map
from tdsm.decomposition.reduce import reduce_components
from tests.conftest import small_field

EVERY = list(STRATEGIES)
SELECTIONS = {"stride:2": [0, 2, 4], "first:3": [0, 1, 2], (4, 0): [4, 0]}


@pytest.fixture
def components(field, tokens):
    return component_images(field, tokens, size=(4, 6), strategy="loop")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("strategy", EVERY)
def test_every_strategy_gives_the_same_components_and_maps(field, tokens, components, strategy, reduction):
    seen = component_images(field, tokens, size=(4, 6), strategy=strategy, chunk=3)
    assert seen.shape == (2, 5, 4, 6, 3)
    torch.testing.assert_close(seen, components, rtol=1e-12, atol=1e-12)
    maps = spatial_map(field, tokens, size=(4, 6), reduction=reduction, strategy=strategy, chunk=3)
    assert maps.shape == (2, 4, 6, 15 if reduction == "rgb" else 5)
    torch.testing.assert_close(maps, reduce_components(components, reduction), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("strategy", EVERY)
def test_selecting_is_indexing(field, tokens, components, strategy, selection):
    seen = component_images(field, tokens, size=(4, 6), strategy=strategy, selection=selection)
    torch.testing.assert_close(seen, components[:, SELECTIONS[selection]], rtol=1e-12, atol=1e-12)
    maps = spatial_map(field, tokens, size=(4, 6), strategy=strategy, selection=selection)
    torch.testing.assert_close(maps, reduce_components(seen, "mean"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", EVERY)
def test_maps_are_permuted_with_the_tokens(field, tokens, strategy):
    order = torch.randperm(5)
    maps = spatial_map(field, tokens, size=(3, 3), strategy=strategy)
    permuted = spatial_map(field, tokens[:, order], size=(3, 3), strategy=strategy)
    torch.testing.assert_close(permuted, maps[..., order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", EVERY)
def test_one_token_alone_is_the_reconstruction(field, tokens, strategy):
    alone = tokens[:, :1]
    seen = component_images(field, alone, size=(5, 3), strategy=strategy)[:, 0]
    torch.testing.assert_close(seen, field.decode(alone, size=(5, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_grids_of_any_shape_and_scattered_points(axes, strategy):
    field = small_field(num_axes=axes, channels=1)
    tokens, size = torch.randn(2, 5, 14).double(), (4, 3, 2)[:axes]
    on_grid = component_images(field, tokens, size=size, strategy=strategy)
    assert on_grid.shape == (2, 5, *size, 1)
    coords = torch.tensor([[1.0] * axes, [-1.0] * axes], dtype=torch.float64)
    at_points = component_images(field, tokens, coords=coords, strategy=strategy)
    assert at_points.shape == (2, 5, 2, 1)
    corners = on_grid.flatten(2, -2)[:, :, [-1, 0]]
    torch.testing.assert_close(at_points, corners, rtol=1e-12, atol=1e-12)


def test_query_features_stand_for_coordinates(field, tokens):
    coords = torch.rand(7, 2)
    at_queries = map_queries(field, tokens, field.queries(coords))
    assert torch.equal(at_queries, spatial_map(field, tokens, coords=coords))


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize(
    ("residual", "feedforward", "words"),
    [(False, True, "no query residual"), (True, False, "no nonlinearity"), (False, False, "no query residual")],
)
def test_decoders_whose_components_carry_no_space_are_named(residual, feedforward, words, strategy):
    field = small_field(has_query_residual=residual, has_decoder_feedforward=feedforward)
    assert words in missing_space(field)
    tokens = torch.randn(2, 5, 14).double()
    for call in (component_images, spatial_map):
        with pytest.warns(SpaceWarning, match=words):
            call(field, tokens, size=(3, 4), strategy=strategy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpaceWarning)
        components = component_images(field, tokens, size=(3, 4), strategy=strategy)
    assert components.shape == (2, 5, 3, 4, 3)
    here = components - components[:, :, :1, :1]
    if not residual:  # constant in space, as the warning says
        torch.testing.assert_close(here, torch.zeros_like(here), rtol=0, atol=1e-12)
    else:  # one picture plus a constant, as the warning says
        torch.testing.assert_close(here, here[:, :1].expand_as(here), rtol=0, atol=1e-12)
        assert here.std() > 0.1


def test_a_whole_decoder_is_not_warned_about(field, tokens):
    assert missing_space(field) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spatial_map(field, tokens, size=(2, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "fast"}, "unknown strategy 'fast'; expected one of auto, loop, batched, exact"),
        ({"chunk": 0}, "chunk is 0"),
        ({"selection": [5]}, r"names \[5\], but tokens run from 0 to 4"),
        ({"reduction": "max"}, "unknown reduction 'max'; expected one of mean, rgb, l2"),
    ],
)
def test_options_that_do_not_fit_are_refused(field, tokens, options, words):
    with pytest.raises(UsageError, match=words):
        spatial_map(field, tokens, size=(2, 2), **options)
