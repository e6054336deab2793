"""Cut the rows that are to be decoded into pieces, and read these from a source."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from tdsm.data.decode import Encoded
from tdsm.data.source import Source

BLOCK_BYTES = 2**25  # of a piece's pixels


class Piece(NamedTuple):
    """Some rows of a split, decoded together."""

    number: int
    split: str
    rows: Int64[Tensor, "rows"]


def cut(rows: Mapping[str, Int64[Tensor, "rows"]], size: int) -> list[Piece]:
    """Cut the rows of each split into pieces, for images of `size` bytes."""
    parts = [(split, part) for split, wanted in rows.items() for part in wanted.split(max(1, BLOCK_BYTES // size))]
    return [Piece(number, *part) for number, part in enumerate(parts)]


def read(
    source: Source, pieces: Iterable[Piece], ticks: Iterator[int]
) -> Iterator[tuple[Piece, Iterator[tuple[str, Encoded]]]]:
    """Read pieces in order, those of a split in one go; each is to be used up before the next.

    Args:
        source: Where they are.
        pieces: What is read.
        ticks: Asked for its next item with every image.
    """
    for split, group in groupby(pieces, key=lambda piece: piece.split):
        here = list(group)
        named = source.fetch[split](torch.cat([piece.rows for piece in here]).tolist())
        for piece in here:
            yield piece, (item for item, _ in zip(islice(named, len(piece.rows)), ticks, strict=False))
