"""Attention maps: how much each token is looked at, where. Nothing is decoded.

    I_k(q) = 1/heads · Σ_h α_hk(q),   or α_hk(q) of one head

In [0, 1], summing to 1 over tokens. So that all decompositions have one shape, every channel holds the same
weight: the reduction `mean` gives the weight back, `l2` gives √channels times it. The weights do not add up to
the reconstruction; against a base of zero their completeness error is measured like any other, and it is large.
"""

from dataclasses import dataclass

import torch

from tdsm.base.errors import UsageError
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.parts import Method, Options, Parts, reconstruct, widen
from tdsm.tokenfield import TokenField


@dataclass(frozen=True)
class Head(Options):
    """Which head is shown."""

    head: int | None = None  # None for the mean of all

    def __post_init__(self) -> None:
        if self.head is not None and not isinstance(self.head, int):
            raise UsageError(f"decompose: head is {self.head!r}, expected its number, or None for the mean of all.")


def attention(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Head) -> Parts:
    """Return the attention weights of the mean head, or of head `options.head`."""
    weights = widen(field.token_heads(tokens).weights(field.query_heads(queries)))
    heads = weights.shape[1]
    if options.head is not None and not 0 <= options.head < heads:
        raise UsageError(f"decompose: head is {options.head}, expected 0 to {heads - 1}, or None for their mean.")
    maps = weights.mean(1) if options.head is None else weights[:, options.head]
    reconstruction = reconstruct(field, tokens, queries)
    components = maps.mT[..., None].expand(-1, -1, -1, reconstruction.shape[-1])
    return Parts(components[:, indices], components.sum(1), torch.zeros_like(reconstruction), reconstruction)


ATTENTION = Method(attention, question="how much is token k looked at?", options=Head)
