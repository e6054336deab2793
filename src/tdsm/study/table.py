"""What the study of worth found: the table, its paired intervals, and a verdict in words."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdsm.base.statistics import Interval, paired_difference
from tdsm.base.text import Table, count_of, difference_words, percent, points
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.study.answers import NUMBERS, average_seeds, kept, number_cells
from tdsm.study.features import ASKED

Summary = Mapping[str, Any]
NAME = "study-worth"
DECODED = {name for name, asked in ASKED.items() if asked.is_trained and asked.kind.is_token_map}
WITHOUT = {name for name, asked in ASKED.items() if not asked.kind.is_decoded}  # any decoding
CURVES = ("solo", "tokens")  # what is also asked of fewer tokens and fewer steps


def write_study(run: Run, study: dict) -> tuple[Path, str]:
    """Write study-worth.md and what is behind it; return its path and its text."""
    summaries = summarize(study)
    facts = {key: value for key, value in study.items() if key != "rows"}
    return write_findings(run, NAME, study_tables(study, summaries), facts | {"rows": [kept(s) for s in summaries]})


def summarize(study: dict) -> list[Summary]:
    """Reduce the rows of several seeds to one: mean, deviation, paired difference to the reference."""
    groups: dict[tuple, list[dict]] = {}
    for row in study["rows"]:
        groups.setdefault((row["field"], row["feature"], row["tokens"], row["head"]), []).append(row)
    names = ("field", "feature", "tokens", "head", "parameters")
    summaries = [average_seeds(rows, names) for rows in groups.values()]
    reference = reference_of(summaries)
    return [
        summary if summary is reference else summary | {"difference": _difference(summary, reference)}
        for summary in summaries
    ]


def reference_of(summaries: Sequence[Summary]) -> Summary:
    """Choose, on validation, the best row without any decoding, the random expansion of values included."""
    return _best(summaries, WITHOUT)


def study_verdict(summaries: Sequence[Summary]) -> str:
    """Say in words whether decoding paid; both sides are chosen on validation."""
    best, reference = _best(summaries, DECODED), reference_of(summaries)
    difference: Interval = best["difference"]
    shown = "decoding pays" if difference.low > 0 else "decoding does not pay"
    return (
        f"Best decoded maps by validation: {best['feature']} ({best['head']}), test {percent(best['accuracy'])} %. "
        f"Best without decoding: {reference['feature']} ({reference['head']}), test "
        f"{percent(reference['accuracy'])} %. Paired difference {points(difference.value)} points "
        f"({difference_words(difference)}): {'no difference shown' if difference.has_zero else shown}."
    )


def study_tables(study: dict, summaries: Sequence[Summary]) -> list[Table]:
    """Return the main table with the verdict, and the tables of fewer tokens and of fewer steps."""
    psnr, all_tokens = study["psnr"], max(s["tokens"] for s in summaries)
    curves = [s for s in summaries if s["head"] == "structured" and s["feature"] in CURVES]
    fewer = _by_feature([s for s in curves if s["field"] == "trained"], lambda s: s["tokens"])
    steps = _by_feature([s for s in curves if s["tokens"] == all_tokens], lambda s: psnr[s["field"]])
    few = Table(
        "From the first n tokens alone (structured)",
        ["feature", "tokens", *NUMBERS],
        [[s["feature"], str(s["tokens"]), *number_cells(s)] for s in fewer],
        ["feature"],
    )
    lines = [[s["feature"], f"{psnr[s['field']]:.2f}", *number_cells(s)] for s in steps]
    title = "From fields trained for fewer steps (structured), by their PSNR on validation images"
    short = replace(few, title=title, headings=["feature", "dB", *NUMBERS], lines=lines)
    return [_main_table(study, summaries), few, short]


def _main_table(study: dict, summaries: Sequence[Summary]) -> Table:
    settings = study["settings"]
    notes = [
        f"Accuracy in per cent on {count_of(study['test_images'], 'test image')}: mean and standard deviation over "
        f"{count_of(settings['seeds'], 'seed')} of the head.",
        f"Heads have at most {settings['parameters']} parameters; learning rate and epoch are chosen on validation.",
        f"mlp: one hidden layer, {settings['epochs']} epochs; every feature standardised, maps averaged over 4 × 4 "
        "regions first.",
        f"structured: 3×3 convolutions on maps and images, a transformer on tokens, {settings['structured_epochs']} "
        "epochs, channels standardised.",
        "Difference: to the best row without decoding, in points, with a 95 % interval, "
        f"{_best(summaries, DECODED)['difference'].method}.",
    ]
    lines = [
        [s["feature"], s["head"], *number_cells(s), ASKED[s["feature"]].meaning]
        for s in sorted(_main(summaries), key=lambda s: -s["accuracy"])
    ]
    words = ["feature", "head", "what it is"]
    headings = [*words[:2], *NUMBERS, *words[2:]]
    return Table("Does decoding the tokens pay?", headings, lines, words, [study_verdict(summaries)], notes)


def _difference(one: Summary, other: Summary) -> Interval:
    return paired_difference(one["is_right"], other["is_right"])


def _best(summaries: Sequence[Summary], features: Collection[str]) -> Summary:
    return max((s for s in _main(summaries) if s["feature"] in features), key=lambda s: s["validation"])


def _main(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the rows of the run's own field and all its tokens."""
    all_tokens = max(s["tokens"] for s in summaries)
    return [s for s in summaries if s["field"] == "trained" and s["tokens"] == all_tokens]


def _by_feature(summaries: Sequence[Summary], key: Any) -> list[Summary]:
    return sorted(summaries, key=lambda s: (CURVES.index(s["feature"]), key(s)))
