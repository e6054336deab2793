"""Token-wise decoding without the attention and the matrix products that one token makes unnecessary.

Alone, token k gives every query the same vector c_k, so the decoder's attention collapses; and the readout's
first layer then separates over (query, token). Both steps are exact: docs/method.md, sections 2 and 3.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.chunks import in_chunks
from tdsm.decomposition.definition import Components, Queries, Tokens, default_chunk
from tdsm.decomposition.plan import plan_decoding
from tdsm.decomposition.separated import Reduction, evaluate, prepare
from tdsm.tokenfield import TokenField


def exact(
    field: TokenField, tokens: Tokens, queries: Queries, chunk: int | None = None, backend: str | None = None
) -> Components:
    """Decode every token alone from its token value, separated where the field's readout allows it."""
    return decode_values(field, field.attend_one(tokens), queries, chunk=chunk, backend=backend)


def decode_values(
    field: TokenField,
    values: Float[Tensor, "batch tokens width"],
    queries: Queries,
    reduction: Reduction = "none",
    *,
    chunk: int | None = None,
    pool: Callable[[Tensor], Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decode token values alone; `pool` is applied to the finished maps of each chunk.

    Returns:
        (batch, tokens, points, channels), or (batch, tokens, points) for "mean" and "l2"; `pool` replaces points.
    """
    readout = field.separable_readout()
    if readout is None:
        return _read_out(field, values, queries, reduction, chunk, pool)
    separated = prepare(readout, queries, reduction)
    channels, pairs = 1 if reduction == "mean" else len(readout.channel_weight), values.shape[:2].numel()
    plan = plan_decoding(field, pairs, queries, channels=channels, chunk=chunk, backend=backend)
    return evaluate(separated, values, chunk=plan.chunk, pool=pool, backend=plan.backend)


def _read_out(
    field: TokenField,
    values: Float[Tensor, "batch tokens width"],
    queries: Queries,
    reduction: Reduction,
    chunk: int | None,
    pool: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    def work(rows: Float[Tensor, "rows width"]) -> Tensor:
        images = field.readout(queries, rows[:, None]).expand(-1, len(queries), -1)  # constant without a residual
        if reduction == "mean":
            images = images.mean(dim=-1)
        elif reduction == "l2":
            images = torch.linalg.vector_norm(images, dim=-1)
        return images if pool is None else pool(images)

    return in_chunks(work, values.flatten(0, 1), chunk or default_chunk(queries)).unflatten(0, values.shape[:2])
