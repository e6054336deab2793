"""The table of evaluated classifiers: which is best, what that shows, and the table itself.

A row is a mapping with `name`, `role` ("tdsm" or "baseline"), `features`, `head`, test `accuracy` with the ends
`low` and `high` of its 95 % interval, `n_test`, `parameters`, `seconds` and `validation_accuracy`. Accuracies are
in [0, 1]; `validation_accuracy` may be missing or None. A row of several seeds has its `accuracies`, one a seed, of
which `accuracy` is the mean, and their standard `deviation`. Other keys are ignored.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
ROLES = {"tdsm": "TDSM", "baseline": "baseline"}
THIN = "\u2009"  # between thousands
WORDS = ["name", "role", "features", "head"]
ACCURACY = ["test accuracy (%)", "deviation", "95 % interval (%)", "validation (%)"]
NUMBERS = [*ACCURACY, "test images", "parameters", "seconds"]
HEADINGS = [*WORDS[:2], *ACCURACY, *WORDS[2:], *NUMBERS[len(ACCURACY) :]]


def best(rows: Sequence[Row], role: str) -> Row | None:
    """Choose a role's row by validation accuracy, the smaller one on a tie; never by test accuracy.

    >>> best([{"role": "tdsm", "validation_accuracy": 0.5, "parameters": 9, "name": "avg"}], "tdsm")["name"]
    'avg'
    """
    candidates = [row for row in rows if row["role"] == role and row.get("validation_accuracy") is not None]
    return max(candidates, key=lambda row: (row["validation_accuracy"], -row["parameters"]), default=None)


def verdict(rows: Sequence[Row]) -> str:
    """Say in words how the best TDSM row stands against the best baseline.

    Both are chosen on the validation split and compared by their 95 % intervals on the test split. Intervals
    that touch overlap.

    >>> row = {"name": "avg", "role": "tdsm", "accuracy": 0.5, "low": 0.48, "high": 0.52, "n_test": 2000,
    ...        "parameters": 9, "validation_accuracy": 0.5}
    >>> verdict([row]).split(". ")[-1]
    'No baseline was evaluated: the TDSM is compared with nothing.'
    """
    if not rows:
        return "No classifier was evaluated."
    tdsm, baseline = best(rows, "tdsm"), best(rows, "baseline")
    outcome = [_compare(tdsm, baseline)] if tdsm and baseline else []
    return " ".join([*outcome, _quote(rows, "tdsm", "TDSM head"), _quote(rows, "baseline", "baseline")])


def table_markdown(rows: Sequence[Row]) -> str:
    """Write the rows as a Markdown table, highest test accuracy first, the best of each role marked.

    >>> print(table_markdown([]))
    | name | role | test accuracy (%) | 95 % interval (%) | validation (%) | features | head | test images \
| parameters | seconds |
    | :-- | :-- | --: | --: | --: | :-- | :-- | --: | --: | --: |
    <BLANKLINE>
    """
    shown = headings(rows)
    lines = [shown, ["--:" if heading in NUMBERS else ":--" for heading in shown]]
    for row in by_accuracy(rows):
        mark = " **(best)**" if is_best(rows, row) else ""
        texts = cells(row)
        first, *others = [_markdown(texts[heading]) for heading in shown]
        lines.append([first + mark, *others])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def headings(rows: Sequence[Row]) -> list[str]:
    """Return the columns that rows fill: deviations only where a row has several seeds.

    >>> "deviation" in headings([{"name": "avg"}]), "deviation" in headings([{"name": "avg", "deviation": 0.01}])
    (False, True)
    """
    has_seeds = any("deviation" in row for row in rows)
    return [heading for heading in HEADINGS if has_seeds or heading != "deviation"]


def by_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by test accuracy, highest first."""
    return sorted(rows, key=lambda row: -row["accuracy"])


def is_best(rows: Sequence[Row], row: Row) -> bool:
    """Tell whether `row` itself is the chosen one of its role."""
    return row is best(rows, row["role"])


def cells(row: Row) -> dict[str, str]:
    """Format a row: heading -> text, in the order of the headings."""
    validation = row.get("validation_accuracy")
    texts = {
        "name": str(row["name"]),
        "role": ROLES[row["role"]],
        "features": str(row["features"]),
        "head": str(row["head"]),
        "test accuracy (%)": percent(row["accuracy"]),
        "deviation": percent(row["deviation"]) if "deviation" in row else "–",
        "95 % interval (%)": f"{percent(row['low'])} – {percent(row['high'])}",
        "validation (%)": "–" if validation is None else percent(validation),
        "test images": thousands(row["n_test"]),
        "parameters": thousands(row["parameters"]),
        "seconds": f"{row['seconds']:.1f}",
    }
    return {heading: texts[heading] for heading in HEADINGS}


def percent(share: float | int) -> str:
    """Write a share in [0, 1] in per cent with one decimal."""
    return f"{100 * share:.1f}"


def thousands(number: int) -> str:
    """Write a whole number in groups of three digits.

    >>> thousands(2621450).split(THIN)
    ['2', '621', '450']
    """
    return f"{number:,}".replace(",", THIN)


def _quote(rows: Sequence[Row], role: str, noun: str) -> str:
    if not any(row["role"] == role for row in rows):
        return {
            "tdsm": "No TDSM head was evaluated.",
            "baseline": "No baseline was evaluated: the TDSM is compared with nothing.",
        }[role]
    row = best(rows, role)
    if row is None:
        return f"No {noun} has a validation accuracy, so none was chosen: choosing on the test split would flatter it."
    seeds = f", mean of {len(row['accuracies'])} seeds" if "accuracies" in row else ""
    return (
        f"Best {noun} by validation accuracy: {row['name']}, test accuracy {percent(row['accuracy'])} % "
        f"(95 % interval {percent(row['low'])} to {percent(row['high'])} %, {thousands(row['n_test'])} images{seeds})."
    )


def _compare(tdsm: Row, baseline: Row) -> str:
    points = f"{100 * abs(tdsm['accuracy'] - baseline['accuracy']):.1f} percentage points"
    side = "above" if tdsm["accuracy"] > baseline["accuracy"] else "below"
    if tdsm["low"] <= baseline["high"] and baseline["low"] <= tdsm["high"]:
        if tdsm["accuracy"] == baseline["accuracy"]:
            return "TDSM and baseline have the same test accuracy: no difference shown."
        return f"The intervals overlap: no difference shown. The TDSM stands {points} {side} the baseline."
    return f"The TDSM is {side} the baseline by {points}; the intervals do not overlap."


def _markdown(text: str) -> str:
    return (
        escape(" ".join(text.encode("utf-8", "replace").decode().split()), quote=False)
        .replace("\\", "\\\\")
        .replace("|", "\\|")
    )
