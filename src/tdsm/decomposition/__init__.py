"""Decompositions of a token field's output into one component an image token.

Names are imported when first used, so that settings can read the registries without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdsm.decomposition.methods import Decomposition, check_method, decompose, methods_for
    from tdsm.decomposition.mixture import mix
    from tdsm.decomposition.plan import Plan, plan_decoding
    from tdsm.decomposition.pooled import pooled_map
    from tdsm.decomposition.regions import Contributions, contributions
    from tdsm.decomposition.registry import DECOMPOSITIONS, POOLS, REDUCTIONS, SELECTIONS, STRATEGIES
    from tdsm.decomposition.solo import component_images, map_queries, missing_space, spatial_map

_HOME = {
    "Contributions": "regions",
    "Decomposition": "methods",
    "check_method": "methods",
    "decompose": "methods",
    "methods_for": "methods",
    "mix": "mixture",
    "Plan": "plan",
    "plan_decoding": "plan",
    "pooled_map": "pooled",
    "DECOMPOSITIONS": "registry",
    "POOLS": "registry",
    "REDUCTIONS": "registry",
    "SELECTIONS": "registry",
    "STRATEGIES": "registry",
    "component_images": "solo",
    "contributions": "regions",
    "map_queries": "solo",
    "missing_space": "solo",
    "spatial_map": "solo",
}

__all__ = [
    "DECOMPOSITIONS",
    "POOLS",
    "REDUCTIONS",
    "SELECTIONS",
    "STRATEGIES",
    "Contributions",
    "Decomposition",
    "Plan",
    "check_method",
    "component_images",
    "contributions",
    "decompose",
    "map_queries",
    "methods_for",
    "missing_space",
    "mix",
    "plan_decoding",
    "pooled_map",
    "spatial_map",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tdsm.decomposition' has no attribute {name!r}")
        return getattr(import_module(f"tdsm.decomposition.{_HOME[name]}"), name)
