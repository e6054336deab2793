"""The table of regimes: seeds averaged, intervals from their predictions."""

import pytest
import torch

from tdsm.base import io
from tdsm.base.statistics import accuracy_interval
from tdsm.pipeline.regimes import HEADINGS, read_regimes, regimes_cells, regimes_markdown, write_regimes

LABELS = torch.zeros(100, dtype=torch.int64)


@pytest.fixture
def run(tmp_path):
    """Three seeds of one regime and one of another; wrong predictions are 1."""
    for regime, seed, correct in [("finetune", 0, 50), ("finetune", 1, 60), ("finetune", 2, 70), ("frozen", 0, 40)]:
        folder = tmp_path / "regimes" / regime / f"seed-{seed}"
        entry = {"regime": regime, "settings": {"head": {"pool": "cnn"}}, "n_test": 100, "validation_accuracy": 0.5}
        io.write_json(folder / "result.json", entry | {"psnr_before": 24.0, "psnr_after": 20.0 + seed})
        io.write_tensors(folder / "predicted.safetensors", {"predicted": (torch.arange(100) >= correct).long()})
    return tmp_path


def test_a_line_is_a_regime_with_the_interval_of_its_predictions(run):
    results, is_right = read_regimes(run, LABELS)
    (headings, *lines), words = regimes_cells(results, is_right)
    finetune, frozen = (dict(zip(headings, line, strict=True)) for line in lines)
    assert (finetune["seeds"], finetune["test accuracy (%)"], finetune["deviation"]) == ("3", "60.0", "10.0")
    assert (finetune["dB before"], finetune["dB after"]) == ("24.00", "21.00")
    bound = accuracy_interval(torch.arange(100) < torch.tensor([[50], [60], [70]]))
    assert finetune["95 % interval (%)"] == f"{100 * bound.low:.1f} – {100 * bound.high:.1f}"
    assert (frozen["seeds"], frozen["test accuracy (%)"], frozen["deviation"]) == ("1", "40.0", "–")
    assert "Intervals: Wilson over images and seeds, Wilson." in words


def test_one_seed_alone_is_not_said_to_be_over_seeds(run):
    results, is_right = read_regimes(run, LABELS)
    text = regimes_markdown(results, {"frozen": is_right["frozen"]})
    assert "Intervals: Wilson. " in text
    assert text.startswith(f"| {' | '.join(HEADINGS)} |")


def test_the_table_stands_in_the_run(run):
    path, text = write_regimes(run, LABELS)
    assert path.read_text() == text
    assert "| finetune | cnn | 3 | 60.0 | 10.0 |" in text
