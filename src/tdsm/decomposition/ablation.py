"""Leave-one-out components: what would be missing from the reconstruction without a token.

    I_k(q) = reconstruction(q) − decoder(q, Z ∖ {z_k})

No attention is run again. Without token k the softmax of each head h is the old one, renormalised, so that with
o_h = Σ_j α_hj v_hj the head gives

    (o_h − α_hk v_hk) / (1 − α_hk)

Where α_hk → 1 that is a difference of nearly equal numbers over nearly zero. At most one token a (head, point)
has a weight above one half; for the heaviest the sum over the others is taken directly. What remains is one
readout per (point, token), as in solo decoding.

Attention is peaked, so most of these can be spared. Tokens whose weight is at most a threshold in every head move what
a point receives but little, and share one gradient of the readout instead of a readout each:

    Δ_k = Σ_h α_hk / (1 − α_hk) · W_o^h (v_hk − o_h)
    I_k = ⟨∇ readout(q, a(q)), Δ_k⟩ + O(‖Δ_k‖²)

How good that is depends on the readout; how far the point moves is measured, ‖Δ_k‖ ≤ Σ_h α_hk / (1 − α_hk) ·
‖W_o^h (v_hk − o_h)‖, against ‖a(q) − b_o‖ (`movement`). At a threshold of 0 only weights that underflowed are spared,
and nothing is lost.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.decomposition.additive import contract
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.parts import Method, Options, Parts, reconstruct, widen
from tdsm.decomposition.path_gradient import read_path
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import TokenHeads

Weights = Float[Tensor, "batch heads points tokens"]
Pairs = tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]  # image, point and token of each


@dataclass(frozen=True)
class Threshold(Options):
    """Tokens that no head gives more attention than this share a gradient of the readout."""

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, float | int) or not 0 <= self.threshold < 1:
            raise UsageError(f"decompose: threshold is {self.threshold!r}, expected an attention weight in [0, 1).")


def leave_one_out(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Threshold) -> Parts:
    """Subtract from the reconstruction what the decoder gives without each token."""
    heads = field.token_heads(tokens)
    weights = heads.weights(field.query_heads(queries))
    is_heavy = (weights > options.threshold).any(1)
    image, point, token = is_heavy.nonzero(as_tuple=True)
    received = attend_without(field, tokens, queries, heads, weights, (image, point, token))
    images = widen(field.readout(queries[point], received.to(queries.dtype)))
    reconstruction = reconstruct(field, tokens, queries)
    whole, moved = widen(reconstruction), None
    missing = whole.new_zeros(*is_heavy.shape, whole.shape[-1])
    if options.threshold:
        missing, moved = first_order(field, queries, heads, weights), movement(heads, weights, is_heavy)
    components = missing.index_put((image, point, token), whole[image, point] - images).movedim(2, 1)
    base = field.readout(queries, heads.bias.expand(len(tokens), len(queries), -1))
    return Parts(components[:, indices], components.sum(1), base, reconstruction, movement=moved)


def attend_without(
    field: TokenField, tokens: Tokens, queries: Queries, heads: TokenHeads, weights: Weights, pairs: Pairs
) -> Float[Tensor, "pairs width"]:
    """Return what a point receives when a token is not there, for every such pair of an image.

    Without the only token that is the attention's bias.
    """
    image, point, token = pairs
    alpha, values = widen(weights), widen(heads.values)
    heaviest = alpha.argmax(-1, keepdim=True)
    others = alpha.scatter(-1, heaviest, 0.0)
    mass = others.sum(-1, keepdim=True)
    with torch.autocast(tokens.device.type, enabled=False):
        everything, rest = alpha @ values, others @ values / torch.where(mass == 0, 1.0, mass)
        own = others[image, :, point, token][..., None]
        lighter = (everything[image, :, point] - own * values[image, :, token]) / (1 - own)
        is_heaviest = heaviest[image, :, point] == token[:, None, None]
        by_head = torch.where(is_heaviest, rest[image, :, point], lighter)
        received = by_head.flatten(1) @ widen(heads.output).flatten(0, 1) + widen(heads.bias)
    limits = torch.finfo(weights.dtype)
    is_lost = mass < limits.tiny / limits.eps  # underflow has eaten digits of the other weights, or all of them
    if tokens.shape[1] > 1 and is_lost.any():
        return _attend_again(field, tokens, queries, received, pairs, (is_heaviest & is_lost[image, :, point]).any(1))
    return received


def _attend_again(
    field: TokenField, tokens: Tokens, queries: Queries, received: Tensor, pairs: Pairs, is_lost: Tensor
) -> Tensor:
    """Run the attention for tokens so heavy that the weights of the others cannot be told any more."""
    image, point, token = pairs
    for k in token[is_lost.flatten()].unique().tolist():
        again = field.attend(queries, torch.cat([tokens[:, :k], tokens[:, k + 1 :]], 1))
        chosen = (is_lost.flatten() & (token == k)).nonzero().flatten()
        received = received.index_put((chosen,), widen(again)[image[chosen], point[chosen]])
    return received


def first_order(
    field: TokenField, queries: Queries, heads: TokenHeads, weights: Weights
) -> Float[Tensor, "batch points tokens channels"]:
    """Return ⟨∇ readout(q, a(q)), Δ_k⟩ for all tokens, from one gradient a point.

    The gradient is that in the middle of a path twice as long as the way from b_o to a(q).
    """
    weights, values, output = map(widen, (weights, heads.values, heads.output))
    with torch.autocast(weights.device.type, enabled=False):
        attended = weights @ values
        step = rearrange(attended, "b h n d -> b n (h d)") @ output.flatten(0, 1)
    gradient = read_path(field, queries, heads.bias, 2 * step, points=1).gradient
    with torch.autocast(weights.device.type, enabled=False):
        odds = weights / (1 - weights).clamp(min=torch.finfo(weights.dtype).eps)  # 1 − α = 0 only for heavy tokens
        ahead = torch.einsum("bncw,hdw,bhnd->bhnc", gradient, output, attended)
        moved = contract(gradient, odds, values, output) - torch.einsum("bhnk,bhnc->bknc", odds, ahead)
    return moved.movedim(1, 2)


def movement(
    heads: TokenHeads, weights: Weights, is_heavy: Bool[Tensor, "batch points tokens"]
) -> Float[Tensor, "batch points"]:
    """Bound ‖Δ_k‖ / ‖a(q) − b_o‖ for the worst token that is not heavy.

    Norms come from ‖W_o^h (v − o)‖² = vᵀMv − 2 oᵀMv + oᵀMo with M = W_o^h W_o^hᵀ, which costs an attention's
    work and holds nothing of size points · tokens · width; their rounding is added.
    """
    weights, values, output = map(widen, (weights, heads.values, heads.output))
    with torch.autocast(weights.device.type, enabled=False):
        attended, metric = weights @ values, output @ output.mT
        own, whole = ((x @ metric * x).sum(-1) for x in (values, attended))
        sizes = own[:, :, None] + whole[..., None]
        squares = sizes - 2 * attended @ metric @ values.mT + 8 * torch.finfo(sizes.dtype).eps * sizes
        moved = (weights / (1 - weights) * squares.clamp(min=0).sqrt()).sum(1)
        length = (rearrange(attended, "b h n d -> b n (h d)") @ output.flatten(0, 1)).norm(dim=-1)
        return moved.masked_fill(is_heavy, 0.0).amax(-1) / length


LEAVE_ONE_OUT = Method(
    leave_one_out, question="what would be missing without token k?", options=Threshold, holds_every_token=True
)
