"""What a run's tokens classify: the tables, where it goes wrong, and which tokens speak for a class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from tdsm.base.randomness import generator
from tdsm.base.statistics import confusion_matrix
from tdsm.base.text import NOTHING, Table, count_of, percent, shortened
from tdsm.classification.evidence import Evidence, class_evidence
from tdsm.classification.rows import ROWS
from tdsm.classification.scores import majority_share
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.features.kinds import FEATURES
from tdsm.figures import charts
from tdsm.figures.tiles import Gallery, in_colour, on_scale, signed
from tdsm.pipeline.rows import read_classifiers, read_predictions
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import COLUMNS, ROLES, Column, Row, by_validation, chosen, columns, remarks
from tdsm.report.blocks import Beside, Chart, Fold, Said, Scores
from tdsm.report.shown import of_different_classes, some, unit

SHORT = 3  # rows of each role in the short table
SHOWN_MISTAKES, SHOWN_CLASSES, LONGEST_LABEL = 24, 12, 20
EXPLAINED_IMAGES, EXPLAINED_TOKENS = 3, 8
EXACT = 1e-4  # completeness error of one point, from which on a head is not linear
TAKEN = "most often taken for (times)"
MEANING = Column("what it reads", "meaning", is_number=False)
SHORT_KEYS = ("name", "meaning", "validation_accuracy", "accuracy", "low")


def classified(table: list[dict]) -> list[Any]:
    """Show the best rows of each role, and all of them folded."""
    rows, best = by_validation(table), [row["name"] for row in chosen(table)]
    few = [row for role in ROLES for row in [row for row in rows if row["role"] == role][:SHORT]]
    known = {column.key: column for column in (*COLUMNS, MEANING)}
    chart = Chart("accuracy", charts.accuracy_bars(table, _majority(table)), charts.accuracy_bars.caption)
    everything = [Scores("All rows", rows, columns(table), best), Said(remarks(table), "note"), chart]
    return [
        Scores("The best rows of each role", by_validation(few), [known[key] for key in SHORT_KEYS], best),
        Said(
            [
                f"The {SHORT} rows of each role that validation finds best, sorted by it; a heading sorts.",
                "Bars run from 0 to 100 %; the mark is the 95 % interval.",
            ],
            "note",
        ),
        Fold(f"All {count_of(len(rows), 'row')}", everything),
    ]


def majority_words(run: Run, table: list[dict]) -> str:
    """Say what who always names the largest class would reach."""
    share, tdsm = majority_share(run.data.test.labels), next((r for r in chosen(table) if r["role"] == "tdsm"), None)
    beside = f"; the best TDSM head is right on {percent(tdsm['accuracy'])} %" if tdsm else ""
    return f"Always naming the largest class would be right on {percent(share)} % of the test images{beside}."


def mistaken(run: Run, table: list[dict]) -> list[Any]:
    """Show what the best TDSM row takes for something else, class by class."""
    rows = {row["role"]: row for row in chosen(table)}
    made: list[Any] = []
    if "tdsm" in rows:
        made += _mistakes(run, rows["tdsm"])
    if rows:
        made.append(_folded(_by_class(run, list(rows.values()))))
        made.append(Beside([_confusion(run, row) for row in rows.values()]))
        made.append(Said([charts.confusion.caption], "note"))
    return made


def evidence(run: Run, table: list[dict]) -> list[Any]:
    """Show which tokens speak for the class that the best head on the maps predicts, and where."""
    row = explained(table)
    if row is None:
        return []
    labels, classes = run.data.test.labels, run.data.test.classes
    drawn = some(run, 8)
    drawn = drawn[of_different_classes(labels[drawn], EXPLAINED_IMAGES)]
    maps = run.samples(ROWS[row["name"]], "test").features[drawn].float().to(run.device)
    height, width, channels = maps.shape[1:]
    head = next(read_classifiers(run, row["name"], (height, width, channels))).eval().to(run.device)
    found = class_evidence(head, maps)
    images = unit(rearrange(run.data.test.floats(drawn), "b c h w -> b h w c"))
    error = float(found.completeness_error.max())
    how = (
        "The head is linear: each value's share is its weight times its distance from the training mean, exactly."
        if float(class_evidence(head, maps, points=1).completeness_error.max()) < EXACT
        else "The head is not linear: shares are gradients averaged along the straight path from the mean maps to "
        f"these; they miss the score by at most {100 * error:.2g} % of all that is said."
    )
    said = Said(
        [
            f"A class score is the sum of what every token says at every place. Here for {row['name']} "
            f"({row['meaning']}), and the class it predicts, above the mean of all classes. {how}",
        ]
    )
    token_ids = select_tokens(run.field.config.num_tokens, parse_selection(run.config.maps.selection))
    galleries = [
        _evidence_of(found, number, images[number], token_ids, classes, int(labels[drawn[number]]))
        for number in range(len(drawn))
    ]
    return [said, *galleries]


def explained(table: Sequence[Row]) -> Row | None:
    """Choose the row whose head is explained: of those with a head on token maps the best on validation."""
    heads = [row for row in table if row["role"] == "tdsm" and row["name"] in ROWS and ROWS[row["name"]].head]
    kinds = {row["name"]: FEATURES[str(ROWS[row["name"]].features)] for row in heads}
    heads = [row for row in heads if kinds[row["name"]].is_token_map and not kinds[row["name"]].parts]
    return max(heads, key=lambda row: row["validation_accuracy"], default=None)


def _evidence_of(
    found: Evidence, number: int, image: np.ndarray, token_ids: list[int], classes: Sequence[str], true: int
) -> Gallery:
    values = found.values[number].cpu().numpy()
    height, width, maps = values.shape
    by_token = values.reshape(height, width, len(token_ids), maps // len(token_ids)).sum(axis=-1)
    totals = by_token.sum(axis=(0, 1))
    order = np.argsort(-np.abs(totals), kind="stable")[:EXPLAINED_TOKENS]
    whole, scale = signed("all tokens", by_token.sum(axis=-1)), signed("evidence of a token", by_token[..., order])
    guess, base, score = int(found.classes[number]), float(found.base[number]), float(found.score[number])
    verdict = "which is right" if guess == true else f"but it is “{classes[true]}”"
    for_it, against = totals[totals > 0].sum(), totals[totals < 0].sum()
    return Gallery(
        f"“{classes[guess]}” is predicted, {verdict}. Score {_signed(score)} = {_signed(base)} of the mean maps "
        f"{_signed(for_it)} of tokens that speak for it {_signed(against)} of tokens against it. Red speaks for the "
        f"class, blue against; the {len(order)} loudest of {count_of(len(token_ids), 'token')}, with their totals.",
        [""],
        [f"token {token_ids[k]}: {_signed(totals[k])}" for k in order],
        [[on_scale(by_token[..., k], scale)] for k in order],
        references=[("image", in_colour(image)), ("all tokens", on_scale(by_token.sum(axis=-1), whole))],
        scales=[whole, scale],
    )


def _mistakes(run: Run, row: Row) -> list[Any]:
    predicted, labels = read_predictions(run, row["name"])[0], run.data.test.labels
    wrong = (predicted != labels).nonzero()[:, 0]
    if not len(wrong):
        return [Said([f"{row['name']}, the TDSM row chosen on validation, is right on every test image."])]
    shown = wrong[stratified_sample(labels[wrong], SHOWN_MISTAKES, generator(run.config.seed, "mistakes"))]
    images, classes = unit(rearrange(run.data.test.floats(shown), "b c h w -> b h w c")), run.data.test.classes
    names = [shortened(name, LONGEST_LABEL) for name in classes]
    some_or_all = "all" if len(shown) == len(wrong) else len(shown)
    return [
        Gallery(
            f"{row['name']}, the TDSM row chosen on validation, is wrong on {len(wrong)} of "
            f"{count_of(len(labels), 'test image')}. Here {some_or_all} of them, every class "
            "with its share: what it is → what it is taken for.",
            [""],
            [f"{names[labels[k]]} → {names[predicted[k]]}" for k in shown],
            [[in_colour(image)] for image in images],
        )
    ]


def _by_class(run: Run, rows: list[Row]) -> Table:
    """Tabulate each class's accuracy by the chosen rows, the worst of the first row first."""
    labels, classes = run.data.test.labels, run.data.test.classes
    counts, predicted = labels.bincount(minlength=len(classes)), read_predictions(run, rows[0]["name"])
    order = sorted(range(len(classes)), key=lambda k: (rows[0]["per_class"][k] is None, rows[0]["per_class"][k]))
    taken = [_taken_for(k, labels, predicted, classes) for k in range(len(classes))]
    lines = [[classes[k], str(int(counts[k])), *(_share(row["per_class"][k]) for row in rows), taken[k]] for k in order]
    return Table(
        "Class by class",
        ["class", "test images", *(f"{row['name']} (%)" for row in rows), TAKEN],
        lines,
        ["class", TAKEN],
        notes=[f"Share of each class's images that is right; taken for: by {rows[0]['name']}."],
    )


def _taken_for(k: int, labels: Int[Tensor, " n"], predicted: Int[Tensor, "seeds n"], classes: Sequence[str]) -> str:
    others = predicted[:, labels == k].flatten().bincount(minlength=len(classes))
    others[k] = 0
    return f"{classes[int(others.argmax())]} ({int(others.max())})" if others.max() else NOTHING


def _folded(table: Table) -> Any:
    return table if len(table.lines) <= SHOWN_CLASSES else Fold(f"{table.title}: {len(table.lines)} classes", [table])


def _confusion(run: Run, row: Row) -> Chart:
    labels, classes, predicted = run.data.test.labels, run.data.test.classes, read_predictions(run, row["name"])
    matrix = confusion_matrix(labels.repeat(len(predicted)), predicted.flatten(), len(classes))
    once = f" Every image counts once for each of {len(predicted)} seeds." if len(predicted) > 1 else ""
    caption = f"{row['name']}, the {ROLES[row['role']]} row chosen on validation.{once}"
    return Chart(f"confusion-{row['role']}", charts.confusion(matrix.numpy(), classes), caption)


def _majority(table: list[dict]) -> float | None:
    return next((row["accuracy"] for row in table if row.get("head") == "majority"), None)


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def _signed(value: float | np.floating) -> str:
    return f"{float(value):+.2f}".replace("-", "−")
