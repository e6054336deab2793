"""Blocks of decoded images on disk: made where they are missing, shared between runs, looked at before use.

    $XDG_CACHE_HOME/tdsm/images/KEY/block-00000/ …       KEY names the source, the rows, and how they are decoded

A block counts if it is whole and was made from just that, so a decoding that was killed goes on where it stopped. What
is gone or damaged is decoded again; what is old may be deleted.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from tdsm.base import io
from tdsm.base.cache import cache_folder, private_folder
from tdsm.base.errors import ResourceError
from tdsm.data import blocks, decode, pieces
from tdsm.data.blocks import Block
from tdsm.data.config import DataConfig
from tdsm.data.decode import Said, decode_batch, settle
from tdsm.data.pieces import Piece
from tdsm.data.source import Source
from tdsm.data.workers import Workers, cores

DECODING = ("channels", "image_size", "image_column", "config")  # the settings that decide which pixels there are


def stored(
    source: Source, rows: Mapping[str, Tensor], parts: list[Piece], size: int, config: DataConfig, ticks: Iterator[int]
) -> tuple[list[Block], Said]:
    """Return the blocks of these pieces, mapped, and what decoding said of all of them; decode what is not there.

    Args:
        source: Where the images are.
        rows: Those to decode, of each split.
        parts: The same in pieces, a block each.
        size: Bytes of a decoded image.
        config: How they are decoded, and where they are kept.
        ticks: Asked for its next item with every image.

    Raises:
        DataError: If images cannot be used.
        ResourceError: If they cannot be kept there, or a process that decoded ended.
    """
    folder = _folder(source, rows, size, config)
    with _alone(folder):
        missing = _missing(folder, parts, ticks)
        _refuse_full(folder, size * sum(len(piece.rows) for piece in missing))
        _make(folder, source, missing, config, ticks)
        said = [blocks.read_said(_place(folder, piece)) for piece in parts]
        if len({shape for part in said for shape in part.sizes}) > 1:  # of no use
            shutil.rmtree(folder)
        found = settle(said, skip_bad=config.skip_bad)
        return [blocks.read_block(_place(folder, piece)) for piece in parts], found


def _folder(source: Source, rows: Mapping[str, Tensor], size: int, config: DataConfig) -> Path:
    """Name the folder of just these images: of other files, rows, settings or decoders it is another one."""
    assert source.made_of is not None
    digest = hashlib.sha256()
    recipe = {key: getattr(config, key) for key in DECODING} | {"block": pieces.BLOCK_BYTES // size}
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


def _place(folder: Path, piece: Piece) -> Path:
    return folder / f"block-{piece.number:05d}"


def _made_from(folder: Path, piece: Piece) -> dict[str, str | int]:
    return {"images": folder.name, "block": piece.number}


def _missing(folder: Path, parts: list[Piece], ticks: Iterator[int]) -> list[Piece]:
    """List the blocks that do not count; of those damaged say so."""
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        io.sweep(folder)
    missing = []
    for piece in parts:
        if (reason := blocks.fault(_place(folder, piece), _made_from(folder, piece))) is None:
            next(islice(ticks, len(piece.rows), len(piece.rows)), None)
            continue
        missing.append(piece)
        if reason != "missing":
            warnings.warn(f"Decoded again: {reason}", stacklevel=2)
    return missing


def _make(folder: Path, source: Source, missing: list[Piece], config: DataConfig, ticks: Iterator[int]) -> None:
    """Decode and write blocks: pixels here, encoded images in as many processes as there are cores."""
    several, workers = min(cores(), len(missing)), None
    with ExitStack() as stack:
        for piece, named in pieces.read(source, missing, ticks):
            first, place, made_from = next(named), _place(folder, piece), _made_from(folder, piece)
            if several == 1 or isinstance(first[1], np.ndarray):
                batch = decode_batch(chain([first], named), config.channels, config.image_size)
                with _writing(folder):
                    blocks.write_block(place, batch, made_from)
                continue
            workers = workers or stack.enter_context(Workers(several))
            job = {"channels": config.channels, "size": config.image_size, "made_from": made_from}
            encoded = [first, *named]
            with _writing(folder):
                workers.decode(place, encoded, job)
        if workers is not None:
            with _writing(folder):
                workers.finish()


def _unusable(folder: Path | str, error: OSError) -> ResourceError:
    reason = error.strerror or str(error)
    return ResourceError(
        f"{folder}: decoded images cannot be kept here ({reason}). Free it, name another folder (--data.cache), use "
        "fewer images (--data.max-train), or keep them in memory (--data.memory-limit)."
    )


def _refuse_full(folder: Path, needed: int) -> None:
    if needed > 0.95 * (free := shutil.disk_usage(folder).free):
        raise _unusable(folder, OSError(f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"))


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
