"""Which tokens make which part of a shape? A small shape autoencoder, and what each token gave to each part.

    python examples/shape_tokens.py

A set of points becomes a set of tokens, decoded by cross-attention to occupancy, as shape autoencoders of the VecSet
family do. Names of the decoder's parts are those `shape_field` knows, so one call wraps it. Trained for some seconds on
tables of random proportions; then the tokens of one table are asked what they contributed to its top and its legs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tdsm import adapters, contributions, decompose
from tdsm.tokenfield.coords import grid

WIDTH, HEADS, TOKENS, POINTS, STEPS = 32, 2, 16, 128, 400
PARTS = ("top", "left legs", "right legs")


class Embed(nn.Module):
    """Coordinates beside the sines and cosines of their multiples."""

    out_dim = 27

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (…, 27)."""
        phase = (x[..., None] * torch.tensor([1.0, 2.0, 4.0, 8.0])).flatten(-2)
        return torch.cat([x, phase.sin(), phase.cos()], -1)


class Attention(nn.Module):
    """Cross-attention; keys and values stand side by side, head for head."""

    def __init__(self):
        super().__init__()
        self.c_q, self.c_kv, self.c_proj = (nn.Linear(WIDTH, width) for width in (WIDTH, 2 * WIDTH, WIDTH))
        self.attention = nn.Module()
        self.attention.heads = HEADS

    def forward(self, x: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """Return what each x receives from the data."""
        q, kv = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.c_q(x), self.c_kv(data)))
        attended = F.scaled_dot_product_attention(q, *kv.chunk(2, dim=-1))
        return self.c_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Cross-attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """Return x after both."""
        x = x + self.attn(self.ln_1(x), self.ln_2(data))
        return x + self.mlp(self.ln_3(x))


class Decoder(nn.Module):
    """Tokens to the logit of being inside, at any point."""

    def __init__(self):
        super().__init__()
        self.fourier_embedder, self.query_proj = Embed(), nn.Linear(Embed.out_dim, WIDTH)
        self.cross_attn_decoder = Block()
        self.ln_post, self.output_proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, queries: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, points, 1)."""
        x = self.cross_attn_decoder(self.query_proj(self.fourier_embedder(queries)), latents)
        return self.output_proj(self.ln_post(x))


class ShapeAutoencoder(nn.Module):
    """Points to latents to tokens; `geo_decoder` reads them."""

    def __init__(self):
        super().__init__()
        self.embed, self.gather, self.mix = nn.Linear(Embed.out_dim, WIDTH), Block(), Block()
        self.geo_decoder = Decoder()

    def encode(self, points: torch.Tensor) -> torch.Tensor:
        """Let the first points gather from all of them."""
        x = self.embed(self.geo_decoder.fourier_embedder(points))
        return self.gather(x[:, :TOKENS], x)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the tokens that enter the decoder's cross-attention."""
        return self.mix(latents, latents)


def tables(count: int) -> torch.Tensor:
    """Draw tables as five boxes, the top first, (count, 5, 2, 3): lower and upper corners."""
    wide, deep, high, thick, leg = (low + (up - low) * torch.rand(count) for low, up in LIMITS)
    top = torch.stack([torch.stack([-wide, -deep, high - thick], 1), torch.stack([wide, deep, high], 1)], 1)
    boxes = [top]
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        low = torch.stack([x * wide - leg * (x > 0), y * deep - leg * (y > 0), -high], 1)
        boxes.append(torch.stack([low, low + torch.stack([leg, leg, 2 * high - thick], 1)], 1))
    return torch.stack(boxes, 1)


LIMITS = ((0.5, 0.9), (0.5, 0.9), (0.4, 0.9), (0.15, 0.3), (0.2, 0.35))


def inside(boxes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Tell which points lie in which box, (batch, points, 5)."""
    low, high = boxes[:, None].unbind(-2)
    return ((points[:, :, None] >= low) & (points[:, :, None] <= high)).all(-1)


def sample(boxes: torch.Tensor, count: int) -> torch.Tensor:
    """Draw points inside, each box by its volume."""
    low, high = boxes.unbind(-2)
    which = torch.multinomial((high - low).prod(-1), count, replacement=True)[..., None].expand(-1, -1, 3)
    return low.gather(1, which) + (high - low).gather(1, which) * torch.rand(len(boxes), count, 3)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = ShapeAutoencoder()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(STEPS):
        boxes = tables(8)
        near = sample(boxes, 128) + 0.1 * torch.randn(8, 128, 3)
        points = torch.cat([near, 2 * torch.rand(8, 128, 3) - 1], 1)
        logits = model.geo_decoder(points, model.decode(model.encode(sample(boxes, POINTS))))[..., 0]
        loss = F.binary_cross_entropy_with_logits(logits, inside(boxes, points).any(-1).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    field = adapters.shape_field(model.eval().requires_grad_(False))
    boxes, coords = tables(1), grid((16, 16, 16))
    tokens = field.encode(model.encode(sample(boxes, POINTS)))
    is_inside = inside(boxes, coords[None])[0]
    truth, seen = is_inside.any(-1), field.decode(tokens, coords=coords)[0, :, 0] > 0
    overlap = (truth & seen).sum() / (truth | seen).sum()
    print(f"trained to a loss of {loss:.3f}; of a new table, decoded and true volume overlap by {overlap:.0%}")

    regions = torch.stack([is_inside[:, 0], is_inside[:, 1:3].any(-1), is_inside[:, 3:].any(-1)], 1)
    gave = contributions(field, tokens, coords, regions, points=8)
    looked_at = contributions(field, tokens, coords, regions, method="attention")
    print(f"contributions {tuple(gave.components.shape)} miss the change by {gave.completeness_error.item():.1e}")
    for region, name in enumerate(PARTS):
        points = gave.weight[region]
        by_gift, by_look = (parts.components[0, region, :, 0] / points for parts in (gave, looked_at))
        best = ", ".join(f"{k} ({by_gift[k]:+.2f})" for k in by_gift.argsort(descending=True)[:3].tolist())
        looked = ", ".join(f"{k} ({by_look[k]:.2f})" for k in by_look.argsort(descending=True)[:3].tolist())
        print(f"{name:10}: gave most: tokens {best} of {by_gift.sum():+.2f}; most looked at: {looked}")

    exact = decompose(field, tokens, coords=coords, method="leave_one_out")
    fast = decompose(field, tokens, coords=coords, method="leave_one_out", threshold=0.03)
    error = (fast.components - exact.components).norm() / exact.components.norm()
    print(f"leave-one-out with tokens below an attention of 0.03 sharing a gradient: off by {error:.1e}")
