"""Train a classification head on frozen, stored features, and choose it on validation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.randomness import derive_seed
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import TDSMClassifier, make_head
from tdsm.classification.knn import Block, nearest, votes
from tdsm.data import ImageSet
from tdsm.features.store import FeatureRows
from tdsm.training import processes
from tdsm.training.engine import Phase, Task
from tdsm.training.engine import train as train_task
from tdsm.training.steps import Order, warmup_cosine

READ, READ_IMAGES = 512, 64


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (samples, height, width, maps) and their labels."""

    features: FeatureRows
    labels: Int[Tensor, " samples"]


@dataclass(frozen=True, eq=False)
class Choice:
    """What validation chose, and how it did there."""

    accuracy: float
    settings: dict
    classifier: TDSMClassifier | None  # None for k-NN


class HeadLoss(nn.Module):
    """The cross-entropy of a classifier on features."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, features: Tensor, labels: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
        """Return the mean over rows."""
        return F.cross_entropy(self.classifier(features), labels)


def fit_head(
    head: HeadConfig, train: Samples, validation: Samples, num_classes: int, config: ProbeConfig, seed: int, device: str
) -> Choice:
    """Train a head for every learning rate and weight decay, and keep the epoch that is best on validation.

    Cross-entropy, AdamW, cosine to zero, features standardised channel by channel by the training samples. With
    `race_epochs` set, only those go on that were best after so many epochs.

    Raises:
        NonFiniteError: If loss or weights are not finite for any of the settings.
    """
    start = partial(_fit_once, head, channel_statistics(train), train, validation, num_classes, config, seed, device)
    pairs = list(product(config.learning_rates, config.weight_decays))
    if config.race_epochs and len(pairs) > 1:
        early = [start(*pair, min(config.race_epochs, config.epochs)).accuracy for pair in pairs]
        pairs = [pair for pair, accuracy in zip(pairs, early, strict=True) if accuracy == max(early)]
    return max((start(*pair, config.epochs) for pair in pairs), key=lambda choice: choice.accuracy)


def fit_seeds(
    head: HeadConfig, train: Samples, validation: Samples, num_classes: int, config: ProbeConfig, seed: int, device: str
) -> list[Choice]:
    """Choose with the first seed, then train a head for each further one at that learning rate and weight decay.

    Every seed keeps its own epoch, the one that is best on validation.
    """
    first = fit_head(head, train, validation, num_classes, config, seed, device)
    rate, decay = first.settings["learning_rate"], first.settings["weight_decay"]
    chosen = config.model_copy(update={"learning_rates": (rate,), "weight_decays": (decay,)})
    seeds = [derive_seed(seed, "probe", number) for number in range(1, config.seeds)]
    return [first, *(fit_head(head, train, validation, num_classes, chosen, other, device) for other in seeds)]


def fit_knn(train: Samples, validation: Samples, num_classes: int, config: ProbeConfig) -> Choice:
    """Choose the number of neighbours on validation, with the training samples as references; they are sought once."""
    cosines, found = neighbours_of(validation.features, train, max(config.neighbours))
    accuracies = {}
    for k in config.neighbours:
        predicted = votes(cosines[:, :k], found[:, :k], num_classes, config.temperature).argmax(dim=1)
        accuracies[k] = (predicted == validation.labels).double().mean().item()
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
    return votes(*neighbours_of(features, train, neighbours), num_classes, temperature).argmax(dim=1)


def neighbours_of(
    features: FeatureRows, train: Samples, neighbours: int
) -> tuple[Float[Tensor, "samples neighbours"], Int[Tensor, "samples neighbours"]]:
    """Find cosines and labels of each sample's nearest training samples, both standardised channel by channel.

    Samples and references are read in blocks: memory does not grow with their number.
    """
    mean, deviation = channel_statistics(train)
    scale = torch.where(deviation > 1e-6, deviation, 1.0)

    def vectors(rows: FeatureRows, part: Tensor) -> Float[Tensor, "block width"]:
        return ((rows[part] - mean) / scale).flatten(1)

    def references() -> Iterator[Block]:
        return ((vectors(train.features, p), train.labels[p]) for p in torch.arange(len(train.features)).split(READ))

    parts = torch.arange(len(features)).split(READ)
    found = [nearest(vectors(features, part), references(), neighbours) for part in parts]
    return torch.cat([cosines for cosines, _ in found]), torch.cat([labels for _, labels in found])


def channel_statistics(samples: Samples) -> tuple[Float[Tensor, " maps"], Float[Tensor, " maps"]]:
    """Return mean and standard deviation of each channel over samples and space, summed in float64."""
    total = square = torch.zeros(samples.features.shape[-1], dtype=torch.float64)
    count = math.prod(samples.features.shape[:-1])
    for part in torch.arange(len(samples.features)).split(READ):
        values = samples.features[part].flatten(0, -2).double()
        total, square = total + values.sum(dim=0), square + values.square().sum(dim=0)
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()


def new_head(
    head: HeadConfig, statistics: tuple[Tensor, Tensor], train: Samples, num_classes: int, seed: int
) -> TDSMClassifier:
    """Make a head for features like these, weights by the seed, standardised by `channel_statistics`."""
    height, width, maps = train.features.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "head"))
        classifier = make_head(head, maps, num_classes, (height, width))
    classifier.fit_statistics(*statistics)
    return classifier


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
    epochs: int,
) -> Choice:
    """Train one head for the first `epochs` of the epochs that are set, and keep the best of them."""
    order = Order(len(train.features), config.batch_size, seed, purpose="head order", keeps_rest=True)
    classifier = new_head(head, statistics, train, num_classes, seed).to(device)

    def inputs(step: int, rows: slice) -> tuple[Tensor, Tensor]:
        taken = order(step)[0][rows]
        return train.features[taken].to(device), train.labels[taken].to(device)

    task = Task(
        name=f"head {head.kind} at learning rate {rate}",
        model=classifier,
        loss=HeadLoss(classifier),
        size=order.size,
        inputs=inputs,
        groups=[{"params": list(classifier.parameters()), "name": "head", "peak": rate, "weight_decay": decay}],
        rate=partial(warmup_cosine, steps=config.epochs * order.per_epoch, warmup=0),
        phases=(Phase(epochs * order.per_epoch),),
        validate=lambda judged: {"validation_accuracy": accuracy_of(judged, validation, device)},
        score="validation_accuracy",
        validate_every=order.per_epoch,
        checkpoint_every=order.per_epoch,
        remedy=lambda _: "Set --probe.learning-rates lower.",
        blocks=(classifier.head,),
    )
    history = train_task(task, config, seed=seed)
    best = max(history, key=lambda entry: entry["validation_accuracy"])
    epoch = best["step"] // order.per_epoch
    settings = {"learning_rate": rate, "weight_decay": decay, "epoch": epoch}
    return Choice(best["validation_accuracy"], settings, classifier)
