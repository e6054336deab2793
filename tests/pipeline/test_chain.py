"""Everything a run keeps knows what it was made from: what is stale, foreign or damaged is noticed, every time."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tdsm.base import io
from tdsm.base.errors import CheckpointError, DataError
from tdsm.pipeline import link
from tdsm.pipeline.quality import quality_origin
from tdsm.pipeline.rows import scored_rows
from tdsm.pipeline.stages import take_up
from tests.tinyrun import ROWS, colour_arrays, content, demo, tdsm, trained, write_yaml


def silent(words):
    pass


def fails(capsys, code, *arguments):
    capsys.readouterr()
    assert tdsm(*arguments) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def run_on(source, run, tmp_path, *more):
    """Train a tiny field on a source."""
    config = write_yaml(tmp_path / "tiny.yaml", field__channels=3, train__steps=2, data={"source": "toy"})
    return tdsm("train", "--config", config, "--data.source", source, "--run", run, *more)


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures: 2 classes × 30 for training, × 6 for test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for label in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "pictures"


# ---------------------------------------------------------------- data


def test_added_removed_and_replaced_images_are_counted_and_refused(capsys, tmp_path, pictures):
    run = tmp_path / "run"
    assert run_on(pictures, run, tmp_path) == 0
    for moved in ("00.png", "01.png", "02.png"):
        shutil.copy(pictures / "train" / "cat" / moved, pictures / "test" / "cat" / f"9{moved}")
    for verb in (["classify", run], ["evaluate", run], ["train", "--run", run, "--resume"]):
        text = fails(capsys, 3, *verb)
        assert "the data are not those the run was made with. test: 3 images added." in text
        assert "--data.source" in text
    for moved in ("00.png", "01.png", "02.png"):
        (pictures / "test" / "cat" / f"9{moved}").unlink()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / "test" / "dog" / "03.png")
    assert "test: 1 images changed." in fails(capsys, 3, "classify", run)


def test_a_relative_source_is_found_from_any_folder_and_never_mistaken(capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    colour_arrays(tmp_path / "here" / "data.npz")
    monkeypatch.chdir(tmp_path / "here")
    assert run_on("data.npz", tmp_path / "run", tmp_path) == 0
    monkeypatch.chdir(tmp_path / "there")
    colour_arrays(tmp_path / "there" / "data.npz", count=90)
    assert tdsm("classify", tmp_path / "run", "--probe.rows", "pixels-linear") == 0
    assert "images" in fails(capsys, 3, "classify", tmp_path / "run", "--data.source", "data.npz")


def test_data_that_were_moved_are_accepted_where_they_are_now(capsys, tmp_path):
    source, run = colour_arrays(tmp_path / "data.npz"), tmp_path / "run"
    assert run_on(source, run, tmp_path) == 0
    source.rename(tmp_path / "moved.npz")
    assert "data.npz, where nothing is. Name where they are with --data.source" in fails(capsys, 3, "classify", run)
    assert tdsm("train", "--run", run, "--resume", "--data.source", tmp_path / "moved.npz") == 0
    assert tdsm("classify", run, "--probe.rows", "pixels-linear") == 0


def test_images_without_labels_train_and_analyse_and_only_what_needs_labels_is_refused(capsys, tmp_path, pictures):
    flat, run = tmp_path / "flat", tmp_path / "run"
    flat.mkdir()
    for number, file in enumerate(sorted(pictures.rglob("*.png"))):
        shutil.copy(file, flat / f"{number:03}.png")
    assert run_on(flat, run, tmp_path) == 0
    assert tdsm("analyse", run, "--images", 4) == 0
    assert "class selectivity" not in (run / "analysis.md").read_text()
    for verb in (["classify", run], ["finetune", run], ["study", "tokens", run]):
        assert "have no labels, expected a class for each image" in fails(capsys, 3, *verb)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("entry", "value", "error"),
    [
        (("seed",), 1, CheckpointError),
        (("field", "widths"), [10], CheckpointError),
        (("train", "steps"), 9, CheckpointError),
        (("train", "learning_rate"), 0.5, CheckpointError),
    ],
    ids=str,
)
def test_settings_edited_by_hand_in_a_finished_run_are_refused(tmp_path, entry, value, error):
    run = demo(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    part = config[entry[0]] if len(entry) > 1 else config
    part[entry[-1]] = value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(error):
        take_up(run, silent)


def test_a_run_started_from_a_field_records_that_one(tmp_path):
    saved = trained(tmp_path / "first", field__num_latents=3)
    run = trained(tmp_path / "second", init=str(tmp_path / "first"), train__steps=0)
    assert run.config.field.num_latents == 3
    assert json.loads((run.path / "config.json").read_text())["field"]["num_latents"] == 3
    assert run.field_hash == saved.field_hash


def test_training_goes_on_with_more_steps_and_what_hangs_on_it_is_made_anew(capsys, tmp_path):
    path = demo(tmp_path / "run")
    before = content(path)
    assert tdsm("train", "--run", path, "--resume", "--train.steps", 12, "--train.learning-rate", 1e-4) == 0
    assert json.loads((path / "changes.json").read_text())[0]["changed"] == [
        "train.learning_rate: 0.001 -> 0.0001",
        "train.steps: 8 -> 12",
    ]
    assert content(path)["field/model.safetensors"] != before["field/model.safetensors"]
    assert "not fitted to what is there now" in fails(capsys, 4, "evaluate", path)
    assert tdsm("classify", path) == 0
    assert "tdsm-avg: made anew, it was made from something else: features" in capsys.readouterr().err
    assert tdsm("evaluate", path) == 0
    assert {row["test_reads"] for row in json.loads((path / "table.json").read_text())} == {1, 2}


def test_rows_deleted_and_fitted_another_way_are_scored_anew(capsys, tmp_path):
    path = demo(tmp_path / "run")
    table = (path / "table.md").read_text()
    shutil.rmtree(path / "rows")
    assert tdsm("classify", path, "--probe.learning-rates", 1e-4) == 0
    assert tdsm("evaluate", path) == 0
    assert "made anew" in capsys.readouterr().err
    assert (path / "table.md").read_text() != table
    assert {row["name"]: row["test_reads"] for row in json.loads((path / "table.json").read_text())} == {
        name: 1 if name.endswith("knn") or name == "majority" else 2 for name in ROWS
    }


# ---------------------------------------------------------------- damage


def parts(path):
    """Every file of a run that something reads back, the features' own sidecars apart."""
    kept = ("field", "rows", "scores", "quality", "data")
    return sorted(file for name in kept for file in (path / name).rglob("*") if file.is_file())


def test_a_changed_byte_of_any_part_is_noticed(tmp_path):
    path = demo(tmp_path / "run")
    files, missed = parts(path), []
    assert len(files) > 25
    for file in files:
        data = file.read_bytes()
        for place in {len(data) // 3, len(data) // 2, len(data) - 2}:
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                run = take_up(path, silent)
                if link.fault(path / "quality", quality_origin(run), holds=[]) is None and scored_rows(run):
                    missed.append((file.relative_to(path), place))
            except (CheckpointError, DataError):
                pass
        file.write_bytes(data)
    assert missed == []


def test_a_digit_changed_in_a_score_is_measured_anew(capsys, tmp_path):
    path = demo(tmp_path / "run")
    table = json.loads((path / "table.json").read_text())
    for file in (path / "scores" / "tdsm-avg" / "score.json", path / "quality" / "quality.json"):
        text = file.read_text()
        file.write_text(text.replace("0.", "0.9", 1) if "0." in text else text.replace("1", "2", 1))
        assert file.read_text() != text
    assert "not evaluated yet" in fails(capsys, 4, "report", path)
    assert tdsm("evaluate", path) == 0
    said = capsys.readouterr().err
    assert "tdsm-avg: made anew, it is damaged" in said
    assert "quality: made anew, it is damaged" in said
    again = json.loads((path / "table.json").read_text())
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in table]


def test_two_scores_or_rows_swapped_are_noticed(capsys, tmp_path):
    path = demo(tmp_path / "run")
    for folder in ("scores", "rows"):
        one, other, aside = path / folder / "tdsm-avg", path / folder / "pixels-linear", path / "aside"
        one.rename(aside), other.rename(one), aside.rename(other)
        text = fails(capsys, 4, "report", path)
        assert "tdsm-avg" in text
        assert "pixels-linear" in text
        one.rename(aside), other.rename(one), aside.rename(other)
    assert tdsm("report", path) == 0


def test_a_manifest_of_nothing_does_not_count(tmp_path):
    path = demo(tmp_path / "run")
    (path / "field" / io.MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="no manifest of this version"):
        take_up(path, silent)


def test_a_feature_that_was_changed_is_extracted_anew(capsys, tmp_path):
    path = demo(tmp_path / "run")
    shard = path / "features" / "trained" / "train" / "tdsm" / "shard-00000.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-2] + bytes(2))
    shutil.rmtree(path / "rows" / "tdsm-avg")
    assert tdsm("classify", path) == 0
    assert "train/tdsm: extracted anew, it was damaged" in capsys.readouterr().err
    assert shard.read_bytes() == data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_named(tmp_path, value):
    run = trained(tmp_path / "first")
    with torch.no_grad():
        run.field.to_channels.weight[0, 0] = value
    run.field.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"to_channels\.weight"):
        trained(tmp_path / "second", init=str(tmp_path / "saved"), train__steps=0)
    assert not (tmp_path / "second" / "config.json").exists()


# ---------------------------------------------------------------- kills


def test_what_killed_writes_left_is_swept_at_the_next_start(tmp_path):
    path = demo(tmp_path / "run")
    before = content(path)
    (path / "checkpoints" / ".step-00000009.77.tmp").mkdir()
    (path / "rows" / ".tdsm-max.77.tmp").mkdir()
    (path / "scores" / "tdsm-avg").rename(path / "scores" / ".tdsm-avg.old")
    assert tdsm("evaluate", path) == 0
    assert not [file for file in path.rglob("*") if file.name.endswith((".tmp", ".old"))]
    assert content(path) == before
