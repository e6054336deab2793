"""What every loader returns: labels at once, images when they are asked for."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdsm.base.errors import DataError
from tdsm.data.decode import Encoded

SPLIT_WORDS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}

# Rows (ascending) -> a name for errors and the image, one by one: only what is kept is ever read.
Fetch = Callable[[Sequence[int]], Iterator[tuple[str, Encoded]]]


@dataclass(frozen=True, eq=False)
class Source:
    """Splits of a source, as far as it has them: "train", "validation", "test"."""

    classes: tuple[str, ...]
    labels: dict[str, Tensor]
    fetch: dict[str, Fetch]
    notes: tuple[str, ...] = ()
    has_lossless_original: bool = False


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort numbers inside names by value.

    >>> sorted(["img10", "img2", "img1"], key=natural_key)
    ['img1', 'img2', 'img10']
    """
    pieces = [(int(piece) if piece.isdecimal() else -1, piece) for piece in re.split(r"([0-9]+)", text)]
    return [*pieces, (-1, text)]


def encode_labels(
    values: Mapping[str, np.ndarray], names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Turn the labels of all splits into class names and int64 positions among them.

    >>> encode_labels({"train": np.array(["dog", "cat", "dog"])})
    (('cat', 'dog'), {'train': tensor([1, 0, 1])})

    Args:
        values: Integers or strings, one a sample, for each split.
        names: Class names when `values` are already positions among them.

    Raises:
        DataError: If labels are neither, negative (unlabelled) or beyond `names`.
    """
    for split, labels in values.items():
        if labels.ndim != 1 or labels.dtype.kind not in ("iuU" if names is None else "iu"):
            raise DataError(
                f"Labels of {split} are {labels.dtype} of shape {labels.shape}, "
                "expected one integer or string for each image."
            )
        if labels.dtype.kind != "U" and (wrong := _out_of_range(labels, names)).any():
            raise DataError(
                f"{wrong.sum()} labels of {split} are out of range, the first {labels[wrong][0]} in row "
                f"{wrong.argmax()}. Expected 0 to {'...' if names is None else len(names) - 1}; "
                "-1 marks unlabelled images, which cannot be used."
            )
    if names is None:
        present = {value for labels in values.values() for value in np.unique(labels).tolist()}
        if len({type(value) for value in present}) > 1:
            raise DataError("Labels are integers in one split and strings in another, expected one kind.")
        ordered = sorted(present, key=lambda value: natural_key(str(value)))
        position = {value: index for index, value in enumerate(ordered)}
        values = {
            split: np.array([position[v] for v in labels.tolist()], dtype=int) for split, labels in values.items()
        }
        names = [str(value) for value in ordered]
    return tuple(names), {split: torch.from_numpy(labels.astype(np.int64)) for split, labels in values.items()}


def _out_of_range(labels: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    return (labels < 0) | (labels >= len(names) if names is not None else False)


def array_source(
    images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], notes: tuple[str, ...] = ()
) -> Source:
    """Make a source of uint8 arrays (samples, height, width[, 3])."""
    classes, positions = encode_labels(labels)
    return Source(classes, positions, {split: _fetch_array(split, array) for split, array in images.items()}, notes)


def _fetch_array(split: str, array: np.ndarray) -> Fetch:
    return lambda rows: ((f"image {row} of {split}", array[row]) for row in rows)
