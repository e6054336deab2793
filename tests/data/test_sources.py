import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.samples import assert_sound, load, write

from tdsm.base.errors import DataError, UsageError
from tdsm.data import SOURCES, DataConfig, decode_image, load_data
from tdsm.data.load import JPEG_NOTE, absolute_source, resolve
from tdsm.data.names import natural_key
from tdsm.data.toy import toy_scenes

CIFAR10 = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"


def test_sources_are_resolved_by_name_path_and_id(tmp_path):
    write(tmp_path / "a" / "cat" / "1.png", b"")
    write(tmp_path / "b" / "data" / "train.parquet", b"")
    write(tmp_path / "c.npz", b"")
    assert resolve("digits") == ("digits", "")
    assert resolve(str(tmp_path / "a")) == ("folder", str(tmp_path / "a"))
    assert resolve(str(tmp_path / "b")) == ("parquet", str(tmp_path / "b"))
    assert resolve(str(tmp_path / "b" / "data" / "train.parquet"))[0] == "parquet"
    assert resolve(str(tmp_path / "c.npz")) == ("npz", str(tmp_path / "c.npz"))
    assert resolve("uoft-cs/cifar10") == ("hub", "uoft-cs/cifar10")
    assert resolve("folder:x/y") == ("folder", "x/y")


@pytest.mark.parametrize("source", ["digit", "digits8", "parket:there", "", "folder"])
def test_unknown_sources_name_what_was_tried(source):
    with pytest.raises(UsageError, match="is none of") as caught:
        resolve(source)
    assert all(kind in str(caught.value) for kind in SOURCES)


def test_the_nearest_name_is_offered():
    with pytest.raises(UsageError, match="Perhaps you meant 'digits'"):
        load("digit")


@pytest.mark.parametrize(
    "options", [{"sorce": "digits"}, {"validation_fraction": 0.0}, {"validation_fraction": 0.9}, {"max_train": 0}]
)
def test_settings_are_a_closed_schema(options):
    with pytest.raises(ValidationError):
        DataConfig(**options)


def test_every_setting_is_described():
    assert all(field.description for field in DataConfig.model_fields.values())


def test_settings_become_flags():
    import tyro

    assert tyro.cli(DataConfig, args=["--source", "npz:a.npz", "--max-train", "7"]).max_train == 7


def test_reading_settings_imports_nothing_heavy():
    heavy = ("torch", "datasets", "sklearn", "PIL", "pyarrow")
    code = f"import sys, tdsm.data; tdsm.data.DataConfig(); print([m for m in {heavy} if m in sys.modules])"
    code += f"; tdsm.data.load_data; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "['torch']"]


def test_natural_order():
    assert sorted(["b10", "b9", "a", "b01", "b1", "10", "9"], key=natural_key) == [
        "9",
        "10",
        "a",
        "b01",
        "b1",
        "b9",
        "b10",
    ]


def test_digits():
    data = load("digits")
    assert_sound(data)
    assert data.name == "digits"
    assert data.train.classes == tuple("0123456789")
    assert data.train.images.min() == 0
    assert data.train.images.max() == 255
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert sorted(ids.tolist()) == list(range(1797))
    assert any("no test split" in note and "seed 0" in note for note in data.notes)


def test_toy_scenes_are_two_shapes_on_a_background():
    """What `masks` says is what the images show: one colour a part, a dark background, shapes that do not touch."""
    images, masks, labels = toy_scenes("test")
    assert images.shape == (512, 16, 16, 3)
    assert labels.unique().tolist() == list(range(6))
    for image, mask in zip(images, masks, strict=True):
        parts = [image[mask == part] for part in range(3)]
        assert all(len(part.unique(dim=0)) == 1 for part in parts)
        assert parts[0].max() < 64
        assert parts[1].max() == parts[2].max() == 255
        grown = torch.nn.functional.max_pool2d((mask == 1).float()[None], 3, stride=1, padding=1)[0]
        assert not grown[mask == 2].any()


def test_toy_ids_are_rows_of_the_scenes():
    data, scenes = load("toy", max_train=300, max_test=40, seed=3), toy_scenes("test")
    assert_sound(data)
    assert data.name == "toy"
    assert data.train.classes[0] == "disc+disc"
    assert torch.equal(data.test.images, scenes.images[data.test.ids].movedim(-1, 1))
    with pytest.raises(UsageError, match="drawn, not read"):
        load("toy:there")


def test_ids_name_the_same_picture_whatever_was_drawn():
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert first.test.fingerprint() == load("digits", seed=0).test.fingerprint()
    assert first.test.fingerprint() != second.test.fingerprint()
    pictures = dict(zip(first.train.ids.tolist(), first.train.images, strict=True))
    shared = [row for row, i in enumerate(second.test.ids.tolist()) if i in pictures]
    assert len(shared) > 100
    assert all(torch.equal(second.test.images[row], pictures[int(second.test.ids[row])]) for row in shared)


def test_limits_and_sizes():
    data = load("digits", max_train=200, max_test=50, image_size=16, channels="rgb")
    assert len(data.train) + len(data.validation) == 200
    assert len(data.test) == 50
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert any("250 of the images were resized" in note for note in data.notes)


def test_digits_take_no_path_and_no_columns():
    with pytest.raises(UsageError, match="built in"):
        load("digits:there")
    with pytest.raises(UsageError, match="image_column"):
        load("digits", image_column="img")


def test_progress_wraps_a_loop_of_known_length():
    seen = []

    def progress(steps, title):
        seen.append((len(steps), title))
        for step in steps:
            seen.append(step)
            yield step

    load_data(DataConfig(max_train=100, max_test=20), 0, progress)
    assert seen == [(120, "decode images"), *range(120)]


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no CIFAR-10 parquet folder at ../shared/data/cifar10")
def test_cifar10():
    import pyarrow.parquet as pq

    data = load(CIFAR10, max_train=300, max_test=100)
    assert_sound(data)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.classes[3] == "cat"
    assert data.notes == (
        "Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'test'.",
        "Of 50000 training images 300 are used, drawn at random.",
        "Of 10000 test images 100 are used, drawn at random.",
        JPEG_NOTE,
    )
    rows = pq.read_table(CIFAR10 / "train-00000-of-00001.parquet").take(data.validation.ids.numpy())
    assert rows["label"].to_pylist() == data.validation.labels.tolist()
    assert torch.equal(decode_image(rows["img"][0].as_py()["bytes"]), data.validation.images[0])


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet", "tar", "idx", "disk"])
def test_missing_paths_are_named(kind):
    with pytest.raises(DataError, match="no-such-place"):
        load(f"{kind}:no-such-place")


def test_a_source_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set.npz", b"")
    write(tmp_path / "a" / "b" / "train.parquet", b"")
    assert absolute_source("set.npz") == f"npz:{tmp_path}/set.npz"
    assert absolute_source("folder:x") == f"folder:{tmp_path}/x"
    assert absolute_source("a/b") == f"parquet:{tmp_path}/a/b"
    assert absolute_source(absolute_source("a/b")) == absolute_source("a/b")
    for name in ("digits", "toy", "uoft-cs/cifar10", "hub:uoft-cs/cifar10"):
        assert absolute_source(name) == name


@pytest.mark.parametrize(
    ("option", "value"), [("config", "x"), ("revision", "x"), ("follow_links", True), ("label_column", "x")]
)
def test_options_are_never_set_in_vain(option, value):
    with pytest.raises(UsageError, match=f"{option} is for sources of .*; this one is 'digits'"):
        load("digits", **{option: value})
