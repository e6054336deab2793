"""The work of an extraction: a job, which any process can carry out, cut into shards that are each written once.

Shards are dealt out by number: part r of n takes shards r, r + n, … of all splits. A shard is the same whoever makes
it, so nothing needs to be agreed on, and what is there already is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.settings import Settings
from tdsm.data import Data, DataConfig, ImageSet, load_data
from tdsm.data.imageset import SPLITS
from tdsm.features.callable import FieldFeatures
from tdsm.features.config import MapConfig
from tdsm.features.extract import feature_origin
from tdsm.features.formats import Format, Rows
from tdsm.features.registry import FORMATS
from tdsm.features.store import shard_ranges

Item = TypeVar("Item")
Decoding = Callable[..., Any]  # wraps the loop that decodes images


class Job(Settings):
    """All that decides a store: paths and settings, no tensors, so that it can be sent anywhere as JSON."""

    field: str
    field_hash: str | None = None  # what the field at the path must hash to
    heads: tuple[int, int] = (4, 8)
    data: DataConfig
    seed: int
    features: tuple[str, ...]
    maps: MapConfig
    to: str
    format: str
    shard_samples: int
    device: str = "auto"


@dataclass(frozen=True)
class Unit:
    """One shard of one split: which samples it holds."""

    split: str
    index: int
    rows: range

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.split}/shard-{self.index:05d}"


class Work:
    """A job taken up by this process: its field and images are loaded.

    Raises:
        CheckpointError: If the field is not there, or another than the job's.
        DataError: If the images cannot be used.
        UsageError: If a feature is unknown, or the images' channels are not the field's.
    """

    def __init__(self, job: Job, decoding: Decoding | None = None):
        self.features = FieldFeatures(job.field, job.features, job.maps, job.device, job.heads)
        if job.field_hash not in (None, self.features.field_hash):
            raise CheckpointError(f"{job.field}: the field is another than the one the job was made for.")
        self.job = job.model_copy(update={"field_hash": self.features.field_hash})
        self.data: Data = load_data(job.data, job.seed, decoding)
        channels, seen = self.features.field.config.channels, self.data.train.channels
        if channels != seen:
            raise UsageError(
                f"extract: the field reads {channels} channels, the images have {seen}. Set --data.channels "
                f"{'grey' if channels == 1 else 'rgb'}."
            )
        self.folder = Path(job.to)

    @property
    def format(self) -> Format:
        """In which form the store is kept."""
        return FORMATS[self.job.format]

    def images(self, split: str) -> ImageSet:
        """Return the samples of a split."""
        return getattr(self.data, split)

    @cached_property
    def units(self) -> list[Unit]:
        """All shards of all splits, in order."""
        ranges = {split: enumerate(shard_ranges(len(self.images(split)), self.job.shard_samples)) for split in SPLITS}
        return [Unit(split, index, rows) for split, numbered in ranges.items() for index, rows in numbered]

    @cached_property
    def origins(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What each feature of each split is made from."""
        return {split: self._origins(self.images(split).fingerprint()) for split in SPLITS}

    def fault(self, unit: Unit) -> str | None:
        """Say why a shard does not count: it is missing, damaged, or made from something else; None if it counts."""
        folder, ids = self.folder / unit.split, self.images(unit.split).ids[unit.rows.start : unit.rows.stop]
        return self.format.fault(folder, unit.index, ids, self.origins[unit.split])

    def make(self, unit: Unit, advance: Callable[[int], None] = lambda count: None) -> None:
        """Compute and write one shard, telling how many samples were done.

        Raises:
            NonFiniteError: If a value is not finite or does not fit its dtype.
        """
        images, parts = self.images(unit.split), []
        for rows in torch.tensor(unit.rows).split(self.job.maps.batch_size):
            parts.append(self.features({"image": images.bytes(rows).cpu().numpy()}))
            advance(len(rows))
        features = {name: np.concatenate([part[name] for part in parts]) for name in self.job.features}
        here = slice(unit.rows.start, unit.rows.stop)
        rows = Rows(images.ids[here], images.labels[here], images.classes)
        self.format.write(self.folder / unit.split, unit.index, features, rows, self.origins[unit.split])

    def probe(self, count: int = 1) -> Mapping[str, np.ndarray]:
        """Compute the features of the first images."""
        return self.features({"image": self.data.train.bytes(range(min(count, len(self.data.train)))).cpu().numpy()})

    def _origins(self, data: str) -> dict[str, dict[str, Any]]:
        return {name: feature_origin(name, self.features.field_hash, data, self.job.maps) for name in self.job.features}


def part_of(text: str, process: int = 0, processes: int = 1) -> tuple[int, int]:
    """Read which part of the work is to be done here: (first shard, every how many); processes share it out.

    >>> part_of("1/1"), part_of("3/40"), part_of("3/40", process=1, processes=2)
    ((0, 1), (2, 40), (42, 80))

    Raises:
        UsageError: If it is not I/N with I from 1 to N.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shards {text}: expected PART/PARTS with PART from 1 to PARTS, such as 3/40.")
    return int(number) - 1 + int(count) * process, int(count) * processes


def dealt(units: Sequence[Item], part: tuple[int, int]) -> list[Item]:
    """Return the shards of a part."""
    first, step = part
    return list(units[first::step])
