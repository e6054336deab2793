"""Look at a few images of a source, before all of them are read."""

import time
from typing import NamedTuple

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.decode import decode_batch, refuse_bad
from tdsm.data.load import open_source

FEW = 100


class Glance(NamedTuple):
    """What a few images of a source are like; `sizes` are (height, width), `seconds` those of reading one."""

    channels: int
    sizes: frozenset[tuple[int, int]]
    images: int  # of the whole source
    classes: int
    seconds: float


def glance(config: DataConfig, few: int = FEW) -> Glance:
    """Decode a few images, spread evenly over all splits.

    >>> seen = glance(DataConfig(source="digits"))
    >>> seen.channels, seen.sizes, seen.images, seen.classes
    (1, frozenset({(8, 8)}), 1797, 10)

    Raises:
        UsageError: If the source's name or an option cannot be used.
        DataError: If none of the images can be used.
    """
    source = open_source(config)
    places = [(split, row) for split, labels in source.labels.items() for row in range(len(labels))]
    if not places:
        raise DataError(f"{config.source}: no images here.")
    chosen = places[:: max(1, len(places) // few)]
    began = time.monotonic()
    named = (image for split, row in chosen for image in source.fetch[split]([row]))
    said = decode_batch(named, config.channels, config.image_size).said
    seconds = (time.monotonic() - began) / len(chosen)
    if not said.read:
        refuse_bad(said.bad)
    return Glance(1 if said.grey == said.read else 3, frozenset(said.sizes), len(places), len(source.classes), seconds)
