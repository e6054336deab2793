import json
import math

import pytest
import torch
import torch.nn.functional as F

from tdsm.base.errors import CheckpointError, DataError, NonFiniteError, UsageError
from tdsm.base.randomness import generator
from tdsm.classification import regimes as module
from tdsm.classification.config import RegimeConfig
from tdsm.classification.probe import accuracy_of, predict
from tdsm.classification.regimes import (
    REGIMES,
    combined_loss,
    fit_regime,
    parameter_groups,
    regime_task,
    schedule,
)
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features
from tdsm.models.field import NeuralField
from tdsm.training import engine
from tdsm.training.reconstruction import reconstruction_quality
from tests.tinyrun import content, digits, tiny

SMALL = {"epochs": 2, "batch_size": 36, "warmup_steps": 2}  # 3 steps an epoch
TIMES = ("seconds", "images_per_second")


def config(**changes):
    return RegimeConfig.model_validate(SMALL | changes)


@pytest.fixture
def field():
    torch.manual_seed(0)
    return NeuralField(tiny(field__channels=1).field).eval()


def fit(field, settings, folder, maps=None, made_from=None):
    return fit_regime(field, digits(), maps or MapConfig(), settings, 5, folder, "cpu", made_from or {})


def new_classifier(field, settings, maps=None):
    return module.new_classifier(field, digits().train, maps or MapConfig(), settings, 5, "cpu")


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def batch(count=6):
    images = digits().train
    return images.floats(torch.arange(count)), images.labels[:count]


# ---------------------------------------------------------------- what each regime does


def test_frozen_leaves_the_field_bit_for_bit(field, tmp_path):
    model, _ = fit(field, config(regime="frozen"), tmp_path)
    assert same(state(model.field), state(field))
    assert not same(state(model.head), state(new_classifier(field, config()).head))


@pytest.mark.parametrize("regime", ["finetune", "two_stage"])
def test_the_field_learns_and_the_given_one_stays(field, tmp_path, regime):
    before = state(field)
    model, history = fit(field, config(regime=regime), tmp_path)
    assert not same(state(model.field), before)
    assert same(state(field), before)
    assert [entry["epoch"] for entry in history] == ([3, 4] if regime == "two_stage" else [1, 2])
    assert all(entry["field_learns"] for entry in history)


def test_two_stages_begin_like_a_frozen_field(field, tmp_path):
    fit(field, config(regime="two_stage"), tmp_path / "both")
    fit(field, config(regime="frozen"), tmp_path / "frozen")
    both, frozen = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("both", "frozen")
    ]
    assert len(both) == 4
    assert both[:2] == frozen


@pytest.mark.parametrize("regime", REGIMES)
def test_the_weights_are_those_of_the_epoch_best_on_validation(field, tmp_path, regime):
    model, history = fit(field, config(regime=regime, epochs=4), tmp_path)
    best = max(entry["validation_accuracy"] for entry in history)
    assert accuracy_of(model, digits().validation, "cpu") == best


def test_reconstruction_is_kept_when_it_is_asked_for(field, tmp_path):
    rates = {"encoder": 1e-2, "processor": 1e-2, "decoder": 1e-2}
    lost, kept = (
        fit(field, config(learning_rates=rates, reconstruction_weight=weight, epochs=4), tmp_path / str(weight))[0]
        for weight in (0.0, 30.0)
    )
    quality = [reconstruction_quality(model.field, digits().test)["psnr"] for model in (lost, kept)]
    assert quality[1] > quality[0] + 0.5


@pytest.mark.parametrize("features", ["tokens", "reconstruction", "additive", "pixels"])
def test_a_head_reads_the_feature_it_is_asked_to(field, tmp_path, features):
    model, _ = fit(field, config(regime="frozen", features=features, epochs=1), tmp_path)
    images, _ = batch()
    read = compute_features(field, images, [features], MapConfig(dtype="float32"))[features]
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model.head(read))


def test_the_encoder_learns_through_its_tokens_alone(field, tmp_path):
    model, _ = fit(field, config(features="tokens"), tmp_path)
    changed = {
        name.split(".")[0] for name, value in state(field).items() if not torch.equal(value, state(model.field)[name])
    }
    assert changed == {"encoder", "processor"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"features": "token"},
            r"--features token: unknown, perhaps you meant 'tokens'; expected one of pixels, tokens",
        ),
        ({"features": "tokens", "token_drop": 0.5}, "--token-drop blanks maps of tokens, which tokens are not"),
    ],
)
def test_a_feature_that_cannot_be_read_so_is_refused(field, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        fit(field, config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_images_for_a_batch_are_named(field, tmp_path):
    with pytest.raises(DataError, match="finetune: 108 training images are fewer than a batch of 109"):
        fit(field, config(batch_size=109), tmp_path)


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("regime", REGIMES)
def test_every_parameter_is_in_one_group(field, regime):
    model = new_classifier(field, config(regime=regime))
    groups = parameter_groups(model, config(regime=regime))
    assert [group["name"] for group in groups] == ["encoder", "processor", "decoder", "head"]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["peak"] for group in groups[:3]} == {REGIMES[regime].field_rate}


def test_a_part_at_rate_zero_stands_still(field, tmp_path):
    rates = {"encoder": 0.0, "processor": 1e-3, "decoder": 1e-3}
    after = state(fit(field, config(learning_rates=rates), tmp_path)[0].field)
    changed = {name.split(".")[0] for name, value in state(field).items() if not torch.equal(after[name], value)}
    assert "processor" in changed
    assert "encoder" not in changed


def test_backpropagation_is_that_of_the_loop(field, tmp_path):
    weights = []
    for strategy in ("loop", "exact"):
        settings = config(reconstruction_weight=0.5, epochs=1, learning_rates={"decoder": 1e-3})
        model, _ = fit(field, settings, tmp_path / strategy, MapConfig(strategy=strategy))
        weights.append(state(model))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)
    assert not torch.equal(weights[0]["field.to_channels.weight"], field.to_channels.weight)


def test_the_loss_is_the_weighted_sum_it_is_said_to_be(field):
    settings = config(classification_weight=0.7, reconstruction_weight=0.3, label_smoothing=0.1)
    model, (images, labels) = new_classifier(field, settings), batch()
    loss = combined_loss(model, images, [(1.0, labels)], settings, learns=True)
    shown = model.field.decode(model.field.encode(images), size=(8, 8))
    expected = 0.7 * F.cross_entropy(model(images), labels, label_smoothing=0.1)
    expected = expected + 0.3 * F.mse_loss(shown, images.movedim(1, -1))
    torch.testing.assert_close(loss, expected)
    alone = combined_loss(model, images, [(1.0, labels)], settings, learns=False)
    torch.testing.assert_close(alone, 0.7 * F.cross_entropy(model(images), labels, label_smoothing=0.1))
    alone.backward()
    assert all(p.grad is None for p in model.field.parameters())


def test_mixup_mixes_images_and_labels_alike(field, tmp_path):
    settings, images = config(mixup=0.5), digits().train
    task = regime_task(new_classifier(field, settings), digits(), settings, 5, "cpu")
    plain = regime_task(new_classifier(field, config()), digits(), config(), 5, "cpu")
    pixels, ((m, labels), (rest, others)), _, _ = task.inputs(4, slice(0, 36))
    own = plain.inputs(4, slice(0, 36))[0]
    random = generator(5, "mixup", 4)
    other = torch.randperm(36, generator=random)
    assert m == module._beta(0.5, random)
    assert 0 < m < 1
    assert rest == 1 - m
    assert torch.equal(others, labels[other])
    torch.testing.assert_close(pixels, m * own + (1 - m) * own[other])
    assert len(images) == 108


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.5, "token_drop": 0.4, "augment": {"crop": 1, "flip": True}}])
@pytest.mark.parametrize("regime", REGIMES)
def test_parts_of_a_batch_add_up_to_it(field, tmp_path, regime, changes):
    settings = config(regime=regime, **changes)
    task = regime_task(new_classifier(field, settings), digits(), settings, 5, "cpu")
    rows = [slice(0, 10), slice(10, 11), slice(11, 36)]
    parts = [(r.stop - r.start) / 36 * task.loss(*task.inputs(4, r)) for r in rows]
    torch.testing.assert_close(torch.stack(parts).sum(), task.loss(*task.inputs(4, slice(0, 36))))


def test_token_drop_blanks_whole_tokens(field):
    model, (images, labels) = new_classifier(field, config()), batch()
    seen = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    uniform = torch.rand(6, 4, generator=generator(1))
    combined_loss(model, images, [(1.0, labels)], config(token_drop=0.5), True, uniform)
    combined_loss(model, images, [(1.0, labels)], config(), True)
    dropped, whole = seen
    is_blank = (dropped == model.head.mean).all(dim=2).all(dim=1)
    assert torch.equal(is_blank, uniform < 0.5)
    assert 0 < is_blank.sum() < is_blank.numel()
    kept = ~is_blank[:, None, None].expand_as(whole)
    assert torch.equal(dropped[kept], whole[kept])


def test_the_schedule_warms_up_and_falls_to_zero_in_every_phase():
    shares = [schedule(step, config(epochs=10, warmup_steps=4), per_epoch=2) for step in range(40)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:20] == sorted(shares[4:20], reverse=True)
    assert shares[19] < 0.02
    assert shares[20:] == shares[:20]


def test_a_loss_that_is_no_number_stops_it(field, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "combined_loss", lambda model, *_: next(model.head.parameters()).sum() * math.nan)
    with pytest.raises(
        NonFiniteError, match=r"finetune: the loss is nan at step 1\. Start anew with a lower --learning-rates\.head"
    ):
        fit(field, config(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- resuming, stopping, averaging


def fail_at(monkeypatch, step):
    whole = engine._Training.take_step

    def broken(self):
        if self.step == step:
            raise OSError("power cut")
        whole(self)

    monkeypatch.setattr(engine._Training, "take_step", broken)


EVERYTHING = {"ema": 0.8, "mixup": 0.3, "token_drop": 0.3, "head": {"dropout": 0.3}, "patience": 2, "epochs": 3}


@pytest.mark.parametrize("regime", ["finetune", "two_stage"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_training_that_broke_off_ends_as_if_it_had_not(field, tmp_path, monkeypatch, regime, changes):
    settings = config(regime=regime, **changes)
    whole, history = fit(field, settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, 4)
        with pytest.raises(OSError, match="power cut"):
            fit(field, settings, tmp_path / "broken")
    again, resumed = fit(field, settings, tmp_path / "broken")
    assert same(state(again), state(whole))
    for entries in (history, resumed):
        for entry in entries:
            assert all(entry.pop(name) >= 0 for name in TIMES)
    assert resumed == history


def test_checkpoints_of_something_else_are_refused(field, tmp_path):
    fit(field, config(), tmp_path, made_from={"field": "abc"})
    with pytest.raises(CheckpointError, match="made from something else: field: abc -> xyz"):
        fit(field, config(), tmp_path, made_from={"field": "xyz"})


def test_only_what_is_needed_is_written(field, tmp_path):
    fit(field, config(epochs=1), tmp_path / "plain")
    fit(field, config(epochs=1, ema=0.5), tmp_path / "averaged")
    files = {"manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"}
    assert set(content(tmp_path / "plain/checkpoints/step-00000003")) == files
    assert set(content(tmp_path / "averaged/checkpoints/step-00000003")) == files | {"average.safetensors"}


def test_it_stops_when_validation_no_longer_improves(field, tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9, 0.9, 0.9])
    monkeypatch.setattr(module, "accuracy_of", lambda *_: next(scores))
    _, history = fit(field, config(epochs=6, patience=2), tmp_path)
    assert [entry["validation_accuracy"] for entry in history] == [0.1, 0.5, 0.4, 0.5]


def test_patience_counts_in_the_last_phase_only(field, tmp_path, monkeypatch):
    scores = iter([0.9, 0.8, 0.7, 0.1, 0.2, 0.3])
    monkeypatch.setattr(module, "accuracy_of", lambda *_: next(scores))
    _, history = fit(field, config(regime="two_stage", epochs=3, patience=1), tmp_path)
    assert [entry["validation_accuracy"] for entry in history] == [0.1, 0.2, 0.3]


def test_classes_do_not_depend_on_how_many_images_are_read_at_once(field, monkeypatch):
    from tdsm.classification import probe

    model = new_classifier(field, config())
    whole = predict(model, digits().test, "cpu")
    assert len(whole) == 60
    monkeypatch.setattr(probe, "READ_IMAGES", 7)
    assert torch.equal(predict(model, digits().test, "cpu"), whole)
