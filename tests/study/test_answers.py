import json

import pytest
import torch

from tdsm.base.statistics import Interval
from tdsm.features.store import FeatureRows
from tdsm.study.answers import NUMBERS, Changed, average_seeds, changed, kept, number_cells

ROWS = [
    {"accuracy": accuracy, "validation_accuracy": 0.5, "parameters": 1200, "is_right": right, "name": "a"}
    for accuracy, right in ((0.5, [1, 0]), (1.0, [1, 1]))
]


def test_seeds_are_averaged_and_their_right_answers_kept_apart():
    summary = average_seeds(ROWS, ("name", "parameters"))
    assert (summary["accuracy"], summary["validation"], summary["name"]) == (0.75, 0.5, "a")
    assert summary["deviation"] == pytest.approx(0.5 / 2**0.5)
    assert summary["is_right"].tolist() == [[True, False], [True, True]]
    assert average_seeds(ROWS[:1], ())["deviation"] == 0.0


def test_cells_stand_under_their_headings():
    summary = average_seeds(ROWS, ("parameters",))
    assert number_cells(summary) == ["75.0", "35.4", "–", "–", "50.0", "1\u2009200"]
    cells = number_cells(summary | {"difference": Interval(0.1, -0.05, 0.25, "paired over images")})
    assert dict(zip(NUMBERS, cells, strict=True))["difference"] == "+10.0"
    assert dict(zip(NUMBERS, cells, strict=True))["95 % interval"] == "−5.0 to +25.0"


def test_what_is_kept_names_the_method_of_a_difference():
    summary = average_seeds(ROWS, ()) | {"difference": Interval(0.1, 0.0, 0.2, "paired over images")}
    again = json.loads(json.dumps(kept(summary)))
    assert again["difference"] == {"value": 0.1, "low": 0.0, "high": 0.2, "method": "paired over images"}
    assert "is_right" not in again


def test_features_are_changed_at_once_or_when_they_are_read(monkeypatch):
    features, some = FeatureRows([torch.randn(700, 2, 2, 6)]), torch.tensor([699, 0, 3])
    at_once = changed(features, lambda values: 3 * values[..., 1:4])
    monkeypatch.setattr("tdsm.features.store.MEMORY_BYTES", 0)
    lazy = changed(features, lambda values: 3 * values[..., 1:4])
    assert (type(at_once), type(lazy)) == (FeatureRows, Changed)
    assert (len(lazy), lazy.shape) == (700, at_once.shape) == (700, (700, 2, 2, 3))
    assert torch.equal(lazy[some], at_once[some])
    assert torch.equal(lazy[some], (3 * features[some][..., 1:4]).half().float())
