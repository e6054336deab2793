import pytest
import torch
from torch import nn

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition import decompose
from tdsm.decomposition.definition import loop
from tdsm.decomposition.exact import exact
from tdsm.decomposition.solo import missing_space
from tdsm.models.adapters.shape import shape_field
from tests.models.adapters import shape_modules as own

SIZE = (3, 4, 5)
MODELS = {
    "TripoSG": lambda: own.TripoSGVAEModel(),
    "TripoSG, heads side by side": lambda: own.TripoSGVAEModel(own.AttnProcessor2_0()),
    "TripoSG, query and key norms": lambda: own.TripoSGVAEModel(qk_norm=True),
    "Hunyuan3D": lambda: own.ShapeVAE(),
    "Hunyuan3D, query and key norms": lambda: own.ShapeVAE(qk_norm=True),
    "Hunyuan3D, downsampled": lambda: own.ShapeVAE(ratio=2),
    "Hunyuan3D, no last norm": lambda: own.ShapeVAE(ln_post=False),
    "Michelangelo": lambda: own.ShapeVAE(has_processor=False),
    "3DShape2VecSet": lambda: own.KLAutoEncoder(),
    "3DShape2VecSet, feed-forward": lambda: own.KLAutoEncoder(decoder_ff=True),
    "3DShape2VecSet, no bottleneck": lambda: own.AutoEncoder(),
}
WITH_RESIDUAL = [name for name in MODELS if not name.startswith("3DShape2VecSet")]


def randomised(model, dtype=torch.float32):
    """Draw every weight at random, norms and biases included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request, name):
    torch.manual_seed(0)
    return randomised(MODELS[name](), request.param)


def latents_of(model, num_tokens=6):
    width = own.WIDTH if type(model) is own.AutoEncoder else own.LATENT
    return torch.randn(2, num_tokens, width, dtype=next(model.parameters()).dtype)


@torch.no_grad()
def test_decodes_what_the_model_does(model):
    field, latents, coords = shape_field(model), latents_of(model), 2 * torch.rand(7, 3) - 1
    expected = model.decode_points(latents, coords.to(latents.dtype).expand(2, -1, -1))
    seen = field.decode(field.encode(latents), coords=coords)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    assert field.num_axes == 3


@torch.no_grad()
def test_battery(model, check_field):
    field = shape_field(model)
    check_field(field, field.encode(latents_of(model)), SIZE)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_RESIDUAL)
def test_leave_one_out_is_the_model_without_the_token(model):
    field = shape_field(model)
    tokens, coords = field.encode(latents_of(model)), 2 * torch.rand(5, 3) - 1
    parts = decompose(field, tokens, coords=coords, method="leave_one_out")
    for k in range(tokens.shape[1]):
        others = torch.cat([tokens[:, :k], tokens[:, k + 1 :]], 1)
        expected = field.run_model(coords.to(tokens.dtype), others)
        torch.testing.assert_close(parts.reconstruction - parts.components[:, k], expected, rtol=1e-5, atol=1e-5)


def test_a_residual_carries_space_and_its_absence_is_said(name):
    field = shape_field(randomised(MODELS[name]()))
    assert (missing_space(field) is None) == (name in WITH_RESIDUAL)
    if name not in WITH_RESIDUAL:
        with pytest.warns(SpaceWarning, match="query residual"):
            decompose(field, field.encode(latents_of(field.model)), SIZE, method="solo")


@pytest.mark.parametrize("name", WITH_RESIDUAL)
def test_the_first_layer_separates_with_and_without_a_last_norm(name):
    field = shape_field(randomised(MODELS[name](), torch.float64))
    readout = field.separable_readout()
    assert not readout.is_gated
    assert (readout.final_norm is None) == name.endswith("no last norm")
    tokens, queries = field.encode(latents_of(field.model)).detach(), field.queries(2 * torch.rand(7, 3).double() - 1)
    weights = [readout.norm.weight, *(x for x in vars(readout).values() if isinstance(x, torch.Tensor) and x.is_leaf)]
    images = [way(field, tokens, queries.detach()) for way in (exact, loop)]
    torch.testing.assert_close(*images, rtol=1e-12, atol=1e-12)
    for seen, want in zip(*(torch.autograd.grad(x.square().sum(), weights) for x in images), strict=True):
        torch.testing.assert_close(seen, want, rtol=1e-10, atol=1e-12 * float(want.abs().max()))


def test_another_activation_is_noticed_and_read_out_as_it_is(monkeypatch):
    monkeypatch.setattr(own.MLP, "forward", lambda self, x: self.c_proj(torch.relu(self.c_fc(x))))
    field = shape_field(randomised(own.ShapeVAE(), torch.float64))
    assert field.separable_readout() is None


@torch.no_grad()
def test_without_feedforward_one_point_is_exact():
    field = shape_field(randomised(own.KLAutoEncoder(), torch.float64))
    assert not field.has_nonlinear_readout
    parts = decompose(field, field.encode(latents_of(field.model)), SIZE, method="additive", points=1)
    assert parts.completeness_error.max() < 1e-12


@torch.no_grad()
def test_a_decoder_alone_starts_from_tokens():
    model = randomised(own.ShapeVAE())
    whole, alone = shape_field(model), shape_field(model.geo_decoder)
    tokens = whole.encode(latents_of(model))
    torch.testing.assert_close(alone.decode(tokens, SIZE), whole.decode(tokens, SIZE), rtol=0, atol=0)
    with pytest.raises(UsageError, match="Wrap the whole model"):
        alone.encode(latents_of(model))


def attention_of(model):
    return model.geo_decoder.cross_attn_decoder.attn


def set_top_k(model):
    attention_of(model).attention.attn_processor = own.FlashVDMCrossAttentionProcessor()


def set_class(model):
    attention_of(model).attention.attn_processor = own.CrossAttentionProcessor


def set_cache(model):
    attention_of(model).kv_cache = True


def set_flash(model):
    attention_of(model).attention.flash = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_top_k, "is a FlashVDMCrossAttentionProcessor, expected a CrossAttentionProcessor"),
        (set_class, "is a type, expected a CrossAttentionProcessor.*an instance"),
        (set_cache, "kv_cache is on"),
        (set_flash, "flash=True"),
    ],
)
def test_another_attention_is_refused(change, words):
    model = own.ShapeVAE()
    change(model)
    with pytest.raises(UsageError, match=words):
        shape_field(model)
    with pytest.raises(UsageError, match=words):
        shape_field(model.geo_decoder)


def test_a_top_k_decoder_is_refused():
    with pytest.raises(UsageError, match=r"FlashTripoSGAttnProcessor2_0.*set_default_attn_processor"):
        shape_field(own.TripoSGVAEModel(own.FlashTripoSGAttnProcessor2_0()))


def test_a_known_name_with_another_attention_is_noticed():
    class TripoSGAttnProcessor2_0(own.FlashTripoSGAttnProcessor2_0):
        pass

    with pytest.raises(UsageError, match="decodes something else"):
        shape_field(randomised(own.TripoSGVAEModel(TripoSGAttnProcessor2_0())))


def test_a_decoder_with_more_in_it_is_noticed():
    model = randomised(own.ShapeVAE())
    model.geo_decoder.cross_attn_decoder.register_forward_hook(lambda module, inputs, output: output.flip(-1))
    with pytest.raises(UsageError, match="ShapeVAE decodes something else"):
        shape_field(model)


def test_another_model_is_refused_with_what_is_known():
    with pytest.raises(UsageError, match=r"got a Linear.*TripoSG.*query_proj.*point_embed.*own_model"):
        shape_field(nn.Linear(2, 2))
