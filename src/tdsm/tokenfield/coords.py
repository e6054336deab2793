"""Coordinates and their Gaussian Fourier features.

Coordinates run over [-1, 1] with the corners included, in the order of the axes: (row, column) for images.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import UsageError


def grid(size: Sequence[int], *, device: torch.device | str | None = None) -> Float[Tensor, "points axes"]:
    """List the coordinates of a regular grid, last axis fastest.

    >>> grid((2, 3))
    tensor([[-1., -1.],
            [-1.,  0.],
            [-1.,  1.],
            [ 1., -1.],
            [ 1.,  0.],
            [ 1.,  1.]])

    Args:
        size: Number of points along each axis, each at least 1. An axis of one point stands at -1.
        device: Where to put the coordinates.

    Returns:
        Coordinates in [-1, 1], corners included.

    Raises:
        UsageError: If a count is smaller than 1.
    """
    if not isinstance(size, Sequence) or not size or any(not isinstance(n, Integral) or n < 1 for n in size):
        raise UsageError(f"grid: size is {size!r}, expected one count of at least 1 per axis, such as (32, 32).")
    axes = [torch.linspace(-1.0, 1.0, int(n), device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


class FourierFeatures(nn.Module):
    """Encode coordinates as [sin(x·B), cos(x·B)] with a random Gaussian matrix B ~ N(0, scale²).

    Sine block first, then cosine block, without a factor of 2π, as the published checkpoints were trained.
    Source: Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions", eq. 5, without
    the 2π. `matrix` is B, a buffer of shape (axes, mapping), saved with the model.

    >>> FourierFeatures(axes=2, mapping_dim=4, scale=15.0)(grid((8, 8))).shape
    torch.Size([64, 8])
    """

    matrix: Tensor

    def __init__(self, axes: int, mapping_dim: int, scale: float):
        super().__init__()
        self.register_buffer("matrix", scale * torch.randn(axes, mapping_dim))

    def forward(self, coords: Float[Tensor, "*batch axes"]) -> Float[Tensor, "*batch features"]:
        """Return features in [-1, 1], twice `mapping_dim` of them."""
        phase = coords.to(self.matrix.dtype) @ self.matrix
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


def sinusoids(count: int, width: int) -> Float[Tensor, "count width"]:
    """Tabulate sinusoidal position codes: sine on even columns, cosine on odd ones.

    Column 2j and 2j+1 of row p hold the sine and cosine of p · exp(−2j · ln(10000) / width)
    (Vaswani et al. 2017, section 3.5).
    """
    position = torch.arange(count, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    table = torch.zeros(count, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table
