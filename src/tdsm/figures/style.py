"""What all figures share: style, scale, helpers, and how a figure carries its caption. No global drawing state."""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, ParamSpec

import matplotlib
import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from tdsm.base.errors import UsageError

Parameters = ParamSpec("Parameters")

DPI = 200

CENTRED: dict[str, Any] = {"horizontalalignment": "center", "verticalalignment": "center"}
INK, FAINT, HAIRLINE = "#1f2328", "#6b7280", "#c9ccd1"
BLUE, AMBER, PAPER, GRID = "#2166ac", "#c77b1b", "#ffffff", "#e6e8eb"
# Nine hues of Paul Tol's "muted" scheme, safe for the common colour deficiencies, and a grey; then markers change.
PALETTE = ["#332288", "#44aa99", "#cc6677", "#ddaa33", "#88ccee", "#117733", "#aa4499", "#999933", "#882255", "#777777"]
MARKERS = "os^DvP"
ERRORS, SIGNED = "gist_heat_r", "RdBu_r"  # white at 0
SHARES = LinearSegmentedColormap.from_list("shares", [to_rgba(BLUE, 0.0), to_rgba(BLUE, 1.0)])  # nothing at 0
OTHER_SCRIPTS = (  # tried in turn for letters that DejaVu has not
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("PingFang SC", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS"),
)


def _installed(names: Iterable[str]) -> list[str]:
    there = set(fontManager.get_font_names())
    return [name for name in names if name in there]


STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", *_installed(OTHER_SCRIPTS)],
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
    "grid.color": GRID,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    # Names of classes and heads are shown as they are: a "$" in them is a dollar sign, not mathematics.
    "text.parse_math": False,
}


@dataclass
class Drawing(Generic[Parameters]):
    """A drawing function under the shared style, with the caption of what it draws.

    The caller's style stays as it was.
    """

    draw: Callable[Parameters, Figure]
    caption: str

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        """Draw."""
        with matplotlib.rc_context(STYLE), without_missing_glyphs():
            figure = self.draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made when first drawn, and must be made under the style
        return figure


def drawing(caption: str) -> Callable[[Callable[Parameters, Figure]], Drawing[Parameters]]:
    """Make a function of a figure a `Drawing`; the caption says what is shown and how to read it."""

    def decorate(draw: Callable[Parameters, Figure]) -> Drawing[Parameters]:
        drawn = Drawing(draw, caption)
        update_wrapper(drawn, draw)
        return drawn

    return decorate


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Draw a figure as the bytes of a PNG file.

    >>> png(Figure((1, 1)))[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    with without_missing_glyphs():
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@contextmanager
def without_missing_glyphs() -> Iterator[None]:
    """Say nothing of letters no font here has: a page shows them by its reader's fonts, a PNG as empty boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def finite(name: str, values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Copy into float64; refuse what cannot be drawn."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        seen = "is empty" if values.size == 0 else "holds NaN or infinity"
        raise UsageError(f"report figure: {name} of shape {values.shape} {seen}, expected at least one finite value.")
    return values


def box(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes by their place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: Figure, left: float, top: float, text: str, *, size: float = 9.0, **kwargs: Any) -> None:
    """Write text by its place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, fontsize=size, **{"verticalalignment": "center", **kwargs})


def colour_bar(
    figure: Figure,
    axes: Axes,
    cmap: str | Colormap,
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
