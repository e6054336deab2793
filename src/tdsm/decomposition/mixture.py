"""The layers of a mixture: each token's solo picture, cut out by its own mask. They add up by construction.

A field with masks reads one more number out of a token that stands alone, its mask logit m_k:

    [I_k(q), m_k(q)]  = readout(q, c_k)                  c_k = attend_one(z_k), one more channel of the same readout
    w_k(q)            = exp m_k(q) / Σ_j exp m_j(q)
    reconstruction(q) = Σ_k w_k(q) · I_k(q)

As in slot models (Locatello et al. 2020, "Object-Centric Learning with Slot Attention"). There, every slot runs
through the whole decoder; here solo decoding costs what exact decoding does, at channels + 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Components, Queries, Tokens
from tdsm.decomposition.parts import Method, Options, Parts, has_masks, reconstruct, widen
from tdsm.decomposition.separated import evaluate, prepare
from tdsm.tokenfield import TokenField


def mixture(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Options) -> Parts:
    """Cut every token's solo picture out by its mask. Base: nothing."""
    images, weights = layers(field, tokens, queries)
    components, reconstruction = weights * images, reconstruct(field, tokens, queries)
    return Parts(components[:, indices], components.sum(1), torch.zeros_like(reconstruction), reconstruction)


def mix(field: TokenField, tokens: Tokens, queries: Queries) -> Float[Tensor, "batch points channels"]:
    """Return the mixture Σ_k w_k(q) · I_k(q) of all tokens."""
    images, weights = layers(field, tokens, queries)
    return (weights * images).sum(1).to(queries.dtype)


def layers(
    field: TokenField, tokens: Tokens, queries: Queries
) -> tuple[Components, Float[Tensor, "batch tokens points 1"]]:
    """Return each token's solo picture, and its weight w_k there among all tokens; in float32 or wider."""
    readout = field.masked_readout()
    assert readout is not None, "only a field with masks has layers"
    decoded = widen(evaluate(prepare(readout, queries), field.attend_one(tokens)))
    return decoded[..., :-1], decoded[..., -1:].softmax(dim=1)


MIXTURE = Method(
    mixture,
    question="what does token k's mask cut out of what it says alone? (a field with masks)",
    adds_up=True,
    suits=has_masks,
)
