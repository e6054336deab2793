"""Shape autoencoders of the VecSet family as token fields: which tokens make which part of a shape?

    field = shape_field(model)              TripoSG, Hunyuan3D, Michelangelo, 3DShape2VecSet: a loaded model
    tokens = field.encode(latents)          through its self-attention stack
    field.decode(tokens, (64, 64, 64))      as the model does
    contributions(field, tokens, coords, regions)

No code and no weights of these projects are used; a model is known by the names of its parts.
"""

from operator import attrgetter

import torch
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.decomposition.separated import evaluate, prepare
from tdsm.models.adapters.shape_decoders import GeoDecoderField, ShapeField, TripoSGField, VecSetField

FAMILIES: dict[str, type[ShapeField]] = {
    "TripoSG `TripoSGVAEModel`": TripoSGField,
    "Hunyuan3D or Michelangelo `ShapeVAE`, or its `geo_decoder`": GeoDecoderField,
    "3DShape2VecSet `AutoEncoder` or `KLAutoEncoder`": VecSetField,
}


def shape_field(model: nn.Module) -> ShapeField:
    """Wrap a loaded shape autoencoder, or its decoder, as a token field; weights are shared, not copied.

    Tokens are what enters the decoder's last cross-attention. The plain attention is decomposed; settings that change
    it are refused. What is wrapped is checked at once against the model's own decoder, at a few points.

    Args:
        model: One of `FAMILIES`, in evaluation mode.

    Returns:
        A field with three axes and the model's own coordinates; `encode` takes latents, not point clouds.

    Raises:
        UsageError: If the model is of no known family, is set to another attention, or decodes anything else.
    """
    decoder = getattr(model, "geo_decoder", model)
    for kind in FAMILIES.values():
        if all(_has(decoder, name) for name in kind.PARTS):
            field = kind(model)
            _check_equal(field, type(model).__name__)
            field.separates = _is_as_declared(field)
            return field
    known = "; ".join(f"{family}: {', '.join(kind.PARTS)}" for family, kind in FAMILIES.items())
    raise UsageError(
        f"shape_field: got a {type(model).__name__}, which lacks the parts of every family known ({known}). Another "
        "decoder is wrapped in a few lines: see examples/own_model.py."
    )


def _has(model: nn.Module, name: str) -> bool:
    try:
        attrgetter(name)(model)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def _check_equal(field: ShapeField, name: str) -> None:
    """Raise `UsageError` unless field and model say the same at a few points about a few random tokens."""
    draw, weight = generator(0, "shape_field"), field.output_projection()[0]
    tokens = torch.randn(2, 5, field.token_width, generator=draw).to(weight)
    coords = (2 * torch.rand(4, 3, generator=draw) - 1).to(weight)
    seen, expected = field.decode(tokens, coords=coords), field.run_model(coords, tokens)
    difference = _largest(seen - expected)
    if not difference <= torch.finfo(weight.dtype).eps ** 0.5 * max(1.0, _largest(expected)):
        raise UsageError(
            f"shape_field: {name} decodes something else than the equations of its family: values up to "
            f"{_largest(expected):.2g} differ by {difference:.1e}. Is it in evaluation mode (model.eval()), with its "
            "own attention unchanged? Another decoder is wrapped in a few lines: see examples/own_model.py."
        )


@torch.no_grad()
def _is_as_declared(field: ShapeField) -> bool:
    """Tell whether a few token values are read out as the declared weights say; another activation is not."""
    readout = field.declared_readout()
    if readout is None:
        return False
    draw, weight = generator(0, "shape_field readout"), field.output_projection()[0]
    queries, values = (torch.randn(4, len(weight), generator=draw).to(weight) for _ in range(2))
    seen, expected = evaluate(prepare(readout, queries), values[None])[0], field.readout(queries, values[:, None])
    return _largest(seen - expected) <= torch.finfo(weight.dtype).eps ** 0.5 * max(1.0, _largest(expected))


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
