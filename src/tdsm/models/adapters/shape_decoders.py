"""The decoders of three families of shape autoencoders, each answering as a token field.

TripoSG, Hunyuan3D and Michelangelo, for a point p, with q = embed(p):

    x = q + W_o · concat_h softmax(Q_h LN(q) · K_h LN(z)ᵀ / √d_h) V_h LN(z) + b_o
    y = x + W_2 GELU(W_1 LN(x) + b_1) + b_2;     value = W_c LN(y) + b_c

3DShape2VecSet has no query residual: x is what was attended, value = W_c (x + ff(x)) + b_c, if it has an ff at all.

Tokens are what enters this last cross-attention, behind the self-attention stack; `encode` is that stack, from the
latents an encoder or a generator gives. Nothing of those projects is imported: parts are known by their names.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.models.adapters.cross_attention import CrossAttentionField
from tdsm.tokenfield import Norm, Readout

PLAIN, INTERLEAVED = ("AttnProcessor", "AttnProcessor2_0"), ("TripoSGAttnProcessor2_0",)


class ShapeField(CrossAttentionField):
    """A shape decoder as a token field: three axes, one channel, coordinates in the model's own order. Abstract."""

    PARTS: tuple[str, ...]  # names by which a model of the family is known
    num_axes = 3
    has_query_residual = True
    has_nonlinear_readout = True
    separates = False  # whether `declared_readout` says what `readout` does, with GELU; seen when the model is wrapped
    token_width: int

    def declared_readout(self) -> Readout | None:
        """Return the readout's weights in the form that the family has; None for one without a query residual."""
        return None

    def separable_readout(self) -> Readout | None:
        """Return the readout's weights: ungated, with a final norm where the model has one."""
        return self.declared_readout() if self.separates else None

    def run_model(
        self, coords: Float[Tensor, "points axes"], tokens: Float[Tensor, "batch tokens token_width"]
    ) -> Float[Tensor, "batch points channels"]:
        """Run the model's own decoder behind its self-attention stack."""
        raise NotImplementedError


class TripoSGField(ShapeField):
    """The decoder of a `TripoSGVAEModel`. Its signed distance is negated, as the model's own is."""

    PARTS = ("embedder", "post_quant", "decoder.blocks", "decoder.proj_query", "decoder.norm_out", "decoder.proj_out")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.block = model.decoder.blocks[-1]
        self.attention = self.block.attn2
        self.heads = self.attention.heads
        self.token_width = self.attention.to_k.in_features
        processor = type(self.attention.processor).__name__
        if processor not in PLAIN + INTERLEAVED:
            raise UsageError(
                f"shape_field: the decoder's cross-attention is run by a {processor}, expected a plain one; others "
                "read only the top-k tokens, or fused weights. Call model.set_default_attn_processor() first."
            )
        self.is_interleaved = processor in INTERLEAVED

    def encode(self, latents: Float[Tensor, "batch tokens latent_width"]) -> Float[Tensor, "batch tokens token_width"]:
        """Run the self-attention stack on latents."""
        tokens = self.model.post_quant(latents)
        for block in self.model.decoder.blocks[:-1]:
            tokens = block(tokens)
        return tokens

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Embed coordinates."""
        project = self.model.decoder.proj_query
        return project(self.model.embedder(coords[None].to(project.weight.dtype)))[0]

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the last cross-attention."""
        return normed(
            self.attention.to_q(self.block.norm2(queries)), self.heads, getattr(self.attention, "norm_q", None)
        )

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the last cross-attention."""
        if self.attention.norm_cross is not None:
            tokens = self.attention.norm_cross(tokens)
        keys, values = self.attention.to_k(tokens), self.attention.to_v(tokens)
        if self.is_interleaved:
            keys, values = interleaved(torch.cat([keys, values], dim=-1), self.heads)
        return normed(keys, self.heads, getattr(self.attention, "norm_k", None)), values

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return its output projection."""
        return self.attention.to_out[0].weight, self.attention.to_out[0].bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return what the rest of the block and the projection make of it."""
        x = queries + attended
        x = x + self.block.ff(self.block.norm3(x))
        return -self.model.decoder.proj_out(self.model.decoder.norm_out(x))

    def declared_readout(self) -> Readout | None:
        """Return the readout's weights."""
        project = self.model.decoder.proj_out
        layers = (self.block.norm3, self.block.ff, self.model.decoder.norm_out)
        return _ungated(*layers, -project.weight, -project.bias)

    def run_model(self, coords: Tensor, tokens: Tensor) -> Tensor:
        """Run the model's decoder with tokens as what it cached."""
        points = self.model.embedder(coords.to(tokens.dtype).expand(len(tokens), -1, -1))
        return self.model.decoder(None, points, kv_cache=tokens)[0]


class GeoDecoderField(ShapeField):
    """The `geo_decoder` of a Hunyuan3D or Michelangelo `ShapeVAE`, or that decoder by itself."""

    PARTS = ("fourier_embedder", "query_proj", "cross_attn_decoder.attn.c_kv", "output_proj")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.decoder = decoder = getattr(model, "geo_decoder", model)
        self.block = decoder.cross_attn_decoder
        self.attention = attention = self.block.attn
        self.heads = attention.attention.heads
        shrinks = getattr(decoder, "downsample_ratio", 1) != 1
        self.shrink = decoder.latents_proj if shrinks else nn.Identity()
        self.norm_post = decoder.ln_post if getattr(decoder, "enable_ln_post", True) else nn.Identity()
        self.token_width = (self.shrink if shrinks else attention.c_kv).in_features
        _check_is_plain(attention)

    def encode(self, latents: Float[Tensor, "batch tokens latent_width"]) -> Float[Tensor, "batch tokens token_width"]:
        """Run the self-attention stack on latents.

        Raises:
            UsageError: If only the decoder was wrapped.
        """
        if self.model is self.decoder:
            raise UsageError("encode: only the decoder was wrapped, which starts from tokens. Wrap the whole model.")
        return self.model.decode(latents)

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Embed coordinates."""
        project = self.decoder.query_proj
        return project(self.decoder.fourier_embedder(coords[None]).to(project.weight.dtype))[0]

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the cross-attention."""
        q = self.attention.c_q(self.block.ln_1(queries))
        return normed(q, self.heads, getattr(self.attention.attention, "q_norm", None))

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the cross-attention."""
        keys, values = interleaved(self.attention.c_kv(self.block.ln_2(self.shrink(tokens))), self.heads)
        return normed(keys, self.heads, getattr(self.attention.attention, "k_norm", None)), values

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return its output projection."""
        return self.attention.c_proj.weight, self.attention.c_proj.bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return what the rest of the block and the projection make of it."""
        x = queries + attended
        x = x + self.block.mlp(self.block.ln_3(x))
        return self.decoder.output_proj(self.norm_post(x))

    def declared_readout(self) -> Readout | None:
        """Return the readout's weights."""
        project = self.decoder.output_proj
        return _ungated(self.block.ln_3, self.block.mlp, self.norm_post, project.weight, project.bias)

    def run_model(self, coords: Tensor, tokens: Tensor) -> Tensor:
        """Run the decoder."""
        return self.decoder(queries=coords.expand(len(tokens), -1, -1), latents=tokens)


class VecSetField(ShapeField):
    """The decoder of a 3DShape2VecSet `AutoEncoder` or `KLAutoEncoder`, which has no query residual.

    Solo decoding is then constant in space (`missing_space` says so). Without its feed-forward the readout is linear:
    `additive` is exact with one quadrature point.
    """

    PARTS = ("point_embed", "layers", "decoder_cross_attn.norm_context", "decoder_cross_attn.fn.to_kv", "to_outputs")
    has_query_residual = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.attention = model.decoder_cross_attn.fn
        self.heads = self.attention.heads
        self.token_width = self.attention.to_kv.in_features
        self.has_nonlinear_readout = model.decoder_ff is not None

    def encode(self, latents: Float[Tensor, "batch tokens latent_width"]) -> Float[Tensor, "batch tokens token_width"]:
        """Run the self-attention stack on latents."""
        tokens = self.model.proj(latents) if hasattr(self.model, "proj") else latents
        for attention, feedforward in self.model.layers:
            tokens = tokens + attention(tokens)
            tokens = tokens + feedforward(tokens)
        return tokens

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Embed coordinates."""
        return self.model.point_embed(coords[None].to(self.attention.to_q.weight.dtype))[0]

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the decoder's cross-attention."""
        return self.attention.to_q(self.model.decoder_cross_attn.norm(queries))

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the decoder's cross-attention."""
        return self.attention.to_kv(self.model.decoder_cross_attn.norm_context(tokens)).chunk(2, dim=-1)

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return its output projection."""
        return self.attention.to_out.weight, self.attention.to_out.bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return the output at x + ff(x), x = attended; the query only tells how far to broadcast."""
        return self._finish(attended.expand(torch.broadcast_shapes(queries.shape, attended.shape)))

    def run_model(self, coords: Tensor, tokens: Tensor) -> Tensor:
        """Run the model's own cross-attention, and what follows it."""
        queries = self.model.point_embed(coords.to(tokens.dtype).expand(len(tokens), -1, -1))
        return self._finish(self.model.decoder_cross_attn(queries, context=tokens))

    def _finish(self, x: Tensor) -> Tensor:
        return self.model.to_outputs(x if self.model.decoder_ff is None else x + self.model.decoder_ff(x))


def _ungated(norm: nn.Module, feedforward: nn.Module, final: nn.Module, weight: Tensor, bias: Tensor) -> Readout | None:
    """Collect W_c LN'(x + W_2 GELU(W_1 LN(x) + b_1) + b_2) + b_c, without LN' where the final norm is none.

    None for another norm, or a feed-forward that is not made of two linear layers.
    """
    layers = [layer for layer in feedforward.modules() if isinstance(layer, nn.Linear)]
    if len(layers) != 2 or any(x.bias is None for x in layers) or not isinstance(norm, nn.LayerNorm):
        return None
    return Readout(
        norm=Norm.of(norm, like=weight),
        hidden_weight=layers[0].weight,
        hidden_bias=layers[0].bias,
        output_weight=layers[1].weight,
        output_bias=layers[1].bias,
        channel_weight=weight,
        channel_bias=bias,
        final_norm=Norm.of(final, like=weight) if isinstance(final, nn.LayerNorm) else None,
    )


def normed(projected: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
    """Apply a norm to each head of what was projected, where there is one."""
    return projected if norm is None else norm(projected.unflatten(-1, (heads, -1))).flatten(-2)


def interleaved(projected: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Take keys and values apart that stand side by side head for head, [K_1 V_1 K_2 V_2 …].

    >>> interleaved(torch.arange(8)[None], heads=2)
    (tensor([[0, 1, 4, 5]]), tensor([[2, 3, 6, 7]]))
    """
    keys, values = projected.unflatten(-1, (heads, 2, -1)).unbind(-2)
    return keys.flatten(-2), values.flatten(-2)


def _check_is_plain(attention: nn.Module) -> None:
    """Raise `UsageError` if the cross-attention of a `geo_decoder` is set to anything but plain attention."""
    processor = type(getattr(attention.attention, "attn_processor", None)).__name__
    if processor not in ("CrossAttentionProcessor", "NoneType"):
        raise UsageError(
            f"shape_field: the attn_processor of the decoder's cross-attention is a {processor}, expected a "
            "CrossAttentionProcessor; others read only the top-k tokens. Set it to an instance of that first."
        )
    if getattr(attention, "kv_cache", False):
        raise UsageError(
            "shape_field: the decoder's attn.kv_cache is on, so it answers for the first shape it saw, whatever the "
            "tokens. Set it to False first."
        )
    if getattr(attention.attention, "flash", False):
        raise UsageError(
            "shape_field: the decoder's attention was built with flash=True, which attends over heads instead of "
            "tokens. Build the model with flash=False; the weights are the same."
        )
