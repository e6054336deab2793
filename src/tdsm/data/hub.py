"""A data set of the Hugging Face hub: from the local cache if it is there, else from the network."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tdsm.base.errors import DataError
from tdsm.data.columns import cells, find_columns, label_values
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded
from tdsm.data.source import Fetch, Source, encode_labels

TIMEOUT = 3.0  # seconds for the one request that tells whether the hub can be reached
BATCH = 256
WAYS_OUT = (
    "Download its parquet files elsewhere and pass parquet:FOLDER, or pass a folder of images as folder:ROOT "
    "(ROOT/train/CLASS/*.png), or arrays as npz:FILE."
)


def load_hub(where: str, config: DataConfig) -> Source:
    """Load OWNER/NAME with its own splits; a single split of any name is train.

    Raises:
        DataError: If it is neither cached nor reachable, or cannot be used.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where):
        raise DataError(f"{where!r} is no file or folder here, and no hub id (OWNER/NAME, such as 'uoft-cs/cifar10').")
    with _quiet():
        splits = dict(_cached(where) or _downloaded(where))
    if len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    splits = {split: table for split, table in splits.items() if split in ("train", "validation", "test")}
    if "train" not in splits:
        raise DataError(f"{where}: has no train split. {WAYS_OUT}")
    columns = find_columns(splits["train"].features.arrow_schema, config, where)
    tables = {split: dataset.with_format("arrow") for split, dataset in splits.items()}
    values = {
        split: label_values(t.data.column(columns.label), f"{where}: {columns.label}") for split, t in tables.items()
    }
    classes, labels = encode_labels(values, columns.classes)
    fetch = {split: _fetch(table, split, columns.image) for split, table in tables.items()}
    return Source(classes, labels, fetch, has_lossless_original=True)


def _fetch(dataset: Any, split: str, column: str) -> Fetch:
    def fetch(rows: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        chosen = dataset.select_columns([column]).select(rows).iter(BATCH)
        images = (image for table in chosen for image in cells(table, column, may_read_paths=True))
        return zip((f"{split} row {row}" for row in rows), images, strict=True)

    return fetch


def _cached(where: str) -> Any:
    """Return the data set from the cache without asking the network, or None."""
    import datasets
    from datasets.exceptions import DatasetsError

    online = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(where)
    except (OSError, ValueError, DatasetsError):
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = online


def _downloaded(where: str) -> Any:
    """Download the data set, after one short request: `datasets` itself retries for half a minute."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(where, timeout=TIMEOUT)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{where}: no such file or folder here, no such data set on the hub, or it is private. "
            f"Check the name, or log in (hf auth login). {WAYS_OUT}"
        ) from error
    except Exception as error:  # the HTTP library below differs between versions, and so do its errors
        raise DataError(
            f"{where}: no such file or folder here, not in the Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}). {WAYS_OUT}"
        ) from error
    try:
        return datasets.load_dataset(where)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{where}: cannot be loaded from the hub ({error}). {WAYS_OUT}") from error


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
