"""The table of evaluated classifiers: which is best, what that shows, and the table itself.

A row is a mapping with `name`, `role` ("tdsm" or "baseline"), `features`, `head`, `parameters`, `seconds`,
`validation_accuracy`, which may be missing or None, and the scores of `tdsm.classification.scores` on the test split.
Accuracies are in [0, 1]. A row of several seeds has its `accuracies`, one a seed, of which `accuracy` is the mean, and
their standard `deviation`. Other keys are ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from tdsm.base.statistics import mcnemar, paired_difference
from tdsm.base.text import NOTHING, count_of, difference_words, markdown_table, percent, thousands

Row = Mapping[str, Any]
ROLES = {"tdsm": "TDSM", "baseline": "baseline"}
UNEQUAL = 0.0005  # a balanced accuracy that differs by this much reads differently


@dataclass(frozen=True)
class Column:
    """A column: its heading, the entry of a row that it shows and sorts by, and how that is written."""

    heading: str
    key: str
    write: Callable[[Any], str] = str
    to: str | None = None  # the entry that ends a range
    is_number: bool = True

    def sorts_by(self, row: Row) -> float:
        """Return the number a row is sorted by; a missing one comes last."""
        value = row.get(self.key)
        return -1.0 if value is None else float(value)

    def text(self, row: Row) -> str:
        """Write the entry of a row; a dash where it has none."""
        parts = [row.get(key) for key in (self.key, self.to) if key is not None]
        return NOTHING if None in parts else " – ".join(map(self.write, parts))


COLUMNS = [
    Column("name", "name", is_number=False),
    Column("role", "role", ROLES.__getitem__, is_number=False),
    Column("test accuracy (%)", "accuracy", percent),
    Column("deviation", "deviation", percent),
    Column("95 % interval (%)", "low", percent, to="high"),
    Column("validation (%)", "validation_accuracy", percent),
    Column("balanced (%)", "balanced_accuracy", percent),
    Column("macro F1 (%)", "macro_f1", percent),
    Column("features", "features", is_number=False),
    Column("head", "head", is_number=False),
    Column("parameters", "parameters", thousands),
    Column("seconds", "seconds", "{:.1f}".format),
]


SHORT = ("name", "accuracy", "deviation", "low", "validation_accuracy")  # keys of the columns a terminal has room for


def best(rows: Sequence[Row], role: str) -> Row | None:
    """Choose a role's row by validation accuracy, the smaller one on a tie; never by test accuracy.

    >>> best([{"role": "tdsm", "validation_accuracy": 0.5, "parameters": 9, "name": "avg"}], "tdsm")["name"]
    'avg'
    """
    candidates = [row for row in rows if row["role"] == role and row.get("validation_accuracy") is not None]
    return max(candidates, key=lambda row: (row["validation_accuracy"], -row["parameters"]), default=None)


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Return the best row of each role that has one."""
    return [row for role in ROLES if (row := best(rows, role)) is not None]


def verdict(rows: Sequence[Row], is_right: Mapping[str, Bool[Tensor, "seeds samples"]]) -> str:
    """Say in words how the best TDSM row stands against the best baseline.

    Both are chosen on the validation split and compared image by image on the test split: a difference is shown where
    its 95 % interval leaves out 0.

    >>> row = {"name": "avg", "role": "tdsm", "accuracy": 0.5, "low": 0.48, "high": 0.52, "n_test": 2000,
    ...        "parameters": 9, "validation_accuracy": 0.5}
    >>> verdict([row], {}).split(". ")[-1]
    'No baseline was evaluated: the TDSM is compared with nothing.'

    Args:
        rows: Of the table.
        is_right: Under the names of the `chosen` rows, whether each of their seeds is right on each test image.
    """
    if not rows:
        return "No classifier was evaluated."
    pair = [is_right[row["name"]] for row in chosen(rows)] if len(chosen(rows)) == len(ROLES) else []
    outcome = [_compare(*pair)] if pair else []
    return " ".join([*outcome, _quote(rows, "tdsm", "TDSM head"), _quote(rows, "baseline", "baseline")])


def remarks(rows: Sequence[Row]) -> list[str]:
    """Say what a reader of the table must know: how its intervals are made, and which heads say one class only.

    >>> remarks([{"name": "avg", "n_test": 60, "interval": "Wilson", "note": "Predicts one class only."}])
    ['60 test images.', '95 % intervals: Wilson.', 'avg: Predicts one class only.']
    """
    said = [f"{count_of(number, 'test image')}." for number in dict.fromkeys(row["n_test"] for row in rows)]
    said += [f"95 % intervals: {', '.join(methods)}."] if (methods := _methods(rows)) else []
    if _is_unequal(rows):
        said += ["Balanced: mean over classes of the share that is right. Macro F1: mean over classes of F1."]
    said += [f"{row['name']}: {row['note']}" for row in rows if "note" in row and row.get("head") != "majority"]
    return said + _reads(rows)


def _reads(rows: Sequence[Row]) -> list[str]:
    """Say of which rows the test split was read more than once, since they were fitted anew after it was."""
    often = [f"{row['name']} {row['test_reads']} times" for row in rows if row.get("test_reads", 1) > 1]
    return [f"The test split was read more than once for: {', '.join(often)}."] if often else []


def table_markdown(rows: Sequence[Row], table: Sequence[Row] | None = None, keys: Sequence[str] = ()) -> str:
    """Write rows as a Markdown table, in their order, the best of each role marked.

    >>> print(table_markdown([], keys=SHORT))
    | name | test accuracy (%) | 95 % interval (%) | validation (%) |
    | :-- | --: | --: | --: |
    <BLANKLINE>

    Args:
        rows: To be shown.
        table: All rows there are, of which the best are sought; these if not given.
        keys: Of the columns shown; all that tell something of the table if there are none.
    """
    table = rows if table is None else table
    shown = [column for column in columns(table) if not keys or column.key in keys]
    lines = [[column.text(row) for column in shown] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        line[0] += " **(best)**" if is_best(table, row) else ""
    words = [column.heading for column in shown if not column.is_number]
    return markdown_table([column.heading for column in shown], lines, words) + "\n"


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns that tell something of these rows.

    Deviations stand where a row has several seeds, balanced accuracies where classes of unequal size make them differ.

    >>> [column.heading for column in columns([{"deviation": 0.01}])][3]
    'deviation'
    """
    hidden = set() if any("deviation" in row for row in rows) else {"deviation"}
    hidden |= set() if _is_unequal(rows) else {"balanced_accuracy", "macro_f1"}
    return [column for column in COLUMNS if column.key not in hidden]


def by_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by test accuracy, highest first."""
    return sorted(rows, key=lambda row: -row["accuracy"])


def by_validation(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by validation accuracy, highest first, the smaller one on a tie; what has none comes last."""
    return sorted(rows, key=lambda row: (-(row.get("validation_accuracy") or -1.0), row["parameters"]))


def is_best(rows: Sequence[Row], row: Row) -> bool:
    """Tell whether `row` itself is the chosen one of its role."""
    return row is best(rows, row["role"])


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["interval"] for row in rows if "interval" in row))


def _is_unequal(rows: Sequence[Row]) -> bool:
    return any(abs(row["balanced_accuracy"] - row["accuracy"]) >= UNEQUAL for row in rows if "balanced_accuracy" in row)


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
        f"(95 % interval {percent(row['low'])} to {percent(row['high'])} %, {count_of(row['n_test'], 'image')}{seeds})."
    )


def _compare(tdsm: Bool[Tensor, "seeds samples"], baseline: Bool[Tensor, "other_seeds samples"]) -> str:
    found = paired_difference(tdsm, baseline)
    p = mcnemar(tdsm[0], baseline[0]) if len(tdsm) == len(baseline) == 1 else None
    side = f"{100 * abs(found.value):.1f} percentage points {'above' if found.value > 0 else 'below'} the baseline"
    if not found.has_zero:
        return f"The TDSM stands {side} ({difference_words(found, p)})."
    stands = f"the TDSM stands {side}" if found.value else "TDSM and baseline have the same test accuracy"
    return f"No difference shown: {stands} ({difference_words(found, p)})."
