"""One self-contained page: findings first, then the table, the figures, and all it takes to run it again.

The page loads nothing. Its pictures are inside it, and its content security policy forbids everything but them and
the one style and the one script whose hashes it names.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from tdsm.base.errors import UsageError
from tdsm.base.io import write_bytes, write_text
from tdsm.figures.pictures import Figure, png
from tdsm.pipeline.table import (
    NUMBERS,
    ROLES,
    Row,
    by_accuracy,
    cells,
    headings,
    is_best,
    table_markdown,
    thousands,
    verdict,
)

__all__ = ["ReportInputs", "render", "table_markdown", "verdict", "write_report"]

PIXELS_PER_INCH = 100
SPELLINGS = {"tdsm": "TDSM", "psnr": "PSNR", "ssim": "SSIM", "pca": "PCA", "tsne": "t-SNE"}
# What a column sorts by.
FACTS = ["accuracy", "deviation", "accuracy", "validation_accuracy", "n_test", "parameters", "seconds"]
KEYS = dict(zip(NUMBERS, FACTS, strict=True))


@dataclass(frozen=True)
class ReportInputs:
    """What a page is made of.

    Args:
        title: Names the run.
        summary: Findings, one plain sentence each; they open the page. The verdict on the rows stands above the
            table, or here if it is among them.
        notes: Caveats, one plain sentence each.
        rows: Evaluated classifiers, as `tdsm.pipeline.table` describes them.
        figures: Name -> (figure, caption). Names are letters, digits, "_" and "-"; they become file names.
        field: Facts about the field, such as parameters, tokens and test PSNR.
        config: The whole configuration.
        environment: Versions and machine.
        command: The command line that makes this page again.
        measures: Lines of a table of measures, headings first, and sentences that explain it; None for no table.
    """

    title: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    rows: list[dict[str, Any]]
    figures: dict[str, tuple[Figure, str]]
    field: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    command: str
    measures: tuple[Sequence[Sequence[str]], Sequence[str]] | None = None


def render(inputs: ReportInputs) -> str:
    """Write the page as one HTML file that needs nothing beside it.

    >>> page = render(ReportInputs("A <run>", ("It ran.",), (), [], {}, {"tokens": 64}, {}, {}, "tdsm run"))
    >>> "<h1>A &lt;run&gt;</h1>" in page
    True

    Raises:
        UsageError: If a figure's name cannot be a file name.
    """
    return _page(inputs, _pictures(inputs))


def write_report(folder: Path, inputs: ReportInputs) -> Path:
    """Write `report.html` and `figures/NAME.png` into `folder`; return the path of the page.

    Raises:
        UsageError: If a figure's name cannot be a file name.
    """
    pictures = _pictures(inputs)
    for name, picture in pictures.items():
        write_bytes(Path(folder) / "figures" / f"{name}.png", picture)
    path = Path(folder) / "report.html"
    write_text(path, _page(inputs, pictures))
    return path


def _pictures(inputs: ReportInputs) -> dict[str, bytes]:
    for name in inputs.figures:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UsageError(f"report: figure {name!r} cannot be a file name; use letters, digits, '_' and '-'.")
    return {name: png(figure) for name, (figure, _) in inputs.figures.items()}


def _page(inputs: ReportInputs, pictures: dict[str, bytes]) -> str:
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(inputs.title)}</title>
<style>{style}</style>
</head>
<body>
<div class="layout">
<header>
<p class="eyebrow">Token-decoded spatial maps: report</p>
<h1>{_text(inputs.title)}</h1>
</header>
{_navigation(inputs)}
<main>
{_findings(inputs)}
{_accuracy(inputs.rows, inputs.summary)}
{_field(inputs.field)}
{_measures(inputs.measures)}
{_figures(inputs, pictures)}
{_reproduction(inputs)}
</main>
<footer>Nothing on this page is loaded from elsewhere.</footer>
</div>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (files("tdsm.report") / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _text(value: object) -> str:
    """Escape for text and for quoted attributes; what UTF-8 cannot hold becomes a question mark."""
    return escape(str(value).encode("utf-8", "replace").decode())


def _prose(sentence: str) -> str:
    """Escape a sentence and keep per cent signs with their numbers."""
    return _text(sentence).replace(" %", "\u00a0%")


def _title(name: str) -> str:
    """Turn a key such as `tdsm_slices` into words."""
    words = " ".join(SPELLINGS.get(word, word) for word in re.split(r"[_-]", name.replace("t-sne", "tsne")))
    return words[:1].upper() + words[1:]


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{_prose(sentence)}</li>\n" for sentence in sentences)


def _navigation(inputs: ReportInputs) -> str:
    figures = "".join(f'<li><a href="#figure-{name}">{_text(_title(name))}</a></li>\n' for name in inputs.figures)
    sections = [
        ("findings", "Findings", True, ""),
        ("caveats", "Caveats", inputs.notes, ""),
        ("accuracy", "Accuracy", True, ""),
        ("field", "Field", inputs.field, ""),
        ("decompositions", "Decompositions", inputs.measures, ""),
        ("figures", "Figures", inputs.figures, f"\n<ul>\n{figures}</ul>\n"),
        ("reproduce", "Reproduce", True, ""),
    ]
    links = "".join(
        f'<li><a href="#{anchor}">{name}</a>{below}</li>\n' for anchor, name, present, below in sections if present
    )
    return f'<nav aria-label="Sections">\n<ul>\n{links}</ul>\n</nav>'


def _findings(inputs: ReportInputs) -> str:
    sentences = "".join(f"<p>{_prose(sentence)}</p>\n" for sentence in inputs.summary)
    caveats = f'<aside id="caveats">\n<h2>Caveats</h2>\n<ul>\n{_items(inputs.notes)}</ul>\n</aside>\n'
    return (
        f'<section id="findings" class="findings">\n<h2>Findings</h2>\n{sentences}'
        f"{caveats if inputs.notes else ''}</section>"
    )


def _accuracy(rows: Sequence[Row], said: Sequence[str]) -> str:
    outcome = "" if verdict(rows) in said else f'<p class="verdict">{_prose(verdict(rows))}</p>\n'
    heading = f'<section id="accuracy">\n<h2>Accuracy</h2>\n{outcome}'
    if not rows:
        return f"{heading}</section>"
    shown = headings(rows)
    heads = [f'<th scope="col" class="{_kind(heading)}">{heading}</th>' for heading in shown]
    heads.insert(_plot_column(shown), '<th aria-hidden="true"></th>')
    body = "".join(_row(row, shown, is_best(rows, row)) for row in by_accuracy(rows))
    return (
        f'{heading}<div class="scroll" tabindex="0" role="region" aria-label="Table of accuracies">\n'
        f'<table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
        '<p class="note">The best of each role is the one of highest validation accuracy, the smaller on a tie. '
        "Accuracies are shares of the test images, with 95\u00a0% Wilson intervals; the bars run from 0 to 100\u00a0%."
        "</p>\n</section>"
    )


def _plot_column(shown: Sequence[str]) -> int:
    return shown.index("95 % interval (%)") + 1


def _row(row: Row, shown: Sequence[str], chosen: bool) -> str:
    role, written = row["role"], cells(row)
    texts = {heading: _text(written[heading]) for heading in shown}
    if chosen:
        texts["name"] += f' <span class="mark {role}">best {ROLES[role]}</span>'
    texts["role"] = f'<span class="{role}">{texts["role"]}</span>'
    columns = [f'<td class="{_kind(heading)}"{_key(row, heading)}>{text}</td>' for heading, text in texts.items()]
    columns.insert(_plot_column(shown), f'<td class="plot {role}" aria-hidden="true">{_interval(row)}</td>')
    return f'<tr class="{"best" if chosen else "other"}">{"".join(columns)}</tr>\n'


def _interval(row: Row) -> str:
    accuracy, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
    return (
        '<svg viewBox="0 0 100 12" preserveAspectRatio="none">'
        '<rect class="track" x="0" y="5.5" width="100" height="1"/>'
        f'<rect class="bar" x="0" y="3" width="{accuracy:.2f}" height="6"/>'
        f'<rect class="interval" x="{low:.2f}" y="0" width="{max(high - low, 0.8):.2f}" height="12"/></svg>'
    )


def _kind(heading: str) -> str:
    return "number" if heading in NUMBERS else heading


def _key(row: Row, heading: str) -> str:
    """Say what a number is sorted by; a missing one comes last."""
    if heading not in KEYS:
        return ""
    value = row.get(KEYS[heading])
    return f' data-value="{-1 if value is None else float(value)}"'


def _field(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    entries = "".join(f"<div><dt>{_text(_title(k))}</dt><dd>{_text(_fact(v))}</dd></div>\n" for k, v in facts.items())
    return f'<section id="field">\n<h2>Field</h2>\n<dl>\n{entries}</dl>\n</section>'


def _measures(measures: tuple[Sequence[Sequence[str]], Sequence[str]] | None) -> str:
    if measures is None:
        return ""
    (header, *lines), sentences = measures
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in line)}</tr>\n" for line in lines)
    return (
        '<section id="decompositions">\n<h2>Decompositions</h2>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of measures">\n'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
        f"<ul>\n{_items(sentences)}</ul>\n</section>"
    )


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return thousands(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(part) for part in value)
    return "–" if value is None else str(value)


def _figures(inputs: ReportInputs, pictures: dict[str, bytes]) -> str:
    if not pictures:
        return ""
    drawn = "\n".join(
        _figure(number, name, *inputs.figures[name], picture)
        for number, (name, picture) in enumerate(pictures.items(), start=1)
    )
    return f'<section id="figures">\n<h2>Figures</h2>\n{drawn}\n</section>'


def _figure(number: int, name: str, figure: Figure, caption: str, picture: bytes) -> str:
    width, height = (round(PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    alternative = _text(f"{_title(name)}: {caption.partition('. ')[0].rstrip('.')}.")
    source = "data:image/png;base64," + base64.b64encode(picture).decode()
    return (
        f'<figure id="figure-{name}">\n<div class="plate{" wide" if width > 700 else ""}">'
        f'<img src="{source}" width="{width}" height="{height}" alt="{alternative}"></div>\n'
        f"<figcaption><b>Figure {number}. {_text(_title(name))}.</b> {_prose(caption)}</figcaption>\n</figure>"
    )


def _reproduction(inputs: ReportInputs) -> str:
    folded = "".join(
        f"<details>\n<summary>{name}</summary>\n<pre>{_text(_json(value))}</pre>\n</details>\n"
        for name, value in [("Configuration", inputs.config), ("Environment", inputs.environment)]
    )
    return (
        '<section id="reproduce">\n<h2>Reproduce</h2>\n'
        f'<pre class="command">{_text(inputs.command)}</pre>\n{folded}</section>'
    )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
