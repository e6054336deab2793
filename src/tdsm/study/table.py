"""What the study of worth found: the table, its paired intervals, and a verdict in words."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdsm.base.statistics import Interval, paired_difference
from tdsm.base.text import Table, count_of, difference_words, percent, points
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.study.answers import NUMBERS, average_seeds, kept, number_cells
from tdsm.study.config import READINGS
from tdsm.study.features import ASKED

Summary = Mapping[str, Any]
NAME = "study-worth"
DECODED = {name for name, asked in ASKED.items() if asked.is_trained and asked.kind.is_token_map}
WITHOUT = {name for name, asked in ASKED.items() if not asked.kind.is_decoded}  # any decoding
GROUP = ("field", "tokens", "train", "head")  # rows that are compared with one another


def write_study(run: Run, study: dict) -> tuple[Path, str]:
    """Write study-worth.md and what is behind it; return its path and its text."""
    summaries = summarize(study)
    facts = {key: value for key, value in study.items() if key != "rows"}
    return write_findings(run, NAME, study_tables(study, summaries), facts | {"rows": [kept(s) for s in summaries]})


def summarize(study: dict) -> list[Summary]:
    """Reduce the rows of several seeds to one: mean, deviation, paired difference to the reference.

    The reference is the best on validation without any decoding among the rows of the same field, tokens, training
    images and head.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in study["rows"]:
        groups.setdefault((*(row[name] for name in GROUP), row["feature"]), []).append(row)
    summaries = [average_seeds(rows, (*GROUP, "feature", "parameters")) for rows in groups.values()]
    return [_compared(summary, reference_of(_alike(summary, summaries))) for summary in summaries]


def reference_of(summaries: Sequence[Summary]) -> Summary:
    """Choose, on validation, the best row without any decoding, the random expansion of values included."""
    return _best(summaries, WITHOUT)


def study_verdict(summaries: Sequence[Summary]) -> list[str]:
    """Say in words whether decoding paid: under the best head of each side, and head by head.

    Both sides are chosen on validation.
    """
    main = _main(summaries)
    best, reference = _best(main, DECODED), reference_of(main)
    difference = _difference(best, reference)
    first = (
        f"Best decoded maps by validation: {best['feature']} ({best['head']}), test {percent(best['accuracy'])} %. "
        f"Best without decoding: {reference['feature']} ({reference['head']}), test "
        f"{percent(reference['accuracy'])} %. Paired difference {points(difference.value)} points "
        f"({difference_words(difference)}): {_judged(difference)}."
    )
    return [first, *(_under_one_head(head, main) for head in dict.fromkeys(s["head"] for s in main))]


def study_tables(study: dict, summaries: Sequence[Summary]) -> list[Table]:
    """Return the main table with the verdict, and those of fewer training images, tokens and steps."""
    psnr, main = study["psnr"], _main(summaries)
    tokens, train = (max(s[name] for s in summaries) for name in ("tokens", "train"))
    of_run = [s for s in summaries if s["field"] == "trained"]
    fewer: list[tuple[str, str, list[Summary], Callable[[Summary], str]]] = [
        (
            "From fewer training images",
            "images",
            [s for s in of_run if s["tokens"] == tokens],
            lambda s: str(s["train"]),
        ),
        (
            "From the first n tokens alone",
            "tokens",
            [s for s in of_run if s["train"] == train],
            lambda s: str(s["tokens"]),
        ),
        (
            "From fields trained for fewer steps, by their PSNR on validation images",
            "dB",
            [s for s in summaries if (s["tokens"], s["train"]) == (tokens, train)],
            lambda s: f"{psnr[s['field']]:.2f}",
        ),
    ]
    return [_main_table(study, main), *(_curve(*curve, main) for curve in fewer), _mirror_table(study)]


def _curve(
    title: str, heading: str, summaries: Sequence[Summary], cell: Callable[[Summary], str], main: Sequence[Summary]
) -> Table:
    """Tabulate what some rows become where there is less; beside them the rows of the main table they end in."""
    asked = {(s["feature"], s["head"]) for s in summaries if not any(s is row for row in main)}
    rows = [s for s in summaries if (s["feature"], s["head"]) in asked]
    names = list(ASKED)
    rows = sorted(rows, key=lambda s: (names.index(s["feature"]), float(cell(s))))
    lines = [[s["feature"], s["head"], cell(s), *number_cells(s)] for s in rows]
    return Table(title, ["feature", "head", heading, *NUMBERS], lines, ["feature", "head"])


def _mirror_table(study: dict) -> Table:
    notes = [
        f"Over {count_of(study['mirrored_images'], 'validation image')}, M the maps, F mirroring left to right.",
        "To another: the same distance as a share of that to the mirrored maps of another image; 1 is no nearer.",
    ]
    lines = [[name, f"{found['error']:.3f}", f"{found['beside']:.3f}"] for name, found in study["mirrored"].items()]
    headings = ["feature", "‖M(Fx) − F M(x)‖ / ‖M(Fx)‖", "to another"]
    return Table("Are mirrored maps the maps of the mirrored image?", headings, lines, ["feature"], notes=notes)


def _main_table(study: dict, main: Sequence[Summary]) -> Table:
    settings = study["settings"]
    notes = [
        f"Accuracy in per cent on {count_of(study['test_images'], 'test image')}: mean and standard deviation over "
        f"{count_of(settings['seeds'], 'seed')} of the head.",
        *(f"{name}: {READINGS[name].meaning.format_map(settings)}." for name in settings["readings"]),
        f"Learning rate and epoch are chosen on validation; heads train for at most {settings['epochs']} epochs, until "
        "validation stops improving.",
        "Difference: to the best row without decoding under the same head, in points, with a 95 % interval, "
        f"{_difference(_best(main, DECODED), reference_of(main)).method}.",
    ]
    heads = list(dict.fromkeys(s["head"] for s in main))
    lines = [
        [s["feature"], s["head"], *number_cells(s), ASKED[s["feature"]].meaning]
        for s in sorted(main, key=lambda s: (heads.index(s["head"]), -s["accuracy"]))
    ]
    words = ["feature", "head", "what it is"]
    headings = [*words[:2], *NUMBERS, *words[2:]]
    return Table("Does decoding the tokens pay?", headings, lines, words, study_verdict(main), notes)


def _under_one_head(head: str, main: Sequence[Summary]) -> str:
    alike = [s for s in main if s["head"] == head]
    best, reference = _best(alike, DECODED), reference_of(alike)
    difference = _difference(best, reference)
    return (
        f"Under {head}: {best['feature']} against {reference['feature']}, {points(difference.value)} points "
        f"({difference_words(difference)}): {_judged(difference)}."
    )


def _judged(difference: Interval) -> str:
    if difference.has_zero:
        return "no difference shown"
    return "decoding pays" if difference.low > 0 else "decoding does not pay"


def _alike(one: Summary, summaries: Sequence[Summary]) -> list[Summary]:
    return [s for s in summaries if all(s[name] == one[name] for name in GROUP)]


def _compared(summary: Summary, reference: Summary) -> Summary:
    return summary if summary is reference else {**summary, "difference": _difference(summary, reference)}


def _difference(one: Summary, other: Summary) -> Interval:
    return paired_difference(one["is_right"], other["is_right"])


def _best(summaries: Sequence[Summary], features: Collection[str]) -> Summary:
    return max((s for s in summaries if s["feature"] in features), key=lambda s: s["validation"])


def _main(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the rows of the run's own field, all its tokens and all training images."""
    tokens, train = (max(s[name] for s in summaries) for name in ("tokens", "train"))
    return [s for s in summaries if (s["field"], s["tokens"], s["train"]) == ("trained", tokens, train)]
