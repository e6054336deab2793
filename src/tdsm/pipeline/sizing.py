"""Size a run: a field, its training and its table, from images and from how fast this machine is."""

from tdsm.base.device import resolve_device
from tdsm.base.errors import MixedSizesError
from tdsm.data import Data
from tdsm.data.config import AugmentConfig
from tdsm.models.config import FieldConfig
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.data import load
from tdsm.pipeline.field import new_field
from tdsm.pipeline.plan import step_seconds
from tdsm.training.config import TrainConfig

LARGEST = 64  # pixels a side; larger images are resized
FIELD_SHARE = 0.5  # of the time; heads, baselines and pages take the rest
HEAD_IMAGES = 1000  # training images a minute of the budget that heads and baselines see
MAP_SIDE = 8
FEWEST_STEPS, MOST_STEPS = 300, 200_000


def sized(config: RunConfig, minutes: float) -> RunConfig:
    """Return settings for the images of `config.data` that take about `minutes` on this machine.

    Tokens grow with the square root of the pixels; the encoder sees some 256 pixels a step; the number of steps is what
    half of the time allows, by the time of one step here and now.

    Args:
        config: Whose data, seed and device count; the rest is replaced.
        minutes: For everything: field, maps, heads, page.
    """
    config, data = _loaded(config)
    field = _field_for(data)
    train = _train_for(data)
    config = config.model_copy(update={"field": field, "train": train})
    seconds = step_seconds(train, data, new_field(field, config.seed).to(resolve_device(config.device)))
    steps = int(min(max(FIELD_SHARE * minutes * 60 / seconds, FEWEST_STEPS), MOST_STEPS))
    often = max(steps // 20, 50)
    update = {"steps": steps, "warmup_steps": steps // 40, "validate_every": often, "checkpoint_every": often}
    maps = config.maps.model_copy(update={"size": tuple(min(side, MAP_SIDE) for side in data.train.size)})
    probe = config.probe.model_copy(update={"max_train": max(int(HEAD_IMAGES * minutes), 100)})
    return config.model_copy(update={"train": train.model_copy(update=update), "maps": maps, "probe": probe})


def _loaded(config: RunConfig) -> tuple[RunConfig, Data]:
    """Load the images, made square and smaller where they are large or of several sizes."""
    smaller = config.model_copy(update={"data": config.data.model_copy(update={"image_size": LARGEST})})
    try:
        data = load(config.data, config.seed)
    except MixedSizesError:
        return smaller, load(smaller.data, config.seed)
    if max(data.train.size) <= LARGEST or config.data.image_size is not None:
        return config, data
    return smaller, load(smaller.data, config.seed)


def _field_for(data: Data) -> FieldConfig:
    height, width = data.train.size
    pixels = height * width
    return FieldConfig(
        channels=data.train.channels,
        latents="local",
        num_latents=max(16, min(128, 2 * round(pixels**0.5))),
        fourier_scale=max(2.0, 0.18 * max(height, width)),
        mapping_dim=32,
        widths=(96,),
        cross_heads=4,
        cross_head_dim=24,
        self_heads=4,
        self_head_dim=24,
        processor_depth=2,
    )


def _train_for(data: Data) -> TrainConfig:
    pixels = data.train.size[0] * data.train.size[1]
    share = min(1.0, 256 / pixels)
    sparse = {"objectives": {"full": 0.0, "sparse_context": 1.0}, "context_fraction": share} if share < 1 else {}
    return TrainConfig(
        **sparse,
        num_queries=min(pixels, 256),
        batch_size=16,
        learning_rate=3e-3,
        augment=AugmentConfig(crop=0, flip=False),
    )
