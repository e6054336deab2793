"""Tiles are the pixels they were given, on the scale they state, and SVGs take the colours of their page."""

import io

import numpy as np
from PIL import Image

from tdsm.figures import charts, tiles
from tdsm.figures.svg import svg
from tdsm.figures.tiles import Scale, in_colour, mosaic, on_scale, png_of, signed, sprite, stack


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_tile_arrives_as_it_is():
    tile = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(opened(png_of(tile)), tile)
    few = np.repeat(tile[:1, :1], 9, axis=0)
    np.testing.assert_array_equal(opened(png_of(few)), few)


def test_an_image_of_two_channels_shows_its_first():
    image = np.stack([np.full((2, 2), 0.2), np.ones((2, 2))], axis=-1)
    assert in_colour(image).tolist() == np.full((2, 2, 3), 51).tolist()


def test_a_scale_saturates_beyond_its_ends_and_its_bar_runs_between_them():
    scale = Scale("error", "gray", 0.0, 2.0)
    assert on_scale(np.array([[-1.0, 0.0, 2.0, 5.0]]), scale)[0, :, 0].tolist() == [0, 0, 255, 255]
    bar = opened(scale.bar)[0, :, 0].astype(int)
    assert (bar[0], bar[-1]) == (0, 255)
    assert (np.diff(bar) > 0).all()


def test_nothing_at_all_has_a_scale():
    scale = signed("map", np.zeros((3, 3)))
    assert -scale.low == scale.high > 0


def test_mosaic_and_stack_hold_every_tile():
    parts = [np.full((4, 4, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    whole = mosaic(parts, columns=2, side=4)
    assert whole.shape == (11, 11, 4)
    assert [whole[0, 0, 0], whole[0, 10, 0], whole[10, 0, 0], whole[10, 10, 3]] == [10, 20, 30, 0]
    deck = stack(parts, side=4, step=2)
    assert [deck[0, 0, 0], deck[5, 5, 0], deck[7, 7, 0], deck[7, 0, 3]] == [10, 20, 30, 0]


def test_a_sprite_holds_thumbnails_row_by_row():
    parts = [np.full((4, 6, 3), value, dtype=np.uint8) for value in (0, 120, 250)]
    whole = opened(sprite(parts, columns=2, side=8)).astype(int)
    assert whole.shape == (16, 16, 3)
    for number, value in enumerate((0, 120, 250, 0)):
        middle = whole[8 * (number // 2) + 4, 8 * (number % 2) + 4]
        assert np.abs(middle - value).max() < 12


def test_large_tiles_are_made_smaller():
    assert on_scale(np.zeros((200, 50)), Scale("x", "gray", 0.0, 1.0)).shape == (tiles.SHARPEST, 24, 3)


def test_an_svg_keeps_its_letters_and_no_style_of_its_own():
    figure = charts.confusion(np.eye(2), ["大型犬", "<b> & $x$"])
    one, other = svg(figure, "one"), svg(figure, "other")
    assert "大型犬" in one
    assert "&lt;b&gt; &amp; $x$" in one
    assert "style" not in one
    assert "var(--ink)" in one
    assert one != other  # identities are each figure's own
    assert one == svg(figure, "one")


def test_names_of_wide_letters_are_cut_to_what_they_take():
    names = charts._short("ゴールデン・レトリバーの子犬"), charts._short("a" * 40)
    assert names == ("ゴールデン・レトリバー…", "a" * 23 + "…")
