"""Where the shards of an extraction are made: in this process, or on the machines of a Ray cluster."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdsm.features.config import ExtractConfig
from tdsm.features.registry import ENGINES
from tdsm.features.work import Unit, Work

Advance = Callable[[int], None]
RAY_ADDRESS = "RAY_ADDRESS"  # as Ray itself reads it
SMALL_SECONDS = 120.0  # starting Ray takes 10 to 40 s


@dataclass(frozen=True)
class Engine:
    """A place to make shards.

    Args:
        make: Makes shards of a work, telling how many samples were done.
        choose: From the settings and an estimate in seconds: the name of the engine that makes them, and why.
    """

    make: Callable[[Work, Sequence[Unit], ExtractConfig, Advance], None]
    choose: Callable[[ExtractConfig, float], tuple[str, str]]


def chosen(config: ExtractConfig, seconds: float) -> tuple[str, str]:
    """Return which engine makes work that would take `seconds` here, and why."""
    return ENGINES[config.engine].choose(config, seconds)


def make_here(work: Work, units: Sequence[Unit], config: ExtractConfig, advance: Advance) -> None:
    """Make shards one after another in this process."""
    for unit in units:
        work.make(unit, advance)


def _auto(config: ExtractConfig, seconds: float) -> tuple[str, str]:
    if not (config.ray_address or os.environ.get(RAY_ADDRESS)):
        return "here", "no cluster is named (--ray-address)"
    if seconds < SMALL_SECONDS:
        return "here", f"about {seconds:.0f} s of work, and starting Ray takes 10 to 40 s"
    return "ray", f"a cluster is named, and here it would take about {seconds / 60:.0f} min"


HERE = Engine(make_here, lambda config, seconds: ("here", "as asked"))
AUTO = Engine(make_here, _auto)
