"""A figure as SVG that becomes part of a page: text stays text, and colours are the page's, light or dark.

A page names the colours it is drawn in as CSS variables: --ink, --soft, --line, --paper, --tdsm, --baseline, and
--hue-0 … --hue-9 for classes. Nothing in the SVG is a style, so that the page's policy can forbid inline ones.
"""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from tdsm.figures.style import AMBER, BLUE, FAINT, GRID, HAIRLINE, INK, PALETTE, PAPER, without_missing_glyphs

VARIABLES = {
    INK: "--ink",
    FAINT: "--soft",
    HAIRLINE: "--line",
    GRID: "--line",
    PAPER: "--paper",
    BLUE: "--tdsm",
    AMBER: "--baseline",
} | {colour: f"--hue-{number}" for number, colour in enumerate(PALETTE)}
BY_PAGE = ("font-family",)  # the page says it once
OWN_IDS = ("points-",)  # of groups a script looks for


def svg(figure: Figure, name: str) -> str:
    """Draw a figure as an `<svg>` element whose ids are its own by `name`.

    >>> picture = svg(Figure((2, 1)), "empty")
    >>> picture[:4], "style" in picture, 'viewBox="0 0 144 72"' in picture
    ('<svg', False, True)
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), without_missing_glyphs():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'\sstyle="([^"]*)"', lambda found: _attributes(found[1]), drawn)
    drawn = re.sub(r"(?<=\d)\.(\d\d)\d+", r".\1", drawn)
    used = set(re.findall(r"#(\w+)", drawn))
    drawn = re.sub(r'\sid="([^"]*)"', lambda found: _kept(found[0], found[1], used, name), drawn)
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", drawn)).strip()


def _attributes(style: str) -> str:
    """Write the entries of a style as attributes, colours as the page's variables."""
    entries = (entry.split(":", 1) for entry in style.split(";") if entry.strip())
    pairs = ((name.strip(), _coloured(value.strip())) for name, value in entries)
    return "".join(f' {name}="{value}"' for name, value in pairs if name not in BY_PAGE)


def _coloured(value: str) -> str:
    return f"var({VARIABLES[value]})" if value in VARIABLES else value


def _kept(whole: str, identity: str, used: set[str], name: str) -> str:
    if identity.startswith(OWN_IDS):
        return f' id="{name}-{identity}"'
    return whole if identity in used else ""
