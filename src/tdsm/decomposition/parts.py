"""What every decomposition is asked and answers: one signature, before the points get their shape back.

    method(field, tokens, queries, indices, options) -> Parts

All of them treat every point by itself, so points may be cut into blocks without changing a result.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries, Tokens
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import AttentionParts


@dataclass(frozen=True)
class Options:
    """What single methods can be told; the others do not read it. See `decompose`."""

    points: int = 3
    head: int | None = None
    permutations: int = 32
    seed: int = 0


class Parts(NamedTuple):
    """A decomposition at a list of points."""

    components: Float[Tensor, "batch selected points channels"]
    total: Float[Tensor, "batch points channels"]  # the sum over all tokens, selected or not
    base: Float[Tensor, "batch points channels"]  # what is there without any token
    reconstruction: Float[Tensor, "batch points channels"]
    standard_error: Float[Tensor, "batch selected points channels"] | None = None


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
