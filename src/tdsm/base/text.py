"""Numbers and tables as people read them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import combining, east_asian_width

from tdsm.base.statistics import Interval

THIN = "\u2009"  # between thousands
NOTHING = "–"


def percent(share: float | int) -> str:
    """Write a share in [0, 1] in per cent with one decimal.

    >>> percent(0.4567)
    '45.7'
    """
    return f"{100 * share:.1f}"


def points(difference: float | int) -> str:
    """Write a difference of shares in percentage points, with its sign.

    >>> points(-0.0312), points(0.0)
    ('−3.1', '+0.0')
    """
    return f"{100 * difference:+.1f}".replace("-", "−")


def difference_words(difference: Interval, p: float | None = None) -> str:
    """Say how sure a difference is: its interval in percentage points, the method, and McNemar's p if there is one.

    >>> difference_words(Interval(0.125, 0.051, 0.196, "paired over images"), p=0.0013)
    '95 % interval +5.1 to +19.6, paired over images; McNemar p = 0.001'
    """
    ends = f"95 % interval {points(difference.low)} to {points(difference.high)}, {difference.method}"
    if p is None:
        return ends
    return f"{ends}; McNemar p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def thousands(number: int) -> str:
    """Write a whole number in groups of three digits.

    >>> thousands(2621450).split(THIN)
    ['2', '621', '450']
    """
    return f"{number:,}".replace(",", THIN)


def duration(seconds: float) -> str:
    """Write a duration for people.

    >>> duration(40.0), duration(400.0), duration(40000.0)
    ('40 s', '7 min', '11.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_of(number: int, noun: str) -> str:
    """Write how many there are.

    >>> count_of(1, "seed"), count_of(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{thousands(number)} {noun}{'' if number == 1 else 's'}"


def cell_width(text: str) -> int:
    """Count the columns a text takes on a terminal: two a letter of Chinese, Japanese or Korean.

    >>> cell_width("cat"), cell_width("猫")
    (3, 2)
    """
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def shortened(text: str, columns: int) -> str:
    """Cut what is longer than so many columns, and say so by an ellipsis.

    >>> shortened("retriever", 6), shortened("ゴールデン", 6), shortened("cat", 6)
    ('retri…', 'ゴー…', 'cat')
    """
    if cell_width(text) <= columns:
        return text
    kept = text
    while cell_width(kept) > columns - 1:
        kept = kept[:-1]
    return f"{kept}…"


@dataclass(frozen=True)
class Table:
    """Hold a table with what must be said before it and known to read it.

    >>> print(Table("Counts", ["tokens", "name"], [["4", "a|b"]], words=["name"], notes=["Of one image."]).markdown())
    ### Counts
    <BLANKLINE>
    | tokens | name |
    | --: | :-- |
    | 4 | a\\|b |
    <BLANKLINE>
    Of one image.

    Args:
        title: What the table is about.
        headings: Of its columns.
        lines: One text a column.
        words: The headings of columns that hold words, not numbers.
        findings: Sentences to stand before the table.
        notes: Sentences to stand after it.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: Sequence[str] = ()
    findings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Write all of it as Markdown."""
        table = markdown_table(self.headings, self.lines, self.words)
        parts = [f"### {self.title}", " ".join(self.findings), table, " ".join(self.notes)]
        return "\n\n".join(part for part in parts if part)


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """Write a Markdown table; columns are set to the right but for those named in `words`.

    What Markdown or HTML would take for its own in a cell is shown as it is.

    >>> print(markdown_table(["tokens", "name"], [["4", "a|b"]], words=["name"]))
    | tokens | name |
    | --: | :-- |
    | 4 | a\\|b |
    """
    rule = [":--" if heading in words else "--:" for heading in headings]
    rows = [headings, rule, *([_cell(text) for text in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    readable = " ".join(text.encode("utf-8", "replace").decode().split())
    return escape(readable, quote=False).replace("\\", "\\\\").replace("|", "\\|")
