"""The same page for a file: chosen images with their components inside, so that sums need no server.

Components are rounded to whole steps, the step an image's own, and packed by zlib. The picture of all tokens is kept
apart in 256 levels, and a sum is that picture less the components of the tokens that are off: no value of it is further
from the unrounded one than half a level, and half a step for each token that is off. What tokens add to class scores is
rounded likewise.
"""

import base64
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import UsageError
from tdsm.base.progress import track
from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.base.text import count_of
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import DECOMPOSITIONS
from tdsm.explore.document import document
from tdsm.explore.studio import Studio

PAGE = "index.html"
LEVELS = (127, 63, 31, 15, 7)  # steps from 0 to the largest value of a component: as many as the size allows
SHARE_LEVELS = 127  # likewise of shares of class scores
WANTED_BYTES, SAMPLE = 700_000, 4  # of all images together, packed; judged by a few of them
MOST_HEADS, SMALL_SIDE = 3, 32


class Packed(NamedTuple):
    """Values in whole steps, low + step · whole, and how to read them."""

    content: bytes
    facts: dict[str, Any]  # `error` among them, the largest distance of a value from what it stands for


def export(
    studio: Studio, folder: Path, images: Sequence[tuple[int, int]], methods: Sequence[str] = ()
) -> tuple[Path, str]:
    """Write the page of chosen images, (shelf, place) each, into a folder; return its path and what was rounded.

    Raises:
        UsageError: If there is no image, or a method does not suit the field.
    """
    page, words = exported_page(studio, images, methods)
    path = Path(folder) / PAGE
    io.write_text(path, page)
    return path, f"{words} {len(page.encode()) / 1e6:.2f} MB."


def exported_page(
    studio: Studio, images: Sequence[tuple[int, int]], methods: Sequence[str] = (), *, levels: int | None = None
) -> tuple[str, str]:
    """Return the page of chosen images as text, and what was rounded in words.

    Args:
        studio: What it is about.
        images: (shelf, place) of each.
        methods: Decompositions beside the one that adds up.
        levels: Steps from 0 to the largest value of a component; None takes as many as make about 1 MB.
    """
    if not images:
        raise UsageError("export: no image is chosen. Name --pictures, or take a run, which has images.")
    if unfit := [name for name in methods if name not in studio.methods]:
        known = ", ".join(studio.methods)
        raise UsageError(f"export: {', '.join(unfit)} cannot be shown of this field, expected {known}.")
    summing = next(name for name in studio.methods if DECOMPOSITIONS[name].adds_up)
    methods = [summing, *(name for name in methods if name != summing)]
    about, heads = studio.about(), _heads(studio, images[0])
    side = next((size for size in reversed(studio.sizes) if size <= SMALL_SIDE), studio.sizes[0])
    pack = partial(_image, studio, methods, heads, side)
    levels = levels or _levels_that_fit(pack, images)
    parts = [pack(levels, *image) for image in track(images, "export", unit="images")]
    words = _in_words([entry[summing] for _, entry in parts])
    by_name = {method["name"]: method for method in about["methods"]}
    here = {"methods": [by_name[name] for name in methods], "first_method": 0, "sizes": [side], "first_size": side}
    here |= {"shelves": [{"name": "exported", "count": len(images)}], "heads": [about["heads"][head] for head in heads]}
    inside = {
        "about": about | here | {"footnote": f"This page stands alone. {words}"},
        "listing": _listing(studio, images),
        "faithfulness": {"rows": list(range(len(images))), "psnr": [entry["psnr"] for _, entry in parts]},
        "images": [entry for _, entry in parts],
    }
    return document(inside, {f"image-{number}": text for number, (text, _) in enumerate(parts)}), words


def chosen_images(studio: Studio, count: int, rows: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Choose images of the first shelf: those named, or a stratified draw."""
    if not studio.shelves:
        return []
    drawn = rows or stratified_sample(studio.shelves[0].labels, count, generator(0, "export")).tolist()
    return [(0, row) for row in drawn]


def _heads(studio: Studio, image: tuple[int, int]) -> list[int]:
    """Choose heads whose scores are sums over tokens; the first one if there are none."""
    found = [studio.falls(*image, head) for head in range(len(studio.heads))]
    sums = [head for head, falls in enumerate(found) if falls is not None and falls.adds_up]
    return sums[:MOST_HEADS] or list(range(len(found)))[:1]


def _in_words(components: Sequence[dict[str, Any]]) -> str:
    steps = [facts["step"] for facts in components]
    error = max(facts["error"] for facts in components)
    return (
        f"{count_of(len(components), 'image')}. Components are rounded to steps of {min(steps):.3f} to "
        f"{max(steps):.3f}, where the picture runs from −1 to 1; none of their values is off by more than {error:.4f}."
    )


def _listing(studio: Studio, images: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return what exported images can be found by."""
    shelves = [studio.shelves[shelf] for shelf, _ in images]
    labels = [int(studio.shelves[shelf].labels[row]) for shelf, row in images]
    names = [studio.shelves[shelf].names[row] if studio.shelves[shelf].names else None for shelf, row in images]
    python = [studio.shelves[shelf].python.replace("{row}", str(row)) for shelf, row in images]
    common = [name for name in shelves[0].predicted if all(name in shelf.predicted for shelf in shelves)]
    predicted = {name: [int(studio.shelves[shelf].predicted[name][row]) for shelf, row in images] for name in common}
    return {"labels": labels, "names": names, "python": python, "predicted": predicted}


def _levels_that_fit(pack: Callable[..., tuple[str, dict]], images: Sequence[tuple[int, int]]) -> int:
    """Choose as many levels as keep the page at about the size that is wanted, by some of its images."""
    some = images[:: -(-len(images) // SAMPLE)]
    most = WANTED_BYTES * 4 / 3 * len(some) / len(images)  # in base64
    fitting = (levels for levels in LEVELS if sum(len(pack(levels, *image)[0]) for image in some) <= most)
    return next(fitting, LEVELS[-1])


def _image(
    studio: Studio, methods: list[str], heads: list[int], side: int, levels: int, shelf: int, row: int
) -> tuple[str, dict[str, Any]]:
    """Pack one image: its content in base64, and what says how to read it."""
    image = studio.image(shelf, row)[0].movedim(0, -1)
    views = {name: studio.view(shelf, row, studio.methods.index(name), side) for name in methods}
    first, said = views[methods[0]], [_said(studio, shelf, row, head) for head in heads]
    packed = {"image": _levels(image), "reconstruction": _levels(first.reconstruction[0])}
    packed |= {name: _steps(view.components[0], levels) for name, view in views.items()}
    packed |= {
        f"shares-{at}": _steps(shares, SHARE_LEVELS) for at, (_, shares) in enumerate(said) if shares is not None
    }
    entry: dict[str, Any] = {"falls": [facts for facts, _ in said]}
    start = 0
    for name, part in packed.items():
        entry[name] = {**part.facts, "start": start}
        start += len(part.content)
    decoded = studio.field.decode(studio.tokens(shelf, row), size=studio.size)
    entry |= {"psnr": psnr(image[None], decoded).item(), "completeness_error": first.completeness_error.item()}
    content = zlib.compress(b"".join(part.content for part in packed.values()), level=9)
    return base64.b64encode(content).decode(), entry


def _said(studio: Studio, shelf: int, row: int, head: int) -> tuple[dict[str, Any], Tensor | None]:
    """Return what a head says, in three digits, and the tokens' shares of it where they add up."""
    falls = studio.falls(shelf, row, head)
    if falls is not None and falls.adds_up:
        return {"adds_up": True, "scores": _short(falls.scores), "blank": _short(falls.blank)}, falls.by_token
    return {"adds_up": False, "scores": _short(studio.whole_scores(shelf, row, head))}, None


def _short(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def _levels(values: Float[Tensor, "height width channels"]) -> Packed:
    """Pack a picture in 256 levels from its lowest to its highest value."""
    low, high = values.aminmax()
    return _whole(values, float(low), float(high - low) / 255 or 1.0, torch.uint8)


def _steps(values: Tensor, levels: int) -> Packed:
    """Pack values of both signs in whole steps of a part of the largest."""
    return _whole(values, 0.0, float(values.abs().max()) / levels or 1.0, torch.int8)


def _whole(values: Tensor, low: float, step: float, dtype: torch.dtype) -> Packed:
    whole = ((values - low) / step).round()
    error = float((low + step * whole - values).abs().max())
    facts = {"shape": list(values.shape), "low": low, "step": step, "signed": dtype is torch.int8, "error": error}
    return Packed(whole.to(dtype).cpu().numpy().tobytes(), facts)
