"""Additive components: what each token contributed to the reconstruction, where, so that the parts add up.

The attention's output is a sum over tokens, a(q) = b_o + Σ_k s_k(q). Along the straight path from b_o to a(q),
the fundamental theorem of calculus shares out what the readout makes of it:

    s_k(q) = Σ_h α_hk(q) · W_o^h V_h LN(z_k)
    G(q)   = ∫₀¹ ∇ readout(q, b_o + t · Σ_k s_k(q)) dt          (per channel; Gauss–Legendre, m points)
    I_k(q) = G(q) · s_k(q)
    Σ_k I_k(q) + readout(q, b_o) = reconstruction(q)            (as m grows)

These are the Aumann–Shapley values of the tokens on that path, integrated gradients of Sundararajan et al.
2017 with tokens as features; exact with one point when the readout is linear.

Work for one image at reference scale (N = 1024, K = 256, 4 heads, D = 192, M = 768, C = 3), in multiply-adds:

    attention, tokens' projections  N·K·h·(d_h + D) + …  = 0.6 · 10⁹
    G, base and reconstruction      N·2M·D·(2 + C)       = 1.5 · 10⁹   and (m + 2)·N·M = 3.9 · 10⁶ GELUs
    components                      N·K·h·D·C            = 0.6 · 10⁹

about 2.7 · 10⁹, nearly all in matrix products, and no GELU per (token, point). Solo's exact path has
N·K·(2M + M·C + D) = 1.1 · 10⁹ that are no matrix products, and N·K·M = 2.0 · 10⁸ GELUs. s_k(q), of size N·K·D,
is never formed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.parts import Options, Parts, widen
from tdsm.decomposition.path_gradient import Gradient, read_path
from tdsm.tokenfield import TokenField


def additive(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Options) -> Parts:
    """Share the reconstruction out among the tokens, `options.points` quadrature points along the path."""
    attention = field.attention_parts(queries, tokens)
    weights, values = widen(attention.weights), widen(attention.values)
    with torch.autocast(tokens.device.type, enabled=False):
        step = (weights @ values).sum(1)
    path = read_path(field, queries, attention.bias, step, options.points)
    with torch.autocast(tokens.device.type, enabled=False):
        if indices != list(range(tokens.shape[1])):
            weights, values = weights[..., indices], values[:, :, indices]
        components = contract(path.gradient, weights, values)
        total = torch.einsum("bncd,bnd->bnc", path.gradient, step)
    return Parts(components, total, path.start.to(queries.dtype), path.end.to(queries.dtype))


def contract(
    gradient: Gradient,
    weights: Float[Tensor, "batch heads points tokens"],
    values: Float[Tensor, "batch heads tokens width"],
) -> Float[Tensor, "batch tokens points channels"]:
    """Return Σ_h α_hk(q) · ⟨G_c(q), value_hk⟩, the gradient reduced over the values' width first."""
    rows, size = gradient.flatten(1, 2), gradient.shape[1:3]
    components = gradient.new_zeros(())
    for head in range(values.shape[1]):
        products = (rows @ values[:, head].mT).unflatten(1, size)
        components = torch.addcmul(components, weights[:, head, :, None], products)
    return components.permute(0, 3, 1, 2)
