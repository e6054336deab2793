"""Labels in a table beside the images: metadata.csv or metadata.jsonl, as Hugging Face's image folder has them.

    metadata.csv      file_name,label          metadata.jsonl      {"file_name": "0001.png", "label": "cat"}
                      0001.png,cat

A file is named from the folder in which the table lies.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.columns import find_label_column, label_values, refuse_splits, split_columns
from tdsm.data.decode import MAX_LISTED
from tdsm.data.source import unlabelled

FILE = "file_name"


def listed_labels(
    root: Path, tables: Sequence[str], images: Mapping[str, Sequence[str]], wanted: str | None
) -> dict[str, np.ndarray] | None:
    """Return the labels that tables give the images of every split; a split none of whose images is named has none.

    Args:
        root: The folder from which paths are named.
        tables: Paths of the tables.
        images: Paths of the images of each split.
        wanted: The column of the labels; if not set, the one that is called so (label, class, ...).

    Returns:
        Labels in the order of the images, as texts, under each split; None if no table has a column of labels.

    Raises:
        DataError: If a table cannot be read, names a file twice with different labels, or leaves out some images of a
            split.
        UsageError: If `wanted` is no column.
    """
    found: dict[str, str] = {}
    for path in tables:
        for file, label in _rows(root, path, wanted):
            if found.setdefault(file, label) != label:
                raise DataError(f"{root / path}: {file} is labelled {found[file]!r} and {label!r}, expected one label.")
    return {split: _of_split(found, root, split, paths) for split, paths in images.items()} if found else None


def _of_split(found: Mapping[str, str], root: Path, split: str, paths: Sequence[str]) -> np.ndarray:
    absent = [path for path in paths if path not in found]
    if len(absent) == len(paths):
        return unlabelled(len(paths))
    if absent:
        raise DataError(
            f"{root}: the tables beside the images leave out {len(absent)} of {len(paths)} images of {split!r}: "
            f"{', '.join(absent[:MAX_LISTED])}. Expected a row of {FILE} and label for each; add rows, or move the "
            "images away."
        )
    return np.array([found[path] for path in paths], dtype=str)


def _rows(root: Path, path: str, wanted: str | None) -> Iterator[tuple[str, str]]:
    """Read the path, from the root, and the label of each row of a table that has columns of both."""
    table = _read(root / path)
    where = str(root / path)
    if FILE not in table.column_names:
        return
    label = find_label_column(table.schema, wanted, where)
    for name in split_columns(table.schema, label):
        refuse_splits(table.column(name), f"{where}: {name}")
    if label is not None:
        labels = label_values(table.column(label), f"{where}: {label}")
        for file, value in zip(table.column(FILE).to_pylist(), labels.tolist(), strict=True):
            yield normpath(join(dirname(path), str(file).replace("\\", "/"))), str(value)


def _read(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv, json

    try:
        return csv.read_csv(path) if path.suffix == ".csv" else json.read_json(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}). Expected rows of {FILE} and label.") from error
