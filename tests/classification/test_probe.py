import inspect
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tdsm.base.errors import NonFiniteError
from tdsm.base.randomness import derive_seed
from tdsm.classification import probe as frozen
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.probe import (
    HeadLoss,
    Samples,
    fit_head,
    fit_knn,
    fit_seeds,
    new_head,
    predict,
    predict_knn,
    statistics_of,
)
from tdsm.classification.registry import HEADS
from tdsm.data.augment import AugmentConfig, move_maps
from tdsm.features import store
from tdsm.features.kinds import FEATURES
from tdsm.features.store import FeatureRows
from tdsm.training.steps import Order, warmup_cosine
from tests.classification.test_knn import knn_scores

PROBE = ProbeConfig(epochs=4, batch_size=16, learning_rates=(1e-1, 1e-4), weight_decays=(0.0, 0.1), race_epochs=0)


@pytest.fixture(autouse=True)
def rounds_of_an_epoch(monkeypatch):
    monkeypatch.setattr(frozen, "ROUND", 1)


def make(count: int, seed: int, classes: int = 3, noise: float = 1.0) -> Samples:
    """Draw maps (2, 3, 4) whose channels' means give the class away."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 3 * torch.randn(classes, 1, 1, 4, generator=torch.Generator().manual_seed(99))
    maps = centres[labels] + noise * torch.randn(count, 2, 3, 4, generator=random)
    return Samples(FeatureRows([5 + 10 * maps[: count // 2], 5 + 10 * maps[count // 2 :]]), labels)


def everything(samples: Samples) -> torch.Tensor:
    return samples.features[torch.arange(len(samples.labels))]


def fit(head="avg", train=None, validation=None, config=PROBE, seed=0):
    return fit_head(HeadConfig(kind=head), train or make(60, 1), validation or make(30, 2), 3, config, seed, "cpu")


def weights(choice):
    return torch.cat([value.flatten() for value in choice.classifier.state_dict().values()])


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("read", [7, 512])
@pytest.mark.parametrize("by_place", [True, False])
def test_statistics_are_those_of_all_samples_at_once(monkeypatch, memory, read, by_place):
    monkeypatch.setattr(store, "MEMORY_BYTES", memory)
    monkeypatch.setattr(frozen, "READ", read)
    samples = make(60, 1)
    values = everything(samples) if by_place else everything(samples).flatten(0, 2)
    mean, deviation = statistics_of(samples, by_place=by_place)
    torch.testing.assert_close(mean, values.mean(dim=0))
    torch.testing.assert_close(deviation, values.std(dim=0, correction=0))


def test_a_constant_channel_far_from_zero_has_no_deviation():
    constant = Samples(FeatureRows([torch.full((40, 2, 2, 1), 1000.1)]), torch.zeros(40).long())
    mean, deviation = statistics_of(constant, by_place=False)
    assert mean.item() == pytest.approx(1000.1, rel=1e-6)
    assert deviation.item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("pool", [name for name, head in HEADS.items() if head.needs_size])
def test_images_are_told_apart_where_places_differ_far_more_than_images(pool):
    places = 1e3 * torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))

    def placed(samples):
        return Samples(FeatureRows([everything(samples) + places]), samples.labels)

    config = ProbeConfig(epochs=12, batch_size=16, learning_rates=(1e-2,))
    train, validation = make(240, 1), make(120, 2)
    apart = fit(pool, train, validation, config).accuracy
    assert fit(pool, placed(train), placed(validation), config).accuracy == pytest.approx(apart, abs=0.05)


@pytest.mark.parametrize("pool", HEADS)
def test_every_head_learns_what_can_be_learned(pool):
    config = ProbeConfig(epochs=12, batch_size=16, learning_rates=(1e-2,))
    choice = fit(pool, make(120, 1, noise=0.3), make(60, 2, noise=0.3), config)
    assert choice.accuracy > 0.9


def test_the_plain_head_is_as_good_as_an_independent_linear_classifier():
    train, validation = make(120, 1, noise=3.0), make(90, 2, noise=3.0)
    config = ProbeConfig(epochs=60, batch_size=32, learning_rates=(1e-2, 1e-1), patience=0, race_epochs=0)
    seen = fit("avg", train, validation, config).accuracy
    pooled = [everything(samples).mean(dim=(1, 2)).numpy() / 10 for samples in (train, validation)]
    reference = LogisticRegression(max_iter=1000).fit(pooled[0], train.labels).score(pooled[1], validation.labels)
    assert seen >= reference - 0.04
    assert seen < 1


def test_what_is_kept_is_what_did_best_on_validation():
    validation = make(30, 2, noise=2.0)
    config = ProbeConfig(epochs=6, learning_rates=(1e-4, 1e-1), weight_decays=(0.0, 0.5), race_epochs=0)
    each = [
        fit(validation=validation, config=config.model_copy(update={"learning_rates": (r,), "weight_decays": (d,)}))
        for r in config.learning_rates
        for d in config.weight_decays
    ]
    choice = fit(validation=validation, config=config)
    assert choice.accuracy == max(one.accuracy for one in each)
    assert choice.settings == next(one.settings for one in each if one.accuracy == choice.accuracy)
    predicted = predict(choice.classifier, validation.features, "cpu")
    assert (predicted == validation.labels).float().mean().item() == pytest.approx(choice.accuracy)


def test_the_best_epoch_is_kept_not_the_last(monkeypatch):
    whole, calls = frozen.predict, []

    def spoiled(classifier, features, device):
        calls.append({name: value.clone() for name, value in classifier.state_dict().items()})
        predicted = whole(classifier, features, device)
        return predicted if len(calls) == 2 else (predicted + 1) % 3 if len(calls) > 2 else predicted * 0

    monkeypatch.setattr(frozen, "predict", spoiled)
    config = ProbeConfig(epochs=4, batch_size=16, learning_rates=(1e-1,))
    choice = fit(train=make(60, 1, noise=0.1), validation=make(30, 2, noise=0.1), config=config)
    assert choice.settings["epoch"] == 2
    assert all(torch.equal(value, calls[1][name]) for name, value in choice.classifier.state_dict().items())


def test_the_last_epoch_is_kept_when_it_is_the_best(monkeypatch):
    whole, calls = frozen.predict, []

    def better_and_better(classifier, features, device):
        calls.append({name: value.clone() for name, value in classifier.state_dict().items()})
        predicted = whole(classifier, features, device) * 0
        predicted[: len(calls)] = validation.labels[: len(calls)]
        return predicted

    monkeypatch.setattr(frozen, "predict", better_and_better)
    validation = Samples(make(30, 2).features, torch.ones(30, dtype=torch.int64))
    config = ProbeConfig(epochs=4, batch_size=16, learning_rates=(1e-1,))
    choice = fit(train=make(60, 1), validation=validation, config=config)
    assert choice.settings["epoch"] == 4
    assert all(torch.equal(value, calls[3][name]) for name, value in choice.classifier.state_dict().items())


def test_only_what_is_best_after_some_epochs_is_trained_to_the_end(monkeypatch):
    seen, whole = [], frozen._fit_once
    train, validation = make(60, 1, noise=3.0), make(30, 2, noise=3.0)

    def spy(*arguments):
        choice = whole(*arguments)
        seen.append((arguments[8], arguments[10] if len(arguments) > 10 else None, choice.accuracy))
        return choice

    monkeypatch.setattr(frozen, "_fit_once", spy)
    config = ProbeConfig(epochs=5, batch_size=16, learning_rates=(1e-5, 1e-1), race_epochs=2)
    choice = fit(train=train, validation=validation, config=config)
    assert [entry[:2] for entry in seen] == [(1e-5, 2), (1e-1, 2), (1e-1, None)]
    assert seen[1][2] > seen[0][2]
    alone = fit(train=train, validation=validation, config=ProbeConfig(epochs=5, batch_size=16, learning_rates=(1e-1,)))
    assert torch.equal(weights(choice), weights(alone))


def test_training_ends_when_validation_stops_improving_and_the_rate_falls_before(monkeypatch):
    seen, whole = [], frozen.train_task

    def spy(task, *arguments, **options):
        history = whole(task, *arguments, **options)
        seen.append((history[-1]["step"], [entry["learning_rate"] for entry in history]))
        return history

    accuracies = iter([0.1, 0.5, 0.4, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr(frozen, "train_task", spy)
    monkeypatch.setattr(frozen, "accuracy_of", lambda *_: next(accuracies))
    config = ProbeConfig(epochs=40, patience=4, batch_size=60, learning_rates=(1.0,))
    choice = fit(config=config)
    assert choice.settings["epoch"] == 5
    step, rates = seen[0]
    assert step == 9
    shares = [1.0, 1.0, 1.0, 0.2, 0.04, 0.04, 0.008, 0.0016, 0.00032]
    assert rates == pytest.approx([warmup_cosine(share, n, steps=40, warmup=1) for n, share in enumerate(shares)])


@pytest.mark.parametrize(("least", "measured"), [(1, [4, 8, 12]), (5, [8, 12]), (50, [12])])
def test_validation_is_measured_after_epochs_or_enough_steps(monkeypatch, least, measured):
    seen, whole = [], frozen.train_task

    def spy(*arguments, **options):
        seen.append(whole(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(frozen, "train_task", spy)
    monkeypatch.setattr(frozen, "ROUND", least)
    choice = fit(config=ProbeConfig(epochs=3, batch_size=16, learning_rates=(1e-2,)))
    assert [entry["step"] for entry in seen[0]] == measured
    assert 4 * choice.settings["epoch"] in measured


def test_without_patience_the_rate_falls_by_a_cosine_alone(monkeypatch):
    seen, whole = [], frozen.train_task
    monkeypatch.setattr(frozen, "train_task", lambda task, *a, **o: (seen.append(task), whole(task, *a, **o))[1])
    fit(config=ProbeConfig(epochs=4, batch_size=60, learning_rates=(1.0,), patience=0))
    assert [seen[0].rate(1.0, step) for step in range(4)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-5)


def test_spatial_training_features_are_moved_anew_each_epoch(monkeypatch):
    seen, whole = [], frozen.train_task
    monkeypatch.setattr(frozen, "train_task", lambda task, *a, **o: (seen.append(task), whole(task, *a, **o))[1])
    plain, validation = make(60, 1), make(30, 2)
    train = Samples(plain.features, plain.labels, is_spatial=True)
    config = ProbeConfig(epochs=2, batch_size=60, learning_rates=(1e-2,), map_augment={"flip": True, "shift": 0.4})
    for samples in (train, plain):
        fit(train=samples, validation=validation, config=config)
    order = Order(60, 60, 0, purpose="head order", keeps_rest=True)
    for step in (0, 1):
        taken = order(step)[0]
        change, draw = AugmentConfig(crop=1, flip=True), derive_seed(0, "maps")
        expected = move_maps(plain.features[taken], taken, change, seed=draw, epoch=step)
        assert torch.equal(seen[0].inputs(step, slice(0, 60))[0], expected)
        assert torch.equal(seen[0].inputs(step, slice(7, 9))[0], expected[7:9])
        assert torch.equal(seen[1].inputs(step, slice(0, 60))[0], plain.features[taken])
        assert not torch.equal(expected, plain.features[taken])


def test_labels_are_smoothed_as_asked():
    classifier, samples = new_head(HeadConfig(), (torch.zeros(4), torch.ones(4)), make(6, 1), 3, 0), make(6, 1)
    maps = everything(samples)
    expected = torch.nn.functional.cross_entropy(classifier(maps), samples.labels, label_smoothing=0.2)
    torch.testing.assert_close(HeadLoss(classifier, 0.2)(maps, samples.labels), expected)
    assert fit(config=PROBE.model_copy(update={"label_smoothing": 0.3})).accuracy > 0.5


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"patience": 1}, {"precision": "bfloat16"}, {"gradient_clip": 1e-3}])
def test_a_head_is_trained_by_the_engine_with_all_it_can(changes):
    config = ProbeConfig(epochs=8, batch_size=16, learning_rates=(1e-1,))
    plain, other = fit(config=config), fit(config=config.model_copy(update=changes))
    assert other.accuracy > 0.5
    assert not torch.equal(weights(plain), weights(other)) or changes == {"patience": 1}


def test_choosing_cannot_see_the_test_split():
    for function in (fit_head, fit_seeds, fit_knn):
        assert [name for name in inspect.signature(function).parameters if "test" in name] == []
        assert set(inspect.signature(function).parameters) >= {"train", "validation"}


@pytest.mark.parametrize(("pool", "by_place"), [("avg", False), ("ridge", True), ("flatten", True)])
def test_features_are_standardised_by_the_training_samples(pool, by_place):
    train = make(60, 1)
    choice = fit(pool, train=train, validation=make(30, 2))
    mean, deviation = statistics_of(train, by_place=by_place)
    assert torch.equal(choice.classifier.mean, mean)
    assert torch.equal(choice.classifier.deviation, deviation)


@pytest.mark.parametrize("pool", [name for name, head in HEADS.items() if head.convolves])
def test_places_that_are_convolved_share_the_scale_of_their_channel(pool):
    train = make(60, 1)
    values = everything(train)
    classifier = fit(pool, train=train, validation=make(30, 2)).classifier
    centred = values - values.mean(dim=0)
    torch.testing.assert_close(classifier.mean, values.mean(dim=0))
    torch.testing.assert_close(classifier.deviation, centred.square().mean(dim=(0, 1, 2)).sqrt().expand(2, 3, 4))
    shown = classifier.standardise(values)
    assert shown.square().mean().item() == pytest.approx(1, rel=1e-3)
    ratio = shown.std(dim=0, correction=0) / centred.square().mean(dim=0).sqrt()
    assert torch.allclose(ratio, ratio[:1, :1].expand_as(ratio))  # no place is made louder than another


@pytest.mark.parametrize("pool", [name for name, head in HEADS.items() if head.convolves])
def test_a_moved_picture_that_is_convolved_keeps_its_colours(pool):
    train = replace(make(60, 1), is_picture=True)
    values = everything(train)
    classifier = fit(pool, train=train, validation=make(30, 2)).classifier
    torch.testing.assert_close(classifier.mean, values.mean(dim=(0, 1, 2)).expand(2, 3, 4))
    torch.testing.assert_close(classifier.deviation, values.std(dim=(0, 1, 2), correction=0).expand(2, 3, 4))
    torch.testing.assert_close(classifier.standardise(values.roll(1, 2)), classifier.standardise(values).roll(1, 2))


def test_pictures_are_told_from_maps_of_tokens():
    assert [name for name, kind in FEATURES.items() if kind.is_picture] == ["pixels", "reconstruction"]


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}])
def test_equal_seeds_give_equal_weights_whatever_was_drawn_before(options):
    head = HeadConfig(kind="flatten", **options)
    fitted = []
    for seed in (0, 0, 1):
        torch.rand(7)
        fitted.append(weights(fit_head(head, make(60, 1), make(30, 2), 3, PROBE, seed, "cpu")))
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_fitting_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit()
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_no_number_is_named():
    train = make(60, 1)
    broken = Samples(FeatureRows([everything(train) * float("nan")]), train.labels)
    with pytest.raises(
        NonFiniteError,
        match=r"head avg at learning rate 0\.1: the loss is nan at step 1\. Set --probe\.learning-rates lower",
    ):
        fit(train=broken)


def test_further_seeds_are_trained_at_what_the_first_chose(monkeypatch):
    train, validation, seen, whole = make(60, 1, noise=3.0), make(30, 2, noise=3.0), [], frozen._fit_once

    def spy(*arguments):
        seen.append((arguments[6], *arguments[8:10]))
        return whole(*arguments)

    monkeypatch.setattr(frozen, "_fit_once", spy)
    config = PROBE.model_copy(update={"seeds": 3})
    choices = list(fit_seeds(HeadConfig(), train, validation, 3, config, 7, "cpu"))
    rate, decay = (choices[0].settings[name] for name in ("learning_rate", "weight_decay"))
    assert [arguments[0] for arguments in seen[:4]] == [7] * 4
    assert [arguments[1:] for arguments in seen[4:]] == [(rate, decay)] * 2
    assert len({arguments[0] for arguments in seen}) == 3
    assert torch.equal(weights(choices[0]), weights(fit_head(HeadConfig(), train, validation, 3, PROBE, 7, "cpu")))
    assert not torch.equal(weights(choices[1]), weights(choices[2]))


def test_neighbours_are_chosen_on_validation_the_fewest_on_a_tie():
    train, validation = make(60, 1, noise=4.0), make(45, 2, noise=4.0)
    config = ProbeConfig(neighbours=(1, 3, 9, 100), temperature=0.2)
    accuracies = {}
    for k in config.neighbours:
        predicted = predict_knn(validation.features, train, 3, k, 0.2)
        accuracies[k] = (predicted == validation.labels).double().mean().item()
    choice = fit_knn(train, validation, 3, config)
    assert choice.accuracy == max(accuracies.values())
    assert choice.settings["neighbours"] == min(k for k, value in accuracies.items() if value == choice.accuracy)
    assert len(set(accuracies.values())) > 1
    assert choice.classifier is None
    same = fit_knn(train, train, 3, ProbeConfig(neighbours=(5, 1)))
    assert (same.settings["neighbours"], same.accuracy) == (1, 1.0)


def test_neighbours_are_sought_among_standardised_training_samples():
    train, queries = make(60, 1), make(20, 3)
    mean, deviation = statistics_of(train)
    flat = [((everything(part) - mean) / (deviation + 1e-6)).flatten(1) for part in (queries, train)]
    expected = knn_scores(flat[0], flat[1], train.labels, 3, 5, 0.1).argmax(dim=1)
    assert torch.equal(predict_knn(queries.features, train, 3, 5, 0.1), expected)
