"""Pictures of images, components and maps: arrays in, matplotlib Figure out.

Images and maps are channels last. An image of three channels is shown in colour, any other by its first channel
in grey. Every figure states its own scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdsm.base.text import count_of
from tdsm.figures.style import ERRORS, FAINT, HAIRLINE, SIGNED, box, colour_bar, drawing, finite, write

MAX_IMAGES = 12
MAX_TILES = 64


@drawing(
    "Test images, what the field decodes from all their tokens, and the absolute difference. Images are in [0, 1]; "
    "the error is averaged over channels and drawn on one scale for all images, white where there is none. "
    "Below each column stands its PSNR in decibels: higher is better; 6 dB more halve the root mean square error."
)
def reconstructions(
    images: Float[np.ndarray, "images height width channels"],
    reconstruction: Float[np.ndarray, "images height width channels"],
    psnr: Sequence[float] | Float[np.ndarray, "images"],
) -> Figure:
    """Draw images, their reconstructions and the absolute error, one column an image.

    >>> blank = np.zeros((2, 8, 8, 1))
    >>> len(reconstructions(blank, blank + 0.1, [20.0, 20.0]).axes)  # 3 rows x 2 columns, and the colour bar
    7

    Args:
        images: In [0, 1]. The first 12 are drawn.
        reconstruction: In [0, 1]; what lies outside is clipped for display, not for the error.
        psnr: Decibels, one an image; may be infinite.
    """
    images, reconstruction = finite("images", images), finite("reconstruction", reconstruction)
    total, count = len(images), min(len(images), MAX_IMAGES)
    error = np.abs(images - reconstruction).mean(axis=-1)[:count]
    limit = max(float(error.max()), 1 / 255)
    left, gap, top = 1.05, 0.06, 0.42
    width, height = _tile(images.shape[1:3], room=7.0 - gap * (count - 1), columns=count, largest=1.5)
    right = max(left + count * (width + gap), 4.4)
    figure = Figure((right + 0.85, top + 3 * (height + gap) + 0.3))
    shown = f"{count} of {total} images" if count < total else count_of(count, "image")
    write(figure, 0.1, 0.14, f"Reconstruction, {shown}", size=10.0)
    for row, name in enumerate(["input", "reconstruction", "absolute error"]):
        y = top + row * (height + gap)
        write(figure, 0.1, y + height / 2, name, verticalalignment="center", color=FAINT)
        for column in range(count):
            axes = box(figure, left + column * (width + gap), y, width, height)
            if row < 2:
                _show(axes, (images, reconstruction)[row][column])
            else:
                _show(axes, error[column], cmap=ERRORS, vmin=0, vmax=limit)
                axes.set_xlabel(f"{psnr[column]:.1f} dB".replace("inf", "∞"), fontsize=8, labelpad=3)
    bar = box(figure, left + count * (width + gap) + 0.06, y, 0.09, height)
    colour_bar(figure, bar, ERRORS, 0.0, limit)
    return figure


@drawing(
    "One image, its reconstruction, and its component images: what the decoder paints when one token stands "
    "alone. Labels are token numbers. Components x are shown as (x + 1) / 2 clipped to [0, 1]. They are not parts "
    "of a sum: alone, each token is decoded at full weight, so read their shapes, not their brightness."
)
def component_grid(
    image: Float[np.ndarray, "height width channels"],
    reconstruction: Float[np.ndarray, "height width channels"],
    components: Float[np.ndarray, "tokens height width channels"],
    token_ids: Sequence[int] | Int[np.ndarray, "tokens"],
) -> Figure:
    """Draw an image, its reconstruction and what each token alone decodes to.

    >>> blank = np.zeros((8, 8, 3))
    >>> figure = component_grid(blank, blank, np.zeros((4, 8, 8, 3)), [0, 5, 10, 15])
    >>> [axes.get_title() for axes in figure.axes]
    ['input', 'reconstruction', '0', '5', '10', '15']

    Args:
        image: In [0, 1].
        reconstruction: In [0, 1].
        components: Model values, nominally in [-1, 1]. The first 64 are drawn, as (x + 1) / 2 clipped to [0, 1].
        token_ids: The tokens' numbers, their labels.
    """
    image, reconstruction = finite("image", image), finite("reconstruction", reconstruction)
    shares = (finite("components", components) + 1) / 2
    clipped = 100 * np.mean((shares < 0) | (shares > 1))
    scale = f"shown as (x + 1) / 2; {clipped:.1f} % of values clipped to [0, 1]"
    title = f"Component images, {_how_many(len(shares))}, {scale}"
    figure, tiles, _ = _gallery({"input": image, "reconstruction": reconstruction}, len(shares), title)
    for axes, share, token in zip(tiles, shares, token_ids, strict=False):
        _show(axes, share)
        _label(axes, f"{token}")
    return figure


@drawing(
    "Maps of single tokens in the token-decoded spatial map. Each map is drawn around its own spatial mean, which "
    "stands beside the token number: red is above, blue below, white at the mean. All maps share one scale, in "
    "the units of the model's output, so a pale map is a token that says little about where."
)
def tdsm_slices(
    image: Float[np.ndarray, "height width channels"],
    tdsm: Float[np.ndarray, "height width tokens"],
    token_ids: Sequence[int] | Int[np.ndarray, "tokens"],
) -> Figure:
    """Draw single tokens' maps around their own spatial means, on one diverging scale.

    The scale ends at the 99.5th percentile of the deviations' size; colours saturate beyond.

    >>> figure = tdsm_slices(np.zeros((8, 8, 1)), np.ones((8, 8, 2)), [3, 7])
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['input', '3 · +1.00', '7 · +1.00']

    Args:
        image: In [0, 1].
        tdsm: Signed maps in model values. The first 64 are drawn.
        token_ids: The tokens' numbers, their labels.
    """
    image, tdsm = finite("image", image), finite("tdsm", tdsm)
    means = tdsm.mean(axis=(0, 1))
    deviations = (tdsm - means)[..., :MAX_TILES]
    limit = max(float(np.quantile(np.abs(deviations), 0.995)), 1e-6)
    title = f"Token-decoded spatial map, {_how_many(tdsm.shape[-1])}, each minus its spatial mean (token · mean)"
    figure, tiles, bar = _gallery({"input": image}, tdsm.shape[-1], title)
    for k, axes in enumerate(tiles):
        _show(axes, deviations[..., k], cmap=SIGNED, vmin=-limit, vmax=limit)
        _label(axes, f"{token_ids[k]} · {means[k]:+.2f}".replace("-", "−"))
    colour_bar(figure, box(figure, *bar), SIGNED, -limit, limit, extend="both", horizontal=True)
    return figure


@drawing(
    "The first tokens of one image under every decomposition, averaged over colour. Each row has its own scale, "
    "red above zero and blue below, white at zero: what the token alone decodes to (solo), what it contributed "
    "to the reconstruction (additive), what would be missing without it (leave one out), and how much it was "
    "looked at (attention)."
)
def methods(
    image: Float[np.ndarray, "height width channels"],
    components: Float[np.ndarray, "methods tokens height width"],
    names: Sequence[str],
    token_ids: Sequence[int] | Int[np.ndarray, "tokens"],
) -> Figure:
    """Draw the same tokens' components under several decompositions, one row a method, each on its own scale.

    >>> blank = np.zeros((8, 8, 1))
    >>> len(methods(blank, np.ones((2, 4, 8, 8)), ["solo", "additive"], range(4)).axes)  # image, 2 × 4, 2 bars
    11

    Args:
        image: In [0, 1].
        components: Model values averaged over channels.
        names: The methods' names.
        token_ids: The tokens' numbers, their labels.
    """
    image, components = finite("image", image), finite("components", components)
    count = components.shape[1]
    left, gap, top = 1.25, 0.06, 0.5
    width, height = _tile(image.shape[:2], room=6.6 - gap * count, columns=count + 1, largest=1.2)
    across = max(left + (count + 1) * (width + gap) + 1.0, 5.0)
    figure = Figure((across, top + len(names) * (height + gap) + 0.1))
    write(figure, 0.1, 0.14, "Components under every decomposition, each row on its own scale", size=10.0)
    axes = box(figure, left, top, width, height)
    _show(axes, image)
    _label(axes, "input")
    for row, (name, maps) in enumerate(zip(names, components, strict=True)):
        y, limit = top + row * (height + gap), float(np.abs(maps).max()) or 1.0
        write(figure, 0.1, y + height / 2, name.replace("_", " "), verticalalignment="center", color=FAINT)
        for column, values in enumerate(maps):
            axes = box(figure, left + (column + 1) * (width + gap), y, width, height)
            _show(axes, values, cmap=SIGNED, vmin=-limit, vmax=limit)
            if row == 0:
                _label(axes, str(token_ids[column]))
        bar = box(figure, left + (count + 1) * (width + gap) + 0.06, y + 0.12 * height, 0.09, 0.76 * height)
        colour_bar(figure, bar, SIGNED, -limit, limit)
    return figure


def _how_many(tokens: int) -> str:
    return f"first {MAX_TILES} of {tokens} tokens" if tokens > MAX_TILES else count_of(tokens, "token")


def _tile(shape: Sequence[int], *, room: float, columns: int, largest: float) -> tuple[float, float]:
    """Return width and height in inches of image tiles, none of them longer than `largest`."""
    height, width = shape
    wide = min(room / columns, largest, largest * width / height)
    return wide, wide * height / width


def _show(axes: Axes, image: Float[np.ndarray, "..."], **scale: Any) -> None:
    """Show an image in [0, 1], or one plane on the scale given, pixel by pixel."""
    if image.ndim == 3:
        image = np.clip(image if image.shape[-1] == 3 else image[..., 0], 0, 1)
    scale = scale or {"cmap": "gray", "vmin": 0, "vmax": 1}
    smooth = "nearest" if max(image.shape[:2]) <= 128 else "antialiased"
    axes.imshow(image, interpolation=smooth, aspect="auto", **scale)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=HAIRLINE, linewidth=0.5)


def _label(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=7, pad=2, loc="center", color=FAINT)


def _gallery(
    references: Mapping[str, Float[np.ndarray, "height width channels"]], count: int, title: str
) -> tuple[Figure, list[Axes], tuple[float, float, float, float]]:
    """Lay out reference images on the left and up to 64 empty tiles on the right.

    Returns:
        The figure, the tiles' axes, and a box in inches below the last reference, free for a colour bar.
    """
    count = min(count, MAX_TILES)
    shape = next(iter(references.values())).shape[:2]
    wide, high = _tile(shape, room=1.7, columns=1, largest=1.7)
    columns = min(8, int(np.ceil(np.sqrt(count))))
    gap, label, top, left = 0.08, 0.2, 0.38, max(wide, 1.35) + 0.45
    tile, tall = _tile(shape, room=6.7 - gap * (columns - 1), columns=columns, largest=1.25)
    rows = -(-count // columns)
    below = max(rows * (tall + label), len(references) * (high + label) + 0.6 * (len(references) == 1))
    figure = Figure((max(left + columns * (tile + gap) + 0.1, 7.4), top + below + 0.12))
    write(figure, 0.1, 0.16, title, size=10.0)
    for row, (name, image) in enumerate(references.items()):
        axes = box(figure, 0.1, top + label + row * (high + label), wide, high)
        _show(axes, image)
        _label(axes, name)
    tiles = [
        box(figure, left + (k % columns) * (tile + gap), top + label + (k // columns) * (tall + label), tile, tall)
        for k in range(count)
    ]
    return figure, tiles, (0.2, top + len(references) * (high + label) + 0.15, 1.15, 0.1)
