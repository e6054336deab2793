"""Decoders built on `torch.nn.MultiheadAttention` as token fields.

attended = attention(query_norm(q), token_norm(Z), token_norm(Z));   value = read(q, attended)
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.models.adapters.cross_attention import CrossAttentionField, Features, check_kind


class MultiheadField(CrossAttentionField):
    """Wrap an encoder, a `torch.nn.MultiheadAttention` and what follows it; weights are shared, not copied.

    Args:
        attention: A `torch.nn.MultiheadAttention` from queries to tokens, in evaluation mode (its dropout is not
            applied), batch first or not.
        embed_images: Signals to tokens, (batch, tokens, width of the attention's keys).
        embed_coords: Coordinates in [-1, 1] to queries, (points, width of the attention).
        read: (queries, attended) to values, pointwise; leading axes must broadcast.
        has_query_residual: Whether `read` lets the query through beside what was attended.
        has_nonlinear_readout: Whether `read` is nonlinear in what was attended.
        query_norm: What queries pass before the attention; None for nothing.
        token_norm: What tokens pass before the attention; None for nothing.
        num_axes: Axes of the signal: 1 audio, 2 images, 3 volumes.

    Raises:
        UsageError: If the attention has keys of its own (`add_bias_kv`, `add_zero_attn`), which are no tokens.
    """

    attention: nn.MultiheadAttention
    embed_images: Features
    embed_coords: Features
    read: nn.Module
    query_norm: nn.Module
    token_norm: nn.Module

    def __init__(
        self,
        attention: nn.Module,
        embed_images: Features,
        embed_coords: Features,
        read: nn.Module,
        *,
        has_query_residual: bool,
        has_nonlinear_readout: bool,
        query_norm: nn.Module | None = None,
        token_norm: nn.Module | None = None,
        num_axes: int = 2,
    ):
        super().__init__()
        check_kind(attention, nn.MultiheadAttention, "MultiheadField")
        if attention.bias_k is not None or attention.add_zero_attn:
            raise UsageError(
                "MultiheadField: the attention was built with add_bias_kv or add_zero_attn. Its extra key takes "
                "part of the attention but is no token, so tokens alone cannot explain the output; build it without."
            )
        self.attention = attention
        self.embed_images = embed_images
        self.embed_coords = embed_coords
        self.read = read
        self.query_norm = query_norm or nn.Identity()
        self.token_norm = token_norm or nn.Identity()
        self.has_query_residual = has_query_residual
        self.has_nonlinear_readout = has_nonlinear_readout
        self.num_axes = num_axes
        self.heads = attention.num_heads

    def encode(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens token_width"]:
        """Turn signals into tokens."""
        return self.embed_images(images)

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Embed coordinates."""
        return self.embed_coords(coords)

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the attention."""
        (weight, _, _), (bias, _, _) = self._inputs()
        return F.linear(self.query_norm(queries), weight, bias)

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the attention."""
        (_, key, value), (_, key_bias, value_bias) = self._inputs()
        tokens = self.token_norm(tokens)
        return F.linear(tokens, key, key_bias), F.linear(tokens, value, value_bias)

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output projection."""
        return self.attention.out_proj.weight, self.attention.out_proj.bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return read(queries, attended)."""
        return self.read(queries, attended)

    def _inputs(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return the weights of Q, K and V, packed or not, and their biases."""
        a = self.attention
        packed = a.in_proj_weight
        weights = (a.q_proj_weight, a.k_proj_weight, a.v_proj_weight) if packed is None else packed.chunk(3)
        return weights, (None, None, None) if a.in_proj_bias is None else a.in_proj_bias.chunk(3)
