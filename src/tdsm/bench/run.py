"""All cases of all problems in one run, in rounds, so that whatever the machine does meets each of them alike."""

import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median

import torch

from tdsm.base.device import resolve_device
from tdsm.base.environment import describe_environment
from tdsm.base.errors import ResourceError, UsageError
from tdsm.base.progress import Progress
from tdsm.bench.cases import BACKWARD, CASES, FLOOR, FORWARD, STEP, Case, Problem, Run, work_of
from tdsm.bench.config import BenchConfig
from tdsm.bench.measure import bandwidth, free_bytes, load_average, peak_memory, seconds_of
from tdsm.decomposition.chunks import is_out_of_memory
from tdsm.decomposition.kernels.cpu import describe
from tdsm.decomposition.kernels.gated_sum import serves
from tdsm.models.field import NeuralField

KEPT_PER_UNIT = 8  # floats that a plain decoder keeps for its backward pass, a gated hidden unit


@dataclass
class Row:
    """A case of a problem in a mode, and what was seen of it."""

    problem: Problem
    name: str
    mode: str
    work: Run | None = None
    seconds: list[float] = field(default_factory=list)  # the first while its memory is watched
    peak_bytes: int | None = None
    written_bytes: int = 0
    skipped: str | None = None

    @property
    def case(self) -> Case:
        """Return the case."""
        return CASES[self.name]

    def run(self) -> torch.Tensor:
        """Do the work, whole."""
        assert self.work is not None
        return self.work(self.problem.tokens)

    @property
    def timed(self) -> list[float]:
        """Return the seconds that count: the round that watches memory only if there is no other."""
        return self.seconds[1:] or self.seconds


def run_bench(config: BenchConfig) -> dict:
    """Measure, and return everything as JSON can hold it.

    Raises:
        TdsmError: If a case is unknown or the device is not there.
    """
    device = resolve_device(config.device)
    names = chosen_cases(config.cases)
    if not (config.field.has_query_residual and config.field.has_decoder_feedforward):
        raise UsageError(
            "bench: measures fields with a query residual and a feed-forward in their decoder, as by default."
        )
    torch.manual_seed(config.seed)
    rows = list(all_rows(config, names, device))
    load = load_average()
    speed = bandwidth(device)
    measure(rows, config, device)
    environment = describe_environment() | {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        **environment,
        "kernel": describe() if device.type == "cpu" else "triton",
        "load_average": {"before": load, "after": load_average()},
        "bytes_written_per_second": speed,
        "config": config.model_dump(mode="json"),
        "rows": [entry(row, rows, speed) for row in rows],
    }


def chosen_cases(names: tuple[str, ...]) -> list[str]:
    """Return the cases asked for, all by default; raise `UsageError` for an unknown one."""
    for name in names:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            hint = f"perhaps you meant {near[0]}" if near else f"expected some of {', '.join(CASES)}"
            raise UsageError(f"bench: unknown case {name!r}, {hint}.")
    return list(dict.fromkeys([*(names or CASES), FLOOR]))


def all_rows(config: BenchConfig, names: list[str], device: torch.device) -> Iterator[Row]:
    """Lay out what will be measured: every problem with every case, and how exact decoding grows."""
    for count, batch, side, dtype in product(
        config.tokens or (config.field.num_latents,), config.batch, config.side, config.dtype
    ):
        problem = make_problem(config, count, batch, side, device).to(getattr(torch, dtype))
        yield from rows_of(problem, names, config)
        if config.growth:
            for part in grown(problem):
                yield from rows_of(part, ["exact", FLOOR], config)


def make_problem(config: BenchConfig, tokens: int, batch: int, side: int, device: torch.device) -> Problem:
    """Draw a field, images of its scale and tokens like theirs."""
    field = NeuralField(config.field.model_copy(update={"num_latents": tokens, "num_axes": 2})).to(device)
    images = torch.rand(batch, field.config.channels, side, side).to(device) * 2 - 1
    drawn = torch.randn(batch, tokens, field.config.widths[-1]).to(device)
    return Problem(field, images, drawn, side)


def grown(problem: Problem) -> Iterator[Problem]:
    """Vary the tokens, a quarter and half of them, and the side, half and twice of it."""
    count = problem.tokens.shape[1]
    for part in sorted({max(1, count // 4), max(1, count // 2)} - {count}):
        yield replace(problem, tokens=problem.tokens[:, :part])
    for side in sorted({max(1, problem.side // 2), 2 * problem.side} - {problem.side}):
        yield replace(problem, side=side)


def rows_of(problem: Problem, names: list[str], config: BenchConfig) -> Iterator[Row]:
    """List a problem's rows."""
    has_floor = any(serves(backend, problem.tokens.float()[:0]) for backend in ("cpu", "gpu"))
    for name in names:
        for mode in CASES[name].modes:
            if (mode == FORWARD or config.gradients) and (name != FLOOR or has_floor):
                yield Row(problem, name, mode)


def measure(rows: list[Row], config: BenchConfig, device: torch.device) -> None:
    """Warm every row up, run it once with its memory watched, then in rounds while it has not taken its time.

    Rows are warmed up twice, as what is compiled for one may have to be compiled again after another.
    """
    torch._dynamo.config.cache_size_limit = 10 * len(rows)  # beyond it, compiled loops would run eagerly
    sweeps = [warm_up, warm_up, watch_memory, *[time_again] * config.repeats]
    with Progress("measuring", total=len(rows) * len(sweeps), unit="runs") as progress:
        for sweep in sweeps:
            for row in rows:
                progress.advance(0, note=f"{sweep.__name__} {row.name} {row.mode}")
                if row.skipped is None:
                    attempt(sweep, row, config, device)
                progress.advance()


def attempt(
    sweep: Callable[[Row, BenchConfig, torch.device], None], row: Row, config: BenchConfig, device: torch.device
) -> None:
    """Run a sweep on a row; where memory is out or nothing is there that compiles, the row says so."""
    try:
        sweep(row, config, device)
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) or isinstance(error, ResourceError | torch._dynamo.exc.TorchDynamoException)):
            raise
        row.work, row.skipped = None, f"{type(error).__name__}: {error}".strip().splitlines()[0]


def warm_up(row: Row, config: BenchConfig, device: torch.device) -> None:
    """Build a row and run it on few tokens, unless it keeps more than there is memory."""
    needed, free = kept_bytes(row), free_bytes(device)
    if needed > 0.9 * free:
        row.skipped = f"keeps about {needed / 2**30:.1f} GiB for its backward pass, {free / 2**30:.1f} GiB are free"
        return
    row.work = row.work or work_of(row.case, row.problem, row.mode)
    row.work(row.problem.tokens[:, : row.case.warm_tokens])


def watch_memory(row: Row, config: BenchConfig, device: torch.device) -> None:
    """Run a row with its memory watched."""

    def work() -> None:
        row.written_bytes = row.run().nbytes

    seconds, row.peak_bytes = peak_memory(work, device)
    row.seconds.append(seconds)


def time_again(row: Row, config: BenchConfig, device: torch.device) -> None:
    """Time a row, if it has not taken its time."""
    if sum(row.seconds) < config.seconds:
        row.seconds.append(seconds_of(row.run, device))


def kept_bytes(row: Row) -> int:
    """Estimate what a row keeps for its backward pass."""
    keeps = row.case.keeps_hidden and row.mode == BACKWARD
    return keeps * row.problem.units * KEPT_PER_UNIT * row.problem.tokens.element_size()


def entry(row: Row, rows: list[Row], speed: float) -> dict:
    """Describe a row, its floors, and how it compares with the loops of its problem and mode."""
    problem, passes = row.problem, 1 if row.mode == FORWARD else 2
    batch, tokens = problem.tokens.shape[:2]
    facts = {
        "case": row.name,
        "mode": row.mode,
        "batch": batch,
        "tokens": tokens,
        "side": problem.side,
        "dtype": str(problem.tokens.dtype).removeprefix("torch."),
    }
    if row.skipped is not None:
        return facts | {"skipped": row.skipped}
    seconds = median(row.timed)
    facts |= {
        "seconds": {"median": seconds, "least": min(row.timed), "most": max(row.timed), "all": row.timed},
        "images_per_second": batch / seconds,
        "peak_bytes": row.peak_bytes,
        "written_bytes": row.written_bytes,
    }
    if row.written_bytes and row.mode != STEP:
        facts["times_write_floor"] = seconds * speed / row.written_bytes
    beside = {other.name: median(other.timed) for other in rows if other.problem is problem and other.seconds}
    if row.case.decodes_alone and row.name != FLOOR and FLOOR in beside:
        facts |= {"gated_units": passes * problem.units, "times_gated_floor": seconds / (passes * beside[FLOOR])}
    loops = {
        other.name: median(other.timed)
        for other in rows
        if other.problem is problem and other.mode == row.mode and other.case.is_loop and other.seconds
    }
    if row.case.decodes_alone and loops and row.name != FLOOR:
        best = min(loops, key=loops.__getitem__)
        facts |= {"best_loop": best, "faster_than_best_loop": loops[best] / seconds}
        facts |= {"faster_than_loop": loops["loop"] / seconds if "loop" in loops else None}
    return facts
