"""Find the image and the label column of a table in Hugging Face's layout, and read images from it.

The layout: an image is struct<bytes, path>; the schema's metadata key "huggingface" names each column's kind and
a label's classes. Both parquet files and `datasets` tables carry it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tdsm.base.errors import DataError, UsageError
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded


class Columns(NamedTuple):
    """Names of the two columns; class names when labels are positions among them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def find_columns(schema: Any, config: DataConfig, where: str) -> Columns:
    """Pick the columns the config names, or the only ones that fit.

    Labels are looked for among class labels first, then integers, then strings.

    Raises:
        DataError: If no column fits, or several do.
        UsageError: If the config names a column that is not there.
    """
    import pyarrow as pa

    features = _features(schema, where)
    kinds = {field.name: features.get(field.name, {}).get("_type") for field in schema}
    images = [f.name for f in schema if kinds[f.name] == "Image" or _holds_bytes(f.type)]
    tiers = (
        [name for name, kind in kinds.items() if kind == "ClassLabel"],
        [f.name for f in schema if pa.types.is_integer(f.type)],
        [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)],
    )
    seen = ", ".join(f"{f.name} ({kinds[f.name] or f.type})" for f in schema)
    image = _pick("image", config.image_column, images, images, seen, where)
    label = _pick(
        "label",
        config.label_column,
        next(filter(None, tiers), []),
        [name for tier in tiers for name in tier],
        seen,
        where,
    )
    names = features.get(label, {}).get("names")
    return Columns(image, label, tuple(names) if names else None)


def _features(schema: Any, where: str) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text).get("info", {}).get("features") or {}
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: its column description cannot be read ({error}).") from error


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _pick(role: str, wanted: str | None, likely: list[str], possible: list[str], seen: str, where: str) -> str:
    if wanted is not None and wanted not in possible:
        raise UsageError(f"{where}: {role}_column {wanted!r} cannot be used. Columns: {seen}.")
    if wanted is None and len(likely) != 1:
        found = "no column" if not likely else f"{len(likely)} columns"
        raise DataError(f"{where}: {found} may be the {role} column. Set {role}_column. Columns: {seen}.")
    return wanted or likely[0]


def label_values(column: Any, name: str) -> np.ndarray:
    """Return a label column as integers or strings; missing labels are refused."""
    if column.null_count:
        raise DataError(f"{name}: {column.null_count} labels are missing, expected one for each image.")
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def encoded(cell: Any, *, may_read_paths: bool = False) -> Encoded:
    """Take the image file out of a cell; a bare path is followed only in tables made on this machine."""
    value = cell.as_py()
    if not isinstance(value, dict):
        return value
    if value["bytes"] is None and may_read_paths and value.get("path"):
        return Path(value["path"])
    return value["bytes"]


def cells(table: Any, column: str, *, may_read_paths: bool = False) -> Iterator[Encoded]:
    """Read the images of a table one by one."""
    return (encoded(cell, may_read_paths=may_read_paths) for cell in table.column(column))
