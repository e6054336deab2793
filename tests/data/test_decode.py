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
from tdsm.data.decode import MAX_PIXELS, decode, decode_batch, settle

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


def png(rows, bits, colour, before=(), transparent=None):
    """Write a PNG of packed rows (bytes), so that depths Pillow does not write can be read."""
    width = len(rows[0]) * 8 // bits // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)), *before]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(rows, width, bits, white_is_zero):
    """Write a grey TIFF of packed rows (bytes), little-endian."""
    data = b"".join(rows)
    tags = [(256, width), (257, len(rows)), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, len(rows)), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + data


def twelve(levels):
    """Pack levels of 12 bits, two in three bytes."""
    return int("".join(f"{level:03x}" for level in levels), 16).to_bytes(len(levels) * 3 // 2, "big")


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

# Four levels of 2 bits, the third transparent; sixteen of 4 bits, the second; four palette entries of any opacity.
TWO_BITS = png([bytes([0b00011011])], 2, 0, transparent=b"\0\2")
FOUR_BITS = png([bytes([0x01, 0xEF])], 4, 0, transparent=b"\0\1")
PALETTE = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50, 0, 0, 0, 255, 255, 255]))
ALPHAS = np.array([255, 128, 0, 255], np.uint8)
SHADES = over_white(np.array([[[10, 20, 30], [200, 100, 50], [0, 0, 0], [255, 255, 255]]]), ALPHAS[None])
GREYS = chunk(b"PLTE", bytes([10, 10, 10, 200, 200, 200, 0, 0, 0, 255, 255, 255]))
COLOUR_16 = WIDE.reshape(2, 15).astype(">u2")
PROFILE = chunk(b"iCCP", b"camera\0\0" + zlib.compress(bytes(3 * 2**20)))
LONG_TEXT = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 3 * 2**20))
PLAIN_TEXT = chunk(b"tEXt", b"comment\0" + b"x" * 3 * 2**20)
GREY_ROWS = [row.tobytes() for row in GREY]

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
    "png 16 bit, one level transparent": (
        file(WIDE, transparency=int(WIDE[2, 2])),
        np.where(WIDE[2, 2] == WIDE, 255, np.rint(WIDE / 257)),
        {"alpha"},
        0,
    ),
    "png 2 bits, one level transparent": (TWO_BITS, np.array([[0, 85, 255, 255]]), {"alpha"}, 0),
    "png 4 bits, one level transparent": (FOUR_BITS, np.array([[0, 255, 238, 255]]), {"alpha"}, 0),
    "png 1 bit, black transparent": (
        png([b"\x55"], 1, 0, transparent=b"\0\0"),
        np.full((1, 8), 255),
        {"alpha"},
        0,
    ),
    **{
        f"png palette of {bits} bits, partly transparent": (
            png([data], bits, 3, [PALETTE], ALPHAS.tobytes()),
            SHADES,
            {"alpha"},
            1,
        )
        for bits, data in ((2, b"\x1b"), (4, b"\x01\x23"), (8, b"\0\1\2\3"))
    },
    "png grey palette, partly transparent": (
        png([b"\0\1\2\3"], 8, 3, [GREYS], ALPHAS.tobytes()),
        over_white(np.array([[[10], [200], [0], [255]]]), ALPHAS[None])[..., 0],
        {"alpha"},
        1,
    ),
    "gif, one colour transparent": (
        file(Image.open(io.BytesIO(palette())), "GIF", transparency=1),
        SEE_THROUGH,
        {"alpha"},
        0,
    ),
    "png 16 bit colour": (
        png([row.tobytes() for row in COLOUR_16], 16, 2),
        COLOUR_16.reshape(2, 5, 3) >> 8,
        {"cut"},
        0,
    ),
    "tiff 16 bit, white is zero": (
        tiff([row.astype("<u2").tobytes() for row in WIDE], 5, 16, True),
        np.rint((65535.0 - WIDE) / 257),
        set(),
        0,
    ),
    "tiff 8 bit, white is zero": (tiff(GREY_ROWS, 5, 8, True), 255 - GREY, set(), 0),
    "tiff 8 bit, black is zero": (tiff(GREY_ROWS, 5, 8, False), GREY, set(), 0),
    "tiff 12 bit": (
        tiff([twelve(row) for row in (WIDE[:, :4] >> 4).tolist()], 4, 12, False),
        np.rint((WIDE[:, :4] >> 4) * (255 / 4095)),
        set(),
        0,
    ),
    "png with a colour profile of 3 MiB": (png(GREY_ROWS, 8, 0, [PROFILE]), GREY, set(), 0),
    "png with a packed text of 3 MiB": (png(GREY_ROWS, 8, 0, [LONG_TEXT]), GREY, set(), 0),
    "png with a text of 3 MiB": (png(GREY_ROWS, 8, 0, [PLAIN_TEXT]), GREY, set(), 0),
    "png 16 bit grey that uses 12": (
        file(np.array([[0, 1000, 4095]], np.uint16)),
        np.array([[0, 4, 16]]),
        {"dim"},
        0,
    ),
    "jpeg of another colour space": (
        file(np.full((16, 16, 3), 90, np.uint8), "JPEG", icc_profile=b"Display P3"),
        np.full((16, 16, 3), 90),
        {"jpeg", "profile"},
        1,
    ),
    "png of the usual colour space": (file(RGB, icc_profile=b"sRGB IEC61966"), RGB, set(), 0),
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
    "tiff of signed numbers": (
        tiff(GREY_ROWS, 5, 8, False).replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 339, 4, 1, 2)),
        "signed numbers or floats",
    ),
    "tiff of 10 bits": (tiff(GREY_ROWS, 4, 10, False), "is a TIFF that is truncated, or of a kind"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
    "tiff 32 bit": (file(WIDE.astype(np.int32), "TIFF"), "32-bit"),
    "tiff 32 bit, turned": (file(WIDE.astype(np.int32), "TIFF", exif=exif(6)), "32-bit"),
    "png 16 bit colour, one transparent": (
        png([row.tobytes() for row in COLOUR_16], 16, 2, transparent=COLOUR_16.tobytes()[:6]),
        "16-bit colours one of which is transparent",
    ),
    "png with a text that unpacks to 128 MiB": (
        png(GREY_ROWS, 8, 0, [chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**27)))]),
        "damaged or truncated .*(?i:too large)",
    ),
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


def decode_many(named, channels, size, *, skip_bad=False):
    batch = decode_batch(named, channels, size)
    return batch._replace(said=settle([batch.said], skip_bad=skip_bad))


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
    batch = decode_many(named, "auto", 4)
    assert batch.pixels.shape == (3, 1, 4, 4)
    assert batch.said.facts["resized"] == 3


def test_grey_among_colour_is_repeated_and_counted():
    batch = decode_many([("a", GREY), ("b", RGB)], "auto", None)
    assert batch.pixels.shape == (2, 3, 6, 5)
    assert (batch.pixels[0] == GREY).all()
    assert batch.said.facts["repeated"] == 1


def test_bad_images_are_left_out_and_listed_if_asked():
    named = [("a", GREY), ("b", b""), ("c", GREY // 2), ("d", b"no picture")]
    batch = decode_many(named, "auto", None, skip_bad=True)
    assert batch.read.tolist() == [0, 2]
    assert (batch.pixels[1, 0] == GREY // 2).all()
    assert [name for name, _ in batch.said.bad] == ["b", "d"]
    assert batch.said.bad[0] == ("b", "is empty (0 bytes)")
    with pytest.raises(DataError, match="2 images cannot be used"):
        decode_many(named[1::2], "auto", None, skip_bad=True)
