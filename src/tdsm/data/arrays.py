"""Images and labels in one .npz file, read without pickle."""

import zipfile
from pathlib import Path

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.source import Source, array_source

ONE_SPLIT = {"images", "labels"}
TWO_SPLITS = {"train_images", "train_labels", "test_images", "test_labels"}


def load_npz(where: str, config: DataConfig) -> Source:
    """Load `images`, `labels`, or `train_images`, `train_labels`, `test_images`, `test_labels`.

    Images are (samples, height, width) or (samples, height, width, 1 or 3), uint8, or floats in [0, 1] that are
    rounded to 256 levels. Labels are integers or strings; the sorted distinct labels are the classes.

    Raises:
        DataError: If the file is damaged, holds objects, or other arrays than these.
    """
    arrays = _read(Path(where))
    if set(arrays) not in (ONE_SPLIT, TWO_SPLITS):
        raise DataError(
            f"{where}: holds {sorted(arrays)}, expected {sorted(ONE_SPLIT)} or {sorted(TWO_SPLITS)} and nothing else."
        )
    prefixes = {"train": "train_", "test": "test_"} if set(arrays) == TWO_SPLITS else {"train": ""}
    images = {split: _levels(arrays[f"{p}images"], f"{where}: {p}images") for split, p in prefixes.items()}
    labels = {split: arrays[f"{p}labels"] for split, p in prefixes.items()}
    for split, prefix in prefixes.items():
        if labels[split].shape[:1] != images[split].shape[:1]:
            raise DataError(
                f"{where}: {len(images[split])} {prefix}images but {prefix}labels of shape {labels[split].shape}, "
                "expected one label for each image."
            )
    return array_source(images, labels)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({error}). Expected np.savez of plain arrays; object arrays and pickles "
            "are refused."
        ) from error


def _levels(images: np.ndarray, name: str) -> np.ndarray:
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape[1:]:
        raise DataError(
            f"{name} have shape {images.shape}, expected (samples, height, width) or (samples, height, width, 1 or 3)."
        )
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"{name} run from {images.min()} to {images.max()}, expected floats within 0..1 or uint8.")
        images = np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"{name} are {images.dtype}, expected uint8 (0..255) or floats within 0..1. Convert them.")
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
