"""Decoded images in files: the same as in memory, decoded once, whole or made again."""

import signal
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from tests.samples import fill, load, pets, picture, save, write

from tdsm.base import io
from tdsm.base.errors import DataError, ResourceError
from tdsm.data import pieces, store, workers
from tdsm.data.mapped import MappedImages

COUNT, SHAPE = 90, (6, 5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """Thirty grey images a block, decoded here, in a cache of this test's own."""
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 30 * 30)
    monkeypatch.setattr(store, "cores", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root):
    """Grey and coloured pictures, the first ten blocks' worth grey alone."""
    for i in range(COUNT):
        shape = (*SHAPE, 3) if i > 60 and i % 4 == 0 else SHAPE
        write(root / "data" / ("cat", "dog")[i % 2] / f"{i:03d}.png", picture(i, shape))
    return root / "data"


def npz(root):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, *SHAPE, 3), dtype=np.uint8)
    np.savez(root / "set.npz", images=images, labels=np.arange(COUNT) % 3)
    return root / "set.npz"


def npz_floats(root):
    images = np.random.default_rng(0).random((COUNT, *SHAPE))
    np.savez_compressed(root / "set.npz", images=images, labels=np.arange(COUNT) % 3)
    return root / "set.npz"


def idx(root):
    for split, count in (("train", COUNT), ("t10k", 30)):
        levels = np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        head, labels = struct.pack(">4B3I", 0, 0, 8, 3, *levels.shape), (np.arange(count) % 3).astype(np.uint8)
        write(root / "data" / f"{split}-images-idx3-ubyte", head + levels.tobytes())
        write(root / "data" / f"{split}-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
    return root / "data"


def parquet(root):
    save(root / "data" / "train.parquet", pets(0, COUNT), row_group_size=17)
    save(root / "data" / "test.parquet", pets(COUNT, 30))
    return root / "data"


def mapped(source, **options):
    data = load(source, memory_limit=0, **options)
    assert all(isinstance(part.images, MappedImages) for part in (data.train, data.validation, data.test))
    return data


def assert_same(one, other):
    assert (one.name, one.notes, one.skipped) == (other.name, other.notes, other.skipped)
    for split in ("train", "validation", "test"):
        a, b = getattr(one, split), getattr(other, split)
        everything = range(len(a))
        assert (a.classes, a.channels, a.size, len(a)) == (b.classes, b.channels, b.size, len(b))
        assert torch.equal(a.bytes(everything), b.bytes(everything))
        assert torch.equal(a.floats([2, 0]), b.floats([2, 0]))
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.hashes, b.hashes)
        assert a.fingerprint() == b.fingerprint()


def kept(tmp_path):
    """Return the folder of the one store in the cache."""
    (found,) = kept_stores(tmp_path)
    return found


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("block-*")}


@pytest.mark.parametrize("make", [folder, npz, npz_floats, idx, parquet], ids=lambda make: make.__name__)
def test_mapped_images_are_those_in_memory(tmp_path, make):
    source = make(tmp_path)
    whole, data = load(source), mapped(source)
    assert isinstance(whole.train.images, torch.Tensor)
    assert_same(data, whole)
    assert len(times(kept(tmp_path))) > 2
    assert_same(mapped(source), whole)
    few = {"max_train": 40, "max_test": 10, "seed": 3}
    assert_same(mapped(source, **few), load(source, **few))
    part = data.train.subset([4, 1])
    assert isinstance(part.images, MappedImages)
    assert torch.equal(part.bytes([0, 1]), whole.train.bytes([4, 1]))
    assert torch.equal(data.train.images.to(torch.device("cpu")), whole.train.images)


def test_mapped_images_take_few_bytes_each(tmp_path):
    images = mapped(npz(tmp_path)).train.images
    assert images.nbytes == len(images) * 3 * 30
    assert images.places.nbytes == 8 * len(images)


def test_several_processes_decode_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "cores", lambda: 2)
    for source in (folder(tmp_path), parquet(tmp_path / "other")):
        assert_same(mapped(source), load(source))


def test_bad_images_are_said_alike(tmp_path):
    source = folder(tmp_path)
    write(source / "cat" / "000.png", b"no picture")
    write(source / "dog" / "077.png", picture(77)[:40])
    said = []
    for limit in (256, 0):
        with pytest.raises(DataError, match="2 images cannot be used") as caught:
            load(source, memory_limit=limit)
        said.append(str(caught.value))
    assert said[0] == said[1]
    before = times(kept(tmp_path))
    data = mapped(source, skip_bad=True)
    assert times(kept(tmp_path)) == before
    assert_same(data, load(source, skip_bad=True))
    assert len(data.skipped) == 2


def test_sizes_that_differ_are_said_alike_and_nothing_of_them_is_kept(tmp_path):
    source = folder(tmp_path)
    write(source / "cat" / "088.png", picture(7, (5, 6)))
    said = []
    for limit in (256, 0):
        with pytest.raises(DataError, match="differ in size") as caught:
            load(source, memory_limit=limit)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not list((tmp_path / "cache").rglob("block-*"))
    assert_same(mapped(source, image_size=4), load(source, image_size=4))


def test_what_is_decoded_is_shared_until_its_source_changes(tmp_path, monkeypatch):
    source = folder(tmp_path)
    mapped(source)
    with monkeypatch.context() as patch:
        patch.setattr(store, "decode_batch", None)
        mapped(source)
        mapped(source, seed=1, validation_fraction=0.3, drop_duplicates=True)
    write(source / "cat" / "002.png", picture(200, SHAPE))
    assert_same(mapped(source), load(source))
    assert len(list(kept_stores(tmp_path))) == 2
    mapped(source, channels="grey")
    assert len(list(kept_stores(tmp_path))) == 3


def kept_stores(tmp_path):
    return (path for path in (tmp_path / "cache" / "tdsm" / "images").iterdir() if path.is_dir())


def test_another_cache_folder_may_be_named(tmp_path):
    source = npz(tmp_path)
    mapped(source, cache=str(tmp_path / "here" / "cache"))
    assert list((tmp_path / "here" / "cache").glob("*/block-00000/images.safetensors"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("file", ["images.safetensors", "said.json", "manifest.json"])
def test_a_damaged_block_is_decoded_again(tmp_path, file):
    source = npz(tmp_path)
    whole = mapped(source)
    before, place = times(kept(tmp_path)), kept(tmp_path) / "block-00002" / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.warns(UserWarning, match=r"Decoded again: .*block-00002"):
        again = mapped(source)
    assert_same(again, load(source))
    assert torch.equal(whole.train.hashes, again.train.hashes)
    assert {name for name, when in times(kept(tmp_path)).items() if when != before[name]} == {"block-00002"}


def test_a_lost_block_is_decoded_again_and_rests_are_cleared_away(tmp_path):
    source = npz(tmp_path)
    mapped(source)
    (kept(tmp_path) / "block-00001").rename(kept(tmp_path) / ".block-00001.77.tmp")
    assert_same(mapped(source), load(source))
    assert not list(kept(tmp_path).glob(".*"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda cache: write(cache, b"a file"), "File exists|Not a directory"),
        (lambda cache: (cache.mkdir(), cache.chmod(0o777)), "another user owns it or can write there"),
        (lambda cache: cache.symlink_to(cache.parent), "is a link"),
    ],
    ids=["file", "open to all", "link"],
)
def test_a_cache_that_cannot_be_used_is_refused_in_one_line(tmp_path, spoil, reason):
    spoil(tmp_path / "spoilt")
    with pytest.raises(ResourceError, match=rf"cannot be kept here \(.*({reason})") as caught:
        load(npz(tmp_path), memory_limit=0, cache=str(tmp_path / "spoilt"))
    assert "--data.cache" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_in_one_line_before_and_while_writing(tmp_path, monkeypatch):
    source = npz(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(ResourceError, match=r"GiB are needed, 0.0 GiB are free.*--data.cache"):
            mapped(source)
    original, written = io.write_json, []

    def full(path, value):
        written.append(path)
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        return original(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(io, "write_json", full)
        with pytest.raises(ResourceError, match=r"No space left on device.*--data.cache"):
            mapped(source)
    before = times(kept(tmp_path))
    assert 0 < len(before) < 9
    assert_same(mapped(source), load(source))
    assert before.items() <= times(kept(tmp_path)).items()


def test_a_second_process_waits_for_the_first(tmp_path):
    source = npz(tmp_path)
    expected, found = mapped(source), []
    lock = FileLock(f"{kept(tmp_path)}.lock")
    lock.acquire()
    thread = threading.Thread(target=lambda: found.append(mapped(source)))

    def wait():
        thread.start()
        time.sleep(0.3)
        assert not found
        lock.release()
        thread.join()

    with pytest.warns(UserWarning, match="Another process is decoding"):
        wait()
    assert_same(found[0], expected)


def test_a_process_that_dies_is_said_in_one_line_and_what_was_decoded_is_kept(tmp_path, monkeypatch):
    source, original = folder(tmp_path), workers._started
    monkeypatch.setattr(store, "cores", lambda: 2)

    def dying():
        worker = original()
        worker.kill()
        worker.wait()
        return worker

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_started", dying)
        with pytest.raises(ResourceError, match=r"ended unexpectedly \(code -9\).*000.png to cat/058.png") as caught:
            mapped(source)
    assert "\n" not in str(caught.value)
    assert_same(mapped(source), load(source))


def test_a_worker_that_cannot_write_is_said_in_one_line(tmp_path, monkeypatch):
    source = folder(tmp_path)
    monkeypatch.setattr(store, "cores", lambda: 2)
    monkeypatch.setattr(store, "_place", lambda parent, piece: write(parent / "file", b"") or parent / "file" / "block")
    with pytest.raises(ResourceError, match=r"cannot be kept here \((Not a directory|File exists)\).*--data.cache"):
        mapped(source)


DECODE = """
import sys, time
from tdsm.data import blocks, pieces, store, load_data, DataConfig
pieces.BLOCK_BYTES, store.cores = 300, lambda: 1
write = blocks.write_block
def slowly(path, *arguments):
    write(path, *arguments)
    print(path.name, flush=True)
    time.sleep(float(sys.argv[2]))
blocks.write_block = slowly
load_data(DataConfig(source=sys.argv[1], memory_limit=0), 0)
"""


def killed(source, after):
    """Decode in a process that is killed once so many blocks are written."""
    command = [sys.executable, "-c", DECODE, str(source), "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)


def test_a_decoding_that_was_killed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    source = folder(tmp_path)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 300)
    killed(source, after=3)
    before = times(kept(tmp_path))
    assert 3 <= len(before) < 9
    assert_same(mapped(source), load(source))
    assert before.items() <= times(kept(tmp_path)).items()


@pytest.mark.slow
def test_many_kills_lose_and_repeat_nothing(tmp_path, monkeypatch):
    source = folder(tmp_path)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 300)
    for number in range(1, 9):
        killed(source, after=1)
        assert len(times(kept(tmp_path))) >= number
    assert_same(mapped(source), load(source))


def test_hashes_of_grey_among_coloured_are_those_of_three_channels(tmp_path):
    fill(tmp_path / "data", count=20)
    write(tmp_path / "data" / "cat2" / "zoo.png", picture(9, (4, 4, 3)))
    assert_same(mapped(tmp_path / "data"), load(tmp_path / "data"))
