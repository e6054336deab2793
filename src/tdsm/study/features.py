"""What the study of worth classifies from: maps by every decomposition, and what is there without decoding.

Spatial features are (height, width, maps), sequences (num_tokens, 1, width); heads read both.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.randomness import generator
from tdsm.features.config import MapConfig
from tdsm.features.extract import Features, Images, make_maps
from tdsm.models.field import NeuralField

METHODS = ("solo", "additive", "leave_one_out", "attention")
SEQUENCES = ("tokens", "values", "untrained-tokens")
IMAGES = ("reconstruction", "pixels")
MEANINGS = {
    "solo": "decoded: each token alone (the TDSM)",
    "additive": "decoded: what each token contributed; adds up to the reconstruction",
    "leave_one_out": "decoded: what would be missing without each token",
    "attention": "decoded: how much each token is looked at",
    "tokens": "the tokens, before any decoding",
    "values": "the token values c_k, all that a solo component depends on",
    "random-expansion": "the token values through a random layer, as many maps of the same size as the TDSM",
    "reconstruction": "the decoded image",
    "pixels": "the image itself",
    "untrained-solo": "the TDSM of the field before training",
    "untrained-tokens": "the tokens of the field before training",
}


@torch.no_grad()
def all_features(field: NeuralField, start: NeuralField, images: Images, size: tuple[int, ...]) -> dict[str, Features]:
    """Compute every feature of `MEANINGS`, in float16.

    Args:
        field: The trained field.
        start: The field before training.
        images: In [-1, 1].
        size: Height and width of the maps and the reconstruction; pixels keep their own.
    """
    tokens = field.encode(images)
    values = field.attend_one(tokens)
    features = {method: make_maps(field, tokens, MapConfig(method=method), size) for method in METHODS}
    features |= {
        "tokens": tokens[:, :, None],
        "values": values[:, :, None],
        "random-expansion": random_expansion(values, size),
        "reconstruction": field.decode(tokens, size=size),
        "pixels": rearrange(images, "b c h w -> b h w c"),
    }
    before = token_features(start, images, size)
    features |= {f"untrained-{name}": feature for name, feature in before.items()}
    return {name: features[name].half().cpu() for name in MEANINGS}


@torch.no_grad()
def token_features(field: NeuralField, images: Images, size: tuple[int, ...]) -> dict[str, Features]:
    """Compute the TDSM and the tokens, in float16."""
    tokens = field.encode(images)
    maps = make_maps(field, tokens, MapConfig(), size)
    return {"solo": maps.half().cpu(), "tokens": tokens[:, :, None].half().cpu()}


def random_expansion(
    values: Float[Tensor, "batch tokens value_width"], size: tuple[int, ...]
) -> Float[Tensor, "batch height width tokens"]:
    """Expand token values by one random layer into maps of the TDSM's shape.

        R_k(q) = GELU(⟨w_q, c_k⟩),   w_q ~ N(0, 1/D) drawn once for each position q

    What a classifier gains from the TDSM and not from this is not owed to having more features.
    """
    height, width = size
    directions = torch.randn(values.shape[-1], height * width, generator=generator(0, "random expansion"))
    directions = directions.to(values) / values.shape[-1] ** 0.5
    return rearrange(F.gelu(values @ directions), "b k (h w) -> b h w k", h=height)
