"""Turn image files into pixels, changing nothing without saying so.

Pillow alone clips 16-bit grey to white, drops alpha and ignores EXIF rotation. Here every change is either undone,
reported as a fact, or refused. What no decoder can see stays: a flipped bit inside JPEG data is a valid picture.
"""

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tdsm.base.errors import DataError, MixedSizesError
from tdsm.data.config import Channels

# Left out on purpose: formats whose decoder starts another program (EPS) or holds no single picture.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 2**26
MAX_TEXT = 2**26  # bytes of one unpacked text or colour profile; Pillow's own limit is below what cameras write
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
WIDE = (0, 65535)  # the levels that are black and white in 16-bit grey
# What Pillow's decoders raise on damaged input.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, AssertionError, struct.error, zlib.error),
)
MAX_LISTED = 20
STARTS = {"TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "PNG": (b"\x89PNG",), "JPEG": (b"\xff\xd8\xff",)}
SAMPLE_FORMAT = 339  # the TIFF tag that says what a number is: 1 stands for a level

Encoded = bytes | Path | np.ndarray | None
FACTS = {
    "alpha": "of the images had transparency and were composited over white",
    "cmyk": "of the images were CMYK and were converted to RGB without a colour profile",
    "cut": "of the images held 16 bits a colour and were cut to 8, up to one level below rounding",
    "dim": "of the images are stored in 16 bits and use 12 at most; if 12 were meant, they are 16 times too dark",
    "profile": "of the images have a colour profile other than sRGB, which was not applied",
    "resized": "of the images were resized (shorter side scaled, centre kept)",
    "repeated": "of the images were grey and were repeated to three channels",
    "greyed": "of the images were in colour and were reduced to grey (luma)",
}


class Decoded(NamedTuple):
    """Pixels (channels, height, width) uint8 and what happened to them, as keys of `FACTS`, or 'jpeg'."""

    pixels: np.ndarray
    facts: frozenset[str]


class Refused(Exception):
    """One image cannot be used; the message is the reason, without the image's name."""


def decode_image(
    source: Encoded, channels: Channels = "auto", size: int | None = None, *, name: str | None = None
) -> UInt8[Tensor, "channels height width"]:
    """Decode one image to uint8, upright, grey or RGB.

    EXIF rotation is applied, 12- and 16-bit grey is scaled to 8 bits and rounded, palettes are looked up, alpha that
    is opaque everywhere is dropped and other alpha is composited over white. `size` scales the shorter side and
    keeps the centre square.

    >>> decode_image(np.full((4, 6), 7, dtype=np.uint8), "rgb").shape
    torch.Size([3, 4, 6])

    Args:
        source: A file's path, its bytes, or pixels already decoded: uint8, (height, width) or (height, width, 3).
        channels: "auto" keeps the kind the image is stored in.
        size: Side of the square to resize to, in pixels.
        name: What errors call the image.

    Raises:
        DataError: If the image is missing, empty, truncated, too large, animated or of an unknown kind.
    """
    try:
        return torch.from_numpy(decode(source, channels, size).pixels)
    except Refused as reason:
        raise DataError(
            f"{printable(name or (str(source) if isinstance(source, Path) else 'image'))}: {reason}."
        ) from None


class Said(NamedTuple):
    """What decoding some images said: counted facts, (name, reason) of the bad ones, how many of each size.

    `sizes` holds count and first name for each (height, width). Of the `read` images, `grey` have one channel.
    """

    read: int
    grey: int
    facts: Counter[str]
    bad: list[tuple[str, str]]
    sizes: dict[tuple[int, int], tuple[int, str]]


class Batch(NamedTuple):
    """Pixels (samples, channels, height, width), positions of those that were read, and what else was said.

    Where images differ in size, only those of the first size are there.
    """

    pixels: np.ndarray
    read: np.ndarray
    said: Said


def decode_batch(named: Iterable[tuple[str, Encoded]], channels: Channels, size: int | None) -> Batch:
    """Decode images, grey ones repeated to three channels where others have three; refuse nothing yet."""
    pixels: list[np.ndarray] = []
    read: list[int] = []
    facts: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    sizes: dict[tuple[int, int], tuple[int, str]] = {}
    for position, (name, source) in enumerate(named):
        try:
            image = decode(source, channels, size)
        except Refused as reason:
            bad.append((name, str(reason)))
            continue
        _, height, width = image.pixels.shape
        count, first = sizes.get((height, width), (0, name))
        sizes[height, width] = count + 1, first
        if len(sizes) == 1:
            pixels.append(image.pixels)
            read.append(position)
        facts.update(image.facts)
    grey, depth = sum(len(values) == 1 for values in pixels), max(map(len, pixels), default=1)
    stacked = np.zeros((len(pixels), depth, *next(iter(sizes), (0, 0))), np.uint8)
    for place, values in zip(stacked, pixels, strict=True):
        place[:] = values
    return Batch(stacked, np.array(read, dtype=np.int64), Said(len(read), grey, facts, bad, sizes))


def settle(parts: Iterable[Said], *, skip_bad: bool = False) -> Said:
    """Join what was said of all images, and refuse those that cannot be used together.

    Raises:
        DataError: If images are bad, all of which are listed, unless they are to be skipped and some are left; or if
            the others differ in size.
    """
    read, grey, facts, sizes = 0, 0, Counter[str](), dict[tuple[int, int], tuple[int, str]]()
    bad: list[tuple[str, str]] = []
    for said in parts:
        read, grey = read + said.read, grey + said.grey
        facts.update(said.facts)
        bad += said.bad
        for shape, (count, first) in said.sizes.items():
            before, name = sizes.get(shape, (0, first))
            sizes[shape] = before + count, name
    if not skip_bad or not read:
        refuse_bad(bad)
    _refuse_mixed_sizes(sizes)
    facts["repeated"] += grey if grey < read else 0
    return Said(read, grey, facts, bad, sizes)


def refuse_bad(bad: list[tuple[str, str]]) -> None:
    """Raise one `DataError` for all bad images, given as (name, reason), if there are any."""
    if bad:
        listed = "\n  ".join(f"{printable(name)}: {reason}" for name, reason in bad[:MAX_LISTED])
        more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{len(bad)} images cannot be used. Repair or remove them:\n  {listed}{more}")


def printable(name: str) -> str:
    """Escape a name that would change the terminal."""
    return name if name.isprintable() else ascii(name)


def _refuse_mixed_sizes(sizes: Mapping[tuple[int, int], tuple[int, str]]) -> None:
    if len(sizes) > 1:
        seen = ", ".join(
            f"{height}×{width} ({count}, such as {printable(name)})"
            for (height, width), (count, name) in list(sizes.items())[:5]
        )
        raise MixedSizesError(
            f"Images differ in size (height×width): {len(sizes)} sizes, among them {seen}. "
            "Set image_size to resize them all to one square."
        )


def decode(source: Encoded, channels: Channels, size: int | None) -> Decoded:
    """Decode one image; raise `Refused` with the reason when it cannot be used."""
    facts: set[str] = set()
    if isinstance(source, np.ndarray) and _is_ready(source, channels, size):
        return Decoded(np.array(np.atleast_3d(source).transpose(2, 0, 1), order="C"), frozenset())
    with _strict_pillow():
        image = _grey_or_rgb(_open(source, facts), facts)
    return Decoded(_pixels(image, channels, size, facts), frozenset(facts))


def _is_ready(pixels: np.ndarray, channels: Channels, size: int | None) -> bool:
    """Tell whether nothing is to be done to pixels."""
    kind = "grey" if pixels.ndim == 2 else "rgb"
    return channels in ("auto", kind) and (size is None or pixels.shape[:2] == (size, size))


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Refuse truncated files even where another library told Pillow to fill them up, read long texts, be quiet."""
    from PIL import ImageFile, PngImagePlugin

    wanted: list[tuple[Any, str, Any]] = [
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
        (PngImagePlugin, "MAX_TEXT_CHUNK", MAX_TEXT),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 2 * MAX_TEXT),
    ]
    before = [getattr(module, name) for module, name, _ in wanted]
    for module, name, value in wanted:
        setattr(module, name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for (module, name, _), value in zip(wanted, before, strict=True):
            setattr(module, name, value)


def _open(source: Encoded, facts: set[str]) -> Any:
    """Return the image in Pillow's form, upright, with its black and white levels in `info["levels"]` if not 8-bit."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    data = _read(source)
    try:
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        _refuse_unfit(image)
        _state_levels(image, data, facts)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise Refused(_unknown(data)) from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {MAX_PIXELS} pixels") from None
    except DAMAGE as error:
        raise Refused(f"damaged or truncated ({type(error).__name__}: {error})") from error


def _unknown(data: bytes) -> str:
    """Say what bytes are that no decoder here knows."""
    text = data[:200].lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image itself. Fetch it: git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image; the download went wrong"
    if kind := next((kind for kind, starts in STARTS.items() if data.startswith(starts)), None):
        return f"is a {kind} that is truncated, or of a kind that cannot be read"
    return f"not an image in a known format ({', '.join(FORMATS)})"


def _refuse_unfit(image: Any) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Refused(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS}")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Refused(f"holds {image.n_frames} frames, expected a single picture")
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise Refused("holds 32-bit pixels of unknown range, expected 8 or 16 bits")
    if image.format == "TIFF" and max(image.tag_v2.get(SAMPLE_FORMAT, (1,))) > 1:
        raise Refused("holds signed numbers or floats, expected levels from 0 on")


def _state_levels(image: Any, data: bytes, facts: set[str]) -> None:
    """Put right, or state, what Pillow leaves out about the levels a file is stored in. To be called before loading."""
    if image.format in ("JPEG", "MPO"):
        facts.add("jpeg")
    bits = _stored_bits(image, data)
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        black_white = (0, 2**bits - 1)
        image.info["levels"] = black_white[::-1] if image.tag_v2.get(262) == 0 else black_white  # white is zero
    elif bits > 8 and not image.mode.startswith("I"):
        if "transparency" in image.info:
            raise Refused("holds 16-bit colours one of which is transparent, expected no transparency")
        facts.add("cut")
    if image.mode == "L" and bits in (2, 4) and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**bits - 1)  # named as stored, whereas pixels are scaled to 0..255


def _stored_bits(image: Any, data: bytes) -> int:
    if image.format == "PNG" and data[12:16] == b"IHDR":
        return data[24]
    return max(image.tag_v2.get(258, (1,))) if image.format == "TIFF" else 8


def _read(source: Encoded) -> bytes:
    if source is None:
        raise Refused("holds no image bytes")
    try:
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})") from None
    if not data:
        raise Refused("is empty (0 bytes)")
    return data


def _grey_or_rgb(image: Any, facts: set[str]) -> Any:
    """Return the image in Pillow's mode L or RGB."""
    from PIL import Image

    if image.mode not in GREY_MODES and _has_other_profile(image.info.get("icc_profile") or b""):
        facts.add("profile")
    mode = "L" if image.mode in GREY_MODES or _is_grey_palette(image) else "RGB"
    if image.mode.startswith("I"):
        return _eight_bits(image, facts)
    if image.mode == "CMYK":
        facts.add("cmyk")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            facts.add("alpha")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return image.convert(mode)


def _has_other_profile(profile: bytes) -> bool:
    """Tell whether a colour profile is not called sRGB, as plain text or in UTF-16."""
    return bool(profile) and not any(name in profile for name in (b"sRGB", "sRGB".encode("utf-16-be")))


def _is_grey_palette(image: Any) -> bool:
    if image.mode != "P":
        return False
    red, green, blue = (band.tobytes() for band in image.convert("RGB").split())
    return red == green == blue


def _eight_bits(image: Any, facts: set[str]) -> Any:
    from PIL import Image

    black, white = image.info.get("levels", WIDE)
    stored = np.asarray(image).astype(np.int32)
    if (black, white) == WIDE and stored.max() < 2**12:
        facts.add("dim")
    pixels = (abs(stored - black) * 255 + abs(white - black) // 2) // abs(white - black)
    if (is_clear := stored == image.info.get("transparency")).any():
        facts.add("alpha")
    return Image.fromarray(np.where(is_clear, 255, pixels).astype(np.uint8))


def _pixels(image: Any, channels: Channels, size: int | None, facts: set[str]) -> np.ndarray:
    from PIL import Image, ImageOps

    wanted = {"auto": image.mode, "grey": "L", "rgb": "RGB"}[channels]
    if wanted != image.mode:
        facts.add("greyed" if wanted == "L" else "repeated")
        image = image.convert(wanted)
    if size is not None and image.size != (size, size):
        facts.add("resized")
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
