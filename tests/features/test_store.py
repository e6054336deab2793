import pytest
import torch

from tdsm.base.errors import CheckpointError
from tdsm.features import store
from tdsm.features.store import Rows, has_shard, open_store, shard_ranges, write_shard

IDS = torch.tensor([4, 7, 9])


@pytest.fixture
def folder(tmp_path):
    features = {"tokens": torch.randn(3, 2, 1, 5), "tdsm": torch.randn(3, 4, 4, 2).half()}
    write_shard(tmp_path, 0, features, IDS, "made so")
    return tmp_path


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1300])
def test_ranges_hold_every_sample_once(count):
    ranges = shard_ranges(count)
    assert [row for rows in ranges for row in rows] == list(range(count))
    assert {len(rows) for rows in ranges[:-1]} <= {512}


def test_no_samples_have_no_shards():
    assert shard_ranges(0) == []


def test_a_shard_counts_when_it_is_whole(folder):
    assert has_shard(folder, 0, IDS, "made so")
    assert not has_shard(folder, 1, IDS, "made so")


def edit(file, change):
    file.write_bytes(change(bytearray(file.read_bytes())))


def flip_bit(data):
    data[-5] ^= 4
    return data


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "shard-00000.json"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-2],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: b"{}",
    ],
    ids=["two bytes short", "cut", "empty", "zeroed", "other content"],
)
def test_a_damaged_shard_does_not_count(folder, name, change):
    edit(folder / name, change)
    assert not has_shard(folder, 0, IDS, "made so")


def test_a_flipped_bit_is_noticed(folder):
    edit(folder / "shard-00000.safetensors", flip_bit)
    assert not has_shard(folder, 0, IDS, "made so")


def test_a_lost_shard_or_sidecar_does_not_count(folder):
    (folder / "shard-00000.safetensors").rename(folder / "elsewhere")
    assert not has_shard(folder, 0, IDS, "made so")
    (folder / "elsewhere").rename(folder / "shard-00000.safetensors")
    (folder / "shard-00000.json").unlink()
    assert not has_shard(folder, 0, IDS, "made so")


@pytest.mark.parametrize(
    ("ids", "fingerprint"),
    [(IDS, "made otherwise"), (IDS.flip(0), "made so"), (IDS[:2], "made so")],
    ids=["field", "order", "samples"],
)
def test_a_shard_of_something_else_is_refused(folder, ids, fingerprint):
    with pytest.raises(CheckpointError, match="Remove the folder"):
        has_shard(folder, 0, ids, fingerprint)


def test_a_missing_shard_is_named(folder):
    with pytest.raises(CheckpointError, match="shard-00001"):
        open_store([folder], 600, "tokens")


@pytest.mark.parametrize("memory", [0, 2**30], ids=["mapped", "in memory"])
def test_rows_of_several_shards_and_folders_read_like_one_tensor(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(store, "SHARD_SAMPLES", 4)
    monkeypatch.setattr(store, "MEMORY_BYTES", memory)
    whole = torch.randn(2, 10, 3, 3, 2).half()
    for number, view in enumerate(whole):
        for index, rows in enumerate(shard_ranges(10)):
            ids = torch.arange(rows.start, rows.stop)
            write_shard(tmp_path / str(number), index, {"tdsm": view[ids], "other": ids}, ids, "x")
    rows = open_store([tmp_path / "0", tmp_path / "1"], 10, "tdsm")
    assert len(rows.shards) == (1 if memory else 6)
    assert (len(rows), rows.shape) == (20, (20, 3, 3, 2))
    expected = whole.flatten(0, 1).float()
    for indices in (torch.arange(20), torch.randperm(20), torch.tensor([19]), torch.tensor([3, 4, 3, 0])):
        seen = rows[indices]
        assert seen.dtype == torch.float32
        assert torch.equal(seen, expected[indices])


def test_mapped_rows_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MEMORY_BYTES", 0)
    shards = [torch.zeros(2, 3), torch.ones(2, 3)]
    rows = Rows(shards)
    assert [shard.data_ptr() for shard in rows.shards] == [shard.data_ptr() for shard in shards]
