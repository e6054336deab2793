"""Decompose your own model: say how it projects queries and tokens, and what it makes of what was attended.

    python examples/own_model.py

`OwnField` below is all there is to write: whatever encodes, and any decoder that reads tokens by one softmax attention.
Decoding, all decompositions, maps, measures and heads follow. Prints a check that should accompany every wrapper: that
decoding agrees with the model itself, and that the additive parts add up.
"""

# ruff: noqa: D102
import torch
from torch import nn

from tdsm import decompose
from tdsm.decomposition import spatial_map
from tdsm.models.adapters.cross_attention import CrossAttentionField


class OwnModel(nn.Module):
    """Stands for the model you have: images to 6 slots, slots read by single-head attention from coordinates."""

    def __init__(self):
        super().__init__()
        self.slots = nn.Linear(3 * 64, 6 * 16)
        self.embed, self.to_q = nn.Linear(2, 24), nn.Linear(24, 32, bias=False)
        self.to_k, self.to_v, self.to_out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 24)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 3))

    def forward(self, images: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        """Return colours at coordinates, (batch, points, 3)."""
        slots = self.slots(images.flatten(1)).unflatten(1, (6, 16))
        q = self.embed(coords).sin()
        attention = (self.to_q(q) @ self.to_k(slots).mT / 32**0.5).softmax(-1)
        return self.mlp(q + self.to_out(attention @ self.to_v(slots)))


class OwnField(CrossAttentionField):  # the base class says what each method returns
    """The model as a token field: these lines are the wrapper."""

    heads, has_query_residual, has_nonlinear_readout = 1, True, True

    def __init__(self, model: OwnModel):
        super().__init__()
        self.model = model

    def encode(self, images):
        return self.model.slots(images.flatten(1)).unflatten(1, (6, 16))

    def queries(self, coords):
        return self.model.embed(coords).sin()

    def project_queries(self, queries):
        return self.model.to_q(queries)

    def project_tokens(self, tokens):
        return self.model.to_k(tokens), self.model.to_v(tokens)

    def output_projection(self):
        return self.model.to_out.weight, self.model.to_out.bias

    def readout(self, queries, attended):
        return self.model.mlp(queries + attended)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = OwnModel()
    field, images = OwnField(model), torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        tokens, coords = field.encode(images), torch.rand(50, 2) * 2 - 1
        difference = (field.decode(tokens, coords=coords) - model(images, coords)).abs().max()
        print(f"decode differs from the model by {difference:.1e}")
        parts = decompose(field, tokens, (32, 32), method="additive", tolerance=1e-5)
        print(f"additive parts {tuple(parts.components.shape)} miss the sum by {parts.completeness_error.max():.1e}")
        print(f"spatial map {tuple(spatial_map(field, tokens, (32, 32)).shape)}, ready for a classifier")
