"""Charts of what was measured: numbers in, matplotlib Figure out. Every figure states its own scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from tdsm.base.errors import UsageError
from tdsm.base.text import cell_width, count_of, duration, percent, shortened
from tdsm.figures.style import (
    AMBER,
    BLUE,
    CENTRED,
    FAINT,
    HAIRLINE,
    INK,
    MARKERS,
    PALETTE,
    PAPER,
    SHARES,
    box,
    colour_bar,
    drawing,
    finite,
)

Row = Mapping[str, Any]

WIDTH = 4.7  # inches: two stand side by side on a page, and one is legible on a phone
MAX_COUNTED_CLASSES = 20
MAX_NAMED_CLASSES = 40
LONGEST_NAME, LONGEST_BESIDE, UPRIGHT = 24, 20, 2  # columns of text: anywhere, beside a matrix, not turned below it
ON_BLUE = "#f8f9fa"  # white, but no paper: it stays white on a dark page


@drawing(
    "Level and spatial variation of every token's map. Above: its mean over space. Below: its standard deviation "
    "over space. Dots are means over images, bars run from the 10th to the 90th percentile of the images; both "
    "are in units of the model's output. A long bar above is a level that depends on the image; a low dot below "
    "is a map that hardly varies over space."
)
def token_statistics(mean: Float[np.ndarray, "images tokens"], deviation: Float[np.ndarray, "images tokens"]) -> Figure:
    """Draw every token's spatial mean and spatial standard deviation, with their spread over images.

    >>> [axes.get_ylabel() for axes in token_statistics(np.zeros((5, 16)), np.ones((5, 16))).axes]
    ['mean over space', 'std over space']

    Args:
        mean: Each map's mean over space.
        deviation: Each map's standard deviation over space.
    """
    figure = Figure((WIDTH, 4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    images, tokens = mean.shape
    thickness = float(np.clip(220 / tokens, 0.6, 4))
    for axes, values, name in [(upper, mean, "mean"), (lower, deviation, "std")]:
        values = finite(name, values)
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        axes.vlines(range(tokens), low, high, color=BLUE, alpha=0.35, linewidth=thickness)
        axes.plot(values.mean(axis=0), ".", color=BLUE, markersize=2 + 1.2 * thickness, clip_on=False)
        axes.set_ylabel(f"{name} over space")
        axes.locator_params(axis="y", nbins=4)  # however large they are laid out
        axes.grid(axis="y")
    upper.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    lower.set_ylim(bottom=0)
    lower.set_xlim(-1, tokens)
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_xlabel("token number")
    upper.set_title(f"Mean, and 10th to 90th percentile, of {count_of(images, 'image')}")
    return figure


@drawing(
    "Rows are true classes, columns predicted ones. Shading is the share of the true class, from 0 to 1, so each "
    "row adds up to 1; numbers, where written, count test images. A perfect classifier fills the diagonal."
)
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
    matrix = finite("matrix", matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    count = len(classes)
    side = float(np.clip(0.4 * count, 2.0, 5.6))
    longest = max(cell_width(shortened(name, LONGEST_BESIDE)) for name in classes)
    margin = 0.55 + 0.085 * longest
    figure = Figure((margin + side + 1.0, 0.4 + side + margin - 0.15))
    axes = box(figure, margin, 0.4, side, side)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, interpolation="none")
    axes.spines[:].set(visible=True, color=HAIRLINE)
    axes.tick_params(length=0)
    named = range(0, count, -(-count // MAX_NAMED_CLASSES))
    names = [shortened(classes[k], LONGEST_BESIDE) for k in named]
    size = float(np.clip(72 * side / len(named) * 0.7, 4, 8))
    rotation = 90 if longest > UPRIGHT else 0
    axes.set_xticks(named, names, rotation=rotation, fontsize=size)
    axes.set_yticks(named, names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    correct = 100 * np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{count_of(int(matrix.sum()), 'test image')}, {correct:.1f} % correct")
    if count <= MAX_COUNTED_CLASSES:
        _write_counts(axes, matrix, shares, size=float(np.clip(30 * side / count, 5, 8.5)))
    bar = box(figure, margin + side + 0.15, 0.4, 0.12, side)
    colour_bar(figure, bar, SHARES, 0.0, 1.0, "share of the true class")
    return figure


@drawing(
    "Each dot is one image, placed by its features in two dimensions and coloured by its true class; names stand "
    "at the median of their class, where there is room. Each axis has its own scale. Neighbours have similar features. "
    "Directions and, in a t-SNE, distances between groups carry no meaning."
)
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
    points, labels = finite("points", points), np.asarray(labels)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UsageError(
            f"embedding: labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes."
        )
    present = np.unique(labels).tolist()
    figure = Figure((WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    looks = {k: _look(k) for k in present}
    size = float(np.clip(14000 / len(points), 4, 30))
    for k, look in looks.items():
        axes.scatter(*points[labels == k].T, s=size, alpha=0.75, linewidths=0, gid=f"points-{k}", **look)
    if len(present) <= MAX_COUNTED_CLASSES:
        _write_names(figure, axes, {k: np.median(points[labels == k], axis=0) for k in present}, classes)
    if len(present) <= MAX_NAMED_CLASSES:
        keys = [Line2D([], [], linestyle="", markersize=5, label=_short(classes[k]), **looks[k]) for k in present]
        columns = max(2, min(6, 68 // (6 + max(cell_width(key.get_label()) for key in keys))))
        figure.legend(handles=keys, loc="outside lower center", ncols=columns, handletextpad=0.2)
    axes.set_title(f"{title}, {count_of(len(points), 'image')}")
    axes.set(xlabel="first coordinate", ylabel="second coordinate", xticks=[], yticks=[])
    return figure


@drawing(
    "Training loss on a logarithmic scale, and PSNR on validation images in decibels where it was measured, "
    "against optimiser steps. A thin line is every record, the thick one their running mean."
)
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
    figure = Figure((WIDTH, 2.1 * (1 + bool(measured))), layout="constrained")
    panels = figure.subplots(1 + bool(measured), 1, squeeze=False, sharex=True)[:, 0]
    steps = [record["step"] for record in history]
    _line(panels[0], steps, [record["loss"] for record in history])
    if min(record["loss"] for record in history) > 0:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("training loss")
    panels[0].set_title(f"{count_of(steps[-1], 'step')} in {duration(float(history[-1]['seconds']))}")
    if measured:
        psnr = [record["psnr"] for record in measured]
        _line(panels[1], [record["step"] for record in measured], psnr)
        panels[1].set_ylabel("validation PSNR (dB)")
        panels[1].set_title(f"last {psnr[-1]:.2f} dB, highest {max(psnr):.2f} dB")
    panels[-1].set_xlabel("step")
    return figure


@drawing(
    "Accuracy on the test split, in per cent, with 95 % intervals. Blue bars read the spatial map, amber ones are "
    "baselines; a dashed line is the share of the largest class. All rows see the same images, so two are compared by "
    "their pairs of answers, not by whether these intervals overlap."
)
def accuracy_bars(rows: Sequence[Row], majority: float | None = None) -> Figure:
    """Draw test accuracies with their 95 % intervals, highest first.

    >>> row = {"name": "avg", "role": "tdsm", "accuracy": 0.5, "low": 0.4, "high": 0.6}
    >>> figure = accuracy_bars([row, {**row, "name": "pixels", "role": "baseline", "accuracy": 0.55}], majority=0.1)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['pixels', 'avg']

    Args:
        rows: Mappings with `name`, `role` ("tdsm" or "baseline"), `accuracy`, `low` and `high`, in [0, 1].
        majority: Share of the largest class in [0, 1], the accuracy of who always says it, drawn as a line.

    Raises:
        UsageError: If there is no row.
    """
    if not rows:
        raise UsageError("accuracy_bars: there is no row, expected at least one evaluated classifier.")
    rows = sorted(rows, key=lambda row: -row["accuracy"])
    figure = Figure((WIDTH, 1.3 + 0.28 * len(rows)), layout="constrained")
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
    if majority is not None:
        dashes: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
        axes.axvline(100 * majority, **dashes)
        keys.append(Line2D([], [], label=f"largest class, {percent(majority)} %", **dashes))
    figure.legend(handles=keys, loc="outside upper left", ncols=2)
    return figure


@drawing(
    "Test accuracy of one kind of head against the number of tokens whose maps it reads, one line a way of "
    "choosing them: by gates trained with the head (learned), evenly spaced (stride), at random, the first ones. "
    "Means over seeds; bars are 95 % intervals over images and seeds. The dashed line, with its interval as a band, is "
    "the head on all tokens. Lines that lie on one another: it does not matter which tokens are kept."
)
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
    figure = Figure((WIDTH, 4), layout="constrained")
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
    figure.legend(loc="outside upper left", ncols=3)
    return figure


@drawing(
    "How much changes inside a region, against how much changes outside it, when the n tokens chosen for it are taken: "
    "one line a way of choosing, along n. On the dashed line both change alike; the further above it, the better the "
    "handle on the region."
)
def handles(
    changes: Mapping[str, Float[np.ndarray, "ways counts 2"]], ways: Sequence[str], counts: Sequence[int]
) -> Figure:
    """Draw the change inside against that outside, one panel an edit, one line a way of choosing tokens.

    >>> figure = handles({"dropped": np.full((2, 3, 2), 0.1)}, ["additive", "random"], [1, 2, 4])
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['tokens dropped']

    Args:
        changes: Under the name of each edit the change inside and outside, for every way and number of tokens.
        ways: Names.
        counts: Numbers of tokens, ascending.
    """
    figure = Figure((4.4 * len(changes) + 0.4, 4.9), layout="constrained")
    panels = figure.subplots(1, len(changes), squeeze=False)[0]
    for axes, (edit, values) in zip(panels, changes.items(), strict=True):
        inside, outside = (1.08 * float(finite("changes", values)[..., side].max()) for side in (0, 1))
        axes.plot([0, inside], [0, inside], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for number, (way, line) in enumerate(zip(ways, values, strict=True)):
            look = _look(number) | {"marker": MARKERS[number % len(MARKERS)]}
            axes.plot(line[:, 1], line[:, 0], label=way, linewidth=1.4, markersize=4, **look)
        axes.set(
            xlim=(0, outside), ylim=(0, inside), xlabel="change outside the region", ylabel="change inside the region"
        )
        axes.set_title(f"tokens {edit}")
        axes.grid()
    along = ", ".join(map(str, counts))
    keys, names = panels[0].get_legend_handles_labels()
    figure.legend(
        keys, names, loc="outside upper left", ncols=4, title=f"chosen by, along n = {along}", alignment="left"
    )
    return figure


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        colour = ON_BLUE if shares[row, column] > 0.55 else (INK if count else HAIRLINE)
        axes.text(column, row, f"{count:g}", color=colour, fontsize=size, **CENTRED)


def _look(k: int) -> dict[str, str]:
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k // len(PALETTE) % len(MARKERS)]}


def _write_names(figure: Figure, axes: Axes, places: Mapping[int, np.ndarray], classes: Sequence[str]) -> None:
    """Write each class at its place, but where a name that was written before would be covered."""
    plate = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
    style = {"fontsize": 8.5, "fontweight": "bold", "color": INK, "bbox": plate, **CENTRED}
    figure.draw_without_rendering()  # the layout says how large the axes are
    extent = axes.get_window_extent()
    pixels = np.array([np.ptp(axes.get_xlim()) / extent.width, np.ptp(axes.get_ylim()) / extent.height])
    middle, taken = (np.array([sum(axes.get_xlim()), sum(axes.get_ylim())]) / 2), []  # type: ignore[var-annotated]
    reach = np.array([extent.width, extent.height]) / 2 * pixels
    for k, place in places.items():
        half = pixels * figure.dpi * (0.042 * cell_width(_short(classes[k])) + 0.04, 0.085)
        inside = np.clip(place, middle - reach + half, middle + reach - half)
        if (half <= reach).all() and all((np.abs(inside - other) > half + room).any() for other, room in taken):
            axes.text(*inside, _short(classes[k]), **style)
            taken.append((inside, half))


def _short(name: str) -> str:
    return shortened(name, LONGEST_NAME)


def _line(axes: Axes, steps: Sequence[float | int], values: Sequence[float | int]) -> None:
    """Draw records against steps: dots when few, with a running mean over a 25th of them when many."""
    window = len(values) // 25
    if window < 3:
        axes.plot(steps, values, color=BLUE, linewidth=1.4, marker="o", markersize=3)
    else:
        axes.plot(steps, values, color=BLUE, linewidth=0.6, alpha=0.35)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window // 2 : window // 2 + len(smooth)], smooth, color=BLUE, linewidth=1.6)
    axes.grid()
