"""What there is by name. To add one: a file of its own, and a line here. No torch: settings offer the names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tdsm.base.registry import Registry

if TYPE_CHECKING:
    from tdsm.decomposition.parts import Method
    from tdsm.decomposition.reduce import Reduction
    from tdsm.decomposition.strategies import Strategy

HERE = "tdsm.decomposition"

DECOMPOSITIONS: "Registry[Method]" = Registry(
    "method",
    {
        "solo": f"{HERE}.solo:SOLO",
        "additive": f"{HERE}.additive:ADDITIVE",
        "leave_one_out": f"{HERE}.ablation:LEAVE_ONE_OUT",
        "attention": f"{HERE}.attention_maps:ATTENTION",
        "shapley": f"{HERE}.shapley:SHAPLEY",
        "mixture": f"{HERE}.mixture:MIXTURE",
    },
)
STRATEGIES: "Registry[Strategy]" = Registry(
    "strategy",
    {
        "auto": f"{HERE}.strategies:EXACT",  # never slower than the others
        "loop": f"{HERE}.strategies:LOOP",
        "batched": f"{HERE}.strategies:BATCHED",
        "exact": f"{HERE}.strategies:EXACT",
    },
)
REDUCTIONS: "Registry[Reduction]" = Registry(
    "reduction", {"mean": f"{HERE}.reduce:MEAN", "rgb": f"{HERE}.reduce:RGB", "l2": f"{HERE}.reduce:L2"}
)
SELECTIONS: Registry[Callable[[int, int], list[int]]] = Registry(
    "selection", {"stride": f"{HERE}.select:every_nth", "first": f"{HERE}.select:first"}
)
POOLS: Registry[Callable[..., Any]] = Registry(
    "pool", {"avg": "torch.nn.functional:adaptive_avg_pool2d", "max": "torch.nn.functional:adaptive_max_pool2d"}
)
