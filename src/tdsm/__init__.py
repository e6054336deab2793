"""Token-wise decoded decomposition of conditioned neural fields, and classification from its maps.

Names are imported when first used, so that `import tdsm` and `tdsm --help` cost nothing.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("tdsm")

_PUBLIC = {
    "FieldConfig": "tdsm.models.field",
    "NeuralField": "tdsm.models.field",
    "get_tdsm": "tdsm.models.field",
    "load_field": "tdsm.models.load",
    "TokenField": "tdsm.tokenfield",
    "component_images": "tdsm.decomposition",
    "decompose": "tdsm.decomposition",
    "pooled_map": "tdsm.decomposition",
    "plan_decoding": "tdsm.decomposition",
    "spatial_map": "tdsm.decomposition",
    "reduce_components": "tdsm.decomposition.reduce",
    "select_tokens": "tdsm.decomposition.select",
    "TDSMClassifier": "tdsm.classification.heads",
    "TdsmError": "tdsm.base.errors",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tdsm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
