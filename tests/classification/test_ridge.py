import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference

from tdsm.base import io
from tdsm.base.errors import NonFiniteError, UsageError
from tdsm.classification import probe, ridge
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Samples, accuracy_of, fit_head, fit_seeds
from tdsm.classification.ridge import solve_ridge
from tdsm.features.store import FeatureRows

PENALTIES = (0.01, 1.0)


def draw(count, width, classes=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    vectors = centres[labels] + torch.randn(count, width, generator=random)
    return vectors * torch.logspace(-2, 2, width) + 3, labels


def solved(vectors, labels, block=1000, classes=3, penalties=PENALTIES):
    pairs = list(zip(vectors.split(block), labels.split(block), strict=True))
    return solve_ridge(lambda: pairs, classes, penalties)


def samples(count, seed, size=(2, 3), maps=4):
    vectors, labels = draw(count, size[0] * size[1] * maps, seed=seed)
    return Samples(FeatureRows([vectors.unflatten(1, (*size, maps))]), labels)


@pytest.mark.parametrize(("count", "width"), [(60, 5), (60, 60), (20, 41)], ids=["primal", "square", "dual"])
def test_it_is_ridge_regression_of_centred_indicators_on_standardised_features(count, width):
    vectors, labels = draw(count, width)
    found = solved(vectors, labels)
    mean, deviation = vectors.double().mean(dim=0), vectors.double().std(dim=0, correction=0)
    targets = torch.nn.functional.one_hot(labels).double()
    new = draw(30, width, seed=5)[0].double()
    for number, penalty in enumerate(PENALTIES):
        reference = Reference(alpha=penalty * count).fit((vectors - mean) / deviation, targets)
        expected = torch.from_numpy(reference.predict((new - mean) / deviation))
        torch.testing.assert_close(found.scores(new)[:, number], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(4, 30), width=st.integers(1, 30), block=st.integers(1, 30))
def test_blocks_do_not_matter(count, width, block):
    vectors, labels = draw(count, width)
    whole, parts = solved(vectors, labels), solved(vectors, labels, block)
    torch.testing.assert_close(parts.scores(vectors), whole.scores(vectors), rtol=1e-4, atol=1e-5)


def test_both_forms_agree():
    vectors, labels = draw(30, 30)
    pairs = [(((vectors - vectors.mean(dim=0)) / vectors.std(dim=0)), torch.nn.functional.one_hot(labels).double())]
    for one, other in zip(
        *(form(lambda: iter(pairs), 30, PENALTIES) for form in (ridge._primal, ridge._dual)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_constant_feature_and_a_class_without_samples_change_nothing():
    vectors, labels = draw(40, 6)
    with_constant = torch.cat([vectors, torch.full((40, 1), 7.3)], dim=1)
    found, plain = solved(with_constant, labels, classes=4), solved(vectors, labels)
    torch.testing.assert_close(found.scores(with_constant)[..., :3], plain.scores(vectors), rtol=1e-5, atol=1e-6)
    assert found.weight[-1].abs().max() == 0
    assert found.scores(with_constant)[..., 3].abs().max() < 1e-9


def test_scores_add_up_to_one():
    vectors, labels = draw(40, 6)
    torch.testing.assert_close(solved(vectors, labels).scores(vectors).sum(dim=2), torch.ones(40, 2).double())


def test_what_cannot_be_solved_is_named(monkeypatch):
    vectors, labels = draw(40, 6)
    with pytest.raises(NonFiniteError, match="ridge: a feature of the training samples is not finite"):
        solved(vectors * torch.nan, labels)
    with pytest.raises(UsageError, match=r"a penalty of 1e-30 is lost in rounding\. Set --probe.penalties higher"):
        solved(vectors[:, :1].expand(-1, 6), labels, penalties=(1e-30,))
    monkeypatch.setattr(ridge, "LARGEST", {"cpu": 5})
    with pytest.raises(UsageError, match="6 features of 40 samples; expected at most 5 of the one or the other on cpu"):
        solved(vectors, labels)


# ---------------------------------------------------------------- the head


@pytest.mark.parametrize("values", [1, 7, 2**23])
def test_the_head_is_the_best_penalty_on_validation(monkeypatch, values):
    monkeypatch.setattr(probe, "SOLVE_VALUES", values)
    train, validation = samples(60, 1), samples(45, 2)
    config = ProbeConfig(penalties=(1e-3, 0.3, 100.0))
    choice = fit_head(HeadConfig(kind="ridge"), train, validation, 3, config, 0, "cpu")
    alone = [
        fit_head(HeadConfig(kind="ridge"), train, validation, 3, ProbeConfig(penalties=(penalty,)), 0, "cpu")
        for penalty in config.penalties
    ]
    assert choice.accuracy == max(one.accuracy for one in alone) == accuracy_of(choice.classifier, validation, "cpu")
    best = max(penalty for penalty, one in zip(config.penalties, alone, strict=True) if one.accuracy == choice.accuracy)
    assert choice.settings == {"penalty": best}


def test_there_is_one_of_any_number_of_seeds():
    arguments = HeadConfig(kind="ridge"), samples(60, 1), samples(45, 2), 3
    choices = [list(fit_seeds(*arguments, ProbeConfig(seeds=3), seed, "cpu")) for seed in (0, 7)]
    assert [len(found) for found in choices] == [1, 1]
    for name, value in choices[0][0].classifier.state_dict().items():
        assert torch.equal(choices[1][0].classifier.state_dict()[name], value)


def test_it_is_restored_from_its_weights(tmp_path):
    head, test = HeadConfig(kind="ridge"), samples(20, 3)
    found = fit_head(head, samples(60, 1), samples(45, 2), 3, ProbeConfig(), 0, "cpu").classifier
    io.write_tensors(tmp_path / "head.safetensors", found.state_dict())
    restored = make_head(head, 4, 3, (2, 3))
    restored.load_state_dict(io.read_tensors(tmp_path / "head.safetensors"))
    maps = test.features[torch.arange(20)]
    assert torch.equal(restored(maps), found(maps))


def test_large_maps_are_averaged_over_cells_first():
    head = make_head(HeadConfig(kind="ridge", max_values=16), 4, 3, (4, 4))
    assert (head.head.cells, head.head.classify.in_features) == ((2, 2), 16)
    maps = torch.randn(2, 4, 4, 4)
    means = torch.stack([maps[:, r : r + 2, c : c + 2].mean(dim=(1, 2)) for r in (0, 2) for c in (0, 2)], dim=1)
    torch.testing.assert_close(head(maps), head.head.classify(means.flatten(1)))
    assert make_head(HeadConfig(kind="ridge", max_values=1), 4, 3, (8, 1)).head.cells == (8, 1)
