"""Collect what a run's page shows: its results, and pictures drawn from its test images."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdsm.base import io
from tdsm.base.progress import Progress
from tdsm.base.text import count_of, duration
from tdsm.figures import charts
from tdsm.models.load import FIELD_FOLDER
from tdsm.models.weights import count_parameters
from tdsm.pipeline.field import CURVES
from tdsm.pipeline.findings import NAMES, read_findings
from tdsm.pipeline.folder import read_commands
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import is_right, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import chosen, verdict
from tdsm.report import scored, shown
from tdsm.report.blocks import Beside, Chart, Code, Data, Facts, Fold, Page, Said, Section
from tdsm.report.card import write_card
from tdsm.report.page import write_report

VERBS = {"analysis": "analyse", "regimes": "finetune"}  # of findings that are not named after theirs


def write_page(run: Run) -> Path:
    """Write the page of a run, with its figures and its model card beside it; return the page's path."""
    table, quality = scored_rows(run), reconstruction_of(run)
    page = gather(run, table, quality)
    write_card(run, table, quality)
    return write_report(run.path, page)


@torch.no_grad()
def gather(run: Run, table: list[dict], quality: dict) -> Page:
    """Return everything the page of a run shows, its table and the quality of its reconstruction among it."""
    found = read_findings(run)
    config, reader = run.field.config, next((row["name"] for row in chosen(table)), None)
    seen = shown.Seen(run, shown.methods_shown(run, is_analysed="analysis" in found))
    right = {row["name"]: is_right(run, row["name"]) for row in chosen(table)}
    with Progress("report", total=10, unit="parts") as progress:

        def part(make: Callable[[], Any]) -> Any:
            made = make()
            progress.advance()
            return made

        top = [
            part(lambda: shown.flow(seen, reader)),
            Said([verdict(table, right)], "verdict"),
            Said([_quality_words(quality), scored.majority_words(run, table)]),
            *([Said(run.notes(), "caveats")] if run.notes() else []),
        ]
        pairs = [part(lambda: [shown.tokens_of(seen, image) for image in range(len(seen.pair))])]
        tokens = [shown.reading(seen), *pairs[0], shown.every_token(seen), part(lambda: shown.reconstructions(seen))]
        tokens += [part(lambda: shown.statistics(run)), Beside(part(lambda: shown.embeddings(run)))]
        sections = [
            Section("tokens", "What the tokens show", tokens),
            Section("classes", "What they classify", part(lambda: scored.classified(table))),
            Section("evidence", "Which tokens speak for a class", part(lambda: scored.evidence(run, table))),
            Section("mistakes", "Where it goes wrong", part(lambda: scored.mistaken(run, table))),
            Section("studies", "Regimes and studies", part(lambda: _studies(run, found))),
            Section("training", "Training", _training(run, quality)),
            Section("reproduce", "How this was made", _made(run)),
        ]
        prints = part(lambda: shown.prints(seen))
    return Page(f"{run.data.name}: {config.num_tokens} tokens × {config.widths[-1]}", _when(run), top, sections, prints)


def _quality_words(quality: dict) -> str:
    return (
        f"{quality['sanity']} By PSNR, where more is better: {quality['psnr']:.2f} dB in the mean of "
        f"{count_of(quality['n'], 'test image')}, standard deviation {quality['deviation']:.2f} dB."
    )


def _studies(run: Run, found: dict[str, dict[str, Any]]) -> list[Any]:
    """Show what was found out beside the table, and say what was not asked."""
    blocks: list[Any] = [table for facts in found.values() for table in facts["tables"]]
    if "study-tokens" in found:
        *rows, everything = found["study-tokens"]["rows"]
        blocks.append(Chart("token-counts", charts.token_counts(rows, everything), charts.token_counts.caption))
    if "study-regions" in found:
        facts = found["study-regions"]
        changes = {edit: np.array(values) for edit, values in facts["changes"].items()}
        figure = charts.handles(changes, list(facts["ways"]), facts["counts"])
        blocks.append(Chart("handles", figure, charts.handles.caption))
    missing = [VERBS.get(name, name.replace("-", " ")) for name in NAMES if name not in found]
    if missing:
        commands = "\n".join(f"tdsm {verb} {run.path}" for verb in missing)
        blocks.append(Fold("Not asked of this run yet", [Code(commands)]))
    return blocks


def _training(run: Run, quality: dict) -> list[Any]:
    history = io.read_json(run.path / FIELD_FOLDER / CURVES)
    config = run.field.config
    facts = {
        "parameters": count_parameters(run.field),
        "tokens": f"{config.num_tokens} × {config.widths[-1]}",
        "decoder width": config.query_dim,
        "test PSNR (dB)": round(quality["psnr"], 2),
        "training images": len(run.data.train),
        "validation images": len(run.data.validation),
        "test images": len(run.data.test),
    }
    return [Facts(facts), *([Chart("curves", charts.curves(history), charts.curves.caption)] if history else [])]


def _made(run: Run) -> list[Any]:
    environment = io.read_json(run.path / "environment.json") | {"reported_on": platform.platform()}
    commands = [entry["command"] for entry in read_commands(run.path)] or [environment["command"]]
    return [
        Code("\n".join(commands)),
        Fold("Configuration", [Data(run.config.model_dump(mode="json"))]),
        Fold("Environment", [Data(environment)]),
    ]


def _when(run: Run) -> list[str]:
    """Say when the run was begun and how long its commands took, this one so far included."""
    commands = read_commands(run.path)
    if not commands:
        return []
    began = datetime.fromisoformat(commands[0]["when"])
    seconds = sum(entry["seconds"] for entry in commands)
    if (since := commands[-1].get("since")) is not None:
        seconds += (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
    return [f"{began.day} {began:%B %Y}", f"{duration(seconds)} in all"]
