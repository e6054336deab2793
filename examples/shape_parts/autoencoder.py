"""A small shape autoencoder of the VecSet form: points -> tokens -> occupancy at any point.

Some of a shape's surface points, far from one another, gather from all of them; a self-attention stack makes tokens of
them; a decoder reads the tokens by cross-attention. The decoder's parts have names that `shape_field` knows.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shapes import Shapes, draw_shapes
from torch import Tensor, nn

from tdsm.base.randomness import derive_seed, generator
from tdsm.training.config import LoopConfig
from tdsm.training.engine import Phase, Task, train
from tdsm.training.steps import warmup_cosine

WIDTH, HEADS, TOKENS, DEPTH, POINTS = 64, 4, 64, 4, 1024
SHAPES, QUERIES, NOISE, PEAK, WARMUP, SCHEDULE = 16, 512, 0.05, 2e-3, 100, 2500
JUDGED, JUDGED_AT = 64, 2**13  # shapes of the validation, and points

Latents = Float[Tensor, "batch tokens width"]


class Embed(nn.Module):
    """Coordinates beside the sines and cosines of their multiples."""

    out_dim = 39

    def forward(self, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch features"]:
        """Return features."""
        phase = (x[..., None] * 2.0 ** torch.arange(6)).flatten(-2)
        return torch.cat([x, phase.sin(), phase.cos()], -1)


class Attention(nn.Module):
    """Attention to data; keys and values stand side by side, head for head."""

    def __init__(self):
        super().__init__()
        self.c_q, self.c_kv, self.c_proj = (nn.Linear(WIDTH, width) for width in (WIDTH, 2 * WIDTH, WIDTH))
        self.attention = nn.Module()
        self.attention.heads = HEADS

    def forward(self, x: Latents, data: Latents) -> Latents:
        """Return what each x receives from the data."""
        q, kv = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.c_q(x), self.c_kv(data)))
        attended = F.scaled_dot_product_attention(q, *kv.chunk(2, dim=-1))
        return self.c_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Latents, data: Latents) -> Latents:
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

    def forward(self, queries: Float[Tensor, "batch points 3"], latents: Latents) -> Float[Tensor, "batch points 1"]:
        """Return logits."""
        x = self.cross_attn_decoder(self.query_proj(self.fourier_embedder(queries)), latents)
        return self.output_proj(self.ln_post(x))


class ShapeAutoencoder(nn.Module):
    """Points to latents to tokens; `geo_decoder` reads them."""

    def __init__(self):
        super().__init__()
        self.embed, self.gather = nn.Linear(Embed.out_dim, WIDTH), Block()
        self.transformer = nn.ModuleList(Block() for _ in range(DEPTH))
        self.geo_decoder = Decoder()

    def encode(self, points: Float[Tensor, "batch points 3"]) -> Latents:
        """Let points far from one another gather from all of them, as many as there are tokens."""
        x = self.embed(self.geo_decoder.fourier_embedder(points))
        return self.gather(x.gather(1, farthest(points, TOKENS)[..., None].expand(-1, -1, WIDTH)), x)

    def decode(self, latents: Latents) -> Latents:
        """Return the tokens that enter the decoder's cross-attention."""
        for block in self.transformer:
            latents = block(latents, latents)
        return latents


def farthest(points: Float[Tensor, "batch points 3"], count: int) -> Int[Tensor, "batch count"]:
    """Choose points, the first one first, then each time the one farthest from those chosen."""
    chosen = [torch.zeros(len(points), dtype=torch.long)]
    apart = torch.full(points.shape[:2], torch.inf)
    for _ in range(count - 1):
        last = points[torch.arange(len(points)), chosen[-1]]
        apart = torch.minimum(apart, (points - last[:, None]).square().sum(-1))
        chosen.append(apart.argmax(-1))
    return torch.stack(chosen, 1)


class StepLoss(nn.Module):
    """Cross-entropy of occupancy, half of the points drawn in the cube, half near the surface."""

    def __init__(self, model: ShapeAutoencoder):
        super().__init__()
        self.model = model

    def forward(self, shapes: Shapes, draw: torch.Generator) -> Float[Tensor, ""]:
        """Return the mean over shapes and points."""
        surface, near = shapes.surface(POINTS, draw), shapes.surface(QUERIES, draw)
        near = near + NOISE * torch.randn(near.shape, generator=draw)
        queries = torch.cat([2 * torch.rand(near.shape, generator=draw) - 1, near], 1)
        logits = self.model.geo_decoder(queries, self.model.decode(self.model.encode(surface)))[..., 0]
        return F.binary_cross_entropy_with_logits(logits, shapes.occupied(queries).float())


def trained(folder: Path, steps: int, seed: int) -> ShapeAutoencoder:
    """Train an autoencoder, or take up its newest checkpoint; of more steps it goes on, finished it takes none."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "weights"))
        model = ShapeAutoencoder()
    task, settings = training(model, steps, seed)
    history = train(task, settings, seed=seed, folder=folder, made_from={"steps": max(steps, SCHEDULE)})
    print(f"seed {seed}: validation IoU {history[-1]['iou']:.3f} after {steps} steps", flush=True)
    return model.eval().requires_grad_(False)


def training(model: ShapeAutoencoder, steps: int, seed: int) -> tuple[Task, LoopConfig]:
    """Describe a training for the engine: new shapes every step, so that none is seen twice.

    The learning rate falls over `SCHEDULE` steps, also where the training ends sooner.
    """
    shown = draw_shapes(JUDGED, generator(seed, "validation shapes"))

    def inputs(step: int, rows: slice) -> tuple[Shapes, torch.Generator]:
        draw = generator(seed, "shapes", step, rows.start)
        return draw_shapes(SHAPES, draw)[rows], draw

    task = Task(
        name="shapes",
        model=model,
        loss=StepLoss(model),
        size=lambda step: SHAPES,
        inputs=inputs,
        groups=[{"params": list(model.parameters()), "name": "all", "peak": PEAK, "weight_decay": 0.0}],
        rate=lambda peak, step: warmup_cosine(peak, step, max(steps, SCHEDULE), WARMUP),
        phases=(Phase(steps),),
        validate=lambda judged: {"iou": overlap(judged, shown, seed).mean().item()},
        validate_every=250,
        checkpoint_every=250,
        remedy=lambda saved: "Start anew with a lower PEAK.",
    )
    return task, LoopConfig(gradient_clip=1.0)


@torch.no_grad()
def overlap(model: ShapeAutoencoder, shapes: Shapes, seed: int) -> Float[Tensor, " shapes"]:
    """Return the intersection over union of decoded and true volume, at points drawn in the cube."""
    model.eval()
    draw = generator(seed, "overlap")
    tokens = model.decode(model.encode(shapes.surface(POINTS, draw)))
    points = 2 * torch.rand(len(shapes), JUDGED_AT, 3, generator=draw) - 1
    seen, truth = model.geo_decoder(points, tokens)[..., 0] > 0, shapes.occupied(points)
    return (seen & truth).sum(1) / (seen | truth).sum(1)
