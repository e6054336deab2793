import json
import math
import shutil
import warnings
from dataclasses import astuple, replace

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError, SpaceWarning, UsageError
from tdsm.base.statistics import accuracy_interval
from tdsm.classification import probe
from tdsm.classification.config import ProbeConfig
from tdsm.classification.rows import DEFAULT_ROWS, ROWS
from tdsm.data.augment import augment
from tdsm.pipeline import rows as module
from tdsm.pipeline.field import initial_field, new_field
from tdsm.pipeline.rows import fit_rows, read_predictions, score_rows, scored_rows
from tdsm.pipeline.run import Run, chosen_rows
from tdsm.pipeline.stages import take_up
from tests import tinyrun
from tests.samples import all_floats
from tests.tinyrun import content, demo, digits, tdsm, tiny, write_yaml


def silent(words):
    pass


@pytest.fixture
def run(tmp_path):
    """A finished run, its fitted and scored rows included."""
    return take_up(demo(tmp_path / "run"), silent)


SEEDED_ROWS = ("tdsm-avg", "pixels-knn", "tokens-avg")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A finished run of three seeds; only to be read."""
    folder = tmp_path_factory.mktemp("seeds")
    config = write_yaml(folder / "tiny.yaml", probe__seeds=3, probe__rows=SEEDED_ROWS)
    assert tdsm("demo", "--config", config, "--run", folder / "run") == 0
    return take_up(folder / "run", silent)


@pytest.fixture
def fresh(tmp_path):
    """A run with a field that was never trained, nothing extracted yet."""
    config = tiny(probe__views=2, probe__augment={"crop": 1, "flip": True, "rotate": 20, "contrast": 0.3})
    return Run(tmp_path, config, digits(), initial_field(config, 1).eval(), silent)


def with_probe(run, **changes):
    return replace(run, config=run.config.model_copy(update={"probe": run.config.probe.model_copy(update=changes)}))


def stored(run, name):
    return json.loads((run.path / "scores" / name / "score.json").read_text())


# ---------------------------------------------------------------- splits


def test_no_sample_is_in_two_splits():
    data = digits()
    ids = [set(getattr(data, split).ids.tolist()) for split in ("train", "validation", "test")]
    assert [len(part) for part in ids] == [108, 12, 60]
    assert len(set.union(*ids)) == 180


def test_views_are_added_to_the_training_samples_alone(fresh):
    plain, pixels = ROWS["pixels-linear"], {}
    for split in ("train", "validation", "test"):
        part = fresh.samples(plain, split)
        pixels[split], images = part.features[torch.arange(len(part.labels))], getattr(fresh.data, split)
        assert torch.equal(pixels[split][: len(images)], all_floats(images).movedim(1, -1))
        views = 3 if split == "train" else 1
        assert len(part.labels) == len(part.features) == views * len(images)
        assert torch.equal(part.labels, images.labels.repeat(views))
    folders = sorted(folder.name for folder in (fresh.path / "features" / "trained").iterdir())
    assert folders == ["test", "train", "train-view1", "train-view2", "validation"]
    images = fresh.data.train
    for view in (1, 2):
        change = fresh.config.probe.augment
        expected = augment(all_floats(images), images.ids, change, seed=0, epoch=view).movedim(1, -1)
        torch.testing.assert_close(pixels["train"][view * 108 : (view + 1) * 108], expected)
        assert not torch.equal(expected, all_floats(images).movedim(1, -1))


def test_heads_may_see_fewer_images_than_the_field(fresh):
    few = with_probe(fresh, max_train=50)
    seen = few.images("train")
    assert len(seen) == 50
    assert set(seen.ids.tolist()) < set(fresh.data.train.ids.tolist())
    assert seen.labels.unique().equal(fresh.data.train.labels.unique())
    samples = few.samples(ROWS["pixels-linear"], "train")
    assert torch.equal(samples.labels, seen.labels.repeat(3))
    assert len(few.samples(ROWS["pixels-linear"], "test").labels) == 60
    assert module.row_origin(few, ROWS["majority"]) != module.row_origin(fresh, ROWS["majority"])


def test_neighbours_are_sought_among_training_samples_alone(fresh, monkeypatch):
    seen = []
    whole = probe.nearest

    def spy(queries, references, neighbours):
        blocks = list(references)
        seen.append((queries, torch.cat([vectors for vectors, _ in blocks])))
        return whole(queries, blocks, neighbours)

    monkeypatch.setattr(probe, "nearest", spy)
    fresh = with_probe(fresh, rows=("pixels-knn",))
    fit_rows(fresh)
    assert {len(queries) for queries, _ in seen} == {12}
    score_rows(fresh)
    queries, references = seen[-1]
    assert (len(queries), {len(refs) for _, refs in seen}) == (60, {3 * 108})
    # Not one of the references is a query: an image beside itself would be found at cosine 1.
    twins = torch.cdist(torch.cat([q for q, _ in seen]), references).min()
    assert twins > 0


# ---------------------------------------------------------------- rows


def test_rows_are_all_or_those_named():
    assert tuple(chosen_rows(())) == DEFAULT_ROWS
    assert list(chosen_rows(["pixels-knn", "tdsm-avg"])) == ["pixels-knn", "tdsm-avg"]
    with pytest.raises(UsageError, match=r"unknown tdsm-av, perhaps you meant 'tdsm-avg'.*FEATURE-READER"):
        chosen_rows(["tdsm-av", "pixels-knn"])


def test_a_fitted_row_is_not_fitted_again(run, monkeypatch):
    monkeypatch.setattr(module, "_fit", None)
    before = content(run.path)
    fit_rows(run)
    assert content(run.path) == before


def test_a_row_that_is_missing_is_fitted_as_before(run):
    before = content(run.path, "rows/*/seed-0.safetensors")
    shutil.rmtree(run.path / "rows" / "tdsm-avg")
    said = []
    fit_rows(replace(run, say=said.append))
    assert content(run.path, "rows/*/seed-0.safetensors") == before
    assert [words.split(":")[0] for words in said] == ["tdsm-avg"]


def test_untrained_rows_read_the_field_before_training(run):
    trained, untrained = (run.samples(ROWS[name], "test") for name in ("tdsm-avg", "untrained-tdsm-avg"))
    assert trained.features.shape == untrained.features.shape
    everything = torch.arange(60)
    assert not torch.equal(trained.features[everything], untrained.features[everything])
    start = new_field(run.config.field, run.config.seed).state_dict()
    again = run.untrained.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in again.items())


def test_a_new_field_depends_on_the_seed_alone():
    fields = []
    for seed in (0, 0, 1):
        torch.rand(5)
        fields.append(torch.cat([p.flatten() for p in new_field(tiny().field, seed).state_dict().values()]))
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


# ---------------------------------------------------------------- the test split


def test_test_is_read_once_a_row(run, monkeypatch):
    shutil.rmtree(run.path / "scores")
    read = []
    for name in ("predict", "predict_knn"):
        whole = getattr(module, name)

        def spy(*arguments, whole=whole, name=name):
            features = arguments[1] if name == "predict" else arguments[0]
            read.append(len(features))
            return whole(*arguments)

        monkeypatch.setattr(module, name, spy)
    first = score_rows(run)
    assert read == [60] * (len(tinyrun.ROWS) - 1)  # the majority row reads no feature
    before = content(run.path)
    assert score_rows(run) == first
    assert read == [60] * (len(tinyrun.ROWS) - 1)  # the majority row reads no feature
    assert content(run.path) == before


def test_fitting_reads_no_test_sample(fresh, monkeypatch):
    asked = set()
    whole = Run.samples

    def spy(run, row, split):
        asked.add(split)
        return whole(run, row, split)

    monkeypatch.setattr(Run, "samples", spy)
    fit_rows(fresh)
    assert asked == {"train", "validation"}
    assert not (fresh.path / "features" / "trained" / "test").exists()


def test_the_table_says_what_the_predictions_say(run):
    table = score_rows(run)
    assert [row["name"] for row in table] == [name for name in ROWS if name in tinyrun.ROWS]
    assert table == scored_rows(run)
    for row in table:
        (predicted,) = read_predictions(run, row["name"])
        correct = sum(int(a == b) for a, b in zip(predicted.tolist(), run.data.test.labels.tolist(), strict=True))
        assert (row["n_test"], row["correct"], row["accuracy"]) == (60, correct, correct / 60)
        z, p = 1.959963984540054, correct / 60
        centre = (p + z**2 / 120) / (1 + z**2 / 60)
        half = z / (1 + z**2 / 60) * math.sqrt(p * (1 - p) / 60 + z**2 / (4 * 60**2))
        assert (row["low"], row["high"]) == pytest.approx((max(0, centre - half), centre + half), abs=1e-9)
        assert row["role"] == ROWS[row["name"]].role
        assert 0 <= row["validation_accuracy"] <= 1
        assert row["seconds"] > 0
        assert (row["parameters"] > 0) == (row["head"] not in ("knn", "majority"))


def test_the_majority_row_says_the_most_frequent_training_class(run):
    (predicted,) = read_predictions(run, "majority")
    (said,) = set(predicted.tolist())
    counts = run.data.train.labels.bincount()
    assert counts[said] == counts.max()
    row = next(row for row in score_rows(run) if row["name"] == "majority")
    assert (row["head"], row["features"], row["parameters"], row["predicts"]) == ("majority", "none", 0, 1)


@pytest.mark.parametrize("name", sorted(ProbeConfig.model_fields.keys() - {"rows"}))
def test_no_setting_of_heads_changes_without_a_row_that_notices(fresh, name):
    value = {"views": 1, "max_train": 50, "augment": {"flip": False}}.get(name, 0.123)
    other = with_probe(fresh, **{name: value})
    with warnings.catch_warnings(action="ignore"):  # of pydantic, about the value's type
        assert any(
            module.row_origin(fresh, row) != module.row_origin(other, row)
            for row in map(ROWS.__getitem__, DEFAULT_ROWS)
        )


def test_a_stored_head_is_the_one_that_validation_chose(run):
    (kept,), row = choices_of(run, "tdsm-avg"), ROWS["tdsm-avg"]
    validation = run.samples(row, "validation")
    (fitted,) = module._fit(run, row, [], run.samples(row, "train"), validation)
    assert (kept["validation_accuracy"], kept["settings"]) == (fitted.accuracy, fitted.settings)
    assert (probe.predict(fitted.classifier, validation.features, "cpu") == validation.labels).double().mean() == (
        pytest.approx(fitted.accuracy)
    )


def test_predictions_are_kept_with_the_ids_they_are_for(run):
    kept = io.read_tensors(run.path / "scores" / "pixels-knn" / "predictions.safetensors")
    assert torch.equal(kept["ids"], run.data.test.ids)


def test_a_row_that_is_not_fitted_is_named_with_what_to_do(run):
    shutil.rmtree(run.path / "rows" / "tdsm-knn")
    with pytest.raises(CheckpointError, match=rf"row tdsm-knn is not fitted .* First: tdsm classify {run.path}"):
        score_rows(run)
    with pytest.raises(CheckpointError, match=rf"row tdsm-knn is not evaluated yet. .*; tdsm evaluate {run.path}"):
        scored_rows(run)


def test_rows_fitted_before_stay_in_the_table(run):
    run = with_probe(run, rows=("tdsm-max",))
    fit_rows(run)
    assert {row["name"] for row in score_rows(run)} == {*tinyrun.ROWS, "tdsm-max"}


def test_a_row_fitted_anew_is_scored_anew_and_says_how_often_test_was_read(run):
    said = []
    before = {row["name"]: row for row in score_rows(run)}
    assert {row["test_reads"] for row in before.values()} == {1}
    other = replace(with_probe(run, learning_rates=(1e-4,)), say=said.append)
    fit_rows(other)
    after = {row["name"]: row for row in score_rows(other)}
    heads = [name for name in tinyrun.ROWS if ROWS[name].head is not None]
    assert {name: row["test_reads"] for name, row in after.items()} == {
        name: 2 if name in heads else 1 for name in tinyrun.ROWS
    }
    anew = [words for words in said if "made anew" in words]
    assert len(anew) == 2 * len(heads)
    assert all("probe.learning_rates: [0.01] -> [0.0001]" in words for words in anew[: len(heads)])
    assert all("fitted.seed-0.safetensors" in words for words in anew[len(heads) :])


# ---------------------------------------------------------------- several seeds


def moved(run, path):
    return Run(path, run.config, run.data, run.field, silent)


def choices_of(run, name):
    return json.loads((run.path / "rows" / name / "choice.json").read_text())["fits"]


def test_the_first_of_several_seeds_is_the_only_one_of_one(run, three):
    for name in SEEDED_ROWS:
        (one,), seeds = read_predictions(run, name), read_predictions(three, name)
        assert torch.equal(seeds[0], one)
        assert choices_of(run, name)[0] == choices_of(three, name)[0]
    weights = "rows/*/seed-0.safetensors"
    same = content(three.path, weights)
    assert len(same) == 2
    assert same.items() <= content(run.path, weights).items()


def test_further_seeds_are_heads_of_their_own_chosen_at_the_firsts_rate_and_decay(three):
    row = ROWS["tdsm-avg"]
    validation = three.samples(row, "validation")
    choices = list(module._fit(three, row, [], three.samples(row, "train"), validation))
    fits = choices_of(three, "tdsm-avg")
    assert len({fits[0]["settings"]["learning_rate"], *(c.settings["learning_rate"] for c in choices)}) == 1
    for number, (kept, fitted) in enumerate(zip(fits, choices, strict=True)):
        assert (kept["validation_accuracy"], kept["settings"]) == (fitted.accuracy, fitted.settings)
        assert probe.accuracy_of(fitted.classifier, validation, "cpu") == pytest.approx(fitted.accuracy)
        file = three.path / "rows" / "tdsm-avg" / f"seed-{number}.safetensors"
        weights = io.read_tensors(file)
        assert all(torch.equal(value, weights[name]) for name, value in fitted.classifier.state_dict().items())
    heads = content(three.path, "rows/tdsm-avg/*.safetensors")
    assert len(set(heads.values())) == len(heads) == 3
    assert stored(three, "tdsm-avg")["validation_accuracy"] == pytest.approx(sum(c.accuracy for c in choices) / 3)


def test_a_row_of_several_seeds_is_their_mean_with_deviation_and_interval(three):
    for name in ("tdsm-avg", "tokens-avg"):
        row, seeds = stored(three, name), read_predictions(three, name)
        is_right = seeds == three.data.test.labels
        accuracies = is_right.double().mean(dim=1)
        assert row["accuracies"] == pytest.approx(accuracies.tolist())
        assert row["accuracy"] == pytest.approx(accuracies.mean().item())
        assert row["deviation"] == pytest.approx(accuracies.std(correction=1).item())
        assert (row["low"], row["high"]) == astuple(accuracy_interval(is_right))[1:3]
        assert "correct" not in row
    for words in ((three.path / "table.md").read_text(), " ".join(three.notes())):
        assert "means over 3 seeds" in words


def test_neighbours_have_no_seed(run, three):
    assert sorted(file.name for file in (three.path / "rows" / "pixels-knn").iterdir()) == [
        "choice.json",
        "manifest.json",
        "timing.json",
    ]
    one, same = stored(run, "pixels-knn"), stored(three, "pixels-knn")
    assert one == same
    lines = [line for line in (three.path / "table.md").read_text().splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in lines[0].split("|")].index("deviation")
    deviations = {line.split("|")[1].split()[0]: line.split("|")[column].strip() for line in lines[2:]}
    assert deviations["pixels-knn"] == "–"
    assert deviations["tdsm-avg"] == f"{100 * stored(three, 'tdsm-avg')['deviation']:.1f}"


def test_test_is_read_once_a_row_and_seed(three, tmp_path, monkeypatch):
    shutil.copytree(three.path, tmp_path / "run")
    run, read, whole = moved(three, tmp_path / "run"), [], module.predict
    shutil.rmtree(run.path / "scores")
    monkeypatch.setattr(module, "predict", lambda *arguments: read.append(len(arguments[1])) or whole(*arguments))
    first = score_rows(run)
    assert read == [60] * 2 * 3
    assert score_rows(run) == first == scored_rows(three)
    assert read == [60] * 2 * 3


def unfitted(run, path):
    """Return a copy of a run without its rows."""
    shutil.copytree(run.path, path)
    shutil.rmtree(path / "rows")
    return moved(run, path)


def interrupt(run, monkeypatch, fits):
    """Fit the rows of a run until so many heads are fitted; return a list of all that are from then on."""
    whole, made = probe.fit_head, []

    def counted(*arguments):
        if len(made) == fits:
            raise KeyboardInterrupt
        made.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(module, "_warm_up", lambda run: None)
    monkeypatch.setattr(probe, "fit_head", counted)
    with pytest.raises(KeyboardInterrupt):
        fit_rows(run)
    further = []
    monkeypatch.setattr(probe, "fit_head", lambda *arguments: further.append(arguments) or whole(*arguments))
    return further


@pytest.mark.parametrize("fits", [1, 2, 5], ids=["after_one", "after_two", "in_the_second_row"])
def test_fitting_interrupted_between_seeds_goes_on_and_ends_as_if_it_had_not_been(three, tmp_path, monkeypatch, fits):
    run = unfitted(three, tmp_path / "run")
    further = interrupt(run, monkeypatch, fits)
    assert list(content(run.path, "rows/*/choice.json")) == [
        f"rows/{name}/choice.json" for name in sorted(SEEDED_ROWS[: 2 * (fits // 3)])
    ]
    fit_rows(run)
    assert len(further) == 6 - fits
    assert content(run.path, "rows/*/*.safetensors") == content(three.path, "rows/*/*.safetensors")
    assert not content(run.path, "fitting/*/*")
    for name in SEEDED_ROWS:
        assert choices_of(run, name) == choices_of(three, name)


def damage(run):
    with open(run.path / "fitting/tdsm-avg/seed-0.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    return run


def misfit(run):
    """Seal seeds of other features under the row's name, as a change of the head's code would leave them."""
    folder = run.path / "fitting/tdsm-avg"
    made_from = io.read_manifest(folder).made_from
    weights = {name: value[..., :1] for name, value in io.read_tensors(folder / "seed-0.safetensors").items()}
    io.write_tensors(folder / "seed-0.safetensors", weights)
    io.seal_folder(folder, made_from)
    return run


def other_settings(run):
    return with_probe(run, weight_decays=(0.3,))


@pytest.mark.parametrize("change", [damage, misfit, other_settings])
def test_seeds_of_a_stopped_row_count_only_while_they_are_what_was_fitted(three, tmp_path, monkeypatch, change):
    run, said = unfitted(three, tmp_path / "run"), []
    further = interrupt(run, monkeypatch, 2)
    fit_rows(replace(change(run), say=said.append))
    assert len(further) == 6
    assert sum("what was fitted before it was stopped is left" in words for words in said) == 1
    if change is not other_settings:
        assert content(run.path, "rows/*/*.safetensors") == content(three.path, "rows/*/*.safetensors")


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_a_stopped_row_goes_on_for_another_number_of_seeds(three, tmp_path, monkeypatch, seeds):
    run = unfitted(three, tmp_path / "run")
    further = interrupt(run, monkeypatch, 2)
    fit_rows(with_probe(run, seeds=seeds, rows=("tdsm-avg",)))
    assert len(further) == max(0, seeds - 2)
    heads, whole = (content(path, "rows/tdsm-avg/*.safetensors") for path in (run.path, three.path))
    assert len(heads) == seeds
    assert dict(list(heads.items())[:3]) == dict(list(whole.items())[:seeds])
    assert not content(run.path, "fitting/*/*")


def test_the_field_is_frozen_bit_for_bit(fresh):
    before = {name: value.clone() for name, value in fresh.field.state_dict().items()}
    fit_rows(fresh)
    score_rows(fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.field.state_dict().items())
    assert all(parameter.grad is None for parameter in fresh.field.parameters())


def test_a_note_says_how_many_training_images_heads_see(tmp_path):
    few = tinyrun.trained(tmp_path / "run", probe__max_train=50)
    assert "Heads and baselines are fitted to 50 of 108 training images." in few.notes()


def test_notes_carry_the_datas_and_say_when_maps_hold_no_space(run):
    assert run.notes() == list(run.data.notes)
    flat = new_field(run.config.field.model_copy(update={"has_query_residual": False}), 0)
    flat = Run(run.path / "flat", run.config, run.data, flat, silent)
    with pytest.warns(SpaceWarning, match="no query residual"):
        flat.samples(ROWS["tdsm-avg"], "test")
    assert "no query residual" in flat.notes()[-1]
