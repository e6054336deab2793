import shutil
from collections import namedtuple

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import NonFiniteError, ResourceError
from tdsm.data import ImageSet
from tdsm.decomposition import STRATEGIES, spatial_map
from tdsm.features import extract as module
from tdsm.features import store
from tdsm.features.config import MapConfig
from tdsm.features.extract import FeatureSet, compute_features, fingerprint_field
from tdsm.features.kinds import FEATURES
from tests.conftest import small_field
from tests.samples import all_floats
from tests.tinyrun import content

CONFIG = MapConfig(batch_size=3)
NAMES = ("pixels", "reconstruction", "tokens", "values", "tdsm")
EVERYTHING = torch.arange(10)


def features_of(field, images, folder, config=CONFIG, **options):
    return FeatureSet(folder, field, fingerprint_field(field), images, config, **options)


def extract(field, images, folder, **options):
    features_of(field, images, folder, **options).extract(NAMES)


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


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize(("reduction", "maps"), [("mean", 3), ("rgb", 9), ("l2", 3)])
def test_every_feature_is_channels_last(field, images, strategy, reduction, maps):
    config = MapConfig(reduction=reduction, selection="0,2,4", strategy=strategy, size=(4, 7))
    features = compute_features(field, images.floats([0, 5]), NAMES, config)
    width = field.config.query_dim
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        "pixels": (2, 6, 5, 3),
        "reconstruction": (2, 4, 7, 3),
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
    assert compute_features(field, images.floats([0]), ["tdsm"], MapConfig())["tdsm"].shape == (1, 6, 5, 5)


def test_every_kind_is_computed_and_says_what_it_is(field, images):
    features = compute_features(field, images.floats([0, 5]), FEATURES, MapConfig(size=(4, 7)))
    sizes = {"pixels": (6, 5), "pooled": (1, 1)}
    for name, kind in FEATURES.items():
        assert kind.meaning
        assert features[name].shape[:1] == (2,)
        assert features[name].dtype == (torch.float16 if kind.is_map else torch.float32)
        assert features[name].shape[1:3] == ((5, 1) if kind.is_sequence else sizes.get(name, (4, 7)))


def test_the_store_holds_every_image_in_order(field, images, tmp_path):
    features = features_of(field, images, tmp_path)
    assert torch.equal(features.rows("pixels")[EVERYTHING], all_floats(images).movedim(1, -1))
    direct = compute_features(field, all_floats(images), NAMES, CONFIG)
    for name in NAMES:
        torch.testing.assert_close(features.rows(name)[EVERYTHING], direct[name].float(), rtol=2e-3, atol=2e-3)


def test_only_what_is_asked_for_is_stored(field, images, tmp_path):
    features_of(field, images, tmp_path).rows("tokens")
    assert [folder.name for folder in tmp_path.iterdir()] == ["tokens"]


def test_what_is_stored_is_not_computed_again(field, images, tmp_path, monkeypatch):
    extract(field, images, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    counts = spy_on_encoding(monkeypatch, field)
    extract(field, images, tmp_path)
    assert counts == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_store_is_verified_once_however_often_it_is_read(field, images, tmp_path, monkeypatch):
    extract(field, images, tmp_path)
    hashed, whole = [], io.file_hash
    monkeypatch.setattr(io, "file_hash", lambda path: hashed.append(path.name) or whole(path))
    features = features_of(field, images, tmp_path)
    for _ in range(3):
        features.rows("tdsm")
    assert len(hashed) == 3


def test_values_that_float16_cannot_hold_are_refused_or_stored_wider(images, tmp_path):
    field = small_field(torch.float32, channels=3)
    with torch.no_grad():
        field.to_channels.weight.mul_(6e4)
    with pytest.raises(NonFiniteError, match=r"largest value of tdsm is .*, which float16 cannot hold.*--maps.dtype"):
        features_of(field, images, tmp_path).rows("tdsm")
    assert list(tmp_path.rglob("*.safetensors")) == []
    wide = features_of(field, images, tmp_path, MapConfig(dtype="float32")).rows("tdsm")[EVERYTHING]
    assert wide.abs().max() > 65504
    assert wide.isfinite().all()


def test_what_is_not_finite_is_never_stored(images, tmp_path):
    field = small_field(torch.float32, channels=3)
    with torch.no_grad():
        field.to_channels.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="largest value of reconstruction is nan"):
        features_of(field, images, tmp_path).rows("reconstruction")
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize("done", [0, 1, 7])
def test_an_extraction_that_was_killed_loses_and_repeats_nothing(field, images, tmp_path, monkeypatch, done):
    extract(field, images, tmp_path / "whole")
    whole, written = module.write_shard, []

    def killed(*arguments):
        if len(written) == done:
            raise SystemExit("killed")
        written.append(arguments)
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", killed)
        with pytest.raises(SystemExit):
            extract(field, images, tmp_path / "killed")
    kept = content(tmp_path / "killed")
    counts = spy_on_encoding(monkeypatch, field)
    extract(field, images, tmp_path / "killed")
    whole_shards = done // len(NAMES)  # each shard of samples is written for one feature after another
    assert sum(counts[1:]) == 10 - 4 * whole_shards  # the first one measures what a sample takes on disk
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert kept.items() <= content(tmp_path / "killed").items()


@pytest.mark.parametrize("name", ["tdsm/shard-00001.safetensors", "tokens/shard-00001.json"])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-9], lambda data: data[:-9] + b"x" + data[-8:]], ids=["cut", "bit"]
)
def test_a_damaged_shard_alone_is_made_anew(field, images, tmp_path, name, change):
    extract(field, images, tmp_path)
    whole = content(tmp_path)
    untouched = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shard-0000[02]*")}
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    assert content(tmp_path) != whole
    extract(field, images, tmp_path)
    assert content(tmp_path) == whole
    assert {file: file.stat().st_mtime_ns for file in untouched} == untouched


def with_other_labels(images):
    return ImageSet(images.images, 1 - images.labels, images.ids, images.classes)


def with_other_pixels(images):
    pixels = images.images.clone()
    pixels[9] = 255 - pixels[9]
    return ImageSet(pixels, images.labels, images.ids, images.classes)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": MapConfig(reduction="l2")}, "maps.reduction: mean -> l2"),
        ({"config": MapConfig(selection="first:2")}, "maps.selection: all -> first:2"),
        ({"config": MapConfig(size=(3, 3))}, "maps.size: None -> [3, 3]"),
        ({"config": MapConfig(dtype="float32")}, "maps.dtype: float16 -> float32"),
        ({"images": with_other_labels}, "data: "),
        ({"images": with_other_pixels}, "data: "),
        ({"images": lambda images: images.subset(range(9))}, "data: "),
        ({"images": lambda images: images.subset(list(range(9, -1, -1)))}, "data: "),
        ({"field": lambda field: small_field(torch.float32, channels=3)}, "field: "),
        ({"change": lambda images, ids: images.flip(-1), "change_name": {"flip": True}}, "change: None -> "),
    ],
    ids=["reduction", "selection", "size", "dtype", "labels", "pixels", "fewer", "order", "weights", "augmentation"],
)
def test_features_of_something_else_are_made_anew_and_it_is_said(field, images, tmp_path, other, words):
    extract(field, images, tmp_path)
    said, given = [], {"field": field, "images": images, "folder": tmp_path}
    for name, change in other.items():
        given[name] = change(given[name]) if name in ("field", "images") else change
    again = features_of(**given, say=said.append).rows("tdsm")
    assert len(said) == 1
    assert f"tdsm: extracted anew, it was made from something else ({words}" in said[0]
    given["folder"] = tmp_path / "apart"
    apart = features_of(**given).rows("tdsm")
    assert torch.equal(again[torch.arange(len(again))], apart[torch.arange(len(apart))])


def test_how_it_is_computed_is_no_part_of_what_it_is(field, images, tmp_path):
    one, other = MapConfig(strategy="loop", batch_size=2), MapConfig(strategy="exact", batch_size=5)
    made = [features_of(field, images, tmp_path, config).made_from("tdsm") for config in (one, other)]
    assert made[0] == made[1]


def test_what_the_maps_are_is_no_part_of_what_tokens_are(field, images, tmp_path):
    one, other = MapConfig(), MapConfig(method="additive", reduction="l2", size=(3, 3))
    made = [features_of(field, images, tmp_path, config) for config in (one, other)]
    assert made[0].made_from("tokens") == made[1].made_from("tokens")
    assert made[0].made_from("tdsm") != made[1].made_from("tdsm")


def test_a_change_is_given_the_ids_of_its_images(field, images, tmp_path):
    def mark(batch, ids):
        assert torch.equal(batch, images.floats(ids // 3))
        return batch * 0 + ids[:, None, None, None]

    rows = features_of(field, images, tmp_path, change=mark, change_name={}).rows("pixels")
    assert rows[EVERYTHING][:, 0, 0, 0].tolist() == images.ids.tolist()


def test_a_full_disk_is_foreseen(field, images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 1000, 1000))
    with pytest.raises(ResourceError, match=r"of 10 images take .*\(--maps.selection\)"):
        extract(field, images, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_extracting_leaves_the_field_as_it_was(field, images, tmp_path):
    before = {name: value.clone() for name, value in field.state_dict().items()}
    extract(field, images, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in field.state_dict().items())
    assert all(parameter.grad is None for parameter in field.parameters())


def test_a_lower_precision_of_the_encoder_is_told_apart_and_its_error_said(field, images, tmp_path):
    said, low = [], CONFIG.model_copy(update={"precision": "bfloat16"})
    rows = features_of(field, images, tmp_path / "low", low, say=said.append).rows("tokens")[EVERYTHING]
    exact = features_of(field, images, tmp_path / "full").rows("tokens")[EVERYTHING]
    share = ((rows - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert 0 < share < 0.05
    assert module.precision_error(field, images.floats(EVERYTHING), low) == pytest.approx(share, rel=1e-3)
    assert said == [f"low: tokens by bfloat16 are {100 * share:.2g} % off, rms."]
    sets = [features_of(field, images, tmp_path, config) for config in (CONFIG, low)]
    assert sets[0].made_from("tokens") != sets[1].made_from("tokens")
    assert sets[0].made_from("pixels") == sets[1].made_from("pixels")
    assert module.precision_error(field, images.floats(EVERYTHING), CONFIG) == 0
