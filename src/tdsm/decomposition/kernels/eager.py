"""The gated sum in plain torch operations, in blocks that stay in cache. Runs everywhere, in every dtype."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**20, "other": 2**26}  # of one intermediate: a core's L2, or enough to fill a device


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    out = a.new_empty(*r.shape, 1 if weight is None else len(weight))
    for k, n in _blocks(a, r):
        u, g = _halves(torch.addcmul(bias, a[n] + b[k, None], r[k, n, None]), weight)
        gated = F.gelu(g) if u is None else F.gelu(g).mul_(u)
        out[k, n] = gated.sum(-1, keepdim=True) if weight is None else F.linear(gated, weight)
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Return the gradients of a, b, r, bias and weight, if there is one; hidden units computed again, not stored."""
    grads = [torch.zeros_like(x) for x in (a, b, r, bias, weight) if x is not None]
    grad_a, grad_b, grad_r, grad_bias = grads[:4]
    for k, n in _blocks(a, r):
        scale = r[k, n, None]
        sums = a[n] + b[k, None]
        u, g = _halves(torch.addcmul(bias, sums, scale), weight)
        gelu = F.gelu(g)
        grad_gated = grad[k, n]
        if weight is not None:
            gated = gelu if u is None else u * gelu
            grads[4].addmm_(grad_gated.flatten(0, 1).T, gated.flatten(0, 1))
            grad_gated = grad_gated @ weight
        if u is None:
            grad_hidden = torch.ops.aten.gelu_backward(grad_gated, g)
        else:
            grad_hidden = torch.cat([grad_gated * gelu, torch.ops.aten.gelu_backward(grad_gated * u, g)], dim=-1)
        grad_r[k, n] = sums.mul_(grad_hidden).sum(-1)
        grad_bias += grad_hidden.sum((0, 1))
        grad_hidden *= scale
        grad_a[n] += grad_hidden.sum(0)
        grad_b[k] += grad_hidden.sum(1)
    return grads


def _halves(hidden: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Split hidden units into u and g; u is None where there is none."""
    if weight is not None and hidden.shape[-1] == weight.shape[1]:
        return None, hidden
    u, g = hidden.chunk(2, dim=-1)
    return u, g


def _blocks(a: Tensor, r: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (tokens, points) into blocks whose hidden units stay under the budget, whole rows of points first."""
    budget = BLOCK_BYTES.get(a.device.type, BLOCK_BYTES["other"])
    cells = max(1, budget // (a.shape[1] * a.element_size()))
    tokens, points = r.shape
    height, width = max(1, cells // max(1, points)), max(1, min(cells, points))
    for k in range(0, tokens, height):
        for n in range(0, points, width):
            yield slice(k, k + height), slice(n, n + width)
