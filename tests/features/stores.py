"""A field and jobs on the embedded digits for the tests of stores: many small shards, a second each."""

import functools
import tempfile
from pathlib import Path

import torch

from tdsm.base import io
from tdsm.data.config import DataConfig
from tdsm.features.config import ExtractConfig, MapConfig
from tdsm.features.run import extract
from tdsm.features.work import Job
from tests.conftest import small_field
from tests.tinyrun import content

NAMES = ("tokens", "pooled", "tdsm")
COUNTS = {"train": 54, "validation": 6, "test": 30}


@functools.cache
def _field() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="tdsm-field-")  # removed when the process ends
    torch.manual_seed(5)
    small_field(torch.float32, channels=1).save_pretrained(folder.name)
    return folder


def job(to: Path, **changes: object) -> Job:
    """Return a job of 9 shards."""
    data = DataConfig(source="digits", max_train=60, max_test=30)
    usual = {"field": _field().name, "data": data, "seed": 0, "features": NAMES, "maps": MapConfig(batch_size=7)}
    return Job.model_validate(usual | {"to": str(to), "format": "safetensors", "shard_samples": 12} | changes)


def made(to: Path, said: list[str] | None = None, process: int = 0, processes: int = 1, **changes: object) -> bool:
    """Extract to a store; changes are of the job, but for `shards`, `engine` and `actors`."""
    config = ExtractConfig(**{key: changes.pop(key) for key in ("shards", "engine", "actors") if key in changes})
    say = (lambda words: None) if said is None else said.append
    return extract(job(to, **changes), config, say, process=process, processes=processes)


def command(to: Path, *more: object) -> list[str]:
    """Return the arguments of the same extraction on a command line."""
    data = ["--data.source", "digits", "--data.max-train", "60", "--data.max-test", "30", "--maps.batch-size", "7"]
    start = ["extract", _field().name, "--to", str(to), "--features", *NAMES, "--shard-samples", "12"]
    return [*start, *data, *map(str, more)]


def same(one: Path, other: Path) -> bool:
    """Whether two stores hold the same files, byte by byte."""
    return content(one) == content(other)


def sealed(folder: Path) -> bool:
    return (folder / io.MANIFEST).is_file()
