"""Train a field to reconstruct its images.

A step is a pure function of the weights, the optimizer's state, the seed and the step's number, so a run that
was killed and resumed ends with the same weights, bit for bit on one kind of CPU.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tdsm.base.errors import DataError, NonFiniteError, UsageError
from tdsm.base.progress import Progress
from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment, check_augment
from tdsm.models.field import NeuralField
from tdsm.training import processes
from tdsm.training.checkpoints import latest_checkpoint, read_state, save_checkpoint, write_state
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import check_objectives, training_loss
from tdsm.training.throughput import Throughput, flops_of_image, peak_flops


def train_field(
    field: NeuralField, data: Data, config: TrainConfig, seed: int, run: Path, made_from: dict
) -> list[dict]:
    """Train a field in place by reconstruction, with checkpoints in `run`; take up the newest one there.

    Each step descends the weighted objectives of a batch by AdamW, with warm-up, a cosine and clipping. Processes that
    have joined share every batch; `run` must be a folder that all of them see.

    Returns:
        The history: dictionaries of step, loss, seconds, validation psnr in dB, images_per_second and, on a device
        whose peak is known, mfu: the share of it.

    Raises:
        DataError: If the training set is smaller than a batch.
        NonFiniteError: If loss, gradient or validation PSNR is not finite; no checkpoint is written after that.
        KeyboardInterrupt: On Ctrl-C, after the step under way is done and saved; a second one ends at once.
    """
    check_training(field, data.train, config)
    optimizer = torch.optim.AdamW(
        [p for p in field.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step, history, losses = 0, [], []
    if (checkpoint := latest_checkpoint(run)) is not None:
        restored = read_state(checkpoint, {"model": field}, optimizer)
        step, history, losses = restored["step"], restored["history"], restored["losses"]
    device = next(field.parameters()).device
    images, speed = data.train.near(device), _throughput(field, data.train, config)
    loss = shared_loss(field, config, seed)
    before = history[-1]["seconds"] if history else 0.0
    began = time.monotonic()

    def save() -> None:
        if processes.is_first():
            state = {"step": step, "history": history, "losses": losses}
            save_checkpoint(run, step, lambda folder: write_state(folder, {"model": field}, optimizer, state))

    with (
        Progress("training", config.steps, done=step, unit="step", quiet=not processes.is_first()) as progress,
        _held_interrupt() as interrupted,
    ):
        while step < config.steps:
            step_began = time.monotonic()
            losses.append(train_step(loss, optimizer, images, config, seed, step))
            speed.step(config.batch_size, step_began)
            step += 1
            if step % config.validate_every == 0 or step == config.steps:
                entry = {"step": step, "loss": sum(losses) / len(losses), "seconds": before + time.monotonic() - began}
                entry["psnr"] = measure_psnr(field, data.validation, config.validation_images)
                _check_finite("PSNR on validation images", entry["psnr"], step)
                history.append(entry | speed.take())
                losses = []
            is_interrupted = bool(processes.total(torch.tensor(interrupted.is_set(), dtype=torch.int64, device=device)))
            if step % config.checkpoint_every == 0 or step == config.steps or is_interrupted:
                save()
            if is_interrupted:
                raise KeyboardInterrupt
            progress.advance(note=_note(history))
    processes.wait()
    return history


class StepLoss(nn.Module):
    """The loss of some rows of a step's batch, in the precision of the settings."""

    def __init__(self, field: NeuralField, config: TrainConfig, seed: int):
        super().__init__()
        self.field, self.config, self.seed = field, config, seed

    def forward(self, images: Float[Tensor, "rows channels height width"], step: int, start: int) -> Float[Tensor, ""]:
        """Return the loss of rows `start`, `start` + 1, ... of the step's batch."""
        rows, of = slice(start, start + len(images)), self.config.batch_size
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return training_loss(self.field, images, self.config, self.seed, step, of=of, rows=rows)


def shared_loss(field: NeuralField, config: TrainConfig, seed: int) -> nn.Module:
    """Return the loss of a field, its blocks compiled if so set, its gradients averaged over processes that joined."""
    if config.compile:
        compile_blocks(field)
    loss = StepLoss(field, config, seed)
    if processes.count() == 1:
        return loss
    device = next(field.parameters()).device
    return DistributedDataParallel(
        loss, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def compile_blocks(field: NeuralField, backend: str = "inductor") -> None:
    """Compile encoder, processor and decoder blocks in place; their weights and names stay."""
    blocks = [*field.encoder, *field.processor, field.decoder_attention]
    for block in blocks + ([field.decoder_feedforward] if field.config.has_decoder_feedforward else []):
        block.compile(backend=backend)


def check_training(field: NeuralField, images: ImageSet, config: TrainConfig) -> None:
    """Refuse settings that this field or these training images do not allow.

    Raises:
        DataError: If there are fewer images than a batch.
        UsageError: If the crop is as large as the images, or the objectives do not suit the field.
    """
    if config.steps == 0:
        return
    check_objectives(field, config)
    if config.batch_size < (parts := processes.count() * config.accumulate):
        raise UsageError(
            f"train: a batch of {config.batch_size} images cannot be cut into {parts} parts (processes times "
            "--train.accumulate). Set --train.batch-size higher."
        )
    if len(images) < config.batch_size:
        raise DataError(
            f"train: {len(images)} training images are fewer than a batch of {config.batch_size}. "
            "Set --train.batch-size lower."
        )
    check_augment(config.augment, *images.images.shape[2:])


def train_step(
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    config: TrainConfig,
    seed: int,
    step: int,
) -> float:
    """Take this process's share of one optimizer step and return the loss of the whole batch."""
    loss.train()
    device = next(loss.parameters()).device
    indices, epoch = batch_indices(len(images), config.batch_size, seed, step)
    optimizer.zero_grad(set_to_none=True)
    shares, whole = processes.shares(config.batch_size, config.accumulate), torch.zeros((), device=device)
    for rows in shares:
        batch = images.subset(indices[rows])
        pixels = augment(batch.floats().to(device), batch.ids, config.augment, seed=seed, epoch=epoch)
        with _gradients_kept(loss, is_last=rows == shares[-1]):
            part = len(batch) / config.batch_size * loss(pixels, step, rows.start)
            (processes.count() * part).backward()  # which the processes average
        whole += part.detach()
    value = processes.total(whole).item()
    _check_finite("loss", value, step + 1)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    norm = nn.utils.clip_grad_norm_(loss.parameters(), config.gradient_clip)
    _check_finite("gradient's norm", norm.item(), step + 1)
    optimizer.step()
    return value


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> tuple[Tensor, int]:
    """Return the samples of a step and its epoch: the epoch's permutation, cut into whole batches.

    >>> batch_indices(10, 4, seed=0, step=1)[0].shape, batch_indices(10, 4, seed=0, step=2)[1]
    (torch.Size([4]), 1)
    """
    epoch, position = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return order[position * batch_size : (position + 1) * batch_size], epoch


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step."""
    return warmup_cosine(config.learning_rate, step, config.steps, config.warmup_steps)


def warmup_cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """Return the rate of one of `steps` steps: linear warm-up to the peak, then a cosine to zero.

    >>> [warmup_cosine(1.0, step, steps=6, warmup=2) for step in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def measure_psnr(field: NeuralField, images: ImageSet, limit: int | None = None) -> float:
    """Return the mean over images of each image's PSNR in dB, on the first `limit` images."""
    return image_psnr(field, images, limit).mean().item()


def reconstruction_quality(field: NeuralField, images: ImageSet) -> dict:
    """Return mean and standard deviation over images of the PSNR in dB, and how many images there were."""
    ratios = image_psnr(field, images)
    return {"psnr": ratios.mean().item(), "deviation": ratios.std(correction=0).item(), "n": len(ratios)}


@torch.no_grad()
def image_psnr(
    field: NeuralField, images: ImageSet, limit: int | None = None, batch_size: int = 64
) -> Float[Tensor, " images"]:
    """Return the PSNR in dB of each image, or of the first `limit`."""
    field.eval()
    device = next(field.parameters()).device
    ratios = []
    for indices in torch.arange(min(len(images), limit or len(images))).split(batch_size):
        batch = images.floats(indices).to(device)
        reconstruction = field.decode(field.encode(batch), size=tuple(batch.shape[2:]))
        ratios.append(psnr(rearrange(batch, "b c h w -> b h w c"), reconstruction).cpu())
    return torch.cat(ratios)


def _gradients_kept(loss: nn.Module, *, is_last: bool) -> AbstractContextManager:
    """Let the processes exchange gradients after the last part of a share only."""
    return nullcontext() if is_last or not isinstance(loss, DistributedDataParallel) else loss.no_sync()


def _throughput(field: NeuralField, images: ImageSet, config: TrainConfig) -> Throughput:
    device = next(field.parameters()).device
    if (peak := peak_flops(device, config.precision)) is None:
        return Throughput(0.0, None)
    flops = flops_of_image(field, images.floats([0]).to(device), config)
    return Throughput(flops, peak * processes.count())


def _note(history: list[dict]) -> str:
    if not history:
        return ""
    entry = history[-1]
    share = f", {100 * entry['mfu']:.0f} % MFU" if "mfu" in entry else ""
    return f"validation {entry['psnr']:.2f} dB, {entry['images_per_second']:.0f} images/s{share}"


def _check_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"train: the {name} is {value} at step {step}. The newest checkpoint is from before it; "
            "try a lower --train.learning-rate."
        )


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
