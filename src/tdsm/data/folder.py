"""A folder of image files, one folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.decode import refuse_bad
from tdsm.data.source import SPLIT_WORDS, Fetch, Source, encode_labels, natural_key


def load_folder(where: str, config: DataConfig) -> Source:
    """Load ROOT/train/CLASS/FILES and ROOT/test/CLASS/FILES, or ROOT/CLASS/FILES.

    Classes are the folder names, files may lie deeper, both in natural order. Hidden files are ignored; every other
    file in a class must be an image. Links are followed to files inside ROOT only.

    Raises:
        DataError: If there is no class folder, one is empty, or links leave ROOT.
    """
    root = Path(where)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    tables = {split: _class_files(folder, root) for split, folder in _split_folders(root).items()}
    values = {split: np.array([name for name, _ in table], dtype=str) for split, table in tables.items()}
    classes, labels = encode_labels(values)
    fetch = {split: _fetch([file for _, file in table], root) for split, table in tables.items()}
    return Source(classes, labels, fetch, _loose_files(root))


def _split_folders(root: Path) -> dict[str, Path]:
    """Find the split folders; a folder of class folders is train alone."""
    folders = _folders(root)
    if not any(folder.name == "train" and _folders(folder) for folder in folders):
        return {"train": root}
    strange = [folder.name for folder in folders if folder.name not in SPLIT_WORDS]
    splits = {SPLIT_WORDS[folder.name]: folder for folder in folders if folder.name in SPLIT_WORDS}
    if strange or len(splits) < len(folders):
        raise DataError(
            f"{root}: holds {[folder.name for folder in folders]}. Beside train, expected at most test and one of "
            "validation, valid, val."
        )
    return splits


def _class_files(folder: Path, root: Path) -> list[tuple[str, Path]]:
    """List (class, file), and refuse empty classes and links that leave the root."""
    classes = _folders(folder)
    if unprintable := [ascii(entry.name) for entry in classes if not entry.name.isprintable()]:
        raise DataError(
            f"{folder}: class names cannot be printed: {', '.join(unprintable[:20])}. Rename these folders."
        )
    if not classes:
        raise DataError(
            f"{folder}: no class folders. Expected {folder.name}/CLASS/image files, or an .npz or parquet path."
        )
    table = [(entry.name, file) for entry in classes for file in _files(entry)]
    if empty := sorted({entry.name for entry in classes} - {name for name, _ in table}):
        raise DataError(f"{folder}: class folders without files: {empty[:20]}. Fill or remove them.")
    inside = root.resolve()
    strange = [file for _, file in table if not file.resolve().is_relative_to(inside) or not file.is_file()]
    refuse_bad([(file.relative_to(root).as_posix(), "not a file inside the data folder (a link?)") for file in strange])
    return table


def _folders(folder: Path) -> list[Path]:
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def _files(folder: Path) -> list[Path]:
    """List all files below a class folder, and links to folders, which are not entered."""
    if folder.is_symlink():
        return [folder]
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*files, *linked) if not name.startswith(".")]
    return sorted(found, key=lambda file: natural_key(file.relative_to(folder).as_posix()))


def _fetch(files: list[Path], root: Path) -> Fetch:
    def fetch(rows) -> Iterator[tuple[str, Path]]:
        return ((files[row].relative_to(root).as_posix(), files[row]) for row in rows)

    return fetch


def _loose_files(root: Path) -> tuple[str, ...]:
    places = {root, *_split_folders(root).values()}
    loose = [file for place in places for file in place.iterdir() if file.is_file() and not file.name.startswith(".")]
    return (f"{len(loose)} files beside the class folders were ignored.",) if loose else ()
