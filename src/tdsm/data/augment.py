"""Random moves and colour changes whose draw belongs to the sample, not to the order of drawing.

A sample's draw is a hash of (seed, stream, epoch, id): a counter-based generator. Batch size, order, number of
processes and resuming cannot change it. The hash is SplitMix64's mixer (Steele, Lea, Flood 2014) over the id's
position in the stream whose start comes from `tdsm.base.randomness`. Pixels are worked on where they are.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import derive_seed
from tdsm.data.config import AugmentConfig

__all__ = ["AugmentConfig", "augment", "check_augment", "move_maps"]

MOVES = ("down", "right", "mirror")
SHAPES = ("rotate", "zoom", "brightness", "contrast", "saturation")
GREY = (0.299, 0.587, 0.114)  # of R, G, B: Rec. 601


def augment(
    images: Shaped[Tensor, "batch channels height width"],
    ids: Int64[Tensor, "batch"],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
) -> Shaped[Tensor, "batch channels height width"]:
    """Change each image at random, as the settings say; the default changes nothing.

    Crop and flip move values and never change them: padding by `crop` with reflection (the edge pixel is not
    repeated), cutting a window of the old size at a uniform place, mirroring left to right with probability 1/2.

    Rotation and zoom move coordinates: the pixel at p, in pixels from the centre, takes what was at

        R(θ) p / f,     θ uniform in ± rotate degrees,   log f uniform in ± log(1 + zoom)

    bilinear, edges filled by reflection. Colours then change on [0, 1], with u uniform in ± the setting, in this order,
    and are clipped to it:

        brightness  y ← (1 + u) y
        contrast    y ← g̅ + (1 + u) (y − g̅),   g̅: mean over the image of its grey
        saturation  y ← g + (1 + u) (y − g),    g: the pixel's grey, 0.299 R + 0.587 G + 0.114 B

    >>> images, ids = torch.arange(4.0).view(1, 1, 1, 4), torch.tensor([7])
    >>> augment(images, ids, AugmentConfig(), seed=0, epoch=0)
    tensor([[[[0., 1., 2., 3.]]]])

    Args:
        images: Any dtype for crop and flip, floating point in [-1, 1] for the others; any device.
        ids: Stable sample ids; the same id gets the same draw.
        config: What changes, and how far.
        seed: The run's seed.
        epoch: Each epoch draws anew.

    Raises:
        UsageError: If the crop is not smaller than height and width, or images are not of the kind they must be.
    """
    check_augment(config, *images.shape[2:])
    if config.crop or config.flip:
        bits = _bits(ids, seed, epoch, "augment", len(MOVES))
        images = _take(images, *_places(images.shape[2:], bits, config))
    if not any(getattr(config, name) for name in SHAPES):
        return images
    if not images.is_floating_point():
        raise UsageError(f"augment: images are {images.dtype}, expected floating point in [-1, 1] to change them so.")
    draws = dict(zip(SHAPES, _uniform(ids, seed, epoch).to(images).T, strict=True))
    if config.rotate or config.zoom:
        images = _turned(images, config.rotate * draws["rotate"], (1 + config.zoom) ** draws["zoom"])
    return _coloured(images, {name: 1 + getattr(config, name) * draws[name] for name in SHAPES[2:]}, config)


def move_maps(
    maps: Shaped[Tensor, "batch height width maps"],
    ids: Int64[Tensor, "batch"],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
) -> Shaped[Tensor, "batch height width maps"]:
    """Crop and flip maps, channels last, by the draws with which `augment` crops and flips images.

    >>> maps, ids = torch.arange(4.0).view(1, 1, 4, 1), torch.tensor([7])
    >>> move_maps(maps, ids, AugmentConfig(), seed=0, epoch=1).flatten()
    tensor([0., 1., 2., 3.])

    Raises:
        UsageError: If the crop is not smaller than height and width.
    """
    check_augment(config, *maps.shape[1:3])
    rows, columns = _places(maps.shape[1:3], _bits(ids, seed, epoch, "augment", len(MOVES)), config)
    sample = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps[sample, rows.to(maps.device)[:, :, None], columns.to(maps.device)[:, None, :]]


def check_augment(config: AugmentConfig, height: int, width: int) -> None:
    """Raise `UsageError` if images of this size cannot be changed so."""
    if config.crop and config.crop >= min(height, width):
        raise UsageError(
            f"augment: crop is {config.crop}, expected 0 to {min(height, width) - 1} for {height}×{width} images."
        )


def _places(size: tuple[int, ...], bits: NDArray[np.uint64], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Return the row and the column that each sample's rows and columns are taken from."""
    height, width = size
    down, right = (bits[:, :2] % np.uint64(2 * config.crop + 1)).astype(np.int64).T - config.crop
    rows = _reflect(np.arange(height) + down[:, None], height)
    columns = _reflect(np.arange(width) + right[:, None], width)
    if config.flip:
        is_mirrored = (bits[:, 2] >> np.uint64(63)).astype(bool)
        columns[is_mirrored] = columns[is_mirrored, ::-1]
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _turned(images: Tensor, degrees: Float[Tensor, " batch"], factor: Float[Tensor, " batch"]) -> Tensor:
    """Rotate counterclockwise and magnify about the centre; coordinates as in `tokenfield.coords`, corners at ±1."""
    height, width = images.shape[2:]
    aspect = max(1, height - 1) / max(1, width - 1)
    cos, sin = torch.cos(torch.deg2rad(degrees)) / factor, torch.sin(torch.deg2rad(degrees)) / factor
    zero = torch.zeros_like(cos)
    x, y = torch.stack([cos, -sin * aspect, zero], -1), torch.stack([sin / aspect, cos, zero], -1)
    places = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=True)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="reflection", align_corners=True)


def _coloured(images: Tensor, scale: dict[str, Tensor], config: AugmentConfig) -> Tensor:
    if not (config.brightness or config.contrast or config.saturation):
        return images
    brightness, contrast, saturation = (scale[name][:, None, None, None] for name in SHAPES[2:])
    colours = (images + 1) / 2 * brightness
    mean = _grey(colours).mean((2, 3), keepdim=True)
    colours = mean + contrast * (colours - mean)
    grey = _grey(colours)
    colours = grey + saturation * (colours - grey)
    return 2 * colours.clamp(0, 1) - 1


def _grey(colours: Tensor) -> Float[Tensor, "batch 1 height width"]:
    weights = colours.new_tensor(GREY) if colours.shape[1] == 3 else colours.new_full(colours.shape[1:2], 1.0)
    return torch.einsum("bchw,c->bhw", colours, weights / weights.sum())[:, None]


def _uniform(ids: Tensor, seed: int, epoch: int) -> Float[Tensor, "batch draws"]:
    """Draw numbers in [-1, 1), one of `SHAPES` each."""
    bits = _bits(ids, seed, epoch, "augment shapes", len(SHAPES)) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * math.ldexp(2.0, -53) - 1)


def _bits(ids: Tensor, seed: int, epoch: int, stream: str, draws: int) -> NDArray[np.uint64]:
    """Hash every id into independent 64-bit words."""
    start = np.uint64(derive_seed(seed, stream, epoch))
    counter = ids.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(1, draws + 1, dtype=np.uint64)
    word: NDArray[np.uint64] = np.multiply(counter, np.uint64(0x9E3779B97F4A7C15)) + start
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _reflect(index: np.ndarray, size: int) -> np.ndarray:
    return size - 1 - np.abs(size - 1 - np.abs(index))


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
