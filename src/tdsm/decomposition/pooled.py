"""Spatially pooled maps, for heads that only pool: the maps themselves are never stored."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.decomposition.definition import Tokens
from tdsm.decomposition.exact import decode_values
from tdsm.decomposition.reduce import Reduction
from tdsm.decomposition.registry import POOLS, REDUCTIONS
from tdsm.decomposition.solo import chosen_tokens
from tdsm.tokenfield import TokenField, device_of, resolve_points


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
    The other arguments are those of `spatial_map`, with a size of two axes.

    Args:
        pool: "avg" or "max".
        cells: Regions along each axis: 1 pools everything, 2, 4 or 8 keep a coarse grid.

    Raises:
        UsageError: If an argument is unknown or does not fit.

    Warns:
        SpaceWarning: If the decoder's component images cannot carry space.
    """
    pool, reduced = POOLS.check(pool), REDUCTIONS[reduction]
    points, shape = resolve_points(field, size, None, device=device_of(tokens))
    if len(shape) != 2 or not isinstance(cells, int) or not 1 <= cells <= min(shape):
        raise UsageError(
            f"pooled_map: {cells} × {cells} cells of size {shape}; expected 1 to {min(shape)} on two axes."
        )
    tokens = chosen_tokens(field, tokens, selection, chunk)

    def pool_rows(decoded: Float[Tensor, "rows points *channels"]) -> Float[Tensor, "rows regions maps"]:
        maps = rearrange(_maps_of_each(decoded, reduced), "r (h w) m -> r m h w", h=shape[0])
        return rearrange(POOLS[pool](maps, (cells, cells)), "r m h w -> r (h w) m")

    values, queries, kind = field.attend_one(tokens), field.queries(points), reduced.on_the_way
    pooled = decode_values(field, values, queries, kind, chunk=chunk, pool=pool_rows, backend=backend)
    return rearrange(pooled, "b k (h w) m -> b h w (k m)", h=cells)


def _maps_of_each(
    decoded: Float[Tensor, "rows points *channels"], reduction: Reduction
) -> Float[Tensor, "rows points maps"]:
    """Return the maps of each row, which is one token of one image; decoding may have reduced them on the way."""
    return reduction.reduce(decoded[:, None]) if reduction.on_the_way == "none" else decoded[..., None]
