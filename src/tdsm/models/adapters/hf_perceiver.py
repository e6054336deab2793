"""Hugging Face `transformers` Perceivers with a cross-attention decoder as token fields.

    x = attention(query, tokens) (+ query, with `use_query_residual`);   x += mlp(LN(x));   value = final_layer(x)

Adapts every model whose decoder is, or holds, a `PerceiverBasicDecoder`: image and video autoencoding, optical flow,
masked pixels, and classification (one query, a channel a class). Dropout is not applied: evaluation mode.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.models.adapters.cross_attention import CrossAttentionField, Features, check_kind, require
from tdsm.tokenfield import Norm, Readout

MODULE = "transformers.models.perceiver.modeling_perceiver"


class HFPerceiverField(CrossAttentionField):
    """Wrap a `transformers` Perceiver; its weights are shared, not copied.

    Fourier queries can be asked for anywhere in [-1, 1]. Trained ones exist on their own grid only.

    Args:
        model: A `PerceiverModel` or a model that holds one as `.perceiver`, in evaluation mode.
        size: Points along each axis of trained queries, where the decoder does not say: (32, 32).
        embed_coords: Overrides the decoder's own queries, (points, axes) -> (points, num_channels). Needed where
            they are built from the input, as in optical flow: then wrap once for each input.
        num_axes: Axes of the signal, with `embed_coords`; otherwise the decoder's position encoding says.

    Raises:
        ResourceError: If transformers is not installed.
        UsageError: If the model has no such decoder, or its output is not computed point by point.
    """

    has_nonlinear_readout = True

    def __init__(
        self,
        model: nn.Module,
        size: Sequence[int] | None = None,
        embed_coords: Features | None = None,
        num_axes: int = 2,
    ):
        super().__init__()
        perceiver = require(MODULE, "transformers")
        model = getattr(model, "perceiver", model)
        check_kind(model, perceiver.PerceiverModel, "HFPerceiverField")
        self.model = model
        decoder = getattr(model.decoder, "decoder", model.decoder)
        if not hasattr(decoder, "decoding_cross_attention"):
            raise UsageError(
                f"HFPerceiverField: the decoder is {type(model.decoder).__name__}, expected one with "
                "a cross-attention: PerceiverBasicDecoder, or one that holds it."
            )
        self.decoder = decoder
        self.layer = decoder.decoding_cross_attention
        self.has_query_residual = self.layer.attention.use_query_residual
        self.heads = self.layer.attention.self.num_heads
        self.rescale_factor = getattr(model.decoder, "rescale_factor", 1.0)
        post = model.output_postprocessor
        if not isinstance(post, perceiver.PerceiverProjectionPostprocessor | None):
            raise UsageError(
                f"HFPerceiverField: the postprocessor {type(post).__name__} mixes points; only a projection "
                "can be kept."
            )
        self.embed_coords = embed_coords
        self.size = None if embed_coords is not None else _query_size(decoder, size)
        self.num_axes = num_axes if embed_coords is not None else len(self.size)

    def encode(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens token_width"]:
        """Turn what the model takes as input into its latents, without running the decoder."""
        preprocess = self.model.input_preprocessor
        inputs = images if preprocess is None else preprocess(images)[0]
        return self.model.encoder(self.model.embeddings(batch_size=inputs.shape[0]), inputs=inputs)[0]

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Return the decoder's queries at coordinates."""
        if self.embed_coords is not None:
            return self.embed_coords(coords)
        encoding = self.decoder.output_position_encodings
        if self.decoder.position_encoding_type == "fourier":
            where = {"device": coords.device, "dtype": self.layer.layernorm.weight.dtype}
            features = encoding(self.size, batch_size=1, pos=coords[None], **where)
        else:
            features = encoding(batch_size=1)[:, _grid_index(coords, self.size)]
        return self.decoder.positions_projection(features)[0]

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the decoder's cross-attention."""
        attention = self.layer.attention.self
        return attention.query(attention.layernorm1(queries))

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the decoder's cross-attention."""
        attention = self.layer.attention.self
        tokens = attention.layernorm2(tokens)
        return attention.key(tokens), attention.value(tokens)

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the decoder's output projection."""
        dense = self.layer.attention.output.dense
        return dense.weight, dense.bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return the final layer at x + mlp(LN(x)), and the model's projection or rescaling after it."""
        shape = torch.broadcast_shapes(queries.shape, attended.shape)
        x = queries + attended if self.has_query_residual else attended.expand(shape)
        x = x + self.layer.feed_forward_chunk(x)
        values = self.decoder.final_layer(x) / self.rescale_factor
        return values if self.model.output_postprocessor is None else self.model.output_postprocessor(values)

    def separable_readout(self) -> Readout | None:
        """Return the readout's weights: ungated; None without the query residual, or with another activation."""
        mlp, activations = self.layer.mlp, require("transformers.activations", "transformers")
        if not (self.has_query_residual and isinstance(mlp.intermediate_act_fn, activations.GELUActivation)):
            return None
        weight, bias = self._channels()
        return Readout(
            norm=Norm.of(self.layer.layernorm, like=weight),
            hidden_weight=mlp.dense1.weight,
            hidden_bias=mlp.dense1.bias,
            output_weight=mlp.dense2.weight,
            output_bias=mlp.dense2.bias,
            channel_weight=weight,
            channel_bias=bias,
        )

    def _channels(self) -> tuple[Tensor, Tensor]:
        """Return the final layer, rescaling and projection as one linear layer."""
        weight = torch.eye(self.output_projection()[0].shape[0]).to(self.layer.mlp.dense2.weight)
        bias = weight.new_zeros(len(weight))
        post = self.model.output_postprocessor
        for layer in (self.decoder.final_layer, None if post is None else post.classifier):
            if isinstance(layer, nn.Linear):
                weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
            if layer is self.decoder.final_layer:
                weight, bias = weight / self.rescale_factor, bias / self.rescale_factor
        return weight, bias


def _query_size(decoder: nn.Module, size: Sequence[int] | None) -> tuple[int, ...]:
    """Return the grid the decoder's own queries belong to."""
    if decoder.position_encoding_type == "none" or decoder.concat_preprocessed_input:
        raise UsageError(
            "HFPerceiverField: this decoder's queries come from its input, so coordinates alone do not give them. "
            "Pass embed_coords, the queries for one input."
        )
    encoding = decoder.output_position_encodings
    if decoder.position_encoding_type == "fourier":
        return tuple(encoding.max_resolution)
    own = decoder.output_index_dims if size is None else size
    own = (own,) if isinstance(own, int) else tuple(own or ())
    count = encoding.position_embeddings.shape[0]
    if math.prod(own) != count or not own:
        raise UsageError(
            f"HFPerceiverField: the decoder has {count} trained queries, its grid would be {own or 'unknown'}. "
            "Pass size, the points along each axis, such as (32, 32)."
        )
    return own


def _grid_index(coords: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the row-major index of each coordinate on the grid of trained queries."""
    count = torch.tensor(size, device=coords.device)
    position = (coords + 1) / 2 * (count - 1)
    index = position.round()
    if bool(((position - index).abs() > 1e-3).any()) or bool(((index < 0) | (index >= count)).any()):
        raise UsageError(
            f"HFPerceiverField: trained queries exist on the grid {size} only, corners at -1 and 1; some coordinates "
            f"lie beside it. Ask for size={size} or its grid points."
        )
    strides = torch.tensor([math.prod(size[axis + 1 :]) for axis in range(len(size))], device=coords.device)
    return (index.long() * strides).sum(-1)
