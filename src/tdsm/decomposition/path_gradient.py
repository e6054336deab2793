"""A readout along a straight path of attended vectors: its average gradient, and its values at both ends.

    G(q) = ∫₀¹ ∇ readout(q, start + t · step) dt        (one row a channel; Gauss–Legendre, m points)

`by_autograd` works for every readout. `by_separation` gives the same values for a readout of the form `Readout`
without a final norm. Its first layer is linear in t up to the norm's scale: hidden units along the whole path, ends
included, come from one matrix product, and another one turns their average into the gradients of all channels.
"""

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.definition import Queries
from tdsm.decomposition.parts import widen
from tdsm.decomposition.separated import Separated, full_precision, prepare
from tdsm.tokenfield import Readout, TokenField

Step = Float[Tensor, "batch points width"]
Gradient = Float[Tensor, "batch points channels width"]

BLOCK_UNITS = {"cpu": 2**18, "other": 2**26}  # hidden units at once, a core's or a device's: they stay in cache


class Path(NamedTuple):
    """What a readout does along a path, in float32 or wider."""

    gradient: Gradient  # of each channel with respect to the attended vector, averaged
    start: Float[Tensor, "batch points channels"]  # the readout there
    end: Float[Tensor, "batch points channels"]


def read_path(field: TokenField, queries: Queries, start: Float[Tensor, " width"], step: Step, points: int) -> Path:
    """Read out along the path from `start` to `start + step`, by the cheapest exact way.

    Args:
        points: Quadrature points m. Up to 15 are exact for gradients that are polynomials of degree 2m − 1 in t.
    """
    readout = field.separable_readout()
    if readout is None or readout.final_norm is not None:
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


def by_autograd(field: TokenField, queries: Queries, start: Tensor, step: Step, points: int) -> Path:
    """Average gradients from one backward pass per quadrature point and channel.

    Differentiable itself when gradients are enabled and there is something to differentiate.
    """
    ends = [widen(field.readout(queries, at.to(queries.dtype))) for at in (start.expand_as(step), start + step)]
    needed = (queries, start, step, *field.parameters())
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needed)
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            queries, start, step = (tensor.detach().clone() for tensor in (queries, start, step))
        gradients = (
            weight * _gradient(field, queries, (start + t * step).to(queries.dtype), differentiable)
            for t, weight in gauss_legendre(points)
        )
        return Path(sum(gradients, torch.zeros((), device=step.device)), *ends)


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


def by_separation(readout: Readout, queries: Queries, start: Tensor, step: Step, points: int) -> Path:
    """Average the gradients of a readout without a final norm in closed form.

    With x(t) = q + start + t·step, tildes for centred vectors, and A, b', W_1 γ as in `separated`:

        [u, g] = (A + t S) · r + b',   S = step~ (W_1 γ)ᵀ,   r = (‖x̃‖² / D + ε)^(−1/2)
        e      = ∂(u ⊙ GELU(g)) / ∂[u, g] = [GELU(g), u ⊙ GELU'(g)],   ungated GELU'(g)
        ∇_c    = W_c + P [ r · (W_1 γ)ᵀ (v_c ⊙ e) − r³ / D · ⟨v_c ⊙ e, A + t S⟩ · x̃ ],   v = W_c W_2

    with P the centring. Only r · e is averaged over t, so the matrix products do not grow with `points`. The ends
    are ⟨v_c, u ⊙ GELU(g)⟩ + W_c (x + b_2) + b_c at t = 0 and 1.
    """
    at = prepare(readout, queries + start.to(queries.dtype), fold=False)
    units = step.shape[:2].numel() * at.hidden_weight.shape[0]
    count = min(len(queries), max(1, round(units / _block_units(step.device))))
    with full_precision(step):
        step = step.to(at.query_hidden.dtype)
        folded = _fold(at)
        points_of = (at.query_centered, at.query_hidden, at.query_linear)
        blocks = zip(*(x.tensor_split(count) for x in points_of), step.tensor_split(count, dim=1), strict=True)
        parts = [_read_block(at, folded, points, *block) for block in blocks]
        return Path(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def _block_units(device: torch.device) -> int:
    return BLOCK_UNITS["cpu"] * torch.get_num_threads() if device.type == "cpu" else BLOCK_UNITS["other"]


def _fold(at: Separated) -> Float[Tensor, "rows channels_width"]:
    """Return v_c ⊙ W_1 γ P of all channels side by side."""
    rows, weight = len(at.hidden_weight), _output_weight(at)
    repeated = weight.repeat(1, rows // weight.shape[1])
    centered = at.hidden_weight - at.hidden_weight.mean(-1, keepdim=True)
    return rearrange(repeated[:, :, None] * centered, "c m d -> m (c d)")


def _output_weight(at: Separated) -> Float[Tensor, "channels hidden"]:
    assert at.output_weight is not None, "prepared without folding"
    return at.output_weight


def _channel_weight(at: Separated) -> Float[Tensor, "channels width"]:
    assert at.channel_weight is not None, "prepared without a final norm"
    return at.channel_weight


def _read_block(
    at: Separated, folded: Tensor, points: int, centered: Tensor, hidden: Tensor, linear: Tensor, step: Tensor
) -> Path:
    """Read out at some of the points: x̃(0), A and W_c (x(0) + b_2) + b_c are `centered`, `hidden` and `linear`."""
    moved = step - step.mean(-1, keepdim=True)
    slope = F.linear(moved, at.hidden_weight)
    halves = len(at.hidden_weight) // _output_weight(at).shape[1]  # u and g, or g alone
    pull_start = pull_step = step.new_zeros(())
    means = [step.new_zeros(())] * halves
    for t, weight in gauss_legendre(points):
        x, raw = torch.add(centered, moved, alpha=t), torch.add(hidden, slope, alpha=t)
        r, *units = _hidden_units(at, x, raw)
        by_unit = _derivatives(*units)
        means = [torch.addcmul(mean, e, weight * r) for mean, e in zip(means, by_unit, strict=True)]
        first, *others = zip(by_unit, raw.chunk(halves, dim=-1), strict=True)
        along = reduce(lambda so_far, pair: torch.addcmul(so_far, *pair), others, torch.mul(*first))
        pull = weight / x.shape[-1] * r**3 * (along @ _output_weight(at).T)
        pull_start, pull_step = pull_start + pull, pull_step + t * pull  # of x̃ = x̃(0) + t · step~
    products = [mean @ part for mean, part in zip(means, folded.chunk(halves), strict=True)]
    gradient = sum(products[1:], products[0]).unflatten(-1, _channel_weight(at).shape)
    gradient = gradient - pull_start[..., None] * centered[:, None] - pull_step[..., None] * moved[..., None, :]
    start = _read(at, centered, hidden) + linear
    end = _read(at, centered + moved, hidden + slope) + linear + F.linear(step, _channel_weight(at))
    return Path(_channel_weight(at) + gradient, start.expand_as(end), end)


def _read(at: Separated, x: Tensor, raw: Tensor) -> Tensor:
    """Return ⟨v_c, h⟩ with h = u ⊙ GELU(g) or GELU(g)."""
    _, *value, gate = _hidden_units(at, x, raw)
    return (value[0] * F.gelu(gate) if value else F.gelu(gate)) @ _output_weight(at).T


def _hidden_units(at: Separated, x: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
    """Return r, u where there is one, and g at x̃ and A + t S."""
    r = (x.square().mean(-1, keepdim=True) + at.eps).rsqrt()
    units = torch.addcmul(at.hidden_bias, raw, r)
    return r, *units.split(_output_weight(at).shape[1], dim=-1)


def _derivatives(*units: Tensor) -> list[Tensor]:
    """Return e, the derivatives of a hidden unit by u, where there is one, and by g."""
    *value, gate = units
    if not value:
        return [torch.ops.aten.gelu_backward(torch.ones_like(gate), gate)]
    return [F.gelu(gate), torch.ops.aten.gelu_backward(value[0], gate)]
