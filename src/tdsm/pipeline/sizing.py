"""Size a run: its images, field, training and table, from a few images and from how fast this machine is."""

import torch
from torch import Tensor

from tdsm.base.device import resolve_device
from tdsm.data.config import AugmentConfig, DataConfig
from tdsm.data.glance import Glance, glance
from tdsm.data.workers import cores
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.field import new_field
from tdsm.pipeline.plan import extraction, fitting, step_seconds
from tdsm.training.config import TrainConfig

LARGEST = 64  # pixels a side; larger images are resized
READING, FIELD, FEATURES, HEADS = 0.1, 0.45, 0.15, 0.2  # shares of the time; the page takes the rest
MAP_SIDE = 8
FEWEST_STEPS, MOST_STEPS = 300, 200_000
FEWEST_IMAGES, MOST_IMAGES = 100, 50_000  # of a set, and that heads see
BATCH, STEPS_OF_AN_EPOCH = 16, 30


def sized(config: RunConfig, minutes: float) -> RunConfig:
    """Return settings for the images of `config.data` that take about `minutes` on this machine.

    Tokens grow with the square root of the pixels; the encoder sees some 256 pixels a step. The steps are as many as
    their share of the time allows, by the time of one step here and now. Images are left out, at random, where reading
    them, their features or the heads on these would take longer than their share.

    Args:
        config: Whose data, rows, seed and device count; the rest is replaced.
        minutes: For everything: reading, field, maps, heads, page.

    Raises:
        DataError: If none of a few images can be used.
    """
    budget = 60 * minutes
    data, seen = _fitting(config.data)
    data = _most(data, budget * READING / seen.seconds * cores(), seen.images)
    size = next(iter(seen.sizes))
    field, train = _field_for(size, seen.channels), _train_for(size, seen.images)
    maps = config.maps.model_copy(update={"size": tuple(min(side, MAP_SIDE) for side in size)})
    config = config.model_copy(update={"data": data, "field": field, "train": train, "maps": maps})
    model = new_field(field, config.seed).to(resolve_device(config.device))
    images = 2 * torch.rand(train.batch_size, seen.channels, *size) - 1
    config = config.model_copy(update={"train": _as_long(train, FIELD * budget / step_seconds(train, images, model))})
    return _with_heads(config, images, model, seen, budget)


def _as_long(train: TrainConfig, steps: float) -> TrainConfig:
    """Set the number of steps, and what goes by it."""
    count = _between(FEWEST_STEPS, steps, MOST_STEPS)
    often = max(count // 20, 50)
    update = {"steps": count, "warmup_steps": count // 40, "validate_every": often, "checkpoint_every": often}
    return train.model_copy(update=update)


def _with_heads(config: RunConfig, images: Tensor, field: NeuralField, seen: Glance, budget: float) -> RunConfig:
    """Set how many images heads and baselines are fitted to and tried on, by what features and heads take here."""
    featured = FEATURES * budget / extraction(config, images, field)[0] / 3  # of each set
    data = _most(config.data, featured, seen.images, of=("max_test",))
    data = _most(data, featured / data.validation_fraction, seen.images, of=("max_train",))
    most = _between(FEWEST_IMAGES, min(featured, float(seen.images)), MOST_IMAGES)
    probe = config.probe.model_copy(update={"batch_size": _between(BATCH, most / STEPS_OF_AN_EPOCH, 128)})
    config = config.model_copy(update={"data": data, "probe": probe})
    fitted = HEADS * budget / fitting(config, images, field, seen.classes, most)
    probe = probe.model_copy(update={"max_train": _between(FEWEST_IMAGES, fitted, most)})
    return config.model_copy(update={"probe": probe})


def _fitting(config: DataConfig) -> tuple[DataConfig, Glance]:
    """Look at a few images, and make all square and smaller where these are large or of several sizes."""
    seen = glance(config)
    if len(seen.sizes) == 1 and (config.image_size is not None or max(max(seen.sizes)) <= LARGEST):
        return config, seen
    smaller = config.model_copy(update={"image_size": LARGEST})
    return smaller, glance(smaller)


def _most(config: DataConfig, images: float, there: int, of: tuple[str, ...] = ("max_train", "max_test")) -> DataConfig:
    """Let no set have more than so many images, if the source has more."""
    most = max(int(images), FEWEST_IMAGES)
    update = {name: min(most, getattr(config, name) or most) for name in of} if most < there else {}
    return config.model_copy(update=update)


def _between(low: int, value: float, high: int) -> int:
    return int(min(max(value, low), max(low, high)))


def _field_for(size: tuple[int, int], channels: int) -> FieldConfig:
    return FieldConfig(
        channels=channels,
        latents="local",
        num_latents=max(16, min(128, 2 * round((size[0] * size[1]) ** 0.5))),
        fourier_scale=max(2.0, 0.18 * max(size)),
        mapping_dim=32,
        widths=(96,),
        cross_heads=4,
        cross_head_dim=24,
        self_heads=4,
        self_head_dim=24,
        processor_depth=2,
    )


def _train_for(size: tuple[int, int], images: int) -> TrainConfig:
    pixels = size[0] * size[1]
    share = min(1.0, 256 / pixels)
    sparse = {"objectives": {"full": 0.0, "sparse_context": 1.0}, "context_fraction": share} if share < 1 else {}
    return TrainConfig(
        **sparse,
        num_queries=min(pixels, 256),
        batch_size=max(1, min(BATCH, images // 2)),
        learning_rate=3e-3,
        augment=AugmentConfig(crop=0, flip=False),
    )
