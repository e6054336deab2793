import pytest
import torch

from tdsm.base.errors import CheckpointError
from tdsm.features import store
from tdsm.features.store import FeatureRows, fault, read_shards, shard_ranges, write_shard

IDS = torch.tensor([4, 7, 9])
MADE = {"field": "abc", "maps": {"size": (4, 4)}}


def counts(folder, index=0, ids=IDS, made_from=MADE):
    return fault(folder, index, ids, made_from) is None


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path, 0, torch.randn(3, 4, 4, 2).half(), IDS, MADE)
    return tmp_path


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1300])
def test_ranges_hold_every_sample_once(count):
    ranges = shard_ranges(count)
    assert [row for rows in ranges for row in rows] == list(range(count))
    assert {len(rows) for rows in ranges[:-1]} <= {512}


def test_no_samples_have_no_shards():
    assert shard_ranges(0) == []


def test_a_shard_counts_when_it_is_whole(folder):
    assert counts(folder)
    assert not counts(folder, 1)


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
    assert not counts(folder)


def test_a_flipped_bit_is_noticed(folder):
    edit(folder / "shard-00000.safetensors", flip_bit)
    assert not counts(folder)


def test_a_lost_shard_or_sidecar_does_not_count(folder):
    (folder / "shard-00000.safetensors").rename(folder / "elsewhere")
    assert not counts(folder)
    (folder / "elsewhere").rename(folder / "shard-00000.safetensors")
    (folder / "shard-00000.json").unlink()
    assert not counts(folder)


def test_a_shard_of_something_else_does_not_count_and_says_why(folder):
    assert fault(folder, 0, IDS, MADE | {"field": "abd"}) == "made from something else (field: abc -> abd)"
    assert "maps.size: [4, 4] -> [4, 5]" in fault(folder, 0, IDS, {"field": "abc", "maps": {"size": (4, 5)}})
    for ids in (IDS.flip(0), IDS[:2]):
        assert fault(folder, 0, ids, MADE) == "made from other samples"
    assert fault(folder, 1, IDS, MADE) == "missing"


def test_a_missing_shard_is_named(folder):
    with pytest.raises(CheckpointError, match="shard-00001"):
        read_shards(folder, 600)


@pytest.mark.parametrize("memory", [0, 2**30], ids=["mapped", "in memory"])
def test_rows_of_several_shards_and_folders_read_like_one_tensor(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(store, "SHARD_SAMPLES", 4)
    monkeypatch.setattr(store, "MEMORY_BYTES", memory)
    whole = torch.randn(2, 10, 3, 3, 2).half()
    for number, view in enumerate(whole):
        for index, rows in enumerate(shard_ranges(10)):
            ids = torch.arange(rows.start, rows.stop)
            write_shard(tmp_path / str(number), index, view[ids], ids, {})
    rows = FeatureRows([*read_shards(tmp_path / "0", 10), *read_shards(tmp_path / "1", 10)])
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
    rows = FeatureRows(shards)
    assert [shard.data_ptr() for shard in rows.shards] == [shard.data_ptr() for shard in shards]


def test_features_held_in_memory_share_one_limit(monkeypatch):
    held = sum(rows.nbytes for rows in store._HELD)
    monkeypatch.setattr(store, "MEMORY_BYTES", held + 150)
    shards = [torch.arange(10.0), torch.arange(15.0)]  # 100 bytes
    first, second = FeatureRows(shards), FeatureRows(shards)
    assert (len(first.shards), len(second.shards)) == (1, 2)
    assert torch.equal(first[torch.arange(25)], second[torch.arange(25)])
    del first
    assert len(FeatureRows(shards).shards) == 1


def test_rows_stay_where_they_are_without_a_gpu_or_room_on_it(monkeypatch):
    rows = FeatureRows([torch.arange(10.0), torch.arange(15.0)])  # 100 bytes
    monkeypatch.setattr(store, "room", lambda device: 199)
    assert rows.near(torch.device("cuda")) is rows
    assert rows.near(torch.device("cpu")) is rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("memory", [0, 2**20])
def test_rows_on_a_gpu_read_as_they_did(monkeypatch, memory):
    monkeypatch.setattr(store, "MEMORY_BYTES", memory)
    rows = FeatureRows([torch.randn(4, 3).half(), torch.randn(5, 3).half()])
    near, indices = rows.near(torch.device("cuda")), torch.tensor([8, 0, 3, 4])
    assert (near.shards[0].dtype, near.shards[0].device.type, near.shape) == (torch.float16, "cuda", (9, 3))
    assert torch.equal(near[indices].cpu(), rows[indices])
    assert near.near(torch.device("cuda")) is near
