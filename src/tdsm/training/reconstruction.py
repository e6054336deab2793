"""Train a field to reconstruct its images."""

from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.errors import DataError, UsageError
from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment, check_augment
from tdsm.data.sampling import stratified_sample
from tdsm.models.field import NeuralField
from tdsm.training import processes
from tdsm.training.config import TrainConfig
from tdsm.training.engine import Phase, Task, train
from tdsm.training.objectives import check_objectives, training_loss
from tdsm.training.steps import Order, warmup_cosine
from tdsm.training.throughput import Throughput, flops_of_image, peak_flops


def train_field(
    field: NeuralField, data: Data, config: TrainConfig, seed: int, run: Path, made_from: dict | None = None
) -> list[dict]:
    """Train a field in place by reconstruction, with checkpoints in `run`; take up the newest one there.

    Each step descends the weighted objectives of a batch by AdamW, with warm-up, a cosine and clipping. Processes that
    have joined share every batch; `run` must be a folder that all of them see.

    Args:
        made_from: What decides the training besides settings that may change; kept in checkpoints and compared.

    Returns:
        The history: dictionaries of step, loss, seconds, validation psnr in dB, images_per_second, on a device whose
        peak is known mfu, the share of it, and learning_rate.

    Raises:
        DataError: If the training set is smaller than a batch.
        CheckpointError: If the newest checkpoint was made from something else.
        NonFiniteError: If loss, gradient, weights or validation PSNR is not finite; no checkpoint after that.
        KeyboardInterrupt: On Ctrl-C, after the step under way is done and saved; a second one ends at once.
    """
    check_training(field, data.train, config)
    task = reconstruction_task(field, data, config, seed)
    return train(task, config, seed=seed, folder=Path(run), made_from=made_from, tracker=config.tracker)


class StepLoss(nn.Module):
    """The loss of some rows of a step's batch."""

    def __init__(self, field: NeuralField, config: TrainConfig, seed: int):
        super().__init__()
        self.field, self.config, self.seed = field, config, seed

    def forward(self, images: Float[Tensor, "rows channels height width"], step: int, start: int) -> Float[Tensor, ""]:
        """Return the loss of rows `start`, `start` + 1, ... of the step's batch."""
        rows, of = slice(start, start + len(images)), self.config.batch_size
        return training_loss(self.field, images, self.config, self.seed, step, of=of, rows=rows)


def reconstruction_task(field: NeuralField, data: Data, config: TrainConfig, seed: int) -> Task:
    """Describe the training of a field for the engine."""
    device = next(field.parameters()).device
    images, order = data.train.near(device), Order(len(data.train), config.batch_size, seed)
    shown = validation_images(data.validation, config.validation_images, seed)

    def inputs(step: int, rows: slice) -> tuple[Tensor, int, int]:
        indices, epoch = order(step)
        taken = indices[rows]
        pixels = images.floats(taken).to(device)
        return augment(pixels, images.ids[taken], config.augment, seed=seed, epoch=epoch), step, rows.start

    learning = {"params": [p for p in field.parameters() if p.requires_grad], "name": "field"}
    return Task(
        name="train",
        model=field,
        loss=StepLoss(field, config, seed),
        size=order.size,
        inputs=inputs,
        groups=[learning | {"peak": config.learning_rate, "weight_decay": config.weight_decay}],
        rate=partial(warmup_cosine, steps=config.steps, warmup=config.warmup_steps),
        phases=(Phase(config.steps),),
        validate=lambda judged: {"psnr": measure_psnr(judged, shown)},
        score="psnr" if config.patience else None,
        validate_every=config.validate_every,
        checkpoint_every=config.checkpoint_every,
        remedy=_remedy,
        blocks=blocks_of(field),
        speed=_throughput(field, data.train, config),
    )


def blocks_of(field: NeuralField) -> tuple[nn.Module, ...]:
    """Return the blocks of encoder, processor and decoder, which compile well by themselves."""
    blocks = (*field.encoder, *field.processor, field.decoder_attention)
    return (*blocks, field.decoder_feedforward) if field.config.has_decoder_feedforward else blocks


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
    check_augment(config.augment, *images.size)


def validation_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Draw the images that a training is measured on, the same share of each class; all of them if there are fewer."""
    return images.subset(stratified_sample(images.labels, count, generator(seed, "validation images")))


def measure_psnr(field: NeuralField, images: ImageSet) -> float:
    """Return the mean over images of each image's PSNR in dB."""
    return image_psnr(field, images).mean().item()


def reconstruction_quality(field: NeuralField, images: ImageSet) -> dict:
    """Return mean and standard deviation over images of the PSNR in dB, and how many images there were."""
    ratios = image_psnr(field, images)
    return {"psnr": ratios.mean().item(), "deviation": ratios.std(correction=0).item(), "n": len(ratios)}


@torch.no_grad()
def image_psnr(field: NeuralField, images: ImageSet, batch_size: int = 64) -> Float[Tensor, " images"]:
    """Return the PSNR in dB of each image."""
    field.eval()
    device = next(field.parameters()).device

    def compute(indices: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        batch = images.floats(indices).to(device)
        reconstruction = field.decode(field.encode(batch), size=tuple(batch.shape[2:]))
        return psnr(rearrange(batch, "b c h w -> b h w c"), reconstruction)

    return processes.each_sample(len(images), compute, batch_size, device).float()


def _throughput(field: NeuralField, images: ImageSet, config: TrainConfig) -> Throughput:
    device = next(field.parameters()).device
    if (peak := peak_flops(device, config.precision)) is None:
        return Throughput()
    flops = flops_of_image(field, images.floats([0]).to(device), config)
    return Throughput(flops, peak * processes.count())


def _remedy(saved: int | None) -> str:
    if saved is None:
        return "There is no checkpoint yet: start anew with a lower --train.learning-rate."
    return f"The newest checkpoint is that of step {saved}: continue with --resume and a lower --train.learning-rate."
