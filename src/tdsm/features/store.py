"""One feature of an image set on disk, in shards of fixed sample ranges.

    shard-00003.safetensors   one tensor, a row a sample
    shard-00003.json          the sidecar: ids, size, hash, and what the shard was made from

A shard counts as there when its sidecar and its bytes are what is expected now, so an extraction that was killed and
started again loses and repeats nothing. Rows are read through a memory map: a store may be larger than memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.base.rows import Rows
from tdsm.base.settings import differences

SHARD_SAMPLES = 512
MEMORY_BYTES = 2**28  # of the features held in memory, all together
TENSOR = "feature"


def shard_ranges(count: int) -> list[range]:
    """Cut samples 0..count-1 into the ranges that shards hold.

    >>> shard_ranges(600)
    [range(0, 512), range(512, 600)]
    """
    return [range(start, min(start + SHARD_SAMPLES, count)) for start in range(0, count, SHARD_SAMPLES)]


def write_shard(
    folder: Path, index: int, feature: Shaped[Tensor, "samples ..."], ids: Int[Tensor, " samples"], made_from: Mapping
) -> None:
    """Write one shard, then the sidecar that makes it count."""
    file = _shard(folder, index)
    digest = io.write_tensors(file, {TENSOR: feature})
    sidecar = {"made_from": dict(made_from), "ids": ids.tolist(), "size": file.stat().st_size, "sha256": digest}
    io.write_json(file.with_suffix(".json"), sidecar)


def fault(folder: Path, index: int, ids: Int[Tensor, " samples"], made_from: Mapping[str, Any]) -> str | None:
    """Say why a shard does not count: it is missing, damaged, or made from something else; None if it counts."""
    file = _shard(folder, index)
    try:
        sidecar = io.read_object(file.with_suffix(".json"))
    except CheckpointError:
        return "damaged" if file.with_suffix(".json").exists() else "missing"
    if changed := differences(sidecar.get("made_from") or {}, io.plain(dict(made_from))):
        return f"made from something else ({'; '.join(changed)})"
    if sidecar.get("ids") != ids.tolist():
        return "made from other samples"
    whole = file.is_file() and file.stat().st_size == sidecar.get("size") and io.file_hash(file) == sidecar["sha256"]
    return None if whole else "damaged"


def read_shards(folder: Path, count: int) -> list[Shaped[Tensor, "samples ..."]]:
    """Map the shards of `count` samples.

    Raises:
        CheckpointError: If one is missing.
    """
    return [io.read_tensors(_shard(folder, index))[TENSOR] for index in range(len(shard_ranges(count)))]


class FeatureRows:
    """One feature of many samples, read by row: `rows[indices]` gives (len(indices), ...) in float32.

    Mapped from disk; held in memory while all that are held take no more than `MEMORY_BYTES` together.
    """

    def __init__(self, shards: Sequence[Tensor]):
        mapped = Rows(shards)
        held: int = sum(rows.nbytes for rows in _HELD)
        self.rows = Rows([torch.cat(list(shards))]) if held + mapped.nbytes <= MEMORY_BYTES else mapped
        self.shape = mapped.shape
        self.nbytes: int = mapped.nbytes
        if self.rows is not mapped:
            _HELD.add(self)

    @property
    def shards(self) -> list[Tensor]:
        """Return the tensors that hold the rows, one after another."""
        return self.rows.parts

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows ..."]:
        return self.rows[indices].float()


_HELD: WeakSet[FeatureRows] = WeakSet()


def _shard(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.safetensors"
