"""What the study of tokens found: accuracy against the number of tokens, which ones survive, and a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from tdsm.base import io
from tdsm.base.statistics import accuracy_interval, paired_difference
from tdsm.base.text import Table, count_of
from tdsm.figures.charts import token_counts
from tdsm.figures.style import png
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.study.answers import NUMBERS, average_seeds, kept, number_cells
from tdsm.study.tokens import MEANINGS

Summary = Mapping[str, Any]
NAME, REFERENCE = "study-tokens", "random"
OTHERS = {"random": "random choice", "stride": "even spacing"}


def write_token_study(run: Run, study: dict) -> tuple[Path, str]:
    """Write study-tokens.md with its picture and what is behind it; return its path and its text."""
    summaries = summarize(study["rows"])
    facts = {key: value for key, value in study.items() if key != "rows"}
    rows = [kept(s) for s in summaries]
    io.write_bytes(run.path / f"{NAME}.png", png(token_counts(rows[:-1], rows[-1])))
    return write_findings(run, NAME, token_study_tables(study, summaries), facts | {"rows": rows})


def summarize(rows: Sequence[dict]) -> list[Summary]:
    """Reduce the rows of several seeds to one, with the paired difference to random choice of as many tokens.

    The row of all tokens comes last.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["count"]), []).append(row)
    found = {key: _summary(rows) for key, rows in groups.items()}
    return [
        summary
        if method in ("all", REFERENCE)
        else summary | {"difference": paired_difference(summary["is_right"], found[REFERENCE, count]["is_right"])}
        for (method, count), summary in found.items()
    ]


def overlap(chosen: Sequence[Iterable[int]]) -> float:
    """Return the mean Jaccard index |A ∩ B| / |A ∪ B| of all pairs of choices, from 0 to 1.

    >>> overlap([[0, 1, 2], [1, 2, 3]])
    0.5
    """
    return fmean(len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in combinations(chosen, 2))


def token_verdict(summaries: Sequence[Summary]) -> str:
    """Say in words whether learned gates beat random choice and even spacing of as many tokens."""
    return " ".join(_against(summaries, other, name) for other, name in OTHERS.items())


def token_study_tables(study: dict, summaries: Sequence[Summary]) -> list[Table]:
    """Return the table of accuracies with the verdict, and that of the tokens that survive."""
    settings = study["settings"]
    notes = [
        f"Accuracy in per cent on {count_of(study['test_images'], 'test image')}: mean and standard deviation over "
        f"{count_of(settings['seeds'], 'seed')}.",
        f"The same {settings['head']['kind']} head from scratch on the maps of the tokens kept; learning rate and "
        f"epoch are chosen on validation, {settings['epochs']} epochs.",
        "Difference: to random choice of as many tokens, in points, with a 95 % interval, "
        f"{summaries[0]['difference'].method}.",
        "It takes the chosen tokens as given; what another draw of random tokens would change, the deviation shows.",
    ]
    lines = [[str(s["count"]), s["method"], *number_cells(s), MEANINGS[s["method"]]] for s in summaries]
    headings = ["tokens", "choice", *NUMBERS, "what it is"]
    words = ["choice", "what it is"]
    main = Table("Which tokens are worth keeping?", headings, lines, words, [token_verdict(summaries)], notes)
    return [main, _survivors(study["num_tokens"], summaries)]


def _survivors(total: int, summaries: Sequence[Summary]) -> Table:
    lines = [_survival(s) for s in summaries if s["method"] in ("learned", REFERENCE)]
    note = "Overlap: mean Jaccard index of two seeds' tokens, 1 for the same ones; that of random choice is chance's."
    headings = ["tokens", "choice", "in every seed", "overlap between seeds"]
    return Table(f"Which of the {total} tokens survive", headings, lines, ["choice", "in every seed"], notes=[note])


def _against(summaries: Sequence[Summary], other: str, name: str) -> str:
    """Compare learned with another choice at every count."""
    found = {(s["method"], s["count"]): s["is_right"] for s in summaries}
    ends = {
        count: paired_difference(found["learned", count], found[other, count])
        for method, count in found
        if method == other
    }
    better = [count for count, difference in ends.items() if difference.low > 0]
    worse = [count for count, difference in ends.items() if difference.high < 0]
    open_ = [count for count in ends if count not in better + worse]
    parts = [f"beat {name} at {_list(better)}" if better else f"do not beat {name} at any number of tokens"]
    parts += [f"are worse at {_list(worse)}"] if worse else []
    parts += [f"no difference shown at {_list(open_)}"] if open_ else []
    return f"Learned gates {'; '.join(parts)}."


def _list(counts: Sequence[int]) -> str:
    return f"{', '.join(map(str, counts))} {'token' if list(counts) == [1] else 'tokens'}"


def _summary(rows: Sequence[dict]) -> dict[str, Any]:
    chosen = [row["tokens"] for row in rows]
    summary = average_seeds(rows, ("method", "count", "parameters"))
    bound = accuracy_interval(summary["is_right"])
    return summary | {
        "ends": (bound.low, bound.high),
        "tokens": chosen,
        "in_every_seed": sorted(set.intersection(*map(set, chosen))),
        "overlap": overlap(chosen) if len(chosen) > 1 else None,
    }


def _survival(s: Summary) -> list[str]:
    every = ", ".join(map(str, s["in_every_seed"])) or "none"
    return [str(s["count"]), s["method"], every, "–" if s["overlap"] is None else f"{s['overlap']:.2f}"]
