"""One self-contained page out of blocks: what it shows is inside it, and it loads nothing.

Its content security policy forbids everything but the pictures in it and the one style and the one script whose hashes
it names. `page.html` is its template; every text is escaped there.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tdsm.base.errors import UsageError
from tdsm.base.io import write_bytes, write_text
from tdsm.base.progress import track
from tdsm.base.text import NOTHING, thousands
from tdsm.figures.style import png
from tdsm.figures.svg import svg
from tdsm.figures.tiles import Tile, png_of
from tdsm.pipeline.table import ROLES
from tdsm.report.blocks import Beside, Chart, Fold, Page

SPELLINGS = {"tdsm": "TDSM", "psnr": "PSNR", "ssim": "SSIM", "pca": "PCA", "tsne": "t-SNE"}
PIXELS_PER_POINT = 1.5
SMALL = 64  # pixels; what is smaller is shown larger, pixel by pixel


def render(page: Page) -> str:
    """Write a page as one HTML file that needs nothing beside it.

    >>> "<h1>A &lt;run&gt;</h1>" in render(Page("A <run>", [], [], []))
    True

    Raises:
        UsageError: If a figure's name cannot be a file name.
    """
    for name, _ in _figures(page):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UsageError(f"report: figure {name!r} cannot be a file name; use letters, digits, '_' and '-'.")
    sections = [section for section in page.sections if section.blocks]
    return _template().render(page=page, sections=sections, style=_asset("page.css"), script=_asset("page.js"))


def write_report(folder: Path, page: Page, name: str = "report.html") -> Path:
    """Write the page and `figures/NAME.png` into `folder`; return the path of the page.

    Raises:
        UsageError: If a figure's name cannot be a file name.
    """
    path, text = Path(folder) / name, render(page)
    for figure_name, figure in track(list(_figures(page)), "figures", unit="files"):
        write_bytes(Path(folder) / "figures" / f"{figure_name}.png", png(figure))
    write_text(path, text)
    return path


def _figures(page: Page) -> Iterator[tuple[str, Figure]]:
    yield from _charts([*page.top, *(block for section in page.sections for block in section.blocks)])
    yield from page.prints.items()


def _charts(blocks: list[Any]) -> Iterator[tuple[str, Figure]]:
    for block in blocks:
        if isinstance(block, Chart):
            yield block.name, block.figure
        elif isinstance(block, Beside | Fold):
            yield from _charts(list(block.blocks))


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_readable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "chart": _chart,
        "digest": _digest,
        "encoded": lambda data: base64.b64encode(data).decode(),
        "fact": _fact,
        "json": _json,
        "kind": lambda block: type(block).__name__.lower(),
        "number": "{:.3g}".format,
        "prose": _prose,
        "slug": _slug,
        "source": _source,
        "titled": titled,
    }
    environment.tests["small"] = lambda tile: max(tile.shape[:2]) <= SMALL
    environment.globals["roles"] = ROLES
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (files("tdsm.report") / name).read_text(encoding="utf-8")


def _readable(value: object) -> object:
    """Replace what UTF-8 cannot hold by question marks."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode()


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _prose(sentence: str) -> str:
    """Keep per cent signs with their numbers."""
    return sentence.replace(" %", "\u00a0%")


def titled(name: str) -> str:
    """Turn a key such as `tdsm_slices` into words."""
    words = " ".join(SPELLINGS.get(word, word) for word in re.split(r"[_-]", name.replace("t-sne", "tsne")))
    return words if words.startswith("t-") else words[:1].upper() + words[1:]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return thousands(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(part) for part in value)
    return NOTHING if value is None else str(value)


def _source(tile: Tile) -> str:
    return "data:image/png;base64," + base64.b64encode(png_of(tile)).decode()


def _chart(chart: Chart) -> Markup:
    """Write the SVG of a chart, as wide as it was drawn unless the window is narrower; letters in it are escaped."""
    drawn = svg(chart.figure, chart.name)
    across, down = (round(72 * PIXELS_PER_POINT * inches) for inches in chart.figure.get_size_inches())
    drawn = re.sub(r' width="[^"]*pt" height="[^"]*pt"', f' width="{across}" height="{down}"', drawn, count=1)
    return Markup(drawn.encode("utf-8", "replace").decode())


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
