"""Decompose a field's output into one component a token, by any method, with what is needed to judge it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.base.registry import nearest
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.measures import completeness_error
from tdsm.decomposition.parts import Method, Options, Parts, widen
from tdsm.decomposition.registry import DECOMPOSITIONS
from tdsm.decomposition.select import select_tokens
from tdsm.decomposition.solo import missing_space
from tdsm.tokenfield import TokenField, device_of, resolve_points

BLOCK_BYTES = {"cpu": 2**26, "other": 2**30}  # of a block: what caches hold, or enough to fill a device


@dataclass(frozen=True)
class Decomposition:
    """Components of a field's output, and how far they are from adding up to it.

    `*points` are the axes of `size`, or one axis for `coords`.
    """

    method: str
    options: Any  # the method's own, as they were used: `additive` with a tolerance may have doubled its points
    indices: list[int]  # the tokens decomposed into, in the order of the components
    components: Float[Tensor, "batch selected *points channels"]
    base: Float[Tensor, "batch *points channels"]  # what is there without any token
    reconstruction: Float[Tensor, "batch *points channels"]  # of all tokens together
    completeness_error: Float[Tensor, " batch"]  # ‖base + Σ_k components − reconstruction‖ / ‖reconstruction − base‖
    standard_error: Float[Tensor, "batch selected *points channels"] | None = None  # of the components, if sampled
    movement: Float[Tensor, " batch"] | None = None  # how far a token treated to first order moves what is attended


def methods_for(field: TokenField) -> tuple[str, ...]:
    """Name the decompositions that suit a field: of its mixture if it has masks, else of its attention.

    >>> from tdsm import FieldConfig, NeuralField
    >>> methods_for(NeuralField(FieldConfig(widths=(16,), num_latents=8, mapping_dim=6, has_masks=True)))
    ('solo', 'mixture')
    """
    return tuple(name for name, method in DECOMPOSITIONS.items() if method.suits(field))


def check_method(field: TokenField, method: str) -> None:
    """Raise `UsageError` unless a decomposition of this name exists and suits a field."""
    if not DECOMPOSITIONS[method].suits(field):
        mixes = field.masked_readout() is not None
        decoder = "a mixture of its tokens by masks" if mixes else "one attention to all its tokens"
        raise UsageError(
            f"decompose: this field decodes by {decoder}, which {method!r} does not decompose; expected one of "
            f"{', '.join(methods_for(field))}."
        )


def decompose(
    field: TokenField,
    tokens: Float[Tensor, "batch tokens token_width"],
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
    *,
    method: str = "solo",
    selection: str | Sequence[int] | None = None,
    chunk: int | None = None,
    **options: Any,
) -> Decomposition:
    """Decompose what a field says about images into one component a token.

    | method | component k answers | adds up |
    |---|---|---|
    | `solo` | what does the field say when only token k speaks? | no |
    | `additive` | what did token k contribute, along the path from no attention to all of it? | yes |
    | `leave_one_out` | what would be missing without token k? | no |
    | `attention` | how much is token k looked at? | no |
    | `shapley` | what does token k add, averaged over all orders of arrival? (slow) | yes |
    | `mixture` | what does token k's mask cut out of what it says alone? (a field with masks) | yes |

    Fields with masks have `solo` and `mixture`, all others every method but `mixture`: see `methods_for`.

    The completeness error is measured for every one of them, over all tokens, also when only some are returned.

    >>> from tdsm import FieldConfig, NeuralField
    >>> config = FieldConfig(widths=(16,), num_latents=8, mapping_dim=6, cross_head_dim=8, self_head_dim=4)
    >>> field = NeuralField(config)
    >>> tokens = field.encode(torch.zeros(2, 3, 16, 16))
    >>> parts = decompose(field, tokens, size=(32, 20), method="additive", points=5)
    >>> parts.components.shape, parts.base.shape
    (torch.Size([2, 8, 32, 20, 3]), torch.Size([2, 32, 20, 3]))
    >>> bool(parts.completeness_error.max() < 1e-3)
    True

    Args:
        field: Any token field.
        tokens: Tokens of this field.
        size: Points along each axis, such as (32, 32); any size. Give either `size` or `coords`.
        coords: Scattered coordinates in [-1, 1].
        method: One of the table that suits the field.
        selection: None for all tokens, "stride:n", "first:n", or a list of indices. It saves memory; work is
            saved by `additive` alone, since the completeness error is over all tokens.
        chunk: (image, point) pairs decomposed at once; bounds memory, never changes results. None chooses.
        options: The method's own. `points`: quadrature points, 1 to 64; three reach about 1e-3 or better.
            `tolerance`: double `points` until no image's completeness error is above this. `head`: the head to show,
            None for the mean of all. `threshold`: attention, in [0, 1), up to which tokens share a gradient of the
            readout instead of being taken away one by one; `movement` bounds how far one of them moves what is
            attended, relative to its length. `permutations`: orders drawn, an even number of at least 4. `seed`: of
            the orders.

    Returns:
        Components in the field's range for `solo`, differences of it for `additive`, `leave_one_out` and
        `shapley`, shares of it for `mixture`, weights in [0, 1] for `attention`.

    Raises:
        UsageError: If an argument is unknown or does not fit the field or the method.

    Warns:
        SpaceWarning: If `solo` is asked of a decoder whose component images cannot carry space.
        CompletenessWarning: If `tolerance` was not reached with 64 quadrature points.
    """
    check_request(field, tokens, method, chunk)
    chosen, told = DECOMPOSITIONS[method], read_options(method, options)
    indices = select_tokens(tokens.shape[1], selection)
    coords, shape = resolve_points(field, size, coords, device=tokens.device)
    queries = field.queries(coords)
    if chosen.decodes_alone and (words := missing_space(field)) is not None:
        warnings.warn(words, SpaceWarning, stacklevel=2)
    while True:
        parts = _in_blocks(field, tokens, queries, indices, chosen, told, chunk)
        error = completeness_error(widen(parts.total)[:, None], widen(parts.base), widen(parts.reconstruction))
        if (finer := told.finer(error)) is None:
            break
        told = finer
    dtype, standard_error = parts.reconstruction.dtype, parts.standard_error
    return Decomposition(
        method=method,
        options=told,
        indices=indices,
        components=parts.components.to(dtype).unflatten(2, shape),
        base=parts.base.unflatten(1, shape),
        reconstruction=parts.reconstruction.unflatten(1, shape),
        completeness_error=error,
        standard_error=None if standard_error is None else standard_error.to(dtype).unflatten(2, shape),
        movement=None if parts.movement is None else parts.movement.amax(1),
    )


def check_request(field: TokenField, tokens: Tensor, method: str, chunk: int | None) -> None:
    """Raise `UsageError` unless tokens, method and chunk can be decomposed with this field."""
    device_of(tokens)
    check_method(field, method)
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise UsageError(f"decompose: chunk is {chunk!r}, expected a count of at least 1, or None to choose one.")


def read_options(method: str, given: dict[str, Any]) -> Options:
    """Return a method's options; refuse one that it does not have, naming the methods that do."""
    known = _names(DECOMPOSITIONS[method])
    for name in given:
        if name not in known:
            owners = [repr(other) for other, entry in DECOMPOSITIONS.items() if name in _names(entry)]
            hint = f", which is one of {' and '.join(owners)}" if owners else nearest(name, known)
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"decompose: method {method!r} has no option {name!r}{hint}; {has}.")
    return DECOMPOSITIONS[method].options(**given)


def _names(method: Method) -> list[str]:
    return [field.name for field in fields(method.options)]


def _in_blocks(
    field: TokenField,
    tokens: Tokens,
    queries: Queries,
    indices: list[int],
    method: Method,
    options: Options,
    chunk: int | None,
) -> Parts:
    chunk = chunk or default_chunk(method, tokens.shape[1], queries)
    images = tokens.split(max(1, chunk // queries.shape[0]))
    runs = [method.over(field, part, indices, options) for part in images]
    rows = [[run(block) for block in queries.split(chunk)] for run in runs]
    return _join([_join(row, axis=1, component_axis=2) for row in rows], axis=0, component_axis=0)


def default_chunk(method: Method, num_tokens: int, queries: Queries) -> int:
    """Estimate what a (image, point) pair takes: weights of all heads, and hidden units of one or every token."""
    readouts = num_tokens if method.holds_every_token else 1
    budget = BLOCK_BYTES.get(queries.device.type, BLOCK_BYTES["other"])
    return max(1, budget // ((16 * num_tokens + 8 * queries.shape[1] * readouts) * queries.element_size()))


def _join(blocks: list[Parts], *, axis: int, component_axis: int) -> Parts:
    """Concatenate blocks, along another axis for what has a token axis too; one alone is not copied."""
    if len(blocks) == 1:
        return blocks[0]

    def join(name: str, axis: int) -> Tensor:
        return torch.cat([getattr(block, name) for block in blocks], axis)

    return Parts(
        components=join("components", component_axis),
        total=join("total", axis),
        base=join("base", axis),
        reconstruction=join("reconstruction", axis),
        standard_error=None if blocks[0].standard_error is None else join("standard_error", component_axis),
        movement=None if blocks[0].movement is None else join("movement", axis),
    )
