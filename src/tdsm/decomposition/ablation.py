"""Leave-one-out components: what would be missing from the reconstruction without a token.

    I_k(q) = reconstruction(q) − decoder(q, Z ∖ {z_k})

No attention is run again. Without token k the softmax of each head h is the old one, renormalised, so that with
o_h = Σ_j α_hj v_hj the head gives

    (o_h − α_hk v_hk) / (1 − α_hk)

Where α_hk → 1 that is a difference of nearly equal numbers over nearly zero. At most one token a (head, point)
has a weight above one half; for the heaviest the sum over the others is taken directly. What remains is one
readout per (token, point), as in solo decoding.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.parts import Method, Options, Parts, read_nothing, reconstruct, widen
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import AttentionParts


def leave_one_out(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Options) -> Parts:
    """Subtract from the reconstruction what the decoder gives without each token."""
    attention = field.attention_parts(queries, tokens)
    without = attend_without_each(field, tokens, queries, attention)
    reconstruction = reconstruct(field, tokens, queries)
    images = field.readout(queries[:, None], without.to(queries.dtype)).movedim(2, 1)
    components = widen(reconstruction)[:, None] - widen(images)
    base = read_nothing(field, queries, attention)
    return Parts(components[:, indices], components.sum(1), base, reconstruction)


def attend_without_each(
    field: TokenField, tokens: Tokens, queries: Queries, attention: AttentionParts
) -> Float[Tensor, "batch points tokens width"]:
    """Return what each query receives when one token, in turn, is not there.

    Without the only token that is the attention's bias.
    """
    weights, values = widen(attention.weights), widen(attention.values)
    heaviest = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
    others = weights * (1 - heaviest)
    mass = others.sum(-1, keepdim=True)
    limits = torch.finfo(attention.weights.dtype)
    is_lost = mass < limits.tiny / limits.eps  # underflow has eaten digits of the other weights, or all of them
    with torch.autocast(tokens.device.type, enabled=False):
        all_tokens, rest = weights @ values, others @ values / torch.where(mass == 0, 1.0, mass)
        kept = (1 - heaviest) / (1 - others)
        received = torch.einsum("bhnk,bhnd->bnkd", torch.cat([kept, heaviest], 1), torch.cat([all_tokens, rest], 1))
        own = torch.einsum("bhnk,bhkd->bnkd", others / (1 - others), values)
    without = received - own + widen(attention.bias)
    if tokens.shape[1] > 1 and is_lost.any():
        return _attend_again(field, tokens, queries, without, (heaviest * is_lost).sum(1) > 0)
    return without


def _attend_again(field: TokenField, tokens: Tokens, queries: Queries, without: Tensor, lost: Tensor) -> Tensor:
    """Run the attention for tokens so heavy that the weights of the others cannot be told any more."""
    for k in lost.flatten(0, 1).any(0).nonzero().flatten().tolist():
        again = field.attend(queries, torch.cat([tokens[:, :k], tokens[:, k + 1 :]], 1))
        is_k = torch.arange(tokens.shape[1], device=tokens.device) == k
        without = torch.where((lost & is_k)[..., None], widen(again)[:, :, None], without)
    return without


LEAVE_ONE_OUT = Method(leave_one_out, question="what would be missing without token k?", holds_every_token=True)
