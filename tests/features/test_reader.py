"""What a store gives its readers: arrays, a data set, an Arrow table; and that nothing else is taken for it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tdsm
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.features import store as shards
from tdsm.features.callable import FieldFeatures
from tdsm.features.reader import ShardShuffle
from tdsm.features.work import Work
from tests.features.stores import COUNTS, NAMES, job, made


@pytest.fixture(scope="module", params=["safetensors", "parquet"])
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "store"
    made(folder, format=request.param)
    return tdsm.open_store(str(folder))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return Work(job(tmp_path_factory.mktemp("unused")))


def test_a_store_says_what_it_holds(store, work):
    assert store.splits == ("train", "validation", "test")
    assert store.features == NAMES
    assert store.classes == tuple(map(str, range(10)))
    assert {split: store.count(split) for split in store.splits} == COUNTS
    assert store.shape("tdsm") == (8, 8, 5)
    assert store.about["field"]["hash"] == work.features.field_hash


@pytest.mark.parametrize("split", list(COUNTS))
def test_arrays_are_the_features_of_the_images_in_order(store, work, split):
    images = work.images(split)
    assert np.array_equal(store.ids(split), images.ids)
    assert np.array_equal(store.labels(split), images.labels)
    expected = FieldFeatures(work.job.field, NAMES)({"image": images.bytes(range(len(images))).numpy()})
    for name in NAMES:
        seen = store.numpy(name, split)
        assert seen.dtype == expected[name].dtype
        torch.testing.assert_close(*map(torch.from_numpy, (seen, expected[name])), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("memory", [0, 2**30], ids=["mapped", "in memory"])
def test_a_data_loader_reads_every_sample_once(store, monkeypatch, memory):
    monkeypatch.setattr(shards, "MEMORY_BYTES", memory)
    data = store.dataset("tokens", split="train")
    tokens = torch.from_numpy(store.numpy("tokens", "train"))
    place = {sample: index for index, sample in enumerate(store.ids("train").tolist())}
    for options in ({}, {"sampler": data.shuffled(seed=3)}, {"num_workers": 2, "multiprocessing_context": "fork"}):
        seen = []
        for batch in DataLoader(data, batch_size=10, **options):
            rows = [place[sample] for sample in batch["id"].tolist()]
            assert torch.equal(batch["tokens"], tokens[rows])
            assert torch.equal(batch["label"], torch.from_numpy(store.labels("train"))[rows])
            seen += rows
        assert sorted(seen) == list(range(54))
        assert (seen == sorted(seen)) == ("sampler" not in options)
    assert data[53]["id"] == store.ids("train")[53]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 6), st.integers(0, 5))
def test_shuffled_rows_are_all_rows_a_few_shards_at_a_time(count, samples, pooled, seed):
    sampler = ShardShuffle(count, samples, seed, pooled)
    epochs = [list(sampler), list(sampler)]
    assert len(sampler) == count
    assert [sorted(rows) for rows in epochs] == [list(range(count))] * 2
    assert list(ShardShuffle(count, samples, seed, pooled)) == epochs[0]
    for rows in epochs:
        places = {
            shard: [k for k, row in enumerate(rows) if row // samples == shard] for shard in range(count // samples)
        }
        assert all(max(own) - min(own) < pooled * samples for own in places.values()), "read together"


def test_an_arrow_table_is_read_a_shard_at_a_time(store):
    reader = store.arrow("train", ["tdsm"])
    first = reader.read_next_batch()
    assert first.num_rows == 12
    table = store.arrow("train", ["tdsm"]).read_all()
    assert table["id"].to_pylist() == store.ids("train").tolist()
    assert np.array_equal(table["tdsm"].combine_chunks().to_numpy_ndarray(), store.numpy("tdsm", "train"))
    frame = store.pandas("test", ["tokens"])
    assert list(frame.columns) == ["id", "label", "class", "tokens"]
    assert np.array_equal(np.stack(frame["tokens"]).reshape(30, 5, 1, 14), store.numpy("tokens", "test"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.numpy("token", "test"), "no feature 'token', perhaps you meant 'tokens'; expected one of tokens"),
        (lambda s: s.numpy("tokens", "tests"), "no split 'tests', perhaps you meant 'test'"),
        (lambda s: s.labels("val"), "no split 'val'"),
        (lambda s: s.dataset("values", split="test"), "no feature 'values'"),
    ],
)
def test_what_is_not_there_is_named(store, call, words):
    with pytest.raises(UsageError, match=words):
        call(store)


def test_no_store_and_half_a_store_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no store here"):
        tdsm.open_store(tmp_path)
    made(tmp_path / "half", shards="1/2")
    with pytest.raises(CheckpointError, match="not complete: train/shard-00001"):
        tdsm.open_store(tmp_path / "half")
