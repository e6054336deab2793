"""Parquet files in Hugging Face's layout, read in place: no cache, only the row groups that are needed."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.columns import Columns, cells, find_columns, label_values
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded
from tdsm.data.source import SPLIT_WORDS, Fetch, Source, encode_labels, natural_key


def load_parquet(where: str, config: DataConfig) -> Source:
    """Load a folder of parquet files, or one file.

    A file belongs to the split its path names as a word (train-00000-of-00001.parquet, test/0000.parquet); files
    that name none are train. Hidden files are ignored.

    Raises:
        DataError: If a file is damaged, columns are unclear or differ between files, or labels are out of range.
    """
    splits = _split_files(Path(where))
    opened = {split: [_open(file) for file in files] for split, files in splits.items()}
    columns = _common_columns([file for files in opened.values() for file in files], config, where)
    values = {split: _labels(files, columns.label, where) for split, files in opened.items()}
    classes, labels = encode_labels(values, columns.classes)
    fetch = {split: _fetch(files, splits[split], columns.image) for split, files in opened.items()}
    return Source(classes, labels, fetch, has_lossless_original=True)


def _split_files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    found = [file for file in path.rglob("*.parquet") if not _is_hidden(file.relative_to(path))]
    if not found:
        raise DataError(f"{path}: no .parquet files here.")
    splits: dict[str, list[Path]] = {}
    for file in sorted(found, key=lambda file: natural_key(file.relative_to(path).as_posix())):
        words = re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())
        splits.setdefault(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train"), []).append(file)
    return splits


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _open(file: Path) -> Any:
    import pyarrow.parquet as pq

    return _reading(file, pq.ParquetFile, file)


def _reading(file: Path, read: Callable[..., Any], *args: Any) -> Any:
    import pyarrow as pa

    try:
        return read(*args)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error}). Copy it again.") from error


def _common_columns(files: list[Any], config: DataConfig, where: str) -> Columns:
    found = [find_columns(file.schema_arrow, config, where) for file in files]
    if any(columns != found[0] for columns in found):
        raise DataError(f"{where}: columns or class names differ between its files, expected the same in all.")
    return found[0]


def _labels(files: list[Any], column: str, where: str) -> np.ndarray:
    read = [_reading(Path(where), file.read, [column]) for file in files]
    return np.concatenate([label_values(table.column(column), f"{where}: {column}") for table in read])


def _fetch(files: list[Any], paths: list[Path], column: str) -> Fetch:
    def fetch(rows: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        wanted, start = np.asarray(rows, dtype=np.int64), 0
        for file, path in zip(files, paths, strict=True):
            first = start
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                here = wanted[(wanted >= start) & (wanted < stop)]
                if len(here):
                    table = _reading(path, file.read_row_group, group, [column]).take(here - start)
                    names = (f"{path.name} row {row - first}" for row in here)
                    yield from zip(names, cells(table, column), strict=True)
                start = stop

    return fetch
