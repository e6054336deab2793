"""What the study of regions found: selectivity of every way of choosing tokens, and a verdict."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.statistics import Interval, paired_mean
from tdsm.base.text import NOTHING, Table, count_of, points
from tdsm.figures.charts import handles
from tdsm.figures.style import png
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.study.answers import difference_cells
from tdsm.study.config import RegionStudyConfig
from tdsm.study.regions import EDITS, WAYS, Effects

NAME, REFERENCE = "study-regions", "attention"
ASKED = {"additive": "attention", "additive less rest": "attention less rest", "leave_one_out": "attention"}
DONE = {"drop": "dropped", "replace": "replaced"}


def write_region_study(run: Run, effects: Effects, config: RegionStudyConfig) -> tuple[Path, str]:
    """Write study-regions.md with its picture and what is behind it; return its path and its text."""
    rows, columns = config.grid
    note = (
        f"{count_of(len(effects.changes['drop']), 'test image')}; regions: the {rows} × {columns} fields of a grid; "
        "change: root mean square difference of values, 200 points from black to white."
    )
    io.write_bytes(run.path / f"{NAME}.png", png(handles(*curves([effects]))))
    return write_findings(run, NAME, region_tables([effects], note), region_facts([effects]))


def region_tables(effects: Sequence[Effects], note: str) -> list[Table]:
    """Return a table for each edit: one line a way of choosing, the best mean selectivity first.

    Args:
        effects: One of each trained field, on the same subjects.
        note: What the subjects and their regions are, and how change is measured.
    """
    fields = f" and {count_of(len(effects), 'trained field')}" if len(effects) > 1 else ""
    notes = [
        note,
        "Selectivity: change inside the region less change outside it, in points, when the n tokens chosen for the "
        "region are taken; mean over regions, then over subjects.",
        f"Mean: over all n. Difference: of that mean to {REFERENCE}, 95 % interval, paired over subjects{fields}.",
    ]
    return [_table(effects, edit, notes) for edit in EDITS]


def region_facts(effects: Sequence[Effects]) -> dict[str, Any]:
    """Return ways, counts, the mean change inside and outside, and the differences, as JSON holds them."""
    first = effects[0]
    return {
        "ways": {name: WAYS[name].meaning for name in first.ways},
        "counts": list(first.counts),
        "subjects": len(first.changes["drop"]),
        "fields": len(effects),
        "changes": {DONE[edit]: _changes(effects, edit).tolist() for edit in EDITS},
        "differences": {
            DONE[edit]: {
                way: asdict(_difference(effects, edit, way, REFERENCE)) for way in first.ways if way != REFERENCE
            }
            for edit in EDITS
        },
        "asked": {
            DONE[edit]: {
                f"{one} less {other}": [asdict(_difference(effects, edit, one, other, n)) for n in first.counts]
                for one, other in ASKED.items()
                if {one, other} <= set(first.ways)
            }
            for edit in EDITS
        },
    }


def curves(effects: Sequence[Effects]) -> tuple[dict[str, Any], Sequence[str], Sequence[int]]:
    """Return what `handles` draws: mean changes inside and outside under each edit, the ways and the counts."""
    return {DONE[edit]: _changes(effects, edit).numpy() for edit in EDITS}, effects[0].ways, effects[0].counts


def verdict(effects: Sequence[Effects], edit: str) -> str:
    """Say in words whether contributions are a better handle on a region than attention."""
    ways = effects[0].ways
    found = [_judged(effects, edit, one, other) for one, other in ASKED.items() if {one, other} <= set(ways)]
    return f"Tokens {DONE[edit]}: {'; '.join(found)}."


def _judged(effects: Sequence[Effects], edit: str, one: str, other: str) -> str:
    difference = _difference(effects, edit, one, other)
    known = "no difference shown" if difference.has_zero else "better" if difference.value > 0 else "worse"
    amount, ends = difference_cells(difference)
    return f"{one} against {other}: {known} ({amount} points, {ends})"


def _changes(effects: Sequence[Effects], edit: str) -> Float[Tensor, "ways counts 2"]:
    return torch.stack([found.changes[edit] for found in effects]).double().mean((0, 1))


def _difference(effects: Sequence[Effects], edit: str, one: str, other: str, count: int | None = None) -> Interval:
    """Compare two ways of choosing at one number of tokens, or in the mean over all."""
    first = effects[0]
    numbers = range(len(first.counts)) if count is None else [first.counts.index(count)]
    selectivity = torch.stack([found.selectivity(edit)[..., list(numbers)].mean(-1) for found in effects])
    return paired_mean(*(selectivity[..., first.ways.index(name)] for name in (one, other)))


def _table(effects: Sequence[Effects], edit: str, notes: list[str]) -> Table:
    first, (inside, outside) = effects[0], _changes(effects, edit).unbind(-1)
    selectivity = inside - outside
    lines = []
    for number in selectivity.mean(-1).argsort(descending=True).tolist():
        way = first.ways[number]
        own = (NOTHING, NOTHING) if way == REFERENCE else difference_cells(_difference(effects, edit, way, REFERENCE))
        cells = [points(float(value)) for value in (*selectivity[number], selectivity[number].mean())]
        lines.append([way, *cells, *own, WAYS[way].meaning])
    headings = ["chosen by", *(f"n = {count}" for count in first.counts), "mean", "difference", "95 % interval"]
    words = ["chosen by", "what it is"]
    return Table(f"Tokens {DONE[edit]}", [*headings, "what it is"], lines, words, [verdict(effects, edit)], notes)
