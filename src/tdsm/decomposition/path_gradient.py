"""The gradient of a readout, averaged along a straight path of attended vectors.

    G(q) = ∫₀¹ ∇ readout(q, start + t · step) dt        (one row a channel; Gauss–Legendre, m points)

`by_autograd` works for every readout. `by_separation` gives the same values for a readout of the form
`GatedReadout`, whose first layer is linear in t up to the norm's scale: hidden units along the whole path come
from one matrix product, and another one turns their average into the gradients of all channels.
"""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries
from tdsm.decomposition.parts import widen
from tdsm.decomposition.separated import Separated, prepare
from tdsm.tokenfield import GatedReadout, TokenField

Step = Float[Tensor, "batch points width"]
Gradient = Float[Tensor, "batch points channels width"]

BLOCK_UNITS = 2**18  # hidden units at once: a few arrays of so many stay in cache, and products stay large


def path_gradient(
    field: TokenField, queries: Queries, start: Float[Tensor, " width"], step: Step, points: int
) -> Gradient:
    """Average the readout's gradient from `start` to `start + step`, by the cheapest exact way.

    Args:
        points: Quadrature points m. Up to 15 are exact for gradients that are polynomials of degree 2m − 1 in t.

    Returns:
        The gradient of each channel with respect to the attended vector, in float32 or wider.
    """
    readout = field.gated_readout()
    if readout is None:
        return by_autograd(field, queries, start, step, points)
    return by_separation(readout, queries, start, step, points)


def gauss_legendre(points: int) -> list[tuple[float, float]]:
    """List nodes in (0, 1) and weights, which sum to 1.

    From 16 points on, rules of 8 or more points each on panels that shrink fourfold towards t = 0. There a readout
    without query residual starts from next to nothing, and the norm it begins with changes fastest.

    >>> gauss_legendre(1)
    [(0.5, 1.0)]
    """
    panels = max(1, points // 8)
    edges = [0.0, *(4.0 ** (panel - panels) for panel in range(1, panels + 1))]
    rule: list[tuple[float, float]] = []
    for panel, (low, high) in enumerate(pairwise(edges)):
        nodes, weights = np.polynomial.legendre.leggauss((points + panel) // panels)
        rule += zip(low + (high - low) * (nodes + 1) / 2, (high - low) * weights / 2, strict=True)
    return [(float(node), float(weight)) for node, weight in rule]


def by_autograd(field: TokenField, queries: Queries, start: Tensor, step: Step, points: int) -> Gradient:
    """Average gradients from one backward pass per quadrature point and channel.

    Differentiable itself when gradients are enabled and there is something to differentiate.
    """
    needed = (queries, start, step, *field.parameters())
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needed)
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            queries, start, step = (tensor.detach().clone() for tensor in (queries, start, step))
        gradients = (
            weight * _gradient(field, queries, (start + t * step).to(queries.dtype), differentiable)
            for t, weight in gauss_legendre(points)
        )
        return sum(gradients, torch.zeros((), device=step.device))


def _gradient(field: TokenField, queries: Queries, attended: Step, differentiable: bool) -> Gradient:
    if not attended.requires_grad:
        attended.requires_grad_()
    summed = field.readout(queries, attended).flatten(0, -2).sum(0)
    rows = [
        torch.autograd.grad(channel, attended, retain_graph=True, create_graph=differentiable, materialize_grads=True)[
            0
        ]
        for channel in summed
    ]
    return widen(torch.stack(rows, dim=-2))


def by_separation(readout: GatedReadout, queries: Queries, start: Tensor, step: Step, points: int) -> Gradient:
    """Average the gradients of a gated readout in closed form.

    With x(t) = q + start + t·step, tildes for centred vectors, and A, b', W_1 γ as in `separated`:

        [u, g] = (A + t S) · r + b',   S = step~ (W_1 γ)ᵀ,   r = (‖x̃‖² / D + ε)^(−1/2)
        e      = ∂(u ⊙ GELU(g)) / ∂[u, g] = [GELU(g), u ⊙ GELU'(g)]
        ∇_c    = W_c + P [ r · (W_1 γ)ᵀ (v_c ⊙ e) − r³ / D · ⟨v_c ⊙ e, A + t S⟩ · x̃ ],   v = W_c W_2

    with P the centring. Only r · e is averaged over t, so the matrix products do not grow with `points`.
    """
    at = prepare(readout, queries + start.to(queries.dtype))
    rows = max(1, BLOCK_UNITS // at.hidden_weight.shape[0])
    with torch.autocast(step.device.type, enabled=False):
        step = step.to(at.query_hidden.dtype)
        step = step - step.mean(-1, keepdim=True)
        folded = _fold(at)
        blocks = list(zip(at.query_centered.split(rows), at.query_hidden.split(rows), step.split(rows, 1), strict=True))
        return torch.cat([_average(at, folded, points, *block) for block in blocks], dim=1)


def _fold(at: Separated) -> Float[Tensor, "double_hidden channels_width"]:
    """Return v_c ⊙ W_1 γ of all channels side by side."""
    doubled = at.output_weight.repeat(1, 2)
    return rearrange(doubled[:, :, None] * at.hidden_weight, "c m d -> m (c d)")


def _average(at: Separated, folded: Tensor, points: int, centered: Tensor, hidden: Tensor, step: Tensor) -> Gradient:
    """Average over t at some of the points: x̃(0) and A are `centered` and `hidden`."""
    slope = F.linear(step, at.hidden_weight)
    mean_units = pulled = step.new_zeros(())
    for t, weight in gauss_legendre(points):
        x, raw = centered + t * step, hidden + t * slope
        r = (x.square().mean(-1, keepdim=True) + at.eps).rsqrt()
        units = _gated_slopes(*torch.addcmul(at.hidden_bias, raw, r).chunk(2, dim=-1))
        mean_units = mean_units + weight * r * units
        moved = torch.add(*(units * raw).chunk(2, dim=-1)) @ at.output_weight.T
        pulled = pulled + (weight / x.shape[-1] * r**3 * moved)[..., None] * x[..., None, :]
    gradient = (mean_units @ folded).unflatten(-1, at.channel_weight.shape) - pulled
    return at.channel_weight + gradient - gradient.mean(-1, keepdim=True)


def _gated_slopes(value: Tensor, gate: Tensor) -> Tensor:
    """Return ∂(u · GELU(g)) with respect to u and g, side by side."""
    cdf = torch.special.ndtr(gate)
    density = torch.exp(-gate.square() / 2) / math.sqrt(2 * math.pi)
    return torch.cat([gate * cdf, value * (cdf + gate * density)], dim=-1)
