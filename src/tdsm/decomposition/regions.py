"""What each token contributed to regions: a number a (region, token, channel), streamed over any number of points.

    C_R,k = Σ_p r_R(p) · I_k(p)            r_R(p): 1 inside the region and 0 outside, or any weight

with I_k the components of any decomposition. Additive ones are linear in what each token sent,

    C_R,k = Σ_h ⟨ Σ_p r_R(p) α_hk(p) W_o^hᵀ G(p),  V_h LN(z_k) ⟩

so they add up over a region as they do at a point, and points may come in any number and order. The inner sum is
heads · head_dim numbers a (region, token). Here it is not held: the points of a chunk are contracted with the values
head by head, to one number a (point, token), and that is summed into the regions. It takes the same products, and none
more for regions that overlap or have weights.

Keys and values of the tokens are projected once. Nothing held grows with the number of points; components of 4096
tokens at 128³ points would take 34 GB a channel.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.measures import completeness_error
from tdsm.decomposition.methods import check_request, default_chunk, read_options
from tdsm.decomposition.parts import Parts
from tdsm.decomposition.registry import DECOMPOSITIONS
from tdsm.decomposition.solo import missing_space
from tdsm.tokenfield import TokenField, device_of, resolve_points

Regions = Tensor  # labels (points,), weights (points, regions) or boxes (regions, 2, axes)


@dataclass(frozen=True)
class Contributions:
    """A decomposition summed over regions, in float64; sums over an empty region are 0."""

    method: str
    options: Any  # the method's own, as they were used
    components: Float[Tensor, "batch regions tokens channels"]
    base: Float[Tensor, "batch regions channels"]  # what is there without any token
    reconstruction: Float[Tensor, "batch regions channels"]  # of all tokens together
    completeness_error: Float[Tensor, " batch"]  # ‖base + Σ_k components − reconstruction‖ / ‖reconstruction − base‖
    weight: Float[Tensor, " regions"]  # Σ_p r_R(p): the number of points, for labels and boxes
    movement: Float[Tensor, " batch"]  # as in `decompose`; 0 where no token is treated to first order


@torch.no_grad()
def contributions(
    field: TokenField,
    tokens: Tokens,
    coords: Float[Tensor, "points axes"],
    regions: Regions,
    *,
    method: str = "additive",
    chunk: int | None = None,
    **options: Any,
) -> Contributions:
    """Sum each token's components over regions of points.

    Memory does not grow with the number of points. Points of no region cost nothing. Without gradients.

    >>> from tdsm import FieldConfig, NeuralField
    >>> from tdsm.tokenfield.coords import grid
    >>> field = NeuralField(FieldConfig(widths=(16,), num_latents=8, mapping_dim=6))
    >>> tokens, coords = field.encode(torch.zeros(2, 3, 16, 16)), grid((20, 20))
    >>> halves = (coords[:, 1] > 0).long()
    >>> parts = contributions(field, tokens, coords, halves, points=8)
    >>> parts.components.shape, parts.weight
    (torch.Size([2, 2, 8, 3]), tensor([200., 200.], dtype=torch.float64))
    >>> bool(parts.completeness_error.max() < 1e-4)
    True

    Args:
        field: Any token field.
        tokens: Tokens of this field.
        coords: Coordinates to sum over; weigh them where they are unevenly spread.
        regions: Labels 0, 1, … of the points, −1 for none; or weights of each point in each region; or boxes, their
            lower and upper corners, faces included.
        method: One of `decompose` that suits the field. `attention` sums the mean head's weights.
        chunk: (image, point) pairs decomposed at once; bounds memory, never changes results. None chooses.
        options: The method's own, as in `decompose`.

    Raises:
        UsageError: If an argument is unknown or does not fit the field, or regions do not fit the points.

    Warns:
        SpaceWarning: If `solo` is asked of a decoder whose component images cannot carry space.
        CompletenessWarning: If a `tolerance` was not reached.
    """
    check_request(field, tokens, method, chunk)
    chosen, told = DECOMPOSITIONS[method], read_options(method, options)
    if chosen.decodes_alone and (words := missing_space(field)) is not None:
        warnings.warn(words, SpaceWarning, stacklevel=2)
    coords, _ = resolve_points(field, None, coords, device=device_of(tokens))
    coords, regions = _inside(coords, _checked(regions, coords))
    chunk = chunk or default_chunk(chosen, tokens.shape[1], field.queries(coords[:1]))
    indices = list(range(tokens.shape[1]))
    while True:
        images = [
            _stream(chosen.over(field, part, indices, told), field, coords, regions, max(1, chunk // len(part)))
            for part in tokens.split(chunk)
        ]
        components, base, reconstruction, movement = (torch.cat(sums) for sums in zip(*images, strict=True))
        error = completeness_error(components.movedim(2, 1), base, reconstruction)
        if (finer := told.finer(error)) is None:
            break
        told = finer
    return Contributions(
        method=method,
        options=told,
        components=components,
        base=base,
        reconstruction=reconstruction,
        completeness_error=error,
        weight=torch.stack([weights.sum(0) for _, weights in _blocks(coords, regions)]).sum(0),
        movement=movement,
    )


def _stream(
    run: Callable[[Queries], Parts], field: TokenField, coords: Tensor, regions: Regions, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum components, base and reconstruction over the regions, `chunk` points at a time; keep the worst movement."""
    components = base = reconstruction = movement = torch.zeros((), dtype=torch.float64, device=coords.device)
    for block, weights in _blocks(coords, regions, chunk):
        parts = run(field.queries(block))
        components = components + torch.einsum("pr,bkpc->brkc", weights, parts.components.double())
        base = base + torch.einsum("pr,bpc->brc", weights, parts.base.double())
        reconstruction = reconstruction + torch.einsum("pr,bpc->brc", weights, parts.reconstruction.double())
        if parts.movement is not None:
            movement = torch.maximum(movement, parts.movement.double().amax(1))
    return components, base, reconstruction, movement.expand(len(base))


def _checked(regions: Regions, coords: Tensor) -> Regions:
    """Return regions on the coordinates' device; raise `UsageError` unless they are of one of the three forms."""
    (points, axes), shape = coords.shape, tuple(regions.shape)
    is_whole = not regions.is_floating_point() and regions.dtype != torch.bool
    are_labels = shape == (points,) and is_whole and bool((regions >= -1).all()) and bool((regions >= 0).any())
    are_weights = len(shape) == 2 and shape[0] == points and bool(regions.numel()) and bool(regions.isfinite().all())
    are_boxes = len(shape) == 3 and shape[1:] == (2, axes) and bool(regions.numel())
    if not (are_labels or are_weights or are_boxes):
        raise UsageError(
            f"contributions: regions are {regions.dtype} {shape}, expected whole-numbered labels ({points},), -1 for "
            f"none and at least one other; or finite weights ({points}, regions); or boxes (regions, 2, {axes})."
        )
    return regions.to(coords.device, torch.long if are_labels else regions.dtype)


def _blocks(coords: Tensor, regions: Regions, chunk: int = 2**16) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield coordinates of `chunk` points at a time, and their weights in the regions, (points, regions)."""
    count = int(regions.max()) + 1 if regions.ndim == 1 else 0
    for start in range(0, len(coords), chunk):
        block, part = coords[start : start + chunk], regions[start : start + chunk]
        if regions.ndim == 1:
            yield block, F.one_hot(part + 1, count + 1)[:, 1:].double()
        elif regions.ndim == 2:
            yield block, part.double()
        else:
            low, high = regions.unbind(1)
            yield block, ((block[:, None] >= low) & (block[:, None] <= high)).all(-1).double()


def _inside(coords: Tensor, regions: Regions) -> tuple[Tensor, Regions]:
    """Leave out points that are in no region."""
    inside = torch.cat([(weights != 0).any(1) for _, weights in _blocks(coords, regions)])
    inside[0] |= ~inside.any()  # regions may all be empty; sums have a shape all the same
    return coords[inside], regions if regions.ndim == 3 else regions[inside]
