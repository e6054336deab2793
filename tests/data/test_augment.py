import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from tdsm.data import AugmentConfig
from tdsm.data.augment import augment
from tdsm.errors import UsageError

IMAGES = torch.randint(0, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(64) * 5 + 3
FULL = {"seed": 1, "epoch": 2, "crop": 3, "flip": True}


def test_default_changes_nothing():
    assert AugmentConfig().model_dump() == {"crop": 0, "flip": False}
    assert torch.equal(augment(IMAGES, IDS, seed=0, epoch=0, crop=0, flip=False), IMAGES)


def windows(image, crop):
    """All reflected windows and their mirrors, by explicit padding: what an augmented image may be."""
    height, width = image.shape[1:]
    padded = pad(image[None].double(), (crop,) * 4, mode="reflect")[0]
    cut = [padded[:, i : i + height, j : j + width] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    return torch.stack([*cut, *(window.flip(2) for window in cut)])


def test_each_result_is_a_window_of_the_reflected_image():
    for image, result in zip(IMAGES, augment(IMAGES, IDS, **FULL), strict=True):
        assert (windows(image, 3) == result.double()).flatten(1).all(1).any()


def test_all_windows_are_drawn_about_equally_often():
    image = torch.arange(25, dtype=torch.float32).view(1, 1, 5, 5)
    result = augment(image.expand(18_000, -1, -1, -1), torch.arange(18_000), seed=0, epoch=0, crop=1, flip=True)
    hits = torch.stack([(result.double() == window).flatten(1).all(1) for window in windows(image[0], 1)]).sum(1)
    assert hits.sum() == 18_000
    assert hits.min() > 850
    assert hits.max() < 1150


@settings(max_examples=30)
@given(shuffle=st.integers(0, 2**32), cut=st.integers(1, 63))
def test_order_and_batching_change_nothing(shuffle, cut):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(shuffle))
    whole = augment(IMAGES, IDS, **FULL)
    parts = [augment(IMAGES[rows], IDS[rows], **FULL) for rows in (order[:cut], order[cut:])]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}])
def test_seed_and_epoch_draw_anew(change):
    assert not torch.equal(augment(IMAGES, IDS, **FULL), augment(IMAGES, IDS, **{**FULL, **change}))


def test_ids_decide_and_positions_do_not():
    same = IMAGES[:1].expand(64, -1, -1, -1)
    assert len(augment(same, IDS, **FULL).unique(dim=0)) > 20
    assert len(augment(same, IDS[:1].expand(64), **FULL).unique(dim=0)) == 1


def test_floats_move_like_bytes():
    assert torch.equal(augment(IMAGES.float(), IDS, **FULL), augment(IMAGES, IDS, **FULL).float())


def test_an_empty_batch_stays_empty():
    assert augment(IMAGES[:0], IDS[:0], **FULL).shape == (0, 3, 9, 7)


@pytest.mark.parametrize("crop", [-1, 7])
def test_impossible_crops_are_refused(crop):
    with pytest.raises(UsageError, match="crop"):
        augment(IMAGES, IDS, seed=0, epoch=0, crop=crop, flip=False)
