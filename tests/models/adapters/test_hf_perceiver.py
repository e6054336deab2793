import sys

import pytest
import torch

from tdsm.base.errors import ResourceError, UsageError
from tdsm.decomposition import decompose
from tdsm.decomposition.definition import loop
from tdsm.decomposition.exact import exact
from tdsm.decomposition.path_gradient import by_autograd, by_separation
from tdsm.decomposition.solo import missing_space
from tdsm.models.adapters.hf_perceiver import MODULE, HFPerceiverField
from tdsm.tokenfield.coords import grid

transformers = pytest.importorskip("transformers", reason="pip install transformers")
from transformers.models.perceiver import modeling_perceiver as package  # noqa: E402

SIZE = (6, 5)
CONFIG = {"num_latents": 5, "d_latents": 12, "num_blocks": 1, "num_self_attends_per_block": 1}
HEADS = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}


def config(**options):
    torch.manual_seed(0)
    return transformers.PerceiverConfig(**CONFIG | HEADS | {"d_model": 3} | options)


def randomize(model):
    """Spread the weights: the package starts them so small that every decomposition would be rounding."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def image_preprocessor(settings):
    return package.PerceiverImagePreprocessor(
        settings,
        prep_type="conv1x1",
        spatial_downsample=1,
        out_channels=4,
        position_encoding_type="fourier",
        fourier_position_encoding_kwargs={"num_bands": 2, "max_resolution": SIZE},
    )


def image_model(use_query_residual=True, position="trainable", heads=2, **kwargs):
    settings = config()
    encodings = {
        "trainable": {"trainable_position_encoding_kwargs": {"num_channels": 8, "index_dims": 30}},
        "fourier": {"fourier_position_encoding_kwargs": {"num_bands": 3, "max_resolution": SIZE}},
    }
    decoder = package.PerceiverBasicDecoder(
        settings,
        output_num_channels=3,
        output_index_dims=SIZE,
        num_channels={"trainable": 8, "fourier": 14}[position],
        position_encoding_type=position,
        num_heads=heads,
        qk_channels=8,
        v_channels=12,
        use_query_residual=use_query_residual,
        **encodings[position],
        **kwargs,
    )
    return randomize(package.PerceiverModel(settings, decoder=decoder, input_preprocessor=image_preprocessor(settings)))


@pytest.fixture(params=[False, True], ids=["no residual", "residual"])
def residual(request):
    return request.param


@torch.no_grad()
def test_an_image_decoder_decodes_what_the_package_does(residual):
    model, images = image_model(residual), torch.randn(2, 3, *SIZE)
    field = HFPerceiverField(model)
    expected = model(images).logits.unflatten(1, SIZE)
    torch.testing.assert_close(field.decode(field.encode(images), SIZE), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fourier_queries_decode_what_the_package_does_at_any_resolution(residual):
    model, images = image_model(residual, "fourier"), torch.randn(2, 3, *SIZE)
    field = HFPerceiverField(model)
    tokens = field.encode(images)
    torch.testing.assert_close(tokens, package.PerceiverModel.forward(_without_decoder(model), images)[0])
    for size in (SIZE, (9, 4)):
        query = model.decoder.output_position_encodings(size, 2, device="cpu", dtype=torch.float32)
        expected = model.decoder(query, tokens).logits.unflatten(1, size)
        torch.testing.assert_close(field.decode(tokens, size), expected, rtol=1e-5, atol=1e-5)


def _without_decoder(model):
    bare = package.PerceiverModel(model.config, input_preprocessor=model.input_preprocessor).eval()
    bare.embeddings, bare.encoder = model.embeddings, model.encoder
    return bare


@torch.no_grad()
@pytest.mark.parametrize("position", ["trainable", "fourier"])
def test_battery(residual, position, check_field):
    field = HFPerceiverField(image_model(residual, position))
    check_field(field, field.encode(torch.randn(2, 3, *SIZE)), SIZE)


@torch.no_grad()
def test_leave_one_out_is_the_package_without_the_token(residual):
    model = image_model(residual)
    field = HFPerceiverField(model)
    tokens = field.encode(torch.randn(2, 3, *SIZE))
    parts = decompose(field, tokens, SIZE, method="leave_one_out")
    query = model.decoder.output_position_encodings(2)
    expected = model.decoder(query, tokens[:, 1:]).logits.unflatten(1, SIZE)
    torch.testing.assert_close(parts.reconstruction - parts.components[:, 0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_projection_after_the_decoder_is_kept():
    model, images = image_model(), torch.randn(2, 3, *SIZE)
    model.output_postprocessor = package.PerceiverProjectionPostprocessor(3, 2)
    field = HFPerceiverField(model)
    expected = model(images).logits.unflatten(1, SIZE)
    torch.testing.assert_close(field.decode(field.encode(images), SIZE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"final_project": False}, {"projected": True}, {"rescaled": True}], ids=str)
def test_the_ungated_readout_separates(options, residual):
    """Exact decoding and additive gradients from the declared weights equal those of the readout as it is."""
    options, projected, rescaled = dict(options), options.get("projected"), options.get("rescaled")
    model = image_model(residual, "fourier", **{k: v for k, v in options.items() if k == "final_project"}).double()
    if projected:
        model.output_postprocessor = package.PerceiverProjectionPostprocessor(3, 2).double()
    field = HFPerceiverField(model)
    if rescaled:
        field.rescale_factor = 100.0
    assert (field.separable_readout() is not None) == residual
    tokens, queries = torch.randn(2, 4, 12).double(), field.queries(grid(SIZE).double())
    weights = [field.layer.mlp.dense1.weight, field.layer.mlp.dense2.bias, field.layer.layernorm.weight]
    found = []
    for decode in (loop, exact):
        images = decode(field, tokens, queries)
        found.append([images, *torch.autograd.grad(images.square().sum(), weights)])
    for seen, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(seen, want, rtol=1e-12, atol=1e-12 * float(want.detach().abs().max()))
    start, step = torch.randn(2, 14).double()[0], torch.randn(2, 30, 14).double()
    if residual:
        path = by_separation(field.separable_readout(), queries, start, step, 3)
        torch.testing.assert_close(path, by_autograd(field, queries, start, step, 3), rtol=1e-10, atol=1e-11)


def test_another_activation_does_not_separate():
    model = image_model()
    model.decoder.decoding_cross_attention.mlp.intermediate_act_fn = torch.nn.ReLU()
    assert HFPerceiverField(model).separable_readout() is None


@torch.no_grad()
def test_classification_is_one_query_with_a_channel_a_class():
    settings = config(num_labels=4)
    kwargs = {"trainable_position_encoding_kwargs": {"num_channels": 8, "index_dims": 1}, "use_query_residual": True}
    decoder = package.PerceiverClassificationDecoder(settings, num_channels=8, **kwargs)
    model = randomize(
        package.PerceiverModel(settings, decoder=decoder, input_preprocessor=image_preprocessor(settings))
    )
    images = torch.randn(2, 3, *SIZE)
    field = HFPerceiverField(model)
    parts = decompose(field, field.encode(images), (1,), method="additive", points=16)
    torch.testing.assert_close(parts.reconstruction[:, 0], model(images).logits, rtol=1e-5, atol=1e-5)
    assert parts.completeness_error.max() < 1e-4


@torch.no_grad()
def test_optical_flow_asks_with_the_features_of_one_input():
    model = randomize(transformers.PerceiverForOpticalFlow(config(train_size=list(SIZE), d_model=322)))
    inputs = torch.randn(1, 2, 27, *SIZE)
    features = model.perceiver.input_preprocessor(inputs)[0][0]
    field = HFPerceiverField(model, embed_coords=lambda coords: features)
    tokens = field.encode(inputs)
    torch.testing.assert_close(field.decode(tokens, SIZE), model(inputs).logits, rtol=1e-5, atol=1e-5)
    model.perceiver.decoder.decoder.position_encoding_type = "none"
    with pytest.raises(UsageError, match="embed_coords"):
        HFPerceiverField(model)


def test_solo_is_told_apart_by_the_residual(residual):
    assert (missing_space(HFPerceiverField(image_model(residual))) is None) == residual


def test_trained_queries_exist_on_their_grid_only():
    field = HFPerceiverField(image_model())
    assert field.queries(grid(SIZE)).shape == (30, 8)
    with pytest.raises(UsageError, match="trained queries"):
        field.queries(torch.tensor([[0.123, 0.0]]))


def test_a_grid_that_does_not_hold_the_trained_queries_is_refused():
    with pytest.raises(UsageError, match="30 trained queries"):
        HFPerceiverField(image_model(), size=(6, 6))


def test_models_that_cannot_be_adapted_are_refused():
    with pytest.raises(UsageError, match="cross-attention"):
        HFPerceiverField(package.PerceiverModel(config(num_cross_attention_heads=1)))
    with pytest.raises(UsageError, match="PerceiverModel"):
        HFPerceiverField(torch.nn.Linear(2, 2))


def test_a_missing_package_is_named(monkeypatch):
    model = image_model()
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(ResourceError, match="pip install transformers"):
        HFPerceiverField(model)
