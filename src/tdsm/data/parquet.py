"""Parquet files in Hugging Face's layout, read in place: no cache, only the row groups that are needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tdsm.base.errors import DataError, TdsmError
from tdsm.data.columns import (
    Columns,
    cells,
    common_columns,
    find_columns,
    label_values,
    refuse_splits,
    split_columns,
)
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded
from tdsm.data.names import DEFAULT, choose_config, group_files
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled
from tdsm.data.walk import visible_files


class File(NamedTuple):
    """A parquet file that is open, and its columns."""

    path: Path
    table: Any
    columns: Columns


def load_parquet(where: str, config: DataConfig) -> Source:
    """Load a folder of parquet files, or one file.

    A file belongs to the split its path names (train-00000-of-00001.parquet, Test/0000.parquet, cifar-val.parquet),
    else to one of its own name; where no path names a split all are train. Other words in a path are its config (or
    fold), of which one is read (`config`). Hidden files are ignored.

    Raises:
        DataError: If a file is damaged or missing, columns are unclear or differ between files, or labels are out of
            range.
        UsageError: If there are several configs and none was chosen.
    """
    splits, notes = _split_files(Path(where), config)
    opened = {split: [_open(path, config, where) for path in paths] for split, paths in splits.items()}
    common = common_columns([file.columns for files in opened.values() for file in files], where)
    values = {split: _labels(files, where) for split, files in opened.items()}
    classes, labels = encode_labels(values, common.classes)
    fetch = {split: _fetch(files, common.image) for split, files in opened.items()}
    files = [path for paths in splits.values() for path in paths]
    return Source(classes, labels, fetch, notes, has_lossless_original=True, made_of=lambda: files)


def _split_files(path: Path, config: DataConfig) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    if path.is_file():
        choose_config([DEFAULT], config.config, str(path))
        return {"train": [path]}, ()
    if not (found := visible_files(path, ".parquet")):
        raise DataError(f"{path}: no .parquet files here.")
    return group_files(found, path, config.config)


def _open(path: Path, config: DataConfig, where: str) -> File:
    import pyarrow.parquet as pq

    with _reading(path):
        table = pq.ParquetFile(path)
        return File(path, table, find_columns(table.schema_arrow, config, where))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one line."""
    import pyarrow as pa

    try:
        yield
    except TdsmError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}). Copy it again.") from error


def _labels(files: list[File], where: str) -> np.ndarray:
    """Read the labels of a split's files one after the other."""
    for name in split_columns(files[0].table.schema_arrow, files[0].columns.label):
        refuse_splits(_column(files, name), f"{where}: {name}")
    values = [_file_labels(file) for file in files if file.table.metadata.num_rows] or [unlabelled(0)]
    if len({labels.dtype.kind == "U" for labels in values}) > 1:
        raise DataError(f"{where}: labels are integers in one file and strings in another, expected one kind.")
    return np.concatenate(values)


def _file_labels(file: File) -> np.ndarray:
    if file.columns.label is None:
        return unlabelled(file.table.metadata.num_rows)
    return label_values(_column([file], file.columns.label), f"{file.path}: {file.columns.label}")


def _column(files: list[File], name: str) -> Any:
    """Read one column of files that all have it."""
    import pyarrow as pa

    chunks = []
    for file in files:
        with _reading(file.path):
            chunks += file.table.read([name]).column(name).chunks
    with _reading(files[0].path):
        return pa.chunked_array(chunks)


def _fetch(files: list[File], column: str) -> Fetch:
    def fetch(rows: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        wanted, start = np.asarray(rows, dtype=np.int64), 0
        for file in files:
            first = start
            for group in range(file.table.num_row_groups):
                stop = start + file.table.metadata.row_group(group).num_rows
                here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
                if len(here):
                    names = (f"{file.path.name} row {row - first}" for row in here)
                    yield from zip(names, _images(file, group, here - start, column), strict=True)
                start = stop

    return fetch


def _images(file: File, group: int, rows: np.ndarray, column: str) -> Iterator[Encoded]:
    with _reading(file.path):
        yield from cells(file.table.read_row_group(group, [column]).take(rows), column)
