"""Reduce component images over colour into the channels of a token-decoded spatial map.

Each takes (..., tokens, points, channels) and gives (..., points, maps): tokens become channels. It treats every
token by itself, and the maps of a token stand together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.decomposition.registry import REDUCTIONS

ComponentImages = Float[Tensor, "batch tokens *points channels"]
Map = Float[Tensor, "batch *points maps"]


def reduce_mean(components: ComponentImages) -> Map:
    """Average over channels: one map a token."""
    return components.mean(dim=-1).movedim(1, -1)


def reduce_rgb(components: ComponentImages) -> Map:
    """Keep all channels, token-major: map k · C + c is channel c of token k."""
    return rearrange(components, "b k ... c -> b ... (k c)")


def reduce_l2(components: ComponentImages) -> Map:
    """Take the Euclidean norm over channels: one non-negative map a token."""
    return torch.linalg.vector_norm(components, dim=-1).movedim(1, -1)


@dataclass(frozen=True)
class Reduction:
    """A way from component images to maps.

    Decoding that is told `on_the_way` leaves the components of one token as one map, and never has them whole.
    """

    reduce: Callable[[ComponentImages], Map]
    keeps_channels: bool = False  # a map a token and channel, instead of one a token
    on_the_way: Literal["none", "mean", "l2"] = "none"


MEAN = Reduction(reduce_mean, on_the_way="mean")
RGB = Reduction(reduce_rgb, keeps_channels=True)
L2 = Reduction(reduce_l2, on_the_way="l2")


def reduce_components(components: ComponentImages, reduction: str) -> Map:
    """Reduce component images by name.

    >>> reduce_components(torch.zeros(2, 8, 32, 32, 3), "rgb").shape
    torch.Size([2, 32, 32, 24])
    """
    chosen = REDUCTIONS[reduction]
    if components.ndim < 4 or not components.is_floating_point():
        raise UsageError(
            f"reduce_components: components are {components.dtype} of shape {tuple(components.shape)}, expected "
            "floating point (batch, tokens, *size, channels), as component_images returns them."
        )
    return chosen.reduce(components)


def num_maps(num_tokens: int, channels: int, reduction: str) -> int:
    """Count the channels of a map: tokens, times channels for a reduction that keeps these."""
    return num_tokens * channels if REDUCTIONS[reduction].keeps_channels else num_tokens
