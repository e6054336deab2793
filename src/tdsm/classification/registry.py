"""The heads there are, by name. To add one: a class of its own, and a line here. No torch: settings offer the names."""

from typing import TYPE_CHECKING

from tdsm.base.registry import Registry

if TYPE_CHECKING:
    from tdsm.classification.heads import Head

HERE = "tdsm.classification.heads"

HEADS: "Registry[type[Head]]" = Registry(
    "head",
    {
        "ridge": f"{HERE}:Ridge",
        "avg": f"{HERE}:AveragePool",
        "max": f"{HERE}:MaxPool",
        "flatten": f"{HERE}:Flatten",
        "cnn": f"{HERE}:Convolutions",
        "resnet": "tdsm.classification.residual:ResidualNetwork",
        "attention": f"{HERE}:TokenAttention",
        "transformer": f"{HERE}:Transformer",
    },
)
