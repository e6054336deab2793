"""One feature of an image set on disk, in shards of fixed sample ranges.

    shard-00003.safetensors   one tensor, a row a sample
    shard-00003.json          the sidecar: ids, size, hash, and what the shard was made from

A shard counts as there when its sidecar and its bytes are what is expected now, so an extraction that was killed and
started again loses and repeats nothing. Rows are read through a memory map: a store may be larger than memory.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tdsm.base import io
from tdsm.base.device import room
from tdsm.base.errors import CheckpointError, ResourceError
from tdsm.base.rows import Rows
from tdsm.base.settings import differences
from tdsm.features.config import SHARD_SAMPLES

MEMORY_BYTES = 2**28  # of the features held in memory, all together
TENSOR = "feature"


def shard_ranges(count: int, samples: int | None = None) -> list[range]:
    """Cut samples 0..count-1 into the ranges that shards hold, `samples` each.

    >>> shard_ranges(600)
    [range(0, 512), range(512, 600)]
    """
    step = samples or SHARD_SAMPLES
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def write_shard(
    folder: Path, index: int, feature: Shaped[Tensor, "samples ..."], ids: Int[Tensor, " samples"], made_from: Mapping
) -> None:
    """Write one shard, then the sidecar that makes it count."""
    file = shard_file(folder, index)
    write_sidecar(file, io.write_tensors(file, {TENSOR: feature}), ids, made_from)


def fault(folder: Path, index: int, ids: Int[Tensor, " samples"], made_from: Mapping[str, Any]) -> str | None:
    """Say why a shard does not count: it is missing, damaged, or made from something else; None if it counts."""
    return file_fault(shard_file(folder, index), ids, made_from)


def write_sidecar(file: Path, digest: str, ids: Int[Tensor, " samples"], made_from: Mapping) -> None:
    """Write what makes a file of samples count: its hash and size, whose samples it holds, what it was made from."""
    sidecar = {"made_from": dict(made_from), "ids": ids.tolist(), "size": file.stat().st_size, "sha256": digest}
    io.write_json(sidecar_of(file), sidecar)


def file_fault(file: Path, ids: Int[Tensor, " samples"], made_from: Mapping[str, Any]) -> str | None:
    """Say why a file of samples does not count; None if it counts."""
    try:
        sidecar = io.read_object(sidecar_of(file))
    except CheckpointError:
        return "damaged" if sidecar_of(file).exists() else "missing"
    known, wanted = sidecar.get("made_from") or {}, io.plain(dict(made_from))
    if changed := differences({key: known.get(key) for key in wanted}, wanted):
        return f"made from something else ({'; '.join(changed)})"
    if sidecar.get("ids") != ids.tolist():
        return "made from other samples"
    whole = file.is_file() and file.stat().st_size == sidecar.get("size") and io.file_hash(file) == sidecar["sha256"]
    return None if whole else "damaged"


def require_room(folder: Path, needed: int, names: Iterable[str], images: int, remedy: str) -> None:
    """Raise `ResourceError` if the disk of a folder has no room for so many bytes of features of images."""
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise ResourceError(
            f"extract: {', '.join(names)} of {images} images take {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free at {folder}. {remedy}"
        )


def read_shards(folder: Path, count: int, samples: int | None = None) -> list[Shaped[Tensor, "_ ..."]]:
    """Map the shards of `count` samples, `samples` each.

    Raises:
        CheckpointError: If one is missing.
    """
    return [read_shard(folder, index) for index in range(len(shard_ranges(count, samples)))]


def read_shard(folder: Path, index: int) -> Shaped[Tensor, "samples ..."]:
    """Map one shard.

    Raises:
        CheckpointError: If it is missing.
    """
    return io.read_tensors(shard_file(folder, index))[TENSOR]


class FeatureRows:
    """One feature of many samples, read by row: `rows[indices]` gives (len(indices), ...) in float32.

    Mapped from disk; held in memory while all that are held take no more than `MEMORY_BYTES` together.
    """

    def __init__(self, shards: Sequence[Tensor]):
        mapped = Rows(shards)
        held: int = sum(rows.nbytes for rows in _HELD)
        fits = mapped.parts[0].device.type == "cpu" and held + mapped.nbytes <= MEMORY_BYTES
        self.rows = Rows([torch.cat(mapped.parts)]) if fits else mapped
        self.shape = mapped.shape
        self.nbytes: int = mapped.nbytes
        if self.rows is not mapped:
            _HELD.add(self)

    @property
    def shards(self) -> list[Tensor]:
        """Return the tensors that hold the rows, one after another."""
        return self.rows.parts

    def near(self, device: torch.device) -> "FeatureRows":
        """Move the rows to a GPU, as they are stored, if they take half of its free memory at most."""
        if device.type != "cuda" or self.shards[0].is_cuda or self.nbytes > room(device) // 2:
            return self
        held = torch.empty(self.shape, dtype=self.shards[0].dtype, device=device)
        for shard, start in zip(self.shards, self.rows.starts, strict=False):
            held[start : start + len(shard)] = shard
        return FeatureRows([held])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows ..."]:
        return self.rows[indices].float()


_HELD: WeakSet[FeatureRows] = WeakSet()


def shard_file(folder: Path, index: int, ending: str = ".safetensors") -> Path:
    """Return where a shard stands."""
    return Path(folder) / f"shard-{index:05d}{ending}"


def sidecar_of(file: Path) -> Path:
    """Return where a file's sidecar stands; readers of Parquet folders pass over names that begin with _."""
    return file.with_name(f"{'_' if file.suffix == '.parquet' else ''}{file.stem}.json")
