import sys

import pytest
import torch

from tdsm.base.errors import ResourceError, SpaceWarning, UsageError
from tdsm.decomposition import decompose
from tdsm.decomposition.solo import missing_space
from tdsm.models.adapters.perceiver_pytorch import PerceiverIOField
from tdsm.tokenfield.coords import FourierFeatures, grid

package = pytest.importorskip("perceiver_pytorch", reason="pip install perceiver-pytorch")
SIZE = (6, 5)


def model(**options):
    torch.manual_seed(0)
    default = {"depth": 1, "dim": 3, "queries_dim": 8, "logits_dim": 2, "num_latents": 5, "latent_dim": 12}
    heads = {"cross_heads": 2, "latent_heads": 2, "cross_dim_head": 4, "latent_dim_head": 4}
    return package.PerceiverIO(**default | heads | options).eval()


def embed_images(images):
    return images.flatten(2).mT


@pytest.fixture(params=["plain", "feedforward", "one head", "no logits", "attention residual"])
def perceiver(request):
    options = {
        "feedforward": {"decoder_ff": True},
        "one head": {"cross_heads": 1},
        "no logits": {"logits_dim": None},
        "attention residual": {"depth": 2, "attn_residual": True, "decoder_ff": True},
    }
    return model(**options.get(request.param, {}))


def field_of(perceiver):
    torch.manual_seed(1)
    return PerceiverIOField(perceiver, embed_images, FourierFeatures(2, 4, 2.0))


@torch.no_grad()
def test_decodes_what_the_package_does(perceiver):
    field, images = field_of(perceiver), torch.randn(2, 3, 4, 4)
    expected = perceiver(embed_images(images), queries=field.queries(grid(SIZE)))
    decoded = field.decode(field.encode(images), SIZE)
    torch.testing.assert_close(decoded.flatten(1, 2), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_battery(perceiver, check_field):
    field = field_of(perceiver)
    check_field(field, 2 * field.encode(torch.randn(2, 3, 4, 4)), SIZE)


@torch.no_grad()
def test_leave_one_out_is_the_package_without_the_token():
    perceiver = model(decoder_ff=True)
    field = field_of(perceiver)
    tokens = field.encode(torch.randn(2, 3, 4, 4))
    parts = decompose(field, tokens, SIZE, method="leave_one_out")
    queries = field.queries(grid(SIZE)).expand(2, -1, -1)
    x = perceiver.decoder_cross_attn(queries, context=tokens[:, 1:])
    expected = perceiver.to_logits(x + perceiver.decoder_ff(x)).unflatten(1, SIZE)
    torch.testing.assert_close(parts.reconstruction - parts.components[:, 0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_linear_head_reconstructs_from_weighted_solo_components():
    field = field_of(model(cross_heads=1)).double()
    tokens = 2 * field.encode(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    with pytest.warns(SpaceWarning):
        solo = decompose(field, tokens, SIZE, method="solo").components
    weights = decompose(field, tokens, SIZE, method="attention").components
    torch.testing.assert_close((weights * solo).sum(1), field.decode(tokens, SIZE), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_weighted_solo_components_miss_the_reconstruction_behind_a_feedforward():
    field = field_of(model(cross_heads=1, decoder_ff=True))
    tokens = 2 * field.encode(torch.randn(2, 3, 4, 4))
    with pytest.warns(SpaceWarning):
        solo = decompose(field, tokens, SIZE, method="solo").components
    weights = decompose(field, tokens, SIZE, method="attention").components
    assert ((weights * solo).sum(1) - field.decode(tokens, SIZE)).abs().max() > 1e-4


def test_solo_carries_no_space_and_says_so(perceiver):
    assert "query residual" in missing_space(field_of(perceiver))


def test_another_model_is_refused():
    with pytest.raises(UsageError, match="PerceiverIO"):
        PerceiverIOField(torch.nn.Linear(2, 2), embed_images, FourierFeatures(2, 4, 2.0))


def test_a_missing_package_is_named(monkeypatch):
    perceiver = model()
    monkeypatch.setitem(sys.modules, "perceiver_pytorch", None)
    with pytest.raises(ResourceError, match="pip install perceiver-pytorch"):
        field_of(perceiver)
