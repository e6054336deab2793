"""Find the image and the label column of a table in Hugging Face's layout, and read images from it.

The layout: an image is struct<bytes, path>; the schema's metadata key "huggingface" names each column's kind and
a label's classes. Both parquet files and `datasets` tables carry it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tdsm.base.errors import DataError, UsageError
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded


class Columns(NamedTuple):
    """Names of the two columns, none for labels if there are none; class names when labels are positions among them."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def find_columns(schema: Any, config: DataConfig, where: str) -> Columns:
    """Pick the columns the config names, or the only ones that fit.

    Labels are looked for among class labels first, then dictionaries, integers, strings, truth values, lists (of one)
    and floats (whole). A table that has none of these is without labels.

    Raises:
        DataError: If no column fits, or several do.
        UsageError: If the config names a column that is not there.
    """
    features = _features(schema, where)
    kinds = {field.name: features.get(field.name, {}).get("_type") for field in schema}
    images = [f.name for f in schema if kinds[f.name] == "Image" or _holds_bytes(f.type)]
    tiers = _label_tiers(schema, features)
    seen = ", ".join(f"{f.name} ({kinds[f.name] or f.type})" for f in schema)
    image = _pick("image", config.image_column, images, images, seen, where)
    if not any(tiers) and config.label_column is None:
        return Columns(image, None, None)
    likely, possible = next(filter(None, tiers), []), [name for tier in tiers for name in tier]
    label = _pick("label", config.label_column, likely, possible, seen, where)
    names = _class_label(features.get(label, {})).get("names")
    return Columns(image, label, tuple(map(str, names)) if isinstance(names, list) and names else None)


def common_columns(found: Iterable[Columns], where: str) -> Columns:
    """Return the columns all tables share; some may be without labels.

    Raises:
        DataError: If they differ in more than that.
    """
    found = list(found)
    labelled = [columns for columns in found if columns.label is not None] or found
    if any(columns != labelled[0] for columns in labelled) or len({columns.image for columns in found}) > 1:
        raise DataError(f"{where}: columns or class names differ between its files, expected the same in all.")
    return labelled[0]


def _label_tiers(schema: Any, features: dict[str, Any]) -> list[list[str]]:
    """List the columns that may hold labels, the likelier kinds first."""
    from pyarrow import types

    def all_of(*kinds: Any) -> list[str]:
        return [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]

    return [
        [name for name, feature in features.items() if name in schema.names and _class_label(feature)],
        all_of(types.is_dictionary),
        all_of(types.is_integer),
        all_of(types.is_string, types.is_large_string, types.is_string_view),
        all_of(types.is_boolean),
        [name for name in all_of(*_list_kinds()) if not _holds_bytes(schema.field(name).type.value_type)],
        all_of(types.is_floating),
    ]


def _list_kinds() -> tuple[Any, ...]:
    from pyarrow import types

    return types.is_list, types.is_large_list, types.is_fixed_size_list


def _class_label(feature: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a class label, also of a list of them, or nothing."""
    inner = feature.get("feature", feature)
    return inner if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else {}


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
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _pick(role: str, wanted: str | None, likely: list[str], possible: list[str], seen: str, where: str) -> str:
    if wanted is not None and wanted not in possible:
        raise UsageError(f"{where}: {role}_column {wanted!r} cannot be used. Columns: {seen}.")
    if wanted is None and len(likely) != 1:
        found = "no column" if not likely else f"{len(likely)} columns"
        raise DataError(f"{where}: {found} may be the {role} column. Set {role}_column. Columns: {seen}.")
    return wanted or likely[0]


def label_values(column: Any, name: str) -> np.ndarray:
    """Return a label column as integers or strings.

    Dictionaries and lists of one are taken apart, truth values become the classes false and true.

    Raises:
        DataError: If labels are missing, lists hold more or less than one, or floats are not whole.
    """
    from pyarrow import compute, types

    if column.null_count:
        raise DataError(f"{name}: {column.null_count} labels are missing, expected one for each image.")
    if any(is_kind(column.type) for is_kind in _list_kinds()):
        _refuse_rows(compute.not_equal(compute.list_value_length(column), 1), column, "a list of one label", name)
        return label_values(compute.list_flatten(column), name)
    if types.is_dictionary(column.type):
        return label_values(column.cast(column.type.value_type), name)
    if types.is_floating(column.type):
        whole = compute.and_(compute.is_finite(column), compute.equal(column, compute.floor(column)))
        _refuse_rows(compute.invert(whole), column, "a whole number", name)
        column = column.cast("int64")
    if types.is_boolean(column.type) or types.is_string_view(column.type):
        column = column.cast("string")
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _refuse_rows(wrong: Any, column: Any, expected: str, name: str) -> None:
    rows = np.flatnonzero(wrong.to_numpy())
    if len(rows):
        row = int(rows[0])
        raise DataError(f"{name}: row {row} holds {column[row].as_py()}, expected {expected} ({len(rows)} such rows).")


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
