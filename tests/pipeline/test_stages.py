import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tdsm.base.device import resolve_device
from tdsm.base.errors import CheckpointError, DataError, ResourceError, UsageError
from tdsm.models.sanity import field_sanity, mean_image
from tdsm.pipeline import field as fields
from tdsm.pipeline import quality, stages
from tdsm.pipeline.field import initial_field
from tdsm.pipeline.plan import plan
from tdsm.pipeline.table import by_accuracy, table_markdown
from tdsm.report.gather import write_page
from tdsm.training.reconstruction import reconstruction_quality
from tests.samples import all_floats
from tests.tinyrun import content, demo, digits, tiny, trained


def silent(words):
    pass


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_a_trained_field_is_kept_and_not_trained_again(tmp_path, monkeypatch):
    run = trained(tmp_path / "run")
    before = content(tmp_path / "run")
    monkeypatch.setattr(fields, "train_field", None)
    again = stages.train(tmp_path / "run", run.config, silent, resume=True)
    assert content(tmp_path / "run") == before
    assert all(torch.equal(v, again.field.state_dict()[k]) for k, v in run.field.state_dict().items())
    assert not again.field.training


def test_a_run_whose_field_is_not_trained_says_how_to_go_on(tmp_path):
    run = trained(tmp_path / "run")
    shutil.rmtree(run.path / "field")
    with pytest.raises(CheckpointError, match=rf"not trained to the end. Continue: tdsm train --run {tmp_path}/run"):
        stages.take_up(tmp_path / "run", silent)


def test_a_damaged_field_is_noticed(tmp_path):
    demo(tmp_path / "run")
    file = tmp_path / "run" / "field" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: size or hash differ"):
        stages.take_up(tmp_path / "run", silent)


def test_a_report_comes_after_the_evaluation(tmp_path):
    run = trained(tmp_path / "run", train__steps=0)
    with pytest.raises(CheckpointError, match=r"not evaluated yet\. First: tdsm classify .*; tdsm evaluate "):
        write_page(run)


def test_quality_is_measured_on_the_test_images_once(tmp_path, monkeypatch):
    run = stages.take_up(demo(tmp_path / "run"), silent)
    kept = json.loads((run.path / "quality" / "quality.json").read_text())
    measured, mean = reconstruction_quality(run.field, run.data.test), mean_image([all_floats(run.data.train)])
    assert kept == measured | field_sanity(measured["psnr"], [all_floats(run.data.test)], mean)
    assert "almost nothing" in kept["sanity"]  # after 8 steps
    monkeypatch.setattr(quality, "reconstruction_quality", None)
    text = stages.evaluate(run)
    assert f"{kept['psnr']:.2f} dB on 60 test images" in text
    written = (run.path / "table.md").read_text()
    said, _, rest = text.partition("\n\n")
    assert written.startswith(f"{said}\n\n")
    assert written.endswith(rest[rest.index("\n- ") :])  # what is said of both tables
    table = json.loads((run.path / "table.json").read_text())
    assert table_markdown(by_accuracy(table), table) in written
    assert all(row["name"] in text and f"{100 * row['accuracy']:.1f}" in text for row in table)
    assert all(note in text for note in run.data.notes)


def test_the_plan_says_sizes_times_and_rows():
    words = plan(tiny(probe__views=1, maps__selection="stride:2"))
    assert "digits, 108 training, 12 validation, 60 test images of 1 × 8 × 8, 10 classes" in words
    assert "4 tokens × 8" in words
    assert re.search(r"8 steps of 16 images on auto, about \d+ s", words)
    assert re.search(r"maps: 8 × 8 × 2 as float16; all features of 288 images: 0.00 GiB, about \d+ s", words)
    assert "rows: tdsm-avg, tdsm-knn, " in words


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
        stages.check(config := tiny(**changes), digits(), initial_field(config, 1))


def test_what_no_stage_uses_is_no_obstacle():
    config = tiny(train__steps=0, train__batch_size=500, probe__augment={"crop": 8})
    stages.check(config, digits(), initial_field(config, 1))


@pytest.mark.parametrize("name", ["gpu", "meta", "xla", "cpu:x", ""])
def test_an_unknown_device_is_named(name):
    with pytest.raises(UsageError, match=f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ResourceError, match="--device cuda:1: torch sees 1 CUDA devices"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="--device cuda: torch sees 0 CUDA devices"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("inside", [".", "field"])
def test_a_run_can_start_from_a_saved_field(tmp_path, inside):
    saved = initial_field(tiny(seed=5), 1)
    saved.save_pretrained(tmp_path / "saved" / inside)
    run = trained(tmp_path / "run", init=str(tmp_path / "saved"), train__steps=0)
    assert all(torch.equal(v, run.field.state_dict()[k]) for k, v in saved.state_dict().items())
    moved = trained(tmp_path / "moved", init=str(tmp_path / "saved"))
    assert not torch.equal(moved.field.to_channels.weight, saved.to_channels.weight)


def test_a_field_of_other_channels_is_refused(tmp_path):
    initial_field(tiny(), 3).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has 3 channels, the data 1. Set --data.channels grey or rgb"):
        initial_field(tiny(init=str(tmp_path)), 1)


def test_a_published_checkpoints_heads_are_not_those_of_the_fields_settings():
    """Its weights do not say, and a wrong count would silently give another field."""
    config = tiny(init=str(FIXTURES / "checkpoint_small.pt"), field__self_heads=4)
    assert initial_field(config, 3).config.self_heads == 8
    assert initial_field(config.model_copy(update={"init_heads": (2, 4)}), 3).config.cross_heads == 2


def test_a_precision_that_the_processor_only_emulates_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "is_emulated", lambda device, precision: precision == "bfloat16")
    stages._check_precision("float32", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"--maps\.precision bfloat16: this processor has no units for it"):
        stages._check_precision("bfloat16", torch.device("cpu"))
