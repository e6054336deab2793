"""Numbers and tables as people read them."""

from collections.abc import Collection, Sequence
from html import escape

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


def thousands(number: int) -> str:
    """Write a whole number in groups of three digits.

    >>> thousands(2621450).split(THIN)
    ['2', '621', '450']
    """
    return f"{number:,}".replace(",", THIN)


def count_of(number: int, noun: str) -> str:
    """Write how many there are.

    >>> count_of(1, "seed"), count_of(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{thousands(number)} {noun}{'' if number == 1 else 's'}"


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
