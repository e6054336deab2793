"""Decompose a field's output into one component a token, by any method, with what is needed to judge it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition.ablation import leave_one_out
from tdsm.decomposition.additive import additive
from tdsm.decomposition.attention_maps import attention
from tdsm.decomposition.definition import Queries, Tokens
from tdsm.decomposition.exact import exact
from tdsm.decomposition.measures import completeness_error
from tdsm.decomposition.mixture import mixture
from tdsm.decomposition.parts import Options, Parts, read_nothing, reconstruct, widen
from tdsm.decomposition.select import select_tokens
from tdsm.decomposition.shapley import shapley
from tdsm.decomposition.solo import missing_space
from tdsm.tokenfield import TokenField, device_of, resolve_points

BLOCK_BYTES = 64 * 2**20
MOST_POINTS = 64


class CompletenessWarning(UserWarning):
    """The components miss the reconstruction by more than the tolerance asked for."""


@dataclass(frozen=True)
class Decomposition:
    """Components of a field's output, and how far they are from adding up to it.

    `*points` are the axes of `size`, or one axis for `coords`.
    """

    method: str
    indices: list[int]  # the tokens decomposed into, in the order of the components
    components: Float[Tensor, "batch selected *points channels"]
    base: Float[Tensor, "batch *points channels"]  # what is there without any token
    reconstruction: Float[Tensor, "batch *points channels"]  # of all tokens together
    completeness_error: Float[Tensor, " batch"]  # ‖base + Σ_k components − reconstruction‖ / ‖reconstruction − base‖
    points: int | None = None  # `additive`: quadrature points used
    standard_error: Float[Tensor, "batch selected *points channels"] | None = None  # `shapley`: of the components


def solo(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Options) -> Parts:
    """Decode each token alone (TWD). Base: what the readout says when nothing is attended, readout(q, b_o)."""
    images = exact(field, tokens, queries).expand(-1, -1, queries.shape[0], -1)
    base = read_nothing(field, queries, field.attention_parts(queries, tokens))
    return Parts(images[:, indices], widen(images).sum(1), base, reconstruct(field, tokens, queries))


DECOMPOSITIONS: dict[str, Callable[[TokenField, Tokens, Queries, list[int], Options], Parts]] = {
    "solo": solo,
    "additive": additive,
    "leave_one_out": leave_one_out,
    "attention": attention,
    "shapley": shapley,
    "mixture": mixture,
}


def methods_for(field: TokenField) -> tuple[str, ...]:
    """Name the decompositions that suit a field: of its mixture if it has masks, else of its attention.

    >>> from tdsm.models.field import FieldConfig, NeuralField
    >>> methods_for(NeuralField(FieldConfig(widths=(16,), num_latents=8, mapping_dim=6, has_masks=True)))
    ('solo', 'mixture')
    """
    if field.masked_readout() is not None:
        return ("solo", "mixture")
    return tuple(name for name in DECOMPOSITIONS if name != "mixture")


def check_method(field: TokenField, method: str) -> None:
    """Raise `UsageError` unless a decomposition suits a field."""
    if method not in (suitable := methods_for(field)):
        decoder = "a mixture of its tokens by masks" if "mixture" in suitable else "one attention to all its tokens"
        raise UsageError(
            f"decompose: this field decodes by {decoder}, which {method!r} does not decompose; expected one of "
            f"{', '.join(suitable)}."
        )


def decompose(
    field: TokenField,
    tokens: Float[Tensor, "batch tokens token_width"],
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
    *,
    method: str = "solo",
    selection: str | Sequence[int] | None = None,
    points: int = 3,
    tolerance: float | None = None,
    head: int | None = None,
    permutations: int = 32,
    seed: int = 0,
    chunk: int | None = None,
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

    >>> from tdsm.models.field import FieldConfig, NeuralField
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
        method: A name from `DECOMPOSITIONS` that suits the field.
        selection: None for all tokens, "stride:n", "first:n", or a list of indices. It saves memory; work is
            saved by `additive` alone, since the completeness error is over all tokens.
        points: `additive`: quadrature points, at least 1. Three reach about 1e-3 or better.
        tolerance: `additive`: double `points` until no image's completeness error is above this.
        head: `attention`: the head to show, None for the mean of all.
        permutations: `shapley`: orders drawn, an even number of at least 4.
        seed: `shapley`: seed of the orders.
        chunk: (image, point) pairs decomposed at once; bounds memory, never changes results. None chooses.

    Returns:
        Components in the field's range for `solo`, differences of it for `additive`, `leave_one_out` and
        `shapley`, shares of it for `mixture`, weights in [0, 1] for `attention`.

    Raises:
        UsageError: If an argument is unknown or does not fit the field.

    Warns:
        SpaceWarning: If `solo` is asked of a decoder whose component images cannot carry space.
        CompletenessWarning: If `tolerance` was not reached with 64 quadrature points.
    """
    options = Options(points=points, head=head, permutations=permutations, seed=seed)
    _check(field, tokens, method, options, tolerance, chunk)
    indices = select_tokens(tokens.shape[1], selection)
    coords, shape = resolve_points(field, size, coords, device=tokens.device)
    queries = field.queries(coords)
    if method == "solo" and (words := missing_space(field)) is not None:
        warnings.warn(words, SpaceWarning, stacklevel=2)
    while True:
        parts = _in_blocks(field, tokens, queries, indices, method, options, chunk)
        error = completeness_error(widen(parts.total)[:, None], widen(parts.base), widen(parts.reconstruction))
        if tolerance is None or bool((error <= tolerance).all()) or 2 * options.points > MOST_POINTS:
            break
        options = replace(options, points=2 * options.points)
    if tolerance is not None and not bool((error <= tolerance).all()):
        warnings.warn(
            f"decompose: with {options.points} quadrature points the completeness error is {float(error.max()):.1e}, "
            f"above the tolerance of {tolerance:.1e}; more points, or rounding, will not bring it there. The error "
            "reached is returned. In float64 (field.double(), tokens.double()) smaller ones can be reached.",
            CompletenessWarning,
            stacklevel=2,
        )
    dtype, standard_error = parts.reconstruction.dtype, parts.standard_error
    return Decomposition(
        method=method,
        indices=indices,
        components=parts.components.to(dtype).unflatten(2, shape),
        base=parts.base.unflatten(1, shape),
        reconstruction=parts.reconstruction.unflatten(1, shape),
        completeness_error=error,
        points=options.points if method == "additive" else None,
        standard_error=None if standard_error is None else standard_error.to(dtype).unflatten(2, shape),
    )


def _in_blocks(
    field: TokenField,
    tokens: Tokens,
    queries: Queries,
    indices: list[int],
    method: str,
    options: Options,
    chunk: int | None,
) -> Parts:
    chunk = chunk or _default_chunk(method, tokens.shape[1], queries)
    images = tokens.split(max(1, chunk // queries.shape[0]))
    run = DECOMPOSITIONS[method]
    rows = [[run(field, part, block, indices, options) for block in queries.split(chunk)] for part in images]
    return _join([_join(row, axis=1, component_axis=2) for row in rows], axis=0, component_axis=0)


def _default_chunk(method: str, num_tokens: int, queries: Queries) -> int:
    """Estimate what a (image, point) pair takes: weights of all heads, and hidden units of one or every token."""
    readouts = num_tokens if method in ("leave_one_out", "shapley") else 1
    return max(1, BLOCK_BYTES // ((16 * num_tokens + 8 * queries.shape[1] * readouts) * queries.element_size()))


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
    )


def _check(
    field: TokenField, tokens: Tensor, method: str, options: Options, tolerance: float | None, chunk: int | None
) -> None:
    device_of(tokens)
    if not isinstance(method, str) or method not in DECOMPOSITIONS:
        raise UsageError(f"decompose: unknown method {method!r}, expected one of {', '.join(DECOMPOSITIONS)}.")
    check_method(field, method)
    if tokens.ndim != 3 or 0 in tokens.shape:
        raise UsageError(
            f"decompose: tokens have shape {tuple(tokens.shape)}, expected (batch, tokens, width), none of them 0. "
            "Pass the tokens of the field: field.encode(images)."
        )
    if not 1 <= options.points <= MOST_POINTS:
        raise UsageError(f"decompose: points is {options.points}, expected 1 to {MOST_POINTS} quadrature points.")
    if options.permutations < 4 or options.permutations % 2:
        raise UsageError(
            f"decompose: permutations is {options.permutations}, expected an even number of at least 4: each order "
            "is taken with its reverse, and a standard error needs two such pairs."
        )
    if tolerance is not None and (method != "additive" or not tolerance > 0):
        raise UsageError(
            f"decompose: tolerance {tolerance} with method {method!r}; expected a number above 0, with 'additive', "
            "whose quadrature points it chooses."
        )
    if chunk is not None and chunk < 1:
        raise UsageError(f"decompose: chunk is {chunk}, expected at least 1, or None to choose one.")
