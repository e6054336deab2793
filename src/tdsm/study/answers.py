"""The answers of a study: each fitted once and kept, those of several seeds averaged, differences paired."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.probe import Samples, fit_head, predict
from tdsm.features.store import FeatureRows
from tdsm.models.weights import count_parameters

Z = 1.96  # two-sided 95 % of the normal distribution


def fit_and_test(
    head: HeadConfig, samples: Mapping[str, Samples], num_classes: int, config: ProbeConfig, seed: int, device: str
) -> tuple[dict, Int[Tensor, " images"]]:
    """Fit a head, chosen on validation, and read the test samples once; return its numbers and predictions.

    Args:
        samples: Under train, validation and test.
    """
    choice = fit_head(head, samples["train"], samples["validation"], num_classes, config, seed, device)
    assert choice.classifier is not None
    predicted = predict(choice.classifier, samples["test"].features, device)
    numbers = {
        "parameters": count_parameters(choice.classifier),
        "validation_accuracy": choice.accuracy,
        "accuracy": (predicted == samples["test"].labels).double().mean().item(),
        "settings": choice.settings,
    }
    return numbers, predicted


def changed(features: FeatureRows, change: Callable[[Tensor], Tensor]) -> FeatureRows:
    """Return features after a change of every sample, in float16."""
    return FeatureRows([change(features[part]).half() for part in torch.arange(len(features)).split(512)])


def average_seeds(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Reduce the rows of several seeds to mean and deviation, with the entries `names` that they share."""
    accuracies = [row["accuracy"] for row in rows]
    return {name: rows[0][name] for name in names} | {
        "accuracy": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies, ddof=1)) if len(rows) > 1 else 0.0,
        "validation": float(np.mean([row["validation_accuracy"] for row in rows])),
        "is_right": np.array([row["is_right"] for row in rows]),
    }


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of (images,) values and the ends of its 95 % interval, v̄ ± 1.96 · s(v) / √n.

    >>> mean_interval(np.array([0.5, 0.5, 0.5]))
    (0.5, 0.5, 0.5)
    """
    middle = float(values.mean())
    half = Z * float(values.std(ddof=1)) / len(values) ** 0.5
    return middle, middle - half, middle + half


def paired_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return the mean difference in accuracy and its 95 % interval over test images, seeds averaged first.

        d_i = mean over seeds of right_i − right'_i,    d̄ ± 1.96 · s(d) / √n

    >>> paired_interval(np.array([[1, 1, 0, 1]]), np.array([[1, 1, 0, 1]]))
    (0.0, 0.0, 0.0)

    Args:
        one: (seeds, images), 1 where the row is right.
        other: The same of the reference, same images in the same order.
    """
    return mean_interval(np.asarray(one, float).mean(axis=0) - np.asarray(other, float).mean(axis=0))


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Write a table, one string a line.

    >>> markdown_table(["tokens", "accuracy"], [["4", "46.4"]])
    ['| tokens | accuracy |', '| --- | --- |', '| 4 | 46.4 |']
    """
    return [f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]]
