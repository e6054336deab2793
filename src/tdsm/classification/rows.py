"""The rows of every results table: a feature and its reader, side by side with what they must be compared with.

A row is named FEATURE-READER, with `untrained-` before it for the same features of a field that was never trained:
`additive-cnn` reads the additive maps by the CNN, `untrained-tokens-linear` is the linear classifier on tokens of the
field as it starts. All rows share one protocol: the same samples, standardisation, optimizer, budget and choice on
validation. A baseline asks what token maps add: to the most frequent class, to the pixels, to the tokens and token
values before they are decoded, to the reconstruction, and to a field that was never trained.
"""

from dataclasses import dataclass
from typing import Literal

from tdsm.base.registry import Registry
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.registry import HEADS
from tdsm.features.kinds import FEATURES, FeatureKind

OF_KNN = ("neighbours", "temperature")
OF_SOLVED = ("penalties",)
OF_PLACES = ("map_augment",)
# rows: which there are; max_train: in what the features are made from; views and augment: noted apart
OF_FEATURES = ("rows", "max_train", "views", "augment")


@dataclass(frozen=True)
class Reader:
    """What makes classes of features: a head, or None for k-NN; and of which features it can."""

    head: HeadConfig | None
    meaning: str
    of: Literal["all", "places", "maps", "sequences"] = "all"

    def suits(self, kind: FeatureKind) -> bool:
        """Tell whether it reads such features."""
        return {"all": True, "places": not kind.is_sequence, "maps": kind.is_map, "sequences": kind.is_sequence}[
            self.of
        ]


@dataclass(frozen=True)
class Row:
    """One row: which features (None for the labels alone), which head (None is k-NN), and what it is there for."""

    role: Literal["tdsm", "baseline"]
    features: str | None
    head: HeadConfig | None
    meaning: str
    is_trained: bool = True

    @property
    def reader(self) -> str:
        """What makes classes of the features."""
        if self.features is None:
            return "majority"
        return "knn" if self.head is None else self.head.kind


READERS: dict[str, Reader] = {
    "ridge": Reader(HeadConfig(kind="ridge"), "all values, ridge regression in closed form"),
    "avg": Reader(HeadConfig(kind="avg"), "spatial average, linear"),
    "max": Reader(HeadConfig(kind="max"), "spatial maximum, linear"),
    "linear": Reader(HeadConfig(kind="flatten"), "all values, linear"),
    "mlp": Reader(HeadConfig(kind="flatten", hidden_dim=256), "all values, one hidden layer"),
    "mlp_dropout": Reader(
        HeadConfig(kind="flatten", hidden_dim=512, dropout=0.5), "all values, one hidden layer, half of it dropped"
    ),
    "cnn1": Reader(HeadConfig(kind="cnn", kernel_size=1, pooling="mean"), "1×1 convolutions, average", "places"),
    "cnn": Reader(HeadConfig(kind="cnn", width=32), "3×3 convolutions, all places, linear", "places"),
    "resnet": Reader(HeadConfig(kind="resnet", width=32, depth=1), "a small residual network", "places"),
    "resnet_wide": Reader(
        HeadConfig(kind="resnet", width=64, depth=2), "a residual network twice as wide and deep", "places"
    ),
    "attention": Reader(HeadConfig(kind="attention"), "tokens weighed at each place", "maps"),
    "attention_global": Reader(
        HeadConfig(kind="attention", attention_scope="global"), "tokens weighed once an image", "maps"
    ),
    "transformer": Reader(HeadConfig(kind="transformer"), "a small transformer", "sequences"),
    "knn": Reader(None, "nearest neighbours of all values"),
}
DEFAULT_ROWS = (
    *("tdsm-ridge", "tdsm-avg", "tdsm-max", "tdsm-linear", "tdsm-mlp", "tdsm-cnn1", "tdsm-cnn", "tdsm-resnet"),
    *("tdsm-attention", "tdsm-attention_global", "tdsm-knn", "majority"),
    *("pixels-ridge", "pixels-linear", "pixels-knn", "pixels-cnn", "pixels-resnet"),
    *("reconstruction-ridge", "reconstruction-linear", "reconstruction-cnn", "reconstruction-resnet"),
    *("tokens-ridge", "tokens-avg", "tokens-linear", "tokens-transformer", "values-ridge", "values-linear"),
    *("untrained-tokens-ridge", "untrained-tokens-linear", "untrained-tdsm-avg", "untrained-tdsm-cnn"),
)


def _row(feature: str, reader: Reader, is_trained: bool) -> Row:
    kind = FEATURES[feature]
    meaning = f"{kind.meaning}: {reader.meaning}" + ("" if is_trained else "; of a field that was never trained")
    role: Literal["tdsm", "baseline"] = "tdsm" if kind.is_token_map and is_trained else "baseline"
    return Row(role, feature, reader.head, meaning, is_trained)


ROWS: Registry[Row] = Registry(
    "row",
    {"majority": Row("baseline", None, None, "the most frequent training class, whatever the image")}
    | {
        f"{prefix}{feature}-{name}": _row(feature, reader, is_trained=not prefix)
        for prefix in ("", "untrained-")
        for feature, kind in FEATURES.items()
        for name, reader in READERS.items()
        if reader.suits(kind) and (kind.needs_field or not prefix)
    },
)


def settings_of(reader: str, is_spatial: bool = False) -> tuple[str, ...]:
    """Name the entries of `ProbeConfig` that decide how a row is fitted to its features, by what reads them.

    >>> settings_of("ridge"), settings_of("majority")
    (('penalties',), ())
    """
    if reader == "majority":
        return ()
    if reader == "knn":
        return OF_KNN
    if HEADS[reader].is_solved:
        return OF_SOLVED
    others = (*OF_KNN, *OF_SOLVED, *OF_FEATURES, *(() if is_spatial else OF_PLACES))
    return tuple(name for name in ProbeConfig.model_fields if name not in others)
