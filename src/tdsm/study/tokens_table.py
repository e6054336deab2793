"""What the study of tokens found: accuracy against the number of tokens, which ones survive, and a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from tdsm.base import io
from tdsm.figures.pictures import png, token_counts
from tdsm.study.answers import average_seeds, markdown_table, mean_interval, paired_interval
from tdsm.study.tokens import MEANINGS

Summary = Mapping[str, Any]
NAME, REFERENCE = "study-tokens", "random"
OTHERS = {"random": "random choice", "stride": "even spacing"}
NUMBERS = ["test accuracy", "deviation", "difference to random", "95 % interval", "validation", "parameters"]


def write_token_study(run: Path, study: dict) -> tuple[Path, str]:
    """Write study-tokens.md, .json and .png into a run folder; return the first one's path and its text."""
    summaries = summarize(study["rows"])
    text = token_study_markdown(study, summaries)
    kept = [{key: value for key, value in summary.items() if key != "is_right"} for summary in summaries]
    facts = {key: value for key, value in study.items() if key != "rows"}
    *rows, everything = summaries
    io.write_bytes(run / f"{NAME}.png", png(token_counts(rows, everything)))
    io.write_json(run / f"{NAME}.json", facts | {"rows": kept})
    io.write_text(run / f"{NAME}.md", text)
    return run / f"{NAME}.md", text


def summarize(rows: Sequence[dict]) -> list[Summary]:
    """Reduce the rows of several seeds to one, with the paired difference to random choice of as many tokens."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["count"]), []).append(row)
    found = {key: _summary(rows) for key, rows in groups.items()}
    return [
        summary if method == "all" else summary | _difference(summary["is_right"], found[REFERENCE, count]["is_right"])
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


def token_study_markdown(study: dict, summaries: Sequence[Summary]) -> str:
    """Write the verdict, the table of accuracies and the table of the tokens that survive."""
    settings, total = study["settings"], study["num_tokens"]
    survivors = [s for s in summaries if s["method"] in ("learned", REFERENCE)]
    lines = [
        token_verdict(summaries),
        "",
        *markdown_table(
            ["tokens", "choice", *NUMBERS, "what it is"], [[*_cells(s), MEANINGS[s["method"]]] for s in summaries]
        ),
        "",
        f"Accuracy in per cent on {study['test_images']} test images: mean and standard deviation over "
        f"{settings['seeds']} seeds. The same {settings['head']['kind']} head from scratch on the maps of the tokens "
        f"kept; learning rate and epoch are chosen on validation, {settings['epochs']} epochs. Difference: to random "
        "choice of as many tokens, in points, with a 95 % interval over the same test images. It takes the chosen "
        "tokens as given; what another draw of random tokens would change, the deviation shows.",
        "",
        f"![Accuracy against the number of tokens]({NAME}.png)",
        "",
        f"Which of the {total} tokens survive:",
        "",
        *markdown_table(
            ["tokens", "choice", "in every seed", "overlap between seeds"], [_survival(s) for s in survivors]
        ),
        "",
        "Overlap: mean Jaccard index of two seeds' tokens, 1 for the same ones; that of random choice is what chance "
        "gives.",
    ]
    return "\n".join(lines) + "\n"


def _against(summaries: Sequence[Summary], other: str, name: str) -> str:
    """Compare learned with another choice at every count."""
    found = {(s["method"], s["count"]): s["is_right"] for s in summaries}
    ends = {
        count: paired_interval(found["learned", count], found[other, count])
        for method, count in found
        if method == other
    }
    better = [count for count, (_, low, _) in ends.items() if low > 0]
    worse = [count for count, (_, _, high) in ends.items() if high < 0]
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
    _, low, high = mean_interval(summary["is_right"].mean(axis=0))
    return summary | {
        "ends": (low, high),
        "tokens": chosen,
        "in_every_seed": sorted(set.intersection(*map(set, chosen))),
        "overlap": overlap(chosen) if len(chosen) > 1 else None,
    }


def _difference(one: Any, other: Any) -> dict[str, float]:
    return dict(zip(("difference", "low", "high"), paired_interval(one, other), strict=True))


def _cells(s: Summary) -> list[str]:
    compared = ["–", "–"]
    if s["method"] not in ("all", REFERENCE):
        compared = [f"{100 * s['difference']:+.1f}", f"{100 * s['low']:+.1f} to {100 * s['high']:+.1f}"]
    return [
        str(s["count"]),
        s["method"],
        f"{100 * s['accuracy']:.1f}",
        f"{100 * s['deviation']:.1f}",
        *compared,
        f"{100 * s['validation']:.1f}",
        str(s["parameters"]),
    ]


def _survival(s: Summary) -> list[str]:
    every = ", ".join(map(str, s["in_every_seed"])) or "none"
    return [str(s["count"]), s["method"], every, "–" if s["overlap"] is None else f"{s['overlap']:.2f}"]
