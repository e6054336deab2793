import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tdsm.base.errors import NonFiniteError, UsageError
from tdsm.base.randomness import generator
from tdsm.classification import regimes as module
from tdsm.classification.config import RegimeConfig
from tdsm.classification.regimes import (
    REGIMES,
    combined_loss,
    parameter_groups,
    predict,
    schedule,
)
from tdsm.models.load import load_field
from tdsm.pipeline import regimes as pipeline
from tdsm.pipeline.regimes import regimes_markdown, train_regime
from tests.tinyrun import content, demo, digits, finished, tdsm

SMALL = {"epochs": 2, "batch_size": 36, "warmup_steps": 2}  # 3 steps an epoch


def config(**changes):
    return RegimeConfig.model_validate(SMALL | changes)


@pytest.fixture
def run(tmp_path):
    return finished(demo(tmp_path / "run"))


def new_classifier(run, settings, seed):
    return module.new_classifier(run.field, run.data.train, run.config.maps, settings, seed, "cpu")


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def batch(count=6):
    images = digits().train
    return images.floats(torch.arange(count)), images.labels[:count]


# ---------------------------------------------------------------- what each regime does


def test_frozen_leaves_the_field_bit_for_bit(run):
    before = state(run.field)
    result = train_regime(run, config(regime="frozen"), 0)
    assert same(state(load_field(run.path / "regimes/frozen/seed-0/field")), before)
    assert result["psnr_before"] == result["psnr_after"]


@pytest.mark.parametrize("regime", ["finetune", "two_stage"])
def test_the_field_learns_and_the_runs_own_stays(run, regime):
    before = state(run.field)
    result = train_regime(run, config(regime=regime), 0)
    after = load_field(run.path / f"regimes/{regime}/seed-0/field").state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert same(state(run.field), before)
    assert result["psnr_before"] != result["psnr_after"]
    assert [entry["epoch"] for entry in result["history"]] == ([3, 4] if regime == "two_stage" else [1, 2])


@pytest.mark.parametrize("regime", REGIMES)
def test_test_accuracy_is_that_of_the_epoch_best_on_validation(run, regime):
    result = train_regime(run, config(regime=regime), 0)
    best = max(entry["validation_accuracy"] for entry in result["history"])
    assert result["validation_accuracy"] == best
    model = new_classifier(run, config(regime=regime), 0)
    folder = run.path / "regimes" / regime / "seed-0"
    model.field.load_state_dict(load_field(folder / "field").state_dict())
    from tdsm.base import io

    model.head.load_state_dict(io.read_tensors(folder / "head.safetensors"))
    assert module.accuracy_of(model, run.data.validation, "cpu") == best
    assert module.accuracy_of(model, run.data.test, "cpu") == result["accuracy"]


def test_reconstruction_is_kept_when_it_is_asked_for(run, tmp_path):
    rates = {"encoder": 1e-2, "processor": 1e-2, "decoder": 1e-2}
    lost, kept = (
        train_regime(each, config(learning_rates=rates, reconstruction_weight=weight, epochs=4), number)
        for number, (each, weight) in enumerate([(run, 0.0), (finished(demo(tmp_path / "other")), 30.0)])
    )
    assert kept["psnr_after"] > lost["psnr_after"] + 1


def test_a_finished_seed_is_not_trained_again(run, monkeypatch):
    result = train_regime(run, config(), 0)
    monkeypatch.setattr(pipeline, "fit_regime", None)
    assert train_regime(run, config(), 0) == result


def test_results_of_other_settings_are_not_taken_for_these(run):
    train_regime(run, config(), 0)
    with pytest.raises(UsageError, match=r"other settings: head.kind: avg -> max\. Use the same, or remove"):
        train_regime(run, config(head={"kind": "max"}), 0)
    assert train_regime(run, config(seeds=2), 1)["seed"] == 1


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("regime", REGIMES)
def test_every_parameter_is_in_one_group(run, regime):
    model = new_classifier(run, config(regime=regime), 0)
    groups = parameter_groups(model, config(regime=regime))
    assert [group["name"] for group in groups] == ["encoder", "processor", "decoder", "head"]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["peak"] for group in groups[:3]} == {REGIMES[regime].field_rate}


def test_a_part_at_rate_zero_stands_still(run):
    before = state(run.field)
    rates = {"encoder": 0.0, "processor": 1e-3, "decoder": 1e-3}
    train_regime(run, config(learning_rates=rates), 0)
    after = load_field(run.path / "regimes/finetune/seed-0/field").state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
    assert "processor" in changed
    assert "encoder" not in changed


def test_backpropagation_is_that_of_the_loop(run):
    weights = []
    for strategy in ("loop", "exact"):
        other = copy.copy(run)
        maps = run.config.maps.model_copy(update={"strategy": strategy})
        object.__setattr__(other, "config", run.config.model_copy(update={"maps": maps}))
        settings = config(reconstruction_weight=0.5)
        model = new_classifier(other, settings, 0)
        optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=1e-2)
        for step in range(5):
            module.take_step(model, optimizer, run.data.train, settings, 0, step, True, "cpu")
        weights.append(state(model))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)
    assert not torch.equal(weights[0]["field.to_channels.weight"], run.field.to_channels.weight)


def test_the_loss_is_the_weighted_sum_it_is_said_to_be(run):
    settings = config(classification_weight=0.7, reconstruction_weight=0.3, label_smoothing=0.1)
    model, (images, labels) = new_classifier(run, settings, 0), batch()
    loss = combined_loss(model, images, labels, settings, generator(0, "x"), learns=True)
    shown = model.field.decode(model.field.encode(images), size=(8, 8))
    expected = 0.7 * F.cross_entropy(model(images), labels, label_smoothing=0.1)
    expected = expected + 0.3 * F.mse_loss(shown, images.movedim(1, -1))
    torch.testing.assert_close(loss, expected)
    alone = combined_loss(model, images, labels, settings, generator(0, "x"), learns=False)
    torch.testing.assert_close(alone, 0.7 * F.cross_entropy(model(images), labels, label_smoothing=0.1))
    assert all(p.grad is None for p in model.field.parameters())


def test_mixup_mixes_images_and_labels_alike(run):
    settings = config(mixup=0.5)
    model, (images, labels) = new_classifier(run, settings, 0), batch()
    loss = combined_loss(model, images, labels, settings, generator(0, "x"), learns=True)
    random = generator(0, "x")
    other = torch.randperm(len(images), generator=random)
    m = module._beta(0.5, random)
    scores = model(m * images + (1 - m) * images[other])
    expected = m * F.cross_entropy(scores, labels) + (1 - m) * F.cross_entropy(scores, labels[other])
    torch.testing.assert_close(loss, expected)
    assert 0 < m < 1


def test_token_drop_blanks_whole_tokens(run):
    model, (images, labels) = new_classifier(run, config(), 0), batch()
    seen = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    combined_loss(model, images, labels, config(token_drop=0.5), generator(1, "x"), learns=True)
    combined_loss(model, images, labels, config(), generator(1, "x"), learns=True)
    dropped, whole = seen
    is_blank = (dropped == model.head.mean).all(dim=2).all(dim=1)
    assert 0 < is_blank.sum() < is_blank.numel()
    kept = ~is_blank[:, None, None].expand_as(whole)
    assert torch.equal(dropped[kept], whole[kept])


def test_the_schedule_warms_up_and_falls_to_zero_in_every_phase():
    shares = [schedule(step, config(epochs=10, warmup_steps=4), per_epoch=2) for step in range(40)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:20] == sorted(shares[4:20], reverse=True)
    assert shares[19] < 0.02
    assert shares[20:] == shares[:20]


def test_a_loss_that_is_no_number_stops_it(run, monkeypatch):
    monkeypatch.setattr(module, "combined_loss", lambda model, *_: model.head.mean.sum() * math.nan)
    with pytest.raises(NonFiniteError, match="the loss is nan at step 1"):
        train_regime(run, config(), 0)
    assert not (run.path / "regimes/finetune/seed-0/result.json").exists()


# ---------------------------------------------------------------- resuming, stopping, averaging


@pytest.mark.parametrize("regime", ["finetune", "two_stage"])
@pytest.mark.parametrize("changes", [{}, {"ema": 0.8, "mixup": 0.3, "token_drop": 0.3}], ids=["plain", "everything"])
def test_a_training_that_broke_off_ends_as_if_it_had_not(run, tmp_path, monkeypatch, regime, changes):
    settings = config(regime=regime, **changes)
    whole = train_regime(run, settings, 0)
    other = finished(demo(tmp_path / "other"))
    step = module.take_step

    def cut(model, optimizer, images, settings, seed, number, *rest):
        if number == 4:
            raise OSError("power cut")
        return step(model, optimizer, images, settings, seed, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "take_step", cut)
        with pytest.raises(OSError, match="power cut"):
            train_regime(other, settings, 0)
    again = train_regime(other, settings, 0)
    for key in ("accuracy", "validation_accuracy", "psnr_after", "epoch"):
        assert again[key] == whole[key]
    patterns = [f"regimes/{regime}/seed-0/field/model.safetensors", f"regimes/{regime}/seed-0/head.safetensors"]
    assert content(run.path, *patterns) == content(other.path, *patterns)
    assert len(content(run.path, *patterns)) == 2


def test_it_stops_when_validation_no_longer_improves(run, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9, 0.9, 0.9])
    monkeypatch.setattr(module, "accuracy_of", lambda *_: next(scores))
    result = train_regime(run, config(epochs=6, patience=2), 0)
    assert [entry["validation_accuracy"] for entry in result["history"]] == [0.1, 0.5, 0.4, 0.5]
    assert result["epoch"] == 2


def test_averaged_weights_are_the_ones_judged(run):
    settings = config(ema=0.9, epochs=1)
    model = new_classifier(run, settings, 0)
    start = state(model)
    module._fit(model, run.data, settings, 0, run.path / "regimes/finetune/seed-9", "cpu")
    steps = 3
    other = new_classifier(run, settings, 0)
    optimizer = torch.optim.AdamW(parameter_groups(other, settings), weight_decay=settings.weight_decay)
    average = None
    for step in range(steps):
        module.take_step(other, optimizer, run.data.train, settings, 0, step, True, "cpu")
        now = state(other)
        average = now if average is None else {k: 0.9 * average[k] + 0.1 * now[k] for k in now}
    for name, value in state(model).items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    assert not same(state(model), start)


# ---------------------------------------------------------------- the table


def test_the_table_has_a_line_a_regime_with_seeds_averaged():
    def result(regime, seed, accuracy):
        head = {"settings": {"head": {"kind": "avg"}}, "n_test": 100, "validation_accuracy": 0.5}
        return head | {"regime": regime, "seed": seed, "accuracy": accuracy, "psnr_before": 20.0, "psnr_after": 19.5}

    text = regimes_markdown([result("frozen", 0, 0.4), result("finetune", 0, 0.5), result("finetune", 1, 0.6)])
    assert "| frozen | avg | 1 | 40.0 | – | 30.9 – 49.8 | 50.0 | 20.00 | 19.50 |" in text
    assert "| finetune | avg | 2 | 55.0 | 7.1 | 45.2 – 64.4 | 50.0 | 20.00 | 19.50 |" in text


def test_the_command_trains_every_seed_and_tabulates_all_regimes(tmp_path, capsys):
    path = demo(tmp_path / "run")
    options = ["--epochs", 1, "--batch-size", 36]
    assert tdsm("finetune", path, "--regime", "frozen", *options) == 0
    assert tdsm("finetune", path, "--seeds", 2, "--head.kind", "max", *options) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"{path}/regimes.md"
    text = (path / "regimes.md").read_text()
    assert text in captured.err
    assert "| frozen | avg | 1 |" in text
    assert "| finetune | max | 2 |" in text
    assert tdsm("finetune", path, "--regime", "thawed") == 2
    assert len(predict(new_classifier(finished(path), config(), 0), digits().test, "cpu")) == 60
