"""Train a classification head on frozen, stored features, and choose it on validation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import HeadConfig, MapAugment, ProbeConfig
from tdsm.classification.heads import TDSMClassifier, make_head
from tdsm.classification.knn import Block, nearest, votes
from tdsm.classification.registry import HEADS
from tdsm.data import ImageSet
from tdsm.data.augment import AugmentConfig, move_maps
from tdsm.features.kinds import FeatureKind
from tdsm.features.store import FeatureRows
from tdsm.training import processes
from tdsm.training.engine import Phase, Task
from tdsm.training.engine import train as train_task
from tdsm.training.steps import Order, warmup_cosine

READ, READ_IMAGES = 512, 64
WARMUP = 10  # the rate rises over one epoch, or over this part of all steps where that is less
ROUND = 50  # fewest steps after which validation is measured
SOLVE_READ, SOLVE_VALUES = 2048, 2**23  # samples, and values of them, that a closed form reads at once


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (samples, height, width, maps) and their labels."""

    features: FeatureRows
    labels: Int[Tensor, " samples"]
    is_spatial: bool = False  # whether height and width are those of the image, so that they may be moved like it
    is_picture: bool = False  # whether a channel means the same at every place, as a colour does

    @classmethod
    def of(cls, kind: FeatureKind, features: FeatureRows, labels: Int[Tensor, " samples"]) -> "Samples":
        """Make samples of a kind of feature."""
        return cls(features, labels, kind.is_spatial, kind.is_picture)

    def near(self, device: torch.device) -> "Samples":
        """Move the features to a GPU if there is room for them."""
        return replace(self, features=self.features.near(device))


@dataclass(frozen=True, eq=False)
class Choice:
    """What validation chose, and how it did there."""

    accuracy: float
    settings: dict
    classifier: TDSMClassifier | None  # None for k-NN


class HeadLoss(nn.Module):
    """The cross-entropy of a classifier on features, a share of each label spread over all classes."""

    def __init__(self, classifier: nn.Module, smoothing: float = 0.0):
        super().__init__()
        self.classifier, self.smoothing = classifier, smoothing

    def forward(self, features: Tensor, labels: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
        """Return the mean over rows."""
        return F.cross_entropy(self.classifier(features), labels, label_smoothing=self.smoothing)


def fit_head(
    head: HeadConfig, train: Samples, validation: Samples, num_classes: int, config: ProbeConfig, seed: int, device: str
) -> Choice:
    """Fit a head to training samples, and choose on validation.

    A head that is solved is solved for every penalty. Any other is trained for every learning rate and weight decay,
    by AdamW on the cross-entropy, until validation stops improving, and keeps its best epoch. With `race_epochs` set,
    only those go on that were best after a short race. Features are standardised by the training samples, as
    `TDSMClassifier` says.

    Raises:
        NonFiniteError: If loss or weights are not finite for any of the settings.
        UsageError: If there are more samples and features than the head can be solved for.
    """
    train, validation = (samples.near(torch.device(device)) for samples in (train, validation))
    if HEADS[head.kind].is_solved:
        return _solve(head, train, validation, num_classes, config, device)
    start = partial(_fit_once, head, statistics_for(head, train), train, validation, num_classes, config, seed, device)
    pairs = list(product(config.learning_rates, config.weight_decays))
    if config.race_epochs and len(pairs) > 1:
        early = [start(*pair, config.race_epochs).accuracy for pair in pairs]
        pairs = [pair for pair, accuracy in zip(pairs, early, strict=True) if accuracy == max(early)]
    return max((start(*pair) for pair in pairs), key=lambda choice: choice.accuracy)


def fit_seeds(
    head: HeadConfig,
    train: Samples,
    validation: Samples,
    num_classes: int,
    config: ProbeConfig,
    seed: int,
    device: str,
    done: Sequence[Choice] = (),
) -> Iterator[Choice]:
    """Choose with the first seed, then train a head for each further one at that learning rate and weight decay.

    Every seed keeps its own epoch, the one that is best on validation. A head that is solved has no seed, and comes
    once. Choices come as they are made; of seeds that are `done` they are given back as they are.
    """
    train, validation = (samples.near(torch.device(device)) for samples in (train, validation))
    first = done[0] if done else fit_head(head, train, validation, num_classes, config, seed, device)
    yield first
    if HEADS[head.kind].is_solved:
        return
    yield from done[1:]
    rate, decay = first.settings["learning_rate"], first.settings["weight_decay"]
    chosen = config.model_copy(update={"learning_rates": (rate,), "weight_decays": (decay,)})
    for number in range(max(1, len(done)), config.seeds):
        other = derive_seed(seed, "probe", number)
        yield fit_head(head, train, validation, num_classes, chosen, other, device)


def fit_knn(train: Samples, validation: Samples, num_classes: int, config: ProbeConfig) -> Choice:
    """Choose the number of neighbours on validation, with the training samples as references; they are sought once."""
    right = dict.fromkeys(config.neighbours, 0)
    for part, cosines, found in neighbours_of(validation.features, train, max(config.neighbours)):
        for k in right:
            predicted = votes(cosines[:, :k], found[:, :k], num_classes, config.temperature).argmax(dim=1)
            right[k] += int((predicted == validation.labels[part]).sum())
    accuracies = {k: count / len(validation.labels) for k, count in right.items()}
    k = max(accuracies, key=lambda key: (accuracies[key], -key))
    return Choice(accuracies[k], {"neighbours": k, "temperature": config.temperature}, None)


@torch.no_grad()
def predict(
    classifier: nn.Module, inputs: FeatureRows | ImageSet, device: torch.device | str
) -> Int[Tensor, " samples"]:
    """Return the class of each sample, from features or from images."""
    classifier.eval().to(device)
    read, size = (inputs.floats, READ_IMAGES) if isinstance(inputs, ImageSet) else (inputs.__getitem__, READ)

    def compute(indices: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return classifier(read(indices).to(device)).argmax(dim=1)

    return processes.each_sample(len(inputs), compute, size, device).long()


def accuracy_of(classifier: nn.Module, samples: Samples | ImageSet, device: torch.device | str) -> float:
    """Return the share of samples whose class is right."""
    inputs = samples if isinstance(samples, ImageSet) else samples.features
    return (predict(classifier, inputs, device) == samples.labels).sum().item() / len(samples.labels)


def predict_knn(
    features: FeatureRows, train: Samples, num_classes: int, neighbours: int, temperature: float
) -> Int[Tensor, " samples"]:
    """Return the class of each sample by the vote of training samples."""
    found = neighbours_of(features, train, neighbours)
    return torch.cat([votes(cosines, near, num_classes, temperature).argmax(dim=1) for _, cosines, near in found])


def neighbours_of(
    features: FeatureRows, train: Samples, neighbours: int
) -> Iterator[tuple[Int[Tensor, " block"], Float[Tensor, "block neighbours"], Int[Tensor, "block neighbours"]]]:
    """Find which samples these are, with cosines and labels of each one's nearest training samples, block by block.

    Both are standardised value by value. Memory does not grow with the number of samples or references.
    """
    mean, deviation = statistics_of(train)
    scale = torch.where(deviation > 1e-6, deviation, 1.0)

    def vectors(rows: FeatureRows, part: Tensor) -> Float[Tensor, "block width"]:
        return ((rows[part] - mean) / scale).flatten(1)

    def references() -> Iterator[Block]:
        return ((vectors(train.features, p), train.labels[p]) for p in torch.arange(len(train.features)).split(READ))

    for part in torch.arange(len(features)).split(READ):
        yield part, *nearest(vectors(features, part), references(), neighbours)


def statistics_of(
    samples: Samples, *, by_place: bool = True
) -> tuple[Float[Tensor, "*size maps"], Float[Tensor, "*size maps"]]:
    """Return mean and standard deviation of each value over samples, else of each channel over samples and space.

    Both are summed in float64.
    """
    total = square = torch.zeros((), dtype=torch.float64)
    count = 0
    for part in torch.arange(len(samples.features)).split(READ):
        values = samples.features[part].double()
        values = values if by_place else values.flatten(0, -2)
        total, square, count = total + values.sum(dim=0), square + values.square().sum(dim=0), count + len(values)
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()


def statistics_for(head: HeadConfig, train: Samples) -> tuple[Float[Tensor, "*size maps"], Float[Tensor, "*size maps"]]:
    """Return the mean and the deviation that a head standardises by, as `TDSMClassifier` says."""
    kind = HEADS[head.kind]
    if kind.convolves and train.is_picture:
        mean, deviation = statistics_of(train, by_place=False)
        size = train.features.shape[1:]
        return mean.expand(size), deviation.expand(size)
    mean, deviation = statistics_of(train, by_place=kind.needs_size)
    if kind.convolves:
        deviation = deviation.square().mean((0, 1)).sqrt().expand_as(mean)
    return mean, deviation


def new_head(
    head: HeadConfig, statistics: tuple[Tensor, Tensor], train: Samples, num_classes: int, seed: int
) -> TDSMClassifier:
    """Make a head for features like these, weights by the seed, standardised by `statistics_for` it, and prepared."""
    height, width, maps = train.features.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "head"))
        classifier = make_head(head, maps, num_classes, (height, width))
    classifier.fit_statistics(*statistics)

    def sample() -> Tensor:
        shown = torch.randperm(len(train.features), generator=generator(seed, "head prepared"))[:READ]
        return classifier.standardise(train.features[shown].cpu())

    classifier.head.prepare(sample)
    return classifier


def plateau(accuracies: Sequence[float], wait: int) -> float:
    """Return the share of the peak that is left: a fifth for every `wait` rounds in a row without a better one.

    >>> plateau([0.5, 0.4, 0.5, 0.6], wait=2), plateau([0.5, 0.4, 0.5, 0.6], wait=1)
    (0.2, 0.04)
    """
    best, stalled, share = -math.inf, 0, 1.0
    for accuracy in accuracies:
        stalled = 0 if accuracy > best else stalled + 1
        best = max(best, accuracy)
        share = share / 5 if stalled and stalled % wait == 0 else share
    return share


def _round(order: Order) -> int:
    return order.per_epoch * -(-ROUND // order.per_epoch)


def moved(
    maps: Float[Tensor, "batch height width maps"],
    ids: Int[Tensor, " batch"],
    config: MapAugment,
    seed: int,
    epoch: int,
) -> Float[Tensor, "batch height width maps"]:
    """Flip and shift maps at random, each by a draw of (seed, epoch, id); the default changes nothing."""
    crop = round(config.shift * min(maps.shape[1:3]))
    if not crop and not config.flip:
        return maps
    change = AugmentConfig(crop=crop, flip=config.flip)
    return move_maps(maps, ids, change, seed=derive_seed(seed, "maps"), epoch=epoch)


def _solve(
    head: HeadConfig, train: Samples, validation: Samples, num_classes: int, config: ProbeConfig, device: str
) -> Choice:
    """Solve a head in closed form."""
    classifier = new_head(head, statistics_for(head, train), train, num_classes, 0).to(device)
    read, rows = classifier.head.read, max(1, min(SOLVE_READ, SOLVE_VALUES // math.prod(train.features.shape[1:])))

    def blocks(samples: Samples) -> Iterator[Block]:
        for part in torch.arange(len(samples.features)).split(rows):
            maps = samples.features[part].to(device)
            yield read(classifier.standardise(maps)), samples.labels[part].to(device)

    settings = classifier.head.solve(partial(blocks, train), partial(blocks, validation), config.penalties)
    return Choice(accuracy_of(classifier, validation, device), settings, classifier)


def _fit_once(
    head: HeadConfig,
    statistics: tuple[Tensor, Tensor],
    train: Samples,
    validation: Samples,
    num_classes: int,
    config: ProbeConfig,
    seed: int,
    device: str,
    rate: float,
    decay: float,
    rounds: int | None = None,
) -> Choice:
    """Train one head for at most so many rounds, and keep the best of them.

    A round is an epoch, or as many as make `ROUND` steps; after each validation is measured. The rate rises over the
    first epoch, or a tenth of all steps if that is less, falls by a cosine to zero over all, and to a fifth whenever a
    third of the patience has passed without a better round.
    """
    order = Order(len(train.features), config.batch_size, seed, purpose="head order", keeps_rest=True)
    classifier = new_head(head, statistics, train, num_classes, seed).to(device)
    accuracies: list[float] = []
    every, steps = _round(order), config.epochs * order.per_epoch

    def rate_at(peak: float, step: int) -> float:
        share = plateau(accuracies, max(1, config.patience // 3)) if config.patience else 1.0
        return warmup_cosine(share * peak, step, steps=steps, warmup=min(order.per_epoch, steps // WARMUP))

    def inputs(step: int, rows: slice) -> tuple[Tensor, Tensor]:
        taken, epoch = order(step)
        maps = train.features[taken[rows]].to(device)
        if train.is_spatial:
            maps = moved(maps, taken[rows], config.map_augment, seed, epoch)
        return maps, train.labels[taken[rows]].to(device)

    def validate(judged: nn.Module) -> dict[str, float]:
        accuracies.append(accuracy_of(judged, validation, device))
        return {"validation_accuracy": accuracies[-1]}

    task = Task(
        name=f"head {head.kind} at learning rate {rate}",
        model=classifier,
        loss=HeadLoss(classifier, config.label_smoothing),
        size=order.size,
        inputs=inputs,
        groups=[{"params": list(classifier.parameters()), "name": "head", "peak": rate, "weight_decay": decay}],
        rate=rate_at,
        phases=(Phase(steps if rounds is None else min(steps, rounds * every)),),
        validate=validate,
        score="validation_accuracy",
        validate_every=every,
        checkpoint_every=every,
        remedy=lambda _: "Set --probe.learning-rates lower.",
        blocks=(classifier.head,),
    )
    history = train_task(task, config, seed=seed)
    best = max(history, key=lambda entry: entry["validation_accuracy"])
    epoch = -(-best["step"] // order.per_epoch)
    settings = {"learning_rate": rate, "weight_decay": decay, "epoch": epoch}
    return Choice(best["validation_accuracy"], settings, classifier)
