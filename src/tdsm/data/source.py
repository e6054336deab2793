"""What every loader returns: labels at once, images when they are asked for."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdsm.base.errors import DataError
from tdsm.data.decode import Encoded
from tdsm.data.names import natural_key

UNLABELLED = -1

# Rows (ascending) -> a name for errors and the image, one by one: only what is kept is ever read.
Fetch = Callable[[Sequence[int]], Iterator[tuple[str, Encoded]]]


@dataclass(frozen=True, eq=False)
class Source:
    """Splits of a source by their own names, in its own order.

    A split without labels has -1 for each sample; a source without any has no classes. `skipped` lists (name, reason)
    of what was left out as unusable. `made_of` names all that the images come from, as texts and files: while none of
    these changes, neither do the images. A source without it is read into memory.
    """

    classes: tuple[str, ...]
    labels: dict[str, Tensor]
    fetch: dict[str, Fetch]
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    has_lossless_original: bool = False
    made_of: Callable[[], Iterable[str | Path]] | None = None


def encode_labels(
    values: Mapping[str, np.ndarray], names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Turn the labels of all splits into class names and int64 positions among them.

    Names are compared as Unicode composes them (NFC), so that an accent is one however it was typed. A split all of
    whose labels are -1 is without labels and stays so.

    >>> encode_labels({"train": np.array(["dog", "cat", "dog"]), "test": np.array([-1])})
    (('cat', 'dog'), {'train': tensor([1, 0, 1]), 'test': tensor([-1])})

    Args:
        values: Integers or strings, one a sample, for each split.
        names: Class names when `values` are already positions among them.

    Raises:
        DataError: If labels are neither, negative in part, or beyond `names`, or a name is empty, cannot be printed, or
            is there twice.
    """
    labelled = {split: labels for split, labels in values.items() if not _is_unlabelled(labels)}
    for split, labels in labelled.items():
        _refuse_unfit(split, labels, names)
    classes = tuple(map(_composed, names)) if names is not None else _distinct(labelled)
    _refuse_names(classes)
    if names is None:
        labelled = {split: _positions(labels, classes) for split, labels in labelled.items()}
    encoded = {split: labelled.get(split, labels).astype(np.int64) for split, labels in values.items()}
    return classes if labelled else (), {split: torch.from_numpy(labels) for split, labels in encoded.items()}


def unlabelled(count: int) -> np.ndarray:
    """Return the labels of a split without labels."""
    return np.full(count, UNLABELLED)


def _is_unlabelled(labels: np.ndarray) -> bool:
    return labels.ndim == 1 and labels.dtype.kind == "i" and len(labels) > 0 and bool((labels == UNLABELLED).all())


def _composed(name: object) -> str:
    return unicodedata.normalize("NFC", str(name))


def _refuse_names(classes: tuple[str, ...]) -> None:
    if odd := [ascii(name) for name in classes if not name.strip() or not name.isprintable()]:
        raise DataError(f"Class names are empty or cannot be printed: {', '.join(odd[:5])}. Rename these classes.")
    if repeated := sorted(name for name, count in Counter(classes).items() if count > 1):
        raise DataError(f"Class names repeat: {', '.join(repeated[:5])}. Expected each class once.")


def _distinct(values: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    if len({labels.dtype.kind == "U" for labels in values.values()}) > 1:
        raise DataError("Labels are integers in one split and strings in another, expected one kind.")
    return tuple(sorted({_composed(v) for labels in values.values() for v in np.unique(labels)}, key=natural_key))


def _positions(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    position = {name: index for index, name in enumerate(classes)}
    distinct, inverse = np.unique(labels, return_inverse=True)
    return np.array([position[_composed(value)] for value in distinct], dtype=np.int64)[inverse]


def _refuse_unfit(split: str, labels: np.ndarray, names: Sequence[str] | None) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in ("iuU" if names is None else "iu"):
        raise DataError(
            f"Labels of {split} are {labels.dtype} of shape {labels.shape}, "
            "expected one integer or string for each image."
        )
    if labels.dtype.kind != "U" and (wrong := _out_of_range(labels, names)).any():
        raise DataError(
            f"{wrong.sum()} labels of {split} are out of range, the first {labels[wrong][0]} in row "
            f"{wrong.argmax()}. Expected 0 to {'...' if names is None else len(names) - 1}; "
            "-1 marks unlabelled images, which cannot be used among labelled ones."
        )


def _out_of_range(labels: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    return (labels < 0) | (labels >= len(names) if names is not None else False)


def array_source(
    images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], files: Sequence[Path] = ()
) -> Source:
    """Make a source of arrays (samples, height, width[, 3]), uint8 or floats in [0, 1], which lie in these files."""
    classes, positions = encode_labels(labels)
    fetch = {split: _fetch_array(split, array) for split, array in images.items()}
    notes = tuple(note for split, array in images.items() for note in _dark(split, array))
    return Source(classes, positions, fetch, notes, made_of=(lambda: files) if files else None)


def _dark(split: str, array: np.ndarray) -> list[str]:
    """Say in a note that a split uses the lower half of the levels only: white may be another level than 255."""
    white = 255 if array.dtype == np.uint8 else 1.0
    if not array.size or (highest := array.max()) >= white / 2:
        return []
    return [
        f"The highest level of {split} is {highest:.3g}, white is {white:g}: the images are dark, or not scaled to it."
    ]


def _fetch_array(split: str, array: np.ndarray) -> Fetch:
    return lambda rows: ((f"image {row} of {split}", _levels(array[row])) for row in rows)


def _levels(image: np.ndarray) -> np.ndarray:
    """Round floats to 256 levels."""
    return image if image.dtype == np.uint8 else np.rint(image.astype(np.float32) * 255).astype(np.uint8)
