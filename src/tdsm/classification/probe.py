"""Train a classification head on frozen, stored features, and choose it on validation."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.errors import NonFiniteError
from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import TDSMClassifier, make_head
from tdsm.classification.knn import knn_scores
from tdsm.features.store import FeatureRows

READ = 512


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (samples, height, width, maps) and their labels."""

    features: FeatureRows
    labels: Int[Tensor, " samples"]

    def batches(self, order: Int[Tensor, " samples"], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and labels in this order."""
        for indices in order.split(batch_size):
            yield self.features[indices], self.labels[indices]


@dataclass(frozen=True, eq=False)
class Choice:
    """What validation chose, and how it did there."""

    accuracy: float
    settings: dict
    classifier: TDSMClassifier | None  # None for k-NN


def fit_head(
    head: HeadConfig, train: Samples, validation: Samples, num_classes: int, config: ProbeConfig, seed: int, device: str
) -> Choice:
    """Train a head for every learning rate and weight decay, and keep the epoch that is best on validation.

    Cross-entropy, AdamW, cosine to zero, features standardised channel by channel by the training samples.

    Raises:
        NonFiniteError: If the loss is not finite for any of the settings.
    """
    statistics = channel_statistics(train)
    best: Choice | None = None
    for rate in config.learning_rates:
        for decay in config.weight_decays:
            choice = _fit_once(head, statistics, train, validation, num_classes, config, seed, device, rate, decay)
            if best is None or choice.accuracy > best.accuracy:
                best = choice
    assert best is not None
    return best


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
    """Choose the number of neighbours on validation, with the training samples as references."""
    accuracies = {k: _knn_accuracy(train, validation, num_classes, k, config.temperature) for k in config.neighbours}
    k = max(accuracies, key=lambda key: (accuracies[key], -key))
    return Choice(accuracies[k], {"neighbours": k, "temperature": config.temperature}, None)


@torch.no_grad()
def predict(classifier: nn.Module, features: FeatureRows, device: str) -> Int[Tensor, " samples"]:
    """Return the class of each sample."""
    classifier.eval().to(device)
    parts = torch.arange(len(features)).split(READ)
    return torch.cat([classifier(features[part].to(device)).argmax(dim=1).cpu() for part in parts])


def accuracy_of(classifier: nn.Module, samples: Samples, device: str) -> float:
    """Return the share of samples whose class is right."""
    return (predict(classifier, samples.features, device) == samples.labels).sum().item() / len(samples.labels)


def train_epoch(
    classifier: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: str,
) -> float:
    """Descend the cross-entropy once over batches of features and labels; return the last loss."""
    classifier.train()
    for features, labels in batches:
        loss = F.cross_entropy(classifier(features.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


def predict_knn(
    features: FeatureRows, train: Samples, num_classes: int, neighbours: int, temperature: float
) -> Int[Tensor, " samples"]:
    """Return the class of each sample by the vote of training samples."""
    mean, deviation = channel_statistics(train)
    scale = torch.where(deviation > 1e-6, deviation, 1.0)
    flat = [((rows[torch.arange(len(rows))] - mean) / scale).flatten(1) for rows in (features, train.features)]
    return knn_scores(flat[0], flat[1], train.labels, num_classes, neighbours, temperature).argmax(dim=1)


def channel_statistics(samples: Samples) -> tuple[Float[Tensor, " maps"], Float[Tensor, " maps"]]:
    """Return mean and standard deviation of each channel over samples and space, summed in float64."""
    total = square = torch.zeros(samples.features.shape[-1], dtype=torch.float64)
    count = math.prod(samples.features.shape[:-1])
    for part in torch.arange(len(samples.features)).split(READ):
        values = samples.features[part].flatten(0, -2).double()
        total, square = total + values.sum(dim=0), square + values.square().sum(dim=0)
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()


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
) -> Choice:
    height, width, maps = train.features.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "head"))
        classifier = make_head(head, maps, num_classes, (height, width)).to(device)
        classifier.fit_statistics(*statistics)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=decay)
        steps = config.epochs * math.ceil(len(train.features) / config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, weights, epoch_of_best = -1.0, {}, 0
        for epoch in range(config.epochs):
            order = torch.randperm(len(train.features), generator=generator(seed, "head order", epoch))
            loss = train_epoch(classifier, train.batches(order, config.batch_size), optimizer, schedule, device)
            if not math.isfinite(loss):
                raise NonFiniteError(f"head {head.kind}: the loss is {loss} at learning rate {rate}.")
            if (accuracy := accuracy_of(classifier, validation, device)) > best:
                best, epoch_of_best = accuracy, epoch + 1
                weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.load_state_dict(weights)
    return Choice(best, {"learning_rate": rate, "weight_decay": decay, "epoch": epoch_of_best}, classifier)


def _knn_accuracy(train: Samples, other: Samples, num_classes: int, neighbours: int, temperature: float) -> float:
    predicted = predict_knn(other.features, train, num_classes, neighbours, temperature)
    return (predicted == other.labels).float().mean().item()
