"""Reduce component images over colour into the channels of a token-decoded spatial map.

Each reduction takes (..., tokens, points, channels) and gives (..., points, maps): tokens become channels.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import UsageError

Components = Float[Tensor, "batch tokens *points channels"]
Map = Float[Tensor, "batch *points maps"]


def reduce_mean(components: Components) -> Map:
    """Average over channels: one map a token."""
    return components.mean(dim=-1).movedim(1, -1)


def reduce_rgb(components: Components) -> Map:
    """Keep all channels, token-major: map k · C + c is channel c of token k."""
    return rearrange(components, "b k ... c -> b ... (k c)")


def reduce_l2(components: Components) -> Map:
    """Take the Euclidean norm over channels: one non-negative map a token."""
    return torch.linalg.vector_norm(components, dim=-1).movedim(1, -1)


REDUCTIONS: dict[str, Callable[[Components], Map]] = {"mean": reduce_mean, "rgb": reduce_rgb, "l2": reduce_l2}


def reduce_components(components: Components, reduction: str) -> Map:
    """Reduce component images by name.

    >>> reduce_components(torch.zeros(2, 8, 32, 32, 3), "rgb").shape
    torch.Size([2, 32, 32, 24])
    """
    check_reduction(reduction)
    if components.ndim < 4 or not components.is_floating_point():
        raise UsageError(
            f"reduce_components: components are {components.dtype} of shape {tuple(components.shape)}, expected "
            "floating point (batch, tokens, *size, channels), as component_images returns them."
        )
    return REDUCTIONS[reduction](components)


def check_reduction(reduction: str) -> None:
    """Raise `UsageError` unless a reduction of this name exists."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise UsageError(f"spatial_map: unknown reduction {reduction!r}, expected one of {', '.join(REDUCTIONS)}.")


def num_maps(num_tokens: int, channels: int, reduction: str) -> int:
    """Count the channels of a map: tokens, times channels for `rgb`."""
    return num_tokens * channels if reduction == "rgb" else num_tokens
