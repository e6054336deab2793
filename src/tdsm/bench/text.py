"""The report of a run in Markdown: a table for each problem, then how exact decoding grows."""

from itertools import groupby

PROBLEM = ("batch", "tokens", "side", "dtype")


def format_report(report: dict) -> str:
    """Return the report as Markdown."""
    load = report["load_average"]
    lines = [
        f"    {report['command']}",
        "",
        f"{report['date']}, {report['processor']}, {report['threads']} threads, "
        f"{', '.join(report['gpus']) or 'no GPU'}, torch {report['versions']['torch']}, Python {report['python']}; "
        f"load average {_load(load['before'])} before, {_load(load['after'])} after; "
        f"{report['bytes_written_per_second'] / 1e9:.1f} GB/s written. Kernel: {report['kernel']}.",
    ]
    tables = [list(rows) for _, rows in groupby(report["rows"], key=lambda row: [row[name] for name in PROBLEM])]
    for rows in tables:
        if len({row["case"] for row in rows}) > 2 or len(tables) == 1:
            lines += ["", _title(rows[0]), "", *_table(rows)]
    if report["config"]["growth"]:
        lines += ["", "### Growth of exact decoding", "", *_growth(report["rows"])]
    return "\n".join(lines)


def _title(row: dict) -> str:
    images = f"{row['batch']} image{'s' if row['batch'] > 1 else ''}"
    return f"### {images}, {row['tokens']} tokens, {row['side']} × {row['side']} points, {row['dtype']}"


def _table(rows: list[dict]) -> list[str]:
    head = "case | mode | median s | least – most | n | peak MB | images/s | × loop | × best loop"
    lines = _head(f"{head} | of gated floor | of write floor")
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['case']} | {row['mode']} | not measured: {row['skipped']} |")
            continue
        seconds = row["seconds"]
        cells = [row["case"], row["mode"], f"{seconds['median']:.4g}"]
        cells += [f"{seconds['least']:.4g} – {seconds['most']:.4g}", str(len(seconds["all"])), _mega(row["peak_bytes"])]
        ratios = ("faster_than_loop", "faster_than_best_loop", "times_gated_floor", "times_write_floor")
        cells += [f"{row['images_per_second']:.3g}", *(_ratio(row.get(name)) for name in ratios)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _growth(rows: list[dict]) -> list[str]:
    lines = _head(
        "batch | tokens | side | dtype | mode | median s | ns a (point, token) | peak MB | bytes a (point, token)"
    )
    for row in rows:
        if row["case"] == "exact" and "seconds" in row:
            cells = row["batch"] * row["tokens"] * row["side"] ** 2
            each = None if row["peak_bytes"] is None else f"{row['peak_bytes'] / cells:.3g}"
            shape = [str(row[name]) for name in PROBLEM]
            median = row["seconds"]["median"]
            values = [*shape, row["mode"], f"{median:.4g}", f"{median / cells * 1e9:.4g}", _mega(row["peak_bytes"])]
            lines.append(f"| {' | '.join(values)} | {each or '–'} |")
    return lines


def _head(titles: str) -> list[str]:
    return [f"| {titles} |", "|" + "---|" * (titles.count("|") + 1)]


def _load(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _mega(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
