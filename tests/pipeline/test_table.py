"""Rows are chosen on validation, quoted on test, and compared by their intervals."""

import pytest

from tdsm.pipeline.table import HEADINGS, best, cells, headings, table_markdown, verdict


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
    lucky, chosen = row("lucky", "tdsm", 0.9, 0.5), row("chosen", "tdsm", 0.6, 0.7)
    assert best([lucky, chosen], "tdsm") is chosen
    assert "chosen, test accuracy 60.0 %" in verdict([lucky, chosen])
    assert "lucky" not in verdict([lucky, chosen])


def test_a_tie_goes_to_fewer_parameters():
    large, small = row("large", "tdsm", 0.6, 0.7, parameters=10), row("small", "tdsm", 0.5, 0.7, parameters=9)
    assert best([large, small], "tdsm") is small
    assert best([small, large], "tdsm") is small


def test_no_row_without_validation_is_chosen():
    rows = [row("a", "tdsm", 0.5, 0.5), row("b", "baseline", 0.5, None)]
    assert best(rows, "baseline") is None
    assert "No baseline has a validation accuracy, so none was chosen" in verdict(rows)
    assert "overlap" not in verdict(rows)
    del rows[1]["validation_accuracy"]
    assert best(rows, "baseline") is None


@pytest.mark.parametrize(
    ("tdsm", "baseline", "half", "expected"),
    [
        (0.50, 0.60, 0.02, "The TDSM is below the baseline by 10.0 percentage points; the intervals do not overlap."),
        (0.60, 0.50, 0.02, "The TDSM is above the baseline by 10.0 percentage points; the intervals do not overlap."),
        (0.50, 0.53, 0.02, "The intervals overlap: no difference shown. The TDSM stands 3.0 percentage points below"),
        (0.53, 0.50, 0.02, "The intervals overlap: no difference shown. The TDSM stands 3.0 percentage points above"),
        (0.50, 0.75, 0.125, "The intervals overlap: no difference shown. The TDSM stands 25.0 percentage points below"),
        (0.75, 0.50, 0.125, "The intervals overlap: no difference shown. The TDSM stands 25.0 percentage points above"),
        (0.50, 0.50, 0.02, "TDSM and baseline have the same test accuracy: no difference shown."),
    ],
    ids=["below", "above", "overlap_below", "overlap_above", "touch_below", "touch_above", "equal"],
)
def test_the_verdict_says_which_wins(tdsm, baseline, half, expected):
    sentence = verdict([row("x", "baseline", baseline, 0.5, half=half), row("m", "tdsm", tdsm, 0.5, half=half)])
    assert sentence.startswith(expected)
    assert "Best TDSM head by validation accuracy: m, test" in sentence
    assert "Best baseline by validation accuracy: x, test" in sentence


def test_the_verdict_quotes_the_interval_and_the_number_of_images():
    assert "test accuracy 50.0 % (95 % interval 48.0 to 52.0 %, 10\u2009000 images)." in verdict(
        [row("m", "tdsm", 0.5, 0.5)]
    )


def test_a_role_that_is_missing_is_named():
    assert verdict([]) == "No classifier was evaluated."
    assert "No baseline was evaluated: the TDSM is compared with nothing." in verdict([row("m", "tdsm", 0.5, 0.5)])
    assert verdict([row("x", "baseline", 0.5, 0.5)]).startswith("No TDSM head was evaluated. Best baseline")


def test_cells_stand_under_their_headings():
    texts = cells(row("m", "baseline", 0.5, None, parameters=1234567))
    assert list(texts) == HEADINGS
    assert texts["95 % interval (%)"] == "48.0 – 52.0"
    assert texts["validation (%)"] == "–"
    assert texts["parameters"] == "1\u2009234\u2009567"
    assert texts["seconds"] == "12.3"


def test_markdown_has_one_line_a_row_sorted_and_marked():
    rows = [row("low", "tdsm", 0.4, 0.4), row("high", "tdsm", 0.6, 0.6), row("x", "baseline", 0.5, 0.5)]
    lines = table_markdown(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["high **(best)**", "x **(best)**", "low"]
    assert {line.count("|") for line in lines} == {len(HEADINGS)}  # all but the deviation


def test_deviations_are_shown_where_a_row_has_several_seeds():
    seeded = row("s", "tdsm", 0.5, 0.5, accuracies=[0.48, 0.52], deviation=0.0283)
    one = row("k", "baseline", 0.6, 0.6)
    assert headings([seeded, one]) == HEADINGS
    assert headings([one]) == [heading for heading in HEADINGS if heading != "deviation"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_markdown([seeded, one]).splitlines()]
    assert [line[2:5] for line in lines] == [
        ["test accuracy (%)", "deviation", "95 % interval (%)"],
        ["--:", "--:", "--:"],
        ["60.0", "–", "58.0 – 62.0"],
        ["50.0", "2.8", "48.0 – 52.0"],
    ]


def test_the_verdict_speaks_of_means_over_seeds():
    seeded = row("s", "tdsm", 0.5, 0.5, accuracies=[0.45, 0.5, 0.55], deviation=0.05)
    sentence = verdict([seeded, row("k", "baseline", 0.6, 0.6)])
    assert "below the baseline by 10.0 percentage points" in sentence
    assert "s, test accuracy 50.0 % (95 % interval 48.0 to 52.0 %, 10\u2009000 images, mean of 3 seeds)." in sentence
    assert "k, test accuracy 60.0 % (95 % interval 58.0 to 62.0 %, 10\u2009000 images)." in sentence


def test_markdown_of_hostile_names_keeps_its_cells():
    lines = table_markdown([row("a|b\n| c <script>\\| \udcff", "tdsm", 0.5, 0.5)]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| a\\|b \\| c &lt;script&gt;\\\\\\| ? **(best)** |")
