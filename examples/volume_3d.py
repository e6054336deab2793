"""Component volumes: a field over three axes, and what each token contributes to it.

    python examples/volume_3d.py

Trains a small field for some seconds on four volumes of one soft ball, then prints, without ever decoding the whole
volume finely: one thin slice at five times the resolution trained on, a crop, and a line from corner to corner, each
with how far the additive parts are from adding up; and the slice's strongest token.
"""

import torch

from tdsm import FieldConfig, NeuralField, decompose
from tdsm.decomposition.measures import rank_by_energy, spatial_spread
from tdsm.tokenfield.coords import grid

SIZE = (6, 6, 6)


def balls(count: int) -> torch.Tensor:
    """Draw volumes of one soft ball each, (count, 1, 6, 6, 6) in [-1, 1]."""
    middle = torch.rand(count, 1, 3) - 0.5
    distance = (grid(SIZE) - middle).square().sum(-1)
    return (2 * torch.exp(-4 * distance) - 1).unflatten(1, SIZE)[:, None]


torch.manual_seed(0)
heads = {"cross_heads": 2, "cross_head_dim": 16, "self_heads": 2, "self_head_dim": 16}
sizes = {"mapping_dim": 24, "fourier_scale": 3.0, "num_latents": 16, "widths": (32,), "processor_depth": 1}
config = FieldConfig(channels=1, num_axes=3, **sizes, **heads)
field = NeuralField(config)
optimizer = torch.optim.Adam(field.parameters(), 5e-3)
volumes = balls(4)
for _ in range(250):
    loss = (field.decode(field.encode(volumes), SIZE).movedim(-1, 1) - volumes).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"trained to a mean square of {loss:.4f}; the volumes vary by {volumes.var():.4f}")

field.eval()
with torch.no_grad():
    tokens = field.encode(volumes[:1])
    plane = grid((32, 32))
    places = {
        "a slice, 32 × 32": torch.cat([torch.zeros(len(plane), 1), plane], dim=1),
        "a crop of half the width": grid((8, 8, 8)) / 2,
        "a line of 100 points": torch.linspace(-1, 1, 100)[:, None].expand(-1, 3),
    }
    for name, coords in places.items():
        parts = decompose(field, tokens, coords=coords, method="additive", points=5)
        print(f"{name}: parts {tuple(parts.components.shape)} miss the sum by {parts.completeness_error.item():.1e}")
    parts = decompose(field, tokens, coords=places["a slice, 32 × 32"], method="additive", points=5)
    strongest = int(rank_by_energy(parts.components)[0, 0])
    spread = spatial_spread(parts.components)[0, strongest]
    print(f"token {strongest} contributes most to the slice; its spread is {spread:.2f} (1 is everywhere alike)")
    picture = parts.components[0, strongest, :, 0].abs().unflatten(0, (32, 32))[::2]
    for row in picture / picture.max():
        print("".join(" .:-=+*#%@"[int(9 * value)] for value in row))
