"""The surface of a decoded shape, and what tokens gave to every place on it; streamed over points.

    surface = decode_surface(field, tokens, (64, 64, 64))
    strongest_token(field, tokens, surface.vertices)         which token gave most to each vertex
    token_contribution(field, tokens, surface.vertices, 7)   what token 7 gave to each

What is held besides the volume of values, 4 bytes a point, does not grow with the number of points.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import ResourceError, UsageError
from tdsm.base.extras import missing_words
from tdsm.decomposition.definition import Tokens
from tdsm.decomposition.methods import decompose
from tdsm.tokenfield import TokenField, resolve_points

CHUNK = 2**13  # points decoded at once


class Surface(NamedTuple):
    """Triangles in the field's coordinates, their corners counter-clockwise seen from outside."""

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]


@torch.no_grad()
def decode_surface(field: TokenField, tokens: Tokens, size: Sequence[int], *, level: float = 0.0) -> Surface:
    """Decode one shape on a grid and find where its values cross a level, by marching cubes (Lewiner et al. 2003).

    Values above the level count as inside, as logits of occupancy do; of a signed distance that is negative inside,
    pass the tokens of a field that negates it, as `shape_field` of TripoSG does.

    Args:
        field: Any field of three axes.
        tokens: Of one shape, (1, tokens, token_width).
        size: Points along each axis of the grid, at least 2.
        level: Where the surface is.

    Raises:
        UsageError: If the field has other axes, tokens are not of one shape, or no value crosses the level.
        ResourceError: If scikit-image is not installed.
    """
    try:
        from skimage.measure import marching_cubes
    except ModuleNotFoundError as error:
        raise ResourceError(f"decode_surface: {missing_words(error)}") from None
    check_one(tokens, "decode_surface")
    coords, shape = resolve_points(field, size, None, device=tokens.device)
    if len(shape) != 3 or min(shape) < 2:
        raise UsageError(f"decode_surface: size is {tuple(size)}, expected three counts of at least 2.")
    values = torch.cat([field.decode(tokens, coords=part)[0, :, 0].float().cpu() for part in coords.split(CHUNK)])
    low, high = float(values.min()), float(values.max())
    if not low < level < high:
        raise UsageError(
            f"decode_surface: values run from {low:.3g} to {high:.3g} and do not cross the level {level:g}; there is "
            "no surface. Is the field trained, and are these its tokens?"
        )
    spacing = tuple(2 / (count - 1) for count in shape)
    vertices, faces, *_ = marching_cubes(
        values.view(shape).numpy(), level, spacing=spacing, gradient_direction="ascent"
    )
    return Surface(torch.from_numpy(vertices.copy()).float() - 1, torch.from_numpy(faces.copy()).long())


def strongest_token(
    field: TokenField, tokens: Tokens, coords: Float[Tensor, "points axes"], *, method: str = "additive", **options: Any
) -> Int[Tensor, " points"]:
    """Return the token of the largest component at each point, summed over channels.

    Args:
        field: Any token field.
        tokens: Of one signal, (1, tokens, token_width).
        coords: Such as the vertices of a surface.
        method: A decomposition.
        options: Its own.
    """
    check_one(tokens, "strongest_token")
    return _streamed(field, tokens, coords, lambda parts: parts.sum(-1).argmax(0), method=method, **options)


def token_contribution(
    field: TokenField,
    tokens: Tokens,
    coords: Float[Tensor, "points axes"],
    token: int,
    *,
    method: str = "additive",
    **options: Any,
) -> Float[Tensor, " points"]:
    """Return the signed component of one token at each point, summed over channels.

    Args:
        field: Any token field.
        tokens: Of one signal, (1, tokens, token_width).
        coords: Such as the vertices of a surface.
        token: Its number.
        method: A decomposition.
        options: Its own.
    """
    check_one(tokens, "token_contribution")
    read = {"method": method, "selection": [token]}
    return _streamed(field, tokens, coords, lambda parts: parts[0].sum(-1), **read, **options)


def check_one(tokens: Tokens, name: str) -> None:
    """Raise `UsageError` unless tokens are those of one signal."""
    if tokens.ndim != 3 or len(tokens) != 1:
        raise UsageError(
            f"{name}: tokens have shape {tuple(tokens.shape)}, expected those of one shape, (1, tokens, width). "
            "Take tokens[i : i + 1]."
        )


@torch.no_grad()
def _streamed(field: TokenField, tokens: Tokens, coords: Tensor, read: Any, **request: Any) -> Tensor:
    """Decompose some points at a time and keep of each chunk (tokens, points, channels) what `read` takes from it."""
    coords = coords.to(tokens)
    room = max(1, 2**22 // tokens.shape[1])  # so that a chunk's components are 16 MB a channel
    return torch.cat(
        [read(decompose(field, tokens, coords=part, **request).components[0]).cpu() for part in coords.split(room)]
    )
