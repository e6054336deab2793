"""Images and labels in one .npz file, under the names people give them."""

import re
from pathlib import Path

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.names import split_name
from tdsm.data.npz import read_npz
from tdsm.data.source import Source, array_source, unlabelled

WHAT = {
    **dict.fromkeys(("images", "image", "x", "data"), "images"),
    **dict.fromkeys(("labels", "label", "y", "targets", "target"), "labels"),
}
DEPTHS = (1, 3)  # channels an image may have
EXPECTED = (
    "images and labels; or SPLIT_images and SPLIT_labels with SPLIT train, val, test (MedMNIST); or x_SPLIT and "
    "y_SPLIT (Keras); and nothing else"
)


def load_npz(where: str, config: DataConfig) -> Source:
    """Load `images` and `labels`, of one split or of several, such as `train_images` or `x_train`.

    Images are (samples, height, width), (samples, height, width, 1 or 3) or (samples, 1 or 3, height, width), uint8,
    or floats in [0, 1] that are rounded to 256 levels. Labels are integers, whole floats, truth values or strings,
    (samples) or (samples, 1); the sorted distinct labels are the classes. Without labels the images are without.

    Raises:
        DataError: If the file is damaged, holds objects, or other arrays than these.
    """
    arrays = read_npz(Path(where))
    named = {name: _meaning(name) for name in arrays}
    if any(meaning is None for meaning in named.values()) or len(set(named.values())) < len(named):
        raise DataError(f"{where}: holds {sorted(arrays)}, expected {EXPECTED}.")
    parts = {meaning: name for name, meaning in named.items() if meaning}
    splits = list(dict.fromkeys(split for split, _ in parts))
    if alone := [split or "labels" for split in splits if (split, "images") not in parts]:
        raise DataError(f"{where}: holds {sorted(arrays)}, no images for {alone}, expected {EXPECTED}.")
    images, labels = {}, {}
    for split in splits:
        name, label = parts[split, "images"], parts.get((split, "labels"))
        images[split or "train"] = pixels = _checked(arrays[name], f"{where}: {name}")
        labels[split or "train"] = (
            _labels(arrays[label], len(pixels), f"{where}: {label}") if label else unlabelled(len(pixels))
        )
    return array_source(images, labels, [Path(where)])


def _meaning(name: str) -> tuple[str, str] | None:
    """Return (split, "images" or "labels"), the split "" if the name says none.

    >>> _meaning("x_train"), _meaning("val_labels"), _meaning("images"), _meaning("weights")
    (('train', 'images'), ('val', 'labels'), ('', 'images'), None)
    """
    words = re.split(r"[_-]", name.lower())
    what = [WHAT[word] for word in words if word in WHAT]
    split = [word for word in words if split_name(word).role]
    return (split[0] if split else "", what[0]) if len(what) == 1 and len(words) == 1 + len(split) <= 2 else None


def _labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Return one label an image."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (count,):
        raise DataError(f"{name} have shape {labels.shape} for {count} images, expected one label for each image.")
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.dtype.kind == "b":
        return np.where(labels, "true", "false")
    if labels.dtype.kind == "f" and len(labels) and (labels == np.round(labels)).all():
        return labels.astype(np.int64)
    return labels


def _checked(images: np.ndarray, name: str) -> np.ndarray:
    """Return images (samples, height, width) or (samples, height, width, 3)."""
    first, last = images.ndim == 4 and images.shape[1] in DEPTHS, images.ndim == 4 and images.shape[3] in DEPTHS
    if 0 in images.shape[1:] or not (images.ndim == 3 or first or last):
        raise DataError(
            f"{name} have shape {images.shape}, expected (samples, height, width) or (samples, height, width, 1 or 3)."
        )
    if first and last:
        raise DataError(
            f"{name} have shape {images.shape}, whose channels may be the second or the last axis. Save them as "
            "(samples, height, width, 3), or as (samples, height, width) if they are grey, with no axis of 1 or 3 more."
        )
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"{name} run from {images.min()} to {images.max()}, expected floats within 0..1 or uint8.")
    elif images.dtype != np.uint8:
        raise DataError(f"{name} are {images.dtype}, expected uint8 (0..255) or floats within 0..1. Convert them.")
    images = np.moveaxis(images, 1, -1) if first else images
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
