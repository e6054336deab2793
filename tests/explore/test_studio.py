import io

import numpy as np
import pytest
import torch
from PIL import Image

import tdsm
from tdsm.base.errors import CheckpointError, DataError, UsageError
from tdsm.explore import studio as module
from tdsm.explore.studio import KEPT_DROPS, KEPT_TOKENS, Shelf, Studio, open_studio
from tests.conftest import small_field


def random_studio(channels=3, size=(6, 8), count=300, **changes):
    field = small_field(torch.float32, channels=channels, **changes)
    images = torch.rand(count, channels, *size) * 2 - 1
    shelf = Shelf("images", lambda rows: images[list(rows)], torch.arange(count) % 3, "", ())
    return Studio("t", field, (shelf,), size, channels, "", ("a", "b", "c"))


@pytest.fixture
def studio():
    return random_studio()


def picture(side=20, mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def test_sizes_go_from_the_images_own_to_256_and_keep_their_shape(studio):
    assert (studio.sizes[0], studio.sizes[-1]) == (6, 192)
    assert studio.points(12) == (12, 16)
    with pytest.raises(UsageError, match="13 points are not offered"):
        studio.points(13)


def test_components_of_many_tokens_are_offered_as_large_as_they_can_be_held(monkeypatch, studio):
    monkeypatch.setattr(module, "MOST_VALUES", 5 * 3 * 24 * 32)
    assert studio.sizes[-1] == 24
    large = random_studio(size=(96, 128), count=1)
    assert large.sizes == [24]
    assert large.points(24) == (24, 32)


def test_every_method_of_the_field_is_shown_but_the_sampled_one():
    assert random_studio().methods == ("solo", "additive", "leave_one_out", "attention")
    assert random_studio(has_masks=True).methods == ("solo", "mixture")


def test_a_view_is_the_decomposition(studio):
    view = studio.view(0, 7, 1, 12)
    tokens = studio.field.encode(studio.image(0, 7))
    with torch.no_grad():
        expected = tdsm.decompose(studio.field, tokens, (12, 16), method="additive")
    assert torch.equal(view.components, expected.components)


@pytest.mark.parametrize("changes", [{}, {"has_masks": True}], ids=["attention", "masks"])
def test_composing_takes_every_slot_from_the_image_it_names(changes):
    studio = random_studio(**changes)
    first, second = studio.tokens(0, 1), studio.tokens(0, 2)
    mixed = torch.stack([first[0, 0], second[0, 2], first[0, 4]])[None]
    with torch.no_grad():
        expected = studio.field.decode(mixed, size=(12, 16))[0]
    torch.testing.assert_close(studio.compose([(0, 1), (0, 2)], [0, -1, 1, -1, 0], 12), expected)


def test_without_any_token_it_is_the_base(studio):
    assert torch.equal(studio.compose([(0, 1)], [-1] * 5, 12), studio.view(0, 1, 1, 12).base[0])


@pytest.mark.parametrize("slots", [[0, 0], [0, 0, 0, 0, 2], [-2, 0, 0, 0, 0]])
def test_slots_that_do_not_fit_are_named(studio, slots):
    with pytest.raises(UsageError, match=r"slots: . numbers, expected 5, one a token, from −1 to 0"):
        studio.compose([(0, 1)], slots, 12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.image(0, 300), "image 300 is not there: images has 0 to 299"),
        (lambda s: s.image(2, 0), "shelf 2 is not there, expected 0 to 0"),
        (lambda s: s.image(1, 5), "picture 5 is no longer held"),
        (lambda s: s.view(0, 0, 4, 6), "method 4 is not there, expected 0 to 3"),
        (lambda s: s.scores(0, [(0, 0)], [0] * 5), "head 0 is not there: 0 are fitted"),
        (lambda s: s.listing(1), "shelf 1"),
    ],
)
def test_what_is_not_there_is_named(studio, call, words):
    with pytest.raises(UsageError, match=words):
        call(studio)


def test_what_is_held_does_not_grow(studio):
    for row in range(KEPT_TOKENS + 20):
        studio.tokens(0, row)
    numbers = [studio.drop(picture()) for _ in range(KEPT_DROPS + 3)]
    assert (len(studio._tokens.held), len(studio._drops.held)) == (KEPT_TOKENS, KEPT_DROPS)
    assert studio.image(1, numbers[-1]).shape == (1, 3, 6, 6)
    with pytest.raises(UsageError, match="the last 32 dropped are"):
        studio.image(1, numbers[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_dropped_picture_is_decoded_as_data_are(channels):
    studio = random_studio(channels=channels)
    content = picture()
    expected = tdsm.data.decode_image(content, "grey" if channels == 1 else "rgb", 6)
    dropped = studio.image(1, studio.drop(content))[0]
    assert torch.equal(((dropped + 1) * 127.5).round().byte(), expected)


def test_pictures_that_cannot_be_used_are_named(studio):
    with pytest.raises(DataError, match="not an image"):
        studio.drop(b"<html>")
    with pytest.raises(UsageError, match="this field reads 2 channels; pictures have 1 or 3"):
        random_studio(channels=2).drop(picture())


def test_reconstruction_errors_are_those_of_a_draw_of_every_class(studio):
    found = studio.faithfulness(0)
    assert len(found["rows"]) == module.RANKED
    row = found["rows"][5]
    decoded = studio.compose([(0, row)], [0] * 5, 6)
    error = (decoded.clamp(-1, 1) - studio.image(0, row)[0].movedim(0, -1)).square().mean()
    assert found["psnr"][5] == pytest.approx(10 * torch.log10(4 / error).item(), abs=1e-3)


def test_thumbnails_are_the_images_made_small(studio):
    small = studio.thumbnails(0, [3, 9])
    assert torch.equal(small[1], ((studio.image(0, 9)[0] + 1) * 127.5).round().byte().movedim(0, -1))
    assert random_studio(size=(80, 160), count=3).thumbnails(0, [0]).shape == (1, 32, 64, 3)


def test_a_field_alone_works_with_given_pictures(tmp_path):
    small_field(torch.float32).save_pretrained(tmp_path / "field")
    (tmp_path / "a b.png").write_bytes(picture())
    studio = open_studio(tmp_path / "field", print, [tmp_path / "a b.png"])
    assert studio.size == (32, 32)
    assert studio.listing(0)["names"] == ["a b.png"]
    assert studio.view(0, 0, 0, 32).components.shape == (1, 5, 32, 32, 3)
    assert open_studio(tmp_path / "field", print).about()["shelves"] == []


def test_a_run_shows_its_splits_its_heads_and_what_they_said(run):
    studio = open_studio(run.path, print)
    about = studio.about()
    assert [shelf["name"] for shelf in about["shelves"]] == ["test", "validation", "train"]
    assert (about["first_size"], about["sizes"][0], about["sizes"][-1]) == (32, 8, 256)
    assert studio.listing(0)["predicted"].keys() == {"tdsm-avg", "pixels-linear", "tokens-avg"}
    assert studio.listing(1)["predicted"] == {}


def test_what_cannot_be_shown_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no field found"):
        open_studio(tmp_path, print)
    small_field(torch.float32, num_axes=3).save_pretrained(tmp_path / "volume")
    with pytest.raises(UsageError, match="a field of 3 axes, expected pictures, which have 2"):
        open_studio(tmp_path / "volume", print)
    with pytest.raises(UsageError, match=r"is no run and has no data, so --data\.source is of no use"):
        open_studio(tmp_path / "volume", print, source="digits")
