"""Decompose what a decoder built on `torch.nn.MultiheadAttention` says.

    python examples/multihead.py

Wraps a convolutional encoder and an attention decoder, trains them a few seconds on images of soft spots, and prints
how far each decomposition is from adding up, how redundant and how spread out its components are, and how fast
the reconstruction falls when the tokens it ranks first are removed.
"""

import torch
from torch import nn

from tdsm.decomposition import decompose, methods_for
from tdsm.decomposition.measures import deletion_curve, rank_by_energy, redundancy, spatial_spread
from tdsm.models.adapters.multihead import MultiheadField
from tdsm.tokenfield.coords import FourierFeatures, grid

SIZE = (16, 16)


def spots(count: int) -> torch.Tensor:
    """Draw images of two soft coloured spots, (count, 3, 16, 16) in [-1, 1]."""
    middle, colour = torch.rand(count, 1, 2, 2) * 1.6 - 0.8, torch.rand(count, 2, 3) * 2 - 1
    distance = (grid(SIZE)[None, :, None] - middle).square().sum(-1)
    return torch.einsum("npk,nkc->ncp", (-8 * distance).exp(), colour).clamp(-1, 1).unflatten(2, SIZE)


class Patches(nn.Module):
    """One token a patch of 4 × 4, refined by self-attention."""

    def __init__(self, width: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(16, width))
        self.refine = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return tokens, (batch, 16, width)."""
        return self.refine(self.patches(images).flatten(2).mT + self.position)


class Read(nn.Module):
    """Turn a query and what it received into a colour."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 3))

    def forward(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return colours."""
        return self.layers(queries + attended)


torch.manual_seed(0)
field = MultiheadField(
    nn.MultiheadAttention(32, 2),
    Patches(32),
    FourierFeatures(axes=2, mapping_dim=16, scale=3.0),
    Read(32),
    has_query_residual=True,
    has_nonlinear_readout=True,
)
optimizer = torch.optim.Adam(field.parameters(), 3e-3)
for _ in range(250):
    images = spots(16)
    loss = (field.decode(field.encode(images), SIZE).movedim(-1, 1) - images).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

field.eval()
with torch.no_grad():
    images = spots(8)
    tokens = field.encode(images)
    print(f"trained to a mean square of {loss:.4f}")
    print("method         completeness error  redundancy  spread  PSNR in dB without the first 0, 1, 4 tokens")
    for method in methods_for(field):
        parts = decompose(field, tokens, SIZE, method=method)
        alike, spread = redundancy(parts.components).mean(), spatial_spread(parts.components).mean()
        rank = rank_by_energy(parts.components)
        curve = deletion_curve(field, tokens, rank, images.movedim(1, -1), [0, 1, 4], size=SIZE).mean(0)
        row = "  ".join(f"{value:5.1f}" for value in curve)
        print(f"{method:14} {parts.completeness_error.mean():18.1e}  {alike:10.2f}  {spread:6.2f}  {row}")
