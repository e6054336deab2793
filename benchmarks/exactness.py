"""Float32 decoding beside the float64 loop, reference scale, random weights: `python benchmarks/exactness.py`.

One image, 256 tokens × 512, 32 × 32 points, decoder width 192. Prints the largest and the root of the mean squared
error of the mean map and of the component images, for the loop itself and for the exact form.
"""

import torch

import tdsm
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField

SIZE = (32, 32)


def main():
    """Compare both forms in float32 with the loop in float64."""
    torch.manual_seed(0)
    field = NeuralField(FieldConfig(channels=3)).eval().requires_grad_(False)
    tokens = field.encode(torch.rand(1, 3, *SIZE) * 2 - 1)
    for name, decode in (("mean map", tdsm.spatial_map), ("component images", tdsm.component_images)):
        reference = decode(field.double(), tokens.double(), size=SIZE, strategy="loop")
        for strategy in ("loop", "exact"):
            error = (decode(field.float(), tokens, size=SIZE, strategy=strategy) - reference).abs()
            print(
                f"{name}, {strategy}: at most {error.max():.2e}, root mean square {error.square().mean().sqrt():.2e}; "
                f"values up to {reference.abs().max():.2f}"
            )


if __name__ == "__main__":
    main()
