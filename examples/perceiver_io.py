"""Decompose what a `perceiver-pytorch` PerceiverIO says, token by token.

    python examples/perceiver_io.py

Needs `pip install perceiver-pytorch`. Wraps a small model of that package, trains it a few seconds on images of soft
spots, and prints: that decoding agrees with the package, why solo decoding cannot tell *where* here, how far each
decomposition is from adding up, and which tokens carry the first image.
"""

import warnings

import torch
from perceiver_pytorch import PerceiverIO

from tdsm import decompose
from tdsm.decomposition import missing_space
from tdsm.decomposition.measures import rank_by_energy
from tdsm.models.adapters.perceiver_pytorch import PerceiverIOField
from tdsm.tokenfield.coords import FourierFeatures, grid

SIZE = (16, 16)


def spots(count: int) -> torch.Tensor:
    """Draw images of two soft coloured spots, (count, 3, 16, 16) in [-1, 1]."""
    middle, colour = torch.rand(count, 1, 2, 2) * 1.6 - 0.8, torch.rand(count, 2, 3) * 2 - 1
    distance = (grid(SIZE)[None, :, None] - middle).square().sum(-1)
    return torch.einsum("npk,nkc->ncp", (-8 * distance).exp(), colour).clamp(-1, 1).unflatten(2, SIZE)


torch.manual_seed(0)
features = FourierFeatures(axes=2, mapping_dim=16, scale=3.0)
heads = {"cross_heads": 2, "cross_dim_head": 16, "latent_heads": 2, "latent_dim_head": 16}
model = PerceiverIO(
    depth=1, dim=35, queries_dim=32, logits_dim=3, num_latents=16, latent_dim=32, decoder_ff=True, **heads
)


def context(images: torch.Tensor) -> torch.Tensor:
    """Put each pixel's values beside the features of its coordinates."""
    where = features(grid(images.shape[2:])).expand(len(images), -1, -1)
    return torch.cat([images.flatten(2).mT, where], dim=-1)


field = PerceiverIOField(model, embed_images=context, embed_coords=features)
optimizer = torch.optim.Adam(field.parameters(), 2e-3)
for _ in range(150):
    images = spots(16)
    loss = (field.decode(field.encode(images), SIZE).movedim(-1, 1) - images).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

field.eval()
with torch.no_grad():
    images = spots(4)
    tokens = field.encode(images)
    package = model(context(images), queries=features(grid(SIZE)))
    difference = (field.decode(tokens, SIZE).flatten(1, 2) - package).abs().max()
    print(f"trained to a mean square of {loss:.4f}; differs from the package's own forward by {difference:.1e}")
    print(missing_space(field))
    warnings.simplefilter("ignore")  # the same words, as SpaceWarning
    for method in ("solo", "additive", "leave_one_out", "attention"):
        parts = decompose(field, tokens, SIZE, method=method, **({"tolerance": 1e-5} if method == "additive" else {}))
        space = parts.components.flatten(2, 3).std(2).mean()
        print(f"{method:14} completeness error {parts.completeness_error.mean():8.1e}   spread in space {space:.4f}")
    parts = decompose(field, tokens, SIZE, method="additive")
    first = rank_by_energy(parts.components)[0, :3].tolist()
    print(f"the three tokens that contribute most to the first image: {first}")
