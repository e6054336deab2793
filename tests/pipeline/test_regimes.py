"""The table of regimes: seeds averaged, intervals from their predictions."""

import pytest
import torch

from tdsm.base.statistics import accuracy_interval, paired_difference
from tdsm.base.text import difference_words
from tdsm.pipeline.regimes import HEADINGS, regimes_table


@pytest.fixture
def found():
    """Three seeds of one regime and one of another."""
    results, is_right = [], {}
    for regime, seed, correct in [("finetune", 0, 50), ("finetune", 1, 60), ("finetune", 2, 70), ("frozen", 0, 40)]:
        settings = {"head": {"kind": "cnn"}, "features": "tdsm"}
        entry = {"name": regime, "regime": regime, "settings": settings, "n_test": 100, "validation_accuracy": 0.5}
        results.append(entry | {"psnr_before": 24.0, "psnr_after": 20.0 + seed})
        is_right.setdefault(regime, []).append(torch.arange(100) < correct)
    return results, {name: torch.stack(rows) for name, rows in is_right.items()}


def test_a_line_is_a_regime_with_the_interval_of_its_predictions(found):
    results, is_right = found
    table = regimes_table(results, is_right)
    finetune, frozen = (dict(zip(table.headings, line, strict=True)) for line in table.lines)
    assert (finetune["seeds"], finetune["test accuracy (%)"], finetune["deviation"]) == ("3", "60.0", "10.0")
    assert (finetune["dB before"], finetune["dB after"]) == ("24.00", "21.00")
    bound = accuracy_interval(torch.arange(100) < torch.tensor([[50], [60], [70]]))
    assert finetune["95 % interval (%)"] == f"{100 * bound.low:.1f} – {100 * bound.high:.1f}"
    assert (frozen["seeds"], frozen["test accuracy (%)"], frozen["deviation"]) == ("1", "40.0", "–")
    assert "Intervals: Wilson over images and seeds, Wilson." in table.notes


def test_one_seed_alone_is_not_said_to_be_over_seeds(found):
    results, is_right = found
    table = regimes_table(results, {"frozen": is_right["frozen"]})
    assert "Intervals: Wilson." in table.notes
    assert list(table.headings[: len(HEADINGS)]) == HEADINGS


def test_each_is_compared_with_the_best_on_validation_image_by_image(found):
    results, is_right = found
    results = [entry | {"validation_accuracy": 0.6 if entry["name"] == "frozen" else 0.5} for entry in results]
    table = regimes_table(results, is_right)
    by = paired_difference(is_right["finetune"], is_right["frozen"])
    assert f"finetune against frozen, the best on validation: +20.0 points, {difference_words(by)}." in table.notes
    assert by.value == pytest.approx(0.2)
    assert not any("against" in note for note in regimes_table(results, {"frozen": is_right["frozen"]}).notes)
