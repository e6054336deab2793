"""Train a small field on digits for a few seconds and look at its token-decoded spatial maps.

    python examples/quickstart.py

Prints the shapes of everything on the way, and how far the mean of the component images is from the
reconstruction: they are not a sum, nor an average, of what all tokens say together.
"""

import tempfile
from pathlib import Path

import torch

import tdsm
from tdsm.data import DataConfig, load_data
from tdsm.training.config import TrainConfig
from tdsm.training.reconstruction import measure_psnr, train_field

data = load_data(DataConfig(source="digits"), seed=0)
torch.manual_seed(0)
field = tdsm.NeuralField(
    tdsm.FieldConfig(
        channels=1,
        mapping_dim=16,
        fourier_scale=2.0,
        widths=(32, 48),
        num_latents=8,
        cross_head_dim=16,
        self_head_dim=8,
    )
)
with tempfile.TemporaryDirectory() as folder:
    train_field(field, data, TrainConfig(steps=200, batch_size=32, learning_rate=2e-3), seed=0, run=Path(folder))
print(f"validation PSNR {measure_psnr(field, data.validation):.1f} dB")

images = data.test.floats(torch.arange(4))
with torch.no_grad():
    tokens = field.encode(images)
    reconstruction = field.decode(tokens, size=(8, 8))
    components = tdsm.component_images(field, tokens, size=(8, 8))
    maps = tdsm.spatial_map(field, tokens, size=(8, 8), reduction="mean")
    large = tdsm.component_images(field, tokens, size=(64, 64), selection="first:2")
distance = (components.mean(dim=1) - reconstruction).norm() / reconstruction.norm()
print(f"tokens {tuple(tokens.shape)}, components {tuple(components.shape)}, TDSM {tuple(maps.shape)}")
print(f"two tokens at 64 × 64: {tuple(large.shape)}")
print(f"mean of components against reconstruction: relative distance {distance:.2f}")
scores = tdsm.TDSMClassifier(num_tokens=8, num_classes=10, pool="avg")(maps)
print(f"class scores {tuple(scores.shape)}")
