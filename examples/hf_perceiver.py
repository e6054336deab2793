"""Decompose what a Hugging Face Perceiver says: an image decoder, and a classifier.

    python examples/hf_perceiver.py

Needs `pip install transformers`. Builds two small models with random weights, prints that decoding agrees with the
package, and what each latent contributed: to an image, pixel by pixel, and to a classifier's logits. A trained
model is wrapped the same way: HFPerceiverField(PerceiverForImageClassificationLearned.from_pretrained(...)).
"""

import torch
from transformers import PerceiverConfig
from transformers.models.perceiver.modeling_perceiver import (
    PerceiverBasicDecoder,
    PerceiverClassificationDecoder,
    PerceiverImagePreprocessor,
    PerceiverModel,
)

from tdsm import decompose
from tdsm.decomposition import missing_space
from tdsm.models.adapters.hf_perceiver import HFPerceiverField

SIZE = (16, 16)

torch.manual_seed(0)
heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "num_self_attends_per_block": 1}
config = PerceiverConfig(num_latents=12, d_latents=32, num_blocks=1, num_labels=5, initializer_range=0.3, **heads)


def preprocessor() -> PerceiverImagePreprocessor:
    """Turn pixels into vectors, with Fourier features of where they are."""
    fourier = {"num_bands": 6, "max_resolution": SIZE}
    return PerceiverImagePreprocessor(
        config, prep_type="conv1x1", spatial_downsample=1, out_channels=8, fourier_position_encoding_kwargs=fourier
    )


@torch.no_grad()
def show(name: str, decoder: torch.nn.Module, size: tuple[int, ...]) -> None:
    """Wrap a model with this decoder, compare it with the package and decompose what it says."""
    model = PerceiverModel(config, decoder=decoder, input_preprocessor=preprocessor()).eval()
    field = HFPerceiverField(model)
    images = torch.randn(2, 3, *SIZE)
    tokens = field.encode(images)
    difference = (field.decode(tokens, size).flatten() - model(images).logits.flatten()).abs().max()
    print(f"{name}: differs from the package's own forward by {difference:.1e}")
    print(f"  solo decoding: {missing_space(field) or 'can tell where.'}")
    parts = decompose(field, tokens, size, method="additive", tolerance=1e-4)
    print(f"  additive: {parts.options.points} points, completeness error {parts.completeness_error.max():.1e}")
    strength = parts.components[0].flatten(1).norm(dim=1)
    print(
        f"  strongest latent of the first image: {int(strength.argmax())}, {strength.max() / strength.sum():.0%} of all"
    )


for residual in (True, False):
    trained = {"trainable_position_encoding_kwargs": {"num_channels": 32, "index_dims": SIZE[0] * SIZE[1]}}
    image_decoder = PerceiverBasicDecoder(
        config, 3, output_index_dims=SIZE, num_channels=32, num_heads=2, use_query_residual=residual, **trained
    )
    show(f"image decoder, query residual {residual}", image_decoder, SIZE)

one_query = {"trainable_position_encoding_kwargs": {"num_channels": 32, "index_dims": 1}}
classifier = PerceiverClassificationDecoder(config, num_channels=32, use_query_residual=True, **one_query)
show("classifier, a channel a class", classifier, (1,))
