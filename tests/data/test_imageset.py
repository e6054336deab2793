import dataclasses

import jaxtyping
import pytest
import torch
from tests.samples import all_floats

from tdsm.base.errors import UsageError
from tdsm.data import ImageSet

CLASSES = ("cat", "dog")


def make(samples=5, **changes):
    parts = {
        "images": torch.arange(samples * 12, dtype=torch.uint8).view(samples, 1, 3, 4),
        "labels": torch.arange(samples) % 2,
        "ids": torch.arange(samples) * 3,
        "classes": CLASSES,
    }
    return ImageSet(**{**parts, **changes})


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """As for a user, for whom shapes in signatures are words: our own errors must answer."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_subset_keeps_images_labels_and_ids_together():
    whole = make()
    part = whole.subset([4, 1])
    assert len(part) == 2
    assert part.ids.tolist() == [12, 3]
    assert torch.equal(part.images, whole.images[[4, 1]])
    assert torch.equal(part.labels, whole.labels[[4, 1]])
    assert len(whole.subset([])) == 0


def test_floats_run_from_minus_one_to_one():
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1)
    floats = all_floats(make(4, images=images))
    assert floats.dtype == torch.float32
    assert floats.flatten()[[0, 3]].tolist() == [-1.0, 1.0]
    assert floats.flatten()[1:3].tolist() == pytest.approx([-1 / 255, 1 / 255], abs=1e-6)
    assert torch.equal(make().floats([2, 0]), all_floats(make())[[2, 0]])


@pytest.mark.parametrize(
    "changes",
    [
        {"images": make().images + 1},
        {"labels": 1 - make().labels},
        {"ids": make().ids + 1},
        {"classes": ("cat", "cow")},
        {"images": make().images.view(5, 1, 4, 3)},
    ],
    ids=["images", "labels", "ids", "classes", "shape"],
)
def test_fingerprint_notices_every_part(changes):
    assert make().fingerprint() == make().fingerprint()
    assert make(**changes).fingerprint() != make().fingerprint()


def test_equal_pictures_have_equal_hashes_and_no_others():
    images = torch.randint(256, (600, 1, 3, 4), dtype=torch.uint8)
    images[599] = images[3]
    hashes = make(600, images=images).hashes
    assert hashes.dtype == torch.int64
    assert len(hashes.unique()) == 599
    assert hashes[599] == hashes[3]
    assert torch.equal(hashes, torch.cat([make(1, images=image[None]).hashes for image in images]))
    assert not torch.equal(make(600, images=images.view(600, 1, 4, 3)).hashes, hashes)
    assert make(0).hashes.shape == (0,)


def test_hashes_are_computed_once_and_indexed_by_subsets(monkeypatch):
    whole = make()
    lone = whole.subset([4, 1]).hashes
    hashes = whole.hashes
    monkeypatch.setattr("tdsm.data.imageset.image_hashes", None)
    assert whole.hashes is hashes
    assert torch.equal(whole.subset([4, 1]).hashes, lone)
    assert whole.subset([4, 1]).subset([0]).fingerprint() == whole.subset([4]).fingerprint()


def test_pixels_are_reached_by_position():
    whole = make()
    assert (whole.channels, whole.size) == (1, (3, 4))
    assert torch.equal(whole.bytes([3, 0]), whole.images[[3, 0]])


def test_fingerprint_ignores_memory_layout():
    whole = make(images=torch.arange(5 * 12, dtype=torch.uint8).view(5, 1, 3, 4))
    strided = make(images=whole.images.transpose(2, 3).contiguous().transpose(2, 3))
    assert not strided.images.is_contiguous()
    assert strided.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(5, 1, 3, 4)}, "float32"),
        ({"images": torch.zeros(5, 3, 4, dtype=torch.uint8)}, "shape"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels"),
        ({"ids": torch.zeros(5, dtype=torch.int32)}, "ids"),
        ({"labels": torch.full((5,), 2)}, "classes"),
        ({"labels": torch.full((5,), -1)}, "classes"),
        ({"ids": torch.zeros(5, dtype=torch.int64)}, "repeat"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        make(**changes)


@pytest.mark.parametrize("indices", [[5], [-6], [0.5], [True, False, True, True, True], [[0, 1]]])
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_indices_are_refused(indices):
    with pytest.raises(UsageError, match="indices"):
        make().subset(indices)


def test_tests_check_shapes_in_signatures():
    with pytest.raises(jaxtyping.TypeCheckError):
        make(labels=torch.zeros(4, dtype=torch.int64))


def test_sets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().labels = torch.zeros(5)
