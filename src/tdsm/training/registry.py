"""The objectives there are, by name. To add one: a function of its own, and a line here. No torch, for settings."""

from typing import TYPE_CHECKING

from tdsm.base.registry import Registry

if TYPE_CHECKING:
    from tdsm.training.objectives import Objective

HERE = "tdsm.training.objectives"

OBJECTIVES: "Registry[Objective]" = Registry(
    "objective",
    {
        "full": f"{HERE}:FULL",
        "sparse_context": f"{HERE}:SPARSE_CONTEXT",
        "token_dropout": f"{HERE}:TOKEN_DROPOUT",
        "nested": f"{HERE}:NESTED",
        "mixture": f"{HERE}:MIXTURE",
    },
)
