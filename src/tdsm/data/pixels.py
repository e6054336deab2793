"""Decode the images of a source: few into memory, many once into files that are mapped."""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from tdsm.base.rows import Rows
from tdsm.data import pieces
from tdsm.data.config import DataConfig
from tdsm.data.decode import Refused, Said, decode, decode_batch, settle
from tdsm.data.hashes import image_hashes
from tdsm.data.imageset import ImageSet
from tdsm.data.mapped import MappedImages
from tdsm.data.source import Source
from tdsm.data.store import stored

MEBIBYTE = 2**20
Progress = Callable[[Iterable, str], Iterable]


def decode_rows(
    source: Source, rows: Mapping[str, Int64[Tensor, "rows"]], config: DataConfig, progress: Progress | None
) -> tuple[dict[str, ImageSet], Said]:
    """Decode some rows of each split, once and all in one loop, so that all bad files are listed together.

    Args:
        source: Where they are.
        rows: Of each split, ascending.
        config: How they are decoded, and where they are kept.
        progress: Wraps the loop.

    Returns:
        The images of each split that were read, ids being rows, and what decoding says of all of them.

    Raises:
        DataError: If images cannot be used.
        ResourceError: If there is no place to keep them, or a process that decoded ended.
    """
    size, count = _bytes_of_one(source, rows, config), sum(map(len, rows.values()))
    parts = pieces.cut(rows, size)
    ticks = iter(progress(range(count), "decode images") if progress else range(count))
    hashes = None
    if source.made_of is None or size * count <= config.memory_limit * MEBIBYTE:
        in_order = pieces.read(source, parts, ticks)
        batches = [decode_batch(named, config.channels, config.image_size) for _, named in in_order]
        said = settle([batch.said for batch in batches], skip_bad=config.skip_bad)
        pixels = [torch.from_numpy(batch.pixels) for batch in batches]
        read = [torch.from_numpy(batch.read) for batch in batches]
    else:
        blocks, said = stored(source, rows, parts, size, config, ticks)
        pixels, read = [block.pixels for block in blocks], [block.read for block in blocks]
        hashes = [block.hashes for block in blocks]
    next(ticks, None)
    kept = {split: [p.rows[r] for p, r in zip(parts, read, strict=True) if p.split == split] for split in rows}
    return _sets(source, {split: torch.cat(ids) for split, ids in kept.items()}, pixels, hashes), said


def _bytes_of_one(source: Source, rows: Mapping[str, Tensor], config: DataConfig) -> int:
    """Return the bytes of the first image that can be read, once it is decoded."""
    for split, wanted in rows.items():
        for place in range(len(wanted)):
            for _, image in source.fetch[split]([int(wanted[place])]):
                try:
                    return decode(image, config.channels, config.image_size).pixels.nbytes
                except Refused:
                    continue
    return 1


def _sets(
    source: Source, rows: Mapping[str, Tensor], pixels: list[Tensor], hashes: list[Tensor] | None
) -> dict[str, ImageSet]:
    """Make a set of each split's images: in memory, or where there are hashes already, mapped."""
    depth = max(part.shape[1] for part in pixels if len(part))
    whole = [part.expand(-1, depth, -1, -1) for part in pixels if len(part)]
    images: Tensor | MappedImages
    if hashes is None:
        images, known = whole[0] if len(whole) == 1 else torch.cat(whole), None
    else:
        images = MappedImages(Rows(whole), torch.arange(sum(map(len, whole))))
        known = torch.cat([_hashes(part, of, depth) for part, of in zip(pixels, hashes, strict=True) if len(part)])
    sets, start = {}, 0
    for split, ids in rows.items():
        stop = start + len(ids)
        chosen = images[start:stop] if isinstance(images, Tensor) else images.take(torch.arange(start, stop))
        sets[split] = ImageSet(chosen, source.labels[split][ids], ids, source.classes)
        if known is not None:
            sets[split].with_hashes(known[start:stop])
        start = stop
    return sets


def _hashes(pixels: Tensor, hashes: Tensor, depth: int) -> Tensor:
    """Return a block's hashes; of grey images that stand among coloured ones, those of three channels."""
    if pixels.shape[1] == depth:
        return hashes
    return torch.from_numpy(image_hashes(pixels.expand(-1, depth, -1, -1).numpy()))
