"""Start a field locally: token k reads what is near a point p_k, and queries near p_k read it.

The points p_1, ..., p_K are spread over [-1, 1]^axes, and latent k starts as the Fourier code of p_k,

    latent_k = [sin(b_1·p_k), ..., sin(b_f·p_k), cos(b_1·p_k), ..., cos(b_f·p_k), 0, ..., 0],

with b_1, ..., b_f the lowest of the field's own frequencies, as many as its width holds. Context and queries carry the
same code. Where query and key weights of a head pick the same frequencies S out of it, its logits are a kernel:

    logit(q, k) ≈ 2 · gain² / √head_dim · Σ_{j ∈ S} cos(b_j·(q − p_k)),      at most gain² · √head_dim, at q = p_k

A code is as long at every point, so that the norms before the attention keep it. This is a start and nothing else: the
field has the parameters of any other, and learns all of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.tokenfield.attention import Attention
from tdsm.tokenfield.coords import FourierFeatures

GAIN = 0.9  # of the query weights and of the key weights


def spread_points(count: int, axes: int) -> Float[Tensor, "count axes"]:
    """Spread points evenly over [-1, 1]^axes, by an additive recurrence of low discrepancy.

    Coordinate i = 1, 2, ... of point k = 0, 1, ... is 2 · frac(1/2 + k / φ^i) − 1, with φ > 1 the root of
    φ^(axes + 1) = φ + 1, which for one axis is the golden ratio. Source: Roberts 2018, "The Unreasonable Effectiveness
    of Quasirandom Sequences".

    >>> spread_points(3, axes=2)
    tensor([[ 0.0000,  0.0000],
            [-0.4902, -0.8603],
            [-0.9805,  0.2794]])
    """
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (axes + 1))
    steps = root ** -torch.arange(1, axes + 1, dtype=torch.float64)
    return (2 * ((0.5 + torch.arange(count)[:, None] * steps) % 1) - 1).float()


@torch.no_grad()
def start_locally(fourier: FourierFeatures, blocks: Iterable[Any], decoder: Attention, channels: int) -> None:
    """Set the latents of encoder blocks, and the query and key weights of their cross-attention and of the decoder's.

    Args:
        fourier: Makes the position features of the context, behind its `channels` values, and of the queries.
        blocks: Modules with `latents` and a `cross_attention`; the latents of the last become tokens.
        decoder: The attention from queries to tokens.
        channels: Values of a context vector.
    """
    count = fourier.matrix.shape[1]
    lowest = fourier.matrix.norm(dim=0).argsort()
    for block in blocks:
        number, width = block.latents.shape
        held = min(count, width // 2)
        features = torch.cat([lowest[:held], count + lowest[:held]])
        code = fourier(spread_points(number, fourier.matrix.shape[0]).to(fourier.matrix.device))[:, features]
        block.latents.copy_(F.pad(code, (0, width - 2 * held)))
        carried = torch.arange(2 * held, device=lowest.device)
        _align(block.cross_attention, (carried, held), (channels + features, count))
    _align(decoder, (features, count), (carried, held))


def _align(
    attention: Attention, queries: tuple[Int[Tensor, " columns"], int], keys: tuple[Int[Tensor, " columns"], int]
) -> None:
    """Let each head compare some frequencies of queries and keys.

    Args:
        queries: Columns of the compared features, sines by rising frequency before cosines, and how many frequencies
            the whole query holds.
        keys: The same of the context vectors.
    """
    head_dim = attention.to_q.out_features // attention.heads
    sides = (attention.to_q.weight, *queries), (attention.to_kv.weight, *keys)
    shared = len(queries[0]) // 2
    for head in range(attention.heads):
        picked = _pick(head, attention.heads, head_dim // 2, shared).to(queries[0].device)
        picked = torch.cat([picked, shared + picked])
        rows = head * head_dim + torch.arange(len(picked), device=picked.device)
        for weight, columns, held in sides:
            weight[rows] = 0
            weight[rows, columns[picked]] = GAIN * (2 * held / weight.shape[1]) ** 0.5


def _pick(head: int, heads: int, most: int, shared: int) -> Int[Tensor, " picked"]:
    """Pick a head's frequencies: evenly from the lowest that all heads together can hold, each head others."""
    number = min(most, shared)
    span = min(heads * number, shared)
    return ((torch.arange(number) + head / heads) * span / max(number, 1)).long()
