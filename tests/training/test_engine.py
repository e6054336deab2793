"""The loop itself, on a small model: what it keeps, what it waits for, what it refuses, and where it takes up."""

import dataclasses
import itertools
import json
import math
import signal
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tdsm.base import io
from tdsm.base.errors import CheckpointError, NonFiniteError, ResourceError
from tdsm.base.randomness import generator
from tdsm.training import engine
from tdsm.training.config import RESUMABLE, LoopConfig, TrainConfig
from tdsm.training.engine import Phase, Task, train
from tdsm.training.steps import Order, warmup_cosine
from tests.tinyrun import content

TIMES = ("seconds", "images_per_second")
STEPS = 24
POINTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
TARGETS = (POINTS @ torch.arange(6.0))[:, None]


class Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, points, targets):
        return (self.model(points) - targets).square().mean()


def make(dropout=0.2, **changes):
    """Describe a small regression in two phases; the bias learns in the second only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1))
    order = Order(50, 8, seed=3)

    def inputs(step, rows):
        taken = order(step)[0][rows]
        return POINTS[taken], TARGETS[taken]

    @torch.no_grad()
    def validate(judged):
        judged.eval()
        return {"score": -(judged(POINTS) - TARGETS).square().mean().item()}

    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    task = Task(
        name="toy",
        model=model,
        loss=Loss(model),
        size=order.size,
        inputs=inputs,
        groups=[
            {"params": weights, "name": "weights", "peak": 3e-2, "weight_decay": 0.01},
            {"params": biases, "name": "biases", "peak": 1e-2, "weight_decay": 0.0},
        ],
        rate=partial(warmup_cosine, steps=STEPS, warmup=4),
        phases=(Phase(6, still=("biases",)), Phase(STEPS - 6)),
        validate=validate,
        score="score",
        validate_every=5,
        checkpoint_every=4,
        remedy=lambda saved: f"Newest: {saved}.",
    )
    return dataclasses.replace(task, **changes)


def state(task):
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def timeless(history):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


def run(settings=None, folder=None, seed=7, made_from=None, **changes):
    task = make(**changes)
    return task, train(task, settings or LoopConfig(), seed=seed, folder=folder, made_from=made_from)


# ---------------------------------------------------------------- what is trained


def test_a_training_is_the_plain_loop():
    """Written out: no part of the engine but its order and schedule."""
    task, history = run(LoopConfig(gradient_clip=0.5), score=None)
    model, losses = make().model.train(), []
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}])
    for step in range(STEPS):
        for p in biases:
            p.requires_grad_(step >= 6)
        taken = Order(50, 8, seed=3)(step)[0]
        torch.manual_seed(engine.derive_seed(7, "step", 0, step))
        loss = Loss(model)(POINTS[taken], TARGETS[taken])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group, peak in zip(optimizer.param_groups, (3e-2, 1e-2), strict=True):
            group["lr"] = warmup_cosine(peak, step, STEPS, 4)
        optimizer.step()
    assert same(state(task), model.state_dict())
    assert [entry["step"] for entry in history] == [5, 10, 15, 20, 24]
    ends = [0, *(entry["step"] for entry in history)]
    assert [entry["loss"] for entry in history] == pytest.approx(
        [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    )
    assert history[-1]["learning_rate"] == warmup_cosine(3e-2, STEPS - 1, STEPS, 4)


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_parts_taken_one_after_another_make_the_same_step(accumulate):
    """20 parts of 8 rows: some are empty."""
    whole, history = run(dropout=0.0)
    parts, again = run(LoopConfig(accumulate=accumulate), dropout=0.0)
    for name, value in state(whole).items():
        torch.testing.assert_close(state(parts)[name], value, rtol=1e-4, atol=1e-5)
    assert [e["loss"] for e in again] == pytest.approx([e["loss"] for e in history], rel=1e-5)


def test_a_group_that_stands_still_does_not_move():
    task = make(phases=(Phase(STEPS, still=("biases",)),))
    before = state(task)
    train(task, LoopConfig(), seed=0)
    moved = {name for name, value in state(task).items() if not torch.equal(value, before[name])}
    assert moved == {"0.weight", "3.weight"}
    assert all(p.requires_grad for p in task.model.parameters())


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    task = make()
    torch.manual_seed(5)
    train(task, LoopConfig(), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("write_bytes", "write_folder"):
        monkeypatch.setattr(io, name, lambda *_: pytest.fail("written"))
    run()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_rounded_steps_keep_the_weights_whole_and_come_close(precision):
    whole, history = run(dropout=0.0)
    rounded, again = run(LoopConfig(precision=precision, gradient_clip=10.0), dropout=0.0)
    assert all(value.dtype == torch.float32 for value in state(rounded).values())
    assert not same(state(whole), state(rounded))
    assert [e["loss"] for e in again] == pytest.approx([e["loss"] for e in history], rel=0.1)


# ---------------------------------------------------------------- averaging, the best, stopping


def test_the_average_follows_the_weights_and_is_what_is_judged_and_kept():
    seen = []
    task = make(score=None, phases=(Phase(STEPS),))
    whole = engine._Training._descend

    def spy(self):
        whole(self)
        seen.append({name: value.detach().clone() for name, value in self.task.model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Training, "_descend", spy)
        train(task, LoopConfig(ema=0.9), seed=0)
    average = seen[0]
    for now in seen[1:]:
        average = {name: 0.9 * average[name] + 0.1 * value for name, value in now.items()}
    for name, value in task.model.named_parameters():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)


def test_nothing_is_copied_that_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(engine.copy, "deepcopy", lambda *_: pytest.fail("copied"))
    task, _ = run(score=None)
    assert task.score is None


def scored(*scores):
    """A task whose measurements give these scores, with the weights that each was measured with."""
    left, seen = iter(scores), []

    def validate(judged):
        seen.append({name: value.clone() for name, value in judged.state_dict().items()})
        return {"score": next(left)}

    return make(validate=validate, phases=(Phase(STEPS),)), seen


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("scores", [(5, 1, 2, 3, 4), (1, 2, 5, 5, 3), (1, 2, 3, 4, 5)], ids=["first", "tie", "last"])
def test_the_first_of_the_best_is_kept(scores, ema):
    task, seen = scored(*map(float, scores))
    train(task, LoopConfig(ema=ema), seed=0)
    assert same(state(task), seen[scores.index(5)])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_is_kept_over_a_resumption(tmp_path, monkeypatch, ema):
    for name, scores in {"first": (5, 1, 2, 3, 4), "middle": (1, 2, 5, 1, 1), "last": (1, 2, 3, 4, 5)}.items():
        task, seen = scored(*map(float, scores))
        with monkeypatch.context() as patch:
            fail_at(patch, 17)
            with pytest.raises(OSError, match="power cut"):
                train(task, LoopConfig(ema=ema), seed=0, folder=tmp_path / f"{name}{ema}")
        other, later = scored(*map(float, scores[3:]))
        train(other, LoopConfig(ema=ema), seed=0, folder=tmp_path / f"{name}{ema}")
        assert same(state(other), (seen[:3] + later)[scores.index(5)])


def test_the_best_is_written_only_where_it_is_not_what_stands_there(tmp_path):
    for scores, has_best in (((1, 2, 3, 4, 5), False), ((5, 4, 3, 2, 1), True)):
        task, _ = scored(*map(float, scores))
        train(dataclasses.replace(task, checkpoint_every=5), LoopConfig(), seed=0, folder=tmp_path / str(has_best))
        newest = tmp_path / str(has_best) / "checkpoints" / f"step-{STEPS:08d}"
        assert (newest / "best.safetensors").exists() == has_best
        assert not (newest / "average.safetensors").exists()


def test_it_stops_when_patience_is_over_and_takes_that_up(tmp_path):
    task, _ = scored(1.0, 3.0, 2.0, 3.0, 9.0)
    history = train(task, LoopConfig(patience=2), seed=0, folder=tmp_path)
    assert [entry["score"] for entry in history] == [1.0, 3.0, 2.0, 3.0]
    again, _ = scored()
    assert train(again, LoopConfig(patience=2), seed=0, folder=tmp_path) == history
    assert same(state(again), state(task))


# ---------------------------------------------------------------- resuming


def fail_at(monkeypatch, step, error=None):
    whole = engine._Training.take_step

    def broken(self):
        if self.step == step:
            raise error or OSError("power cut")
        whole(self)

    monkeypatch.setattr(engine._Training, "take_step", broken)


SETTINGS = {
    "plain": LoopConfig(),
    "everything": LoopConfig(ema=0.8, gradient_clip=0.5, accumulate=2, patience=4),
    "float16": LoopConfig(precision="float16", gradient_clip=0.5),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_wherever_it_broke_off_it_ends_as_if_it_had_not(tmp_path, monkeypatch, name):
    whole, history = run(SETTINGS[name], tmp_path / "whole")
    for step in range(STEPS):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            fail_at(patch, step)
            with pytest.raises(OSError, match="power cut"):
                run(SETTINGS[name], folder)
        again, resumed = run(SETTINGS[name], folder)
        assert same(state(again), state(whole)), step
        assert timeless(resumed) == timeless(history), step
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert timeless(lines) == timeless(history)
        newest = f"checkpoints/step-{history[-1]['step']:08d}/*[elt].safetensors"
        assert content(folder, newest) == content(tmp_path / "whole", newest) != {}


def test_metrics_are_cut_to_where_the_training_stands(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 11)
        with pytest.raises(OSError, match="power cut"):
            run(folder=tmp_path)
    file = tmp_path / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [5, 10]
    with monkeypatch.context() as patch:
        fail_at(patch, 8)
        with pytest.raises(OSError, match="power cut"):
            run(folder=tmp_path)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [5]


def test_ctrl_c_ends_after_the_step_and_saves_it(tmp_path, monkeypatch):
    whole, _ = run()
    descend = engine._Training._descend

    def interrupted(self):
        descend(self)
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Training, "_descend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder=tmp_path)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000007"]
    assert same(state(run(folder=tmp_path)[0]), state(whole))


def test_what_a_checkpoint_was_made_from_is_compared(tmp_path):
    run(folder=tmp_path, made_from={"seed": 1, "data": {"size": (8, 8)}})
    run(folder=tmp_path, made_from={"seed": 1, "data": {"size": [8, 8]}})
    with pytest.raises(
        CheckpointError, match=r"made from something else: data\.size: \[8, 8\] -> \[8, 9\]; seed: 1 -> 2"
    ):
        run(folder=tmp_path, made_from={"seed": 2, "data": {"size": (8, 9)}})


def test_more_steps_continue_with_the_longer_schedule(tmp_path):
    run(folder=tmp_path)
    longer = {"rate": partial(warmup_cosine, steps=40, warmup=4), "phases": (Phase(40),)}
    _, history = run(folder=tmp_path, **longer)
    assert [entry["step"] for entry in history] == [5, 10, 15, 20, 24, 25, 30, 35, 40]
    assert [entry["learning_rate"] for entry in history[5:]] == [
        warmup_cosine(3e-2, step - 1, 40, 4) for step in (25, 30, 35, 40)
    ]


def test_leftovers_of_killed_writes_are_swept(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000004.99.tmp").mkdir(parents=True)
    run(folder=tmp_path)
    assert all(f.name.startswith("step-") for f in (tmp_path / "checkpoints").iterdir())


def test_every_entry_that_may_change_on_resuming_is_a_setting():
    assert RESUMABLE.keys() < TrainConfig.model_fields.keys()


# ---------------------------------------------------------------- waiting for the device


class Reads(TorchDispatchMode):
    """Count numbers that the host reads from tensors of floats: each would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._local_scalar_dense.default and arguments[0].is_floating_point():
            self.count += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "settings",
    [LoopConfig(gradient_clip=1.0), LoopConfig(gradient_clip=1.0, ema=0.9, accumulate=2), SETTINGS["float16"]],
    ids=["plain", "averaged", "float16"],
)
def test_a_step_reads_nothing_from_the_device(monkeypatch, settings):
    """AdamW on a CPU counts its steps in tensors, which a GPU keeps on the host: not counted."""
    inside, whole, step = [], engine._Training.take_step, torch.optim.AdamW.step

    def counted(self):
        with Reads() as reads:
            whole(self)
        inside.append(reads.count)

    def uncounted(self, *arguments, **options):
        with _disable_current_modes():
            return step(self, *arguments, **options)

    monkeypatch.setattr(engine._Training, "take_step", counted)
    monkeypatch.setattr(torch.optim.AdamW, "step", uncounted)
    run(settings)
    assert inside == [0] * STEPS


def test_the_counter_of_reads_counts():
    with Reads() as reads:
        torch.rand(()).item()
        float(torch.rand(()))
        bool(torch.rand(()) > 2)
    assert reads.count == 2


# ---------------------------------------------------------------- numbers that are none


def spoiled(step, value):
    """A task whose loss is multiplied by a number at one step."""
    task = make()
    whole = task.inputs

    def inputs(number, rows):
        points, targets = whole(number, rows)
        return points, targets * (value if number == step else 1)

    return dataclasses.replace(task, inputs=inputs)


@pytest.mark.parametrize(("step", "saved"), [(0, None), (5, 4), (23, 20)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_none_is_named_before_anything_is_kept(tmp_path, step, saved, value):
    task = spoiled(step, value)
    words = rf"toy: the loss is {value} at step {step + 1}\. Newest: {saved}\."
    with pytest.raises(NonFiniteError, match=words):
        train(task, LoopConfig(), seed=0, folder=tmp_path)
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("*"))
    assert (names[-1] if names else None) == (f"step-{saved:08d}" if saved else None)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(value) for line in lines for value in json.loads(line).values())


@pytest.mark.parametrize(
    ("gradient", "clip", "words"),
    [
        (math.inf, 1.0, "the gradient's norm is inf at step 3"),
        (math.nan, 1.0, "the gradient's norm is nan at step 3"),
        (math.nan, None, "the loss is nan at step 4"),
    ],
)
def test_a_gradient_that_is_none_is_named(monkeypatch, gradient, clip, words):
    descend = engine._Training._descend

    def broken(self):
        if self.step == 2:
            self.task.model[0].weight.grad[0, 0] = gradient
        descend(self)

    monkeypatch.setattr(engine._Training, "_descend", broken)
    with pytest.raises(NonFiniteError, match=words):
        run(LoopConfig(gradient_clip=clip))


def test_weights_that_are_none_are_not_kept(tmp_path, monkeypatch):
    """Spoiled in the last step before a checkpoint: no loss has seen them."""
    descend = engine._Training._descend

    def broken(self):
        descend(self)
        if self.step == 3:
            self.task.model[0].weight.data[0, 0] = math.nan

    monkeypatch.setattr(engine._Training, "_descend", broken)
    with pytest.raises(NonFiniteError, match="a weight is not finite at step 4"):
        run(folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_measurement_that_is_none_is_named(tmp_path):
    task = make(validate=lambda judged: {"score": math.nan}, checkpoint_every=5)
    with pytest.raises(NonFiniteError, match="the measured score is nan at step 5"):
        train(task, LoopConfig(), seed=0, folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("steps", [2, 60])
def test_float16_skips_a_step_that_overflows_and_names_what_does_not_end(monkeypatch, steps):
    """A step that overflows halves what the loss is multiplied with, 2¹⁶ at first."""
    whole, skipped = engine._Training._backward, []

    def overflowing(self, rows, size, *, is_last):
        part = whole(self, rows, size, is_last=is_last)
        if self.step < steps:
            self.task.model[0].weight.grad[0, 0] = math.inf
            skipped.append(state(self.task))
        return part

    monkeypatch.setattr(engine._Training, "_backward", overflowing)
    task = make(phases=(Phase(60),))
    if steps == 2:
        train(task, LoopConfig(precision="float16"), seed=0)
        assert same(*skipped)
        assert not same(state(task), skipped[0])
        return
    with pytest.raises(
        NonFiniteError, match=r"gradients overflow float16 at step 20, even with the loss times 0\.0625"
    ):
        train(task, LoopConfig(precision="float16"), seed=0)


# ---------------------------------------------------------------- trackers and warnings


def test_tensorboard_holds_every_measurement_once(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patch:
        fail_at(patch, 11)
        with pytest.raises(OSError, match="power cut"):
            train(make(), LoopConfig(), seed=7, folder=tmp_path, tracker="tensorboard")
    task = make()
    history = train(task, LoopConfig(), seed=7, folder=tmp_path, tracker="tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tracker"), purge_orphaned_data=True)
    events.Reload()
    for name in ("loss", "score", "learning_rate"):
        seen = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        assert seen == {entry["step"]: pytest.approx(entry[name], rel=1e-6) for entry in history}
    assert same(state(task), state(run()[0]))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ResourceError, match=f"the tracker {name} needs .* pip install accelerate {name}"):
        train(make(), LoopConfig(), seed=0, folder=tmp_path, tracker=name)


def test_a_cpu_without_units_is_warned_of(monkeypatch):
    monkeypatch.setattr(engine, "is_emulated", lambda device, precision: precision == "bfloat16")
    with pytest.warns(UserWarning, match="toy: this CPU has no bfloat16 units"):
        run(LoopConfig(precision="bfloat16"))


def test_the_seed_decides_what_the_model_draws():
    one, same_again, other = (state(run(seed=seed)[0]) for seed in (7, 7, 8))
    assert same(one, same_again)
    assert not same(one, other)
    assert generator(0).initial_seed() != generator(1).initial_seed()
