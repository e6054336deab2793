"""One self-contained page: findings first, then the tables, the figures, and all it takes to run it again.

The page loads nothing. Its pictures are inside it, and its content security policy forbids everything but them and
the one style and the one script whose hashes it names. `page.html` is its template; every text is escaped there.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tdsm.base.errors import UsageError
from tdsm.base.io import write_bytes, write_text
from tdsm.base.text import NOTHING, Table, thousands
from tdsm.figures.style import png
from tdsm.pipeline.table import ROLES, by_accuracy, columns, is_best, remarks

PIXELS_PER_INCH = 100
SPELLINGS = {"tdsm": "TDSM", "psnr": "PSNR", "ssim": "SSIM", "pca": "PCA", "tsne": "t-SNE"}


@dataclass(frozen=True)
class ReportInputs:
    """What a page is made of.

    Args:
        title: Names the run.
        verdict: What the table of classifiers shows, in words; it opens the page.
        summary: Further findings, one plain sentence each.
        notes: Caveats, one plain sentence each.
        rows: Evaluated classifiers, as `tdsm.pipeline.table` describes them.
        tables: What else was found out: measures, regimes, studies.
        figures: Name -> (figure, caption). Names are letters, digits, "_" and "-"; they become file names.
        field: Facts about the field, such as parameters, tokens and test PSNR.
        config: The whole configuration.
        environment: Versions and machine.
        command: The command line that makes this page again.
    """

    title: str
    verdict: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    rows: list[dict[str, Any]]
    tables: tuple[Table, ...]
    figures: dict[str, tuple[Figure, str]]
    field: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    command: str


def render(inputs: ReportInputs) -> str:
    """Write the page as one HTML file that needs nothing beside it.

    >>> page = render(ReportInputs("A <run>", "It ran.", (), (), [], (), {}, {"tokens": 64}, {}, {}, "tdsm run"))
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
    parts = {
        "findings": True,
        "caveats": inputs.notes,
        "accuracy": inputs.rows,
        "field": inputs.field,
        "figures": inputs.figures,
        "studies": inputs.tables,
        "reproduce": True,
    }
    return _template().render(
        inputs=inputs,
        sections=[name for name, content in parts.items() if content],
        columns=columns(inputs.rows),
        rows=by_accuracy(inputs.rows),
        is_best=lambda row: is_best(inputs.rows, row),
        roles=ROLES,
        remarks=remarks(inputs.rows),
        figures=[_figure(name, *inputs.figures[name], picture) for name, picture in pictures.items()],
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_readable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"digest": _digest, "fact": _fact, "json": _json, "prose": _prose, "titled": _titled}
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (files("tdsm.report") / name).read_text(encoding="utf-8")


def _readable(value: object) -> object:
    """Replace what UTF-8 cannot hold by question marks."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode()


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _prose(sentence: str) -> str:
    """Keep per cent signs with their numbers."""
    return sentence.replace(" %", "\u00a0%")


def _titled(name: str) -> str:
    """Turn a key such as `tdsm_slices` into words."""
    words = " ".join(SPELLINGS.get(word, word) for word in re.split(r"[_-]", name.replace("t-sne", "tsne")))
    return words[:1].upper() + words[1:]


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return thousands(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(part) for part in value)
    return NOTHING if value is None else str(value)


def _figure(name: str, figure: Figure, caption: str, picture: bytes) -> dict[str, Any]:
    width, height = (round(PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    source = base64.b64encode(picture).decode()
    size = {"width": width, "height": height}
    return {"name": name, "title": _titled(name), "caption": caption, "picture": source} | size


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
