"""The rows of every results table: heads on spatial maps, and what they must be compared with.

All rows share one protocol: the same samples, standardisation, optimizer, budget and choice on validation. A
baseline asks what the decoding adds: to the most frequent class, to the pixels themselves, to the tokens and token
values before they are decoded, to the reconstruction, and to the same features of a field that was never trained.
"""

from dataclasses import dataclass
from typing import Literal

from tdsm.base.registry import Registry
from tdsm.classification.config import HeadConfig


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


LINEAR = HeadConfig(kind="flatten")
AVERAGE = HeadConfig(kind="avg")
CNN = HeadConfig(kind="cnn", kernel_size=3, width=32)

ROWS: Registry[Row] = Registry(
    "row",
    {
        "tdsm-avg": Row("tdsm", "tdsm", AVERAGE, "spatial average of each map, linear: the plain recipe"),
        "tdsm-max": Row("tdsm", "tdsm", HeadConfig(kind="max"), "spatial maximum of each map, linear"),
        "tdsm-flatten": Row("tdsm", "tdsm", LINEAR, "all values of all maps, linear"),
        "tdsm-mlp": Row("tdsm", "tdsm", HeadConfig(kind="flatten", hidden_dim=64), "all values, one hidden layer"),
        "tdsm-cnn1": Row("tdsm", "tdsm", HeadConfig(kind="cnn", kernel_size=1), "1×1 convolutions, average"),
        "tdsm-cnn3": Row("tdsm", "tdsm", CNN, "3×3 convolutions, average"),
        "tdsm-attention": Row("tdsm", "tdsm", HeadConfig(kind="attention"), "tokens weighed at each location"),
        "tdsm-attention-global": Row(
            "tdsm", "tdsm", HeadConfig(kind="attention", attention_scope="global"), "tokens weighed once an image"
        ),
        "tdsm-knn": Row("tdsm", "tdsm", None, "nearest neighbours of all map values"),
        "majority": Row("baseline", None, None, "the most frequent training class, whatever the image"),
        "pixels-linear": Row("baseline", "pixels", LINEAR, "raw pixels, linear"),
        "pixels-knn": Row("baseline", "pixels", None, "nearest neighbours of raw pixels"),
        "pixels-cnn3": Row("baseline", "pixels", CNN, "the CNN of tdsm-cnn3, on raw pixels"),
        "reconstruction-linear": Row("baseline", "reconstruction", LINEAR, "the decoded image, linear"),
        "reconstruction-cnn3": Row("baseline", "reconstruction", CNN, "the CNN of tdsm-cnn3, on the decoded image"),
        "tokens-mean": Row("baseline", "tokens", AVERAGE, "average of the tokens, linear"),
        "tokens-flatten": Row("baseline", "tokens", LINEAR, "all tokens, linear"),
        "tokens-transformer": Row(
            "baseline", "tokens", HeadConfig(kind="transformer"), "a small transformer on the tokens"
        ),
        "values-flatten": Row(
            "baseline", "values", LINEAR, "token values c_k, all a component image depends on, linear"
        ),
        "untrained-tokens-flatten": Row("baseline", "tokens", LINEAR, "tokens of an untrained field, linear", False),
        "untrained-tdsm-avg": Row("baseline", "tdsm", AVERAGE, "tdsm-avg of an untrained field", False),
        "untrained-tdsm-cnn3": Row("baseline", "tdsm", CNN, "tdsm-cnn3 of an untrained field", False),
    },
)
