import contextlib
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.samples import assert_sound, levels, load, write

from tdsm.base.errors import DataError

LEVELS = np.arange(40 * 4 * 5, dtype=np.int64).reshape(40, 4, 5).astype(np.uint8)
TWO = np.arange(40) % 2


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_npz_of_one_split(tmp_path):
    data = load(npz(tmp_path, images=LEVELS, labels=TWO * 3 + 4))
    assert_sound(data)
    assert data.train.classes == ("4", "7")
    assert data.name == "set.npz"
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(LEVELS)[data.train.ids])
    assert torch.equal(data.test.labels, torch.from_numpy(TWO)[data.test.ids])


def test_npz_of_two_splits_with_string_labels(tmp_path):
    colour = np.stack([LEVELS] * 3, axis=-1)
    names = np.array(["dog", "cat"])[TWO]
    data = load(npz(tmp_path, train_images=colour, train_labels=names, test_images=colour[:9], test_labels=names[:9]))
    assert_sound(data)
    assert data.train.classes == ("cat", "dog")
    assert data.test.images.shape == (9, 3, 4, 5)
    assert data.test.labels.tolist() == [1, 0] * 4 + [1]


@pytest.mark.parametrize("depth", [1, 3])
def test_npz_with_channels_first(tmp_path, depth):
    colour = np.stack([LEVELS + i for i in range(depth)], axis=1)
    data = load(npz(tmp_path, X=colour, Y=TWO))
    assert torch.equal(data.train.images, torch.from_numpy(colour)[data.train.ids])


def test_npz_floats_are_rounded(tmp_path):
    data = load(npz(tmp_path, images=LEVELS[..., None] / 255, labels=TWO))
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(LEVELS)[data.train.ids])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": TWO}, "no images"),
        ({"train_images": LEVELS, "x_train": LEVELS}, "expected"),
        ({"images": LEVELS, "labels": np.stack([TWO, TWO], 1)}, r"shape \(40, 2\) for 40 images, expected one label"),
        ({"images": LEVELS, "labels": TWO, "extra": TWO}, "extra"),
        ({"images": LEVELS, "labels": TWO[:-1]}, "shape \\(39,\\) for 40 images"),
        ({"images": LEVELS / 128, "labels": TWO}, "within 0..1"),
        ({"images": LEVELS * np.nan, "labels": TWO}, "nan"),
        ({"images": LEVELS.astype(int), "labels": TWO}, "int64, expected uint8"),
        ({"images": LEVELS[0], "labels": TWO[:3]}, "shape"),
        ({"images": np.zeros((40, 4, 4, 2), np.uint8), "labels": TWO}, "1 or 3"),
        ({"images": np.zeros((40, 3, 32, 3), np.uint8), "labels": TWO}, "may be the second or the last axis"),
        ({"images": LEVELS, "labels": TWO / 2}, "float64"),
        ({"images": LEVELS, "labels": TWO - 1}, "-1 marks unlabelled"),
        ({"images": LEVELS, "labels": TWO.astype(object)}, "refused"),
        ({"images": LEVELS[:0], "labels": TWO[:0]}, "no empty one"),
        (
            {"train_images": LEVELS, "train_labels": TWO, "test_images": LEVELS, "test_labels": TWO.astype(str)},
            "one kind",
        ),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, **arrays))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 half a zip", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00"])
def test_damaged_npz_is_refused(tmp_path, data):
    write(tmp_path / "set.npz", data)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load(tmp_path / "set.npz")


# --- the names people give ------------------------------------------------------------------------------------------


def test_medmnist(tmp_path):
    """Splits train, val and test, labels of shape (samples, 1)."""
    arrays = {}
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        arrays[f"{split}_images"] = np.arange(first, first + 20, dtype=np.uint8)[:, None, None] + np.zeros(
            (4, 4), np.uint8
        )
        arrays[f"{split}_labels"] = np.arange(20)[:, None] % 2
    data = load(npz(tmp_path, **arrays))
    assert levels(data.train) == list(range(20))
    assert levels(data.validation) == list(range(100, 120))
    assert levels(data.test) == list(range(200, 220))
    assert data.test.labels.tolist() == [0, 1] * 10
    assert data.notes[-1] == "Train is 'train'; validation is 'val'; test is 'test'."
    assert data.notes[0] == "The highest level of train is 19, white is 255: the images are dark, or not scaled to it."


def test_keras(tmp_path):
    data = load(npz(tmp_path, x_train=LEVELS, y_train=TWO, x_test=LEVELS[:9] + 1, y_test=TWO[:9]))
    assert len(data.train) + len(data.validation) == 40
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(LEVELS[:9] + 1))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (TWO.astype(np.float32), ("0", "1")),
        (TWO.astype(bool), ("false", "true")),
        (np.array([b"bee", b"ant"])[TWO], ("ant", "bee")),
        (np.array(["x" * 300 + "a", "日本"])[TWO], ("x" * 300 + "a", "日本")),
        (np.array(["cafe\u0301", "caf\u00e9", "tea"])[np.arange(40) % 3], ("caf\u00e9", "tea")),
    ],
)
def test_kinds_of_labels(tmp_path, labels, classes):
    assert load(npz(tmp_path, images=LEVELS, labels=labels)).train.classes == classes


def test_images_alone_are_without_labels(tmp_path):
    data = load(npz(tmp_path, images=LEVELS))
    assert not data.has_labels
    assert len(data.train) + len(data.validation) + len(data.test) == 40


# --- hostile files: one line each, and nothing is allocated before sizes are compared --------------------------------


def member(shape, dtype="|u1", data=b"", version=b"\x01\x00"):
    """Return an .npy file whose header says what it likes."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


def archive(path, members, packing=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", packing) as file:
        warnings.simplefilter("ignore")  # repeated names
        for name, data in members:
            file.writestr(name, data)
    return path


def lying(path, name, file_size):
    """Return an archive whose directory gives another size for a member."""
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    while data[place + 46 :][: len(name)] != name.encode():
        place = data.index(b"PK\x01\x02", place + 1)
    struct.pack_into("<I", data, place + 24, file_size)
    path.write_bytes(data)
    return path


FINE = ("images.npy", member((4, 4, 4), data=bytes(64)))
LABELS = ("labels.npy", member((4,), data=bytes([0, 1, 0, 1])))
HOSTILE = {
    "objects": (lambda path: archive(path, [("images.npy", member((4,), "|O", b"\x80\x04K\x01.")), LABELS]), "refused"),
    "records": (
        lambda path: archive(path, [("images.npy", member((4,), [("a", "|u1")], bytes(4))), LABELS]),
        "refused",
    ),
    "a shape larger than the data": (
        lambda path: archive(path, [("images.npy", member((4, 99999, 99999), data=bytes(64))), LABELS]),
        r"39999200004 bytes, but holds 64",
    ),
    "a shape smaller than the data": (
        lambda path: archive(path, [("images.npy", member((4, 2, 2), data=bytes(64))), LABELS]),
        "16 bytes, but holds 64",
    ),
    "a shape beyond all memory": (
        lambda path: archive(path, [("images.npy", member((2**62, 2**62, 8), data=bytes(64))), LABELS]),
        "but holds 64",
    ),
    "a negative shape": (
        lambda path: archive(path, [("images.npy", member((-4, -4, 4), data=bytes(64))), LABELS]),
        "but holds 64",
    ),
    "a directory that lies": (
        lambda path: lying(archive(path, [FINE, LABELS]), "images.npy", 2**31),
        "more than any packing gives",
    ),
    "a directory that says less": (
        lambda path: lying(archive(path, [FINE, LABELS]), "images.npy", 160),
        "cannot be read",
    ),
    "a name twice": (
        lambda path: archive(path, [FINE] * 2 + [LABELS]),
        "'images.npy' 2 times",
    ),
    "another packing": (
        lambda path: archive(path, [FINE, LABELS], zipfile.ZIP_LZMA),
        "packed in another way",
    ),
    "another file": (lambda path: archive(path, [("../evil.py", b"x"), LABELS]), r"holds '\.\./evil\.py'"),
    "an unknown version": (
        lambda path: archive(path, [("images.npy", member((4,), data=bytes(4), version=b"\x09\x00")), LABELS]),
        "version",
    ),
    "a damaged byte": (
        lambda path: write(
            path, archive(path, [LABELS], zipfile.ZIP_STORED).read_bytes().replace(b"\0\1\0\1", b"\0\1\0\2")
        ),
        "CRC",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(tmp_path, name):
    make, message = HOSTILE[name]
    make(tmp_path / "set.npz")
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "set.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_an_archive_larger_than_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tdsm.data.npz._memory", lambda: 2**20)
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((300, 64, 64), np.uint8), labels=np.arange(300) % 2)
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GiB, this machine has"):
        load(tmp_path / "set.npz")


def test_a_system_that_does_not_tell_its_memory_reads_archives_all_the_same(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((300, 8, 8), np.uint8), labels=np.arange(300) % 2)
    monkeypatch.delattr("os.sysconf")  # as on Windows
    assert len(load(tmp_path / "set.npz").train) == 216


def test_every_truncation_of_an_archive_is_refused(tmp_path):
    whole = npz(tmp_path, images=LEVELS, labels=TWO).read_bytes()
    for length in range(0, len(whole), 7):
        write(tmp_path / "set.npz", whole[:length])
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            load(tmp_path / "set.npz")


@settings(max_examples=200)
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_data_errors(tmp_path, place, byte):
    data = bytearray(npz(tmp_path, images=LEVELS, labels=TWO).read_bytes())
    data[int(place * len(data))] = byte
    write(tmp_path / "set.npz", bytes(data))
    with contextlib.suppress(DataError):
        assert len(load(tmp_path / "set.npz").test) == 8
