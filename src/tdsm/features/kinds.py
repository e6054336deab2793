"""The features images are classified from: what is there before decoding, and what decoding makes of it.

Every feature is channels last, so that one head fits all: a map is (height, width, maps), a sequence of tokens is
(num_tokens, 1, width).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.randomness import generator
from tdsm.decomposition import decompose, pooled_map, spatial_map
from tdsm.decomposition.reduce import reduce_components
from tdsm.decomposition.registry import POOLS
from tdsm.decomposition.select import parse_selection
from tdsm.features.config import MapConfig
from tdsm.models.field import NeuralField

Images = Float[Tensor, "batch channels rows columns"]  # maps may have another height and width
Maps = Float[Tensor, "batch height width maps"]
MAP_SETTINGS = ("method", "reduction", "selection", "size")


class Encoded:
    """A batch of images and a field's tokens of them, computed when first asked for."""

    def __init__(self, field: NeuralField, images: Images, config: MapConfig):
        self.field, self.images, self.config = field, images, config
        self.size = config.size or (images.shape[2], images.shape[3])

    @cached_property
    def tokens(self) -> Float[Tensor, "batch tokens token_width"]:
        """What the field encodes, by matrix products in the precision of the settings."""
        is_low = self.config.precision == "bfloat16"
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=is_low):
            return self.field.encode(self.images).to(self.images.dtype)

    @cached_property
    def values(self) -> Float[Tensor, "batch tokens value_width"]:
        """What every query receives from each token alone."""
        return self.field.attend_one(self.tokens)


@dataclass(frozen=True)
class FeatureKind:
    """One feature: how it is computed, which settings of the maps decide it, and what it is."""

    compute: Callable[[Encoded], Maps]
    meaning: str
    settings: tuple[str, ...] = ()
    is_decoded: bool = False  # whether the decoder took part
    is_sequence: bool = False  # tokens along the first axis instead of places
    needs_field: bool = True  # False for what the images alone decide
    methods: tuple[str, ...] = ()  # decompositions it needs, besides that of the settings
    parts: tuple["FeatureKind", ...] = ()  # what it puts side by side

    @property
    def is_map(self) -> bool:
        """Whether there is a channel for each token, stored in the dtype of the maps."""
        return "selection" in self.settings

    @property
    def is_spatial(self) -> bool:
        """Whether its first two axes are those of the image: it is the image, or was decoded at places of it."""
        return not self.is_sequence and (self.is_decoded or not self.settings)

    @property
    def is_picture(self) -> bool:
        """Whether its channels are colours, which mean the same at every place."""
        return self.is_spatial and not self.is_map

    @property
    def is_token_map(self) -> bool:
        """Whether its channels are what each token decodes to."""
        return self.is_map and self.is_decoded


def make_maps(field: NeuralField, tokens: Tensor, config: MapConfig, size: tuple[int, ...]) -> Maps:
    """Return the maps of tokens: the TDSM for `solo`, the components of another method reduced likewise."""
    selection, reduction = parse_selection(config.selection), config.reduction
    if config.method == "solo":
        return spatial_map(field, tokens, size=size, reduction=reduction, selection=selection, strategy=config.strategy)
    components = decompose(field, tokens, size=size, method=config.method, selection=selection).components
    return reduce_components(components, reduction)


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


def _maps_by(encoded: Encoded, method: str | None = None) -> Maps:
    config = encoded.config if method is None else encoded.config.model_copy(update={"method": method})
    return make_maps(encoded.field, encoded.tokens, config, encoded.size)


def _pooled(encoded: Encoded) -> Maps:
    """Pool the maps of the settings over a grid of regions; those of `solo` never exist all at once."""
    field, config = encoded.field, encoded.config
    if config.method != "solo":
        maps = rearrange(_maps_by(encoded), "b h w k -> b k h w")
        return rearrange(POOLS[config.pool](maps, (config.cells, config.cells)), "b k h w -> b h w k")
    options: dict[str, Any] = {"pool": config.pool, "cells": config.cells, "reduction": config.reduction}
    return pooled_map(field, encoded.tokens, encoded.size, selection=parse_selection(config.selection), **options)


def _reconstruction(encoded: Encoded) -> Maps:
    return encoded.field.decode(encoded.tokens, size=encoded.size)


def _decomposed(method: str, meaning: str) -> FeatureKind:
    return FeatureKind(partial(_maps_by, method=method), meaning, MAP_SETTINGS[1:], True, methods=(method,))


def _side_by_side(meaning: str, *kinds: FeatureKind) -> FeatureKind:
    def compute(encoded: Encoded) -> Maps:
        return torch.cat([kind.compute(encoded) for kind in kinds], dim=-1)

    methods = tuple(m for kind in kinds for m in kind.methods)
    return FeatureKind(compute, meaning, MAP_SETTINGS[1:], True, methods=methods, parts=kinds)


RECONSTRUCTION = FeatureKind(_reconstruction, "the image, from all tokens together", ("size",), True)
ADDITIVE = _decomposed("additive", "what each token contributed; adds up to the reconstruction")
ATTENTION = _decomposed("attention", "how much each token is looked at")
FEATURES: dict[str, FeatureKind] = {
    "pixels": FeatureKind(lambda e: rearrange(e.images, "b c h w -> b h w c"), "the image itself", needs_field=False),
    "tokens": FeatureKind(lambda e: e.tokens[:, :, None], "the tokens, before any decoding", is_sequence=True),
    "values": FeatureKind(
        lambda e: e.values[:, :, None], "the token values c_k, all that a solo component depends on", is_sequence=True
    ),
    "random_expansion": FeatureKind(
        lambda e: random_expansion(e.values, e.size),
        "the token values through a random layer, as many maps of the same size as the TDSM",
        ("size", "selection"),
    ),
    "reconstruction": RECONSTRUCTION,
    "tdsm": FeatureKind(
        _maps_by, "the maps of the settings: each token alone, if not said otherwise", MAP_SETTINGS, True
    ),
    "pooled": FeatureKind(
        _pooled, "the maps of the settings, pooled over regions", (*MAP_SETTINGS, "pool", "cells"), True
    ),
    "solo": _decomposed("solo", "each token alone (the TDSM)"),
    "additive": ADDITIVE,
    "leave_one_out": _decomposed("leave_one_out", "what would be missing without each token"),
    "attention": ATTENTION,
    "additive+attention": _side_by_side("additive and attention maps side by side", ADDITIVE, ATTENTION),
    "additive+reconstruction": _side_by_side("additive maps beside the reconstruction", ADDITIVE, RECONSTRUCTION),
}
