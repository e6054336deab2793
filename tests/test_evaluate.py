import json
import math
import shutil

import pytest
import torch

from tdsm import evaluate, frozen
from tdsm.baselines import ROWS
from tdsm.data.augment import augment
from tdsm.errors import CheckpointError, SpaceWarning, UsageError
from tdsm.evaluate import Run, chosen_rows, fit_rows, new_field, notes, read_predictions, samples, score_rows
from tdsm.stages import finished, initial_field
from tests import pipeline
from tests.pipeline import content, demo, digits, tiny


@pytest.fixture
def run(tmp_path):
    """A finished run, its fitted and scored rows included."""
    return finished(demo(tmp_path / "run"), digits())


@pytest.fixture
def fresh(tmp_path):
    """A run with a field that was never trained, nothing extracted yet."""
    config = tiny(probe__views=2, probe__augment={"crop": 1, "flip": True, "rotate": 20, "contrast": 0.3})
    return Run(tmp_path, config, digits(), initial_field(config, 1).eval())


def silent(words):
    pass


def stored(run, name):
    return json.loads((run.path / "results" / f"{name}.json").read_text())


# ---------------------------------------------------------------- splits


def test_no_sample_is_in_two_splits():
    data = digits()
    ids = [set(getattr(data, split).ids.tolist()) for split in ("train", "validation", "test")]
    assert [len(part) for part in ids] == [108, 12, 60]
    assert len(set.union(*ids)) == 180


def test_views_are_added_to_the_training_samples_alone(fresh):
    plain, pixels = ROWS["pixels-linear"], {}
    for split in ("train", "validation", "test"):
        part = samples(fresh, plain, split)
        pixels[split], images = part.features[torch.arange(len(part.labels))], getattr(fresh.data, split)
        assert torch.equal(pixels[split][: len(images)], images.floats().movedim(1, -1))
        views = 3 if split == "train" else 1
        assert len(part.labels) == len(part.features) == views * len(images)
        assert torch.equal(part.labels, images.labels.repeat(views))
    folders = sorted(folder.name for folder in (fresh.path / "features" / "trained").iterdir())
    assert folders == ["test", "train", "train-view1", "train-view2", "validation"]
    images = fresh.data.train
    for view in (1, 2):
        change = fresh.config.probe.augment
        expected = augment(images.floats(), images.ids, change, seed=0, epoch=view).movedim(1, -1)
        torch.testing.assert_close(pixels["train"][view * 108 : (view + 1) * 108], expected)
        assert not torch.equal(expected, images.floats().movedim(1, -1))


def test_neighbours_are_sought_among_training_samples_alone(fresh, monkeypatch):
    seen = []
    whole = frozen.knn_scores

    def spy(queries, references, *rest):
        seen.append((queries, references))
        return whole(queries, references, *rest)

    monkeypatch.setattr(frozen, "knn_scores", spy)
    config = fresh.config.probe.model_copy(update={"rows": ("pixels-knn",)})
    fresh = Run(fresh.path, fresh.config.model_copy(update={"probe": config}), fresh.data, fresh.field)
    fit_rows(fresh, silent)
    assert {len(queries) for queries, _ in seen} == {12}
    score_rows(fresh)
    queries, references = seen[-1]
    assert (len(queries), {len(refs) for _, refs in seen}) == (60, {3 * 108})
    # Not one of the references is a query: an image beside itself would be found at cosine 1.
    twins = torch.cdist(torch.cat([q for q, _ in seen]), references).min()
    assert twins > 0


# ---------------------------------------------------------------- rows


def test_rows_are_all_or_those_named():
    assert chosen_rows(()) == ROWS
    assert list(chosen_rows(["pixels-knn", "tdsm-avg"])) == ["pixels-knn", "tdsm-avg"]
    with pytest.raises(UsageError, match=r"unknown tdsm-av, nothing; expected some of tdsm-avg, "):
        chosen_rows(["tdsm-av", "pixels-knn", "nothing"])


def test_a_fitted_row_is_not_fitted_again(run, monkeypatch):
    monkeypatch.setattr(evaluate, "_fit", None)
    before = content(run.path)
    fit_rows(run, silent)
    assert content(run.path) == before


def test_a_row_that_is_missing_is_fitted_as_before(run):
    before = content(run.path, "rows/*/model.safetensors")
    shutil.rmtree(run.path / "rows" / "tdsm-avg")
    said = []
    fit_rows(run, said.append)
    assert content(run.path, "rows/*/model.safetensors") == before
    assert [words.split(":")[0] for words in said] == ["tdsm-avg"]


def test_untrained_rows_read_the_field_before_training(run):
    trained, untrained = samples(run, ROWS["tdsm-avg"], "test"), samples(run, ROWS["untrained-tdsm-avg"], "test")
    assert trained.features.shape == untrained.features.shape
    everything = torch.arange(60)
    assert not torch.equal(trained.features[everything], untrained.features[everything])
    start = new_field(run.config.field, 1, run.config.seed).state_dict()
    again = evaluate.untrained_field(run).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in again.items())


def test_a_new_field_depends_on_the_seed_alone():
    fields = []
    for seed in (0, 0, 1):
        torch.rand(5)
        fields.append(torch.cat([p.flatten() for p in new_field(tiny().field, 1, seed).state_dict().values()]))
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


# ---------------------------------------------------------------- the test split


def test_test_is_read_once_a_row(run, monkeypatch):
    shutil.rmtree(run.path / "results")
    read = []
    for name in ("predict", "predict_knn"):
        whole = getattr(evaluate, name)

        def spy(*arguments, whole=whole, name=name):
            features = arguments[1] if name == "predict" else arguments[0]
            read.append(len(features))
            return whole(*arguments)

        monkeypatch.setattr(evaluate, name, spy)
    first = score_rows(run)
    assert read == [60] * len(pipeline.ROWS)
    before = content(run.path)
    assert score_rows(run) == first
    assert read == [60] * len(pipeline.ROWS)
    assert content(run.path) == before


def test_fitting_reads_no_test_sample(fresh, monkeypatch):
    asked = set()
    whole = evaluate.samples

    def spy(run, row, split):
        asked.add(split)
        return whole(run, row, split)

    monkeypatch.setattr(evaluate, "samples", spy)
    fit_rows(fresh, silent)
    assert asked == {"train", "validation"}
    assert not (fresh.path / "features" / "trained" / "test").exists()


def test_the_table_says_what_the_predictions_say(run):
    table = score_rows(run)
    assert [row["name"] for row in table] == list(pipeline.ROWS)
    assert table == json.loads((run.path / "table.json").read_text())
    for row in table:
        predicted = read_predictions(run.path, row["name"])
        correct = sum(int(a == b) for a, b in zip(predicted.tolist(), run.data.test.labels.tolist(), strict=True))
        assert (row["n_test"], row["correct"], row["accuracy"]) == (60, correct, correct / 60)
        z, p = 1.959963984540054, correct / 60
        centre = (p + z**2 / 120) / (1 + z**2 / 60)
        half = z / (1 + z**2 / 60) * math.sqrt(p * (1 - p) / 60 + z**2 / (4 * 60**2))
        assert (row["low"], row["high"]) == pytest.approx((max(0, centre - half), centre + half), abs=1e-9)
        assert row["role"] == ROWS[row["name"]].role
        assert 0 <= row["validation_accuracy"] <= 1
        assert row["seconds"] > 0
        assert (row["parameters"] > 0) == (row["head"] != "knn")


def test_a_stored_head_is_the_one_that_validation_chose(run):
    choice = json.loads((run.path / "rows" / "tdsm-avg" / "choice.json").read_text())
    validation = samples(run, ROWS["tdsm-avg"], "validation")
    fitted = evaluate._fit(run, ROWS["tdsm-avg"], samples(run, ROWS["tdsm-avg"], "train"), validation)
    assert choice["validation_accuracy"] == fitted.accuracy
    assert choice["settings"] == fitted.settings
    assert (frozen.predict(fitted.classifier, validation.features, "cpu") == validation.labels).double().mean() == (
        pytest.approx(fitted.accuracy)
    )


def test_predictions_are_kept_with_the_ids_they_are_for(run):
    from tdsm import io

    stored = io.read_tensors(run.path / "results" / "pixels-knn.safetensors")
    assert torch.equal(stored["ids"], run.data.test.ids)


def test_a_row_that_is_not_fitted_is_named_with_what_to_do(run):
    shutil.rmtree(run.path / "rows" / "tdsm-knn")
    (run.path / "results" / "tdsm-knn.json").unlink()
    with pytest.raises(CheckpointError, match=rf"row tdsm-knn is not fitted yet. First: tdsm classify {run.path}"):
        score_rows(run)


@pytest.mark.parametrize("name", ["model.safetensors", "choice.json"])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_row_is_noticed(run, name, damage):
    file = run.path / "rows" / "tdsm-avg" / name
    if damage == "gone":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    shutil.rmtree(run.path / "results")
    for stage in (lambda: fit_rows(run, silent), lambda: score_rows(run)):
        with pytest.raises(CheckpointError, match=name):
            stage()


def test_the_field_is_frozen_bit_for_bit(fresh):
    before = {name: value.clone() for name, value in fresh.field.state_dict().items()}
    fit_rows(fresh, silent)
    score_rows(fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.field.state_dict().items())
    assert all(parameter.grad is None for parameter in fresh.field.parameters())


def test_features_of_another_field_are_refused(run):
    other = Run(run.path, run.config, run.data, new_field(run.config.field, 1, seed=1))
    with pytest.raises(CheckpointError, match="made by another field"):
        samples(other, ROWS["tdsm-avg"], "test")


def test_notes_carry_the_datas_and_say_when_maps_hold_no_space(run):
    assert notes(run) == list(run.data.notes)
    flat = new_field(run.config.field.model_copy(update={"has_query_residual": False}), 1, 0)
    with pytest.warns(SpaceWarning, match="no query residual"):
        samples(Run(run.path / "flat", run.config, run.data, flat), ROWS["tdsm-avg"], "test")
    assert "no query residual" in notes(Run(run.path, run.config, run.data, flat))[-1]
