"""Tar files in WebDataset's layout: KEY.jpg beside KEY.cls or KEY.json, read in place and never unpacked."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.decode import Encoded, refuse_bad
from tdsm.data.names import DEFAULT, choose_config, group_files
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled
from tdsm.data.walk import ENDINGS, visible_files

LABEL_KEYS = ("label", "cls", "class")
SHOWN = 5  # kinds of files in a message
MAX_LABEL = 2**16  # bytes of a .cls or .json member


class Member(NamedTuple):
    """Where the bytes of a file lie in its tar."""

    tar: int
    offset: int
    size: int


class Sample(NamedTuple):
    """The files of one key, as far as it has them."""

    image: Member | None
    label: Member | None
    label_ending: str


def load_tar(where: str, config: DataConfig) -> Source:
    """Load a folder of .tar files, or one.

    Files of a tar whose names are equal up to the first dot are one sample: its image, and its label in .cls (an
    integer or a name) or in .json (under `label_column`, or label, cls, class). Tars are split and configured by
    their names as parquet files are. Only places are kept in memory; images are read when asked for.

    Raises:
        DataError: If a tar is damaged or packed, keys repeat, or some samples have a label and others none.
        UsageError: If there are several configs and none was chosen.
    """
    splits, notes = _split_files(Path(where), config)
    ignored: Counter[str] = Counter()
    samples = {split: _samples(files, ignored) for split, files in splits.items()}
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.most_common(SHOWN)))
    if not any(samples.values()):
        raise DataError(
            f"{where}: no images in its tars (seen: {kinds or 'nothing'}). Expected KEY.png or the like beside "
            "KEY.cls, where KEY ends at the first dot."
        )
    _refuse_folders(samples, where)
    values = {split: _labels(samples[split], files, config.label_column) for split, files in splits.items()}
    classes, labels = encode_labels(values)
    fetch = {split: _fetch(samples[split], files) for split, files in splits.items()}
    passed_over = (f"{ignored.total()} files in tars were not read: {kinds}.",) if ignored else ()
    tars = [file for files in splits.values() for file in files]
    return Source(classes, labels, fetch, (*notes, *passed_over), made_of=lambda: tars)


def _split_files(path: Path, config: DataConfig) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    if path.is_file():
        choose_config([DEFAULT], config.config, str(path))
        return {"train": [path]}, ()
    if not (found := visible_files(path, ".tar")):
        raise DataError(f"{path}: no .tar files here.")
    return group_files(found, path, config.config)


def _refuse_folders(samples: dict[str, dict[str, Sample]], where: str) -> None:
    """Refuse images without labels that lie in several folders, which may be their classes."""
    found = {key: sample.label for named in samples.values() for key, sample in named.items()}
    folders = sorted({str(PurePosixPath(key).parent) for key in found})
    if len(folders) > 1 and not any(found.values()):
        raise DataError(
            f"{where}: holds images in {len(folders)} folders ({', '.join(folders[:5])}), and no labels beside them. "
            "If the folders are classes or splits, unpack it and pass the folder; if not, put all images into one."
        )


def _samples(files: list[Path], ignored: Counter[str]) -> dict[str, Sample]:
    """List the samples of tars that hold an image, by key, in their order."""
    samples: dict[str, Sample] = {}
    for number, file in enumerate(files):
        here: dict[str, Sample] = {}
        for name, member in _members(file, number, ignored):
            path = PurePosixPath(name)
            stem, _, ending = path.name.partition(".")
            key = str(path.with_name(stem))
            here[key] = _with(here.get(key, Sample(None, None, "")), member, ending.lower(), f"{file}: {name}", ignored)
        if repeated := samples.keys() & here.keys():
            raise DataError(f"{file}: sample {min(repeated)!r} is in another tar too, expected each key once.")
        ignored["labels without an image"] += sum(sample.image is None for sample in here.values())
        samples |= {key: sample for key, sample in here.items() if sample.image is not None}
    ignored += Counter()  # drops zeros
    return samples


def _with(sample: Sample, member: Member, ending: str, name: str, ignored: Counter[str]) -> Sample:
    """Add a file to its sample."""
    if f".{ending}" in ENDINGS:
        if sample.image is not None:
            raise DataError(f"{name}: a second image of its key, expected one.")
        return sample._replace(image=member)
    if ending in ("cls", "json") and (sample.label is None or ending == "cls"):
        return sample._replace(label=member, label_ending=ending)
    ignored[f".{ending}" if ending else "without an ending"] += 1
    return sample


def _members(file: Path, number: int, ignored: Counter[str]) -> Iterator[tuple[str, Member]]:
    """Walk over the plain files of a tar; nothing is unpacked."""
    size, last = os.path.getsize(file), -1
    try:
        with tarfile.TarFile(file) as archive:
            for member in archive:
                if member.size < 0 or member.offset <= last:  # would be read for ever
                    raise DataError(f"{file}: its entries go backwards at {member.name!r}. Copy it again.")
                last = member.offset
                hidden = any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member.name).parts)
                if not member.isreg() or member.issparse() or hidden:
                    ignored["hidden" if hidden else "links or devices"] += not member.isdir()
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{file}: ends within {member.name!r}. Copy it again.")
                yield member.name, Member(number, member.offset_data, member.size)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read as an unpacked tar ({error}). Copy it again, or gunzip it.") from error


def _labels(samples: dict[str, Sample], files: list[Path], column: str | None) -> np.ndarray:
    bare = [(key, "has no .cls or .json") for key, sample in samples.items() if sample.label is None]
    if len(bare) == len(samples):
        return unlabelled(len(samples))
    refuse_bad(bare)
    found = [_label(key, sample, files, column) for key, sample in samples.items()]
    if len({type(label) for label in found}) > 1:
        raise DataError(f"{files[0].parent}: labels are integers in some samples and strings in others.")
    return np.array(found)


def _label(key: str, sample: Sample, files: list[Path], column: str | None) -> int | str:
    assert sample.label is not None
    if sample.label.size > MAX_LABEL:
        raise DataError(f"{key}.{sample.label_ending}: {sample.label.size} bytes, expected a label.")
    with open(files[sample.label.tar], "rb") as handle:
        text = _bytes(handle, sample.label)
    try:
        value: Any = text.decode().strip()
        if sample.label_ending == "json":
            value = _field(json.loads(value), column)
        elif re.fullmatch(r"-?\d+", value, re.ASCII):
            value = int(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{key}.{sample.label_ending}: cannot be read ({error}).") from error
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{key}.{sample.label_ending}: label is {value!r}, expected an integer or a string.")
    return value


def _field(record: Any, column: str | None) -> Any:
    """Take the label out of a JSON record."""
    keys = [column] if column else [key for key in LABEL_KEYS if isinstance(record, dict) and key in record]
    if not isinstance(record, dict) or not keys or keys[0] not in record:
        seen = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"holds {seen}, expected a label under {column or ' or '.join(LABEL_KEYS)}; set label_column")
    return record[keys[0]]


def _fetch(samples: dict[str, Sample], files: list[Path]) -> Fetch:
    keys, members = list(samples), np.array([sample.image for sample in samples.values()], dtype=np.int64)

    def fetch(rows: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        for number, here in groupby(rows, key=lambda row: members[row, 0]):
            with open(files[number], "rb") as handle:
                for row in here:
                    yield f"{files[number].name} {keys[row]}", _bytes(handle, Member(*members[row].tolist()))

    return fetch


def _bytes(handle: Any, member: Member) -> bytes:
    handle.seek(member.offset)
    return handle.read(member.size)
