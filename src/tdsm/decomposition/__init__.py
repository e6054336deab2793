"""Decompositions of a token field's output into one component an image token."""

from tdsm.decomposition.decompose import DECOMPOSITIONS, Decomposition, check_method, decompose, methods_for
from tdsm.decomposition.mixture import mix
from tdsm.decomposition.plan import Plan, plan_decoding
from tdsm.decomposition.pooled import POOLS, pooled_map
from tdsm.decomposition.solo import STRATEGIES, component_images, map_queries, missing_space, spatial_map

__all__ = [
    "DECOMPOSITIONS",
    "POOLS",
    "STRATEGIES",
    "Decomposition",
    "Plan",
    "check_method",
    "component_images",
    "decompose",
    "map_queries",
    "methods_for",
    "missing_space",
    "mix",
    "plan_decoding",
    "pooled_map",
    "spatial_map",
]
