"""Component sounds: a field over one axis, time, and what each token contributes to it.

    python examples/audio_1d.py

Trains a small field for some seconds on four sounds of two short tones, then prints the additive parts at eight times
the sampling trained on, in a window, and at scattered moments, each with how far the parts are from adding up; and
where in time each of the strongest tokens sounds.
"""

import math

import torch

from tdsm import FieldConfig, NeuralField, decompose
from tdsm.decomposition.measures import rank_by_energy
from tdsm.tokenfield.coords import grid

SAMPLES = 128


def tones(count: int) -> torch.Tensor:
    """Draw sounds of two short tones each, (count, 1, 128) in [-1, 1]."""
    time = grid((SAMPLES,))[:, 0]
    onset, pitch = torch.rand(count, 2, 1) * 1.4 - 0.7, 10 + 20 * torch.rand(count, 2, 1)
    played = torch.exp(-30 * (time - onset) ** 2) * torch.sin(pitch * (time - onset))
    return played.sum(1, keepdim=True).clamp(-1, 1)


torch.manual_seed(0)
heads = {"cross_heads": 2, "cross_head_dim": 16, "self_heads": 2, "self_head_dim": 16}
sizes = {"mapping_dim": 24, "fourier_scale": 20.0, "num_latents": 16, "widths": (32,), "processor_depth": 1}
config = FieldConfig(channels=1, num_axes=1, **sizes, **heads)
field = NeuralField(config)
optimizer = torch.optim.Adam(field.parameters(), 5e-3)
sounds = tones(4)
for _ in range(300):
    loss = (field.decode(field.encode(sounds), (SAMPLES,)).movedim(-1, 1) - sounds).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"trained to {10 * math.log10(sounds.square().mean() / loss.item()):.1f} dB signal to error")

field.eval()
with torch.no_grad():
    tokens = field.encode(sounds[:1])
    moments = {
        "1024 samples": {"size": (8 * SAMPLES,)},
        "the window 0.0 to 0.1": {"coords": torch.linspace(0, 0.1, 100)[:, None]},
        "scattered moments": {"coords": torch.rand(40, 1) * 2 - 1},
    }
    for name, where in moments.items():
        parts = decompose(field, tokens, method="additive", points=5, **where)
        print(f"{name}: parts {tuple(parts.components.shape)} miss the sum by {parts.completeness_error.item():.1e}")
    parts = decompose(field, tokens, (SAMPLES,), method="additive", points=5)
    energy = parts.components[0].square().sum(-1)
    for k in rank_by_energy(parts.components)[0, :4].tolist():
        bars = energy[k].unflatten(0, (32, 4)).sum(1)
        print(f"token {k:2} over time |{''.join(' .:-=+*#%@'[int(9 * e / bars.max())] for e in bars)}|")
