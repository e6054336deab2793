"""What a page is made of: sections of blocks, each of a kind that `page.html` knows how to show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tdsm.figures.tiles import Tile
from tdsm.pipeline.table import Column, Row


@dataclass(frozen=True)
class Said:
    """Plain sentences: paragraphs, or of kind "verdict", or a list of kind "note"."""

    sentences: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Thumbnails:
    """What is seen and said of each point of a chart, in the order in which its groups `points-N` draw them."""

    sprite: bytes  # a WEBP of squares, row by row
    side: int  # of a square, in pixels
    columns: int
    words: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A figure; its name is letters, digits, "_" and "-", and becomes a file name."""

    name: str
    figure: Figure
    caption: str
    thumbnails: Thumbnails | None = None


@dataclass(frozen=True)
class Step:
    """One step of a flow: what it is called, a tile or an answer in words, and words below it."""

    title: str
    tile: Tile | None
    words: str
    answer: str = ""


@dataclass(frozen=True)
class Flow:
    """Steps from left to right, or from above on a narrow window."""

    steps: Sequence[Step]
    caption: str


@dataclass(frozen=True)
class Scores:
    """A table of evaluated classifiers, as `tdsm.pipeline.table` describes them, in the order to be shown."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    best: Sequence[str] = ()  # names of the rows to be marked


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is."""

    text: str


@dataclass(frozen=True)
class Data:
    """Nested settings, as JSON."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Beside:
    """Blocks that stand side by side where there is room."""

    blocks: Sequence[Any]


@dataclass(frozen=True)
class Fold:
    """Blocks that open on demand."""

    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    name: str  # letters and "-", of its link
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """A page: what stands on top, then its sections.

    Args:
        title: Names the run.
        facts: When, how long, of what: short, beside one another under the title.
        top: Blocks before the first section.
        sections: In order; one without blocks is left out.
        prints: Name -> figure that is written beside the page only.
    """

    title: str
    facts: Sequence[str]
    top: Sequence[Any]
    sections: Sequence[Section]
    prints: Mapping[str, Figure] = field(default_factory=dict)
