"""Train a head with its field: frozen, fine-tuned through the decoder, or in two stages.

    loss = λ_cls · CE(head(tdsm(x)), y) + λ_rec · ‖decode(encode(x)) − x‖² / size

A regime is a sequence of phases, in each of which the field learns or stands still. Gradients pass through the maps of
all tokens, by the exact decoding. A step is a pure function of weights, optimizer, seed and step number, so that a
training that was killed ends as if it had not been, bit for bit on one kind of CPU.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tdsm.base.errors import NonFiniteError
from tdsm.base.progress import Progress
from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import RegimeConfig
from tdsm.classification.heads import TDSMClassifier, make_head
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment
from tdsm.features.config import MapConfig
from tdsm.features.kinds import make_maps
from tdsm.models.field import NeuralField
from tdsm.training.checkpoints import latest_checkpoint, read_state, save_checkpoint, write_state
from tdsm.training.reconstruction import batch_indices, warmup_cosine

STATISTICS_IMAGES = 1024
READ = 64


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
    """Images to class scores: field, maps of its tokens, head."""

    def __init__(self, field: NeuralField, head: TDSMClassifier, maps: MapConfig):
        super().__init__()
        self.field, self.head, self.maps = field, head, maps

    def forward(self, images: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        return self.head(tdsm_of(self.field, images, self.field.encode(images), self.maps))


def tdsm_of(field: NeuralField, images: Tensor, tokens: Tensor, maps: MapConfig) -> Tensor:
    """Return the maps (batch, height, width, maps) of images' tokens."""
    return make_maps(field, tokens, maps, maps.size or tuple(images.shape[2:]))


def fit_regime(
    field: NeuralField,
    data: Data,
    maps: MapConfig,
    config: RegimeConfig,
    seed: int,
    folder: Path,
    device: torch.device | str,
    made_from: dict,
) -> tuple[FieldClassifier, list[dict]]:
    """Train a head with a copy of a field, with checkpoints in `folder`; take up the newest one there.

    Returns:
        The classifier with the weights of the epoch that is best on validation, and the history of the last phase:
        dictionaries of epoch, loss, validation_accuracy, seconds and field_learns.

    Raises:
        NonFiniteError: If the loss is not finite.
    """
    model = new_classifier(field, data.train, maps, config, seed, str(device))
    return model, _fit(model, data, config, seed, folder, str(device))


def new_classifier(
    field: NeuralField, images: ImageSet, maps: MapConfig, config: RegimeConfig, seed: int, device: str
) -> FieldClassifier:
    """Put a new head, standardised by the training maps of the field as it is, on a copy of the field."""
    field = copy.deepcopy(field)
    sample = torch.randperm(len(images), generator=generator(seed, "statistics"))[:STATISTICS_IMAGES]
    with torch.no_grad():
        parts = [images.floats(part).to(device) for part in sample.split(READ)]
        shown = torch.cat([tdsm_of(field, part, field.encode(part), maps) for part in parts])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "head"))
        size = (shown.shape[1], shown.shape[2])
        head = make_head(config.head, shown.shape[3], len(images.classes), size).to(device)
    flat = shown.flatten(0, 2).double()
    head.fit_statistics(flat.mean(0).float(), flat.std(0, correction=0).float())
    return FieldClassifier(field, head, maps)


def _fit(model: FieldClassifier, data: Data, config: RegimeConfig, seed: int, folder: Path, device: str) -> list[dict]:
    """Train in place and end with the weights of the epoch that is best on validation; return the history."""
    regime, images = REGIMES[config.regime], data.train
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    best = copy.deepcopy(model)
    modules = {"model": model, "average": average, "best": best}
    per_epoch = len(images) // config.batch_size
    steps = len(regime.phases) * config.epochs * per_epoch
    step, history = 0, []
    if (checkpoint := latest_checkpoint(folder)) is not None:
        state = read_state(checkpoint, modules, optimizer)
        step, history = state["step"], state["history"]
    began = time.monotonic() - (history[-1]["seconds"] if history else 0.0)
    with Progress(f"{config.regime}, seed {folder.name[5:]}", steps, done=step, unit="step") as progress:
        while step < steps and not _is_over(history, regime, config):
            learns = regime.phases[step // (config.epochs * per_epoch)]
            loss = take_step(model, optimizer, images, config, seed, step, learns, device)
            average.update_parameters(model)
            step += 1
            progress.advance()
            if step % per_epoch:
                continue
            judged: nn.Module = average.module if config.ema else model
            accuracy = accuracy_of(judged, data.validation, device)
            if learns == regime.phases[-1] and accuracy > _best(history, learns):
                best.load_state_dict(judged.state_dict())
            seconds = time.monotonic() - began
            entry = {"epoch": step // per_epoch, "loss": loss, "validation_accuracy": accuracy, "seconds": seconds}
            history.append(entry | {"field_learns": learns})
            state = {"step": step, "history": history}
            save_checkpoint(folder, step, lambda path, s=state: write_state(path, modules, optimizer, s))  # type: ignore[misc]
            progress.advance(0, note=f"validation {100 * accuracy:.1f} %")
    model.load_state_dict(best.state_dict())
    return [entry for entry in history if entry["field_learns"] == regime.phases[-1]]


def take_step(
    model: FieldClassifier,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    config: RegimeConfig,
    seed: int,
    step: int,
    learns: bool,
    device: str,
) -> float:
    """Take one optimizer step and return its loss."""
    model.train()
    indices, epoch = batch_indices(len(images), config.batch_size, seed, step)
    batch = images.subset(indices)
    pixels = augment(batch.floats().to(device), batch.ids, config.augment, seed=seed, epoch=epoch)
    loss = combined_loss(model, pixels, batch.labels.to(device), config, generator(seed, "step", step), learns)
    if not math.isfinite(loss.item()):
        raise NonFiniteError(f"{config.regime}: the loss is {loss.item()} at step {step + 1}. Try lower rates.")
    share = schedule(step, config, len(images) // config.batch_size)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share if learns or group["name"] == "head" else 0.0
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    return loss.item()


def combined_loss(
    model: FieldClassifier,
    images: Float[Tensor, "batch channels rows columns"],
    labels: Int[Tensor, " batch"],
    config: RegimeConfig,
    random: torch.Generator,
    learns: bool,
) -> Float[Tensor, ""]:
    """Return λ_cls · cross-entropy + λ_rec · mean squared error, with mixup and token drop if so set.

    Mixup (Zhang et al. 2018): x = m·x + (1 − m)·x', and the loss of both labels mixed alike, m ~ Beta(α, α). Token
    drop: all maps of a random share of an image's tokens are set to their training mean.
    """
    other, mixed = torch.randperm(len(images), generator=random).to(images.device), 1.0
    if config.mixup:
        mixed = _beta(config.mixup, random)
        images = mixed * images + (1 - mixed) * images[other]
    with torch.set_grad_enabled(learns):
        tokens = model.field.encode(images)
        maps = tdsm_of(model.field, images, tokens, model.maps)
    if config.token_drop:
        keep = torch.rand(len(images), 1, 1, maps.shape[-1], generator=random) >= config.token_drop
        maps = torch.where(keep.to(maps.device), maps, model.head.mean)
    scores = model.head(maps)

    def entropy(targets: Tensor) -> Tensor:
        return F.cross_entropy(scores, targets, label_smoothing=config.label_smoothing)

    loss = config.classification_weight * (mixed * entropy(labels) + (1 - mixed) * entropy(labels[other]))
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
    peaks = {part: _or(getattr(rates, part), default) for part in ("encoder", "processor", "decoder")}
    peaks["head"] = rates.head
    return [{"params": groups[part], "name": part, "peak": peaks[part]} for part in groups]


def schedule(step: int, config: RegimeConfig, per_epoch: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a cosine to zero, anew in every phase."""
    length = config.epochs * per_epoch
    return warmup_cosine(1.0, step % length, length, min(config.warmup_steps, length // 2))


@torch.no_grad()
def predict(model: nn.Module, images: ImageSet, device: str) -> Int[Tensor, " images"]:
    """Return the class of each image."""
    model.eval()
    parts = torch.arange(len(images)).split(READ)
    return torch.cat([model(images.floats(part).to(device)).argmax(dim=1).cpu() for part in parts])


def accuracy_of(model: nn.Module, images: ImageSet, device: str) -> float:
    """Return the share of images whose class is right."""
    return (predict(model, images, device) == images.labels).double().mean().item()


def _part(name: str) -> str:
    if name.startswith("head."):
        return "head"
    part = name.split(".")[1]
    return part if part in ("encoder", "processor") else "decoder"


def _is_over(history: list[dict], regime: Regime, config: RegimeConfig) -> bool:
    """Tell whether the last phase has gone `patience` epochs without a better one."""
    last = [entry["validation_accuracy"] for entry in history if entry["field_learns"] == regime.phases[-1]]
    return (
        bool(config.patience)
        and len(last) > config.patience
        and max(last[-config.patience :]) <= max(last[: -config.patience])
    )


def _best(history: list[dict], learns: bool) -> float:
    return max((e["validation_accuracy"] for e in history if e["field_learns"] == learns), default=-1.0)


def _beta(alpha: float, random: torch.Generator) -> float:
    """Draw from Beta(α, α) as a ratio of gamma variables, of a NumPy generator seeded by torch's."""
    import numpy as np

    return float(np.random.default_rng(int(torch.randint(2**62, (), generator=random))).beta(alpha, alpha))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
