"""The forms in which a split of a store is kept: shards of fixed sample ranges, each with a sidecar.

    safetensors   SPLIT/FEATURE/shard-00003.safetensors   to train from: mapped, a random row at once
    parquet       SPLIT/shard-00003.parquet               to hand on: id, label, class and all features as columns

Both hold the same values. In Parquet a feature is a column of Arrow's fixed-shape tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdsm.base import io
from tdsm.features.store import fault, file_fault, read_shard, shard_file, write_shard, write_sidecar

ID, LABEL, CLASS = "id", "label", "class"
Features = Mapping[str, np.ndarray]
Origins = Mapping[str, Mapping[str, Any]]  # what each feature was made from


class Rows(NamedTuple):
    """The samples of a shard; a label of -1 is none."""

    ids: Tensor
    labels: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """How the shards of a split are written, checked and read.

    Args:
        meaning: What it is good for.
        write: Writes one shard of all features.
        fault: Says why a shard does not count; None if it does.
        read: Returns one feature of one shard, from the folder of its split.
        files: Names the files of a shard, from the folder of its split.
    """

    meaning: str
    write: Callable[[Path, int, Features, Rows, Origins], None]
    fault: Callable[[Path, int, Tensor, Origins], str | None]
    read: Callable[[Path, str, int], Tensor]
    files: Callable[[int, Sequence[str]], list[Path]]


# ---------------------------------------------------------------- safetensors


def _write_tensors(folder: Path, index: int, features: Features, rows: Rows, origins: Origins) -> None:
    for name, values in features.items():
        write_shard(folder / name, index, torch.from_numpy(values), rows.ids, origins[name])


def _tensors_fault(folder: Path, index: int, ids: Tensor, origins: Origins) -> str | None:
    reasons = (fault(folder / name, index, ids, origin) for name, origin in origins.items())
    return next((reason for reason in reasons if reason is not None), None)


SAFETENSORS = Format(
    "to train from: every row is read at once",
    _write_tensors,
    _tensors_fault,
    lambda folder, name, index: read_shard(folder / name, index),
    lambda index, names: [shard_file(Path(name), index) for name in names],
)

# ---------------------------------------------------------------- Parquet


def arrow_table(features: Features, rows: Rows) -> Any:
    """Return samples as an Arrow table: id, label, class (null without), and a column of tensors a feature."""
    import pyarrow as pa

    classes = [rows.classes[label] if label >= 0 else None for label in rows.labels.tolist()]
    columns = {
        ID: pa.array(rows.ids.numpy()),
        LABEL: pa.array(rows.labels.numpy()),
        CLASS: pa.array(classes, pa.string()),
    }
    return pa.table(columns | {name: _tensor_column(values) for name, values in features.items()})


def _tensor_column(values: np.ndarray) -> Any:
    """Return an array as a column of tensors, without a copy."""
    import pyarrow as pa

    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, flat)


def _write_parquet(folder: Path, index: int, features: Features, rows: Rows, origins: Origins) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(arrow_table(features, rows), buffer, compression="none", use_dictionary=[CLASS])
    file = _parquet_file(folder, index)
    write_sidecar(file, io.write_bytes(file, buffer.getvalue().to_pybytes()), rows.ids, origins)


def _read_parquet(folder: Path, name: str, index: int) -> Tensor:
    import pyarrow.parquet as pq

    column = pq.read_table(_parquet_file(folder, index), columns=[name])[name].combine_chunks()
    return torch.from_numpy(np.array(column.to_numpy_ndarray()))


def _parquet_file(folder: Path, index: int) -> Path:
    return shard_file(folder, index, ".parquet")


PARQUET = Format(
    "to hand on: ids, labels, class names and features as columns",
    _write_parquet,
    lambda folder, index, ids, origins: file_fault(_parquet_file(folder, index), ids, origins),
    _read_parquet,
    lambda index, names: [_parquet_file(Path(), index)],
)
