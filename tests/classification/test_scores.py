import json
import math
from statistics import stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tdsm.base.statistics import WILSON, WILSON_SEEDS, accuracy_interval
from tdsm.classification.scores import majority, majority_share, scores


@given(st.integers(1, 3), st.integers(1, 40), st.integers(2, 5), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
def test_scores_are_those_of_scikit_learn_seeds_averaged(seeds, count, classes, start):
    draw = torch.Generator().manual_seed(start)
    labels = torch.randint(classes, (count,), generator=draw)
    predicted = torch.randint(classes, (seeds, count), generator=draw)
    found = scores(predicted, labels, classes)

    def mean(measure, **options):
        return sum(measure(labels, one, **options) for one in predicted) / seeds

    assert found["accuracy"] == pytest.approx(mean(metrics.accuracy_score))
    assert found["balanced_accuracy"] == pytest.approx(mean(metrics.balanced_accuracy_score))
    assert found["macro_f1"] == pytest.approx(mean(metrics.f1_score, average="macro", zero_division=0))
    assert found["predicts"] == min(len(one.unique()) for one in predicted)
    for name, share in enumerate(found["per_class"]):
        is_member = labels == name
        expected = (predicted[:, is_member] == name).double().mean().item()
        assert (share is None) == math.isnan(expected)
        assert share is None or share == pytest.approx(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_one_seed_has_its_count_and_several_their_deviation():
    labels = torch.arange(10).repeat(10)
    predicted = torch.stack([torch.where(torch.arange(100) < n, labels, labels.roll(1)) for n in (50, 60)])
    one, both = scores(predicted[:1], labels, 10), scores(predicted, labels, 10)
    assert (one["correct"], one["accuracy"], one["interval"]) == (50, 0.5, WILSON)
    assert not {"deviation", "accuracies"} & one.keys()
    assert both["accuracies"] == [0.5, 0.6]
    assert both["deviation"] == stdev([0.5, 0.6])
    assert both["interval"] == WILSON_SEEDS
    assert "correct" not in both
    bound = accuracy_interval(predicted == labels)
    assert (both["accuracy"], both["low"], both["high"]) == (bound.value, bound.low, bound.high)


def test_a_head_that_predicts_one_class_says_so():
    labels = torch.tensor([0] * 9 + [1])
    constant = majority(labels, 10)
    found = scores(constant[None], labels, 2)
    assert found["accuracy"] == majority_share(labels) == 0.9
    assert (found["balanced_accuracy"], found["predicts"]) == (0.5, 1)
    assert found["note"] == "Predicts one class only."
    both = scores(torch.stack([labels, constant]), labels, 2)  # one of two seeds
    assert both["note"] == "One seed or more predicts one class only."
    assert "note" not in scores(labels[None], labels, 2)
