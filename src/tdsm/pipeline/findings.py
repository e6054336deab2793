"""What was found out about a run beside its table of classifiers: kept as tables, to be read and shown again.

NAME.md                    what people read
findings/NAME/facts.json   the tables and the numbers behind them, made from the run's field and data
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.base.text import Table
from tdsm.pipeline import link
from tdsm.pipeline.data import fingerprints
from tdsm.pipeline.run import Run

FOLDER, FACTS = "findings", "facts.json"
NAMES = ("analysis", "regimes", "study-worth", "study-tokens", "study-objectives", "study-regions")


def write_findings(run: Run, name: str, tables: Sequence[Table], facts: dict[str, Any]) -> tuple[Path, str]:
    """Keep tables and the facts behind them; return the path and the text of NAME.md."""

    def fill(folder: Path) -> None:
        io.write_json(folder / FACTS, facts | {"tables": [asdict(table) for table in tables]})

    text = "\n\n".join(table.markdown() for table in tables) + "\n"
    io.write_folder(run.path / FOLDER / name, fill, _origin(run))
    io.write_text(run.path / f"{name}.md", text)
    return run.path / f"{name}.md", text


def read_findings(run: Run) -> dict[str, dict[str, Any]]:
    """Return, under the names of all that was found, the facts as they were written; `tables` are tables again.

    What was found of another field or other data is left out, which is said in one line.
    """
    found = {}
    for name in NAMES:
        folder = run.path / FOLDER / name
        if not folder.is_dir():
            continue
        if (reason := link.fault(folder, _origin(run), holds=[FACTS])) is not None:
            run.say(f"{name}: left out, {reason}.")
            continue
        facts = io.read_object(folder / FACTS)
        found[name] = facts | {"tables": [Table(**table) for table in facts["tables"]]}
    return found


def _origin(run: Run) -> dict[str, Any]:
    return {"field": run.field_hash, "data": fingerprints(run.data)}
