"""Both forms of a store hold the same values, and Parquet is read by those who know nothing of this package."""

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tdsm import open_store
from tdsm.base import io
from tdsm.features.card import verify
from tdsm.features.formats import PARQUET, SAFETENSORS, Rows, arrow_table
from tests.features.stores import COUNTS, NAMES, made, same


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same store in both forms."""
    folder = tmp_path_factory.mktemp("forms")
    assert all(made(folder / form, format=form) for form in ("safetensors", "parquet"))
    return folder


def test_both_forms_hold_the_same(stores):
    one, other = open_store(stores / "safetensors"), open_store(stores / "parquet")
    for split in COUNTS:
        for name in NAMES:
            assert np.array_equal(one.numpy(name, split), other.numpy(name, split))
            assert one.numpy(name, split).dtype == other.numpy(name, split).dtype
        assert np.array_equal(one.ids(split), other.ids(split))
    assert verify(stores / "parquet")["format"] == "parquet"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_both_forms_take_as_many_bytes(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(64, 16, 16, 8)).astype(dtype)
    rows, origins = Rows(torch.arange(64), torch.arange(64) % 3, ("a", "b", "c")), {"maps": {}}
    for form in (SAFETENSORS, PARQUET):
        form.write(tmp_path, 0, {"maps": values}, rows, origins)
    one, other = (tmp_path / "maps" / "shard-00000.safetensors").stat(), (tmp_path / "shard-00000.parquet").stat()
    assert 0.98 < other.st_size / one.st_size < 1.02
    assert other.st_size / values.nbytes < 1.02


def test_parquet_has_ids_labels_and_class_names_as_columns(stores):
    store = open_store(stores / "parquet")
    table = pq.read_table(stores / "parquet" / "test")  # a folder: sidecars are passed over
    assert table.column_names == ["id", "label", "class", *NAMES]
    assert table["id"].to_pylist() == store.ids("test").tolist()
    assert table["label"].to_pylist() == store.labels("test").tolist()
    assert table["class"].to_pylist() == [store.classes[label] for label in store.labels("test")]
    assert table.schema.field("tdsm").type == pa.fixed_shape_tensor(pa.float16(), (8, 8, 5))
    frame = pandas.read_parquet(stores / "parquet" / "test", columns=["id", "tokens"])
    assert np.array_equal(np.stack(frame["tokens"]).reshape(-1, 5, 1, 14), store.numpy("tokens", "test"))


def test_samples_without_labels_have_no_class():
    table = arrow_table({"x": np.zeros((2, 1, 1, 3), np.float32)}, Rows(torch.arange(2), torch.tensor([-1, 0]), ("a",)))
    assert table["class"].to_pylist() == [None, "a"]


def test_a_parquet_store_is_resumed_and_made_of_parts(stores, tmp_path):
    for number in (2, 1):
        made(tmp_path / "store", format="parquet", shards=f"{number}/2")
    assert same(tmp_path / "store", stores / "parquet")
    file = tmp_path / "store" / "test" / "shard-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    said = []
    made(tmp_path / "store", said, format="parquet")
    assert said == ["test/shard-00001: extracted anew, it was damaged."]
    assert same(tmp_path / "store", stores / "parquet")
    assert io.read_manifest(tmp_path / "store").files.keys() >= {"README.md", "test/_shard-00001.json"}
