"""Shapley components: a token's contribution averaged over all orders in which tokens could have arrived.

    v(S)(q) = decoder(q, S),   v(∅)(q) = readout(q, b_o)
    I_k(q)  = E_π [ v(S_π,k ∪ {k})(q) − v(S_π,k)(q) ],   S_π,k: the tokens before k in the order π

Estimated from orders drawn at random, each with its reverse (antithetic); the standard error is that of the mean over
such pairs. For every order the parts sum to the reconstruction exactly, so the estimate does too. Attention to a
subset is the old one, renormalised: with weights α and values v it is Σ_S α v / Σ_S α, a running sum along the order.

The slow reference for the other decompositions: one readout per (order, token, point), so `permutations` times
the work of leave-one-out. Sources: Shapley 1953; sampled orders, Castro et al. 2009; antithetic ones, Mitchell
et al. 2022.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.parts import Method, Options, Parts, read_nothing, reconstruct, widen
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import AttentionParts


@dataclass(frozen=True)
class Orders(Options):
    """How many orders are drawn, each with its reverse, and the seed of the draws."""

    permutations: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.permutations, int) or self.permutations < 4 or self.permutations % 2:
            raise UsageError(
                f"decompose: permutations is {self.permutations!r}, expected an even number of at least 4: each order "
                "is taken with its reverse, and a standard error needs two such pairs."
            )


def shapley(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Orders) -> Parts:
    """Average contributions over `options.permutations` random orders, the same for all images and points."""
    attention = field.attention_parts(queries, tokens)
    base = read_nothing(field, queries, attention)
    draw = generator(options.seed, "shapley")
    mean = scatter = torch.zeros((), device=tokens.device)
    pairs = options.permutations // 2
    for count in range(1, pairs + 1):
        order = torch.randperm(tokens.shape[1], generator=draw).to(tokens.device)
        both = [contributions(field, queries, attention, base, way) for way in (order, order.flip(0))]
        pair, before = (both[0] + both[1]) / 2, mean
        mean = before + (pair - before) / count
        scatter = scatter + (pair - before) * (pair - mean)
    error = (scatter / (pairs * (pairs - 1))).sqrt()
    return Parts(mean[:, indices], mean.sum(1), base, reconstruct(field, tokens, queries), error[:, indices])


def contributions(
    field: TokenField,
    queries: Queries,
    attention: AttentionParts,
    base: Float[Tensor, "batch points channels"],
    order: Int[Tensor, " tokens"],
) -> Float[Tensor, "batch tokens points channels"]:
    """Return how much each token changed the output when it arrived, tokens arriving in one order.

    As long as the weights of all that have arrived underflow to zero, nothing counts as received.
    """
    weights, values = widen(attention.weights)[..., order], widen(attention.values)[:, :, order]
    mass = weights.cumsum(-1)
    scale = torch.where(mass == 0, 0.0, 1 / torch.where(mass == 0, 1.0, mass))
    by_head = (
        scale[:, head, ..., None] * (weights[:, head, ..., None] * values[:, head, None]).cumsum(2)
        for head in range(weights.shape[1])
    )
    received = sum(by_head, widen(attention.bias))
    images = widen(field.readout(queries[:, None], received.to(queries.dtype)))
    before = torch.cat([widen(base)[:, :, None], images[:, :, :-1]], 2)
    return (images - before)[:, :, order.argsort()].movedim(2, 1)


SHAPLEY = Method(
    shapley,
    question="what does token k add, averaged over all orders of arrival? (slow)",
    adds_up=True,
    options=Orders,
    holds_every_token=True,
    is_sampled=True,
)
