"""Load a source, split it, decode what is kept."""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base.errors import DataError, UsageError
from tdsm.base.registry import Registry
from tdsm.data.arrays import load_npz
from tdsm.data.config import DataConfig
from tdsm.data.decode import FACTS, printable
from tdsm.data.digits import load_digits
from tdsm.data.duplicates import treat_duplicates
from tdsm.data.hub import load_hub
from tdsm.data.imageset import Data, ImageSet
from tdsm.data.layout import FOLDERS, layout
from tdsm.data.pixels import Progress, decode_rows
from tdsm.data.saved import read_dataset
from tdsm.data.source import Source
from tdsm.data.splits import Part, absent_classes, partition
from tdsm.data.toy import load_toy

BUILT_IN = ("digits", "toy")
SHOWN = 5  # skipped images in a note; all are in `Data.skipped`
TABLES = ("parquet", "hub", "disk", "dataset")
OPTIONS = {  # what only some sources can do, so that it is never set in vain
    "image_column": TABLES,
    "label_column": (*TABLES, "tar", "folder"),
    "config": ("parquet", "hub", "tar", "idx"),
    "revision": ("hub",),
    "follow_links": ("folder",),
}

SOURCES: Registry[Callable[[str, DataConfig], Source]] = Registry(
    "kind of source",
    {"digits": load_digits, "toy": load_toy, "npz": load_npz, **FOLDERS, "hub": load_hub},
)
JPEG_NOTE = "The images are JPEG encoded, slightly lossy: numbers are not those of the lossless original."


def load_data(config: DataConfig, seed: int, progress: Progress | None = None, dataset: Any = None) -> Data:
    """Load the sets one run trains on, selects by and is scored on, and say in notes what serves as each.

    A source's own train, validation and test splits are kept. Validation it lacks is carved from train by the seed,
    the same share of each class; a test split it lacks is a fifth of each class of train, held out by the seed.

    >>> data = load_data(DataConfig(source="digits"), seed=0)
    >>> len(data.train), len(data.validation), len(data.test), data.train.channels, data.train.size
    (1294, 144, 359, 1, (8, 8))

    Args:
        config: The source and how to use it.
        seed: Decides every draw.
        progress: Wraps the decode loop, called with an iterable that has a length and a title.
        dataset: A `Dataset` or `DatasetDict` of the package `datasets`, read instead of `config.source`.

    Raises:
        UsageError: If the source's name or an option cannot be used.
        DataError: If images, labels or splits cannot be used.
    """
    kind, where = resolve(config.source) if dataset is None else ("dataset", "")
    source = _opened(kind, where, config, dataset)
    parts, notes = partition(source.labels, source.classes, config, seed)
    decoded, said = decode_rows(source, _rows(parts), config, progress)
    sets = {name: _those(decoded[part.split], part) for name, part in parts.items()}
    sets, shared = treat_duplicates(sets, drop=config.drop_duplicates)
    _refuse_empty(sets)
    absent = [note for name, part in sets.items() for note in absent_classes(name, part.labels, part.classes)]
    skipped = (*source.skipped, *said.bad)
    notes = [
        *source.notes,
        *notes,
        *_unlabelled_note(source),
        *_alike_note(source.classes),
        *absent,
        *_skipped_note(skipped),
    ]
    notes += [*shared, *_decode_notes(said.facts, source)]
    return Data(**sets, name=_name(kind, where), notes=tuple(notes), skipped=skipped)


def open_source(config: DataConfig) -> Source:
    """Open what `config.source` names; no image is decoded yet.

    Raises:
        UsageError: If the source's name or an option cannot be used.
        DataError: If labels or splits cannot be used.
    """
    return _opened(*resolve(config.source), config)


def _opened(kind: str, where: str, config: DataConfig, dataset: Any = None) -> Source:
    _refuse_idle_options(kind, config)
    return SOURCES[kind](where, config) if dataset is None else read_dataset(dataset, config)


def _name(kind: str, where: str) -> str:
    return where or kind if kind in (*BUILT_IN, "hub", "dataset") else Path(where).absolute().name


def _refuse_idle_options(kind: str, config: DataConfig) -> None:
    for option, kinds in OPTIONS.items():
        if getattr(config, option) and kind not in kinds:
            raise UsageError(f"{option} is for sources of {', '.join(kinds)}; this one is {kind!r}.")


def _refuse_empty(sets: Mapping[str, ImageSet]) -> None:
    if empty := [name for name, images in sets.items() if not len(images)]:
        raise DataError(f"No image is left in {' and '.join(empty)}. Expected at least one in each set.")


def resolve(source: str) -> tuple[str, str]:
    """Find out what a source's name means: (kind, where).

    >>> resolve("digits"), resolve("hub:uoft-cs/cifar10")
    (('digits', ''), ('hub', 'uoft-cs/cifar10'))

    Raises:
        UsageError: If it is no known name, no path that exists, and no hub id.
    """
    kind, colon, where = source.partition(":")
    if kind in SOURCES and (colon or kind in BUILT_IN):
        return kind, where if kind == "hub" else os.path.expanduser(where)
    source = os.path.expanduser(source)
    path = Path(source)
    if source and path.is_dir():
        return layout(path), source
    if path.is_file() and (ending := path.suffix.lower()) in (".npz", ".parquet", ".tar"):
        return ending[1:], source
    if "/" in source and not colon and not path.exists():
        return "hub", source
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    raise UsageError(
        f"source {source!r} is none of: a built-in set ({', '.join(BUILT_IN)}), a folder, an .npz, .parquet or .tar "
        f"file, a hub id with a slash, or KIND:WHERE with KIND in {sorted(SOURCES)}."
        + (f" Perhaps you meant {near[0]!r}." if near else "")
    )


def absolute_source(source: str) -> str:
    """Name a source so that it is found from any folder: KIND:/WHERE/IT/LIES for files; other names stay.

    >>> absolute_source("digits"), absolute_source("uoft-cs/cifar10"), absolute_source("npz:/data/set.npz")
    ('digits', 'uoft-cs/cifar10', 'npz:/data/set.npz')

    Raises:
        UsageError: If it is no known name, no path that exists, and no hub id.
    """
    kind, where = resolve(source)
    return source if kind in (*BUILT_IN, "hub") else f"{kind}:{Path(where).absolute()}"


def _rows(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """Join the rows of parts of one split, so that each is decoded once."""
    rows: dict[str, Tensor] = {}
    for part in parts.values():
        rows[part.split] = torch.cat([rows.get(part.split, part.rows[:0]), part.rows]).sort().values
    return rows


def _those(images: ImageSet, part: Part) -> ImageSet:
    """Take a part of a split, as far as its images could be read."""
    ids = part.rows[torch.isin(part.rows, images.ids)]
    return images.subset(torch.searchsorted(images.ids, ids))


def _unlabelled_note(source: Source) -> list[str]:
    return [] if source.classes else ["The images have no labels: a field can be trained and analysed, not classified."]


def _alike_note(classes: tuple[str, ...]) -> list[str]:
    """Say which classes may be one, written in two ways."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    pairs = "; ".join(", ".join(map(repr, names)) for names in alike.values() if len(names) > 1)
    return [f"Classes differ in case or spaces only and are kept apart: {pairs}."] if pairs else []


def _skipped_note(skipped: tuple[tuple[str, str], ...]) -> list[str]:
    if not skipped:
        return []
    listed = "; ".join(f"{printable(name)}: {reason}" for name, reason in skipped[:SHOWN])
    more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return [f"{len(skipped)} images cannot be used and were left out: {listed}{more}."]


def _decode_notes(facts: Counter[str], source: Source) -> list[str]:
    notes = [f"{facts[fact]} {sentence}." for fact, sentence in FACTS.items() if facts[fact]]
    return [*notes, JPEG_NOTE] if facts["jpeg"] and source.has_lossless_original else notes
