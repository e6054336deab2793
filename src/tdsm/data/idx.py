"""Images and labels in MNIST's idx files: train-images-idx3-ubyte.gz beside train-labels-idx1-ubyte.gz."""

import gzip
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.names import Location, choose_config, locate
from tdsm.data.source import Source, array_source, unlabelled
from tdsm.data.walk import visible_files

IDX = re.compile(
    r"(?P<name>.*?)[-_.]?(?P<what>image|label)s?[-_.]idx\d?([-_.]?(u?byte|short|int|float|double))?(?P<packed>\.gz)?",
    re.IGNORECASE,
)
UBYTE = 8  # the idx code of the one type images and labels come in
MAX_RATIO = 1032  # deflate packs no tighter


def load_idx(where: str, config: DataConfig) -> Source:
    """Load a folder of idx files, packed by gzip or not.

    Names say the split (train, t10k or test) and, where there are several, the config (emnist-letters-train); so do
    the folders they lie in. Images without a file of labels are without labels. A part that is there twice, such as
    packed and unpacked, is read once if both hold the same.

    Raises:
        DataError: If a file is missing, of another type, or shorter or longer than its header says.
        UsageError: If there are several configs and none was chosen.
    """
    root = Path(where)
    found = {file: match for file in visible_files(root) if (match := IDX.fullmatch(file.name))}
    if not found:
        raise DataError(f"{root}: no idx files here, expected such as train-images-idx3-ubyte.gz.")
    places = {file: _place(file.relative_to(root), match) for file, match in found.items()}
    chosen = choose_config({place.config for place in places.values()}, config.config, where)
    parts: dict[str, dict[str, list[Path]]] = {"image": {}, "label": {}}
    for file in sorted(found):
        if places[file].config == chosen:
            parts[found[file]["what"].lower()].setdefault(places[file].split, []).append(file)
    if alone := parts["label"].keys() - parts["image"].keys():
        raise DataError(f"{root}: {sorted(alone)} have labels only, expected a file of images for each.")
    images = {split: _read_once(files, dims=3) for split, files in parts["image"].items()}
    labels = {split: _read_once(files, dims=1) for split, files in parts["label"].items()}
    for split, array in images.items():
        if len(array) != len(labels.setdefault(split, unlabelled(len(array)))):
            raise DataError(f"{root}: {len(array)} images but {len(labels[split])} labels in {split}.")
    source = array_source(images, labels, sorted(found))
    return replace(source, notes=(*source.notes, *_notes(parts)))


def _place(path: Path, match: re.Match[str]) -> Location:
    """Read config and split off a path; folders that are called as the files in them say nothing more."""
    folders = [part for part in path.parts[:-1] if not IDX.fullmatch(part)]
    return locate(Path(*folders, match["name"] or "train"))


def _read_once(files: list[Path], dims: int) -> np.ndarray:
    """Read a part; if it is there twice, both must hold the same."""
    first, *others = [read_idx(file, dims) for file in files]
    for file, other in zip(files[1:], others, strict=True):
        if not np.array_equal(first, other):
            raise DataError(f"{file}: {files[0].name} is the same part and holds something else. Remove one of them.")
    return first


def _notes(parts: Mapping[str, Mapping[str, list[Path]]]) -> list[str]:
    files = [files for found in parts.values() for files in found.values()]
    notes = [f"{', '.join(f.name for f in same)} hold the same and were read once." for same in files if len(same) > 1]
    if any("emnist" in file.name.lower() for same in files for file in same):
        notes.append("EMNIST's files hold each image mirrored at its diagonal (rows are columns); it is read as it is.")
    return notes


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Read one file of unsigned bytes, or map it where it is not packed.

    Its size is checked against its header before anything is allocated.

    Raises:
        DataError: If it cannot be read, or is not what its header says.
    """
    is_packed = path.name.lower().endswith(".gz")
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
