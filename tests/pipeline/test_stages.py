import json
from pathlib import Path

import pytest
import torch

from tdsm.base.errors import CheckpointError, DataError, ResourceError, UsageError
from tdsm.pipeline import stages
from tdsm.pipeline.runfolder import create_run, read_config
from tdsm.training.reconstruction import reconstruction_quality
from tests.tinyrun import content, demo, digits, tiny, trained

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_a_trained_field_is_kept_and_not_trained_again(tmp_path, monkeypatch):
    run = trained(tmp_path / "run")
    before = content(tmp_path / "run")
    monkeypatch.setattr(stages, "train_field", None)
    again = stages.train(tmp_path / "run", run.data)
    assert content(tmp_path / "run") == before
    assert all(torch.equal(v, again.field.state_dict()[k]) for k, v in run.field.state_dict().items())
    assert not again.field.training


def test_a_run_whose_field_is_not_trained_says_how_to_go_on(tmp_path):
    create_run(tmp_path / "run", tiny(), resume=False)
    with pytest.raises(CheckpointError, match=rf"not trained to the end. Continue: tdsm train --run {tmp_path}/run"):
        stages.finished(tmp_path / "run")


def test_a_damaged_field_is_noticed(tmp_path):
    demo(tmp_path / "run")
    file = tmp_path / "run" / "field" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: size or hash differ"):
        stages.finished(tmp_path / "run", digits())


def test_a_report_comes_after_the_evaluation(tmp_path):
    run = trained(tmp_path / "run", train__steps=0)
    with pytest.raises(CheckpointError, match=r"not evaluated yet\. First: tdsm classify .*; tdsm evaluate "):
        stages.report(run)


def test_quality_is_measured_on_the_test_images_once(tmp_path, monkeypatch):
    run = stages.finished(demo(tmp_path / "run"), digits())
    quality = json.loads((run.path / "quality.json").read_text())
    assert quality == reconstruction_quality(run.field, run.data.test)
    monkeypatch.setattr("tdsm.classification.evaluate.reconstruction_quality", None)
    said = []
    table = stages.evaluate(run, said.append)
    assert f"{quality['psnr']:.2f} dB on 60 test images" in said[0]
    text = (run.path / "table.md").read_text()
    assert text == said[0] + "\n"
    assert all(row["name"] in text and f"{100 * row['accuracy']:.1f}" in text for row in table)
    assert all(note in text for note in run.data.notes)


def test_the_plan_says_sizes_and_rows():
    plan = stages.plan(tiny(probe__views=1, maps__selection="stride:2"))
    assert "digits, 108 training, 12 validation, 60 test images of 1 × 8 × 8, 10 classes" in plan
    assert "4 tokens × 8" in plan
    assert "8 steps of 16 images" in plan
    assert "maps: 8 × 8 × 2, 0.00 GiB" in plan
    assert "rows: tdsm-avg, tdsm-knn, " in plan


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"probe__rows": ("tdsm-av",)}, UsageError, "rows: unknown tdsm-av"),
        ({"maps__selection": "stride:0"}, UsageError, "selection 'stride:0'"),
        ({"maps__selection": "0,9"}, UsageError, r"selection names \[9\]"),
        ({"maps__selection": "some"}, UsageError, "selection 'some'"),
        ({"maps__method": "mixture"}, UsageError, "which 'mixture' does not decompose; expected one of solo, "),
        ({"device": "gpu"}, UsageError, "--device gpu: unknown"),
        ({"train__batch_size": 500}, DataError, "fewer than a batch of 500"),
        ({"train__augment": {"crop": 8}}, UsageError, "crop is 8, expected 0 to 7"),
        ({"probe__views": 1, "probe__augment": {"crop": 8}}, UsageError, "crop is 8, expected 0 to 7"),
        ({"init": "nowhere"}, CheckpointError, "nowhere: no field found"),
    ],
    ids=str,
)
def test_what_a_later_stage_could_not_use_is_refused_at_the_start(changes, error, words):
    with pytest.raises(error, match=words):
        stages.check(tiny(**changes), digits())


def test_what_no_stage_uses_is_no_obstacle():
    stages.check(tiny(train__steps=0, train__batch_size=500, probe__augment={"crop": 8}), digits())


@pytest.mark.parametrize("name", ["gpu", "meta", "xla", "cpu:x", ""])
def test_an_unknown_device_is_named(name):
    with pytest.raises(UsageError, match=f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N"):
        stages.device_of(tiny(device=name))


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert stages.device_of(tiny(device="cuda:0")) == torch.device("cuda:0")
    with pytest.raises(ResourceError, match="--device cuda:1: torch sees 1 CUDA devices"):
        stages.device_of(tiny(device="cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="--device cuda: torch sees 0 CUDA devices"):
        stages.device_of(tiny(device="cuda"))
    assert stages.device_of(tiny(device="auto")) == torch.device("cpu")


@pytest.mark.parametrize("inside", [".", "field"])
def test_a_run_can_start_from_a_saved_field(tmp_path, inside):
    saved = stages.initial_field(tiny(seed=5), 1)
    saved.save_pretrained(tmp_path / "saved" / inside)
    run = trained(tmp_path / "run", init=str(tmp_path / "saved"), train__steps=0)
    assert all(torch.equal(v, run.field.state_dict()[k]) for k, v in saved.state_dict().items())
    moved = trained(tmp_path / "moved", init=str(tmp_path / "saved"))
    assert not torch.equal(moved.field.to_channels.weight, saved.to_channels.weight)


def test_a_field_of_other_channels_is_refused(tmp_path):
    stages.initial_field(tiny(), 3).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has 3 channels, the data 1. Set --data.channels grey or rgb"):
        stages.initial_field(tiny(init=str(tmp_path)), 1)


def test_a_published_checkpoints_heads_are_not_those_of_the_fields_settings():
    """Its weights do not say, and a wrong count would silently give another field."""
    config = tiny(init=str(FIXTURES / "checkpoint_small.pt"), field__self_heads=4)
    assert stages.initial_field(config, 3).config.self_heads == 8
    assert stages.initial_field(config.model_copy(update={"init_heads": (2, 4)}), 3).config.cross_heads == 2


def test_settings_are_rewritten_whole(tmp_path):
    path = create_run(tmp_path / "run", tiny(), resume=False)
    stages.rewrite_config(path, tiny(probe__epochs=9))
    assert read_config(path) == tiny(probe__epochs=9)
