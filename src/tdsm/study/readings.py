"""How the study of worth reads every feature: alike in width, in parameters, or as its kind asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Samples, statistics_of
from tdsm.classification.registry import HEADS
from tdsm.features.kinds import FeatureKind
from tdsm.models.weights import count_parameters
from tdsm.study.answers import changed
from tdsm.study.config import StudyConfig

Splits = Mapping[str, Samples]
WIDEST = 1024
FITTED_ON = 4096  # training samples whose principal components are taken


@dataclass(frozen=True)
class Reading:
    """One way to read features: what becomes of them first, the head for them, and which features it can read."""

    meaning: str  # what holds of it for every feature
    head: Callable[[FeatureKind, Samples, int, StudyConfig], HeadConfig]
    prepare: Callable[[Splits, StudyConfig], Splits] = lambda samples, config: samples
    suits: Callable[[FeatureKind], bool] = lambda kind: True
    has_seed: bool = True


def principal(samples: Splits, config: StudyConfig) -> Splits:
    """Project on principal components of the training samples, every value standardised before; all of one scale.

    Features of fewer components than asked are filled up with noughts, so that heads have equally many parameters.
    """
    train = samples["train"].features
    mean, deviation = statistics_of(samples["train"])
    scale = torch.where(deviation > 1e-6, deviation, torch.inf)
    few = train[torch.arange(min(FITTED_ON, len(train)))]
    basis = _components(((few - mean) / scale).flatten(1), config.components)

    def project(values: Tensor) -> Float[Tensor, "batch components 1 1"]:
        found = ((values - mean) / scale).flatten(1) @ basis
        return F.pad(found, (0, config.components - basis.shape[1]))[:, :, None, None]

    return _changed(samples, project)


def head_of_size(
    pool: str, maps: int, size: tuple[int, int], classes: int, parameters: int, **options: object
) -> HeadConfig:
    """Return the widest head of a kind that has at most this many parameters.

    >>> head_of_size("flatten", 3, (4, 4), 10, parameters=2000).hidden_dim
    33

    Raises:
        UsageError: If the narrowest one has more.
    """
    option, step = HEADS[pool].width_option, HEADS[pool].width_multiple
    assert option is not None, f"a {pool} head has no width"

    def make(width: int) -> HeadConfig:
        return HeadConfig.model_validate({"kind": pool, option: width, **options})

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(make_head(make(width), maps, classes, size))

    widths = range(step, WIDEST + 1, step)
    if count(step) > parameters:
        raise UsageError(
            f"study: {pool} on {size[0]} × {size[1]} × {maps} features has {count(step)} parameters at its narrowest, "
            f"more than the {parameters} of --parameters."
        )
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(widths[middle]) <= parameters else (low, middle - 1)
    return make(widths[low])


def _ridge(kind: FeatureKind, train: Samples, classes: int, config: StudyConfig) -> HeadConfig:
    return HeadConfig(kind="ridge")


def _mlp(kind: FeatureKind, train: Samples, classes: int, config: StudyConfig) -> HeadConfig:
    return HeadConfig(kind="flatten", hidden_dim=config.hidden_dim, dropout=config.dropout)


def _structured(kind: FeatureKind, train: Samples, classes: int, config: StudyConfig) -> HeadConfig:
    height, width, maps = train.features.shape[1:]
    pool, options = ("transformer", {}) if kind.is_sequence else ("resnet", {"depth": 1})
    return head_of_size(pool, maps, (height, width), classes, config.parameters, dropout=config.dropout, **options)


def _components(values: Float[Tensor, "samples width"], most: int) -> Float[Tensor, "width components"]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.pca_lowrank(values, q=min(most, *values.shape), center=True)[2]


def _changed(samples: Splits, change: Callable[[Tensor], Tensor]) -> Splits:
    return {split: Samples(changed(part.features, change), part.labels) for split, part in samples.items()}


RIDGE = Reading("ridge regression on all values, λ chosen on validation; one solution, no seed", _ridge, has_seed=False)
MLP = Reading("one hidden layer of {hidden_dim} for every feature, each value standardised", _mlp)
EQUAL = Reading(
    "the same after {components} principal components of each feature: equally many parameters", _mlp, principal
)
STRUCTURED = Reading(
    "a small residual network on what has places, a transformer on tokens, each the widest of at most {parameters} "
    "parameters",
    _structured,
    suits=lambda kind: kind.is_spatial or kind.is_sequence,
)
