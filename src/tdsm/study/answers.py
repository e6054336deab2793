"""The answers of a study: fitted one way, those of several seeds averaged, written one way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tdsm.base.statistics import Interval
from tdsm.base.text import NOTHING, percent, points, thousands
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.probe import Samples, fit_head, predict
from tdsm.features import store
from tdsm.features.store import FeatureRows
from tdsm.models.weights import count_parameters

NUMBERS = ["test accuracy", "deviation", "difference", "95 % interval", "validation", "parameters"]


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


class Changed(FeatureRows):
    """Features after a change of every sample, in float16, made when they are read."""

    def __init__(self, features: FeatureRows, change: Callable[[Tensor], Tensor]):
        self.features, self.change = features, change
        one = self[torch.arange(1)]
        self.shape, self.nbytes = (len(features), *one.shape[1:]), one.nbytes // 2 * len(features)

    def __getitem__(self, indices: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows ..."]:
        return self.change(self.features[indices]).half().float()


def changed(features: FeatureRows, change: Callable[[Tensor], Tensor]) -> FeatureRows:
    """Return features after a change of every sample, in float16; what would take much memory is made when read."""
    lazy = Changed(features, change)
    if lazy.nbytes > store.MEMORY_BYTES:
        return lazy
    return FeatureRows([lazy[part].half() for part in torch.arange(len(features)).split(512)])


def average_seeds(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Reduce the rows of several seeds to mean and deviation, with the entries `names` that they share."""
    accuracies = [row["accuracy"] for row in rows]
    return {name: rows[0][name] for name in names} | {
        "accuracy": fmean(accuracies),
        "deviation": stdev(accuracies) if len(rows) > 1 else 0.0,
        "validation": fmean(row["validation_accuracy"] for row in rows),
        "is_right": torch.tensor([row["is_right"] for row in rows], dtype=torch.bool),
    }


def number_cells(summary: Mapping[str, Any]) -> list[str]:
    """Write the cells under `NUMBERS`; a dash where a row is compared with nothing."""
    difference: Interval | None = summary.get("difference")
    return [
        percent(summary["accuracy"]),
        percent(summary["deviation"]),
        *((NOTHING, NOTHING) if difference is None else difference_cells(difference)),
        percent(summary["validation"]),
        thousands(summary["parameters"]),
    ]


def difference_cells(difference: Interval) -> tuple[str, str]:
    """Write a difference and its interval in percentage points."""
    return points(difference.value), f"{points(difference.low)} to {points(difference.high)}"


def kept(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a summary is kept as JSON: all but where each seed is right."""
    return {
        key: asdict(value) if isinstance(value, Interval) else value
        for key, value in summary.items()
        if key != "is_right"
    }
