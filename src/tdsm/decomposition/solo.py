"""Token-wise decoded decomposition (TWD) and the token-decoded spatial map (TDSM)."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.decomposition.definition import Components, Queries, Tokens
from tdsm.decomposition.exact import decode_values, exact
from tdsm.decomposition.parts import Method, Options, Parts, any_field, read_nothing, reconstruct, widen
from tdsm.decomposition.registry import REDUCTIONS, STRATEGIES
from tdsm.decomposition.select import select_tokens
from tdsm.tokenfield import TokenField, device_of, resolve_points


def component_images(
    field: TokenField,
    tokens: Tokens,
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
    *,
    strategy: str = "auto",
    selection: str | Sequence[int] | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> Float[Tensor, "batch selected *points channels"]:
    """Decode each token alone into its component image.

    Component k is the field's value when token k is the only key:

        I_k(x) = readout(q(x), attend(q(x), {z_k}))          (docs/method.md, eq. 1)

    They do not add up to the reconstruction: alone, every token is decoded at full weight.

    >>> import torch
    >>> from tdsm import FieldConfig, NeuralField
    >>> config = FieldConfig(widths=(16,), num_latents=8, mapping_dim=6, cross_head_dim=8, self_head_dim=4)
    >>> field = NeuralField(config)
    >>> tokens = field.encode(torch.zeros(2, 3, 16, 16))
    >>> component_images(field, tokens, size=(32, 20), selection="stride:4").shape
    torch.Size([2, 2, 32, 20, 3])

    Args:
        field: Any token field.
        tokens: Tokens of this field.
        size: Points along each axis, such as (32, 32); any size. Give either `size` or `coords`.
        coords: Scattered coordinates in [-1, 1].
        strategy: "loop" (the definition), "batched" (tokens as a batch), "exact" (the same values at a hundredth of
            the arithmetic) or "auto". All agree in values and gradients up to rounding.
        selection: None for all tokens, "stride:n", "first:n", or a list of indices.
        chunk: (image, token) pairs decoded at once; bounds memory, never changes results. None chooses.
        backend: Of the exact strategy: "eager", "cpu" (compiled) or "gpu" (Triton). None chooses, as
            `plan_decoding` tells.

    Returns:
        Values in the field's range (nominally [-1, 1]), shape (batch, selected, *size, channels).

    Raises:
        UsageError: If an argument is unknown or does not fit the field.

    Warns:
        SpaceWarning: If the decoder's component images cannot carry space.
    """
    points, shape = resolve_points(field, size, coords, device=device_of(tokens))
    decode = _decoding(strategy, backend)
    tokens = chosen_tokens(field, tokens, selection, chunk)
    return decode(field, tokens, field.queries(points), chunk).unflatten(2, shape)


def spatial_map(
    field: TokenField,
    tokens: Tokens,
    size: Sequence[int] | None = None,
    coords: Float[Tensor, "points axes"] | None = None,
    *,
    reduction: str = "mean",
    selection: str | Sequence[int] | None = None,
    strategy: str = "auto",
    chunk: int | None = None,
    backend: str | None = None,
) -> Float[Tensor, "batch *points maps"]:
    """Reduce component images over colour into the token-decoded spatial map.

    All arguments but the reduction are those of `component_images`.

    Args:
        reduction: "mean" or "l2" (one channel a token), or "rgb" (token-major: map k · C + c).

    Returns:
        Maps of shape (batch, *size, selected tokens), times channels for "rgb".

    Raises:
        UsageError: If an argument is unknown or does not fit the field.

    Warns:
        SpaceWarning: If the decoder's component images cannot carry space.
    """
    points, shape = resolve_points(field, size, coords, device=device_of(tokens))
    maps = map_queries(
        field,
        tokens,
        field.queries(points),
        reduction=reduction,
        selection=selection,
        strategy=strategy,
        chunk=chunk,
        backend=backend,
    )
    return maps.unflatten(1, shape)


def map_queries(
    field: TokenField,
    tokens: Tokens,
    queries: Queries,
    *,
    reduction: str = "mean",
    selection: str | Sequence[int] | None = None,
    strategy: str = "auto",
    chunk: int | None = None,
    backend: str | None = None,
) -> Float[Tensor, "batch points maps"]:
    """Return the spatial map at given query features instead of coordinates; see `spatial_map`."""
    reduced, decode = REDUCTIONS[reduction], _decoding(strategy, backend)
    tokens = chosen_tokens(field, tokens, selection, chunk)
    if STRATEGIES[strategy].reads_values and reduced.on_the_way != "none":
        values = field.attend_one(tokens)
        return decode_values(field, values, queries, reduced.on_the_way, chunk=chunk, backend=backend).movedim(1, -1)
    return reduced.reduce(decode(field, tokens, queries, chunk))


def missing_space(field: TokenField) -> str | None:
    """Say in words why this decoder's component images carry no space; None if they can."""
    if not field.has_query_residual:
        return (
            "This decoder has no query residual: a token that stands alone gives every position the same value, so "
            "component images are constant in space. Use decompose with method 'additive' or 'leave_one_out', which "
            "say where each token counts, or the token values (attend_one)."
        )
    if not field.has_nonlinear_readout:
        return (
            "This decoder has no nonlinearity after its attention: component images of all tokens are one and the same "
            "picture plus a constant. Use decompose with method 'additive' or 'leave_one_out', which say where each "
            "token counts, or the token values (attend_one)."
        )
    return None


def chosen_tokens(
    field: TokenField, tokens: Tokens, selection: str | Sequence[int] | None, chunk: int | None
) -> Float[Tensor, "batch selected token_width"]:
    """Return the selected tokens; refuse a chunk that is no count, and warn of a decoder that carries no space."""
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise UsageError(
            f"component_images: chunk is {chunk!r}, expected a count of at least 1, or None to choose one."
        )
    if (words := missing_space(field)) is not None:
        warnings.warn(words, SpaceWarning, stacklevel=4)
    indices = select_tokens(tokens.shape[1], selection)
    return tokens if selection is None else tokens[:, indices]


def _decoding(name: str, backend: str | None) -> Callable[..., Components]:
    strategy = STRATEGIES[name]
    if strategy.reads_values:
        return partial(strategy.decode, backend=backend)
    if backend is not None:
        raise UsageError(f"component_images: strategy {name!r} has no backends; leave {backend!r} out, or use exact.")
    return strategy.decode


def solo(field: TokenField, tokens: Tokens, queries: Queries, indices: list[int], options: Options) -> Parts:
    """Decode each token alone (TWD). Base: what the readout says when nothing is attended, readout(q, b_o)."""
    images = exact(field, tokens, queries).expand(-1, -1, queries.shape[0], -1)
    base = read_nothing(field, queries, field.attention_parts(queries, tokens))
    return Parts(images[:, indices], widen(images).sum(1), base, reconstruct(field, tokens, queries))


SOLO = Method(solo, question="what does the field say when only token k speaks?", suits=any_field, decodes_alone=True)
