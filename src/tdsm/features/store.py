"""Named features of a data set, kept on disk in shards of fixed sample ranges.

    SPLIT/shard-00003.safetensors   tensors named tokens, tdsm, ..., each with one row a sample
    SPLIT/shard-00003.json          the sidecar: ids, hash of the shard, fingerprint of what made it

A shard counts as there when its sidecar verifies, so an extraction that was killed and started again loses and
repeats nothing. Rows are read through a memory map: a store may be larger than memory.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError

SHARD_SAMPLES = 512
MEMORY_BYTES = 2 * 2**30
SIDECAR = {"fingerprint", "sha256", "size", "ids"}


def shard_ranges(count: int) -> list[range]:
    """Cut samples 0..count-1 into the ranges that shards hold.

    >>> shard_ranges(600)
    [range(0, 512), range(512, 600)]
    """
    return [range(start, min(start + SHARD_SAMPLES, count)) for start in range(0, count, SHARD_SAMPLES)]


def write_shard(
    folder: Path, index: int, features: Mapping[str, Tensor], ids: Int[Tensor, " samples"], fingerprint: str
) -> None:
    """Write one shard, then the sidecar that makes it count."""
    file = _shard(folder, index)
    digest = io.write_tensors(file, features)
    sidecar = {"fingerprint": fingerprint, "sha256": digest, "size": file.stat().st_size, "ids": ids.tolist()}
    io.write_json(file.with_suffix(".json"), sidecar)


def has_shard(folder: Path, index: int, ids: Int[Tensor, " samples"], fingerprint: str) -> bool:
    """Tell whether a shard is there, whole, and of these samples.

    Raises:
        CheckpointError: If it was made by another field, data set or setting; mixing is refused.
    """
    file = _shard(folder, index)
    sidecar_file = file.with_suffix(".json")
    if not sidecar_file.exists():
        return False
    try:
        sidecar = io.read_json(sidecar_file)
    except CheckpointError:  # damaged: made anew
        return False
    if sidecar.keys() != SIDECAR:
        return False
    if sidecar["fingerprint"] != fingerprint or sidecar["ids"] != ids.tolist():
        raise CheckpointError(
            f"{file}: made by another field, data set or setting than this run's. Remove the folder {folder} to "
            "extract anew, or use another run folder."
        )
    return file.is_file() and file.stat().st_size == sidecar["size"] and io.file_hash(file) == sidecar["sha256"]


class Rows:
    """One named feature of all samples, read row by row: `rows[indices]` gives (len(indices), ...) in float32.

    Held in memory up to `MEMORY_BYTES`, mapped from disk beyond.
    """

    def __init__(self, shards: list[Tensor]):
        self.shape = (sum(len(shard) for shard in shards), *shards[0].shape[1:])
        self.shards = [torch.cat(shards)] if sum(shard.nbytes for shard in shards) <= MEMORY_BYTES else shards
        self.starts = list(accumulate((len(shard) for shard in self.shards), initial=0))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows ..."]:
        if len(self.shards) == 1:
            return self.shards[0][indices].float()
        return torch.stack([self._row(index) for index in indices.tolist()]).float()

    def _row(self, index: int) -> Tensor:
        shard = bisect_right(self.starts, index) - 1
        return self.shards[shard][index - self.starts[shard]]


def open_store(folders: Sequence[Path], count: int, name: str) -> Rows:
    """Open one feature of `count` samples a folder, one folder after the other.

    Raises:
        CheckpointError: If a shard is missing.
    """
    indices = range(len(shard_ranges(count)))
    return Rows([io.read_tensors(_shard(folder, index))[name] for folder in folders for index in indices])


def _shard(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.safetensors"
