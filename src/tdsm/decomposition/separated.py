"""Solo decoding with the first feed-forward layer separated into a part per query and a part per token.

For a readout of the form `Readout`, with q̃ = q − mean(q) and c̃ = c − mean(c) (means over features):

    r(n, k)  = (‖q̃_n + c̃_k‖² / D + ε)^(−1/2)
    [u, g]   = (A_n + B_k) · r(n, k) + b',   A = q̃ (W_1 γ)ᵀ,  B = c̃ (W_1 γ)ᵀ,  b' = b_1 + W_1 β
    I_k(q_n) = (W_c W_2) [u ⊙ GELU(g)] + W_c (q_n + c_k + b_2) + b_c

Ungated, u is 1. With a final norm W_c cannot go through: y = W_2 [u ⊙ GELU(g)] + q_n + c_k + b_2 comes out of the same
sum, as many channels as it is wide, and then I_k(q_n) = W_c LN'(y) + b_c.

`prepare` does everything without an image in it, `evaluate` the rest. All that is left per (query, token) are
r and `gated_sum`, elementwise work that stores nothing of size points · tokens · hidden, forward or backward.

Precision: that of the plain path, except where c̃ ≈ −q̃: A_n + B_k then cancels, and its rounding is magnified
by r, at most ε^(−1/2) = 316 times.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tdsm.decomposition.chunks import in_chunks
from tdsm.decomposition.kept import Kept
from tdsm.decomposition.kernels import gated_sum
from tdsm.tokenfield import Norm, Readout

Reduction = Literal["none", "mean", "l2"]
MAP_FLOATS = 2**24  # of one chunk's maps: 64 MiB in float32
KEPT_BYTES = 2**27  # of what `prepare` returned; 32 × 32 points at reference scale take 12 MB


class Ending(NamedTuple):
    """What a final norm leaves to be done with y: W_c LN'(y) + b_c, γ' and β' taken into W_c and b_c."""

    weight: Float[Tensor, "channels width"]
    bias: Float[Tensor, " channels"]
    eps: float


@dataclass(frozen=True)
class Separated:
    """What solo decoding needs of a readout and its queries; no image in it. Float32 or wider.

    "outputs" are channels, or the width where a final norm comes before them; then W_c is read as 1 and b_c as 0.
    """

    query_centered: Float[Tensor, "points width"]  # q̃
    query_hidden: Float[Tensor, "points rows"]  # A
    query_linear: Float[Tensor, "points outputs"]  # W_c (q + b_2) + b_c
    hidden_weight: Float[Tensor, "rows width"]  # W_1 γ
    hidden_bias: Float[Tensor, " rows"]  # b'
    output_weight: Float[Tensor, "outputs hidden"] | None  # W_c W_2; None where it is in the rows of u
    channel_weight: Float[Tensor, "channels width"] | None  # W_c; None for 1
    eps: float
    reduction: Reduction
    dtype: torch.dtype  # what the readout itself computes in
    ending: Ending | None

    @property
    def outputs(self) -> int:
        """Count what is summed a (query, token)."""
        return self.query_linear.shape[1]


def prepare(
    readout: Readout, queries: Float[Tensor, "points width"], reduction: Reduction = "none", *, fold: bool = True
) -> Separated:
    """Compute what solo decoding needs once per grid and weights; kept while neither changes in value.

    Args:
        readout: The weights. Gradients flow to them.
        queries: Query features. Gradients flow to them.
        reduction: What becomes of the channels: all of them ("none"), their mean, which costs one channel
            instead of all, or their Euclidean norm ("l2").
        fold: Take W_c W_2 into the rows of u where that is possible: gated, one channel.
    """
    norms = [readout.norm] if readout.final_norm is None else [readout.norm, readout.final_norm]
    weights = [getattr(readout, name) for name in WEIGHTS]
    inputs = [queries, *weights, *(x for norm in norms for x in (norm.weight, norm.bias))]
    key = (reduction, fold, *(norm.eps for norm in norms))
    return _prepared(key, inputs, lambda: _prepare(readout, queries, reduction, fold))


# Of a readout. By name: torch.compile of the oldest torch allowed cannot list the fields of a dataclass.
WEIGHTS = ("hidden_weight", "hidden_bias", "output_weight", "output_bias", "channel_weight", "channel_bias")
_prepared: Kept[Separated] = Kept(KEPT_BYTES)


def _prepare(readout: Readout, queries: Float[Tensor, "points width"], reduction: Reduction, fold: bool) -> Separated:
    dtype = torch.promote_types(queries.dtype, readout.hidden_weight.dtype)
    with full_precision(queries):
        readout = _widened(readout, torch.promote_types(dtype, torch.float32))
        query = queries.to(readout.hidden_weight.dtype)
        output_weight, linear = readout.output_weight, query + readout.output_bias
        weight, bias = readout.channel_weight, readout.channel_bias
        if reduction == "mean":
            weight, bias = weight.mean(0, keepdim=True), bias.mean(0, keepdim=True)
        ending = None
        if readout.final_norm is None:
            output_weight, linear = weight @ output_weight, F.linear(linear, weight, bias)
        else:
            ending = Ending(*_through(readout.final_norm, weight, bias), readout.final_norm.eps)
        hidden_weight, hidden_bias = _through(readout.norm, readout.hidden_weight, readout.hidden_bias)
        is_folded = fold and readout.is_gated and len(output_weight) == 1
        if is_folded:
            rows = torch.cat([output_weight[0], torch.ones_like(output_weight[0])])
            hidden_weight, hidden_bias = rows[:, None] * hidden_weight, rows * hidden_bias
        centered = query - query.mean(-1, keepdim=True)
        return Separated(
            query_centered=centered,
            query_hidden=F.linear(centered, hidden_weight),
            query_linear=linear,
            hidden_weight=hidden_weight,
            hidden_bias=hidden_bias,
            output_weight=None if is_folded else output_weight,
            channel_weight=weight if ending is None else None,
            eps=readout.norm.eps,
            reduction=reduction,
            dtype=dtype,
            ending=ending,
        )


def _widened(readout: Readout, dtype: torch.dtype) -> Readout:
    """Return a readout in the dtype that sums are accumulated in."""

    def widen(norm: Norm) -> Norm:
        return Norm(norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    final_norm = None if readout.final_norm is None else widen(readout.final_norm)
    weights = {name: getattr(readout, name).to(dtype) for name in WEIGHTS}
    return Readout(widen(readout.norm), **weights, final_norm=final_norm)


def _through(norm: Norm, weight: Float[Tensor, "rows width"], bias: Float[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
    """Take a norm's γ and β into the linear layer after it."""
    return weight * norm.weight, bias + weight @ norm.bias


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

    def work(rows: Float[Tensor, "rows width"]) -> Tensor:
        return _decode_rows(separated, rows, pool, backend).to(dtype)

    with full_precision(values):
        maps = in_chunks(
            work if separated.ending is None else lambda rows: _recomputed(work, rows),
            values.flatten(0, 1),
            chunk or max(1, MAP_FLOATS // (len(separated.query_hidden) * separated.outputs)),
        )
    return maps.unflatten(0, values.shape[:2])


def _recomputed(work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Do some work; for the backward pass do it again instead of keeping what a final norm needs, the width of it."""
    return checkpoint(work, rows, use_reentrant=False) if torch.is_grad_enabled() else work(rows)


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
    linear = values if separated.channel_weight is None else F.linear(values, separated.channel_weight)
    maps = gated.add_(separated.query_linear).add_(linear[:, None])
    if separated.ending is not None:
        weight, bias, eps = separated.ending
        maps = F.linear(F.layer_norm(maps, maps.shape[-1:], eps=eps), weight, bias)
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
        left = torch.cat([2 * c, c.square().sum(-1, keepdim=True), c.new_ones(len(c), 1)], dim=-1)
        right = torch.cat([q, q.new_ones(len(q), 1), q.square().sum(-1, keepdim=True)], dim=-1)
        square = (left @ right.T).to(query.dtype)  # all three terms in one product
        inverse = square.div_(q.shape[-1]).clamp_(min=0).add_(eps).rsqrt_()
        ctx.save_for_backward(query, value, inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of q̃ and c̃: ∂r/∂q̃ = −r³ (q̃ + c̃) / D, and the same for c̃."""
        query, value, inverse = ctx.saved_tensors
        slope = grad * inverse**3 / -query.shape[-1]
        return slope.sum(0)[:, None] * query + slope.T @ value, slope.sum(1)[:, None] * value + slope @ query, None


def full_precision(like: Tensor) -> AbstractContextManager:
    """Switch off what would round A, B and r: autocast, and TF32 on a GPU, which keeps ten bits of a product.

    Gradients' products, done later, keep the precision that the caller has set. torch.compile cannot see the switch of
    TF32: who compiles this for a GPU forbids it outside.
    """
    autocast = torch.autocast(like.device.type, enabled=False)
    if like.device.type != "cuda" or torch.compiler.is_compiling():
        return autocast
    both = ExitStack()
    both.enter_context(autocast)
    both.enter_context(_without_tf32())
    return both


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    name, off = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, off)
    try:
        yield
    finally:
        setattr(matmul, name, before)
