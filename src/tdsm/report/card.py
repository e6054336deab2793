"""The model card of a run's field: what it is, what it was trained on, and how it scored, from the page's own data."""

from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.base.text import markdown_table
from tdsm.models.card import CARD_FILE, CARD_FOLDER, card_origin, write_up
from tdsm.models.load import FIELD_FOLDER
from tdsm.pipeline.rows import is_right
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import COLUMNS, by_validation, chosen, remarks, verdict

KEYS = ("name", "role", "validation_accuracy", "accuracy", "low", "features", "head")


def write_card(run: Run, table: list[dict], quality: dict[str, Any]) -> Path:
    """Write the card that `save_pretrained` of the run's field takes; return its path."""

    def fill(folder: Path) -> None:
        io.write_text(folder / CARD_FILE, card(run, table, quality))

    io.write_folder(run.path / CARD_FOLDER, fill, card_origin(run.path / FIELD_FOLDER))
    return run.path / CARD_FOLDER / CARD_FILE


def card(run: Run, table: list[dict], quality: dict[str, Any]) -> str:
    """Return the text of the card, below the part every field has."""
    data, shown = run.data, [column for column in COLUMNS if column.key in KEYS]
    right = {row["name"]: is_right(run, row["name"]) for row in chosen(table)}
    lines = [[column.text(row) for column in shown] for row in by_validation(table)]
    words = [column.heading for column in shown if not column.is_number]
    sizes = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test images"
    height, width = data.train.size
    parts = [
        "## Data",
        f"{data.name}: {sizes} of {data.train.channels} × {height} × {width}, {len(data.train.classes)} classes.",
        "## Reconstruction",
        f"{quality['psnr']:.2f} dB on {quality['n']} test images. {quality['sanity']}",
        "## Classification from its maps",
        verdict(table, right),
        markdown_table([column.heading for column in shown], lines, words),
        *("\n".join(f"- {sentence}" for sentence in said) for said in [[*remarks(table), *run.notes()]]),
        "## Training",
        f"{run.config.train.steps} steps of {run.config.train.batch_size} images, seed {run.config.seed}; all settings "
        "are in the run's config.json.",
    ]
    return write_up("\n\n".join(parts))
