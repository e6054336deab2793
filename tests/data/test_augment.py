import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import pad

from tdsm.base.errors import UsageError
from tdsm.data import AugmentConfig
from tdsm.data import augment as module
from tdsm.data.augment import augment, move_maps

IMAGES = torch.randint(0, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(64) * 5 + 3
MOVED = AugmentConfig(crop=3, flip=True)
FULL = {"config": MOVED, "seed": 1, "epoch": 2}


def test_default_changes_nothing():
    assert not any(AugmentConfig().model_dump().values())
    assert torch.equal(augment(IMAGES, IDS, AugmentConfig(), seed=0, epoch=0), IMAGES)


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(crop=2), AugmentConfig(flip=True), MOVED])
def test_maps_are_moved_like_images(config):
    options = FULL | {"config": config}
    moved = move_maps(IMAGES.movedim(1, -1), IDS, **options)
    assert torch.equal(moved, augment(IMAGES, IDS, **options).movedim(1, -1))


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
    once = AugmentConfig(crop=1, flip=True)
    result = augment(image.expand(18_000, -1, -1, -1), torch.arange(18_000), once, seed=0, epoch=0)
    hits = torch.stack([(result.double() == window).flatten(1).all(1) for window in windows(image[0], 1)]).sum(1)
    assert hits.sum() == 18_000
    assert hits.min() > 850
    assert hits.max() < 1150


EVERYTHING = AugmentConfig(crop=3, flip=True, rotate=30, zoom=0.3, brightness=0.3, contrast=0.3, saturation=0.3)
FLOATS = IMAGES.float() / 127.5 - 1


@settings(max_examples=30)
@given(shuffle=st.integers(0, 2**32), cut=st.integers(1, 63), everything=st.booleans())
def test_order_and_batching_change_nothing(shuffle, cut, everything):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(shuffle))
    options, images = (FULL | {"config": EVERYTHING}, FLOATS) if everything else (FULL, IMAGES)
    whole = augment(images, IDS, **options)
    parts = [augment(images[rows], IDS[rows], **options) for rows in (order[:cut], order[cut:])]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-6)


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


def test_impossible_crops_are_refused():
    with pytest.raises(UsageError, match="crop is 7, expected 0 to 6 for 9×7"):
        augment(IMAGES, IDS, AugmentConfig(crop=7), seed=0, epoch=0)
    with pytest.raises(ValidationError):
        AugmentConfig(crop=-1)


# ---------------------------------------------------------------- rotation and zoom


def drawn(monkeypatch, **values):
    """Let every image draw these numbers in [-1, 1] instead of its own."""
    row = torch.tensor([float(values.get(name, 0)) for name in module.SHAPES], dtype=torch.float64)
    monkeypatch.setattr(module, "_uniform", lambda ids, seed, epoch: row.expand(len(ids), -1))


@pytest.mark.parametrize(("quarter", "size"), [(1, (8, 8)), (2, (8, 8)), (2, (9, 6)), (-1, (5, 5))])
def test_a_quarter_turn_is_a_quarter_turn(monkeypatch, quarter, size):
    drawn(monkeypatch, rotate=quarter / 2)
    images = torch.rand(3, 2, *size) * 2 - 1
    result = augment(images, IDS[:3], AugmentConfig(rotate=180), seed=0, epoch=0)
    torch.testing.assert_close(result, images.rot90(quarter, dims=(2, 3)), rtol=0, atol=1e-5)


def test_a_rotation_keeps_distances_in_pixels_on_images_that_are_not_square(monkeypatch):
    """A picture of (row, column), from the centre: after the turn each pixel shows where it came from."""
    drawn(monkeypatch, rotate=1)
    height, width = 9, 15
    rows, columns = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(15.0) - 7, indexing="ij")
    places = torch.stack([rows, columns])[None] / 20
    result = 20 * augment(places, IDS[:1], AugmentConfig(rotate=20), seed=0, epoch=0)[0]
    angle = math.radians(20)
    from_rows = math.cos(angle) * rows + math.sin(angle) * columns
    from_columns = math.cos(angle) * columns - math.sin(angle) * rows
    inside = (from_rows.abs() < 4) & (from_columns.abs() < 7)
    assert inside.sum() > 60
    torch.testing.assert_close(result[0][inside], from_rows[inside], rtol=0, atol=1e-5)
    torch.testing.assert_close(result[1][inside], from_columns[inside], rtol=0, atol=1e-5)
    assert (height, width) == result.shape[1:]


@pytest.mark.parametrize(("draw", "factor"), [(1, 1.5), (-1, 1 / 1.5), (0, 1)])
def test_zoom_magnifies_about_the_centre(monkeypatch, draw, factor):
    drawn(monkeypatch, zoom=draw)
    ramp = torch.linspace(-0.5, 0.5, 11).expand(1, 1, 11, 11)
    result = augment(ramp, IDS[:1], AugmentConfig(zoom=0.5), seed=0, epoch=0)
    middle = slice(3, 8)
    torch.testing.assert_close(result[..., middle], ramp[..., middle] / factor, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- colour


def test_colours_change_as_the_equations_say(monkeypatch):
    drawn(monkeypatch, brightness=1, contrast=-1, saturation=0.5)
    images = torch.rand(2, 3, 4, 5) * 1.2 - 0.6
    change = AugmentConfig(brightness=0.2, contrast=0.4, saturation=0.6)
    result = augment(images, IDS[:2], change, seed=0, epoch=0).numpy()
    for image, seen in zip(images.double().numpy(), result, strict=True):
        y = (image + 1) / 2 * 1.2
        mean = (0.299 * y[0] + 0.587 * y[1] + 0.114 * y[2]).mean()
        y = mean + 0.6 * (y - mean)
        grey = 0.299 * y[0] + 0.587 * y[1] + 0.114 * y[2]
        y = np.clip(grey + 1.3 * (y - grey), 0, 1)
        np.testing.assert_allclose(seen, 2 * y - 1, atol=1e-5)


def test_grey_images_have_no_saturation(monkeypatch):
    images = FLOATS[:, :1]
    result = augment(images, IDS, AugmentConfig(saturation=0.9), seed=0, epoch=0)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-6)


def test_colours_stay_in_range_and_differ_between_images():
    change = AugmentConfig(brightness=0.9, contrast=0.9, saturation=0.9)
    result = augment(FLOATS[:1].expand(64, -1, -1, -1), IDS, change, seed=0, epoch=0)
    assert result.min() >= -1
    assert result.max() <= 1
    assert len(result.unique(dim=0)) == 64


def test_bytes_cannot_be_turned():
    with pytest.raises(UsageError, match=r"images are torch.uint8, expected floating point in \[-1, 1\]"):
        augment(IMAGES, IDS, AugmentConfig(rotate=3), seed=0, epoch=0)


def test_draws_are_uniform_and_independent():
    draws = module._uniform(torch.arange(20_000), 0, 0)
    assert -1 <= draws.min() < -0.99
    assert 0.99 < draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.zeros(5).double(), rtol=0, atol=0.02)
    correlation = torch.corrcoef(draws.T) - torch.eye(5).double()
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("stream", [module.MOVES, module.SHAPES])
def test_no_two_samples_share_a_draw(stream):
    """Neighbouring ids least of all: every word belongs to one sample, one purpose and one epoch."""
    ids = torch.arange(5_000)
    words = [module._bits(ids, 0, epoch, name, len(stream)) for name in ("augment", "other") for epoch in (0, 1)]
    assert len(np.unique(np.concatenate(words))) == 4 * 5_000 * len(stream)


def test_neighbouring_samples_move_independently():
    image = torch.arange(49.0).view(1, 1, 7, 7)
    moved = augment(image.expand(5_000, -1, -1, -1), torch.arange(5_000), AugmentConfig(crop=3), seed=0, epoch=0)
    down, right = (moved[:, 0, 3, 3] - 24).div(7).round(), (moved[:, 0, 3, 3] - 24 + 3) % 7 - 3
    pairs = torch.stack([down[:-1], right[:-1], down[1:], right[1:]])
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.06
