import shutil
from collections import namedtuple

import pytest
import torch

from tdsm.base.errors import CheckpointError, ResourceError
from tdsm.data import ImageSet
from tdsm.decomposition import STRATEGIES, spatial_map
from tdsm.features import extract as module
from tdsm.features import store
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features, extract, fingerprint_of
from tdsm.features.store import open_store
from tests.conftest import small_field
from tests.tinyrun import content

CONFIG = MapConfig(batch_size=3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_SAMPLES", 4)


@pytest.fixture
def images():
    return ImageSet(
        torch.randint(256, (10, 3, 6, 5), dtype=torch.uint8),
        torch.arange(10) % 2,
        torch.arange(10) * 3,
        ("cat", "dog"),
    )


@pytest.fixture
def field():
    return small_field(torch.float32, channels=3)


def spy_on_encoding(monkeypatch, field) -> list[int]:
    """Count the images that the field encodes from now on, call by call."""
    counts: list[int] = []
    encode = field.encode
    monkeypatch.setattr(field, "encode", lambda images: counts.append(len(images)) or encode(images))
    return counts


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
@pytest.mark.parametrize(("reduction", "maps"), [("mean", 3), ("rgb", 9), ("l2", 3)])
def test_every_feature_is_channels_last(field, images, strategy, reduction, maps):
    config = MapConfig(reduction=reduction, selection="0,2,4", strategy=strategy, size=(4, 7))
    features = compute_features(field, images.floats([0, 5]), config)
    width = field.config.query_dim
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        "pixels": (2, 6, 5, 3),
        "reconstruction": (2, 6, 5, 3),
        "tokens": (2, 5, 1, 14),
        "values": (2, 5, 1, width),
        "tdsm": (2, 4, 7, maps),
    }
    tokens = field.encode(images.floats([0, 5]))
    expected = spatial_map(field, tokens, size=(4, 7), reduction=reduction, selection=[0, 2, 4], strategy="loop")
    torch.testing.assert_close(features["tdsm"].float(), expected.detach(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(features["pixels"], images.floats([0, 5]).movedim(1, -1))
    assert not any(feature.requires_grad for feature in features.values())


def test_maps_have_the_images_size_unless_told_otherwise(field, images):
    assert compute_features(field, images.floats([0]), MapConfig())["tdsm"].shape == (1, 6, 5, 5)


def test_the_store_holds_every_image_in_order(field, images, tmp_path):
    extract(field, images, CONFIG, tmp_path)
    rows = open_store([tmp_path], 10, "pixels")
    assert torch.equal(rows[torch.arange(10)], images.floats().movedim(1, -1))
    direct = compute_features(field, images.floats(), CONFIG)
    for name in ("tokens", "values", "tdsm", "reconstruction"):
        stored = open_store([tmp_path], 10, name)[torch.arange(10)]
        torch.testing.assert_close(stored, direct[name].float(), rtol=2e-3, atol=2e-3)


def test_what_is_stored_is_not_computed_again(field, images, tmp_path, monkeypatch):
    extract(field, images, CONFIG, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    counts = spy_on_encoding(monkeypatch, field)
    extract(field, images, CONFIG, tmp_path)
    assert counts == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_extraction_that_was_killed_loses_and_repeats_nothing(field, images, tmp_path, monkeypatch, done):
    extract(field, images, CONFIG, tmp_path / "whole")
    whole, written = module.write_shard, []

    def killed(*arguments):
        if len(written) == done:
            raise SystemExit("killed")
        written.append(arguments)
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", killed)
        with pytest.raises(SystemExit):
            extract(field, images, CONFIG, tmp_path / "killed")
    kept = content(tmp_path / "killed")
    counts = spy_on_encoding(monkeypatch, field)
    extract(field, images, CONFIG, tmp_path / "killed")
    assert sum(counts[1:]) == 10 - 4 * done  # the first one measures what a sample takes on disk
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert kept.items() <= content(tmp_path / "killed").items()


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "shard-00001.json"])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-9], lambda data: data[:-9] + b"x" + data[-8:]], ids=["cut", "bit"]
)
def test_a_damaged_shard_alone_is_made_anew(field, images, tmp_path, name, change):
    extract(field, images, CONFIG, tmp_path)
    whole = content(tmp_path)
    untouched = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shard-0000[02]*")}
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    assert content(tmp_path) != whole
    extract(field, images, CONFIG, tmp_path)
    assert content(tmp_path) == whole
    assert {file: file.stat().st_mtime_ns for file in untouched} == untouched


def with_other_labels(images):
    return ImageSet(images.images, 1 - images.labels, images.ids, images.classes)


def with_other_pixels(images):
    pixels = images.images.clone()
    pixels[9] = 255 - pixels[9]
    return ImageSet(pixels, images.labels, images.ids, images.classes)


@pytest.mark.parametrize(
    "other",
    [
        {"config": MapConfig(reduction="l2")},
        {"config": MapConfig(selection="first:2")},
        {"config": MapConfig(size=(3, 3))},
        {"images": with_other_labels},
        {"images": with_other_pixels},
        {"images": lambda images: images.subset(range(9))},
        {"images": lambda images: images.subset(list(range(9, -1, -1)))},
        {"field": lambda field: small_field(torch.float32, channels=3)},
        {"transform": lambda images, ids: images.flip(-1)},
    ],
    ids=["reduction", "selection", "size", "labels", "pixels", "fewer", "order", "weights", "augmentation"],
)
def test_mixing_with_something_else_is_refused(field, images, tmp_path, other):
    extract(field, images, CONFIG, tmp_path)
    before = content(tmp_path)
    given = {"field": field, "images": images, "config": CONFIG, "folder": tmp_path}
    for name, change in other.items():
        given[name] = change(given[name]) if callable(change) and name in ("field", "images") else change
    with pytest.raises(CheckpointError, match="made by another field, data set or setting"):
        extract(**given)
    assert content(tmp_path) == before


def test_how_it_is_computed_is_no_part_of_what_it_is(field, images):
    one, other = MapConfig(strategy="loop", batch_size=2), MapConfig(strategy="exact", batch_size=5)
    example = images.floats([0])
    assert fingerprint_of(field, images, one, example) == fingerprint_of(field, images, other, example)


def test_a_transform_is_given_the_ids_of_its_images(field, images, tmp_path):
    def mark(batch, ids):
        assert torch.equal(batch, images.floats(ids // 3))
        return batch * 0 + ids[:, None, None, None]

    extract(field, images, CONFIG, tmp_path, mark)
    assert open_store([tmp_path], 10, "pixels")[torch.arange(10)][:, 0, 0, 0].tolist() == images.ids.tolist()


def test_a_full_disk_is_foreseen(field, images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 1000, 1000))
    with pytest.raises(ResourceError, match=r"the features of 10 images take .*\(--maps.selection\)"):
        extract(field, images, CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_extracting_leaves_the_field_as_it_was(field, images, tmp_path):
    before = {name: value.clone() for name, value in field.state_dict().items()}
    extract(field, images, CONFIG, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in field.state_dict().items())
    assert all(parameter.grad is None for parameter in field.parameters())
