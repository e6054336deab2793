"""Solo decoding with the first feed-forward layer separated into a part per query and a part per token.

For a readout of the form `GatedReadout`, with q̃ = q − mean(q) and c̃ = c − mean(c) (means over features):

    r(n, k)  = (‖q̃_n + c̃_k‖² / D + ε)^(−1/2)
    [u, g]   = (A_n + B_k) · r(n, k) + b',   A = q̃ (W_1 γ)ᵀ,  B = c̃ (W_1 γ)ᵀ,  b' = b_1 + W_1 β
    I_k(q_n) = (W_c W_2) [u ⊙ GELU(g)] + W_c (q_n + c_k + b_2) + b_c

`prepare` does everything without an image in it, `evaluate` the rest. All that is left per (query, token) are
r and `gated_sum`, elementwise work that stores nothing of size points · tokens · hidden, forward or backward.

Precision: that of the plain path, except where c̃ ≈ −q̃: A_n + B_k then cancels, and its rounding is magnified
by r, at most ε^(−1/2) = 316 times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.chunks import in_chunks
from tdsm.decomposition.kernels import gated_sum
from tdsm.tokenfield import GatedReadout

Reduction = Literal["none", "mean", "l2"]
MAP_FLOATS = 2**24  # of one chunk's maps: 64 MiB in float32


@dataclass(frozen=True)
class Separated:
    """What solo decoding needs of a readout and its queries; no image in it. Float32 or wider."""

    query_centered: Float[Tensor, "points width"]  # q̃
    query_hidden: Float[Tensor, "points double_hidden"]  # A
    query_linear: Float[Tensor, "points channels"]  # W_c (q + b_2) + b_c
    hidden_weight: Float[Tensor, "double_hidden width"]  # W_1 γ
    hidden_bias: Float[Tensor, " double_hidden"]  # b'
    output_weight: Float[Tensor, "channels hidden"]  # W_c W_2
    channel_weight: Float[Tensor, "channels width"]  # W_c
    eps: float
    reduction: Reduction
    dtype: torch.dtype  # what the readout itself computes in


def prepare(readout: GatedReadout, queries: Float[Tensor, "points width"], reduction: Reduction = "none") -> Separated:
    """Compute what solo decoding needs once per grid and weights; keep it as long as neither changes.

    Args:
        readout: The weights. Gradients flow to them.
        queries: Query features. Gradients flow to them.
        reduction: What becomes of the channels: all of them ("none"), their mean, which costs one channel
            instead of all, or their Euclidean norm ("l2").
    """
    dtype = torch.promote_types(queries.dtype, readout.hidden_weight.dtype)
    with _full_precision(queries):
        wide = _widened(dtype)
        weight = {name: value.to(wide) for name, value in vars(readout).items() if isinstance(value, Tensor)}
        channel_weight, channel_bias = weight["channel_weight"], weight["channel_bias"]
        if reduction == "mean":
            channel_weight, channel_bias = channel_weight.mean(0, keepdim=True), channel_bias.mean(0, keepdim=True)
        query = queries.to(wide)
        centered = query - query.mean(-1, keepdim=True)
        hidden_weight = weight["hidden_weight"] * weight["norm_weight"]
        return Separated(
            query_centered=centered,
            query_hidden=F.linear(centered, hidden_weight),
            query_linear=F.linear(query + weight["output_bias"], channel_weight, channel_bias),
            hidden_weight=hidden_weight,
            hidden_bias=weight["hidden_bias"] + weight["hidden_weight"] @ weight["norm_bias"],
            output_weight=channel_weight @ weight["output_weight"],
            channel_weight=channel_weight,
            eps=readout.norm_eps,
            reduction=reduction,
            dtype=dtype,
        )


def evaluate(
    separated: Separated,
    values: Float[Tensor, "batch tokens width"],
    *,
    chunk: int | None = None,
    pool: Callable[[Tensor], Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decode each token value alone at every query.

    Args:
        separated: From `prepare`.
        values: Token values c_k, what every query receives from token k alone.
        chunk: Tokens (over the whole batch) decoded at once; bounds memory, never changes results. None
            takes as many as keep the maps of a chunk under 64 MB.
        pool: Applied to the finished maps of each chunk, (tokens, points, channels) -> (tokens, cells,
            channels); the channel axis is absent for "mean" and "l2". So the maps of all tokens never exist.
        backend: "eager", "cpu", "gpu", or None for the fastest there is.

    Returns:
        (batch, tokens, points, channels), or (batch, tokens, points) for the reductions "mean" and "l2", in
        the wider of the dtypes of values and readout; sums are accumulated in float32 or wider.
    """
    dtype = torch.promote_types(values.dtype, separated.dtype)
    points, channels = separated.query_hidden.shape[0], separated.output_weight.shape[0]
    with _full_precision(values):
        maps = in_chunks(
            lambda rows: _decode_rows(separated, rows, pool, backend).to(dtype),
            values.flatten(0, 1),
            chunk or max(1, MAP_FLOATS // (points * channels)),
        )
    return maps.unflatten(0, values.shape[:2])


def _decode_rows(
    separated: Separated,
    values: Float[Tensor, "tokens width"],
    pool: Callable[[Tensor], Tensor] | None,
    backend: str | None,
) -> Tensor:
    values = values.to(separated.query_hidden.dtype)
    centered = values - values.mean(-1, keepdim=True)
    gated = gated_sum(
        separated.query_hidden,
        F.linear(centered, separated.hidden_weight),
        InverseDeviation.apply(separated.query_centered, centered, separated.eps),
        separated.hidden_bias,
        separated.output_weight,
        backend=backend,
    )
    maps = gated.add_(separated.query_linear).add_(F.linear(values, separated.channel_weight)[:, None])
    if separated.reduction == "l2":
        maps = torch.linalg.vector_norm(maps, dim=-1)
    elif separated.reduction == "mean":
        maps = maps.squeeze(-1)
    return maps if pool is None else pool(maps)


class InverseDeviation(torch.autograd.Function):
    """r(k, n) = (‖q̃_n + c̃_k‖² / D + ε)^(−1/2), keeping nothing of size points · tokens but r itself.

    Summed in float64: where c̃ ≈ −q̃ the three terms of the expanded square cancel.
    """

    @staticmethod
    def forward(ctx, query, value, eps: float) -> Tensor:
        """Return r of shape (tokens, points)."""
        wide = torch.float32 if query.device.type == "mps" else torch.float64
        q, c = query.to(wide), value.to(wide)
        square = torch.addmm(q.square().sum(-1) + c.square().sum(-1, keepdim=True), c, q.T, alpha=2)
        inverse = square.div_(q.shape[-1]).clamp_(min=0).add_(eps).rsqrt_().to(query.dtype)
        ctx.save_for_backward(query, value, inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of q̃ and c̃: ∂r/∂q̃ = −r³ (q̃ + c̃) / D, and the same for c̃."""
        query, value, inverse = ctx.saved_tensors
        slope = grad * inverse**3 / -query.shape[-1]
        return slope.sum(0)[:, None] * query + slope.T @ value, slope.sum(1)[:, None] * value + slope @ query, None


def _widened(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype sums are accumulated in."""
    return torch.promote_types(dtype, torch.float32)


def _full_precision(like: Tensor) -> torch.autocast:
    """Switch autocast off: it would round A, B and r to half precision."""
    return torch.autocast(like.device.type, enabled=False)
