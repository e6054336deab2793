"""What a field's training descends: objectives, each a pure function of field, images, settings and draws.

    loss = Σ_o weight_o · objective_o,      weights from `train.objectives`

With x(q) an image's colour at point q, every objective is a mean of squared errors (decoded(q) − x(q))² over images,
points and channels; the points are all of the grid, or `num_queries` random ones. They differ in what is decoded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.models.field import NeuralField
from tdsm.tokenfield.coords import grid
from tdsm.training.config import TrainConfig
from tdsm.training.registry import OBJECTIVES

Images = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step: made for the whole batch, so that sharing it out cannot change them."""

    generator: torch.Generator
    images: int  # of the whole batch
    rows: slice  # those at hand

    def per_image(self, *shape: int) -> Float[Tensor, "batch *shape"]:
        """Draw uniform numbers in [0, 1) for each image at hand."""
        return torch.rand(self.images, *shape, generator=self.generator)[self.rows]


@dataclass(frozen=True)
class Objective:
    """Something to descend, and what others must know of it."""

    loss: Callable[[NeuralField, Images, TrainConfig, Draws], Float[Tensor, ""]]
    reads: tuple[str, ...] = ()  # settings of the training that only such objectives read
    needs: Mapping[str, object] = field(default_factory=dict)  # settings of the field without which it means nothing


def full(field: NeuralField, images: Images, config: TrainConfig, random: Draws) -> Float[Tensor, ""]:
    """Reconstruct from all pixels and all tokens, the published way.

    mean (decode(q, encode(x)) − x(q))²
    """
    coords, target = _draw_points(images, config, random)
    return (field.decode(field.encode(images), coords=coords) - target).square().mean()


def sparse_context(field: NeuralField, images: Images, config: TrainConfig, random: Draws) -> Float[Tensor, ""]:
    """Reconstruct everything from a random share of the pixels, each image its own (masked training).

        mean (decode(q, encode(x_S)) − x(q))²,     |S| = max(1, round(share · pixels))

    The share is fixed, or drawn once a step, uniform between two bounds: `context_fraction`.
    """
    num_pixels = images.shape[2:].numel()
    count = max(1, round(_draw_share(config, random) * num_pixels))
    keep = random.per_image(num_pixels).topk(count).indices.to(images.device)
    coords, target = _draw_points(images, config, random)
    return (field.decode(field.encode(images, keep), coords=coords) - target).square().mean()


def token_dropout(field: NeuralField, images: Images, config: TrainConfig, random: Draws) -> Float[Tensor, ""]:
    """Reconstruct from a random subset of the tokens, single ones included, so that a lone token is nothing new.

        mean (decode(q, {z_k : k ∈ S}) − x(q))²,     S uniform among the subsets of size n

    Each image draws its own n in 1..K, as `subset_sizes` says, and its own S.
    """
    tokens = field.encode(images)
    order = random.per_image(tokens.shape[1]).argsort(dim=1).to(images.device)
    return _from_first_tokens(field, tokens.take_along_dim(order[..., None], dim=1), images, config, random)


def nested(field: NeuralField, images: Images, config: TrainConfig, random: Draws) -> Float[Tensor, ""]:
    """Reconstruct from the first n tokens, which orders the tokens by what they are worth.

        mean (decode(q, {z_1, …, z_n}) − x(q))²

    Each image draws its own n in 1..K, as `subset_sizes` says. Nested dropout: Rippel et al. 2014.
    """
    return _from_first_tokens(field, field.encode(images), images, config, random)


FULL = Objective(full)
SPARSE_CONTEXT = Objective(sparse_context, reads=("context_fraction",))
TOKEN_DROPOUT = Objective(token_dropout, reads=("subset_sizes",))
NESTED = Objective(nested, reads=("subset_sizes",))
MIXTURE = Objective(full, needs={"has_masks": True})  # full reconstruction of a field that mixes pictures by masks


def training_loss(
    field: NeuralField,
    images: Images,
    config: TrainConfig,
    seed: int,
    step: int,
    *,
    of: int | None = None,
    rows: slice = slice(None),
) -> Float[Tensor, ""]:
    """Return the weighted sum of a step's objectives; of a part of its batch, when `images` are `rows` of `of` images.

    Each draws from the step's own start, so what it draws does not depend on what stands beside it.
    """
    losses = [
        weight
        * OBJECTIVES[name].loss(field, images, config, Draws(generator(seed, "step", step), of or len(images), rows))
        for name, weight in config.objectives.items()
        if weight
    ]
    return torch.stack(losses).sum()


def check_objectives(field: NeuralField, config: TrainConfig) -> None:
    """Refuse weights that leave nothing to descend or do not suit the field, and a setting that no objective reads.

    Raises:
        UsageError: It says which setting, and what to set instead.
    """
    chosen = {name: OBJECTIVES[name] for name, weight in config.objectives.items() if weight}
    if not chosen:
        raise UsageError("train: every objective has weight 0. Set one above 0, such as --train.objectives.full 1.")
    for name, objective in chosen.items():
        _check_suits(name, objective, field)
    _check_is_read({setting for objective in chosen.values() for setting in objective.reads}, config)
    share = config.context_fraction
    if isinstance(share, tuple) and share[0] > share[1]:
        raise UsageError(f"train: context_fraction is {share}, expected the lower bound first.")


def _check_suits(name: str, objective: Objective, field: NeuralField) -> None:
    for setting, value in objective.needs.items():
        if getattr(field.config, setting) != value:
            raise UsageError(
                f"train: the objective {name!r} needs a field whose {setting} is {value}. Set --field.{_flag(setting)}."
            )


def _check_is_read(read: set[str], config: TrainConfig) -> None:
    for name, objective in OBJECTIVES.items():
        for setting in set(objective.reads) - read:
            value = getattr(config, setting)
            if value != TrainConfig.model_fields[setting].default:
                raise UsageError(
                    f"train: {setting} is {value}, but no objective that reads it has a weight above 0. "
                    f"Set one, such as --train.objectives.{_flag(name)} 1, or leave {setting} out."
                )


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _draw_points(
    images: Images, config: TrainConfig, random: Draws
) -> tuple[Float[Tensor, "points axes"], Float[Tensor, "batch points channels"]]:
    """Return the points to decode, all or some, and the images' colours there."""
    coords, target = grid(images.shape[2:], device=images.device), rearrange(images, "b c h w -> b (h w) c")
    if config.num_queries is None or config.num_queries >= len(coords):
        return coords, target
    points = torch.randperm(len(coords), generator=random.generator)[: config.num_queries].to(images.device)
    return coords[points], target[:, points]


def _draw_share(config: TrainConfig, random: Draws) -> float:
    share = config.context_fraction
    if not isinstance(share, tuple):
        return share
    return share[0] + (share[1] - share[0]) * torch.rand((), generator=random.generator).item()


def draw_sizes(uniform: Float[Tensor, " count"], most: int, config: TrainConfig) -> Int[Tensor, " count"]:
    """Map uniform numbers to sizes in 1..most, each size or each order of magnitude alike.

    The latter: P(n) = log((n + 1) / n) / log(most + 1).
    """
    sizes = 1 + most * uniform if config.subset_sizes == "uniform" else (most + 1) ** uniform
    return sizes.long().clamp(max=most)


def _from_first_tokens(
    field: NeuralField,
    tokens: Float[Tensor, "batch tokens token_width"],
    images: Images,
    config: TrainConfig,
    random: Draws,
) -> Float[Tensor, ""]:
    """Reconstruct each image from its first n tokens, n drawn; images of the same n are decoded together."""
    sizes = draw_sizes(random.per_image(), tokens.shape[1], config)
    coords, target = _draw_points(images, config, random)
    errors = []
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero()[:, 0].to(images.device)
        errors.append((field.decode(tokens[rows, :size], coords=coords) - target[rows]).square().sum())
    return torch.stack(errors).sum() / target.numel()
