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
from tdsm.data.names import split_name
from tdsm.data.source import unlabelled

LABELS = ("label", "labels", "target", "targets", "class", "category", "y")
SPLIT_COLUMNS = ("split", "subset", "partition", "fold", "set", "usage")  # in which set a row is, not what it shows


class Columns(NamedTuple):
    """Names of the two columns, none for labels if there are none; class names when labels are positions among them."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def find_columns(schema: Any, config: DataConfig, where: str) -> Columns:
    """Pick the columns the config names, or the only ones that can be meant.

    The labels are the one column that the metadata call class labels, else the one that is called so (label, class,
    ...), else the only one of dictionaries, integers, strings, truth values, lists (of one) or floats (whole). A table
    that has none of these is without labels.

    Raises:
        DataError: If no column fits, or several do.
        UsageError: If the config names a column that is not there.
    """
    features = _features(schema, where)
    kinds = {field.name: features.get(field.name, {}).get("_type") for field in schema}
    images = [f.name for f in schema if kinds[f.name] == "Image" or _holds_bytes(f.type)]
    described = [name for name, feature in features.items() if name in schema.names and _class_label(feature)]
    possible = [f.name for f in schema if f.name in described or _may_hold_labels(f.type)]
    seen = ", ".join(f"{f.name} ({kinds[f.name] or f.type})" for f in schema)
    image = _pick("image", config.image_column, images, images, seen, where)
    called = [name for name in possible if name.lower() in LABELS]
    likely = described or called or [name for name in possible if name.lower() not in SPLIT_COLUMNS]
    if config.label_column is None and not likely:
        _refuse_labels_of_another_kind(schema, where)
        return Columns(image, None, None)
    label = _pick("label", config.label_column, likely, possible, seen, where)
    names = _class_label(features.get(label, {})).get("names")
    return Columns(image, label, tuple(map(str, names)) if isinstance(names, list) and names else None)


def find_label_column(schema: Any, wanted: str | None, where: str) -> str | None:
    """Pick the label column of a table without images: the one named, else the only one that is called so.

    Raises:
        DataError: If several are called so.
        UsageError: If the one named is not there.
    """
    possible = [field.name for field in schema if _may_hold_labels(field.type)]
    called = [name for name in possible if name.lower() in LABELS]
    if wanted is None and not called:
        return None
    seen = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return _pick("label", wanted, called, possible, seen, where)


def common_columns(found: Iterable[Columns], where: str) -> Columns:
    """Return the columns all tables share; some may be without labels.

    Raises:
        DataError: If they differ in more than that.
    """
    found = list(found)
    labelled = [columns for columns in found if columns.label is not None] or found
    first = labelled[0]
    for other in (*labelled, *found):
        if other.image != first.image or (other in labelled and other != first):
            raise DataError(
                f"{where}: columns or class names differ between its files: {_said(first)}; {_said(other)}. Expected "
                "the same in all."
            )
    return first


def _said(columns: Columns) -> str:
    names = columns.classes or ()
    classes = f", {len(names)} classes ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if names else ""
    return f"images in {columns.image!r}, labels in {columns.label!r}{classes}"


def _may_hold_labels(kind: Any) -> bool:
    from pyarrow import types

    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind)
    is_list = any(is_kind(kind) for is_kind in _list_kinds()) and not _holds_bytes(kind.value_type)
    return is_text or is_number or is_list or types.is_dictionary(kind)


def _refuse_labels_of_another_kind(schema: Any, where: str) -> None:
    from pyarrow import types

    if odd := [f"{f.name} ({f.type})" for f in schema if f.name.lower() in LABELS and not types.is_null(f.type)]:
        raise DataError(f"{where}: {', '.join(odd)} cannot be read as labels, expected integers or strings.")


def refuse_splits(column: Any, name: str) -> None:
    """Refuse a column that says of the rows of one split that they are of several."""
    found = [str(value) for value in column.unique().to_pylist()]
    if len(found) > 1 and any(split_name(value).role for value in found):
        raise DataError(
            f"{name}: names the splits {', '.join(found[:5])} within one. Write the rows of each to files of their "
            "own, such as train.parquet and test.parquet."
        )


def split_columns(schema: Any, label: str | None) -> list[str]:
    """Name the columns, besides that of the labels, that may say in which split a row is."""
    return [name for name in schema.names if name.lower() in SPLIT_COLUMNS and name != label]


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

    Dictionaries and lists of one are taken apart, truth values become the classes false and true. A column of nothing
    but nulls is one without labels.

    Raises:
        DataError: If some labels are missing, lists hold more or less than one, or floats are not whole.
    """
    from pyarrow import compute, types

    if column.null_count == len(column):
        return unlabelled(len(column))
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
