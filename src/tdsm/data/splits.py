"""Cut a source's splits into train, validation and test, by seed and by class."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from tdsm.base.errors import DataError
from tdsm.base.randomness import generator
from tdsm.data.config import DataConfig
from tdsm.data.names import find_roles

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
    """Choose the rows of train, validation and test, and say in words what serves as each.

    A source's own split is kept: what its name calls train, validation or test serves as that, and is never pooled
    with another. Missing validation is a share of train, missing test a fifth of it, both drawn by the seed, the same
    share of each class. A validation split never becomes the test set unless `test_split` names it.

    Args:
        labels: Labels of each source split by its own name, all -1 where there are none.
        classes: Class names, in label order; none for a source without labels.
        config: Gives `max_train`, `max_test`, `validation_fraction` and `test_split`.
        seed: Decides every draw.

    Raises:
        DataError: If a split is empty or lacks a class, or too few samples are left to split.
        UsageError: If `test_split` is none of the splits.
    """
    used, notes = _usable(labels, classes)
    roles = find_roles(used, config.test_split)
    notes += [_unused(name, len(used[name])) for name in used if name not in roles.values()]
    train = roles["train"]
    rows, test, test_from = _test_part(used, roles, seed)
    if classes:
        _refuse_missing({role: used[split] for role, split in ({"test": test.split} | roles).items()}, classes)
    all_rows, all_tests = rows, test.rows
    test = Part(test.split, random_rows(all_tests, config.max_test, generator(seed, "max_test")))
    rows = random_rows(all_rows, config.max_train, generator(seed, "max_train"))
    if len(rows) < (num_classes := len(used[train].unique())):
        raise DataError(f"{len(rows)} training images for {num_classes} classes. Use at least one a class (max_train).")
    kept, validation, validation_from = _validation_part(used, roles, rows, config, seed)
    notes.append(f"Train is {train!r}; validation is {validation_from}; test is {test_from}.")
    notes += [*_fewer_note("training", len(rows), len(all_rows)), *_fewer_note("test", len(test.rows), len(all_tests))]
    return {"train": Part(train, kept), "validation": validation, "test": test}, notes


def absent_classes(name: str, labels: Int64[Tensor, "samples"], classes: tuple[str, ...]) -> list[str]:
    """Say in a note which classes a set has no image of."""
    absent = set(range(len(classes))) - set(labels.unique().tolist())
    return [f"The {name} set has no image of {_listed(absent, classes)}."] if absent else []


def _usable(labels: Mapping[str, Tensor], classes: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out splits without labels beside labelled ones, and say so."""
    if not labels or any(not len(values) for values in labels.values()):
        seen = ", ".join(f"{name} ({len(values)} images)" for name, values in labels.items()) or "none"
        raise DataError(f"Splits seen: {seen}. Expected a train split, and no empty one.")
    bare = [name for name, values in labels.items() if classes and int(values.max()) < 0]
    notes = [f"Split {name!r} ({len(labels[name])} images) has no labels and is not used." for name in bare]
    return {name: values for name, values in labels.items() if name not in bare}, notes


def _unused(name: str, count: int) -> str:
    return f"Split {name!r} ({count} images) serves neither as train, validation nor test and is not used."


def _fewer_note(name: str, kept: int, there: int) -> list[str]:
    return [f"Of {there} {name} images {kept} are used, drawn at random."] if kept < there else []


def _test_part(labels: Mapping[str, Tensor], roles: Mapping[str, str], seed: int) -> tuple[Tensor, Part, str]:
    """Return the rows left of train; the test part, the source's own or held out; and where it is from."""
    rows = torch.arange(len(labels[roles["train"]]))
    if "test" in roles:
        return rows, Part(roles["test"], torch.arange(len(labels[roles["test"]]))), repr(roles["test"])
    kept, held = stratified_holdout(labels[roles["train"]].clamp(min=0), HELD_OUT_TEST, generator(seed, "test"))
    if not len(held):
        raise DataError(
            f"{len(rows)} images of {len(labels[roles['train']].unique())} classes are too few to hold out "
            f"{HELD_OUT_TEST:.0%} of each class as test. Expected several images of each class; or are the labels ids?"
        )
    said = f"{_percent(HELD_OUT_TEST)} of {roles['train']!r}, held out by seed {seed}"
    way_out = "; test_split makes another its test set" if "validation" in roles else ""
    return kept, Part(roles["train"], held), f"{said}, since the source has no test split{way_out}"


def _validation_part(
    labels: Mapping[str, Tensor], roles: Mapping[str, str], rows: Tensor, config: DataConfig, seed: int
) -> tuple[Tensor, Part, str]:
    """Return the rows left of train; the validation part, the source's own or carved; and where it is from."""
    if "validation" in roles:
        own = torch.arange(len(labels[roles["validation"]]))
        chosen = random_rows(own, config.max_test, generator(seed, "max_validation"))
        return rows, Part(roles["validation"], chosen), repr(roles["validation"])
    train_labels = labels[roles["train"]][rows].clamp(min=0)
    kept, held = stratified_holdout(train_labels, config.validation_fraction, generator(seed, "validation"))
    if not len(held):
        raise DataError(
            f"validation_fraction {config.validation_fraction} of {len(rows)} training images leaves no image to "
            "validate on. Raise validation_fraction or use more images."
        )
    said = f"{_percent(config.validation_fraction)} of {roles['train']!r}, drawn by seed {seed}"
    return rows[kept], Part(roles["train"], rows[held]), said


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _refuse_missing(labels: Mapping[str, Tensor], classes: tuple[str, ...]) -> None:
    """Refuse a single class, one that is never trained, and one that is never tested."""
    seen = {name: set(values.unique().tolist()) for name, values in labels.items()}
    if len(seen["train"] | seen["test"]) < 2:
        raise DataError(f"All images are of one class ({_listed(seen['train'], classes)}). Expected at least two.")
    for name, other in (("train", "test"), ("train", "validation"), ("test", "train")):
        if missing := seen.get(other, set()) - seen[name]:
            raise DataError(
                f"The {name} split has no image of {_listed(missing, classes)}, which the {other} split has. "
                f"Expected each class of {other} in {name}; add images, or remove the class."
            )


def _listed(labels: set[int], classes: tuple[str, ...]) -> str:
    names = [repr(classes[label]) for label in sorted(labels)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
