"""The gated sum in plain torch operations, in blocks that stay in cache. Runs everywhere, in every dtype."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**20, "other": 2**26}  # of one intermediate: a core's L2, or enough to fill a device


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    out = a.new_empty(*r.shape, weight.shape[0])
    for k, n in _blocks(a, r):
        u, g = torch.addcmul(bias, a[n] + b[k, None], r[k, n, None]).chunk(2, dim=-1)
        out[k, n] = F.linear(F.gelu(g).mul_(u), weight)
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a, b, r, bias and weight, the hidden units computed again, not stored."""
    grad_a, grad_b, grad_r, grad_bias, grad_weight = (torch.zeros_like(x) for x in (a, b, r, bias, weight))
    for k, n in _blocks(a, r):
        scale = r[k, n, None]
        sums = a[n] + b[k, None]
        u, g = torch.addcmul(bias, sums, scale).chunk(2, dim=-1)
        gelu = F.gelu(g)
        grad_weight.addmm_(grad[k, n].flatten(0, 1).T, (u * gelu).flatten(0, 1))
        grad_gated = grad[k, n] @ weight
        grad_hidden = torch.cat([grad_gated * gelu, torch.ops.aten.gelu_backward(grad_gated * u, g)], dim=-1)
        grad_r[k, n] = sums.mul_(grad_hidden).sum(-1)
        grad_bias += grad_hidden.sum((0, 1))
        grad_hidden *= scale
        grad_a[n] += grad_hidden.sum(0)
        grad_b[k] += grad_hidden.sum(1)
    return grad_a, grad_b, grad_r, grad_bias, grad_weight


def _blocks(a: Tensor, r: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (tokens, points) into blocks whose hidden units stay under the budget, whole rows of points first."""
    budget = BLOCK_BYTES.get(a.device.type, BLOCK_BYTES["other"])
    cells = max(1, budget // (a.shape[1] * a.element_size()))
    tokens, points = r.shape
    height, width = max(1, cells // points), min(cells, points)
    for k in range(0, tokens, height):
        for n in range(0, points, width):
            yield slice(k, k + height), slice(n, n + width)
