import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition import spatial_map
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField, get_tdsm
from tdsm.models.weights import count_parameters
from tdsm.tokenfield.coords import grid
from tests import reference
from tests.conftest import SMALL, small_field

# Grids whose steps are binary fractions: float32 coordinates, which the field computes, are then exact.
EXACT_SIZES = {1: (17,), 2: (5, 9), 3: (3, 5, 2)}
VARIANTS = {
    "cascade": {},
    "grey": {"channels": 1},
    "audio": {"channels": 1, "num_axes": 1},
    "volume": {"channels": 2, "num_axes": 3},
    "equal widths": {"widths": (12, 12)},
    "one block, no processor": {"widths": (8,), "processor_depth": 0},
    "one token": {"num_latents": 1},
    "no query residual": {"has_query_residual": False},
    "no feed-forward": {"has_decoder_feedforward": False},
    "neither": {"has_query_residual": False, "has_decoder_feedforward": False},
}


def images_for(field, dtype=torch.float64):
    return torch.rand(2, field.config.channels, *EXACT_SIZES[field.num_axes], dtype=dtype) * 2 - 1


# ---------------------------------------------------------------- the equations


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_tokens_and_values_follow_the_equations(changes):
    field = small_field(**changes)
    state, config, images = reference.arrays(field), field.config, images_for(field)
    size = images.shape[2:]
    with torch.no_grad():
        tokens = field.encode(images)
        values = field.decode(tokens, size=size)
    assert tokens.shape == (2, config.num_tokens, config.widths[-1])
    assert values.shape == (2, *size, config.channels)
    for image, some, value in zip(images, tokens, values, strict=True):
        np.testing.assert_allclose(some, reference.encode(state, config, image.numpy()), rtol=1e-11, atol=1e-11)
        expected = reference.decode(state, config, some.numpy(), reference.grid(size))
        np.testing.assert_allclose(value.flatten(0, -2), expected, rtol=1e-11, atol=1e-11)


def test_float32_follows_them_as_closely_as_float32_can():
    field = small_field(torch.float32)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        tokens = field.encode(images)
        values = field.decode(tokens, size=(48, 40))
    state, config = reference.arrays(field), field.config
    expected = reference.encode(state, config, images[0].double().numpy())
    np.testing.assert_allclose(tokens[0], expected, rtol=1e-4, atol=1e-4)
    expected = reference.decode(state, config, tokens[0].double().numpy(), reference.grid((48, 40)))
    np.testing.assert_allclose(values[0].flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_published_scale_is_the_default():
    config = FieldConfig()
    assert (config.widths, config.num_tokens, config.query_dim) == ((256, 384, 512), 256, 192)
    assert (config.cross_heads, config.cross_head_dim, config.self_heads, config.self_head_dim) == (4, 128, 8, 128)
    assert (config.processor_depth, config.feedforward_multiple, config.fourier_scale) == (4, 4, 15.0)
    field = NeuralField()
    assert field.config == config
    assert field.decoder_feedforward.hidden.weight.shape == (2 * 768, 192)
    assert count_parameters(field) == sum(array.size for array in reference.arrays(field).values()) - 2 * 96


# ---------------------------------------------------------------- encode


def test_context_is_a_set_of_pixels(field):
    images = images_for(field)
    order = torch.randperm(45)
    torch.testing.assert_close(field.encode(images, keep=order), field.encode(images), rtol=1e-11, atol=1e-11)
    few = order[:11]
    torch.testing.assert_close(
        field.encode(images, keep=few), field.encode(images, keep=few.flip(0)), rtol=1e-11, atol=1e-11
    )
    assert not torch.allclose(field.encode(images, keep=few), field.encode(images))


def test_sparse_context_follows_the_equations_for_each_image_of_its_own(field):
    images = images_for(field)
    keep = torch.stack([torch.randperm(45)[:7] for _ in images])
    tokens = field.encode(images, keep=keep).detach()
    for image, kept, seen in zip(images, keep, tokens, strict=True):
        expected = reference.encode(reference.arrays(field), field.config, image.numpy(), keep=kept.numpy())
        np.testing.assert_allclose(seen, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(field.encode(images, keep=keep[0])[0], tokens[0], rtol=1e-11, atol=1e-11)


def test_pixels_scattered_samples_and_context_vectors_are_the_same(field):
    images = images_for(field)
    tokens, coords, values = field.encode(images), grid(images.shape[2:]), images.flatten(2).movedim(1, -1)
    torch.testing.assert_close(field.encode_points(values, coords), tokens)
    torch.testing.assert_close(field.encode_points(values, coords.expand(2, -1, -1)), tokens)
    context = torch.cat([values, field.fourier(coords).expand(2, -1, -1)], dim=-1)
    torch.testing.assert_close(field.encode_context(context), tokens)


def test_images_do_not_see_one_another(field):
    images = images_for(field)
    torch.testing.assert_close(field.encode(images)[1:], field.encode(images[1:]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("keep", "words"),
    [([], "at least one pixel"), ([45], r"45\.\.45, expected indices in 0\.\.44"), ([-1, 3], r"-1\.\.3, expected")],
)
def test_pixels_that_are_not_there_cannot_be_kept(field, keep, words):
    with pytest.raises(UsageError, match=words):
        field.encode(images_for(field), keep=torch.tensor(keep, dtype=torch.long))


# ---------------------------------------------------------------- decode


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_grid_is_its_coordinates(height, width):
    field = small_field()
    tokens = torch.randn(2, 5, 14).double()
    on_grid = field.decode(tokens, size=(height, width))
    assert on_grid.shape == (2, height, width, 3)
    torch.testing.assert_close(field.decode(tokens, coords=grid((height, width))), on_grid.flatten(1, 2))


def test_points_do_not_see_one_another(field, tokens):
    coords = torch.rand(6, 2)
    torch.testing.assert_close(field.decode(tokens, coords=coords)[:, 2:3], field.decode(tokens, coords=coords[2:3]))


def test_the_order_of_the_tokens_is_not_seen(field, tokens):
    values = field.decode(tokens, size=(3, 3))
    torch.testing.assert_close(field.decode(tokens[:, torch.randperm(5)], size=(3, 3)), values)


def test_attention_parts_add_up_to_what_is_attended(field, tokens):
    queries = field.queries(torch.rand(6, 2))
    weights, values, bias = field.attention_parts(queries, tokens)
    together = bias + (weights[..., None] * values[:, :, None]).sum(dim=(1, 3))
    torch.testing.assert_close(together, field.attend(queries, tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("residual", "feedforward"), [(True, False), (False, True), (False, False)])
def test_only_a_whole_decoder_offers_its_readout(field, residual, feedforward):
    assert field.separable_readout() is not None
    assert small_field(has_query_residual=residual, has_decoder_feedforward=feedforward).separable_readout() is None


# ---------------------------------------------------------------- latents


@pytest.mark.parametrize(("latents", "trained"), [("fixed", False), ("learned", True), ("random", True)])
def test_latents_start_and_train_as_configured_and_are_always_saved(latents, trained):
    field = NeuralField(FieldConfig(**SMALL, latents=latents))
    for level, width in enumerate(field.config.widths):
        start = field.encoder[level].latents
        assert start.requires_grad == trained
        assert f"encoder.{level}.latents" in field.state_dict()
        table = reference.sinusoids(5, width)
        assert np.allclose(start.detach(), table, rtol=0, atol=1e-6) == (latents != "random")
    field.decode(field.encode(torch.rand(1, 3, 4, 4)), size=(2, 2)).sum().backward()
    assert (field.encoder[0].latents.grad is not None) == trained


# ---------------------------------------------------------------- get_tdsm


@pytest.mark.parametrize("reduction", ["mean", "rgb", "l2"])
def test_get_tdsm_takes_images_or_context_and_features_or_coordinates(field, reduction):
    images, coords = images_for(field), grid((4, 4))
    expected = spatial_map(field, field.encode(images), size=(4, 4), reduction=reduction)
    values, features = images.flatten(2).movedim(1, -1), field.fourier(grid(images.shape[2:]))
    context = torch.cat([values, features.expand(2, -1, -1)], dim=-1)
    for data in (images, context):
        for queries in (field.queries(coords), coords):
            torch.testing.assert_close(get_tdsm(field, data, queries, reduce_rgb=reduction), expected)
    torch.testing.assert_close(field.get_tdsm(images, coords, reduction), expected)


def test_get_tdsm_averages_by_default_and_warns_like_spatial_map(field):
    assert field.get_tdsm(images_for(field), grid((2, 2))).shape == (2, 2, 2, 5)
    flat = small_field(has_query_residual=False)
    with pytest.warns(SpaceWarning, match="no query residual"):
        flat.get_tdsm(images_for(flat), grid((2, 2)))


@pytest.mark.parametrize(
    ("queries", "words"),
    [(torch.zeros(6, 16), r"shape \(6, 16\), expected \(side · side, width\)"), (torch.zeros(4, 5), "are 5 wide")],
)
def test_get_tdsm_refuses_queries_of_no_square_or_another_width(field, queries, words):
    with pytest.raises(UsageError, match=words):
        get_tdsm(field, images_for(field), queries.double())
