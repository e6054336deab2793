"""Classification heads on maps, channels last, and `TDSMClassifier`, which picks one by name.

A head reads (batch, height, width, maps). Any features fit: pixels are maps of their colour channels, and
tokens are a map of height num_tokens and width 1 whose channels are the token's width.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.base.settings import wrong_entries
from tdsm.classification.config import HeadConfig
from tdsm.classification.registry import HEADS
from tdsm.classification.ridge import Blocks, solve_ridge

GROUP = 4  # channels normalised together, where they divide so
Maps = Float[Tensor, "batch height width maps"]
Logits = Float[Tensor, "batch classes"]


class Head(nn.Module):
    """A head is made for a number of maps and classes, for maps of a size, as settings say, and gives class scores."""

    needs_size: ClassVar[bool] = False  # reads maps of one size only
    convolves: ClassVar[bool] = False  # weighs alike at every place, so that a channel's places must share a scale
    is_solved: ClassVar[bool] = False  # fitted at once by `solve` instead of step by step
    width_option: ClassVar[str | None] = None  # the setting that makes it wider
    width_multiple: ClassVar[int] = 1  # what its width must divide by to be used in full
    is_linear: bool = False  # scores are weights times values, and a bias

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__()

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        raise NotImplementedError

    def prepare(self, sample: Callable[[], Maps]) -> None:
        """Begin where a sample of training maps, standardised, says that it is good to; by default none is read."""

    def read(self, maps: Maps) -> Float[Tensor, "batch values"]:
        """Return what a head that is solved is linear in."""
        raise NotImplementedError

    def solve(self, train: Blocks, validation: Blocks, penalties: Sequence[float]) -> dict[str, float]:
        """Fit to training samples, as `read` gives them, chosen on validation; return what was chosen."""
        raise NotImplementedError


class AveragePool(Head):
    """Average each map over space, then one linear layer."""

    is_linear = True

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.classify = last_layer(num_maps, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(reduce(maps, "b h w k -> b k", "mean"))


class MaxPool(Head):
    """Take each map's maximum over space, then one linear layer."""

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.classify = last_layer(num_maps, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(reduce(maps, "b h w k -> b k", "max"))


class Flatten(Head):
    """Read all values of all maps by one linear layer or an MLP with one hidden layer."""

    needs_size, width_option = True, "hidden_dim"

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        width, self.is_linear = num_maps * size[0] * size[1], not config.hidden_dim
        hidden: list[nn.Module] = []
        if config.hidden_dim:
            hidden, width = [nn.Linear(width, config.hidden_dim), nn.GELU()], config.hidden_dim
        self.classify = nn.Sequential(*hidden, last_layer(width, num_classes, config))

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(rearrange(maps, "b h w k -> b (h w k)"))


class Ridge(Head):
    """Read all values of all maps by ridge regression: linear, solved in closed form, λ chosen on validation.

    Maps of more than `max_values` values are averaged over cells first, as small ones as will do.
    """

    needs_size, is_solved, is_linear = True, True, True

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.cells = _cells(size, config.max_values // num_maps)
        self.classify = nn.Linear(num_maps * self.cells[0] * self.cells[1], num_classes)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(self.read(maps))

    def read(self, maps: Maps) -> Float[Tensor, "batch values"]:
        """Return all values, of every cell the mean."""
        if maps.shape[1:3] != self.cells:
            maps = F.adaptive_avg_pool2d(maps.movedim(-1, 1), self.cells).movedim(1, -1)
        return maps.flatten(1)

    @torch.no_grad()
    def solve(self, train: Blocks, validation: Blocks, penalties: Sequence[float]) -> dict[str, float]:
        """Keep the penalty that is right most often on validation, the largest of equals."""
        penalties = sorted(penalties, reverse=True)
        found = solve_ridge(train, self.classify.out_features, penalties)
        right = sum(
            (found.scores(vectors).argmax(dim=2) == labels[:, None]).sum(dim=0) for vectors, labels in validation()
        )
        best = int(torch.as_tensor(right).argmax())
        self.classify.weight.copy_(found.weight[:, best].T)
        self.classify.bias.copy_(found.bias[best])
        return {"penalty": penalties[best]}


class Convolutions(Head):
    """Convolve (1×1 or 3×3, halving the size between 3×3 ones), then one linear layer on all places or their mean."""

    needs_size, convolves, width_option = True, True, "width"

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.keeps_places = config.pooling == "flatten"
        window, layers = config.kernel_size, []
        for layer in range(config.depth):
            stride = 2 if layer and window == 3 else 1
            layers += [_convolution(config.width if layer else num_maps, config.width, window, stride), nn.GELU()]
            size = (-(-size[0] // stride), -(-size[1] // stride))
        self.convolve = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        places = size[0] * size[1] if self.keeps_places else 1
        self.classify = last_layer(places * config.width, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        features = self.convolve(channels_first(maps))
        return self.classify(
            rearrange(features, "b k h w -> b (h w k)")
            if self.keeps_places
            else reduce(features, "b k h w -> b k", "mean")
        )


class TokenAttention(Head):
    """Weigh maps against one another, several times over, and classify the weighted sums.

        w_j = softmax_k(linear_j(tdsm)),    feature_j = Σ_k w_jk · tdsm_k,    j = 1..num_weightings

    With scope `location` each location has its own weights and gives one feature a weighting, averaged over
    space afterwards; with `global` the weights come from the spatially averaged maps, and each weighting
    gives one picture, read by its average and its spatial standard deviation.
    """

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.scope = config.attention_scope
        self.num_weightings = config.num_weightings
        self.weigh = nn.Linear(num_maps, config.num_weightings * num_maps)
        self.classify = last_layer(2 * config.num_weightings, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        seen = maps if self.scope == "location" else reduce(maps, "b h w k -> b 1 1 k", "mean")
        weights = rearrange(self.weigh(seen), "b h w (j k) -> b h w j k", j=self.num_weightings).softmax(dim=-1)
        features = (weights * maps[..., None, :]).sum(dim=-1).flatten(1, 2)
        return self.classify(torch.cat([features.mean(dim=1), features.std(dim=1, correction=0)], dim=-1))


class Transformer(Head):
    """Attend among locations with learned positions, average them, then one linear layer."""

    needs_size, width_option, width_multiple = True, "width", 4

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        heads = next(n for n in (4, 2, 1) if config.width % n == 0)
        self.embed = nn.Linear(num_maps, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(size[0] * size[1], config.width))
        layer = nn.TransformerEncoderLayer(
            config.width,
            heads,
            4 * config.width,
            dropout=0.0,
            activation=F.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.classify = last_layer(config.width, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        locations = self.embed(rearrange(maps, "b h w k -> b (h w) k")) + self.position
        return self.classify(self.layers(locations).mean(dim=1))


class TDSMClassifier(nn.Module):
    """Classify token-decoded spatial maps (or any channels-last features) with a head picked by name.

    Maps are standardised first, by the statistics that `fit_statistics` took from training maps; before that they pass
    unchanged. A head for maps of one size has statistics of every value, others of every channel: where a map differs
    more between places than between images, as attention does, a channel's deviation would hide the images. Heads that
    convolve have means of every value, and one deviation a channel, of the centred values: where a token contributes
    next to nothing, a deviation of the place's own would make noise as large as what it contributes elsewhere. Of
    pictures, whose channels mean the same at every place, they have one mean a channel as well: an image that is moved
    keeps its colours.

    >>> TDSMClassifier(num_tokens=64, num_classes=10, pool="avg")(torch.zeros(2, 32, 32, 64)).shape
    torch.Size([2, 10])

    Args:
        num_tokens: Number of maps, their channels: tokens, or tokens · channels for `rgb` maps.
        num_classes: Classes to tell apart.
        pool: Kind of head: ridge, avg, max, flatten, cnn, resnet, attention, transformer.
        size: Height and width of the maps; `avg`, `max` and `attention` take others too.
        options: Further entries of `HeadConfig`.

    Raises:
        UsageError: If an argument is out of range or an option unknown.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        num_tokens: int,
        num_classes: int,
        pool: str = "avg",
        size: tuple[int, int] = (32, 32),
        **options: Any,
    ):
        super().__init__()
        counts = [num_tokens, num_classes, *(size if isinstance(size, tuple | list) else [0])]
        if len(counts) != 4 or any(not isinstance(count, int) or count < 1 for count in counts):
            raise UsageError(
                f"TDSMClassifier: num_tokens {num_tokens!r}, num_classes {num_classes!r}, size {size!r}: expected "
                "whole numbers of at least 1, and size as (height, width)."
            )
        kind = HEADS[pool]
        self.config = _head_config(pool, options)
        self.num_maps = num_tokens
        self.head = kind(num_tokens, num_classes, size, self.config)
        self.size = tuple(size) if self.head.needs_size else None
        shape = (*(self.size or ()), num_tokens)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit_statistics(self, mean: Float[Tensor, "*size maps"], deviation: Float[Tensor, "*size maps"]) -> None:
        """Standardise by these statistics from now on; what is constant in training is only centred.

        Args:
            mean: Of every channel, or of every value where the head is for maps of one size.
            deviation: Likewise.
        """
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, maps: Maps) -> Logits:
        """Return class scores (logits)."""
        size = self.size or maps.shape[1:3]
        if maps.ndim != 4 or maps.shape[1:] != (*size, self.num_maps) or 0 in size:
            height, width = self.size or ("height", "width")
            raise UsageError(
                f"TDSMClassifier: maps have shape {tuple(maps.shape)}, expected "
                f"(batch, {height}, {width}, {self.num_maps}), channels last, as spatial_map gives them."
            )
        if torch.promote_types(maps.dtype, self.mean.dtype) != self.mean.dtype:
            raise UsageError(f"TDSMClassifier: maps are {maps.dtype}, this classifier computes in {self.mean.dtype}.")
        return self.head(self.standardise(maps))

    def standardise(self, maps: Maps) -> Maps:
        """Return what the head reads."""
        return (maps - self.mean) / self.deviation


def linear_weights(
    classifier: TDSMClassifier, size: tuple[int, int]
) -> tuple[Float[Tensor, "classes height width maps"], Float[Tensor, " classes"]]:
    """Fold a linear classifier, its standardisation included, into weights on maps as they are.

        score_c = ⟨weight_c, maps⟩ + bias_c

    >>> weight, bias = linear_weights(TDSMClassifier(num_tokens=5, num_classes=3, pool="ridge", size=(4, 4)), (4, 4))
    >>> weight.shape, bias.shape
    (torch.Size([3, 4, 4, 5]), torch.Size([3]))

    Raises:
        UsageError: If the head is not linear.
    """
    if not classifier.head.is_linear:
        raise UsageError(f"linear_weights: a {classifier.config.kind} head is not linear; avg, ridge or flatten is.")
    zero = classifier.mean.new_zeros(1, *size, classifier.num_maps)
    weight = torch.autograd.functional.jacobian(lambda maps: classifier(maps)[0], zero)
    return weight[:, 0], classifier(zero)[0].detach()


def make_head(config: HeadConfig, num_maps: int, num_classes: int, size: tuple[int, int]) -> TDSMClassifier:
    """Make the classifier that settings describe.

    >>> make_head(HeadConfig(kind="max"), num_maps=64, num_classes=10, size=(32, 32)).config.kind
    'max'
    """
    return TDSMClassifier(num_maps, num_classes, config.kind, size, **config.model_dump(exclude={"kind"}))


def _cells(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Halve the longer side until there are at most so many cells; what is one wide is a sequence and stays.

    >>> _cells((32, 32), 100), _cells((32, 1), 8)
    ((8, 8), (32, 1))
    """
    height, width = size
    while height * width > max(most, 1) and min(size) > 1:
        height, width = (-(-height // 2), width) if height >= width else (height, -(-width // 2))
    return height, width


def _head_config(kind: str, options: dict[str, Any]) -> HeadConfig:
    try:
        return HeadConfig.model_validate({"kind": kind, **options})
    except ValidationError as error:
        known = ", ".join(name for name in HeadConfig.model_fields if name != "kind")
        raise UsageError(f"TDSMClassifier: {wrong_entries(error)}. Options are {known}.") from None


def channels_first(maps: Maps) -> Float[Tensor, "batch maps height width"]:
    """Return the maps as convolutions index them, in memory channels last."""
    return maps.movedim(-1, 1).contiguous(memory_format=torch.channels_last)


def _convolution(before: int, after: int, window: int, stride: int) -> nn.Module:
    groups = after // GROUP if after % GROUP == 0 else 1
    return nn.Sequential(nn.Conv2d(before, after, window, stride, window // 2, bias=False), nn.GroupNorm(groups, after))


def last_layer(width: int, num_classes: int, config: HeadConfig) -> nn.Module:
    """Return the linear layer that gives class scores, behind dropout where it is set."""
    linear = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Dropout(config.dropout), linear) if config.dropout else linear
