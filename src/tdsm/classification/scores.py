"""What a row of the table says of its predictions, beyond how many were right."""

from statistics import stdev
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tdsm.base.statistics import accuracy_interval, confusion_matrix


def scores(
    predicted: Int[Tensor, "seeds samples"], labels: Int[Tensor, " samples"], num_classes: int
) -> dict[str, Any]:
    """Score the predictions of every seed against the true classes, as numbers that fit into JSON.

    Everything but the counts is a mean over seeds:

        accuracy             share of the samples that are right, with `low`, `high` and `interval`, the method
        per_class            recall: of each class the share that is right; None for a class without samples
        balanced_accuracy    mean of `per_class`: what unequal class sizes cannot flatter
        macro_f1             mean over classes of 2 · right / (true + predicted), classes that never occur left out

    >>> found = scores(torch.tensor([[0, 0, 0, 0]]), torch.tensor([0, 0, 0, 1]), 2)
    >>> found["accuracy"], found["balanced_accuracy"], found["per_class"], found["note"]
    (0.75, 0.5, [1.0, 0.0], 'Predicts one class only.')

    Returns:
        These, the number of samples `n_test`, and how many classes are predicted at all, `predicts` (the fewest of
        any seed), with a `note` where it is one. Of one seed also the number `correct`; of several each one's
        accuracy, `accuracies`, and their standard `deviation`.
    """
    is_right = predicted == labels
    bound = accuracy_interval(is_right)
    tables = torch.stack([confusion_matrix(labels, one, num_classes) for one in predicted]).double()
    right, true, claimed = tables.diagonal(dim1=1, dim2=2), tables.sum(dim=2), tables.sum(dim=1)
    recall, predicts = (right / true).mean(dim=0), int((claimed > 0).sum(dim=1).min())
    return {
        "n_test": len(labels),
        "accuracy": bound.value,
        "low": bound.low,
        "high": bound.high,
        "interval": bound.method,
        **_by_seed(is_right.sum(dim=1).tolist(), len(labels)),
        "balanced_accuracy": recall.nanmean().item(),
        "macro_f1": (2 * right / (true + claimed)).nanmean(dim=1).mean().item(),
        "per_class": [None if value != value else value for value in recall.tolist()],
        "predicts": predicts,
        **_note(predicts, len(predicted)),
    }


def majority(labels_train: Int[Tensor, " train"], count: int) -> Int[Tensor, " samples"]:
    """Predict the most frequent training class for all of `count` samples, the first such class on a tie.

    >>> majority(torch.tensor([2, 1, 1]), 4)
    tensor([1, 1, 1, 1])
    """
    return labels_train.bincount().argmax().repeat(count)


def majority_share(labels: Int[Tensor, " samples"]) -> float:
    """Return the share of the largest class: the accuracy of who always says it.

    >>> majority_share(torch.tensor([0, 0, 0, 1]))
    0.75
    """
    return labels.bincount().max().item() / len(labels)


def _note(predicts: int, seeds: int) -> dict[str, str]:
    if predicts > 1:
        return {}
    return {"note": "Predicts one class only." if seeds == 1 else "One seed or more predicts one class only."}


def _by_seed(correct: list[int], total: int) -> dict[str, Any]:
    if len(correct) == 1:
        return {"correct": correct[0]}
    accuracies = [count / total for count in correct]
    return {"accuracies": accuracies, "deviation": stdev(accuracies)}
