import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tdsm.base.errors import DataError
from tdsm.data import decode_image
from tdsm.data.decode import MAX_PIXELS, decode, decode_many

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = RGB[..., 0]
WIDE = np.random.default_rng(1).integers(0, 65536, (6, 5), dtype=np.uint16)
ALPHA = np.random.default_rng(2).integers(0, 256, (6, 5), dtype=np.uint8)


def file(image, kind="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    handle = io.BytesIO()
    image.save(handle, kind, **options)
    return handle.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width, height):
    """A well-formed PNG that claims a size and holds hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def over_white(colour, alpha):
    weight = alpha.astype(float)[..., None] / 255
    return colour * weight + 255 * (1 - weight)


def palette(transparent=None):
    image = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5) % 4, "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0, 255, 255, 255])
    return file(image, **({} if transparent is None else {"transparency": transparent}))


COLOURS = np.array([[10, 20, 30], [200, 100, 50], [0, 0, 0], [255, 255, 255]])[np.arange(30).reshape(6, 5) % 4]
SEE_THROUGH = np.where((np.arange(30).reshape(6, 5) % 4 == 1)[..., None], 255, COLOURS)
OPAQUE = np.full((6, 5), 255, np.uint8)
BITS = GREY > 127

# name: (file, expected pixels (height, width[, 3]), facts, tolerance in levels)
GOOD = {
    "png grey": (file(GREY), GREY, set(), 0),
    "png rgb": (file(RGB), RGB, set(), 0),
    "png 1 bit": (file(Image.fromarray(BITS)), BITS * 255, set(), 0),
    "png 16 bit grey": (file(WIDE), np.rint(WIDE / 257), set(), 0),
    "png 16 bit black and white": (file(np.array([[0, 65535]], np.uint16)), np.array([[0, 255]]), set(), 0),
    "tiff 16 bit grey": (file(WIDE, "TIFF"), np.rint(WIDE / 257), set(), 0),
    "pgm 16 bit": (b"P5 5 6 65535\n" + WIDE.astype(">u2").tobytes(), np.rint(WIDE / 257), set(), 0),
    "png palette": (palette(), COLOURS, set(), 0),
    "png palette, one colour transparent": (palette(transparent=1), SEE_THROUGH, {"alpha"}, 0),
    "png opaque rgba": (file(np.dstack([RGB, OPAQUE])), RGB, set(), 0),
    "png rgba": (file(np.dstack([RGB, ALPHA])), over_white(RGB, ALPHA), {"alpha"}, 1),
    "png grey and alpha": (
        file(np.dstack([GREY, ALPHA])),
        over_white(GREY[..., None], ALPHA)[..., 0],
        {"alpha"},
        1,
    ),
    "png opaque grey and alpha": (file(np.dstack([GREY, OPAQUE])), GREY, set(), 0),
    "png grey, one level transparent": (
        file(GREY, transparency=int(GREY[2, 2])),
        np.where(GREY[2, 2] == GREY, 255, GREY),
        {"alpha"},
        0,
    ),
    "png exif upside down": (file(RGB, exif=exif(3)), RGB[::-1, ::-1], set(), 0),
    "png exif quarter turn": (file(RGB, exif=exif(6)), np.rot90(RGB, -1), set(), 0),
    "png exif mirrored": (file(RGB, exif=exif(2)), RGB[:, ::-1], set(), 0),
    "tiff quarter turn": (file(RGB, "TIFF", exif=exif(6)), np.rot90(RGB, -1), set(), 0),
    "png 16 bit grey, exif quarter turn": (file(WIDE, exif=exif(6)), np.rint(np.rot90(WIDE, -1) / 257), set(), 0),
    "bmp": (file(RGB, "BMP"), RGB, set(), 0),
    "gif grey": (file(GREY, "GIF"), GREY, set(), 0),
    "webp lossless": (file(RGB, "WEBP", lossless=True), RGB, set(), 0),
    "ppm": (file(RGB, "PPM"), RGB, set(), 0),
    "tiff lzw": (file(RGB, "TIFF", compression="tiff_lzw"), RGB, set(), 0),
    "tiff cmyk": (file(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, {"cmyk"}, 0),
    "jpeg grey": (file(np.full((16, 16), 90, np.uint8), "JPEG"), np.full((16, 16), 90), {"jpeg"}, 1),
    "jpeg exif quarter turn": (
        file(np.repeat([[20, 200]], 16, 0).repeat(8, 1).astype(np.uint8), "JPEG", exif=exif(6), quality=95),
        np.repeat([[20], [200]], 16, 1).repeat(8, 0),
        {"jpeg"},
        3,
    ),
    "one pixel": (file(np.array([[7]], np.uint8)), np.array([[7]]), set(), 0),
    "wrong ending is no matter": (file(GREY, "BMP"), GREY, set(), 0),
}

TWO_FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]}
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, I am no picture", "not an image"),
    "none": (None, "no image bytes"),
    "vector graphics that would start a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image",
    ),
    "png truncated": (file(RGB)[:60], "truncated"),
    "png without its header": (file(RGB)[:8], "not an image|truncated"),
    "jpeg truncated": (file(RGB, "JPEG")[:-20], "truncated"),
    "jpeg without end": (file(RGB, "JPEG")[:-2], "truncated"),
    "gif truncated": (file(GREY, "GIF")[:-20], "truncated"),
    "bmp truncated": (file(RGB, "BMP")[:-5], "truncated"),
    "webp truncated": (file(RGB, "WEBP")[:-5], "not an image|truncated"),
    "tiff truncated": (file(RGB, "TIFF")[:-40], "not an image|truncated"),
    "png flipped bit": (file(RGB)[:50] + bytes([file(RGB)[50] ^ 4]) + file(RGB)[51:], "damaged"),
    "bomb, beyond our limit": (png_of_size(8193, 8192), f"8193×8192 pixels, more than {MAX_PIXELS}"),
    "bomb, beyond Pillow's limit": (png_of_size(60_000, 60_000), f"more than {MAX_PIXELS}"),
    "png claims more than it holds": (png_of_size(50, 50), "truncated"),
    "gif of two frames": (file(GREY, "GIF", **TWO_FRAMES), "2 frames"),
    "png of two frames": (file(GREY, **TWO_FRAMES), "2 frames"),
    "tiff of two pages": (file(GREY, "TIFF", **TWO_FRAMES), "2 frames"),
    "tiff float": (file(GREY.astype(np.float32), "TIFF"), "32-bit"),
    "tiff 32 bit": (file(WIDE.astype(np.int32), "TIFF"), "32-bit"),
    "tiff 32 bit, turned": (file(WIDE.astype(np.int32), "TIFF", exif=exif(6)), "32-bit"),
    "png 16 bit, one level transparent": (file(WIDE, transparency=7), "transparent level"),
}


@pytest.mark.parametrize("name", GOOD)
def test_right_pixels(name):
    data, expected, facts, tolerance = GOOD[name]
    expected = torch.from_numpy(np.array(expected, dtype=float))
    expected = expected[None] if expected.ndim == 2 else expected.permute(2, 0, 1)
    image = decode_image(data)
    assert image.dtype == torch.uint8
    assert image.shape == expected.shape
    assert (image.double() - expected).abs().max() <= tolerance
    assert decode(data, "auto", None).facts == facts


@pytest.mark.parametrize("name", BAD)
def test_reason_is_named(name):
    data, reason = BAD[name]
    with pytest.raises(DataError, match=f"^cat.png: .*({reason})"):
        decode_image(data, name="cat.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        decode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_every_truncation_is_noticed_or_harmless(kind):
    data = file(RGB, kind)
    whole = decode_image(data)
    refused = 0
    for length in range(len(data)):
        try:
            assert torch.equal(decode_image(data[:length]), whole)
        except DataError:
            refused += 1
    assert refused > 0.5 * len(data)


def test_truncation_is_refused_where_pillow_was_told_to_fill_up(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="truncated"):
        decode_image(file(RGB, "JPEG")[:-20])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@settings(max_examples=200)
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
def test_damage_raises_nothing_but_data_errors(place, byte, kind):
    data = bytearray(file(RGB, kind))
    data[int(place * len(data))] = byte
    try:
        image = decode_image(bytes(data))
    except DataError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] in (1, 3)


def test_channels():
    luma = np.rint(RGB @ np.array([0.299, 0.587, 0.114]))
    grey = decode_image(RGB, "grey")
    assert grey.shape == (1, 6, 5)
    assert (grey[0].double() - torch.from_numpy(luma)).abs().max() <= 1
    assert torch.equal(decode_image(GREY, "rgb"), torch.from_numpy(GREY).expand(3, 6, 5))


def test_resizing_scales_the_shorter_side_and_keeps_the_centre():
    image = np.zeros((20, 60), np.uint8)
    image[:, 20:40] = 200
    small = decode_image(image, size=10)
    assert small.shape == (1, 10, 10)
    assert small[0, :, 2:8].eq(200).all()
    assert torch.equal(decode_image(image[:20, :20], size=20), decode_image(image[:20, :20]))


def test_all_bad_images_are_listed_at_once():
    named = [(f"{i}.png", b"no picture") for i in range(25)] + [("good.png", file(GREY)), ("bad\nname.png", b"")]
    with pytest.raises(DataError, match="26 images cannot be used") as caught:
        decode_many(named, "auto", None)
    assert "19.png" in str(caught.value)
    assert "20.png" not in str(caught.value)
    assert str(caught.value).endswith("and 6 more")
    assert "good.png" not in str(caught.value)


def test_names_that_cannot_be_printed_are_escaped():
    with pytest.raises(DataError, match=r"'bad\\nname\\x1b\.png': is empty"):
        decode_many([("bad\nname\x1b.png", b"")], "auto", None)


def test_mixed_sizes_are_refused_unless_resized():
    named = [("a", GREY), ("b", GREY[:4]), ("c", GREY)]
    with pytest.raises(DataError, match=r"6×5 \(2, such as a\), 4×5 \(1, such as b\).*image_size"):
        decode_many(named, "auto", None)
    pixels, facts = decode_many(named, "auto", 4)
    assert pixels.shape == (3, 1, 4, 4)
    assert facts["resized"] == 3


def test_grey_among_colour_is_repeated_and_counted():
    pixels, facts = decode_many([("a", GREY), ("b", RGB)], "auto", None)
    assert pixels.shape == (2, 3, 6, 5)
    assert (pixels[0] == GREY).all()
    assert facts["repeated"] == 1
