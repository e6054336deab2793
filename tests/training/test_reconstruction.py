import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError, DataError, NonFiniteError, UsageError
from tdsm.base.statistics import psnr
from tdsm.data import Data, ImageSet
from tdsm.models.field import NeuralField
from tdsm.pipeline.field import new_field
from tdsm.pipeline.folder import create_run
from tdsm.pipeline.stages import initial_field
from tdsm.tokenfield.coords import grid
from tdsm.training import engine
from tdsm.training import reconstruction as module
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import training_loss
from tdsm.training.reconstruction import (
    StepLoss,
    image_psnr,
    measure_psnr,
    reconstruction_quality,
    train_field,
    validation_images,
)
from tests.samples import all_floats
from tests.tinyrun import content, digits, tdsm, tiny, write_yaml

WHOLE_HISTORY = ("step", "loss", "psnr", "learning_rate")  # seconds differ


def train(path: Path, **changes):
    """Train a tiny field and return it with its history."""
    config = tiny(**changes)
    field = initial_field(config, 1)
    return field, train_field(field, digits(), config.train, config.seed, path, {})


def weights(path: Path) -> dict[str, str]:
    return content(path, "field/model.safetensors")


def history(path: Path) -> list[tuple]:
    entries = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [tuple(entry[name] for name in WHOLE_HISTORY) for entry in entries]


def steps(path: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (path / "checkpoints").glob("step-*"))


def fail_at(monkeypatch, step: int, error: BaseException) -> None:
    """Make the step of this number fail before it does anything."""
    whole = engine._Training.take_step

    def broken(self):
        if self.step == step:
            raise error
        whole(self)

    monkeypatch.setattr(engine._Training, "take_step", broken)


# ---------------------------------------------------------------- what a step sees


class Memory(NeuralField):
    """Remembers images instead of encoding them: its reconstruction is perfect."""

    def encode(self, images, keep=None):
        self.seen, self.keep = images, keep
        return images.flatten(1)[:, None]

    def decode(self, tokens, size=None, coords=None):
        self.asked = coords
        axes = [torch.linspace(-1, 1, length) for length in self.seen.shape[2:]]
        rows, columns = [(coords[:, i, None] - axis).abs().argmin(dim=1) for i, axis in enumerate(axes)]
        return self.seen[:, :, rows, columns].movedim(1, 2)


@pytest.mark.parametrize("queries", [None, 7, 60, 1000])
def test_colours_are_compared_at_the_points_that_were_decoded(queries):
    images, field = torch.rand(3, 2, 6, 10), Memory(tiny().field)
    loss = training_loss(field, images, TrainConfig(num_queries=queries), 0, 1)
    assert loss.item() == 0
    assert field.asked.shape == (queries if queries == 7 else 60, 2)
    known = {tuple(point) for point in grid((6, 10)).tolist()}
    assert {tuple(point) for point in field.asked.tolist()} <= known
    assert len(field.asked.unique(dim=0)) == len(field.asked)


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 60), (0.25, 15), (0.001, 1)])
def test_a_share_of_the_pixels_is_encoded_each_image_its_own(fraction, kept):
    images, field = torch.rand(3, 1, 6, 10), Memory(tiny().field)
    weights = {"full": 0, "sparse_context": 1}
    training_loss(field, images, TrainConfig(objectives=weights, context_fraction=fraction), 0, 1)
    assert field.keep.shape == (3, kept)
    assert all(len(set(row)) == kept and set(row) <= set(range(60)) for row in field.keep.tolist())
    assert kept in (1, 60) or len({tuple(row) for row in field.keep.tolist()}) == 3


def test_the_loss_is_the_mean_squared_error_of_all_points():
    images, field = torch.rand(2, 1, 4, 6) * 2 - 1, new_field(tiny().field.model_copy(update={"channels": 1}), 0)
    shown = field.decode(field.encode(images), size=(4, 6))[..., 0]
    expected = ((shown - images[:, 0]) ** 2).mean()
    torch.testing.assert_close(training_loss(field, images, TrainConfig(), 0, 0), expected)


# ---------------------------------------------------------------- training


def test_the_loss_falls_and_the_history_says_so(tmp_path):
    field, entries = train(
        tmp_path,
        train__steps=60,
        train__learning_rate=1e-2,
        train__validate_every=15,
        train__checkpoint_every=60,
        field__fourier_scale=0.5,
    )
    assert [entry["step"] for entry in entries] == [15, 30, 45, 60]
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert entries[-1]["psnr"] > entries[0]["psnr"] + 1
    shown = validation_images(digits().validation, 8, 0)
    assert entries[-1]["psnr"] == pytest.approx(measure_psnr(field, shown), abs=1e-4)
    assert all(late["seconds"] > early["seconds"] for early, late in pairwise(entries))


def test_a_loss_in_the_history_is_the_mean_since_the_entry_before(tmp_path, monkeypatch):
    def numbered(self, images, step, start):
        return sum(p.sum() for p in self.field.parameters() if p.requires_grad) * 0 + step

    monkeypatch.setattr(StepLoss, "forward", numbered)
    _, entries = train(tmp_path, train__steps=8, train__validate_every=3)
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(3, 1.0), (6, 4.0), (8, 6.5)]


def test_no_steps_leave_the_field_as_it_starts(tmp_path):
    field, entries = train(tmp_path, train__steps=0)
    start = initial_field(tiny(), 1).state_dict()
    assert entries == []
    assert all(torch.equal(value, start[name]) for name, value in field.state_dict().items())


def test_fixed_latents_and_the_fourier_matrix_are_not_trained(tmp_path):
    field, _ = train(tmp_path)
    start = initial_field(tiny(), 1).state_dict()
    changed = {name for name, value in field.state_dict().items() if not torch.equal(value, start[name])}
    frozen = {name for name in start if "latents" in name or "fourier" in name}
    assert frozen
    assert changed == start.keys() - frozen


def test_too_few_images_for_a_batch_are_named(tmp_path):
    with pytest.raises(DataError, match="108 training images are fewer than a batch of 109"):
        train(tmp_path, train__batch_size=109)


def test_training_sees_no_validation_or_test_image(tmp_path, monkeypatch):
    data, seen = digits(), []
    whole = StepLoss.forward

    def spy(self, images, step, start):
        seen.append(images)
        return whole(self, images, step, start)

    monkeypatch.setattr(StepLoss, "forward", spy)
    empty = data.test.subset([])
    config = tiny(train__steps=2).train
    train_field(initial_field(tiny(), 1), Data(data.train, data.validation, empty, "", ()), config, 0, tmp_path)
    known = {image.numpy().tobytes() for image in all_floats(data.train)}
    assert len(torch.cat(seen)) == 32
    assert {image.numpy().tobytes() for image in torch.cat(seen)} <= known


# ---------------------------------------------------------------- resuming is resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert tdsm("train", "--config", write_yaml(path.with_suffix(".yaml")), "--run", path) == 0
    return path


SPARSE = {"train__objectives": {"full": 0, "sparse_context": 1}, "train__context_fraction": 0.5}
AUGMENTED = {"train__augment": {"crop": 1, "flip": True}, "train__num_queries": 20, **SPARSE}


MIXED = {
    "train__objectives": {"full": 0.5, "sparse_context": 1, "token_dropout": 2, "nested": 0.5, "mixture": 1},
    "field__has_masks": True,
}


@pytest.mark.parametrize("changes", [{}, AUGMENTED, MIXED], ids=["plain", "augmented and sparse", "all objectives"])
@pytest.mark.parametrize(("step", "saved"), [(1, []), (3, [2]), (7, [4, 6])])
def test_a_run_that_broke_off_ends_as_if_it_had_not(tmp_path, monkeypatch, step, saved, changes):
    field, entries = train(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        fail_at(patch, step, OSError("power cut"))
        with pytest.raises(OSError, match="power cut"):
            train(tmp_path / "broken", **changes)
    assert steps(tmp_path / "broken") == saved
    resumed, again = train(tmp_path / "broken", **changes)
    for name, value in field.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert [[entry[name] for name in WHOLE_HISTORY] for entry in again] == [
        [entry[name] for name in WHOLE_HISTORY] for entry in entries
    ]
    latest = "checkpoints/step-00000008/*[lr].safetensors"
    assert content(tmp_path / "whole", latest) == content(tmp_path / "broken", latest)
    assert len(content(tmp_path / "whole", latest)) == 2


def test_ctrl_c_saves_the_whole_step_and_ends_with_130(tmp_path, monkeypatch, capsys, uninterrupted):
    """It comes right after the weights have changed: saved as they were before, the step would be taken twice."""
    config = write_yaml(tmp_path / "tiny.yaml")
    whole = torch.optim.AdamW.step
    count = []

    def interrupted(self, *arguments):
        whole(self, *arguments)
        count.append(1)
        if len(count) == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        assert tdsm("train", "--config", config, "--run", tmp_path / "run") == 130
    assert "interrupted; continue with --resume" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [4, 5]
    assert not (tmp_path / "run" / "field").exists()
    assert tdsm("train", "--config", config, "--run", tmp_path / "run", "--resume") == 0
    assert weights(tmp_path / "run") == weights(uninterrupted)
    assert history(tmp_path / "run") == history(uninterrupted)


@pytest.fixture
def heard():
    """Hear Ctrl-C as a terminal's process does; one started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch, heard):
    def stuck(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second Ctrl-C was not heard")

    monkeypatch.setattr(engine._Training, "take_step", stuck)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def damage_newest(path: Path, name: str) -> None:
    newest = max((path / "checkpoints").iterdir())
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / name).write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_costs_its_steps_only(tmp_path, monkeypatch, capsys, uninterrupted, name):
    config = write_yaml(tmp_path / "tiny.yaml")
    with monkeypatch.context() as patch:
        fail_at(patch, 5, NonFiniteError("stop"))
        assert tdsm("train", "--config", config, "--run", tmp_path / "run") == 6
    assert steps(tmp_path / "run") == [2, 4]
    damage_newest(tmp_path / "run", name)
    assert tdsm("train", "--config", config, "--run", tmp_path / "run", "--resume") == 0
    assert "tdsm: warning:" in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(uninterrupted)
    assert history(tmp_path / "run") == history(uninterrupted)
    assert steps(tmp_path / "run") == [6, 8]


def test_a_checkpoint_of_another_field_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match="step-00000008"):
        train(tmp_path, field__widths=(12,))


def kill_in_training(config: Path, run: Path, step: int) -> None:
    """Train in another process and kill it once it has saved this step or a later one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "tdsm", "train", "--config", str(config), "--run", str(run)]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (run.is_dir() and max(steps(run), default=0) >= step):
            time.sleep(0.002)
        process.kill()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 20))])
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, number):
    config = write_yaml(tmp_path / "tiny.yaml", train__steps=40, train__validate_every=7)
    kill_in_training(config, tmp_path / "run", random.Random(number).randrange(2, 36))
    assert not (tmp_path / "run" / "field").exists()
    assert tdsm("train", "--config", config, "--run", tmp_path / "run", "--resume") == 0
    assert tdsm("train", "--config", config, "--run", tmp_path / "whole") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert history(tmp_path / "run") == history(tmp_path / "whole")


# ---------------------------------------------------------------- the same step, otherwise done


def test_parts_taken_one_after_another_make_the_same_step(tmp_path):
    whole, entries = train(tmp_path / "whole", **MIXED)
    parts, again = train(tmp_path / "parts", **MIXED, train__accumulate=3)
    assert [entry["loss"] for entry in again] == pytest.approx([entry["loss"] for entry in entries], rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=1e-5)


def test_a_batch_of_too_many_parts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch of 16 images cannot be cut into 17 parts"):
        train(tmp_path, train__accumulate=17)


def test_bfloat16_rounds_the_step_and_keeps_the_weights_whole(tmp_path):
    _, entries = train(tmp_path / "whole")
    rounded, again = train(tmp_path / "rounded", train__precision="bfloat16")
    losses, others = [[entry["loss"] for entry in history] for history in (entries, again)]
    assert losses != others
    assert others == pytest.approx(losses, rel=0.02)
    assert all(value.dtype == torch.float32 for value in rounded.state_dict().values())


WITH_BACKEND = """
import sys, torch
from tdsm.cli.main import run_command
whole = torch.nn.Module.compile
def compile(self, **options):
    print(type(self).__name__, file=sys.stderr)
    whole(self, backend=sys.argv[1])
torch.nn.Module.compile = compile
sys.exit(run_command(sys.argv[2:]))
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_take_the_same_steps(tmp_path, uninterrupted, backend):
    """In a process of its own: the tests' type checks cannot be traced."""
    config, run = write_yaml(tmp_path / "tiny.yaml"), tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        WITH_BACKEND,
        backend,
        "train",
        "--config",
        config,
        "--run",
        run,
        "--train.compile",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [word for word in done.stderr.splitlines() if word in ("EncoderBlock", "ProcessorBlock", "Attention")]
    assert names == ["EncoderBlock", "ProcessorBlock", "Attention"]
    losses = [[entry[1] for entry in history(path)] for path in (run, uninterrupted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    files = [run / "field" / "model.safetensors" for run in (run, uninterrupted)]
    assert io.read_tensors(files[0]).keys() == io.read_tensors(files[1]).keys()


def test_the_history_has_the_speed(tmp_path):
    _, entries = train(tmp_path)
    assert all(entry["images_per_second"] > 0 and "mfu" not in entry for entry in entries)


# ---------------------------------------------------------------- numbers that are none


def nan_loss(field, *_, **__):
    return field.to_channels.weight.sum() * math.nan


def infinite_gradient(field, *_, **__):
    return (field.to_channels.weight * 0).sum().abs().sqrt()


@pytest.mark.parametrize(("broken", "name"), [(nan_loss, "loss"), (infinite_gradient, "gradient's norm")])
def test_a_number_that_is_none_stops_the_run_before_a_checkpoint(tmp_path, monkeypatch, capsys, broken, name):
    whole, calls = module.training_loss, []

    def loss(*arguments, **options):
        calls.append(1)
        return broken(*arguments) if len(calls) == 6 else whole(*arguments, **options)

    monkeypatch.setattr(module, "training_loss", loss)
    assert tdsm("train", "--config", write_yaml(tmp_path / "tiny.yaml"), "--run", tmp_path / "run") == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"tdsm: train: the {name} is nan at step 6. The newest checkpoint is that of step 4: ")
    assert error.endswith("continue with --resume and a lower --train.learning-rate.")
    assert steps(tmp_path / "run") == [2, 4]
    assert not (tmp_path / "run" / "field").exists()


def test_weights_that_blew_up_in_the_last_step_are_not_saved(tmp_path):
    words = (
        "the measured psnr is nan at step 1. There is no checkpoint yet: start anew with a lower --train.learning-rate"
    )
    with pytest.raises(NonFiniteError, match=words):
        train(tmp_path, train__steps=1, train__learning_rate=1e30)
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- quality


def test_the_images_measured_are_of_every_class():
    labels = torch.arange(4).repeat_interleave(10)
    images = ImageSet(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(40), tuple("abcd"))
    shown = validation_images(images, 8, 0)
    assert shown.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(validation_images(images, 8, 0).ids, shown.ids)
    assert not torch.equal(validation_images(images, 8, 1).ids, shown.ids)
    assert torch.equal(validation_images(images, 100, 0).ids, images.ids)


def test_quality_is_the_mean_over_images_of_each_images_psnr():
    field, images = initial_field(tiny(), 1).eval(), digits().test
    shown = all_floats(images).movedim(1, -1)
    with torch.no_grad():
        ratios = psnr(shown, field.decode(field.encode(all_floats(images)), size=(8, 8)))
    torch.testing.assert_close(image_psnr(field, images, batch_size=7), ratios, rtol=1e-4, atol=1e-4)
    assert measure_psnr(field, images) == pytest.approx(ratios.mean().item(), abs=1e-4)
    quality = reconstruction_quality(field, images)
    assert quality["n"] == 60
    assert quality["deviation"] == pytest.approx(ratios.std(correction=0).item(), abs=1e-4)


def test_a_run_config_is_what_the_run_trains_with(tmp_path, uninterrupted):
    create_run(tmp_path / "run", tiny(), resume=False)
    _, entries = train(tmp_path / "run")
    assert [tuple(entry[name] for name in WHOLE_HISTORY) for entry in entries] == history(uninterrupted)
