"""Training a head with the field from what a run holds: a fitted row to start from, names side by side."""

import json

import pytest
import torch

from tdsm.base.errors import CheckpointError, UsageError
from tdsm.classification.config import RegimeConfig
from tdsm.pipeline.finetune import regime_results, train_regime
from tdsm.pipeline.rows import read_predictions
from tdsm.pipeline.stages import finetune, take_up
from tests.tinyrun import demo, tdsm

SHORT = {"epochs": 1, "batch_size": 32, "warmup_steps": 1}
STILL = {"learning_rates": {"head": 1e-9, "encoder": 0.0, "processor": 0.0, "decoder": 0.0}, "weight_decay": 0.0}


@pytest.fixture
def run(tmp_path):
    return take_up(demo(tmp_path / "run"), lambda words: None)


def predicted(run, label):
    _, right = regime_results(run)
    return right[label]


@pytest.mark.parametrize("row", ["tdsm-avg", "tokens-avg", "pixels-linear"])
def test_a_regime_starts_from_a_fitted_row(run, row):
    config = RegimeConfig(start=row, **SHORT, **STILL)
    result = train_regime(run, config, 0)
    feature, reader = row.split("-")
    head = result["settings"]["head"]["kind"]
    assert (result["settings"]["features"], head) == (feature, {"avg": "avg", "linear": "flatten"}[reader])
    assert torch.equal(predicted(run, result["name"]), read_predictions(run, row) == run.data.test.labels)


def test_a_start_is_part_of_what_a_result_is_made_from(run):
    config = RegimeConfig(start="tdsm-avg", **SHORT)
    train_regime(run, config, 0)
    assert len(regime_results(run)[0]) == 1
    (run.path / "rows/tdsm-avg/choice.json").unlink()
    (run.path / "rows/tdsm-avg/manifest.json").unlink()
    assert regime_results(run) == ([], {})


@pytest.mark.parametrize("row", ["tdsm-knn", "majority", "untrained-tdsm-avg"])
def test_a_row_without_a_head_of_the_field_is_refused(run, row):
    with pytest.raises(UsageError, match=f"--start {row}: this row has no head of the trained field"):
        train_regime(run, RegimeConfig(start=row, **SHORT), 0)


def test_a_row_that_is_not_fitted_is_named_with_the_command(run):
    with pytest.raises(
        CheckpointError, match=r"tdsm-cnn is not fitted .* First: tdsm classify .* --probe.rows tdsm-cnn"
    ):
        train_regime(run, RegimeConfig(start="tdsm-cnn", **SHORT), 0)


def test_what_started_from_a_row_is_named_after_what_it_reads(run):
    said = []
    finetune(take_up(run.path, said.append), RegimeConfig(start="tokens-avg", **SHORT))
    assert [words.split(":")[0] for words in said] == ["finetune-tokens, seed 0"]


def test_features_and_names_stand_side_by_side(run):
    for changes in ({}, {"features": "tokens"}, {"features": "tokens", "name": "again"}):
        text = finetune(run, RegimeConfig(regime="frozen", **SHORT, **changes))
    assert {folder.name for folder in (run.path / "regimes").iterdir()} == {"frozen", "frozen-tokens", "again"}
    assert "the best on validation: " in text
    results, right = regime_results(run)
    assert set(right) == {"frozen", "frozen-tokens", "again"}
    assert torch.equal(right["again"], right["frozen-tokens"])
    assert len({json.dumps(result["settings"]["features"]) for result in results}) == 2


def test_wrong_names_end_before_anything_is_written(run, capsys):
    for flags, code, words in [
        (["--name", "a/b"], 2, "name is 'a/b'"),
        (["--features", "tdsn"], 2, "--features tdsn: unknown, perhaps you meant 'tdsm'"),
        (["--start", "tdsm"], 2, "rows: unknown tdsm"),
    ]:
        assert tdsm("finetune", run.path, *flags) == code
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (run.path / "regimes").exists()
