"""The two blocks that fields are made of: pre-norm attention and a pre-norm gated feed-forward.

Neither adds its residual; the field that uses them does, where its equations say so.
"""

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class AttentionParts(NamedTuple):
    """An attention output taken apart: attended(q) = bias + Σ_h Σ_k weights[h, q, k] · values[h, k]."""

    weights: Float[Tensor, "batch heads points tokens"]  # softmax weights, in [0, 1], sum 1 over tokens
    values: Float[Tensor, "batch heads tokens width"]  # W_o^h V_h LN(z_k)
    bias: Float[Tensor, " width"]  # b_o


class TokenHeads(NamedTuple):
    """The tokens' side of an attention, head by head, before the output projection: as small as the tokens are.

    attended(q) = bias + Σ_h output[h]ᵀ · Σ_k softmax_k(q_h · keys[h, k] / √key_dim) · values[h, k]
    """

    keys: Float[Tensor, "batch heads tokens key_dim"]  # K_h LN(z_k)
    values: Float[Tensor, "batch heads tokens value_dim"]  # V_h LN(z_k)
    output: Float[Tensor, "heads value_dim width"]  # W_o^h
    bias: Float[Tensor, " width"]  # b_o

    def weights(self, queries: Float[Tensor, "heads points key_dim"]) -> Float[Tensor, "batch heads points tokens"]:
        """Return the softmax weights of queries, already taken apart into heads, on the tokens."""
        return (queries @ self.keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1)


class Attention(nn.Module):
    """Attend from queries to a context, both normalised first; multi-head, output projection with bias.

        a(q, Z) = W_o · concat_h softmax(Q_h LN(q) · (K_h LN(Z))ᵀ / √d_h) V_h LN(Z) + b_o

    With `context_dim=None` it is self-attention: one norm serves both sides and the context is the queries.
    """

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, head_dim: int):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm = nn.LayerNorm(query_dim)
        self.norm_context = None if context_dim is None else nn.LayerNorm(context_dim)
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_kv = nn.Linear(query_dim if context_dim is None else context_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, query_dim)

    def forward(
        self,
        queries: Float[Tensor, "*batch points width"],
        context: Float[Tensor, "batch tokens context_width"] | None = None,
    ) -> Float[Tensor, "batch points width"]:
        """Return what each query receives. Queries without a batch axis are shared by the whole batch."""
        q, k, v = self._heads(queries, context)
        attended = F.scaled_dot_product_attention(q.expand(*k.shape[:2], -1, -1), k, v)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))

    def alone(self, context: Float[Tensor, "batch tokens context_width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what any query receives from each context vector when that one is the only key.

        A softmax over one key is 1, so queries and keys drop out: c_k = W_o · concat_h V_h LN(z_k) + b_o.
        """
        assert self.norm_context is not None, "self-attention has no context of its own"
        value_weight = self.to_kv.weight.chunk(2)[1]
        return self.to_out(F.linear(self.norm_context(context), value_weight))

    def query_heads(self, queries: Float[Tensor, "points width"]) -> Float[Tensor, "heads points key_dim"]:
        """Return Q of every head."""
        return self._split(self.to_q(self.norm(queries)))

    def token_heads(self, context: Float[Tensor, "batch tokens context_width"]) -> TokenHeads:
        """Return K and V of every head, and the output projection's rows of every head."""
        assert self.norm_context is not None, "self-attention has no context of its own"
        keys, values = map(self._split, self.to_kv(self.norm_context(context)).chunk(2, dim=-1))
        output = rearrange(self.to_out.weight, "w (h d) -> h d w", h=self.heads)
        return TokenHeads(keys, values, output, self.to_out.bias)

    def _heads(self, queries: Tensor, context: Tensor | None) -> list[Tensor]:
        queries = self.norm(queries)
        context = queries if context is None or self.norm_context is None else self.norm_context(context)
        return [self._split(t) for t in (self.to_q(queries), *self.to_kv(context).chunk(2, dim=-1))]

    def _split(self, projected: Tensor) -> Tensor:
        return rearrange(projected, "... n (h d) -> ... h n d", h=self.heads)


class FeedForward(nn.Module):
    """Apply a gated feed-forward to normalised inputs: W_2 · [u ⊙ GELU(g)] + b_2 with [u, g] = W_1 LN(x) + b_1.

    GELU is the exact one, with erf. Source: Shazeer 2020, "GLU Variants Improve Transformer", GEGLU.
    """

    def __init__(self, width: int, multiple: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * multiple * width)
        self.output = nn.Linear(multiple * width, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return the feed-forward's output, without the residual."""
        value, gate = self.hidden(self.norm(x)).chunk(2, dim=-1)
        return self.output(value * F.gelu(gate))
