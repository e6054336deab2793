"""Make shards on the machines of a Ray cluster: a pool of actors, each with the field and the images at their paths.

What Ray carries are numbers of shards to the actors and counts back; an actor writes its shard where every machine sees
the store. So nothing of the values passes through Ray: tensors keep their shape, no reader merges files, and what is
resumed is what any other process would resume, shard by shard. An actor that dies is started again without limit, and
makes its shard again, the same.

Ray needs a processor of its own beside the actors: if they take all there are, its other tasks wait for ever.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from tdsm.base import errors
from tdsm.base.errors import ResourceError, TdsmError, UsageError
from tdsm.base.extras import missing_words
from tdsm.features.config import ExtractConfig
from tdsm.features.engines import RAY_ADDRESS, Advance, Engine
from tdsm.features.work import Job, Unit, Work

RESERVED = 1  # processors left to Ray's own tasks
OBJECT_STORE_BYTES = 128 * 2**20  # numbers of shards take little; Ray wants 75 MiB at least
GPUS = "GPU"


class ShardMaker:
    """An actor: takes the job up once, then makes the shards it is told."""

    def __init__(self, job: str):
        self.job = Job.model_validate_json(job)

    @cached_property
    def work(self) -> Work:
        """The job, taken up when the first shard is to be made."""
        return Work(self.job)

    @cached_property
    def units(self) -> dict[tuple[str, int], Unit]:
        """The shards by split and number."""
        return {(unit.split, unit.index): unit for unit in self.work.units}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch; return how many samples each holds, and what went wrong."""
        said = [self._made(str(s), int(i)) for s, i in zip(batch["split"], batch["index"], strict=True)]
        return {"samples": [samples for samples, _ in said], "failure": [failure for _, failure in said]}

    def _made(self, split: str, index: int) -> tuple[int, str]:
        try:
            unit = self.units[split, index]
            self.work.make(unit)
        except (TdsmError, OSError) as error:
            return 0, f"{type(error).__name__}: {error}"
        return len(unit.rows), ""


def make_by_ray(work: Work, units: Sequence[Unit], config: ExtractConfig, advance: Advance) -> None:
    """Make shards by the actors of a cluster, the one at `ray_address` or one started here.

    Raises:
        ResourceError: If Ray is not installed, or there are too few processors.
        UsageError: If the actors would take every processor, and so wait for ever.
    """
    with connected(config.ray_address):
        import ray

        total = ray.cluster_resources()
        actors = count_actors(int(total.get("CPU", 0)), config.actors, len(units))
        gpus = min(1.0, total.get(GPUS, 0) / actors)
        rows = [{"split": unit.split, "index": unit.index} for unit in units]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardMaker,
            fn_constructor_args=(work.job.model_copy(update={"to": str(work.folder.absolute())}).model_dump_json(),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=gpus,
        )  # Ray restarts actors that die and tries their tasks again without limit, unless told otherwise
        failures: list[str] = []
        try:
            for row in made.iter_rows():
                advance(int(row["samples"]))
                failures += [row["failure"]] if row["failure"] else []
        except ray.exceptions.RayTaskError:
            raise  # our own mistake in an actor, to be seen whole
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"--engine ray: {first_line(error)}. Run the same command again; finished shards are kept."
            ) from None
        if failures:
            raise error_of(failures[0])


def count_actors(processors: int, wanted: int | None, units: int) -> int:
    """Choose how many actors there are: as many as asked for, or all processors but those left to Ray.

    >>> count_actors(processors=8, wanted=None, units=100), count_actors(processors=8, wanted=None, units=3)
    (7, 3)

    Raises:
        ResourceError: If there is no processor for an actor beside Ray's own.
        UsageError: If the actors wanted would leave none to Ray.
    """
    most = processors - RESERVED
    if most < 1:
        raise ResourceError(
            f"extract: Ray sees {processors} processor, expected 2 at least: one for an actor and one for Ray's own "
            "tasks. Use --engine here."
        )
    if wanted is not None and wanted > most:
        raise UsageError(
            f"--actors {wanted}: Ray sees {processors} processors and needs {RESERVED} for its own tasks; with none "
            f"left it would wait for ever. Use at most {most}."
        )
    return min(wanted or most, units)


def error_of(failure: str) -> TdsmError:
    """Return what an actor failed with: this package's error, or else one of resources.

    >>> error_of("DataError: a.png: is empty"), error_of("FileExistsError: [Errno 17] File exists: 'test'")
    (DataError('a.png: is empty'), ResourceError("[Errno 17] File exists: 'test'"))
    """
    kind, _, words = failure.partition(": ")
    return getattr(errors, kind, ResourceError)(words)


def first_line(error: Exception) -> str:
    """Return the first line of what Ray says, which goes on for many; the kind of error where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster, one of this machine alone if no address is given; leave it, or stop it, at the end."""
    if find_spec("ray") is None:
        raise ResourceError(f"--engine ray: {missing_words(ModuleNotFoundError(name='ray'))}")
    import ray

    if ray.is_initialized():
        yield
        return
    there = address or os.environ.get(RAY_ADDRESS)
    own: dict[str, Any] = {} if there else {"object_store_memory": OBJECT_STORE_BYTES}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        ray.init(address=there or "local", **quiet, **own)
    except Exception as error:  # of no type of its own where Ray's processes do not come up in time
        raise ResourceError(
            f"--engine ray: the cluster cannot be used ({first_line(error)}). Check --ray-address, wait until "
            "the machine is less busy, or use --engine here."
        ) from None
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


RAY = Engine(make_by_ray, lambda config, seconds: ("ray", "as asked"))
