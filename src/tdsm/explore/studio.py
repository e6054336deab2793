"""What a page is about, and the answers to all it asks: a field, images to choose from, fitted heads.

An image is named by two whole numbers: its shelf (a split of the run, pictures given by file, pictures dropped) and its
place there. What is held grows with neither time nor use: the tokens of the latest images and the latest dropped
pictures are kept, the longest unused go first.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.data import ImageSet, decode_image
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import DECOMPOSITIONS, decompose, methods_for, missing_space
from tdsm.decomposition.methods import Decomposition
from tdsm.explore.heads import Falls, FittedHead, fitted_heads
from tdsm.models.load import load_field
from tdsm.pipeline.folder import ENVIRONMENT
from tdsm.pipeline.link import Say
from tdsm.pipeline.rows import is_scored, read_predictions
from tdsm.pipeline.run import Run
from tdsm.pipeline.stages import take_up
from tdsm.tokenfield import TokenField

KEPT_TOKENS, KEPT_DROPS = 256, 32  # images
LARGEST_SIDE, FIRST_SIDE = 256, 32  # points along a picture's height
MOST_VALUES = 2**23  # of all components of an image at once: 32 MiB
THUMBNAIL = 64  # pixels
RANKED = 256  # images that reconstruction errors are measured of
SIDE_WITHOUT_DATA = 32  # pixels that pictures are resized to where no data say what a field was trained on

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(Generic[Key, Value]):
    """The values used last, as many as are allowed.

    >>> latest = Latest(2)
    >>> for key in "abac":
    ...     _ = latest.get(key, str.upper)
    >>> list(latest.held)
    ['a', 'c']
    """

    def __init__(self, most: int):
        self.most = most
        self.held: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[Key], Value]) -> Value:
        """Return a value, made if it is not held."""
        if key not in self.held:
            self.held[key] = make(key)
        self.held.move_to_end(key)
        while len(self.held) > self.most:
            self.held.popitem(last=False)
        return self.held[key]


@dataclass(frozen=True, eq=False)
class Shelf:
    """Images to choose from, in [-1, 1], and a line of Python that gives one of them: `{row}` stands for its place."""

    name: str
    floats: Callable[[Sequence[int]], Float[Tensor, "rows channels height width"]]
    labels: Int[Tensor, " rows"]  # −1 where there is none
    python: str
    names: tuple[str, ...] = ()
    predicted: Mapping[str, Sequence[int]] = field(default_factory=dict)  # by head, where it was scored on them


@dataclass(frozen=True, eq=False)
class Studio:
    """A field and what is shown with it. Every method answers one question of the page."""

    title: str
    field: TokenField
    shelves: tuple[Shelf, ...]
    size: tuple[int, int]  # height and width that images are encoded at, in pixels
    channels: int
    python: str  # lines that make `field`, and `run` where there is one
    classes: tuple[str, ...] = ()
    heads: Mapping[str, FittedHead] = field(default_factory=dict)
    _tokens: Latest[tuple[int, int], Tensor] = field(default_factory=lambda: Latest(KEPT_TOKENS), init=False)
    _drops: Latest[int, Tensor] = field(default_factory=lambda: Latest(KEPT_DROPS), init=False)
    _drop_number: Any = field(default_factory=count, init=False)

    def about(self) -> dict[str, Any]:
        """Describe everything there is to choose from."""
        methods = [
            {"name": name, "question": DECOMPOSITIONS[name].question, "adds_up": DECOMPOSITIONS[name].adds_up}
            | {"alone": DECOMPOSITIONS[name].decodes_alone}
            for name in self.methods
        ]
        shelves = [{"name": shelf.name, "count": len(shelf.labels)} for shelf in self.shelves]
        heads = [
            {"name": name, "meaning": head.meaning, "reads": head.feature, "reads_tokens": head.reads_tokens}
            for name, head in self.heads.items()
        ]
        return {
            "title": self.title,
            "tokens": self.num_tokens,
            "channels": self.channels,
            "size": list(self.size),
            "sizes": self.sizes,
            "first_size": next((side for side in self.sizes if side >= FIRST_SIDE), self.sizes[-1]),
            "methods": methods,
            "first_method": next((at for at, method in enumerate(methods) if method["adds_up"]), 0),
            "shelves": shelves,
            "classes": list(self.classes),
            "heads": heads,
            "note": missing_space(self.field),
            "python": self.python,
            "takes_pictures": self.channels in (1, 3),
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """Name the decompositions shown: all that suit the field but those estimated from many random draws."""
        return tuple(name for name in methods_for(self.field) if not DECOMPOSITIONS[name].is_sampled)

    @cached_property
    def num_tokens(self) -> int:
        """Count the tokens of an image."""
        blank = torch.zeros(1, self.channels, *self.size, device=self._device)
        with torch.no_grad():
            return self.field.encode(blank).shape[1]

    @cached_property
    def sizes(self) -> list[int]:
        """List the heights that pictures can be decoded at: from the images' own, in steps of about half, to 256.

        Where that is more than can be held, it is the largest below.
        """
        own, ratio = self.size[0], self.size[1] / self.size[0]
        most = min(LARGEST_SIDE, (MOST_VALUES / (self.num_tokens * self.channels * ratio)) ** 0.5)
        sides = sorted({max(1, int(own * step * 2.0**power)) for step in (1, 1.5) for power in range(-9, 9)})
        held = [side for side in sides if side <= most]
        return [side for side in held if side >= own] or held[-1:]

    def points(self, side: int) -> tuple[int, int]:
        """Return height and width of a picture of a height that is offered."""
        if side not in self.sizes:
            raise UsageError(f"size: {side} points are not offered, expected one of {self.sizes}.")
        return side, max(1, round(side * self.size[1] / self.size[0]))

    def listing(self, shelf: int) -> dict[str, Any]:
        """Return what images can be found by: classes, names, and what scored heads said."""
        one = self._shelf(shelf)
        predicted = {name: list(classes) for name, classes in one.predicted.items()}
        return {"labels": one.labels.tolist(), "names": list(one.names), "python": one.python} | {
            "predicted": predicted
        }

    def thumbnails(self, shelf: int, rows: Sequence[int]) -> UInt8[Tensor, "rows height width channels"]:
        """Return small pictures of images."""
        images = torch.cat([self.image(shelf, row) for row in rows]).cpu()
        if (largest := max(self.size)) > THUMBNAIL:
            size = tuple(max(1, round(side * THUMBNAIL / largest)) for side in self.size)
            images = F.interpolate(images, size=size, mode="area")
        return ((images + 1) * 127.5).round().clamp(0, 255).byte().movedim(1, -1)

    def image(self, shelf: int, row: int) -> Float[Tensor, "1 channels height width"]:
        """Return an image in [-1, 1].

        Raises:
            UsageError: If it is not there, or was dropped too long ago.
        """
        if shelf == len(self.shelves):
            if row not in self._drops.held:
                raise UsageError(f"picture {row} is no longer held: the last {KEPT_DROPS} dropped are. Drop it again.")
            return self._drops.get(row, lambda _: torch.empty(0))
        one = self._shelf(shelf)
        if not 0 <= row < len(one.labels):
            raise UsageError(f"image {row} is not there: {one.name} has 0 to {len(one.labels) - 1}.")
        return one.floats([row]).to(self._device)

    def drop(self, content: bytes) -> int:
        """Take a picture in and return its place; raise `DataError` if it cannot be used."""
        if self.channels not in (1, 3):
            raise UsageError(f"this field reads {self.channels} channels; pictures have 1 or 3.")
        pixels = read_picture(content, self.channels, self.size[0])
        number = next(self._drop_number)
        self._drops.get(number, lambda _: pixels.float()[None].to(self._device) / 127.5 - 1)
        return number

    @torch.no_grad()
    def tokens(self, shelf: int, row: int) -> Float[Tensor, "1 tokens token_width"]:
        """Return the tokens of an image."""
        image = self.image(shelf, row)
        return self._tokens.get((shelf, row), lambda _: self.field.encode(image))

    @torch.no_grad()
    def view(self, shelf: int, row: int, method: int, side: int) -> Decomposition:
        """Decompose an image by the method of a number."""
        if not 0 <= method < len(self.methods):
            raise UsageError(f"method {method} is not there, expected 0 to {len(self.methods) - 1}.")
        return decompose(self.field, self.tokens(shelf, row), self.points(side), method=self.methods[method])

    @torch.no_grad()
    def compose(self, sources: Sequence[tuple[int, int]], slots: Sequence[int], side: int) -> Tensor:
        """Decode tokens of several images together: slot k takes token k of the image `slots[k]`, of none for −1.

        Without any token it is what the field says of nothing.

        Returns:
            The picture, (height, width, channels).
        """
        tokens, keep = self.composed(sources, slots)
        if keep:
            return self.field.decode(tokens[:, keep], size=self.points(side))[0]
        method = next(name for name in self.methods if DECOMPOSITIONS[name].adds_up)
        return decompose(self.field, tokens, self.points(side), method=method, selection=[0]).base[0]

    def composed(self, sources: Sequence[tuple[int, int]], slots: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Return the tokens of all slots, those of missing ones from the first image, and the slots that are filled."""
        if len(slots) != self.num_tokens or any(not -1 <= slot < len(sources) for slot in slots):
            raise UsageError(
                f"slots: {len(slots)} numbers, expected {self.num_tokens}, one a token, from −1 to {len(sources) - 1}."
            )
        tokens = torch.cat([self.tokens(*source) for source in sources])
        chosen = tokens[[max(0, slot) for slot in slots], range(len(slots))][None]
        return chosen, [k for k, slot in enumerate(slots) if slot >= 0]

    def scores(
        self, head: int, sources: Sequence[tuple[int, int]], slots: Sequence[int]
    ) -> Float[Tensor, " classes"] | None:
        """Return what a head says of composed tokens; None if nothing is left for it to read."""
        tokens, keep = self.composed(sources, slots)
        return self._head(head).scores(self.image(*sources[0]), tokens, keep)

    def whole_scores(self, shelf: int, row: int, head: int) -> Float[Tensor, " classes"]:
        """Return what a head says of all tokens of an image."""
        scores = self.scores(head, [(shelf, row)], [0] * self.num_tokens)
        assert scores is not None, "all tokens are there"
        return scores

    def falls(self, shelf: int, row: int, head: int) -> Falls | None:
        """Return by how much a head's scores fall when a token of an image is blanked."""
        return self._head(head).falls(self.image(shelf, row), self.tokens(shelf, row))

    @torch.no_grad()
    def faithfulness(self, shelf: int) -> dict[str, list]:
        """Return the PSNR of a stratified draw of images, in decibels at their own size."""
        one = self._shelf(shelf)
        rows = stratified_sample(one.labels, RANKED, generator(0, "explore"))
        decibels = []
        for part in rows.split(32):
            batch = one.floats(part.tolist()).to(self._device)
            decoded = self.field.decode(self.field.encode(batch), size=self.size)
            decibels += psnr(batch.movedim(1, -1), decoded).tolist()
        return {"rows": rows.tolist(), "psnr": decibels}

    def warm_up(self) -> None:
        """Answer once, so that what is loaded at first use does not count in the first answer."""
        tokens = torch.zeros(1, self.channels, *self.size, device=self._device)
        with torch.no_grad():
            for method in self.methods[:2]:
                decompose(self.field, self.field.encode(tokens), self.points(self.sizes[0]), method=method)

    @property
    def _device(self) -> torch.device:
        return next(self.field.parameters()).device

    def _shelf(self, number: int) -> Shelf:
        if not 0 <= number < len(self.shelves):
            raise UsageError(f"shelf {number} is not there, expected 0 to {len(self.shelves) - 1}.")
        return self.shelves[number]

    def _head(self, number: int) -> FittedHead:
        if not 0 <= number < len(self.heads):
            raise UsageError(f"head {number} is not there: {len(self.heads)} are fitted.")
        return list(self.heads.values())[number]


def read_picture(source: bytes | Path, channels: int, side: int) -> UInt8[Tensor, "channels side side"]:
    """Decode a picture to the channels a field reads: shorter side scaled, centre kept."""
    return decode_image(source, "grey" if channels == 1 else "rgb", side)


def open_studio(path: Path, say: Say, pictures: Sequence[Path] = (), source: str | None = None) -> Studio:
    """Show what is at a path, a run or a field by itself, and pictures by path.

    Args:
        path: A run folder, a folder written by `save_pretrained`, or a published `.pt` checkpoint.
        say: Told in one line whatever is made anew.
        pictures: Picture files, a shelf of their own.
        source: Where a run's data are now, if they were moved.

    Raises:
        TdsmError: If a field, the data or a picture cannot be used.
    """
    if (path / ENVIRONMENT).is_file():
        return studio_of_run(take_up(path, say, source=source), pictures, source)
    if source is not None:
        raise UsageError(f"explore: {path} is no run and has no data, so --data.source is of no use.")
    return studio_of_field(path, pictures)


def studio_of_run(run: Run, pictures: Sequence[Path] = (), source: str | None = None) -> Studio:
    """Show a run: its three splits, its fitted heads, and pictures by path."""
    heads, size, channels = fitted_heads(run), run.data.test.size, run.data.test.channels
    place = repr(str(run.path))
    moved = "" if source is None else f", source={source!r}"
    lines = ["from pathlib import Path", "from tdsm.pipeline.stages import take_up", ""]
    lines += [f"run = take_up(Path({place}), print{moved})", "field = run.field"]
    predicted = {name: read_predictions(run, name)[0].tolist() for name in heads if is_scored(run, name)}
    splits = tuple(
        _split(split, getattr(run.data, split), predicted if split == "test" else {})
        for split in ("test", "validation", "train")
    )
    title = f"{run.data.name}: {run.field.config.num_tokens} tokens × {run.field.config.widths[-1]}"
    shelves = splits + _given(pictures, channels, size[0])
    return Studio(title, run.field, shelves, size, channels, "\n".join(lines), run.data.test.classes, heads)


def studio_of_field(path: Path, pictures: Sequence[Path] = ()) -> Studio:
    """Show a field by itself, and pictures by path."""
    loaded = load_field(path)
    if loaded.config.num_axes != 2:
        raise UsageError(
            f"explore: {path} is a field of {loaded.config.num_axes} axes, expected pictures, which have 2."
        )
    channels, side = loaded.config.channels, SIDE_WITHOUT_DATA
    title = f"{path.name}: {loaded.config.num_tokens} tokens × {loaded.config.widths[-1]}"
    python = f"import tdsm\n\nfield = tdsm.load_field({str(path)!r})"
    return Studio(title, loaded, _given(pictures, channels, side), (side, side), channels, python)


def _split(name: str, images: ImageSet, predicted: Mapping[str, Sequence[int]]) -> Shelf:
    return Shelf(name, images.floats, images.labels, f"run.data.{name}.floats([{{row}}])", (), predicted)


def _given(pictures: Sequence[Path], channels: int, side: int) -> tuple[Shelf, ...]:
    """Make a shelf of picture files, if there are any."""
    if not pictures:
        return ()
    images = torch.stack([read_picture(path, channels, side) for path in pictures]).float() / 127.5 - 1
    names = tuple(path.name for path in pictures)
    paths = [str(path) for path in pictures]
    python = f"read_picture(Path({paths!r}[{{row}}]), {channels}, {side}).float()[None] / 127.5 - 1"
    return (Shelf("given", lambda rows: images[list(rows)], torch.full((len(images),), -1), python, names),)
