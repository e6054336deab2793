"""What a run would do, how long that would take here, and how much disk; only decoded images are kept."""

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdsm.base.device import resolve_device
from tdsm.base.text import duration
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import HEADS, make_head
from tdsm.classification.probe import ROUND
from tdsm.decomposition.reduce import num_maps
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.features.extract import compute_features
from tdsm.features.kinds import Images
from tdsm.models.field import NeuralField
from tdsm.models.weights import count_parameters
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.data import load
from tdsm.pipeline.run import chosen_rows
from tdsm.pipeline.stages import check, settled
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import training_loss

TRIES = 3


def plan(config: RunConfig) -> str:
    """Say in words what a run would do: sizes of data, field and features, the rows, estimates of time and disk."""
    data = load(config.data, config.seed)
    config, field = settled(config, data)
    check(config, data, field)
    field = field.to(resolve_device(config.device))
    images = data.train.floats(range(min(config.train.batch_size, len(data.train))))
    height, width = data.train.size
    rows, maps = chosen_rows(config.probe.rows), config.maps
    tokens = len(select_tokens(field.config.num_tokens, parse_selection(maps.selection)))
    map_height, map_width = maps.size or (height, width)
    seen = min(config.probe.max_train or len(data.train), len(data.train))
    count = seen * (1 + config.probe.views) + len(data.validation) + len(data.test)
    seconds, size = extraction(config, images, field)
    fitted = fitting(config, images, field, len(data.train.classes), seen) * seen
    return "\n".join(
        [
            f"data: {data.name}, {len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test "
            f"images of {data.train.channels} × {height} × {width}, {len(data.train.classes)} classes",
            *(f"  {note}" for note in data.notes),
            f"field: {count_parameters(field):,} parameters, {field.config.num_tokens} tokens × "
            f"{field.config.widths[-1]}",
            f"training: {config.train.steps} steps of {config.train.batch_size} images on {config.device}, about "
            f"{duration(step_seconds(config.train, images, field) * config.train.steps)}",
            f"maps: {map_height} × {map_width} × "
            f"{num_maps(tokens, data.train.channels, maps.reduction)} as {maps.dtype}; all features of {count} images: "
            f"{size * count / 2**30:.2f} GiB, about {duration(seconds * count)}",
            f"rows: {', '.join(rows)}; fitted in about {duration(fitted)} at most",
        ]
    )


def step_seconds(config: TrainConfig, images: Images, field: NeuralField) -> float:
    """Time the loss and its gradient on one batch, here and now."""
    if not config.steps:
        return 0.0
    learner = copy.deepcopy(field).train()
    device = next(field.parameters()).device
    images = images.to(device)
    return _seconds(lambda: training_loss(learner, images, config, seed=0, step=0).backward())


def extraction(config: RunConfig, images: Images, field: NeuralField) -> tuple[float, float]:
    """Return seconds and bytes an image of all features that the chosen rows read, here and now."""
    wanted = sorted({(row.is_trained, row.features) for row in chosen_rows(config.probe.rows).values() if row.features})
    fields = {is_trained: [name for trained, name in wanted if trained == is_trained] for is_trained in (True, False)}

    def compute() -> list[dict[str, torch.Tensor]]:
        return [compute_features(field, images, names, config.maps) for names in fields.values() if names]

    size = sum(feature.nbytes for features in compute() for feature in features.values())
    return _seconds(compute) / len(images), size / len(images)


def fitting(config: RunConfig, images: Images, field: NeuralField, classes: int, count: int) -> float:
    """Return seconds an image, of `count`, of training the heads of all chosen rows, were none to stop early."""
    read = [(row.head, row.features) for row in chosen_rows(config.probe.rows).values() if row.head and row.features]
    read = [(head, feature) for head, feature in read if not HEADS[head.kind].is_solved]
    features = compute_features(field, images, {feature for _, feature in read}, config.maps)
    steps = [_seconds(_head_step(head, features[feature].float(), max(classes, 1))) for head, feature in read]
    return sum(steps) / len(images) * passes(config.probe, count)


def passes(config: ProbeConfig, count: int) -> int:
    """Return how often a head sees each of `count` training images: in the race of all settings, and in the end.

    >>> passes(ProbeConfig(epochs=15), 10_000), passes(ProbeConfig(epochs=15), 1000)
    (21, 57)
    """
    settings = len(config.learning_rates) * len(config.weight_decays)
    if settings == 1 or not config.race_epochs:
        return settings * config.epochs
    of_a_round = -(-ROUND // -(-count // config.batch_size))
    return settings * min(config.race_epochs * of_a_round, config.epochs) + config.epochs


def _head_step(config: HeadConfig, features: Tensor, classes: int) -> Callable[[], None]:
    """Return what takes one step of a head."""
    head = make_head(config, features.shape[-1], classes, (features.shape[1], features.shape[2]))
    optimizer, labels = torch.optim.AdamW(head.parameters()), torch.zeros(len(features), dtype=torch.int64)

    def step() -> None:
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()

    return step


def _seconds(work: Callable[[], Any]) -> float:
    taken = []
    for _ in range(TRIES):
        began = time.monotonic()
        work()
        taken.append(time.monotonic() - began)
    return median(taken)
