"""Load a source, split it, decode what is kept."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.data.arrays import load_npz
from tdsm.data.config import DataConfig
from tdsm.data.decode import FACTS, Encoded, decode_many
from tdsm.data.digits import load_digits
from tdsm.data.folder import load_folder
from tdsm.data.hub import load_hub
from tdsm.data.imageset import Data, ImageSet
from tdsm.data.parquet import load_parquet
from tdsm.data.source import Source
from tdsm.data.splits import Part, partition
from tdsm.data.toy import load_toy

BUILT_IN = ("digits", "toy")
Progress = Callable[[Iterable, str], Iterable]

SOURCES: dict[str, Callable[[str, DataConfig], Source]] = {
    "digits": load_digits,
    "toy": load_toy,
    "folder": load_folder,
    "npz": load_npz,
    "parquet": load_parquet,
    "hub": load_hub,
}
JPEG_NOTE = "The images are JPEG encoded, slightly lossy: numbers are not those of the lossless original."


def load_data(config: DataConfig, seed: int, progress: Progress | None = None) -> Data:
    """Load the sets one run trains on, selects by and is scored on.

    Test is the source's own test split; validation is carved from train by the seed, the same share of each class.
    A source without a test split lends its validation split, or has a fifth of each class held out.

    >>> data = load_data(DataConfig(source="digits"), seed=0)
    >>> len(data.train), len(data.validation), len(data.test), data.train.images.shape[1:]
    (1294, 144, 359, torch.Size([1, 8, 8]))

    Args:
        config: The source and how to use it.
        seed: Decides every draw.
        progress: Wraps the decode loop, called with an iterable that has a length and a title.

    Raises:
        UsageError: If the source's name or an option cannot be used.
        DataError: If images, labels or splits cannot be used.
    """
    kind, where = resolve(config.source)
    if kind not in ("parquet", "hub") and (config.image_column or config.label_column):
        raise UsageError(f"image_column and label_column are for parquet and hub sources; this one is {kind!r}.")
    source = SOURCES[kind](where, config)
    parts, notes = partition(source.labels, source.classes, config, seed)
    rows, images, facts = _decode_parts(source, parts, config, progress)
    sets = {name: _image_set(source, part, rows[part.split], images[part.split]) for name, part in parts.items()}
    notes = [*source.notes, *notes, *_decode_notes(facts, source)]
    return Data(
        **sets, name=Path(where).name if kind in ("folder", "npz", "parquet") else where or kind, notes=tuple(notes)
    )


def resolve(source: str) -> tuple[str, str]:
    """Find out what a source's name means: (kind, where).

    >>> resolve("digits"), resolve("hub:uoft-cs/cifar10")
    (('digits', ''), ('hub', 'uoft-cs/cifar10'))

    Raises:
        UsageError: If it is no known name, no path that exists, and no hub id.
    """
    kind, colon, where = source.partition(":")
    if kind in SOURCES and (colon or kind in BUILT_IN):
        return kind, where
    path = Path(source)
    if source and path.is_dir():
        return ("parquet" if next(path.rglob("*.parquet"), None) else "folder"), source
    if path.is_file() and path.suffix in (".npz", ".parquet"):
        return path.suffix[1:], source
    if "/" in source and not colon and not path.exists():
        return "hub", source
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    raise UsageError(
        f"source {source!r} is none of: a built-in set ({', '.join(BUILT_IN)}), a folder, an .npz or .parquet file, "
        f"a hub id with a slash, or KIND:WHERE with KIND in {sorted(SOURCES)}."
        + (f" Perhaps you meant {near[0]!r}." if near else "")
    )


def absolute_source(source: str) -> str:
    """Name a source so that it is found from any folder: paths are made absolute, other names are left.

    >>> absolute_source("digits"), absolute_source("hub:uoft-cs/cifar10")
    ('digits', 'hub:uoft-cs/cifar10')
    """
    kind, colon, where = source.partition(":")
    if colon and kind in SOURCES:
        return f"{kind}:{Path(where).resolve()}" if where and Path(where).exists() else source
    return str(Path(source).resolve()) if kind not in BUILT_IN and Path(source).exists() else source


def _decode_parts(
    source: Source, parts: Mapping[str, Part], config: DataConfig, progress: Progress | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Counter[str]]:
    """Decode every kept image once, all splits in one loop, so that all bad files are listed together."""
    rows: dict[str, Tensor] = {}
    for part in parts.values():
        rows[part.split] = torch.cat([rows.get(part.split, part.rows[:0]), part.rows]).sort().values
    steps: Iterable = range(sum(map(len, rows.values())))
    steps = progress(steps, "decode images") if progress else steps
    named = _fetched(source, rows)
    pixels, facts = decode_many(
        (item for _, item in zip(steps, named, strict=True)), config.channels, config.image_size
    )
    bounds = np.cumsum([len(r) for r in rows.values()])[:-1]
    images = dict(zip(rows, map(torch.from_numpy, np.split(pixels, bounds)), strict=True))
    return rows, images, facts


def _fetched(source: Source, rows: Mapping[str, Tensor]) -> Iterator[tuple[str, Encoded]]:
    for split, wanted in rows.items():
        yield from source.fetch[split](wanted.tolist())


def _image_set(source: Source, part: Part, rows: Tensor, images: Tensor) -> ImageSet:
    chosen = images[torch.searchsorted(rows, part.rows)]
    return ImageSet(chosen, source.labels[part.split][part.rows], part.rows, source.classes)


def _decode_notes(facts: Counter[str], source: Source) -> list[str]:
    notes = [f"{facts[fact]} {sentence}." for fact, sentence in FACTS.items() if facts[fact]]
    return [*notes, JPEG_NOTE] if facts["jpeg"] and source.has_lossless_original else notes
