"""Read the arrays of an .npz file, none of whose sizes is believed before it is checked."""

import os
import struct
import sys
import zipfile
import zlib
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from tdsm.base.errors import DataError

KINDS = "biufSU"
MAX_RATIO = 1032  # deflate packs no tighter
READ_BYTES = 2**20
LOCAL_HEADER, LOCAL_LENGTHS = 30, 26  # bytes of a member's header before its name, and where lengths stand in it
PLAIN = "Expected np.savez of plain arrays; object arrays and pickles are refused."


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays by name, mapped where they are not packed.

    The sizes that headers and the archive name are compared with each other, with the bytes at hand and with this
    machine's memory before anything is allocated.

    Raises:
        DataError: If the file is damaged, holds objects, or says what cannot be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_impossible(path, archive.infolist())
            return {info.filename.removesuffix(".npy"): _array(path, archive, info) for info in archive.infolist()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: cannot be read as .npz ({error}). {PLAIN}") from error


def _refuse_impossible(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse archives whose members repeat, overlap, are packed tighter than is possible, or exceed the memory."""
    names = Counter(info.filename for info in members)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{path}: holds {repeated[0]!r} {names[repeated[0]]} times, expected each array once.")
    if other := [info.filename for info in members if not info.filename.endswith(".npy")]:
        raise DataError(f"{path}: cannot be read as .npz: holds {other[0]!r}, expected arrays (.npy) only.")
    if sum(info.compress_size for info in members) > os.path.getsize(path):
        raise DataError(f"{path}: its members overlap or are larger than the file. {PLAIN}")
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: cannot be read as .npz: {info.filename} is packed in another way. {PLAIN}")
        if info.file_size > MAX_RATIO * (info.compress_size + 1):
            raise DataError(
                f"{path}: {info.filename} says {info.file_size} bytes packed in {info.compress_size}, more than any "
                "packing gives. Save it again."
            )
    if (total := sum(info.file_size for info in members if info.compress_type)) > (memory := _memory()):
        raise DataError(
            f"{path}: unpacks to {total / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB of memory. Save "
            "it unpacked (np.savez)."
        )


def _memory() -> int:
    """Return the bytes of memory of this machine; on Windows, which has no such call, as many as can be counted."""
    if not hasattr(os, "sysconf"):
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read one array after its header was checked against the member's size."""
    with archive.open(name=info, mode="r") as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{path}: {info.filename} is of npy version {version}, expected (1, 0) or (2, 0).")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        if dtype.kind not in KINDS:
            raise DataError(f"{path}: {info.filename} holds {dtype}. {PLAIN}")
        expected, held = prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if min(shape, default=0) < 0 or expected != held:
            raise DataError(
                f"{path}: {info.filename} has a header of {dtype} {shape}, {expected} bytes, but holds {held}. "
                "Save it again."
            )
        if info.compress_type == zipfile.ZIP_STORED and expected:
            return _mapped(path, info, file, dtype, shape, is_fortran)
        data = file.read(expected + 1)  # past the end, so that the checksum is compared
    if len(data) != expected:
        raise DataError(f"{path}: {info.filename} holds {len(data)} bytes, expected {expected}. Save it again.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _mapped(
    path: Path, info: zipfile.ZipInfo, file: Any, dtype: np.dtype, shape: tuple[int, ...], is_fortran: bool
) -> np.ndarray:
    """Map an array that is not packed, after the member's checksum was compared."""
    header = file.tell()
    while file.read(READ_BYTES):
        pass
    with open(path, "rb") as archive:
        archive.seek(info.header_offset + LOCAL_LENGTHS)
        start = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", archive.read(4)))
    return np.asarray(np.memmap(path, dtype, "r", start + header, shape, "F" if is_fortran else "C"))
