"""Classification heads on maps, channels last, and `TDSMClassifier`, which picks one by name.

A head reads (batch, height, width, maps). Any features fit: pixels are maps of their colour channels, and
tokens are a map of height num_tokens and width 1 whose channels are the token's width.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.classification.config import HeadConfig
from tdsm.classification.registry import HEADS

Maps = Float[Tensor, "batch height width maps"]
Logits = Float[Tensor, "batch classes"]


class Head(nn.Module):
    """A head is made for a number of maps and classes, for maps of a size, as settings say, and gives class scores."""

    needs_size: ClassVar[bool] = False  # reads maps of one size only
    width_option: ClassVar[str | None] = None  # the setting that makes it wider
    width_multiple: ClassVar[int] = 1  # what its width must divide by to be used in full

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__()

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        raise NotImplementedError


class AveragePool(Head):
    """Average each map over space, then one linear layer."""

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.classify = _classify(num_maps, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(reduce(maps, "b h w k -> b k", "mean"))


class MaxPool(Head):
    """Take each map's maximum over space, then one linear layer."""

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        self.classify = _classify(num_maps, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(reduce(maps, "b h w k -> b k", "max"))


class Flatten(Head):
    """Read all values of all maps by one linear layer or an MLP with one hidden layer."""

    needs_size, width_option = True, "hidden_dim"

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        width = num_maps * size[0] * size[1]
        hidden: list[nn.Module] = []
        if config.hidden_dim:
            hidden, width = [nn.Linear(width, config.hidden_dim), nn.GELU()], config.hidden_dim
        self.classify = nn.Sequential(*hidden, _classify(width, num_classes, config))

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        return self.classify(rearrange(maps, "b h w k -> b (h w k)"))


class Convolutions(Head):
    """Convolve (1×1 or 3×3, halving the size between 3×3 ones), average over space, then one linear layer."""

    width_option = "width"

    def __init__(self, num_maps: int, num_classes: int, size: tuple[int, int], config: HeadConfig):
        super().__init__(num_maps, num_classes, size, config)
        layers: list[nn.Module] = []
        for layer in range(config.depth):
            before = config.width if layer else num_maps
            stride = 2 if layer and config.kernel_size == 3 else 1
            window = config.kernel_size
            layers += [
                nn.Conv2d(before, config.width, window, stride, window // 2),
                nn.GroupNorm(1, config.width),
            ]
            layers += [nn.GELU()]
        self.convolve = nn.Sequential(*layers)
        self.classify = _classify(config.width, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        features = self.convolve(rearrange(maps, "b h w k -> b k h w"))
        return self.classify(reduce(features, "b k h w -> b k", "mean"))


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
        self.classify = _classify(2 * config.num_weightings, num_classes, config)

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
        self.classify = _classify(config.width, num_classes, config)

    def forward(self, maps: Maps) -> Logits:
        """Return class scores."""
        locations = self.embed(rearrange(maps, "b h w k -> b (h w) k")) + self.position
        return self.classify(self.layers(locations).mean(dim=1))


class TDSMClassifier(nn.Module):
    """Classify token-decoded spatial maps (or any channels-last features) with a head picked by name.

    Maps are standardised channel by channel first, by the statistics that `fit_statistics` took from training
    maps; before that they pass unchanged.

    >>> TDSMClassifier(num_tokens=64, num_classes=10, pool="avg")(torch.zeros(2, 32, 32, 64)).shape
    torch.Size([2, 10])

    Args:
        num_tokens: Number of maps, their channels: tokens, or tokens · channels for `rgb` maps.
        num_classes: Classes to tell apart.
        pool: Kind of head, a name in `HEADS`: avg, max, flatten, cnn, attention, transformer.
        size: Height and width of the maps; `flatten` and `transformer` need to know, the others take any.
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
        self.size = tuple(size) if kind.needs_size else None
        self.num_maps = num_tokens
        self.register_buffer("mean", torch.zeros(num_tokens))
        self.register_buffer("deviation", torch.ones(num_tokens))
        self.head = kind(num_tokens, num_classes, size, self.config)

    def fit_statistics(self, mean: Float[Tensor, " maps"], deviation: Float[Tensor, " maps"]) -> None:
        """Standardise by these channel statistics from now on; a map that is constant in training is only centred."""
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, maps: Maps) -> Logits:
        """Return class scores (logits)."""
        size = self.size or maps.shape[1:3]
        if maps.ndim != 4 or maps.shape[1:] != (*size, self.num_maps) or 0 in size:
            height, width = self.size or ("height", "width")
            raise UsageError(
                f"TDSMClassifier: maps have shape {tuple(maps.shape)}, expected "
                f"(batch, {height}, {width}, {self.num_maps}), channels last."
            )
        if torch.promote_types(maps.dtype, self.mean.dtype) != self.mean.dtype:
            raise UsageError(f"TDSMClassifier: maps are {maps.dtype}, this classifier computes in {self.mean.dtype}.")
        return self.head((maps - self.mean) / self.deviation)


def make_head(config: HeadConfig, num_maps: int, num_classes: int, size: tuple[int, int]) -> TDSMClassifier:
    """Make the classifier that settings describe.

    >>> make_head(HeadConfig(kind="max"), num_maps=64, num_classes=10, size=(32, 32)).config.kind
    'max'
    """
    return TDSMClassifier(num_maps, num_classes, config.kind, size, **config.model_dump(exclude={"kind"}))


def _head_config(kind: str, options: dict[str, Any]) -> HeadConfig:
    try:
        return HeadConfig.model_validate({"kind": kind, **options})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        known = ", ".join(name for name in HeadConfig.model_fields if name != "kind")
        raise UsageError(f"TDSMClassifier: {wrong}. Options are {known}.") from None


def _classify(width: int, num_classes: int, config: HeadConfig) -> nn.Module:
    linear = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Dropout(config.dropout), linear) if config.dropout else linear
