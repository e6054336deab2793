"""Two coloured shapes on a plain background, drawn from a seed: images whose parts are known.

    toy_scenes("test").masks[i] says which pixel of image i belongs to what: 0 background, 1 and 2 the shapes

The shapes are discs, squares or triangles and do not touch. The label is which two kinds there are.
"""

from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.data.config import DataConfig
from tdsm.data.source import Source, array_source

SIDE = 16  # pixels
RADIUS = 2.5  # pixels from a shape's middle to its edge
COUNTS = {"train": 4096, "test": 512}
KINDS = ("disc", "square", "triangle")
PAIRS = tuple(combinations_with_replacement(range(len(KINDS)), 2))


class Scenes(NamedTuple):
    """Images with what they show."""

    images: UInt8[Tensor, "samples height width channels"]
    masks: Int64[Tensor, "samples height width"]  # 0 background, 1 and 2 the shapes
    labels: Int64[Tensor, " samples"]  # which pair of `PAIRS`


def load_toy(where: str, config: DataConfig) -> Source:
    """Load the scenes as a source with a test split of its own."""
    if where:
        raise UsageError(f"source 'toy:{where}': the scenes are drawn, not read, expected 'toy' alone.")
    scenes = {split: toy_scenes(split) for split in COUNTS}
    images = {split: drawn.images.numpy() for split, drawn in scenes.items()}
    names = np.array(["+".join(KINDS[kind] for kind in pair) for pair in PAIRS])
    return array_source(images, {split: names[drawn.labels.numpy()] for split, drawn in scenes.items()})


def toy_scenes(split: str) -> Scenes:
    """Draw the scenes of a split, always the same ones; sample id i is row i.

    >>> toy_scenes("test").masks.unique().tolist()
    [0, 1, 2]
    """
    count, random = COUNTS[split], generator(0, "toy", split)
    labels = torch.randint(len(PAIRS), (count,), generator=random)
    inside = _inside(torch.tensor(PAIRS)[labels], _middles(count, random))
    masks = inside[:, 0] + 2 * inside[:, 1]
    colours = _colours(count, random)
    images = colours[torch.arange(count)[:, None, None], masks]
    return Scenes(images.to(torch.uint8), masks, labels)


def _middles(count: int, random: torch.Generator) -> Float[Tensor, "samples 2 axes"]:
    """Draw two middles an image, in pixels, until none are nearer than two shapes are wide."""
    low, high = RADIUS, SIDE - 1 - RADIUS
    middles = torch.zeros(count, 2, 2)
    while (near := (middles[:, 0] - middles[:, 1]).abs().amax(-1) < 2 * RADIUS + 1).any():
        middles[near] = low + (high - low) * torch.rand(int(near.sum()), 2, 2, generator=random)
    return middles


def _inside(
    kinds: Int64[Tensor, "samples 2"], middles: Float[Tensor, "samples 2 axes"]
) -> Int64[Tensor, "samples 2 height width"]:
    """Tell which pixels lie inside each of the two shapes, as 0 and 1."""
    axis = torch.arange(SIDE)
    rows = axis[:, None] - middles[..., 0, None, None]
    columns = axis - middles[..., 1, None, None]
    disc = rows**2 + columns**2 <= RADIUS**2
    square = (rows.abs() <= RADIUS) & (columns.abs() <= RADIUS)
    triangle = square & (2 * columns.abs() <= rows + RADIUS)
    return torch.stack([disc, square, triangle], dim=2).long().take_along_dim(kinds[..., None, None, None], 2)[:, :, 0]


def _colours(count: int, random: torch.Generator) -> Int64[Tensor, "samples parts channels"]:
    """Draw a dark colour for the background, and two with one channel full, so that no shape is as dark as that."""
    colours = torch.randint(256, (count, 3, 3), generator=random)
    colours[:, 0] //= 4
    colours[:, 1:].scatter_(2, torch.randint(3, (count, 2, 1), generator=random), 255)
    return colours
