"""Random shifts and mirrors whose draw belongs to the sample, not to the order of drawing.

A sample's draw is a hash of (seed, "augment", epoch, id): a counter-based generator. Batch size, order, number of
processes and resuming cannot change it. The hash is SplitMix64's mixer (Steele, Lea, Flood 2014) over the id's
position in the stream whose start comes from `tdsm.randomness`.
"""

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from tdsm.data.config import AugmentConfig
from tdsm.errors import UsageError
from tdsm.randomness import derive_seed

__all__ = ["AugmentConfig", "augment"]

DRAWS = 3  # row shift, column shift, mirror


def augment(
    images: Shaped[Tensor, "batch channels height width"],
    ids: Int64[Tensor, "batch"],
    *,
    seed: int,
    epoch: int,
    crop: int,
    flip: bool,
) -> Shaped[Tensor, "batch channels height width"]:
    """Shift each image by up to `crop` pixels and mirror about half of them.

    As padding by `crop` with reflection (the edge pixel is not repeated), cutting a window of the old size at a
    uniform place, and mirroring left to right with probability 1/2. Values are moved, never changed.

    >>> images, ids = torch.arange(4.0).view(1, 1, 1, 4), torch.tensor([7])
    >>> augment(images, ids, seed=0, epoch=0, crop=0, flip=False)
    tensor([[[[0., 1., 2., 3.]]]])

    Args:
        images: Any dtype, any device.
        ids: Stable sample ids; the same id gets the same draw.
        seed: The run's seed.
        epoch: Each epoch draws anew.
        crop: Largest shift in pixels, smaller than the image's sides.
        flip: Whether to mirror.

    Raises:
        UsageError: If `crop` is negative or not smaller than height and width.
    """
    height, width = images.shape[2:]
    if crop < 0 or (crop and crop >= min(height, width)):
        raise UsageError(
            f"augment: crop is {crop}, expected 0 to {min(height, width) - 1} for {height}×{width} images."
        )
    bits = _bits(ids, seed, epoch)
    down, right = (bits[:, :2] % np.uint64(2 * crop + 1)).astype(np.int64).T - crop
    rows = _reflect(np.arange(height) + down[:, None], height)
    columns = _reflect(np.arange(width) + right[:, None], width)
    if flip:
        is_mirrored = (bits[:, 2] >> np.uint64(63)).astype(bool)
        columns[is_mirrored] = columns[is_mirrored, ::-1]
    return _take(images, torch.from_numpy(rows), torch.from_numpy(columns))


def _bits(ids: Tensor, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Hash every id into `DRAWS` independent 64-bit words."""
    start = np.uint64(derive_seed(seed, "augment", epoch))
    counter = ids.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(DRAWS) + np.arange(1, DRAWS + 1, dtype=np.uint64)
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
