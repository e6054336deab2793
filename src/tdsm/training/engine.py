"""The one training loop: fields, heads, gates and regimes are all trained by it.

A step is a pure function of the weights, the optimizer's moments, the seed and the step's number, so that a training
that was killed ends as if it had not been, bit for bit on one kind of CPU and with as many processes.

The host waits for the device only where something is shown, judged or saved: losses and gradients' norms of the steps
since then are looked at together there, before anything of them is kept.
"""

import copy
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tdsm.base import io
from tdsm.base.errors import NonFiniteError
from tdsm.base.progress import Progress
from tdsm.base.randomness import derive_seed
from tdsm.models.weights import load_strictly
from tdsm.training import processes, trackers
from tdsm.training.checkpoints import FOLDER as CHECKPOINTS
from tdsm.training.checkpoints import latest_checkpoint, read_checkpoint, save_checkpoint
from tdsm.training.config import LoopConfig
from tdsm.training.throughput import Throughput, is_emulated

METRICS = "metrics.jsonl"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
AGREE_EVERY = 16  # steps after which several processes ask one another for a Ctrl-C


@dataclass(frozen=True)
class Phase:
    """Some steps in which the same parameter groups learn."""

    steps: int
    still: tuple[str, ...] = ()  # names of the groups that do not


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What is trained: a pure description, without the state of a training.

    Args:
        name: In messages.
        model: Whose weights are kept, averaged and judged; ends with those of the training.
        loss: Holds the model; called with what `inputs` returns, it gives the mean loss of those rows.
        size: From a step to how many rows its batch has.
        inputs: From a step and some rows of its batch to what `loss` is called with; a pure function.
        groups: Of AdamW: `params`, `name`, `peak` (of the learning rate) and `weight_decay`.
        rate: From a peak and a step to the learning rate.
        phases: One after another.
        validate: Measures a model by numbers with names, the same in every process, which share `each_sample`.
        score: The number that is better the higher it is; without one the last weights are kept.
        validate_every: Steps between measurements; there is one after the last step.
        checkpoint_every: Steps between checkpoints; there is one after the last step.
        remedy: From the step of the newest checkpoint, None without one, to what to do about a loss that is none.
        blocks: Parts of the model that `compile` compiles.
        is_partial: Whether weights that learn may have no part in the loss, which several processes must know.
        speed: Counts images.
    """

    name: str
    model: nn.Module
    loss: nn.Module
    size: Callable[[int], int]
    inputs: Callable[[int, slice], tuple[Any, ...]]
    groups: list[dict[str, Any]]
    rate: Callable[[float, int], float]
    phases: tuple[Phase, ...]
    validate: Callable[[Any], dict[str, float]]
    score: str | None = None
    validate_every: int
    checkpoint_every: int
    remedy: Callable[[int | None], str]
    blocks: tuple[nn.Module, ...] = ()
    is_partial: bool = False
    speed: Throughput = field(default_factory=Throughput)

    @property
    def steps(self) -> int:
        """Count the steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> int:
        """Return the number of a step's phase."""
        ends = [sum(phase.steps for phase in self.phases[: number + 1]) for number in range(len(self.phases))]
        return next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)


def train(
    task: Task,
    settings: LoopConfig,
    *,
    seed: int,
    folder: Path | None = None,
    made_from: dict | None = None,
    tracker: str = "none",
) -> list[dict]:
    """Train a task's model in place and return the history of its measurements.

    AdamW on the gradients of the mean loss of each step's batch, which processes that joined share. With a folder,
    that all of them see, checkpoints and `metrics.jsonl`, a line a measurement, are written there, and the newest
    checkpoint is taken up; without one nothing is kept.

    Args:
        task: What is trained.
        settings: How.
        seed: Decides what the model draws at random, such as dropout, together with process and step.
        folder: Of the checkpoints.
        made_from: What decides the training besides the settings that may change on resuming, as JSON can hold it.
        tracker: Where measurements go beside the folder.

    Returns:
        Dictionaries of step, loss (the mean since the one before), seconds, the task's numbers, images_per_second, mfu
        where it is known, and learning_rate.

    Raises:
        CheckpointError: If the newest checkpoint was made from something else, or has other weights.
        NonFiniteError: If loss, gradient, weights or a validation number is not finite; no checkpoint after that.
        KeyboardInterrupt: On Ctrl-C, after the step under way is done and saved; a second one ends at once.
    """
    training = _Training(task, settings, seed, folder, made_from or {})
    training.take_up()
    device, is_quiet = training.device, not processes.is_first()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Progress(task.name, task.steps, done=training.step, unit="step", quiet=is_quiet) as progress,
        trackers.opened("none" if is_quiet or folder is None else tracker, folder or Path(), training.step) as log,
        _held_interrupt() as interrupted,
    ):
        training.start()
        while not training.is_over:
            training.take_step()
            note = training.measure(log) if training.is_due(task.validate_every) else None
            is_interrupted = training.hears(interrupted)
            if training.is_due(task.checkpoint_every) or is_interrupted:
                training.save()
            if is_interrupted:
                raise KeyboardInterrupt
            progress.advance(note=note)
    training.finish()
    return training.history


class _Training:
    """The state of a training under way."""

    def __init__(self, task: Task, settings: LoopConfig, seed: int, folder: Path | None, made_from: dict):
        self.task, self.settings, self.seed = task, settings, seed
        self.folder, self.made_from = folder, made_from
        self.device = next(task.model.parameters()).device
        is_half, is_gpu = settings.precision == "float16", self.device.type == "cuda"
        groups = [{**group, "lr": group["peak"]} for group in task.groups]
        self.optimizer = torch.optim.AdamW(groups, fused=is_half or is_gpu or None)  # one kernel, which asks no host
        self.scaler = torch.amp.GradScaler(self.device.type) if is_half else None
        self.average = copy.deepcopy(task.model).requires_grad_(False) if settings.ema else None
        self.blend = get_ema_multi_avg_fn(settings.ema)
        self.clipped = list(task.loss.parameters())
        self.step, self.history = 0, list[dict]()
        self.saved: int | None = None  # step of the newest checkpoint
        self.best: dict[str, Tensor] = {}
        self.best_step, self.best_score = 0, -math.inf
        self.losses: list[float] = []  # of the whole batches since the last measurement
        self.pending: list[Tensor] = []  # this process's shares of those that are still on the device
        self.norms: list[Tensor] = []
        self.phase, self.module = -1, task.loss
        self.before, self.began = 0.0, time.monotonic()
        if is_emulated(self.device, settings.precision):
            warnings.warn(
                f"{task.name}: this CPU has no {settings.precision} units, which makes steps several times slower than "
                "float32.",
                stacklevel=3,
            )
        for block in task.blocks if settings.compile else ():
            block.compile()

    @property
    def judged(self) -> nn.Module:
        """The model that is measured and kept."""
        return self.average if self.average is not None else self.task.model

    @property
    def is_over(self) -> bool:
        """Whether the steps are done, or the last phase has gone `patience` measurements without a better one."""
        return self.step >= self.task.steps or self._is_patience_over()

    def is_due(self, every: int) -> bool:
        """Tell whether something done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.is_over

    # ---------------------------------------------------------------- steps

    def start(self) -> None:
        """Begin to count time, in training mode."""
        self.task.loss.train()
        self.task.speed.start()

    def take_step(self) -> None:
        """Take this process's share of one optimizer step."""
        task, step = self.task, self.step
        if (phase := task.phase(step)) != self.phase:
            self._enter(phase)
        _seed_global(derive_seed(self.seed, "step", processes.rank(), step), self.device)
        self.optimizer.zero_grad(set_to_none=True)
        size = task.size(step)
        shares = processes.shares(size, self.settings.accumulate)
        parts = [self._backward(rows, size, is_last=rows is shares[-1]) for rows in shares]
        self.pending.append(sum(parts[1:], parts[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if group["name"] in task.phases[phase].still else task.rate(group["peak"], step)
        self._descend()
        if self.average is not None:
            self._update_average()
        self.step += 1
        task.speed.images += size

    def _backward(self, rows: slice, size: int, *, is_last: bool) -> Tensor:
        """Add the gradients of some rows of the batch, and return their share of its loss."""
        share = (rows.stop - rows.start) / size
        if not share:  # more processes than rows: take one at weight 0, since all must take part
            rows = slice(0, 1)
        weight = share * processes.count()  # since processes average their gradients
        with self._gradients_kept(is_last):
            with self._precision():
                loss = self.module(*self.task.inputs(self.step, rows))
            weighted = loss if weight == 1 else weight * loss
            (weighted if self.scaler is None else self.scaler.scale(weighted)).backward()
        return loss.detach() if share == 1 else share * loss.detach()

    def _descend(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.settings.gradient_clip is not None:
            self.norms.append(nn.utils.clip_grad_norm_(self.clipped, self.settings.gradient_clip))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _update_average(self) -> None:
        assert self.average is not None
        pairs = [list(module.parameters()) for module in (self.average, self.task.model)]
        if self.step:
            self.blend(*pairs, 0)  # type: ignore[arg-type]
        else:
            self.average.load_state_dict(self.task.model.state_dict())
        for kept, now in zip(self.average.buffers(), self.task.model.buffers(), strict=True):
            kept.copy_(now)

    def _enter(self, phase: int) -> None:
        """Let the groups of a phase learn, and tell the processes which gradients to exchange."""
        self.phase = phase
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["name"] not in self.task.phases[phase].still)
        if processes.count() > 1:
            self.module = DistributedDataParallel(
                self.task.loss,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=self.task.is_partial,
            )

    def _precision(self) -> AbstractContextManager:
        dtype = DTYPES.get(self.settings.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _gradients_kept(self, is_last: bool) -> AbstractContextManager:
        """Let the processes exchange gradients after the last part of a share only."""
        return (
            nullcontext() if is_last or not isinstance(self.module, DistributedDataParallel) else self.module.no_sync()
        )

    # ---------------------------------------------------------------- where the host waits for the device

    def measure(self, log: trackers.Log) -> str:
        """Judge the model, add to the history, and return it in words."""
        self._settle()
        with processes.sharing():
            numbers = self.task.validate(self.judged)
        for name, value in numbers.items():
            self._check(value, f"the measured {name}", self.step)
        seconds = self.before + time.monotonic() - self.began
        entry = {"step": self.step, "loss": sum(self.losses) / len(self.losses), "seconds": seconds}
        entry |= numbers | self.task.speed.take()
        entry |= {"learning_rate": max(group["lr"] for group in self.optimizer.param_groups)}
        self.history.append(entry)
        self.losses = []
        if (
            self.task.score is not None
            and numbers[self.task.score] > self.best_score
            and self._is_last_phase(self.step)
        ):
            self.best_step, self.best_score = self.step, numbers[self.task.score]
            self.best = {name: value.clone() for name, value in self.judged.state_dict().items()}
        self._write_metrics()
        log({name: value for name, value in entry.items() if name != "step"}, self.step)
        self.start()
        return _note(entry, numbers)

    def hears(self, interrupted: threading.Event) -> bool:
        """Tell whether any process was interrupted; several ask one another every so many steps."""
        if processes.count() == 1:
            return interrupted.is_set()
        if self.pending and self.step % AGREE_EVERY and not self.is_due(self.task.checkpoint_every):
            return False
        return bool(processes.total(torch.tensor(interrupted.is_set(), dtype=torch.int64, device=self.device)))

    def save(self) -> None:
        """Write a checkpoint, if there is a folder."""
        if self.folder is None:
            return
        self._settle()
        self.saved = self.step
        if processes.is_first():
            tensors = {"model": self.task.model.state_dict()}
            if self.average is not None:
                tensors["average"] = self.average.state_dict()
            if self.best and self.best_step != self.step:
                tensors["best"] = self.best
            save_checkpoint(self.folder, self.step, tensors, self.optimizer, self._state(), self.made_from)
        self.start()

    def _settle(self) -> None:
        """Bring what the steps since the last time gave to the host, and refuse what is no number."""
        if not self.pending:
            return
        losses = processes.total(torch.stack(self.pending).double())
        is_whole = torch.stack([p.isfinite().all() for p in self.task.model.parameters()]).all()
        norms = torch.stack(self.norms).double() if self.norms else losses.new_empty(0)
        seen = torch.cat([losses, norms, is_whole.double()[None]]).tolist()
        self.task.speed.stop()
        count = len(self.pending)
        for number in range(count):
            step = self.step - count + number + 1
            self._check(seen[number], "the loss", step)
            if self.norms and self.scaler is None:
                self._check(seen[count + number], "the gradient's norm", step)
        if not seen[-1]:
            raise self._non_finite(f"a weight is not finite at step {self.step}")
        if self.scaler is not None and (scale := self.scaler.get_scale()) < 1:
            raise self._non_finite(
                f"gradients overflow float16 at step {self.step}, even with the loss times {scale:g}"
            )
        self.losses += seen[:count]
        self.pending, self.norms = [], []

    def _check(self, value: float, name: str, step: int) -> None:
        if not math.isfinite(value):
            raise self._non_finite(f"{name} is {value} at step {step}")

    def _non_finite(self, words: str) -> NonFiniteError:
        return NonFiniteError(f"{self.task.name}: {words}. {self.task.remedy(self.saved)}")

    # ---------------------------------------------------------------- resuming and ending

    def take_up(self) -> None:
        """Continue from the newest checkpoint of the folder, the one that the first process finds, if there is one."""
        if (folder := self.folder) is None:
            return
        if processes.is_first():
            io.sweep(folder / CHECKPOINTS)
        if newest := processes.from_first(lambda: str(latest_checkpoint(folder) or "")):
            self._restore(Path(newest))
        self._write_metrics()

    def _restore(self, path: Path) -> None:
        state, tensors = read_checkpoint(path, self.optimizer, self.made_from)
        load_strictly(self.task.model, tensors.get("model", {}), where=str(path))
        if self.average is not None:
            load_strictly(self.average, tensors.get("average", {}), where=str(path))
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.history, self.losses = state["history"], state["losses"]
        self.before = self.history[-1]["seconds"] if self.history else 0.0
        if state["best_step"]:
            self.best_step, self.best_score = state["best_step"], state["best_score"]
            best = tensors["best"] if "best" in tensors else self.judged.state_dict()
            self.best = {name: value.to(self.device, copy=True) for name, value in best.items()}

    def finish(self) -> None:
        """Leave the model with the weights that are kept, and wait for all processes."""
        if self.best:
            load_strictly(self.task.model, self.best, where=self.task.name)
        elif self.average is not None and self.step:
            self.task.model.load_state_dict(self.average.state_dict())
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        if self.folder is not None:
            processes.wait()

    def _state(self) -> dict:
        return {
            "step": self.step,
            "history": self.history,
            "losses": self.losses,
            "best_step": self.best_step,
            "best_score": self.best_score if self.best else None,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def _write_metrics(self) -> None:
        if self.folder is not None and processes.is_first():
            io.write_json_lines(self.folder / METRICS, self.history)

    def _is_last_phase(self, step: int) -> bool:
        return self.task.phase(step - 1) == len(self.task.phases) - 1

    def _is_patience_over(self) -> bool:
        score, patience = self.task.score, self.settings.patience
        if score is None or not patience:
            return False
        last = [entry[score] for entry in self.history if self._is_last_phase(entry["step"])]
        return len(last) > patience and max(last[-patience:]) <= max(last[:-patience])


def _seed_global(seed: int, device: torch.device) -> None:
    """Seed the state that dropout draws from, on the CPU and on this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _note(entry: dict, numbers: dict[str, float]) -> str:
    share = f", {100 * entry['mfu']:.0f} % MFU" if "mfu" in entry else ""
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())
    return f"{shown}, {entry['images_per_second']:.0f} images/s{share}"


@contextmanager
def _held_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never cut in two."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
