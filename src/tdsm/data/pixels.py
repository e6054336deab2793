"""Decode the images of a source: few into memory, many once into files that are mapped.

    $XDG_CACHE_HOME/tdsm/images/KEY/block-00000/ …       KEY names the source, the rows, and how they are decoded

A block counts if it is whole and was made from just that, so a decoding that was killed goes on where it stopped, and
runs that read the same images share them. What is gone or damaged is decoded again; what is old may be deleted.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int64
from torch import Tensor

from tdsm.base import io
from tdsm.base.cache import cache_folder, private_folder
from tdsm.base.errors import ResourceError
from tdsm.base.rows import Rows
from tdsm.data import blocks, decode
from tdsm.data.config import DataConfig
from tdsm.data.decode import Refused, Said, decode_batch, settle
from tdsm.data.hashes import image_hashes
from tdsm.data.imageset import ImageSet
from tdsm.data.mapped import MappedImages
from tdsm.data.source import Source
from tdsm.data.workers import Workers, cores

BLOCK_BYTES = 2**25  # of pixels
MEBIBYTE = 2**20
DECODING = ("channels", "image_size", "image_column", "config")  # the settings that decide which pixels there are
Progress = Callable[[Iterable, str], Iterable]


class Piece(NamedTuple):
    """Some rows of a split, decoded together."""

    number: int
    split: str
    rows: Int64[Tensor, "rows"]


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
    pieces = list(_cut(rows, max(1, BLOCK_BYTES // size)))
    ticks = iter(progress(range(count), "decode images") if progress else range(count))
    if source.made_of is None or size * count <= config.memory_limit * MEBIBYTE:
        found = [decode_batch(named, config.channels, config.image_size) for _, named in _read(source, pieces, ticks)]
        said = settle([batch.said for batch in found], skip_bad=config.skip_bad)
        pixels, hashes = [torch.from_numpy(batch.pixels) for batch in found], None
        read = [torch.from_numpy(batch.read) for batch in found]
    else:
        folder = _folder(source, rows, size, config)
        with _alone(folder):
            said = _keep(folder, source, pieces, size, config, ticks)
        stored = [blocks.read_block(_place(folder, piece)) for piece in pieces]
        pixels, hashes = [block.pixels for block in stored], [block.hashes for block in stored]
        read = [block.read for block in stored]
    next(ticks, None)
    kept = {split: [p.rows[r] for p, r in zip(pieces, read, strict=True) if p.split == split] for split in rows}
    return _sets(source, {split: torch.cat(parts) for split, parts in kept.items()}, pixels, hashes), said


def _bytes_of_one(source: Source, rows: Mapping[str, Tensor], config: DataConfig) -> int:
    """Return the bytes of the first image that can be read, once it is decoded."""
    for split, wanted in rows.items():
        for place in range(len(wanted)):
            for _, image in source.fetch[split]([int(wanted[place])]):
                try:
                    return decode.decode(image, config.channels, config.image_size).pixels.nbytes
                except Refused:
                    continue
    return 1


def _cut(rows: Mapping[str, Tensor], length: int) -> Iterator[Piece]:
    parts = ((split, part) for split, wanted in rows.items() for part in wanted.split(length))
    return (Piece(number, split, part) for number, (split, part) in enumerate(parts))


def _read(source: Source, pieces: Iterable[Piece], ticks: Iterator) -> Iterator[tuple[Piece, Iterator]]:
    """Read pieces in order, those of a split in one go; each is to be used up before the next."""
    for split, group in groupby(pieces, key=lambda piece: piece.split):
        here = list(group)
        named = source.fetch[split](torch.cat([piece.rows for piece in here]).tolist())
        for piece in here:
            yield piece, (item for item, _ in zip(islice(named, len(piece.rows)), ticks, strict=False))


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


# ---------------------------------------------------------------- in files


def _folder(source: Source, rows: Mapping[str, Tensor], size: int, config: DataConfig) -> Path:
    """Name the folder of just these images: of other files, rows, settings or decoders it is another one."""
    assert source.made_of is not None
    digest = hashlib.sha256()
    recipe = {key: getattr(config, key) for key in DECODING} | {"block": BLOCK_BYTES // size}
    recipe |= {"pillow": version("pillow"), "decoder": io.file_hash(Path(decode.__file__))}
    digest.update(json.dumps(recipe).encode())
    for part in source.made_of():
        digest.update(f"{part if isinstance(part, str) else _stamp(part)}\n".encode("utf-8", "surrogateescape"))
    for split, wanted in rows.items():
        digest.update(f"{split} {len(wanted)}\n".encode())
        digest.update(wanted.numpy().data)
    try:
        parent = cache_folder() / "images" if config.cache is None else Path(config.cache).expanduser().absolute()
        return private_folder(parent) / digest.hexdigest()[:32]
    except OSError as error:
        raise _unusable(config.cache or "the cache", error) from error


def _stamp(file: Path) -> str:
    """Name a file and what of it changes with its content."""
    try:
        seen = file.stat()
    except OSError:
        return f"{file.absolute()} cannot be read"
    return f"{file.absolute()} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _unusable(folder: Path | str, error: OSError) -> ResourceError:
    reason = error.strerror or str(error)
    return ResourceError(
        f"{folder}: decoded images cannot be kept here ({reason}). Free it, name another folder (--data.cache), use "
        "fewer images (--data.max-train), or keep them in memory (--data.memory-limit)."
    )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(folder, error) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Own a folder; wait for another process that decodes the same images."""
    lock = FileLock(f"{folder}.lock")
    with _writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            warnings.warn("Another process is decoding these images; waiting for it.", stacklevel=2)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _place(folder: Path, piece: Piece) -> Path:
    return folder / f"block-{piece.number:05d}"


def _made_from(folder: Path, piece: Piece) -> dict[str, Any]:
    return {"images": folder.name, "block": piece.number}


def _keep(folder: Path, source: Source, pieces: list[Piece], size: int, config: DataConfig, ticks: Iterator) -> Said:
    """Decode the blocks that are not there, and return what was said of all of them."""
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        io.sweep(folder)
    missing = []
    for piece in pieces:
        if (reason := blocks.fault(_place(folder, piece), _made_from(folder, piece))) is None:
            next(islice(ticks, len(piece.rows), len(piece.rows)), None)
            continue
        missing.append(piece)
        if reason != "missing":
            warnings.warn(f"Decoded again: {reason}", stacklevel=2)
    _refuse_full(folder, size * sum(len(piece.rows) for piece in missing))
    _decode(folder, _read(source, missing, ticks), config, len(missing))
    said = [blocks.read_said(_place(folder, piece)) for piece in pieces]
    if len({shape for part in said for shape in part.sizes}) > 1:  # of no use
        shutil.rmtree(folder)
    return settle(said, skip_bad=config.skip_bad)


def _refuse_full(folder: Path, needed: int) -> None:
    if needed > 0.95 * (free := shutil.disk_usage(folder).free):
        raise _unusable(folder, OSError(f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"))


def _decode(folder: Path, read: Iterator[tuple[Piece, Iterator]], config: DataConfig, count: int) -> None:
    """Decode and write blocks: pixels here, encoded images in as many processes as there are cores."""
    several, workers = min(cores(), count), None
    with ExitStack() as stack:
        for piece, named in read:
            first, place, made_from = next(named), _place(folder, piece), _made_from(folder, piece)
            if several == 1 or isinstance(first[1], np.ndarray):
                batch = decode_batch(chain([first], named), config.channels, config.image_size)
                with _writing(folder):
                    blocks.write_block(place, batch, made_from)
                continue
            workers = workers or stack.enter_context(Workers(several))
            job = {"channels": config.channels, "size": config.image_size, "made_from": made_from}
            workers.decode(place, [first, *named], job)
        if workers is not None:
            workers.finish()
