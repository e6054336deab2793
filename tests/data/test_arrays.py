import numpy as np
import pytest
import torch
from tests.samples import assert_sound, load, write

from tdsm.base.errors import DataError

LEVELS = np.arange(40 * 3 * 5, dtype=np.int64).reshape(40, 3, 5).astype(np.uint8)
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
    assert data.test.images.shape == (9, 3, 3, 5)
    assert data.test.labels.tolist() == [1, 0] * 4 + [1]


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
