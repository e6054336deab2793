"""Data sets of the package `datasets`: folders written by `save_to_disk`, and objects passed in Python."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tdsm.base.errors import DataError, ResourceError, UsageError
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
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled

BATCH = 256


def load_saved(where: str, config: DataConfig) -> Source:
    """Load a folder written by `save_to_disk`. Needs the package `datasets`.

    Raises:
        DataError: If it is damaged, or its columns cannot be used.
        ResourceError: If `datasets` is not installed.
    """
    try:
        import datasets
        import pyarrow as pa
    except ImportError as error:
        raise ResourceError(
            f"{where}: was written by the package datasets, which is not installed. pip install datasets, or write "
            "parquet files (Dataset.to_parquet) and pass their folder."
        ) from error
    try:
        with _quiet():
            saved = datasets.load_from_disk(where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"{where}: cannot be read as a saved data set ({error}). Save it again.") from error
    return _source(saved, config, where, may_read_paths=False)


def read_dataset(dataset: Any, config: DataConfig) -> Source:
    """Read a `Dataset`, or a `DatasetDict` with splits of its own.

    Raises:
        UsageError: If it is neither.
        DataError: If its columns cannot be used.
    """
    return _source(dataset, config, "dataset", may_read_paths=True)


def _source(dataset: Any, config: DataConfig, where: str, *, may_read_paths: bool) -> Source:
    splits = dict(dataset) if isinstance(dataset, dict) else {str(getattr(dataset, "split", None) or "train"): dataset}
    if odd := [type(d).__name__ for d in splits.values() if not hasattr(d, "select") or not hasattr(d, "features")]:
        raise UsageError(f"{where}: holds {odd[0]}, expected a Dataset or DatasetDict of the package datasets.")
    columns = {split: find_columns(d.features.arrow_schema, config, where) for split, d in splits.items()}
    common = common_columns(columns.values(), where)
    tables = {split: d.with_format("arrow") for split, d in splits.items()}
    values = {split: _labels(table, columns[split], where) for split, table in tables.items()}
    classes, labels = encode_labels(values, common.classes)
    fetch = {split: _fetch(table, split, common.image, may_read_paths) for split, table in tables.items()}
    prints = [str(getattr(d, "_fingerprint", None) or "") for d in splits.values()]  # datasets' own, of every change
    made_of = (lambda: prints) if all(prints) else None
    return Source(classes, labels, fetch, has_lossless_original=True, made_of=made_of)


def _labels(table: Any, columns: Columns, where: str) -> Any:
    for name in split_columns(table.features.arrow_schema, columns.label):
        refuse_splits(table.select_columns([name])[:].column(name), f"{where}: {name}")
    if columns.label is None:
        return unlabelled(table.num_rows)
    return label_values(table.select_columns([columns.label])[:].column(columns.label), f"{where}: {columns.label}")


def _fetch(table: Any, split: str, column: str, may_read_paths: bool) -> Fetch:
    def fetch(rows: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        chosen = table.select_columns([column]).select(rows).iter(BATCH)
        images = (image for batch in chosen for image in cells(batch, column, may_read_paths=may_read_paths))
        return zip((f"{split} row {row}" for row in rows), images, strict=True)

    return fetch


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from printing; the caller has its own progress."""
    import datasets

    had_bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()
