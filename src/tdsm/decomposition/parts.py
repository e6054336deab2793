"""What every decomposition is asked and answers, and what it says about itself.

    run(field, tokens, queries, indices, options) -> Parts

All of them treat every point by itself, so points may be cut into blocks without changing a result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries, Tokens
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import AttentionParts


class Parts(NamedTuple):
    """A decomposition at a list of points."""

    components: Float[Tensor, "batch selected points channels"]
    total: Float[Tensor, "batch points channels"]  # the sum over all tokens, selected or not
    base: Float[Tensor, "batch points channels"]  # what is there without any token
    reconstruction: Float[Tensor, "batch points channels"]
    standard_error: Float[Tensor, "batch selected points channels"] | None = None
    movement: Float[Tensor, "batch points"] | None = None  # of light tokens, at most; see `ablation`


@dataclass(frozen=True)
class Options:
    """What a method can be told: nothing, unless its own options say more. They check themselves."""

    def finer(self, error: Float[Tensor, " batch"]) -> "Options | None":
        """Return options that come closer, if this completeness error is not yet what was asked for."""
        return None


def has_one_attention(field: TokenField) -> bool:
    """Whether a field decodes by one attention to all its tokens."""
    return field.masked_readout() is None


def has_masks(field: TokenField) -> bool:
    """Whether a field decodes by a mixture of its tokens by masks."""
    return field.masked_readout() is not None


def any_field(field: TokenField) -> bool:
    """Every field will do."""
    return True


@dataclass(frozen=True)
class Method:
    """A decomposition, and what others must know of it; none is asked for by name."""

    run: Callable[[TokenField, Tokens, Queries, list[int], Any], Parts]
    question: str  # that component k answers
    adds_up: bool = False  # base and components sum to the reconstruction
    suits: Callable[[TokenField], bool] = has_one_attention
    options: type[Options] = Options
    prepare: Callable[[TokenField, Tokens, list[int], Any], Callable[[Queries], Parts]] | None = None  # see `over`
    decodes_alone: bool = False  # every token by itself, which not every decoder can place: see `missing_space`
    holds_every_token: bool = False  # hidden units of all tokens at once, where others hold one token's
    is_sampled: bool = False  # an estimate from random draws, with a standard error; far slower than the others

    def over(
        self, field: TokenField, tokens: Tokens, indices: list[int], options: Options
    ) -> Callable[[Queries], Parts]:
        """Return what decomposes at any block of queries; what concerns tokens alone is done here, if it can be."""
        if self.prepare is not None:
            return self.prepare(field, tokens, indices, options)
        return lambda queries: self.run(field, tokens, queries, indices, options)


def reconstruct(field: TokenField, tokens: Tokens, queries: Queries) -> Float[Tensor, "batch points channels"]:
    """Decode all tokens together."""
    return field.reconstruct(queries, tokens)


def read_nothing(field: TokenField, queries: Queries, attention: AttentionParts) -> Tensor:
    """Read out what a query receives from no token at all, the attention's bias: readout(q, b_o)."""
    nothing = attention.bias.expand(attention.values.shape[0], queries.shape[0], -1)
    return field.readout(queries, nothing)


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype its sums are accumulated in: float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
