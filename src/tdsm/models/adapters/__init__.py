"""Foreign models and checkpoints, brought to the interface of a token field.

Names are imported when first used: no adapter needs the packages of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdsm.models.adapters.cross_attention import CrossAttentionField
    from tdsm.models.adapters.hf_perceiver import HFPerceiverField
    from tdsm.models.adapters.multihead import MultiheadField
    from tdsm.models.adapters.perceiver_pytorch import PerceiverIOField
    from tdsm.models.adapters.published import load_published
    from tdsm.models.adapters.shape import shape_field

__all__ = [
    "CrossAttentionField",
    "HFPerceiverField",
    "MultiheadField",
    "PerceiverIOField",
    "load_published",
    "shape_field",
]

_HOME = {
    "CrossAttentionField": "cross_attention",
    "HFPerceiverField": "hf_perceiver",
    "MultiheadField": "multihead",
    "PerceiverIOField": "perceiver_pytorch",
    "load_published": "published",
    "shape_field": "shape",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tdsm.models.adapters' has no attribute {name!r}")
        return getattr(import_module(f"tdsm.models.adapters.{_HOME[name]}"), name)
