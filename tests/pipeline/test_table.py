"""Rows are chosen on validation, quoted on test, and compared by their intervals."""

import torch

from tdsm.base.statistics import accuracy_interval
from tdsm.pipeline.table import (
    COLUMNS,
    SHORT,
    best,
    by_accuracy,
    by_validation,
    chosen,
    columns,
    remarks,
    table_markdown,
    verdict,
)

HIDDEN = ("deviation", "balanced (%)", "macro F1 (%)")
HEADINGS = [column.heading for column in COLUMNS if column.heading not in HIDDEN]


def shown(rows):
    return [column.heading for column in columns(rows)]


def row(name, role, accuracy, validation, *, half=0.02, parameters=1000, **others):
    return {
        "name": name,
        "role": role,
        "features": "maps",
        "head": "avg",
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": accuracy + half,
        "n_test": 10000,
        "parameters": parameters,
        "seconds": 12.34,
        "validation_accuracy": validation,
        **others,
    }


def test_the_best_is_chosen_on_validation_not_on_test():
    lucky, sure = row("lucky", "tdsm", 0.9, 0.5), row("chosen", "tdsm", 0.6, 0.7)
    assert best([lucky, sure], "tdsm") is sure
    assert "chosen, test accuracy 60.0 %" in verdict([lucky, sure], {})
    assert "lucky" not in verdict([lucky, sure], {})


def test_a_tie_goes_to_fewer_parameters():
    large, small = row("large", "tdsm", 0.6, 0.7, parameters=10), row("small", "tdsm", 0.5, 0.7, parameters=9)
    assert best([large, small], "tdsm") is small
    assert best([small, large], "tdsm") is small


def test_the_best_of_each_role_are_the_chosen():
    rows = [row("a", "tdsm", 0.5, 0.5), row("b", "tdsm", 0.4, 0.6), row("c", "baseline", 0.5, None)]
    assert [entry["name"] for entry in chosen(rows)] == ["b"]


def test_no_row_without_validation_is_chosen():
    rows = [row("a", "tdsm", 0.5, 0.5), row("b", "baseline", 0.5, None)]
    assert best(rows, "baseline") is None
    assert "No baseline has a validation accuracy, so none was chosen" in verdict(rows, {})
    assert "difference" not in verdict(rows, {})
    del rows[1]["validation_accuracy"]
    assert best(rows, "baseline") is None


def right(share, count=200, seeds=1):
    """Return a classifier that is right on the first share of the images."""
    return (torch.arange(count) < round(share * count)).repeat(seeds, 1)


def said(tdsm, baseline, **others):
    """Return the verdict on two classifiers, given where each is right."""
    rows = [
        row(name, role, is_right.double().mean().item(), 0.5, **others)
        for name, role, is_right in (("m", "tdsm", tdsm), ("x", "baseline", baseline))
    ]
    return verdict(rows, {"m": tdsm, "x": baseline})


def test_a_difference_is_shown_by_pairs_where_intervals_of_each_overlap():
    tdsm = torch.tensor([1, 1, 0, 0]).repeat_interleave(torch.tensor([81, 41, 16, 62]))[None].bool()
    baseline = torch.tensor([1, 0, 1, 0]).repeat_interleave(torch.tensor([81, 41, 16, 62]))[None].bool()
    alone = [accuracy_interval(one) for one in (tdsm, baseline)]  # 61.0 and 48.5 %
    assert alone[0].low < alone[1].high
    assert said(tdsm, baseline).startswith(
        "The TDSM stands 12.5 percentage points above the baseline (95 % interval +5.1 to +19.6, paired over images; "
        "McNemar p = 0.001). Best TDSM head by validation accuracy: m, test accuracy 61.0 %"
    )
    assert said(baseline, tdsm).startswith(
        "The TDSM stands 12.5 percentage points below the baseline (95 % interval −19.6 to −5.1, paired over images; "
        "McNemar p = 0.001). Best TDSM head"
    )


def test_no_difference_is_shown_where_the_paired_interval_holds_zero():
    tdsm, baseline = right(0.5), right(0.51)
    assert said(tdsm, baseline).startswith(
        "No difference shown: the TDSM stands 1.0 percentage points below the baseline (95 % interval −2.7 to +0.7, "
        "paired over images; McNemar p = 0.500)."
    )
    assert said(baseline, tdsm).startswith("No difference shown: the TDSM stands 1.0 percentage points above the")
    assert said(tdsm, tdsm).startswith(
        "No difference shown: TDSM and baseline have the same test accuracy (95 % interval −1.0 to +1.0, paired over"
    )


def test_seeds_widen_the_difference_and_have_no_test_of_one_pair():
    words = said(right(0.6, seeds=3), right(0.5))
    assert words.startswith("The TDSM stands 10.0 percentage points above the baseline (95 % interval ")
    assert "paired over images and seeds). Best TDSM" in words
    spread = torch.cat([right(0.4), right(0.6), right(0.8)])
    assert said(spread, right(0.5)).startswith("No difference shown: the TDSM stands 10.0 percentage points above")


def test_the_verdict_quotes_the_interval_and_the_number_of_images():
    assert "test accuracy 50.0 % (95 % interval 48.0 to 52.0 %, 10\u2009000 images)." in verdict(
        [row("m", "tdsm", 0.5, 0.5)], {}
    )


def test_a_role_that_is_missing_is_named():
    assert verdict([], {}) == "No classifier was evaluated."
    assert "No baseline was evaluated: the TDSM is compared with nothing." in verdict([row("m", "tdsm", 0.5, 0.5)], {})
    assert verdict([row("x", "baseline", 0.5, 0.5)], {}).startswith("No TDSM head was evaluated. Best baseline")


def test_cells_stand_under_their_headings():
    entry = row("m", "baseline", 0.5, None, parameters=1234567)
    texts = {column.heading: column.text(entry) for column in COLUMNS}
    assert texts["role"] == "baseline"
    assert texts["95 % interval (%)"] == "48.0 – 52.0"
    assert texts["validation (%)"] == texts["deviation"] == "–"
    assert texts["parameters"] == "1\u2009234\u2009567"
    assert texts["seconds"] == "12.3"


def test_accuracies_of_classes_are_shown_where_they_differ():
    equal = row("m", "tdsm", 0.5, 0.5, balanced_accuracy=0.5, macro_f1=0.5)
    unequal = row("x", "baseline", 0.9, 0.5, balanced_accuracy=0.5, macro_f1=0.474, note="Predicts one class only.")
    assert shown([equal]) == HEADINGS
    assert {"balanced (%)", "macro F1 (%)"} <= set(shown([equal, unequal]))
    assert "| 90.0 | 88.0 – 92.0 | 50.0 | 50.0 | 47.4 |" in table_markdown([equal, unequal])
    assert remarks([equal]) == ["10\u2009000 test images."]
    assert remarks([equal, unequal])[2:] == ["x: Predicts one class only."]
    assert remarks([equal, unequal])[1].startswith("Balanced: mean over classes")


def test_each_way_of_making_intervals_is_named_once():
    rows = [row(name, "tdsm", 0.5, 0.5, interval=name) for name in ("Wilson", "Wilson over images and seeds")]
    assert remarks([*rows, *rows])[1:] == ["95 % intervals: Wilson, Wilson over images and seeds."]


def test_markdown_has_one_line_a_row_sorted_and_marked():
    rows = [row("low", "tdsm", 0.4, 0.4), row("high", "tdsm", 0.6, 0.6), row("x", "baseline", 0.5, 0.5)]
    lines = table_markdown(by_accuracy(rows)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["high **(best)**", "x **(best)**", "low"]
    assert {line.count("|") for line in lines} == {len(HEADINGS) + 1}


def test_a_short_table_marks_the_best_of_all_and_keeps_the_order_given():
    rows = [row("low", "tdsm", 0.9, 0.4), row("high", "tdsm", 0.6, 0.6), row("none", "tdsm", 0.7, None)]
    lines = table_markdown(by_validation(rows)[1:], rows, SHORT).splitlines()
    assert lines[0] == "| name | test accuracy (%) | 95 % interval (%) | validation (%) |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["low", "none"]
    assert table_markdown(by_validation(rows)[:1], rows, SHORT).splitlines()[2].startswith("| high **(best)** |")


def test_deviations_are_shown_where_a_row_has_several_seeds():
    seeded = row("s", "tdsm", 0.5, 0.5, accuracies=[0.48, 0.52], deviation=0.0283)
    one = row("k", "baseline", 0.6, 0.6)
    assert "deviation" in shown([seeded, one])
    assert shown([one]) == HEADINGS
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_markdown([one, seeded]).splitlines()]
    assert [line[2:5] for line in lines] == [
        ["test accuracy (%)", "deviation", "95 % interval (%)"],
        ["--:", "--:", "--:"],
        ["60.0", "–", "58.0 – 62.0"],
        ["50.0", "2.8", "48.0 – 52.0"],
    ]


def test_the_verdict_speaks_of_means_over_seeds():
    seeded = row("s", "tdsm", 0.5, 0.5, accuracies=[0.45, 0.5, 0.55], deviation=0.05)
    sentence = verdict([seeded, row("k", "baseline", 0.6, 0.6)], {"s": right(0.5, seeds=3), "k": right(0.6)})
    assert "10.0 percentage points below the baseline" in sentence
    assert "s, test accuracy 50.0 % (95 % interval 48.0 to 52.0 %, 10\u2009000 images, mean of 3 seeds)." in sentence
    assert "k, test accuracy 60.0 % (95 % interval 58.0 to 62.0 %, 10\u2009000 images)." in sentence


def test_markdown_of_hostile_names_keeps_its_cells():
    lines = table_markdown([row("a|b\n| c <script>\\| \udcff", "tdsm", 0.5, 0.5)]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| a\\|b \\| c &lt;script&gt;\\\\\\| ? **(best)** |")
