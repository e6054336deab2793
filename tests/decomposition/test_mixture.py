import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.decomposition import decompose, methods_for
from tdsm.decomposition.definition import loop
from tdsm.decomposition.measures import deletion_curve
from tdsm.decomposition.mixture import layers
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.tokenfield.coords import grid
from tests.conftest import SMALL, small_field

SIZE = (5, 4)


@pytest.fixture
def field():
    return small_field(has_masks=True)


def literal(field, tokens):
    """The mixture point by point and token by token, each token decoded alone through attention."""
    queries = field.queries(grid(SIZE))
    pictures, masks = [], []
    for k in range(tokens.shape[1]):
        x = queries + field.attend(queries, tokens[:, k : k + 1])
        x = x + field.decoder_feedforward(x)
        pictures.append(field.to_channels(x))
        masks.append(field.to_mask(x).exp())
    total = sum(masks)
    return torch.stack([m / total * p for m, p in zip(masks, pictures, strict=True)], dim=1)


def test_values_and_gradients_are_those_of_the_equation(field, tokens):
    trained = [tokens.requires_grad_(), *field.decoder_feedforward.parameters(), *field.to_mask.parameters()]
    expected = literal(field, tokens)
    actual = decompose(field, tokens, SIZE, method="mixture")
    torch.testing.assert_close(actual.components.flatten(2, 3), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(field.decode(tokens, SIZE).flatten(1, 2), expected.sum(1), rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected.sum(1))
    one = torch.autograd.grad((expected.sum(1) * weights).sum(), trained)
    other = torch.autograd.grad((field.decode(tokens, SIZE).flatten(1, 2) * weights).sum(), trained)
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_weights_are_a_share_and_pictures_are_the_solo_ones(field, tokens):
    queries = field.queries(grid(SIZE))
    images, weights = layers(field, tokens, queries)
    torch.testing.assert_close(images, loop(field, tokens, queries))
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 20, 1).double())
    assert weights.min() > 0


def test_the_components_add_up_in_float32():
    field = small_field(torch.float32, has_masks=True)
    parts = decompose(field, torch.randn(4, 5, 14), (16, 16), method="mixture")
    assert parts.completeness_error.max() < 1e-5
    assert not parts.base.any()


def test_one_token_alone_is_its_picture(field, tokens):
    alone = decompose(field, tokens[:, :1], SIZE, method="mixture")
    torch.testing.assert_close(alone.components[:, 0], decompose(field, tokens[:, :1], SIZE).components[:, 0])


def test_methods_are_those_of_the_fields_decoder(field, tokens):
    assert methods_for(field) == ("solo", "mixture")
    assert "mixture" not in methods_for(small_field())
    for method in ("additive", "leave_one_out", "attention", "shapley"):
        with pytest.raises(UsageError, match=rf"mixture.*'{method}'.*expected one of solo, mixture"):
            decompose(field, tokens, SIZE, method=method)


def test_deletion_removes_tokens_from_the_mixture(field, tokens):
    rank, whole = torch.arange(5).expand(2, 5), field.decode(tokens, SIZE)
    same, other = field.decode(tokens[:, 2:], SIZE), whole
    assert deletion_curve(field, tokens, rank, same, [2], SIZE).min() == 100  # dB, the most there is
    assert deletion_curve(field, tokens, rank, other, [2], SIZE).max() < 90


@pytest.mark.parametrize("missing", ["has_query_residual", "has_decoder_feedforward"])
def test_masks_need_a_decoder_that_can_say_where(missing):
    with pytest.raises(UsageError, match="has_masks needs"):
        NeuralField(FieldConfig(has_masks=True, **{missing: False}))


def test_masks_are_saved_and_loaded(field, tokens, tmp_path):
    field.write(tmp_path)
    loaded = NeuralField.from_pretrained(tmp_path)
    assert loaded.config.has_masks
    torch.testing.assert_close(loaded.decode(tokens.float(), SIZE), field.float().decode(tokens.float(), SIZE))


def test_masks_change_no_other_weight_at_the_start():
    starts = []
    for has_masks in (False, True):
        torch.manual_seed(0)
        starts.append(NeuralField(FieldConfig(**SMALL, has_masks=has_masks)).state_dict())
    plain, masked = starts
    assert masked.keys() - plain.keys() == {"to_mask.weight"}
    assert all(torch.equal(masked[name], value) for name, value in plain.items())
