import gzip
import struct

import numpy as np
import pytest
import torch
from tests.samples import assert_sound, load, write

from tdsm.base.errors import DataError, UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 5, 6), dtype=np.uint8)
LABELS = (np.arange(40) % 2).astype(np.uint8)


def idx(array, code=8, shape=None):
    shape = shape or array.shape
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def put(root, name="train-images-idx3-ubyte", images=IMAGES, labels=LABELS, pack=bytes, ending=""):
    write(root / f"{name}{ending}", pack(idx(images)))
    write(root / f"{name.replace('images-idx3', 'labels-idx1')}{ending}", pack(idx(labels)))


@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
def test_mnist(tmp_path, pack, ending):
    put(tmp_path, pack=pack, ending=ending)
    put(tmp_path, "t10k-images-idx3-ubyte", 255 - IMAGES[:9], LABELS[:9], pack, ending)
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("0", "1")
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(IMAGES)[data.train.ids])
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(255 - IMAGES[:9]))
    assert data.notes == ("Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 't10k'.",)


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train_images.idx", "train-images.idx.gz"])
def test_other_spellings(tmp_path, name):
    pack = gzip.compress if name.endswith(".gz") else bytes
    write(tmp_path / name, pack(idx(IMAGES)))
    write(tmp_path / name.replace("images", "labels").replace("idx3", "idx1"), pack(idx(LABELS)))
    assert len(load(tmp_path).test) == 8


def test_configs_are_a_choice(tmp_path):
    for config in ("letters", "digits"):
        put(tmp_path, f"emnist-{config}-train-images-idx3-ubyte")
    with pytest.raises(UsageError, match="emnist-digits, emnist-letters"):
        load(tmp_path)
    assert len(load(tmp_path, config="emnist-letters").test) == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(IMAGES)[:-1], "holds 1199 bytes, its header says 1200"),
        (idx(IMAGES) + b"x", "holds more bytes"),
        (idx(IMAGES, shape=(2**32 - 1, 2**32 - 1, 2**32 - 1)), "cannot hold"),
        (idx(IMAGES, code=13), "starts with 00000d03, expected 00000803"),
        (idx(LABELS), "starts with 00000801"),
        (idx(IMAGES)[:9], "starts with"),
        (b"", "starts with"),
        (idx(IMAGES[:-1]), "39 images but 40 labels"),
    ],
)
@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
def test_files_that_are_not_what_they_say_are_refused(tmp_path, data, message, pack, ending):
    put(tmp_path, pack=pack, ending=ending)
    write(tmp_path / f"train-images-idx3-ubyte{ending}", pack(data))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_packed_files_that_are_damaged_are_refused(tmp_path):
    put(tmp_path, pack=gzip.compress, ending=".gz")
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    for damaged in (b"", whole[:5], whole[:-9], b"x" + whole, whole[:50] + b"xxxx" + whole[54:]):
        write(tmp_path / "train-images-idx3-ubyte.gz", damaged)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: (cannot be read|starts with)"):
            load(tmp_path)


def test_labels_need_their_images_and_images_may_be_without(tmp_path):
    put(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert not load(tmp_path).has_labels
    put(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"\['train'\] have labels only"):
        load(tmp_path)


def test_a_part_that_is_there_twice_is_read_once_if_both_are_the_same(tmp_path):
    """As torchvision leaves MNIST/raw: files as they were downloaded, and unpacked."""
    put(tmp_path / "MNIST" / "raw")
    put(tmp_path / "MNIST" / "raw", "TRAIN-IMAGES-IDX3-UBYTE".lower(), pack=gzip.compress, ending=".GZ")
    data = load(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 40
    assert "train-images-idx3-ubyte, train-images-idx3-ubyte.GZ hold the same and were read once." in data.notes
    put(tmp_path / "MNIST" / "raw", pack=gzip.compress, ending=".GZ", images=255 - IMAGES)
    with pytest.raises(DataError, match=r"GZ: train-images-idx3-ubyte is the same part and holds something else"):
        load(tmp_path)


def test_labels_of_another_type_are_refused(tmp_path):
    put(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    write(tmp_path / "train-labels-idx2-int", idx(np.zeros((40, 8), ">i4"), code=12))
    with pytest.raises(DataError, match="labels-idx2-int: starts with 00000c02, expected 00000801"):
        load(tmp_path)


def test_folders_called_as_the_files_in_them_are_entered(tmp_path):
    put(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").mkdir()
    lies = tmp_path / "train-images-idx3-ubyte" / "train-labels-idx1-ubyte"
    lies.rename(tmp_path / "train-labels-idx1-ubyte" / lies.name)
    assert load(tmp_path).train.classes == ("0", "1")


def test_images_of_emnist_are_said_to_be_mirrored(tmp_path):
    put(tmp_path, "emnist-letters-train-images-idx3-ubyte")
    assert any("mirrored at its diagonal" in note for note in load(tmp_path).notes)
