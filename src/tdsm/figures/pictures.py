"""The figures of a report: arrays in, matplotlib Figure out. No global drawing state, no files.

Images and maps are channels last. An image of three channels is shown in colour, any other by its first channel
in grey. Every figure states its own scale; `CAPTIONS` says, for the page, what is shown and how to read it.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import matplotlib.patheffects
import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from tdsm.base.errors import UsageError

Parameters = ParamSpec("Parameters")
Row = Mapping[str, Any]

MAX_IMAGES = 12
MAX_TILES = 64
MAX_COUNTED_CLASSES = 20
MAX_NAMED_CLASSES = 40
DPI = 200

CENTRED: dict[str, Any] = {"horizontalalignment": "center", "verticalalignment": "center"}
INK, FAINT, HAIRLINE = "#1f2328", "#6b7280", "#c9ccd1"
BLUE, AMBER = "#2166ac", "#c77b1b"
# Nine hues of Paul Tol's "muted" scheme, safe for the common colour deficiencies, and a grey; then markers change.
PALETTE = ["#332288", "#44aa99", "#cc6677", "#ddaa33", "#88ccee", "#117733", "#aa4499", "#999933", "#882255", "#777777"]
MARKERS = "os^DvP"
ERRORS, SIGNED, SHARES = "gist_heat_r", "RdBu_r", "Blues"  # white at 0, white at 0, palest at 0
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": HAIRLINE,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "figure.facecolor": "white",
    "legend.frameon": False,
    # Names of classes and heads are shown as they are: a "$" in them is a dollar sign, not mathematics.
    "text.parse_math": False,
}

CAPTIONS = {
    "reconstructions": (
        "Test images, what the field decodes from all their tokens, and the absolute difference. Images are in [0, 1]; "
        "the error is averaged over channels and drawn on one scale for all images, white where there is none. "
        "Below each column stands its PSNR in decibels: higher is better; 6 dB more halve the root mean square error."
    ),
    "component_grid": (
        "One image, its reconstruction, and its component images: what the decoder paints when one token stands "
        "alone. Labels are token numbers. Components x are shown as (x + 1) / 2 clipped to [0, 1]. They are not parts "
        "of a sum: alone, each token is decoded at full weight, so read their shapes, not their brightness."
    ),
    "tdsm_slices": (
        "Maps of single tokens in the token-decoded spatial map. Each map is drawn around its own spatial mean, which "
        "stands beside the token number: red is above, blue below, white at the mean. All maps share one scale, in "
        "the units of the model's output, so a pale map is a token that says little about where."
    ),
    "methods": (
        "The first tokens of one image under every decomposition, averaged over colour. Each row has its own scale, "
        "red above zero and blue below, white at zero: what the token alone decodes to (solo), what it contributed "
        "to the reconstruction (additive), what would be missing without it (leave one out), and how much it was "
        "looked at (attention)."
    ),
    "token_statistics": (
        "Level and spatial variation of every token's map. Above: its mean over space. Below: its standard deviation "
        "over space. Dots are means over images, bars run from the 10th to the 90th percentile of the images; both "
        "are in units of the model's output. A long bar above is a level that depends on the image; a low dot below "
        "is a map that hardly varies over space."
    ),
    "confusion": (
        "Rows are true classes, columns predicted ones. Shading is the share of the true class, from 0 to 1, so each "
        "row adds up to 1; numbers, where written, count test images. A perfect classifier fills the diagonal."
    ),
    "embedding": (
        "Each dot is one image, placed by its features in two dimensions and coloured by its true class; names stand "
        "at the median of their class, where there is room. Neighbours have similar features. Directions and, in a "
        "t-SNE, distances between groups carry no meaning."
    ),
    "curves": (
        "Training loss on a logarithmic scale, and PSNR on validation images in decibels where it was measured, "
        "against optimiser steps. A thin line is every record, the thick one their running mean."
    ),
    "accuracy_bars": (
        "Accuracy on the test split, in per cent, with 95 % Wilson intervals. Blue bars read the spatial map, amber "
        "ones are baselines; a dashed line is guessing. Where two intervals overlap, no difference has been shown."
    ),
    "token_counts": (
        "Test accuracy of one kind of head against the number of tokens whose maps it reads, one line a way of "
        "choosing them: by gates trained with the head (learned), evenly spaced (stride), at random, the first ones. "
        "Means over seeds; bars are 95 % intervals over test images. The dashed line, with its interval as a band, is "
        "the head on all tokens. Lines that lie on one another: it does not matter which tokens are kept."
    ),
}


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Run a drawing function under the shared style, and leave the caller's style as it was."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made when first drawn, and must be made under the style
        return figure

    return drawn


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Draw a figure as the bytes of a PNG file.

    >>> png(curves([{"step": 1, "loss": 2.0, "seconds": 0.1}]))[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@styled
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
    images, reconstruction = _finite("images", images), _finite("reconstruction", reconstruction)
    total, count = len(images), min(len(images), MAX_IMAGES)
    error = np.abs(images - reconstruction).mean(axis=-1)[:count]
    limit = max(float(error.max()), 1 / 255)
    left, gap, top = 1.05, 0.06, 0.42
    width, height = _tile(images.shape[1:3], room=7.0 - gap * (count - 1), columns=count, largest=1.5)
    right = max(left + count * (width + gap), 4.4)
    figure = Figure((right + 0.85, top + 3 * (height + gap) + 0.3))
    shown = f"first {count} of {total} images" if count < total else _count(count, "image")
    _write(figure, 0.1, 0.14, f"Reconstruction, {shown}", size=10.0)
    for row, name in enumerate(["input", "reconstruction", "absolute error"]):
        y = top + row * (height + gap)
        _write(figure, 0.1, y + height / 2, name, verticalalignment="center", color=FAINT)
        for column in range(count):
            axes = _box(figure, left + column * (width + gap), y, width, height)
            if row < 2:
                _show(axes, (images, reconstruction)[row][column])
            else:
                _show(axes, error[column], cmap=ERRORS, vmin=0, vmax=limit)
                axes.set_xlabel(f"{psnr[column]:.1f} dB".replace("inf", "∞"), fontsize=8, labelpad=3)
    bar = _box(figure, left + count * (width + gap) + 0.06, y, 0.09, height)
    _colour_bar(figure, bar, ERRORS, 0.0, limit)
    return figure


@styled
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
    image, reconstruction = _finite("image", image), _finite("reconstruction", reconstruction)
    shares = (_finite("components", components) + 1) / 2
    clipped = 100 * np.mean((shares < 0) | (shares > 1))
    scale = f"shown as (x + 1) / 2; {clipped:.1f} % of values clipped to [0, 1]"
    title = f"Component images, {_how_many(len(shares))}, {scale}"
    figure, tiles, _ = _gallery({"input": image, "reconstruction": reconstruction}, len(shares), title)
    for axes, share, token in zip(tiles, shares, token_ids, strict=False):
        _show(axes, share)
        _label(axes, f"{token}")
    return figure


@styled
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
    image, tdsm = _finite("image", image), _finite("tdsm", tdsm)
    means = tdsm.mean(axis=(0, 1))
    deviations = (tdsm - means)[..., :MAX_TILES]
    limit = max(float(np.quantile(np.abs(deviations), 0.995)), 1e-6)
    title = f"Token-decoded spatial map, {_how_many(tdsm.shape[-1])}, each minus its spatial mean (token · mean)"
    figure, tiles, bar = _gallery({"input": image}, tdsm.shape[-1], title)
    for k, axes in enumerate(tiles):
        _show(axes, deviations[..., k], cmap=SIGNED, vmin=-limit, vmax=limit)
        _label(axes, f"{token_ids[k]} · {means[k]:+.2f}".replace("-", "−"))
    _colour_bar(figure, _box(figure, *bar), SIGNED, -limit, limit, extend="both", horizontal=True)
    return figure


@styled
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
    image, components = _finite("image", image), _finite("components", components)
    count = components.shape[1]
    left, gap, top = 1.25, 0.06, 0.5
    width, height = _tile(image.shape[:2], room=6.6 - gap * count, columns=count + 1, largest=1.2)
    across = max(left + (count + 1) * (width + gap) + 1.0, 5.0)
    figure = Figure((across, top + len(names) * (height + gap) + 0.1))
    _write(figure, 0.1, 0.14, "Components under every decomposition, each row on its own scale", size=10.0)
    axes = _box(figure, left, top, width, height)
    _show(axes, image)
    _label(axes, "input")
    for row, (name, maps) in enumerate(zip(names, components, strict=True)):
        y, limit = top + row * (height + gap), float(np.abs(maps).max()) or 1.0
        _write(figure, 0.1, y + height / 2, name.replace("_", " "), verticalalignment="center", color=FAINT)
        for column, values in enumerate(maps):
            axes = _box(figure, left + (column + 1) * (width + gap), y, width, height)
            _show(axes, values, cmap=SIGNED, vmin=-limit, vmax=limit)
            if row == 0:
                _label(axes, str(token_ids[column]))
        bar = _box(figure, left + (count + 1) * (width + gap) + 0.06, y + 0.12 * height, 0.09, 0.76 * height)
        _colour_bar(figure, bar, SIGNED, -limit, limit)
    return figure


@styled
def token_statistics(mean: Float[np.ndarray, "images tokens"], deviation: Float[np.ndarray, "images tokens"]) -> Figure:
    """Draw every token's spatial mean and spatial standard deviation, with their spread over images.

    >>> [axes.get_ylabel() for axes in token_statistics(np.zeros((5, 16)), np.ones((5, 16))).axes]
    ['mean over space', 'std over space']

    Args:
        mean: Each map's mean over space.
        deviation: Each map's standard deviation over space.
    """
    figure = Figure((9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    images, tokens = mean.shape
    thickness = float(np.clip(220 / tokens, 0.6, 4))
    for axes, values, name in [(upper, mean, "mean"), (lower, deviation, "std")]:
        values = _finite(name, values)
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        axes.vlines(range(tokens), low, high, color=BLUE, alpha=0.35, linewidth=thickness)
        axes.plot(values.mean(axis=0), ".", color=BLUE, markersize=2 + 1.2 * thickness, clip_on=False)
        axes.set_ylabel(f"{name} over space")
        axes.grid(axis="y")
    upper.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    lower.set_ylim(bottom=0)
    lower.set_xlim(-1, tokens)
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_xlabel("token number")
    upper.set_title(f"Tokens over {_count(images, 'image')}: mean, and 10th to 90th percentile")
    return figure


@styled
def confusion(matrix: Real[np.ndarray, "classes classes"], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: counts written, shares of the true class shaded.

    Beyond 20 classes the counts are left out, beyond 40 only some classes are named.

    >>> figure = confusion(np.array([[9, 1], [2, 8]]), ["cat", "dog"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['9', '1', '2', '8']

    Args:
        matrix: Counts; rows are true classes, columns predicted ones. A row without images is shaded 0.
        classes: Their names, in order.
    """
    matrix = _finite("matrix", matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    count = len(classes)
    side = float(np.clip(0.52 * count, 2.4, 8.0))
    longest = min(max(len(name) for name in classes), 24)
    margin = 0.55 + 0.085 * longest
    figure = Figure((margin + side + 1.0, 0.4 + side + margin - 0.15))
    axes = _box(figure, margin, 0.4, side, side)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    named = range(0, count, -(-count // MAX_NAMED_CLASSES))
    names = [name if len(name) <= 24 else name[:23] + "…" for name in (classes[k] for k in named)]
    size = float(np.clip(72 * side / len(named) * 0.7, 4, 8))
    axes.set_xticks(named, names, rotation=90, fontsize=size)
    axes.set_yticks(named, names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    correct = 100 * np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{_count(int(matrix.sum()), 'test image')}, {correct:.1f} % correct")
    if count <= MAX_COUNTED_CLASSES:
        _write_counts(axes, matrix, shares, size=float(np.clip(30 * side / count, 5, 8.5)))
    _colour_bar(
        figure, _box(figure, margin + side + 0.15, 0.4, 0.12, side), SHARES, 0.0, 1.0, "share of the true class"
    )
    return figure


@styled
def embedding(
    points: Float[np.ndarray, "points 2"],
    labels: Sequence[int] | Int[np.ndarray, "points"],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Scatter images in two dimensions, coloured and named by class.

    >>> figure = embedding(np.array([[0.0, 1.0], [2.0, 3.0]]), [0, 1], ["cat", "dog"], "PCA")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['cat', 'dog']

    Args:
        points: Coordinates, such as a t-SNE's or the first two principal components.
        labels: Each point's class, an index into `classes`.
        classes: Names. Up to 20 are written into the picture, up to 40 into the legend.
        title: What the coordinates are.
    """
    points, labels = _finite("points", points), np.asarray(labels)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UsageError(
            f"embedding: labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes."
        )
    present = np.unique(labels)
    figure = Figure((9, 6.4), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(14000 / len(points), 4, 30))
    extent = np.ptp(points, axis=0) * [0.09, 0.035] + 1e-12  # about what a name covers
    handles: list[Line2D] = []
    taken: list[np.ndarray] = []
    for k in present:
        colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k // len(PALETTE) % len(MARKERS)]
        own = points[labels == k]
        axes.scatter(*own.T, s=size, color=colour, marker=marker, alpha=0.75, linewidths=0)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=classes[k]))
        place = np.median(own, axis=0)
        if len(present) <= MAX_COUNTED_CLASSES and all(np.abs((place - other) / extent).max() > 1 for other in taken):
            _write_name(axes, place, classes[k], colour)
            taken.append(place)
    if len(present) <= MAX_NAMED_CLASSES:
        columns = -(-len(present) // 20)
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns, handletextpad=0.2)
    axes.set_title(f"{title}, {_count(len(points), 'image')}")
    axes.set_xlabel("first coordinate")
    axes.set_ylabel("second coordinate")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    return figure


@styled
def curves(history: Sequence[Row]) -> Figure:
    """Draw training loss and, where it was measured, validation PSNR against steps.

    >>> history = [{"step": s, "loss": 1 / s, "seconds": s, "psnr": 20.0 + s} for s in (1, 2, 3)]
    >>> [axes.get_ylabel() for axes in curves(history).axes]
    ['training loss', 'validation PSNR (dB)']

    Args:
        history: Records with `step`, `loss`, `seconds` since the start and, on some, `psnr` in decibels.

    Raises:
        UsageError: If there is no record.
    """
    if not history:
        raise UsageError("curves: the history is empty, expected at least one record with step, loss and seconds.")
    measured = [record for record in history if record.get("psnr") is not None]
    figure = Figure((9, 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + bool(measured), squeeze=False, sharex=True)[0]
    steps = [record["step"] for record in history]
    _line(panels[0], steps, [record["loss"] for record in history])
    if min(record["loss"] for record in history) > 0:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("training loss")
    panels[0].set_title(f"{_count(steps[-1], 'step')} in {_duration(float(history[-1]['seconds']))}")
    if measured:
        psnr = [record["psnr"] for record in measured]
        _line(panels[1], [record["step"] for record in measured], psnr)
        panels[1].set_ylabel("validation PSNR (dB)")
        panels[1].set_title(f"last {psnr[-1]:.2f} dB, highest {max(psnr):.2f} dB")
    return figure


@styled
def accuracy_bars(rows: Sequence[Row], chance: float | None = None) -> Figure:
    """Draw test accuracies with their 95 % intervals, highest first.

    >>> row = {"name": "avg", "role": "tdsm", "accuracy": 0.5, "low": 0.4, "high": 0.6}
    >>> figure = accuracy_bars([row, {**row, "name": "pixels", "role": "baseline", "accuracy": 0.55}], chance=0.1)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['pixels', 'avg']

    Args:
        rows: Mappings with `name`, `role` ("tdsm" or "baseline"), `accuracy`, `low` and `high`, in [0, 1].
        chance: Accuracy of guessing, in [0, 1], drawn as a line.

    Raises:
        UsageError: If there is no row.
    """
    if not rows:
        raise UsageError("accuracy_bars: there is no row, expected at least one evaluated classifier.")
    rows = sorted(rows, key=lambda row: -row["accuracy"])
    figure = Figure((9, 1.25 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        accuracy, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
        axes.barh(y, accuracy, height=0.62, color=BLUE if row["role"] == "tdsm" else AMBER, alpha=0.8)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6, markeredgewidth=1.4)
        axes.text(high + 1.2, y, f"{accuracy:.1f}", verticalalignment="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xticks(range(0, 101, 20))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("test accuracy (%), with 95 % interval")
    keys = [
        Line2D([], [], color=BLUE, linewidth=6, alpha=0.8, label="spatial map (TDSM)"),
        Line2D([], [], color=AMBER, linewidth=6, alpha=0.8, label="baseline"),
    ]
    if chance is not None:
        dashes: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
        axes.axvline(100 * chance, **dashes)
        keys.append(Line2D([], [], label=f"chance, {100 * chance:.3g} %", **dashes))
    figure.legend(handles=keys, loc="outside upper left", ncols=3)
    return figure


@styled
def token_counts(rows: Sequence[Row], reference: Row) -> Figure:
    """Draw test accuracy against the number of tokens, one line a way of choosing them, with 95 % intervals.

    >>> row = {"method": "random", "count": 4, "accuracy": 0.5, "ends": (0.4, 0.6)}
    >>> figure = token_counts([row, {**row, "count": 8}], {**row, "method": "all", "count": 16})
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['4', '8']

    Args:
        rows: Mappings with `method`, `count`, `accuracy` and the `ends` of its interval, in [0, 1].
        reference: The row of all tokens, drawn as a line across, its interval as a band.

    Raises:
        UsageError: If there is no row.
    """
    if not rows:
        raise UsageError("token_counts: there is no row, expected at least one number of tokens.")
    figure = Figure((7, 4.2), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    counts = sorted({row["count"] for row in rows})
    for number, method in enumerate(methods):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["count"])
        middle = 100 * np.array([row["accuracy"] for row in own])
        reach = np.abs(100 * np.array([row["ends"] for row in own]).T - middle)
        aside = 1.03 ** (number - (len(methods) - 1) / 2)  # so that intervals at one count stand side by side
        places = [row["count"] * aside for row in own]
        style: dict[str, Any] = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 5, "capsize": 2}
        axes.errorbar(places, middle, reach, label=method, linewidth=1.4, elinewidth=1, **style)
    low, high = (100 * end for end in reference["ends"])
    axes.axhspan(low, high, color=FAINT, alpha=0.15, linewidth=0)
    name = f"all {reference['count']} tokens"
    axes.axhline(100 * reference["accuracy"], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=name)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    axes.grid(axis="y")
    axes.set_xlabel("number of tokens")
    axes.set_ylabel("test accuracy (%), with 95 % interval")
    figure.legend(loc="outside upper left", ncols=len(methods) + 1)
    return figure


def _finite(name: str, values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Copy into float64; refuse what cannot be drawn."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        seen = "is empty" if values.size == 0 else "holds NaN or infinity"
        raise UsageError(f"report figure: {name} of shape {values.shape} {seen}, expected at least one finite value.")
    return values


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _how_many(tokens: int) -> str:
    return f"first {MAX_TILES} of {tokens} tokens" if tokens > MAX_TILES else _count(tokens, "token")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _tile(shape: Sequence[int], *, room: float, columns: int, largest: float) -> tuple[float, float]:
    """Return width and height in inches of image tiles, none of them longer than `largest`."""
    height, width = shape
    wide = min(room / columns, largest, largest * width / height)
    return wide, wide * height / width


def _box(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes by their place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _write(figure: Figure, left: float, top: float, text: str, *, size: float = 9.0, **kwargs: Any) -> None:
    """Write text by its place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, fontsize=size, **{"verticalalignment": "center", **kwargs})


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
    _write(figure, 0.1, 0.16, title, size=10.0)
    for row, (name, image) in enumerate(references.items()):
        axes = _box(figure, 0.1, top + label + row * (high + label), wide, high)
        _show(axes, image)
        _label(axes, name)
    tiles = [
        _box(figure, left + (k % columns) * (tile + gap), top + label + (k // columns) * (tall + label), tile, tall)
        for k in range(count)
    ]
    return figure, tiles, (0.2, top + len(references) * (high + label) + 0.15, 1.15, 0.1)


def _colour_bar(
    figure: Figure,
    axes: Axes,
    cmap: str,
    low: float,
    high: float,
    label: str = "",
    *,
    extend: str = "neither",
    horizontal: bool = False,
) -> None:
    """Fill axes with a colour bar that names its ends and its middle."""
    mappable = ScalarMappable(Normalize(low, high), cmap)
    orientation = "horizontal" if horizontal else "vertical"
    ticks = [low, (low + high) / 2, high]
    bar = figure.colorbar(mappable, cax=axes, orientation=orientation, extend=extend, ticks=ticks, label=label)
    bar.set_ticks(ticks, labels=[f"{tick:.2g}".replace("-", "−") for tick in ticks], fontsize=7)
    bar.outline.set(linewidth=0.5, edgecolor=HAIRLINE)
    bar.ax.tick_params(length=2, width=0.5)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.55 else (INK if count else HAIRLINE)
        axes.text(column, row, f"{count:g}", color=colour, fontsize=size, **CENTRED)


def _write_name(axes: Axes, place: np.ndarray, name: str, colour: str) -> None:
    halo = [matplotlib.patheffects.withStroke(linewidth=3, foreground="white")]
    dark = [0.7 * part for part in to_rgb(colour)]  # pale hues would not read as letters
    axes.text(place[0], place[1], name, color=dark, fontsize=9, fontweight="bold", path_effects=halo, **CENTRED)


def _line(axes: Axes, steps: Sequence[float | int], values: Sequence[float | int]) -> None:
    """Draw records against steps: dots when few, with a running mean over a 25th of them when many."""
    window = len(values) // 25
    if window < 3:
        axes.plot(steps, values, color=BLUE, linewidth=1.4, marker="o", markersize=3)
    else:
        axes.plot(steps, values, color=BLUE, linewidth=0.6, alpha=0.35)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window // 2 : window // 2 + len(smooth)], smooth, color=BLUE, linewidth=1.6)
    axes.set_xlabel("step")
    axes.grid()
