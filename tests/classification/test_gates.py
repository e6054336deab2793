"""The gate opens exactly n tokens and finds those that carry the label, for every seed, whatever the global state."""

import dataclasses
import itertools

import pytest
import torch

from tdsm.base.randomness import generator
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.gates import GatedClassifier, TokenGate, gate_task, gumbel, learn_tokens
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Samples, fit_head
from tdsm.features.store import FeatureRows
from tdsm.study.tokens import draw
from tdsm.training import engine
from tdsm.training.engine import train as train_task

HEAD, PROBE = HeadConfig(kind="avg"), ProbeConfig(epochs=24, batch_size=32, learning_rates=(1e-2,))
CARRIERS = [2, 7, 11]


def labelled(count, seed, channels=1, tokens=12):
    """Make samples of 4 classes of which tokens 2, 7 and 11 each tell one class from the rest; others are noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    maps = torch.randn(count, 3, 3, tokens, channels, generator=random)
    for carrier, label in zip(CARRIERS, range(3), strict=True):
        maps[..., carrier, -1] += 1.0 * (labels == label)[:, None, None]
    return Samples(FeatureRows([5 + 3 * maps.flatten(3)]), labels)


def noise(samples, tokens):
    return gumbel(samples, tokens, generator(0, "noise"))


@pytest.mark.parametrize("count", [1, 3, 11])
@pytest.mark.parametrize("is_training", [True, False])
def test_exactly_n_tokens_are_open(count, is_training):
    gate = TokenGate(12, count)
    gate.scores.data = torch.randn(12)
    gates = gate(noise(50, 12) if is_training else torch.zeros(50, 12)).detach()
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert (gates.sum(dim=1) == count).all()
    assert len(gate.chosen()) == count
    if not is_training:
        assert (gates[:, gate.chosen()] == 1).all()


def test_draws_are_in_proportion_to_the_scores():
    gate = TokenGate(4, 1)
    gate.scores.data = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    torch.testing.assert_close(
        gate(noise(40_000, 4)).detach().mean(dim=0), torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_closed_token_shows_the_mean_of_training_maps(channels):
    classifier = make_head(HeadConfig(kind="flatten"), 12 * channels, 4, (3, 3))
    classifier.fit_statistics(torch.randn(12 * channels), torch.rand(12 * channels) + 0.5)
    gated = GatedClassifier(classifier, TokenGate(12, 3)).eval()
    gated.gate.scores.data[CARRIERS] = 1.0
    maps = torch.randn(5, 3, 3, 12 * channels)
    blanked = classifier.mean.expand_as(maps).unflatten(3, (12, channels)).clone()
    blanked[..., CARRIERS, :] = maps.unflatten(3, (12, channels))[..., CARRIERS, :]
    torch.testing.assert_close(gated(maps), classifier(blanked.flatten(3)))


def test_gradients_reach_every_score_and_move_none_that_all_share():
    classifier = make_head(HEAD, 12, 4, (3, 3))
    gated = GatedClassifier(classifier, TokenGate(12, 3))
    samples = labelled(64, seed=0)
    scores = gated(samples.features[torch.arange(64)] - 5, noise(64, 12))
    loss = torch.nn.functional.cross_entropy(scores, samples.labels)
    loss.backward()
    gradient = gated.gate.scores.grad
    assert (gradient != 0).all()
    assert gradient.sum().abs() < 1e-4 * gradient.abs().sum()


def test_the_head_learns_alone_at_first_and_then_the_gate_too():
    """Scores stand still for a quarter of the passes, at 0, so that every token is open as often as any other."""
    train, validation = labelled(64, 1), labelled(32, 2)
    probe = PROBE.model_copy(update={"epochs": 8})  # of 2 steps
    gated = GatedClassifier(make_head(HEAD, 12, 4, (3, 3)), TokenGate(12, 3))
    task, seen = gate_task(gated, train, validation, probe, 0, "cpu", 1e-2, 0.0), []
    head = next(gated.classifier.head.parameters())
    task.loss.register_forward_pre_hook(
        lambda *_: seen.append((gated.gate.scores.detach().clone(), head.detach().clone()))
    )
    train_task(task, probe, seed=0)
    assert len(seen) == 16
    moved = [
        [not torch.equal(now, before) for now, before in zip(*pair, strict=True)] for pair in itertools.pairwise(seen)
    ]
    assert all(has_head for _, has_head in moved)
    assert [has_gate for has_gate, _ in moved] == [False] * 4 + [True] * 11
    assert torch.equal(seen[4][0], torch.zeros(12))


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_gate_that_broke_off_ends_as_if_it_had_not(tmp_path, monkeypatch, step):
    """With dropout before the scores, of which the gate's noise is independent."""
    train, validation, take = labelled(64, 1), labelled(32, 2), engine._Training.take_step
    probe = PROBE.model_copy(update={"epochs": 8, "ema": 0.5})

    def fit(folder):
        torch.manual_seed(0)
        head = HeadConfig(kind="avg", dropout=0.3)
        gated = GatedClassifier(make_head(head, 12, 4, (3, 3)), TokenGate(12, 3))
        task = gate_task(gated, train, validation, probe, 0, "cpu", 1e-2, 0.0)
        history = train_task(dataclasses.replace(task, checkpoint_every=2), probe, seed=0, folder=folder)
        return gated.state_dict(), history[-1]["validation_accuracy"]

    def broken(self):
        if self.step == step:
            raise OSError("power cut")
        take(self)

    whole, accuracy = fit(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(engine._Training, "take_step", broken)
        with pytest.raises(OSError, match="power cut"):
            fit(tmp_path / "broken")
    again, other = fit(tmp_path / "broken")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert other == accuracy
    assert whole["gate.scores"].abs().sum() > 0


def test_noise_belongs_to_the_step_and_not_to_the_process():
    train, validation = labelled(64, 1), labelled(32, 2)
    gated = GatedClassifier(make_head(HEAD, 12, 4, (3, 3)), TokenGate(12, 3))
    task = gate_task(gated, train, validation, PROBE, 0, "cpu", 1e-2, 0.0)
    whole = task.inputs(5, slice(0, 32))
    parts = [task.inputs(5, slice(0, 10)), task.inputs(5, slice(10, 32))]
    assert all(torch.equal(torch.cat(part), one) for *part, one in zip(*parts, whole, strict=True))
    assert not torch.equal(task.inputs(6, slice(0, 32))[2], whole[2])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_tokens_that_carry_the_label_survive_for_every_seed(channels):
    train, validation = labelled(400, 1, channels), labelled(100, 2, channels)
    for seed in range(3):
        assert learn_tokens(HEAD, 12, 3, train, validation, 4, PROBE, seed, "cpu") == CARRIERS


def test_a_head_on_learned_tokens_beats_one_on_random_tokens():
    train, validation = labelled(400, 1), labelled(100, 2)

    def accuracy(tokens, seed):
        parts = [Samples(FeatureRows([s.features.shards[0][..., tokens]]), s.labels) for s in (train, validation)]
        return fit_head(HEAD, *parts, 4, PROBE, seed, "cpu").accuracy

    for seed in range(2):
        learned = learn_tokens(HEAD, 12, 3, train, validation, 4, PROBE, seed, "cpu")
        assert accuracy(learned, seed) > accuracy(draw(12, 3, seed), seed) + 0.2


def test_the_choice_depends_on_the_seed_and_not_on_the_global_state():
    train, validation = labelled(64, 1), labelled(32, 2)
    probe = PROBE.model_copy(update={"epochs": 2})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = [learn_tokens(HEAD, 12, 4, train, validation, 4, probe, seed, "cpu") for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert one == [learn_tokens(HEAD, 12, 4, train, validation, 4, probe, seed, "cpu") for seed in range(4)]
    assert any(a != b for a, b in itertools.pairwise(one))
