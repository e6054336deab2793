"""Compare runs on one page: their tables side by side, with paired intervals where they share test images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdsm.base.settings import differences
from tdsm.base.statistics import paired_difference
from tdsm.base.text import NOTHING, Table, percent, points, thousands
from tdsm.models.weights import count_parameters
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import is_right, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import by_validation
from tdsm.report.blocks import Page, Said, Section
from tdsm.report.page import write_report


def write_comparison(runs: Sequence[Run]) -> Path:
    """Write the page that compares runs with the first of them, into its folder; return its path."""
    return write_report(runs[0].path, comparison(runs), name=f"{'-'.join(_names(runs))}.html")


def comparison(runs: Sequence[Run]) -> Page:
    """Return everything the page shows."""
    names, tables = _names(runs), [scored_rows(run) for run in runs]
    shared = [_shares_images(runs[0], run) for run in runs]
    first = runs[0].path
    said = [
        f"{name}: {run.path}; its test images are {'those' if same else 'not those'} of {names[0]}"
        f"{', so answers are compared in pairs' if same else ', so no difference is stated'}."
        for name, run, same in list(zip(names, runs, shared, strict=True))[1:]
    ]
    sections = [
        Section("classes", "What they classify", [_accuracies(runs, names, tables, shared)]),
        Section("fields", "Their fields", [_fields(runs, names)]),
        Section("settings", "Settings that differ", [_settings(runs[0], run, name) for run, name in _others(runs)]),
    ]
    return Page(" against ".join(names), [f"compared with {first}"], [Said(said)], sections)


def _others(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return list(zip(runs, _names(runs), strict=True))[1:]


def _names(runs: Sequence[Run]) -> list[str]:
    """Name runs by their folders, numbered where names repeat."""
    stems = [run.path.resolve().name for run in runs]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, 1)]


def _shares_images(one: Run, other: Run) -> bool:
    return one.data.test.fingerprint() == other.data.test.fingerprint()


def _accuracies(runs: Sequence[Run], names: Sequence[str], tables: list[list[dict]], shared: list[bool]) -> Table:
    found = [{row["name"]: row for row in table} for table in tables]
    rows = [row["name"] for row in by_validation(tables[0])]
    rows += [name for table in found[1:] for name in table if name not in rows]
    headings = ["name", f"{names[0]} (%)"]
    for name in names[1:]:
        headings += [f"{name} (%)", f"{name} − {names[0]}", "95 % interval, points"]
    lines = [
        [
            row,
            _accuracy(found[0].get(row)),
            *(
                cell
                for k in range(1, len(runs))
                for cell in _beside(runs[0], runs[k], row, found[0], found[k], shared[k])
            ),
        ]
        for row in dict.fromkeys(rows)
    ]
    notes = ["Test accuracies; differences in percentage points, with 95 % intervals paired over images."]
    return Table("Row by row", headings, lines, ["name"], notes=notes)


def _beside(one: Run, other: Run, row: str, found: dict, beside: dict, is_shared: bool) -> list[str]:
    accuracy = _accuracy(beside.get(row))
    if not is_shared or row not in found or row not in beside:
        return [accuracy, NOTHING, NOTHING]
    difference = paired_difference(is_right(other, row), is_right(one, row))
    return [accuracy, points(difference.value), f"{points(difference.low)} to {points(difference.high)}"]


def _accuracy(row: dict | None) -> str:
    return NOTHING if row is None else percent(row["accuracy"])


def _fields(runs: Sequence[Run], names: Sequence[str]) -> Table:
    lines = [
        [
            name,
            thousands(count_parameters(run.field)),
            f"{run.field.config.num_tokens} × {run.field.config.widths[-1]}",
            f"{reconstruction_of(run)['psnr']:.2f}",
            str(len(run.data.train)),
            str(len(run.data.test)),
        ]
        for run, name in zip(runs, names, strict=True)
    ]
    headings = ["run", "parameters", "tokens", "test PSNR (dB)", "training images", "test images"]
    return Table("Fields", headings, lines, ["run"])


def _settings(one: Run, other: Run, name: str) -> Any:
    changed = differences(one.config.model_dump(mode="json"), other.config.model_dump(mode="json"))
    if not changed:
        return Said([f"{name} has the same settings."])
    lines = [[entry.partition(": ")[0], *entry.partition(": ")[2].split(" -> ", 1)] for entry in changed]
    headings = ["setting", one.path.resolve().name, name]
    return Table(f"Settings of {name}", headings, lines, headings)
