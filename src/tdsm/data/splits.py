"""Cut a source's splits into train, validation and test, by seed and by class."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from tdsm.base.errors import DataError
from tdsm.base.randomness import generator
from tdsm.data.config import DataConfig

HELD_OUT_TEST = 0.2


class Part(NamedTuple):
    """Rows of one source split, ascending."""

    split: str
    rows: Int64[Tensor, "rows"]


def stratified_holdout(
    labels: Int64[Tensor, "samples"], fraction: float, draw: torch.Generator
) -> tuple[Int64[Tensor, "kept"], Int64[Tensor, "held"]]:
    """Split positions in two, the same share of each class held out.

    Each class gives the whole part of fraction · count; the places left to fraction · samples go to the largest
    remainders. No class is emptied: a class of one sample keeps it.

    >>> labels = torch.tensor([0] * 10 + [1] * 20)
    >>> kept, held = stratified_holdout(labels, 0.3, generator(0, "example"))
    >>> labels[held].bincount()
    tensor([3, 6])

    Returns:
        Positions kept and positions held out, each ascending.
    """
    shuffled = torch.randperm(len(labels), generator=draw)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    exact = counts.double() * fraction
    quota = exact.floor().long()
    spare = round(len(labels) * fraction) - int(quota.sum())
    remainders = (exact - quota).masked_fill(quota >= counts - 1, -1.0)
    largest = remainders.argsort(descending=True, stable=True)[: max(spare, 0)]
    quota[largest[remainders[largest] > 0]] += 1
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    is_held = rank < quota.repeat_interleave(counts)
    return order[~is_held].sort().values, order[is_held].sort().values


def random_rows(rows: Int64[Tensor, "rows"], limit: int | None, draw: torch.Generator) -> Int64[Tensor, "kept"]:
    """Keep `limit` rows at random, ascending, or all when there are no more than that."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=draw)[:limit].sort().values]


def partition(
    labels: Mapping[str, Int64[Tensor, "_"]], classes: tuple[str, ...], config: DataConfig, seed: int
) -> tuple[dict[str, Part], list[str]]:
    """Choose the rows of train, validation and test, and say in words what was chosen.

    Args:
        labels: Labels of each source split; "train" must be there, "validation" and "test" may be.
        classes: Class names, in label order.
        config: Gives `max_train`, `max_test` and `validation_fraction`.
        seed: Decides every draw.

    Raises:
        DataError: If a split is empty or lacks a class, or too few samples are left to split.
    """
    notes: list[str] = []
    rows, test = _own_test(labels, seed, notes)
    train_labels = labels["train"]
    _refuse_missing(train_labels, labels[test.split], classes)
    test = Part(test.split, random_rows(test.rows, config.max_test, generator(seed, "max_test")))
    rows = random_rows(rows, config.max_train, generator(seed, "max_train"))
    if len(rows) < (num_classes := len(train_labels.unique())):
        raise DataError(f"{len(rows)} training images for {num_classes} classes. Use at least one a class (max_train).")
    kept, held = stratified_holdout(train_labels[rows], config.validation_fraction, generator(seed, "validation"))
    if not len(held):
        raise DataError(
            f"validation_fraction {config.validation_fraction} of {len(rows)} training images leaves no image to "
            "validate on. Raise validation_fraction or use more images."
        )
    parts = {"train": Part("train", rows[kept]), "validation": Part("train", rows[held]), "test": test}
    for name, part in parts.items():
        notes += _absent(name, labels[part.split][part.rows], classes)
    return parts, notes


def _own_test(labels: Mapping[str, Tensor], seed: int, notes: list[str]) -> tuple[Tensor, Part]:
    """Return the rows left of train, and the test part: the source's own, or held out."""
    empty = [name for name, values in labels.items() if not len(values)]
    if "train" not in labels or empty:
        seen = ", ".join(f"{name} ({len(values)} images)" for name, values in labels.items()) or "none"
        raise DataError(f"Splits seen: {seen}. Expected a train split, and no empty one.")
    rows = torch.arange(len(labels["train"]))
    if "test" in labels:
        if "validation" in labels:
            notes.append("The source's own validation split is not used; validation is carved from train.")
        return rows, Part("test", torch.arange(len(labels["test"])))
    if "validation" in labels:
        notes.append("The source has no test split; its validation split is the test set.")
        return rows, Part("validation", torch.arange(len(labels["validation"])))
    kept, held = stratified_holdout(labels["train"], HELD_OUT_TEST, generator(seed, "test"))
    if not len(held):
        raise DataError(f"{len(rows)} images are too few to hold out {HELD_OUT_TEST:.0%} of each class as test.")
    notes.append(
        f"The source has no test split; {HELD_OUT_TEST:.0%} of each class were held out as test by seed {seed}."
    )
    return kept, Part("train", held)


def _refuse_missing(train: Tensor, test: Tensor, classes: tuple[str, ...]) -> None:
    seen = {"train": set(train.tolist()), "test": set(test.tolist())}
    if len(seen["train"] | seen["test"]) < 2:
        raise DataError(f"All images are of one class ({_listed(seen['train'], classes)}). Expected at least two.")
    for name, other in (("train", "test"), ("test", "train")):
        if missing := seen[other] - seen[name]:
            raise DataError(
                f"The {name} split has no image of {_listed(missing, classes)}, which the {other} split has. "
                "Expected each class in both; add images, or remove the class."
            )


def _absent(name: str, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    absent = set(range(len(classes))) - set(labels.tolist())
    return [f"The {name} set has no image of {_listed(absent, classes)}."] if absent else []


def _listed(labels: set[int], classes: tuple[str, ...]) -> str:
    names = [repr(classes[label]) for label in sorted(labels)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
