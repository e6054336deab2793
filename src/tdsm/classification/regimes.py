"""Train a head with its field: frozen, fine-tuned through the decoder, or in two stages.

    loss = λ_cls · CE(head(features(x)), y) + λ_rec · ‖decode(encode(x)) − x‖² / size

A regime is a sequence of phases, in each of which the field learns or stands still. The head reads the maps of all
tokens, and gradients pass through their exact decoding; or another feature, so that the same training tells what
decoding adds.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.errors import DataError, UsageError
from tdsm.base.randomness import generator
from tdsm.base.registry import nearest
from tdsm.classification.config import RegimeConfig
from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.probe import Samples, accuracy_of, new_head, statistics_for
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded
from tdsm.features.store import FeatureRows
from tdsm.models.field import NeuralField
from tdsm.training.engine import Phase, Task, train
from tdsm.training.reconstruction import blocks_of
from tdsm.training.steps import Order, warmup_cosine

STATISTICS_IMAGES = 1024
READ = 64
FIELD_PARTS = ("encoder", "processor", "decoder")


@dataclass(frozen=True)
class Regime:
    """How a field and its head are trained; what settings leave open is decided here."""

    phases: tuple[bool, ...]  # whether the field learns
    reconstruction_weight: float
    field_rate: float


REGIMES: dict[str, Regime] = {
    "frozen": Regime((False,), reconstruction_weight=0.0, field_rate=0.0),
    "finetune": Regime((True,), reconstruction_weight=0.0, field_rate=1e-4),
    "two_stage": Regime((False, True), reconstruction_weight=1.0, field_rate=3e-5),
}


class FieldClassifier(nn.Module):
    """Images to class scores: field, a feature of its tokens, head."""

    def __init__(self, field: NeuralField, head: TDSMClassifier, maps: MapConfig, features: str):
        super().__init__()
        self.field, self.head, self.maps, self.features = field, head, maps, features

    def forward(self, images: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        return self.head(self.read(images, self.field.encode(images)))

    def read(self, images: Tensor, tokens: Tensor) -> Float[Tensor, "batch height width maps"]:
        """Return what the head reads of images and their tokens."""
        return read_features(self.field, images, tokens, self.maps, self.features)


def read_features(field: NeuralField, images: Tensor, tokens: Tensor, maps: MapConfig, name: str) -> Tensor:
    """Return a feature of images whose tokens are known."""
    encoded = Encoded(field, images, maps)
    encoded.tokens = tokens
    return FEATURES[name].compute(encoded)


def fit_regime(
    field: NeuralField,
    data: Data,
    maps: MapConfig,
    config: RegimeConfig,
    seed: int,
    folder: Path,
    device: torch.device | str,
    made_from: dict,
    head: TDSMClassifier | None = None,
) -> tuple[FieldClassifier, list[dict]]:
    """Train a head with a copy of a field, with checkpoints in `folder`; take up the newest one there.

    Args:
        made_from: What decides the training; kept in checkpoints and compared.
        head: Fitted to these features of the field already; a new one if not given.

    Returns:
        The classifier with the weights of the epoch that is best on validation, and the history of the last phase:
        the engine's, with epoch, validation_accuracy and field_learns.

    Raises:
        DataError: If the training set is smaller than a batch.
        UsageError: If there is no such feature, or it has no maps of tokens to drop.
        CheckpointError: If the newest checkpoint was made from something else.
        NonFiniteError: If loss, gradient or weights are not finite; no checkpoint after that.
        KeyboardInterrupt: On Ctrl-C, after the step under way is done and saved; a second one ends at once.
    """
    if len(data.train) < config.batch_size:
        raise DataError(
            f"{config.regime}: {len(data.train)} training images are fewer than a batch of {config.batch_size}. "
            "Set --batch-size lower."
        )
    model = new_classifier(field, data.train, maps, config, seed, device, head)
    task = regime_task(model, data, config, seed, device)
    history = train(task, config, seed=seed, folder=Path(folder), made_from=made_from, tracker=config.tracker)
    last, per_epoch = len(task.phases) - 1, task.validate_every
    learns = {"field_learns": REGIMES[config.regime].phases[-1]}
    ends = [entry for entry in history if task.phase(entry["step"] - 1) == last]
    return model, [{"epoch": entry["step"] // per_epoch} | entry | learns for entry in ends]


def new_classifier(
    field: NeuralField,
    images: ImageSet,
    maps: MapConfig,
    config: RegimeConfig,
    seed: int,
    device: torch.device | str,
    head: TDSMClassifier | None = None,
) -> FieldClassifier:
    """Put a head on a copy of the field: a new one, standardised by the training features of the field as it is.

    Raises:
        UsageError: If there is no such feature.
    """
    if config.features not in FEATURES:
        hint = nearest(config.features, FEATURES)
        raise UsageError(f"--features {config.features}: unknown{hint}; expected one of {', '.join(FEATURES)}.")
    if config.token_drop and not FEATURES[config.features].is_map:
        raise UsageError(f"--token-drop blanks maps of tokens, which {config.features} are not. Leave it out.")
    field = copy.deepcopy(field)
    if head is not None:
        return FieldClassifier(field, head.to(device), maps, config.features)
    sample = torch.randperm(len(images), generator=generator(seed, "statistics"))[:STATISTICS_IMAGES]
    with torch.no_grad():
        parts = [images.floats(part).to(device) for part in sample.split(READ)]
        shown = torch.cat([read_features(field, part, field.encode(part), maps, config.features) for part in parts])
    samples = Samples.of(FEATURES[config.features], FeatureRows([shown]), images.labels[sample])
    head = new_head(config.head, statistics_for(config.head, samples), samples, len(images.classes), seed)
    return FieldClassifier(field, head.to(device), maps, config.features)


class RegimeLoss(nn.Module):
    """The combined loss of some rows of a step's batch."""

    def __init__(self, model: FieldClassifier, config: RegimeConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(
        self,
        images: Float[Tensor, "rows channels height width"],
        targets: Sequence[tuple[float, Tensor]],
        learns: bool,
        uniform: Float[Tensor, "rows tokens"] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean over rows."""
        return combined_loss(self.model, images, targets, self.config, learns, uniform)


def regime_task(
    model: FieldClassifier,
    data: Data,
    config: RegimeConfig,
    seed: int,
    device: torch.device | str,
) -> Task:
    """Describe the training of a regime for the engine."""
    regime, images = REGIMES[config.regime], data.train.near(torch.device(device))
    order = Order(len(images), config.batch_size, seed)
    length = config.epochs * order.per_epoch
    num_maps = model.head.num_maps

    def read(taken: Int[Tensor, " rows"], epoch: int) -> Tensor:
        pixels = images.floats(taken).to(device)
        return augment(pixels, images.ids[taken], config.augment, seed=seed, epoch=epoch)

    def inputs(step: int, rows: slice) -> tuple:
        batch, epoch = order(step)
        pixels, targets = read(batch[rows], epoch), [(1.0, images.labels[batch[rows]].to(device))]
        if config.mixup:
            random = generator(seed, "mixup", step)
            other, mixed = batch[torch.randperm(len(batch), generator=random)[rows]], _beta(config.mixup, random)
            pixels = mixed * pixels + (1 - mixed) * read(other, epoch)
            targets = [(mixed, targets[0][1]), (1 - mixed, images.labels[other].to(device))]
        uniform = None
        if config.token_drop:
            uniform = torch.rand(len(batch), num_maps, generator=generator(seed, "token drop", step))[rows].to(device)
        return pixels, targets, regime.phases[step // length], uniform

    return Task(
        name=config.label,
        model=model,
        loss=RegimeLoss(model, config),
        size=order.size,
        inputs=inputs,
        groups=parameter_groups(model, config),
        rate=lambda peak, step: peak * schedule(step, config, order.per_epoch),
        phases=tuple(Phase(length, still=() if learns else FIELD_PARTS) for learns in regime.phases),
        validate=lambda judged: {"validation_accuracy": accuracy_of(judged, data.validation, device)},
        score="validation_accuracy",
        validate_every=order.per_epoch,
        checkpoint_every=order.per_epoch,
        remedy=lambda _: "Start anew with a lower --learning-rates.head, or lower ones of the field's parts.",
        blocks=(*blocks_of(model.field), model.head.head),
        is_partial=True,
    )


def combined_loss(
    model: FieldClassifier,
    images: Float[Tensor, "batch channels rows columns"],
    targets: Sequence[tuple[float, Int[Tensor, " batch"]]],
    config: RegimeConfig,
    learns: bool,
    uniform: Float[Tensor, "batch maps"] | None = None,
) -> Float[Tensor, ""]:
    """Return λ_cls · Σ_i m_i · cross-entropy(y_i) + λ_rec · mean squared error, with token drop if so set.

    Mixup (Zhang et al. 2018) gives two targets and mixed images: x = m·x + (1 − m)·x', m ~ Beta(α, α). Token drop: all
    values of a random share of an image's maps are set to their training mean.

    Args:
        targets: Weights m_i and labels y_i.
        learns: Whether the field does.
        uniform: In [0, 1); a map is dropped where it is below `token_drop`.
    """
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        tokens = model.field.encode(images)
        maps = model.read(images, tokens)
    if uniform is not None:
        maps = torch.where(uniform[:, None, None] >= config.token_drop, maps, model.head.mean)
    scores = model.head(maps)
    losses = [m * F.cross_entropy(scores, labels, label_smoothing=config.label_smoothing) for m, labels in targets]
    loss = config.classification_weight * torch.stack(losses).sum()
    weight = _or(config.reconstruction_weight, REGIMES[config.regime].reconstruction_weight)
    if learns and weight:
        shown = model.field.decode(tokens, size=tuple(images.shape[2:]))
        loss = loss + weight * (shown - rearrange(images, "b c h w -> b h w c")).square().mean()
    return loss


def parameter_groups(model: FieldClassifier, config: RegimeConfig) -> list[dict]:
    """Share the parameters out among encoder, processor, decoder and head, each with its peak learning rate."""
    default, rates = REGIMES[config.regime].field_rate, config.learning_rates
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_part(name), []).append(parameter)
    peaks = {part: _or(getattr(rates, part), default) for part in FIELD_PARTS}
    peaks["head"] = rates.head
    return [
        {"params": groups[part], "name": part, "peak": peaks[part], "weight_decay": config.weight_decay}
        for part in groups
    ]


def schedule(step: int, config: RegimeConfig, per_epoch: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a cosine to zero, anew in every phase."""
    length = config.epochs * per_epoch
    return warmup_cosine(1.0, step % length, length, min(config.warmup_steps, length // 2))


def _part(name: str) -> str:
    if name.startswith("head."):
        return "head"
    part = name.split(".")[1]
    return part if part in ("encoder", "processor") else "decoder"


def _beta(alpha: float, random: torch.Generator) -> float:
    """Draw from Beta(α, α) as a ratio of gamma variables, of a NumPy generator seeded by torch's."""
    import numpy as np

    return float(np.random.default_rng(int(torch.randint(2**62, (), generator=random))).beta(alpha, alpha))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
