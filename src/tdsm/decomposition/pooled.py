"""Spatially pooled maps, for heads that only pool: the maps themselves are never stored."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.decomposition.definition import Tokens
from tdsm.decomposition.exact import decode_values
from tdsm.decomposition.reduce import REDUCTIONS, reduce_components
from tdsm.decomposition.separated import Reduction
from tdsm.decomposition.solo import chosen_tokens
from tdsm.tokenfield import TokenField, device_of, resolve_points

KINDS: dict[str, Reduction] = {"mean": "mean", "l2": "l2", "rgb": "none"}
POOLS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "avg": F.adaptive_avg_pool2d,
    "max": F.adaptive_max_pool2d,
}


def pooled_map(
    field: TokenField,
    tokens: Tokens,
    size: Sequence[int],
    *,
    pool: str = "avg",
    cells: int = 1,
    reduction: str = "mean",
    selection: str | Sequence[int] | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> Float[Tensor, "batch cells cells maps"]:
    """Pool the spatial map over a grid of cells × cells regions, chunk by chunk.

    Equal to pooling `spatial_map` afterwards, but only `chunk` tokens' maps exist at a time.

    Args:
        field, tokens, size, reduction, selection, chunk, backend: As in `spatial_map`, with a size of two axes.
        pool: "avg" or "max".
        cells: Regions along each axis: 1 pools everything, 2, 4 or 8 keep a coarse grid.

    Raises:
        UsageError: If an argument is unknown or does not fit.

    Warns:
        SpaceWarning: If the decoder's component images cannot carry space.
    """
    if not isinstance(pool, str) or pool not in POOLS or reduction not in REDUCTIONS:
        raise UsageError(
            f"pooled_map: pool {pool!r}, reduction {reduction!r}; expected pool in {', '.join(POOLS)} and reduction in "
            f"{', '.join(REDUCTIONS)}."
        )
    points, shape = resolve_points(field, size, None, device=device_of(tokens))
    if len(shape) != 2 or not isinstance(cells, int) or not 1 <= cells <= min(shape):
        raise UsageError(
            f"pooled_map: {cells} × {cells} cells of size {shape}; expected 1 to {min(shape)} on two axes."
        )
    tokens = chosen_tokens(field, tokens, selection, chunk)

    def pool_rows(maps: Float[Tensor, "rows points *channels"]) -> Float[Tensor, "rows regions *channels"]:
        pictures = (
            maps.unflatten(1, shape).flatten(3).movedim(-1, 1) if maps.ndim == 3 else maps.unflatten(1, shape)[:, None]
        )
        regions = POOLS[pool](pictures, (cells, cells)).flatten(2).movedim(1, -1)
        return regions if maps.ndim == 3 else regions[..., 0]

    kind, values = KINDS[reduction], field.attend_one(tokens)
    pooled = decode_values(field, values, field.queries(points), kind, chunk=chunk, pool=pool_rows, backend=backend)
    if kind == "none":
        return reduce_components(pooled.unflatten(2, (cells, cells)), "rgb")
    return pooled.unflatten(2, (cells, cells)).movedim(1, -1)
