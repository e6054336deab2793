"""Small pictures that a page lays out as wide as its window is: arrays in, PNG bytes out, each with its scale stated.

A gallery is a list of cells that flow like words; every cell holds one tile a row of the gallery, so that what belongs
together stays together on any width.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize
from PIL import Image

from tdsm.figures.style import SIGNED, finite

Tile = UInt8[np.ndarray, "_ _ _"]  # height, width, and 3 colours, or 4 with transparency

SHARPEST = 96  # pixels; what is larger is made smaller, since no tile is shown larger


@dataclass(frozen=True)
class Scale:
    """What the colours of one row's tiles mean."""

    name: str
    colours: str  # a colour map of matplotlib
    low: float
    high: float

    @property
    def bar(self) -> bytes:
        """The colours from low to high."""
        return png_of(on_scale(np.linspace(self.low, self.high, 64)[None], self))


@dataclass(frozen=True)
class Gallery:
    """Tiles to be shown together.

    Args:
        caption: What is shown and how to read it.
        rows: Names of the rows, from above; no name is written for an empty one.
        labels: What stands under each cell.
        cells: Of each cell, one tile a row.
        references: Name and tile of what stands larger before the cells.
        scales: Of the rows that have one.
    """

    caption: str
    rows: Sequence[str]
    labels: Sequence[str]
    cells: Sequence[Sequence[Tile]]
    references: Sequence[tuple[str, Tile]] = ()
    scales: Sequence[Scale] = ()


def in_colour(image: Float[np.ndarray, "height width channels"]) -> Tile:
    """Show an image in [0, 1], in colour or by its first channel in grey.

    >>> in_colour(np.ones((2, 2, 1)))[0, 0].tolist()
    [255, 255, 255]
    """
    image = finite("image", image)
    image = image if image.shape[-1] == 3 else image[..., :1].repeat(3, axis=-1)
    return _small((255 * np.clip(image, 0, 1)).round().astype(np.uint8))


def on_scale(values: Float[np.ndarray, "height width"], scale: Scale) -> Tile:
    """Show one plane of values on a scale.

    >>> on_scale(np.zeros((1, 1)), Scale("", "RdBu_r", -1.0, 1.0))[0, 0].tolist()  # white at 0, but for rounding
    [247, 246, 246]
    """
    shares = Normalize(scale.low, scale.high, clip=True)(finite("values", values))
    return _small(matplotlib.colormaps[scale.colours](shares, bytes=True)[..., :3])


def signed(name: str, values: Float[np.ndarray, "..."], share: float = 0.995) -> Scale:
    """Return a scale around 0 that holds this share of the values; colours saturate beyond.

    >>> signed("map", np.array([-1.0, 3.0]), share=1.0)
    Scale(name='map', colours='RdBu_r', low=-3.0, high=3.0)
    """
    limit = max(float(np.quantile(np.abs(finite(name, values)), share)), 1e-6)
    return Scale(name, SIGNED, -limit, limit)


def mosaic(tiles: Sequence[Tile], columns: int, side: int = 24) -> Tile:
    """Lay tiles side by side with nothing in between, `side` pixels the longer side of each."""
    scaled = [_resized(tile, side) for tile in tiles]
    height, width = scaled[0].shape[:2]
    gap, rows = 3, -(-len(scaled) // columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for number, tile in enumerate(scaled):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[top : top + height, left : left + width] = _opaque(tile)
    return canvas


def stack(tiles: Sequence[Tile], side: int = 60, step: int = 9) -> Tile:
    """Lay tiles over one another, each a step further to the lower right, the first one on top."""
    scaled = [_resized(tile, side) for tile in tiles]
    (height, width), shift = scaled[0].shape[:2], step * (len(scaled) - 1)
    canvas = np.zeros((height + shift, width + shift, 4), dtype=np.uint8)
    for number in reversed(range(len(scaled))):
        at = step * number
        canvas[at : at + height + 1, at : at + width + 1] = 0
        canvas[at : at + height, at : at + width] = _opaque(scaled[number])
    return canvas


def sprite(tiles: Sequence[Tile], columns: int, side: int = 32) -> bytes:
    """Put thumbnails into one picture, row by row; photographs are compressed with loss."""
    squares = [np.asarray(Image.fromarray(tile).resize((side, side), _way(tile, side))) for tile in tiles]
    blank = np.zeros((side, side, 3), dtype=np.uint8)
    squares += [blank] * (-len(squares) % columns)
    rows = [np.concatenate(squares[at : at + columns], axis=1) for at in range(0, len(squares), columns)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="WEBP", quality=75)
    return buffer.getvalue()


def png_of(tile: Tile) -> bytes:
    """Write a tile as the bytes of a PNG file, with a table of colours where there are few."""
    picture, buffer = Image.fromarray(tile), io.BytesIO()
    if tile.shape[-1] == 3 and picture.getcolors(256):
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _small(tile: Tile) -> Tile:
    return tile if max(tile.shape[:2]) <= SHARPEST else _resized(tile, SHARPEST)


def _resized(tile: Tile, side: int) -> Tile:
    height, width = tile.shape[:2]
    share = side / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(Image.fromarray(tile).resize(size, _way(tile, side)))


def _way(tile: Tile, side: int) -> Image.Resampling:
    """Keep the pixels of what is made larger."""
    return Image.Resampling.NEAREST if max(tile.shape[:2]) <= side else Image.Resampling.BOX


def _opaque(tile: Tile) -> Tile:
    return np.concatenate([tile[..., :3], np.full_like(tile[..., :1], 255)], axis=-1)
