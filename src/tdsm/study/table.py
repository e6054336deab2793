"""What the study of worth found: the table, its paired intervals, and a verdict in words."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.study.answers import average_seeds, markdown_table, paired_interval
from tdsm.study.features import ASKED

Summary = Mapping[str, Any]
MEANINGS = {name: asked.meaning for name, asked in ASKED.items()}
DECODED = tuple(name for name, asked in ASKED.items() if asked.is_trained and asked.kind.is_token_map)
WITHOUT = tuple(name for name in ASKED if name not in DECODED)  # token decoding
CURVES = ("solo", "tokens")  # what is also asked of fewer tokens and fewer steps
NUMBERS = ["test accuracy", "deviation", "difference", "95 % interval", "validation", "parameters"]


def write_study(run: Path, study: dict) -> tuple[Path, str]:
    """Write study-worth.md and study-worth.json into a run folder; return the former's path and its text."""
    summaries = summarize(study)
    text = study_markdown(study, summaries)
    kept = [{key: value for key, value in summary.items() if key != "is_right"} for summary in summaries]
    facts = {key: value for key, value in study.items() if key != "rows"}
    io.write_json(run / "study-worth.json", facts | {"rows": kept})
    io.write_text(run / "study-worth.md", text)
    return run / "study-worth.md", text


def summarize(study: dict) -> list[Summary]:
    """Reduce the rows of several seeds to one: mean, deviation, paired difference to the reference."""
    groups: dict[tuple, list[dict]] = {}
    for row in study["rows"]:
        groups.setdefault((row["field"], row["feature"], row["tokens"], row["head"]), []).append(row)
    names = ("field", "feature", "tokens", "head", "parameters")
    summaries = [average_seeds(rows, names) for rows in groups.values()]
    reference = reference_of(summaries)["is_right"]
    ends = [paired_interval(summary["is_right"], reference) for summary in summaries]
    return [
        {**summary, "difference": middle, "low": low, "high": high}
        for summary, (middle, low, high) in zip(summaries, ends, strict=True)
    ]


def reference_of(summaries: Sequence[Summary]) -> Summary:
    """Choose, on validation, the best row without token decoding, the random expansion of values included."""
    return max(_main(summaries, WITHOUT), key=lambda s: s["validation"])


def study_verdict(summaries: Sequence[Summary]) -> str:
    """Say in words whether decoding paid; both sides are chosen on validation."""
    best, reference = max(_main(summaries, DECODED), key=lambda s: s["validation"]), reference_of(summaries)
    low, high = 100 * best["low"], 100 * best["high"]
    shown = "no difference shown" if low <= 0 <= high else "decoding pays" if low > 0 else "decoding does not pay"
    return (
        f"Best decoded maps by validation: {best['feature']} ({best['head']}), test {100 * best['accuracy']:.1f} %. "
        f"Best without decoding: {reference['feature']} ({reference['head']}), test "
        f"{100 * reference['accuracy']:.1f} %. Paired difference {100 * best['difference']:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}): {shown}."
    )


def study_markdown(study: dict, summaries: Sequence[Summary]) -> str:
    """Write the verdict, the main table, and the tables of fewer tokens and of fewer steps."""
    settings, psnr = study["settings"], study["psnr"]
    all_tokens = max(s["tokens"] for s in summaries)
    main = sorted(_main(summaries, MEANINGS), key=lambda s: -s["accuracy"])
    curves = [s for s in summaries if s["head"] == "structured" and s["feature"] in CURVES]
    fewer = sorted(
        (s for s in curves if s["field"] == "trained"), key=lambda s: (CURVES.index(s["feature"]), s["tokens"])
    )
    steps = sorted(
        (s for s in curves if s["tokens"] == all_tokens), key=lambda s: (CURVES.index(s["feature"]), psnr[s["field"]])
    )
    lines = [
        study_verdict(summaries),
        "",
        *markdown_table(["feature", "head", *NUMBERS, "what it is"], [_main_cells(s) for s in main]),
        "",
        f"Accuracy in per cent on {study['test_images']} test images: mean and standard deviation over "
        f"{settings['seeds']} seeds of the head. Heads have at most {settings['parameters']} parameters; learning rate "
        f"and epoch are chosen on validation. mlp: one hidden layer, {settings['epochs']} epochs; every feature "
        "standardised, maps averaged over 4 × 4 regions first. structured: 3×3 convolutions on maps and images, a "
        f"transformer on tokens, {settings['structured_epochs']} epochs, channels standardised. Difference: to the "
        "best row without decoding, in points, with a 95 % interval over the same test images.",
        "",
        "From the first n tokens alone (structured):",
        "",
        *markdown_table(
            ["feature", "tokens", *NUMBERS], [[s["feature"], str(s["tokens"]), *_numbers(s)] for s in fewer]
        ),
        "",
        "From fields trained for fewer steps (structured), by their PSNR on validation images:",
        "",
        *markdown_table(
            ["feature", "dB", *NUMBERS], [[s["feature"], f"{psnr[s['field']]:.2f}", *_numbers(s)] for s in steps]
        ),
    ]
    return "\n".join(lines) + "\n"


def _main(summaries: Sequence[Summary], features: Collection[str]) -> list[Summary]:
    all_tokens = max(s["tokens"] for s in summaries)
    return [s for s in summaries if s["field"] == "trained" and s["tokens"] == all_tokens and s["feature"] in features]


def _main_cells(summary: Summary) -> list[str]:
    return [summary["feature"], summary["head"], *_numbers(summary), MEANINGS[summary["feature"]]]


def _numbers(s: Summary) -> list[str]:
    return [
        f"{100 * s['accuracy']:.1f}",
        f"{100 * s['deviation']:.1f}",
        f"{100 * s['difference']:+.1f}",
        f"{100 * s['low']:+.1f} to {100 * s['high']:+.1f}",
        f"{100 * s['validation']:.1f}",
        str(s["parameters"]),
    ]
