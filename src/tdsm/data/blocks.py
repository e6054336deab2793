"""A block of decoded images on disk: a sealed folder that says what it was made from.

images.safetensors   pixels (samples, channels, height, width), which of the block's images they are, their hashes
said.json            what decoding said of them
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.data.decode import Batch, Said
from tdsm.data.hashes import image_hashes

IMAGES, SAID = "images.safetensors", "said.json"


class Block(NamedTuple):
    """Images of a block, mapped from its file; positions of those that were read; their hashes."""

    pixels: UInt8[Tensor, "samples channels height width"]
    read: Int64[Tensor, "samples"]
    hashes: Int64[Tensor, "samples"]


def write_block(path: Path, batch: Batch, made_from: Mapping[str, Any]) -> None:
    """Write a block at once."""

    def fill(folder: Path) -> None:
        parts = {"pixels": batch.pixels, "read": batch.read, "hashes": image_hashes(batch.pixels)}
        io.write_tensors(folder / IMAGES, {name: torch.from_numpy(part) for name, part in parts.items()})
        sizes = [[*shape, *counted] for shape, counted in batch.said.sizes.items()]
        io.write_json(folder / SAID, batch.said._asdict() | {"sizes": sizes})

    io.write_folder(path, fill, made_from)


def fault(path: Path, made_from: Mapping[str, Any]) -> str | None:
    """Say why a block does not count: it is missing or damaged; None if it counts. All its bytes are looked at."""
    if not path.is_dir():
        return "missing"
    try:
        manifest = io.verify_folder(path, holds=[IMAGES, SAID])
    except CheckpointError as error:
        return str(error)
    return None if manifest.made_from == io.plain(dict(made_from)) else f"{path}: made from something else."


def read_block(path: Path) -> Block:
    """Map a block's images."""
    return Block(**io.read_tensors(path / IMAGES))


def read_said(path: Path) -> Said:
    """Read what decoding said of a block."""
    said = io.read_object(path / SAID)
    sizes = {(height, width): (count, name) for height, width, count, name in said["sizes"]}
    return Said(said["read"], said["grey"], Counter(said["facts"]), list(map(tuple, said["bad"])), sizes)
