"""Images and labels in MNIST's idx files: train-images-idx3-ubyte.gz beside train-labels-idx1-ubyte.gz."""

import gzip
import os
import re
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.names import choose_config, locate
from tdsm.data.source import Source, array_source

IDX = re.compile(r"(?P<name>.*?)[-_.]?(?P<what>image|label)s?[-_.]idx\d?([-_.]?u?byte)?(?P<packed>\.gz)?")
UBYTE = 8  # the idx code of the one type images and labels come in
MAX_RATIO = 1032  # deflate packs no tighter


def load_idx(where: str, config: DataConfig) -> Source:
    """Load a folder of idx files, packed by gzip or not.

    Names say the split (train, t10k or test) and, where there are several, the config (emnist-letters-train).

    Raises:
        DataError: If a file is missing, of another type, or shorter or longer than its header says.
        UsageError: If there are several configs and none was chosen.
    """
    root = Path(where)
    files = sorted(root.iterdir()) if root.is_dir() else []
    found = {file: match for file in files if (match := IDX.fullmatch(file.name))}
    if not found:
        raise DataError(f"{root}: no idx files here, expected such as train-images-idx3-ubyte.gz.")
    places = {file: locate(Path(match["name"] or "train")) for file, match in found.items()}
    chosen = choose_config({place.config for place in places.values()}, config.config, where)
    parts: dict[str, dict[str, Path]] = {"image": {}, "label": {}}
    for file, match in found.items():
        if places[file].config == chosen:
            _add(parts[match["what"]], places[file].split, file)
    if alone := parts["image"].keys() ^ parts["label"].keys():
        raise DataError(f"{root}: {sorted(alone)} have images or labels only, expected a file of each.")
    images = {split: read_idx(file, dims=3) for split, file in parts["image"].items()}
    labels = {split: read_idx(file, dims=1) for split, file in parts["label"].items()}
    for split, array in images.items():
        if len(array) != len(labels[split]):
            raise DataError(f"{root}: {len(array)} images but {len(labels[split])} labels in {split}.")
    return array_source(images, labels, [file for files in parts.values() for file in files.values()])


def _add(files: dict[str, Path], split: str, file: Path) -> None:
    if split in files:
        raise DataError(f"{file}: {files[split].name} is the same part. Remove one of them.")
    files[split] = file


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Read one file of unsigned bytes, or map it where it is not packed.

    Its size is checked against its header before anything is allocated.

    Raises:
        DataError: If it cannot be read, or is not what its header says.
    """
    is_packed = path.name.endswith(".gz")
    try:
        with gzip.open(filename=path, mode="rb") if is_packed else open(path, "rb") as file:
            header = file.read(4 + 4 * dims)
            if header[:4] != bytes([0, 0, UBYTE, dims]) or len(header) < 4 + 4 * dims:
                raise DataError(f"{path}: starts with {header[:4].hex()}, expected 000008{dims:02x} (unsigned bytes).")
            shape = struct.unpack(f">{dims}I", header[4:])
            _refuse_impossible(path, shape, is_packed)
            if not is_packed and os.path.getsize(path) == file.tell() + prod(shape) > file.tell():
                return np.asarray(np.memmap(path, np.uint8, "r", file.tell(), shape))
            data = file.read(prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Copy it again.") from error
    if len(data) != prod(shape):
        more = "more" if len(data) > prod(shape) else f"{len(data)}"
        raise DataError(f"{path}: holds {more} bytes, its header says {prod(shape)} {shape}. Copy it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _refuse_impossible(path: Path, shape: tuple[int, ...], is_packed: bool) -> None:
    size = os.path.getsize(path)
    if prod(shape) > size * (MAX_RATIO if is_packed else 1):
        raise DataError(f"{path}: {size} bytes cannot hold the {prod(shape)} its header says {shape}. Copy it again.")
