import json
import math
import shutil
from dataclasses import astuple

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError, SpaceWarning, UsageError
from tdsm.base.statistics import accuracy_interval
from tdsm.classification import evaluate
from tdsm.classification import probe as frozen
from tdsm.classification.evaluate import (
    Run,
    chosen_rows,
    fit_rows,
    new_field,
    notes,
    read_predictions,
    samples,
    score_rows,
)
from tdsm.classification.rows import ROWS
from tdsm.data.augment import augment
from tdsm.pipeline.stages import finished, initial_field
from tests import tinyrun
from tests.tinyrun import content, demo, digits, tdsm, tiny, write_yaml


@pytest.fixture
def run(tmp_path):
    """A finished run, its fitted and scored rows included."""
    return finished(demo(tmp_path / "run"), digits())


SEEDED_ROWS = ("tdsm-avg", "pixels-knn", "tokens-mean")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A finished run of three seeds; only to be read."""
    folder = tmp_path_factory.mktemp("seeds")
    config = write_yaml(folder / "tiny.yaml", probe__seeds=3, probe__rows=SEEDED_ROWS)
    assert tdsm("demo", "--config", config, "--run", folder / "run") == 0
    return finished(folder / "run", digits())


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
    assert read == [60] * len(tinyrun.ROWS)
    before = content(run.path)
    assert score_rows(run) == first
    assert read == [60] * len(tinyrun.ROWS)
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
    assert [row["name"] for row in table] == list(tinyrun.ROWS)
    assert table == json.loads((run.path / "table.json").read_text())
    for row in table:
        (predicted,) = read_predictions(run.path, row["name"])
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
    (fitted,) = evaluate._fit(run, ROWS["tdsm-avg"], samples(run, ROWS["tdsm-avg"], "train"), validation)
    assert choice["validation_accuracy"] == fitted.accuracy
    assert choice["settings"] == fitted.settings
    assert (frozen.predict(fitted.classifier, validation.features, "cpu") == validation.labels).double().mean() == (
        pytest.approx(fitted.accuracy)
    )


def test_predictions_are_kept_with_the_ids_they_are_for(run):
    stored = io.read_tensors(run.path / "results" / "pixels-knn.safetensors")
    assert torch.equal(stored["ids"], run.data.test.ids)


def test_a_row_that_is_not_fitted_is_named_with_what_to_do(run):
    shutil.rmtree(run.path / "rows" / "tdsm-knn")
    (run.path / "results" / "tdsm-knn.json").unlink()
    with pytest.raises(CheckpointError, match=rf"row tdsm-knn is not fitted yet. First: tdsm classify {run.path}"):
        score_rows(run)


# ---------------------------------------------------------------- several seeds


def choice_of(run, name):
    return json.loads((run.path / "rows" / name / "choice.json").read_text())


def test_the_first_of_several_seeds_is_the_only_one_of_one(run, three):
    for name in SEEDED_ROWS:
        (one,), seeds = read_predictions(run.path, name), read_predictions(three.path, name)
        assert torch.equal(seeds[0], one)
        alone, first = choice_of(run, name), choice_of(three, name)
        assert all(first[key] == alone[key] for key in alone if key != "seconds")
    weights = "rows/*/model.safetensors"
    same = content(three.path, weights)
    assert len(same) == 2
    assert same.items() <= content(run.path, weights).items()


def test_further_seeds_are_heads_of_their_own_chosen_at_the_firsts_rate_and_decay(three):
    row = ROWS["tdsm-avg"]
    choices = evaluate._fit(three, row, samples(three, row, "train"), samples(three, row, "validation"))
    choice, validation = choice_of(three, "tdsm-avg"), samples(three, row, "validation")
    assert len({choice["settings"]["learning_rate"], *(c.settings["learning_rate"] for c in choices)}) == 1
    for number, (kept, fitted) in enumerate(zip([choice, *choice["further"]], choices, strict=True)):
        assert (kept["validation_accuracy"], kept["settings"]) == (fitted.accuracy, fitted.settings)
        assert frozen.accuracy_of(fitted.classifier, validation, "cpu") == pytest.approx(fitted.accuracy)
        file = three.path / "rows" / "tdsm-avg" / (f"seed-{number}.safetensors" if number else "model.safetensors")
        weights = io.read_tensors(file)
        assert all(torch.equal(value, weights[name]) for name, value in fitted.classifier.state_dict().items())
    heads = content(three.path, "rows/tdsm-avg/*.safetensors")
    assert len(set(heads.values())) == len(heads) == 3
    assert stored(three, "tdsm-avg")["validation_accuracy"] == pytest.approx(sum(c.accuracy for c in choices) / 3)


def test_a_row_of_several_seeds_is_their_mean_with_deviation_and_interval(three):
    for name in ("tdsm-avg", "tokens-mean"):
        row, seeds = stored(three, name), read_predictions(three.path, name)
        is_right = seeds == three.data.test.labels
        accuracies = is_right.double().mean(dim=1)
        assert row["accuracies"] == pytest.approx(accuracies.tolist())
        assert row["accuracy"] == pytest.approx(accuracies.mean().item())
        assert row["deviation"] == pytest.approx(accuracies.std(correction=1).item())
        assert (row["low"], row["high"]) == astuple(accuracy_interval(is_right))[1:3]
        assert "correct" not in row
    for words in ((three.path / "table.md").read_text(), " ".join(notes(three))):
        assert "means over 3 seeds" in words


def test_neighbours_have_no_seed(run, three):
    assert sorted(file.name for file in (three.path / "rows" / "pixels-knn").iterdir()) == [
        "choice.json",
        "manifest.json",
    ]
    one, same = stored(run, "pixels-knn"), stored(three, "pixels-knn")
    assert {**one, "seconds": 0} == {**same, "seconds": 0}
    lines = [line for line in (three.path / "table.md").read_text().splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in lines[0].split("|")].index("deviation")
    deviations = {line.split("|")[1].split()[0]: line.split("|")[column].strip() for line in lines[2:]}
    assert deviations["pixels-knn"] == "–"
    assert deviations["tdsm-avg"] == f"{100 * stored(three, 'tdsm-avg')['deviation']:.1f}"


def test_test_is_read_once_a_row_and_seed(three, tmp_path, monkeypatch):
    shutil.copytree(three.path, tmp_path / "run")
    run, read, whole = Run(tmp_path / "run", three.config, three.data, three.field), [], evaluate.predict
    shutil.rmtree(run.path / "results")
    monkeypatch.setattr(evaluate, "predict", lambda *arguments: read.append(len(arguments[1])) or whole(*arguments))
    first = score_rows(run)
    assert read == [60] * 2 * 3
    assert score_rows(run) == first == json.loads((three.path / "table.json").read_text())
    assert read == [60] * 2 * 3


@pytest.mark.parametrize("fits", [1, 5], ids=["in_the_first_row", "in_the_second_head"])
def test_fitting_interrupted_between_seeds_ends_as_if_it_had_not_been(three, tmp_path, monkeypatch, fits):
    shutil.copytree(three.path, tmp_path / "run")
    run, whole, made = Run(tmp_path / "run", three.config, three.data, three.field), frozen.fit_head, []
    shutil.rmtree(run.path / "rows")

    def interrupted(*arguments):
        if len(made) == fits:
            raise KeyboardInterrupt
        made.append(arguments)
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "fit_head", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_rows(run, silent)
    assert list(content(run.path, "rows/*/choice.json")) == [
        f"rows/{name}/choice.json" for name in sorted(SEEDED_ROWS[: fits // 2])
    ]
    fit_rows(run, silent)
    assert content(run.path, "rows/*/*.safetensors") == content(three.path, "rows/*/*.safetensors")
    for name in SEEDED_ROWS:
        assert {**choice_of(run, name), "seconds": 0} == {**choice_of(three, name), "seconds": 0}


def test_a_run_from_before_there_were_seeds_reads_as_one_seed(run):
    config = json.loads((run.path / "config.json").read_text())
    del config["probe"]["seeds"]
    (run.path / "config.json").write_text(json.dumps(config))
    before = content(run.path, "results/*", "rows/**/*", "table.*", "report.html")
    shutil.rmtree(run.path / "results")
    assert [tdsm(verb, run.path) for verb in ("classify", "evaluate", "report")] == [0, 0, 0]
    assert content(run.path, "results/*", "rows/**/*", "table.*", "report.html") == before


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
