"""Extract features to a store: what is missing of one part of it, wherever that is done."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdsm.base.errors import UsageError
from tdsm.base.progress import Progress, track
from tdsm.base.text import duration
from tdsm.features.card import about, begin, bytes_of, check_place, finish
from tdsm.features.config import ExtractConfig
from tdsm.features.engines import chosen
from tdsm.features.registry import ENGINES
from tdsm.features.store import require_room
from tdsm.features.work import Job, Unit, Work, dealt, part_of

Say = Callable[[str], None]
PROBED = 16  # images timed for the estimate
GIB = 2**30


def extract(job: Job, config: ExtractConfig, say: Say, *, process: int = 0, processes: int = 1) -> bool:
    """Make all shards of a store that are missing of this process's part; tell whether the store is complete now.

    Args:
        job: What is extracted from what, to where.
        config: Which part of it, and where that is done.
        say: Told in one line what is decided and what is left.
        process, processes: Which of those that share the part this is.

    Raises:
        UsageError: If settings cannot be used, or the store's folder holds something else.
        ResourceError: If the disk cannot hold the part.
        NonFiniteError: If a value is not finite or does not fit its dtype.
    """
    work, part = taken_up(job, config, process, processes)
    said = begin(work)
    reasons = {unit: reason for unit in dealt(work.units, part) if (reason := work.fault(unit)) is not None}
    for unit, reason in reasons.items():
        if reason != "missing":
            say(f"{unit.name}: extracted anew, it was {reason}.")
    samples = sum(len(unit.rows) for unit in reasons)
    _check_disk(work.folder, said, samples)
    name, why = chosen(config, samples * _seconds(work)) if reasons else ("here", "nothing is missing")
    if config.engine == "auto" and (config.ray_address or name != "here"):
        say(f"engine: {name}, {why}.")
    total = sum(len(unit.rows) for unit in dealt(work.units, part))
    title = f"extracting {', '.join(job.features)}"
    with Progress(title, total, done=total - samples, unit="images", quiet=process > 0) as progress:
        ENGINES[name].make(work, list(reasons), config, progress.advance)
    left = finish(work, is_changed=bool(reasons))
    if left and processes == 1:
        say(_left_words(left, work, part))
    return not left


def plan(job: Job, config: ExtractConfig, processes: int = 1) -> str:
    """Say in words what an extraction would do, how long that would take here and how large it is; write nothing."""
    work, part = taken_up(job, config, 0, processes)
    said, units = about(work), dealt(work.units, part)
    samples = sum(len(unit.rows) for unit in units)
    seconds = _seconds(work) * samples
    size = sum(bytes_of(kind) for kind in said["features"].values())
    splits = ", ".join(f"{entry['images']} {split}" for split, entry in said["data"]["splits"].items())
    name, why = chosen(config, seconds)
    return "\n".join(
        [
            f"data: {work.data.name}, {splits} images of {work.data.train.channels} × "
            f"{work.data.train.size[0]} × {work.data.train.size[1]}",
            *(f"  {note}" for note in work.data.notes),
            *(f"feature: {_kind_words(name, kind)}" for name, kind in said["features"].items()),
            f"store: {job.to}, {job.format}, {len(work.units)} shards of {job.shard_samples} images, "
            f"{job.shard_samples * size / 2**20:.1f} MiB each; here {len(units)} of them: {samples} images, "
            f"{samples * size / GIB:.3f} GiB, about {duration(seconds)} in one process",
            f"engine: {name}, {why}",
        ]
    )


def taken_up(job: Job, config: ExtractConfig, process: int, processes: int) -> tuple[Work, tuple[int, int]]:
    """Return the work and which part of it is this process's."""
    check_place(job.to)
    part = part_of(config.shards, process, processes)
    if processes > 1 and config.engine == "ray":
        raise UsageError("--engine ray shares the work out itself. Start it without torchrun.")
    return Work(job, lambda items, title: track(items, title, unit="images")), part


def _left_words(left: Sequence[Unit], work: Work, part: tuple[int, int]) -> str:
    """Name what is missing of the store: the parts it is cut into as here, or shards."""
    _, parts = part
    if parts == 1:
        return f"{work.folder}: {len(left)} shards are missing, the first {left[0].name}."
    missing = set(left)
    numbers = [n + 1 for n in range(parts) if missing & set(dealt(work.units, (n, parts)))]
    shown = ", ".join(f"{n}/{parts}" for n in numbers[:20]) + (" …" if len(numbers) > 20 else "")
    return f"{work.folder}: this part is there; the store is complete when these are too: {shown}."


def _seconds(work: Work) -> float:
    """Measure how long an image takes here."""
    work.probe()
    began = time.monotonic()
    work.probe(PROBED)
    return (time.monotonic() - began) / min(PROBED, len(work.data.train))


def _check_disk(folder: Path, said: Mapping[str, Any], samples: int) -> None:
    needed = samples * sum(map(bytes_of, said["features"].values()))
    remedy = "Extract fewer or smaller features, such as pooled ones, or fewer tokens (--maps.selection)."
    require_room(folder, needed, said["features"], samples, remedy)


def _kind_words(name: str, kind: Mapping[str, Any]) -> str:
    return f"{name}, {' × '.join(map(str, kind['shape']))} {kind['dtype']}, {bytes_of(kind)} bytes an image"
