"""What a run gives a library's user, and stores made anywhere that a run reads from."""

import shutil

import numpy as np
import pytest
import torch

import tdsm
from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.features.extract import FeatureSet
from tests.tinyrun import demo, finished, trained
from tests.tinyrun import tdsm as command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("run") / "run")


def extracted(run, to, *more):
    assert command("extract", run, "--to", to, "--features", "tdsm", "tokens", "--shard-samples", 50, *more) == 0
    return to


# ---------------------------------------------------------------- a run, read


def test_a_run_gives_field_data_features_table_and_predictions(run):
    read, own = tdsm.load_run(str(run)), finished(run)
    assert all(torch.equal(value, own.field.state_dict()[name]) for name, value in read.field.state_dict().items())
    assert read.data.test.fingerprint() == own.data.test.fingerprint()
    rows = own.features("test").rows("tokens")
    tokens = read.features("tokens", "test")
    assert np.array_equal(tokens, rows[torch.arange(len(rows))].numpy())
    table = {row["name"]: row for row in read.table}
    predicted = read.predictions("pixels-knn")
    assert predicted.shape == (1, 60)
    assert (predicted[0] == read.data.test.labels.numpy()).mean() == table["pixels-knn"]["accuracy"]


def test_features_that_are_not_there_are_extracted(run):
    read = tdsm.load_run(run)
    values = read.features("values", "validation")
    assert values.shape == (12, 4, 1, 8)
    assert (run / "features" / "trained" / "validation" / "values").is_dir()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.features("token", "test"), "unknown feature 'token', perhaps you meant 'tokens'"),
        (lambda r: r.features("tokens", "tst"), "unknown split 'tst', perhaps you meant 'test'"),
        (lambda r: r.predictions("pixels-kn"), "no row 'pixels-kn', perhaps you meant 'pixels-knn'"),
    ],
)
def test_what_a_run_has_not_is_named(run, call, words):
    with pytest.raises(UsageError, match=words):
        call(tdsm.load_run(run))


def test_what_is_no_finished_run_is_refused(tmp_path, run):
    with pytest.raises(CheckpointError, match="no run here"):
        tdsm.load_run(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "field")
    with pytest.raises(CheckpointError, match="not trained to the end"):
        tdsm.load_run(tmp_path / "run")


# ---------------------------------------------------------------- stores made anywhere


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_classify_and_evaluate_read_a_store_and_find_the_same(tmp_path, monkeypatch, form):
    run = trained(tmp_path / "run", probe__rows=("tdsm-avg", "tokens-avg")).path
    shutil.copytree(run, tmp_path / "other")
    store = extracted(run, tmp_path / "store", "--format", form)
    assert command("classify", run) == command("evaluate", run) == 0
    with monkeypatch.context() as patch:
        patch.setattr(FeatureSet, "_compute", None)  # nothing is extracted
        assert command("classify", tmp_path / "other", "--store", store) == 0
        assert command("evaluate", tmp_path / "other", "--store", store) == 0
    assert not (tmp_path / "other" / "features").exists()
    for name in ("tdsm-avg", "tokens-avg"):
        scores = [folder / "scores" / name / "predictions.safetensors" for folder in (run, tmp_path / "other")]
        assert scores[0].read_bytes() == scores[1].read_bytes()
    assert command("evaluate", tmp_path / "other") == 0  # its rows count wherever their features were read


def test_a_study_reads_a_store(tmp_path, monkeypatch):
    run = trained(tmp_path / "run").path
    store = extracted(run, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureSet, "_compute", None)
        assert command("study", "tokens", run, "--store", store, "--epochs", 1, "--seeds", 1, "--counts", 2) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--maps.reduction", "l2"), "maps.reduction: l2 -> mean"),
        (("--seed", 1), "data: "),
        (("--data.max-train", 100), "data: "),
    ],
    ids=["settings", "split", "data"],
)
def test_a_store_of_something_else_is_refused_in_one_line(tmp_path, capsys, more, words):
    run = trained(tmp_path / "run", probe__rows=("tdsm-avg",)).path
    store = extracted(run, tmp_path / "store", *more)
    capsys.readouterr()
    assert command("classify", run, "--store", store) == 4
    text = capsys.readouterr().err
    assert text.count("tdsm: ") == 1
    assert "its tdsm of train cannot be used here: made from something else" in text
    assert words in text


def test_a_store_of_another_field_and_a_damaged_one_are_refused(tmp_path, capsys):
    run = trained(tmp_path / "run", probe__rows=("tdsm-avg",)).path
    other = trained(tmp_path / "longer", probe__rows=("tdsm-avg",), train__steps=9).path
    store = extracted(other, tmp_path / "store")
    assert command("classify", run, "--store", store) == 4
    assert "(field: " in capsys.readouterr().err
    file = store / "train" / "tdsm" / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert command("classify", other, "--store", store) == 4
    assert "cannot be used here: damaged" in capsys.readouterr().err
    (store / io.MANIFEST).unlink()
    assert command("classify", other, "--store", store) == 4
    assert "not complete" in capsys.readouterr().err
