"""Parquet files in Hugging Face's layout, read in place: no cache, only the row groups that are needed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.columns import Columns, cells, common_columns, find_columns, label_values
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded
from tdsm.data.names import DEFAULT, choose_config, group_files
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled


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
    opened = {split: [_open(file) for file in files] for split, files in splits.items()}
    columns = {id(file): find_columns(file.schema_arrow, config, where) for files in opened.values() for file in files}
    common = common_columns(columns.values(), where)
    values = {split: _labels([(file, columns[id(file)]) for file in files], where) for split, files in opened.items()}
    classes, labels = encode_labels(values, common.classes)
    fetch = {split: _fetch(files, splits[split], common.image) for split, files in opened.items()}
    return Source(classes, labels, fetch, notes, has_lossless_original=True)


def _split_files(path: Path, config: DataConfig) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    if path.is_file():
        choose_config([DEFAULT], config.config, str(path))
        return {"train": [path]}, ()
    found = [file for file in path.rglob("*.parquet") if not _is_hidden(file.relative_to(path))]
    if not found:
        raise DataError(f"{path}: no .parquet files here.")
    return group_files(found, path, config.config)


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


def _labels(files: list[tuple[Any, Columns]], where: str) -> np.ndarray:
    """Read the labels of a split's files one after the other."""
    values = [_file_labels(file, columns.label, where) for file, columns in files]
    if len({labels.dtype.kind in "OU" for labels in values}) > 1:
        raise DataError(f"{where}: labels are integers in one file and strings in another, expected one kind.")
    return np.concatenate(values)


def _file_labels(file: Any, label: str | None, where: str) -> np.ndarray:
    if label is None:
        return unlabelled(file.metadata.num_rows)
    table = _reading(Path(where), file.read, [label])
    return label_values(table.column(label), f"{where}: {label}")


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
