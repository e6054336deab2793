"""Evidence adds up to the score it shares out, and says what a linear head's weights say."""

import pytest
import torch

import tdsm
from tdsm.base.errors import UsageError
from tdsm.classification.config import HeadConfig
from tdsm.classification.evidence import class_evidence
from tdsm.classification.heads import make_head
from tdsm.classification.registry import HEADS

SIZE, MAPS, CLASSES = (6, 5), 4, 3


def classifier_of(kind, **options):
    classifier = make_head(HeadConfig(kind=kind, **options), MAPS, CLASSES, SIZE).double().eval()
    classifier.fit_statistics(torch.randn(MAPS).double(), 0.5 + torch.rand(MAPS).double())
    return classifier


def maps_of(images=2):
    return 1 + 2 * torch.randn(images, *SIZE, MAPS, dtype=torch.float64)


def above_mean(logits, classes):
    return logits[range(len(classes)), classes] - logits.mean(dim=1)


@pytest.mark.parametrize("kind", list(HEADS))
def test_evidence_adds_up_to_the_score_of_every_head(kind):
    classifier, maps, classes = classifier_of(kind), maps_of(), torch.tensor([2, 0])
    evidence = class_evidence(classifier, maps, classes, points=64)
    with torch.no_grad():
        score = above_mean(classifier(maps), classes)
        base = above_mean(classifier(classifier.mean.expand_as(maps)), classes)
    torch.testing.assert_close(evidence.score, score)
    torch.testing.assert_close(evidence.base, base)
    missing = (evidence.base + evidence.values.sum((1, 2, 3)) - score).abs()
    torch.testing.assert_close(evidence.completeness_error, missing / evidence.values.abs().sum((1, 2, 3)))
    if kind != "resnet":  # whose norms make a jump of the path's start, which the error tells
        assert missing.max() < 2e-3
        assert evidence.completeness_error.max() < 1e-3
    torch.testing.assert_close(evidence.by_map.sum(1), evidence.by_place.sum((1, 2)))


def test_of_the_average_it_is_weight_times_value():
    classifier, maps = classifier_of("avg"), maps_of()
    evidence = class_evidence(classifier, maps, torch.tensor([1, 1]), points=1)
    weight = classifier.head.classify.weight
    weight = weight[1] - weight.mean(dim=0)
    expected = weight * (maps - classifier.mean) / classifier.deviation / (SIZE[0] * SIZE[1])
    torch.testing.assert_close(evidence.values, expected.detach())
    assert evidence.completeness_error.max() < 1e-12


def test_of_a_linear_layer_on_all_values_one_point_is_exact():
    classifier, maps = classifier_of("flatten"), maps_of()
    one, many = (class_evidence(classifier, maps, points=points) for points in (1, 32))
    torch.testing.assert_close(one.values, many.values)
    assert one.completeness_error.max() < 1e-12


def test_the_error_is_the_gap_between_sum_and_score():
    classifier, maps = classifier_of("flatten", hidden_dim=8), maps_of()
    evidence = class_evidence(classifier, maps, points=1)
    gap = (evidence.base + evidence.values.sum((1, 2, 3)) - evidence.score).abs()
    torch.testing.assert_close(evidence.completeness_error, gap / evidence.values.abs().sum((1, 2, 3)))
    assert evidence.completeness_error.min() > 1e-6


def test_it_explains_what_is_predicted_unless_told_otherwise():
    classifier, maps = classifier_of("avg"), maps_of(5)
    evidence = tdsm.class_evidence(classifier, maps)
    assert evidence.classes.tolist() == classifier(maps).argmax(dim=1).tolist()
    assert (evidence.score > 0).all()


def test_weights_and_maps_keep_no_gradient():
    classifier, maps = classifier_of("avg"), maps_of().requires_grad_()
    assert not class_evidence(classifier, maps).values.requires_grad
    assert maps.grad is None
    with torch.inference_mode():
        assert class_evidence(classifier, maps_of()).values.shape == (2, *SIZE, MAPS)
    assert all(weight.grad is None for weight in classifier.parameters())


@pytest.mark.parametrize("classes", [[0, 3], [-1, 0]])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(UsageError, match="expected 2 whole numbers from 0 to 2, one an image"):
        class_evidence(classifier_of("avg"), maps_of(), torch.tensor(classes))


@pytest.mark.parametrize("points", [0, 257])
def test_points_out_of_range_are_refused(points):
    with pytest.raises(UsageError, match="expected 1 to 256 quadrature points"):
        class_evidence(classifier_of("avg"), maps_of(), points=points)
